//! A session fed by hand, whose answers nobody reads.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use tracer_user::session::{Flow, Ping, ProbeKind, Request, request_stream};

use super::held::{Held, wait_for};
use super::lab::Lab;
use super::trace::{binary, read, send};
use super::turn;

const ICMP: u8 = 1;

/// A session on node1 that has sent probes, and cannot say anything: its stdout is a full pipe.
struct Blocked {
    agent: Child,
    held: Held,
    stderr: JoinHandle<String>,
    asked: Instant,
    /// Open, and never read.
    _unread: PipeReader,
}

impl Blocked {
    fn start(lab: &Lab, time_limit: Duration) -> Blocked {
        let (unread, full) = full_pipe();
        let node = lab.node("node1").unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &node.namespace]).arg(binary("podpath-agent")).arg("session");
        let mut agent = command.stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = read(agent.stderr.take().unwrap());
        let (before, asked) = (lab.sent("bb1"), Instant::now());
        // Stays open: its end would end the session.
        agent.stdin.as_mut().unwrap().write_all(&request_stream(&request(lab, time_limit)).unwrap()).unwrap();
        wait_for("no probes", Duration::from_secs(40), || {
            let sent = lab.sent("bb1") - before;
            if sent >= 10 { Ok(()) } else { Err(format!("{sent} sent")) }
        });
        let held = Held::by(&[agent.id()]);
        assert!(held.links.len() >= 5 && held.programs.len() >= 5 && held.alive() == held, "{held:?}");
        Blocked { agent, held, stderr, asked, _unread: unread }
    }

    /// Waits for its end; fails if anything stays. Returns its last words, and how long after the request it ended.
    fn end(mut self) -> (String, Duration) {
        let status = wait_for("the session goes on", Duration::from_secs(40), || {
            self.agent.try_wait().unwrap().ok_or_else(|| format!("pid {}", self.agent.id()))
        });
        let took = self.asked.elapsed();
        assert_eq!(status.code(), Some(1));
        self.held.assert_gone();
        (self.stderr.join().unwrap(), took)
    }
}

fn request(lab: &Lab, time_limit: Duration) -> Request {
    let (src, dst) = (lab.pod("bb1").unwrap().address.into(), lab.pod("bb2").unwrap().address.into());
    let ping = Ping {
        src,
        home: None,
        any_source: false,
        dst,
        kind: ProbeKind::Echo { id: 4711 },
        count: u16::MAX,
        interval: Duration::from_millis(10),
        size: 56,
        timeout: Duration::from_secs(1),
        nonce_base: 1,
    };
    let flow = Flow { a: src, b: Some(dst), protocol: ICMP, a_port: None, b_port: None, one_of: 1 };
    Request { flows: vec![flow], time_limit, ping: Some(ping), trace_rules: false, sparing: false }
}

/// A pipe into which nothing more goes: whoever writes waits.
fn full_pipe() -> (PipeReader, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut writer = File::from(std::os::fd::OwnedFd::from(writer));
    let blocking = |yes: bool| {
        let flags = if yes { OFlag::empty() } else { OFlag::O_NONBLOCK };
        fcntl(writer.as_fd(), FcntlArg::F_SETFL(flags)).unwrap();
    };
    blocking(false);
    let mut full = &writer;
    while match full.write(&[0; 4096]) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    } {}
    blocking(true);
    writer.flush().unwrap();
    (reader, writer)
}

#[test]
fn nobody_reads_until_the_time_limit() {
    let _turn = turn();
    let lab = Lab::up("t-left-limit");
    let limit = Duration::from_secs(8);
    let (words, took) = Blocked::start(&lab, limit).end();
    assert!(words.contains("time limit of 8s reached"), "{words}");
    assert!((limit..limit + Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[test]
fn nobody_reads_and_a_signal_comes() {
    let _turn = turn();
    let lab = Lab::up("t-left-signal");
    let blocked = Blocked::start(&lab, Duration::from_secs(3600));
    send(blocked.agent.id(), Signal::SIGTERM);
    let (words, _) = blocked.end();
    assert!(words.contains("SIGTERM"), "{words}");
}
