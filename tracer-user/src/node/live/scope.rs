//! Which namespaces are pods of this node. Pure.
//!
//! A pod's namespace hangs on this node's own by a veth (or netkit) pair, and its default route leaves by that pair.
//! A namespace that is reached through an *uplink* of this node is never a pod of it, whatever its routes: on a
//! kernel that several nodes share (kind, k3d, the lab), the far end of a NIC is the wire or another node.
//!
//! * An uplink is a link that a default route of this node leaves by, with the devices underneath it and the members
//!   of a bond. A node without default route: links that any route with a gateway leaves by.
//! * Of several default routes the ones with the lowest metric count, IPv4 and IPv6 apart; one that leads here is
//!   enough.
//! * A link that stands on one of this node's (macvlan, ipvlan: `IFLA_LINK`) ties a namespace to this node as a pair does.
//! * A namespace without any default route is a pod if this node reaches an address of it by a host route over the
//!   pair (Calico, ptp), or the pair's end here is a port of a bridge that is no uplink (bridge plugins), and the
//!   namespace has an address on its end; or it has an address on a link that stands on one of this node's.
//!
//! Not covered: pods on SR-IOV, which nothing ties to the node, and pods whose default route was moved to such a link.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::AddressFamily;

use super::view::{SeenLink, View, WayOut};

/// Interface index in this node's own namespace -> interface index in the other one, for each pair between the two.
/// `nsid` is what this node's namespace calls the other one; `kind` decides, because tunnels have `IFLA_LINK` too.
pub(super) fn pairs(own: &View, nsid: i32) -> BTreeMap<u32, u32> {
    own.links
        .iter()
        .filter(|(_, seen)| is_pair(seen) && seen.other_nsid == Some(nsid))
        .filter_map(|(index, seen)| Some((*index, seen.other?)))
        .collect()
}

/// One end of two that are tied together.
pub(super) fn is_pair(seen: &SeenLink) -> bool {
    matches!(seen.link.kind.as_deref(), Some("veth" | "netkit"))
}

/// It stands on the link that `IFLA_LINK` names: what leaves by it leaves by that one next, and what comes in comes in there
/// first.
pub(super) fn is_upper(seen: &SeenLink) -> bool {
    matches!(seen.link.kind.as_deref(), Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap"))
}

/// Interface indexes of the links of `other` that stand on links of the namespace that `other` calls `nsid`.
pub(super) fn standing(other: &View, nsid: i32) -> BTreeSet<u32> {
    let on_it = |seen: &&SeenLink| is_upper(seen) && seen.other_nsid == Some(nsid);
    other.links.values().filter(on_it).map(|seen| seen.link.ifindex).collect()
}

/// The links that lead out of this node.
pub(super) fn uplinks(own: &View) -> BTreeSet<u32> {
    let out = |default: bool| -> BTreeSet<u32> {
        own.ways_out.iter().filter(|way| way.default == default).flat_map(|way| way.out.iter().copied()).collect()
    };
    let mut found = out(true);
    if found.is_empty() {
        found = out(false);
    }
    loop {
        let more: Vec<u32> = own
            .links
            .values()
            .flat_map(|seen| {
                let master = seen.link.master.filter(|m| found.contains(m) && is_bond(own, *m));
                let member = master.map(|_| seen.link.ifindex);
                let above = found.contains(&seen.link.ifindex) && !is_pair(seen) && seen.other_nsid.is_none();
                let beneath = seen.other.filter(|_| above);
                member.into_iter().chain(beneath)
            })
            .filter(|index| !found.contains(index))
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn is_bond(own: &View, index: u32) -> bool {
    own.links.get(&index).is_some_and(|seen| matches!(seen.link.kind.as_deref(), Some("bond" | "team")))
}

/// Is `other`, tied to `own` by `pairs` (own's index -> other's), a pod of own's node?
///
/// `standing`: interface indexes of other's links that stand on links of own. `host_route(address)` says by which interface of own a host route to that address leaves, if there is one.
pub(super) fn is_pod(
    own: &View,
    uplinks: &BTreeSet<u32>,
    pairs: &BTreeMap<u32, u32>,
    standing: &BTreeSet<u32>,
    other: &View,
    mut host_route: impl FnMut(IpAddr) -> Option<u32>,
) -> bool {
    let mut ties = pairs.iter().filter(|(here, _)| !uplinks.contains(here));
    if other.ways_out.iter().any(|way| way.default) {
        let exits = best_defaults(other);
        return !standing.is_disjoint(&exits) || ties.any(|(_, there)| exits.contains(there));
    }
    let has_address = |index: &u32| other.links.get(index).is_some_and(|seen| !seen.link.addresses.is_empty());
    if standing.iter().any(has_address) {
        return true;
    }
    ties.any(|(here, there)| {
        let addresses = other.links.get(there).map(|seen| seen.link.addresses.as_slice()).unwrap_or_default();
        let addresses = addresses.iter().map(|net| net.addr()).filter(|address| !is_link_local(*address));
        let bridged =
            own.links.get(here).and_then(|seen| seen.link.master).is_some_and(|bridge| !uplinks.contains(&bridge));
        let addresses: Vec<IpAddr> = addresses.collect();
        (bridged && !addresses.is_empty()) || addresses.into_iter().any(|address| host_route(address) == Some(*here))
    })
}

/// Every interface made has an IPv6 link-local address; having one says nothing.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn best_defaults(view: &View) -> BTreeSet<u32> {
    let of = |family: AddressFamily| {
        let ways: Vec<&WayOut> = view.ways_out.iter().filter(|way| way.default && way.family == family).collect();
        let best = ways.iter().map(|way| way.metric).min();
        ways.into_iter().filter(move |way| Some(way.metric) == best).flat_map(|way| way.out.clone())
    };
    of(AddressFamily::Inet).chain(of(AddressFamily::Inet6)).collect()
}

#[cfg(test)]
#[path = "scope_tests.rs"]
mod tests;
