//! One trace on one node, and the protocol between the CLI and the nodes' sessions.

use std::{fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tracer_common::chosen;

mod backend;
mod connection;
mod drive;
mod error;
mod examine;
mod inventory;
mod link;
#[cfg(live)]
mod live;
mod node;
#[cfg(live)]
mod process;
pub mod replay;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use self::connection::as_typed;
#[doc(hidden)]
pub use self::link::{decode_stream, request_stream};
#[cfg(live)]
pub use self::live::LiveNode;
#[cfg(live)]
pub use self::process::run_agent;
#[doc(hidden)]
pub use self::wire::Frames;
pub use self::{
    backend::{Backend, Ended, InjectorJob, ProbeSender},
    connection::Connection,
    drive::{Death, DriveError, Driven, DrivenNode, Plan, Progress, drive},
    error::{Error, Failure},
    examine::{Examined, examine},
    inventory::{Inventory, InventoryError, InventoryNode},
    link::{KEEPALIVE, SILENCE},
    replay::Replay,
    serve::{MAX_TIME_LIMIT, serve},
    wire::Malformed,
};

/// The protocol this program speaks; `docs/PROTOCOL.md` says when which number grows.
pub const PROTOCOL: Version = Version { major: 1, minor: 6 };

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Peers of another major version cannot talk.
    pub major: u32,
    /// Peers of another minor version can: what one does not know it ignores.
    pub minor: u32,
}

impl Version {
    /// Whether peers of these versions understand each other.
    pub fn talks_to(self, other: Self) -> bool {
        self.major == other.major
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}.{}", self.major, self.minor)
    }
}

/// The first thing a session says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What it speaks.
    pub protocol: Version,
    /// Name and version of the program: `podpath-agent 0.1.0`.
    pub program: String,
    /// The node it runs on.
    pub about: About,
}

/// Who a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its host name.
    pub node: String,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// What this kernel and user can do, by name.
    pub capabilities: Vec<String>,
    /// CLOCK_REALTIME - CLOCK_MONOTONIC, ns: to print dates, never to join.
    pub realtime_offset_ns: i64,
}

/// What a session is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flows to record; both directions match.
    pub flows: Vec<Flow>,
    /// The session ends by itself after this time, whatever happens.
    pub time_limit: Duration,
    /// Set on the source's node only: what to inject on `fire`.
    pub ping: Option<Ping>,
    /// Let the kernel trace the rules that the flows' packets meet, by a table of our own that vanishes with the session.
    pub trace_rules: bool,
    /// For long sessions: what runs for everybody's packets, only to say more of drops, waits until one of the flows' packets is dropped.
    /// An older agent has it from the beginning.
    pub sparing: bool,
}

impl Request {
    /// What a session of this version does not know and would pass over in silence.
    fn lacked_by(&self, version: Version) -> Option<&'static str> {
        let ping = self.ping.as_ref();
        let younger = [
            (1, matches!(ping, Some(Ping { kind: ProbeKind::Tcp { .. }, .. })), "TCP probes"),
            (1, matches!(ping, Some(Ping { kind: ProbeKind::Udp { .. }, .. })), "UDP probes"),
            (1, matches!(ping, Some(Ping { src: IpAddr::V6(_), .. })), "IPv6 probes"),
            (1, self.trace_rules, "tracing of rules"),
            (4, self.flows.iter().any(|flow| flow.one_of > 1), "sampling of flows"),
        ];
        younger.into_iter().find(|(since, asked, _)| *asked && version.minor < *since).map(|(.., what)| what)
    }
}

/// A wanted flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Of so many connections one is recorded, chosen by the port (ICMP: identifier) of `a` alike on all nodes
    /// ([`tracer_common::chosen`]); 1: all.
    #[serde(default = "all")]
    pub one_of: u32,
}

fn all() -> u32 {
    1
}

