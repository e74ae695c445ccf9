//! The trace as people and programs see it. Serialises to the JSON contract of `docs/ARCHITECTURE.md` and README
//! (`podpath.trace/v1`): fields are only ever added. Unknown is `null`, never 0 or "".

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

mod drop;
mod policy;
mod rounds;
mod service;

pub use drop::{CulpritRule, DropCause, DropDetail, SettingDetail};
pub(crate) use policy::KUBERNETES;
pub use policy::{NamedPolicy, Policies, PoliciesRead, PolicyDirection, PolicyStage};
pub use service::{AskedService, LocalEndpoints};

/// All exchanges of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// Always `podpath.trace/v1`.
    pub schema: &'static str,
    /// Who asked.
    pub source: Endpoint,
    /// Who was asked.
    pub destination: Endpoint,
    /// Set where the destination is a service: it stands for its endpoints.
    pub service: Option<AskedService>,
    /// In the order of their first packets.
    pub exchanges: Vec<Exchange>,
    /// What traceroute would list: the source address of an ICMP error at each forwarding node, as it comes back to the source
    /// (from behind a DNAT as from the address that was asked), then the destination.
    pub routers: Vec<IpAddr>,
    /// Events the kernel side could not record, all nodes together.
    pub lost_events: u64,
    /// What the reader should know before believing the rest.
    pub warnings: Vec<String>,
    /// The inventory's or cluster's name.
    pub context: Option<String>,
    /// When the trace began, UTC, RFC 3339 with seconds.
    pub started: String,
    /// The nodes that were traced.
    pub nodes: Vec<TracedNode>,
    /// The smallest MTU of the interfaces on the path, bytes.
    pub smallest_mtu: Option<u32>,
    /// Interfaces that have it, `NODE IFACE` or `pod NAMESPACE/POD IFACE`, in the order of the path; none where the first
    /// interface of the path has it.
    pub smallest_mtu_at: Vec<String>,
    /// `icmp echo 84 B`: what was sent.
    pub probe: String,
}

/// What is said where a packet passed to another device without having been routed or bridged.
pub const REDIRECTED: &str = "redirected before IP (tc, XDP, a CNI's eBPF)";

/// And where no device saw it come.
pub const REDIRECTED_UNSEEN: &str = "redirected before IP (tc, XDP, a CNI's eBPF); no hook saw it";

/// What is said after the name of a place that has an XDP program.
pub const HAS_XDP: &str = " has an XDP program: ";

/// What is said at an `ifb`, by which a packet makes a detour.
pub const QUEUED: &str = "redirected here by tc, to be queued; then handed back";

/// What is said at a DNAT that no rule chose since the trace began.
pub const OLD_ENTRY: &str = "by conntrack's entry, which is older than the trace: no rule chose it since";

/// One end of the trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `namespace/pod`, or a node's name; None where nobody knows it.
    pub name: Option<String>,
    /// Address.
    pub address: IpAddr,
    /// Name of the node it lives on.
    pub node: Option<String>,
}

/// A node with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TracedNode {
    /// Name.
    pub name: String,
    /// `uname -r`.
    pub kernel: Option<String>,
    /// The session ran to its end and delivered everything it saw.
    pub complete: bool,
    /// Address by which people know the node (InternalIP), if known.
    pub address: Option<IpAddr>,
}

/// Request and reply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// ICMP sequence number; of TCP and UDP the number of the exchange, from 1.
    pub seq: u32,
    /// Passive TCP and UDP: what was exchanged. None: a probe, or an echo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<What>,
    /// Of a retransmission: how much later it was sent than the first transmission, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again_after_ns: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Which of the two did not arrive; None if both did.
    pub failed_direction: Option<Direction>,
    /// From the request's `net_dev_queue` to the reply's last `netif_receive_skb` on the source's interface, ns.
    pub rtt_ns: Option<u64>,
    /// Of a source that is on no traced node: the interface, as `node ens5`, at which `rtt_ns` was measured instead, from the
    /// request's coming in to the reply's leaving. What lies before it is not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_at: Option<String>,
    /// The same by the injector's own clock, ns.
    pub injector_rtt_ns: Option<u64>,
    /// The way there.
    pub request: Path,
    /// The way back.
    pub reply: Path,
    /// Where the round trip's time went; they add up to `rtt_ns` exactly. Empty if `rtt_ns` is unknown.
    pub shares: Vec<Share>,
    /// What the clocks of the nodes on the path showed at the first hop, as far as the crossings between them tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clocks: Vec<ClockAtStart>,
    /// Why this exchange cannot be shown whole, if so: one sentence each.
    pub notes: Vec<String>,
    /// The answer that says the request was refused, if somebody sent one; also where it did not reach the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<Rejection>,
}

