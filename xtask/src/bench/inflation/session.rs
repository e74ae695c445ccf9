//! The tools that are compared: each started, waited for until it traces, and ended, as a person would at a shell, its output in a file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde::Serialize;
use serde_json::Value;

use super::flow::{PORT, Pair, addresses};
use crate::{interrupt, proc};

/// pwru by kprobes alone takes two minutes to end.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
/// A tool that has written nothing for so long has written all.
const SETTLED: Duration = Duration::from_secs(1);
/// What bpftrace says once it traces, and each second from then on.
const TICK: &str = "tick";
/// More than bpftrace's ticks while nothing happens, bytes.
const TICKS: u64 = 16;
/// Of stderr's end in an error, lines.
const TAIL: usize = 15;

/// Ended when dropped, with all it started in its group.
#[derive(Debug)]
pub(super) struct Guard(pub(super) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _gone = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _gone = self.0.wait();
    }
}

/// A tool, and how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Podpath,
    /// All functions that take a packet, with tracking of `sk_buff`s.
    Pwru,
    /// Five functions.
    PwruFive,
    Bpftrace,
}

/// Which packets a tool is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Traced<'a> {
    /// The pair's pings.
    Pings(&'a Pair),
    /// Its connections to iperf3.
    Tcp(&'a Pair),
    /// Whatever goes between the two: so a tool that takes minutes to start and end is started once for both.
    All(&'a Pair),
}

/// pwru's five: a packet is received, queued, handed to a driver, dropped, consumed, as podpath's tracepoints have it. What the
/// fourth is called depends on the kernel.
const FIVE: &str = "^(__netif_receive_skb_one_core|__dev_queue_xmit|dev_hard_start_xmit|kfree_skb_reason|sk_skb_reason_drop|consume_skb)$";

/// What the sessions need.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The program.
    pub(super) podpath: &'a Path,
    pub(super) inventory: &'a Path,
    /// For what the tools write.
    pub(super) folder: &'a Path,
}

/// A tool that traces.
pub(super) struct Session<'a> {
    tool: Tool,
    /// Whether podpath is asked to report on its recording. TCP's takes minutes in an emulated machine.
    reports: bool,
    place: &'a Place<'a>,
    child: Guard,
    /// From its start until it traced.
    pub(super) armed: Duration,
}

/// What a tool has to show when it has ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Account {
    /// What it wrote of packets: podpath records, the others lines.
    pub(super) events: u64,
    /// What it says itself that it lost, if it says so.
    pub(super) said_lost: Option<u64>,
    /// Exchanges in podpath's recording.
    pub(super) exchanges: Option<Exchanges>,
    /// From its being asked to end until it had, ms.
    pub(super) end_ms: f64,
    /// What it said, if it did not wait until it was asked: then not all was traced.
    pub(super) ended_by_itself: Option<String>,
}

/// As `podpath report` counts them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Exchanges {
    pub(super) total: u64,
    pub(super) delivered: u64,
}

impl Place<'_> {
    fn out(&self) -> PathBuf {
        self.folder.join("out")
    }

    fn err(&self) -> PathBuf {
        self.folder.join("err")
    }

    fn recording(&self) -> PathBuf {
        self.folder.join("recording.ppr")
    }

    fn command(&self, tool: Tool, traced: Traced<'_>) -> Command {
        let (Traced::Pings(pair) | Traced::Tcp(pair) | Traced::All(pair)) = traced;
        let (a, b) = addresses(pair);
        let filter = format!("host {a} and host {b}");
        let mut command;
        match tool {
            Tool::Podpath => {
                command = Command::new(self.podpath);
                command.arg("record").args(
                    [&pair.source, &pair.destination].map(|pod| format!("{}/{}", pod.kubernetes_namespace, pod.name)),
                );
                if let Traced::Tcp(_) = traced {
                    command.args(["--tcp", &PORT.to_string()]);
                }
                command
                    .args(["--for", "1h", "--ready-within", "300"])
                    .arg("--inventory")
                    .arg(self.inventory)
                    .arg("-w")
                    .arg(self.recording());
            }
            Tool::Pwru => {
                command = Command::new("pwru");
                command.args(["--filter-track-skb", &filter]);
            }
            Tool::PwruFive => {
                command = Command::new("pwru");
                command.args(["--filter-func", FIVE, "--filter-track-skb", &filter]);
            }
            Tool::Bpftrace => {
                // It looks for tracepoints in tracefs, which not every machine has mounted.
                let line = "mount -t tracefs tracefs /sys/kernel/tracing 2>&- || true; exec bpftrace -e \"$1\"";
                command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", line, "sh", &script(pair)]);
            }
        }
        command
    }
}

