//! Debian's cloud kernels: found by version, unpacked, made ready to boot.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Error, Result, bail, ensure};

use super::{initramfs, tree::Tree};
use crate::{apt::Apt, proc};

/// The suites that hold the kernels, from 5.10 to the newest.
pub(super) const SUITES: &[&str] = &["bullseye", "bookworm", "trixie", "trixie-backports"];
const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";
/// What must be loaded before the disks can be mounted, where it is not built in.
const EARLY: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "overlay", "virtio_net", "virtio_rng"];

/// Which kernel: `6.1`, `6.12.107`, `7.x`; the newest that fits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted(String);

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Wanted> {
        let parts: Vec<&str> = text.split('.').collect();
        let number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let well = match parts.as_slice() {
            [major, "x"] => number(major),
            [major, rest @ ..] => number(major) && !rest.is_empty() && rest.iter().all(number),
            [] => false,
        };
        ensure!(well, "`{text}` is no kernel version; write 5.10, 6.12.107, or 7.x for the newest 7");
        Ok(Wanted(text.to_owned()))
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Wanted {
    /// The newest of the package names, each `linux-image-VERSION-cloud-amd64`.
    fn pick<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let wanted: Vec<&str> = self.0.split('.').take_while(|part| *part != "x").collect();
        let version = |name: &'a str| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX);
        let fits = |version: &str| {
            let numbers: Vec<&str> = version.split(|c: char| !c.is_ascii_digit()).collect();
            numbers.starts_with(&wanted)
        };
        names.filter(|name| version(name).is_some_and(fits)).max_by_key(|name| numbers(name))
    }
}

/// What kernels' releases are ordered by.
pub(super) fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// A kernel in the cache, ready to boot.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) wanted: Wanted,
    /// What `uname -r` says in it.
    pub(super) release: String,
    folder: PathBuf,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    /// An ext4 image with all its modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("modules.img")
    }

    /// The one that lies in `folder`, if it was built to its end.
    pub(super) fn cached(wanted: &Wanted, folder: &Path) -> Option<Kernel> {
        // Written last.
        let release = fs::read_to_string(folder.join("release")).ok()?;
        Some(Kernel { wanted: wanted.clone(), release, folder: folder.to_owned() })
    }

    /// The release of the newest one that fits.
    ///
    /// # Errors
    /// Debian has no such kernel.
    pub(super) fn newest(wanted: &Wanted, apt: &Apt) -> Result<String> {
        let names = apt.run("apt-cache", &["pkgnames", PREFIX])?;
        let Some(package) = wanted.pick(names.lines()) else {
            bail!("Debian's suites {} hold no cloud kernel {wanted}{}", SUITES.join(", "), apt.without());
        };
        Ok(package.strip_prefix(PREFIX).unwrap_or(package).to_owned())
    }

    /// Fetches it and builds everything in `folder`, a scratch folder. `tools` is the root tree: depmod, xz, busybox are its.
    ///
    /// # Errors
    /// Debian has no such kernel, or it is laid out unlike any that we know.
    pub(super) fn build(release: &str, folder: &Path, apt: &Apt, tools: &Tree) -> Result<()> {
        let package = format!("{PREFIX}{release}");
        let package = package.as_str();
        // What it depends on beyond more parts of the kernel is for installing it.
        let mut packages = apt.fetch("trixie-backports", &[package])?;
        packages.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-")));
        let tree = Tree::unpack(&folder.join("tree"), &packages)?;

        // Older kernels' packages are from before /lib was a link to usr/lib.
        let modules = ["usr/lib/modules", "lib/modules"].map(|path| tree.0.join(path).join(release));
        let modules = modules.iter().find(|path| path.is_dir()).with_context(|| format!("{package} has no modules"))?;
        let kernels = [tree.0.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let kernel = kernels.iter().find(|path| path.is_file()).with_context(|| format!("{package} has no vmlinuz"))?;
        let moving = || format!("move {} to {}", kernel.display(), folder.display());
        fs::rename(kernel, folder.join("vmlinuz")).with_context(moving)?;

        let layer = folder.join("layer");
        let place = layer.join("usr/lib/modules");
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let place = place.join(release);
        fs::rename(modules, &place).with_context(|| format!("move {} to {}", modules.display(), place.display()))?;
        for name in ["build", "source"] {
            // Links into trees that are not there.
            let _ = fs::remove_file(place.join(name));
        }
        // depmod looks for <base>/lib/modules.
        std::os::unix::fs::symlink("usr/lib", layer.join("lib")).context("link lib to usr/lib")?;
        proc::quiet(tools.command("usr/sbin/depmod").arg("-b").arg(&layer).arg(release))?;
        fs::remove_file(layer.join("lib")).context("remove the link lib")?;

        let early = early_modules(&place, tools)?;
        initramfs::write(&folder.join("initramfs"), &tools.0.join("usr/bin/busybox"), &early)?;
        tools.image_of(&layer, &folder.join("modules.img"))?;
        for used in [&tree.0, &layer] {
            fs::remove_dir_all(used).with_context(|| format!("remove {}", used.display()))?;
        }
        fs::write(folder.join("release"), release).context("write the kernel's release")
    }
}

