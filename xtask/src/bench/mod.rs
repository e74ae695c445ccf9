//! `cargo xtask bench`: podpath's own cost. Measured, never judged: the numbers are printed, no test depends on them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{kernel_object, programs},
    cargo, packages, proc, vm, workspace_root,
};

pub mod inflation;
mod raw;
mod scale;

/// A bench that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// What is loaded in a VM before anything is measured: what a cluster's rules load, so that podpath attaches all it has.
const MODULES: &str = "modprobe -a nf_nat ip_tables nf_tables";
/// Where raw data of a VM was measured; qemu emulates its processors.
const IN_A_VM: &str = "VM, emulated";

/// Runs the bench of the kernel programs' cost.
///
/// # Errors
/// Not root, or it could not be built or run.
pub fn hooks() -> Result<()> {
    on_this_machine("hooks")
}

/// Runs the bench of attaching and detaching: on this machine, or in VMs of these kernels.
///
/// # Errors
/// As [`hooks`]; and no VM can be brought up.
pub fn attach(kernels: &[vm::Wanted]) -> Result<ExitCode> {
    const NAME: &str = "attach";
    if kernels.is_empty() {
        return on_this_machine(NAME).map(|()| ExitCode::SUCCESS);
    }
    kernel_object()?;
    let built = proc::step("bench: compile", || built(command(NAME).args(["--no-run", MESSAGES]), &[NAME, AGENT]))?;
    let (_, bench) = built.first().context("the bench is built")?;
    let command = bench.display().to_string();
    in_vms(NAME, kernels, &command, (built, &[]), LIMIT)
}

/// Runs the bench of userspace: from the ring buffer's bytes to a report.
///
/// # Errors
/// As [`hooks`].
pub fn pipeline() -> Result<()> {
    on_this_machine("pipeline")
}

/// Runs the bench of many nodes, flows and pods.
///
/// # Errors
/// As [`hooks`]; and the lab or its API server cannot be brought up.
pub fn scale() -> Result<()> {
    scale::run()
}

/// Runs a bench of `tracer-user` here.
fn on_this_machine(bench: &str) -> Result<()> {
    packages::need_root("measuring kernel programs", &format!("cargo xtask bench {bench}"))?;
    packages::ensure(packages::LAB)?;
    kernel_object()?;
    let output =
        proc::step(&format!("bench {bench}: compile and measure"), || proc::collected(&mut command(bench), LIMIT))?;
    if !output.status.success() {
        bail!("the bench {}:\n{}{}", proc::ended(output.status), output.stdout, output.stderr);
    }
    show_and_keep(bench, "this machine", &output.stdout)
}

const AGENT: &str = "podpath-agent";
const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// Runs a bench's command in a VM of each of these kernels, with these programs and packages in it.
fn in_vms(
    bench: &str,
    kernels: &[vm::Wanted],
    command: &str,
    with: (Vec<(String, PathBuf)>, &[&'static str]),
    limit: Duration,
) -> Result<ExitCode> {
    let command = format!("{MODULES} && {command}");
    vm::captured(kernels, &command, with, limit, |output| show_and_keep(bench, IN_A_VM, output))
}

/// Shows a bench's table, and keeps its raw data, which names the kernel.
fn show_and_keep(bench: &str, place: &str, output: &str) -> Result<()> {
    let (shown, data) = raw::split(output)?;
    println!("{shown}");
    raw::keep(bench, place, data["kernel"].as_str().unwrap_or("unknown"), &data)
}

/// A bench of `tracer-user`, by cargo.
fn command(bench: &str) -> Command {
    let mut cargo = Command::new(cargo());
    cargo.current_dir(workspace_root()).args(["bench", "--quiet", "--package", "tracer-user", "--bench", bench]);
    cargo
}

/// Compiles by this command of cargo's: the programs of these names and their paths, in that order.
fn built(cargo: &mut Command, names: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let all = programs(&proc::quiet(cargo)?);
    let find = |name: &&str| {
        let found = all.iter().find(|(known, _)| known == name);
        found.cloned().with_context(|| format!("cargo built no {name}"))
    };
    names.iter().map(find).collect()
}

/// The release of the kernel that runs.
fn kernel() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    Ok(fs::read_to_string(path).context("ask which kernel runs")?.trim().to_owned())
}

/// The load of the last minute, by which a reader can judge the numbers.
fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read the load")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("`{first}` is no load"))
}
