//! What a session tells about its node.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// Everything a session knows about its node, read by netlink during the session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's own namespace first, then those of its pods.
    pub namespaces: Vec<Namespace>,
    /// The answers to the route questions that the packets of this trace raised.
    pub routes: Vec<RouteAnswer>,
    /// The neighbour entries of the next hops on those routes.
    pub neighbours: Vec<Neighbour>,
    /// The conntrack entries of the traced flows, as they were at the end.
    pub conntrack: Vec<ConntrackEntry>,
    /// Netfilter rules and chain policies that end or rewrite packets and that packets met while the session ran, by their
    /// counters or by tracing rules; and those that may have been met unseen, because they have no counter.
    pub rules: Vec<RuleHit>,
    /// Inodes of the namespaces of which `rules` lacks nothing: a packet that a rule dropped or rewrote there met one of them.
    /// Of other namespaces rules were not read, not all, or too many have no counter.
    pub rules_complete: Vec<u32>,
    /// How many packets conntrack refused while the session ran, of namespaces where it did.
    pub conntrack_drops: Vec<ConntrackDrops>,
    /// A route or rule of a namespace in scope changed while the trace ran: the routes may not be those the packets took.
    pub routes_changed: bool,
    /// What could not be read on the node, a sentence each and each once: namespaces left out, facts not found. A namespace that
    /// merely vanished is none.
    pub notes: Vec<String>,
}

/// What conntrack itself dropped in a namespace while the session ran, by its statistics (`conntrack -S`), all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackDrops {
    /// Namespace.
    pub netns: u32,
    /// Packets dropped, those of `insert_failed` among them: a new connection got no entry (the table is full), or could not
    /// be entered.
    pub dropped: u64,
    /// Connections that could not be entered in the end: another has the same addresses and ports.
    pub insert_failed: u64,
}

/// One network namespace in scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Inode of the namespace, as in `/proc/PID/ns/net`.
    pub inode: u32,
    /// Whose it is.
    pub role: Role,
    /// Names under `/run/netns`, if it has any.
    pub names: Vec<String>,
    /// Its links, by interface index.
    pub links: Vec<Link>,
    /// The sysctls that decide about forwarding.
    pub settings: Vec<Setting>,
}

/// A sysctl of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As `sysctl` names it: `net.ipv4.conf.ens5.rp_filter`.
    pub name: String,
    /// Its value, without white space at the ends.
    pub value: String,
}

/// Whose a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node's own.
    Node,
    /// A pod's: its default route leads into this node's own namespace.
    Pod,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index in its namespace.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `ipip`, `vxlan`, ...; None for a physical NIC or loopback.
    pub kind: Option<String>,
    /// MTU, bytes.
    pub mtu: u32,
    /// Link-layer address, as `ip link` prints it; empty if it has none.
    pub mac: String,
    /// Administratively up and with carrier.
    pub up: bool,
    /// Administratively up (IFF_UP), whatever the carrier.
    pub admin_up: bool,
    /// Interface index of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// The other end of a veth, if that lies in a namespace in scope.
    pub peer: Option<LinkRef>,
    /// The link it stands on (VLAN, macvlan, ipvlan), if that lies in a namespace in scope.
    pub lower: Option<LinkRef>,
    /// The number of its VLAN, if it is one.
    pub vlan: Option<u16>,
    /// Addresses with prefix length.
    pub addresses: Vec<IpNet>,
    /// How it wraps packets, if it is a tunnel device.
    pub tunnel: Option<TunnelSettings>,
    /// Number of the XDP program that gets in its driver (or in the hardware) what it receives, before any hook. Not of one
    /// in generic mode: that comes after `netif_receive_skb`.
    pub xdp: Option<u32>,
}

