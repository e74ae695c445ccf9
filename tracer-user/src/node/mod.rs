//! What a node looks like: namespaces, links, routes, neighbours, conntrack.
//!
//! The facts are plain data and compile everywhere; reading them is for Linux.

pub mod facts;

#[cfg(target_os = "linux")]
mod conntrack;
#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod fib;
#[cfg(target_os = "linux")]
mod met;
#[cfg(target_os = "linux")]
mod neighbours;
#[cfg(target_os = "linux")]
mod netlink;
#[cfg(target_os = "linux")]
mod netns;
#[cfg(target_os = "linux")]
mod reader;
#[cfg(target_os = "linux")]
mod routes;
#[cfg(target_os = "linux")]
mod rules;
#[cfg(target_os = "linux")]
mod scope;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod survey;
#[cfg(target_os = "linux")]
mod text;
#[cfg(target_os = "linux")]
mod tunnel;
#[cfg(target_os = "linux")]
mod view;

#[cfg(target_os = "linux")]
pub use error::{Error, Failure};
#[cfg(target_os = "linux")]
pub use met::{RuleCounters, RuleTraces, RulesMet};
#[cfg(target_os = "linux")]
pub use reader::{Holder, Node};
