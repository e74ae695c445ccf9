//! A tiny network to walk packets through: each step writes the records that the kernel side would, and the hops that
//! must come out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Ends, Evidence, Joined, Names, NodeEvidence, Probe, join,
    model::{Endpoint, Path},
    route_questions,
};
use crate::{
    event::{CtDirection, Encapsulation, Free, Hook, L4, Outer, Packet, Record, Sighting, Translation, Tuple},
    node::facts::{Link, LinkRef, Namespace, Role, Route, RouteAnswer, RouteKind},
};

/// Node, namespace (0: the node's own, 1..: its pods), interface.
pub(super) type At = (usize, u32, u32);

pub(super) const ENS5: u32 = 2;
pub(super) const ENS6: u32 = 3;
pub(super) const ETH0: u32 = 4;
pub(super) const TUNL0: u32 = 6;
pub(super) const CNI0: u32 = 8;
/// A port of `bond0`.
pub(super) const ENO1: u32 = 20;
pub(super) const BOND0: u32 = 21;
/// `bond0.100`
pub(super) const VLAN: u32 = 22;
/// A pod's macvlan on `ens5`.
pub(super) const NET1: u32 = 5;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("a test's address")
}

/// Pods 1 and 2 are routed, 3 and 4 ports of `cni0`.
pub(super) fn pod(node: usize, pod: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(100, 64, u8::try_from(node).expect("few nodes"), 10 + u8::try_from(pod).expect("few")))
}

pub(super) fn host(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(172, 20, 0, 1 + u8::try_from(node).expect("few nodes")))
}

/// A pod's address on its second network.
pub(super) fn second(node: usize, pod: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 56, u8::try_from(node).expect("few nodes"), u8::try_from(pod).expect("few")))
}

/// The node's end of a pod's veth.
pub(super) fn veth(pod: u32) -> u32 {
    10 + pod
}

fn inode(node: usize, netns: u32) -> u32 {
    u32::try_from(node).expect("few nodes") * 100 + 1000 + netns
}

fn link(ifindex: u32, name: &str, kind: Option<&str>, address: Option<IpAddr>) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        mtu: if kind == Some("ipip") { 8981 } else { 9001 },
        up: true,
        addresses: address.into_iter().flat_map(|a| [a, six(a)]).map(Into::into).collect(),
        ..Link::default()
    }
}

fn namespaces(node: usize) -> Vec<Namespace> {
    let on = |ifindex| Some(LinkRef { netns: inode(node, 0), ifindex });
    let mut links = vec![
        link(1, "lo", None, Some(ip("127.0.0.1"))),
        link(ENS5, "ens5", None, Some(host(node))),
        link(ENS6, "ens6", None, None),
        link(TUNL0, "tunl0", Some("ipip"), None),
        link(CNI0, "cni0", Some("bridge"), None),
        Link { master: Some(BOND0), ..link(ENO1, "eno1", None, None) },
        link(BOND0, "bond0", Some("bond"), None),
        Link { lower: on(BOND0), vlan: Some(100), ..link(VLAN, "bond0.100", Some("vlan"), None) },
    ];
    let mut pods = Vec::new();
    for p in 1..=4 {
        let peer = Some(LinkRef { netns: inode(node, p), ifindex: ETH0 });
        let master = (p > 2).then_some(CNI0);
        links.push(Link { peer, master, ..link(veth(p), &format!("cali{p}"), Some("veth"), None) });
        let peer = Some(LinkRef { netns: inode(node, 0), ifindex: veth(p) });
        let eth0 = Link { peer, ..link(ETH0, "eth0", Some("veth"), Some(pod(node, p))) };
        let net1 = Link { lower: on(ENS5), ..link(NET1, "net1", Some("macvlan"), Some(second(node, p))) };
        let (inode, links) = (inode(node, p), vec![eth0, net1]);
        pods.push(Namespace { inode, role: Role::Pod, names: Vec::new(), links, settings: Vec::new() });
    }
    let own = Namespace { inode: inode(node, 0), role: Role::Node, names: Vec::new(), links, settings: Vec::new() };
    std::iter::once(own).chain(pods).collect()
}

/// What walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Echo,
    Tcp,
    Udp,
}

