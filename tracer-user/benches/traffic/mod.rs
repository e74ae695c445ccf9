//! Generated traffic: what the sessions of a passive trace from one pod to a service would read out of their ring buffers. The network,
//! the packets and the times are made up; the bytes are those that the kernel programs write.
//!
//! The source is a pod of node 0; the service has an endpoint on each other node. Of a hundred exchanges of requests and answers (TCP data of
//! 100 bytes and its answer) 70 go there by DNAT and the nodes' routes, 15 by DNAT and an IPIP tunnel, 10 to an endpoint's own address, 4 are
//! echoes, and 1 is dropped by a rule on the endpoint's node.

use std::{mem::offset_of, net::Ipv4Addr};

use tracer_common::{self as raw, RECORD_SIZE, encapsulation, flag, hook};
use tracer_user::{
    node::facts::{Link, LinkRef, Namespace, NodeFacts, Role, Route, RouteAnswer, RouteKind, RouteQuestion},
    path::{Ends, model::Endpoint},
    session::Flow,
};

/// One record of the ring buffer.
pub(crate) type Bytes = [u8; RECORD_SIZE];

/// The service's address.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Its first port.
const PORT: u16 = 5432;
/// Connections from one port of the source: each to another port of the service.
const PORTS: u64 = 20;

const ETH0: u32 = 3;
const ENS5: u32 = 2;
const TUNL0: u32 = 4;
const CALI: u32 = 10;
/// Between two sights in a node, ns.
const STEP: u64 = 1_700;
/// On the wire, ns.
const WIRE: u64 = 19_000;
const PUSH_ACK: u8 = 0x18;

/// The address of a node.
pub(crate) fn host(node: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xAC10_0001 + u32::try_from(node).expect("few nodes"))
}

/// The address of the pod on it that takes part.
pub(crate) fn pod(node: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x6440_0005 + (u32::try_from(node).expect("few nodes") << 8))
}

pub(crate) fn node_name(node: usize) -> String {
    format!("node-{node:03}")
}

fn root(node: usize) -> u32 {
    4_026_531_840 + u32::try_from(node).expect("few nodes") * 64
}

fn pod_netns(node: usize) -> u32 {
    root(node) + 1
}

/// Who talks to whom.
pub(crate) fn ends() -> Ends {
    let end =
        |name: &str, address: Ipv4Addr, node| Endpoint { name: Some(name.to_owned()), address: address.into(), node };
    Ends { source: end("shop/web", pod(0), Some(node_name(0))), destination: end("svc/db", SERVICE, None) }
}

/// What the sessions are asked to record.
pub(crate) fn flows() -> Vec<Flow> {
    [1, 6].map(|protocol| Flow { a: pod(0).into(), b: None, protocol, a_port: None, b_port: None, one_of: 1 }).into()
}

/// What a session finds out about its node, with the routes that the packets took.
pub(crate) fn facts(node: usize, nodes: usize) -> NodeFacts {
    let link = |ifindex, name: &str, kind: Option<&str>, address: Option<Ipv4Addr>, prefix| Link {
        ifindex,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        mtu: 8981,
        up: true,
        admin_up: true,
        addresses: address.into_iter().map(|a| ipnet(a, prefix)).collect(),
        ..Link::default()
    };
    let peer = |netns, ifindex| Some(LinkRef { netns, ifindex });
    let own = vec![
        link(1, "lo", None, Some(Ipv4Addr::LOCALHOST), 8),
        link(ENS5, "ens5", None, Some(host(node)), 16),
        link(TUNL0, "tunl0", Some("ipip"), None, 32),
        Link { peer: peer(pod_netns(node), ETH0), ..link(CALI, "cali0", Some("veth"), None, 32) },
    ];
    let inside = vec![
        link(1, "lo", None, Some(Ipv4Addr::LOCALHOST), 8),
        Link { peer: peer(root(node), CALI), ..link(ETH0, "eth0", Some("veth"), Some(pod(node)), 32) },
    ];
    let namespace = |inode, role, links| Namespace { inode, role, names: Vec::new(), links, settings: Vec::new() };
    let namespaces = vec![namespace(root(node), Role::Node, own), namespace(pod_netns(node), Role::Pod, inside)];
    let others = if node == 0 { (1..nodes).collect() } else { vec![0] };
    let ways = others.into_iter().flat_map(|other| {
        let gateway = host(other);
        [
            answer(node, pod(node), pod(other), CALI, Some(gateway), ENS5),
            answer(node, if node == 0 { pod(other) } else { pod(0) }, pod(node), ENS5, None, CALI),
        ]
    });
    NodeFacts { namespaces, routes: ways.collect(), ..NodeFacts::default() }
}

