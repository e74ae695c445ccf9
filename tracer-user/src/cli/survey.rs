//! `podpath nodes`: every node, its agent, and what can be traced there.

use std::path::Path;

use futures::{StreamExt, stream};
use serde::Serialize;

use super::{
    args::{Format, NodesArgs},
    error::Error,
    nodes::{self, Place},
    terminal::{Bar, Surroundings, write_stderr, write_stdout},
    yaml,
};
use crate::{
    cluster::Machine,
    doctor::{self, Check, State},
    session::{Connection, Examined, Hello, examine},
};

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// So many nodes are named below the table; of more there is a number.
const NAMED: usize = 3;

/// What is known of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Row {
    name: String,
    /// What its kubelet says; None without Kubernetes.
    ready: Option<bool>,
    address: Option<String>,
    kernel: Option<String>,
    os: Option<String>,
    /// The agent's pod, if it runs in one.
    pod: Option<String>,
    /// `0.1.0`
    version: Option<String>,
    /// `1.2`
    protocol: Option<String>,
    /// None: it could not be found out.
    can_trace: Option<bool>,
    checks: Vec<Check>,
    /// Why not all is known: thing, cause, way out.
    error: Option<String>,
}

/// Asks all nodes, or those named, and prints; 0 if each of them can be traced, else 1.
///
/// # Errors
/// The nodes cannot be listed, or the result not be written.
pub(super) async fn run(args: &NodesArgs) -> Result<u8, Error> {
    let (place, choice) = nodes::place(args.inventory.as_deref(), args.lab.as_deref(), &args.access, false)?;
    if let Some(choice) = choice {
        write_stderr(&format!("podpath: {choice}\n"));
    }
    let (context, rows) = match place {
        Place::Kubernetes => of_kubernetes(args).await?,
        Place::File(path) => of_inventory(args, &path).await?,
    };
    let look = Surroundings::of_stdout().look();
    let out = match args.output {
        Format::Text => text(&rows, false, look.width),
        Format::Wide => text(&rows, true, look.width),
        Format::Json => json(context.as_deref(), &rows),
        Format::Yaml => yaml(json(context.as_deref(), &rows).as_bytes()),
    };
    write_stdout(out.as_bytes()).map_err(Error::Output)?;
    Ok(u8::from(!rows.iter().all(|row| row.can_trace == Some(true))))
}

async fn of_kubernetes(args: &NodesArgs) -> Result<(Option<String>, Vec<Row>), Error> {
    let cluster = args.access.cluster().await?;
    let machines = cluster.machines().await?;
    let machines = wanted(machines, |machine| &machine.name, &args.nodes)?;
    let asked = machines.into_iter().map(async |machine| {
        let Machine { name, ready, address, kernel, os, agent } = machine;
        let row =
            Row { name, ready: Some(ready), address, kernel, os, pod: agent.as_ref().ok().cloned(), ..Row::default() };
        let session = match agent {
            Ok(pod) => cluster.session(&row.name, &pod).await,
            Err(error) => Err(error),
        };
        examined(args, row, session.map_err(Error::from)).await
    });
    Ok((Some(cluster.context.clone()), all(asked).await))
}

async fn of_inventory(args: &NodesArgs, path: &Path) -> Result<(Option<String>, Vec<Row>), Error> {
    let mut cluster = nodes::load(path)?;
    let nodes = wanted(std::mem::take(&mut cluster.nodes), |node| &node.name, &args.nodes)?;
    let asked = nodes.into_iter().map(async |node| {
        let session = cluster.connect_to(&node).await;
        examined(args, Row { name: node.name, ..Row::default() }, session).await
    });
    Ok((cluster.context.clone(), all(asked).await))
}

/// Those that were named, or all where none was.
fn wanted<T>(mut nodes: Vec<T>, name: impl Fn(&T) -> &String, named: &[String]) -> Result<Vec<T>, Error> {
    if let Some(unknown) = named.iter().find(|named| nodes.iter().all(|node| name(node) != *named)) {
        let known = nodes.iter().map(|node| name(node).clone()).collect();
        return Err(Error::NoSuchNode { wanted: unknown.clone(), known });
    }
    nodes.retain(|node| named.is_empty() || named.contains(name(node)));
    Ok(nodes)
}

