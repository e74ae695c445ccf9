//! What the user typed -> the two ends of the trace.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::{
    args::TraceArgs,
    error::Error,
    nodes::Cluster,
    service::{Behind, Front, behind, front},
    traffic::Traffic,
};
use crate::{
    identity::{Directory, Service, Target},
    path::Ends,
    path::model::Endpoint,
};

/// The two ends, and what the reader should know about them.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The ends.
    pub(super) ends: Ends,
    /// The address by which the source is known, where it sends from another one.
    pub(super) home: Option<IpAddr>,
    /// Which of the cluster's nodes sends the probes; None in passive mode.
    pub(super) sender: Option<usize>,
    /// What is sent, or waited for.
    pub(super) traffic: Traffic,
    /// The destination is a service, so that its packets end elsewhere.
    pub(super) service: Option<Behind>,
    /// One sentence each.
    pub(super) notes: Vec<String>,
}

/// Resolves both ends; a destination that is no pod and no node is tried as a host name.
///
/// # Errors
/// A name means nothing, or an end cannot be traced.
pub(super) async fn resolve(args: &TraceArgs, cluster: &Cluster) -> Result<Resolved, Error> {
    let Cluster { directory, .. } = cluster;
    let mut notes = Vec::new();
    let source = Found::new(&args.between.source, directory.resolve(&args.between.source, args.namespace())?);
    let (destination, looked_up) = match directory.resolve(&args.between.destination, args.namespace()) {
        // Only a name with a dot: a mistyped pod must not become whatever a search domain makes of it.
        Err(unknown) if unknown.is_not_found() && args.between.destination.contains('.') => {
            (look_up(&args.between.destination, unknown.to_string()).await?, true)
        }
        found => (Found::new(&args.between.destination, found?), false),
    };
    let destination =
        if is_outside(&source.target) { destination.seen_from_outside(&args.between.destination) } else { destination };
    let (from, to) =
        in_common(&source, &destination).into_iter().find(|ends| wanted(args, *ends)).ok_or_else(|| {
            let wanted = if args.between.ipv4 { Some('4') } else { args.between.ipv6.then_some('6') };
            let (source, destination) =
                (source.told(&args.between.source), destination.told(&args.between.destination));
            Error::NoCommonFamily { source_name: source, destination, wanted }
        })?;
    let (source, destination) = (source.with(from), destination.with(to));
    if source.service.is_some() {
        return Err(Error::ServiceAsSource { name: args.between.source.clone() });
    }
    let (traffic, service) = match &destination.service {
        Some(service) => {
            let nodes: Vec<IpAddr> = cluster
                .nodes
                .iter()
                .flat_map(|node| node_addresses(directory, &node.name))
                .filter(|node| node.is_ipv4() == to.is_ipv4())
                .collect();
            let from_outside = is_outside(&source) && service.fronts().any(|front| front == to);
            let nodes = from_outside.then_some(nodes.as_slice());
            let Front { traffic, mut behind, note } = front(service, args.traffic(), nodes)?;
            if !service.lets_in(from, to) {
                behind.asked.not_let_in = service.source_ranges.iter().map(ToString::to_string).collect();
            }
            notes.extend(note);
            (traffic, Some(behind))
        }
        // Or it is a node, and the port one that all nodes have for a service.
        None => {
            let (behind, note) = front_on_nodes(directory, &destination, args.traffic()).unzip();
            notes.extend(note);
            (args.traffic(), behind)
        }
    };
    if looked_up {
        notes.push(format!("{} is {to}: resolved by this machine, not by the pod", args.between.destination));
    }
    for (name, target) in [(&args.between.source, &source), (&args.between.destination, &destination)] {
        if target.host_network {
            notes.push(format!("{name} uses its node's network: {} is the node's address", target.address));
        }
    }
    // Of a cluster only the nodes of the two ends are there: with neither known there is nothing to watch either.
    let watches = args.passive && !cluster.nodes.is_empty();
    let sender = if watches { None } else { Some(sender(args, cluster, &source)?) };
    let source = match sender {
        // With one node there is only one place where it can be.
        Some(index) if source.node.is_none() => Target { node: Some(cluster.nodes[index].name.clone()), ..source },
        _ => source,
    };
    let ends = Ends { source: endpoint(source), destination: endpoint(destination) };
    Ok(Resolved { ends, home: None, sender, traffic, service, notes })
}

impl Resolved {
    /// The source's kernel sends from this address of its.
    pub(super) fn send_from(&mut self, address: IpAddr) {
        let known = std::mem::replace(&mut self.ends.source.address, address);
        self.home = Some(known);
    }
}

