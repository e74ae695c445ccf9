//! Traces by hand, after the clusters of scenario A. The times only show the shape.

use std::net::IpAddr;

use crate::path::model::{
    Action::{
        self, Decapsulated, Delivered, Dropped, Encapsulated, Lost, Received, Routed, Sent, Snat, Transmitted, Unsnat,
    },
    Basis, Detail, Direction, DropCause, DropDetail, Endpoint, Exchange, Hop, Nat, NatSide, Outcome, Path, Share,
    ShareOf, Trace, TracedNode, Tunnel,
};

pub(super) const NODE1: &str = "ip-172-20-50-50.ec2.internal";
pub(super) const NODE2: &str = "ip-172-20-58-60.ec2.internal";
const BB1: (&str, &str) = ("default/bb1", "100.115.37.81");
const BB2: (&str, &str) = ("default/bb2", "100.106.133.221");
const BB3: (&str, &str) = ("default/bb3", "100.115.37.83");

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Hops of one packet on one node after another.
struct Walk {
    node: &'static str,
    pod: Option<&'static str>,
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    error_ns: u64,
    hops: Vec<Hop>,
}

impl Walk {
    fn new(node: &'static str, src: &str, dst: &str) -> Walk {
        Walk { node, pod: None, src: ip(src), dst: ip(dst), ttl: 64, error_ns: 0, hops: Vec::new() }
    }

    fn pod(&mut self, pod: Option<&'static str>) -> &mut Walk {
        self.pod = pod;
        self
    }

    fn node(&mut self, node: &'static str, error_ns: u64) -> &mut Walk {
        (self.node, self.error_ns) = (node, error_ns);
        self
    }

    fn hop(&mut self, action: Action, interface: &str, at_us: u64) -> &mut Walk {
        self.with(action, interface, at_us, Detail::default())
    }

    fn with(&mut self, action: Action, interface: &str, at_us: u64, detail: Detail) -> &mut Walk {
        let configured = action == Routed;
        self.hops.push(Hop {
            node: self.node.into(),
            pod: self.pod.map(Into::into),
            interface: Some(interface.into()),
            ifindex: Some(if interface == "ens5" { 2 } else { 22 }),
            action,
            src: self.src,
            dst: self.dst,
            ttl: Some(self.ttl),
            at_ns: (!configured).then_some(at_us * 1_000),
            error_ns: self.error_ns,
            basis: if configured { Basis::Configured } else { Basis::Observed },
            detail,
        });
        self
    }

    fn forward(&mut self, interface: &str, route: &str, at_us: u64) -> &mut Walk {
        self.ttl -= 1;
        let detail = Detail { route: Some(route.to_owned()), ..Detail::default() };
        self.with(Routed, interface, at_us, detail);
        let detail = Detail { queue_ns: Some(400), mtu: Some(9001), ..Detail::default() };
        self.with(Transmitted, interface, at_us, detail)
    }

    fn path(&mut self) -> Path {
        Path { hops: std::mem::take(&mut self.hops), incomplete: false }
    }
}

fn there(until: Option<&str>, pod_us: u64) -> Path {
    let mut walk = Walk::new(NODE2, BB2.1, BB1.1);
    walk.pod(Some(BB2.0)).hop(Sent, "eth0", 0).pod(None).hop(Received, "cali9270933bb0b", 3);
    walk.forward("ens5", "100.115.37.64/26 via 172.20.50.50 dev ens5 proto bird", 9);
    if let Some(text) = until {
        let detail = Detail { text: Some(text.to_owned()), ..Detail::default() };
        walk.with(Lost, "ens5", 9, detail);
        walk.hops.last_mut().expect("a hop").basis = Basis::Inferred;
        return walk.path();
    }
    walk.node(NODE1, 83_000).hop(Received, "ens5", 93);
    walk.forward("cali98fd8882b62", "100.115.37.81 dev cali98fd8882b62 scope link", 100);
    let answered = Detail { answered_after_ns: Some(pod_us * 1_000), ..Detail::default() };
    walk.pod(Some(BB1.0)).hop(Received, "eth0", 103).with(Delivered, "eth0", 103, answered).path()
}