/// All rows, in the order of the questions.
async fn all<F: Future<Output = Row>>(asked: impl ExactSizeIterator<Item = F>) -> Vec<Row> {
    let of = asked.len();
    let bar = Bar::start(of, "asking");
    let mut rows = Vec::with_capacity(of);
    let mut answers = stream::iter(asked).buffered(AT_ONCE);
    while let Some(row) = answers.next().await {
        rows.push(row);
        bar.at(rows.len(), of, "nodes asked".to_owned());
    }
    rows
}

/// Adds what the node itself says.
async fn examined(args: &NodesArgs, row: Row, session: Result<Connection, Error>) -> Row {
    match session {
        Ok(connection) => told(row, examine(connection, args.ready_within).await),
        Err(error) => Row { error: Some(error.to_string()), ..row },
    }
}

fn told(mut row: Row, examined: Examined) -> Row {
    let Examined { hello, checks, death } = examined;
    if let Some(Hello { protocol, program, about }) = hello {
        row.version = Some(program.strip_prefix("podpath-agent ").unwrap_or(&program).to_owned());
        row.protocol = Some(format!("{}.{}", protocol.major, protocol.minor));
        row.kernel = Some(about.kernel);
    }
    if let Some(checks) = checks {
        row.can_trace = Some(doctor::can_trace(&checks));
        row.checks = checks;
    }
    row.error = death.map(|death| format!("node {}: {death}", row.name));
    row
}

/// As programs read it: one object, `podpath.nodes/v1`, which only grows.
fn json(context: Option<&str>, rows: &[Row]) -> String {
    format!("{:#}\n", serde_json::json!({ "schema": "podpath.nodes/v1", "context": context, "nodes": rows }))
}

