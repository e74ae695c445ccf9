//! Interfaces beyond a plain NIC and a pod's one veth pair.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;

/// What ties a pod to its node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pair {
    #[default]
    Veth,
    /// In its L3 mode, which is the default: no link-layer addresses.
    Netkit,
}

/// What the nodes' interface stands on, where it is none to the wire itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stack {
    /// The interfaces to the wire; without bond one.
    pub(crate) ports: Vec<String>,
    pub(crate) bond: Option<Bond>,
    /// The interface is a VLAN of this number on the bond, or on the port.
    pub(crate) vlan: Option<u16>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bond {
    pub(crate) name: String,
    /// As `ip link` takes it. Of `active-backup` the first port is the active one.
    pub(crate) mode: String,
}

/// A second network of pods, as Multus attaches it: an interface on top of the node's NIC.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attached {
    /// Its name in every pod.
    pub(crate) interface: String,
    pub(crate) kind: AttachedKind,
    /// The lab's gateway's address there, by which the pods then leave the cluster.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Address by pod.
    pub(crate) addresses: BTreeMap<String, Ipv4Net>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AttachedKind {
    /// Bridge mode.
    Macvlan,
    /// L2 mode.
    Ipvlan,
}

impl Stack {
    /// The device that the VLAN is on, or that is the nodes' interface itself: the bond, or the port.
    pub(crate) fn base(&self) -> Option<&str> {
        self.bond.as_ref().map(|bond| bond.name.as_str()).or(self.ports.first().map(String::as_str))
    }
}

impl Attached {
    /// Its gateway, and the network that is behind it.
    pub(crate) fn way_out(&self) -> Option<(Ipv4Addr, Ipv4Net)> {
        Some((self.gateway?, self.addresses.values().next()?.trunc()))
    }
}

impl AttachedKind {
    /// As `ip link` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            AttachedKind::Macvlan => "macvlan",
            AttachedKind::Ipvlan => "ipvlan",
        }
    }
}

impl Pair {
    /// As `ip link` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pair::Veth => "veth",
            Pair::Netkit => "netkit",
        }
    }
}
