//! Two VMs, each of them one node of a lab: two kernels with two clocks, and between them nothing but a wire.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    bench::{Bench, Vm},
    client::Event,
    clock::{Claim, Course, Sample},
    kernel::Kernel,
    machine::Card,
    suite::{Outcome, READY_WITHIN, Report, SLOWER},
};
use crate::{
    lab::{self, LabInfo},
    proc,
    scenario::{
        self, Scenario,
        check::{self, Ground},
        report::{Exchange, Trace},
    },
    workspace_root,
};

mod recording;

/// What is traced where nothing else is asked for: routed, IPIP, VXLAN.
pub(super) const SCENARIOS: &[&str] = &["a-cross-node", "a-ipip-cross-node", "b-vxlan-cross-node"];
/// Name of the lab in each VM.
const LAB: &str = "vm";
/// The second VM's clock shows another time of day,
const SECONDS_APART: u32 = 90;
/// and runs fast, millionths.
const DRIFT: i32 = 300;
/// How far from that the clocks may be found: a VM takes the time of day in whole seconds, and tells it after some more,
const APART_TOLERANCE: f64 = 10.0;
/// and finds out how fast its processor counts by a short measurement, millionths.
const DRIFT_TOLERANCE: i64 = 100;
/// What one command in a VM, and one trace, may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Channels: commands, sessions, clocks.
const SESSION: usize = 1;
const CLOCK: usize = 2;

/// The two, wired up and with different clocks.
struct Pair<'a> {
    bench: &'a Bench,
    vms: [Vm; 2],
    /// When all must have ended.
    start: Instant,
    limit: Duration,
}

/// Why a scenario cannot be run in two VMs, if it cannot.
pub(super) fn obstacle(scenario: &Scenario) -> Result<Option<String>> {
    let mut nodes = lab::hosts(&scenario.lab)?;
    nodes.truncate(2);
    let hops = || scenario.expect.request.iter().chain(&scenario.expect.reply);
    let others = hops().filter_map(|hop| hop.split(' ').next()).find(|host| nodes.iter().all(|node| node != host));
    Ok(if !scenario.plants.is_empty() {
        Some("it plants faults, which is done in a lab on one machine".to_owned())
    } else if !scenario.traffic.is_empty() {
        Some("it has traffic beside the trace, which is started in a lab on one machine".to_owned())
    } else if let Some(other) = others {
        Some(format!("{other} has a part in it, and the two VMs are {}", nodes.join(" and ")))
    } else {
        let alone = nodes.iter().find(|node| !hops().any(|hop| hop.split(' ').next() == Some(node.as_str())));
        alone.map(|node| format!("{node} has no part in it"))
    })
}

/// Runs the scenarios; prints each result as cargo's tests do, with `prefix` before the name.
pub(super) fn run(bench: &Bench, kernels: [&Kernel; 2], names: &[String], limit: Duration, prefix: &str) -> Report {
    let start = Instant::now();
    let mut report = Report::default();
    let result = Pair::boot(bench, kernels, limit).and_then(|pair| {
        let scenarios = scenario::load(&workspace_root().join("scenarios"))?;
        for (name, scenario) in scenarios.iter().filter(|(name, _)| names.contains(name)) {
            pair.scenario(name, scenario, prefix, &mut report)?;
        }
        pair.vms.iter().try_for_each(Vm::is_sound)
    });
    let result = result.and_then(|()| {
        ensure!(!report.results.is_empty(), "no test ran");
        Ok(())
    });
    report.end(result, prefix, start.elapsed());
    report
}

