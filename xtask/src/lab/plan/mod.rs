//! From a profile to the commands that build it. Pure: nothing here touches the system.

use std::fmt::Display;

use serde::Serialize;

use super::profile::{CLIENT, CLIENT6, Cni, GATEWAY, INTERNET, Pair, Profile, Subnet, WIRE};
use super::rules::{self, Rules};

mod links;
mod node;
mod pod;
mod tunnel;

pub(crate) use links::Required;
pub(crate) use tunnel::{Peer, Tunnel, WireGuard};

/// The bridge in the wire's namespace.
const BRIDGE: &str = "br0";
/// The gateway's interface to the wire, and to the outside.
const INSIDE: &str = "eth0";
const OUTSIDE: &str = "eth1";
/// MTU beyond the gateway, bytes.
const OUTSIDE_MTU: u32 = 1500;
/// MAC address of the node's end of each of Calico's veth pairs.
const CALICO_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// Everything that `up` does, as data, so that a lab of another definition is told by comparing.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Kinds of links without which nothing is built.
    pub(crate) required: Vec<Required>,
    /// `ip -batch` lines, run outside: they make the namespaces.
    pub(crate) outside: Vec<String>,
    /// `ip -batch` lines, run in an empty namespace: they make the links. Before 6.14 the kernel refuses a new link the
    /// index of one where the request comes from, wherever the new one is to go (`__rtnl_newlink` in net/core/rtnetlink.c).
    pub(crate) links: Vec<String>,
    /// What is set up in each namespace.
    pub(crate) namespaces: Vec<Namespace>,
}

/// One network namespace: applied in the order of the fields.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) sysctls: Vec<Sysctl>,
    /// `ip -batch` lines, run inside.
    pub(crate) ip: Vec<String>,
    pub(crate) tunnel: Option<Tunnel>,
    pub(crate) rules: Rules,
    /// Links that are up and never get a carrier.
    pub(crate) idle: Vec<String>,
}

/// A value below `/proc/sys/net`.
#[derive(Debug, Serialize)]
pub(crate) struct Sysctl {
    pub(crate) path: String,
    pub(crate) value: &'static str,
    /// Whether a kernel may lack it.
    pub(crate) optional: bool,
}

/// Name of a lab's network namespace for a host.
pub(crate) fn namespace(lab: &str, host: &str) -> String {
    format!("{lab}-{host}")
}

impl Plan {
    pub(crate) fn new(lab: &str, profile: &Profile) -> Plan {
        let outside = profile.hosts().map(|host| format!("netns add {}", namespace(lab, host))).collect();
        let mut links = Vec::new();
        let end = |host: &str, name: &str, mtu: u32| Link {
            namespace: namespace(lab, host),
            name: name.to_owned(),
            mtu,
            index: None,
            mac: None,
        };
        for node in &profile.nodes {
            for (i, (port, wire)) in profile.ports(node).iter().enumerate() {
                let mac = node.mac.clone().filter(|_| i == 0);
                let nic = Link { mac, ..end(&node.host, port, profile.nic_mtu) };
                links.push(nic.paired_with(&end(WIRE, wire, profile.nic_mtu), Pair::Veth));
            }
            for pod in &node.pods {
                let host_end = Link {
                    index: pod.host_ifindex,
                    // A netkit pair has no link-layer addresses.
                    mac: (matches!(profile.cni, Cni::Calico { .. }) && profile.pair == Pair::Veth)
                        .then(|| CALICO_MAC.to_owned()),
                    ..end(&node.host, &profile.host_interface(pod), profile.pod_mtu)
                };
                let pod_end = Link { index: pod.pod_ifindex, ..end(&pod.name, "eth0", profile.pod_mtu) };
                links.push(pod_end.paired_with(&host_end, profile.pair));
            }
        }
        let inside = end(GATEWAY, profile.gateway_port(), profile.nic_mtu);
        links.push(inside.paired_with(&end(WIRE, GATEWAY, profile.nic_mtu), Pair::Veth));
        links.push(end(INTERNET, "eth0", OUTSIDE_MTU).paired_with(&end(GATEWAY, OUTSIDE, OUTSIDE_MTU), Pair::Veth));

        let mut namespaces = vec![wire(lab, profile), gateway(lab, profile), internet(lab, profile)];
        for node in &profile.nodes {
            namespaces.push(node::set_up(lab, profile, node));
            namespaces.extend(node.pods.iter().map(|pod| pod::set_up(lab, profile, node, pod)));
        }
        Plan { required: links::required(profile), outside, links, namespaces }
    }
}

/// One end of a pair.
struct Link {
    namespace: String,
    name: String,
    mtu: u32,
    index: Option<u32>,
    mac: Option<String>,
}

impl Link {
    /// The line that makes both ends where they belong: neither is ever seen in the root namespace.
    fn paired_with(&self, peer: &Link, pair: Pair) -> String {
        format!("link add {} type {} peer {}", self.attributes(), pair.name(), peer.attributes())
    }

