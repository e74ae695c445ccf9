//! The table of one path.

use super::{
    hops::{Step, steps},
    line::{Page, Paint, wrap},
    names::Names,
    rounds::{Rounds, rounds},
    units::{micros, time},
};
use crate::path::model::{Action, Basis, Direction, Exchange, Hop, ShareOf, Trace};

/// A row ready to be laid out.
#[derive(Debug, Default)]
struct Row {
    cells: [String; 6],
    /// Of where, and of what happened.
    paint: (Paint, Paint),
    /// What happened may begin in the interface's column: it has none.
    aside: bool,
}

const NUMBER: usize = 0;
const WHERE: usize = 1;
const INTERFACE: usize = 2;
const WHAT: usize = 3;
const TTL: usize = 4;
const TIME: usize = 5;

/// Writes the table of one direction.
pub(super) fn table(page: &mut Page, trace: &Trace, names: &Names, exchange: &Exchange, direction: Direction) {
    let path = match direction {
        Direction::Request => &exchange.request,
        Direction::Reply => &exchange.reply,
    };
    let mut rows = Rows { trace, names, exchange, direction, rows: vec![header()], last: None };
    let steps = steps(path, direction);
    let arrives = |at: usize| steps[at].hop.action == Action::Received;
    let again = rounds(&steps.iter().map(alike).collect::<Vec<_>>(), arrives);
    // The first round stands for all.
    let hidden = again.map_or(0..0, |Rounds { start, len, count }| start + len..start + len * count);
    for (index, step) in steps.iter().enumerate() {
        if !hidden.contains(&index) {
            rows.step(step);
        } else if index + 1 == hidden.end {
            rows.again(step, again.map_or(0, |rounds| rounds.count - 1));
        }
    }
    rows.beyond();
    lay_out(page, &rows.rows);
}

/// By what steps of two rounds of a loop are the same; the ports of a rewrite are others each time.
fn alike<'a>(step: &'a Step<'_>) -> impl PartialEq + use<'a> {
    let Hop { node, pod, interface, action, .. } = step.hop;
    (node, pod, interface, action, (!rewrites(step.hop)).then_some(&step.what))
}

fn header() -> Row {
    let cells = ["#", "where", "interface", "what happened", "ttl", "us"].map(str::to_owned);
    Row { cells, paint: (Paint::Dim, Paint::Dim), aside: false }
}

struct Rows<'a> {
    trace: &'a Trace,
    names: &'a Names,
    exchange: &'a Exchange,
    direction: Direction,
    rows: Vec<Row>,
    /// The step before: its hop, its time, and how many rows its node or pod has so far.
    last: Option<(&'a Hop, Option<u64>, usize)>,
}

impl<'a> Rows<'a> {
    fn step(&mut self, step: &Step<'a>) {
        let hop = step.hop;
        if let Some((before, _, _)) = self.last
            && before.node != hop.node
        {
            self.wire(before, hop);
        }
        let row = match self.last {
            Some((before, _, rows)) if before.node == hop.node && before.pod == hop.pod => rows,
            _ => 0,
        };
        let (place, paint) = self.place(hop, row);
        let elapsed = match (self.last, hop.at_ns) {
            (None, Some(_)) => "0".to_owned(),
            // What did not happen has no time, and a rewrite is seen only when the packet leaves.
            _ if step.failed || rewrites(hop) => ".".to_owned(),
            (Some((before, Some(from), _)), Some(to)) if before.node == hop.node => {
                format!("+{}", micros(to.saturating_sub(from)))
            }
            _ => ".".to_owned(),
        };
        let mut cells: [String; 6] = Default::default();
        cells[NUMBER] = step.number.map_or(String::new(), |number| number.to_string());
        cells[WHERE] = place;
        cells[INTERFACE] = hop.interface.as_deref().unwrap_or(".").to_owned();
        cells[WHAT] = self.names.shorten(&step.what);
        cells[TTL] = hop.ttl.map_or_else(|| ".".to_owned(), |ttl| ttl.to_string());
        cells[TIME] = elapsed;
        let what = if step.failed { Paint::Bad } else { Paint::Plain };
        self.rows.push(Row { cells, paint: (paint, what), aside: false });
        // A step without a time of its own (a route, read afterwards) does not interrupt the count.
        let same_node = self.last.filter(|(before, _, _)| before.node == hop.node);
        let at = hop.at_ns.filter(|_| !rewrites(hop)).or(same_node.and_then(|(_, at, _)| at));
        self.last = Some((hop, at, row + 1));
    }

    /// A node's second row shows its address, if known; a pod's says nothing twice.
    fn place(&self, hop: &Hop, row: usize) -> (String, Paint) {
        match (&hop.pod, row) {
            (Some(pod), 0) => (format!("pod {pod}"), Paint::Bold),
            (None, 0) => (format!("node {}", self.names.short(&hop.node)), Paint::Plain),
            (None, 1) => {
                let node = self.trace.nodes.iter().find(|node| *node.name == *hop.node);
                (node.and_then(|node| node.address).map_or(String::new(), |address| address.to_string()), Paint::Plain)
            }
            _ => (String::new(), Paint::Plain),
        }
    }

