//! What a node looks like: namespaces, links, routes, neighbours, conntrack.
//!
//! The facts are plain data and compile everywhere; reading them is for Linux.

pub mod facts;
#[cfg(live)]
mod live;

#[cfg(live)]
pub use live::{Error, Failure, Holder, Node, RuleCounters, RuleTraces, RulesMet};
