//! The first screen.

use super::{
    Style, failure,
    groups::{Group, group},
    line::{Page, Paint},
    names::Names,
    reply::{one_line, same_way_back},
    rounds::{Rounds, rounds},
    summary, table, verbose,
};
use crate::path::model::{Action, Direction, Endpoint, Exchange, Outcome, ShareOf, Trace, What};

/// Ways shown without `-v`.
const WAYS: usize = 4;

/// The trace as a person reads it.
#[must_use]
pub fn text(trace: &Trace, style: &Style) -> String {
    let Style { color, width, verbose } = *style;
    let mut page = Page::new(color, width);
    let names = Names::of(trace);
    let groups = group(&trace.exchanges);
    summary::verdict(&mut page, trace, &names, &groups);
    // One failure is explained at once; several, each with its path.
    let explained = matches!(groups.as_slice(), [_]);
    if let [only] = groups.as_slice() {
        failure::explain(&mut page, trace, &names, only.median);
    }
    if trace.exchanges.is_empty() {
        nothing_seen(&mut page, trace, &names);
    }
    if !explained {
        causes(&mut page, &names, &groups);
    }
    summary::context(&mut page, trace, &names);
    let shown = if verbose { groups.len() } else { groups.len().min(WAYS) };
    for group in &groups[..shown] {
        page.blank();
        one_way(&mut page, trace, &names, group, (explained, verbose));
    }
    if shown < groups.len() {
        page.line(&[(Paint::Plain, &format!("\n{} more ways: -v", groups.len() - shown))]);
    }
    if verbose && !trace.exchanges.is_empty() {
        page.blank();
        verbose::exchanges(&mut page, &names, &trace.exchanges);
    }
    routers(&mut page, trace, verbose);
    page.finish()
}

/// What to look at where nothing came.
fn nothing_seen(page: &mut Page, trace: &Trace, names: &Names) {
    let Trace { source, destination, .. } = trace;
    let next = if source.node.is_some() {
        "podpath doctor   # is anything in the way? does the source send at all?".to_owned()
    } else {
        let text = format!(
            "what {} sends may come here from another address: that of a load balancer, a proxy or a NAT before the nodes",
            source.address
        );
        page.wrapped(Paint::Bold, "note    ", &text, 8);
        let node = destination.node.as_deref().map_or("each node", |node| names.short(node));
        format!("on {node}: tcpdump -ni any dst host {}   # does anybody come, and from where?", destination.address)
    };
    page.line(&[(Paint::Bold, "next    "), (Paint::Plain, &next)]);
}

