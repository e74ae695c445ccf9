//! Look-ups in what is known about the nodes.

use std::{
    cell::{OnceCell, RefCell},
    net::IpAddr,
    sync::Arc,
};

use foldhash::{HashMap, HashMapExt};

use super::{Ends, Evidence, Names, NodeEvidence, nat_rule::Connections};
use crate::node::facts::{Link, LinkRef, Namespace, Role, RouteAnswer, RouteQuestion};

/// Kinds of links that hand a packet on to another link of the same node.
const STACKED: [&str; 15] = [
    "bridge",
    "bond",
    "team",
    "vlan",
    "vrf",
    "ipip",
    "sit",
    "ip6tnl",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "geneve",
    "vxlan",
    "xfrm",
];
/// Those of them whose members hand up all they receive.
const BONDS: [&str; 2] = ["bond", "team"];
/// Those of them that wrap a packet.
const TUNNELS: [&str; 10] =
    ["ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "geneve", "vxlan", WIREGUARD];
/// Encrypts: what leaves the node for it cannot be recognised, so for us the packet itself leaves here.
const WIREGUARD: &str = "wireguard";

/// The namespaces of one node.
#[derive(Clone, Copy)]
pub(super) struct Namespaces<'a>(pub(super) &'a [Namespace]);

impl<'a> Namespaces<'a> {
    pub(super) fn get(self, inode: u32) -> Option<&'a Namespace> {
        self.0.iter().find(|n| n.inode == inode)
    }

    pub(super) fn link(self, at: LinkRef) -> Option<&'a Link> {
        self.get(at.netns)?.links.iter().find(|l| l.ifindex == at.ifindex)
    }

    /// The address belongs to this namespace.
    pub(super) fn owns(self, netns: u32, address: IpAddr) -> bool {
        self.get(netns).is_some_and(|n| n.links.iter().any(|l| l.addresses.iter().any(|a| a.addr() == address)))
    }

    /// The bridge that the link is a port of.
    pub(super) fn bridge_of(self, at: LinkRef) -> Option<LinkRef> {
        let master = LinkRef { netns: at.netns, ifindex: self.link(at)?.master? };
        (self.link(master)?.kind.as_deref() == Some("bridge")).then_some(master)
    }

    pub(super) fn is_tunnel(self, at: LinkRef) -> bool {
        self.link(at).and_then(|l| l.kind.as_deref()).is_some_and(|k| TUNNELS.contains(&k))
    }

    /// It hands what it sends on to another link of the node.
    pub(super) fn is_stacked(self, at: LinkRef) -> bool {
        self.link(at).and_then(|l| l.kind.as_deref()).is_some_and(|k| STACKED.contains(&k) || TUNNELS.contains(&k))
    }

    /// An `ifb`: what tc redirects to it, to have it queued, it hands back to where it came from.
    pub(super) fn hands_back(self, at: LinkRef) -> bool {
        self.link(at).is_some_and(|l| l.kind.as_deref() == Some("ifb"))
    }

    /// What goes into the link leaves the node encrypted.
    pub(super) fn is_sealed(self, at: LinkRef) -> bool {
        self.link(at).is_some_and(|l| l.kind.as_deref() == Some(WIREGUARD))
    }

    pub(super) fn is_loopback(self, at: LinkRef) -> bool {
        self.link(at).is_some_and(|l| l.name == "lo")
    }

    /// The link that this one stands on.
    pub(super) fn lower(self, at: LinkRef) -> Option<LinkRef> {
        self.link(at)?.lower
    }

    /// The link to which `at` hands a packet for `dst` up, which `vlan` is the tag of until a link takes it off. The order
    /// is the kernel's: VLAN, then the bond that `at` is in, then what else stands on it.
    pub(super) fn upper(self, at: LinkRef, vlan: &mut Option<u16>, dst: IpAddr) -> Option<LinkRef> {
        let all = self
            .0
            .iter()
            .flat_map(|n| n.links.iter().map(|link| (LinkRef { netns: n.inode, ifindex: link.ifindex }, link)));
        let mut above = all.filter(|(_, link)| link.lower == Some(at));
        if vlan.is_some()
            && let Some((upper, _)) = above.clone().find(|(_, link)| link.vlan == *vlan)
        {
            *vlan = None;
            return Some(upper);
        }
        let master = self.link(at)?.master.map(|ifindex| LinkRef { ifindex, ..at });
        let is_bond =
            |at: &LinkRef| self.link(*at).is_some_and(|l| l.kind.as_deref().is_some_and(|k| BONDS.contains(&k)));
        if let Some(bond) = master.filter(is_bond) {
            return Some(bond);
        }
        let (upper, _) =
            above.find(|(_, link)| link.vlan.is_none() && link.addresses.iter().any(|a| a.addr() == dst))?;
        Some(upper)
    }

    /// What leaves by this link leaves the node.
    pub(super) fn leads_out(self, at: LinkRef) -> bool {
        let (Some(namespace), Some(link)) = (self.get(at.netns), self.link(at)) else { return false };
        namespace.role == Role::Node
            && link.peer.is_none()
            && link.lower.is_none()
            && link.name != "lo"
            && !link.kind.as_deref().is_some_and(|k| STACKED.contains(&k))
    }

    /// What leaves by `out` comes in by `into`, without a wire in between. Facts of a namespace can be missing or
    /// lack the peer; then a step over a namespace's border by the same `sk_buff` is taken for a veth's.
    pub(super) fn joined(self, out: LinkRef, into: LinkRef, same_skb: bool) -> bool {
        if out == into {
            return self.is_loopback(out);
        }
        // A macvlan in bridge mode gives what is for another one of the same link to that link as if it had come in there.
        if self.lower(out) == Some(into) {
            return same_skb;
        }
        let peer = |at| self.link(at).and_then(|l: &Link| l.peer);
        match (peer(out), peer(into)) {
            (Some(p), _) => p == into,
            (None, Some(p)) => p == out,
            (None, None) => same_skb && out.netns != into.netns && !self.leads_out(out) && !self.leads_out(into),
        }
    }
}

