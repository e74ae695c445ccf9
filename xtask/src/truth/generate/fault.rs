//! Faults that have to do with what is traced.

use ipnet::Ipv4Net;
use rand::Rng;
use rand::rngs::StdRng;
use std::net::Ipv4Addr;

use super::pick;
use crate::lab::plant::{Echo, Iptables, Plant, Way};
use crate::lab::profile::{Cni, Node, Pod, Profile};
use crate::truth::network::{Ask, Target};

/// Two nodes and two addresses that a trace is about.
struct Ends<'a> {
    from: &'a Node,
    /// Where it leads to; the first one for what is out of the cluster.
    to: &'a Node,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    pods: Vec<&'a Pod>,
}

fn ends<'a>(profile: &'a Profile, ask: &Ask) -> Ends<'a> {
    let find = |host: &str| -> Option<(&'a Node, Option<&'a Pod>)> {
        profile.nodes.iter().find_map(|node| match node.pods.iter().find(|pod| pod.name == host) {
            Some(pod) => Some((node, Some(pod))),
            None => (node.host == host).then_some((node, None)),
        })
    };
    let (from, source) = find(&ask.from).expect("an ask begins at a host");
    let address = |node: &Node, pod: Option<&Pod>| pod.map_or(node.address, |pod| pod.address);
    let (to, target, dst) = match &ask.to {
        Target::Host(host) => {
            let (node, pod) = find(host).expect("an ask leads to a host");
            (node, pod, address(node, pod))
        }
        Target::Address(dst) => {
            let owner = profile.nodes.iter().find(|node| node.block().contains(dst));
            (owner.unwrap_or(&profile.nodes[0]), None, *dst)
        }
    };
    let pods = source.into_iter().chain(target).collect();
    Ends { from, to, src: address(from, source), dst, pods }
}

/// One more fault, if the one that comes up fits the network.
pub(super) fn add(rng: &mut StdRng, profile: &Profile, asks: &[Ask], plants: &mut Vec<Plant>) {
    let ask = pick(rng, asks);
    let Ends { from, to, src, dst, pods } = ends(profile, &ask);
    let at = pick(rng, &[from, to]).host.clone();
    let cluster = |address: Ipv4Addr| profile.pool.contains(&address);
    let plant = match rng.random_range(0..15) {
        0 => rule(rng, at, src, dst),
        1 => rule(rng, at, dst, src),
        2 if matches!(profile.cni, Cni::Calico { .. }) && !pods.is_empty() => {
            Some(Plant::PolicyDrop { pod: pick(rng, &pods).name.clone(), way: pick(rng, &[Way::To, Way::From]) })
        }
        3 => {
            let kind = pick(rng, &["blackhole", "unreachable", "prohibit"]);
            // One address of the pool that has a route of its own already would have two.
            let narrow = Ipv4Net::new_assert(dst, 32);
            (cluster(dst) && from.host != to.host)
                .then(|| Plant::Route { at: from.host.clone(), route: format!("{kind} {narrow}") })
        }
        4 => (from.host != to.host && cluster(dst) && profile.tunnel.is_none())
            .then(|| Plant::NoRoute { at: from.host.clone(), route: to.block().to_string() }),
        5 => detour(rng, profile, from, to, dst),
        6 => Some(Plant::WireDrop {
            node: at,
            way: pick(rng, &[Way::To, Way::From]),
            icmp: pick(rng, &[Echo::EchoRequest, Echo::EchoReply]),
        }),
        7 => Some(Plant::Sysctl { at, name: "net.ipv4.ip_forward".to_owned(), value: "0".to_owned() }),
        8 => Some(Plant::Sysctl {
            at: ask.from.clone(),
            name: "net.ipv4.ip_default_ttl".to_owned(),
            value: rng.random_range(1..=4).to_string(),
        }),
        9 => pods
            .last()
            .map(|pod| Plant::LinkDown { at: to.host.clone(), interface: profile.host_interface(pod) })
            .filter(|_| pods.len() == 2 && from.host != to.host),
        // It sends no question itself either, but to its own link-layer address.
        10 => (pods.len() == 2 && from.host != to.host && asks.iter().all(|ask| ask.from != pods[1].name))
            .then(|| Plant::Unresolved { pod: pods[1].name.clone() }),
        11 => Some(nat(at, format!("-s {src} -d {dst} -j MASQUERADE"), "POSTROUTING")),
        12 if matches!(profile.cni, Cni::Kindnet) => Some(Plant::ChainPolicy { at, chain: "FORWARD".to_owned() }),
        13 => {
            let back = detour(rng, profile, from, to, dst);
            // What it leads over sends it back.
            if let Some(Plant::Route { route, .. }) = &back {
                let via = profile.nodes.iter().find(|node| route.contains(&format!(" {} ", node.address)));
                let there = via.map(|via| Plant::Route {
                    at: via.host.clone(),
                    route: format!("{dst}/32 via {} dev {}", from.address, profile.nic),
                });
                plants.extend(there.filter(|plant| !stands(profile, plant, plants)).into_iter().collect::<Vec<_>>());
            }
            back
        }
        14 if ask.size.is_some() && pods.len() == 2 => {
            Some(Plant::Mtu { at: to.host.clone(), interface: profile.host_interface(pods[1]), mtu: 1000 })
        }
        _ => None,
    };
    if let Some(plant) = plant.filter(|plant| !stands(profile, plant, plants)) {
        plants.push(plant);
    }
}