    fn attributes(&self) -> String {
        let Link { namespace, name, mtu, index, mac } = self;
        let mut text = format!("name {name} mtu {mtu}");
        if let Some(index) = index {
            text.push_str(&format!(" index {index}"));
        }
        if let Some(mac) = mac {
            text.push_str(&format!(" address {mac}"));
        }
        text.push_str(&format!(" netns {namespace}"));
        text
    }
}

fn required(path: impl Into<String>, value: &'static str) -> Sysctl {
    Sysctl { path: path.into(), value, optional: false }
}

fn optional(path: impl Into<String>, value: &'static str) -> Sysctl {
    Sysctl { path: path.into(), value, optional: true }
}

/// A new namespace takes some settings from the root namespace: say all that matter, so that every lab is alike.
/// No IPv6 unless asked for: its solicitations would be noise on every link.
fn base(lab: &str, host: &str, forwards: bool) -> Namespace {
    Namespace {
        name: namespace(lab, host),
        sysctls: vec![
            optional("ipv6/conf/all/disable_ipv6", "1"),
            optional("ipv6/conf/default/disable_ipv6", "1"),
            required("ipv4/ip_forward", if forwards { "1" } else { "0" }),
            // Else whether a refusal is answered depends on how many were refused just before. Not icmp_ratelimit: 0 there takes the
            // tokens of `ip_error` away, which it has in common with ICMP (inet_peer_xrlim_allow).
            required("ipv4/icmp_ratemask", "0"),
            required("ipv4/conf/all/rp_filter", "0"),
            required("ipv4/conf/default/rp_filter", "0"),
        ],
        ip: vec!["link set lo up".to_owned()],
        ..Namespace::default()
    }
}

