//! The page itself: results to Markdown, pure.

use std::{collections::BTreeMap, fmt::Write};

use super::{Check, Column};
use crate::{
    scenario::Scenario,
    vm::{
        pair,
        suite::{Outcome, PAIR, SCENARIOS, Tested, WHOLE},
    },
};

/// What `podpath doctor` calls a part of the kernel, and what a scenario expects where that has a part in it.
pub(super) const PARTS: &[(&str, &[&str])] = &[
    ("drop reasons", DROP),
    ("nf_hook_slow", DROP),
    ("ipt_do_table", DROP),
    ("ip6t_do_table", DROP),
    ("nft_do_chain", DROP),
    ("NAT tuples", NAT),
    ("nf_nat_manip_pkt", NAT),
];
const DROP: &[&str] = &["dropped"];
const NAT: &[&str] = &["snat", "dnat", "unsnat", "undnat"];

pub(super) fn page(scenarios: &[(String, Scenario)], columns: &[Column], missing: &[String]) -> String {
    let mut text = String::from(
        "# Kernels\n\nWritten by `cargo xtask vm --matrix` from runs of every scenario and of the tests of kernel programs and labs \
         on every kernel below, each in a virtual machine, at the commit above its column or in the cell. Do not edit: run it again.\n\n\
         *works*: the trace showed every hop, reason and number that the scenario's file demands. *works without*: it did, \
         but `podpath doctor` misses something on that kernel that has a part in this; what that costs is said below.\n\n",
    );
    if !missing.is_empty() {
        line(&mut text, format_args!("**Not run**: {}.\n", missing.join(", ")));
    }
    let (pairs, singles): (Vec<&Column>, Vec<&Column>) = columns.iter().partition(|column| column.is_pair());
    table(&mut text, &singles, &rows(scenarios));
    if !pairs.is_empty() {
        text.push_str(
            "\n## Two kernels at once\n\nEach node of the lab in a VM of its own: two kernels with two clocks, joined by a \
             wire. `/one-way-bounds`: what the trace says of the clocks holds against the host's.\n\n",
        );
        table(&mut text, &pairs, &pair_rows(scenarios, &pairs));
    }
    text.push_str("\n## What these kernels lack\n\nBy `podpath doctor` in each of them.\n\n");
    let lacks = lacks(&singles);
    lacks.iter().for_each(|(lack, releases)| line(&mut text, format_args!("- {lack} ({})", releases.join(", "))));
    if lacks.is_empty() {
        text.push_str("Nothing.\n");
    }
    let broken: Vec<String> = columns.iter().flat_map(broken).collect();
    if !broken.is_empty() {
        text.push_str("\n## What went wrong beyond the tests\n");
        broken.iter().for_each(|broken| line(&mut text, format_args!("\n{broken}")));
    }
    text
}

/// Writing to a String cannot fail.
fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{line}");
}

struct Row<'a> {
    name: &'a str,
    about: &'a str,
    cell: Box<dyn Fn(&Column) -> String + 'a>,
}

fn table(text: &mut String, columns: &[&Column], rows: &[Row<'_>]) {
    let header: String =
        columns.iter().map(|column| format!(" {} at {} |", column.releases.join(" + "), column.commit)).collect();
    line(text, format_args!("| | what it is about |{header}\n|---|---|{}", "---|".repeat(columns.len())));
    for Row { name, about, cell } in rows {
        let cells: String = columns.iter().map(|column| format!(" {} |", escaped(&cell(column)))).collect();
        line(text, format_args!("| {name} | {} |{cells}", escaped(about)));
    }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn rows(scenarios: &[(String, Scenario)]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (name, scenario) in scenarios {
        let cell = Box::new(move |column: &Column| scenario_cell(name, scenario, column));
        rows.push(Row { name, about: &scenario.about, cell });
    }
    for program in WHOLE {
        let about = match *program {
            "kernel" => "all tests of the kernel programs",
            _ => "all tests of the labs themselves",
        };
        rows.push(Row { name: program, about, cell: Box::new(|column| program_cell(program, column)) });
    }
    rows
}

fn pair_rows<'a>(scenarios: &'a [(String, Scenario)], pairs: &[&'a Column]) -> Vec<Row<'a>> {
    let mut names: Vec<&str> = pair::SCENARIOS.to_vec();
    for tested in pairs.iter().flat_map(|pair| &pair.results) {
        if !names.contains(&tested.name.as_str()) {
            names.push(&tested.name);
        }
    }
    names.sort_unstable();
    let about = |name: &str| match scenarios.iter().find(|(known, _)| known == name) {
        Some((_, scenario)) => scenario.about.as_str(),
        None if name.ends_with("/recording") => "20 s of live pings recorded while the clocks drift apart",
        None => "what its trace says of the two clocks",
    };
    let row = |name: &'a str| Row {
        name,
        about: about(name),
        cell: Box::new(move |column| match result(column, PAIR, name) {
            Some(tested) => word(&tested.outcome) + &at(tested, column),
            None => none(column),
        }),
    };
    names.into_iter().map(row).collect()
}

fn result<'a>(column: &'a Column, program: &str, name: &str) -> Option<&'a Tested> {
    column.results.iter().find(|tested| tested.program == program && tested.name == name)
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "works".to_owned(),
        Outcome::Failed => "**fails**".to_owned(),
        Outcome::Ignored(reason) => format!("not run: {reason}"),
    }
}

