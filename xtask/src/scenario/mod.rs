//! Scenarios: what `podpath trace` must say about a lab, as `scenarios/*.toml` write it.
//!
//! The file format is here; [`report`] reads the tool's JSON and writes hops as lines; [`check`] compares.
//! `xtask/tests/scenarios` runs them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::lab::plant::Plant;

pub mod check;
pub mod report;
mod share;

pub use share::Bound;

/// One file: a trace in a lab, and what it must show.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, for whoever reads the file.
    pub about: String,
    /// The lab's profile.
    pub lab: String,
    /// What the lab must have: where this kernel cannot make it, the scenario is ignored (`LabInfo::absent`).
    #[serde(default)]
    pub needs: Vec<String>,
    /// The oldest kernel that can show it, such as `5.12`.
    pub needs_linux: Option<String>,
    /// Faults that stand while the trace runs.
    #[serde(default)]
    pub plants: Vec<Plant>,
    /// What runs beside the trace, started in this order.
    #[serde(default)]
    pub traffic: Vec<Traffic>,
    /// Arguments of `podpath trace`, separated by blanks; the runner adds lab and output format.
    pub trace: String,
    /// What must come out.
    pub expect: Expect,
}

/// A command that runs somewhere in the lab from before the trace until after it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// A host of the lab: a pod, a node, `gateway`, or `internet`, from where clients come with the address
    /// 203.0.113.9 (2001:db8:9::9).
    #[serde(alias = "pod")]
    pub at: String,
    /// Program and arguments, separated by blanks. `xtask traffic` serves and asks where the machine has no program for
    /// it ([`crate::traffic`]).
    pub run: String,
}

/// What must come out. Each exchange must show the same hops.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Exit code.
    pub exit: i32,
    /// How many exchanges.
    pub exchanges: usize,
    /// Outcome of each.
    pub outcome: String,
    /// `request` or `reply`, if one of them must not arrive.
    pub failed: Option<String>,
    /// What traceroute would list.
    pub routers: Vec<String>,
    /// Hops of the request, as [`report::Hop::line`] writes them.
    pub request: Vec<String>,
    /// Hops of the reply.
    pub reply: Vec<String>,
    /// Hops that may be in place of others, for a reason that lies outside of the scenario: pairs of what may be there and what is
    /// listed.
    #[serde(default)]
    pub instead: Vec<[String; 2]>,
    /// Bounds of shares of the median exchange: `node1 >= 10 ms`.
    #[serde(default)]
    pub shares: Vec<Bound>,
    /// Notes of each exchange.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Warnings of the trace.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the text output must contain, each on one line.
    pub text: Vec<String>,
    /// The same, only on kernels that give drop reasons (from 5.17).
    #[serde(default)]
    pub text_with_reasons: Vec<String>,
    /// The same, only on kernels that give none.
    #[serde(default)]
    pub text_without_reasons: Vec<String>,
    /// What else differs on kernels that give none.
    pub without_reasons: Option<WithoutReasons>,
}

/// What must come out instead on a kernel that gives no drop reasons.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithoutReasons {
    /// What traceroute would list.
    pub routers: Vec<String>,
    /// Hops of the request.
    pub request: Vec<String>,
    /// Notes of each exchange.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Scenario {
    /// What it expects on a kernel that gives drop reasons, or none.
    pub fn on_a_kernel(mut self, with_reasons: bool) -> Scenario {
        let differing = self.expect.without_reasons.take();
        if let (false, Some(WithoutReasons { routers, request, notes })) = (with_reasons, differing) {
            self.expect = Expect { routers, request, notes, ..self.expect };
        }
        self
    }

    /// Why the running kernel is too old for it, if it is.
    ///
    /// # Errors
    /// A release that is no two numbers.
    pub fn too_new(&self) -> Result<Option<String>> {
        let Some(needed) = &self.needs_linux else { return Ok(None) };
        let running = fs::read_to_string("/proc/sys/kernel/osrelease").context("asking which kernel runs")?;
        let old = version(&running)? < version(needed)?;
        Ok(old.then(|| format!("needs Linux {needed} or later")))
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Result<(u32, u32)> {
    let mut numbers = release.trim().split(['.', '-', '+']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("`{}` is no kernel's release, such as 5.12", release.trim()),
    }
}

impl Expect {
    /// What the text output must contain on a kernel that gives drop reasons, or none.
    pub fn text(&self, reasons: bool) -> impl Iterator<Item = &String> {
        self.text.iter().chain(if reasons { &self.text_with_reasons } else { &self.text_without_reasons })
    }
}

/// Whether the running kernel gives reasons for its drops: its BTF has their type.
///
/// # Errors
/// The kernel's BTF cannot be read.
pub fn kernel_gives_reasons() -> Result<bool> {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    let btf = fs::read(BTF).with_context(|| format!("reading {BTF}"))?;
    let name = b"\0skb_drop_reason\0";
    Ok(btf.windows(name.len()).any(|window| window == name))
}

/// All scenarios of a folder, by file name without `.toml`, sorted.
///
/// # Errors
/// The folder or a file in it cannot be read, or a file says something else than a scenario may.
pub fn load(folder: &Path) -> Result<Vec<(String, Scenario)>> {
    let reading = || format!("reading scenarios in {}", folder.display());
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(reading)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()
        .with_context(reading)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    ensure!(!files.is_empty(), "no scenarios in {}", folder.display());
    files.iter().map(|path| one(path).with_context(|| format!("scenario {}", path.display()))).collect()
}

fn one(path: &Path) -> Result<(String, Scenario)> {
    let name = path.file_stem().context("no name")?.to_string_lossy().into_owned();
    let scenario = toml::from_str(&fs::read_to_string(path)?)?;
    Ok((name, scenario))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_clone_reads() {
        let scenarios = load(&crate::workspace_root().join("scenarios")).unwrap();
        for (name, scenario) in scenarios {
            assert!(!scenario.about.is_empty(), "{name} says nothing");
            for reasons in [true, false] {
                assert!(scenario.expect.text(reasons).next().is_some(), "{name} expects no text");
            }
        }
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("5.10.0-32-cloud-amd64\n").unwrap(), (5, 10));
        assert!(version("7.2.12+deb13").unwrap() > version("5.12").unwrap());
        assert!(version("5.10").unwrap() > version("5.9").unwrap());
        version("new").unwrap_err();
    }

    #[test]
    fn an_unknown_word_is_refused() {
        let text = "about = ''\nlab = ''\ntrace = ''\n[expect]\nexit = 0\nexchanges = 1\noutcome = ''\nrouters = []\n\
                    request = []\nreply = []\ntext = []\n";
        toml::from_str::<Scenario>(text).unwrap();
        let error = toml::from_str::<Scenario>(&format!("{text}requests = []\n")).unwrap_err().to_string();
        assert!(error.contains("unknown field `requests`"), "{error}");
    }
}
