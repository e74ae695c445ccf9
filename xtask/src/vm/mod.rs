//! `cargo xtask vm`: Debian's kernels in virtual machines, with this clone's programs in them.
//!
//! A VM has three read-only disks stacked under a file system in memory: Debian's user space, the kernel's modules, and what
//! cargo built here, at the same paths as here. It runs commands that come over virtio-serial ports; the kernel's log has a
//! serial port of its own. Nothing of a VM outlives it.

use std::{collections::HashMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::Args;

mod assets;
mod bench;
mod client;
mod clock;
mod frame;
mod initramfs;
mod kernel;
mod machine;
mod matrix;
mod pair;
mod payload;
mod serve;
mod suite;
mod tree;

pub use client::pipe;
pub use clock::{answer, drift};
pub use kernel::Wanted;
pub use pair::node;
pub use serve::serve;

use bench::Bench;
use client::Event;
use kernel::Kernel;
use payload::Payload;
use suite::Suite;

use crate::{
    proc,
    scenario::{self, Scenario},
    totals::Totals,
    workspace_root,
};

/// What `cargo xtask test` runs, and what a pair has: the oldest kernel and the newest,
const TEST_KERNELS: &[&str] = &["5.10", "7.x"];
/// and on them one scenario of each kind.
const TEST_SCENARIOS: &[&str] =
    &["a-internet", "a-ipip-cross-node", "a-policy-drop", "b-vxlan-cross-node", "d-cross-node"];
/// What is tested where nothing else is asked for.
const ALL_KERNELS: &[&str] = &["5.10", "6.1", "6.12", "7.x"];
/// What one VM of `cargo xtask test` may take.
const TEST_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What `cargo xtask vm` is asked for.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Which kernels: 5.10, 6.12.107, 7.x (the newest 7); several separated by commas
    ///
    /// [default: 5.10,6.1,6.12,7.x; with --nodes 2: 5.10,7.x]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub kernel: Vec<Wanted>,
    /// 2: two VMs, each with a kernel and a clock of its own, are the nodes of a lab
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub nodes: u8,
    /// Run only this scenario (a file in scenarios/ without .toml); may be repeated
    ///
    /// Without it, all scenarios and the tests of the kernel programs.
    #[arg(long, value_name = "NAME")]
    pub scenario: Vec<String>,
    /// Write docs/KERNELS.md from what came of running everything on all kernels, and on two of them together
    ///
    /// Runs what has no result of this commit yet in target/matrix, or only the scenarios named, then writes the page
    /// from all results there; so it can be done in parts, also side by side. With --nodes 2 only the pair.
    #[arg(long, conflicts_with = "run")]
    pub matrix: bool,
    /// Instead of tests, run this shell command as root; the exit code is the first that is not 0
    ///
    /// podpath, podpath-agent, xtask and the tests are at the same paths as here, the first three in the PATH.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["scenario", "nodes"])]
    pub run: Option<String>,
    /// Take this file or folder along, to the same path as here; may be repeated
    #[arg(long, value_name = "PATH")]
    pub add: Vec<PathBuf>,
    /// End a VM that runs longer, in seconds
    ///
    /// All tests on one kernel take about an hour on a machine with two processors of its own.
    #[arg(long, value_name = "SECONDS", default_value_t = 3 * 3600)]
    pub limit: u64,
}

/// Does what is asked for.
///
/// # Errors
/// What VMs need cannot be had, or a VM could not be brought up.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Options { kernel, nodes, scenario, matrix, run, add, limit } = options;
    let pair = *nodes == 2;
    let scenarios = scenarios()?;
    check_names(&scenarios, scenario, pair)?;
    let kernels = match kernel.as_slice() {
        [] if pair => wanted(TEST_KERNELS)?,
        [] => wanted(ALL_KERNELS)?,
        given => given.to_vec(),
    };
    ensure!(!pair || kernels.len() == 2, "two VMs have two kernels\nway out: --kernel 5.10,7.x");
    let limit = Duration::from_secs(*limit);
    let code = |well: bool| if well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if *matrix {
        // Where no kernels are named: all of it.
        let both = pair || kernel.is_empty();
        let pair_kernels = if pair { kernels.clone() } else { wanted(TEST_KERNELS)? };
        let plan = matrix::Plan {
            kernels: if pair { Vec::new() } else { kernels },
            pair: both.then_some(pair_kernels),
            only: scenario.clone(),
            limit,
        };
        return matrix::run(&plan, &scenarios, add).map(code);
    }
    let bench = Bench::new(&kernels, add)?;
    if let Some(command) = run {
        return run_command(&bench, command, limit);
    }
    let all = || scenarios.iter().map(|(name, _)| name.clone()).collect();
    if pair {
        let names = if scenario.is_empty() { pair_scenarios() } else { scenario.clone() };
        return Ok(code(run_pair(&bench, &names, limit).1));
    }
    let suite = match scenario.is_empty() {
        true => Suite { programs: whole(), scenarios: all(), limit, ..Suite::default() },
        false => Suite { scenarios: scenario.clone(), limit, ..Suite::default() },
    };
    Ok(code(run_suite(&bench, &suite)?.1))
}

