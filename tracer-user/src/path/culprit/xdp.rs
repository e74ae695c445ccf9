//! XDP programs in drivers: they get a packet before there is an `sk_buff`, or before any hook sees the new one (veth).

use crate::{
    node::facts::LinkRef,
    path::{
        model::HAS_XDP,
        touch::{Touch, Way},
        world::World,
    },
};

/// The place to which `last` handed the packet, and the number of the XDP program there; None: it has none, or the packet was not
/// handed over.
pub(in crate::path) fn got_it(world: &World<'_>, node: usize, last: &Touch<'_>) -> Option<(String, u32)> {
    let namespaces = world.namespaces(node);
    let peer = namespaces.link(last.at()).filter(|_| last.way == Way::Out)?.peer?;
    Some((world.place(node, peer), namespaces.link(peer)?.xdp?))
}

/// What came to `node` by one of its uplinks may have ended there unseen: a sentence.
pub(in crate::path) fn at_uplinks(world: &World<'_>, node: usize) -> Option<String> {
    let own = world.node(node).facts.namespaces.first()?;
    let links = own.links.iter().filter_map(|link| {
        let at = LinkRef { netns: own.inode, ifindex: link.ifindex };
        (link.xdp.is_some() && world.namespaces(node).leads_out(at)).then(|| sentence(&world.place(node, at)))
    });
    let links: Vec<String> = links.collect();
    (!links.is_empty()).then(|| links.join("; "))
}

/// What is to be known of a place with an XDP program.
pub(in crate::path) fn sentence(place: &str) -> String {
    format!("{place}{HAS_XDP}what that drops or redirects no hook sees, nor does tcpdump")
}
