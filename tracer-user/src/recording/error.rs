//! What can be wrong with a recording.

use std::{io, path::PathBuf};

use crate::session;

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened, read or written.
    #[error("recording {}: {what}: {source}{}", .path.display(), way_out(.source))]
    File {
        /// It.
        path: PathBuf,
        /// What was tried: `read`.
        what: &'static str,
        /// The operating system's word.
        source: io::Error,
    },
    /// There is such a file already.
    #[error("recording {}: the file exists already; name another one, or remove it first", .path.display())]
    Exists {
        /// It.
        path: PathBuf,
    },
    /// It begins with something else.
    #[error("{}: no recording of podpath (its first bytes are others); `podpath record ... -w FILE` writes one", .path.display())]
    NotOne {
        /// It.
        path: PathBuf,
    },
    /// A later podpath wrote it, in a format that this one does not know.
    #[error("recording {}: its format is version {version}, this podpath reads up to {known}; read it with the podpath that wrote it, or a later one", .path.display())]
    Newer {
        /// It.
        path: PathBuf,
        /// Its version.
        version: u8,
        /// The last that this program knows.
        known: u8,
    },
    /// Not even its beginning is whole.
    #[error("recording {}: it was cut off before its first block was whole: there is nothing in it; record again", .path.display())]
    Empty {
        /// It.
        path: PathBuf,
    },
    /// What its blocks hold is no recording.
    #[error("recording {}: {what} at byte {at}: {reason}; the file was changed, or podpath that wrote it has a bug: please report it", .path.display())]
    Malformed {
        /// It.
        path: PathBuf,
        /// What is wrong: `an entry`.
        what: &'static str,
        /// Where its block begins, bytes.
        at: u64,
        /// Why.
        reason: String,
    },
    /// A frame in it is malformed.
    #[error("recording {}: {source}", .path.display())]
    Frame {
        /// It.
        path: PathBuf,
        /// Why.
        source: Box<session::Error>,
    },
}

fn way_out(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; what was written before can be read: make room, or name a file on another disk"
        }
        io::ErrorKind::PermissionDenied => "; choose a folder of yours, or check who owns it",
        _ => "",
    }
}
