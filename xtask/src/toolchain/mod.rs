//! What the kernel object needs beyond stable Rust: the source of `core` for the compiler in use, and `bpf-linker`
//! linked against that compiler's own LLVM. Both are installed once per user and compiler, in the user's cache.

mod linker;
mod rust_src;

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow};

use crate::proc;

/// Paths of everything a build for the BPF target needs.
#[derive(Debug)]
pub struct Toolchain {
    /// The standard library's workspace: the folder that holds `core/` and `Cargo.lock`.
    pub library: PathBuf,
    /// The linker for BPF targets.
    pub linker: PathBuf,
}

/// Finds what the build needs, and installs what is missing.
///
/// # Errors
/// Something is missing and could not be installed; the error says what would help.
pub fn ensure() -> Result<Toolchain> {
    let compiler = Compiler::in_use()?;
    let cache = cache_dir()?.join(compiler.cache_key());
    fs::create_dir_all(&cache).with_context(|| format!("create cache folder {}", cache.display()))?;
    let _lock = lock(&cache)?;
    remove_remains(&cache)?;
    let library = rust_src::ensure(&compiler, &cache)?;
    let linker = linker::ensure(&compiler, &cache)?;
    Ok(Toolchain { library, linker })
}

/// The compiler in use, by its own words (`rustc -vV`, `rustc --print sysroot`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// `1.95.0`
    pub release: String,
    /// The commit it was built from; `unknown` for builds outside of git.
    pub commit: String,
    /// `x86_64-unknown-linux-gnu`
    pub host: String,
    /// Major and minor version of its LLVM.
    pub llvm: (u32, u32),
    /// The folder it is installed in.
    pub sysroot: PathBuf,
}

impl Compiler {
    /// Asks the `rustc` that cargo uses.
    ///
    /// # Errors
    /// It cannot be run, or says something unexpected.
    pub fn in_use() -> Result<Self> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = proc::quiet(Command::new(&rustc).arg("-vV"))?;
        let sysroot = proc::quiet(Command::new(&rustc).args(["--print", "sysroot"]))?;
        Self::parse(&version, Path::new(sysroot.trim()))
    }

    fn parse(version: &str, sysroot: &Path) -> Result<Self> {
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or_else(|| anyhow!("rustc -vV shows no `{name}`:\n{version}"))
        };
        let llvm = field("LLVM version")?;
        let mut numbers = llvm.split('.').map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Err(anyhow!("rustc -vV shows an LLVM version that is none: `{llvm}`"));
        };
        Ok(Self {
            release: field("release")?.to_owned(),
            commit: field("commit-hash").unwrap_or("unknown").to_owned(),
            host: field("host")?.to_owned(),
            llvm: (major, minor),
            sysroot: sysroot.to_owned(),
        })
    }

    /// The cache folder's name. The commit is part of it: two nightlies share a release.
    fn cache_key(&self) -> String {
        let commit = self.commit.get(..9).unwrap_or(&self.commit);
        format!("rustc-{}-{commit}-{}", self.release, self.host)
    }
}

/// Where this user's things for podpath are cached: `$XDG_CACHE_HOME/podpath` or `~/.cache/podpath`.
///
/// # Errors
/// Neither XDG_CACHE_HOME nor HOME is set.
pub fn cache_dir() -> Result<PathBuf> {
    // The XDG specification: a relative path is to be ignored.
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = xdg.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(base.context("no place for a cache: set HOME or XDG_CACHE_HOME")?.join("podpath"))
}

/// Holds other runs off until the file is dropped. The kernel releases it when we are killed.
pub(crate) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("create lock file {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => proc::step("wait for another run that installs the same", || {
            file.lock().with_context(|| format!("lock {}", path.display()))
        })?,
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    Ok(file)
}

const SCRATCH: &str = "installing-";

/// Removes what a killed run left behind. Only for the holder of the lock.
pub(crate) fn remove_remains(cache: &Path) -> Result<()> {
    let entries = fs::read_dir(cache).with_context(|| format!("list {}", cache.display()))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH)) {
        fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}

/// A scratch folder on the same file system as the cache, so that the finished thing can be renamed into place.
pub(crate) fn scratch(cache: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(SCRATCH)
        .tempdir_in(cache)
        .with_context(|| format!("create a scratch folder in {}", cache.display()))
}

/// Moves a finished folder into place; what lay there (something broken, or it would have been used) makes room.
pub(crate) fn put_in_place(from: &Path, to: &Path) -> Result<()> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", to.display()));
        }
        _ => {}
    }
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\ncommit-hash: \
        59807616e1fa2540724bfbac14d7976d7e4a3860\ncommit-date: 2026-04-14\nhost: x86_64-unknown-linux-gnu\n\
        release: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn stable_compiler() {
        let compiler = Compiler::parse(STABLE, Path::new("/sysroot")).unwrap();
        assert_eq!(compiler.release, "1.95.0");
        assert_eq!(compiler.llvm, (22, 1));
        assert_eq!(compiler.sysroot, Path::new("/sysroot"));
        assert_eq!(compiler.cache_key(), "rustc-1.95.0-59807616e-x86_64-unknown-linux-gnu");
    }

    #[test]
    fn distribution_compiler_without_commit() {
        let text = "rustc 1.85.0 (built from a source tarball)\nbinary: rustc\ncommit-hash: unknown\ncommit-date: \
            unknown\nhost: aarch64-unknown-linux-gnu\nrelease: 1.85.0\nLLVM version: 19.1.7\n";
        let compiler = Compiler::parse(text, Path::new("/usr")).unwrap();
        assert_eq!(compiler.cache_key(), "rustc-1.85.0-unknown-aarch64-unknown-linux-gnu");
    }

    #[test]
    fn missing_or_odd_fields_are_named() {
        let error = Compiler::parse("rustc 1.95.0\n", Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("`LLVM version`"), "{error}");
        let error = Compiler::parse(&STABLE.replace("22.1.2", "main"), Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("`main`"), "{error}");
    }

    #[test]
    fn a_broken_installation_makes_room() {
        let cache = tempfile::tempdir().unwrap();
        let (from, to) = (cache.path().join("new"), cache.path().join("old"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("file"), "new").unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(to.join("file"), "broken").unwrap();
        put_in_place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "new");
        assert!(!from.exists());
    }

    #[test]
    fn remains_of_a_killed_run_go_and_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        let killed = scratch(cache.path()).unwrap().keep();
        fs::create_dir(cache.path().join("library")).unwrap();
        remove_remains(cache.path()).unwrap();
        assert!(!killed.exists());
        assert!(cache.path().join("library").exists());
    }

    #[test]
    fn the_lock_is_exclusive_until_dropped() {
        let cache = tempfile::tempdir().unwrap();
        let held = lock(cache.path()).unwrap();
        let second = File::create(cache.path().join("lock")).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(second.try_lock().is_ok());
    }
}
