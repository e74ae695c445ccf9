//! Programs that labs and tests call, from the distribution's packages.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::proc;

/// A package of Debian's, and the program by which its presence is known (on any distribution).
type Package = (&'static str, &'static str);

/// What a lab is made of.
pub const LAB: &[Package] =
    &[("iproute2", "ip"), ("iputils-ping", "ping"), ("iptables", "iptables"), ("ipset", "ipset"), ("nftables", "nft")];
/// What the tests call beyond that.
pub const TESTS: &[Package] = &[
    ("conntrack", "conntrack"),
    ("tcpdump", "tcpdump"),
    ("wireguard-tools", "wg"),
    ("containerd", "containerd"),
    ("runc", "runc"),
];

/// What the tests call on this machine only, not in VMs.
pub const HERE: &[Package] = &[("tshark", "tshark")];

const LIMIT: Duration = Duration::from_secs(300);

/// Installs what is missing of `packages`; asks no network when nothing is.
///
/// # Errors
/// Something is missing and we are not root, or this is not Debian (or a relative with apt), or apt fails. The error
/// names the packages.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing = missing(packages, proc::on_path);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !proc::on_path("apt-get") {
        bail!(
            "programs are missing, and there is no apt-get to install them\nway out: install what Debian calls {names}"
        );
    }
    if !Uid::effective().is_root() {
        bail!("programs are missing, and only root may install them\nway out: sudo apt-get install {names}");
    }
    proc::step(&format!("packages: install {names}"), || {
        if install(&missing).is_ok() {
            return Ok(());
        }
        // Most often there are no package lists yet, or old ones.
        proc::quiet_within(Command::new("apt-get").args(["update", "-q"]), LIMIT)?;
        install(&missing)
    })?;
    let still = self::missing(packages, proc::on_path);
    if !still.is_empty() {
        bail!("apt-get installed {names}, yet the programs of these are not to be found: {}", still.join(" "));
    }
    Ok(())
}

fn missing(packages: &[Package], present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    packages.iter().filter(|(_, program)| !present(program)).map(|(package, _)| *package).collect()
}

fn install(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    proc::quiet_within(&mut command, LIMIT).map(drop)
}

/// Makes programs in `/usr/sbin` and `/sbin` callable for us and everything we start: root's shell, by `su` or in a
/// container, may not have them on its PATH.
///
/// # Safety
/// No other thread runs yet.
pub unsafe fn extend_path() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    for system in ["/usr/sbin", "/sbin"] {
        if !folders.iter().any(|folder| folder == Path::new(system)) {
            folders.push(system.into());
        }
    }
    // Joining cannot fail: every part came out of a PATH.
    if let Ok(joined) = std::env::join_paths(folders) {
        // SAFETY: no other thread reads or writes the environment, as our caller promises.
        unsafe { std::env::set_var("PATH", joined) };
    }
}

/// Refuses to go on without root, with the command that would do.
///
/// # Errors
/// We are not root.
pub fn need_root(what: &str, command: &str) -> Result<()> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    bail!("{what} needs root (network namespaces, kernel programs)\nway out: sudo env \"PATH=$PATH\" {command}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_are_packages_not_programs() {
        let present = |program: &str| program != "nft" && program != "ping";
        assert_eq!(missing(LAB, present), ["iputils-ping", "nftables"]);
        assert!(missing(LAB, |_| true).is_empty());
    }
}
