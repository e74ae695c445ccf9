//! Recordings: what the sessions of a passive trace said, in a file, for `podpath report` and `podpath convert`.
//!
//! `docs/RECORDING.md` describes the format. In short: blocks, each compressed and with a checksum, of entries; most entries are
//! frames of the session protocol as they came. So whatever a later podpath understands of a session it understands of a recording,
//! and a file that a crash or a full disk cut off is good up to its last whole block.

use serde::{Deserialize, Serialize};

use crate::{
    path::{Ends, model::AskedService},
    session::Flow,
};

pub mod capture;
mod error;
mod file;
mod live;
mod met;
mod names;
mod read;
mod related;
#[cfg(test)]
mod tests;
mod window;

pub use error::Error;
pub use file::{Entry, Writer};
pub use live::Live;
pub use met::Met;
pub use names::KnownNames;
pub use read::{Contents, Recording};
pub use window::Window;

/// What a recording says of itself, first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The program that wrote it: `podpath 0.1.0`.
    pub program: String,
    /// When recording was asked for, UTC, RFC 3339 with seconds.
    pub started: String,
    /// The inventory's or cluster's name.
    pub context: Option<String>,
    /// Who sends requests to whom.
    pub ends: Ends,
    /// Set where the destination is a service.
    pub service: Option<AskedService>,
    /// What was waited for, in words: `tcp to port 5432`.
    pub traffic: String,
    /// The sessions, in the order in which frames number them.
    pub nodes: Vec<RecordedNode>,
}

/// A node with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedNode {
    /// Its name.
    pub name: String,
    /// What it was asked to record.
    pub flows: Vec<Flow>,
}

/// What a recording says last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// What a reader must know, in sentences.
    pub warnings: Vec<String>,
    /// The user ended it early.
    pub interrupted: bool,
}
