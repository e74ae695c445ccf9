//! Tests of the reducer as a whole.

mod cases;
mod conntrack;
mod copies;
mod doubtful;
mod drops;
mod failures;
mod places;
mod properties;
mod snapshot;
mod stacked;
mod tcp;
mod translated;
mod unsent;
