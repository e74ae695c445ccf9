//! Everything: each hop as the model has it, and each exchange in a line.

use std::net::IpAddr;

use super::{
    failure,
    hops::{drop_reason, rewrite, wrapping},
    line::{Page, Paint},
    names::Names,
    summary,
    units::{micros, time},
};
use crate::path::model::{Action, Basis, Detail, Direction, Exchange, Hop, Path, RuleRef};

/// Every hop, one line each: time since the request's first hop, where, what, how we know.
pub(super) fn path(page: &mut Page, names: &Names, path: &Path, direction: Direction) {
    if path.hops.is_empty() {
        page.line(&[(Paint::Dim, "  no hop of it was seen")]);
        return;
    }
    if direction == Direction::Request {
        page.line(&[(Paint::Dim, "  us since the first hop, where, what (addresses where they change), how we know")]);
    }
    let places: Vec<String> = path.hops.iter().map(|hop| place(names, hop)).collect();
    let times: Vec<String> = path.hops.iter().map(at).collect();
    let widest = |texts: &[String]| texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let (time_width, place_width) = (widest(&times), widest(&places));
    let mut addresses = None;
    for ((hop, place), at) in path.hops.iter().zip(&places).zip(&times) {
        let head = format!("{at:>time_width$}  {place:<place_width$}  ");
        let paint = match hop.action {
            Action::Dropped | Action::Lost => Paint::Bad,
            _ => Paint::Plain,
        };
        page.wrapped(paint, &head, &names.shorten(&what(hop, addresses.replace((hop.src, hop.dst)))), time_width + 4);
    }
}

fn at(hop: &Hop) -> String {
    match (hop.at_ns, hop.error_ns) {
        (None, _) => ".".to_owned(),
        (Some(ns), 0) => micros(ns),
        (Some(ns), error) => format!("{} +-{}", micros(ns), micros(error)),
    }
}

fn place(names: &Names, hop: &Hop) -> String {
    let whose = hop.pod.as_deref().unwrap_or_else(|| names.short(&hop.node));
    let index = hop.ifindex.map_or(String::new(), |index| format!("({index})"));
    format!("{whose} {}{index}", hop.interface.as_deref().unwrap_or("."))
}

/// `before`: addresses of the packet after the hop before; told only where they are new.
fn what(hop: &Hop, before: Option<(IpAddr, IpAddr)>) -> String {
    let Detail { route, queue_ns, nat: _, drop, tunnel, mtu, answered_after_ns, text, rule, segments } = &hop.detail;
    let action = match hop.action {
        Action::Snat | Action::Dnat | Action::Unsnat | Action::Undnat => rewrite(hop),
        Action::Dropped => format!("dropped: {}", drop_reason(hop)),
        other => format!("{other:?}").to_lowercase(),
    };
    let mut words = vec![action];
    words.extend(tunnel.as_deref().map(wrapping));
    words.extend(route.clone());
    words.extend(text.clone());
    words.extend(rule.as_deref().map(told_rule));
    words.extend(segments.as_ref().map(|sizes| super::hops::segments(sizes, hop.action)));
    words.extend(drop.as_ref().and_then(|drop| drop.function.clone()).map(|function| format!("in {function}")));
    words.extend(drop.as_ref().and_then(|drop| drop.reason.clone()));
    words.extend(answered_after_ns.map(|ns| format!("answered after {}", time(ns))));
    words.extend(queue_ns.map(|ns| format!("queued {}", time(ns))));
    words.extend(mtu.map(|mtu| format!("mtu {mtu}")));
    let ttl = hop.ttl.map_or(String::new(), |ttl| format!(" ttl {ttl}"));
    let basis = match hop.basis {
        Basis::Observed => "observed",
        Basis::Configured => "configured",
        Basis::Inferred => "inferred",
    };
    let addresses =
        if before == Some((hop.src, hop.dst)) { String::new() } else { format!("  {} -> {}", hop.src, hop.dst) };
    format!("{}{addresses} {ttl}  {basis}", words.join(", "))
}

/// `by nat/cali-nat-outgoing -A ... (comment; counter +5)  inferred`.
fn told_rule(rule: &RuleRef) -> String {
    let RuleRef { engine, table, chain, text, comment, packets, basis } = rule;
    let mut words = vec![format!("by {engine} {table}/{chain}")];
    words.extend(text.as_ref().map(|text| format!("\"{text}\"")));
    words.extend(comment.as_ref().map(|comment| format!("({comment})")));
    words.push(match basis {
        Basis::Observed => "traced by the kernel".to_owned(),
        Basis::Inferred => format!("counter +{packets}"),
        Basis::Configured => "the only rule that fits".to_owned(),
    });
    words.join(" ")
}

/// One line per exchange.
pub(super) fn exchanges(page: &mut Page, names: &Names, exchanges: &[Exchange]) {
    for exchange in exchanges {
        let Exchange { seq, outcome, rtt_ns, injector_rtt_ns, .. } = exchange;
        let mut words = vec![format!("exchange {seq:>3}  ")];
        words.extend(rtt_ns.map(|ns| format!("rtt {}", time(ns))));
        words.extend(injector_rtt_ns.map(|ns| format!("  by the sender's clock {}", time(ns))));
        if !matches!(outcome, crate::path::model::Outcome::Delivered) {
            words.extend((words.len() > 1).then(|| "  ".to_owned()));
            words.push(failure::cause(names, exchange).trim_start_matches(": ").trim_start().to_owned());
        }
        let head = format!("{:<11}", summary::word(*outcome));
        page.wrapped(summary::colour(*outcome), &head, &words.concat(), 4);
    }
}
