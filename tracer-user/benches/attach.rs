//! How long a session takes from its process's start until it is armed, until the first exchange is complete, and until it is gone
//! from the kernel: `cargo xtask bench attach`. Beside it pwru, where it is installed and the kernel has kprobes, in turns.
//!
//! A session runs in one of two network namespaces of our own and pings the other. pwru is given the same ping as a filter, and
//! counts as armed when it says that it listens. The last line is the raw data.
#![cfg(target_os = "linux")]

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader},
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tracer_user::session::{Connection, Flow, Ping, Plan, ProbeKind, Progress, Request, drive};

use wire::{A, B, Wire, sh};

mod wire;

const NAMESPACES: [&str; 2] = ["podpath-attach-a", "podpath-attach-b"];
/// Enough for a median; pwru takes ten seconds and more each time.
const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(300);

/// Since the start of the process; the last since it was asked to end.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    armed: Duration,
    exchange: Duration,
    detached: Duration,
}

fn podpath() -> Result<Times> {
    let words = ["ip", "netns", "exec", NAMESPACES[0], env!("CARGO_BIN_EXE_podpath-agent"), "session"];
    let words: Vec<_> = words.map(OsString::from).into();
    let flow = Flow { a: IpAddr::V4(A), b: Some(IpAddr::V4(B)), protocol: 1, a_port: None, b_port: None, one_of: 1 };
    let ping = Ping {
        src: IpAddr::V4(A),
        home: None,
        any_source: false,
        dst: IpAddr::V4(B),
        kind: ProbeKind::Echo { id: 0x1234 },
        count: 1,
        interval: Duration::from_millis(1),
        size: 56,
        timeout: Duration::from_secs(5),
        nonce_base: 1,
    };
    let request =
        Request { flows: vec![flow], time_limit: LIMIT, ping: Some(ping), trace_rules: false, sparing: false };
    let plan = Plan { armed_within: LIMIT, record_for: None, armed_last: None, all_needed: true, passes_on: false };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut times = Times::default();
        let mut draining = None;
        let begin = Instant::now();
        let connection = Connection::spawn("bench", &words).context("start podpath-agent")?;
        let driven = drive(vec![(connection, request)], plan, std::future::pending(), |progress| match progress {
            Progress::Armed { .. } => times.armed = begin.elapsed(),
            Progress::Probe(_) => times.exchange = begin.elapsed(),
            Progress::Draining => draining = Some(Instant::now()),
            Progress::Ended { .. } => times.detached = draining.map(|since| since.elapsed()).unwrap_or_default(),
            Progress::Connecting { .. }
            | Progress::Hello { .. }
            | Progress::Heard { .. }
            | Progress::Lost { .. }
            | Progress::AllRecord
            | Progress::Records { .. } => {}
        })
        .await?;
        ensure!(driven.warnings.is_empty() && times.exchange > Duration::ZERO, "{:?}", driven.warnings);
        Ok(times)
    })
}

/// Kills and reaps.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// The line in which pwru says that it is armed, and the one that heads its output.
const PWRU_LISTENS: &str = "Listening for events";

fn pwru() -> Result<Times> {
    let begin = Instant::now();
    let filter = format!("icmp and host {B}");
    let mut command = Command::new("pwru");
    command.args(["--filter-track-skb", &filter]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn().context("start pwru")?);
    let stdout = child.0.stdout.take().context("pwru's stdout")?;
    let stderr = BufReader::new(child.0.stderr.take().context("pwru's stderr")?);
    let mut said = String::new();
    for line in stderr.lines() {
        let line = line?;
        if line.contains(PWRU_LISTENS) {
            break;
        }
        said = line;
    }
    ensure!(child.0.try_wait()?.is_none(), "pwru ended: {said}");
    let armed = begin.elapsed();
    sh(&format!("ip netns exec {} ping -n -q -c 1 -W 5 {B}", NAMESPACES[0]))?;
    let mut lines = BufReader::new(stdout).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(&B.to_string()) || line.contains("icmp")));
    let exchange = begin.elapsed();
    let asked = Instant::now();
    let pid = nix::unistd::Pid::from_raw(child.0.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    lines.for_each(drop);
    child.0.wait()?;
    Ok(Times { armed, exchange, detached: asked.elapsed() })
}

fn median(rounds: &[Times], of: impl Fn(&Times) -> Duration) -> Duration {
    let mut all: Vec<_> = rounds.iter().map(of).collect();
    all.sort();
    all[all.len() / 2]
}

fn main() -> Result<()> {
    let _wire = Wire::new(NAMESPACES, "").context("the bench needs root, iproute2 and ping")?;
    // What a machine lacks is said, not passed over.
    let peer = if !Path::new("/sys/bus/event_source/devices/kprobe/type").exists() {
        Err("this kernel has no kprobes, without which pwru does not run")
    } else if Command::new("pwru").arg("--version").output().is_err() {
        Err("pwru is not installed")
    } else {
        Ok(())
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _round in 0..ROUNDS {
        ours.push(podpath()?);
        if peer.is_ok() {
            theirs.push(pwru()?);
        }
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    println!("{}: median of {ROUNDS} rounds, ms", release.trim());
    println!("{:<10}{:>10}{:>18}{:>12}", "", "armed", "first exchange", "detached");
    let row = |name: &str, rounds: &[Times]| {
        let times = Times {
            armed: median(rounds, |times| times.armed),
            exchange: median(rounds, |times| times.exchange),
            detached: median(rounds, |times| times.detached),
        };
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!("{name:<10}{:>10.0}{:>18.0}{:>12.0}", ms(times.armed), ms(times.exchange), ms(times.detached));
        times
    };
    let our = row("podpath", &ours);
    match peer {
        Ok(()) => {
            let their = row("pwru", &theirs);
            let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
            let (armed, exchange) = (ratio(their.armed, our.armed), ratio(their.exchange, our.exchange));
            let detached = ratio(their.detached, our.detached);
            println!("{:<10}{armed:>9.0}x{exchange:>17.0}x{detached:>11.0}x", "pwru takes");
        }
        Err(why) => println!("pwru: not measured: {why}"),
    }
    let load = load()?;
    println!("the machine's load: {load}");
    let peer = peer.map_or_else(|why| json!({ "not measured": why }), |()| raw(&theirs));
    println!("{}", json!({ "kernel": release.trim(), "load": load, "podpath": raw(&ours), "pwru": peer }));
    Ok(())
}

/// Of each round, ms.
fn raw(rounds: &[Times]) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let round = |times: &Times| json!({ "armed": ms(times.armed), "first exchange": ms(times.exchange), "detached": ms(times.detached) });
    rounds.iter().map(round).collect()
}

/// The load of the last minute, by which a reader can judge the numbers.
fn load() -> Result<String> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut File::open("/proc/loadavg").context("read the load")?, &mut text)?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
