//! `cargo xtask`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use serde::Deserialize;
use xtask::{
    bench, build, demo, gallery, image, interrupt, kube,
    lab::{self, plant::Plant},
    packages, proc, test, traffic, truth, vm,
};

/// podpath's workshop: everything around the code that cargo alone does not do.
///
/// New here? `cargo xtask demo` builds podpath and shows it at work, `cargo xtask test` runs every test.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the kernel object, and install what that needs (source of Rust's core, bpf-linker) into your cache
    ///
    /// The kernel object is written to target/ebpf/podpath-ebpf.o; `cargo build` then puts it into podpath and
    /// podpath-agent. What is installed lies in $XDG_CACHE_HOME/podpath (~/.cache/podpath) and serves all clones.
    /// Set CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER to use a bpf-linker of your own.
    Build,

    /// Run every test this machine can run; installs what they need
    ///
    /// Packages, kernel object, cargo fmt, clippy, cargo test of the whole workspace, and virtual machines with other kernels. The last line on stdout is
    /// the total; the exit code is 0 only when everything that was not skipped passed. Tests of labs need root.
    Test {
        /// Leave out a phase (packages, fmt, clippy, vm), or the tests with this in their name; may be repeated
        #[arg(long, value_name = "NAME")]
        skip: Vec<String>,
        /// Handed to the test programs: parts of the names of the tests to run, --nocapture, ...
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },

    /// Build the container image of the agents, as an archive: no container daemon is needed
    ///
    /// On a node: ctr -n k8s.io images import FILE. In kind: kind load image-archive FILE. For a registry: docker load -i FILE, then
    /// tag and push, and podpath install --image. The same sources and compiler give the same digest.
    Image {
        /// Where to write it [default: target/podpath-agent-VERSION-ARCHITECTURE.tar]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },

    /// Build all, bring up a lab of two Kubernetes-like nodes, trace pings across it, remove it again (needs root)
    Demo,

    /// Write docs/GALLERY.md: what podpath prints for each kind of path, from real runs (needs root)
    Gallery,

    /// Compare podpath with a model of Linux' forwarding, on networks made from seeds (needs root)
    Truth(truth::Options),

    /// Run podpath and its tests on other kernels, in virtual machines
    ///
    /// Kernels, qemu and a root file system come from Debian, by apt, into $XDG_CACHE_HOME/podpath (~/.cache/podpath); nothing
    /// is installed. Needs no root.
    Vm(vm::Options),

    /// In a VM: run what comes over that virtio-serial port
    #[command(hide = true)]
    VmServe { port: String },

    /// In a VM: bring up one node of a profile with the VM's network card
    #[command(hide = true)]
    VmNode { name: String, profile: String, number: usize },

    /// In a VM: tell the time whenever asked; or make the clock run fast, by millionths
    #[command(hide = true)]
    VmClock {
        #[arg(long)]
        drift: Option<i32>,
    },

    /// Run a command in a VM, with our own input and output
    #[command(hide = true)]
    VmPipe {
        socket: PathBuf,
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },

    /// Traffic for scenarios
    #[command(subcommand, hide = true)]
    Traffic(traffic::Traffic),

    /// A Kubernetes API server for tests, whose nodes are a lab's (needs root)
    #[command(subcommand, hide = true)]
    Kube(Kube),

    /// Measure podpath's own cost on this machine (needs root)
    #[command(subcommand)]
    Bench(Bench),

    /// In a VM, or on this machine: the part of `bench inflation` that measures
    #[command(hide = true)]
    BenchInflation(bench::inflation::Here),

    /// Bring up, list and remove labs: clusters made of network namespaces (needs root)
    #[command(subcommand)]
    Lab(Lab),
}

#[derive(Subcommand)]
enum Kube {
    /// Serve until interrupted; kubeconfigs are made on demand over the control socket in the folder
    Serve(kube::Arguments),
}