/// podpath's tracepoints, its filter (addresses of the innermost packet, IPIP looked through), and what makes a sighting.
fn script(pair: &Pair) -> String {
    let (a, b) = addresses(pair);
    // As they lie in memory.
    let [a, b] = [a, b].map(|address| u32::from_ne_bytes(address.octets()));
    let hook = |name: &str, device: &str| {
        format!(
            "tracepoint:{name} {{
               $skb = (struct sk_buff *)args->skbaddr;
               $ip = (struct iphdr *)($skb->head + $skb->network_header);
               if ($ip->protocol == 4) {{ $ip = (struct iphdr *)($skb->head + $skb->network_header + 20); }}
               if (($ip->saddr == {a} && $ip->daddr == {b}) || ($ip->saddr == {b} && $ip->daddr == {a})) {{
                 printf(\"%p %llu {name} %d %u %s %s %d %u %u\\n\", $skb, nsecs, {device},
                   ntop($ip->saddr), ntop($ip->daddr), $ip->protocol, $ip->id, $skb->len);
               }} }}\n"
        )
    };
    let device = "$skb->dev->ifindex, $skb->dev->nd_net.net->ns.inum";
    let hooks = ["net:netif_receive_skb", "net:net_dev_queue", "net:net_dev_start_xmit"].map(|name| hook(name, device));
    // Of a freed packet the device is none any more.
    let frees = ["skb:kfree_skb", "skb:consume_skb"].map(|name| hook(name, "0, (uint32)0"));
    format!("{}{}interval:s:1 {{ printf(\"{TICK}\\n\"); }}", hooks.concat(), frees.concat())
}

