//! What of this clone a VM gets: programs, tests, scenarios, at the same paths as here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{machine::CHANNELS, tree::Tree};
use crate::{build, proc, workspace_root};

/// The tests that run in VMs, by package-wide unique name.
const TESTS: &[&str] = &["kernel", "profiles", "scenarios"];
/// What is in the PATH of a VM.
const CALLED: &[&str] = &["podpath", "podpath-agent", "xtask"];
/// What tests read from the clone.
const FOLDERS: &[&str] = &["scenarios", "target/ebpf"];

/// Programs that cargo built.
#[derive(Debug)]
pub(super) struct Payload {
    /// Name and path.
    programs: Vec<(String, PathBuf)>,
    extra: Vec<PathBuf>,
}

impl Payload {
    /// Builds the kernel object, the programs and the tests; `extra` are more files to take along.
    ///
    /// # Errors
    /// Something does not compile.
    pub(super) fn build(extra: &[PathBuf]) -> Result<Payload> {
        build::kernel_object()?;
        let mut cargo = Command::new(crate::cargo());
        // All of the workspace, so that features are the same as for `cargo test --workspace`, and nothing is built twice.
        cargo.args(["test", "--quiet", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
        for test in TESTS {
            cargo.args(["--test", test]);
        }
        cargo.current_dir(workspace_root());
        let messages = proc::step("vm: programs and tests: compile", || proc::quiet(&mut cargo))?;
        let programs = build::programs(&messages);
        let extra =
            extra.iter().map(std::path::absolute).collect::<std::io::Result<_>>().context("find the files to add")?;
        let payload = Payload { programs, extra };
        for name in TESTS.iter().chain(CALLED) {
            payload.program(name)?;
        }
        Ok(payload)
    }

    /// Only these programs, by name, and this very one, which serves in the VM.
    ///
    /// # Errors
    /// Our own program cannot be found.
    pub(super) fn of(programs: Vec<(String, PathBuf)>) -> Result<Payload> {
        let own = std::env::current_exe().context("find the own program")?;
        let programs = programs.into_iter().chain([("xtask".to_owned(), own)]).collect();
        Ok(Payload { programs, extra: Vec::new() })
    }

    /// Where the programs lie that people call by name; each folder once.
    pub(super) fn folders(&self) -> Vec<String> {
        let named = self.programs.iter().filter(|(name, _)| CALLED.contains(&name.as_str()));
        let mut folders: Vec<String> =
            named.filter_map(|(_, path)| Some(path.parent()?.to_string_lossy().into_owned())).collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// The path of a program, here and in the VM.
    ///
    /// # Errors
    /// cargo built none of that name.
    pub(super) fn program(&self, name: &str) -> Result<&Path> {
        match self.programs.iter().find(|(known, _)| known == name) {
            Some((_, path)) => Ok(path),
            None => bail!("cargo built no program `{name}`"),
        }
    }

    /// Makes the image `image`; `folder` is an empty one for what goes into it.
    ///
    /// # Errors
    /// A file cannot be copied, or the image cannot be made.
    pub(super) fn image(&self, folder: &Path, image: &Path, tools: &Tree) -> Result<()> {
        let below = |path: &Path| folder.join(path.strip_prefix("/").unwrap_or(path));
        for (_, path) in &self.programs {
            let target = below(path);
            make_parent(&target)?;
            // Debug information is most of a program, and a third of that again the time to make an image of it.
            let mut strip = Command::new("strip");
            strip.arg("--strip-debug").arg("-o").arg(&target).arg(path);
            proc::quiet(&mut strip).context("take the debug information out of a program")?;
        }
        for folder in FOLDERS {
            copy(&workspace_root().join(folder), &below(&workspace_root().join(folder)))?;
        }
        for path in &self.extra {
            make_parent(&below(path))?;
            copy(path, &below(path))?;
        }
        let xtask = self.program("xtask")?.display();
        let script = include_str!("guest.sh").replacen('\n', &format!("\nXTASK='{xtask}' CHANNELS={CHANNELS}\n"), 1);
        let init = folder.join("usr/sbin/podpath-vm");
        make_parent(&init)?;
        fs::write(&init, script).with_context(|| format!("write {}", init.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&init, mode).with_context(|| format!("make {} a program", init.display()))?;
        tools.image_of(folder, image)
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Copies a file or a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
        for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
            let entry = entry.with_context(|| format!("list {}", from.display()))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to).map(drop).with_context(|| format!("copy {} to {}", from.display(), to.display()))
}