#[derive(Subcommand)]
enum Bench {
    /// ns per run of every kernel program, beside an empty one in the same run, by the kernel's own statistics
    Hooks,
    /// Userspace: events per second, allocations and memory, from the ring buffer's bytes to a report; what a full ring loses
    Pipeline,
    /// Many nodes, flows and pods: time, memory, requests; on generated input
    Scale,
    /// ms from a session's start until it is armed, until its first exchange, and from its end until nothing is left
    ///
    /// In VMs pwru runs beside it, in turns; on a machine where it is installed and the kernel has kprobes, too.
    Attach {
        /// In VMs of these kernels instead of on this machine: 5.10, 6.12.107, 7.x; several separated by commas
        #[arg(long, value_name = "LIST", value_delimiter = ',')]
        kernel: Vec<vm::Wanted>,
    },
    /// What tracing does to traffic: round trips and throughput of a flow, flat out, with nothing attached, podpath, pwru, bpftrace
    ///
    /// In rounds, in which each has its turn. The raw data is kept in target/bench. pwru takes long to start and end, on kernels
    /// without kprobe_multi (6.1 is one) minutes each time. In VMs there is bpftrace too: a root file system of its own, 1.1 GB in the cache.
    Inflation(bench::inflation::Options),
}

#[derive(Subcommand)]
enum Lab {
    /// Bring a lab up; one that is up already is left as it is
    Up {
        /// Which cluster to rebuild: calico-bgp (kops, Calico with BGP; a wrong name lists all)
        profile: String,
        /// What to call it, to have several side by side [default: the profile's name]
        #[arg(long)]
        name: Option<String>,
        /// The lab gets the services that this file plants, until it goes down: a scenario, or scenarios/services/calico-bgp.toml
        #[arg(long, value_name = "FILE")]
        services: Option<PathBuf>,
    },
    /// Remove a lab and everything that belongs to it, half-built ones too
    Down {
        /// Its name; not needed while only one is up
        #[arg(conflicts_with = "all")]
        name: Option<String>,
        /// Remove every lab
        #[arg(long)]
        all: bool,
    },
    /// List the labs that are up
    Status,
}

