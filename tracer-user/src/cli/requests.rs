//! What each node is asked for a trace.

use std::{net::IpAddr, time::Duration};

use tracer_common::MAX_FLOWS;

use super::{
    args::TraceArgs,
    ends::{self, Resolved},
    nodes::Cluster,
    service::Behind,
    traffic::Traffic,
};
use crate::{
    event::{Record, Translation},
    path::{NodeEvidence, model::Endpoint},
    session::{Flow, Ping, Request},
};

/// What a session may take beside getting ready and the probes: waiting for the others, reading back.
const MARGIN: Duration = Duration::from_secs(60);

/// What each node is asked: all record, the source's node sends. `translated`: what a round before this showed that NAT makes of
/// the flow.
pub(super) fn requests(args: &TraceArgs, cluster: &Cluster, resolved: &Resolved, translated: &[Flow]) -> Vec<Request> {
    let Resolved { ends, sender, traffic, home, service: _, notes: _ } = resolved;
    // 0 would mean "any" in the kernel's map of flows.
    let id = rand::random_range(1..=u16::MAX);
    let traffic = *traffic;
    let kind = traffic.probes(id);
    let flow = Flow {
        a: ends.source.address,
        b: Some(ends.destination.address),
        protocol: kind.protocol(ends.source.address),
        // Of TCP and UDP the source's kernel chooses the ports.
        a_port: (traffic == Traffic::Echo && !args.passive).then_some(id),
        b_port: traffic.port(),
        one_of: args.one_of,
    };
    let ping = Ping {
        src: ends.source.address,
        home: *home,
        // Who types an address means that one.
        any_source: home.is_none() && args.between.source.parse::<IpAddr>().is_err(),
        dst: ends.destination.address,
        kind,
        count: args.count,
        interval: args.interval,
        size: args.size,
        timeout: args.timeout,
        nonce_base: rand::random(),
    };
    let request = |index: usize| Request {
        flows: with(flows(cluster, resolved, &flow, &cluster.nodes[index].name), translated),
        time_limit: longest(args),
        ping: (*sender == Some(index)).then(|| ping.clone()),
        trace_rules: args.trace_rules,
        sparing: false,
    };
    (0..cluster.nodes.len()).map(request).collect()
}

/// How long a session may take, at most.
pub(super) fn longest(args: &TraceArgs) -> Duration {
    let busy = if args.passive { args.wait } else { args.interval * u32::from(args.count) + args.timeout };
    args.between.ready_within + busy + MARGIN
}

/// With those of `more` that are new and that the kernel has room for.
fn with(mut flows: Vec<Flow>, more: &[Flow]) -> Vec<Flow> {
    for flow in more {
        if flows.len() < MAX_FLOWS && !flows.contains(flow) {
            flows.push(flow.clone());
        }
    }
    flows
}

/// What NAT made of the flow on one node, and another one was not asked to record.
pub(super) fn translated(nodes: &[NodeEvidence]) -> Vec<Flow> {
    let mut found: Vec<Flow> = Vec::new();
    for (node, evidence) in nodes.iter().enumerate() {
        for record in &evidence.records {
            let Record::Translation(Translation { original, reply, protocol, .. }) = record else { continue };
            if (original.src, original.dst) == (reply.dst, reply.src) {
                continue;
            }
            let port = (!matches!(protocol, 1 | 58)).then_some(reply.l4_src);
            let flow =
                Flow { a: reply.dst, b: Some(reply.src), protocol: *protocol, a_port: None, b_port: port, one_of: 1 };
            let asked = |other: &NodeEvidence| {
                other.watched.iter().any(|watched| watched.covers(*protocol, (reply.dst, None), (reply.src, port)))
            };
            let others = nodes.iter().enumerate().filter(|(other, _)| *other != node);
            if !found.contains(&flow) && others.into_iter().any(|(_, other)| !asked(other)) {
                found.push(flow);
            }
        }
    }
    found
}

/// What a node is to record. The kernel learns what NAT makes of a flow only on the node that does it; on all others it is asked
/// for as it may look there.
fn flows(cluster: &Cluster, resolved: &Resolved, flow: &Flow, node: &str) -> Vec<Flow> {
    let Resolved { ends, service, .. } = resolved;
    let is = |end: &Endpoint| end.node.as_deref() == Some(node);
    // Where a node port is asked of a node, it is that node which does what the source's does for a service.
    let is_asked = match service {
        Some(behind) => behind.anywhere || behind.on_node && is(&ends.destination),
        None => false,
    };
    let beyond = match service {
        // A service's address has given way to one of its endpoints'.
        Some(Behind { target_port, .. }) => Flow { b: None, b_port: *target_port, ..flow.clone() },
        None => flow.clone(),
    };
    let seen = if is(&ends.source) || is_asked { flow } else { &beyond };
    let mut flows = vec![seen.clone()];
    if service.as_ref().is_some_and(|behind| behind.anywhere && !behind.masquerades) {
        flows.push(beyond.clone());
    }
    if !is(&ends.source) {
        // Its port may be another there: which connections were chosen by it elsewhere cannot be told.
        flows.extend(home_address(cluster, resolved).map(|a| Flow { a, a_port: None, one_of: 1, ..seen.clone() }));
    }
    if let Some(behind) = service.as_ref().filter(|_| !is(&ends.destination)) {
        let room = MAX_FLOWS - flows.len();
        flows.extend(masqueraded(behind, &beyond, node, room));
    }
    flows
}