/// The port that is asked.
pub(super) const PORT: u16 = 8080;

/// The IPv6 address of what has this IPv4 address.
pub(super) fn six(address: IpAddr) -> IpAddr {
    let IpAddr::V4(v4) = address else { return address };
    let [a, b, c, d] = v4.octets();
    Ipv6Addr::from([0xfd00, u16::from(a), u16::from(b), u16::from(c), 0, 0, 0, u16::from(d)]).into()
}

/// Walks packets, writes records and expectations.
pub(super) struct Walk {
    pub(super) evidence: Evidence,
    /// True time, ns.
    pub(super) now: u64,
    /// Time between two sightings, ns.
    pub(super) step: u64,
    /// How far each node's clock is ahead of true time, ns.
    pub(super) clocks: Vec<u64>,
    pub(super) packet: Packet,
    pub(super) outer: Option<Outer>,
    pub(super) skb: u64,
    pub(super) conntrack: Option<CtDirection>,
    /// Of what is received.
    pub(super) vlan: Option<u16>,
    /// What walks.
    pub(super) kind: Kind,
    /// IPv6.
    pub(super) v6: bool,
    /// A reply is under way.
    pub(super) back: bool,
    /// The identifier or source port that the source chose.
    pub(super) id: u16,
    /// Hops that must come out: of requests, of replies.
    pub(super) expected: [Vec<String>; 2],
    /// Once an injector's exchange begins: its start.
    pub(super) began: u64,
    pub(super) ends: Ends,
}

impl Walk {
    pub(super) fn new(nodes: usize, source: IpAddr, destination: IpAddr) -> Self {
        let end = |address| Endpoint { name: None, address, node: None };
        let node = |n| NodeEvidence {
            name: format!("node{n}"),
            complete: true,
            facts: crate::node::facts::NodeFacts { namespaces: namespaces(n), ..Default::default() },
            ..NodeEvidence::default()
        };
        let l4 = L4::Icmp { kind: 8, code: 0, id: 77, seq: 0, nonce: 0 };
        Self {
            evidence: Evidence { nodes: (0..nodes).map(node).collect(), probes: Vec::new(), interrupted: false },
            now: 1_000_000,
            step: 1_000,
            clocks: vec![0; nodes],
            packet: Packet { src: source, dst: destination, ttl: 64, ip_id: 1, ip_len: 84, l4 },
            outer: None,
            skb: 0xffff_8880_0000_0000,
            conntrack: None,
            vlan: None,
            kind: Kind::Echo,
            v6: source.is_ipv6(),
            back: false,
            id: 77,
            expected: [Vec::new(), Vec::new()],
            began: 0,
            ends: Ends { source: end(source), destination: end(destination) },
        }
    }

    /// The number of the exchange under way.
    pub(super) fn exchange(&self) -> u16 {
        self.evidence.probes.last().map_or(0, |p| p.seq)
    }

    pub(super) fn source(&self) -> IpAddr {
        self.ends.source.address
    }

    /// A new request; its nonce is made from `seq`.
    pub(super) fn request(&mut self, seq: u16) -> &mut Self {
        self.now += 1_000_000;
        self.began = self.now;
        self.skb += 0x100;
        let nonce = 0xabcd_0000 + u64::from(seq);
        let port = 40_000 + seq;
        let (protocol, id, dst_port, l4) = match (self.kind, self.v6) {
            (Kind::Echo, false) => (1, 77, 0, L4::Icmp { kind: 8, code: 0, id: 77, seq, nonce }),
            (Kind::Echo, true) => (58, 77, 0, L4::Icmp { kind: 128, code: 0, id: 77, seq, nonce }),
            (Kind::Tcp, _) => (6, port, PORT, tcp((port, PORT), (0xabcd_0000 + u32::from(seq), 0), 2, 0)),
            (Kind::Udp, _) => (17, port, PORT, L4::Udp { src_port: port, dst_port: PORT, checksum: 9, nonce }),
        };
        let (src, dst) = (self.ends.source.address, self.ends.destination.address);
        let ip_id = if self.v6 { 0 } else { 0x100 + seq };
        self.packet = Packet { src, dst, ttl: 64, ip_id, ip_len: 84, l4 };
        (self.conntrack, self.back, self.id) = (None, false, id);
        self.evidence.probes.push(Probe {
            seq,
            protocol,
            id,
            dst_port,
            ip_id,
            nonce,
            rtt_ns: None,
            answer: None,
            unsent: None,
        });
        self
    }