fn ipnet(address: Ipv4Addr, prefix: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(address.into(), prefix).expect("a prefix")
}

fn answer(node: usize, src: Ipv4Addr, dst: Ipv4Addr, from: u32, gateway: Option<Ipv4Addr>, to: u32) -> RouteAnswer {
    let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
    let dev = if to == ENS5 { "ens5" } else { "cali0" };
    RouteAnswer {
        question: RouteQuestion {
            netns: root(node),
            src: src.into(),
            dst: dst.into(),
            in_ifindex: Some(from),
            mark: 0,
        },
        route: Some(Route {
            kind: RouteKind::Unicast,
            destination: ipnet(dst, 26),
            gateway: gateway.map(Into::into),
            out_ifindex: Some(to),
            table: 254,
            text: format!("{dst}/26{via} dev {dev}"),
        }),
        icmp_source: Some(host(node).into()),
    }
}

/// Makes exchanges one after the other.
pub(crate) struct Traffic {
    nodes: usize,
    flows: u64,
    gap_ns: u64,
    made: u64,
    /// True time, ns.
    now: u64,
    skb: u64,
}

/// A packet on its way.
struct Walk<'o> {
    out: &'o mut [Vec<Bytes>],
    now: u64,
    skb: u64,
    protocol: u8,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    l4: [u8; 16],
    ip_id: u16,
    ip_len: u16,
    ttl: u8,
    outer: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Bits of [`flag`].
    conntrack: u8,
}

/// A connection as conntrack has it.
#[derive(Clone, Copy)]
struct Nat {
    port: u16,
    dst_port: u16,
    endpoint: Ipv4Addr,
}

impl Traffic {
    /// Between so many nodes, on so many connections in turns, an exchange each `gap_ns`.
    pub(crate) fn new(nodes: usize, flows: u64, gap_ns: u64) -> Self {
        assert!(nodes >= 2 && flows <= PORTS * 60_000, "a connection has ports of its own");
        Self { nodes, flows, gap_ns, made: 0, now: 1_000_000_000, skb: 0 }
    }

    /// How many exchanges so far.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// Adds the records of the next exchange, by node.
    pub(crate) fn exchange(&mut self, out: &mut [Vec<Bytes>]) {
        let number = self.made;
        self.made += 1;
        self.now += self.gap_ns;
        self.skb = (self.skb + 0x100) & 0xf_ffff;
        let (flow, turn, kind) = (number % self.flows, number / self.flows, number % 100);
        let node = 1 + usize::try_from(flow % (self.nodes as u64 - 1)).expect("few nodes");
        let (port, dst_port) = (2_000 + (flow / PORTS) as u16, PORT + (flow % PORTS) as u16);
        let seq = (flow as u32).wrapping_mul(2_654_435_761).wrapping_add(100 * turn as u32);
        let echo = (95..99).contains(&kind);
        let direct = echo || (85..95).contains(&kind);
        let nat = (!direct).then_some(Nat { port, dst_port, endpoint: pod(node) });
        let l4 = if echo { icmp(8, number) } else { tcp(port, dst_port, seq, 7) };
        let mut walk = Walk {
            out,
            now: self.now + number * 37 % 1_000,
            skb: 0xffff_8880_1000_0000 + self.skb,
            protocol: if echo { 1 } else { 6 },
            src: pod(0),
            dst: if direct { pod(node) } else { SERVICE },
            l4,
            ip_id: number as u16,
            ip_len: 152,
            ttl: 64,
            outer: None,
            conntrack: 0,
        };
        let tunnel = (70..85).contains(&kind);
        walk.leave(0, nat, false, tunnel.then_some(node));
        walk.come(node, tunnel);
        if kind == 99 {
            walk.free(node, root(node), ENS5, hook::DROP, 6);
            return;
        }
        walk.arrive(node, None);
        // The answer.
        walk.now += 11_000;
        walk.skb += 0x40;
        walk.src = pod(node);
        walk.dst = pod(0);
        walk.l4 =
            if echo { icmp(0, number) } else { tcp(dst_port, port, 7 + 300 * turn as u32, seq.wrapping_add(100)) };
        (walk.ip_id, walk.ip_len, walk.ttl, walk.conntrack) = (!walk.ip_id, 152, 64, 0);
        walk.leave(node, None, true, tunnel.then_some(0));
        walk.come(0, tunnel);
        walk.arrive(0, nat);
    }
}

