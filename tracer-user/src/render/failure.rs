//! Where a packet ended, why, how we know, and what to look at next.

use super::{
    hops::drop_reason,
    line::{Page, Paint},
    names::Names,
};
use crate::path::model::{Action, Basis, Direction, Exchange, Hop, Outcome, Trace};

/// The hop at which the packet ended.
pub(super) fn last_hop(exchange: &Exchange) -> Option<&Hop> {
    let ended = |hop: &&Hop| matches!(hop.action, Action::Dropped | Action::Lost);
    let paths = match exchange.failed_direction {
        Some(Direction::Request) => [&exchange.request, &exchange.reply],
        _ => [&exchange.reply, &exchange.request],
    };
    paths.iter().find_map(|path| path.hops.iter().rev().find(ended))
}

/// `blackhole route on node ip-172-20-50-50`.
pub(super) fn cause(names: &Names, exchange: &Exchange) -> String {
    match (last_hop(exchange), exchange.outcome) {
        (Some(hop), _) if hop.action == Action::Lost => match &hop.detail.text {
            Some(text) => names.shorten(text),
            None => format!("left {} {}, never seen again", names.short(&hop.node), interface(hop)),
        },
        (Some(hop), _) => format!("{} {}{}", drop_reason(hop), place(names, hop), forwarding(exchange, hop)),
        (None, _) => match exchange.notes.first() {
            Some(note) => names.shorten(note),
            None if exchange.outcome == Outcome::Rejected => "an ICMP error came back".to_owned(),
            None => "not enough was seen to say where".to_owned(),
        },
    }
}

fn place(names: &Names, hop: &Hop) -> String {
    match &hop.pod {
        Some(pod) => format!("in pod {pod} on node {}", names.short(&hop.node)),
        None => format!("on node {}", names.short(&hop.node)),
    }
}

/// Where a packet was being forwarded to when it was dropped: which rules it met is told by both interfaces.
fn forwarding(exchange: &Exchange, dropped: &Hop) -> String {
    let mut hops = exchange.request.hops.iter().chain(&exchange.reply.hops);
    let before = hops.by_ref().take_while(|hop| !std::ptr::eq(*hop, dropped)).last();
    let routed = before.filter(|hop| hop.action == Action::Routed && hop.node == dropped.node);
    match routed.and_then(|hop| hop.interface.as_deref()) {
        Some(out) if Some(out) != dropped.interface.as_deref() => format!(", between {} and {out}", interface(dropped)),
        _ => String::new(),
    }
}

fn interface(hop: &Hop) -> &str {
    hop.interface.as_deref().unwrap_or("its interface")
}

/// The lines below the verdict.
pub(super) fn explain(page: &mut Page, trace: &Trace, names: &Names, exchange: &Exchange) {
    if exchange.outcome == Outcome::Delivered {
        return;
    }
    if let Some(hop) = last_hop(exchange) {
        if let Some(route) = &hop.detail.route {
            fact(page, "route", &format!("{route}   (configured: read from the routes at the time)"));
        }
        fact(page, "proof", &proof(trace, hop));
    }
    let arrived = exchange.request.hops.iter().any(|hop| hop.action == Action::Delivered);
    if arrived && exchange.failed_direction == Some(Direction::Reply) {
        fact(page, "note", "the request arrived and was answered; only the way back failed");
    }
    // Without a last hop the first note stands in the verdict.
    let told = usize::from(last_hop(exchange).is_none());
    for note in exchange.notes.iter().skip(told) {
        fact(page, "note", &names.shorten(note));
    }
    for (index, command) in next(trace, names, exchange).iter().enumerate() {
        let head = if index == 0 { "next" } else { "" };
        // Commands are for copying: never broken into lines.
        page.line(&[(Paint::Bold, &format!("{head:<8}")), (Paint::Plain, command)]);
    }
}

fn fact(page: &mut Page, head: &str, text: &str) {
    page.wrapped(Paint::Bold, &format!("{head:<8}"), text, 8);
}

