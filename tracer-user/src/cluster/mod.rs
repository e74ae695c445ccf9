//! A Kubernetes cluster through its API: the nodes' agents, who is who, what is installed.
//!
//! All requests go through what a kubeconfig says, with the rights of its user; the API server decides who may do what. The
//! number of requests of a trace grows with its path, never with the cluster.

mod access;
mod agents;
mod ask;
mod ephemeral;
mod error;
pub mod installation;
mod lookup;
mod machines;
pub mod manifests;
pub mod names;

pub use access::{Access, Cluster};
pub use ephemeral::{Ephemeral, Wish};
pub use error::Error;
pub use lookup::Lookup;
pub use machines::Machine;
