//! What the user typed -> the two ends of the trace.

use std::net::{IpAddr, SocketAddr};

use super::{args::TraceArgs, error::Error, nodes::Cluster};
use crate::{
    identity::{Directory, Target},
    path::Ends,
    path::model::Endpoint,
};

/// The two ends, and what the reader should know about them.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The ends.
    pub(super) ends: Ends,
    /// Which of the cluster's nodes sends the probes; None in passive mode.
    pub(super) sender: Option<usize>,
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
    let source = with_ipv4(directory.resolve(&args.source, &args.namespace)?);
    let destination = match directory.resolve(&args.destination, &args.namespace) {
        // Only a name with a dot: a mistyped pod must not become whatever a search domain makes of it.
        Err(unknown) if unknown.is_not_found() && args.destination.contains('.') => {
            let address = look_up(&args.destination, unknown.to_string()).await?;
            notes.push(format!("{} is {address}: resolved by this machine, not by the pod", args.destination));
            let name = Some(args.destination.clone());
            Target { name, address, other_addresses: Vec::new(), node: None, host_network: false }
        }
        found => with_ipv4(found?),
    };
    for (name, target) in [(&args.source, &source), (&args.destination, &destination)] {
        if target.address.is_ipv6() {
            return Err(Error::Ipv6 { name: name.clone(), address: target.address });
        }
        if target.host_network {
            notes.push(format!("{name} uses its node's network: {} is the node's address", target.address));
        }
    }
    if source.address == destination.address {
        return Err(Error::SameEnds { name: args.destination.clone() });
    }
    let sender = if args.passive { None } else { Some(sender(args, cluster, &source)?) };
    let source = match sender {
        // With one node there is only one place where it can be.
        Some(index) if source.node.is_none() => Target { node: Some(cluster.nodes[index].name.clone()), ..source },
        _ => source,
    };
    Ok(Resolved { ends: Ends { source: endpoint(source), destination: endpoint(destination) }, sender, notes })
}

/// Of a pod with addresses of both families the IPv4 one. An address that was typed has no other.
fn with_ipv4(target: Target) -> Target {
    let other = target.other_addresses.iter().copied().find(IpAddr::is_ipv4);
    match other {
        Some(address) if target.address.is_ipv6() => Target { address, ..target },
        _ => target,
    }
}

/// The node that sends the probes.
fn sender(args: &TraceArgs, cluster: &Cluster, source: &Target) -> Result<usize, Error> {
    let nodes = &cluster.nodes;
    let index = match &source.node {
        // This machine's host name need not be its name in the cluster; what it lacks the session says.
        _ if args.local => Some(0),
        Some(node) => nodes.iter().position(|known| known.name == *node),
        None if nodes.len() == 1 => Some(0),
        None => None,
    };
    index.ok_or_else(|| Error::SourceOnNoNode {
        source_name: args.source.clone(),
        node: source.node.clone(),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
    })
}

/// By this machine's resolver. `unknown` is what the directory said.
async fn look_up(name: &str, unknown: String) -> Result<IpAddr, Error> {
    let failed = |cause| Error::HostName { unknown, name: name.to_owned(), cause };
    let mut addresses =
        tokio::net::lookup_host((name, 0)).await.map_err(failed)?.map(|address: SocketAddr| address.ip());
    addresses.find(IpAddr::is_ipv4).ok_or_else(|| Error::HostNameV6 { name: name.to_owned() })
}

fn endpoint(target: Target) -> Endpoint {
    let Target { name, address, other_addresses: _, node, host_network: _ } = target;
    Endpoint { name, address, node }
}

/// Address by which people know a node.
pub(super) fn node_address(directory: &Directory, node: &str) -> Option<IpAddr> {
    directory.resolve(&format!("node/{node}"), "").ok().map(|target| target.address)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::{
            args::{Cli, Command},
            nodes::Node,
        },
        *,
    };

    fn args(line: &str) -> TraceArgs {
        match Cli::try_parse_from(format!("podpath trace {line}").split(' ')).expect("parses").command {
            Command::Trace(args) => args,
            Command::Doctor => unreachable!("asked for trace"),
        }
    }

    const PODS: &str = "