/// Where it was run at another commit than the rest.
fn at(tested: &Tested, column: &Column) -> String {
    let other = !tested.commit.is_empty() && tested.commit != column.commit;
    if other { format!(" at {}", tested.commit) } else { String::new() }
}

/// Why there is no result.
fn none(column: &Column) -> String {
    match column.broken.is_empty() {
        true => "**not run**: not asked for yet".to_owned(),
        false => "**not run**: the VM ended before, see below".to_owned(),
    }
}

fn scenario_cell(name: &str, scenario: &Scenario, column: &Column) -> String {
    let Some(tested) = result(column, SCENARIOS, name) else { return none(column) };
    let without: Vec<String> = column
        .checks
        .iter()
        .filter(|check| check.state != "ok" && matters(&check.name, scenario))
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    let word = match (&tested.outcome, without.as_slice()) {
        (Outcome::Passed, [_, ..]) => format!("works without {}", without.join("; ")),
        (outcome, _) => word(outcome),
    };
    word + &at(tested, column)
}

fn matters(check: &str, scenario: &Scenario) -> bool {
    let hops = || scenario.expect.request.iter().chain(&scenario.expect.reply);
    let expects = |words: &[&str]| hops().any(|hop| hop.split([' ', ':']).any(|word| words.contains(&word)));
    PARTS.iter().any(|(name, words)| *name == check && expects(words))
}

fn program_cell(program: &str, column: &Column) -> String {
    let tests: Vec<&Tested> = column.results.iter().filter(|tested| tested.program == program).collect();
    if tests.is_empty() {
        return none(column);
    }
    let passed = tests.iter().filter(|tested| tested.outcome == Outcome::Passed).count();
    let others = tests.iter().filter(|tested| tested.outcome != Outcome::Passed);
    let others = others.map(|tested| format!("; {} {}", tested.name, word(&tested.outcome)));
    format!("{passed} pass{}", others.collect::<String>())
}

/// Everything that is missing, or not known to be there, with the kernels it was found on.
fn lacks<'a>(columns: &[&'a Column]) -> BTreeMap<String, Vec<&'a str>> {
    let mut lacks: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for column in columns {
        for Check { name, state, detail, cost } in column.checks.iter().filter(|check| check.state != "ok") {
            let unknown = if state == "unknown" { "not known; " } else { "" };
            let releases = lacks.entry(format!("**{name}**: {unknown}{detail}; {cost}")).or_default();
            releases.extend(column.releases.iter().map(String::as_str));
        }
    }
    lacks
}

