//! Why probes could not be sent.

use std::{io, net::IpAddr};

use nix::errno::Errno;

use super::{LARGEST, SMALLEST};

/// Why probes could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ends have no address family in common.
    #[error("probe {src} -> {dst}: one is an IPv4 and one an IPv6 address; trace two addresses of one family")]
    Families {
        /// Source asked for.
        src: IpAddr,
        /// Destination asked for.
        dst: IpAddr,
    },
    /// The payload is smaller than the nonce or larger than IPv4 allows.
    #[error("probe size {size}: the payload must be between {SMALLEST} bytes (for the nonce) and {LARGEST}")]
    Size {
        /// Bytes asked for.
        size: u16,
    },
    /// The interval is zero.
    #[error("probe interval 0: probes need a time between them; try 0.01 seconds")]
    Interval,
    /// The destination port is zero.
    #[error("probe port 0: nothing can listen on it; give a port from 1 to 65535")]
    Port,
    /// No thread could be had.
    #[error("start the probe thread: {0}")]
    Thread(#[source] io::Error),
    /// The namespace could not be entered.
    #[error("setns into the network namespace of {src}: {cause}{}", setns_way_out(.cause))]
    Setns {
        /// Whose namespace.
        src: IpAddr,
        /// Cause.
        #[source]
        cause: Errno,
    },
    /// A socket call failed.
    #[error("{operation} for probes from {src}: {cause}{}", socket_way_out(operation, .cause))]
    Socket {
        /// The call, as in its man page.
        operation: &'static str,
        /// Source of the probes.
        src: IpAddr,
        /// Cause.
        #[source]
        cause: Errno,
    },
    /// The kernel refused to build a packet.
    #[error("send probe {seq} to {dst}: {cause}{}", send_way_out(.cause))]
    Send {
        /// Sequence number.
        seq: u16,
        /// Destination.
        dst: IpAddr,
        /// Cause.
        #[source]
        cause: Errno,
    },
}

fn setns_way_out(cause: &Errno) -> &'static str {
    match cause {
        Errno::EPERM => "; entering a namespace needs CAP_SYS_ADMIN: run as root",
        Errno::EINVAL => "; what was opened is not a network namespace (any more): has the pod gone?",
        _ => "",
    }
}

fn socket_way_out(operation: &str, cause: &Errno) -> &'static str {
    match (operation, cause) {
        ("socket", Errno::EPERM) => "; a raw socket needs CAP_NET_RAW: run as root",
        (_, Errno::EMFILE) => {
            "; each TCP or UDP probe under way holds a port, and that a file: raise the limit (ulimit -n), the interval or lower the timeout"
        }
        ("bind", Errno::EADDRNOTAVAIL) => "; the namespace does not have this address (any more): has the pod gone?",
        ("bind", Errno::EADDRINUSE) => {
            "; all ports of the source's net.ipv4.ip_local_port_range are in use: send fewer probes at a time"
        }
        _ => "",
    }
}

fn send_way_out(cause: &Errno) -> &'static str {
    match cause {
        Errno::EMSGSIZE => "; the probe is larger than the interface's MTU: choose a smaller size",
        _ => "",
    }
}