fn back(lost: bool) -> Path {
    let mut walk = Walk::new(NODE1, BB1.1, BB2.1);
    walk.error_ns = 83_000;
    walk.pod(Some(BB1.0)).hop(Sent, "eth0", 112).pod(None).hop(Received, "cali98fd8882b62", 115);
    walk.forward("ens5", "100.106.133.192/26 via 172.20.58.60 dev ens5 proto bird", 121);
    if lost {
        let text = format!("left {NODE1} ens5, never arrived at {NODE2} ens5");
        walk.with(Lost, "ens5", 121, Detail { text: Some(text), ..Detail::default() });
        return walk.path();
    }
    walk.node(NODE2, 0).hop(Received, "ens5", 204);
    walk.forward("cali9270933bb0b", "100.106.133.221 dev cali9270933bb0b scope link", 211);
    walk.pod(Some(BB2.0)).hop(Received, "eth0", 214).hop(Delivered, "eth0", 214).path()
}

fn exchange(seq: u32, outcome: Outcome, failed_direction: Option<Direction>, paths: (Path, Path)) -> Exchange {
    Exchange {
        seq,
        what: None,
        again_after_ns: None,
        outcome,
        failed_direction,
        rtt_ns: None,
        rtt_at: None,
        injector_rtt_ns: None,
        request: paths.0,
        reply: paths.1,
        shares: Vec::new(),
        clocks: Vec::new(),
        notes: Vec::new(),
        rejection: None,
    }
}

fn delivered(seq: u32, rtt_us: u64) -> Exchange {
    let (rtt_ns, node1, node2) = (rtt_us * 1_000, 28_400, 18_800);
    let node = |node: &str, ns, pod_ns: Option<u64>, pod: Option<&str>| Share {
        of: ShareOf::Node { node: node.to_owned(), pod_ns, pod: pod.map(str::to_owned) },
        ns,
    };
    Exchange {
        rtt_ns: Some(rtt_ns),
        rtt_at: None,
        injector_rtt_ns: Some(rtt_ns + 4_000),
        shares: vec![
            node(NODE2, node2, None, None),
            Share { of: ShareOf::Wire { from: NODE2.to_owned(), to: NODE1.to_owned() }, ns: rtt_ns - node1 - node2 },
            node(NODE1, node1, Some(9_000), Some(BB1.0)),
        ],
        ..exchange(seq, Outcome::Delivered, None, (there(None, 9), back(false)))
    }
}

fn end((name, address): (&str, &str), node: Option<&str>) -> Endpoint {
    Endpoint { name: Some(name.to_owned()), address: ip(address), node: node.map(str::to_owned) }
}

fn traced(name: &str, address: &str) -> TracedNode {
    TracedNode { name: name.to_owned(), kernel: Some("5.11.0".to_owned()), complete: true, address: Some(ip(address)) }
}

fn trace(exchanges: Vec<Exchange>) -> Trace {
    Trace {
        schema: "podpath.trace/v1",
        source: end(BB2, Some(NODE2)),
        destination: end(BB1, Some(NODE1)),
        service: None,
        exchanges,
        routers: ["172.20.58.60", "172.20.50.50", "100.115.37.81"].map(ip).into(),
        lost_events: 0,
        warnings: Vec::new(),
        context: Some("kops-lab".to_owned()),
        started: "2026-11-20T13:40:02Z".to_owned(),
        nodes: vec![traced(NODE2, "172.20.58.60"), traced(NODE1, "172.20.50.50")],
        smallest_mtu: Some(8981),
        smallest_mtu_at: Vec::new(),
        probe: "icmp echo 84 B".to_owned(),
    }
}

/// bb2 -> bb1, all well.
pub(super) fn cross_node() -> Trace {
    trace([243, 201, 214, 220, 209].into_iter().zip(1..).map(|(rtt, seq)| delivered(seq, rtt)).collect())
}

