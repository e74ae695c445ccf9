//! `cargo xtask bench inflation`: what tracing does to the traffic. A flow through a lab, flat out, with nothing attached, with
//! podpath, and with the tools that people use today; in rounds, in which each has its turn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::{AGENT, MESSAGES, built, in_vms, kernel, load, show_and_keep};
use crate::{
    build::kernel_object,
    cargo, interrupt,
    lab::{self, LabInfo, profile::Profile},
    packages, proc, vm, workspace_root,
};

mod flow;
mod session;
mod table;

use flow::{Burst, Pair, Throughput, crossings, ping, serve, tcp};
use session::{Account, Place, Session, Tool, Traced};

const NAME: &str = "inflation";
/// Its nodes have two pods each, so that a flow can be traced that shares neither end with the one that is measured.
const PROFILE: &str = "calico-vms";
/// Of the two nodes, for podpath.
const INVENTORY: &str = "inventory.toml";
/// In front of each packet, bytes.
const IPIP: u32 = 20;
/// Of pings flat out, in a round; the median of theirs is the round's, so that a moment in which the machine was busy
/// with something else does not count.
const BURSTS: u32 = 5;
const PINGS: u32 = 500;
/// What is sent over TCP in a round, s.
const SECONDS: u32 = 2;
/// Pings with a pause between them, of which every tool sees all: what it writes of one.
const SLOW: u32 = 20;
/// In a VM pwru by kprobes alone takes minutes to start and end.
const LIMIT: Duration = Duration::from_secs(3 * 60 * 60);
/// What this machine needs beyond a lab. In VMs there is pwru too.
const PACKAGES: &[(&str, &str)] = &[("iperf3", "iperf3"), ("bpftrace", "bpftrace")];

/// What `cargo xtask bench inflation` is asked for.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// In VMs of these kernels instead of on this machine: 5.10, 6.12.107, 7.x; several separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub kernel: Vec<vm::Wanted>,
    /// How often each has its turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// What is measured, on the machine that it is measured on.
#[derive(Debug, Clone, Args)]
pub struct Here {
    /// podpath, beside its agent
    podpath: PathBuf,
    #[arg(long)]
    rounds: u32,
    /// With IPIP between the nodes
    #[arg(long)]
    ipip: bool,
}

