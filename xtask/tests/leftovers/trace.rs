//! `podpath trace` in a process of its own, looked at from outside.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::held::{Held, assert_ended, wait_for};
use super::lab::Lab;

/// Loading and attaching take seconds on a busy machine.
const STARTED_WITHIN: Duration = Duration::from_secs(40);
/// A session's own limits on silence and on cleaning up, and then some.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

/// A binary of this workspace, beside the folder of this test's.
pub(crate) fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join(name);
    assert!(path.is_file(), "{} is missing: `cargo build --workspace` makes it", path.display());
    path
}

/// A trace that sends probes right now.
pub(crate) struct Trace<'a> {
    lab: &'a Lab,
    before: BTreeMap<String, String>,
    pub(crate) cli: Child,
    /// Pids of the sessions.
    pub(crate) agents: Vec<u32>,
    pub(crate) held: Held,
    /// What readers of its stdout and stderr have got, once it has ended.
    output: Vec<JoinHandle<String>>,
}

/// How it ended.
pub(crate) struct Ended {
    /// None: by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl<'a> Trace<'a> {
    /// Pings `count` times from bb2 to bb1, ten milliseconds apart, and returns when ten are under way. `streams` are those for
    /// stdout and stderr.
    pub(crate) fn start(lab: &'a Lab, count: u32, streams: [Stdio; 2]) -> Trace<'a> {
        let before = lab.configuration();
        let sent = lab.sent("bb2");
        let [stdout, stderr] = streams;
        let mut command = Command::new(binary("podpath"));
        command.args(["trace", "bb2", "bb1", "-o", "json", "-i", "0.01", "-c", &count.to_string(), "--inventory"]);
        command.arg(&lab.inventory).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut cli = command.spawn().unwrap();
        let output = [cli.stdout.take().map(read), cli.stderr.take().map(read)].into_iter().flatten().collect();
        wait_for("no ten probes", STARTED_WITHIN, || {
            let probes = lab.sent("bb2") - sent;
            if probes >= 10 { Ok(()) } else { Err(format!("{probes} sent")) }
        });
        let agents = children(cli.id());
        assert_eq!(agents.len(), lab.nodes.len(), "a session for each node");
        let held = Held::by(&agents);
        let links = 5 * agents.len();
        assert!(
            held.links.len() >= links && held.programs.len() >= links,
            "each node attaches to five hooks: {held:?}"
        );
        assert!(!held.maps.is_empty());
        assert_eq!(held.alive(), held, "what is held is found in the kernel");
        Trace { lab, before, cli, agents, held, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.cli.id()
    }

    /// The session on this node.
    pub(crate) fn agent(&self, node: &str) -> u32 {
        let inode = self.lab.inode(node);
        let on_node = |agent: &u32| fs::metadata(format!("/proc/{agent}/ns/net")).is_ok_and(|ns| ns.ino() == inode);
        self.agents.iter().copied().find(on_node).unwrap()
    }

    /// Waits for the end, and fails unless everything is as it was.
    pub(crate) fn end(mut self) -> Ended {
        let status = wait_for("podpath still runs", STARTED_WITHIN, || {
            self.cli.try_wait().unwrap().ok_or_else(|| format!("pid {}", self.cli.id()))
        });
        assert_ended(&self.agents, ENDED_WITHIN);
        self.held.assert_gone();
        let after = self.lab.configuration();
        for (place, before) in &self.before {
            let after = after.get(place).unwrap_or_else(|| panic!("{place} is gone"));
            let changed: Vec<_> = before.lines().zip(after.lines()).filter(|(before, after)| before != after).collect();
            assert!(before == after, "{place} has changed, first: {:?}\n{before}\n{after}", changed.first());
        }
        assert_eq!(self.before.len(), after.len());
        let mut output = self.output.drain(..).map(|reader| reader.join().unwrap());
        let (stdout, stderr) = (output.next().unwrap_or_default(), output.next().unwrap_or_default());
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ended { code: status.code(), stdout, stderr }
    }
}

/// Also when a test fails half-way, nothing of it goes on.
impl Drop for Trace<'_> {
    fn drop(&mut self) {
        let _ended = self.cli.kill();
        let _reaped = self.cli.wait();
    }
}

pub(crate) fn send(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.cast_signed()), signal).unwrap();
}

pub(crate) fn read(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

/// Pids of a process's children, of all its threads.
fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()).collect()
}