/// The part of `cargo xtask test`: an old kernel and a new one, and both together. Tests with one of `skip` in their name are
/// left out. The sums, and whether all is well.
///
/// # Errors
/// As [`run`].
pub(crate) fn test(skip: &[String]) -> Result<(Totals, bool)> {
    let not_skipped = |names: &[&str]| -> Vec<String> {
        let kept = names.iter().filter(|name| !skip.iter().any(|skip| name.contains(skip.as_str())));
        kept.map(|name| (*name).to_owned()).collect()
    };
    let suite = Suite {
        programs: not_skipped(suite::WHOLE),
        scenarios: not_skipped(TEST_SCENARIOS),
        skip: skip.to_vec(),
        limit: TEST_LIMIT,
    };
    let of_pair = not_skipped(pair::SCENARIOS);
    check_names(&scenarios()?, &suite.scenarios, false)?;
    let kernels = wanted(TEST_KERNELS)?;
    if let Some(reason) = assets::lack(&kernels, &[])? {
        proc::say(&format!("vm: skipped, {reason}"));
        return Ok((Totals { ignored: 1, ignored_tests: vec![format!("vm, {reason}")], ..Totals::default() }, true));
    }
    let (mut totals, mut well) = (Totals::default(), true);
    if suite.is_empty() && of_pair.is_empty() {
        return Ok((totals, well));
    }
    let bench = Bench::new(&kernels, &[])?;
    if !suite.is_empty() {
        let (sum, ended_well) = run_suite(&bench, &suite)?;
        totals.sum(sum);
        well &= ended_well;
    }
    if !of_pair.is_empty() {
        let (sum, ended_well) = run_pair(&bench, &of_pair, TEST_LIMIT);
        totals.sum(sum);
        well &= ended_well;
    }
    Ok((totals, well))
}

fn scenarios() -> Result<Vec<(String, Scenario)>> {
    scenario::load(&workspace_root().join("scenarios"))
}

fn whole() -> Vec<String> {
    suite::WHOLE.iter().map(|name| (*name).to_owned()).collect()
}

fn pair_scenarios() -> Vec<String> {
    pair::SCENARIOS.iter().map(|name| (*name).to_owned()).collect()
}

fn wanted(kernels: &[&str]) -> Result<Vec<Wanted>> {
    kernels.iter().map(|text| text.parse()).collect()
}

/// Runs scenarios on two VMs with the first two kernels.
fn run_pair(bench: &Bench, scenarios: &[String], limit: Duration) -> (Totals, bool) {
    let [first, second, ..] = bench.assets.kernels.as_slice() else { return (Totals::default(), false) };
    let prefix = format!("{}+{}/", first.wanted, second.wanted);
    let report = pair::run(bench, [first, second], scenarios, limit, &prefix);
    (report.totals(&prefix), report.ended_well())
}

/// Scenarios asked for must be there; those for a pair must be such that two VMs can run them.
fn check_names(known: &[(String, Scenario)], wanted: &[String], pair: bool) -> Result<()> {
    for name in wanted {
        let Some((_, scenario)) = known.iter().find(|(known, _)| known == name) else {
            let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
            bail!("no scenario `{name}`; there are: {}", names.join(", "));
        };
        if pair && let Some(obstacle) = pair::obstacle(scenario)? {
            bail!("scenario {name} cannot be run in two VMs: {obstacle}\nway out: run it in one, without --nodes 2");
        }
    }
    Ok(())
}