fn proof(trace: &Trace, hop: &Hop) -> String {
    let how = match hop.basis {
        Basis::Observed => "observed",
        Basis::Configured => "configured",
        Basis::Inferred => "inferred",
    };
    if hop.action == Action::Lost {
        let other = |name: &str| name != hop.node && hop.detail.text.as_ref().is_some_and(|text| text.contains(name));
        let seen = if trace.nodes.iter().any(|node| node.complete && other(&node.name)) {
            "both ends of the wire were traced, and only one saw it"
        } else {
            "no traced node saw it again"
        };
        let doubt = if trace.lost_events > 0 { " (but events were lost: it may have been missed)" } else { "" };
        return format!("{how}: {seen}{doubt}");
    }
    let drop = hop.detail.drop.as_ref();
    match (drop.and_then(|drop| drop.function.as_deref()), drop.and_then(|drop| drop.reason.as_deref())) {
        (Some(function), Some(reason)) => format!("{how}: freed in {function}, reason by the kernel {reason}"),
        (Some(function), None) => format!("{how}: freed in {function} (this kernel gives no drop reasons)"),
        (None, Some(reason)) => format!("{how}: freed as a drop, reason by the kernel {reason}"),
        (None, None) => format!("{how}: freed as a drop (this kernel says neither where nor why)"),
    }
}

/// The neighbour that the lost packet was sent to.
fn next_hop(exchange: &Exchange, lost: &Hop) -> String {
    let route = |hop: &Hop| {
        let here = hop.node == lost.node && hop.interface == lost.interface && hop.action == Action::Routed;
        let route = hop.detail.route.as_deref().filter(|_| here)?;
        let mut words = route.split(' ').skip_while(|word| *word != "via");
        words.nth(1).map(str::to_owned)
    };
    let path = if exchange.failed_direction == Some(Direction::Reply) { &exchange.reply } else { &exchange.request };
    path.hops.iter().rev().find_map(route).unwrap_or_else(|| lost.dst.to_string())
}

/// Commands that tell more, each with the place to run it.
fn next(trace: &Trace, names: &Names, exchange: &Exchange) -> Vec<String> {
    let Some(hop) = last_hop(exchange) else {
        return if trace.lost_events > 0 {
            vec!["trace again with fewer probes at a slower pace: events were lost".to_owned()]
        } else {
            vec!["podpath doctor   # can every node on the way see what is needed?".to_owned()]
        };
    };
    let on = match &hop.pod {
        Some(pod) => format!("in pod {pod}"),
        None => format!("on {}", names.short(&hop.node)),
    };
    let (dev, dst) = (interface(hop), hop.dst);
    if hop.action == Action::Lost {
        return vec![
            format!("{on}: ip neigh show {} dev {dev}; ip -s link show dev {dev}", next_hop(exchange, hop)),
            format!("on the other side: tcpdump -ni {dev} host {dst}   # does it arrive there at all?"),
            "between them: switch port, security group, source/destination check, MTU".to_owned(),
        ];
    }
    let reason = hop.detail.drop.as_ref().and_then(|drop| drop.reason.as_deref()).unwrap_or_default();
    let function = hop.detail.drop.as_ref().and_then(|drop| drop.function.as_deref()).unwrap_or_default();
    let why = drop_reason(hop);
    if hop.detail.route.is_some() || why.contains("route") {
        return vec![
            format!("{on}: ip route show table all match {dst}; ip rule"),
            format!(
                "kubectl get pods -A -o wide --field-selector status.podIP={dst}   # does a pod have this address?"
            ),
        ];
    }
    if reason.starts_with("NEIGH") || why.contains("neighbour") {
        return vec![format!("{on}: ip neigh show {dst}; ip -s link show dev {dev}")];
    }
    if reason == "IP_RPFILTER" {
        return vec![format!(
            "{on}: ip route get {}; sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.{dev}.rp_filter",
            hop.src
        )];
    }
    if reason == "NETFILTER_DROP" || function.starts_with("nf_hook") {
        return vec![
            format!("{on}: iptables-save -c | grep -i drop; nft list ruleset | grep -i drop"),
            "kubectl get networkpolicy -A".to_owned(),
        ];
    }
    vec![format!("{on}: ip -s -s link show dev {dev}; nstat -az | grep -iE 'drop|discard|err'")]
}