    /// The answer to what just arrived.
    pub(super) fn reply(&mut self) -> &mut Self {
        self.skb += 0x100;
        self.reply_in_same_memory()
    }

    pub(super) fn reply_in_same_memory(&mut self) -> &mut Self {
        let new_id = self.packet.ip_id ^ 0x5000;
        let (l4, ip_id) = match self.packet.l4 {
            L4::Icmp { kind, code, id, seq, nonce } => {
                (L4::Icmp { kind: if kind == 128 { 129 } else { 0 }, code, id, seq, nonce }, new_id)
            }
            L4::Tcp { src_port, dst_port, seq, .. } => {
                (tcp((dst_port, src_port), (0x7000_0000, seq.wrapping_add(1)), 0x12, 0), 0)
            }
            L4::Udp { src_port, dst_port, nonce, .. } => {
                (L4::Udp { src_port: dst_port, dst_port: src_port, checksum: 8, nonce: nonce ^ 0xff }, new_id)
            }
            L4::Other { .. } => unreachable!("nothing else walks"),
        };
        self.packet.l4 = l4;
        std::mem::swap(&mut self.packet.src, &mut self.packet.dst);
        (self.packet.ttl, self.packet.ip_id) = (64, if self.v6 { 0 } else { ip_id });
        (self.conntrack, self.back) = (None, true);
        self
    }

    /// The injector got the reply.
    pub(super) fn confirm(&mut self) -> &mut Self {
        let rtt = self.now - self.began + 700;
        self.evidence.probes.last_mut().expect("a request").rtt_ns = Some(rtt);
        self
    }

    fn expect(&mut self, at: At, action: &str) {
        let text = format!("{} {action}", self.name(at));
        self.expected[usize::from(self.back)].push(text);
    }

    fn name(&self, (node, netns, ifindex): At) -> String {
        let namespaces = &self.evidence.nodes[node].facts.namespaces;
        let links = &namespaces[netns as usize].links;
        let interface = &links.iter().find(|l| l.ifindex == ifindex).expect("a link of the test").name;
        let pod = if netns == 0 { String::new() } else { format!("/{}", pod(node, netns)) };
        format!("node{node}{pod} {interface}")
    }

    fn sighting(&mut self, hook: Hook, (node, netns, ifindex): At, free: Option<Free>) {
        self.now += self.step;
        let s = Sighting {
            time_ns: self.now + self.clocks[node],
            skb: self.skb,
            hook,
            cpu: 0,
            netns: inode(node, netns),
            ifindex,
            mark: 0,
            tracked: true,
            conntrack: self.conntrack,
            vlan: self.vlan.filter(|_| hook == Hook::Receive),
            packet: self.packet.clone(),
            outer: self.outer.clone(),
            free,
        };
        self.evidence.nodes[node].records.push(Record::Sighting(s));
    }

    pub(super) fn wait(&mut self, ns: u64) -> &mut Self {
        self.now += ns;
        self
    }

    pub(super) fn queue(&mut self, at: At) -> &mut Self {
        self.sighting(Hook::Queue, at, None);
        self
    }

    pub(super) fn xmit(&mut self, at: At) -> &mut Self {
        self.sighting(Hook::Xmit, at, None);
        self
    }

    fn out(&mut self, at: At) {
        self.queue(at).xmit(at);
    }

    pub(super) fn sent(&mut self, at: At) -> &mut Self {
        self.expect(at, "sent");
        self.out(at);
        self
    }

    pub(super) fn transmitted(&mut self, at: At) -> &mut Self {
        self.expect(at, "transmitted");
        self.out(at);
        self
    }

    pub(super) fn received(&mut self, at: At) -> &mut Self {
        self.expect(at, "received");
        self.sighting(Hook::Receive, at, None);
        self
    }

    /// Comes in, and nothing is expected of it: an ICMP error is no hop.
    pub(super) fn sighting_in(&mut self, at: At) -> &mut Self {
        self.sighting(Hook::Receive, at, None);
        self
    }

