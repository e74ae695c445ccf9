//! What can go wrong between a session and the CLI.

use std::{fmt, io, net::IpAddr, time::Duration};

use super::{Version, wire::Malformed};

/// A refusal as a person reads it: the thing, the cause, the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// What failed: `kernel object`, `ping from 100.106.133.221`.
    pub thing: String,
    /// Why.
    pub cause: String,
    /// What the reader can do about it; empty if nothing.
    pub way_out: String,
    /// Ask again with this source ([`super::Ping::any_source`]).
    pub send_from: Option<IpAddr>,
}

impl Failure {
    /// From its three parts.
    pub fn new(thing: impl Into<String>, cause: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { thing: thing.into(), cause: cause.into(), way_out: way_out.into(), send_from: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.thing, self.cause)?;
        if self.way_out.is_empty() { Ok(()) } else { write!(f, "; {}", self.way_out) }
    }
}

/// Why a session ended otherwise than in order, from either side's view.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's own part (programs, netlink, injector) failed.
    #[error("{0}")]
    Backend(Failure),
    /// The peer said that it failed.
    #[error("{0}")]
    Peer(Failure),
    /// The process cannot run a session.
    #[error("session: start: {source}; check the limits on threads and open files")]
    Start {
        /// The operating system's word.
        source: io::Error,
    },
    /// Reading from the peer failed.
    #[error("session: read from the peer: {source}")]
    Read {
        /// The operating system's word.
        source: io::Error,
    },
    /// Writing to the peer failed.
    #[error("session: write to the peer: {source}")]
    Write {
        /// The operating system's word.
        source: io::Error,
    },
    /// A frame or a field of it makes no sense.
    #[error("session: {0}; use podpath and podpath-agent of the same release")]
    Malformed(#[from] Malformed),
    /// A message of ours does not fit in a frame.
    #[error(
        "session: message {message} of {length} bytes does not fit in a frame of {limit} bytes; report this as a bug"
    )]
    Oversized {
        /// Its name.
        message: &'static str,
        /// Bytes.
        length: usize,
        /// Bytes.
        limit: usize,
    },
    /// The peers speak incompatible protocols.
    #[error("{}", version_text(*ours, *theirs, their_name, our_name))]
    Version {
        /// This side's protocol.
        ours: Version,
        /// The other side's.
        theirs: Version,
        /// `podpath` or `podpath-agent`.
        our_name: &'static str,
        /// `podpath` or `podpath-agent`.
        their_name: &'static str,
    },
    /// The agent is too old for what is asked of it.
    #[error("protocol: podpath-agent speaks {theirs}, which has no {lacks}; upgrade podpath-agent there")]
    TooOld {
        /// Its protocol.
        theirs: Version,
        /// What was added later.
        lacks: &'static str,
    },
    /// A message that has no place here.
    #[error("session: message {message} is out of order {when}; use podpath and podpath-agent of the same release")]
    Unexpected {
        /// Its name.
        message: &'static str,
        /// The state, e.g. `before the request`.
        when: &'static str,
    },
    /// Nothing was heard for too long.
    #[error(
        "session: nothing heard from the peer for {} s; check that it still runs and that the way to it works",
        .after.as_secs()
    )]
    Silent {
        /// The limit.
        after: Duration,
    },
    /// The peer does not read.
    #[error("session: the peer has read nothing for {} s; check that it still runs", .after.as_secs())]
    Stalled {
        /// The limit.
        after: Duration,
    },
    /// Told to stop, a session went on.
    #[error("session: not drained within {} s of being told to stop; check the load of that node", .after.as_secs())]
    Undrained {
        /// The limit.
        after: Duration,
    },
    /// End of input before the session was over.
    #[error("session: the input ended before the session was over; the other side was stopped or its connection broke")]
    EndOfInput,
    /// No request came.
    #[error("session: no request within {} s; a session is started by podpath, not by hand", .after.as_secs())]
    NoRequest {
        /// The limit.
        after: Duration,
    },
    /// The hard time limit.
    #[error("session: time limit of {:?} reached; trace fewer probes or a shorter time", .limit)]
    TimeLimit {
        /// The limit that the request set.
        limit: Duration,
    },
    /// A signal, by name.
    #[error("session: ended by {signal}; start the trace again")]
    Signal {
        /// `SIGTERM`.
        signal: &'static str,
    },
}

impl Error {
    /// The same as it goes to the peer.
    pub fn to_failure(&self) -> Failure {
        if let Self::Backend(failure) | Self::Peer(failure) = self {
            return failure.clone();
        }
        let text = self.to_string();
        let (thing, rest) = text.split_once(": ").unwrap_or(("session", text.as_str()));
        let (cause, way_out) = rest.rsplit_once("; ").unwrap_or((rest, ""));
        Failure::new(thing, cause, way_out)
    }
}

fn version_text(ours: Version, theirs: Version, their_name: &str, our_name: &str) -> String {
    let old = if theirs.major < ours.major { their_name } else { our_name };
    format!("protocol: {their_name} speaks {theirs} and {our_name} speaks {ours}; upgrade {old}")
}
