//! What a node looks like: namespaces, links, routes, neighbours, conntrack.
//!
//! The facts are plain data and compile everywhere; reading them is for Linux.

pub mod facts;
#[cfg(target_os = "linux")]
mod live;

#[cfg(target_os = "linux")]
pub use live::{Error, Failure, Holder, Node, RuleCounters, RuleTraces, RulesMet};
