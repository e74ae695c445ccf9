//! `cargo xtask bench`: podpath's own cost. Measured, never judged: the numbers are printed, no test depends on them.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    build::{kernel_object, programs},
    cargo, packages, proc, vm, workspace_root,
};

mod scale;

/// A bench that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs the bench of the kernel programs' cost.
///
/// # Errors
/// Not root, or it could not be built or run.
pub fn hooks() -> Result<()> {
    run("hooks")
}

/// Runs the bench of attaching and detaching: on this machine, or in VMs of these kernels.
///
/// # Errors
/// As [`hooks`]; and no VM can be brought up.
pub fn attach(kernels: &[vm::Wanted]) -> Result<ExitCode> {
    if kernels.is_empty() {
        return run("attach").map(|()| ExitCode::SUCCESS);
    }
    kernel_object()?;
    let built = proc::step("bench: compile", || built("attach"))?;
    let [bench] = &built.iter().filter(|path| !path.ends_with("podpath-agent")).collect::<Vec<_>>()[..] else {
        bail!("cargo made several benches of one name: {built:?}");
    };
    let options = vm::Options {
        kernel: kernels.to_vec(),
        run: Some(format!("modprobe -a nf_nat ip_tables nf_tables && {}", bench.display())),
        add: built.clone(),
        limit: LIMIT.as_secs(),
        ..vm::Options::default()
    };
    vm::run(&options)
}

/// Runs the bench of userspace: from the ring buffer's bytes to a report.
///
/// # Errors
/// As [`hooks`].
pub fn pipeline() -> Result<()> {
    run("pipeline")
}

/// Runs the bench of many nodes, flows and pods.
///
/// # Errors
/// As [`hooks`]; and the lab or its API server cannot be brought up.
pub fn scale() -> Result<()> {
    scale::run()
}

/// Compiles a bench: its executable and the agent that it starts.
fn built(bench: &str) -> Result<Vec<PathBuf>> {
    let mut cargo = Command::new(cargo());
    cargo.current_dir(workspace_root()).args(["bench", "--quiet", "--package", "tracer-user", "--bench", bench]);
    let messages = proc::quiet(cargo.args(["--no-run", "--message-format=json-render-diagnostics"]))?;
    let wanted = programs(&messages).into_iter().filter(|(name, _)| name == bench || name == "podpath-agent");
    Ok(wanted.map(|(_, path)| path).collect())
}

fn run(bench: &str) -> Result<()> {
    packages::need_root("measuring kernel programs", &format!("cargo xtask bench {bench}"))?;
    packages::ensure(packages::LAB)?;
    kernel_object()?;
    let mut cargo = Command::new(cargo());
    cargo.current_dir(workspace_root()).args(["bench", "--quiet", "--package", "tracer-user", "--bench", bench]);
    if !proc::shown(&mut cargo, LIMIT)?.success() {
        bail!("the bench failed; its words are above");
    }
    Ok(())
}
