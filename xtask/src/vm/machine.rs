//! A virtual machine: qemu's process, from boot to death.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use nix::sys::{
    prctl,
    signal::{Signal, killpg},
};
use nix::unistd::Pid;

use super::{assets::Assets, kernel::Kernel};
use crate::proc;

/// How many commands can run in a VM at the same time, each on a channel of its own.
pub(super) const CHANNELS: usize = 4;
/// Memory of a VM, MiB.
const MEMORY: u32 = 1024;
/// The kernel ends at the first thing that is wrong with it: `-no-reboot` makes that the end of qemu too.
const KERNEL_LINE: &str = "console=ttyS0 panic=-1 oops=panic mitigations=off tsc=reliable net.ifnames=0 no_timer_check";

/// A network card of a VM, and what its other end is.
#[derive(Debug, Clone)]
pub(super) struct Card {
    /// qemu's `-netdev` without `id`.
    pub(super) netdev: String,
    pub(super) mac: String,
}

/// A running VM; it ends when dropped, and when this process ends.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    folder: PathBuf,
}

impl Machine {
    /// Starts qemu. `folder` is this VM's own; its path is short, for sockets lie in it.
    ///
    /// # Errors
    /// qemu cannot be started. Whether the VM comes up shows on its channels.
    pub(super) fn start(
        assets: &Assets,
        kernel: &Kernel,
        work: &Path,
        folder: &Path,
        card: Option<&Card>,
    ) -> Result<Machine> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let mut command = qemu(assets, folder);
        command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(kernel.initramfs());
        for (name, image) in [("root", &assets.root_image), ("modules", &kernel.modules()), ("work", &work.to_owned())]
        {
            command.arg("-drive").arg(format!("if=none,id={name},format=raw,readonly=on,file={}", image.display()));
            command.arg("-device").arg(format!("virtio-blk-pci,drive={name},serial={name}"));
        }
        for channel in 0..CHANNELS {
            let socket = channel_socket(folder, channel);
            command.arg("-chardev").arg(format!("socket,id=c{channel},server=on,wait=off,path={}", socket.display()));
            command.arg("-device").arg(format!("virtserialport,chardev=c{channel},name=podpath.{channel}"));
        }
        if let Some(Card { netdev, mac }) = card {
            command.args(["-netdev", &format!("{netdev},id=wire")]);
            command.args(["-device", &format!("virtio-net-pci,netdev=wire,mac={mac},romfile=")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let errors = folder.join("qemu.log");
        let errors = fs::File::create(&errors).with_context(|| format!("create {}", errors.display()))?;
        command.stderr(errors);
        // SAFETY: prctl(2) is async-signal-safe, and nothing is allocated between fork and exec.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        Ok(Machine { qemu: proc::spawn(&mut command)?, folder: folder.to_owned() })
    }

    /// Where a client of that channel connects.
    pub(super) fn channel(&self, channel: usize) -> PathBuf {
        channel_socket(&self.folder, channel)
    }

    /// Whether qemu still runs.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.qemu.try_wait(), Ok(None))
    }

    /// What the kernel has logged so far.
    pub(super) fn kernel_log(&self) -> String {
        let bytes = fs::read(self.folder.join("kernel.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// What qemu itself complained about.
    pub(super) fn qemu_log(&self) -> String {
        fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing in it is worth an orderly end: disks are read-only.
        let _ = killpg(Pid::from_raw(self.qemu.id().cast_signed()), Signal::SIGKILL);
        let _ = self.qemu.wait();
    }
}

fn channel_socket(folder: &Path, channel: usize) -> PathBuf {
    folder.join(format!("channel{channel}"))
}

/// qemu from its own tree, with a machine that has nothing but what it needs.
fn qemu(assets: &Assets, folder: &Path) -> Command {
    let tree = &assets.qemu.0;
    let mut command = assets.qemu.command("usr/bin/qemu-system-x86_64");
    command.env("QEMU_MODULE_DIR", tree.join("usr/lib/x86_64-linux-gnu/qemu"));
    for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
        command.arg("-L").arg(tree.join(data));
    }
    // Not KVM: inside of virtual machines, where CI and we run, guests hang in their firmware.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", &MEMORY.to_string()]);
    command.args(["-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-append", KERNEL_LINE, "-device", "virtio-serial-pci,max_ports=8", "-device", "virtio-rng-pci"]);
    command.arg("-chardev").arg(format!("file,id=log,path={}", folder.join("kernel.log").display()));
    command.args(["-serial", "chardev:log"]);
    command
}

/// The line of a kernel's log by which it says that it is broken.
pub(super) fn complaint(log: &str) -> Option<&str> {
    // Every WARN, in whatever words the kernel's release has for it, is cut out like this.
    const SIGNS: &[&str] =
        &["Kernel panic", "BUG:", "Oops", "general protection fault", "[ cut here ]", "WARNING: possible", "UBSAN:"];
    log.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_kernel_is_told_by_its_log() {
        let log =
            "[    0.1] Linux version 6.1\n[    3.2] BUG: unable to handle page fault\n[    3.3] Kernel panic - not";
        assert_eq!(complaint(log), Some("[    3.2] BUG: unable to handle page fault"));
        assert_eq!(complaint("[    0.1] Linux version 6.1\n"), None);
    }
}
