//! What is different between two reports -> text.

use super::{
    Style,
    line::{Page, Paint},
    names::Names,
    report::{failure, grouped, percent, site},
    summary::colour,
    units::{micros, time},
};
use crate::{
    path::model::{Direction, Outcome},
    recording::Contents,
    report::{Finding, Key, Kind, Report, Step},
};

/// The findings as a person reads them, the most telling first.
#[must_use]
pub fn comparison(
    findings: &[Finding],
    (now, contents): (&Report, &Contents),
    (before, older): (&Report, &Contents),
    style: &Style,
) -> String {
    let nodes = contents.header.nodes.iter().chain(&older.header.nodes);
    let names = Names::of_nodes(nodes.map(|node| node.name.as_str()));
    let mut page = Page::new(style.color, style.width);
    let count = findings.len();
    let (paint, head) = match count {
        0 => (Paint::Good, "NOTHING CHANGED".to_owned()),
        1 => (Paint::Bad, "1 FINDING".to_owned()),
        _ => (Paint::Bad, format!("{count} FINDINGS")),
    };
    let beyond = if count == 0 { " beyond what chance and noise explain" } else { "" };
    let trips = [before, now].map(|report| report.round_trip().percentile(50.0));
    let rest = format!(
        "{beyond}  round trip p50 {} -> {}  failed {} -> {}",
        time(trips[0]),
        time(trips[1]),
        failed(before),
        failed(now)
    );
    page.wrapped(paint, &head, &rest, 2);
    let ends = &contents.header.ends;
    let name = |end: &crate::path::model::Endpoint| end.name.clone().unwrap_or_else(|| end.address.to_string());
    let about = format!(
        "{} -> {}  {}  {} exchanges of {}, against {} of {}",
        name(&ends.source),
        name(&ends.destination),
        contents.header.traffic,
        grouped(now.exchanges()),
        contents.header.started,
        grouped(before.exchanges()),
        older.header.started
    );
    page.wrapped(Paint::Plain, "", &about, 2);
    for (index, finding) in findings.iter().enumerate() {
        let (paint, text) = told(finding, &names);
        page.wrapped(paint, &format!("{}  ", index + 1), &names.shorten(&text), 3);
    }
    for (which, contents) in [("", contents), ("the older one: ", older)] {
        for warning in &contents.driven.warnings {
            page.wrapped(Paint::Doubtful, "warning: ", &format!("{which}{}", names.shorten(warning)), 2);
        }
    }
    page.finish()
}

fn failed(report: &Report) -> String {
    let failed = report.exchanges() - report.ended(Outcome::Delivered);
    format!("{} ({})", grouped(failed), percent(failed.into(), report.exchanges().into()))
}

fn told(finding: &Finding, names: &Names) -> (Paint, String) {
    match finding {
        Finding::Way { direction, before, now } => {
            let text = format!(
                "{} takes another way: {} instead of {}",
                way_of(*direction),
                step(now.as_ref(), names),
                step(before.as_ref(), names)
            );
            (Paint::Doubtful, text)
        }
        Finding::Failures { failure: of, before, now } => {
            let (what, place) = failure(of, names);
            let text = format!("{what}: {:.2}% -> {:.2}%  {place}", before * 100.0, now * 100.0);
            (colour(of.outcome), text)
        }
        Finding::Time { key, percent, before_ns, now_ns, noise_ns } => {
            let more = if now_ns > before_ns { "slower" } else { "faster" };
            let by = time(now_ns.abs_diff(*before_ns));
            let text = format!(
                "{}: {more} by {by} (p{percent} {} -> {} us, noise {})",
                place(key, names),
                micros(*before_ns),
                micros(*now_ns),
                micros(*noise_ns)
            );
            (Paint::Doubtful, text)
        }
    }
}

fn way_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "the request",
        Direction::Reply => "the reply",
    }
}

/// `node-2 ens5 (ttl 62, 100.115.37.64/26 via 172.20.32.1 dev ens5)`
fn step(step: Option<&Step>, names: &Names) -> String {
    let Some(Step { place, ttl, route, .. }) = step else { return "no further hop".to_owned() };
    let of =
        place.pod.as_ref().map_or_else(|| format!("node {}", names.short(&place.node)), |pod| format!("pod {pod}"));
    let ttl = ttl.map(|ttl| format!("ttl {ttl}"));
    let more: Vec<String> = ttl.into_iter().chain(route.clone()).collect();
    format!("{of} {} ({})", place.interface, more.join(", "))
}

/// `the queue of node ip-172-20-58-60 ens5, request`
fn place(key: &Key, names: &Names) -> String {
    let Key { direction, kind, from, to } = key;
    let way = match direction {
        Direction::Request => "request",
        Direction::Reply => "reply",
    };
    let (from_node, to_node) = (names.short(&from.node), names.short(&to.node));
    let (out, into) = (&from.interface, &to.interface);
    match kind {
        Kind::Queue => format!("the queue of {} {out}, {way}", site(key, names)),
        Kind::Forwarding => format!("inside {}, from {out} to {into}, {way}", site(key, names)),
        Kind::Link => format!("the link of {} {out} to {into}, {way}", site(key, names)),
        Kind::Wire => format!("the wire between {from_node} {out} and {to_node} {into}, both directions"),
        Kind::Answer => format!("the answer of {}", site(key, names)),
        Kind::Beyond => format!("beyond {from_node} {out}, which is not traced, {way}"),
        Kind::Unknown => format!("somewhere between {from_node} {out} and {to_node} {into}, {way}"),
    }
}
