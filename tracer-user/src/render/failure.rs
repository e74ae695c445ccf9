//! Where a packet ended, why, and how we know.

use super::{
    hops::drop_reason,
    hops::wrapping,
    line::{Page, Paint},
    names::Names,
    next,
};
use crate::path::model::{
    Action, AskedService, Basis, CulpritRule, Direction, DropCause, DropDetail, Exchange, Hop, LocalEndpoints,
    NamedPolicy, Outcome, Policies, PoliciesRead, PolicyDirection, PolicyStage, Rejection, Trace,
};

/// What follows the count in the verdict: ` by ingress policy at default/bb1, on node ip-172-20-50-50 (not the wire)`,
/// `: blackhole route on node ip-172-20-50-50`.
pub(super) fn cause(names: &Names, exchange: &Exchange) -> String {
    match (exchange.ended_at(), exchange.outcome) {
        (Some(hop), _) if hop.action == Action::Lost => match &hop.detail.text {
            Some(text) => format!(": {}", names.shorten(text)),
            None => format!(": left {} {}, never seen again", names.short(&hop.node), interface(hop)),
        },
        (Some(hop), outcome) => {
            let answered = exchange.rejection.as_ref().filter(|_| outcome == Outcome::Rejected);
            let answered = answered.map_or(String::new(), |r| format!("; answered: {}", r.meaning));
            match by(hop) {
                Some(who) => format!(" by {who}, {}{answered} (not the wire)", place(names, exchange, hop)),
                None => {
                    let (around, why) = (in_circles(names, exchange), drop_reason(hop));
                    format!(": {around}{why} {}{answered}", place(names, exchange, hop))
                }
            }
        }
        (None, _) => match (&exchange.rejection, exchange.notes.first()) {
            (Some(rejection), _) => format!(": {}, says {}", rejection.meaning, sender(names, rejection)),
            (None, Some(note)) => format!(": {}", names.shorten(note)),
            (None, None) => ": not enough was seen to say where".to_owned(),
        },
    }
}

/// `routing loop between vagrant and vagrant2, `.
fn in_circles(names: &Names, exchange: &Exchange) -> String {
    let Some(hops) = exchange.routing_loop() else { return String::new() };
    let mut nodes: Vec<&str> = hops.iter().map(|hop| names.short(&hop.node)).collect();
    nodes.dedup();
    match nodes.as_slice() {
        [one] => format!("routing loop through {one}, "),
        [first, second] => format!("routing loop between {first} and {second}, "),
        more => format!("routing loop through {}, ", more.join(", ")),
    }
}

/// A rule is somebody who did it.
fn by(hop: &Hop) -> Option<String> {
    let drop = hop.detail.drop.as_ref()?;
    match drop.cause {
        DropCause::Policy => Some(drop.why.clone()),
        DropCause::Netfilter | DropCause::RpFilterRule if drop.why.starts_with("the ") => Some(drop.why.clone()),
        DropCause::Netfilter | DropCause::RpFilterRule => Some(format!("a {}", drop.why)),
        _ => None,
    }
}

/// `172.20.50.50 (node ip-172-20-50-50)`, `pod default/bb1`.
fn sender(names: &Names, rejection: &Rejection) -> String {
    match rejection {
        Rejection { pod: Some(pod), from, .. } => format!("{from} (pod {pod})"),
        Rejection { node: Some(node), from, .. } => format!("{from} (node {})", names.short(node)),
        Rejection { from, .. } => from.to_string(),
    }
}

fn place(names: &Names, exchange: &Exchange, hop: &Hop) -> String {
    let between = forwarding(exchange, hop);
    match &hop.pod {
        Some(pod) => format!("in pod {pod} on node {}{between}", names.short(&hop.node)),
        None => format!("on node {}{between}", names.short(&hop.node)),
    }
}

