//! Kubernetes services, and traces to them.

use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{fault, pick};
use crate::lab::plant::Plant;
use crate::lab::profile::{Pod, Profile};
use crate::lab::service::{Mode, Protocol, Service, SessionAffinity, TrafficPolicy};
use crate::truth::network::{Ask, CLOSED_PORT, Probe, Target};

/// The first one's cluster IP, in nobody's network.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);
/// Its draws are its own, so that a seed's other ones stay what they were without services.
const OTHER_DRAWS: u64 = 0x5e41_11ce;

/// Now and then a service with one backend, which another pod asks for, and perhaps a fault between the two; with kube-proxy's
/// iptables mode perhaps a service without endpoints as well.
pub(super) fn add(seed: u64, profile: &Profile, asks: &mut Vec<Ask>, plants: &mut Vec<Plant>) {
    let mut rng = StdRng::seed_from_u64(seed ^ OTHER_DRAWS);
    // Behind kube-proxy's rules a chain's policy is not for what they accept: that is not modelled.
    let policy = plants.iter().any(|plant| matches!(plant, Plant::ChainPolicy { .. }));
    if policy || !rng.random_bool(0.5) {
        return;
    }
    let pods: Vec<&Pod> = profile.nodes.iter().flat_map(|node| &node.pods).collect();
    let (from, to) = (pick(&mut rng, &pods), pick(&mut rng, &pods));
    if from.name == to.name {
        return;
    }
    let mode = pick(&mut rng, &[Mode::Iptables, Mode::Nftables]);
    let mut services = vec![service("one", CLUSTER_IP, vec![to.name.clone()])];
    let ask = |to: Target| Ask { from: from.name.clone(), to, probe: Probe::Tcp, size: None };
    asks.push(ask(Target::Address(CLUSTER_IP)));
    if mode == Mode::Iptables && rng.random_bool(0.4) {
        let nobodys = Ipv4Addr::from(u32::from(CLUSTER_IP) + 1);
        services.push(service("none", nobodys, Vec::new()));
        asks.push(ask(Target::Address(nobodys)));
    }
    if rng.random_bool(0.5) {
        let mut more = Vec::new();
        fault::add(&mut rng, profile, &[ask(Target::Host(to.name.clone()))], &mut more);
        plants.extend(more.into_iter().filter(|plant| !conflicts(plant, plants)).collect::<Vec<_>>());
    }
    plants.insert(0, Plant::Services { mode, services });
}

/// Whether one of the kind stands already, or it would be an answer to more than one question.
fn conflicts(plant: &Plant, plants: &[Plant]) -> bool {
    let kind = std::mem::discriminant(plant);
    matches!(plant, Plant::ChainPolicy { .. } | Plant::Unresolved { .. })
        || plants.iter().any(|other| std::mem::discriminant(other) == kind)
}

/// Of a port that nobody listens on: the backend itself refuses.
fn service(name: &str, cluster_ip: Ipv4Addr, endpoints: Vec<String>) -> Service {
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
    }
}
