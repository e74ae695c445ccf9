//! Trees of Debian's packages, unpacked but not installed: no maintainer script runs, no root is needed, and the machine's
//! own packages stay as they are.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::proc;

/// Where Debian keeps its libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

/// A folder that packages were unpacked into.
#[derive(Debug, Clone)]
pub(super) struct Tree(pub(super) PathBuf);

impl Tree {
    /// Unpacks `packages` (paths of `.deb` files) into `folder`.
    ///
    /// # Errors
    /// A package cannot be unpacked.
    pub(super) fn unpack(folder: &Path, packages: &[PathBuf]) -> Result<Tree> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        for package in packages {
            proc::quiet(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder))
                .with_context(|| format!("unpack {}", package.display()))?;
        }
        Ok(Tree(folder.to_owned()))
    }

    /// A program of the tree, to be run on this machine with the tree's own libraries, whatever this machine's are.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.0.join(LOADER));
        command.arg("--library-path").arg(self.0.join(LIBRARIES)).arg(self.0.join(program));
        command
    }

    /// Writes a file of the tree.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.0.join(path);
        let folder = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Makes `path` a link to `target`, unless something of that name is there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<()> {
        match symlink(target, self.0.join(path)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("link {path} to {target}"))
            }
            _ => Ok(()),
        }
    }

    /// Makes an ext4 image of everything in `folder`, to be mounted read-only; mke2fs is this tree's.
    ///
    /// # Errors
    /// The folder cannot be read, or mke2fs fails.
    pub(super) fn image_of(&self, folder: &Path, image: &Path) -> Result<()> {
        const BLOCK: u64 = 4096;
        let usage = usage(folder).with_context(|| format!("measure {}", folder.display()))?;
        // Room for folders, block maps and the file system's own tables; unused blocks are holes.
        let blocks = usage.blocks(BLOCK) * 11 / 10 + usage.files / 8 + 2048;
        let mut command = self.command("usr/sbin/mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"]);
        command.args(["-E", "root_owner=0:0", "-N", &(usage.files + 256).to_string(), "-d"]);
        command.arg(folder).arg(image).arg(blocks.to_string());
        proc::quiet(&mut command).map(drop).with_context(|| format!("make the image {}", image.display()))
    }
}

#[derive(Default)]
struct Usage {
    files: u64,
    bytes: u64,
}

impl Usage {
    fn blocks(&self, size: u64) -> u64 {
        // Each file leaves half a block unused, each folder takes one.
        self.bytes / size + self.files
    }
}

fn usage(folder: &Path) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum.files += 1;
        if metadata.is_dir() {
            let Usage { files, bytes } = usage(&entry.path())?;
            sum.files += files;
            sum.bytes += bytes;
        } else {
            sum.bytes += metadata.len();
        }
    }
    Ok(sum)
}
