//! Networks from seeds: the same seed makes the same network.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::network::{Ask, CLOSED_PORT, Network, Probe, Target};
use crate::lab::plant::{Iptables, Plant};
use crate::lab::profile::{
    Cni, IdleBridge, Node, Outside, Pair, Pod, Profile, Reach, Rules, Subnet, Tunnel, TunnelKind,
};

mod fault;
mod ports;
mod service;

/// Faults at once, at most, and traces in each network.
const FAULTS: usize = 2;
const ASKS: usize = 4;
/// Answer on the Internet, each lab.
const INTERNET: [Ipv4Addr; 2] = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(142, 250, 65, 228)];

/// Nobody's address.
const FRONT: Ipv4Addr = Ipv4Addr::new(198, 19, 7, 7);

/// How the pods of two nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Calico,
    CalicoVxlan,
    CalicoIpip,
    Kindnet,
    Flannel,
}

/// The network of a seed. `ipip`: whether this kernel can make IPIP tunnels.
pub(crate) fn network(seed: u64, ipip: bool) -> Network {
    let mut rng = StdRng::seed_from_u64(seed);
    let profile = profile(&mut rng, ipip);
    let mut asks: Vec<Ask> = (0..ASKS).map(|_| ask(&mut rng, &profile)).collect();
    let mut plants = Vec::new();
    if rng.random_bool(0.25) {
        plants.extend(front(&mut rng, &profile, &mut asks));
    }
    // One alone: what its source learns of the way's MTU is not for the others.
    if asks[0].probe == Probe::Ping && rng.random_bool(0.3) {
        asks[0].size = Some(1200);
    }
    for _ in 0..rng.random_range(0..=FAULTS) {
        fault::add(&mut rng, &profile, &asks, &mut plants);
    }
    service::add(seed, &profile, &mut asks, &mut plants);
    Network { seed, profile, plants, asks }
}

fn pick<T: Clone>(rng: &mut StdRng, from: &[T]) -> T {
    from.choose(rng).expect("something to choose from").clone()
}

fn profile(rng: &mut StdRng, ipip: bool) -> Profile {
    let kinds = [Kind::Calico, Kind::CalicoVxlan, Kind::Kindnet, Kind::Flannel, Kind::CalicoIpip];
    let kind = pick(rng, &kinds[..if ipip { 5 } else { 4 }]);
    let nic_mtu = pick(rng, &[1500, 9001, 8951, 1460]);
    let (tunnel, overhead) = tunnel(rng, kind);
    let subnet = Ipv4Net::new_assert(Ipv4Addr::new(172, rng.random_range(16..31), 0, 0), pick(rng, &[16, 20, 24]));
    let far = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 0, 0), 20);
    let crosses = tunnel.as_ref().is_some_and(|tunnel| tunnel.reach == Reach::CrossSubnet);
    let ten = Ipv4Addr::new(10, rng.random(), 0, 0);
    let pool = pick(rng, &[ten, Ipv4Addr::new(192, 168, 0, 0), Ipv4Addr::new(100, 96, 0, 0)]);
    let pool = Ipv4Net::new_assert(pool, 16);
    let nodes = rng.random_range(if crosses { 3 } else { 1 }..=4);
    let externals = rng.random_bool(0.5);
    let mut profile = Profile {
        nic: pick(rng, &["eth0", "ens5", "ens160", "enp1s0"]).to_owned(),
        nic_mtu,
        stack: None,
        pair: Pair::Veth,
        attached: None,
        subnet,
        gateway: host_of(subnet, 1),
        far: if crosses { vec![Subnet { subnet: far, gateway: host_of(far, 1) }] } else { Vec::new() },
        pod_mtu: nic_mtu - overhead,
        pool,
        cni: cni(rng, kind),
        tunnel,
        idle_bridge: rng.random_bool(0.2).then(|| IdleBridge {
            name: "docker0".to_owned(),
            address: Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 1), 16),
        }),
        ipv6: None,
        kubernetes_service: Ipv4Addr::new(198, 19, 0, 1),
        kubernetes_version: "v1.33.0".to_owned(),
        outside: Outside {
            address: Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 10), 24),
            router: Ipv4Addr::new(203, 0, 113, 1),
            masquerade: !externals,
            internet: INTERNET.to_vec(),
        },
        nodes: Vec::new(),
    };
    for number in 1..=nodes {
        let home = if crosses && number == nodes { far } else { subnet };
        let node = node(rng, &profile, kind, number, home, externals);
        profile.nodes.push(node);
    }
    lend(rng, kind, &mut profile);
    profile
}

fn host_of(subnet: Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + number)
}

/// With what it takes from the MTU, bytes.
fn tunnel(rng: &mut StdRng, kind: Kind) -> (Option<Tunnel>, u32) {
    let reach = if kind != Kind::Flannel && rng.random_bool(0.5) { Reach::CrossSubnet } else { Reach::Always };
    let of = |name: &str, kind| Some(Tunnel { name: name.to_owned(), reach, kind });
    match kind {
        Kind::Calico | Kind::Kindnet => (None, 0),
        Kind::CalicoIpip => (of("tunl0", TunnelKind::Ipip), 20),
        Kind::CalicoVxlan => (of("vxlan.calico", TunnelKind::Vxlan { vni: 4096, port: 4789 }), 50),
        Kind::Flannel => (of("flannel.1", TunnelKind::Vxlan { vni: 1, port: 8472 }), 50),
    }
}

