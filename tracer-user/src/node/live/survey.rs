//! Finds this node's namespaces and reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{
    error::{Error, Failure},
    facts::{LinkRef, Namespace, Role},
    fib,
    netlink::{Netlink, Watch},
    netns::{Candidate, NetNs, candidates},
    routes, scope,
    view::{self, View},
};

/// Multicast groups of route and rule changes (`uapi/linux/rtnetlink.h`, RTNLGRP_IPV4_ROUTE, _IPV4_RULE,
/// _IPV6_ROUTE, _IPV6_RULE).
const CHANGES: [u32; 4] = [7, 8, 11, 19];

/// A namespace in scope, held open.
pub(super) struct Member {
    pub(super) netns: NetNs,
    /// Hears of changed routes and rules since the survey.
    pub(super) watch: Watch,
}

/// Everything in scope, own namespace first, and what could not be read.
pub(super) struct Survey {
    pub(super) members: Vec<Member>,
    /// What was read in each member, in the same order.
    pub(super) namespaces: Vec<Namespace>,
    pub(super) notes: Vec<Error>,
}

/// Surveys the node whose own namespace is `own`, which the calling thread must be in. Leaves the thread elsewhere.
pub(super) fn survey(own: NetNs) -> Result<Survey, Error> {
    // Listed first: a pod that starts meanwhile is missed as a whole, never half.
    let mut candidates = candidates()?;
    let inode = own.inode;
    let fail = |operation: &'static str| move |failure: Failure| failure.during(operation, inode);
    // Subscribed before anything is read, so that no change falls between.
    let watch = Watch::open(NETLINK_ROUTE, &CHANGES).map_err(fail("subscribe to route changes"))?;
    let mut netlink = Netlink::open(NETLINK_ROUTE).map_err(fail("open a netlink socket"))?;
    let own_view = view::read(&mut netlink).map_err(fail("list links, addresses and routes"))?;
    let names = candidates.remove(&inode).map(|candidate| candidate.names).unwrap_or_default();
    let mut survey = Survey {
        members: vec![Member { netns: own, watch }],
        namespaces: vec![namespace(inode, Role::Node, names, &own_view)],
        notes: Vec::new(),
    };
    let mut surveyor = Surveyor { uplinks: scope::uplinks(&own_view), own: own_view, inode, netlink };
    for (inode, candidate) in candidates {
        // Vanished meanwhile: normal.
        let netns = match candidate.open(inode) {
            Ok(Some(netns)) => netns,
            Ok(None) => continue,
            Err(error) => {
                // The rest would fail alike.
                survey.notes.push(error);
                break;
            }
        };
        match surveyor.consider(&survey.members[0].netns, netns, candidate) {
            Ok(Some(pod)) => {
                tie(&mut survey.namespaces[0], inode, &pod.pairs);
                survey.members.push(pod.member);
                survey.namespaces.push(pod.namespace);
            }
            Ok(None) => {}
            Err(error) => survey.notes.push(error),
        }
    }
    Ok(survey)
}

/// This node's own side, against which the others are held.
struct Surveyor {
    inode: u32,
    own: View,
    uplinks: BTreeSet<u32>,
    /// Belongs to the own namespace, wherever the thread is.
    netlink: Netlink,
}

/// A namespace that turned out to be a pod's.
struct Pod {
    member: Member,
    namespace: Namespace,
    /// Interface index in this node's own namespace -> interface index in the pod.
    pairs: BTreeMap<u32, u32>,
}

impl Surveyor {
    /// Reads `netns` if it is a pod of this node, whose own namespace is `own`.
    fn consider(&mut self, own: &NetNs, netns: NetNs, candidate: Candidate) -> Result<Option<Pod>, Error> {
        let inode = netns.inode;
        let nsid = nsid_of(&mut self.netlink, &netns)
            .map_err(|failure| failure.during("ask for the id of a namespace", self.inode))?;
        let pairs = nsid.map(|nsid| scope::pairs(&self.own, nsid)).unwrap_or_default();
        netns.enter()?;
        let watch = Watch::open(NETLINK_ROUTE, &CHANGES)
            .map_err(|failure| failure.during("subscribe to route changes", inode))?;
        let (view, own_nsid) = Netlink::open(NETLINK_ROUTE)
            .and_then(|mut netlink| Ok((view::read(&mut netlink)?, nsid_of(&mut netlink, own)?)))
            .map_err(|failure| failure.during("list links, addresses and routes", inode))?;
        let netlink = &mut self.netlink;
        let standing = own_nsid.map(|nsid| scope::standing(&view, nsid)).unwrap_or_default();
        let host_route = |address| host_route(netlink, address);
        if !scope::is_pod(&self.own, &self.uplinks, &pairs, &standing, &view, host_route) {
            return Ok(None);
        }
        let mut namespace = namespace(inode, Role::Pod, candidate.names, &view);
        let back = pairs.iter().map(|(here, there)| (*there, *here)).collect();
        tie(&mut namespace, self.inode, &back);
        for link in namespace.links.iter_mut().filter(|link| standing.contains(&link.ifindex)) {
            let lower = view.links.get(&link.ifindex).and_then(|seen| seen.other);
            link.lower = lower.map(|ifindex| LinkRef { netns: self.inode, ifindex });
        }
        Ok(Some(Pod { member: Member { netns, watch }, namespace, pairs }))
    }
}

/// What the namespace of `netlink` calls `other`; None: it has no name for it, so no link between them was listed.
fn nsid_of(netlink: &mut Netlink, other: &NetNs) -> Result<Option<i32>, Failure> {
    let mut request = NsidMessage::default();
    let fd = other.as_fd().as_raw_fd().cast_unsigned();
    request.attributes.push(NsidAttribute::Fd(fd));
    let RouteNetlinkMessage::NewNsId(answer) = netlink.get(RouteNetlinkMessage::GetNsId(request))? else {
        return Ok(None);
    };
    let id = answer.attributes.iter().find_map(|a| match a {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    });
    Ok(id.filter(|id| *id >= 0))
}

/// The interface by which a host route to `address` leaves.
fn host_route(netlink: &mut Netlink, address: IpAddr) -> Option<u32> {
    let route = routes::lookup(netlink, address, |_| {}).ok()?;
    let prefix = fib::destination(&route)?;
    (prefix.prefix_len() == prefix.max_prefix_len()).then(|| fib::out_ifindexes(&route).first().copied())?
}

fn namespace(inode: u32, role: Role, names: Vec<String>, view: &View) -> Namespace {
    let links = view.links.values().map(|seen| {
        let mut link = seen.link.clone();
        // Both ends here; ends in other namespaces are tied when those turn out to be in scope.
        if scope::is_pair(seen) && seen.other_nsid.is_none() {
            link.peer = seen.other.map(|ifindex| LinkRef { netns: inode, ifindex });
        }
        if scope::is_upper(seen) && seen.other_nsid.is_none() {
            link.lower = seen.other.map(|ifindex| LinkRef { netns: inode, ifindex });
        }
        link
    });
    Namespace { inode, role, names, links: links.collect(), settings: Vec::new() }
}

/// Notes on the links of `namespace` that their other ends (index here -> index there) are in `netns`.
fn tie(namespace: &mut Namespace, netns: u32, pairs: &BTreeMap<u32, u32>) {
    for link in &mut namespace.links {
        if let Some(ifindex) = pairs.get(&link.ifindex) {
            link.peer = Some(LinkRef { netns, ifindex: *ifindex });
        }
    }
}