impl<'a> Session<'a> {
    /// Starts it, and waits until it traces.
    ///
    /// # Errors
    /// It does not run here; its own words are in the error.
    pub(super) fn start(tool: Tool, traced: Traced<'_>, place: &'a Place<'a>) -> Result<Session<'a>> {
        let file = |path: PathBuf| File::create(&path).with_context(|| format!("create {}", path.display()));
        // Of the one before it.
        let _absent = fs::remove_file(place.recording());
        let mut command = place.command(tool, traced);
        command.stdin(Stdio::null()).stdout(file(place.out())?).stderr(file(place.err())?);
        let begin = Instant::now();
        let child = Guard(proc::spawn(&mut command)?);
        let mut session =
            Session { tool, reports: matches!(traced, Traced::Pings(_)), place, child, armed: Duration::ZERO };
        let (path, sign) = match tool {
            Tool::Podpath => (place.err(), "podpath: recording;"),
            Tool::Pwru | Tool::PwruFive => (place.err(), "Listening for events"),
            Tool::Bpftrace => (place.out(), TICK),
        };
        while !read(&path)?.contains(sign) {
            let ended = session.child.0.try_wait().context("wait for a tool")?;
            if let Some(status) = ended {
                bail!("it {}: {}", proc::ended(status), session.words()?);
            }
            session.go_on(begin)?;
        }
        session.armed = begin.elapsed();
        Ok(session)
    }

    /// Sleeps a little.
    fn go_on(&self, since: Instant) -> Result<()> {
        ensure!(interrupt::received().is_none(), "interrupted");
        let seconds = PATIENCE.as_secs();
        ensure!(since.elapsed() < PATIENCE, "it did nothing for {seconds} s: {}", self.words()?);
        thread::sleep(POLL);
        Ok(())
    }

    /// The end of what it said.
    fn words(&self) -> Result<String> {
        let text = read(&self.place.err())? + &read(&self.place.out())?;
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }

    /// Waits until it has written what it has to write, as long as it takes.
    ///
    /// # Errors
    /// We were interrupted, or it never stops writing.
    pub(super) fn settle(&self) -> Result<()> {
        let begin = Instant::now();
        let written =
            || Ok::<_, anyhow::Error>(fs::metadata(self.place.out()).context("look at a tool's output")?.len());
        let (mut known, mut since) = (written()?, Instant::now());
        while since.elapsed() < SETTLED {
            self.go_on(begin)?;
            let now = written()?;
            if now > known + TICKS {
                (known, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Does something while podpath's processes stand still, here and on its nodes: what its kernel programs record waits in the ring
    /// buffers.
    ///
    /// # Errors
    /// They cannot be found or stopped, or what is done fails.
    pub(super) fn standing_still<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = self.child.0.id().cast_signed();
        let all: Vec<i32> = children(own)?.into_iter().chain([own]).collect();
        let signal_all = |signal| all.iter().try_for_each(|pid| kill(Pid::from_raw(*pid), signal));
        signal_all(Signal::SIGSTOP).context("stop podpath")?;
        let done = act();
        signal_all(Signal::SIGCONT).context("let podpath go on")?;
        done
    }

    /// How many events it has written so far. Of podpath's that is known only at its end.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub(super) fn written(&self) -> Result<u64> {
        events(self.tool, &self.place.out())
    }

    /// Ends it as Ctrl-C does.
    ///
    /// # Errors
    /// It does not end, or does not say what it should.
    pub(super) fn end(mut self) -> Result<Account> {
        let begin = Instant::now();
        let ended_by_itself = match self.child.0.try_wait().context("look after a tool")? {
            Some(_) => Some(self.words()?),
            None => None,
        };
        let pid = Pid::from_raw(self.child.0.id().cast_signed());
        if ended_by_itself.is_none() {
            kill(pid, Signal::SIGINT).context("interrupt a tool")?;
        }
        while self.child.0.try_wait().context("wait for a tool")?.is_none() {
            self.go_on(begin)?;
        }
        let end_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let words = read(&self.place.err())?;
        let mut account =
            Account { events: self.written()?, said_lost: None, exchanges: None, end_ms, ended_by_itself };
        match self.tool {
            Tool::Podpath if self.reports => {
                let report = self.report().with_context(|| format!("podpath record said: {words}"))?;
                account.events = records(&words).map_or(0, |(records, _)| records);
                account.said_lost = report["lost_events"].as_u64();
                let count = |what: &str| report["exchanges"][what].as_u64().context("count exchanges");
                account.exchanges = Some(Exchanges { total: count("total")?, delivered: count("delivered")? });
            }
            Tool::Podpath => {
                let (records, lost) = records(&words).with_context(|| format!("podpath record said: {words}"))?;
                (account.events, account.said_lost) = (records, Some(lost));
            }
            Tool::Bpftrace => account.said_lost = Some(lost(&words) + lost(&read(&self.place.out())?)),
            // It never says.
            Tool::Pwru | Tool::PwruFive => {}
        }
        Ok(account)
    }

    fn report(&self) -> Result<Value> {
        let mut command = Command::new(self.place.podpath);
        command.arg("report").arg(self.place.recording()).args(["-o", "json"]);
        // One of nothing ends with another exit code.
        let output = proc::collected(&mut command, PATIENCE)?;
        serde_json::from_str(&output.stdout).with_context(|| format!("podpath report said: {}", output.stderr))
    }
}

/// The processes that a process has started: each node's agent has a group of its own.
fn children(of: i32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.and_then(|parent| parent.trim().parse().ok()) == Some(of) {
            found.push(pid);
        }
    }
    ensure!(!found.is_empty(), "podpath record runs without agents");
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How many packets' events stand in a tool's output: its lines that begin with the address of an `sk_buff`.
fn events(tool: Tool, output: &Path) -> Result<u64> {
    if tool == Tool::Podpath {
        return Ok(0);
    }
    // Hundreds of megabytes, perhaps, in an emulated machine. grep fails where it finds none.
    let mut grep = Command::new("grep");
    let found = proc::collected(grep.args(["-c", "^0x"]).arg(output), PATIENCE)?;
    found.stdout.trim().parse().with_context(|| format!("grep said: {}", found.stderr))
}

/// Records and lost ones of what `podpath record` says at its end: `1234 records in 5.6 s, 7 lost, ...`.
fn records(words: &str) -> Option<(u64, u64)> {
    words.lines().find_map(|line| {
        let (records, rest) = line.split_once(" records in ")?;
        let lost = rest.split(", ").find_map(|part| part.strip_suffix(" lost"))?;
        Some((records.parse().ok()?, lost.parse().ok()?))
    })
}

/// Of what bpftrace says: `Lost 1234 events`, perhaps several times.
fn lost(words: &str) -> u64 {
    words.lines().filter_map(|line| line.split_once("Lost ")?.1.split(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_say_is_read() {
        let end = "podpath: recording; Ctrl-C ends\n1234 records in 5.6 s, 7 lost, 30 kB; next: ...\n";
        assert_eq!(records(end), Some((1234, 7)));
        assert_eq!(records("podpath: nothing was seen in 5.6 s; x.ppr says so\n"), None);
        assert_eq!(lost("Attaching 6 probes...\nLost 12 events\nWARNING: Lost 30 events\n"), 42);
    }

    #[test]
    fn lines_of_packets_are_events() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "SKB  CPU PROCESS\n0xffff1 1 a\ntick\n0xffff2 0 b\n").unwrap();
        assert_eq!(events(Tool::Bpftrace, &path).unwrap(), 2);
        fs::write(&path, "tick\n").unwrap();
        assert_eq!(events(Tool::PwruFive, &path).unwrap(), 0);
    }
}
