//! However a trace ends, it leaves nothing: no program, map or link of eBPF, no process, and each namespace of the lab as it
//! was. The real binaries in a real lab; needs root, the tools of `xtask::lab::PACKAGES`, and `podpath` and
//! `podpath-agent` with the kernel object in the target folder; fails without them.

use std::io::Read;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tracer_user::session::SILENCE;

use held::assert_ended;
use lab::Lab;
use trace::{Ended, Trace, send};

mod held;
mod lab;
mod session;
mod terminal;
mod trace;

/// More probes than any test waits for.
const ENDLESS: u32 = 60_000;
const NODE1: &str = "ip-172-20-50-50.ec2.internal";
const NODE2: &str = "ip-172-20-58-60.ec2.internal";

/// Three sessions each: one test after the other, because there may be only two processors.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn piped() -> [Stdio; 2] {
    [Stdio::piped(), Stdio::piped()]
}

impl Ended {
    /// The trace that it printed.
    fn trace(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}\n{}", self.stdout, self.stderr))
    }
}

/// How many exchanges are `delivered`, of how many.
fn delivered(trace: &Value) -> (usize, usize) {
    let exchanges = trace["exchanges"].as_array().unwrap();
    (exchanges.iter().filter(|exchange| exchange["outcome"] == "delivered").count(), exchanges.len())
}

fn warnings(trace: &Value) -> Vec<String> {
    trace["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap().to_owned()).collect()
}

/// Some warning has all of these words.
fn assert_warned(trace: &Value, words: &[&str]) {
    let all = warnings(trace);
    assert!(all.iter().any(|warning| words.iter().all(|word| warning.contains(word))), "no {words:?} in {all:#?}");
}

#[test]
fn an_ordinary_trace() {
    let _turn = turn();
    let lab = Lab::up("t-left-ordinary");
    let ended = Trace::start(&lab, 60, piped()).end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let trace = ended.trace();
    assert_eq!(delivered(&trace), (60, 60));
    assert_eq!(warnings(&trace), [""; 0]);
    assert_eq!(ended.stderr, "");
}

#[test]
fn the_cli_is_killed() {
    let _turn = turn();
    let lab = Lab::up("t-left-kill");
    let trace = Trace::start(&lab, ENDLESS, piped());
    send(trace.pid(), Signal::SIGKILL);
    let ended = trace.end();
    assert_eq!(ended.code, None, "by the signal");
}

#[test]
fn the_cli_is_asked_to_end() {
    let _turn = turn();
    let lab = Lab::up("t-left-ask");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let trace = Trace::start(&lab, ENDLESS, piped());
        send(trace.pid(), signal);
        let ended = trace.end();
        let trace = ended.trace();
        let (good, all) = delivered(&trace);
        assert!(good >= 9 && all <= good + 1, "{signal}: what was seen is shown, {good} of {all}");
        assert_warned(&trace, &["of 60000 probes", "interrupted"]);
        assert_eq!(trace["nodes"].as_array().unwrap().iter().filter(|node| node["complete"] == true).count(), 3);
        assert_eq!(ended.code, Some(if good == all { 0 } else { 3 }), "{signal}");
    }
}

#[test]
fn the_cli_hangs() {
    let _turn = turn();
    let lab = Lab::up("t-left-hang");
    let trace = Trace::start(&lab, ENDLESS, piped());
    send(trace.pid(), Signal::SIGSTOP);
    // No end of input comes: the sessions miss its keepalives.
    assert_ended(&trace.agents, SILENCE + Duration::from_secs(15));
    trace.held.assert_gone();
    send(trace.pid(), Signal::SIGCONT);
    let ended = trace.end();
    assert_eq!(ended.code, Some(3));
    assert_warned(&ended.trace(), &[NODE1, "half-way", "nothing heard from the peer for 10 s"]);
}

#[test]
fn the_destinations_agent_is_killed() {
    let _turn = turn();
    let lab = Lab::up("t-left-agent");
    let trace = Trace::start(&lab, 60, piped());
    send(trace.agent(NODE1), Signal::SIGKILL);
    let ended = trace.end();
    let trace = ended.trace();
    assert_eq!(delivered(&trace), (60, 60), "the other nodes go on, and the source has its replies");
    assert_eq!(ended.code, Some(0));
    assert_warned(&trace, &[NODE1, "half-way", "SIGKILL"]);
    let node = |name| trace["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap();
    assert_eq!((&node(NODE1)["complete"], &node(NODE2)["complete"]), (&false.into(), &true.into()));
}

#[test]
fn the_sources_agent_is_killed() {
    let _turn = turn();
    let lab = Lab::up("t-left-source");
    let trace = Trace::start(&lab, ENDLESS, piped());
    send(trace.agent(NODE2), Signal::SIGKILL);
    let ended = trace.end();
    assert_eq!(ended.code, Some(3), "60000 were asked for");
    let trace = ended.trace();
    assert!(trace["exchanges"].as_array().unwrap().len() >= 9, "what was seen is shown");
    assert_warned(&trace, &[NODE2, "half-way", "SIGKILL"]);
    assert_warned(&trace, &["of 60000 probes", "ended early"]);
}

#[test]
fn the_reader_of_stdout_goes_away() {
    let _turn = turn();
    let lab = Lab::up("t-left-pipe");
    let (reader, writer) = std::io::pipe().unwrap();
    let trace = Trace::start(&lab, 60, [writer.into(), Stdio::piped()]);
    drop(reader);
    let ended = trace.end();
    assert_eq!(ended.code, Some(0), "the trace itself went well");
    assert_eq!(ended.stdout, "", "stderr is the only stream that is read: {}", ended.stdout);
}

#[test]
fn the_reader_of_stdout_takes_one_byte() {
    let _turn = turn();
    let lab = Lab::up("t-left-head");
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Its JSON is far more than a pipe holds.
    let trace = Trace::start(&lab, 200, [writer.into(), Stdio::null()]);
    let mut first = [0];
    reader.read_exact(&mut first).unwrap();
    drop(reader);
    assert_eq!(first, *b"{");
    assert_eq!(trace.end().code, Some(0));
}