/// The source is an address outside of the cluster, and the destination one by which a service is shown to the outside: then
/// only what comes from there by itself can be meant.
pub(super) fn can_only_be_watched(args: &TraceArgs, cluster: &Cluster) -> bool {
    let Cluster { directory, .. } = cluster;
    let of = |typed: &str| directory.resolve(typed, args.namespace()).ok();
    let shown = |target: Target| {
        let has_front = target.service.as_ref().is_some_and(|service| service.fronts().next().is_some());
        has_front || front_on_nodes(directory, &target, args.traffic()).is_some()
    };
    !args.passive
        && of(&args.between.source).is_some_and(|target| is_outside(&target))
        && of(&args.between.destination).is_some_and(shown)
}

/// An address that no pod and no node has.
pub(super) fn is_outside(target: &Target) -> bool {
    target.name.is_none() && target.node.is_none()
}

/// An end, and the addresses that may be used of it.
struct Found {
    target: Target,
    addresses: Vec<IpAddr>,
}

impl Found {
    /// Who types an address means that one.
    fn new(typed: &str, target: Target) -> Self {
        let mut addresses = vec![target.address];
        if typed.parse::<IpAddr>().is_err() {
            addresses.extend(&target.other_addresses);
        }
        Self { target, addresses }
    }

    /// As it is reached from outside of the cluster: a service by the addresses that it has for that, unless one was typed.
    fn seen_from_outside(mut self, typed: &str) -> Self {
        let fronts: Vec<IpAddr> = self.target.service.iter().flat_map(Service::fronts).collect();
        if !fronts.is_empty() && typed.parse::<IpAddr>().is_err() {
            self.addresses = fronts;
        }
        self
    }

    fn with(self, address: IpAddr) -> Target {
        Target { address, ..self.target }
    }

    /// `bb1 has only 10.0.0.1`.
    fn told(&self, name: &str) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        if addresses == [name] { name.to_owned() } else { format!("{name} ({})", addresses.join(", ")) }
    }
}

/// Pairs of addresses of one family, IPv4 first.
fn in_common(source: &Found, destination: &Found) -> Vec<(IpAddr, IpAddr)> {
    let of = |found: &Found, ipv4| found.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
    [true, false].into_iter().filter_map(|ipv4| Some((of(source, ipv4)?, of(destination, ipv4)?))).collect()
}

/// Is this the family that was asked for, if one was?
fn wanted(args: &TraceArgs, (from, _): (IpAddr, IpAddr)) -> bool {
    if from.is_ipv4() { !args.between.ipv6 } else { !args.between.ipv4 }
}

/// The node that sends the probes.
fn sender(args: &TraceArgs, cluster: &Cluster, source: &Target) -> Result<usize, Error> {
    let nodes = &cluster.nodes;
    let index = match &source.node {
        // This machine's host name need not be its name in the cluster; what it lacks the session says.
        _ if args.between.local => Some(0),
        Some(node) => nodes.iter().position(|known| known.name == *node),
        // But of a cluster it may be the other end's.
        None if nodes.len() == 1 && cluster.kubernetes.is_none() => Some(0),
        None => None,
    };
    index.ok_or_else(|| Error::SourceOnNoNode {
        source_name: args.between.source.clone(),
        known: source.name.is_some(),
        node: source.node.clone(),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
    })
}

/// What stands behind a node's port, and a sentence about it.
fn front_on_nodes(directory: &Directory, destination: &Target, traffic: Traffic) -> Option<(Behind, String)> {
    let asked = traffic.port().filter(|_| destination.is_node())?;
    let (service, port) = directory.node_port(traffic.probes(0).protocol(destination.address), asked)?;
    let behind = behind(service, port, Some((destination.address, destination.node.as_deref()?)));
    let shown = format!("{asked}/{}", port.protocol_name());
    Some((behind, format!("{shown} on nodes is the node port of {}, port {}", service.full_name(), port.shown())))
}

/// By this machine's resolver. `unknown` is what the directory said.
async fn look_up(name: &str, unknown: String) -> Result<Found, Error> {
    let failed = |cause| Error::HostName { unknown: unknown.clone(), name: name.to_owned(), cause };
    let resolved = tokio::net::lookup_host((name, 0)).await.map_err(failed)?;
    let addresses: Vec<_> = resolved.map(|address: SocketAddr| address.ip()).collect();
    let Some(&address) = addresses.first() else {
        return Err(failed(io::Error::other("it has no address")));
    };
    let name = Some(name.to_owned());
    let target = Target { name, address, other_addresses: Vec::new(), node: None, host_network: false, service: None };
    Ok(Found { target, addresses })
}

