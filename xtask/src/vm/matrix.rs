//! `docs/KERNELS.md`: what works on which kernel, as a run of everything on all of them showed it.

use std::{collections::BTreeMap, fmt::Write, fs, time::Duration};

use anyhow::{Context, Result};

use super::{
    bench::{Bench, Vm},
    client::Event,
    suite::{Outcome, Report, Suite},
};
use crate::{
    proc,
    scenario::{self, Scenario},
    workspace_root,
};

const FILE: &str = "docs/KERNELS.md";
/// `podpath doctor` loads the kernel programs once.
const DOCTOR_LIMIT: Duration = Duration::from_secs(180);

/// One kernel's part.
struct Column {
    release: String,
    report: Report,
    findings: Vec<Finding>,
}

/// A line of `podpath doctor` that is not `ok`, and what that costs.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    name: String,
    state: String,
    cost: String,
}

/// Runs everything on every kernel and writes the file; whether all is well.
///
/// # Errors
/// A VM cannot be brought up, or the file cannot be written.
pub(super) fn write(bench: &Bench, suite: &Suite) -> Result<bool> {
    let scenarios = scenario::load(&workspace_root().join("scenarios"))?;
    let mut columns = Vec::new();
    for kernel in &bench.assets.kernels {
        let vm = bench.boot(kernel, &kernel.wanted.to_string(), None)?;
        let findings = doctor(bench, &vm)?;
        let report = suite.run(bench, &vm, &format!("{}/", kernel.wanted));
        columns.push(Column { release: kernel.release.clone(), report, findings });
    }
    let path = workspace_root().join(FILE);
    fs::write(&path, page(&scenarios, &columns)).with_context(|| format!("write {}", path.display()))?;
    proc::say(&format!("vm: wrote {}", path.display()));
    Ok(columns.iter().all(|column| column.report.ended_well()))
}

fn doctor(bench: &Bench, vm: &Vm) -> Result<Vec<Finding>> {
    let mut text = Vec::new();
    vm.run(0, &bench.shell("podpath doctor")?, DOCTOR_LIMIT, |event| {
        if let Event::Output(bytes) = event {
            text.extend_from_slice(bytes);
        }
        Ok(())
    })?;
    Ok(findings(&String::from_utf8_lossy(&text)))
}

/// Lines such as `missing  drop reasons      none`, each with what it costs indented on the next.
fn findings(text: &str) -> Vec<Finding> {
    const STATE: usize = 9;
    const NAME: usize = 18;
    let mut found: Vec<Finding> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(cost) = line.strip_prefix(&" ".repeat(STATE + NAME)) {
            if let Some(finding) = found.last_mut().filter(|_| open) {
                finding.cost = cost.to_owned();
            }
            continue;
        }
        open = line.starts_with("missing ") || line.starts_with("unknown ");
        if open && let (Some(name), Some(state)) = (line.get(STATE..STATE + NAME), line.get(STATE + NAME..)) {
            found.push(Finding { name: name.trim().to_owned(), state: state.to_owned(), cost: String::new() });
        }
    }
    found
}

fn page(scenarios: &[(String, Scenario)], columns: &[Column]) -> String {
    let mut text = "# Kernels\n\nWritten by `cargo xtask vm --matrix` from a run of every scenario and of the kernel programs' tests on every \
                    kernel below, each in a virtual machine. Do not edit: run it again.\n\n"
        .to_owned();
    let header: String = columns.iter().map(|column| format!(" {} |", column.release)).collect();
    let rule = "---|".repeat(columns.len());
    // Writing to a String cannot fail.
    let _ = write!(text, "| scenario | what it is about |{header}\n|---|---|{rule}\n");
    for (name, scenario) in scenarios {
        let cells: String = columns.iter().map(|column| format!(" {} |", cell(name, scenario, column))).collect();
        let _ = writeln!(text, "| {name} | {} |{cells}", scenario.about.replace('|', "\\|"));
    }
    let cells: String =
        columns.iter().map(|column| format!(" {} |", kernel_tests(scenarios, &column.report))).collect();
    let _ = writeln!(text, "| | the tests of the kernel programs |{cells}");
    let _ = write!(text, "\n## What these kernels lack\n\nBy `podpath doctor` in each of them.\n\n");
    for (finding, releases) in lacks(columns) {
        let _ = writeln!(text, "- {finding} ({})", releases.join(", "));
    }
    text
}

fn cell(name: &str, scenario: &Scenario, column: &Column) -> String {
    let outcome = column.report.results.iter().find(|(test, _)| test == name).map(|(_, outcome)| outcome);
    match outcome {
        Some(Outcome::Passed) => {
            let without = column.findings.iter().filter(|finding| matters(&finding.name, scenario));
            let without: Vec<&str> = without.map(|finding| finding.name.as_str()).collect();
            match without.as_slice() {
                [] => "works".to_owned(),
                names => format!("works without {}", names.join(", ")),
            }
        }
        Some(Outcome::Ignored(reason)) => format!("not run: {reason}"),
        Some(Outcome::Failed) => "**fails**".to_owned(),
        None => "**not run**: the VM ended before".to_owned(),
    }
}

