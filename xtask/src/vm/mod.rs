//! `cargo xtask vm`: Debian's kernels in virtual machines, with this clone's programs in them.
//!
//! A VM has three read-only disks stacked under a file system in memory: Debian's user space, the kernel's modules, and what
//! cargo built here, at the same paths as here. It runs commands that come over virtio-serial ports; the kernel's log has a
//! serial port of its own. Nothing of a VM outlives it.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
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
use suite::Suite;

use crate::{scenario, totals::Totals, workspace_root};

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
    /// Run everything on all kernels, and write docs/KERNELS.md from what came of it
    #[arg(long, conflicts_with_all = ["scenario", "run", "nodes"])]
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
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub limit: u64,
}

/// Does what is asked for.
///
/// # Errors
/// What VMs need cannot be had, or a VM could not be brought up.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Options { kernel, nodes, scenario, matrix, run, add, limit } = options;
    let pair = *nodes == 2;
    check_names(scenario)?;
    let kernels = match kernel.as_slice() {
        [] if pair => wanted(TEST_KERNELS)?,
        [] => wanted(ALL_KERNELS)?,
        given => given.to_vec(),
    };
    ensure!(!pair || kernels.len() == 2, "two VMs have two kernels\nway out: --kernel 5.10,7.x");
    let bench = Bench::new(&kernels, add)?;
    let limit = Duration::from_secs(*limit);
    if let Some(command) = run {
        return run_command(&bench, command, limit);
    }
    if pair {
        let all = pair::SCENARIOS.iter().map(|name| (*name).to_owned());
        let names = if scenario.is_empty() { all.collect() } else { scenario.clone() };
        let ended_well = run_pair(&bench, &names).1;
        return Ok(if ended_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let suite = Suite { kernel: scenario.is_empty(), scenarios: scenario.clone(), limit };
    let ended_well = if *matrix { matrix::write(&bench, &suite)? } else { run_suite(&bench, &suite)?.1 };
    Ok(if ended_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The part of `cargo xtask test`: an old kernel and a new one, and both together. Tests that `is_skipped` says so of are left
/// out. The sums, and whether all is well.
///
/// # Errors
/// As [`run`].
pub(crate) fn test(is_skipped: &dyn Fn(&str) -> bool) -> Result<(Totals, bool)> {
    let not_skipped = |names: &[&str]| -> Vec<String> {
        names.iter().filter(|name| !is_skipped(name)).map(|name| (*name).to_owned()).collect()
    };
    let (scenarios, of_pair) = (not_skipped(TEST_SCENARIOS), not_skipped(pair::SCENARIOS));
    check_names(&scenarios)?;
    let bench = Bench::new(&wanted(TEST_KERNELS)?, &[])?;
    let (mut totals, well) = run_suite(&bench, &Suite { kernel: true, scenarios, limit: TEST_LIMIT })?;
    let (more, also_well) = run_pair(&bench, &of_pair);
    totals.sum(more);
    Ok((totals, well && also_well))
}

fn wanted(kernels: &[&str]) -> Result<Vec<Wanted>> {
    kernels.iter().map(|text| text.parse()).collect()
}

/// Runs scenarios on two VMs with the first two kernels.
fn run_pair(bench: &Bench, scenarios: &[String]) -> (Totals, bool) {
    let [first, second, ..] = bench.assets.kernels.as_slice() else { return (Totals::default(), false) };
    let prefix = format!("{}+{}/", first.wanted, second.wanted);
    let report = pair::run(bench, [first, second], scenarios, &prefix);
    (report.totals(&prefix), report.ended_well())
}

fn check_names(wanted: &[String]) -> Result<()> {
    let known: BTreeSet<String> =
        scenario::load(&workspace_root().join("scenarios"))?.into_iter().map(|(name, _)| name).collect();
    for name in wanted {
        ensure!(known.contains(name), "no scenario `{name}`; there are: {}", Vec::from_iter(known).join(", "));
    }
    Ok(())
}

fn run_command(bench: &Bench, command: &str, limit: Duration) -> Result<ExitCode> {
    let mut code = 0;
    for kernel in &bench.assets.kernels {
        let vm = bench.boot(kernel, &kernel.wanted.to_string(), None)?;
        let ended = vm.run(0, &bench.shell(command)?, limit, |event| match event {
            Event::Started => Ok(()),
            Event::Output(bytes) => client::print(&mut std::io::stdout().lock(), bytes),
            Event::Error(bytes) => client::print(&mut std::io::stderr().lock(), bytes),
        })?;
        vm.is_sound()?;
        if code == 0 {
            code = ended;
        }
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
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