/// The wire swallows the requests.
pub(super) fn request_lost() -> Trace {
    let text = format!("left {NODE2} ens5, never arrived at {NODE1} ens5");
    let lost = |seq| exchange(seq, Outcome::Lost, Some(Direction::Request), (there(Some(&text), 0), Path::default()));
    trace((1..=5).map(lost).collect())
}

fn one_reply_lost(seq: u32) -> Exchange {
    exchange(seq, Outcome::Lost, Some(Direction::Reply), (there(None, 9), back(true)))
}

/// The wire swallows the replies.
pub(super) fn reply_lost() -> Trace {
    trace((1..=5).map(one_reply_lost).collect())
}

fn one_dropped(seq: u32, dst: &str) -> Exchange {
    let mut walk = Walk::new(NODE2, BB2.1, dst);
    walk.pod(Some(BB2.0)).hop(Sent, "eth0", 0).pod(None).hop(Received, "cali9270933bb0b", 3);
    walk.forward("ens5", "100.115.37.64/26 via 172.20.50.50 dev ens5 proto bird", 9);
    walk.node(NODE1, 0).hop(Received, "ens5", 93);
    walk.hops.last_mut().expect("a hop").at_ns = None;
    let drop = DropDetail {
        why: "blackhole route".to_owned(),
        reason: Some("IP_INNOROUTES".to_owned()),
        function: Some("ip_error".to_owned()),
        cause: DropCause::Blackhole,
        basis: Basis::Observed,
        proof: vec!["freed in ip_error, reason by the kernel IP_INNOROUTES".to_owned()],
        ..DropDetail::default()
    };
    let route = Some("blackhole 100.115.37.64/26 proto bird".to_owned());
    walk.with(Dropped, "ens5", 0, Detail { route, drop: Some(Box::new(drop)), ..Detail::default() });
    walk.hops.last_mut().expect("a hop").at_ns = None;
    exchange(seq, Outcome::Dropped, Some(Direction::Request), (walk.path(), Path::default()))
}

/// bb2 -> an address of node1's block that no pod has.
pub(super) fn blackhole() -> Trace {
    let destination = Endpoint { name: None, address: ip("100.115.37.90"), node: None };
    let routers = vec![ip("172.20.58.60")];
    let exchanges = (1..=5).map(|seq| one_dropped(seq, "100.115.37.90")).collect();
    Trace { destination, routers, ..trace(exchanges) }
}

/// Some arrive, one is dropped, one reply is lost.
pub(super) fn mixed() -> Trace {
    let exchanges =
        vec![delivered(1, 214), one_dropped(2, BB1.1), delivered(3, 201), one_reply_lost(4), delivered(5, 220)];
    trace(exchanges)
}

