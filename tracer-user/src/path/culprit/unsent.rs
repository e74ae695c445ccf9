//! Why a packet is seen no more, and its free neither: the next hop's link-layer address is not known, so the kernel keeps the
//! packet until it gives up, some seconds later (`net/core/neighbour.c`). The same before its first device, and on its way.

use super::network;
use crate::{
    node::facts::{LinkRef, RouteAnswer, RouteKind},
    path::{
        chain::Chain,
        model::{Basis, DropCause, DropDetail},
        route,
        touch::{Touch, Way},
        world::World,
    },
};

/// States of a neighbour entry in which packets for it wait or die.
const UNRESOLVED: [&str; 2] = ["INCOMPLETE", "FAILED"];

/// A request that no hook saw: node, interface and cause, if the neighbour entry or the link in the source's namespace show one.
pub(in crate::path) fn at_source(world: &World<'_>) -> Option<(usize, LinkRef, DropDetail)> {
    let (src, dst) = (world.ends.source.address, world.ends.destination.address);
    let (node, LinkRef { netns, .. }) = world.owner(src)?;
    let answer = world.answer(node, &route::sent(netns, src, dst))?;
    let (out, detail) = unresolved(world, node, answer, "no device saw the request")?;
    Some((node, out, detail))
}

/// A packet that came in to a namespace, and of which no more was seen there.
pub(in crate::path) fn on_its_way(
    world: &World<'_>,
    chain: &Chain<'_>,
    node: usize,
    last: &Touch<'_>,
) -> Option<DropDetail> {
    if last.way != Way::In || last.wrapped() || world.unreliable(node) {
        return None;
    }
    let answer = world.answer(node, &route::dying(last, None, chain.translation(node, last.first)))?;
    unresolved(world, node, answer, "it was not seen again").map(|(_, detail)| detail)
}

/// Where a route leads out, and what is wrong there.
fn unresolved(world: &World<'_>, node: usize, answer: &RouteAnswer, seen: &str) -> Option<(LinkRef, DropDetail)> {
    let route = answer.route.as_ref().filter(|route| route.kind == RouteKind::Unicast)?;
    let out = LinkRef { netns: answer.question.netns, ifindex: route.out_ifindex? };
    let link = world.namespaces(node).link(out)?;
    let next = route.gateway.unwrap_or(answer.question.dst);
    let entries = &world.node(node).facts.neighbours;
    let entry = entries.iter().find(|n| (n.netns, n.ifindex, n.address) == (out.netns, out.ifindex, next));
    let entry = entry.filter(|entry| UNRESOLVED.contains(&entry.state.as_str()));
    let protocol = if next.is_ipv4() { "ARP" } else { "neighbour discovery" };
    let (cause, why) = match (network::down(link), entry) {
        (Some(down), _) => down,
        (None, Some(_)) => (DropCause::Neighbour, format!("no answer to {protocol} for {next}")),
        (None, None) => return None,
    };
    let detail = DropDetail {
        why,
        cause,
        basis: Basis::Inferred,
        proof: vec![format!("{seen}; its route is {}", route.text)],
        out_interface: Some(link.name.clone()),
        neighbour: entry.map(|entry| format!("{next} dev {} {}", link.name, entry.state)),
        ..DropDetail::default()
    };
    Some((out, detail))
}
