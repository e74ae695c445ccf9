//! Network namespaces by name, as `ip netns` keeps them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{FsType, statfs};
use nix::unistd::Pid;

/// Where `ip netns` mounts namespaces.
const DIRECTORY: &str = "/run/netns";

/// `NSFS_MAGIC` of linux/magic.h, which libc lacks.
const NSFS: FsType = FsType(0x6e73_6673);

/// How long a killed process may take to leave its namespace.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Whether a namespace of that name is there: not only the file, which a failed `ip netns add` leaves too.
pub(crate) fn is_mounted(name: &str) -> bool {
    statfs(&path(name)).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}

/// Names in `/run/netns`, whatever they stand for. No such folder: no names.
pub(crate) fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {DIRECTORY}")),
    };
    entries
        .map(|entry| {
            let entry = entry.with_context(|| format!("listing {DIRECTORY}"))?;
            Ok(entry.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

/// Do `work` inside the network namespace `name`, on a thread of its own; processes it starts are in there too.
///
/// A thread, because `setns` moves only the calling one, and so nothing has to find its way back
/// (see setns(2)).
///
/// # Errors
/// When the namespace cannot be entered, when `work` fails, and when it panics.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        enter(name)?;
        work()
    })
    .with_context(|| format!("in network namespace {name}"))
}

/// Do `work` inside a network namespace without name, links and settings, which goes away with it; as [`inside`].
pub(crate) fn in_an_empty_one<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (needs root)")?;
        work()
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
}

/// Move the calling thread into the network namespace `name`, for good.
pub(crate) fn enter(name: &str) -> Result<()> {
    let path = path(name);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {} (needs root)", path.display()))
}

/// End every process that lives in one of the namespaces, so that nothing keeps them alive unseen.
/// The calling process is spared.
pub(crate) fn kill_residents(names: &[String]) -> Result<()> {
    let inodes: Vec<u64> = names
        .iter()
        .filter(|name| is_mounted(name))
        .filter_map(|name| fs::metadata(path(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let start = Instant::now();
    loop {
        let residents = residents(&inodes)?;
        if residents.is_empty() {
            return Ok(());
        }
        if start.elapsed() > KILL_PATIENCE {
            bail!(
                "processes {residents:?} stay in the lab's network namespaces after SIGKILL; end them and run `cargo xtask lab down` again"
            );
        }
        for pid in residents {
            // One that is gone by now is what was wanted.
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn residents(inodes: &[u64]) -> Result<Vec<Pid>> {
    if inodes.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let entry = entry.context("listing /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ended meanwhile, and a zombie, has no namespace any more.
        let Ok(metadata) = fs::metadata(entry.path().join("ns/net")) else {
            continue;
        };
        let pid = Pid::from_raw(pid);
        if inodes.contains(&metadata.ino()) && pid != Pid::this() {
            found.push(pid);
        }
    }
    Ok(found)
}