impl Exchange {
    /// The node of its first hop, and what that node's clock showed then, ns; None: not known.
    #[must_use]
    pub fn began(&self) -> Option<(&str, u64)> {
        let first = self.request.hops.first().or_else(|| self.reply.hops.first())?;
        Some((&first.node, self.clock_of(&first.node)?.try_into().ok()?))
    }

    /// What a node's clock showed at the first hop, ns; None: not known.
    #[must_use]
    pub fn clock_of(&self, node: &str) -> Option<i64> {
        self.clocks.iter().find(|clock| clock.node == node).map(|clock| clock.monotonic_ns)
    }

    /// The hop at which the packet ended.
    #[must_use]
    pub fn ended_at(&self) -> Option<&Hop> {
        self.ended_on().map(|(_, hop)| hop)
    }

    /// That hop, behind the path it is on.
    pub(crate) fn ended_on(&self) -> Option<(&Path, &Hop)> {
        let ended = |hop: &&Hop| matches!(hop.action, Action::Dropped | Action::Lost);
        let paths = match self.failed_direction {
            Some(Direction::Request) => [&self.request, &self.reply],
            _ => [&self.reply, &self.request],
        };
        paths.into_iter().find_map(|path| Some((path, path.hops.iter().rev().find(ended)?)))
    }
}

/// A node's clock at an exchange's first hop. Two of them tell how far the nodes' clocks are apart, and one relates the
/// hops to anything else on that node that bears its `CLOCK_MONOTONIC`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClockAtStart {
    /// Whose clock.
    pub node: String,
    /// Its `CLOCK_MONOTONIC`, ns.
    pub monotonic_ns: i64,
    /// Bound of the error of that, ns; 0 on the first hop's node.
    pub error_ns: u64,
}

/// An answer that says a request was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Source address of the answer.
    pub from: IpAddr,
    /// The traced or known node whose address that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// `namespace/pod` whose address that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// ICMP or ICMPv6 type (by the family of `from`); None: a TCP reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// In plain words: `host unreachable`, `fragmentation needed, MTU 1480`, `connection refused (TCP reset)`.
    pub meaning: String,
    /// The MTU that it tells, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// It came back to the source of the request.
    pub arrived: bool,
    /// What became of it, if it did not come back: one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fate: Option<String>,
}

/// What traffic that was only watched exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// SYN, and SYN+ACK or RST.
    Handshake,
    /// A TCP segment with data, and the first segment back that acknowledges all of it.
    Data,
    /// A UDP datagram, and the datagram back.
    Datagram,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Request and reply arrived.
    Delivered,
    /// The kernel of a traced node freed a packet as a drop.
    Dropped,
    /// Somebody answered with an ICMP error or reset.
    Rejected,
    /// It left a traced node and was not seen again.
    Lost,
    /// Not enough was seen to say.
    Incomplete,
}

/// There or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From source to destination.
    Request,
    /// From destination to source.
    Reply,
}

/// The hops of one packet, in order, possibly over several nodes.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct Path {
    /// In order.
    pub hops: Vec<Hop>,
    /// Hops are missing that must have been: `notes` of the exchange say which.
    pub incomplete: bool,
}

/// What a person calls a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hop {
    /// Name of the node.
    pub node: Arc<str>,
    /// `namespace/pod`, or the pod's address where nobody knows its name; None: the node's own namespace.
    pub pod: Option<Arc<str>>,
    /// Interface name.
    pub interface: Option<Arc<str>>,
    /// Interface index.
    pub ifindex: Option<u32>,
    /// What happened.
    pub action: Action,
    /// Source address after this hop; the outer header's while encapsulated.
    pub src: IpAddr,
    /// Destination address after this hop; the outer header's while encapsulated.
    pub dst: IpAddr,
    /// TTL after this hop.
    pub ttl: Option<u8>,
    /// ns since the first hop of the request. None where the clocks of the nodes could not be related.
    pub at_ns: Option<u64>,
    /// Bound of the error of `at_ns`, ns; 0 within the first hop's node.
    pub error_ns: u64,
    /// How we know.
    pub basis: Basis,
    /// More, by action.
    pub detail: Detail,
}

