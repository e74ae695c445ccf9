//! A node: its addresses, its pods' ends, and the routes to the other nodes' pods.

use std::fmt::Display;

use super::super::profile::{Cni, Node, Pod, Profile, TunnelKind};
use super::super::rules;
use super::{Namespace, base, links, optional, required, tunnel};

pub(super) fn set_up(lab: &str, profile: &Profile, node: &Node) -> Namespace {
    let nic = &profile.nic;
    let mut namespace = base(lab, &node.host, true);
    // Settings are written before links are made.
    if profile.stack.is_none() {
        namespace.sysctls.push(required(format!("ipv4/conf/{nic}/rp_filter"), "2"));
    }
    links::stack(&mut namespace, profile);
    let subnet = profile.subnet_of(node);
    namespace.ip.extend([
        format!("addr add {}/{} brd + dev {nic}", node.address, subnet.subnet.prefix_len()),
        format!("link set {nic} up"),
        format!("route add default via {} dev {nic}", subnet.gateway),
    ]);
    if let Some(ipv6) = &profile.ipv6 {
        let interfaces: Vec<String> = node.pods.iter().map(|pod| profile.host_interface(pod)).collect();
        let links: Vec<&str> = interfaces.iter().map(String::as_str).chain([nic.as_str()]).collect();
        namespace.with_ipv6(true, &links);
        let addresses = node.address6.iter();
        namespace.ip.extend(
            addresses.map(|address| format!("addr add {address}/{} dev {nic} nodad", ipv6.subnet.prefix_len())),
        );
        namespace.ip.push(format!("route add default via {} dev {nic}", ipv6.gateway));
    }
    if let Some(bridge) = &profile.idle_bridge {
        namespace.ip.extend([
            format!("link add {} type bridge", bridge.name),
            format!("addr add {} brd + dev {}", bridge.address, bridge.name),
            format!("link set {} up", bridge.name),
            // A new bridge has a carrier until it first looks at its ports.
            format!("link set {} type bridge stp_state 1", bridge.name),
            format!("link set {} type bridge stp_state 0", bridge.name),
        ]);
        namespace.idle.push(bridge.name.clone());
    }
    pods(&mut namespace, profile, node);
    links::attach(&mut namespace, lab, profile, node);
    namespace.tunnel = profile.tunnel.as_ref().map(|tunnel| tunnel::plan(lab, profile, node, tunnel));
    for other in profile.nodes.iter().filter(|other| other.host != node.host) {
        routes(&mut namespace, profile, node, other);
    }
    namespace.rules = rules::node(profile, node);
    namespace
}

/// The node's ends of its pods' links, with the routes to them.
fn pods(namespace: &mut Namespace, profile: &Profile, node: &Node) {
    match &profile.cni {
        Cni::Calico { route_protocol, .. } => {
            namespace.ip.push(format!("route add blackhole {} proto {route_protocol}", node.block()));
            // The kernel keeps an IPv6 blackhole on `lo`.
            let blocks6 = node.block6.iter();
            namespace.ip.extend(blocks6.map(|block| format!("route add blackhole {block} proto {route_protocol}")));
        }
        Cni::Kindnet => {}
        Cni::Flannel { bridge } => {
            // An address of its own, made of the IPv4 address as the bridge plugin made it: otherwise the bridge takes
            // the lowest of its ports', and which that is differs from lab to lab.
            let [a, b, c, d] = pod_gateway(node).addr().octets();
            namespace.ip.extend([
                format!(
                    "link add {bridge} address 0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x} mtu {} type bridge forward_delay 0 mcast_snooping 0",
                    profile.pod_mtu
                ),
                format!("addr add {} brd + dev {bridge}", pod_gateway(node)),
                format!("link set {bridge} up"),
            ]);
            // What Kubernetes asks of a node: bridged packets pass iptables.
            namespace.sysctls.push(optional("bridge/bridge-nf-call-iptables", "1"));
            if node.pods.is_empty() {
                namespace.idle.push(bridge.clone());
            }
        }
    }
    for pod in &node.pods {
        host_end(namespace, profile, node, pod);
    }
}

fn host_end(namespace: &mut Namespace, profile: &Profile, node: &Node, pod: &Pod) {
    let interface = profile.host_interface(pod);
    namespace.ip.push(format!("link set {interface} up"));
    match &profile.cni {
        Cni::Calico { .. } => {
            // What Felix sets. Without `proxy_delay` 0 the node waits up to 0.8 s before it answers ARP for the pods'
            // gateway.
            for (path, value) in [
                (format!("ipv4/conf/{interface}/rp_filter"), "1"),
                (format!("ipv4/conf/{interface}/route_localnet"), "1"),
                (format!("ipv4/conf/{interface}/proxy_arp"), "1"),
                (format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
            ] {
                namespace.sysctls.push(required(path, value));
            }
            namespace.ip.push(format!("route add {}/32 dev {interface} scope link", pod.address));
            if let Some(address) = pod.address6 {
                namespace.sysctls.push(required(format!("ipv6/conf/{interface}/proxy_ndp"), "1"));
                namespace.ip.push(format!("route add {address}/128 dev {interface}"));
            }
        }
        Cni::Kindnet => {
            // Every veth has the pods' gateway as its own address.
            let gateway = pod_gateway(node).addr();
            namespace.ip.push(format!("addr add {gateway}/32 dev {interface}"));
            namespace.ip.push(format!("route add {}/32 dev {interface} scope host", pod.address));
        }
        Cni::Flannel { bridge } => {
            namespace.ip.push(format!("link set {interface} master {bridge}"));
            namespace.ip.push(format!("link set {interface} type bridge_slave hairpin on"));
        }
    }
}

/// The first address of the node's block, with the length of its prefix.
pub(super) fn pod_gateway(node: &Node) -> ipnet::Ipv4Net {
    let block = node.block();
    let first = block.hosts().next().unwrap_or(block.network());
    ipnet::Ipv4Net::new(first, block.prefix_len()).unwrap_or(block)
}

/// The way to the pods of another node: its block, and what it borrowed of others.
fn routes(namespace: &mut Namespace, profile: &Profile, node: &Node, other: &Node) {
    let borrowed = other.pods.iter().filter(|pod| pod.borrowed).map(|pod| ipnet::Ipv4Net::from(pod.address));
    for destination in std::iter::once(other.block()).chain(borrowed) {
        if let (Some(tunnel), Some(plan)) = (profile.tunnel_between(node, other), &mut namespace.tunnel) {
            plan.ip.push(tunnel::route(profile, tunnel, other, destination));
            if !matches!(tunnel.kind, TunnelKind::Wireguard { .. }) {
                continue;
            }
        }
        namespace.ip.push(direct(profile, &destination, &other.address));
    }
    if let (Some(block), Some(address)) = (other.block6, other.address6) {
        namespace.ip.push(direct(profile, &block, &address));
    }
}

fn direct(profile: &Profile, destination: &dyn Display, via: &dyn Display) -> String {
    let nic = &profile.nic;
    let (protocol, onlink) = match &profile.cni {
        Cni::Calico { route_protocol, route_onlink, .. } => (format!(" proto {route_protocol}"), *route_onlink),
        Cni::Kindnet | Cni::Flannel { .. } => (String::new(), false),
    };
    let onlink = if onlink { " onlink" } else { "" };
    format!("route add {destination} via {via} dev {nic}{protocol}{onlink}")
}
