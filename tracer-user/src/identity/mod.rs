//! Who is who: addresses to pods and nodes, and the names that people type to addresses.
//!
//! The source here is a file as `kubectl get pods,nodes,services,endpointslices,networkpolicies -A -o yaml` (or `-o json`) prints it.
//! Lookups are pure and work on any platform.

mod directory;
mod error;
mod interface;
mod limits;
mod objects;
mod policy;
mod read;
mod resolve;
mod selector;
mod service;
#[cfg(test)]
mod tests;

pub use directory::Directory;
pub use error::{Error, Reason};
pub use interface::calico_interface_name;
pub use limits::MAX_FILE_BYTES;
pub use resolve::Target;
pub use service::{Port, Service, ServiceEndpoint};

/// The command that makes a file which [`Directory::load`] reads; messages name it.
pub const KUBECTL_COMMAND: &str = "kubectl get pods,nodes,services,endpointslices,networkpolicies -A -o yaml";
