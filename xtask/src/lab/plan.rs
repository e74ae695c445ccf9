//! From a profile to the commands that build it. Pure: nothing here touches the system.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::profile::{GATEWAY, INTERNET, Node, Pod, Profile, WIRE};
use super::rules;

/// The bridge in the wire's namespace.
const BRIDGE: &str = "br0";
/// The gateway's interface to the wire, and to the outside.
const INSIDE: &str = "eth0";
const OUTSIDE: &str = "eth1";
/// MTU beyond the gateway, bytes.
const OUTSIDE_MTU: u32 = 1500;
/// The next hop Calico gives to every pod; no one has it, the node answers ARP for it.
const POD_GATEWAY: &str = "169.254.1.1";

/// Everything that `up` does, as data, so that a lab of another definition is told by comparing.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// `ip -batch` lines, run outside: they make the namespaces and the links between them.
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
    /// Input of `ipset restore`.
    pub(crate) sets: String,
    /// Input of `iptables-restore`.
    pub(crate) rules: String,
}

/// A value below `/proc/sys/net`.
#[derive(Debug, Serialize)]
pub(crate) struct Sysctl {
    pub(crate) path: String,
    pub(crate) value: &'static str,
    /// Whether a kernel may lack it.
    pub(crate) optional: bool,
}

/// An IP-in-IP device, which not every kernel can make.
#[derive(Debug, Serialize)]
pub(crate) struct Tunnel {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) local: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// Name of a lab's network namespace for a host.
pub(crate) fn namespace(lab: &str, host: &str) -> String {
    format!("{lab}-{host}")
}

impl Plan {
    pub(crate) fn new(lab: &str, profile: &Profile) -> Plan {
        let mut links: Vec<String> =
            profile.hosts().map(|host| format!("netns add {}", namespace(lab, host))).collect();
        let end = |host: &str, name: &str, mtu: u32| Link {
            namespace: namespace(lab, host),
            name: name.to_owned(),
            mtu,
            index: None,
            mac: None,
        };
        for node in &profile.nodes {
            let nic = Link { mac: node.mac.clone(), ..end(&node.host, &profile.nic, profile.nic_mtu) };
            links.push(nic.paired_with(&end(WIRE, &node.host, profile.nic_mtu)));
            for pod in &node.pods {
                let host_end = Link {
                    index: pod.host_ifindex,
                    mac: Some("ee:ee:ee:ee:ee:ee".to_owned()),
                    ..end(&node.host, &pod.host_interface(), profile.pod_mtu)
                };
                let pod_end = Link { index: pod.pod_ifindex, ..end(&pod.name, "eth0", profile.pod_mtu) };
                links.push(pod_end.paired_with(&host_end));
            }
        }
        links.push(end(GATEWAY, INSIDE, profile.nic_mtu).paired_with(&end(WIRE, GATEWAY, profile.nic_mtu)));
        links.push(end(INTERNET, "eth0", OUTSIDE_MTU).paired_with(&end(GATEWAY, OUTSIDE, OUTSIDE_MTU)));

        let mut namespaces = vec![wire(lab, profile), gateway(lab, profile), internet(lab, profile)];
        for node in &profile.nodes {
            namespaces.push(self::node(lab, profile, node));
            namespaces.extend(node.pods.iter().map(|pod| self::pod(lab, pod)));
        }
        Plan { links, namespaces }
    }
}

/// One end of a veth pair.
struct Link {
    namespace: String,
    name: String,
    mtu: u32,
    index: Option<u32>,
    mac: Option<String>,
}