/// How a tunnel device wraps packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TunnelSettings {
    /// Source of the outer packets, if it is fixed.
    pub local: Option<IpAddr>,
    /// Destination of the outer packets, if it is fixed.
    pub remote: Option<IpAddr>,
    /// VXLAN or Geneve network identifier.
    pub id: Option<u32>,
    /// UDP port of the outer packets' destination (of WireGuard: that it listens on).
    pub port: Option<u16>,
}

/// A netfilter rule, or a base chain's policy, that packets met while the session ran, or may have met (`counted` is false).
///
/// Rules before it in the chains on its way may take packets away before they get to it: `conditions` are necessary for a
/// packet to meet it, and not sufficient even if `understood`. What can be concluded: a packet that a rule of this namespace
/// dropped met one of those whose conditions it fulfils, if the namespace is in [`NodeFacts::rules_complete`]; and exactly
/// this one if that leaves one, understood or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleHit {
    /// Namespace.
    pub netns: u32,
    /// Who evaluates it.
    pub engine: RuleEngine,
    /// As nft names it: `ip`, `ip6`, `inet`, `bridge`. Of iptables `ip` or `ip6`.
    pub family: String,
    /// Table.
    pub table: String,
    /// The chain that has it.
    pub chain: String,
    /// Where the way to it begins: 0 PREROUTING, 1 INPUT, 2 FORWARD, 3 OUTPUT, 4 POSTROUTING. None: from several hooks.
    pub hook: Option<u8>,
    /// The chains on the way to it, from the base chain to `chain`, both included; one way if there are several.
    pub way: Vec<String>,
    /// The rule; None: the policy of the base chain `chain`.
    pub rule: Option<Rule>,
    /// What it does.
    pub verdict: RuleVerdict,
    /// What holds for every packet that meets it: its own conditions and those of the jumps on `way`, as far as understood.
    pub conditions: Vec<Condition>,
    /// The conditions are all there are, and there is one way: nothing but earlier rules decides whether a packet meets it.
    pub understood: bool,
    /// It has a counter. What is counted and met by no packet is not told.
    pub counted: bool,
    /// By how many packets its counter rose while the session ran; 0 if it has none.
    pub packets: u64,
    /// How many packets of the traced flows met it by the kernel's own trace of rules (`--trace-rules`).
    pub traced: u64,
}

/// Who evaluates rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleEngine {
    /// iptables, legacy variant.
    Iptables,
    /// iptables in its nft variant: shown as iptables shows it.
    IptablesNft,
    /// nftables.
    Nftables,
}

/// A rule as its own tool shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Position in its chain, from 1.
    pub position: u32,
    /// nftables' handle; None for legacy iptables.
    pub handle: Option<u64>,
    /// As `iptables-save` or `nft list ruleset` prints it, as far as we can say it; without chain and counters.
    pub text: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RuleVerdict {
    /// Accepts.
    Accept,
    /// Drops.
    Drop,
    /// Answers with an error and drops; with what, as `iptables` names it (`icmp-port-unreachable`, `tcp-reset`), or
    /// `icmpx-` and nft's name for what goes by the packet's IP version.
    Reject(String),
    /// Rewrites the source to an address of the outgoing interface.
    Masquerade,
    /// Rewrites the source; to what, as nft writes it (`10.0.0.1`, `10.0.0.1-10.0.0.9:1024-65535`). Empty: not known.
    Snat(String),
    /// Rewrites the destination; to what, as nft writes it (`10.0.0.1:8080`). Empty: not known.
    Dnat(String),
    /// Continues in that chain.
    Jump(String),
    /// Anything else, or nothing.
    Other,
}

/// A condition of a rule. A value that is to differ has `not` set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// What is compared.
    pub field: ConditionField,
    /// It must not be so.
    pub not: bool,
}

/// Addresses, each from and to (both included), in order. Of one family; none: no address is among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ranges(pub Arc<[(IpAddr, IpAddr)]>);

impl Ranges {
    /// Is the address among them?
    pub fn contains(&self, address: IpAddr) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= address);
        after.checked_sub(1).is_some_and(|last| address <= self.0[last].1)
    }
}