fn endpoint(target: Target) -> Endpoint {
    let Target { name, address, other_addresses: _, node, host_network: _, service: _ } = target;
    Endpoint { name, address, node }
}

/// Addresses of a node; the one by which people know it first.
pub(super) fn node_addresses(directory: &Directory, node: &str) -> Vec<IpAddr> {
    let target = directory.resolve(&format!("node/{node}"), "");
    target.map_or_else(|_| Vec::new(), |target| [&[target.address][..], &target.other_addresses].concat())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::{
            args::{Cli, Command},
            nodes::{Node, Reach},
        },
        *,
    };

    fn args(line: &str) -> TraceArgs {
        match Cli::try_parse_from(format!("podpath trace {line}").split(' ')).expect("parses").command {
            Command::Trace(args) => *args,
            _ => unreachable!("asked for trace"),
        }
    }

    const PODS: &str = "
kind: List
items:
- {kind: Pod, metadata: {name: bb1, namespace: default}, spec: {nodeName: node-1}, status: {phase: Running, podIP: 100.115.37.81}}
- {kind: Pod, metadata: {name: bb2, namespace: default}, spec: {nodeName: node-2}, status: {phase: Running, podIP: 100.106.133.221}}
- {kind: Pod, metadata: {name: two, namespace: default}, spec: {nodeName: node-2}, status: {phase: Running, podIP: 'fd00::2', podIPs: [{ip: 'fd00::2'}, {ip: 100.106.133.2}]}}
- {kind: Pod, metadata: {name: other, namespace: default}, spec: {nodeName: node-1}, status: {phase: Running, podIP: 100.115.37.3, podIPs: [{ip: 100.115.37.3}, {ip: 'fd00::3'}]}}
- {kind: Pod, metadata: {name: six, namespace: default}, spec: {nodeName: node-1}, status: {phase: Running, podIP: 'fd00::6'}}
- {kind: Pod, metadata: {name: proxy, namespace: kube-system}, spec: {nodeName: node-1, hostNetwork: true}, status: {phase: Running, podIP: 172.20.50.50}}
";

    fn cluster(nodes: &[&str]) -> Cluster {
        Cluster {
            context: None,
            nodes: nodes.iter().map(|&name| Node { name: name.to_owned(), reach: Reach::Here }).collect(),
            directory: Directory::parse(PODS, "lab test").expect("parses"),
            kubernetes: None,
            choice: None,
        }
    }

    async fn told(line: &str, nodes: &[&str]) -> String {
        match resolve(&args(line), &cluster(nodes)).await {
            Ok(Resolved { ends, sender, notes, .. }) => format!(
                "{:?}@{:?} {} -> {:?}@{:?} {} sender {sender:?} {notes:?}",
                ends.source.name,
                ends.source.node,
                ends.source.address,
                ends.destination.name,
                ends.destination.node,
                ends.destination.address
            ),
            Err(error) => super::super::error::lines(&error),
        }
    }

    #[tokio::test]
    async fn the_sources_node_sends() {
        let both = ["node-1", "node-2"];
        insta::assert_snapshot!(told("bb2 bb1", &both).await, @r#"Some("default/bb2")@Some("node-2") 100.106.133.221 -> Some("default/bb1")@Some("node-1") 100.115.37.81 sender Some(1) []"#);
        insta::assert_snapshot!(told("bb1 8.8.8.8", &both).await, @r#"Some("default/bb1")@Some("node-1") 100.115.37.81 -> None@None 8.8.8.8 sender Some(0) []"#);
        insta::assert_snapshot!(told("proxy bb2", &both).await, @r#"Some("kube-system/proxy")@Some("node-1") 172.20.50.50 -> Some("default/bb2")@Some("node-2") 100.106.133.221 sender Some(0) ["proxy uses its node's network: 172.20.50.50 is the node's address"]"#);
        insta::assert_snapshot!(told("bb1 two", &both).await, @r#"Some("default/bb1")@Some("node-1") 100.115.37.81 -> Some("default/two")@Some("node-2") 100.106.133.2 sender Some(0) []"#);
        insta::assert_snapshot!(told("10.1.1.1 bb1", &["node-1"]).await, @r#"None@Some("node-1") 10.1.1.1 -> Some("default/bb1")@Some("node-1") 100.115.37.81 sender Some(0) []"#);
        insta::assert_snapshot!(told("10.1.1.1 bb1 --passive", &both).await, @r#"None@None 10.1.1.1 -> Some("default/bb1")@Some("node-1") 100.115.37.81 sender None []"#);
    }

    #[test]
    fn what_services_show_to_the_outside_is_watched_for_clients_out_there() {
        const SHOWN: &str = "
kind: List
items:
- {kind: Pod, metadata: {name: bb1, namespace: default}, spec: {nodeName: node-1}, status: {phase: Running, podIP: 100.115.37.81}}
- {kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 172.20.50.50}]}}
- {kind: Service, metadata: {name: web, namespace: default}, spec: {clusterIP: 100.64.0.7, externalIPs: [198.51.100.20], ports: [{port: 80, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.10}]}}}
- {kind: Service, metadata: {name: inner, namespace: default}, spec: {clusterIP: 100.64.0.8, ports: [{port: 80}]}}
";
        let cluster = Cluster { directory: Directory::parse(SHOWN, "test").expect("parses"), ..cluster(&["node-1"]) };
        let watched =
            |line: &str| can_only_be_watched(&args(line).with_port_of_destination().expect("a port"), &cluster);
        for shown in ["172.20.50.50:30080", "node-1:30080", "svc/web", "198.51.100.10:80", "198.51.100.20:80"] {
            assert!(watched(&format!("203.0.113.9 {shown}")), "{shown}");
            assert!(!watched(&format!("bb1 {shown}")), "a pod sends: {shown}");
            assert!(!watched(&format!("203.0.113.9 {shown} --passive")), "asked for: {shown}");
        }
        for other in ["node-1", "node-1:22", "bb1:80", "svc/inner", "8.8.8.8:80"] {
            assert!(!watched(&format!("203.0.113.9 {other}")), "{other}");
        }
    }

    #[tokio::test]
    async fn a_source_that_no_traced_node_has_is_refused() {
        insta::assert_snapshot!(told("10.1.1.1 bb1", &["node-1", "node-2"]).await);
        insta::assert_snapshot!(told("bb2 bb1", &["node-1"]).await);
    }

    #[tokio::test]
    async fn ends_that_cannot_be_traced_are_refused() {
        insta::assert_snapshot!(told("bb1 fd00::1", &["node-1"]).await);
        insta::assert_snapshot!(told("bb1 two -6", &["node-1"]).await, @r"
        podpath: bb1 (100.115.37.81) -> two (fd00::2, 100.106.133.2): -6 asks for IPv6 addresses, and not both ends have one
          leave it out, or name other ends
        ");
        insta::assert_snapshot!(told("two fd00::1 -4", &["node-2"]).await, @r"
        podpath: two (fd00::2, 100.106.133.2) -> fd00::1: -4 asks for IPv4 addresses, and not both ends have one
          leave it out, or name other ends
        ");
    }

    #[tokio::test]
    async fn the_family_is_one_that_both_ends_have() {
        let both = ["node-1", "node-2"];
        insta::assert_snapshot!(told("two six", &both).await, @r#"Some("default/two")@Some("node-2") fd00::2 -> Some("default/six")@Some("node-1") fd00::6 sender Some(1) []"#);
        insta::assert_snapshot!(told("two other", &both).await, @r#"Some("default/two")@Some("node-2") 100.106.133.2 -> Some("default/other")@Some("node-1") 100.115.37.3 sender Some(1) []"#);
        insta::assert_snapshot!(told("two other -6", &both).await, @r#"Some("default/two")@Some("node-2") fd00::2 -> Some("default/other")@Some("node-1") fd00::3 sender Some(1) []"#);
        insta::assert_snapshot!(told("two fd00::9", &both).await, @r#"Some("default/two")@Some("node-2") fd00::2 -> None@None fd00::9 sender Some(1) []"#);
        // An address that was typed is meant, whatever else its pod has.
        insta::assert_snapshot!(told("fd00::2 other", &both).await, @r#"Some("default/two")@Some("node-2") fd00::2 -> Some("default/other")@Some("node-1") fd00::3 sender Some(1) []"#);
        insta::assert_snapshot!(told("other fd00::2", &both).await, @r#"Some("default/other")@Some("node-1") fd00::3 -> Some("default/two")@Some("node-2") fd00::2 sender Some(0) []"#);
    }

    #[tokio::test]
    async fn a_host_name_is_resolved_here_and_says_so() {
        // The resolver answers an address in the old three-part form by itself, without asking anybody.
        let text = told("bb1 127.0.1", &["node-1"]).await;
        assert!(text.contains("127.0.1 is 127.0.0.1: resolved by this machine, not by the pod"), "{text}");
    }
}
