//! `cargo xtask demo`: a lab of its own, some traces across it, and everything gone again.

use std::{
    io::{self, Write},
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{build, interrupt, lab, packages, proc};

const LAB: &str = "demo";
const PROFILE: &str = "calico-bgp";
/// Each is what a user would type after `podpath trace`, and what it is good for.
const TRACES: &[(&str, &str)] = &[
    ("bb2 bb1", "a ping from one node's pod to another node's"),
    ("bb1 8.8.8.8", "out of the cluster: the node rewrites the source address"),
    ("bb1 bb3", "two pods on the same node"),
    ("bb2 100.115.37.99", "a ping that fails, on purpose: no pod has this address"),
];
/// How `podpath trace` ends if it traced and something did not arrive: the last of them is to.
const NOT_DELIVERED: i32 = 3;
const TRACE_LIMIT: Duration = Duration::from_secs(60);
/// As with `| head`.
const UNREAD: &str = "write to the standard output, which nobody reads any more";

/// Builds all, brings the lab up, shows the traces, takes the lab down.
///
/// # Errors
/// Something could not be built or set up, or we were interrupted. The lab is down in any case, or the error says so.
pub fn run() -> Result<ExitCode> {
    packages::need_root("the demo", "cargo xtask demo")?;
    packages::ensure(packages::LAB)?;
    build::kernel_object()?;
    show(LAB, &build::podpath()?, &mut io::stdout())
}

/// Brings a lab of this name up, shows the traces that this podpath makes, takes the lab down.
///
/// # Errors
/// As [`run`]; and what stands before the traces cannot be written to `out`.
pub fn show(name: &str, podpath: &Path, out: &mut dyn Write) -> Result<ExitCode> {
    let result = traces(name, podpath, out);
    // Also after a failure in `up`: half a lab is to go too.
    let down = proc::step(&format!("lab {name}: down"), || lab::down(name))
        .with_context(|| format!("the lab is still there\nway out: cargo xtask lab down {name}"));
    match (result, down) {
        (Ok(true), Ok(())) => Ok(ExitCode::SUCCESS),
        (Ok(false), Ok(())) => Ok(ExitCode::FAILURE),
        (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
        (Err(error), Err(down)) => Err(error.context(format!("{down:#}"))),
    }
}

/// True when every trace ended well.
fn traces(name: &str, podpath: &Path, out: &mut dyn Write) -> Result<bool> {
    let lab = proc::step(&format!("lab {name}: up ({PROFILE})"), || lab::up(name, PROFILE))?;
    let mut well = true;
    for (index, (arguments, purpose)) in TRACES.iter().enumerate() {
        if interrupt::received().is_some() {
            bail!("interrupted");
        }
        writeln!(out, "\n# {purpose}\n$ podpath trace {arguments}").context(UNREAD)?;
        let mut command = Command::new(podpath);
        command.arg("trace").args(arguments.split(' ')).arg("--inventory").arg(&lab.inventory);
        let status = proc::shown(&mut command, TRACE_LIMIT)?;
        let wanted = if index + 1 == TRACES.len() { NOT_DELIVERED } else { 0 };
        if status.code() != Some(wanted) {
            proc::say(&format!("podpath trace {arguments} {}", proc::ended(status)));
            well = false;
        }
    }
    writeln!(out).context(UNREAD)?;
    Ok(well)
}