/// What happened at a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Left its sender's stack.
    Sent,
    /// Came in by an interface.
    Received,
    /// Handed to an interface's driver on its way through or out.
    Transmitted,
    /// The route that chose the next interface; `interface` is the one chosen.
    Routed,
    /// Forwarded by a bridge.
    Bridged,
    /// Wrapped by the tunnel device `interface`, in place of `transmitted` there.
    Encapsulated,
    /// Unwrapped by the tunnel device `interface`, in place of `received` there.
    Decapsulated,
    /// Source rewritten.
    Snat,
    /// Destination rewritten.
    Dnat,
    /// A reply's destination rewritten back to what SNAT had hidden.
    Unsnat,
    /// A reply's source rewritten back to what DNAT had hidden.
    Undnat,
    /// Reached the address it was for.
    Delivered,
    /// Freed by the kernel as a drop.
    Dropped,
    /// Left, and was never seen again.
    Lost,
}

/// How we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// A hook saw it.
    Observed,
    /// Read from routes, rules or the API at the time.
    Configured,
    /// Concluded.
    Inferred,
}

/// More about a hop. Fields that do not apply are left out of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Detail {
    /// `routed`, `dropped`: the route, as `ip route` prints it; `encapsulated`: that of the outer packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// `transmitted`, `sent`, `encapsulated`: time between `net_dev_queue` and `net_dev_start_xmit`, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ns: Option<u64>,
    /// `snat`, `dnat`, `unsnat`, `undnat`: what was rewritten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<Box<Nat>>,
    /// `dropped`: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop: Option<Box<DropDetail>>,
    /// `encapsulated`, `decapsulated`: the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Box<Tunnel>>,
    /// `sent`, `transmitted`, `received`, `encapsulated`, `decapsulated`: MTU of the interface, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `delivered`: how long the destination took until its reply was queued, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_after_ns: Option<u64>,
    /// `lost`: one sentence: `left ip-172-20-58-60 ens5, never arrived at ip-172-20-50-50 ens5`. Any other hop: what
    /// else there is to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `snat`, `dnat`: the rule that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Box<RuleRef>>,
    /// TCP data that is more than one packet on the wire: what became of its size here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
}

/// A netfilter rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRef {
    /// `iptables`, `iptables-nft` or `nftables`.
    pub engine: String,
    /// Table.
    pub table: String,
    /// Chain that has it.
    pub chain: String,
    /// The rule as its own tool shows it; None: the policy of the chain.
    pub text: Option<String>,
    /// Its comment.
    pub comment: Option<String>,
    /// By how many packets its counter rose during the trace.
    pub packets: u64,
    /// How we know that it was this rule. Observed: the kernel traced the packet through it. Inferred: it fits, and its
    /// counter rose. Configured: it is the only one that fits.
    pub basis: Basis,
}

/// One buffer of TCP data that stands for several packets on the wire, or the reverse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segments {
    /// What happened.
    pub how: Segmentation,
    /// TCP data in the packet after this hop, bytes. Of several packets: of the one that carries the first byte.
    pub bytes: u16,
    /// TCP data in the packet before this hop, bytes.
    pub before: u16,
}

/// How the size of a buffer of TCP data changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Segmentation {
    /// Its sender left it to the interface to cut it (GSO).
    Super,
    /// Cut.
    Segmented,
    /// Several joined (GRO).
    Joined,
}

/// One rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nat {
    /// Observed: a hook saw the moment, and `at_ns` is it. Inferred: `at_ns` is when the packet was next seen.
    pub moment: Basis,
    /// Before.
    pub before: NatSide,
    /// After.
    pub after: NatSide,
}

/// Addresses and ports on one side of a rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NatSide {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, or ICMP identifier.
    pub src_port: Option<u16>,
    /// Destination port; None for ICMP.
    pub dst_port: Option<u16>,
}

/// An encapsulation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// `ipip`, `vxlan`, `gre` or `geneve`.
    pub kind: String,
    /// VXLAN or Geneve network identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// Outer source.
    pub src: IpAddr,
    /// Outer destination.
    pub dst: IpAddr,
}

/// A part of the round trip's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Whose.
    #[serde(flatten)]
    pub of: ShareOf,
    /// ns.
    pub ns: u64,
}

/// Whose a share is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "of", rename_all = "lowercase")]
pub enum ShareOf {
    /// Everything inside one traced node, its pods included.
    Node {
        /// Its name.
        node: String,
        /// Of it, the time between the request's arrival in the destination pod and its reply's `net_dev_queue`, ns.
        pod_ns: Option<u64>,
        /// That pod.
        pod: Option<String>,
    },
    /// Between two traced nodes, both ways together.
    Wire {
        /// The nearer node.
        from: String,
        /// The further node.
        to: String,
    },
    /// Beyond the last traced node.
    Beyond {
        /// That node.
        node: String,
    },
    /// What could not be attributed.
    Unattributed,
}

#[cfg(test)]
mod tests;