    pub(super) fn delivered(&mut self, at: At) -> &mut Self {
        self.received(at).expect(at, "delivered");
        self
    }

    pub(super) fn routed(&mut self, at: At) -> &mut Self {
        self.decrement();
        self.expect(at, "routed");
        self.transmitted(at)
    }

    /// Lowers the TTL that the network sees.
    pub(super) fn decrement(&mut self) -> &mut Self {
        match &mut self.outer {
            Some(outer) => outer.ttl -= 1,
            None => self.packet.ttl -= 1,
        }
        self
    }

    pub(super) fn bridged(&mut self, bridge: At, port: At) -> &mut Self {
        self.expect(bridge, "bridged");
        self.transmitted(port)
    }

    /// Routed into a tunnel device, wrapped, and out by `ens5`.
    pub(super) fn wrapped(&mut self, tunnel: At, kind: Encapsulation, to: IpAddr, wire: At) -> &mut Self {
        self.decrement();
        self.expect(tunnel, "routed");
        self.expect(tunnel, "encapsulated");
        self.out(tunnel);
        let extra = if kind == Encapsulation::Ipip { 20 } else { 50 };
        let src = host(tunnel.0);
        let ip_len = self.packet.ip_len + extra;
        self.outer = Some(Outer { src, dst: to, ttl: 60, ip_id: 9, ip_len, encapsulation: kind });
        self.transmitted(wire)
    }

    pub(super) fn unwrapped(&mut self, tunnel: At) -> &mut Self {
        self.outer = None;
        self.expect(tunnel, "decapsulated");
        self.sighting(Hook::Receive, tunnel, None);
        self
    }

    /// One step of a node that masquerades: in by `from`, out by `to` with another source and id.
    pub(super) fn masqueraded(&mut self, to: At, new: IpAddr, id: u16) -> &mut Self {
        self.decrement();
        self.expect(to, "routed");
        self.expect(to, "snat");
        self.conntrack = Some(CtDirection::Original);
        let old = self.packet.src;
        self.set_id(id);
        self.packet.src = new;
        self.translation(to, old, new, id);
        self.transmitted(to)
    }

