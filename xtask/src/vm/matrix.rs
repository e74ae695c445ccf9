//! `docs/KERNELS.md`: what works on which kernel, as runs of everything on all of them showed it.
//!
//! What came of a run is kept per kernel in `target/matrix`, and the page is written from what is there: of this commit, and where only some
//! scenarios were asked for, the others' of the commit that they were run at.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    ALL_KERNELS, TEST_KERNELS,
    bench::{Bench, Vm},
    client::Event,
    kernel::{Kernel, Wanted},
    pair, pair_scenarios,
    suite::{Outcome, PAIR, SCENARIOS, Suite, Tested},
    whole,
};
use crate::{proc, scenario::Scenario, workspace_root};

mod page;

const FILE: &str = "docs/KERNELS.md";
const FOLDER: &str = "target/matrix";
/// `podpath doctor` loads the kernel programs once.
const DOCTOR_LIMIT: Duration = Duration::from_secs(180);

/// What is to be run.
pub(super) struct Plan {
    pub(super) kernels: Vec<Wanted>,
    pub(super) pair: Option<Vec<Wanted>>,
    /// These scenarios only; all, and the other tests, if none is named.
    pub(super) only: Vec<String>,
    /// Of each VM.
    pub(super) limit: Duration,
}

/// What came of it on a kernel, or on a pair of them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Column {
    /// Of the last run that was not of some scenarios only.
    commit: String,
    /// What was asked for: `5.10`; of a pair `6.1+6.12`.
    wanted: String,
    /// What `uname -r` says there.
    releases: Vec<String>,
    /// What `podpath doctor` found; of a pair nothing.
    checks: Vec<Check>,
    results: Vec<Tested>,
    /// What went wrong beyond the tests.
    broken: Vec<String>,
}

/// One of `podpath doctor -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Check {
    name: String,
    state: String,
    detail: String,
    cost: String,
}

#[derive(Deserialize)]
struct Doctor {
    checks: Vec<Check>,
}

/// Runs what has no result yet, and writes the page; whether all is well with what was run.
///
/// # Errors
/// The clone has changes that are in no commit, or a file cannot be read or written. What goes wrong with a VM is written
/// on the page.
pub(super) fn run(plan: &Plan, scenarios: &[(String, Scenario)], add: &[PathBuf]) -> Result<bool> {
    let commit = commit()?;
    let mut kernels = plan.kernels.clone();
    kernels.extend(plan.pair.iter().flatten().cloned());
    kernels.sort();
    kernels.dedup();
    let bench = Bench::new(&kernels, add)?;
    ensure!(self::commit()? == commit, "the clone changed while its programs were built");
    let kernel = |wanted: &Wanted| {
        let found = bench.assets.kernels.iter().find(|kernel| kernel.wanted == *wanted);
        found.with_context(|| format!("no kernel {wanted} was fetched"))
    };
    let mut well = true;
    for wanted in &plan.kernels {
        well &= single(plan, scenarios, &bench, kernel(wanted)?, &commit)?;
    }
    if let Some([first, second]) = plan.pair.as_deref() {
        well &= two(plan, &bench, [kernel(first)?, kernel(second)?], &commit)?;
    }
    let columns = Column::all()?;
    let all = ALL_KERNELS.iter().map(|kernel| (*kernel).to_owned()).chain([TEST_KERNELS.join("+")]);
    let missing: Vec<String> = all.filter(|all| columns.iter().all(|column| column.wanted != *all)).collect();
    let path = workspace_root().join(FILE);
    fs::write(&path, page::page(scenarios, &columns, &missing)).with_context(|| format!("write {}", path.display()))?;
    proc::say(&format!("vm: wrote {}", path.display()));
    Ok(well)
}

/// The commit that all of the clone is of, but for the page itself.
fn commit() -> Result<String> {
    let git = |arguments: &[&str]| proc::quiet(Command::new("git").current_dir(workspace_root()).args(arguments));
    let changes = git(&["status", "--porcelain", "--", ".", &format!(":(exclude){FILE}")])?;
    ensure!(
        changes.is_empty(),
        "the page says of which commit it is, and there are changes that are in none:\n{changes}way out: commit them"
    );
    Ok(git(&["rev-parse", "HEAD"])?.trim().chars().take(12).collect())
}

/// On one kernel.
fn single(plan: &Plan, scenarios: &[(String, Scenario)], bench: &Bench, kernel: &Kernel, commit: &str) -> Result<bool> {
    let mut column = Column::load(plan, commit, kernel.wanted.to_string(), vec![kernel.release.clone()])?;
    let all = || scenarios.iter().map(|(name, _)| name.clone()).collect();
    let (programs, names) = if plan.only.is_empty() { (whole(), all()) } else { (Vec::new(), plan.only.clone()) };
    let suite = Suite {
        programs: programs.into_iter().filter(|program| !column.has(program, None)).collect(),
        scenarios: names.into_iter().filter(|name| !column.has(SCENARIOS, Some(name))).collect(),
        limit: plan.limit,
        ..Suite::default()
    };
    if suite.is_empty() {
        return Ok(column.told());
    }
    let name = column.wanted.clone();
    let ran = bench.boot(kernel, &name, None).and_then(|vm| {
        column.checks = doctor(bench, &vm)?;
        Ok(suite.run(bench, &vm, &format!("{name}/")))
    });
    let well = match ran {
        Ok(report) => {
            let well = report.ended_well();
            column.take(report.results, report.broken, commit);
            well
        }
        Err(error) => {
            proc::say(&format!("vm {name}: {error:#}"));
            column.take(Vec::new(), Some(format!("{error:#}")), commit);
            false
        }
    };
    column.save()?;
    Ok(well)
}

