//! Reads the facts from the kernel this runs on.

mod conntrack;
mod conntrack_stats;
mod error;
mod fib;
mod met;
mod neighbours;
mod netlink;
mod netns;
mod reader;
mod routes;
mod rules;
mod scope;
mod settings;
mod survey;
mod text;
mod tunnel;
mod view;

pub use error::{Error, Failure};
pub use met::{RuleCounters, RuleTraces, RulesMet};
pub use reader::{Holder, Node};

use super::facts;