impl Walk<'_> {
    /// Out of a pod and by its node's interface.
    fn leave(&mut self, node: usize, nat: Option<Nat>, reply: bool, tunnel: Option<usize>) {
        self.device(node, pod_netns(node), ETH0);
        self.seen(node, root(node), CALI, hook::RECEIVE);
        self.ttl -= 1;
        self.conntrack = flag::CONNTRACK | if reply { flag::CT_REPLY } else { 0 };
        if let Some(nat) = nat {
            self.dst = nat.endpoint;
            self.translation(node, nat, false);
        }
        if let Some(to) = tunnel {
            self.device(node, root(node), TUNL0);
            self.outer = Some((host(node), host(to)));
        }
        self.device(node, root(node), ENS5);
    }

    /// Over the wire into a node.
    fn come(&mut self, node: usize, tunnel: bool) {
        self.now += WIRE;
        self.conntrack = 0;
        self.seen(node, root(node), ENS5, hook::RECEIVE);
        if tunnel {
            self.outer = None;
            self.seen(node, root(node), TUNL0, hook::RECEIVE);
        }
        self.ttl -= 1;
    }

    /// Into its pod.
    fn arrive(&mut self, node: usize, nat: Option<Nat>) {
        self.conntrack = flag::CONNTRACK;
        if let Some(nat) = nat {
            self.conntrack |= flag::CT_REPLY;
            self.src = SERVICE;
            self.translation(node, nat, true);
        }
        self.device(node, root(node), CALI);
        self.seen(node, pod_netns(node), ETH0, hook::RECEIVE);
        self.free(node, pod_netns(node), ETH0, hook::CONSUME, 0);
    }

    fn device(&mut self, node: usize, netns: u32, ifindex: u32) {
        self.seen(node, netns, ifindex, hook::QUEUE);
        self.seen(node, netns, ifindex, hook::XMIT);
    }

    fn seen(&mut self, node: usize, netns: u32, ifindex: u32, hook: u8) {
        let mut record = self.record(node, netns, ifindex, hook, self.conntrack);
        let at = offset_of!(raw::Sighting, data);
        if let Some((src, dst)) = self.outer {
            put(&mut record, offset_of!(raw::Head, flags), [self.conntrack | flag::TRACKED | flag::ENCAPSULATED]);
            put(&mut record, at + offset_of!(raw::Outer, src), src.to_ipv6_mapped().octets());
            put(&mut record, at + offset_of!(raw::Outer, dst), dst.to_ipv6_mapped().octets());
            put(&mut record, at + offset_of!(raw::Outer, ip_id), self.ip_id.to_ne_bytes());
            put(&mut record, at + offset_of!(raw::Outer, ip_len), (self.ip_len + 20).to_ne_bytes());
            put(&mut record, at + offset_of!(raw::Outer, ttl), [self.ttl]);
            put(&mut record, at + offset_of!(raw::Outer, encapsulation), [encapsulation::IPIP]);
        }
        self.out[node].push(record);
    }

    fn free(&mut self, node: usize, netns: u32, ifindex: u32, hook: u8, reason: u32) {
        let mut record = self.record(node, netns, ifindex, hook, flag::FREED | flag::REASON);
        let at = offset_of!(raw::Sighting, data);
        put(&mut record, at + offset_of!(raw::Free, location), 0xffff_ffff_81a3_4567_u64.to_ne_bytes());
        put(&mut record, at + offset_of!(raw::Free, reason), reason.to_ne_bytes());
        self.out[node].push(record);
    }

    fn translation(&mut self, node: usize, nat: Nat, reply: bool) {
        let flags = if reply { flag::CONNTRACK | flag::CT_REPLY } else { flag::CONNTRACK };
        let mut record = self.record(node, root(node), CALI, hook::TRANSLATION, flags);
        record[offset_of!(raw::Translation, original)..].fill(0);
        let mut tuple = |at: usize, src: Ipv4Addr, dst: Ipv4Addr, ports: [u16; 2]| {
            put(&mut record, at + offset_of!(raw::Tuple, src), src.to_ipv6_mapped().octets());
            put(&mut record, at + offset_of!(raw::Tuple, dst), dst.to_ipv6_mapped().octets());
            put(&mut record, at + offset_of!(raw::Tuple, l4_src), ports[0].to_ne_bytes());
            put(&mut record, at + offset_of!(raw::Tuple, l4_dst), ports[1].to_ne_bytes());
            put(&mut record, at + offset_of!(raw::Tuple, protocol), 6_u32.to_ne_bytes());
        };
        tuple(offset_of!(raw::Translation, original), pod(0), SERVICE, [nat.port, nat.dst_port]);
        tuple(offset_of!(raw::Translation, reply), nat.endpoint, pod(0), [nat.dst_port, nat.port]);
        put(&mut record, offset_of!(raw::Translation, status), (1_u32 << 5).to_ne_bytes());
        self.out[node].push(record);
    }

    fn record(&mut self, node: usize, netns: u32, ifindex: u32, hook: u8, flags: u8) -> Bytes {
        self.now += STEP + self.now % 97;
        let mut record = [0; RECORD_SIZE];
        // No two nodes have a clock in common.
        let clock = self.now + 1_000_000_007 * node as u64;
        put(&mut record, offset_of!(raw::Head, time_ns), clock.to_ne_bytes());
        put(&mut record, offset_of!(raw::Head, skb), self.skb.to_ne_bytes());
        put(&mut record, offset_of!(raw::Head, hook), [hook]);
        put(&mut record, offset_of!(raw::Head, flags), [flags | flag::TRACKED]);
        put(&mut record, offset_of!(raw::Head, cpu), ((self.skb >> 8) as u16 & 3).to_ne_bytes());
        put(&mut record, offset_of!(raw::Head, netns), netns.to_ne_bytes());
        put(&mut record, offset_of!(raw::Head, ifindex), ifindex.to_ne_bytes());
        put(&mut record, offset_of!(raw::Head, protocol), [self.protocol]);
        put(&mut record, offset_of!(raw::Head, ttl), [self.ttl]);
        put(&mut record, offset_of!(raw::Head, header_len), 20_u16.to_ne_bytes());
        put(&mut record, offset_of!(raw::Sighting, src), self.src.to_ipv6_mapped().octets());
        put(&mut record, offset_of!(raw::Sighting, dst), self.dst.to_ipv6_mapped().octets());
        put(&mut record, offset_of!(raw::Sighting, l4), self.l4);
        put(&mut record, offset_of!(raw::Sighting, ip_id), self.ip_id.to_ne_bytes());
        put(&mut record, offset_of!(raw::Sighting, ip_len), self.ip_len.to_ne_bytes());
        record
    }
}

fn put<const N: usize>(record: &mut Bytes, at: usize, bytes: [u8; N]) {
    record[at..at + N].copy_from_slice(&bytes);
}

fn tcp(src: u16, dst: u16, seq: u32, ack: u32) -> [u8; 16] {
    let mut l4 = [0; 16];
    l4[0..2].copy_from_slice(&src.to_be_bytes());
    l4[2..4].copy_from_slice(&dst.to_be_bytes());
    l4[4..8].copy_from_slice(&seq.to_be_bytes());
    l4[8..12].copy_from_slice(&ack.to_be_bytes());
    // 32 bytes of header: with the time stamp option that Linux sends.
    (l4[12], l4[13]) = (0x80, PUSH_ACK);
    l4
}

fn icmp(kind: u8, number: u64) -> [u8; 16] {
    let mut l4 = [0; 16];
    l4[0] = kind;
    l4[4..6].copy_from_slice(&0x77_u16.to_be_bytes());
    l4[6..8].copy_from_slice(&(number as u16).to_be_bytes());
    l4[8..16].copy_from_slice(&(0x5eed_0000_0000 + number).to_be_bytes());
    l4
}
