//! How the way of a packet ended.

use std::net::IpAddr;

use super::{
    NodeEvidence,
    chain::Chain,
    culprit::{self, Cause, Scene, refused_at_destination},
    group::Role,
    model::{Basis, DropDetail, Nat, RuleRef},
    route,
    touch::{self, Header, Touch, Way},
    world::World,
};
use crate::{
    event::{Free, Hook, L4, Packet, Record, Sighting, Translation},
    node::facts::LinkRef,
};

/// How the way of a packet ended.
pub(super) enum End<'a> {
    /// No hook saw it.
    Unseen,
    /// It reached the namespace that has its destination address.
    Delivered,
    /// It left the traced nodes, and came to where it should.
    Left,
    /// It left a traced node, and nothing came of it; one sentence, and one of what that may come from.
    Lost(String, Option<String>),
    /// The kernel freed it.
    Dropped { node: usize, at: &'a Sighting, cause: Box<Cause<'a>> },
    /// It was handed to no device, at its source or further on, and what is there says why.
    /// `ends`: its source and destination, the latter as a rule of DNAT had made it, if one had: `turned`.
    Unsent { node: usize, at: LinkRef, ends: (IpAddr, IpAddr), turned: Option<Box<Turned>>, cause: Box<Cause<'a>> },
    /// Not known; one sentence.
    Unknown(String),
}

/// DNAT that no hook saw, and its rule.
pub(super) struct Turned {
    pub(super) nat: Nat,
    pub(super) rule: Box<RuleRef>,
}

/// `answered`: by another's word the packet arrived.
pub(super) fn end<'a>(world: &World<'a>, chain: &Chain<'a>, answered: bool) -> End<'a> {
    let Some((node, last)) = chain.last() else {
        if let Some((node, free)) = chain.frees.first() {
            return only_freed(world, *node, free);
        }
        let sent_here = chain.role == Role::Request && !world.evidence.probes.is_empty() && !world.any_unreliable();
        let cause = if sent_here { culprit::unsent::at_source(world) } else { None };
        return cause.map_or(End::Unseen, |(node, at, detail)| unsent(world, node, at, detail));
    };
    let namespaces = world.namespaces(node);
    let free = last_free(chain, node, last);
    let final_place = last.way == Way::In && is_final(world, chain, node, last, free);
    let leaves = last.last.hook == Hook::Xmit && namespaces.leads_out(last.at());
    if answered {
        return if final_place {
            End::Delivered
        } else if leaves && world.owner(last.header().dst).is_none() {
            End::Left
        } else {
            End::Unknown(format!("it arrived, but its hops after {} are missing", world.place(node, last.at())))
        };
    }
    if final_place {
        return match free.filter(|f| refused_at_destination(f, chain.role == Role::Request)) {
            Some(at) => {
                let cause = Box::new(culprit::cause(&Scene::new(world, chain, node, last, at)));
                End::Dropped { node, at, cause }
            }
            None => unclear(world, chain, node, last, free),
        };
    }
    if leaves {
        if chain.role == Role::Reply && world.owner(last.last.packet.dst).is_none() {
            return End::Left;
        }
        // A free after this is the driver's, or, where nodes share a kernel, that of whoever had the packet then.
        return left(world, chain, node, last);
    }
    match free {
        Some(free) => died(world, chain, (node, last), free),
        None => match culprit::unsent::on_its_way(world, chain, node, last) {
            Some(detail) => unsent(world, node, last.at(), detail),
            None => {
                let program = culprit::xdp::got_it(world, node, last);
                let program = program.map_or_else(String::new, |(at, _)| format!("; {}", culprit::xdp::sentence(&at)));
                let place = world.place(node, last.at());
                End::Unknown(format!("what became of it after {place} was not seen{program}"))
            }
        },
    }
}

/// UDP itself freed the request at its destination, for want of a socket if "port unreachable" came back for it: a rule
/// that refuses in the same words frees elsewhere. By itself the free says little on kernels without drop reasons.
pub(super) fn port_closed<'a>(world: &World<'a>, chain: &Chain<'a>) -> Option<End<'a>> {
    let (node, last) = chain.last()?;
    let at = last_free(chain, node, last).filter(|free| free.hook == Hook::Drop)?;
    let function = at.free.as_ref()?.function.as_deref()?;
    let by_udp = function.trim_start_matches('_').starts_with("udp");
    if !by_udp || last.way != Way::In || !is_final(world, chain, node, last, Some(at)) {
        return None;
    }
    let cause = Box::new(culprit::port_closed(&Scene::new(world, chain, node, last, at)));
    Some(End::Dropped { node, at, cause })
}

