//! Network namespaces: finding them, holding them, entering them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    panic,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use super::error::Error;

const NAMED: &str = "/run/netns";

/// A network namespace, held open: it stays until this is dropped, even if all its processes end.
#[derive(Debug)]
pub(super) struct NetNs {
    /// Inode, as in `/proc/PID/ns/net`.
    pub(super) inode: u32,
    fd: OwnedFd,
}

impl NetNs {
    /// The calling thread's.
    pub(super) fn own() -> Result<Self, Error> {
        // Not /proc/self: that is the first thread's, and threads may be elsewhere.
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the namespace that `path` names.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Open { path: path.to_owned(), source };
        // Non-blocking, because anything may lie in /run/netns, a FIFO too.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
        // Inodes of namespaces are unique among themselves only.
        let of_namespace = fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type() == NSFS_MAGIC;
        let inode = u32::try_from(file.metadata().map_err(failed)?.ino());
        match (of_namespace, inode) {
            (true, Ok(inode)) => Ok(Self { inode, fd: file.into() }),
            _ => Err(Error::NoNamespace { path: path.to_owned() }),
        }
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> Result<(), Error> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|e| Error::Enter { netns: self.inode, source: e.into() })
    }

    /// Runs `work` on a thread of its own inside the namespace; the caller's thread stays where it is.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name(format!("netns-{}", self.inode))
                .spawn_scoped(scope, || {
                    self.enter()?;
                    work()
                })
                .map_err(|source| Error::Thread { netns: self.inode, source })?;
            worker.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A namespace that exists, and how to get at it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Files that open it: names before processes, because a process may end at any time.
    paths: Vec<PathBuf>,
    /// Its names under `/run/netns`, sorted.
    pub(super) names: Vec<String>,
}

impl Candidate {
    /// Opens it by the first file that still leads to namespace `inode`; None if it has vanished.
    ///
    /// # Errors
    /// Only if no file can be opened any more: it has not vanished then.
    pub(super) fn open(&self, inode: u32) -> Result<Option<NetNs>, Error> {
        for path in &self.paths {
            match NetNs::open(path) {
                Ok(netns) if netns.inode == inode => return Ok(Some(netns)),
                Err(error) if exhausted(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(None)
    }
}

/// All namespaces of processes and in `/run/netns`, by inode. What vanishes meanwhile is left out.
pub(super) fn candidates() -> Result<BTreeMap<u32, Candidate>, Error> {
    let mut found = BTreeMap::<u32, Candidate>::new();
    let proc = Path::new("/proc");
    for entry in fs::read_dir(proc).map_err(|source| Error::List { path: proc.to_owned(), source })? {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        // The link's text names the inode without opening anything. Kernel threads and zombies have none.
        let Ok(target) = fs::read_link(&path) else { continue };
        let Some(inode) = inode_of(&target) else { continue };
        found.entry(inode).or_default().paths.push(path);
    }
    add_named(&mut found)?;
    Ok(found)
}

fn add_named(found: &mut BTreeMap<u32, Candidate>) -> Result<(), Error> {
    let entries = match fs::read_dir(NAMED) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::List { path: NAMED.into(), source }),
    };
    for entry in entries.flatten() {
        let netns = match NetNs::open(&entry.path()) {
            Ok(netns) => netns,
            Err(error) if exhausted(&error) => return Err(error),
            Err(_) => continue,
        };
        let candidate = found.entry(netns.inode).or_default();
        candidate.paths.insert(0, entry.path());
        candidate.names.push(entry.file_name().to_string_lossy().into_owned());
        candidate.names.sort();
    }
    Ok(())
}

/// Is it the lack of descriptors, not of the file?
fn exhausted(error: &Error) -> bool {
    let Error::Open { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// `net:[4026531840]` -> 4026531840.
fn inode_of(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_link_names_its_inode() {
        assert_eq!(inode_of(Path::new("net:[4026531840]")), Some(4_026_531_840));
        for other in ["mnt:[4026531840]", "net:[]", "net:[99999999999]", "net:4026531840", ""] {
            assert_eq!(inode_of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_lack_of_descriptors_is_no_vanished_namespace() {
        let failed = |errno| Error::Open { path: "/proc/7/ns/net".into(), source: io::Error::from_raw_os_error(errno) };
        assert!(!exhausted(&failed(libc::ENOENT)));
        assert!(exhausted(&failed(libc::ENFILE)));
        insta::assert_snapshot!(failed(libc::EMFILE), @"cannot open network namespace /proc/7/ns/net: Too many open files (os error 24); pods of this node were left out of the trace, raise the limit on open files (ulimit -n)");
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = NetNs::open(file.path()).unwrap_err();
        assert!(matches!(error, Error::NoNamespace { .. }), "{error}");
    }

    #[test]
    fn own_namespace_is_a_candidate() {
        let own = NetNs::own().unwrap();
        assert!(candidates().unwrap().contains_key(&own.inode));
    }
}
