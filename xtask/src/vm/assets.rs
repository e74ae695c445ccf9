//! What VMs are made of: qemu, a root file system, kernels. Fetched once, kept in the user's cache for all clones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sha1::{Digest, Sha1};

use super::{
    kernel::{Kernel, SUITES, Wanted},
    tree::Tree,
};
use crate::{
    apt::Apt,
    packages, proc,
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

/// Takes everything from the cache, and fetches and builds what is missing there.
///
/// # Errors
/// Something cannot be fetched or built.
pub(super) fn ensure(wanted: &[Wanted]) -> Result<Assets> {
    ensure!(cfg!(target_arch = "x86_64"), "test VMs are x86-64 machines, and this is none");
    let folder = cache_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("create cache folder {}", folder.display()))?;
    let _lock = lock(&folder)?;
    remove_remains(&folder)?;
    let mut builder = Builder { folder: &folder, apt: None };

    let qemu = builder.keep(&format!("qemu-{}", key(QEMU)), "qemu", |apt, scratch| {
        Tree::unpack(&scratch.join("tree"), &apt.fetch(SUITE, QEMU)?).map(drop)
    })?;
    let packages = root_packages();
    let root = builder.keep(&format!("root-{}", key(&packages)), "root file system", |apt, scratch| {
        build_root(apt, scratch, &packages)
    })?;
    let root_tree = Tree(root.join("tree"));
    let mut kernels = Vec::new();
    for wanted in wanted {
        let name = format!("kernel-{wanted}-{}", key(&[include_str!("init.sh")]));
        let folder = builder
            .keep(&name, &format!("kernel {wanted}"), |apt, scratch| Kernel::build(wanted, scratch, apt, &root_tree))?;
        kernels.push(Kernel::cached(wanted, &folder).with_context(|| format!("kernel {wanted} was built in vain"))?);
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
        proc::step(&format!("vm: {what}: fetch and unpack"), || {
            if self.apt.is_none() {
                let folder = scratch(self.folder)?;
                self.apt = Some((Apt::new(folder.path(), SUITES)?, folder));
            }
            let (apt, _) = self.apt.as_ref().context("apt was made just now")?;
            let new = scratch(self.folder)?;
            build(apt, new.path())?;
            put_in_place(new.path(), &place)
        })?;
        Ok(place)
    }
}

fn root_packages() -> Vec<&'static str> {
    let tools = [packages::LAB, packages::TESTS].concat();
    let tools = tools.into_iter().map(|(package, _)| package);
    ROOT.iter().copied().chain(tools).collect()
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