/// The flow behind a node that puts an address of its own in the source's place. Of a tunnel that address is not known, so all that
/// comes to the endpoints on this node is recorded; where these are too many, what comes from the addresses that are known.
fn masqueraded(behind: &Behind, beyond: &Flow, node: &str, room: usize) -> Vec<Flow> {
    let Behind { masquerades, through, endpoints, .. } = behind;
    let here = |of: &Option<String>| of.as_deref().is_none_or(|of| of == node);
    let family = |address: &IpAddr| address.is_ipv4() == beyond.a.is_ipv4();
    let own = endpoints.iter().filter(|(address, _, of)| here(of) && family(address));
    let to = |(a, a_port, _): &(IpAddr, Option<u16>, _)| Flow {
        a: *a,
        a_port: *a_port,
        b: None,
        b_port: None,
        one_of: 1,
        ..*beyond
    };
    let from = |a: &IpAddr| Flow { a: *a, a_port: None, one_of: 1, ..*beyond };
    match own.clone().count() {
        0 => Vec::new(),
        _ if !masquerades => Vec::new(),
        count if count <= room => own.map(to).collect(),
        _ => through.iter().map(from).take(room).collect(),
    }
}

/// What the source's node may put in the source's place.
fn home_address(cluster: &Cluster, resolved: &Resolved) -> Option<IpAddr> {
    let source = &resolved.ends.source;
    let addresses = ends::node_addresses(&cluster.directory, source.node.as_deref()?);
    let own = addresses.into_iter().find(|address| address.is_ipv4() == source.address.is_ipv4());
    own.filter(|address| *address != source.address)
}

#[cfg(test)]
mod tests {
    use super::{
        super::nodes::{Node, Reach},
        *,
    };
    use crate::{path::model::AskedService, session::ProbeKind};

    const PODS: &str = "
kind: List
items:
- {kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 172.20.50.50}, {type: InternalIP, address: 'fd00:50::50'}]}}
- {kind: Pod, metadata: {name: bb1, namespace: default}, spec: {nodeName: node-1}, status: {phase: Running, podIP: 100.115.37.81, podIPs: [{ip: 100.115.37.81}, {ip: 'fd00:37::81'}]}}
- {kind: Node, metadata: {name: node-2}, status: {addresses: [{type: InternalIP, address: 172.20.58.60}]}}
- {kind: Service, metadata: {name: web, namespace: default}, spec: {clusterIP: 100.64.0.7, ports: [{name: http, port: 80, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.10}, {hostname: lb.example}]}}}
- kind: EndpointSlice
  metadata: {name: web-x, namespace: default, labels: {kubernetes.io/service-name: web}}
  ports: [{name: http, port: 8080}]
  endpoints: [{addresses: [100.106.133.5], nodeName: node-2}]
- {kind: Service, metadata: {name: local, namespace: default}, spec: {clusterIP: 100.64.0.8, externalTrafficPolicy: Local, ports: [{name: http, port: 80}]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.11}]}}}
- kind: EndpointSlice
  metadata: {name: local-x, namespace: default, labels: {kubernetes.io/service-name: local}}
  ports: [{name: http, port: 8080}]
  endpoints: [{addresses: [100.106.133.5], nodeName: node-2}]