/// The [`EARLY`] modules and all that they need, uncompressed, in the order to load them.
fn early_modules(folder: &Path, tools: &Tree) -> Result<Vec<(String, Vec<u8>)>> {
    let dependencies = folder.join("modules.dep");
    let text = fs::read_to_string(&dependencies).with_context(|| format!("read {}", dependencies.display()))?;
    let order = load_order(&text, EARLY);
    let mut modules = Vec::new();
    for path in order {
        let file = folder.join(&path);
        let bytes = match path.ends_with(".xz") {
            true => {
                let mut command = tools.command("usr/bin/xz");
                let output = command.arg("-dc").arg(&file).output().with_context(|| format!("unpack {path}"))?;
                ensure!(output.status.success(), "unpack {path}: {}", String::from_utf8_lossy(&output.stderr));
                output.stdout
            }
            false => fs::read(&file).with_context(|| format!("read {}", file.display()))?,
        };
        modules.push((format!("{}.ko", module_name(&path)), bytes));
    }
    Ok(modules)
}

/// Paths of the modules `names` and all that they need, each after what it needs. `text` is `modules.dep`, in which each
/// line names a module and, last first, all it needs. What is not there is built in.
fn load_order(text: &str, names: &[&str]) -> Vec<String> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|path| module_name(path) == *name));
        let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else { continue };
        for path in needs.split_whitespace().rev().chain([path]) {
            if seen.insert(path) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

/// `virtio_blk` of `kernel/drivers/block/virtio_blk.ko.xz`; the kernel makes no difference between - and _.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 8] = [
        "linux-image-5.10.0-32-cloud-amd64",
        "linux-image-5.10.0-9-cloud-amd64",
        "linux-image-5.10.0-33-cloud-amd64-dbg",
        "linux-image-6.1.0-50-cloud-amd64",
        "linux-image-6.12.94+deb13-cloud-amd64",
        "linux-image-6.12.107+deb13-cloud-amd64",
        "linux-image-7.2.12+deb13-cloud-amd64",
        "linux-image-cloud-amd64",
    ];

    fn pick(wanted: &str) -> Option<&'static str> {
        wanted.parse::<Wanted>().unwrap().pick(NAMES.into_iter())
    }

    #[test]
    fn the_newest_that_fits() {
        assert_eq!(pick("5.10"), Some("linux-image-5.10.0-32-cloud-amd64"));
        assert_eq!(pick("6.1"), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(pick("6.12"), Some("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(pick("6.12.94"), Some("linux-image-6.12.94+deb13-cloud-amd64"));
        assert_eq!(pick("6.x"), Some("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(pick("7.x"), Some("linux-image-7.2.12+deb13-cloud-amd64"));
        assert_eq!(pick("5.1"), None);
        assert_eq!(pick("8.x"), None);
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "6", "x", "6.", "6.x.1", "six.1", "6.1-cloud"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    #[test]
    fn modules_load_after_what_they_need() {
        let text = "kernel/a/virtio_blk.ko: kernel/a/virtio_ring.ko kernel/a/virtio.ko\nkernel/a/virtio.ko:\n\
                    kernel/a/virtio_ring.ko: kernel/a/virtio.ko\nkernel/a/virtio-pci.ko.xz: kernel/a/virtio.ko\n";
        let order = load_order(text, &["virtio_pci", "built_in", "virtio_blk"]);
        let files = ["virtio.ko", "virtio-pci.ko.xz", "virtio_ring.ko", "virtio_blk.ko"];
        assert_eq!(order, files.map(|file| format!("kernel/a/{file}")));
    }
}