/// On two.
fn two(plan: &Plan, bench: &Bench, kernels: [&Kernel; 2], commit: &str) -> Result<bool> {
    let name = kernels.map(|kernel| kernel.wanted.to_string()).join("+");
    let mut column = Column::load(plan, commit, name, kernels.map(|kernel| kernel.release.clone()).to_vec())?;
    let mut names = if plan.only.is_empty() { pair_scenarios() } else { plan.only.clone() };
    names.retain(|name| !column.has(PAIR, Some(name)));
    if names.is_empty() {
        return Ok(column.told());
    }
    let report = pair::run(bench, kernels, &names, plan.limit, &format!("{}/", column.wanted));
    let well = report.ended_well();
    column.take(report.results, report.broken, commit);
    column.save()?;
    Ok(well)
}

/// What this kernel has, with the modules loaded that a cluster's rules load.
fn doctor(bench: &Bench, vm: &Vm) -> Result<Vec<Check>> {
    let mut text = Vec::new();
    let command = "modprobe -qa nf_nat ip_tables ip6_tables nf_tables; podpath doctor -o json";
    let code = vm.run(0, &bench.shell(command)?, DOCTOR_LIMIT, |event| {
        if let Event::Output(bytes) = event {
            text.extend_from_slice(bytes);
        }
        Ok(())
    })?;
    let text = String::from_utf8_lossy(&text);
    ensure!(code == 0, "podpath doctor says that this kernel cannot be traced (exit code {code}):\n{text}");
    let Doctor { checks } = serde_json::from_str(&text).with_context(|| format!("read what doctor says: {text}"))?;
    // Else a cell could say that nothing is missing where only a name has changed.
    match page::PARTS.iter().find(|(name, _)| checks.iter().all(|check| check.name != *name)) {
        Some((name, _)) => bail!("podpath doctor has no check `{name}`: mend the list in xtask/src/vm/matrix/page.rs"),
        None => Ok(checks),
    }
}

impl Column {
    fn path(wanted: &str) -> PathBuf {
        workspace_root().join(FOLDER).join(format!("{wanted}.json"))
    }

    /// What is known of these kernels and is not to be run: all by this commit; where only some scenarios are asked for all but these.
    fn load(plan: &Plan, commit: &str, wanted: String, releases: Vec<String>) -> Result<Column> {
        let path = Column::path(&wanted);
        let known = if path.exists() { Some(Column::read(&path)?) } else { None };
        let some = !plan.only.is_empty();
        let known = known.filter(|column| column.releases == releases && (some || column.commit == commit));
        let mut column = known.unwrap_or(Column { commit: commit.to_owned(), wanted, releases, ..Column::default() });
        if some && column.commit != commit {
            column.results.retain(|tested| tested.commit == commit || !plan.only.contains(&tested.name));
        }
        Ok(column)
    }

    fn read(path: &Path) -> Result<Column> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}\nway out: remove it", path.display()))
    }

    /// All, oldest kernels first.
    fn all() -> Result<Vec<Column>> {
        let folder = workspace_root().join(FOLDER);
        let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut columns = files.map(|path| Column::read(&path)).collect::<Result<Vec<Column>>>()?;
        let numbers = |column: &Column| -> Vec<u64> {
            column.wanted.split(['.', '+']).map(|part| part.parse().unwrap_or(u64::MAX)).collect()
        };
        columns.sort_by_key(|column| (column.is_pair(), numbers(column)));
        Ok(columns)
    }

    fn save(&self) -> Result<()> {
        let path = Column::path(&self.wanted);
        let folder = workspace_root().join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let text = serde_json::to_string_pretty(self).context("write down results")?;
        // Another run may read it at this moment.
        let new = path.with_extension("new");
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("move {} to {}", new.display(), path.display()))
    }

    fn is_pair(&self) -> bool {
        self.releases.len() == 2
    }

    /// The result of a test; of any of a program's, if none is named.
    fn has(&self, program: &str, name: Option<&str>) -> bool {
        self.results.iter().any(|tested| tested.program == program && name.is_none_or(|name| tested.name == name))
    }

    fn take(&mut self, results: Vec<Tested>, broken: Option<String>, commit: &str) {
        self.results.extend(results.into_iter().map(|tested| Tested { commit: commit.to_owned(), ..tested }));
        self.broken.extend(broken);
    }

    /// Says that everything has been run, and whether it went well.
    fn told(&self) -> bool {
        let path = Column::path(&self.wanted);
        proc::say(&format!(
            "vm {}: everything asked for has a result of commit {} in {}; remove that file to run it again",
            self.wanted,
            self.commit,
            path.display()
        ));
        self.broken.is_empty() && self.results.iter().all(|tested| tested.outcome != Outcome::Failed)
    }
}
