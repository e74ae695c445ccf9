//! What can go wrong while a node is read.

use std::{io, path::PathBuf};

use netlink_packet_core::DecodeError;

/// A node, or one of its namespaces, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder that lists processes or named namespaces cannot be read.
    #[error("cannot list {}: {source}; podpath needs root and the node's own /proc", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A namespace file cannot be opened.
    #[error("cannot open network namespace {}: {source}{}", path.display(), if_exhausted(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is no namespace.
    #[error("{} is no namespace file; something else was put where network namespaces are named", path.display())]
    NoNamespace {
        /// The file.
        path: PathBuf,
    },
    /// `setns` was refused.
    #[error("cannot enter network namespace {netns}: {source}; entering needs CAP_SYS_ADMIN, run as root")]
    Enter {
        /// Inode of the namespace.
        netns: u32,
        /// Cause.
        source: io::Error,
    },
    /// No thread could be started to enter a namespace with.
    #[error("cannot start a thread for network namespace {netns}: {source}")]
    Thread {
        /// Inode of the namespace.
        netns: u32,
        /// Cause.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("cannot {operation} in network namespace {netns}: {source}")]
    Netlink {
        /// What was asked for.
        operation: &'static str,
        /// Inode of the namespace.
        netns: u32,
        /// Cause.
        source: Failure,
    },
    /// The tables of legacy iptables cannot be read.
    #[error("cannot read iptables in network namespace {netns}: {source}")]
    Iptables {
        /// Inode of the namespace.
        netns: u32,
        /// Cause.
        source: io::Error,
    },
    /// A question names a namespace that is not in scope.
    #[error("network namespace {netns} is neither this node's own nor one of its pods'; it may have vanished")]
    OutOfScope {
        /// Inode of the namespace.
        netns: u32,
    },
}

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel answered with an error.
    #[error("the kernel answered: {0}")]
    Refused(#[source] io::Error),
    /// The kernel's answer cannot be decoded.
    #[error("answer of the kernel not understood: {0}")]
    Decode(#[from] DecodeError),
}

/// What a lack of descriptors means, and the way out.
fn if_exhausted(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            "; pods of this node were left out of the trace, raise the limit on open files (ulimit -n)"
        }
        _ => "",
    }
}

impl Failure {
    /// Makes an [`Error`] of it.
    pub(super) fn during(self, operation: &'static str, netns: u32) -> Error {
        Error::Netlink { operation, netns, source: self }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            Self::Socket(_) | Self::Decode(_) => None,
        }
    }
}
