//! The source of the standard library for the compiler in use: from its sysroot, the cache, rustup, or Debian's package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use super::{Compiler, put_in_place, scratch};
use crate::{apt::Apt, interrupt, proc};

/// Debian's suite that carries the compiler's newer versions, and with them their sources.
const SUITE: &str = "trixie-backports";
/// 3 MB: what has not come by then will not come.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// The standard library's workspace folder, for `core` to be built from.
///
/// # Errors
/// It is nowhere to be had; the error says why, and what would help.
pub(super) fn ensure(compiler: &Compiler, cache: &Path) -> Result<PathBuf> {
    let in_sysroot = compiler.sysroot.join("lib/rustlib/src/rust/library");
    if is_library(&in_sysroot) {
        proc::say(&format!("rust-src {}: in the compiler's sysroot", compiler.release));
        return Ok(in_sysroot);
    }
    let cached = cache.join("library");
    if is_library(&cached) {
        proc::say(&format!("rust-src {}: in the cache", compiler.release));
        return Ok(cached);
    }
    let by_rustup = match from_rustup(compiler) {
        Ok(()) if is_library(&in_sysroot) => return Ok(in_sysroot),
        Ok(()) => anyhow!("`rustup component add` succeeded, yet {} holds no source", in_sysroot.display()),
        Err(error) => error,
    };
    match from_debian(compiler, cache, &cached) {
        Ok(()) => Ok(cached),
        Err(error) if interrupt::received().is_some() => Err(error),
        Err(by_debian) => Err(anyhow!(
            "the source of Rust's core library {} is missing, and the kernel object cannot be built without it\n  \
             rustup: {by_rustup:#}\n  Debian: {by_debian:#}\n\
             way out: `rustup component add rust-src` where rustup may download; or put the folder `library` of \
             Rust {}'s source at {}",
            compiler.release,
            compiler.release,
            cached.display()
        )),
    }
}

/// What cargo's build-std looks at. Follows links; a dangling one is as good as nothing.
fn is_library(folder: &Path) -> bool {
    folder.join("Cargo.lock").is_file() && folder.join("core/src/lib.rs").is_file()
}

fn from_rustup(compiler: &Compiler) -> Result<()> {
    if std::env::var_os("RUSTUP_AUTO_INSTALL").is_some_and(|value| value == "0") {
        bail!("not asked, RUSTUP_AUTO_INSTALL=0 says not to download");
    }
    if !proc::on_path("rustup") {
        bail!("not installed");
    }
    let toolchain = toolchain_name(&compiler.sysroot)
        .ok_or_else(|| anyhow!("{} is none of its toolchains", compiler.sysroot.display()))?;
    let text = format!("rust-src {}: rustup component add", compiler.release);
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain", &toolchain]).env("RUSTUP_MAX_RETRIES", "0");
    proc::step(&text, || proc::quiet_within(&mut command, RUSTUP_LIMIT)).map(drop)
}

/// `stable-x86_64-unknown-linux-gnu` of `~/.rustup/toolchains/stable-x86_64-unknown-linux-gnu`.
fn toolchain_name(sysroot: &Path) -> Option<String> {
    (sysroot.parent()?.file_name()? == "toolchains").then_some(())?;
    Some(sysroot.file_name()?.to_string_lossy().into_owned())
}

/// Takes `library/` out of Debian's package `rust-src`.
fn from_debian(compiler: &Compiler, cache: &Path, target: &Path) -> Result<()> {
    let scratch = scratch(cache)?;
    let text = format!("rust-src {}: Debian's package from {SUITE}", compiler.release);
    proc::step(&text, || {
        let apt = Apt::new(scratch.path(), &[SUITE])?;
        let stanzas = apt.run("apt-cache", &["show", "rust-src"]).context("look up the package rust-src")?;
        let version = pick_version(&stanzas, &compiler.release)?;
        apt.run("apt-get", &["download", "-q", &format!("rust-src={version}")]).context("fetch the package")?;
        let package = find(scratch.path(), |name| name.starts_with("rust-src_") && name.ends_with(".deb"))?;
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).with_context(|| format!("create {}", tree.display()))?;
        // Not `dpkg -x`: the package holds all of rustc's source, ten times the files of the one folder wanted.
        let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --wildcards './usr/src/rustc-*/library'";
        let mut unpack = Command::new("sh");
        unpack.args(["-c", script, "unpack"]).arg(&package).arg(&tree);
        proc::quiet(&mut unpack).context("unpack the package")?;
        let source = find(&tree.join("usr/src"), |name| name.starts_with("rustc-"))?;
        let library = source.join("library");
        if !is_library(&library) {
            bail!("the package rust-src {version} holds no usable `library` folder");
        }
        put_in_place(&library, target)
    })
}

/// The newest packaging of exactly this release, from stanzas as `apt-cache show` prints them (newest first).
fn pick_version<'a>(stanzas: &'a str, release: &str) -> Result<&'a str> {
    let versions = || stanzas.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::trim);
    versions().find(|version| upstream(version) == release).ok_or_else(|| {
        let offered: Vec<&str> = versions().map(upstream).collect();
        anyhow!("{SUITE} has rust-src {}, not {release}", offered.join(", "))
    })
}

/// `1.95.0` of `1.95.0+dfsg1-2~bpo13+1`.
fn upstream(version: &str) -> &str {
    version.split(['+', '-', '~']).next().unwrap_or(version)
}

/// The one entry of `folder` whose name fits.
fn find(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .flatten()
        .find(|entry| entry.file_name().to_str().is_some_and(&fits))
        .map(|entry| entry.path())
        .ok_or_else(|| anyhow!("{} holds nothing of the expected name", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Package: rust-src\nVersion: 1.96.1+dfsg1-2~bpo13+1\nFilename: a_1.95.0.deb\n\n\
        Package: rust-src\nVersion: 1.95.0+dfsg1-2~bpo13+1\n\nPackage: rust-src\nVersion: 1.95.0+dfsg1-1~bpo13+1\n\n\
        Package: rust-src\nVersion: 1.9.0+dfsg1-1\n";

    #[test]
    fn exactly_this_release_newest_packaging() {
        assert_eq!(pick_version(STANZAS, "1.95.0").unwrap(), "1.95.0+dfsg1-2~bpo13+1");
    }

    #[test]
    fn another_release_is_refused_and_the_offer_listed() {
        let error = pick_version(STANZAS, "1.95.1").unwrap_err().to_string();
        assert_eq!(error, "trixie-backports has rust-src 1.96.1, 1.95.0, 1.95.0, 1.9.0, not 1.95.1");
        assert!(pick_version(STANZAS, "1.97.0-nightly").is_err());
        assert!(pick_version("", "1.95.0").is_err());
    }

    #[test]
    fn toolchain_of_a_rustup_sysroot_only() {
        let rustup = Path::new("/home/u/.rustup/toolchains/1.95.0-x86_64-unknown-linux-gnu");
        assert_eq!(toolchain_name(rustup).as_deref(), Some("1.95.0-x86_64-unknown-linux-gnu"));
        assert_eq!(toolchain_name(Path::new("/usr")), None);
    }

    #[test]
    fn a_dangling_link_is_no_library() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("library");
        std::os::unix::fs::symlink(folder.path().join("gone"), &link).unwrap();
        assert!(!is_library(&link));
    }
}