impl Link {
    /// The line that makes both ends where they belong: neither is ever seen in the root namespace.
    fn paired_with(&self, peer: &Link) -> String {
        format!("link add {} type veth peer {}", self.attributes(), peer.attributes())
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
/// No IPv6: these clusters have none, and its solicitations would be noise on every link.
fn base(lab: &str, host: &str, forwards: bool) -> Namespace {
    Namespace {
        name: namespace(lab, host),
        sysctls: vec![
            optional("ipv6/conf/all/disable_ipv6", "1"),
            optional("ipv6/conf/default/disable_ipv6", "1"),
            required("ipv4/ip_forward", if forwards { "1" } else { "0" }),
            required("ipv4/conf/all/rp_filter", "0"),
            required("ipv4/conf/default/rp_filter", "0"),
        ],
        ip: vec!["link set lo up".to_owned()],
        ..Namespace::default()
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
    let ports = profile.nodes.iter().map(|node| node.host.as_str());
    for port in ports.chain([GATEWAY]) {
        wire.ip.push(format!("link set {port} master {BRIDGE} up"));
    }
    wire
}

fn gateway(lab: &str, profile: &Profile) -> Namespace {
    let mut gateway = base(lab, GATEWAY, true);
    gateway.ip.extend([
        format!("addr add {}/{} dev {INSIDE}", profile.gateway, profile.subnet.prefix_len()),
        format!("addr add {} dev {OUTSIDE}", profile.outside.address),
    ]);
    for external in profile.nodes.iter().filter_map(|node| node.external) {
        gateway.ip.push(format!("addr add {external}/32 dev {OUTSIDE}"));
    }
    gateway.ip.extend([
        format!("link set {INSIDE} up"),
        format!("link set {OUTSIDE} up"),
        format!("route add default via {} dev {OUTSIDE}", profile.outside.router),
    ]);
    gateway.rules = rules::gateway_rules(profile, OUTSIDE);
    gateway
}

fn internet(lab: &str, profile: &Profile) -> Namespace {
    let mut internet = base(lab, INTERNET, false);
    internet.ip.push(format!("addr add {}/{} dev eth0", profile.outside.router, profile.outside.address.prefix_len()));
    for address in &profile.outside.internet {
        internet.ip.push(format!("addr add {address}/32 dev lo"));
    }
    internet.ip.push("link set eth0 up".to_owned());
    internet
}

fn node(lab: &str, profile: &Profile, node: &Node) -> Namespace {
    let Profile { nic, route_protocol, .. } = profile;
    let mut namespace = base(lab, &node.host, true);
    namespace.sysctls.push(required(format!("ipv4/conf/{nic}/rp_filter"), "2"));
    namespace.ip.extend([
        format!("addr add {}/{} brd + dev {nic}", node.address, profile.subnet.prefix_len()),
        format!("link set {nic} up"),
        format!("route add default via {} dev {nic}", profile.gateway),
        format!("route add blackhole {} proto {route_protocol}", node.block),
    ]);
    for pod in &node.pods {
        let interface = pod.host_interface();
        namespace.sysctls.extend(host_end_sysctls(&interface));
        namespace.ip.push(format!("link set {interface} up"));
        namespace.ip.push(format!("route add {}/32 dev {interface} scope link", pod.address));
    }
    let onlink = if profile.route_onlink { " onlink" } else { "" };
    for other in profile.nodes.iter().filter(|other| other.host != node.host) {
        namespace
            .ip
            .push(format!("route add {} via {} dev {nic} proto {route_protocol}{onlink}", other.block, other.address));
    }
    namespace.tunnel = profile.tunnel.as_ref().zip(node.tunnel_address).map(|(name, address)| Tunnel {
        name: name.clone(),
        address,
        local: node.address,
        mtu: profile.pod_mtu,
    });
    namespace.sets = rules::node_sets(profile);
    namespace.rules = rules::node_rules(profile, node);
    namespace
}

/// What Felix sets on the node's end of a pod's veth pair. Without `proxy_delay` 0 the node waits up to 0.8 s
/// before it answers ARP for the pods' gateway.
fn host_end_sysctls(interface: &str) -> [Sysctl; 4] {
    [
        required(format!("ipv4/conf/{interface}/rp_filter"), "1"),
        required(format!("ipv4/conf/{interface}/route_localnet"), "1"),
        required(format!("ipv4/conf/{interface}/proxy_arp"), "1"),
        required(format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
    ]
}

fn pod(lab: &str, pod: &Pod) -> Namespace {
    let mut namespace = base(lab, &pod.name, false);
    // As container runtimes set it: any user may ping.
    namespace.sysctls.push(required("ipv4/ping_group_range", "0\t2147483647"));
    namespace.ip.extend([
        format!("addr add {}/32 dev eth0", pod.address),
        "link set eth0 up".to_owned(),
        format!("route add {POD_GATEWAY} dev eth0 scope link"),
        format!("route add default via {POD_GATEWAY} dev eth0"),
    ]);
    namespace
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
        for profile in ["calico-bgp", "kind-calico"] {
            let plan = plan(profile);
            let mut made: Vec<&str> = plan.links.iter().filter_map(|line| line.strip_prefix("netns add ")).collect();
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
    fn only_a_profile_with_a_tunnel_has_tunnels() {
        let tunnels = |profile| plan(profile).namespaces.iter().filter(|n| n.tunnel.is_some()).count();
        assert_eq!((tunnels("calico-bgp"), tunnels("kind-calico")), (3, 0));
    }
}