/// As people read it: a line per node, and below it what is missing where, and what that costs.
fn text(rows: &[Row], wide: bool, width: usize) -> String {
    let mut table = vec![header(wide)];
    table.extend(rows.iter().map(|row| cells(row, wide)));
    // A column that nobody has anything in says nothing.
    let columns = table[0].len();
    let told: Vec<usize> = (0..columns).filter(|&at| table[1..].iter().any(|line| !line[at].is_empty())).collect();
    let widths: Vec<usize> =
        told.iter().map(|&at| table.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &table {
        let cells = told.iter().zip(&widths).map(|(&at, width)| {
            let cell = if line[at].is_empty() { "-" } else { &line[at] };
            format!("{cell:width$}")
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    for (nodes, limits) in limits(rows, wide) {
        text += &format!("\n{}:\n", if nodes.len() == rows.len() { "on all nodes".to_owned() } else { places(&nodes) });
        limits.iter().for_each(|limit| text += &paragraph(limit, "  ", width));
    }
    for error in rows.iter().filter_map(|row| row.error.as_deref()) {
        text.push('\n');
        text += &paragraph(error, "", width);
    }
    text
}

/// Sets of nodes, and what is missing on all of a set: `kprobes, tracing: what that costs`.
fn limits(rows: &[Row], wide: bool) -> Vec<(Vec<&str>, Vec<String>)> {
    // What one cost has in common, in the order in which it was met first.
    let mut costs: Vec<(&str, Vec<&str>, Vec<&str>)> = Vec::new();
    for row in rows {
        for check in row.checks.iter().filter(|check| is_limit(check, wide)) {
            let known = costs.iter().position(|(cost, ..)| *cost == check.cost);
            let at = known.unwrap_or_else(|| {
                costs.push((&check.cost, Vec::new(), Vec::new()));
                costs.len() - 1
            });
            let (_, names, nodes) = &mut costs[at];
            for (list, new) in [(names, &*check.name), (nodes, &*row.name)] {
                if !list.contains(&new) {
                    list.push(new);
                }
            }
        }
    }
    let mut sets: Vec<(Vec<&str>, Vec<String>)> = Vec::new();
    for (cost, names, nodes) in costs {
        let limit = format!("{}: {cost}", names.join(", "));
        match sets.iter_mut().find(|(known, _)| *known == nodes) {
            Some((_, limits)) => limits.push(limit),
            None => sets.push((nodes, vec![limit])),
        }
    }
    sets
}

/// What could not be found out is shown only to whoever wants to see more.
fn is_limit(check: &Check, wide: bool) -> bool {
    match check.state {
        State::Ok => false,
        State::Unknown => wide,
        State::Missing | State::Fatal => true,
    }
}

fn paragraph(text: &str, indent: &str, width: usize) -> String {
    let lines = doctor::wrap(text, width.saturating_sub(indent.len() + 2));
    let mut lines = lines.iter();
    let first = lines.next().map(|line| format!("{indent}{line}\n")).unwrap_or_default();
    lines.fold(first, |text, line| text + &format!("{indent}  {line}\n"))
}

fn header(wide: bool) -> Vec<String> {
    let (names, more) = (["NODE", "STATUS", "AGENT", "KERNEL", "TRACES"], ["PROTOCOL", "ADDRESS", "OS", "POD"]);
    names.iter().chain(more.iter().filter(|_| wide)).map(|&name| name.to_owned()).collect()
}

fn cells(row: &Row, wide: bool) -> Vec<String> {
    let told = |value: &Option<String>| value.clone().unwrap_or_default();
    let status = row.ready.map_or("", |ready| if ready { "Ready" } else { "NotReady" }).to_owned();
    let limited = row.checks.iter().any(|check| is_limit(check, false));
    let traces = match row.can_trace {
        None => "?",
        Some(true) if limited => "yes, with limits",
        Some(true) => "yes",
        Some(false) => "no",
    };
    let mut cells = vec![row.name.clone(), status, told(&row.version), told(&row.kernel), traces.to_owned()];
    if wide {
        cells.extend([told(&row.protocol), told(&row.address), told(&row.os), told(&row.pod)]);
    }
    cells
}

fn places(nodes: &[&str]) -> String {
    match nodes {
        some if some.len() <= NAMED => some.join(", "),
        many => format!("{} and {} more", many[..NAMED].join(", "), many.len() - NAMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{About, Version};

    fn check(name: &str, state: State, cost: &str) -> Check {
        Check { name: name.to_owned(), state, detail: "found".to_owned(), cost: cost.to_owned() }
    }

    fn rows() -> Vec<Row> {
        let row = |name: &str, ready| Row {
            name: name.to_owned(),
            ready: Some(ready),
            address: Some("172.20.50.50".to_owned()),
            os: Some("Debian GNU/Linux 13 (trixie)".to_owned()),
            kernel: Some("6.12.107+deb13-amd64".to_owned()),
            ..Row::default()
        };
        let hello = |minor| Hello {
            protocol: Version { major: 1, minor },
            program: "podpath-agent 0.1.0".to_owned(),
            about: About { kernel: "6.1.0-46-amd64".to_owned(), ..About::default() },
        };
        let kprobes = check("kprobes", State::Missing, "the rule that dropped a packet is found by its counters only");
        let all =
            Examined { hello: Some(hello(2)), checks: Some(vec![check("kernel BTF", State::Ok, "")]), death: None };
        let some = |state| Examined {
            hello: Some(hello(2)),
            checks: Some(vec![kprobes.clone(), check("kernel BTF", state, "nothing can be traced")]),
            death: None,
        };
        let error = "node node-4: no agent runs there; install the agents (podpath install)";
        vec![
            told(row("node-1", true), all),
            told(row("node-2", true), some(State::Ok)),
            told(row("node-3", true), some(State::Fatal)),
            Row { error: Some(error.to_owned()), ..row("node-4", false) },
        ]
    }

    #[test]
    fn a_person_reads_who_can_what() {
        insta::assert_snapshot!(text(&rows(), false, 100));
    }

    #[test]
    fn wide_says_where() {
        insta::assert_snapshot!(text(&rows()[1..2], true, 160));
    }

    #[test]
    fn a_program_reads_all_of_it() {
        insta::assert_snapshot!(yaml(json(Some("kind"), &rows()[1..2]).as_bytes()));
    }

    #[test]
    fn a_column_that_nobody_has_anything_in_is_left_out() {
        let lab = Row { name: "node1".to_owned(), can_trace: Some(true), ..Row::default() };
        assert_eq!(text(&[lab], true, 80), "NODE   TRACES\nnode1  yes\n");
    }

    #[test]
    fn nodes_can_be_named() {
        let all = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(wanted(all(), |name| name, &[]).expect("all"), all());
        assert_eq!(wanted(all(), |name| name, &["b".to_owned()]).expect("one"), ["b"]);
        let error = wanted(all(), |name| name, &["c".to_owned()]).expect_err("none");
        assert_eq!(error.to_string(), "node c: there is none of that name; there are: a, b");
    }
}
