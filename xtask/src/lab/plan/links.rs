//! Interfaces that stand on others: the node's NIC on a bond or as a VLAN, the pods' second network on the NIC. Not every
//! kernel can make them, and without them a lab is not what it is to be.

use serde::Serialize;

use super::super::profile::{Attached, AttachedKind, Node, Pair, Pod, Profile, Stack};
use super::pod::CALICO_GATEWAY;
use super::{INSIDE, Namespace};

/// The gateway's interface to the wire where [`INSIDE`] is a VLAN on it.
pub(super) const TRUNK: &str = "trunk0";
/// How often a bond looks whether its ports have a carrier, ms. Without, it would not notice.
const LOOK_MS: u32 = 100;

/// What the kernel must be able to make, and the `ip -batch` lines that show whether it can, in an empty namespace.
#[derive(Debug, Serialize)]
pub(crate) struct Required {
    /// As `ip link add ... type` names it.
    pub(crate) kind: &'static str,
    pub(crate) try_lines: Vec<String>,
}

/// What a lab of this profile cannot do without.
pub(super) fn required(profile: &Profile) -> Vec<Required> {
    let alone = |kind: &'static str| Required { kind, try_lines: vec![format!("link add try2 type {kind}")] };
    let upon = |kind: &'static str, rest: &str| {
        let pair = "link add try0 type veth peer name try1".to_owned();
        Required { kind, try_lines: vec![pair, format!("link add link try0 name try2 type {kind}{rest}")] }
    };
    let mut required = Vec::new();
    if let Some(Stack { bond, vlan, .. }) = &profile.stack {
        required.extend(bond.as_ref().map(|_| alone("bond")));
        required.extend(vlan.map(|_| upon("vlan", " id 1")));
    }
    required.extend(profile.attached.as_ref().map(|attached| upon(attached.kind.name(), "")));
    required.extend((profile.pair == Pair::Netkit).then(|| alone("netkit")));
    required
}

impl Profile {
    /// A node's interfaces to the wire, each with the wire's port that it ends in.
    pub(crate) fn ports(&self, node: &Node) -> Vec<(String, String)> {
        let Some(Stack { ports, .. }) = &self.stack else { return vec![(self.nic.clone(), node.host.clone())] };
        let wire = |i: usize| if i == 0 { node.host.clone() } else { format!("{}-{}", node.host, i + 1) };
        ports.iter().enumerate().map(|(i, port)| (port.clone(), wire(i))).collect()
    }

    fn vlan(&self) -> Option<u16> {
        self.stack.as_ref()?.vlan
    }

    /// The gateway's interface to the wire.
    pub(super) fn gateway_port(&self) -> &'static str {
        if self.vlan().is_some() { TRUNK } else { INSIDE }
    }
}

/// Makes the nodes' interface, where it stands on others.
pub(super) fn stack(namespace: &mut Namespace, profile: &Profile) {
    let Some(Stack { ports, bond, vlan }) = &profile.stack else { return };
    if let Some(bond) = bond {
        let name = &bond.name;
        namespace
            .ip
            .push(format!("link add {name} mtu {} type bond mode {} miimon {LOOK_MS}", profile.nic_mtu, bond.mode));
        namespace.ip.extend(ports.iter().map(|port| format!("link set {port} master {name}")));
    }
    if let (Some(vlan), Some(base)) = (vlan, profile.stack.as_ref().and_then(Stack::base)) {
        namespace.ip.push(format!("link set {base} up"));
        namespace.ip.push(format!("link add link {base} name {} type vlan id {vlan}", profile.nic));
    }
}

/// The gateway's side of it.
pub(super) fn gateway(namespace: &mut Namespace, profile: &Profile) {
    if let Some(vlan) = profile.vlan() {
        namespace.ip.push(format!("link set {TRUNK} up"));
        namespace.ip.push(format!("link add link {TRUNK} name {INSIDE} type vlan id {vlan}"));
    }
    if let Some((gateway, net)) = profile.attached.as_ref().and_then(Attached::way_out) {
        namespace.ip.push(format!("addr add {gateway}/{} dev {INSIDE}", net.prefix_len()));
    }
}

/// The pods' interfaces to their second network, which begin on the node's NIC.
pub(super) fn attach(namespace: &mut Namespace, lab: &str, profile: &Profile, node: &Node) {
    let Some(attached) = &profile.attached else { return };
    for pod in node.pods.iter().filter(|pod| attached.addresses.contains_key(&pod.name)) {
        let mode = match attached.kind {
            AttachedKind::Macvlan => "bridge",
            AttachedKind::Ipvlan => "l2",
        };
        namespace.ip.push(format!(
            "link add link {} name {} netns {} type {} mode {mode}",
            profile.nic,
            attached.interface,
            super::namespace(lab, &pod.name),
            attached.kind.name()
        ));
    }
}

/// A pod's side of it.
pub(super) fn attached(namespace: &mut Namespace, profile: &Profile, pod: &Pod) {
    let Some(attached) = &profile.attached else { return };
    if let Some(address) = attached.addresses.get(&pod.name) {
        let interface = &attached.interface;
        namespace.ip.push(format!("addr add {address} brd + dev {interface}"));
        namespace.ip.push(format!("link set {interface} up"));
        if let Some(gateway) = attached.gateway {
            // As Multus does for a network with a `default-route`; the way to other pods stays Calico's.
            namespace.ip.push(format!("route add {} via {CALICO_GATEWAY} dev eth0", profile.pool));
            namespace.ip.push(format!("route replace default via {gateway} dev {interface}"));
        }
    }
}