impl<'a> Pair<'a> {
    fn boot(bench: &'a Bench, kernels: [&Kernel; 2], limit: Duration) -> Result<Pair<'a>> {
        let start = Instant::now();
        let ends = ["wire0", "wire1"].map(|name| bench.place(name));
        let card = |own: usize| Card {
            netdev: format!(
                "dgram,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                ends[own].display(),
                ends[1 - own].display()
            ),
            mac: format!("02:00:00:00:00:0{}", own + 1),
        };
        let vm = |own: usize| bench.boot(kernels[own], &format!("{}.{own}", kernels[own].wanted), Some(&card(own)));
        let pair = Pair { bench, vms: [vm(0)?, vm(1)?], start, limit };
        pair.shell(1, &format!("date -s '+{SECONDS_APART} seconds' && xtask vm-clock --drift {DRIFT}"))?;
        let apart = pair.ahead(1)? - pair.ahead(0)?;
        proc::say(&format!("vm: the second VM's clock is ahead of the first one's by {apart:.1} s"));
        ensure!(
            (apart - f64::from(SECONDS_APART)).abs() < APART_TOLERANCE,
            "the VMs' clocks are to be {SECONDS_APART} s apart, and are {apart:.1} s"
        );
        Ok(pair)
    }

    /// By how many seconds a VM's time of day is ahead of ours.
    fn ahead(&self, vm: usize) -> Result<f64> {
        let shown: f64 = self.shell(vm, "date +%s.%N")?.trim().parse().context("read what `date` printed")?;
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        Ok(shown - ours.as_secs_f64())
    }

    /// What the next command may take.
    fn left(&self) -> Result<Duration> {
        let left = self.limit.saturating_sub(self.start.elapsed());
        ensure!(!left.is_zero(), "not done after {} s", self.limit.as_secs());
        Ok(left.min(LIMIT))
    }

    /// A command in one of them: what it printed.
    fn shell(&self, vm: usize, command: &str) -> Result<String> {
        let mut text = Vec::new();
        let code = self.vms[vm].run(0, &self.bench.shell(command)?, self.left()?, |event| {
            match event {
                Event::Output(bytes) => text.extend_from_slice(bytes),
                Event::Error(bytes) => eprint!("{}", String::from_utf8_lossy(bytes)),
                Event::Started => {}
            }
            Ok(())
        })?;
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(code == 0, "`{command}` in VM {vm} ended with exit code {code}\n{text}");
        Ok(text)
    }

    /// An error is one of the VMs' end; everything else is a test's result.
    fn scenario(&self, name: &str, scenario: &Scenario, prefix: &str, report: &mut Report) -> Result<()> {
        let labs = self.up(&scenario.lab)?;
        let missing =
            |need: &&String| labs.iter().flat_map(|lab| &lab.absent).any(|absent| absent.contains(need.as_str()));
        if let Some(need) = scenario.needs.iter().find(missing) {
            let reason = format!("one of these kernels cannot make {need}");
            report.tell(prefix, name, Outcome::Ignored(reason), "");
        } else {
            let hops = self.traced(name, scenario, &labs);
            let (traced, bounds) = match hops {
                Ok((problems, bounds)) => (problems, bounds),
                Err(error) => (vec![format!("{error:#}")], Err(error.context("there is no trace"))),
            };
            let outcome = |well: bool| if well { Outcome::Passed } else { Outcome::Failed };
            report.tell(prefix, name, outcome(traced.is_empty()), &traced.join("\n"));
            let (well, text) = match bounds {
                Ok(text) => (true, text),
                Err(error) => (false, format!("{error:#}")),
            };
            report.tell(prefix, &format!("{name}/one-way-bounds"), outcome(well), &text);
            // One is enough: what wraps the packets has no part in it.
            if name == SCENARIOS[0]
                && let [source, destination] = scenario.trace.split(' ').collect::<Vec<_>>()[..]
            {
                let recorded = self.recorded([source, destination], &labs, &self.inventory(&labs)?);
                let text = recorded.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
                report.tell(prefix, &format!("{name}/recording"), outcome(recorded.is_ok()), &text);
            }
        }
        for vm in 0..2 {
            self.shell(vm, &format!("xtask lab down {LAB}"))?;
        }
        Ok(())
    }

    /// The first node of the profile in the first VM, the second in the second.
    fn up(&self, profile: &str) -> Result<[LabInfo; 2]> {
        let up = |vm: usize| -> Result<LabInfo> {
            let text = self.shell(vm, &format!("xtask vm-node {LAB} {profile} {vm}"))?;
            serde_json::from_str(&text).with_context(|| format!("read what `xtask vm-node` printed: {text}"))
        };
        Ok([up(0)?, up(1)?])
    }

    /// Traces: what is wrong with the hops, and whether the bounds hold.
    fn traced(&self, name: &str, scenario: &Scenario, labs: &[LabInfo; 2]) -> Result<(Vec<String>, Result<String>)> {
        let ground = self.ground(labs)?;
        let inventory = self.inventory(labs)?;
        let before = self.clocks()?;
        let proc::Output { status, stdout: json, stderr } = self.trace(scenario, &inventory, &["-o", "json"])?;
        let after = self.clocks()?;
        let text = self.trace(scenario, &inventory, &[])?.stdout;
        let trace: Trace =
            serde_json::from_str(&json).with_context(|| format!("{name}: the JSON does not read: {json}{stderr}"))?;
        let mut problems = check::problems(scenario, &trace, &labs[0], &ground, SLOWER);
        if status.code() != Some(scenario.expect.exit) {
            problems.push(format!("{}, expected exit code {}", proc::ended(status), scenario.expect.exit));
        }
        let missing = scenario.expect.text.iter().filter(|line| !text.contains(*line));
        problems.extend(missing.map(|line| format!("the text does not say: {line}")));
        if !problems.is_empty() {
            problems.extend([text, stderr]);
        }
        Ok((problems, claims(&trace.exchanges, labs, [before, after])))
    }

    fn clocks(&self) -> Result<[Sample; 2]> {
        let take = |vm: usize| Sample::take(&self.vms[vm].channel(CLOCK), self.bench.shell("exec xtask vm-clock")?);
        Ok([take(0)?, take(1)?])
    }

    /// Interfaces of both nodes and their pods.
    fn ground(&self, labs: &[LabInfo; 2]) -> Result<Ground> {
        let mut ground = Ground::default();
        for (vm, lab) in labs.iter().enumerate() {
            let ask = |namespace: &str| self.shell(vm, &format!("ip -netns {namespace} -json link"));
            ground.add(lab, &lab.nodes[vm], ask)?;
        }
        Ok(ground)
    }

    /// Sessions in the VMs, identities of the whole cluster.
    fn inventory(&self, labs: &[LabInfo; 2]) -> Result<PathBuf> {
        let folder = self.bench.place(&labs[0].profile);
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok::<PathBuf, anyhow::Error>(path)
        };
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        write("identity.yaml", &self.shell(0, &format!("cat {}", labs[0].identity.display()))?)?;
        let (xtask, agent) = (self.bench.payload.program("xtask")?, self.bench.payload.program("podpath-agent")?);
        let mut text = format!("context = \"two VMs, {}\"\nidentity = \"identity.yaml\"\n", labs[0].profile);
        for (vm, lab) in labs.iter().enumerate() {
            let node = &lab.nodes[vm];
            let socket = self.vms[vm].channel(SESSION);
            let words = [
                xtask.to_string_lossy(),
                "vm-pipe".into(),
                socket.to_string_lossy(),
                "--".into(),
                "ip".into(),
                "netns".into(),
                "exec".into(),
                node.namespace.as_str().into(),
                agent.to_string_lossy(),
                "session".into(),
            ];
            text.push_str(&format!("\n[[node]]\nname = {:?}\ncommand = {words:?}\n", node.name));
        }
        write("inventory.toml", &text)
    }

