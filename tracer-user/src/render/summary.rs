//! The verdict and what is true of the whole trace.

use super::{
    failure::cause,
    groups::{Group, same_ways},
    line::{Page, Paint},
    names::Names,
    reply::same_way_back,
    units::Unit,
};
use crate::path::model::{Action, Direction, Exchange, Hop, Outcome, REDIRECTED, ShareOf, Trace};

/// The first line.
pub(super) fn verdict(page: &mut Page, trace: &Trace, names: &Names, groups: &[Group<'_>]) {
    let total = trace.exchanges.len();
    if total == 0 {
        page.wrapped(Paint::Doubtful, "NOTHING SEEN", ": no packet of this flow passed a traced interface", 4);
        return;
    }
    let failures: Vec<&Group<'_>> = groups.iter().filter(|group| group.median.outcome != Outcome::Delivered).collect();
    let delivered: Vec<&Exchange> =
        trace.exchanges.iter().filter(|exchange| exchange.outcome == Outcome::Delivered).collect();
    let mut clauses: Vec<(Paint, String)> = Vec::new();
    if !delivered.is_empty() {
        clauses.push((Paint::Good, format!("DELIVERED {}/{total}", delivered.len())));
    }
    for kind in kinds(&failures) {
        let alike = failures.iter().filter(|group| ended(group.median) == kind);
        let count: usize = alike.map(|group| group.members.len()).sum();
        clauses.push((colour(kind.0), format!("{} {count}/{total}{}", word(kind.0), things(kind.1))));
    }
    let mut pieces: Vec<(Paint, String)> = Vec::new();
    for (index, clause) in clauses.into_iter().enumerate() {
        if index > 0 {
            pieces.push((Paint::Plain, ", ".to_owned()));
        }
        pieces.push(clause);
    }
    let length: usize = pieces.iter().map(|(_, text)| text.chars().count()).sum();
    let rest = match failures.as_slice() {
        [] => format!("  {}  {}", rtt(names, &delivered), way(trace, names, groups)),
        [only] if delivered.is_empty() => cause(names, only.median),
        _ if !delivered.is_empty() => format!("  {}", rtt(names, &delivered)),
        _ => String::new(),
    };
    let lines = super::line::wrap(&rest, page.width().saturating_sub(length), page.width().saturating_sub(4));
    let mut lines = lines.into_iter();
    pieces.push((Paint::Plain, lines.next().unwrap_or_default()));
    let pieces: Vec<(Paint, &str)> = pieces.iter().map(|(paint, text)| (*paint, text.as_str())).collect();
    page.line(&pieces);
    for line in lines {
        page.line(&[(Paint::Plain, "    "), (Paint::Plain, &line)]);
    }
}

fn ended(exchange: &Exchange) -> (Outcome, Option<Direction>) {
    (exchange.outcome, exchange.failed_direction)
}

fn kinds(groups: &[&Group<'_>]) -> Vec<(Outcome, Option<Direction>)> {
    let mut kinds = Vec::new();
    for kind in groups.iter().map(|group| ended(group.median)) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Delivered => "DELIVERED",
        Outcome::Dropped => "DROPPED",
        Outcome::Rejected => "REJECTED",
        Outcome::Lost => "LOST",
        Outcome::Incomplete => "INCOMPLETE",
    }
}

pub(super) fn colour(outcome: Outcome) -> Paint {
    match outcome {
        Outcome::Delivered => Paint::Good,
        Outcome::Dropped | Outcome::Rejected | Outcome::Lost => Paint::Bad,
        Outcome::Incomplete => Paint::Doubtful,
    }
}

pub(super) fn things(direction: Option<Direction>) -> &'static str {
    match direction {
        Some(Direction::Request) => " requests",
        Some(Direction::Reply) => " replies",
        None => "",
    }
}

/// `rtt 214 us median (201-243)`; of a source that is not traced ` from ip-172-20-50-50 ens5 and back`.
fn rtt(names: &Names, delivered: &[&Exchange]) -> String {
    let mut times: Vec<u64> = delivered.iter().filter_map(|exchange| exchange.rtt_ns).collect();
    times.sort_unstable();
    let Some(&median) = times.get(times.len().saturating_sub(1) / 2) else { return "rtt unknown".to_owned() };
    let unit = Unit::of(median);
    let edge = delivered.iter().find_map(|exchange| exchange.rtt_at.as_ref());
    let edge = edge.map_or(String::new(), |place| format!(" from {} and back", names.shorten(place)));
    let told = match times.as_slice() {
        [only] => format!("rtt {}", unit.with_name(*only)),
        [least, .., most] if unit.number(*least) == unit.number(*most) => format!("rtt {}", unit.with_name(median)),
        [least, .., most] => {
            format!("rtt {} median ({}-{})", unit.with_name(median), unit.number(*least), unit.number(*most))
        }
        [] => String::new(),
    };
    told + &edge
}

