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
    #[error("cannot {operation} in network namespace {netns}: {source}{}", if_refused(source.errno()))]
    Netlink {
        /// What was asked for.
        operation: &'static str,
        /// Inode of the namespace.
        netns: u32,
        /// Cause.
        source: Failure,
    },
    /// The tables of legacy iptables cannot be read.
    #[error("cannot read iptables in network namespace {netns}: {source}{}", if_iptables_refused(source))]
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

/// What a refusal means. Links and routes are anybody's to read, netfilter is not (`nfnetlink_rcv`, `do_ipt_get_ctl`).
fn if_refused(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EPERM) => "; reading netfilter's rules and conntrack takes CAP_NET_ADMIN, in any namespace",
        _ => "",
    }
}

/// The same of iptables, which is asked by a raw socket.
fn if_iptables_refused(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => "; it takes CAP_NET_ADMIN and CAP_NET_RAW",
        _ => "",
    }
}

impl Error {
    /// Netfilter may not be read: not in this namespace, and so in none.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Netlink { source, .. } if source.errno() == Some(libc::EPERM))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_capability_and_nothing_else_does() {
        let netlink = |errno| Failure::Refused(io::Error::from_raw_os_error(errno)).during("read nftables", 7);
        let refused = netlink(libc::EPERM);
        assert!(refused.is_refusal() && !netlink(libc::EBUSY).is_refusal());
        insta::assert_snapshot!(refused, @"cannot read nftables in network namespace 7: the kernel answered: Operation not permitted (os error 1); reading netfilter's rules and conntrack takes CAP_NET_ADMIN, in any namespace");
        insta::assert_snapshot!(netlink(libc::EBUSY), @"cannot read nftables in network namespace 7: the kernel answered: Device or resource busy (os error 16)");
        let iptables = Error::Iptables { netns: 7, source: io::Error::from_raw_os_error(libc::EPERM) };
        insta::assert_snapshot!(iptables, @"cannot read iptables in network namespace 7: Operation not permitted (os error 1); it takes CAP_NET_ADMIN and CAP_NET_RAW");
    }
}
