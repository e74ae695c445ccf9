//! `cargo xtask vm`: Debian's kernels in virtual machines, with this clone's programs in them.
//!
//! A VM has three read-only disks stacked under a file system in memory: Debian's user space, the kernel's modules, and what
//! cargo built here, at the same paths as here. It runs commands that come over virtio-serial ports; the kernel's log has a
//! serial port of its own. Nothing of a VM outlives it.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

mod assets;
mod client;
mod frame;
mod initramfs;
mod kernel;
mod machine;
mod payload;
mod serve;
mod tree;

pub use client::pipe;
pub use kernel::Wanted;
pub use serve::serve;

use assets::Assets;
use client::{Client, Event};
use frame::Request;
use kernel::Kernel;
use machine::Machine;
use payload::Payload;

use crate::{interrupt, proc};

/// A boot takes 4 s here; on a machine where everything else runs too, ten times that.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How often a boot that the emulator spoilt is repeated. A command never is.
const BOOT_AGAIN: u32 = 2;
/// Lines of a broken kernel's log that are shown.
const LOG_TAIL: usize = 40;

/// What `cargo xtask vm` is asked for.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Which kernels: 5.10, 6.12.107, 7.x (the newest 7); several separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "5.10,6.1,6.12,7.x")]
    pub kernel: Vec<Wanted>,
    /// Run this shell command as root in a VM of each kernel; the exit code is the first that is not 0
    ///
    /// podpath, podpath-agent, xtask and the tests are at the same paths as here, and in the PATH.
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,
    /// Take this file or folder along, to the same path as here; may be repeated
    #[arg(long, value_name = "PATH")]
    pub add: Vec<PathBuf>,
    /// End a VM that runs longer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    pub limit: u64,
}

/// Does what is asked for.
///
/// # Errors
/// What VMs need cannot be had, a VM could not be brought up, or its kernel broke.
pub fn run(options: &Options) -> Result<ExitCode> {
    let bench = Bench::new(&options.kernel, &options.add)?;
    let Some(command) = &options.run else { bail!("nothing to run\nway out: --run COMMAND") };
    let mut code = 0;
    for kernel in &bench.assets.kernels {
        proc::say(&format!("vm {}: Linux {}", kernel.wanted, kernel.release));
        let limit = Duration::from_secs(options.limit);
        let ended = bench.run(kernel, &bench.shell(command)?, limit, |event| match event {
            Event::Started => Ok(()),
            Event::Output(bytes) => client::print(&mut std::io::stdout().lock(), bytes),
            Event::Error(bytes) => client::print(&mut std::io::stderr().lock(), bytes),
        })?;
        if code == 0 {
            code = ended;
        }
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Everything to start VMs with.
struct Bench {
    assets: Assets,
    payload: Payload,
    /// Short: sockets lie in it.
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(kernels: &[Wanted], extra: &[PathBuf]) -> Result<Bench> {
        let assets = assets::ensure(kernels)?;
        let payload = Payload::build(extra)?;
        let folder = tempfile::Builder::new().prefix("ppvm-").tempdir().context("create a folder for VMs")?;
        let bench = Bench { assets, payload, folder };
        proc::step("vm: image of this clone's programs", || {
            bench.payload.image(&bench.folder.path().join("work"), &bench.work(), &bench.assets.root)
        })?;
        Ok(bench)
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work.img")
    }

    /// A shell command, with this clone's programs in its PATH.
    fn shell(&self, command: &str) -> Result<Request> {
        let podpath = self.payload.program("podpath")?;
        let programs = podpath.parent().context("podpath lies in no folder")?.display();
        let path = format!("{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(Request {
            words: ["bash", "-c", command].map(str::to_owned).to_vec(),
            environment: vec![("PATH".to_owned(), path)],
        })
    }

    /// Boots a VM and runs one command in it: its exit code. A boot that fails is repeated and counted, a command never.
    fn run(
        &self,
        kernel: &Kernel,
        request: &Request,
        limit: Duration,
        mut sink: impl FnMut(Event<'_>) -> Result<()>,
    ) -> Result<i32> {
        let mut failed_boots = 0;
        loop {
            let folder = self.folder.path().join(format!("vm{failed_boots}-{}", kernel.wanted));
            let mut machine = Machine::start(&self.assets, kernel, &self.work(), &folder, None)?;
            let mut client = Client::start(&machine.channel(0), request.clone())
                .with_context(|| format!("qemu says: {}", machine.qemu_log()))?;
            client.end_input()?;
            let start = Instant::now();
            let mut up = None;
            let ended = {
                let (up, machine) = (std::cell::Cell::from_mut(&mut up), std::cell::RefCell::new(&mut machine));
                let watch = || watch(&mut machine.borrow_mut(), start, up.get(), limit);
                let note = |event: Event<'_>| {
                    if event == Event::Started {
                        up.set(Some(start.elapsed()));
                    }
                    sink(event)
                };
                client.finish(note, watch)
            };
            match ended {
                Err(error) if up.is_none() && failed_boots < BOOT_AGAIN && interrupt::received().is_none() => {
                    failed_boots += 1;
                    proc::say(&format!("vm {}: boot {failed_boots} failed: {error:#}", kernel.wanted));
                    eprintln!("{}", tail(&machine.kernel_log()));
                }
                Err(error) => {
                    let log = tail(&machine.kernel_log());
                    return Err(error.context(format!("vm {} ({})\n{log}", kernel.wanted, kernel.release)));
                }
                Ok(code) => {
                    let took = up.unwrap_or_default().as_secs_f64();
                    let total = start.elapsed().as_secs_f64();
                    proc::say(&format!(
                        "vm {}: booted in {took:.1} s, ended after {total:.1} s with exit code {code}; failed boots: {failed_boots}",
                        kernel.wanted
                    ));
                    if let Some(line) = machine::complaint(&machine.kernel_log()) {
                        bail!("vm {}: the kernel complained: {line}\n{}", kernel.wanted, tail(&machine.kernel_log()));
                    }
                    return Ok(code);
                }
            }
        }
    }
}

/// Whether a VM may run on.
fn watch(machine: &mut Machine, start: Instant, up: Option<Duration>, limit: Duration) -> Result<()> {
    if interrupt::received().is_some() {
        bail!("interrupted");
    }
    if !machine.is_alive() {
        let log = machine.kernel_log();
        bail!("the VM ended: {}", machine::complaint(&log).unwrap_or("its kernel's log does not say why"));
    }
    match up {
        None if start.elapsed() > BOOT_LIMIT => bail!("not up after {} s", BOOT_LIMIT.as_secs()),
        _ if start.elapsed() > limit => bail!("not done after {} s", limit.as_secs()),
        _ => Ok(()),
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL)..].iter().map(|line| format!("    {line}\n")).collect()
}
