//! Booting VMs and running commands in them.

use std::{
    cell::RefCell,
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail};

use super::{
    assets::{self, Assets},
    client::{Client, Event, within},
    frame::Request,
    kernel::{Kernel, Wanted},
    machine::{self, Card, Machine},
    payload::Payload,
};
use crate::{interrupt, proc};

/// A boot takes 4 s on an idle machine; on one where everything else runs too, many times that.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How often a boot that the emulator spoilt is repeated. A command never is.
const BOOT_AGAIN: u32 = 2;
/// How long a kernel that breaks takes to end its VM.
const DEATH: Duration = Duration::from_secs(3);
/// Lines of a broken kernel's log that are shown.
const LOG_TAIL: usize = 40;

/// Everything to start VMs with.
pub(super) struct Bench {
    pub(super) assets: Assets,
    pub(super) payload: Payload,
    /// Short: sockets lie in it.
    folder: tempfile::TempDir,
    /// Locked for as long as we live.
    _owner: File,
}

const FOLDER: &str = "podpath-vm-";
/// A folder that is younger than this may not be locked yet.
const NEW: Duration = Duration::from_secs(60);

/// A folder of our own in `parent`. Those whose owners were killed go.
fn folder(parent: &Path) -> Result<(tempfile::TempDir, File)> {
    for entry in fs::read_dir(parent).with_context(|| format!("list {}", parent.display()))?.flatten() {
        let is_old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > NEW);
        if entry.file_name().to_string_lossy().starts_with(FOLDER) && is_old() == Some(true) {
            let path = entry.path();
            // Another's, which we may not open or remove, is another's to remove.
            if File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()) && fs::remove_dir_all(&path).is_ok() {
                proc::say(&format!("vm: removed {}, left by a run that was killed", path.display()));
            }
        }
    }
    let folder = tempfile::Builder::new().prefix(FOLDER).tempdir_in(parent).context("create a folder for VMs")?;
    let owner = File::open(folder.path()).context("open the folder for VMs")?;
    owner.try_lock().context("lock the folder for VMs")?;
    Ok((folder, owner))
}

impl Bench {
    /// Fetches and builds everything; `extra` files are taken along.
    ///
    /// # Errors
    /// Something cannot be fetched or built.
    pub(super) fn new(kernels: &[Wanted], extra: &[PathBuf]) -> Result<Bench> {
        Bench::with(assets::ensure(kernels, &[])?, Payload::build(extra)?)
    }

    /// The same with programs that are built already.
    ///
    /// # Errors
    /// Their image cannot be made.
    pub(super) fn with(assets: Assets, payload: Payload) -> Result<Bench> {
        let (folder, owner) = folder(&std::env::temp_dir())?;
        let bench = Bench { assets, payload, folder, _owner: owner };
        proc::step("vm: image of this clone's programs", || {
            bench.payload.image(&bench.folder.path().join("work"), &bench.work(), &bench.assets.root)
        })?;
        Ok(bench)
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work.img")
    }

    /// Where the sockets of a VM of that name lie.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A shell command, with this clone's programs in its PATH.
    ///
    /// # Errors
    /// cargo built no podpath.
    pub(super) fn shell(&self, command: &str) -> Result<Request> {
        let programs = self.payload.folders().join(":");
        let path = format!("{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(Request {
            words: ["bash", "-c", command].map(str::to_owned).to_vec(),
            environment: vec![("PATH".to_owned(), path)],
        })
    }

    /// Boots a VM. A boot that the emulator spoils is repeated, counted and told.
    ///
    /// # Errors
    /// It does not come up, or we are interrupted.
    pub(super) fn boot(&self, kernel: &Kernel, name: &str, card: Option<&Card>) -> Result<Vm> {
        let mut failed_boots = 0;
        loop {
            let folder = self.place(&format!("{name}.{failed_boots}"));
            let machine = Machine::start(&self.assets, kernel, &self.work(), &folder, card)?;
            let vm = Vm { machine: RefCell::new(machine), name: name.to_owned() };
            let start = Instant::now();
            match vm.run(0, &self.shell("true")?, BOOT_LIMIT, |_| Ok(())) {
                Ok(0) => {
                    let seconds = start.elapsed().as_secs_f64();
                    proc::say(&format!(
                        "vm {name}: Linux {} booted in {seconds:.1} s, failed boots before that: {failed_boots}",
                        kernel.release
                    ));
                    return Ok(vm);
                }
                Ok(code) => bail!("vm {name}: its shell fails with exit code {code}"),
                Err(error) if failed_boots < BOOT_AGAIN && interrupt::received().is_none() => {
                    failed_boots += 1;
                    proc::say(&format!("vm {name}: boot {failed_boots} failed, and is repeated: {error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A VM that is up.
pub(super) struct Vm {
    machine: RefCell<Machine>,
    name: String,
}

impl Vm {
    /// Runs a command on a channel that is free: its exit code, as a shell gives it.
    ///
    /// # Errors
    /// The VM ended, or its kernel broke; it took longer than `limit`; we were interrupted; or `sink` refuses.
    pub(super) fn run(
        &self,
        channel: usize,
        request: &Request,
        limit: Duration,
        sink: impl FnMut(Event<'_>) -> Result<()>,
    ) -> Result<i32> {
        let mut client = Client::start(&self.channel(channel), request.clone()).map_err(|error| self.explain(error))?;
        client.end_input()?;
        client.finish(sink, within(limit)).map_err(|error| self.explain(error))
    }

    /// Where a client of that channel connects.
    pub(super) fn channel(&self, channel: usize) -> PathBuf {
        self.machine.borrow().channel(channel)
    }

    /// What the kernel complained of, if it did: a VM that runs on may have a broken kernel.
    ///
    /// # Errors
    /// It did.
    pub(super) fn is_sound(&self) -> Result<()> {
        let log = self.machine.borrow().kernel_log();
        match machine::complaint(&log) {
            Some(line) => bail!("vm {}: the kernel complained: {line}\n{}", self.name, tail(&log)),
            None => Ok(()),
        }
    }

    fn explain(&self, error: Error) -> Error {
        let mut machine = self.machine.borrow_mut();
        let start = Instant::now();
        while machine.is_alive() && start.elapsed() < DEATH && interrupt::received().is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = machine.kernel_log();
        let state = match (machine::complaint(&log), machine.is_alive()) {
            (Some(line), _) => format!("its kernel broke: {line}"),
            (None, true) => "it still runs".to_owned(),
            (None, false) => format!("it ended. {}", machine.qemu_log()),
        };
        error.context(format!("vm {}: {state}\n{}", self.name, tail(&log)))
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL)..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_nobody_owns_any_more_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (owned, _owner) = folder(parent.path()).unwrap();
        let killed = parent.path().join(format!("{FOLDER}killed"));
        let new = parent.path().join(format!("{FOLDER}new"));
        let other = parent.path().join("other");
        for path in [&killed, &new, &other] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "").unwrap();
        }
        let long_ago = std::time::SystemTime::now() - 2 * NEW;
        for path in [owned.path(), &killed, &other] {
            File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
        let _mine = folder(parent.path()).unwrap();
        assert!(!killed.exists());
        assert!(owned.path().exists() && new.exists() && other.exists());
    }
}
