//! A test per file of `scenarios/`: the real binaries in a real lab, against what the file expects.
//!
//! Needs root, the tools of `xtask::lab::PACKAGES`, `podpath` and `podpath-agent` beside it in the target folder, and the
//! kernel object built in; fails without them. Labs are named `sc-<profile>`; each is kept from one scenario to the
//! next, taken down after a failure, and in the end.
//!
//! For test VMs: `PODPATH_SCENARIOS` names the ones to run (a,b,c; unset or empty: all); `PODPATH_SLOWER` says how many
//! times slower than a real machine this one may be. For `cargo xtask gallery`: `PODPATH_GALLERY` names a folder for what a person reads.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use xtask::lab::plant::Plant;
use xtask::scenario::{self, Scenario};
use xtask::{interrupt, workspace_root};

use labs::Labs;

mod ground;
mod kernel;
mod labs;
mod tool;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: times are measured, and there are few processors.
    arguments.test_threads.get_or_insert(1);
    let scenarios = match interrupt::watch().and_then(|()| asked_for()) {
        Ok(scenarios) => scenarios,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let labs = Arc::new(Labs::default());
    let trial = |(name, scenario): (String, Scenario)| {
        let labs = labs.clone();
        Trial::ignorable_test(name.clone(), move || {
            Ok(run(&name, &scenario, &labs).map_err(|error| format!("{error:#}"))?)
        })
    };
    let conclusion = libtest_mimic::run(&arguments, scenarios.into_iter().map(trial).collect());
    if let Err(error) = labs.down() {
        eprintln!("a lab stays: {error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn asked_for() -> anyhow::Result<Vec<(String, Scenario)>> {
    let mut scenarios = scenario::load(&workspace_root().join("scenarios"))?;
    let names = std::env::var("PODPATH_SCENARIOS").unwrap_or_default();
    let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    for name in &names {
        ensure!(scenarios.iter().any(|(known, _)| known == name), "PODPATH_SCENARIOS: no scenario `{name}`");
    }
    scenarios.retain(|(name, _)| names.is_empty() || names.contains(&name.as_str()));
    Ok(scenarios)
}

/// How many times slower this machine may be than a real one.
fn slower() -> anyhow::Result<u32> {
    match std::env::var("PODPATH_SLOWER") {
        Ok(text) => text.parse().with_context(|| format!("PODPATH_SLOWER: `{text}` is no number")),
        Err(_) => Ok(1),
    }
}

fn run(name: &str, scenario: &Scenario, labs: &Labs) -> anyhow::Result<Completion> {
    if let Some(reason) = scenario.too_new()? {
        return Ok(Completion::ignored_with(reason));
    }
    let scenario = &scenario.clone().on_a_kernel(scenario::kernel_gives_reasons()?);
    let tool = tool::Tool::find()?;
    let completion = labs.with(&scenario.lab, |lab| {
        let missing = |need: &&String| lab.absent.iter().any(|absent| absent.contains(need.as_str()));
        if let Some(need) = scenario.needs.iter().find(missing) {
            return Ok(Completion::ignored_with(format!("this kernel cannot make {need}")));
        }
        tool.run(name, scenario, lab, slower()?)?;
        Ok(Completion::Completed)
    })?;
    if scenario.plants.iter().any(Plant::leaves_tables) {
        labs.retire(&scenario.lab)?;
    }
    Ok(completion)
}
