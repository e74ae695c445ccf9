//! What a node looks like: namespaces, links, routes, neighbours, conntrack.
//!
//! The facts are plain data and compile everywhere; reading them is for Linux.

pub mod facts;