/// `routed, no tunnel, no NAT; reply took the same way back`.
fn way(trace: &Trace, names: &Names, groups: &[Group<'_>]) -> String {
    let Some(group) = groups.first() else { return String::new() };
    let exchange = group.median;
    let hops = || exchange.request.hops.iter();
    let has = |action| hops().any(|hop| hop.action == action);
    let redirected = |hop: &Hop| hop.detail.text.as_deref().is_some_and(|text| text.contains(REDIRECTED));
    let moved = match (has(Action::Routed), has(Action::Bridged)) {
        (true, true) => "bridged and routed",
        (true, false) => "routed",
        (false, true) => "bridged, no router",
        (false, false) if hops().any(redirected) => "redirected past IP",
        (false, false) => "direct",
    };
    let tunnel = match hops().find(|hop| matches!(hop.action, Action::Encapsulated | Action::Decapsulated)) {
        Some(hop) => tunnel(hop),
        None => "no tunnel".to_owned(),
    };
    let nat = match (has(Action::Snat), has(Action::Dnat)) {
        (true, true) => format!("SNAT and DNAT{}", chosen(trace)),
        (true, false) => snat(trace, names, exchange),
        (false, true) => format!("DNAT{}", chosen(trace)),
        (false, false) => "no NAT".to_owned(),
    };
    let whole = |exchange: &Exchange| !exchange.request.incomplete && !exchange.reply.incomplete;
    let back = match (whole(exchange), same_way_back(exchange)) {
        (true, false) if records_missing(trace) => {
            "records are missing: the reply may have taken the same way back or not"
        }
        (false, _) => "the path is INCOMPLETE",
        (true, true) => "reply took the same way back",
        (true, false) => "reply took another way back",
    };
    // Of paths with gaps nobody can say whether they differ.
    let (whole, gaps): (Vec<_>, Vec<_>) = groups.iter().partition(|group| whole(group.median));
    let mut ways = String::new();
    // A handshake and the data after it are told apart, and may go the same way.
    let new =
        |(i, group): &(usize, &&Group<'_>)| whole[..*i].iter().all(|known| !same_ways(known.median, group.median));
    let different = whole.iter().enumerate().filter(new).count();
    if different > 1 {
        ways = format!("; {different} different ways, the usual one first");
    }
    if !whole.is_empty() && !gaps.is_empty() {
        let count: usize = gaps.iter().map(|group| group.members.len()).sum();
        ways.push_str(&format!("; the path of {count} is INCOMPLETE"));
    }
    format!("{moved}, {tunnel}, {nat}; {back}{ways}")
}

/// `SNAT`, `SNAT twice (ip-172-20-50-50, ip-172-20-62-7)`, `SNAT on ip-172-20-62-7` (which is not the source's node), `SNAT
/// between pods`.
fn snat(trace: &Trace, names: &Names, exchange: &Exchange) -> String {
    let home = exchange.request.hops.first().map(|hop| &*hop.node);
    let rewritten = exchange.request.hops.iter().filter(|hop| hop.action == Action::Snat);
    let nodes: Vec<&str> = rewritten.map(|hop| &*hop.node).collect();
    let short = nodes.iter().map(|node| names.short(node)).collect::<Vec<_>>().join(", ");
    let often = match nodes.as_slice() {
        [only] if Some(*only) == home => "SNAT".to_owned(),
        [_] | [] => format!("SNAT on {short}"),
        [_, _] => format!("SNAT twice ({short})"),
        more => format!("SNAT {} times ({short})", more.len()),
    };
    let reached = exchange.request.hops.last().filter(|hop| hop.action == Action::Delivered);
    let sent = exchange.request.hops.first().is_some_and(|hop| hop.action == Action::Sent && hop.pod.is_some());
    // A pod is not to see another one in a node's name.
    match reached.and_then(|hop| hop.pod.as_deref()).filter(|_| sent) {
        Some(_) if reached.is_some_and(|hop| hop.dst == trace.destination.address) => format!("{often} between pods"),
        _ => often,
    }
}

/// ` to default/web (4 of 6), default/bb2 (2 of 6)`: whom DNAT chose in place of whom was asked.
fn chosen(trace: &Trace) -> String {
    let mut chosen: Vec<(&str, usize)> = Vec::new();
    for hop in trace.exchanges.iter().filter_map(|exchange| exchange.request.hops.last()) {
        let Some(pod) = hop.pod.as_deref().filter(|_| hop.dst != trace.destination.address) else { continue };
        match chosen.iter_mut().find(|(known, _)| *known == pod) {
            Some((_, count)) => *count += 1,
            None => chosen.push((pod, 1)),
        }
    }
    chosen.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let all = trace.exchanges.len();
    let told: Vec<String> = match chosen.as_slice() {
        [(only, count)] if *count == all => vec![(*only).to_owned()],
        several => several.iter().map(|(pod, count)| format!("{pod} ({count} of {all})")).collect(),
    };
    if told.is_empty() { String::new() } else { format!(" to {}", told.join(", ")) }
}

/// Some node's records may not be all: a path without a gap may still lack hops.
pub(super) fn records_missing(trace: &Trace) -> bool {
    trace.lost_events > 0 || trace.nodes.iter().any(|node| !node.complete)
}

/// `IPIP tunnel`, `VXLAN tunnel vni 4096`.
fn tunnel(hop: &Hop) -> String {
    let Some(tunnel) = &hop.detail.tunnel else {
        // Only what is encrypted has an outer header that nobody can tell.
        return "WireGuard tunnel".to_owned();
    };
    let name = match tunnel.kind.as_str() {
        "geneve" => "Geneve".to_owned(),
        other => other.to_uppercase(),
    };
    match tunnel.vni {
        Some(vni) => format!("{name} tunnel vni {vni}"),
        None => format!("{name} tunnel"),
    }
}

/// ` (ip-172-20-58-60 tunl0 and 1 more)`: whose it is, where others are larger.
fn owner(trace: &Trace, names: &Names) -> String {
    match trace.smallest_mtu_at.as_slice() {
        [] => String::new(),
        [only] => format!(" ({})", names.shorten(only)),
        [first, others @ ..] => format!(" ({} and {} more)", names.shorten(first), others.len()),
    }
}

/// Context, and everything that limits how far to believe the rest.
pub(super) fn context(page: &mut Page, trace: &Trace, names: &Names) {
    let mut facts: Vec<String> = Vec::new();
    facts.extend(trace.context.as_ref().map(|context| format!("context {context}")));
    facts.push(trace.started.replacen('T', " ", 1));
    facts.push(match trace.nodes.len() {
        0 => "no node traced".to_owned(),
        1 => "1 node traced".to_owned(),
        2 => "both nodes traced".to_owned(),
        count => format!("{count} nodes traced"),
    });
    if trace.lost_events == 0 {
        facts.push("0 events lost".to_owned());
    }
    facts.extend(trace.smallest_mtu.map(|mtu| format!("smallest MTU on path {mtu}{}", owner(trace, names))));
    page.wrapped(Paint::Plain, "", &facts.join("  "), 4);
    if trace.lost_events > 0 {
        let what = format!(": {} events could not be recorded; hops may be missing below", trace.lost_events);
        page.wrapped(Paint::Doubtful, "EVENTS LOST", &what, 4);
    }
    for node in trace.nodes.iter().filter(|node| !node.complete) {
        let what =
            format!(": the session on {} ended early; what that node saw may be missing", names.short(&node.name));
        page.wrapped(Paint::Doubtful, "INCOMPLETE", &what, 4);
    }
    for warning in &trace.warnings {
        page.wrapped(Paint::Doubtful, "warning", &format!(": {}", names.shorten(warning)), 4);
    }
}

/// `214 us = wire 167 (78%) + ip-172-20-50-50 28 (of it bb1 9) + ip-172-20-58-60 19`.
pub(super) fn equation(page: &mut Page, names: &Names, exchange: &Exchange) {
    let Some(total) = exchange.rtt_ns.filter(|_| !exchange.shares.is_empty()) else { return };
    let mut shares: Vec<_> = exchange.shares.iter().filter(|share| share.ns > 0).collect();
    let rank = |of: &ShareOf| match of {
        ShareOf::Beyond { .. } => 0,
        ShareOf::Wire { .. } => 1,
        ShareOf::Node { .. } => 2,
        ShareOf::Unattributed => 3,
    };
    shares.sort_by_key(|share| (rank(&share.of), std::cmp::Reverse(share.ns)));
    let unit = Unit::of(total);
    let numbers = unit.parts(total, &shares.iter().map(|share| share.ns).collect::<Vec<_>>());
    let most = shares.iter().map(|share| share.ns).max().unwrap_or(0);
    let wires = shares.iter().filter(|share| matches!(share.of, ShareOf::Wire { .. })).count();
    let terms = shares.iter().zip(numbers).map(|(share, number)| {
        let percent = if share.ns == most && shares.len() > 1 {
            match share.ns.saturating_mul(100).saturating_add(total / 2) / total.max(1) {
                100 => " (>99%)".to_owned(),
                percent => format!(" ({percent}%)"),
            }
        } else {
            String::new()
        };
        match &share.of {
            ShareOf::Wire { from, to } if wires > 1 => {
                format!("wire {}~{} {number}{percent}", names.short(from), names.short(to))
            }
            ShareOf::Wire { .. } => format!("wire {number}{percent}"),
            ShareOf::Beyond { node } => format!("beyond {} {number}{percent}", names.short(node)),
            ShareOf::Unattributed => format!("not attributed {number}{percent}"),
            ShareOf::Node { node, pod_ns, pod } => {
                let inner = pod_ns
                    .zip(pod.as_deref())
                    .map(|(ns, pod)| format!(" (of it {} {})", pod.rsplit('/').next().unwrap_or(pod), unit.number(ns)));
                format!("{} {number}{percent}{}", names.short(node), inner.unwrap_or_default())
            }
        }
    });
    let sum = terms.collect::<Vec<_>>().join(" + ");
    page.wrapped(Paint::Bold, &unit.with_name(total), &format!(" = {sum}"), 4);
}