";

    /// What each of two nodes is asked; the source lives on the first.
    async fn asked_of(line: &str) -> Vec<Request> {
        let (args, cluster, resolved) = resolved(line).await;
        requests(&args, &cluster, &resolved, &[])
    }

    async fn resolved(line: &str) -> (TraceArgs, Cluster, Resolved) {
        use clap::Parser;

        use crate::cli::args::{Cli, Command};
        let Command::Trace(args) = Cli::parse_from(format!("podpath trace {line}").split(' ')).command else {
            unreachable!("asked for trace")
        };
        let args = args.with_port_of_destination().expect("one port");
        let cluster = Cluster {
            context: None,
            nodes: ["node-1", "node-2"].map(|name| Node { name: name.to_owned(), reach: Reach::Here }).into(),
            directory: crate::identity::Directory::parse(PODS, "test").expect("parses"),
            kubernetes: None,
            choice: None,
        };
        let resolved = ends::resolve(&args, &cluster).await.expect("known");
        (args, cluster, resolved)
    }

    /// The flows of each node, in short.
    fn flows(requests: &[Request]) -> Vec<Vec<String>> {
        let end = |address: Option<IpAddr>, port: Option<u16>| {
            let address = address.map_or("any".to_owned(), |address| address.to_string());
            format!("{address} {}", port.map_or("any".to_owned(), |port| port.to_string()))
        };
        let flow = |f: &Flow| format!("{} {} -> {}", f.protocol, end(Some(f.a), f.a_port), end(f.b, f.b_port));
        requests.iter().map(|request| request.flows.iter().map(flow).collect()).collect()
    }

    #[test]
    fn what_nat_made_of_the_flow_is_asked_for_where_it_was_not() {
        use crate::event::{CtDirection, Tuple};

        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let tuple =
            |src: &str, dst: &str, l4_src, l4_dst| Tuple { src: address(src), dst: address(dst), l4_src, l4_dst };
        let translation = |protocol, original, reply| {
            Record::Translation(Translation {
                time_ns: 1,
                skb: 1,
                netns: 1,
                original,
                reply,
                status: 0,
                protocol,
                direction: CtDirection::Original,
            })
        };
        let flow = |a: &str, b: &str, protocol, b_port| Flow {
            a: address(a),
            b: Some(address(b)),
            protocol,
            a_port: None,
            b_port,
            one_of: 1,
        };
        let dnat = translation(6, tuple("10.0.0.1", "10.9.0.9", 4711, 80), tuple("10.0.0.2", "10.0.0.1", 8080, 4711));
        let plain = translation(1, tuple("10.0.0.1", "10.0.0.3", 5, 5), tuple("10.0.0.3", "10.0.0.1", 5, 5));
        let snat = translation(1, tuple("10.0.0.1", "10.0.0.3", 5, 5), tuple("10.0.0.3", "172.20.0.1", 9, 9));
        let node = |records, watched| NodeEvidence { records, watched, ..NodeEvidence::default() };
        let asked = vec![flow("10.0.0.1", "10.9.0.9", 6, Some(80))];
        let nodes = |records, watched| [node(records, asked.clone()), node(Vec::new(), watched)];
        let new = [flow("10.0.0.1", "10.0.0.2", 6, Some(8080)), flow("172.20.0.1", "10.0.0.3", 1, None)];
        let records = vec![dnat.clone(), plain, dnat.clone(), snat.clone()];
        assert_eq!(translated(&nodes(records, asked.clone())), new);
        assert_eq!(translated(&nodes(vec![dnat, snat], new.to_vec())), []);

        let more = with(asked.clone(), &[&asked[..], &new[..], &new[..]].concat());
        assert_eq!(more, [&asked[..], &new[..]].concat());
        let many: Vec<Flow> = (0..9).map(|port| flow("10.0.0.1", "10.0.0.2", 6, Some(port))).collect();
        assert_eq!(with(asked.clone(), &many).len(), MAX_FLOWS);
    }

    #[tokio::test]
    async fn other_nodes_also_record_the_flow_as_it_looks_behind_the_sources_node() {
        let requests = asked_of("bb1 172.20.58.60").await;
        let flows: Vec<Vec<_>> =
            requests.iter().map(|r| r.flows.iter().map(|f| (f.a.to_string(), f.a_port.is_some())).collect()).collect();
        let (pod, node) = (("100.115.37.81".to_owned(), true), ("172.20.50.50".to_owned(), false));
        assert_eq!(flows, [vec![pod.clone()], vec![pod, node]]);
    }

    #[tokio::test]
    async fn what_a_name_stands_for_may_send_from_another_address() {
        let mut resolved = resolved("bb1 10.56.0.12").await;
        let ping = |resolved: &(TraceArgs, Cluster, Resolved)| {
            requests(&resolved.0, &resolved.1, &resolved.2, &[]).remove(0).ping
        };
        let first = ping(&resolved).expect("it sends");
        assert_eq!((first.any_source, first.home), (true, None));
        resolved.2.send_from("10.56.0.11".parse().expect("an address"));
        let again = ping(&resolved).expect("it sends");
        let known = "100.115.37.81".parse().ok();
        assert_eq!((again.any_source, again.home, again.src.to_string().as_str()), (false, known, "10.56.0.11"));
        // Who types an address means that one.
        let typed = asked_of("100.115.37.81 10.56.0.12").await;
        assert_eq!(typed[0].ping.as_ref().map(|ping| ping.any_source), Some(false));
    }

    #[tokio::test]
    async fn beyond_the_sources_node_a_services_flow_is_that_to_its_endpoints() {
        let web = asked_of("bb1 svc/web").await;
        let beyond = ["6 100.115.37.81 any -> any 8080", "6 172.20.50.50 any -> any 8080"];
        assert_eq!(flows(&web), [vec!["6 100.115.37.81 any -> 100.64.0.7 80"], beyond.to_vec()]);
        assert_eq!(web[0].ping.as_ref().map(|ping| ping.kind), Some(ProbeKind::Tcp { dst_port: 80 }));
    }

    #[tokio::test]
    async fn behind_a_node_port_the_node_may_stand_in_the_sources_place() {
        let port = asked_of("bb1 node-2 --tcp 30080").await;
        let asked = ["6 100.115.37.81 any -> 172.20.58.60 30080", "6 172.20.50.50 any -> 172.20.58.60 30080"];
        // Nobody answers for it on the first.
        assert_eq!(flows(&port), [vec![asked[0]], asked.to_vec()]);
        let other = asked_of("203.0.113.9 172.20.50.50:30080 --passive").await;
        let masqueraded = "6 100.106.133.5 8080 -> any any";
        assert_eq!(
            flows(&other),
            [vec!["6 203.0.113.9 any -> 172.20.50.50 30080"], vec!["6 203.0.113.9 any -> any 8080", masqueraded]]
        );
    }

    #[tokio::test]
    async fn from_outside_a_balancer_may_lead_to_any_node() {
        let seen = "6 203.0.113.9 any -> 198.51.100.10 80";
        let cluster = flows(&asked_of("203.0.113.9 svc/web --passive").await);
        assert_eq!(cluster, [vec![seen], vec![seen, "6 100.106.133.5 8080 -> any any"]]);
        let local = flows(&asked_of("203.0.113.9 198.51.100.11:80 --passive").await);
        assert_eq!(local, [[seen.replace("100.10", "100.11").as_str(), "6 203.0.113.9 any -> any 8080"]; 2]);
        // A pod's node does it for the pod.
        let inside = flows(&asked_of("bb1 198.51.100.10:80").await);
        let beyond = ["6 100.115.37.81 any -> any 8080", "6 172.20.50.50 any -> any 8080"];
        assert_eq!(inside, [vec!["6 100.115.37.81 any -> 198.51.100.10 80"], beyond.to_vec()]);
    }

    #[test]
    fn endpoints_that_are_too_many_are_left_to_the_nodes_addresses() {
        let address = |last| IpAddr::from([100, 64, 0, last]);
        let of = |node: &str| Some(node.to_owned());
        let behind = |last| Behind {
            target_port: Some(8080),
            on_node: true,
            anywhere: false,
            masquerades: true,
            through: vec![address(100)],
            endpoints: (0..last).map(|last| (address(last), Some(8080), of("node-1"))).collect(),
            local_nodes: None,
            asked: AskedService::default(),
        };
        let beyond = Flow { a: address(200), b: None, protocol: 6, a_port: None, b_port: Some(8080), one_of: 1 };
        let from =
            |behind: &Behind, node| masqueraded(behind, &beyond, node, 3).iter().map(|flow| flow.a).collect::<Vec<_>>();
        assert_eq!(from(&behind(3), "node-1"), [address(0), address(1), address(2)]);
        assert_eq!(from(&behind(4), "node-1"), [address(100)]);
        assert!(from(&behind(4), "node-2").is_empty());
    }

    #[tokio::test]
    async fn flows_to_a_port_leave_the_sources_port_open() {
        let tcp = asked_of("bb1 172.20.58.60 --tcp 80").await;
        let seen = "6 100.115.37.81 any -> 172.20.58.60 80";
        let masqueraded = "6 172.20.50.50 any -> 172.20.58.60 80";
        assert_eq!(flows(&tcp), [vec![seen], vec![seen, masqueraded]]);
        assert_eq!(tcp[0].ping.as_ref().map(|ping| ping.kind), Some(ProbeKind::Tcp { dst_port: 80 }));
        assert!(!tcp[0].trace_rules);
        let udp = asked_of("bb1 fd00:58::60 --udp 53 --passive --trace-rules").await;
        let seen = "17 fd00:37::81 any -> fd00:58::60 53";
        let masqueraded = "17 fd00:50::50 any -> fd00:58::60 53";
        assert_eq!(flows(&udp), [vec![seen], vec![seen, masqueraded]]);
        assert_eq!(udp[0].ping, None);
        assert!(udp.iter().all(|request| request.trace_rules));
        let echo = asked_of("bb1 fd00:58::60 --passive").await;
        assert_eq!(flows(&echo)[0], ["58 fd00:37::81 any -> fd00:58::60 any"]);
    }
}