fn cni(rng: &mut StdRng, kind: Kind) -> Cni {
    match kind {
        Kind::Kindnet => Cni::Kindnet,
        Kind::Flannel => Cni::Flannel { bridge: "cni0".to_owned() },
        Kind::Calico | Kind::CalicoVxlan | Kind::CalicoIpip => Cni::Calico {
            route_protocol: pick(rng, &[12, 80]),
            route_onlink: rng.random(),
            rules: pick(rng, &[Rules::Iptables, Rules::Nftables]),
        },
    }
}

/// Blocks are a /26 in a /24 of the pool for each node.
fn node(rng: &mut StdRng, profile: &Profile, kind: Kind, number: u8, home: Ipv4Net, externals: bool) -> Node {
    let third = |third: u8| {
        let [a, b, ..] = profile.pool.network().octets();
        Ipv4Addr::new(a, b, third, 0)
    };
    let pod_cidr = Ipv4Net::new_assert(third(number), 24);
    let block = match kind {
        Kind::Kindnet | Kind::Flannel => None,
        _ => {
            let start = u32::from(third(number * 16 + rng.random_range(0..16))) + 64 * rng.random_range(0..4);
            Some(Ipv4Net::new_assert(Ipv4Addr::from(start), 26))
        }
    };
    let mut node = Node {
        host: format!("n{number}"),
        name: pick(rng, &["worker-N", "ip-172-20-0-N.ec2.internal", "kind-workerN"]).replace('N', &number.to_string()),
        control_plane: false,
        address: host_of(home, u32::from(number) * 8 + rng.random_range(2..8)),
        address6: None,
        external: externals.then(|| Ipv4Addr::new(203, 0, 113, 100 + number)),
        mac: None,
        pod_cidr,
        pod_cidr6: None,
        block,
        block6: None,
        pods: Vec::new(),
    };
    let first = rng.random_range(2..20);
    for count in 0..rng.random_range(1..=3) {
        node.pods.push(Pod {
            name: format!("p{number}{}", char::from(b'a' + count)),
            namespace: pick(rng, &["default", "shop", "kube-system"]).to_owned(),
            address: host_of(node.block(), first + u32::from(count) * rng.random_range(1..15)),
            address6: None,
            borrowed: false,
            image: "busybox".to_owned(),
            sidecars: Vec::new(),
            host_interface: None,
            host_ifindex: rng.random_bool(0.3).then(|| 100 + u32::from(count) * 10 + u32::from(number)),
            pod_ifindex: None,
        });
    }
    // Two of them may have got the same.
    node.pods.dedup_by_key(|pod| pod.address);
    node
}

/// Now and then a pod of the last node has an address of the first one's block.
fn lend(rng: &mut StdRng, kind: Kind, profile: &mut Profile) {
    if matches!(kind, Kind::Kindnet | Kind::Flannel) || profile.nodes.len() < 2 || !rng.random_bool(0.2) {
        return;
    }
    let address = host_of(profile.nodes[0].block(), 62);
    if let Some(pod) = profile.nodes.last_mut().and_then(|node| node.pods.first_mut()) {
        (pod.address, pod.borrowed) = (address, true);
    }
}

/// One more of the traces is to an address that a node gives way to a pod's.
fn front(rng: &mut StdRng, profile: &Profile, asks: &mut Vec<Ask>) -> Option<Plant> {
    let pods = |node: &Node| node.pods.iter().map(|pod| (node.host.clone(), pod.clone())).collect::<Vec<_>>();
    let pods: Vec<(String, Pod)> = profile.nodes.iter().flat_map(pods).collect();
    let ((at, from), (_, to)) = (pick(rng, &pods), pick(rng, &pods));
    if from.name == to.name {
        return None;
    }
    let probe = pick(rng, &[Probe::Ping, Probe::Tcp, Probe::Udp]);
    asks.push(Ask { from: from.name, to: Target::Address(FRONT), probe, port: CLOSED_PORT, size: None });
    let rule = format!("-t nat -I PREROUTING -d {FRONT} -j DNAT --to-destination {}", to.address);
    Some(Plant::Rule { at, tool: Iptables::Nft, rule })
}

fn ask(rng: &mut StdRng, profile: &Profile) -> Ask {
    let pods: Vec<&Pod> = profile.nodes.iter().flat_map(|node| &node.pods).collect();
    let from = pick(rng, &pods);
    let home = profile.nodes.iter().find(|node| node.pods.iter().any(|pod| pod.name == from.name));
    let home = home.expect("it is of a node");
    let node = pick(rng, &profile.nodes);
    let others: Vec<&&Pod> = pods.iter().filter(|pod| pod.name != from.name).collect();
    let probe = pick(rng, &[Probe::Ping, Probe::Ping, Probe::Ping, Probe::Tcp, Probe::Udp]);
    let to = Target::Host(node.host.clone());
    let mut ask = Ask { from: from.name.clone(), to, probe, port: CLOSED_PORT, size: None };
    match rng.random_range(0..10) {
        0 => {}
        1 => ask.to = Target::Address(pick(rng, &INTERNET)),
        // Nobody has it.
        2 => ask.to = Target::Address(host_of(node.block(), 61)),
        3 if !node.pods.is_empty() && node.host != home.host => {
            let to = pick(rng, &node.pods);
            (ask.from, ask.to) = (home.host.clone(), Target::Host(to.name));
        }
        _ if others.is_empty() => ask.to = Target::Address(INTERNET[0]),
        _ => ask.to = Target::Host(pick(rng, &others).name.clone()),
    }
    if matches!(ask.to, Target::Address(address) if INTERNET.contains(&address)) {
        ask.probe = Probe::Ping;
    }
    ask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_network_that_a_lab_can_be() {
        for seed in 0..500 {
            let made = network(seed, true);
            made.profile.check().unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
            assert_eq!(format!("{made:?}"), format!("{:?}", network(seed, true)));
        }
    }
}