impl Namespace {
    /// IPv6 on these links. Addresses are usable at once: nobody else has them.
    fn with_ipv6(&mut self, forwards: bool, links: &[&str]) {
        self.sysctls.retain(|sysctl| !sysctl.path.ends_with("/disable_ipv6"));
        let forwarding = if forwards { "1" } else { "0" };
        self.sysctls.push(required("ipv6/conf/all/disable_ipv6", "0"));
        self.sysctls.push(required("ipv6/conf/all/forwarding", forwarding));
        self.sysctls.push(required("ipv6/conf/all/accept_dad", "0"));
        for link in links {
            for (name, value) in
                [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")]
            {
                self.sysctls.push(required(format!("ipv6/conf/{link}/{name}"), value));
            }
        }
    }
}

fn wire(lab: &str, profile: &Profile) -> Namespace {
    let mut wire = base(lab, WIRE, false);
    // A wire runs no firewall; a container host may have br_netfilter loaded.
    wire.sysctls.push(optional("bridge/bridge-nf-call-iptables", "0"));
    wire.sysctls.push(optional("bridge/bridge-nf-call-arptables", "0"));
    wire.ip.push(format!(
        "link add {BRIDGE} mtu {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        profile.nic_mtu
    ));
    wire.ip.push(format!("link set {BRIDGE} up"));
    let ports = profile.nodes.iter().flat_map(|node| profile.ports(node)).map(|(_, wire)| wire);
    for port in ports.chain([GATEWAY.to_owned()]) {
        wire.ip.push(format!("link set {port} master {BRIDGE} up"));
    }
    wire
}

fn gateway(lab: &str, profile: &Profile) -> Namespace {
    let mut gateway = base(lab, GATEWAY, true);
    links::gateway(&mut gateway, profile);
    // Nodes of two subnets share its inner link: it forwards without telling them of a shorter way.
    // Settings are written before a VLAN is made, which takes the default.
    let inside = if profile.gateway_port() == INSIDE { INSIDE } else { "default" };
    for link in ["all", inside] {
        gateway.sysctls.push(required(format!("ipv4/conf/{link}/send_redirects"), "0"));
    }
    for subnet in profile.subnets() {
        gateway.ip.push(format!("addr add {}/{} dev {INSIDE}", subnet.gateway, subnet.subnet.prefix_len()));
    }
    gateway.ip.push(format!("addr add {} dev {OUTSIDE}", profile.outside.address));
    for external in profile.nodes.iter().filter_map(|node| node.external) {
        gateway.ip.push(format!("addr add {external}/32 dev {OUTSIDE}"));
    }
    gateway.ip.extend([
        format!("link set {INSIDE} up"),
        format!("link set {OUTSIDE} up"),
        format!("route add default via {} dev {OUTSIDE}", profile.outside.router),
    ]);
    if let Some(ipv6) = &profile.ipv6 {
        gateway.with_ipv6(true, &[INSIDE, OUTSIDE]);
        gateway.ip.extend([
            format!("addr add {}/{} dev {INSIDE} nodad", ipv6.gateway, ipv6.subnet.prefix_len()),
            format!("addr add {} dev {OUTSIDE} nodad", ipv6.outside),
            format!("route add default via {} dev {OUTSIDE}", ipv6.router),
        ]);
    }
    gateway.rules = rules::gateway(profile, OUTSIDE);
    gateway
}

fn internet(lab: &str, profile: &Profile) -> Namespace {
    let mut internet = base(lab, INTERNET, false);
    internet.ip.push(format!("addr add {}/{} dev eth0", profile.outside.router, profile.outside.address.prefix_len()));
    for address in profile.outside.internet.iter().chain([&CLIENT]) {
        internet.ip.push(format!("addr add {address}/32 dev lo"));
    }
    if let Some(ipv6) = &profile.ipv6 {
        internet.with_ipv6(false, &["lo", "eth0"]);
        internet.ip.push(format!("addr add {}/{} dev eth0 nodad", ipv6.router, ipv6.outside.prefix_len()));
        let addresses = ipv6.internet.iter().chain([&CLIENT6]);
        internet.ip.extend(addresses.map(|address| format!("addr add {address}/128 dev lo nodad")));
    }
    internet.ip.push("link set eth0 up".to_owned());
    // Whoever comes in is let through by the gateway as he is: no translation on the way in.
    let via = profile.outside.address.addr();
    let inwards = profile.subnets().map(|Subnet { subnet, .. }| way_in(&subnet, &via, &CLIENT));
    internet.ip.extend(inwards);
    internet.ip.extend(profile.ipv6.iter().map(|ipv6| way_in(&ipv6.subnet, &ipv6.outside.addr(), &CLIENT6)));
    internet
}

/// The way of clients out there to what is behind the gateway.
pub(crate) fn way_in(destination: &dyn Display, gateway: &dyn Display, client: &dyn Display) -> String {
    format!("route add {destination} via {gateway} dev eth0 src {client}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(profile: &str) -> Plan {
        Plan::new("lab", &Profile::named(profile).unwrap())
    }

    fn namespace_of<'a>(plan: &'a Plan, name: &str) -> &'a Namespace {
        plan.namespaces.iter().find(|namespace| namespace.name == name).unwrap()
    }

    #[test]
    fn every_namespace_made_is_set_up_and_the_reverse() {
        for profile in super::super::profile::names() {
            let plan = plan(profile);
            let mut made: Vec<&str> = plan.outside.iter().filter_map(|line| line.strip_prefix("netns add ")).collect();
            let mut set_up: Vec<&str> = plan.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
            made.sort_unstable();
            set_up.sort_unstable();
            assert_eq!(made, set_up);
        }
    }

    #[test]
    fn documented_indexes_are_fixed() {
        let plan = plan("calico-bgp");
        let line = "link add name eth0 mtu 8981 index 4 netns lab-bb1 type veth \
                    peer name cali98fd8882b62 mtu 8981 index 22 address ee:ee:ee:ee:ee:ee netns lab-node1";
        assert!(plan.links.iter().any(|link| link == line), "{:#?}", plan.links);
    }

    #[test]
    fn routes_are_those_of_the_documentation() {
        let bgp = plan("calico-bgp");
        let node1 = namespace_of(&bgp, "lab-node1");
        for route in [
            "route add blackhole 100.115.37.64/26 proto 12",
            "route add 100.106.133.192/26 via 172.20.58.60 dev ens5 proto 12",
            "route add 100.104.132.0/26 via 172.20.62.7 dev ens5 proto 12",
            "route add 100.115.37.81/32 dev cali98fd8882b62 scope link",
        ] {
            assert!(node1.ip.iter().any(|line| line == route), "{route}: {:#?}", node1.ip);
        }
        let kind = plan("kind-calico");
        let worker = namespace_of(&kind, "lab-worker");
        let route = "route add 192.168.121.64/26 via 172.18.0.2 dev eth0 proto 80 onlink";
        assert!(worker.ip.iter().any(|line| line == route), "{:#?}", worker.ip);
    }

    #[test]
    fn devices_stand_on_each_other_in_order() {
        let bond = plan("calico-bond");
        let required: Vec<&str> = bond.required.iter().map(|required| required.kind).collect();
        assert_eq!(required, ["bond", "vlan"]);
        let node = namespace_of(&bond, "lab-worker1");
        let at = |start: &str| node.ip.iter().position(|line| line.starts_with(start)).unwrap();
        let order = [
            "link add bond0 ",
            "link set eno2 master bond0",
            "link add link bond0 name bond0.100 ",
            "addr add 10.0.0.11/24",
        ];
        assert!(order.map(at).is_sorted(), "{:#?}", node.ip);
        let ends = bond.links.iter().filter(|link| link.contains("netns lab-worker1 type veth peer name worker1"));
        assert_eq!(ends.count(), 2);
        let multus = plan("multus-macvlan");
        let node = namespace_of(&multus, "lab-node1");
        let line = "link add link ens5 name net1 netns lab-bb1 type macvlan mode bridge";
        assert!(node.ip.iter().any(|have| have == line), "{:#?}", node.ip);
    }

    #[test]
    fn only_a_profile_with_a_tunnel_has_tunnels() {
        let tunnels = |profile| plan(profile).namespaces.iter().filter(|n| n.tunnel.is_some()).count();
        assert_eq!((tunnels("calico-bgp"), tunnels("kind-calico")), (3, 0));
    }
}
