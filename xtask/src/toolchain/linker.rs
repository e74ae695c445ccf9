//! `bpf-linker`, linked against the LLVM that the compiler in use carries: another LLVM could not read its bitcode.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow};

use super::{Compiler, put_in_place, scratch};
use crate::{build, proc};

const VERSION: &str = "0.13.0";

/// A `bpf-linker` that runs.
///
/// # Errors
/// It could not be built; the error says what would help.
pub(super) fn ensure(compiler: &Compiler, cache: &Path) -> Result<PathBuf> {
    let variable = build::linker_variable();
    if let Some(linker) = std::env::var_os(&variable) {
        let linker = PathBuf::from(linker);
        proc::say(&format!("bpf-linker: {} ({variable})", linker.display()));
        return Ok(linker);
    }
    let folder = cache.join(format!("bpf-linker-{VERSION}"));
    let linker = folder.join("bin/bpf-linker");
    if runs(&linker) {
        proc::say(&format!("bpf-linker {VERSION}: in the cache"));
        return Ok(linker);
    }
    install(compiler, cache, &folder).with_context(|| {
        format!(
            "bpf-linker {VERSION} for {} is missing, and the kernel object cannot be linked without it\n\
             way out: repair the cause below; or install a bpf-linker built with LLVM {} yourself and set {variable} to it",
            compiler.release, compiler.llvm.0,
        )
    })?;
    Ok(linker)
}

/// A linker whose LLVM is gone (the toolchain was removed) does not start.
fn runs(linker: &Path) -> bool {
    linker.is_file() && proc::quiet(Command::new(linker).arg("--version")).is_ok()
}

fn install(compiler: &Compiler, cache: &Path, target: &Path) -> Result<()> {
    let libraries = compiler.sysroot.join("lib");
    let llvm = find_llvm(&libraries, compiler.llvm)?;
    let scratch = scratch(cache)?;
    // `libLLVM.so` is the name that -lLLVM looks for.
    let prefix = scratch.path().join("llvm");
    fs::create_dir_all(prefix.join("lib")).with_context(|| format!("create {}/lib", prefix.display()))?;
    symlink(&llvm, prefix.join("lib/libLLVM.so")).with_context(|| format!("link to {}", llvm.display()))?;
    let root = scratch.path().join("root");
    let flags = format!("-Lnative={}/lib\x1f-Clink-arg=-Wl,-rpath,{}", prefix.display(), libraries.display());

    let mut command = Command::new(crate::cargo());
    command
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--no-default-features"])
        .arg("--features")
        .arg(format!("llvm-{}", compiler.llvm.0))
        // Unoptimized: the work is done in LLVM's own library, and this builds in about half the time.
        .args(["--debug", "--root"])
        .arg(&root)
        .current_dir(cache)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_TARGET_DIR", scratch.path().join("target"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let text = format!("bpf-linker {VERSION}: build it against rustc's own LLVM {} (about a minute)", compiler.llvm.0);
    proc::step(&text, || {
        proc::quiet(&mut command)?;
        proc::quiet(Command::new(root.join("bin/bpf-linker")).arg("--version")).context("try the new bpf-linker")?;
        put_in_place(&root, target)
    })
}

/// The shared LLVM library in the compiler's `lib` folder: `libLLVM.so.22.1-rust-1.95.0-stable`.
fn find_llvm(libraries: &Path, (major, minor): (u32, u32)) -> Result<PathBuf> {
    let stem = format!("libLLVM.so.{major}.{minor}");
    let entries = fs::read_dir(libraries).with_context(|| format!("list {}", libraries.display()))?;
    let fits =
        |name: &str| name.strip_prefix(&stem).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    entries.flatten().find(|entry| entry.file_name().to_str().is_some_and(fits)).map(|entry| entry.path()).ok_or_else(
        || {
            anyhow!(
                "no {stem}* in {}: this compiler keeps its LLVM elsewhere (rustup's toolchains have it there)",
                libraries.display()
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_of_the_very_version() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libLLVM-22-rust-1.95.0-stable.so", "libLLVM.so.22.10-x", "libLLVM.so.21.1-rust", "librustc.so"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let error = find_llvm(folder.path(), (22, 1)).unwrap_err().to_string();
        assert!(error.contains("no libLLVM.so.22.1*"), "{error}");
        let right = folder.path().join("libLLVM.so.22.1-rust-1.95.0-stable");
        fs::write(&right, "").unwrap();
        assert_eq!(find_llvm(folder.path(), (22, 1)).unwrap(), right);
    }

    #[test]
    fn a_linker_that_does_not_start_is_no_linker() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!runs(&folder.path().join("gone")));
        let text = folder.path().join("text");
        fs::write(&text, "not a program").unwrap();
        assert!(!runs(&text));
    }
}
