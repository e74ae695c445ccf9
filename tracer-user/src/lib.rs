//! podpath's library: everything that the two binaries `podpath` and `podpath-agent` are made of.
//!
//! `docs/ARCHITECTURE.md` follows a packet's bytes through these modules.

pub mod cli;
pub mod cluster;
pub mod doctor;
pub mod event;
pub mod identity;
#[cfg(target_os = "linux")]
pub mod inject;
pub mod node;
pub mod path;
#[cfg(target_os = "linux")]
pub mod probe;
pub mod render;
pub mod session;
