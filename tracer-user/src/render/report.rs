//! A report -> text.

use indicatif::HumanCount;

use super::{
    Style,
    line::{Page, Paint},
    names::Names,
    summary::{colour, things, word},
    units::micros,
};
use crate::{
    path::model::{Action, Direction, Outcome, What},
    recording::Contents,
    report::{Failure, Key, Kind, Place, Report, Times},
};

/// Rewrites of more addresses are counted together.
const MOST_REWRITES: usize = 8;

/// The report as a person reads it.
#[must_use]
pub fn report(report: &Report, contents: &Contents, style: &Style) -> String {
    let names = Names::of_nodes(contents.header.nodes.iter().map(|node| node.name.as_str()));
    let mut page = Page::new(style.color, style.width);
    verdict(&mut page, report, contents);
    about(&mut page, contents);
    if report.exchanges() > 0 {
        table(&mut page, report, &names);
        failures(&mut page, report, &names);
        rewrites(&mut page, report, &names);
    }
    for warning in &contents.driven.warnings {
        page.wrapped(Paint::Doubtful, "warning: ", &names.shorten(warning), 2);
    }
    page.finish()
}

/// `12,345`
pub(super) fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

/// `0.32%`, `12%`
pub(super) fn percent(part: u128, whole: u128) -> String {
    let hundredths = part * 10_000 / whole.max(1);
    match hundredths {
        0 if part > 0 => "<0.01%".to_owned(),
        0..1_000 => format!("{}.{:02}%", hundredths / 100, hundredths % 100),
        _ => format!("{}%", (hundredths + 50) / 100),
    }
}

fn verdict(page: &mut Page, report: &Report, contents: &Contents) {
    let total = report.exchanges();
    let seconds = contents.lasted.as_secs_f64();
    let lost = grouped(contents.lost_events());
    if total == 0 {
        let (word, why) = match contents.records {
            0 => ("NOTHING SEEN", String::new()),
            records => {
                ("NOTHING WHOLE", format!(": {} records, of no request that began and ended in time", grouped(records)))
            }
        };
        page.wrapped(Paint::Doubtful, word, &format!("{why}  {seconds:.1} s  {lost} events lost"), 2);
        return;
    }
    let delivered = report.ended(Outcome::Delivered);
    let paint = if delivered == total { Paint::Good } else { Paint::Bad };
    let mut text = format!("DELIVERED {}/{}", grouped(delivered), grouped(total));
    page_pieces(&mut text, report, total);
    let rest = format!("  {} retransmissions  {seconds:.1} s  {lost} events lost", grouped(report.retransmissions));
    page.wrapped(paint, &text, &rest, 2);
}

/// What did not complete: `, 40 lost (0.32%)`.
fn page_pieces(text: &mut String, report: &Report, total: u64) {
    for (outcome, word) in [
        (Outcome::Dropped, "dropped"),
        (Outcome::Rejected, "rejected"),
        (Outcome::Lost, "lost"),
        (Outcome::Incomplete, "incomplete"),
    ] {
        let count = report.ended(outcome);
        if count > 0 {
            text.push_str(&format!(", {} {word} ({})", grouped(count), percent(count.into(), total.into())));
        }
    }
}

fn about(page: &mut Page, contents: &Contents) {
    let header = &contents.header;
    let end = |end: &crate::path::model::Endpoint| match &end.name {
        Some(name) => format!("{name} {}", end.address),
        None => end.address.to_string(),
    };
    let service = header.service.as_ref().map(|service| format!(" ({}/svc/{})", service.namespace, service.name));
    let context = header.context.as_ref().map_or(String::new(), |context| format!("  context {context}"));
    let text = format!(
        "{} -> {}{}  {}  {}{context}",
        end(&header.ends.source),
        end(&header.ends.destination),
        service.unwrap_or_default(),
        header.traffic,
        header.started
    );
    page.wrapped(Paint::Plain, "", &text, 2);
}

/// A row: where, which interfaces, what, and the numbers.
pub(super) struct Row {
    paint: Paint,
    pub(super) words: [String; 3],
    pub(super) numbers: [String; 5],
}

fn table(page: &mut Page, report: &Report, names: &Names) {
    let mut rows = Vec::new();
    for (what, times) in &report.round_trips {
        let kind = match what {
            None => "echoes",
            Some(What::Handshake) => "handshakes",
            Some(What::Data) => "data",
            Some(What::Datagram) => "datagrams",
        };
        let words = ["round trip".to_owned(), format!("{} {kind}", grouped(times.count())), String::new()];
        rows.push(Row { paint: Paint::Bold, words, numbers: numbers(times, None) });
    }
    rows.extend(segments(report, names));
    // Where nothing arrived there is nothing to measure.
    if !rows.is_empty() {
        lay_out(page, &rows);
    }
}

