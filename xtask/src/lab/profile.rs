//! Clusters as data: what `scenarios/labs/*.toml` says.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde::Deserialize;
use sha1::{Digest, Sha1};

/// Every profile by name. A new cluster is a new file and a line here.
const PROFILES: &[(&str, &str)] = &[
    ("calico-bgp", include_str!("../../../scenarios/labs/calico-bgp.toml")),
    ("kind-calico", include_str!("../../../scenarios/labs/kind-calico.toml")),
];

/// The longest interface name Linux takes (`IFNAMSIZ` less its NUL); a host's wire port is named after it.
const INTERFACE_NAME_MAX: usize = 15;

/// A cluster that a lab can rebuild.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// The nodes' interface to the wire.
    pub(crate) nic: String,
    /// MTU of that interface and of the wire, bytes.
    pub(crate) nic_mtu: u32,
    /// The subnet all nodes share.
    pub(crate) subnet: Ipv4Net,
    /// The nodes' default gateway.
    pub(crate) gateway: Ipv4Addr,
    /// MTU of both ends of a pod's veth pair, and of the tunnel, bytes.
    pub(crate) pod_mtu: u32,
    /// Name of the IP-in-IP device, where the cluster has one.
    pub(crate) tunnel: Option<String>,
    /// Calico's address pool.
    pub(crate) pool: Ipv4Net,
    /// `rtm_protocol` of the routes that Calico writes.
    pub(crate) route_protocol: u8,
    /// Whether its routes to other nodes say `onlink`.
    #[serde(default)]
    pub(crate) route_onlink: bool,
    /// Cluster address of `default/kubernetes`.
    pub(crate) kubernetes_service: Ipv4Addr,
    /// Version of every kubelet.
    pub(crate) kubernetes_version: String,
    pub(crate) outside: Outside,
    #[serde(rename = "node")]
    pub(crate) nodes: Vec<Node>,
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
    /// The Node's ExternalIP, which the provider translates `address` to.
    pub(crate) external: Option<Ipv4Addr>,
    pub(crate) mac: Option<String>,
    /// The Node's podCIDR. Calico does not use it.
    pub(crate) pod_cidr: Ipv4Net,
    /// Calico's block of pod addresses on this node.
    pub(crate) block: Ipv4Net,
    pub(crate) tunnel_address: Option<Ipv4Addr>,
    #[serde(default, rename = "pod")]
    pub(crate) pods: Vec<Pod>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pod {
    /// Name within `namespace`; also the host name that the network namespace is named after.
    pub(crate) name: String,
    #[serde(default = "default_namespace")]
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) image: String,
    /// Interface index of the node's end, where it is documented.
    pub(crate) host_ifindex: Option<u32>,
    /// Interface index of the pod's `eth0`, where it is documented.
    pub(crate) pod_ifindex: Option<u32>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Pod {
    /// The name Calico gives the node's end of the pod's veth pair: `cali` and the
    /// first 11 hex digits of SHA-1 over `namespace.pod`.
    pub(crate) fn host_interface(&self) -> String {
        let digest = Sha1::digest(format!("{}.{}", self.namespace, self.name));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("cali{}", &hex[..11])
    }
}

impl Profile {
    /// The profile of that name. An unknown name is an error that lists the known ones.
    pub(crate) fn named(name: &str) -> Result<Profile> {
        let Some((_, text)) = PROFILES.iter().find(|(known, _)| *known == name) else {
            bail!("no lab profile `{name}`; profiles: {}", names().collect::<Vec<_>>().join(", "));
        };
        Profile::parse(text).with_context(|| format!("scenarios/labs/{name}.toml"))
    }

    fn parse(text: &str) -> Result<Profile> {
        let profile: Profile = toml::from_str(text)?;
        profile.check()?;
        Ok(profile)
    }

    /// What the types cannot say: unique hosts, addresses where they belong.
    fn check(&self) -> Result<()> {
        let mut hosts = HashSet::new();
        for host in self.hosts() {
            ensure!(hosts.insert(host), "host `{host}` appears twice");
            ensure!(
                host.len() <= INTERFACE_NAME_MAX,
                "host `{host}`: longer than {INTERFACE_NAME_MAX} characters, its wire port cannot be named after it"
            );
        }
        ensure!(self.subnet.contains(&self.gateway), "gateway {} is not in subnet {}", self.gateway, self.subnet);
        for node in &self.nodes {
            ensure!(
                self.subnet.contains(&node.address),
                "node {}: address {} is not in subnet {}",
                node.name,
                node.address,
                self.subnet
            );
            ensure!(
                self.pool.contains(&node.block),
                "node {}: block {} is not in pool {}",
                node.name,
                node.block,
                self.pool
            );
            for pod in &node.pods {
                ensure!(
                    node.block.contains(&pod.address),
                    "pod {}: address {} is not in its node's block {}",
                    pod.name,
                    pod.address,
                    node.block
                );
            }
        }
        Ok(())
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
/// Host that answers for the Internet.
pub(crate) const INTERNET: &str = "internet";

/// Names of all profiles.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
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
    use super::*;

    #[test]
    fn every_profile_parses() {
        for name in names() {
            let profile = Profile::named(name).unwrap();
            assert!(profile.nodes.len() >= 3, "{name}");
        }
    }

    #[test]
    fn an_unknown_profile_lists_the_known_ones() {
        let error = Profile::named("flannel").unwrap_err().to_string();
        assert_eq!(error, "no lab profile `flannel`; profiles: calico-bgp, kind-calico");
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        let text = PROFILES[0].1.replace("nic_mtu", "nic_mut");
        let error = format!("{:#}", Profile::parse(&text).unwrap_err());
        assert!(error.contains("nic_mut"), "{error}");
    }

    #[test]
    fn an_address_outside_its_block_is_refused() {
        let text = PROFILES[0].1.replace("100.115.37.81", "100.115.37.181");
        let error = Profile::parse(&text).unwrap_err().to_string();
        assert_eq!(error, "pod bb1: address 100.115.37.181 is not in its node's block 100.115.37.64/26");
    }

    #[test]
    fn host_interfaces_are_named_as_calico_names_them() {
        let profile = Profile::named("calico-bgp").unwrap();
        assert_eq!(profile.nodes[0].pods[0].host_interface(), "cali98fd8882b62");
        assert_eq!(profile.nodes[1].pods[0].host_interface(), "cali9270933bb0b");
    }
}
