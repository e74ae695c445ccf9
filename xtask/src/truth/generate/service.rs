//! Kubernetes services, and traces to them.

use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{fault, pick, ports};
use crate::lab::plant::Plant;
use crate::lab::profile::{Cni, Pod, Profile};
use crate::lab::service::{Mode, Protocol, Service, SessionAffinity, TrafficPolicy};
use crate::truth::network::{Ask, CLOSED_PORT, Probe, Target};

/// The first one's cluster IP, in nobody's network.
pub(super) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// Its draws are its own, so that a seed's other ones stay what they were without services.
const OTHER_DRAWS: u64 = 0x5e41_11ce;

/// Now and then a service, which a pod or a node asks for, perhaps one of its own backends; and perhaps a fault between the two.
/// With kube-proxy's iptables mode perhaps a service without endpoints as well.
pub(super) fn add(seed: u64, profile: &Profile, asks: &mut Vec<Ask>, plants: &mut Vec<Plant>) {
    let mut rng = StdRng::seed_from_u64(seed ^ OTHER_DRAWS);
    // Behind kube-proxy's rules a chain's policy is not for what they accept: that is not modelled.
    let policy = plants.iter().any(|plant| matches!(plant, Plant::ChainPolicy { .. }));
    if policy || plants.iter().any(|plant| unbridged(profile, plant)) || !rng.random_bool(0.5) {
        return;
    }
    let pods: Vec<&Pod> = profile.nodes.iter().flat_map(|node| &node.pods).collect();
    let to = pick(&mut rng, &pods);
    let from = match rng.random_bool(0.25) {
        true => pick(&mut rng, &profile.nodes).host,
        false => pick(&mut rng, &pods).name.clone(),
    };
    let mode = pick(&mut rng, &[Mode::Iptables, Mode::Nftables]);
    let mut service = service("one", CLUSTER_IP, vec![to.name.clone()]);
    service.target_port = rng.random_bool(0.5).then_some(CLOSED_PORT - 1);
    if rng.random_bool(0.3) {
        let others = pods.iter().filter(|pod| pod.name != to.name).take(rng.random_range(1..=2));
        service.endpoints.extend(others.map(|pod| pod.name.clone()));
    }
    let ask = |to: Target| Ask { from: from.clone(), to, probe: Probe::Tcp, port: CLOSED_PORT, size: None };
    asks.push(ask(Target::Address(CLUSTER_IP)));
    if rng.random_bool(0.4) {
        service.node_port = Some(CLOSED_PORT);
        service.external_traffic_policy = pick(&mut rng, &[TrafficPolicy::Cluster, TrafficPolicy::Local]);
        let node = pick(&mut rng, &profile.nodes);
        // What a node asks of itself is not modelled.
        asks.extend((node.host != from).then(|| ask(Target::Host(node.host.clone()))));
    }
    let mut services = vec![service];
    if mode == Mode::Iptables && rng.random_bool(0.4) {
        let nobodys = Ipv4Addr::from(u32::from(CLUSTER_IP) + 1);
        services.push(self::service("none", nobodys, Vec::new()));
        asks.push(ask(Target::Address(nobodys)));
    }
    if from != to.name && rng.random_bool(0.5) {
        let mut more = Vec::new();
        fault::add(&mut rng, profile, &[ask(Target::Host(to.name.clone()))], &mut more);
        more.retain(|plant| !conflicts(plant, plants) && !unbridged(profile, plant));
        plants.extend(more);
    }
    ports::add(seed, profile, &mut services, asks);
    plants.insert(0, Plant::Services { mode, services });
}

/// What a bridge's DNAT leads to another of its ports, some kernels forward without that, and some do not
/// (`br_nf_pre_routing_finish`).
fn unbridged(profile: &Profile, plant: &Plant) -> bool {
    matches!(profile.cni, Cni::Flannel { .. })
        && matches!(plant, Plant::Sysctl { name, .. } if name == "net.ipv4.ip_forward")
}

/// Whether one of the kind stands already, or it would be an answer to more than one question.
fn conflicts(plant: &Plant, plants: &[Plant]) -> bool {
    let kind = std::mem::discriminant(plant);
    matches!(plant, Plant::ChainPolicy { .. } | Plant::Unresolved { .. })
        || plants.iter().any(|other| std::mem::discriminant(other) == kind)
}

/// Of a port that nobody listens on: the backend itself refuses.
pub(super) fn service(name: &str, cluster_ip: Ipv4Addr, endpoints: Vec<String>) -> Service {
    Service {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        cluster_ip,
        port: CLOSED_PORT,
        port_name: None,
        protocol: Protocol::Tcp,
        target_port: None,
        node_port: None,
        load_balancer_ips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        external_ips: Vec::new(),
        announced_by: None,
        external_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: SessionAffinity::None,
        endpoints,
        not_ready: Vec::new(),
    }
}
