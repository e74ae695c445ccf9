//! Labs: clusters of network namespaces with the names, addresses, routes and rules of real ones.

use std::path::PathBuf;

/// A lab that is up.
#[derive(Debug, Clone)]
pub struct LabInfo {
    /// Its name.
    pub name: String,
    /// The profile it was built from.
    pub profile: String,
    /// The inventory file for the CLI.
    pub inventory: PathBuf,
}

/// Brings a lab up.
///
/// # Errors
/// Always: placeholder until the lab's branch is merged.
pub fn up(name: &str, profile: &str) -> anyhow::Result<LabInfo> {
    anyhow::bail!("lab {name} ({profile}): labs are not merged yet")
}

/// Takes a lab down.
///
/// # Errors
/// Never.
pub fn down(_name: &str) -> anyhow::Result<()> {
    Ok(())
}

/// The labs that are up.
///
/// # Errors
/// Never.
pub fn status() -> anyhow::Result<Vec<LabInfo>> {
    Ok(Vec::new())
}