/// What a rule compares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConditionField {
    /// The interface it came in by; a trailing `+` stands for any rest.
    InInterface(String),
    /// The interface it goes out by; a trailing `+` stands for any rest.
    OutInterface(String),
    /// Source address.
    Source(IpNet),
    /// Destination address.
    Destination(IpNet),
    /// Source address: one of a set's.
    SourceIn(Ranges),
    /// Destination address: one of a set's.
    DestinationIn(Ranges),
    /// IP protocol number.
    Protocol(u8),
    /// Source port, from and to.
    SourcePort(u16, u16),
    /// Destination port, from and to.
    DestinationPort(u16, u16),
    /// `skb->mark`: value and mask.
    Mark(u32, u32),
    /// States of conntrack, as iptables names them: `NEW`, `ESTABLISHED`, `RELATED`, `INVALID`, `UNTRACKED`.
    ConntrackState(Vec<String>),
    /// Fails the reverse path lookup (`rpfilter --invert`, `fib saddr . iif oif missing`).
    ReversePathFails,
}

/// Names a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkRef {
    /// Inode of the namespace.
    pub netns: u32,
    /// Interface index in it.
    pub ifindex: u32,
}

/// A route lookup that a packet caused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteQuestion {
    /// Where it was asked.
    pub netns: u32,
    /// Source address of the packet at the time of routing.
    pub src: IpAddr,
    /// Destination address of the packet at the time of routing.
    pub dst: IpAddr,
    /// The interface the packet came in by; None for packets of this namespace's own.
    pub in_ifindex: Option<u32>,
    /// `skb->mark`.
    pub mark: u32,
}

/// What the kernel's routes say to a question, now (not when the packet passed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    /// The question.
    pub question: RouteQuestion,
    /// The route that matched; None: no route matches.
    pub route: Option<Route>,
    /// The source address this namespace would give an ICMP error to `question.src`: what traceroute prints.
    pub icmp_source: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Type.
    pub kind: RouteKind,
    /// Prefix that matched.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Output interface.
    pub out_ifindex: Option<u32>,
    /// Table id (254 is main, 255 local).
    pub table: u32,
    /// As `ip route` prints it: `100.115.37.64/26 via 172.20.50.50 dev ens5 proto bird`.
    pub text: String,
}

/// Route types (`uapi/linux/rtnetlink.h`, RTN_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Gateway or direct.
    Unicast,
    /// An address of this namespace.
    Local,
    /// Broadcast, anycast or multicast.
    Broadcast,
    /// Dropped silently.
    Blackhole,
    /// Dropped, ICMP host unreachable.
    Unreachable,
    /// Dropped, ICMP administratively prohibited.
    Prohibit,
    /// Anything else.
    Other,
}

/// A neighbour (ARP, NDP) entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Namespace.
    pub netns: u32,
    /// Interface.
    pub ifindex: u32,
    /// Address asked for.
    pub address: IpAddr,
    /// Link-layer address, as `ip neigh` prints it; None while unresolved.
    pub mac: Option<String>,
    /// State as `ip neigh` prints it: `REACHABLE`, `STALE`, `FAILED`, ...
    pub state: String,
}

/// A flow to look up in conntrack, in either direction, before or after translation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Namespace.
    pub netns: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, or ICMP id.
    pub src_port: u16,
    /// Destination port, 0 for ICMP.
    pub dst_port: u16,
}

/// A conntrack entry, by ctnetlink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// Namespace.
    pub netns: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Original direction: source, destination, source port or ICMP id, destination port (0 for ICMP).
    pub original: (IpAddr, IpAddr, u16, u16),
    /// Reply direction.
    pub reply: (IpAddr, IpAddr, u16, u16),
    /// IPS_* bits.
    pub status: u32,
    /// Seconds until it expires.
    pub timeout_s: u32,
}