fn broken(column: &Column) -> Vec<String> {
    let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    column.broken.iter().map(|text| format!("{}:\n\n{}", column.releases.join(" + "), indented(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(hop: &str) -> Scenario {
        let text = format!(
            "about = 'A: x|y'\nlab = ''\ntrace = ''\n[expect]\nexit = 0\nexchanges = 1\noutcome = 'delivered'\nrouters = []\n\
             request = ['{hop}']\nreply = []\ntext = []\n"
        );
        toml::from_str(&text).unwrap()
    }

    fn check(name: &str, state: &str) -> Check {
        let (detail, cost) = ("not named by this kernel".to_owned(), "derived from the place".to_owned());
        Check { name: name.to_owned(), state: state.to_owned(), detail, cost }
    }

    fn tested(program: &str, name: &str, outcome: Outcome) -> Tested {
        Tested::new(program, name, outcome)
    }

    #[test]
    fn every_cell_says_what_came_of_it() {
        let scenarios = [
            ("a-cross-node".to_owned(), scenario("node1 ens5 received ttl 63")),
            ("a-dropped".to_owned(), scenario("node1 ens5 dropped ttl 63: by a rule")),
            ("a-fails".to_owned(), scenario("node1 ens5 received ttl 63")),
            ("a-nat".to_owned(), scenario("node1 ens5 snat ttl 63")),
            ("a-tunnel".to_owned(), scenario("node1 tunl0 encapsulated")),
            ("a-unheard".to_owned(), scenario("node1 ens5 received ttl 63")),
        ];
        let no_tunnel = Outcome::Ignored("this kernel cannot make tunl0".to_owned());
        let commit = || "0123456789ab".to_owned();
        let old = Column {
            commit: commit(),
            wanted: "5.10".to_owned(),
            releases: vec!["5.10.0".to_owned()],
            checks: vec![check("drop reasons", "missing"), check("NAT tuples", "ok")],
            results: vec![
                tested("kernel", "hooks", Outcome::Passed),
                tested("kernel", "rings", Outcome::Failed),
                tested(SCENARIOS, "a-dropped", Outcome::Passed),
                tested(SCENARIOS, "a-fails", Outcome::Failed),
                tested(SCENARIOS, "a-nat", Outcome::Passed),
                tested(SCENARIOS, "a-tunnel", no_tunnel),
            ],
            broken: vec!["vm 5.10: its kernel broke\n    BUG".to_owned()],
        };
        let new = Column {
            wanted: "7.x".to_owned(),
            releases: vec!["7.3.1".to_owned()],
            checks: vec![check("drop reasons", "ok"), check("locked memory", "unknown")],
            results: vec![Tested {
                commit: "ba9876543210".to_owned(),
                ..tested(SCENARIOS, "a-dropped", Outcome::Passed)
            }],
            commit: commit(),
            ..Column::default()
        };
        let pair = Column {
            commit: commit(),
            wanted: "6.1+6.12".to_owned(),
            releases: vec!["6.1.0".to_owned(), "6.12.1".to_owned()],
            results: vec![
                tested(PAIR, "a-cross-node", Outcome::Passed),
                tested(PAIR, "a-cross-node/one-way-bounds", Outcome::Failed),
            ],
            ..Column::default()
        };
        insta::assert_snapshot!(page(&scenarios, &[old, new, pair], &["6.1".to_owned()]), @r#"
        # Kernels

        Written by `cargo xtask vm --matrix` from runs of every scenario and of the tests of kernel programs and labs on every kernel below, each in a virtual machine, at the commit above its column or in the cell. Do not edit: run it again.

        *works*: the trace showed every hop, reason and number that the scenario's file demands. *works without*: it did, but `podpath doctor` misses something on that kernel that has a part in this; what that costs is said below.

        **Not run**: 6.1.

        | | what it is about | 5.10.0 at 0123456789ab | 7.3.1 at 0123456789ab |
        |---|---|---|---|
        | a-cross-node | A: x\|y | **not run**: the VM ended before, see below | **not run**: not asked for yet |
        | a-dropped | A: x\|y | works without drop reasons: not named by this kernel | works at ba9876543210 |
        | a-fails | A: x\|y | **fails** | **not run**: not asked for yet |
        | a-nat | A: x\|y | works | **not run**: not asked for yet |
        | a-tunnel | A: x\|y | not run: this kernel cannot make tunl0 | **not run**: not asked for yet |
        | a-unheard | A: x\|y | **not run**: the VM ended before, see below | **not run**: not asked for yet |
        | kernel | all tests of the kernel programs | 1 pass; rings **fails** | **not run**: not asked for yet |
        | profiles | all tests of the labs themselves | **not run**: the VM ended before, see below | **not run**: not asked for yet |

        ## Two kernels at once

        Each node of the lab in a VM of its own: two kernels with two clocks, joined by a wire. `/one-way-bounds`: what the trace says of the clocks holds against the host's.

        | | what it is about | 6.1.0 + 6.12.1 at 0123456789ab |
        |---|---|---|
        | a-cross-node | A: x\|y | works |
        | a-cross-node/one-way-bounds | what its trace says of the two clocks | **fails** |
        | a-ipip-cross-node | what its trace says of the two clocks | **not run**: not asked for yet |
        | b-vxlan-cross-node | what its trace says of the two clocks | **not run**: not asked for yet |

        ## What these kernels lack

        By `podpath doctor` in each of them.

        - **drop reasons**: not named by this kernel; derived from the place (5.10.0)
        - **locked memory**: not known; not named by this kernel; derived from the place (7.3.1)

        ## What went wrong beyond the tests

        5.10.0:

            vm 5.10: its kernel broke
                BUG
        "#);
    }
}