/// It is there already, or another route to the same place, which the kernel would refuse.
fn stands(profile: &Profile, plant: &Plant, plants: &[Plant]) -> bool {
    let to = |plant: &Plant| match plant {
        Plant::Route { at, route } => {
            let to = route.split(' ').find(|word| word.contains('/')).map(str::to_owned);
            to.map(|to| (at.clone(), to))
        }
        _ => None,
    };
    let Some(own) = to(plant) else { return plants.contains(plant) };
    let mut pods = profile.nodes.iter().flat_map(|node| &node.pods);
    // Each node has a route to an address that is lent.
    pods.any(|pod| pod.borrowed && own.1 == format!("{}/32", pod.address))
        || plants.iter().any(|other| to(other).as_ref() == Some(&own))
}

fn rule(rng: &mut StdRng, at: String, src: Ipv4Addr, dst: Ipv4Addr) -> Option<Plant> {
    let target = pick(rng, &["DROP", "DROP", "REJECT"]);
    let place = match target {
        "DROP" => pick(
            rng,
            &["-t raw -I PREROUTING", "-t mangle -I FORWARD", "-I FORWARD", "-I INPUT", "-t mangle -I POSTROUTING"],
        ),
        _ => pick(rng, &["-I FORWARD", "-I INPUT"]),
    };
    let ends = match rng.random_range(0..3) {
        0 => format!("-s {src}"),
        1 => format!("-d {dst}"),
        _ => format!("-s {src} -d {dst}"),
    };
    Some(Plant::Rule { at, tool: Iptables::Nft, rule: format!("{place} {ends} -j {target}") })
}

fn nat(at: String, rule: String, chain: &str) -> Plant {
    Plant::Rule { at, tool: Iptables::Nft, rule: format!("-t nat -I {chain} {rule}") }
}

/// By a third node, or back again: a loop.
fn detour(rng: &mut StdRng, profile: &Profile, from: &Node, to: &Node, dst: Ipv4Addr) -> Option<Plant> {
    let near: Vec<&Node> = profile.nodes.iter().filter(|node| profile.subnet.contains(&node.address)).collect();
    let cluster = profile.pool.contains(&dst);
    if !cluster || from.host == to.host || !near.iter().any(|node| node.host == from.host) {
        return None;
    }
    let others: Vec<&&Node> = near.iter().filter(|node| node.host != from.host && node.host != to.host).collect();
    let via = if others.is_empty() { return None } else { pick(rng, &others) };
    let nic = &profile.nic;
    Some(Plant::Route { at: from.host.clone(), route: format!("{dst}/32 via {} dev {nic}", via.address) })
}