    fn wire(&mut self, from: &Hop, to: &Hop) {
        let is = |a: &str, b: &str| *a == *from.node && *b == *to.node;
        let share = self.exchange.shares.iter().find_map(|share| match &share.of {
            ShareOf::Wire { from, to } if is(from, to) || is(to, from) => Some(share.ns),
            _ => None,
        });
        let both = share.map(|ns| format!("{} there and back", time(ns)));
        let one = match (from.at_ns, to.at_ns) {
            // Without a bound there is no estimate: the clocks were not related.
            (Some(left), Some(came)) if to.error_ns > 0 => {
                let one = came.saturating_sub(left);
                // Of what an ICMP error answered there is no round trip; its wire was crossed both ways all the same.
                let unit = super::units::Unit::of(share.unwrap_or(one.saturating_mul(2)));
                let told = if share.is_some() { unit.number(one) } else { unit.with_name(one) };
                Some(format!("one way {told} +-{}", unit.number(to.error_ns)))
            }
            _ => None,
        };
        let known: Vec<String> = both.into_iter().chain(one).collect();
        let text = if known.is_empty() {
            "time unknown (no reply to compare the clocks by)".to_owned()
        } else {
            known.join("; ")
        };
        self.aside("~ wire ~", text);
    }

    /// What lies behind the last traced node.
    fn beyond(&mut self) {
        let beyond = self.exchange.shares.iter().find_map(|share| match &share.of {
            ShareOf::Beyond { .. } => Some(share.ns),
            _ => None,
        });
        if let (Direction::Request, Some(ns)) = (self.direction, beyond) {
            self.aside("~ beyond ~", format!("not traced; {} until the reply came back", time(ns)));
        }
    }

    /// So many more rounds of a loop, to this step.
    fn again(&mut self, last: &Step<'a>, rounds: usize) {
        self.aside("~ loop ~", format!("the same {rounds} times more; all of it: -v"));
        self.last = Some((last.hop, last.hop.at_ns, 0));
    }

    fn aside(&mut self, place: &str, what: String) {
        let mut cells: [String; 6] = Default::default();
        cells[WHERE] = place.to_owned();
        cells[WHAT] = what;
        self.rows.push(Row { cells, paint: (Paint::Dim, Paint::Dim), aside: true });
    }
}

/// A rewrite whose moment no hook saw.
fn rewrites(hop: &Hop) -> bool {
    let seen = hop.detail.nat.as_ref().is_some_and(|nat| nat.moment == Basis::Observed);
    matches!(hop.action, Action::Snat | Action::Dnat | Action::Unsnat | Action::Undnat) && !seen
}

/// Where room is short, a route leaves out the device, which stands in its own column.
fn fitting(row: &Row, width: usize) -> std::borrow::Cow<'_, str> {
    let what = &row.cells[WHAT];
    if what.chars().count() > width
        && let Some(brief) = what.strip_suffix(&format!(" dev {}", row.cells[INTERFACE]))
    {
        return if brief.contains(" via ") { brief.into() } else { format!("{brief} direct").into() };
    }
    what.into()
}

/// Columns as wide as their content; where that is too wide, what happened goes on in the next line.
fn lay_out(page: &mut Page, rows: &[Row]) {
    let widest = |column: usize| rows.iter().map(|row| row.cells[column].chars().count()).max().unwrap_or(0);
    let mut widths: [usize; 6] = std::array::from_fn(widest);
    let gaps = 2 * (widths.len() - 1);
    let others: usize = widths.iter().sum::<usize>() - widths[WHAT] + gaps;
    widths[WHAT] = widths[WHAT].min(page.width().saturating_sub(others).max(16));
    for row in rows {
        if row.aside && row.cells[WHAT].chars().count() > widths[WHAT] {
            let place = format!("{:<width$}  ", row.cells[WHERE], width = widths[WHERE]);
            let indent = " ".repeat(widths[NUMBER] + 2);
            page.line(&[(Paint::Plain, &indent), (row.paint.0, &place), (row.paint.1, &row.cells[WHAT])]);
            continue;
        }
        let pad = |column: usize| format!("{:<width$}  ", row.cells[column], width = widths[column]);
        let right = |column: usize| format!("{:>width$}", row.cells[column], width = widths[column]);
        let mut what = wrap(&fitting(row, widths[WHAT]), widths[WHAT], widths[WHAT]).into_iter();
        let first = format!("{:<width$}  ", what.next().unwrap_or_default(), width = widths[WHAT]);
        let (place, paint) = row.paint;
        let rest = if place == Paint::Dim { Paint::Dim } else { Paint::Plain };
        page.line(&[
            (rest, &pad(NUMBER)),
            (place, &pad(WHERE)),
            (rest, &pad(INTERFACE)),
            (paint, &first),
            (rest, &format!("{}  {}", right(TTL), right(TIME))),
        ]);
        let indent = " ".repeat(widths[NUMBER] + widths[WHERE] + widths[INTERFACE] + 6);
        for more in what {
            page.line(&[(Paint::Plain, &indent), (paint, &more)]);
        }
    }
}
