//! Clusters as data: what `scenarios/labs/*.toml` says.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;

mod check;
mod cni;
mod links;
mod variant;

pub(crate) use cni::{Cni, Reach, Rules, Tunnel, TunnelKind};
pub(crate) use links::{Attached, AttachedKind, Pair, Stack};

macro_rules! profiles {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../scenarios/labs/", $name, ".toml")))),*]
    };
}

/// Every profile by name. A new cluster is a new file and a word here.
const PROFILES: &[(&str, &str)] = profiles![
    "calico-bgp",
    "calico-bond",
    "calico-dual",
    "calico-ipip",
    "calico-ipip-crosssubnet",
    "calico-netkit",
    "calico-nft",
    "calico-vlan",
    "calico-vms",
    "calico-vxlan",
    "calico-wireguard",
    "flannel",
    "flannel-vxlan",
    "kind-calico",
    "kindnet",
    "multus-default",
    "multus-ipvlan",
    "multus-macvlan",
];

/// A cluster that a lab can rebuild.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// The nodes' interface to the wire.
    pub(crate) nic: String,
    /// MTU of that interface and of the wire, bytes.
    pub(crate) nic_mtu: u32,
    /// What that interface stands on, where it is no plain one.
    pub(crate) stack: Option<Stack>,
    /// The subnet of all nodes that are not in one of `far`.
    pub(crate) subnet: Ipv4Net,
    /// Their default gateway.
    pub(crate) gateway: Ipv4Addr,
    /// Subnets behind the gateway.
    #[serde(default)]
    pub(crate) far: Vec<Subnet>,
    /// MTU of both ends of a pod's veth pair, and of the tunnel, bytes.
    pub(crate) pod_mtu: u32,
    /// All addresses of pods.
    pub(crate) pool: Ipv4Net,
    /// What connects the pods.
    pub(crate) cni: Cni,
    /// The device that takes pods' packets across the wire, where the cluster has one.
    pub(crate) tunnel: Option<Tunnel>,
    /// What ties a pod to its node.
    #[serde(default)]
    pub(crate) pair: Pair,
    /// A second network of pods.
    pub(crate) attached: Option<Attached>,
    /// A bridge without ports on every node, as docker leaves one.
    pub(crate) idle_bridge: Option<IdleBridge>,
    /// What a dual-stack cluster has beyond that.
    pub(crate) ipv6: Option<Ipv6>,
    /// Cluster address of `default/kubernetes`.
    pub(crate) kubernetes_service: Ipv4Addr,
    /// Version of every kubelet.
    pub(crate) kubernetes_version: String,
    pub(crate) outside: Outside,
    #[serde(rename = "node")]
    pub(crate) nodes: Vec<Node>,
}

/// A subnet of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subnet {
    pub(crate) subnet: Ipv4Net,
    /// The gateway's address in it.
    pub(crate) gateway: Ipv4Addr,
}

/// A bridge without ports: up, and yet down for want of a carrier.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdleBridge {
    pub(crate) name: String,
    pub(crate) address: Ipv4Net,
}

/// The second address family of a dual-stack cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ipv6 {
    /// The subnet of all nodes.
    pub(crate) subnet: Ipv6Net,
    /// Their default gateway.
    pub(crate) gateway: Ipv6Addr,
    /// All IPv6 addresses of pods.
    pub(crate) pool: Ipv6Net,
    /// Second cluster address of `default/kubernetes`.
    pub(crate) kubernetes_service: Ipv6Addr,
    /// The gateway's address on the outside. It masquerades: these clusters have no addresses of their own there.
    pub(crate) outside: Ipv6Net,
    /// The gateway's next hop, which is the Internet.
    pub(crate) router: Ipv6Addr,
    /// Addresses that answer out there.
    pub(crate) internet: Vec<Ipv6Addr>,
}

/// What lies beyond the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outside {
    /// The gateway's own address on the outside.
    pub(crate) address: Ipv4Net,
    /// Its next hop, which is the Internet.
    pub(crate) router: Ipv4Addr,
    /// Whether nodes without an `external` address leave with the gateway's.
    #[serde(default)]
    pub(crate) masquerade: bool,
    /// Addresses that answer out there.
    pub(crate) internet: Vec<Ipv4Addr>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    /// Short name: of the network namespace after the lab's name, and of the wire's port.
    pub(crate) host: String,
    /// Kubernetes' name.
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) control_plane: bool,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    /// The Node's ExternalIP, which the provider translates `address` to.
    pub(crate) external: Option<Ipv4Addr>,
    pub(crate) mac: Option<String>,
    /// The Node's podCIDR. Calico does not use it.
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) pod_cidr6: Option<Ipv6Net>,
    /// Calico's block of pod addresses on this node, where that is not the podCIDR.
    pub(crate) block: Option<Ipv4Net>,
    pub(crate) block6: Option<Ipv6Net>,
    #[serde(default, rename = "pod")]
    pub(crate) pods: Vec<Pod>,
}

impl Node {
    /// Where the addresses of this node's pods come from.
    pub(crate) fn block(&self) -> Ipv4Net {
        self.block.unwrap_or(self.pod_cidr)
    }

