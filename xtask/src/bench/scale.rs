//! `cargo xtask bench scale`: what grows with the cluster, the nodes and the flows, and what does not. The input is generated, or made up
//! by the API server for tests; what is measured is podpath.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::raw;
use crate::{
    cargo,
    kube::{Options, Server},
    lab, proc, workspace_root,
};

const LAB: &str = "bench-scale";
const PROFILE: &str = "calico-bgp";
/// Nodes and pods beside the lab's own.
const CLUSTERS: [(u32, u32); 2] = [(0, 0), (5_000, 150_000)];
const ROUNDS: usize = 5;
/// What is asked, each time with a kubeconfig of that cluster.
const COMMANDS: [&[&str]; 3] = [
    &["trace", "bb2", "bb1", "-c", "1", "-o", "json"],
    &["trace", "bb1", "8.8.8.8", "-c", "1", "-o", "json"],
    &["record", "bb2", "bb1", "--for", "1s", "--write"],
];
/// How `podpath record` ends when nothing came by.
const NOTHING_SEEN: i32 = 3;

/// Joining and recording at scale, and then a large cluster.
///
/// # Errors
/// Something cannot be built, run or measured.
pub(super) fn run() -> Result<()> {
    super::on_this_machine("scale")?;
    let mut build = Command::new(cargo());
    build.current_dir(workspace_root()).args(["build", "--quiet", "--release", "--package", "tracer-user", "--bins"]);
    proc::step("bench: podpath and podpath-agent", || proc::quiet(&mut build))?;
    let measured = lab::up(LAB, PROFILE).and_then(|_| clusters());
    let down = lab::down(LAB).with_context(|| format!("the lab is still there\nway out: cargo xtask lab down {LAB}"));
    let rows = measured?;
    down?;
    print(&rows);
    println!("median of {ROUNDS} rounds");
    raw::keep(
        "scale-cluster",
        "this machine",
        &super::kernel()?,
        &json!({ "input": "synthetic nodes and pods", "rounds": rows }),
    )
}

/// One run of podpath.
#[derive(Debug, Clone, serde::Serialize)]
struct Ran {
    nodes: u32,
    pods: u32,
    command: String,
    requests: usize,
    /// By method and path without names.
    templates: BTreeMap<String, usize>,
    peak_rss_bytes: u64,
    took_ns: u64,
}

fn clusters() -> Result<Vec<Ran>> {
    let podpath = workspace_root().join("target/release/podpath");
    let agent = Some(workspace_root().join("target/release/podpath-agent"));
    let mut rows = Vec::new();
    for (nodes, pods) in CLUSTERS {
        let folder = tempfile::tempdir().context("a folder")?;
        let options = Options { nodes, pods, agent: agent.clone(), ..Options::default() };
        let server = Server::start(LAB, folder.path(), &options)?;
        let kubeconfig = server.admin_kubeconfig();
        let (code, ..) = measured(&mut podpath_at(&podpath, &kubeconfig, &["install"]))?;
        ensure!(code == Some(0), "podpath install ended with {code:?}");
        for round in 0..ROUNDS {
            for command in COMMANDS {
                let mut words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
                let records = command.contains(&"record");
                if records {
                    words.push(folder.path().join(format!("{round}.ppr")).display().to_string());
                }
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                server.forget_requests();
                let (code, peak_rss_bytes, took) = measured(&mut podpath_at(&podpath, &kubeconfig, &words))?;
                ensure!(
                    code == Some(0) || records && code == Some(NOTHING_SEEN),
                    "podpath {words:?} ended with {code:?}"
                );
                let requests = server.requests();
                let mut templates = BTreeMap::new();
                for request in &requests {
                    *templates.entry(format!("{} {}", request.method, request.template)).or_default() += 1;
                }
                let took_ns = u64::try_from(took.as_nanos())?;
                let (requests, command) = (requests.len(), command.join(" "));
                rows.push(Ran { nodes, pods, command, requests, templates, peak_rss_bytes, took_ns });
            }
        }
    }
    Ok(rows)
}

fn podpath_at(podpath: &Path, kubeconfig: &PathBuf, words: &[&str]) -> Command {
    let mut command = Command::new(podpath);
    command.args(words).env("KUBECONFIG", kubeconfig);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command: how it ended, the most memory that was resident, bytes, and how long it took.
fn measured(command: &mut Command) -> Result<(Option<i32>, u64, Duration)> {
    let begin = Instant::now();
    let child = command.spawn().with_context(|| format!("start {}", proc::describe(command)))?;
    let id = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: zeros are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call, and nobody else waits for this child.
    if unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) } != id {
        bail!("wait for {}: {}", proc::describe(command), std::io::Error::last_os_error());
    }
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    Ok((code, u64::try_from(usage.ru_maxrss)? * 1024, begin.elapsed()))
}

fn print(rows: &[Ran]) {
    println!(
        "\nrequests and memory of the CLI; the nodes and pods beside those of the lab are made up by the API server for tests"
    );
    println!("{:<44}{:>8}{:>9}{:>11}{:>15}{:>10}", "podpath", "nodes", "pods", "requests", "peak RSS, MB", "ms");
    for command in COMMANDS.map(|words| words.join(" ")) {
        for (nodes, pods) in CLUSTERS {
            let of = |what: fn(&Ran) -> f64| {
                let runs = rows.iter().filter(|ran| ran.command == command && ran.nodes == nodes);
                let mut values: Vec<f64> = runs.map(what).collect();
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
            };
            let (requests, peak) = (of(|ran| ran.requests as f64), of(|ran| ran.peak_rss_bytes as f64 / 1e6));
            let took = of(|ran| ran.took_ns as f64 / 1e6);
            println!("{command:<44}{nodes:>8}{pods:>9}{requests:>11.0}{peak:>15.1}{took:>10.0}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::measured;

    #[test]
    fn the_memory_of_a_process_is_its_own() {
        let (code, small, _) = measured(&mut Command::new("true")).unwrap();
        assert_eq!(code, Some(0));
        // A string of 64 MB.
        let (code, large, _) =
            measured(Command::new("sh").args(["-c", "x=$(head -c 64000000 /dev/zero | tr '\\0' x); exit 7"])).unwrap();
        assert_eq!(code, Some(7));
        assert!(small < 32 << 20 && large > 64_000_000, "{small} {large}");
    }
}
