//! Sightings -> hops -> path -> joined across nodes. Pure: no I/O, no clock, no async.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{event::Record, node::facts::NodeFacts, session::Flow};

mod chain;
mod clock;
mod culprit;
mod drops;
mod ending;
mod errors;
mod exchange;
mod group;
mod hops;
mod join;
pub mod model;
mod nat;
mod nat_rule;
mod route;
mod shares;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod touch;
mod world;

pub use join::{join, join_all, join_first, join_within, pod_with};
pub use route::{links_met, route_questions, turned_questions};

/// Everything that is known about one run, as the sessions delivered it.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// One per session.
    pub nodes: Vec<NodeEvidence>,
    /// What the injector sent, in order; empty in passive mode.
    pub probes: Vec<Probe>,
    /// The trace was ended before the injector was done.
    pub interrupted: bool,
}

/// What one session saw.
#[derive(Clone, Debug, Default)]
pub struct NodeEvidence {
    /// Name of the node.
    pub name: String,
    /// In any order; possibly with duplicates.
    pub records: Vec<Record>,
    /// What the node looks like.
    pub facts: NodeFacts,
    /// What was not recorded or did not arrive, and may have been of a wanted flow.
    pub lost: u64,
    /// Those of `lost` that were received packets which could not be read: the driver has a warning of its own for them.
    pub unread: u64,
    /// The session ended in order and delivered everything it saw.
    pub complete: bool,
    /// What it was asked to record; empty: not told.
    pub watched: Vec<Flow>,
    /// When it stopped recording, by its `CLOCK_MONOTONIC`, ns; None: not told.
    pub stopped_ns: Option<u64>,
    /// Until when others may not have recorded yet, by the same clock, ns: what was seen until then may lack its beginning. None: it
    /// is known that all did, or nothing was seen before.
    pub alone_ns: Option<u64>,
}

/// One injected probe, by the injector's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Probe {
    /// ICMP sequence number; of TCP and UDP the number of the probe, from 1.
    pub seq: u16,
    /// IP protocol number: 1 ICMP, 58 ICMPv6, 6 TCP, 17 UDP.
    pub protocol: u8,
    /// ICMP identifier or source port, as sent. Each TCP or UDP probe has a port of its own.
    pub id: u16,
    /// Destination port, as sent; 0 for ICMP.
    pub dst_port: u16,
    /// IPv4 identification, as sent; 0 for IPv6.
    pub ip_id: u16,
    /// The first 8 payload bytes, big-endian; of TCP the sequence number of the SYN.
    pub nonce: u64,
    /// Round-trip time by the injector's clock, ns; None: no answer within the time limit.
    pub rtt_ns: Option<u64>,
    /// What came back.
    pub answer: Option<Answer>,
    /// Its own kernel refused to let it out, before any device saw it.
    pub unsent: Option<Unsent>,
}

/// Why a sender's own kernel does not let a packet out, as the error of its system call tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// EPERM: netfilter, conntrack, or a program of the sender's cgroup.
    Filtered,
    /// ENETUNREACH: no route. This and what follows may be of the route to whatever DNAT made of its destination
    /// (`ip_route_me_harder` in `net/ipv4/netfilter.c`).
    NoRoute,
    /// EINVAL: a route of type blackhole (`fib_props` in `net/ipv4/fib_semantics.c`), or it is no address to send to.
    Blackhole,
    /// EHOSTUNREACH: a route of type unreachable.
    Unreachable,
    /// EACCES: a route of type prohibit, or an address for broadcasts.
    Prohibit,
}

impl Unsent {
    /// The error's name.
    pub fn errno(self) -> &'static str {
        match self {
            Self::Filtered => "EPERM",
            Self::NoRoute => "ENETUNREACH",
            Self::Blackhole => "EINVAL",
            Self::Unreachable => "EHOSTUNREACH",
            Self::Prohibit => "EACCES",
        }
    }
}

/// What came back to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An echo reply or a UDP datagram.
    Reply,
    /// SYN+ACK: the port is open.
    SynAck,
    /// RST: refused.
    Reset,
    /// An ICMP error about the probe.
    IcmpError {
        /// Who sent it.
        from: IpAddr,
        /// Type (ICMPv6's if `from` is IPv6).
        kind: u8,
        /// Code.
        code: u8,
        /// The rest of its header: of "fragmentation needed" and "packet too big" the MTU.
        mtu: u32,
    },
}

/// Names for what the joiner meets.
pub trait Names {
    /// `namespace/pod` of the pod that has this address; None if nobody knows one. Never a host-network pod.
    fn pod(&self, address: IpAddr) -> Option<String>;
    /// Name of the node that has this address as its own.
    fn node(&self, address: IpAddr) -> Option<String>;

    /// The network policies that select a pod (`namespace/pod`) for a direction; None if nobody knows the pod.
    fn policies(&self, _pod: &str, _direction: model::PolicyDirection) -> Option<Selecting> {
        None
    }

    /// The policy whose rules stand in this chain, which Calico names after it.
    fn policy_of_chain(&self, _chain: &str) -> Option<model::NamedPolicy> {
        None
    }
}

/// What is known of the network policies that select a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selecting {
    /// How many were looked at.
    pub read: model::PoliciesRead,
    /// The policies that select it, each with its tier.
    pub policies: Vec<(model::NamedPolicy, String)>,
    /// Those that may: their selector is not understood.
    pub unclear: Vec<(model::NamedPolicy, String)>,
}

/// Who asked and who was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The end that sends the requests.
    pub source: model::Endpoint,
    /// The end that is asked.
    pub destination: model::Endpoint,
}

/// What [`join`] makes of the evidence: the parts of a [`model::Trace`] that follow from packets and facts.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Joined {
    /// Probes in the order they were sent; in passive mode, in the order of the first packets.
    pub exchanges: Vec<model::Exchange>,
    /// What traceroute would list.
    pub routers: Vec<IpAddr>,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// The smallest MTU of the interfaces that the packets passed, bytes.
    pub smallest_mtu: Option<u32>,
    /// Interfaces that have it, `NODE IFACE` or `pod NAMESPACE/POD IFACE`, in the order of the path; none where the first
    /// interface of the path has it.
    pub smallest_mtu_at: Vec<String>,
}