    /// The node's address on its tunnel: the first of its block, with every CNI here.
    pub(crate) fn tunnel_address(&self) -> Ipv4Addr {
        self.block().network()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pod {
    /// Name within `namespace`; also the host name that the network namespace is named after.
    pub(crate) name: String,
    #[serde(default = "default_namespace")]
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    /// Whether the address is of another node's block: Calico borrows when it cannot have more blocks.
    #[serde(default)]
    pub(crate) borrowed: bool,
    /// Of its first container, which is named after it.
    pub(crate) image: String,
    /// Images of more containers in the same pod.
    #[serde(default)]
    pub(crate) sidecars: Vec<String>,
    /// The node's end of its veth pair, where the name is documented and not Calico's.
    pub(crate) host_interface: Option<String>,
    /// Interface index of the node's end, where it is documented.
    pub(crate) host_ifindex: Option<u32>,
    /// Interface index of the pod's `eth0`, where it is documented.
    pub(crate) pod_ifindex: Option<u32>,
}

pub(super) fn default_namespace() -> String {
    "default".to_owned()
}

impl Profile {
    /// The profile of that name. An unknown name is an error that lists the known ones.
    pub(crate) fn named(name: &str) -> Result<Profile> {
        Profile::from_table(variant::table(name)?).with_context(|| format!("scenarios/labs/{name}.toml"))
    }

    fn from_table(table: toml::Table) -> Result<Profile> {
        let profile: Profile = table.try_into()?;
        profile.check()?;
        Ok(profile)
    }

    /// Every subnet of nodes.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Subnet> {
        let near = Subnet { subnet: self.subnet, gateway: self.gateway };
        std::iter::once(near).chain(self.far.iter().copied())
    }

    /// The subnet that a node is in.
    pub(crate) fn subnet_of(&self, node: &Node) -> Subnet {
        let near = Subnet { subnet: self.subnet, gateway: self.gateway };
        self.subnets().find(|subnet| subnet.subnet.contains(&node.address)).unwrap_or(near)
    }

    /// The tunnel by which `from` reaches the pods of `to`, if it takes one.
    pub(crate) fn tunnel_between(&self, from: &Node, to: &Node) -> Option<&Tunnel> {
        self.tunnel.as_ref().filter(|tunnel| match tunnel.reach {
            Reach::Always => true,
            Reach::CrossSubnet => self.subnet_of(from) != self.subnet_of(to),
        })
    }

    /// Name of the node's end of a pod's veth pair.
    pub(crate) fn host_interface(&self, pod: &Pod) -> String {
        pod.host_interface.clone().unwrap_or_else(|| self.cni.host_interface(&pod.namespace, &pod.name))
    }

    /// Every host of a lab of this profile: each has a network namespace.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &str> {
        let nodes = self
            .nodes
            .iter()
            .flat_map(|node| std::iter::once(node.host.as_str()).chain(node.pods.iter().map(|pod| pod.name.as_str())));
        [WIRE, GATEWAY, INTERNET].into_iter().chain(nodes)
    }
}

/// Host that is the layer-2 network between the nodes.
pub(crate) const WIRE: &str = "wire";
/// Host that is the nodes' default gateway, and translates a second time.
pub(crate) const GATEWAY: &str = "gateway";
/// Host that answers for the Internet, and from where clients come in.
pub(crate) const INTERNET: &str = "internet";

/// Address of the clients out there: what [`INTERNET`] sends to a cluster's nodes comes from it.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// The same in IPv6.
pub(crate) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// Names of all profiles.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// The text of a profile's file.
fn text(name: &str) -> Result<&'static str> {
    let Some((_, text)) = PROFILES.iter().find(|(known, _)| *known == name) else {
        bail!("no lab profile `{name}`; profiles: {}", names().collect::<Vec<_>>().join(", "));
    };
    Ok(text)
}

/// Hosts that any profile has: how a lab's namespaces are told from others when its state file is gone.
pub(crate) fn all_hosts() -> Result<HashSet<String>> {
    let mut hosts = HashSet::new();
    for name in names() {
        hosts.extend(Profile::named(name)?.hosts().map(str::to_owned));
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_profile_parses() {
        for name in names() {
            let profile = Profile::named(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert!(profile.nodes.iter().any(|node| !node.pods.is_empty()), "{name}");
        }
    }

    #[test]
    fn an_unknown_profile_lists_the_known_ones() {
        let error = Profile::named("cilium").unwrap_err().to_string();
        let known = names().collect::<Vec<_>>().join(", ");
        assert_eq!(error, format!("no lab profile `cilium`; profiles: {known}"));
    }

    #[test]
    fn every_file_is_a_profile() {
        let folder = std::fs::read_dir(crate::workspace_root().join("scenarios/labs")).unwrap();
        let files: BTreeSet<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(files, names().map(|name| format!("{name}.toml")).collect());
    }

    #[test]
    fn tunnels_reach_where_they_are_needed() {
        let used = |name: &str, from: usize, to: usize| {
            let profile = Profile::named(name).unwrap();
            profile.tunnel_between(&profile.nodes[from], &profile.nodes[to]).is_some()
        };
        assert!(used("calico-ipip", 0, 1));
        assert!(!used("calico-bgp", 0, 1));
        assert!(!used("calico-ipip-crosssubnet", 0, 1));
        assert!(used("calico-ipip-crosssubnet", 0, 3));
    }
}