/// Where a packet was being forwarded to when a rule dropped it: which rules it met is told by both interfaces. A policy
/// names its pod.
fn forwarding(exchange: &Exchange, dropped: &Hop) -> String {
    if dropped.detail.drop.as_ref().is_some_and(|drop| drop.cause == DropCause::Policy) {
        return String::new();
    }
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
    if let Some(service) = unserved(trace, exchange) {
        fact(page, "service", &nobody_serves(service, trace.source.address));
    }
    if let Some(hop) = exchange.ended_at() {
        facts(page, hop);
        fact(page, "proof", &names.shorten(&proof(trace, hop)));
    }
    if let Some(rejection) = &exchange.rejection {
        fact(page, "answer", &names.shorten(&answer(names, rejection, exchange)));
    } else if let Some(tunnel) =
        exchange.ended_at().filter(|hop| is_usually_answered(hop)).and_then(|h| h.detail.tunnel.as_ref())
    {
        fact(page, "answer", &format!("if any, to the other end of the tunnel, {}, not to who sent this", tunnel.src));
    } else if let Some(hop) = exchange.ended_at().filter(|hop| is_usually_answered(hop)) {
        let limit = limit_of_errors(hop);
        fact(page, "answer", &format!("none was seen; the kernel limits the rate of ICMP errors ({limit})"));
    }
    let arrived = exchange.request.hops.iter().any(|hop| hop.action == Action::Delivered);
    // What was refused before its first device has no hop before that.
    let answered = exchange.reply.hops.first().is_some_and(|hop| hop.action != Action::Dropped);
    match exchange.failed_direction {
        Some(Direction::Reply) if arrived && answered => {
            fact(page, "note", "the request arrived and was answered; only the way back failed");
        }
        Some(Direction::Reply) if arrived => fact(page, "note", "the request arrived; only the way back failed"),
        _ => {}
    }
    // Without a last hop and an answer the first note stands in the verdict.
    let told = usize::from(exchange.ended_at().is_none() && exchange.rejection.is_none());
    for note in exchange.notes.iter().skip(told) {
        fact(page, "note", &names.shorten(note));
    }
    for (index, command) in next::commands(trace, names, exchange).iter().enumerate() {
        let head = if index == 0 { "next" } else { "" };
        // Commands are for copying: never broken into lines.
        page.line(&[(Paint::Bold, &format!("{head:<8}")), (Paint::Plain, command)]);
    }
}

/// The service that was asked, if nobody could answer for it or it does not let the source in, and the request never got another destination.
pub(super) fn unserved<'t>(trace: &'t Trace, exchange: &Exchange) -> Option<&'t AskedService> {
    let translated = exchange.request.hops.iter().any(|hop| hop.action == Action::Dnat);
    let none = |service: &&AskedService| {
        service.ready == 0
            || service.local.as_ref().is_some_and(|local| local.ready == 0)
            || !service.not_let_in.is_empty()
    };
    trace.service.as_ref().filter(|service| none(service) && !translated)
}

fn nobody_serves(service: &AskedService, source: std::net::IpAddr) -> String {
    let AskedService { namespace, name, endpoints, ready, addresses: _, local, not_let_in } = service;
    if !not_let_in.is_empty() {
        return format!(
            "{namespace}/svc/{name} lets in by its load balancer only whom its loadBalancerSourceRanges name: {source} is not in {}",
            not_let_in.join(", ")
        );
    }
    if let Some(LocalEndpoints { node, elsewhere, .. }) = local.as_ref().filter(|_| *ready > 0) {
        return format!(
            "{namespace}/svc/{name} has externalTrafficPolicy Local, and no endpoint on node {node}: from outside, ask a node that has \
             one: {}",
            elsewhere.join(", ")
        );
    }
    let why = match endpoints {
        0 => "has no endpoints: its selector is for no pod, or none of them runs".to_owned(),
        1 => "has 1 endpoint, and that is not ready".to_owned(),
        many => format!("has {many} endpoints, and none of them is ready"),
    };
    format!("{namespace}/svc/{name} {why}; then what is sent to it is refused or goes astray")
}

fn fact(page: &mut Page, head: &str, text: &str) {
    page.wrapped(Paint::Bold, &format!("{head:<8}"), text, 8);
}