fn unsent<'a>(world: &World<'_>, node: usize, at: LinkRef, detail: DropDetail) -> End<'a> {
    let ends = (world.ends.source.address, world.ends.destination.address);
    End::Unsent { node, at, ends, turned: None, cause: Box::new(Cause::of(detail)) }
}

/// It reached its namespace. A request that was then freed as a drop for a reason that says nothing may not have been taken.
fn unclear<'a>(
    world: &World<'a>,
    chain: &Chain<'a>,
    node: usize,
    last: &Touch<'a>,
    free: Option<&'a Sighting>,
) -> End<'a> {
    let Some(free) = free.filter(|f| f.hook == Hook::Drop && chain.role == Role::Request) else {
        return End::Delivered;
    };
    let Free { function, reason_name, .. } = free.free.clone().unwrap_or_default();
    let function = function.map_or_else(String::new, |function| format!(" in {function}"));
    let reason = reason_name.map_or_else(String::new, |reason| format!(", reason by the kernel {reason}"));
    let place = world.place(node, last.at());
    End::Unknown(format!("it was freed at {place}{function}{reason}: whether the destination took it is not known"))
}

/// The namespace is the one that the packet is for, by what NAT made of it there: `free` shows that. A reply to a node's
/// address may be for a pod that SNAT hides; then the address is not that of an end, and the end is elsewhere.
fn is_final(world: &World<'_>, chain: &Chain<'_>, node: usize, last: &Touch<'_>, free: Option<&Sighting>) -> bool {
    let netns = last.at().netns;
    let here = free.filter(|free| free.outer.is_none() && touch::place(free) == last.at());
    let dst = here.map_or(last.last.packet.dst, |free| free.packet.dst);
    let in_pod = world.in_pod(node, netns);
    let source = world.ends.source.address;
    let is_end = [source, world.ends.destination.address].contains(&dst) || world.namespaces(node).owns(netns, source);
    let may_be_hidden = chain.role == Role::Reply && !in_pod && !is_end;
    !last.wrapped() && !may_be_hidden && world.namespaces(node).owns(netns, dst)
}

/// What NAT made of a packet between the last device that brought it and where it was delivered, if anything: `free` shows it.
pub(super) fn delivered_as<'a>(chain: &Chain<'a>, node: usize, last: &Touch<'a>) -> Option<&'a Sighting> {
    let free = last_free(chain, node, last)?;
    let changed = (free.packet.src, free.packet.dst) != (last.last.packet.src, last.last.packet.dst);
    (changed && free.outer.is_none() && touch::place(free) == last.at()).then_some(free)
}

fn last_free<'a>(chain: &Chain<'a>, node: usize, last: &Touch<'a>) -> Option<&'a Sighting> {
    let after = |hook| {
        let mut frees = chain.frees.iter().rev();
        frees.find(|(n, f)| *n == node && f.hook == hook && f.time_ns >= last.end()).map(|(_, f)| *f)
    };
    after(Hook::Drop).or_else(|| after(Hook::Consume))
}

fn only_freed<'a>(world: &World<'a>, node: usize, free: &'a Sighting) -> End<'a> {
    End::Unknown(format!(
        "it was freed at {}, but how it came there was not seen",
        world.place(node, touch::place(free))
    ))
}

fn died<'a>(world: &World<'a>, chain: &Chain<'a>, (node, last): (usize, &Touch<'a>), free: &'a Sighting) -> End<'a> {
    // The kernel's side remembers where it saw the packet last.
    if touch::place(free) != touch::place(last.last) {
        return only_freed(world, node, free);
    }
    let cause = Box::new(culprit::cause(&Scene::new(world, chain, node, last, free)));
    let clear = cause.detail.basis == Basis::Observed || free.hook == Hook::Drop;
    // Without the Xmit, or by a mere consume, the free may also be the end of a way whose last records are lost.
    let may_have_left = last.way == Way::Out || !clear;
    if may_have_left && world.unreliable(node) {
        return End::Unknown(format!("it was freed at {}, but records are missing", world.place(node, last.at())));
    }
    End::Dropped { node, at: free, cause }
}

