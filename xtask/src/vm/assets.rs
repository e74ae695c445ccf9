//! What VMs are made of: qemu, a root file system, kernels. Fetched once, kept in the user's cache for all clones.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sha1::{Digest, Sha1};

use super::{
    kernel::{Kernel, SUITES, Wanted, numbers},
    tree::Tree,
};
use crate::{
    apt::{self, Apt},
    interrupt, packages, proc,
    toolchain::{cache_dir, lock, put_in_place, remove_remains, scratch},
};

/// The suite that qemu and the root file system come from. Older qemus make newer kernels oops at random.
const SUITE: &str = "trixie";
const QEMU: &[&str] = &["qemu-system-x86"];
/// What a VM has beside what labs and tests call.
const ROOT: &[&str] = &[
    // First, for its links such as /bin.
    "base-files",
    "bash",
    "dash",
    "coreutils",
    "grep",
    "sed",
    "mawk",
    "procps",
    "util-linux",
    "mount",
    "kmod",
    "libc-bin",
    // To make images and initramfs with.
    "e2fsprogs",
    "xz-utils",
    "busybox-static",
    // To look around by, and to compare with.
    "bpftool",
    "ethtool",
    "iperf3",
    "netcat-openbsd",
    "pwru",
];
/// How long the newest kernel is taken for the newest.
const FRESH: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Goes into the name of everything cached: raise it when the way things are built changes.
const RECIPE: u32 = 1;

/// Everything that a VM needs and that does not change from run to run.
#[derive(Debug)]
pub(super) struct Assets {
    /// Holds qemu.
    pub(super) qemu: Tree,
    /// Holds the programs of the root file system; also for use on this machine.
    pub(super) root: Tree,
    /// The root file system.
    pub(super) root_image: PathBuf,
    /// In the order asked for.
    pub(super) kernels: Vec<Kernel>,
}

/// Why this machine cannot have these VMs, with `more` packages, if it cannot.
///
/// # Errors
/// There is no place for a cache.
pub(super) fn lack(wanted: &[Wanted], more: &[&'static str]) -> Result<Option<String>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Some("test VMs are x86-64 machines, and this is none".to_owned()));
    }
    let folder = folder()?;
    let root = folder.join(root_name(&root_packages(more)));
    let cached = folder.join(qemu_name()).is_dir() && root.is_dir();
    let cached = cached && wanted.iter().all(|wanted| Known::read(&folder, wanted).is_some());
    Ok(if cached { None } else { apt::lack().map(|lack| format!("the cache lacks a part of the VMs, and {lack}")) })
}

fn folder() -> Result<PathBuf> {
    Ok(cache_dir()?.join("vm"))
}

fn qemu_name() -> String {
    format!("qemu-{}", key(QEMU))
}

fn root_name(packages: &[&str]) -> String {
    format!("root-{}", key(packages))
}

/// A kernel in the cache.
struct Known {
    kernel: Kernel,
    /// Since Debian was asked for a newer one.
    age: Duration,
}

impl Known {
    /// Where the release that was found for `wanted` is written; the file is as old as that.
    fn note(folder: &Path, wanted: &Wanted) -> PathBuf {
        folder.join(format!("newest-{wanted}-{}", kernel_key()))
    }

    fn place(release: &str) -> String {
        format!("kernel-{release}-{}", kernel_key())
    }

    fn read(folder: &Path, wanted: &Wanted) -> Option<Known> {
        let note = Known::note(folder, wanted);
        let release = fs::read_to_string(&note).ok()?;
        let kernel = Kernel::cached(wanted, &folder.join(Known::place(&release)))?;
        // A clock that was put back makes it new.
        let age = fs::metadata(&note).and_then(|note| note.modified()).ok()?.elapsed().unwrap_or_default();
        Some(Known { kernel, age })
    }
}

fn kernel_key() -> String {
    key(&[include_str!("init.sh")])
}

/// Takes everything from the cache, and fetches and builds what is missing there. The root file system has `more` packages
/// than those that all VMs have; then it is one of its own in the cache.
///
/// # Errors
/// Something cannot be fetched or built.
pub(super) fn ensure(wanted: &[Wanted], more: &[&'static str]) -> Result<Assets> {
    if let Some(lack) = lack(wanted, more)? {
        bail!(lack);
    }
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("create cache folder {}", folder.display()))?;
    let _lock = lock(&folder)?;
    remove_remains(&folder)?;
    let mut builder = Builder { folder: &folder, apt: None };

    let qemu = builder.keep(&qemu_name(), "qemu", |apt, scratch| {
        Tree::unpack(&scratch.join("tree"), &apt.fetch(SUITE, QEMU)?).map(drop)
    })?;
    let packages = root_packages(more);
    let root =
        builder.keep(&root_name(&packages), "root file system", |apt, scratch| build_root(apt, scratch, &packages))?;
    let root_tree = Tree(root.join("tree"));
    let mut kernels = Vec::new();
    for wanted in wanted {
        kernels.push(builder.kernel(wanted, &root_tree)?);
    }
    Ok(Assets { qemu: Tree(qemu.join("tree")), root_image: root.join("root.img"), root: root_tree, kernels })
}