/// Runs a shell command, as root, on each of these kernels, with these programs (and xtask) at the same paths as here, and with
/// these of Debian's packages beyond what all VMs have. What it writes to its standard output is handed to `take` when it has ended well; what it writes to its standard error is shown. The
/// exit code is the first that is not 0.
///
/// # Errors
/// What VMs need cannot be had, a VM could not be brought up, or `take` refuses.
pub(crate) fn captured(
    kernels: &[Wanted],
    command: &str,
    (programs, packages): (Vec<(String, PathBuf)>, &[&'static str]),
    limit: Duration,
    take: impl Fn(&str) -> Result<()>,
) -> Result<ExitCode> {
    let bench = Bench::with(assets::ensure(kernels, packages)?, Payload::of(programs)?)?;
    let mut code = 0;
    for kernel in &bench.assets.kernels {
        let mut output = Vec::new();
        let ended = in_one(&bench, kernel, command, limit, |bytes| {
            output.extend_from_slice(bytes);
            Ok(())
        })?;
        let output = String::from_utf8_lossy(&output);
        if ended == 0 {
            take(&output)?;
        } else {
            print!("{output}");
        }
        code = if code == 0 { ended } else { code };
    }
    Ok(exit_code(code))
}

/// What a person reads of these scenarios on this kernel, by name, and what the kernel calls itself. Of one that this kernel cannot
/// run either there is nothing.
///
/// # Errors
/// As [`run`], or a scenario fails.
pub(crate) fn gallery(kernel: &str, names: &[&str]) -> Result<(HashMap<String, String>, String)> {
    let bench = Bench::new(&wanted(&[kernel])?, &[])?;
    let program = bench.payload.program(suite::SCENARIOS)?;
    let settings = [
        ("PODPATH_READY_WITHIN", suite::READY_WITHIN.to_string()),
        ("PODPATH_SLOWER", suite::SLOWER.to_string()),
        ("PODPATH_SCENARIOS", names.join(",")),
    ];
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    // A text begins behind a form feed, with the scenario's name.
    let command = format!(
        "mkdir /tmp/gallery && {} {}=/tmp/gallery {} --test-threads=1 >&2 && cd /tmp/gallery && \
         for name in *; do printf '\\f%s\\n' \"$name\"; cat \"$name\"; done",
        settings.join(" "),
        crate::gallery::FOLDER,
        program.display()
    );
    let [kernel] = bench.assets.kernels.as_slice() else { bail!("one kernel was asked for") };
    let mut output = Vec::new();
    let ended = in_one(&bench, kernel, &command, TEST_LIMIT, |bytes| {
        output.extend_from_slice(bytes);
        Ok(())
    })?;
    ensure!(ended == 0, "a scenario failed on Linux {}", kernel.release);
    let output = String::from_utf8_lossy(&output);
    let texts = output.split('\u{c}').filter_map(|text| text.split_once('\n'));
    Ok((texts.map(|(name, text)| (name.to_owned(), text.to_owned())).collect(), kernel.release.clone()))
}

fn run_command(bench: &Bench, command: &str, limit: Duration) -> Result<ExitCode> {
    let mut code = 0;
    for kernel in &bench.assets.kernels {
        let show = |bytes: &[u8]| client::print(&mut std::io::stdout().lock(), bytes);
        let ended = in_one(bench, kernel, command, limit, show)?;
        code = if code == 0 { ended } else { code };
    }
    Ok(exit_code(code))
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Runs a command in a VM with that kernel; its exit code.
fn in_one(
    bench: &Bench,
    kernel: &Kernel,
    command: &str,
    limit: Duration,
    mut output: impl FnMut(&[u8]) -> Result<()>,
) -> Result<i32> {
    let vm = bench.boot(kernel, &kernel.wanted.to_string(), None)?;
    let ended = vm.run(0, &bench.shell(command)?, limit, |event| match event {
        Event::Started => Ok(()),
        Event::Output(bytes) => output(bytes),
        Event::Error(bytes) => client::print(&mut std::io::stderr().lock(), bytes),
    })?;
    vm.is_sound()?;
    Ok(ended)
}

/// Runs the tests on every kernel; whether all is well.
fn run_suite(bench: &Bench, suite: &Suite) -> Result<(Totals, bool)> {
    let (mut totals, mut ended_well) = (Totals::default(), true);
    for kernel in &bench.assets.kernels {
        let vm = bench.boot(kernel, &kernel.wanted.to_string(), None)?;
        let prefix = format!("{}/", kernel.wanted);
        let report = suite.run(bench, &vm, &prefix);
        totals.sum(report.totals(&prefix));
        ended_well &= report.ended_well();
    }
    Ok((totals, ended_well))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_refuses_what_it_cannot_run() {
        let known = scenarios().unwrap();
        check_names(&known, &pair_scenarios(), true).unwrap();
        let refused = |name: &str| {
            let names = [name.to_owned()];
            format!("{:#}", check_names(&known, &names, true).unwrap_err())
        };
        assert!(refused("a-policy-drop").contains("it plants faults"));
        assert!(refused("a-passive").contains("it has traffic"));
        assert!(refused("a-crosssubnet-far").contains("node4 has a part in it, and the two VMs are node1 and node2"));
        assert!(refused("a-same-node").contains("node2 has no part in it"));
        assert!(refused("nonsense").contains("no scenario `nonsense`; there are: a-"));
    }
}