/// A row for each segment, with a row before each direction.
pub(super) fn segments(report: &Report, names: &Names) -> Vec<Row> {
    let total = report.total_ns();
    let mut rows = Vec::new();
    let mut before: Option<&Key> = None;
    for (key, times) in &report.segments {
        if before.is_none_or(|before| before.direction != key.direction) {
            let word = match key.direction {
                Direction::Request => "request",
                Direction::Reply => "reply",
            };
            let words = [word.to_owned(), String::new(), String::new()];
            rows.push(Row { paint: Paint::Dim, words, numbers: Default::default() });
            before = None;
        }
        let place = site(key, names);
        let same = before.is_some_and(|before| site(before, names) == place);
        let shown = if same { String::new() } else { format!("  {place}") };
        let bound = if times.error_ns > 0 { format!(" +-{}", micros(times.error_ns)) } else { String::new() };
        let words = [shown, format!("{}{bound}", interfaces(key)), key.kind.word().to_owned()];
        let paint = if key.kind == Kind::Answer { Paint::Bold } else { Paint::Plain };
        rows.push(Row { paint, words, numbers: numbers(times, Some(total)) });
        before = Some(key);
    }
    rows
}

/// Of each segment, its share of all round trips.
pub(super) fn shares(report: &Report) -> Vec<f64> {
    let total = report.total_ns().max(1) as f64;
    report.segments.iter().map(|(_, times)| times.total_ns as f64 / total).collect()
}

fn numbers(times: &Times, total: Option<u128>) -> [String; 5] {
    let at = |percent| micros(times.percentile(percent));
    let share = total.map_or(String::new(), |total| percent(times.total_ns, total));
    [at(50.0), at(90.0), at(99.0), micros(times.histogram.max()), share]
}

/// The node or pod, or what lies between.
pub(super) fn site(key: &Key, names: &Names) -> String {
    match key.kind {
        Kind::Wire => "~ wire ~".to_owned(),
        Kind::Beyond => "~ beyond ~".to_owned(),
        _ => {
            let Place { node, pod, .. } = &key.from;
            pod.as_ref().map_or_else(|| format!("node {}", names.short(node)), |pod| format!("pod {pod}"))
        }
    }
}

fn interfaces(key: &Key) -> String {
    let (from, to) = (&key.from.interface, &key.to.interface);
    if key.kind == Kind::Queue || key.kind == Kind::Answer && from == to {
        return from.to_string();
    }
    format!("{from} -> {to}")
}

fn lay_out(page: &mut Page, rows: &[Row]) {
    let head = Row {
        paint: Paint::Dim,
        words: ["where".to_owned(), "interface".to_owned(), "what".to_owned()],
        numbers: ["p50", "p90", "p99", "max us", "share"].map(str::to_owned),
    };
    let rows: Vec<&Row> = std::iter::once(&head).chain(rows).collect();
    let widest = |cell: &dyn Fn(&Row) -> usize| rows.iter().map(|row| cell(row)).max().unwrap_or(0);
    let words: [usize; 3] = std::array::from_fn(|column| widest(&|row| row.words[column].chars().count()));
    let numbers: [usize; 5] = std::array::from_fn(|column| widest(&|row| row.numbers[column].chars().count()));
    for row in rows {
        let mut line = String::new();
        for (word, width) in row.words.iter().zip(words) {
            line.push_str(&format!("{word:<width$}  "));
        }
        for (number, width) in row.numbers.iter().zip(numbers) {
            line.push_str(&format!("{number:>width$}  "));
        }
        page.line(&[(row.paint, line.trim_end())]);
    }
}

fn failures(page: &mut Page, report: &Report, names: &Names) {
    let mut failures: Vec<(&Failure, &u64)> = report.failures.iter().collect();
    failures.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (of, count) in failures {
        let (what, place) = failure(of, names);
        page.wrapped(colour(of.outcome), &format!("{} {what}", grouped(*count)), &format!("  {place}"), 2);
    }
}

/// `lost requests`, and where and why.
pub(super) fn failure(failure: &Failure, names: &Names) -> (String, String) {
    let what = things(failure.direction);
    let word = word(failure.outcome).to_lowercase();
    let place = match (&failure.pod, &failure.node, &failure.interface) {
        (_, _, _) if failure.outcome == Outcome::Lost => String::new(),
        (Some(pod), _, Some(interface)) => format!("pod {pod} {interface}: "),
        (None, Some(node), Some(interface)) => format!("node {} {interface}: ", names.short(node)),
        (None, Some(node), None) => format!("node {}: ", names.short(node)),
        _ => String::new(),
    };
    (format!("{word}{what}"), format!("{place}{}", names.shorten(&failure.why)))
}

fn rewrites(page: &mut Page, report: &Report, names: &Names) {
    let mut rewrites: Vec<_> = report.rewrites.iter().collect();
    rewrites.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (rewrite, count) in rewrites.iter().take(MOST_REWRITES) {
        let word = if rewrite.action == Action::Snat { "SNAT" } else { "DNAT" };
        let (before, after, node) = (rewrite.before, rewrite.after, names.short(&rewrite.node));
        let text = format!("  {before} -> {after} on node {node}, {} exchanges", grouped(**count));
        page.wrapped(Paint::Bold, word, &text, 2);
    }
    let more = rewrites.len().saturating_sub(MOST_REWRITES);
    if more > 0 {
        page.line(&[(Paint::Dim, &format!("and {more} more rewrites (-o json has all)"))]);
    }
}
