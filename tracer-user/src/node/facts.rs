//! What a session tells about its node.

use std::net::IpAddr;

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
    /// A route or rule of a namespace in scope changed while the trace ran: the routes may not be those the packets took.
    pub routes_changed: bool,
    /// What could not be read on the node, a sentence each and each once: namespaces left out, facts not found. A namespace that
    /// merely vanished is none.
    pub notes: Vec<String>,
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
    /// Interface index of the bridge or VRF it belongs to.
    pub master: Option<u32>,
    /// The other end of a veth, if that lies in a namespace in scope.
    pub peer: Option<LinkRef>,
    /// Addresses with prefix length.
    pub addresses: Vec<IpNet>,
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