/// Measures, on this machine or in VMs of these kernels; shows a table and keeps the raw data.
///
/// # Errors
/// Not root (here), something could not be built or set up, or podpath or the traffic failed. That another tool does not run is
/// told in the table.
pub fn run(options: &Options) -> Result<ExitCode> {
    let here = options.kernel.is_empty();
    if here {
        packages::need_root("measuring kernel programs", "cargo xtask bench inflation")?;
        packages::ensure(&[packages::LAB, PACKAGES].concat())?;
    }
    kernel_object()?;
    // As released: what it costs is also what its processes take of the processors.
    let mut release = Command::new(cargo());
    release.current_dir(workspace_root()).args(["build", "--release", "-p", "tracer-user", "--bins", MESSAGES]);
    let programs = proc::step("bench: podpath, podpath-agent: compile", || built(&mut release, &["podpath", AGENT]))?;
    let podpath = programs.first().context("podpath is built")?.1.clone();
    let rounds = options.rounds;
    if here {
        let output = text(&Here { podpath, rounds, ipip: false })?;
        show_and_keep(NAME, "this machine", &output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let command = format!("xtask bench-inflation {} --rounds {rounds} --ipip", podpath.display());
    in_vms(NAME, &options.kernel, &command, (programs, &["bpftrace"]), LIMIT)
}

/// The part of [`run`] that a VM does.
///
/// # Errors
/// As [`run`].
pub fn measure(here: &Here) -> Result<()> {
    println!("{}", text(here)?);
    Ok(())
}

/// A table, and in its last line the raw data.
fn text(here: &Here) -> Result<String> {
    let measured = in_a_lab(here)?;
    let data = serde_json::to_string(&measured).context("write down what was measured")?;
    Ok(format!("{}\n{data}", table::table(&measured)))
}

/// What is attached while the flow is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Nothing,
    Other,
    This,
    Peer(Tool),
}

const CASES: [(Case, &str); 6] = [
    (Case::Nothing, "nothing attached"),
    (Case::Other, "podpath, another flow"),
    (Case::This, "podpath, this flow"),
    (Case::Peer(Tool::Pwru), "pwru, skb tracking"),
    (Case::Peer(Tool::PwruFive), "pwru, five functions"),
    (Case::Peer(Tool::Bpftrace), "bpftrace, 5 tracepoints"),
];

impl Case {
    /// Does it run here at all?
    fn obstacle(self) -> Option<&'static str> {
        let kprobes = Path::new("/sys/bus/event_source/devices/kprobe/type").exists();
        match self {
            Case::Peer(Tool::Pwru | Tool::PwruFive) if !kprobes => {
                Some("this kernel has no kprobes, without which pwru does not run")
            }
            Case::Peer(Tool::Pwru | Tool::PwruFive) if !proc::on_path("pwru") => Some("pwru is not installed"),
            Case::Peer(Tool::Bpftrace) if !proc::on_path("bpftrace") => Some("bpftrace is not installed"),
            _ => None,
        }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Measured {
    kernel: String,
    processors: usize,
    ipip: bool,
    /// What the tools call themselves.
    versions: Vec<String>,
    rounds: u32,
    bursts: u32,
    pings: u32,
    tcp_s: u32,
    /// How many devices of nodes and pods a ping and its answer cross, each counted where it is received and where it is sent.
    crossings: f64,
    /// What each tool writes of a ping and its answer, where it loses nothing.
    per_ping: Vec<PerPing>,
    samples: Vec<Sample>,
    /// What does not run here, and why.
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
struct PerPing {
    case: &'static str,
    events: f64,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    case: &'static str,
    why: String,
}

/// A round of a case.
#[derive(Debug, Serialize)]
struct Sample {
    case: &'static str,
    round: u32,
    pings: Vec<Burst>,
    /// Of podpath and its flow: more pings, while its kernel programs ran alone.
    alone: Vec<Burst>,
    tcp: Throughput,
    /// What was written of the pings.
    events: Option<u64>,
    /// The sessions' ends: of the pings', of TCP's, or of one for both.
    accounts: Vec<Account>,
    /// How long it took until it traced, ms; of each session.
    armed_ms: Vec<f64>,
    /// The machine's load of the minute before.
    load: f64,
}

/// Brings up a lab, measures in it, and takes it down.
fn in_a_lab(here: &Here) -> Result<Measured> {
    let mut profile = Profile::named(PROFILE)?;
    if here.ipip {
        profile.tunnel = Profile::named("calico-ipip")?.tunnel;
        profile.pod_mtu -= IPIP;
    }
    let result = proc::step(&format!("lab {NAME}: up"), || lab::up_as(NAME, PROFILE, &profile))
        .and_then(|lab| Rounds::new(here, &lab)?.run());
    let down = lab::down(NAME).with_context(|| format!("way out: cargo xtask lab down {NAME}"));
    match (result, down) {
        (Ok(measured), Ok(())) => Ok(measured),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

struct Rounds<'a> {
    here: &'a Here,
    lab: &'a LabInfo,
    /// Whose flow is measured.
    pair: Pair,
    /// Two others on the same nodes.
    strangers: Pair,
    folder: tempfile::TempDir,
}

impl<'a> Rounds<'a> {
    fn new(here: &'a Here, lab: &'a LabInfo) -> Result<Rounds<'a>> {
        ensure!(
            !here.ipip || lab.absent.is_empty(),
            "this kernel cannot make the lab as it should be: {}",
            lab.absent.join("; ")
        );
        let (pair, strangers) = (Pair::new(lab, "customer", "summary2")?, Pair::new(lab, "database", "stray")?);
        // Kept in memory, on most machines.
        let folder = tempfile::tempdir_in("/run").context("create a folder for what the tools write")?;
        let inventory = folder.path().join(INVENTORY);
        let text = two_nodes(lab, &pair)?;
        fs::write(&inventory, text).with_context(|| format!("write {}", inventory.display()))?;
        Ok(Rounds { here, lab, pair, strangers, folder })
    }

    fn run(&self) -> Result<Measured> {
        let place = Place {
            podpath: &self.here.podpath,
            inventory: &self.folder.path().join(INVENTORY),
            folder: self.folder.path(),
        };
        let _server = serve(&self.pair)?;
        // So that no neighbour has to be found while something is measured.
        ping(&self.pair, SLOW, false)?;
        let before = crossings(self.lab)?;
        ping(&self.pair, SLOW, false)?;
        let crossings = (crossings(self.lab)? - before) as f64 / f64::from(SLOW);

        let (mut per_ping, mut left_out) = (Vec::new(), Vec::new());
        for (case, name) in CASES.into_iter().filter(|(case, _)| ![Case::Nothing, Case::Other].contains(case)) {
            let tried = match case.obstacle() {
                Some(obstacle) => Err(anyhow::anyhow!(obstacle)),
                None => proc::step(&format!("bench {NAME}: try {name}"), || self.per_ping(case, &place)),
            };
            match tried {
                Ok(events) => per_ping.push(PerPing { case: name, events }),
                Err(error) => leave_out(&mut left_out, case, name, error)?,
            }
        }
        let mut samples = Vec::new();
        for round in 1..=self.here.rounds {
            for (case, name) in CASES {
                if left_out.iter().any(|left: &LeftOut| left.case == name) {
                    continue;
                }
                let title = format!("bench {NAME}: round {round} of {}: {name}", self.here.rounds);
                match proc::step(&title, || self.sample(case, name, round, &place)) {
                    Ok(sample) => samples.push(sample),
                    Err(error) => leave_out(&mut left_out, case, name, error)?,
                }
            }
        }
        Ok(Measured {
            kernel: kernel()?,
            processors: std::thread::available_parallelism().context("count processors")?.get(),
            ipip: self.here.ipip,
            versions: ["pwru", "bpftrace", "iperf3", "ping"].into_iter().filter_map(version).collect(),
            rounds: self.here.rounds,
            bursts: BURSTS,
            pings: PINGS,
            tcp_s: SECONDS,
            crossings,
            per_ping,
            samples,
            left_out,
        })
    }

    /// What a tool that traces the flow writes of one ping, from pings that are far from each other.
    fn per_ping(&self, case: Case, place: &Place<'_>) -> Result<f64> {
        let (tool, traced) = match case {
            Case::Peer(tool) => (tool, Traced::All(&self.pair)),
            _ => (Tool::Podpath, Traced::Pings(&self.pair)),
        };
        let session = Session::start(tool, traced, place)?;
        ping(&self.pair, SLOW, false)?;
        session.settle()?;
        let account = session.end()?;
        ensure!(account.events > 0, "it wrote nothing of {SLOW} pings");
        Ok(account.events as f64 / f64::from(SLOW))
    }

    fn bursts(&self) -> Result<Vec<Burst>> {
        (0..BURSTS).map(|_| ping(&self.pair, PINGS, true)).collect()
    }

    fn sample(&self, case: Case, name: &'static str, round: u32, place: &Place<'_>) -> Result<Sample> {
        let load = load()?;
        let start = |tool, traced| Session::start(tool, traced, place);
        let mut accounts = Vec::new();
        let mut armed = Vec::new();
        let (mut events, mut alone) = (None, Vec::new());
        let mut end = |session: Session<'_>| -> Result<()> {
            armed.push(session.armed.as_secs_f64() * 1000.0);
            accounts.push(session.end()?);
            Ok(())
        };
        let (pings, tcp) = match case {
            Case::Nothing => (self.bursts()?, tcp(&self.pair, SECONDS)?),
            Case::Other => {
                let session = start(Tool::Podpath, Traced::Pings(&self.strangers))?;
                let flows = (self.bursts()?, tcp(&self.pair, SECONDS)?);
                end(session)?;
                flows
            }
            Case::This => {
                let session = start(Tool::Podpath, Traced::Pings(&self.pair))?;
                let pings = self.bursts()?;
                session.settle()?;
                for _ in 0..BURSTS {
                    alone.push(session.standing_still(|| ping(&self.pair, PINGS, true))?);
                    session.settle()?;
                }
                end(session)?;
                let session = start(Tool::Podpath, Traced::Tcp(&self.pair))?;
                let tcp = tcp(&self.pair, SECONDS)?;
                session.settle()?;
                end(session)?;
                (pings, tcp)
            }
            Case::Peer(tool) => {
                let session = start(tool, Traced::All(&self.pair))?;
                let pings = self.bursts()?;
                session.settle()?;
                events = Some(session.written()?);
                let tcp = tcp(&self.pair, SECONDS)?;
                end(session)?;
                (pings, tcp)
            }
        };
        if case == Case::This {
            events = accounts.first().map(|account| account.events);
        }
        Ok(Sample { case: name, round, pings, alone, tcp, events, accounts, armed_ms: armed, load })
    }
}

/// The lab's inventory with the pair's two nodes alone: all nodes of a lab share one kernel, and each more would cost it as much
/// as on real machines it costs another.
fn two_nodes(lab: &LabInfo, pair: &Pair) -> Result<String> {
    let mut text = format!("context = \"lab {}\"\nidentity = \"{}\"\n", lab.name, lab.identity.display());
    for pod in [&pair.source, &pair.destination] {
        let node = lab.node(&pod.node)?;
        text += &format!(
            "\n[[node]]\nname = \"{}\"\ncommand = [\"ip\", \"netns\", \"exec\", \"{}\", \"podpath-agent\", \"session\"]\n",
            node.name, node.namespace
        );
    }
    Ok(text)
}

/// Goes on without a tool that does not run here. Without podpath there is nothing to say.
fn leave_out(left_out: &mut Vec<LeftOut>, case: Case, name: &'static str, error: anyhow::Error) -> Result<()> {
    let Case::Peer(_) = case else { return Err(error.context(name)) };
    if interrupt::received().is_some() {
        bail!("interrupted");
    }
    proc::say(&format!("bench {NAME}: without {name}: {error:#}"));
    left_out.push(LeftOut { case: name, why: format!("{error:#}") });
    Ok(())
}

/// What a program says of its version, if it is there.
fn version(program: &str) -> Option<String> {
    let option = if program == "ping" { "-V" } else { "--version" };
    let said = proc::collected(Command::new(program).arg(option), Duration::from_secs(10)).ok()?;
    Some(format!("{program}: {}", said.stdout.lines().next()?.trim()))
}
