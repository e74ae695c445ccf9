//! Both sides against stand-ins for what they talk to, in paused time.

mod driving;
mod examining;
mod serving;
mod stand_in;