/// bb1 -> 8.8.8.8 and back through SNAT.
pub(super) fn snat() -> Trace {
    let (dst, node_ip) = ("8.8.8.8", "172.20.50.50");
    let side = |src: &str, dst: &str, id| NatSide { src: ip(src), dst: ip(dst), src_port: Some(id), dst_port: None };
    let nat = |before, after| Detail {
        nat: Some(Box::new(Nat { moment: Basis::Inferred, before, after })),
        ..Detail::default()
    };
    let one = |seq: u32| {
        let id = 52_011 + u16::try_from(seq).expect("small");
        let mut walk = Walk::new(NODE1, BB1.1, dst);
        walk.pod(Some(BB1.0)).hop(Sent, "eth0", 0).pod(None).hop(Received, "cali98fd8882b62", 3);
        walk.forward("ens5", "default via 172.20.32.1 dev ens5 proto dhcp src 172.20.50.50 metric 100", 14);
        let transmitted = walk.hops.pop().expect("a hop");
        walk.src = ip(node_ip);
        walk.with(Snat, "ens5", 14, nat(side(BB1.1, dst, 4711), side(node_ip, dst, id)));
        walk.hops.push(Hop { src: ip(node_ip), ..transmitted });
        let request = walk.path();
        let mut walk = Walk::new(NODE1, dst, node_ip);
        walk.ttl = 117;
        walk.hop(Received, "ens5", 8_314);
        walk.dst = ip(BB1.1);
        walk.with(Unsnat, "ens5", 8_314, nat(side(dst, node_ip, id), side(dst, BB1.1, 4711)));
        walk.forward("cali98fd8882b62", "100.115.37.81 dev cali98fd8882b62 scope link", 8_323);
        walk.pod(Some(BB1.0)).hop(Received, "eth0", 8_326).hop(Delivered, "eth0", 8_326);
        let shares = vec![
            Share { of: ShareOf::Node { node: NODE1.to_owned(), pod_ns: None, pod: None }, ns: 26_000 },
            Share { of: ShareOf::Beyond { node: NODE1.to_owned() }, ns: 8_300_000 },
        ];
        let rtt_ns = Some(8_326_000);
        Exchange { rtt_ns, shares, ..exchange(seq, Outcome::Delivered, None, (request, walk.path())) }
    };
    Trace {
        source: end(BB1, Some(NODE1)),
        destination: Endpoint { name: None, address: ip(dst), node: None },
        routers: vec![ip(node_ip)],
        nodes: vec![traced(NODE1, node_ip)],
        smallest_mtu: None,
        smallest_mtu_at: Vec::new(),
        ..trace((1..=3).map(one).collect())
    }
}

/// bb1 -> bb3 on the same node.
pub(super) fn same_node() -> Trace {
    let way = |from: (&'static str, &str, &str), to: (&'static str, &str, &str), start: u64| {
        let mut walk = Walk::new(NODE1, from.1, to.1);
        walk.pod(Some(from.0)).hop(Sent, "eth0", start).pod(None).hop(Received, from.2, start + 3);
        walk.forward(to.2, &format!("{} dev {} scope link", to.1, to.2), start + 8);
        walk.pod(Some(to.0)).hop(Received, "eth0", start + 10);
        let answered_after_ns = (start == 0).then_some(5_000);
        walk.with(Delivered, "eth0", start + 10, Detail { answered_after_ns, ..Detail::default() }).path()
    };
    let (one, three) = ((BB1.0, BB1.1, "cali98fd8882b62"), (BB3.0, BB3.1, "cali0a1b2c3d4e5"));
    let node = ShareOf::Node { node: NODE1.to_owned(), pod_ns: Some(5_000), pod: Some(BB3.0.to_owned()) };
    let exchange = Exchange {
        rtt_ns: Some(25_000),
        rtt_at: None,
        shares: vec![Share { of: node, ns: 25_000 }],
        ..exchange(1, Outcome::Delivered, None, (way(one, three, 0), way(three, one, 15)))
    };
    Trace {
        source: end(BB1, Some(NODE1)),
        destination: end(BB3, Some(NODE1)),
        routers: ["172.20.50.50", "100.115.37.83"].map(ip).into(),
        nodes: vec![traced(NODE1, "172.20.50.50")],
        ..trace(vec![exchange])
    }
}

/// Events were lost, a session died, and a route changed.
pub(super) fn incomplete() -> Trace {
    let mut request = there(None, 9);
    request.hops.truncate(4);
    let mut one = exchange(1, Outcome::Incomplete, Some(Direction::Request), (request, Path::default()));
    one.notes.push(format!("nothing was seen after {NODE2} ens5, and events were lost on {NODE1}"));
    let mut trace = trace(vec![one]);
    trace.lost_events = 1234;
    trace.nodes[1].complete = false;
    trace.warnings.push(format!("routes changed on {NODE1} while the trace ran: those shown may not be those taken"));
    trace
}

/// No packet at all.
pub(super) fn nothing() -> Trace {
    trace(Vec::new())
}