fn main() -> ExitCode {
    // SAFETY: these are the first steps of main; nothing has started a thread.
    unsafe { packages::extend_path() };
    let result = interrupt::watch().and_then(|()| run(Arguments::parse().task));
    if let Err(error) = &result {
        eprintln!("error: {error}");
        error.chain().skip(1).for_each(|cause| eprintln!("cause: {cause}"));
    }
    match (interrupt::received(), result) {
        // The shell's convention for a program ended by a signal.
        (Some(signal), _) => ExitCode::from(128 + signal),
        (None, Ok(code)) => code,
        (None, Err(_)) => ExitCode::FAILURE,
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build => println!("{}", build::kernel_object()?.display()),
        Task::Gallery => gallery::write()?,
        Task::Truth(options) => return truth::run(&options),
        Task::Image { output } => {
            let image::Image { name, file, digest, size } = image::build(output.as_deref())?;
            println!("{}", file.display());
            proc::say(&format!("image: {name}, {:.1} MB, {digest}", size as f64 / 1e6));
        }
        Task::Test { skip, arguments } => return test::run(&test::Options { skip, arguments }),
        Task::Demo => return demo::run(),
        Task::Vm(options) => return vm::run(&options),
        Task::VmServe { port } => vm::serve(&port)?,
        Task::VmNode { name, profile, number } => vm::node(&name, &profile, number)?,
        Task::VmClock { drift: Some(millionths) } => vm::drift(millionths)?,
        Task::VmClock { drift: None } => vm::answer()?,
        Task::VmPipe { socket, words } => {
            return Ok(ExitCode::from(u8::try_from(vm::pipe(&socket, &words)?).unwrap_or(1)));
        }
        Task::Traffic(traffic) => traffic::run(&traffic)?,
        Task::Kube(Kube::Serve(arguments)) => kube::run(&arguments)?,
        Task::Bench(Bench::Hooks) => bench::hooks()?,
        Task::Bench(Bench::Pipeline) => bench::pipeline()?,
        Task::Bench(Bench::Scale) => bench::scale()?,
        Task::Bench(Bench::Attach { kernel }) => return bench::attach(&kernel),
        Task::Bench(Bench::Inflation(options)) => return bench::inflation::run(&options),
        Task::BenchInflation(here) => bench::inflation::measure(&here)?,
        Task::Lab(Lab::Up { profile, name, services }) => {
            up(&profile, name.as_deref().unwrap_or(&profile), services.as_deref())?;
        }
        Task::Lab(Lab::Down { name, all }) => down(name, all)?,
        Task::Lab(Lab::Status) => status()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(profile: &str, name: &str, services: Option<&Path>) -> Result<()> {
    packages::need_root("a lab", &format!("cargo xtask lab up {profile}"))?;
    packages::ensure(packages::LAB)?;
    // Read first: a file that cannot be used leaves no lab without its services.
    let plants = services.map(services_of).transpose()?.unwrap_or_default();
    let lab = lab::up(name, profile)?;
    for plant in plants {
        plant.plant(&lab)?.keep();
    }
    println!("lab {} is up ({}), inventory {}", lab.name, lab.profile, lab.inventory.display());
    println!("remove it by: cargo xtask lab down {}", lab.name);
    Ok(())
}

/// The services that a file plants, whatever else it says.
fn services_of(file: &Path) -> Result<Vec<Plant>> {
    #[derive(Deserialize)]
    struct File {
        plants: Vec<Plant>,
    }
    let reading = || format!("reading {}", file.display());
    let text = fs::read_to_string(file).with_context(reading)?;
    let File { mut plants } = toml::from_str(&text).with_context(reading)?;
    plants.retain(|plant| matches!(plant, Plant::Services { .. }));
    ensure!(!plants.is_empty(), "{}: it plants no services", file.display());
    Ok(plants)
}

fn down(name: Option<String>, all: bool) -> Result<()> {
    packages::need_root("removing a lab", "cargo xtask lab down")?;
    let names = match (name, all) {
        (Some(name), _) => vec![name],
        (None, all) => {
            let names: Vec<String> = lab::status()?.into_iter().map(|lab| lab.name).collect();
            if !all && names.len() > 1 {
                bail!("several labs are up: {}\nway out: name one, or use --all", names.join(", "));
            }
            names
        }
    };
    if names.is_empty() {
        println!("no lab is up");
    }
    for name in names {
        lab::down(&name)?;
        println!("lab {name} is down");
    }
    Ok(())
}

fn status() -> Result<()> {
    let labs = lab::status()?;
    if labs.is_empty() {
        println!("no lab is up; bring one up by: cargo xtask lab up calico-bgp");
    }
    for lab in labs {
        let half = if lab.complete { "" } else { "  half-built: `lab up` rebuilds it, `lab down` removes it" };
        println!("{}  {}  {}{half}", lab.name, lab.profile, lab.inventory.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn test_takes_skips_and_arguments() {
        let line = ["xtask", "test", "--skip", "fmt", "--skip", "demo", "--", "blackhole", "--nocapture"];
        let Task::Test { skip, arguments } = Arguments::try_parse_from(line).unwrap().task else { panic!("not test") };
        assert_eq!(skip, ["fmt", "demo"]);
        assert_eq!(arguments, ["blackhole", "--nocapture"]);
    }

    #[test]
    fn down_takes_a_name_or_all_not_both() {
        assert!(Arguments::try_parse_from(["xtask", "lab", "down", "x", "--all"]).is_err());
        assert!(Arguments::try_parse_from(["xtask", "lab", "down"]).is_ok());
    }
}