    /// The reply's way back through it.
    pub(super) fn unmasqueraded(&mut self, from: At, to: At, old: IpAddr) -> &mut Self {
        let id = match self.packet.l4 {
            L4::Icmp { id, .. } => id,
            L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. } => dst_port,
            L4::Other { .. } => unreachable!("nothing else walks"),
        };
        let new = self.packet.dst;
        self.expect(from, "unsnat");
        self.conntrack = Some(CtDirection::Reply);
        self.packet.dst = old;
        self.set_id(self.id);
        self.translation(to, old, new, id);
        self.routed(to)
    }

    fn set_id(&mut self, new: u16) {
        match (&mut self.packet.l4, self.back) {
            (L4::Icmp { id, .. }, _) => *id = new,
            (L4::Tcp { src_port, .. } | L4::Udp { src_port, .. }, false) => *src_port = new,
            (L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. }, true) => *dst_port = new,
            (L4::Other { .. }, _) => unreachable!("nothing else walks"),
        }
    }

    pub(super) fn translation(&mut self, (node, netns, _): At, old: IpAddr, new: IpAddr, id: u16) {
        let remote = self.ends.destination.address;
        let (protocol, there, back) = match (self.kind, self.v6) {
            (Kind::Echo, false) => (1, 8 << 8, id),
            (Kind::Echo, true) => (58, 128 << 8, id),
            (Kind::Tcp, _) => (6, PORT, PORT),
            (Kind::Udp, _) => (17, PORT, PORT),
        };
        let t = Translation {
            time_ns: self.now + self.step / 2 + self.clocks[node],
            skb: self.skb,
            netns: inode(node, netns),
            original: Tuple { src: old, dst: remote, l4_src: self.id, l4_dst: there },
            reply: Tuple { src: remote, dst: new, l4_src: back, l4_dst: id },
            status: 1 << 4,
            protocol,
            direction: self.conntrack.expect("set by the caller"),
        };
        self.evidence.nodes[node].records.push(Record::Translation(t));
    }

    pub(super) fn freed(&mut self, hook: Hook, at: At, function: &str, reason: Option<&str>) -> &mut Self {
        let free = Free {
            location: 1,
            function: Some(function.into()),
            reason: reason.map(|_| 5),
            reason_name: reason.map(Into::into),
            netfilter: None,
        };
        self.sighting(hook, at, Some(free));
        self
    }

    pub(super) fn ended(&mut self, at: At, action: &str) -> &mut Self {
        self.expect(at, action);
        self
    }

    /// Answers every question that the nodes' packets raise, as their routes would.
    pub(super) fn answer(&mut self, kind: RouteKind, gateway: Option<IpAddr>) -> &mut Self {
        for (n, node) in self.evidence.nodes.iter_mut().enumerate() {
            let questions = route_questions(&node.records, &node.facts.namespaces);
            let answer = |question: crate::node::facts::RouteQuestion| RouteAnswer {
                route: Some(Route {
                    kind,
                    destination: question.dst.into(),
                    gateway,
                    out_ifindex: None,
                    table: 254,
                    text: format!("route to {}", question.dst),
                }),
                question,
                icmp_source: Some(host(n)),
            };
            node.facts.routes = questions.into_iter().map(answer).collect();
        }
        self
    }

    pub(super) fn join(&self) -> Joined {
        join(&self.evidence, &self.ends, &NoNames)
    }

    /// Joins, and compares the hops of all exchanges with what was walked.
    pub(super) fn check(&self) -> Joined {
        let joined = self.join();
        let of = |way: fn(&super::model::Exchange) -> &Path| -> Vec<String> {
            joined.exchanges.iter().flat_map(|e| shape(way(e))).collect()
        };
        assert_eq!(of(|e| &e.request), self.expected[0], "requests");
        assert_eq!(of(|e| &e.reply), self.expected[1], "replies");
        for exchange in &joined.exchanges {
            if let Some(rtt) = exchange.rtt_ns {
                assert_eq!(exchange.shares.iter().map(|s| s.ns).sum::<u64>(), rtt, "shares add up");
            }
        }
        joined
    }
}

pub(super) fn tcp((src_port, dst_port): (u16, u16), (seq, ack): (u32, u32), flags: u8, payload: u16) -> L4 {
    L4::Tcp { src_port, dst_port, seq, ack, flags, payload }
}

pub(super) fn shape(path: &Path) -> Vec<String> {
    let hop = |h: &super::model::Hop| {
        let pod = h.pod.as_ref().map_or(String::new(), |p| format!("/{p}"));
        let action = serde_json::to_value(h.action).expect("an action is text");
        format!("{}{pod} {} {}", h.node, h.interface.as_deref().unwrap_or("?"), action.as_str().expect("text"))
    };
    path.hops.iter().map(hop).collect()
}

pub(super) struct NoNames;

impl Names for NoNames {
    fn pod(&self, _: IpAddr) -> Option<String> {
        None
    }

    fn node(&self, _: IpAddr) -> Option<String> {
        None
    }
}

/// Pings that others sent, from a pod of the first of several nodes to one of the last, one every `every` ns. The clocks of the nodes
/// have nothing in common.
pub(crate) fn pings(nodes: usize, count: u16, every: u64) -> (Evidence, Ends) {
    let mut w = Walk::new(nodes, pod(0, 1), pod(nodes - 1, 1));
    w.clocks = (1..=nodes as u64).map(|node| node * 7_000_000_000_000).collect();
    for seq in 1..=count {
        w.request(seq);
        let mut order: Vec<_> = (0..nodes).collect();
        for _ in 0..2 {
            let (first, last) = (order[0], order[nodes - 1]);
            w.sent((first, 1, ETH0)).received((first, 0, veth(1))).routed((first, 0, ENS5));
            order[1..nodes - 1].iter().for_each(|&node| {
                w.received((node, 0, ENS6)).routed((node, 0, ENS5));
            });
            w.received((last, 0, ENS6)).routed((last, 0, veth(1))).delivered((last, 1, ETH0));
            order.reverse();
            if last != 0 {
                w.reply();
            }
        }
        w.wait(every);
    }
    w.evidence.probes.clear();
    (w.evidence, w.ends)
}