/// It left by an uplink, and nothing came of it.
fn left<'a>(world: &World<'a>, chain: &Chain<'a>, node: usize, last: &Touch<'a>) -> End<'a> {
    let from = world.place(node, last.at());
    if let Some((other, free)) = chain.frees.iter().find(|(n, _)| chain.fragments.iter().all(|f| f.node != *n)) {
        return only_freed(world, *other, free);
    }
    if world.any_unreliable() {
        return End::Unknown(format!("it left {from}; records are missing, so it may have come further"));
    }
    let next = next_node(world, chain, node, last);
    match (next, untranslated(world, chain, last)) {
        (Some((other, next)), _) if !was_asked_for(world, other, last) => {
            let Header { src, dst, .. } = last.header();
            End::Unknown(format!("it left {from} as {src} -> {dst}, which {next} was not asked to record"))
        }
        (Some((other, next)), _) => {
            End::Lost(format!("left {from}, never arrived at {next}"), culprit::xdp::at_uplinks(world, other))
        }
        (None, None) => End::Lost(format!("left {from}; beyond is not traced, no reply came back"), None),
        (None, Some(own)) => End::Lost(
            format!("left {from} with the pod's own address {own} (no SNAT); beyond is not traced, no reply came back"),
            Some(format!(
                "whoever got it answers to {own}, and outside the cluster hardly anybody has a route back to that: pods' \
                 addresses are mostly translated on their way out (natOutgoing, masquerade)"
            )),
        ),
    }
}

/// The source's address, if that is a pod's and goes to somebody whom nobody knows to belong to the cluster.
fn untranslated(world: &World<'_>, chain: &Chain<'_>, last: &Touch<'_>) -> Option<IpAddr> {
    let Header { src, dst, .. } = last.header();
    let named = world.ends.destination.name.as_deref();
    let strange = !named.is_some_and(|name| name.contains("/svc/"))
        && world.owner(dst).is_none()
        && world.names.pod(dst).is_none()
        && world.names.node(dst).is_none();
    let of_pod = world.owner(src).is_some_and(|(node, at)| world.in_pod(node, at.netns));
    (chain.role == Role::Request && !last.wrapped() && strange && of_pod).then_some(src)
}

/// NAT may have made a flow of it that nobody knew of when recording began.
fn was_asked_for(world: &World<'_>, node: usize, last: &Touch<'_>) -> bool {
    let Packet { src, dst, l4, .. } = &last.last.packet;
    let (protocol, ports) = match l4 {
        L4::Icmp { .. } if src.is_ipv4() => (1, (None, None)),
        L4::Icmp { .. } => (58, (None, None)),
        L4::Tcp { src_port, dst_port, .. } => (6, (Some(*src_port), Some(*dst_port))),
        L4::Udp { src_port, dst_port, .. } => (17, (Some(*src_port), Some(*dst_port))),
        L4::Other { protocol } => (*protocol, (None, None)),
    };
    let NodeEvidence { watched, records, .. } = world.node(node);
    // What its own NAT makes of the flow it learns by itself.
    let learned = |record: &Record| {
        let Record::Translation(Translation { protocol: of, reply, .. }) = record else { return false };
        let port = |port: Option<u16>, own: u16| port.is_none_or(|port| port == own);
        *of == protocol
            && (reply.src, reply.dst) == (*src, *dst)
            && port(ports.0, reply.l4_src)
            && port(ports.1, reply.l4_dst)
    };
    watched.is_empty()
        || watched.iter().any(|flow| flow.covers(protocol, (*src, ports.0), (*dst, ports.1)))
        || records.iter().any(learned)
}

/// Where it should have come in: the traced node that has the next hop's address, and the place.
fn next_node(world: &World<'_>, chain: &Chain<'_>, node: usize, last: &Touch<'_>) -> Option<(usize, String)> {
    let touches = &chain.fragments.last()?.touches;
    // Its route led to the first of the links that stand on each other.
    let stacked =
        |t: &&Touch<'_>| t.way == Way::Out && t.wrapped() == last.wrapped() && t.at().netns == last.at().netns;
    let first = touches.len() - touches.iter().rev().take_while(stacked).count();
    let out = touches.get(first).unwrap_or(last);
    let question = match first.checked_sub(1).map(|i| &touches[i]) {
        Some(p) if p.way == Way::In => route::forwarding(p, out),
        before => route::local(out, chain.translation(node, out.first).filter(|_| before.is_none())),
    };
    let gateway = world.answer(node, &question).and_then(|a| a.route.as_ref()?.gateway);
    let target = gateway.unwrap_or(last.header().dst);
    let (other, at) = world.owner(target).filter(|(other, _)| *other != node)?;
    let namespaces = world.namespaces(other);
    let place = if namespaces.leads_out(at) { world.place(other, at) } else { world.node(other).name.clone() };
    Some((other, place))
}