/// Builds what the cache lacks. Its apt is there once something is missing.
struct Builder<'a> {
    folder: &'a Path,
    apt: Option<(Apt, tempfile::TempDir)>,
}

impl Builder<'_> {
    /// The folder `name` of the cache; `build` fills it if it is not there.
    fn keep(&mut self, name: &str, what: &str, build: impl FnOnce(&Apt, &Path) -> Result<()>) -> Result<PathBuf> {
        let place = self.folder.join(name);
        // Put in place by a rename, when it is complete.
        if place.is_dir() {
            return Ok(place);
        }
        self.apt()?;
        proc::step(&format!("vm: {what}: fetch and unpack"), || {
            let new = scratch(self.folder)?;
            build(self.apt()?, new.path())?;
            put_in_place(new.path(), &place)
        })?;
        Ok(place)
    }

    fn apt(&mut self) -> Result<&Apt> {
        if self.apt.is_none() {
            let folder = scratch(self.folder)?;
            let apt = proc::step("vm: package lists: fetch", || Apt::new(folder.path(), SUITES))?;
            self.apt = Some((apt, folder));
        }
        self.apt.as_ref().map(|(apt, _)| apt).context("apt was made just now")
    }

    /// The newest kernel that fits. What is in the cache is taken for that for some days, and where Debian cannot be asked.
    fn kernel(&mut self, wanted: &Wanted, tools: &Tree) -> Result<Kernel> {
        let known = Known::read(self.folder, wanted);
        if let Some(Known { kernel, age }) = &known
            && *age < FRESH
        {
            return Ok(kernel.clone());
        }
        match (self.fetch(wanted, tools, known.as_ref()), known) {
            (Ok(kernel), _) => Ok(kernel),
            (Err(error), Some(Known { kernel, age })) if interrupt::received().is_none() => {
                let days = age.as_secs() / (24 * 60 * 60);
                let release = &kernel.release;
                proc::say(&format!(
                    "vm: kernel {wanted}: {release}, which was the newest {days} days ago; since then: {error:#}"
                ));
                Ok(kernel)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn fetch(&mut self, wanted: &Wanted, tools: &Tree, known: Option<&Known>) -> Result<Kernel> {
        let found = Kernel::newest(wanted, self.apt()?)?;
        // Where a suite could not be looked at, what is found may be older.
        let known = known.map(|known| known.kernel.release.clone());
        let release =
            known.into_iter().chain([found]).max_by_key(|release| numbers(release)).context("one is there")?;
        let place = self.keep(&Known::place(&release), &format!("kernel {release}"), |apt, scratch| {
            Kernel::build(&release, scratch, apt, tools)
        })?;
        let note = Known::note(self.folder, wanted);
        fs::write(&note, &release).with_context(|| format!("write {}", note.display()))?;
        proc::say(&format!("vm: kernel {wanted}: {release} is the newest"));
        Kernel::cached(wanted, &place).with_context(|| format!("kernel {release} was built in vain"))
    }
}

fn root_packages(more: &[&'static str]) -> Vec<&'static str> {
    let tools = [packages::LAB, packages::TESTS].concat();
    let tools = tools.into_iter().map(|(package, _)| package);
    ROOT.iter().copied().chain(tools).chain(more.iter().copied()).collect()
}

/// The image and the tree it was made of.
fn build_root(apt: &Apt, scratch: &Path, packages: &[&str]) -> Result<()> {
    let mut files = apt.fetch(SUITE, packages)?;
    // Its links must be there before something is put where they lead.
    files.sort_by_key(|path| !path.to_string_lossy().contains("/base-files_"));
    let tree = Tree::unpack(&scratch.join("tree"), &files)?;
    // What the packages' scripts would have made.
    tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")?;
    tree.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    tree.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    for name in ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"] {
        tree.link(&format!("usr/sbin/{name}"), "xtables-nft-multi")?;
    }
    tree.link("usr/bin/awk", "mawk")?;
    tree.link("usr/bin/nc", "nc.openbsd")?;
    tree.image_of(&scratch.join("tree"), &scratch.join("root.img"))
}

fn key(parts: &[&str]) -> String {
    let digest = Sha1::digest(format!("{RECIPE} {}", parts.join(" ")));
    digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}