/// The evidence, with its look-ups.
#[derive(Clone, Copy)]
pub(super) struct World<'a> {
    pub(super) evidence: &'a Evidence,
    pub(super) ends: &'a Ends,
    pub(super) names: &'a dyn Names,
    pub(super) owners: &'a Owners,
    /// By node: known once they are asked for.
    pub(super) connections: &'a [OnceCell<Connections>],
    /// Likewise.
    pub(super) called: &'a RefCell<HashMap<(usize, LinkRef), Called>>,
}

/// What a hop calls its place: see [`super::model::Hop`].
#[derive(Clone)]
pub(super) struct Called {
    pub(super) node: Arc<str>,
    pub(super) pod: Option<Arc<str>>,
    pub(super) interface: Option<Arc<str>>,
}

/// Which traced node has an address, and on which link.
pub(super) struct Owners(HashMap<IpAddr, (usize, LinkRef)>);

impl Owners {
    pub(super) fn of(evidence: &Evidence) -> Self {
        let mut owners = HashMap::new();
        for (node, seen) in evidence.nodes.iter().enumerate() {
            for namespace in &seen.facts.namespaces {
                for link in &namespace.links {
                    let at = LinkRef { netns: namespace.inode, ifindex: link.ifindex };
                    for address in link.addresses.iter().map(|a| a.addr()).filter(|a| !a.is_loopback()) {
                        // Where several have it, the first.
                        owners.entry(address).or_insert((node, at));
                    }
                }
            }
        }
        Self(owners)
    }
}

impl<'a> World<'a> {
    pub(super) fn node(&self, node: usize) -> &'a NodeEvidence {
        &self.evidence.nodes[node]
    }

    pub(super) fn namespaces(&self, node: usize) -> Namespaces<'a> {
        Namespaces(&self.node(node).facts.namespaces)
    }

    /// Records of this node may be missing.
    pub(super) fn unreliable(&self, node: usize) -> bool {
        self.node(node).lost > 0 || !self.node(node).complete
    }

    /// Records of some node may be missing.
    pub(super) fn any_unreliable(&self) -> bool {
        (0..self.evidence.nodes.len()).any(|n| self.unreliable(n))
    }

    pub(super) fn connections(&self, node: usize) -> &'a Connections {
        self.connections[node].get_or_init(|| Connections::of(&self.node(node).records))
    }

    /// The traced node that has this address, and the link that carries it.
    pub(super) fn owner(&self, address: IpAddr) -> Option<(usize, LinkRef)> {
        self.owners.0.get(&address).copied()
    }

    /// What a hop calls this place.
    pub(super) fn called(&self, node: usize, at: LinkRef) -> Called {
        let called = || Called {
            node: self.node(node).name.as_str().into(),
            pod: self.pod(node, at.netns).map(Into::into),
            interface: self.interface(node, at).map(Into::into),
        };
        self.called.borrow_mut().entry((node, at)).or_insert_with(called).clone()
    }

    /// The namespace is not the node's own.
    pub(super) fn in_pod(&self, node: usize, netns: u32) -> bool {
        self.namespaces(node).get(netns).is_none_or(|namespace| namespace.role != Role::Node)
    }

    /// Whose namespace it is, as [`super::model::Hop::pod`] wants it.
    pub(super) fn pod(&self, node: usize, netns: u32) -> Option<String> {
        let Some(namespace) = self.namespaces(node).get(netns) else {
            return Some(format!("unknown namespace {netns}"));
        };
        if namespace.role == Role::Node {
            return None;
        }
        let mut addresses = namespace
            .links
            .iter()
            .flat_map(|l| l.addresses.iter().map(|a| a.addr()))
            .filter(|a| !a.is_loopback() && !matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        let first = addresses.clone().next();
        let name = addresses.find_map(|a| self.names.pod(a));
        name.or_else(|| first.map(|a| a.to_string())).or_else(|| Some(format!("unknown namespace {netns}")))
    }

    pub(super) fn interface(&self, node: usize, at: LinkRef) -> Option<&'a str> {
        self.namespaces(node).link(at).map(|l| l.name.as_str())
    }

    /// A place in words: `ip-172-20-58-60 ens5`, `pod default/bb2 eth0`.
    pub(super) fn place(&self, node: usize, at: LinkRef) -> String {
        let interface = self.interface(node, at).map_or_else(|| format!("interface {}", at.ifindex), str::to_owned);
        match self.pod(node, at.netns) {
            Some(pod) => format!("pod {pod} {interface}"),
            None => format!("{} {interface}", self.node(node).name),
        }
    }

    /// The answer to a question; without an exact one, that to the same question with another mark, if there is just
    /// one: `skb->mark` can change between the hooks and the look-up.
    pub(super) fn answer(&self, node: usize, question: &RouteQuestion) -> Option<&'a RouteAnswer> {
        let routes = &self.node(node).facts.routes;
        let exact = routes.iter().find(|a| a.question == *question);
        exact.or_else(|| {
            let mut like = routes.iter().filter(|a| RouteQuestion { mark: question.mark, ..a.question } == *question);
            like.next().filter(|_| like.next().is_none())
        })
    }
}
