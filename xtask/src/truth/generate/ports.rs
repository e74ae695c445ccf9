//! A service of another kind, beside the first one: over UDP, of several ports, with endpoints that are not ready, asked from outside.

use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::pick;
use super::service::{CLUSTER_IP, service};
use crate::lab::profile::{INTERNET, Node, Pod, Profile};
use crate::lab::service::{Protocol, Service, TrafficPolicy};
use crate::truth::network::{Ask, CLOSED_PORT, Probe, Target};

/// Its draws are its own, so that a seed's other ones stay what they were without it.
const OTHER_DRAWS: u64 = 0x0b0e_9027;
/// Of its first port and of its second one.
const NODE_PORTS: [u16; 2] = [30_080, 30_081];
const PORTS: [u16; 2] = [CLOSED_PORT, CLOSED_PORT - 2];
/// Where nobody listens either.
const TARGETS: [u16; 2] = [CLOSED_PORT - 1, CLOSED_PORT - 3];

/// Mostly one more service, and who asks it.
pub(super) fn add(seed: u64, profile: &Profile, services: &mut Vec<Service>, asks: &mut Vec<Ask>) {
    let mut rng = StdRng::seed_from_u64(seed ^ OTHER_DRAWS);
    if !rng.random_bool(0.7) {
        return;
    }
    let pods: Vec<&Pod> = profile.nodes.iter().flat_map(|node| &node.pods).collect();
    let ports = ports(&mut rng, &pods);
    let from = match rng.random_bool(0.25) {
        true => pick(&mut rng, &profile.nodes).host,
        false => pick(&mut rng, &pods).name.clone(),
    };
    let ask = |from: &str, to: Target, port: u16, protocol: Protocol| {
        let probe = match protocol {
            Protocol::Tcp => Probe::Tcp,
            Protocol::Udp => Probe::Udp,
        };
        Ask { from: from.to_owned(), to, probe, port, size: None }
    };
    let cluster_ip = Target::Address(ports[0].cluster_ip);
    asks.extend(ports.iter().map(|service| ask(&from, cluster_ip.clone(), service.port, service.protocol)));
    let asked = pick(&mut rng, &ports);
    if let Some(port) = asked.node_port {
        let nodes: Vec<&Node> = profile.nodes.iter().filter(|node| node.host != from).collect();
        if !nodes.is_empty() && rng.random_bool(0.5) {
            // What a node asks of itself is not modelled.
            asks.push(ask(&from, Target::Host(pick(&mut rng, &nodes).host.clone()), port, asked.protocol));
        }
        if rng.random_bool(0.7) {
            asks.push(ask(INTERNET, Target::Host(pick(&mut rng, &profile.nodes).host), port, asked.protocol));
        }
    }
    services.extend(ports);
}

/// One service, by its ports.
fn ports(rng: &mut StdRng, pods: &[&Pod]) -> Vec<Service> {
    let mut ready = vec![pick(rng, pods).name.clone()];
    let mut others: Vec<String> = pods.iter().map(|pod| pod.name.clone()).filter(|pod| *pod != ready[0]).collect();
    if !others.is_empty() && rng.random_bool(0.3) {
        ready.push(others.remove(0));
    }
    let not_ready = match rng.random_range(0..10) {
        0 | 1 => std::mem::take(&mut ready),
        2..=4 => others,
        _ => Vec::new(),
    };
    let count = if rng.random_bool(0.6) { 2 } else { 1 };
    let (node_port, local) = (rng.random_bool(0.6), rng.random_bool(0.4));
    let port = |number: usize, rng: &mut StdRng| {
        let cluster_ip = Ipv4Addr::from(u32::from(CLUSTER_IP) + 2);
        Service {
            port: PORTS[number],
            port_name: (count > 1).then(|| format!("port{number}")),
            protocol: pick(rng, &[Protocol::Tcp, Protocol::Udp, Protocol::Udp]),
            target_port: rng.random_bool(0.7).then_some(TARGETS[number]),
            node_port: node_port.then_some(NODE_PORTS[number]),
            external_traffic_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            not_ready: not_ready.clone(),
            ..service("two", cluster_ip, ready.clone())
        }
    };
    (0..count).map(|number| port(number, rng)).collect()
}
