//! podpath's library: everything that the two binaries `podpath` and `podpath-agent` are made of.
//!
//! `docs/ARCHITECTURE.md` follows a packet's bytes through these modules. What needs the kernel of a node is compiled for Linux
//! with the feature `agent`: there the build script sets `cfg(live)`.

mod checksum;
pub mod cli;
pub mod cluster;
pub mod doctor;
pub mod event;
pub mod identity;
#[cfg(live)]
pub mod inject;
pub mod node;
pub mod path;
#[cfg(live)]
pub mod probe;
pub mod recording;
pub mod render;
pub mod report;
pub mod session;