/// What was read on the node and bears on the cause.
fn facts(page: &mut Page, hop: &Hop) {
    if let Some(route) = &hop.detail.route {
        fact(page, "route", &format!("{route}   (configured: read from the routes at the time)"));
    }
    let Some(drop) = &hop.detail.drop else { return };
    if let Some(tunnel) = &hop.detail.tunnel {
        fact(
            page,
            "packet",
            &format!("the tunnel's own, {}; rules and policies for pods do not see what it carries", wrapping(tunnel)),
        );
    }
    for (index, rule) in drop.rules.iter().enumerate() {
        let head = match (drop.rules.len(), index) {
            (1, _) if drop.rule_known => "rule",
            (1, _) => "maybe",
            (_, 0) => "one of",
            _ => "",
        };
        fact(page, head, &rule_in_words(rule));
    }
    if let Some(policies) = drop.policies.as_ref().and_then(policies_in_words) {
        fact(page, "policy", &policies);
    }
    let settings: Vec<String> = drop.settings.iter().map(|s| format!("{} = {}", s.name, s.value)).collect();
    if !settings.is_empty() {
        fact(page, "setting", &settings.join("  "));
    }
    if let Some(route) = &drop.reverse_route {
        let route = if route == "none" { "no route".to_owned() } else { route.clone() };
        let came = format!("it came in by {}", interface(hop));
        fact(page, "route", &format!("back to {}: {route}; {came}   (configured)", hop.src));
    }
    if let Some(neighbour) = &drop.neighbour {
        fact(page, "entry", &format!("{neighbour}   (configured: the neighbour table at the end)"));
    }
}

/// The kernel tells the sender of such a drop.
fn is_usually_answered(hop: &Hop) -> bool {
    let Some(drop) = &hop.detail.drop else { return false };
    let rejects = drop.rule_known && drop.rules.iter().any(|rule| rule.rejects_with.is_some());
    rejects
        || matches!(
            drop.cause,
            DropCause::Unreachable | DropCause::Prohibit | DropCause::TtlExpired | DropCause::TooBig
        )
}

/// The settings. What the routes of IPv4 refuse has one of its own (`ip_error`), beside that of all errors.
fn limit_of_errors(hop: &Hop) -> &'static str {
    let by_route = |drop: &DropDetail| matches!(drop.cause, DropCause::Unreachable | DropCause::Prohibit);
    match hop.detail.drop.as_deref() {
        _ if hop.dst.is_ipv6() => "net.ipv6.icmp.ratelimit",
        Some(drop) if by_route(drop) => "net.ipv4.route.error_cost, net.ipv4.icmp_ratelimit",
        _ => "net.ipv4.icmp_ratelimit",
    }
}

/// `filter/cali-tw-cali98fd8882b62 rule 4 "End of tier default. Drop if no policies passed packet"`; without a comment the
/// rule's text.
fn rule_in_words(rule: &CulpritRule) -> String {
    let CulpritRule { engine, family, table, chain, position, handle, text, comment, rejects_with, .. } = rule;
    let place = match *engine {
        "nftables" => format!("{family} {table}/{chain}"),
        _ if family == "ip6" => format!("ip6tables {table}/{chain}"),
        _ => format!("{table}/{chain}"),
    };
    let number = match (*engine, position, handle) {
        ("nftables", _, Some(handle)) => format!(" handle {handle}"),
        (_, Some(position), _) => format!(" rule {position}"),
        _ => String::new(),
    };
    let what = match comment {
        Some(comment) => format!(" \"{comment}\""),
        None => format!(": {text}"),
    };
    let with = rejects_with.as_ref().filter(|with| comment.is_some() || !text.contains(with.as_str()));
    let with = with.map_or(String::new(), |with| format!(", rejects with {with}"));
    format!("{place}{number}{what}{with}")
}

