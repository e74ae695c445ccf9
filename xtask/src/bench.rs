//! `cargo xtask bench`: podpath's own cost. Measured, never judged: the numbers are printed, no test depends on them.

use std::{process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{build::kernel_object, cargo, packages, proc, workspace_root};

/// A bench that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs the bench of the kernel programs' cost.
///
/// # Errors
/// Not root, or it could not be built or run.
pub fn hooks() -> Result<()> {
    run("hooks")
}

/// Runs the bench of attaching and detaching, on this machine or in VMs of these kernels.
///
/// # Errors
/// As [`hooks`].
pub fn attach() -> Result<()> {
    run("attach")
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
