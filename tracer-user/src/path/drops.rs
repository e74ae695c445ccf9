//! How the way of a packet ended.

use super::{
    chain::Chain,
    group::Role,
    model::{Basis, DropDetail},
    route,
    touch::{self, Touch, Way},
    world::World,
};
use crate::{
    event::{Free, Hook, Sighting},
    node::facts::{RouteAnswer, RouteKind},
};

/// How the way of a packet ended.
pub(super) enum End<'a> {
    /// No hook saw it.
    Unseen,
    /// It reached the namespace that has its destination address.
    Delivered,
    /// It left the traced nodes, and came to where it should.
    Left,
    /// It left a traced node, and nothing came of it.
    Lost(String),
    /// The kernel freed it.
    Dropped { node: usize, at: &'a Sighting, cause: Cause },
    /// Not known; one sentence.
    Unknown(String),
}

/// Why it was freed.
pub(super) struct Cause {
    pub(super) detail: DropDetail,
    pub(super) route: Option<String>,
    pub(super) basis: Basis,
}

/// What the kernel's reasons mean (`include/net/dropreason-core.h`), where they settle the cause.
fn reason_in_words(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "NETFILTER_DROP" => "netfilter rule",
        "IP_RPFILTER" => "reverse path filter: the source address is not routed to this interface",
        "NEIGH_FAILED" | "NEIGH_CREATEFAIL" | "NEIGH_DEAD" => "the next hop's link-layer address could not be resolved",
        "NEIGH_QUEUEFULL" => "too many packets wait for the next hop's link-layer address",
        "QDISC_DROP" | "QDISC_OVERLIMIT" | "QDISC_CONGESTED" | "FULL_RING" => "the interface's queue is full",
        "TC_INGRESS" | "TC_EGRESS" => "traffic control filter or program",
        "BPF_CGROUP_EGRESS" => "cgroup BPF program",
        "XDP" => "XDP program",
        "CPU_BACKLOG" => "the CPU's backlog is full",
        "IP_CSUM" | "ICMP_CSUM" => "wrong checksum",
        "IP_INHDR" => "bad IP header, or its TTL ran out",
        "PKT_TOO_BIG" => "bigger than the MTU",
        "NOMEM" => "out of memory",
        "DEV_READY" => "the interface is not up",
        _ => return None,
    })
}

/// What the freeing function suggests, on kernels that give no reason.
fn function_in_words(function: &str) -> Option<&'static str> {
    Some(match function {
        "nf_hook_slow" | "nf_hook_slow_list" => "netfilter rule",
        "ip_error" => "no route",
        "ip_forward" => "not forwarded: TTL, MTU or policy",
        "ip_rcv_finish" | "ip_rcv_finish_core" => "no route, or reverse path filter",
        "arp_error_report" | "neigh_invalidate" | "ndisc_error_report" => {
            "the next hop's link-layer address could not be resolved"
        }
        "__dev_queue_xmit" | "__dev_xmit_skb" => "the interface's queue is full",
        "sch_handle_ingress" | "sch_handle_egress" | "tc_run" => "traffic control filter or program",
        _ => return None,
    })
}

/// Reasons under which a packet is freed that nobody routes.
fn is_about_routes(reason: Option<&str>) -> bool {
    let Some(reason) = reason else { return true };
    matches!(reason, "NOT_SPECIFIED" | "IP_INNOROUTES" | "IP_OUTNOROUTES" | "IP_INADDRERRORS" | "IP_INVALID_DEST")
}

fn no_route(answer: &RouteAnswer) -> Option<Option<String>> {
    let Some(route) = &answer.route else { return Some(None) };
    let refuses = matches!(route.kind, RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit);
    refuses.then(|| Some(route.text.clone()))
}

