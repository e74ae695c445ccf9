//! What connects the pods of a cluster.

use serde::Deserialize;
use sha1::{Digest, Sha1};

/// A CNI, with what differs between its clusters.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Cni {
    /// Pods are routed by their /32 and see a next hop that no one has.
    Calico {
        /// `rtm_protocol` of the routes that Calico writes.
        route_protocol: u8,
        /// Whether its routes to other nodes say `onlink`.
        #[serde(default)]
        route_onlink: bool,
        /// The language of its rules.
        #[serde(default)]
        rules: Rules,
    },
    /// kind's own: point-to-point veth pairs, and a route to every other node's podCIDR.
    Kindnet,
    /// The pods of a node share a bridge.
    Flannel {
        /// The bridge.
        bridge: String,
    },
}

/// How Calico programs netfilter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rules {
    #[default]
    Iptables,
    Nftables,
}

/// A device that takes pods' packets across the wire inside of others.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tunnel {
    pub(crate) name: String,
    pub(crate) reach: Reach,
    pub(crate) kind: TunnelKind,
}

/// Which nodes' pods are reached through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reach {
    /// Those of every other node.
    Always,
    /// Those of nodes in another subnet.
    CrossSubnet,
}

/// The way of encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum TunnelKind {
    /// IP in IP.
    Ipip,
    /// VXLAN.
    Vxlan {
        /// The network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
    },
    /// Routes to it are in a table of its own, which its own (marked) packets do not use.
    Wireguard {
        /// UDP port.
        port: u16,
        /// Mark of its own packets.
        mark: u32,
        /// The table.
        table: u32,
        /// Priority of the rule that leads into the table.
        priority: u32,
    },
}

impl Cni {
    /// The name of the node's end of a pod's veth pair: with Calico `cali` and the first 11 hex digits of SHA-1 over
    /// `namespace.pod`. The others take random digits; here they are of the same digest, so that labs are alike.
    pub(crate) fn host_interface(&self, namespace: &str, pod: &str) -> String {
        let digest = Sha1::digest(format!("{namespace}.{pod}"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Cni::Calico { .. } => format!("cali{}", &hex[..11]),
            Cni::Kindnet | Cni::Flannel { .. } => format!("veth{}", &hex[..8]),
        }
    }

    /// MAC address of a node's VXLAN device, as Calico derives it: `f` and the first five bytes of SHA-1 over the node's
    /// name. Flannel's is random; here it is the same.
    pub(crate) fn vtep_mac(node: &str) -> String {
        let digest = Sha1::digest(node);
        let bytes = std::iter::once(b'f').chain(digest.iter().copied().take(5));
        bytes.map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interfaces_are_named_as_calico_names_them() {
        let cni = Cni::Calico { route_protocol: 12, route_onlink: false, rules: Rules::Iptables };
        assert_eq!(cni.host_interface("default", "bb1"), "cali98fd8882b62");
        assert_eq!(cni.host_interface("default", "bb2"), "cali9270933bb0b");
        assert_eq!(Cni::Kindnet.host_interface("default", "bb1"), "veth98fd8882");
    }

    #[test]
    fn vteps_have_addresses_of_their_own() {
        let mac = Cni::vtep_mac("demo-worker");
        assert!(mac.starts_with("66:") && mac.len() == 17, "{mac}");
        assert_ne!(mac, Cni::vtep_mac("demo-worker2"));
    }
}