impl Flow {
    /// Whether what goes from one address and port to another is of it, in either direction. Ports as [`Flow`] has them: of ICMP
    /// the identifier of who asks, and none of who answers.
    pub fn covers(&self, protocol: u8, from: (IpAddr, Option<u16>), to: (IpAddr, Option<u16>)) -> bool {
        let fits = |asked: Option<u16>, port: Option<u16>| asked.is_none() || port.is_none() || asked == port;
        let a = |end: (IpAddr, Option<u16>)| end.0 == self.a && fits(self.a_port, end.1);
        let b = |end: (IpAddr, Option<u16>)| self.b.is_none_or(|address| address == end.0) && fits(self.b_port, end.1);
        let sampled = |port: Option<u16>| {
            port.is_none_or(|port| chosen(u16::from_ne_bytes(port.to_be_bytes()).into(), self.one_of) == 0)
        };
        protocol == self.protocol && (a(from) && b(to) && sampled(from.1) || a(to) && b(from) && sampled(to.1))
    }
}

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// An ICMP or ICMPv6 echo request.
    Echo {
        /// Identifier of all of them.
        id: u16,
    },
    /// A TCP SYN; the connection is reset once it is answered. Each has a source port of its own, which the source's kernel
    /// chooses among those that nobody there uses: [`crate::path::Probe::id`] tells it.
    Tcp {
        /// Destination port.
        dst_port: u16,
    },
    /// A UDP datagram; source ports as for TCP.
    Udp {
        /// Destination port.
        dst_port: u16,
    },
}

impl ProbeKind {
    /// IP protocol number, between addresses of this one's family.
    pub fn protocol(self, address: IpAddr) -> u8 {
        match (self, address) {
            (Self::Echo { .. }, IpAddr::V4(_)) => 1,
            (Self::Echo { .. }, IpAddr::V6(_)) => 58,
            (Self::Tcp { .. }, _) => 6,
            (Self::Udp { .. }, _) => 17,
        }
    }
}

/// Probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Source: an address of a pod of this node, or of the node itself. The probe leaves from the namespace that has it.
    pub src: IpAddr,
    /// Another address of that namespace, where `src` does not tell which one it is (127.0.0.1).
    pub home: Option<IpAddr>,
    /// `src` only stands for the sender: where its kernel would send to `dst` from another address, the session refuses and says
    /// from which ([`Failure::send_from`]).
    pub any_source: bool,
    /// Destination.
    pub dst: IpAddr,
    /// What is sent.
    pub kind: ProbeKind,
    /// How many.
    pub count: u16,
    /// Between two probes.
    pub interval: Duration,
    /// Payload of an echo or datagram, bytes; at least 8, for the nonce. A SYN has none.
    pub size: u16,
    /// How long to wait for the reply to each.
    pub timeout: Duration,
    /// The nonce of probe `seq` is this + seq; of TCP its lower half.
    pub nonce_base: u64,
}

/// What the kernel side recorded, and what it could not.
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
    /// Lost at `nf_nat_manip_pkt`: the moment of a translation.
    pub lost_rewrite: u64,
    /// How often a packet was passed over because its headers lay in page fragments, on a machine where those cannot be read;
    /// some may have been of a wanted flow.
    pub unread: u64,
    /// Frees that the kernel did not show because a program of ours was already running on that CPU
    /// (`kernel/trace/bpf_trace.c`, `prog->active`); most are of packets nobody asked about.
    pub skipped_frees: u64,
    /// How often a kprobe was passed over because a program was already running on that CPU (`trace_call_bpf` in
    /// kernel/trace/bpf_trace.c): the moment of a translation or what evaluated rules last may be missing; most are of packets
    /// nobody asked about.
    pub skipped_kprobes: u64,
}

impl Counters {
    /// All records that were lost: those that could not be reserved in the ring. Not what may have been nobody's anyway.
    pub fn lost(&self) -> u64 {
        let Self {
            recorded: _,
            lost_receive,
            lost_queue,
            lost_xmit,
            lost_drop,
            lost_consume,
            lost_rewrite,
            unread: _,
            skipped_frees: _,
            skipped_kprobes: _,
        } = *self;
        lost_receive + lost_queue + lost_xmit + lost_drop + lost_consume + lost_rewrite
    }
}