kind: List
items:
- {kind: Pod, metadata: {name: bb1, namespace: default}, spec: {nodeName: node-1}, status: {phase: Running, podIP: 100.115.37.81}}
- {kind: Pod, metadata: {name: bb2, namespace: default}, spec: {nodeName: node-2}, status: {phase: Running, podIP: 100.106.133.221}}
- {kind: Pod, metadata: {name: two, namespace: default}, spec: {nodeName: node-2}, status: {phase: Running, podIP: 'fd00::2', podIPs: [{ip: 'fd00::2'}, {ip: 100.106.133.2}]}}
- {kind: Pod, metadata: {name: proxy, namespace: kube-system}, spec: {nodeName: node-1, hostNetwork: true}, status: {phase: Running, podIP: 172.20.50.50}}
";

    fn cluster(nodes: &[&str]) -> Cluster {
        Cluster {
            context: None,
            nodes: nodes.iter().map(|&name| Node { name: name.to_owned(), command: None }).collect(),
            directory: Directory::parse(PODS, "lab test").expect("parses"),
        }
    }

    async fn told(line: &str, nodes: &[&str]) -> String {
        match resolve(&args(line), &cluster(nodes)).await {
            Ok(Resolved { ends, sender, notes }) => format!(
                "{:?}@{:?} -> {:?}@{:?} sender {sender:?} {notes:?}",
                ends.source.name, ends.source.node, ends.destination.name, ends.destination.node
            ),
            Err(error) => super::super::error::lines(&error),
        }
    }

    #[tokio::test]
    async fn the_sources_node_sends() {
        let both = ["node-1", "node-2"];
        insta::assert_snapshot!(told("bb2 bb1", &both).await, @r#"Some("default/bb2")@Some("node-2") -> Some("default/bb1")@Some("node-1") sender Some(1) []"#);
        insta::assert_snapshot!(told("bb1 8.8.8.8", &both).await, @r#"Some("default/bb1")@Some("node-1") -> None@None sender Some(0) []"#);
        insta::assert_snapshot!(told("proxy bb2", &both).await, @r#"Some("kube-system/proxy")@Some("node-1") -> Some("default/bb2")@Some("node-2") sender Some(0) ["proxy uses its node's network: 172.20.50.50 is the node's address"]"#);
        insta::assert_snapshot!(told("bb1 two", &both).await, @r#"Some("default/bb1")@Some("node-1") -> Some("default/two")@Some("node-2") sender Some(0) []"#);
        insta::assert_snapshot!(told("10.1.1.1 bb1", &["node-1"]).await, @r#"None@Some("node-1") -> Some("default/bb1")@Some("node-1") sender Some(0) []"#);
        insta::assert_snapshot!(told("10.1.1.1 bb1 --passive", &both).await, @r#"None@None -> Some("default/bb1")@Some("node-1") sender None []"#);
    }

    #[tokio::test]
    async fn a_source_that_no_traced_node_has_is_refused() {
        insta::assert_snapshot!(told("10.1.1.1 bb1", &["node-1", "node-2"]).await);
        insta::assert_snapshot!(told("bb2 bb1", &["node-1"]).await);
    }

    #[tokio::test]
    async fn ends_that_cannot_be_traced_are_refused() {
        insta::assert_snapshot!(told("bb1 100.115.37.81", &["node-1"]).await);
        insta::assert_snapshot!(told("bb1 fd00::1", &["node-1"]).await);
    }

    #[tokio::test]
    async fn a_host_name_is_resolved_here_and_says_so() {
        // The resolver answers an address in the old three-part form by itself, without asking anybody.
        let text = told("bb1 127.0.1", &["node-1"]).await;
        assert!(text.contains("127.0.1 is 127.0.0.1: resolved by this machine, not by the pod"), "{text}");
    }
}
