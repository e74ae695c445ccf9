//! Whole sessions: generated nodes, served as `podpath-agent` serves, and driven as `podpath record` drives.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracer_user::{
    doctor::Check,
    event::{Record, decode},
    node::facts::NodeFacts,
    recording::{Closing, Entry, Header, KnownNames, RecordedNode, Writer},
    session::{
        About, Backend, Connection, Counters, Failure, InjectorJob, MAX_TIME_LIMIT, Ping, Plan, Progress, Request,
        drive,
    },
};

use crate::{
    measure::{Cost, cost},
    traffic::{self, Bytes, Traffic},
};

const NODES: usize = 3;
const FLOWS: u64 = 1_000;
const EXCHANGES: u64 = 100_000;
/// So many records are under way at most: what a session lets wait for its peer.
const UNDER_WAY: u64 = 50_000;

/// What was recorded, and what that took.
pub(crate) struct Whole {
    pub(crate) events: usize,
    bytes: u64,
    cost: Cost,
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, cpu) = (self.events as f64, self.cost.cpu.as_nanos() as f64);
        writeln!(
            f,
            "{NODES} whole sessions, driven and recorded into a file, generating included: {} events",
            self.events
        )?;
        write!(
            f,
            "{:.0} ns of CPU per event, {:.2} million/s by the clock, {:.3} allocations per event, {:.1} bytes of file per event",
            cpu / events,
            events / self.cost.wall.as_secs_f64() / 1e6,
            self.cost.allocations as f64 / events,
            self.bytes as f64 / events
        )
    }
}

impl Whole {
    pub(crate) fn json(&self) -> Value {
        json!({
            "events": self.events, "file_bytes": self.bytes, "wall_ns": self.cost.wall.as_nanos() as u64,
            "cpu_ns": self.cost.cpu.as_nanos() as u64, "allocations": self.cost.allocations,
        })
    }
}

/// What all nodes share.
struct Shared {
    traffic: Mutex<(Traffic, Vec<Vec<Bytes>>)>,
    made: AtomicU64,
    heard: AtomicU64,
    exchanges: u64,
    /// All nodes record: what began before would not be counted.
    began: AtomicBool,
}

/// Stands for a node's kernel programs.
struct Generated {
    node: usize,
    nodes: usize,
    shared: Arc<Shared>,
}

impl Backend for Generated {
    fn hello(&mut self) -> Result<About, Failure> {
        Ok(About { node: traffic::node_name(self.node), kernel: "generated".to_owned(), ..About::default() })
    }

    fn checks(&mut self) -> Vec<Check> {
        Vec::new()
    }

    fn arm(&mut self, _: &Request) -> Result<(), Failure> {
        Ok(())
    }

    fn drain(&mut self, into: &mut Vec<Record>) -> Result<(), Failure> {
        if !self.shared.began.load(Relaxed) {
            return Ok(());
        }
        let mut guard = self.shared.traffic.lock().expect("no node panics");
        let (traffic, by_node) = &mut *guard;
        while traffic.made() < self.shared.exchanges
            && self.shared.made.load(Relaxed) - self.shared.heard.load(Relaxed) < UNDER_WAY
        {
            let before: usize = by_node.iter().map(Vec::len).sum();
            traffic.exchange(by_node);
            let made = by_node.iter().map(Vec::len).sum::<usize>() - before;
            self.shared.made.fetch_add(made as u64, Relaxed);
        }
        let failure = |error: decode::Error| Failure::new("generated records", error.to_string(), "");
        for bytes in by_node[self.node].drain(..) {
            into.push(decode::record(&bytes).map_err(failure)?);
        }
        Ok(())
    }

    fn fire(&mut self, _: &Ping) -> Result<InjectorJob, Failure> {
        Err(Failure::new("generated node", "sends nothing", ""))
    }

    fn detach(&mut self) -> Result<u64, Failure> {
        Ok(0)
    }

    fn counters(&mut self) -> Result<Counters, Failure> {
        Ok(Counters::default())
    }

    fn finish(&mut self) -> Result<(NodeFacts, Counters), Failure> {
        Ok((traffic::facts(self.node, self.nodes), Counters::default()))
    }
}

/// Records generated traffic into a file.
///
/// # Errors
/// The file cannot be written, or a session fails.
pub(crate) fn record(path: &Path) -> Result<Whole> {
    record_of(path, NODES, FLOWS, EXCHANGES, 20_000)
}

/// The same, of so many nodes, connections and exchanges, one each `gap_ns`.
///
/// # Errors
/// As above.
pub(crate) fn record_of(path: &Path, nodes: usize, flows: u64, exchanges: u64, gap_ns: u64) -> Result<Whole> {
    let traffic = Mutex::new((Traffic::new(nodes, flows, gap_ns), vec![Vec::new(); nodes]));
    let began = AtomicBool::new(false);
    let shared = Arc::new(Shared { traffic, made: AtomicU64::new(0), heard: AtomicU64::new(0), exchanges, began });
    let requested = || traffic::flows();
    let node = |node| RecordedNode { name: traffic::node_name(node), flows: requested() };
    let header = Header {
        program: "bench".to_owned(),
        started: "2026-11-29T00:00:00Z".to_owned(),
        context: None,
        ends: traffic::ends(),
        service: None,
        traffic: "generated".to_owned(),
        nodes: (0..nodes).map(node).collect(),
    };
    let mut writer = Writer::new(std::fs::File::create(path)?, header)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (driven, cost) = cost(|| {
        runtime.block_on(async {
            let done = Notify::new();
            let session = |node: usize| {
                let backend = Generated { node, nodes, shared: Arc::clone(&shared) };
                let request = Request {
                    flows: requested(),
                    time_limit: MAX_TIME_LIMIT,
                    ping: None,
                    trace_rules: false,
                    sparing: true,
                };
                (Connection::local(traffic::node_name(node), backend), request)
            };
            let sessions = (0..nodes).map(session).collect();
            let limit = Duration::from_secs(60);
            let plan =
                Plan { armed_within: limit, record_for: None, armed_last: Some(0), all_needed: true, passes_on: true };
            let mut failed = None;
            let driven = drive(sessions, plan, done.notified(), |progress| {
                let entry = match progress {
                    Progress::Heard { node, frame } => {
                        Some(Entry::Heard { node, after: Duration::from_secs(1), frame: frame.clone() })
                    }
                    Progress::Records { new, .. } => {
                        let heard = shared.heard.fetch_add(new.len() as u64, Relaxed) + new.len() as u64;
                        let all = shared.traffic.lock().expect("no node panics").0.made() == exchanges;
                        if all && heard == shared.made.load(Relaxed) {
                            done.notify_one();
                        }
                        None
                    }
                    Progress::AllRecord => {
                        shared.began.store(true, Relaxed);
                        Some(Entry::AllRecord { after: Duration::from_secs(1) })
                    }
                    Progress::Draining => Some(Entry::Stopping { after: Duration::from_secs(1) }),
                    _ => None,
                };
                if let Some(entry) = entry {
                    failed = writer.add(entry).err().or(failed.take());
                }
            })
            .await;
            failed.map_or(Ok(driven), Err)
        })
    });
    let driven = driven.context("write the recording")??;
    ensure!(driven.warnings.is_empty(), "{:?}", driven.warnings);
    writer.finish(KnownNames::default(), Closing::default())?;
    let events = usize::try_from(shared.heard.load(Relaxed))?;
    Ok(Whole { events, bytes: std::fs::metadata(path)?.len(), cost })
}