/// Several ways to fail: each in a line, with the exchanges it befell.
fn causes(page: &mut Page, names: &Names, groups: &[Group<'_>]) {
    for group in groups.iter().filter(|group| group.median.outcome != Outcome::Delivered) {
        let mut which: Vec<String> = group.members.iter().take(8).map(|exchange| exchange.seq.to_string()).collect();
        if group.members.len() > which.len() {
            which.push("...".to_owned());
        }
        let outcome = group.median.outcome;
        let what = format!(" exchange {}{}", which.join(", "), failure::cause(names, group.median));
        page.wrapped(summary::colour(outcome), summary::word(outcome), &what, 4);
    }
}

/// One group: from and to, the table, the reply, the sum.
fn one_way(page: &mut Page, trace: &Trace, names: &Names, group: &Group<'_>, (explained, verbose): (bool, bool)) {
    let exchange = group.median;
    let outcome = exchange.outcome;
    from_to(page, trace, group);
    if !explained && outcome != Outcome::Delivered {
        failure::explain(page, trace, names, exchange);
    }
    if verbose {
        verbose::path(page, names, &exchange.request, Direction::Request);
        page.line(&[(Paint::Bold, "reply")]);
        verbose::path(page, names, &exchange.reply, Direction::Reply);
    } else {
        table::table(page, trace, names, exchange, Direction::Request);
        reply(page, trace, names, exchange);
    }
    if exchange.outcome == Outcome::Delivered {
        for note in &exchange.notes {
            page.wrapped(Paint::Doubtful, "note", &format!(": {}", names.shorten(note)), 4);
        }
    }
    if exchange.rtt_ns.is_some() && !exchange.shares.is_empty() {
        page.blank();
        summary::equation(page, names, exchange);
    }
}

fn from_to(page: &mut Page, trace: &Trace, group: &Group<'_>) {
    let end = |end: &Endpoint| match &end.name {
        Some(name) => format!("{name} {}", end.address),
        None => end.address.to_string(),
    };
    let Trace { source, destination, probe, .. } = trace;
    let what = group.median.what.map_or("", |what| match what {
        What::Handshake => "handshake, ",
        What::Data => "data and its acknowledgement, ",
        What::Datagram => "datagram and the next one back, ",
    });
    let which = match (group.members.len(), group.median.rtt_ns) {
        (1, _) => format!("exchange {}", group.median.seq),
        (count, Some(_)) => format!("exchange {} (the median of {count} alike)", group.median.seq),
        (count, None) => format!("exchange {} ({count} alike)", group.median.seq),
    };
    let head = format!("{} -> {}", end(source), end(destination));
    page.wrapped(Paint::Bold, &head, &format!("    {probe}, {what}{which}"), 4);
}

fn reply(page: &mut Page, trace: &Trace, names: &Names, exchange: &Exchange) {
    if same_way_back(exchange) {
        let ttl = exchange.reply.hops.iter().rev().find_map(|hop| hop.ttl);
        let ttl = ttl.map_or(String::new(), |ttl| format!("   ttl {ttl}"));
        page.wrapped(Paint::Plain, "   reply: ", &format!("{}{ttl}", one_line(&exchange.reply)), 10);
    } else if !exchange.reply.hops.is_empty() {
        let whole = !summary::records_missing(trace)
            && exchange.outcome == Outcome::Delivered
            && !exchange.request.incomplete
            && !exchange.reply.incomplete;
        let other = if whole { "reply, by another way" } else { "reply" };
        page.line(&[(Paint::Bold, other)]);
        table::table(page, trace, names, exchange, Direction::Reply);
    } else if exchange.outcome == Outcome::Delivered {
        page.line(&[(Paint::Doubtful, "   reply: not seen on any traced node")]);
    }
}

fn routers(page: &mut Page, trace: &Trace, verbose: bool) {
    let mut text = String::new();
    if !trace.routers.is_empty() {
        let mut routers: Vec<String> = trace.routers.iter().map(ToString::to_string).collect();
        let beyond = |exchange: &Exchange| exchange.shares.iter().any(|s| matches!(s.of, ShareOf::Beyond { .. }));
        let begun = |exchange: &Exchange| exchange.request.hops.first().map(|hop| hop.action);
        if trace.exchanges.iter().any(|exchange| begun(exchange) == Some(Action::Received)) {
            routers.insert(0, "(before: not traced)".to_owned());
        }
        if trace.exchanges.iter().any(beyond) {
            let arrived = trace.routers.last() == Some(&trace.destination.address);
            routers.insert(routers.len() - usize::from(arrived), "(beyond: not traced)".to_owned());
        }
        // Without one, DNAT lets several routers answer by one name, and each is a line of its own.
        let in_circles = trace.exchanges.iter().any(|exchange| exchange.routing_loop().is_some());
        if let Some(Rounds { start, len, count }) = rounds(&routers, |_| in_circles) {
            let round = routers[start..start + len].join("  ");
            let round = if len > 1 { format!("({round})") } else { round };
            routers.splice(start..start + len * count, [format!("{round} x{count}")]);
        }
        text = format!("traceroute lists: {}", routers.join("  "));
    }
    if !verbose {
        let hints = "all steps: -v  JSON: -o json";
        if text.is_empty() || text.len() + 5 + hints.len() > page.width() {
            if !text.is_empty() {
                page.wrapped(Paint::Plain, "", &text, 4);
            }
            text = hints.to_owned();
        } else {
            text = format!("{text}     {hints}");
        }
    }
    if !text.is_empty() {
        page.wrapped(Paint::Plain, "", &text, 4);
    }
}