/// bb2 -> bb1 over IPv6 by TCP, through a VXLAN tunnel.
pub(super) fn vxlan6() -> Trace {
    let (two, one) = ("fd00:10:244:7:9c40::dd", "fd00:10:244:3:1a80::51");
    let (node2, node1) = ("fd20:172:20:32::3a3c", "fd20:172:20:32::3232");
    let wrapped = |src: &str, dst: &str| Detail {
        tunnel: Some(Box::new(Tunnel { kind: "vxlan".to_owned(), vni: Some(4096), src: ip(src), dst: ip(dst) })),
        mtu: Some(8931),
        ..Detail::default()
    };
    // Node, pod, its address, the node's.
    type End = (&'static str, &'static str, &'static str, &'static str);
    let way = |from: End, to: End, at: u64| {
        let mut walk = Walk::new(from.0, from.2, to.2);
        walk.error_ns = if from.0 == NODE2 { 0 } else { 83_000 };
        walk.pod(Some(from.1)).hop(Sent, "eth0", at).pod(None).hop(Received, "cali9270933bb0b", at + 3);
        let prefix = to.2.split("::").next().unwrap_or_default();
        walk.forward("vxlan-v6.calico", &format!("{prefix}::/122 via {prefix}::41 dev vxlan-v6.calico onlink"), at + 8);
        walk.hops.pop();
        let (src, dst) = (walk.src, walk.dst);
        walk.with(Encapsulated, "vxlan-v6.calico", at + 9, wrapped(from.3, to.3));
        (walk.src, walk.dst) = (ip(from.3), ip(to.3));
        walk.hop(Transmitted, "ens5", at + 12).node(to.0, 83_000).hop(Received, "ens5", at + 90);
        walk.error_ns = if to.0 == NODE2 { 0 } else { 83_000 };
        (walk.src, walk.dst) = (src, dst);
        walk.with(Decapsulated, "vxlan-v6.calico", at + 94, wrapped(from.3, to.3));
        walk.forward("cali98fd8882b62", &format!("{} dev cali98fd8882b62 metric 1024 pref medium", to.2), at + 99);
        let answered_after_ns = (at == 0).then_some(9_000);
        walk.pod(Some(to.1)).hop(Received, "eth0", at + 102);
        walk.with(Delivered, "eth0", at + 102, Detail { answered_after_ns, ..Detail::default() }).path()
    };
    let (a, b) = ((NODE2, BB2.0, two, node2), (NODE1, BB1.0, one, node1));
    let shares = vec![
        Share { of: ShareOf::Node { node: NODE2.to_owned(), pod_ns: None, pod: None }, ns: 24_000 },
        Share { of: ShareOf::Wire { from: NODE2.to_owned(), to: NODE1.to_owned() }, ns: 156_000 },
        Share {
            of: ShareOf::Node { node: NODE1.to_owned(), pod_ns: Some(9_000), pod: Some(BB1.0.to_owned()) },
            ns: 33_000,
        },
    ];
    let paths = (way(a, b, 0), way(b, a, 111));
    let exchange = Exchange { rtt_ns: Some(213_000), shares, ..exchange(1, Outcome::Delivered, None, paths) };
    let mut nodes = vec![traced(NODE2, node2), traced(NODE1, node1)];
    nodes[0].kernel = Some("6.1.0".to_owned());
    Trace {
        source: end((BB2.0, two), Some(NODE2)),
        destination: end((BB1.0, one), Some(NODE1)),
        routers: [node2, node1, one].map(ip).into(),
        smallest_mtu: Some(8931),
        smallest_mtu_at: vec![format!("{NODE2} vxlan.calico"), format!("{NODE1} vxlan.calico")],
        probe: "tcp port 8080, SYN 60 B".to_owned(),
        nodes,
        ..trace(vec![exchange])
    }
}

/// All of them.
pub(super) fn all() -> Vec<Trace> {
    vec![
        cross_node(),
        request_lost(),
        reply_lost(),
        blackhole(),
        mixed(),
        snat(),
        same_node(),
        incomplete(),
        nothing(),
        vxlan6(),
    ]
}