    /// `podpath trace` on this machine.
    fn trace(&self, scenario: &Scenario, inventory: &Path, format: &[&str]) -> Result<proc::Output> {
        let mut command = Command::new(self.bench.payload.program("podpath")?);
        command.arg("trace").args(scenario.trace.split(' ')).args(format).arg("--inventory").arg(inventory);
        command.arg("--ready-within").arg(READY_WITHIN.to_string());
        proc::collected(&mut command, self.left()?)
    }
}

/// So many of the exchanges that hold are listed.
const SHOWN: usize = 5;

/// What exchanges claim of the two clocks, which were read before and after, beside what our own clock says; an error if one of all
/// does not hold, if none is proven, or if the clocks did not run as differently as they were made to.
fn claims(exchanges: &[Exchange], labs: &[LabInfo; 2], [before, after]: [[Sample; 2]; 2]) -> Result<String> {
    let courses = &[0, 1].map(|vm| Course([before[vm], after[vm]]));
    let nodes = [0, 1].map(|vm| labs[vm].nodes[vm].name.as_str());
    let mut text = String::new();
    let (mut well, mut proven) = (true, 0);
    for (number, exchange) in exchanges.iter().enumerate() {
        let claim = Claim::new(&exchange.clocks, (nodes[1], &courses[1]), (nodes[0], &courses[0]));
        let Some(claim) = claim else { bail!("exchange {} says nothing of the clocks of {nodes:?}", exchange.seq) };
        let verdict = match (claim.holds(), claim.is_proven()) {
            (false, _) => "DOES NOT HOLD",
            (true, false) => "can be so",
            (true, true) => "is so",
        };
        well &= claim.holds();
        proven += usize::from(claim.is_proven());
        if number < SHOWN || !claim.holds() {
            text.push_str(&format!("  exchange {}: {claim}: {verdict}\n", exchange.seq));
        }
    }
    text.push_str(&format!("  of {} exchanges {proven} are proven\n", exchanges.len()));
    let rates = [0, 1].map(|vm| courses[vm].rate());
    text.push_str(&format!("  clocks run fast by {} and {} millionths of the host's", rates[0], rates[1]));
    ensure!(well, "{text}");
    ensure!(proven > 0, "{text}\n  none of these is proven");
    let drift = rates[1] - rates[0];
    ensure!(
        (drift - i64::from(DRIFT)).abs() <= DRIFT_TOLERANCE,
        "{text}\n  they are to differ by {DRIFT}, and differ by {drift}"
    );
    Ok(text)
}

/// In a VM: brings up the profile's node of that number with the machine's one network card, and prints the lab.
///
/// # Errors
/// There is no network card, or the lab cannot be brought up.
pub fn node(name: &str, profile: &str, number: usize) -> Result<()> {
    let start = Instant::now();
    // The card comes back from a lab that has gone a moment after it.
    let card = loop {
        match card()? {
            Some(card) => break card,
            None if start.elapsed() > Duration::from_secs(10) => bail!("this machine has no network card"),
            None => thread::sleep(Duration::from_millis(50)),
        }
    };
    let lab = lab::up_part(name, profile, number, &card)?;
    println!("{}", serde_json::to_string(&lab).context("write down the lab")?);
    Ok(())
}

/// The one interface with a device behind it.
fn card() -> Result<Option<String>> {
    const LINKS: &str = "/sys/class/net";
    let links = fs::read_dir(LINKS).with_context(|| format!("list {LINKS}"))?.flatten();
    let card = links.filter(|link| link.path().join("device").exists()).map(|link| link.file_name());
    Ok(card.map(|name| name.to_string_lossy().into_owned()).next())
}
