//! `cargo xtask build`: the kernel object; and podpath itself for what runs it.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    proc,
    toolchain::{self, Toolchain},
    workspace_root,
};

/// The BPF target of the host's byte order: kernel and programs share memory.
const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
/// BTF is made from debug information; aya and the verifier need it. Without the last one LLVM turns every clearing of an array
/// into a call of a byte-by-byte memset, a loop that the verifier follows for each of its bytes.
const FLAGS: [&str; 3] = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"];

/// Builds the kernel object and returns its path, `target/ebpf/podpath-ebpf.o` in the clone. The file is touched only
/// when its bytes change, so that what embeds it is not built again for nothing.
///
/// # Errors
/// The toolchain for the BPF target cannot be had, or the kernel programs do not compile.
pub fn kernel_object() -> Result<PathBuf> {
    let mut command = kernel_cargo("build", &toolchain::ensure()?)?;
    proc::step("kernel object: compile", || proc::quiet(&mut command)).context("build the kernel programs")?;
    let built = target_dir().join(TARGET).join("release/tracer-ebpf");
    let object = workspace_root().join("target/ebpf/podpath-ebpf.o");
    let change = if copy_if_changed(&built, &object)? { "new" } else { "unchanged" };
    proc::say(&format!("kernel object: {} ({change})", object.display()));
    Ok(object)
}

/// Runs clippy on the kernel programs as they are compiled for the kernel: on the host most of them are cut out.
///
/// # Errors
/// The toolchain for the BPF target cannot be had, or clippy finds something.
pub fn kernel_clippy() -> Result<()> {
    let mut command = kernel_cargo("clippy", &toolchain::ensure()?)?;
    command.args(["--", "-D", "warnings"]);
    proc::quiet(&mut command).map(drop)
}

/// Name and path of every program (also tests and benches) that cargo built, from what it said by `--message-format=json`.
pub(crate) fn programs(messages: &str) -> Vec<(String, PathBuf)> {
    messages.lines().filter_map(program).collect()
}

fn program(line: &str) -> Option<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Message {
        target: Target,
        executable: PathBuf,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    // Other lines are about other things, or about what is no program.
    let Message { target: Target { name, kind }, executable } = serde_json::from_str(line).ok()?;
    kind.iter().any(|kind| ["bin", "test", "bench"].contains(&kind.as_str())).then_some((name, executable))
}

/// A cargo command on the kernel programs for the BPF target.
fn kernel_cargo(subcommand: &str, toolchain: &Toolchain) -> Result<Command> {
    let mut flags = without_paths(&toolchain.library)?;
    flags.extend(FLAGS.map(str::to_owned));
    let mut command = Command::new(crate::cargo());
    command
        .args([subcommand, "--release", "-p", "tracer-ebpf", "--bin", "tracer-ebpf", "-Z", "build-std=core"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir())
        .current_dir(workspace_root())
        // -Z options on a stable compiler; in a target folder of its own, so that no other build sees a difference.
        .env("RUSTC_BOOTSTRAP", "1")
        // Where cargo takes `core` from in place of the sysroot. A name for cargo's own tests, but since 2019 the only
        // way that leaves the user's toolchain untouched. Should it go, cargo itself will say that rust-src is missing.
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &toolchain.library)
        .env(linker_variable(), &toolchain.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(command)
}

/// Flags that keep the places of sources on this machine out of what is compiled: of the clone, of crates, and of the
/// standard library in `library`. So a clone elsewhere gives the same bytes.
pub(crate) fn without_paths(library: &Path) -> Result<Vec<String>> {
    let crates = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("there is no home folder: set CARGO_HOME")?.join(".cargo"),
    };
    let places = [(workspace_root(), "podpath"), (&*crates, "cargo"), (library, "rust")];
    Ok(places.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).to_vec())
}

fn target_dir() -> PathBuf {
    workspace_root().join("target/bpf")
}

/// The variable by which cargo learns the linker for the BPF target.
pub(crate) fn linker_variable() -> String {
    format!("CARGO_TARGET_{}_LINKER", TARGET.replace('-', "_").to_uppercase())
}

/// Copies `from` to `to` unless they are equal already. A reader never sees half a file.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == bytes => return Ok(false),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("read {}", to.display()));
        }
        _ => {}
    }
    let folder = to.parent().with_context(|| format!("{} lies in no folder", to.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    // A name of our own: another run may be at the same point.
    let new = to.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, &bytes).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("move {} to {}", new.display(), to.display()))?;
    Ok(true)
}

/// Compiles `podpath` and its agent; the program is beside this very one, in the folder that cargo writes to.
///
/// # Errors
/// They do not compile, or this program was not started by cargo.
pub(crate) fn podpath() -> Result<PathBuf> {
    let mut cargo = Command::new(crate::cargo());
    cargo.args(["build", "-p", "tracer-user", "--bins"]).current_dir(workspace_root());
    proc::step("podpath, podpath-agent: compile", || proc::quiet(&mut cargo))?;
    let own = std::env::current_exe().context("find the own program")?;
    let podpath = own.with_file_name("podpath");
    if !podpath.is_file() {
        bail!("no podpath beside {}\nway out: start it by `cargo xtask ...`", own.display());
    }
    Ok(podpath)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let bin = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"podpath","edition":"2024"},"executable":"/t/podpath","fresh":true}"#;
        assert_eq!(programs(bin), [("podpath".to_owned(), PathBuf::from("/t/podpath"))]);
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"xtask"},"executable":null}"#;
        let others = format!("{library}\n{{\"reason\":\"build-finished\",\"success\":true}}\nno json");
        assert_eq!(programs(&others), []);
    }

    #[test]
    fn copies_only_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("sub/to"));
        fs::write(&from, "one").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        let first = fs::metadata(&to).unwrap().modified().unwrap();
        assert!(!copy_if_changed(&from, &to).unwrap());
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), first, "an equal file is left alone");
        fs::write(&from, "two").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
    }

    #[test]
    fn the_linker_variable_is_the_one_cargo_reads() {
        let expected = if cfg!(target_endian = "big") { "BPFEB" } else { "BPFEL" };
        assert_eq!(linker_variable(), format!("CARGO_TARGET_{expected}_UNKNOWN_NONE_LINKER"));
    }
}
