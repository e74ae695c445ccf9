//! Running podpath as a person would, and judging what it says.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::lab::{LabInfo, inside};
use xtask::scenario::report::Trace;
use xtask::scenario::{self, Scenario, Traffic, check};
use xtask::traffic::READY;
use xtask::{gallery, proc, workspace_root};

use crate::ground;
use crate::kernel::Objects;

/// Of a trace on a real machine.
const LIMIT: Duration = Duration::from_secs(60);
const WAY_OUT: &str = "run the tests by `cargo xtask test`, which builds all they need";

/// `podpath`, with its agent beside it.
pub(crate) struct Tool(PathBuf);

impl Tool {
    pub(crate) fn find() -> Result<Tool> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "scenarios run in network namespaces, which only root can make: run as root"
        );
        let object = workspace_root().join("target/ebpf/podpath-ebpf.o");
        ensure!(object.is_file(), "no kernel object at {}: {WAY_OUT}", object.display());
        let own = std::env::current_exe().context("finding the test's own program")?;
        // target/<profile>/deps/scenarios-<hash>
        let folder = own.ancestors().nth(2).context("the test runs outside of a target folder")?;
        for name in ["podpath", "podpath-agent"] {
            ensure!(folder.join(name).is_file(), "no {name} in {}: {WAY_OUT}", folder.display());
        }
        Ok(Tool(folder.join("podpath")))
    }

    /// Traces, and judges what it says to programs and to people; an error holds everything that is wrong.
    pub(crate) fn run(&self, name: &str, scenario: &Scenario, lab: &LabInfo, slower: u32) -> Result<()> {
        let planted = scenario.plants.iter().map(|plant| plant.plant(lab)).collect::<Result<Vec<_>>>()?;
        let (before, settings, links) = (Objects::now()?, ground::settings(lab)?, ground::ground(lab)?);
        let traffic: Vec<Running> =
            scenario.traffic.iter().map(|traffic| self.start(traffic, lab)).collect::<Result<_>>()?;
        let limit = LIMIT * slower.min(5);
        let saved = lab.inventory.with_file_name("trace.json");
        let output = self.trace(scenario, lab, &saved, limit)?;
        if let Some(folder) = std::env::var_os(gallery::FOLDER) {
            // Once more: what is checked is not broken into lines of a page's width.
            let text = self.shown(scenario, lab, limit)?;
            fs::write(Path::new(&folder).join(name), text).with_context(|| format!("keeping the text of {name}"))?;
        }
        drop(traffic);
        let after = ground::settings(lab)?;
        for plant in planted.into_iter().rev() {
            plant.remove()?;
        }

        let json = fs::read_to_string(&saved).unwrap_or_default();
        // The next one must not find it.
        let _none = fs::remove_file(&saved);
        let mut problems = match serde_json::from_str::<Trace>(&json) {
            Ok(trace) => check::problems(scenario, &trace, lab, &links, slower),
            Err(error) => vec![format!("the JSON does not read: {error}\n{json}")],
        };
        problems.extend(text_problems(scenario, &output, scenario::kernel_gives_reasons()?));
        problems.extend(before.nothing_stays().err().map(|error| error.to_string()));
        if after != settings {
            problems.push("links, routes, qdiscs or rules of the lab are not what they were before".to_owned());
        }
        if problems.is_empty() {
            return Ok(());
        }
        bail!(
            "{}\n\n{}\n\n$ podpath trace {}\n{}{}",
            scenario.about,
            problems.join("\n"),
            scenario.trace,
            output.stdout,
            output.stderr
        )
    }

    /// Starts traffic; a server or sniffer of our own is ready when this returns.
    fn start(&self, traffic: &Traffic, lab: &LabInfo) -> Result<Running> {
        let Traffic { at, run } = traffic;
        let words: Vec<&str> = run.split(' ').collect();
        let own = words[0] == "xtask";
        let program = if own { self.0.with_file_name("xtask") } else { words[0].into() };
        let mut running = inside(lab.host(at)?, || {
            let mut command = Command::new(&program);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(if own { Stdio::piped() } else { Stdio::null() });
            command.spawn().map(Running).with_context(|| format!("starting `{run}`"))
        })?;
        if words.contains(&"serve") || words.contains(&"sniff") {
            let stdout = running.0.stdout.take().context("it was piped")?;
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).with_context(|| format!("waiting for `{run}`"))?;
            ensure!(line.trim() == READY, "`{run}` did not start");
        }
        Ok(running)
    }

    fn trace(&self, scenario: &Scenario, lab: &LabInfo, saved: &Path, limit: Duration) -> Result<proc::Output> {
        proc::collected(self.command(scenario, lab).arg("--save").arg(saved), limit)
    }

    /// What a person reads at a page's width.
    fn shown(&self, scenario: &Scenario, lab: &LabInfo, limit: Duration) -> Result<String> {
        Ok(proc::collected(self.command(scenario, lab).env("COLUMNS", gallery::WIDTH), limit)?.stdout)
    }

    fn command(&self, scenario: &Scenario, lab: &LabInfo) -> Command {
        let mut command = Command::new(&self.0);
        command.arg("trace").args(scenario.trace.split(' ')).arg("--inventory").arg(&lab.inventory);
        command
    }
}

fn text_problems(scenario: &Scenario, output: &proc::Output, reasons: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if output.status.code() != Some(scenario.expect.exit) {
        problems.push(format!("{}, expected exit code {}", proc::ended(output.status), scenario.expect.exit));
    }
    let missing = scenario.expect.text(reasons).filter(|line| !output.stdout.contains(*line));
    problems.extend(missing.map(|line| format!("the text does not say: {line}")));
    problems
}

/// Traffic in the lab; ends when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that is gone by now is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
