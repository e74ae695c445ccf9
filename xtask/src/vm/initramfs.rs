//! The first file system of a VM: busybox, the modules that reach the disks, and a script that stacks the disks.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};

/// What runs first. The disks are found by their serial numbers, see [`super::machine`].
const INIT: &str = include_str!("init.sh");

/// Writes an initramfs: `busybox` is a static one; `modules` are names and contents in the order to load them.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn write(path: &Path, busybox: &Path, modules: &[(String, Vec<u8>)]) -> Result<()> {
    let busybox = fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "layers", "root", "modules"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &busybox);
    archive.add("init", 0o100_755, INIT.as_bytes());
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.add("modules/order", 0o100_644, order.as_bytes());
    for (name, bytes) in modules {
        archive.add(&format!("modules/{name}"), 0o100_644, bytes);
    }
    let bytes = archive.end();
    fs::File::create(path)
        .and_then(|mut file| file.write_all(&bytes))
        .with_context(|| format!("write {}", path.display()))
}

/// A cpio archive in the kernel's "newc" form: <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of an initramfs is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        // ino, mode, uid, gid, nlink, mtime, filesize, device numbers, namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.add("a", 0o100_644, b"hello");
        let bytes = archive.end();
        let header = "070701000000010000 81A4 0000000000000000 00000001 00000000 00000005 00000000000000000000000000000000 00000002 00000000";
        let header: String = header.split(' ').collect();
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