/// Whether what `podpath doctor` calls `name` has a part in the scenario.
fn matters(name: &str, scenario: &Scenario) -> bool {
    let hops = || scenario.expect.request.iter().chain(&scenario.expect.reply);
    let any = |words: &[&str]| hops().any(|hop| words.iter().any(|word| hop.contains(word)));
    match name {
        "drop reasons" => any(&[" dropped "]),
        "NAT tuples" | "NAT moments" | "NAT moment" => any(&["nat "]),
        "netfilter verdicts" | "netfilter rules" => any(&[" dropped ", "nat "]),
        _ => false,
    }
}

/// The results that are no scenario's.
fn kernel_tests(scenarios: &[(String, Scenario)], report: &Report) -> String {
    let tests = report.results.iter().filter(|(test, _)| scenarios.iter().all(|(name, _)| name != test));
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut words = Vec::new();
    for (name, outcome) in tests {
        match outcome {
            Outcome::Passed => *counts.entry("pass").or_default() += 1,
            Outcome::Failed => words.push(format!("**{name} fails**")),
            Outcome::Ignored(reason) => words.push(format!("{name} not run: {reason}")),
        }
    }
    let passed = counts.get("pass").map(|count| format!("{count} pass"));
    let text = passed.into_iter().chain(words).collect::<Vec<_>>().join("; ");
    if text.is_empty() { "**not run**: the VM ended before".to_owned() } else { text }
}

/// Every finding with the kernels it was found on.
fn lacks(columns: &[Column]) -> BTreeMap<String, Vec<&str>> {
    let mut lacks: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for column in columns {
        for Finding { name, state, cost } in &column.findings {
            let cost = if cost.is_empty() { String::new() } else { format!(": {cost}") };
            lacks.entry(format!("**{name}**: {state}{cost}")).or_default().push(&column.release);
        }
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCTOR: &str = "ok       tracepoints       all five in this kernel's BTF\n\
        missing  drop reasons      none in this kernel\n                           derived from the place; 5.17 has them\n\
        ok       lockdown          none\n                           no cost of any finding\n\
        unknown  locked memory     8192 KiB allowed\n\nThis machine can be traced.\n";

    fn scenario(hop: &str) -> Scenario {
        let text = format!(
            "about = 'A: x'\nlab = ''\ntrace = ''\n[expect]\nexit = 0\nexchanges = 1\noutcome = 'delivered'\nrouters = []\n\
             request = ['{hop}']\nreply = []\ntext = []\n"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn what_the_doctor_finds_missing_is_read_with_its_cost() {
        let finding = |name: &str, state: &str, cost: &str| Finding {
            name: name.to_owned(),
            state: state.to_owned(),
            cost: cost.to_owned(),
        };
        let expected = [
            finding("drop reasons", "none in this kernel", "derived from the place; 5.17 has them"),
            finding("locked memory", "8192 KiB allowed", ""),
        ];
        assert_eq!(findings(DOCTOR), expected);
    }

    #[test]
    fn every_cell_says_something() {
        let scenarios = [
            ("a-drop".to_owned(), scenario("node1 ens5 dropped ttl 63")),
            ("a-plain".to_owned(), scenario("node1 ens5 received ttl 63")),
            ("a-tunnel".to_owned(), scenario("node1 tunl0 encapsulated")),
            ("a-lost".to_owned(), scenario("node1 ens5 received ttl 63")),
        ];
        let results = [
            ("hooks".to_owned(), Outcome::Passed),
            ("a-drop".to_owned(), Outcome::Passed),
            ("a-plain".to_owned(), Outcome::Passed),
            ("a-tunnel".to_owned(), Outcome::Ignored("this kernel cannot make tunl0".to_owned())),
        ];
        let report = Report { results: results.to_vec(), ..Report::default() };
        let column = Column { release: "5.10.0".to_owned(), report, findings: findings(DOCTOR) };
        let page = page(&scenarios, &[column]);
        let table: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
        let expected = [
            "| scenario | what it is about | 5.10.0 |",
            "|---|---|---|",
            "| a-drop | A: x | works without drop reasons |",
            "| a-plain | A: x | works |",
            "| a-tunnel | A: x | not run: this kernel cannot make tunl0 |",
            "| a-lost | A: x | **not run**: the VM ended before |",
            "| | the tests of the kernel programs | 1 pass |",
        ];
        assert_eq!(table, expected);
        assert!(
            page.contains("- **drop reasons**: none in this kernel: derived from the place; 5.17 has them (5.10.0)")
        );
    }
}
