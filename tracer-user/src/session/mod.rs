//! One trace on one node, and the protocol between the CLI and the nodes' sessions.

use std::{net::IpAddr, time::Duration};

/// What a session is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flows to record; both directions match.
    pub flows: Vec<Flow>,
    /// The session ends by itself after this time, whatever happens.
    pub time_limit: Duration,
    /// Set on the source's node only: what to inject on `fire`.
    pub ping: Option<Ping>,
}

/// A wanted flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// One end.
    pub a: IpAddr,
    /// The other end; None: any.
    pub b: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of `a`, or ICMP identifier; None: any.
    pub a_port: Option<u16>,
    /// Port of `b`; None: any.
    pub b_port: Option<u16>,
}

/// ICMP echo probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Source: an address of a pod of this node, or of the node itself. The probe leaves from the namespace that has it.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// ICMP identifier.
    pub id: u16,
    /// How many.
    pub count: u16,
    /// Between two probes.
    pub interval: Duration,
    /// ICMP payload, bytes; at least 8, for the nonce.
    pub size: u16,
    /// How long to wait for the reply to each.
    pub timeout: Duration,
    /// The nonce of probe `seq` is this + seq.
    pub nonce_base: u64,
}

/// Records that could not be reserved in the ring, by hook, and how many were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records written to the ring.
    pub recorded: u64,
    /// Lost at `netif_receive_skb`.
    pub lost_receive: u64,
    /// Lost at `net_dev_queue`.
    pub lost_queue: u64,
    /// Lost at `net_dev_start_xmit`.
    pub lost_xmit: u64,
    /// Lost at `kfree_skb`.
    pub lost_drop: u64,
    /// Lost at `consume_skb`.
    pub lost_consume: u64,
}

impl Counters {
    /// All that was lost.
    pub fn lost(&self) -> u64 {
        let Self { recorded: _, lost_receive, lost_queue, lost_xmit, lost_drop, lost_consume } = *self;
        lost_receive + lost_queue + lost_xmit + lost_drop + lost_consume
    }
}