/// Which policies it was, as far as that is known; None: nothing is.
fn policies_in_words(policies: &Policies) -> Option<String> {
    let Policies { pod, direction, stage, read, selecting, unclear } = policies;
    let list = |all: &[NamedPolicy]| all.iter().map(NamedPolicy::shown).collect::<Vec<_>>().join(", ");
    let way = match direction {
        PolicyDirection::Ingress => "in",
        PolicyDirection::Egress => "out",
    };
    let select = if selecting.len() == 1 { "selects" } else { "select" };
    let selected = format!("{} {select} {pod} for {}", list(selecting), direction.word());
    let all = *read == PoliciesRead::All;
    let doubt = if all { "" } else { " (not all policies were read)" };
    let text = match (stage, selecting.as_slice()) {
        (PolicyStage::Denied, [one, ..]) => format!("{} denies this packet: the rule is one of its own", one.shown()),
        (PolicyStage::Denied, []) => return None,
        (PolicyStage::Profile, _) => {
            format!("no policy decided, and no profile (of its namespace or account) lets a packet {way} at {pod}")
        }
        _ if *read == PoliciesRead::None => return None,
        (_, []) if !unclear.is_empty() => format!("none is known for certain to select {pod} for {}", direction.word()),
        (_, []) if all => format!(
            "the API shows none that selects {pod} for {}: it was one of another kind or tier, or a profile",
            direction.word()
        ),
        (_, []) => format!("none of those that were read selects {pod} for {}; there may be others", direction.word()),
        (PolicyStage::NoneAllowed, [_]) => format!("{selected}, and does not let this packet {way}"),
        (PolicyStage::NoneAllowed, _) => format!("{selected}; none of them lets this packet {way}"),
        (PolicyStage::Unknown, _) => format!("{selected}; whether it was of {} is not known{doubt}", them(selecting)),
    };
    Some(match unclear.as_slice() {
        [] => text,
        unclear => format!("{text}; selector not understood, or on labels that are not known: {}", list(unclear)),
    })
}

fn them(policies: &[NamedPolicy]) -> &'static str {
    if policies.len() == 1 { "it" } else { "these" }
}

fn answer(names: &Names, rejection: &Rejection, exchange: &Exchange) -> String {
    let what = match rejection.icmp_type {
        Some(_) if in_its_name(rejection, exchange) => {
            let (meaning, from) = (&rejection.meaning, rejection.from);
            format!(
                "ICMP {meaning} from {from} (the address that was asked: NAT puts it in the place of its sender's own)"
            )
        }
        Some(_) => format!("ICMP {} from {}", rejection.meaning, sender(names, rejection)),
        None => match rejection {
            // It gives itself out to be the destination.
            Rejection { pod: None, node: Some(node), .. } => {
                format!("{}; sent by node {}", rejection.meaning, names.short(node))
            }
            _ => format!("{}; sent by {}", rejection.meaning, sender(names, rejection)),
        },
    };
    match (rejection.arrived, &rejection.fate) {
        (true, _) => what,
        (false, Some(fate)) => format!("{what}; it never came back to the source: {fate}"),
        (false, None) if exchange.outcome == Outcome::Rejected => what,
        (false, None) => format!("{what}; it was not seen to come back to the source"),
    }
}

/// An ICMP error about a packet that NAT had given another destination comes from that which was asked, whoever sent it
/// (`nf_nat_icmp_reply_translation`).
fn in_its_name(rejection: &Rejection, exchange: &Exchange) -> bool {
    let hops = &exchange.request.hops;
    let asked = hops.first().is_some_and(|hop| hop.dst == rejection.from);
    asked && rejection.node.is_none() && hops.iter().any(|hop| hop.action == Action::Dnat)
}

fn proof(trace: &Trace, hop: &Hop) -> String {
    let word = |basis| match basis {
        Basis::Observed => "observed",
        Basis::Configured => "configured",
        Basis::Inferred => "inferred",
    };
    if hop.action == Action::Lost {
        let other = |name: &str| *name != *hop.node && hop.detail.text.as_ref().is_some_and(|text| text.contains(name));
        let seen = if trace.nodes.iter().any(|node| node.complete && other(&node.name)) {
            "both ends of the wire were traced, and only one saw it"
        } else {
            "no traced node saw it again"
        };
        let doubt = if trace.lost_events > 0 { " (but events were lost: it may have been missed)" } else { "" };
        return format!("{}: {seen}{doubt}", word(hop.basis));
    }
    match &hop.detail.drop {
        Some(drop) if !drop.proof.is_empty() => format!("{}: {}", word(drop.basis), drop.proof.join("; ")),
        _ => format!("{}: freed as a drop", word(hop.basis)),
    }
}