fn cause(free: &Sighting, answer: Option<&RouteAnswer>) -> Cause {
    let unknown = Free::default();
    let Free { location: _, function, reason, reason_name, netfilter: _ } = free.free.as_ref().unwrap_or(&unknown);
    let number = reason.map(|r| r.to_string());
    let name = reason_name.as_deref().filter(|r| *r != "NOT_SPECIFIED");
    let by_reason = name.and_then(reason_in_words);
    let function_words = function.as_deref().and_then(function_in_words);
    let route = answer.and_then(no_route);
    let of_netfilter = function_words == Some("netfilter rule");
    let (why, route, basis) = match (by_reason, route) {
        (Some(words), _) => (words.to_owned(), None, Basis::Observed),
        (None, Some(route)) if is_about_routes(name) && !of_netfilter => {
            ("no route".to_owned(), route, Basis::Observed)
        }
        _ if name.is_some_and(|n| n.ends_with("NOROUTES")) => ("no route".to_owned(), None, Basis::Observed),
        _ => match (name, function_words, function) {
            (Some(name), ..) => (name.to_owned(), None, Basis::Observed),
            (None, Some(words), _) => (words.to_owned(), None, Basis::Inferred),
            (None, None, Some(function)) => (format!("freed in {function}"), None, Basis::Inferred),
            (None, None, None) => ("the kernel does not say".to_owned(), None, Basis::Inferred),
        },
    };
    let basis = if free.hook == Hook::Consume { Basis::Inferred } else { basis };
    let detail = DropDetail { why, reason: reason_name.clone().or(number), function: function.clone() };
    Cause { detail, route, basis }
}

/// A free at the packet's destination that means it was not taken. Echo replies are freed as drops though ping got
/// them (no socket but ping's raw one; raw sockets' copies), so only a cause that speaks counts.
fn refused_at_destination(free: &Sighting, role: Role) -> bool {
    let Some(Free { function, reason_name, .. }) = &free.free else { return false };
    if free.hook == Hook::Consume {
        return false;
    }
    if reason_name.as_deref().is_some_and(|r| reason_in_words(r).is_some()) {
        return true;
    }
    match function.as_deref() {
        Some("icmp_rcv" | "icmpv6_rcv") => role == Role::Request,
        Some(f) => function_in_words(f).is_some() && reason_name.as_deref() != Some("NO_SOCKET"),
        None => false,
    }
}

/// `answered`: by another's word the packet arrived.
pub(super) fn end<'a>(world: &World<'a>, chain: &Chain<'a>, answered: bool) -> End<'a> {
    let Some((node, last)) = chain.last() else {
        return chain.frees.first().map_or(End::Unseen, |(node, free)| only_freed(world, *node, free));
    };
    let namespaces = world.namespaces(node);
    let final_place = last.way == Way::In && is_final(world, chain, node, last);
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
    let free = last_free(chain, node, last);
    if final_place {
        return match free.filter(|f| refused_at_destination(f, chain.role)) {
            Some(at) => End::Dropped { node, at, cause: cause(at, None) },
            None => End::Delivered,
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
        None => End::Unknown(format!("what became of it after {} was not seen", world.place(node, last.at()))),
    }
}

/// The namespace is the one that the packet is for. A reply to a node's address may be for a pod that SNAT hides; then
/// the address is not that of an end.
fn is_final(world: &World<'_>, chain: &Chain<'_>, node: usize, last: &Touch<'_>) -> bool {
    let (netns, dst) = (last.at().netns, last.last.packet.dst);
    let in_pod = world.pod(node, netns).is_some();
    let is_end = [world.ends.source.address, world.ends.destination.address].contains(&dst);
    let may_be_hidden = chain.role == Role::Reply && !in_pod && !is_end;
    !last.wrapped() && !may_be_hidden && world.namespaces(node).owns(netns, dst)
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
    if touch::place(free) != last.at() {
        return only_freed(world, node, free);
    }
    let answer = match last.way {
        Way::In => world.answer(node, &route::dying(last, Some(free), chain.translation(node, last.first.skb))),
        Way::Out => None,
    };
    let cause = cause(free, answer);
    let clear = cause.basis == Basis::Observed || free.hook == Hook::Drop;
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
    End::Lost(match next {
        Some(next) => format!("left {from}, never arrived at {next}"),
        None => format!("left {from}; beyond is not traced, no reply came back"),
    })
}

/// Where it should have come in: the traced node that has the next hop's address.
fn next_node(world: &World<'_>, chain: &Chain<'_>, node: usize, last: &Touch<'_>) -> Option<String> {
    let touches = &chain.fragments.last()?.touches;
    let question = match touches.len().checked_sub(2).map(|i| &touches[i]) {
        Some(p) if p.way == Way::In => route::forwarding(p, last),
        _ => route::local(last, chain.translation(node, last.first.skb).filter(|_| touches.len() == 1)),
    };
    let gateway = world.answer(node, &question).and_then(|a| a.route.as_ref()?.gateway);
    let target = gateway.unwrap_or(last.header().dst);
    let (other, at) = world.owner(target).filter(|(other, _)| *other != node)?;
    let namespaces = world.namespaces(other);
    Some(if namespaces.leads_out(at) { world.place(other, at) } else { world.node(other).name.clone() })
}
