//! A node's tunnel device, which not every kernel can make: all that needs it is kept apart.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::super::profile::{self, Cni, Node, Profile, TunnelKind};
use super::namespace;

/// A tunnel device, and what depends on it.
#[derive(Debug, Serialize)]
pub(crate) struct Tunnel {
    pub(crate) name: String,
    /// What it is, for people.
    pub(crate) what: &'static str,
    /// Arguments of `ip` that make it.
    pub(crate) add: String,
    /// Keys and peers.
    pub(crate) wireguard: Option<WireGuard>,
    /// `ip -batch` lines.
    pub(crate) ip: Vec<String>,
    /// `bridge -batch` lines.
    pub(crate) bridge: Vec<String>,
}

/// Keys are made when it is built.
#[derive(Debug, Serialize)]
pub(crate) struct WireGuard {
    pub(crate) port: u16,
    pub(crate) mark: u32,
    pub(crate) peers: Vec<Peer>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    /// The network namespace whose key it is.
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) allowed: Vec<Ipv4Net>,
}

/// The device of a node; routes through it are added by [`route`].
pub(super) fn plan(lab: &str, profile: &Profile, node: &Node, tunnel: &profile::Tunnel) -> Tunnel {
    let Profile { nic, pod_mtu: mtu, .. } = profile;
    let name = &tunnel.name;
    let (local, others) = (node.address, profile.nodes.iter().filter(|other| other.host != node.host));
    let (mut ip, mut bridge, mut wireguard) = (Vec::new(), Vec::new(), None);
    ip.extend([format!("addr add {}/32 dev {name}", node.tunnel_address()), format!("link set {name} up")]);
    let (what, add) = match tunnel.kind {
        TunnelKind::Ipip => {
            // The inner packet's TTL and DF, as with the fallback device that Calico uses.
            let add = format!("link add {name} mtu {mtu} type ipip local {local} ttl inherit nopmtudisc");
            ("IP-in-IP", add)
        }
        TunnelKind::Vxlan { vni, port } => {
            for other in others {
                let (mac, via) = (Cni::vtep_mac(&other.name), other.tunnel_address());
                ip.push(format!("neigh add {via} lladdr {mac} dev {name} nud permanent"));
                bridge.push(format!("fdb add {mac} dev {name} dst {} self permanent", other.address));
            }
            let mac = Cni::vtep_mac(&node.name);
            let add = format!(
                "link add {name} address {mac} mtu {mtu} type vxlan id {vni} local {local} dev {nic} dstport {port} nolearning"
            );
            ("VXLAN", add)
        }
        TunnelKind::Wireguard { port, mark, table, priority } => {
            ip.push(format!("rule add not fwmark {mark:#x}/{mark:#x} table {table} priority {priority}"));
            // What is here is looked up further down: else a borrowed address would be led to its block's node, and back.
            let throw = |here: Ipv4Net| format!("route add throw {here}{} table {table}", protocol(profile));
            ip.extend(allowed(node).into_iter().map(throw));
            let peer = |other: &Node| Peer {
                namespace: namespace(lab, &other.host),
                address: other.address,
                allowed: allowed(other),
            };
            wireguard = Some(WireGuard { port, mark, peers: others.map(peer).collect() });
            ("WireGuard", format!("link add {name} mtu {mtu} type wireguard"))
        }
    };
    Tunnel { name: name.clone(), what, add, wireguard, ip, bridge }
}

/// The addresses behind a node.
fn allowed(node: &Node) -> Vec<Ipv4Net> {
    let borrowed = node.pods.iter().filter(|pod| pod.borrowed).map(|pod| Ipv4Net::from(pod.address));
    std::iter::once(node.block()).chain(borrowed).collect()
}

/// Who made a route, as `ip route` takes it.
fn protocol(profile: &Profile) -> String {
    match &profile.cni {
        Cni::Calico { route_protocol, .. } => format!(" proto {route_protocol}"),
        Cni::Kindnet | Cni::Flannel { .. } => String::new(),
    }
}

/// The route through the tunnel to addresses behind `other`.
pub(super) fn route(profile: &Profile, tunnel: &profile::Tunnel, other: &Node, destination: Ipv4Net) -> String {
    let name = &tunnel.name;
    let protocol = protocol(profile);
    match tunnel.kind {
        TunnelKind::Ipip => format!("route add {destination} via {} dev {name}{protocol} onlink", other.address),
        TunnelKind::Vxlan { .. } => {
            format!("route add {destination} via {} dev {name}{protocol} onlink", other.tunnel_address())
        }
        TunnelKind::Wireguard { table, .. } => {
            format!("route add {destination} dev {name}{protocol} scope link table {table}")
        }
    }
}
