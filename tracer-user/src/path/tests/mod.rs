//! Tests of the reducer as a whole.

mod cases;
mod conntrack;
mod doubtful;
mod drops;
mod failures;
mod places;
mod properties;
mod snapshot;
mod tcp;
mod translated;
