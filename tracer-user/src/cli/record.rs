//! `podpath record`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use indicatif::DecimalBytes;
use tokio::sync::Notify;

use super::{
    NOT_ALL,
    args::{RecordArgs, TraceArgs},
    ends::{self, Resolved},
    error::Error,
    nodes::{self, Cluster},
    terminal::{Progress, write_stderr},
    trace::{Watching, plural, rfc3339, stopped, watching},
};
use crate::{
    event::Record,
    recording::{self, Closing, Entry, Header, KnownNames, Met, RecordedNode, Recording, Writer},
    session::{self, Driven, Flow},
};

/// Records into a file; the exit code says whether there is something in it.
///
/// # Errors
/// Nothing could be recorded. There is no file then.
pub(super) async fn run(args: &RecordArgs) -> Result<u8, Error> {
    let trace = TraceArgs::from(args.clone()).with_port_of_destination().unwrap_or_else(|error| error.exit());
    let (mut cluster, trace) = nodes::find(&trace).await?;
    if let Some(choice) = &cluster.choice {
        write_stderr(&format!("podpath: {choice}\n"));
    }
    let recorded = record(&args.write, &trace, &mut cluster).await;
    let left = cluster.clean_up().await;
    let Recorded { tape, driven, error } = recorded?;
    let mut warnings = [cluster.notes(), driven.warnings.clone()].concat();
    warnings.extend(left);
    warnings.extend(tape.seen.met.sentence());
    let names = names(&args.write, &tape, &driven, &mut cluster).await;
    let Tape { writer, seen, started, .. } = tape;
    let (records, lasted) = (seen.records, started.elapsed());
    for warning in &warnings {
        write_stderr(&format!("warning: {warning}\n"));
    }
    let closing = Closing { warnings, interrupted: driven.interrupted };
    let error = match (error, writer.finish(names, closing).and_then(|file| file.sync_all())) {
        (Some(error), _) | (None, Err(error)) => Some(error),
        (None, Ok(())) => None,
    };
    if let Some(source) = error {
        write_stderr(&format!("podpath: {}\n", unwritten(&args.write, source)));
        return Ok(NOT_ALL);
    }
    let lost = driven.evidence.nodes.iter().map(|node| node.lost).sum();
    write_stderr(&told(&args.write, records, lost, lasted, args.sampling.sample));
    Ok(if records == 0 { NOT_ALL } else { 0 })
}

fn unwritten(path: &Path, source: io::Error) -> recording::Error {
    recording::Error::File { path: path.to_owned(), what: "write", source }
}

/// What there is now, and what to do with it.
fn told(path: &Path, records: u64, lost: u64, lasted: Duration, one_of: u32) -> String {
    let bytes = fs::metadata(path).map_or(0, |about| about.len());
    let path = path.display();
    if records == 0 {
        let sampled = match one_of {
            1 => String::new(),
            _ => format!("; of {one_of} connections one is recorded: without --sample all are"),
        };
        return format!(
            "podpath: nothing was seen in {:.1} s, {lost} lost; {path} says so{sampled}\n",
            lasted.as_secs_f64()
        );
    }
    let (size, seconds) = (DecimalBytes(bytes), lasted.as_secs_f64());
    format!("{records} records in {seconds:.1} s, {lost} lost, {size}; next: podpath report {path}\n")
}

/// What was recorded, but for its end.
struct Recorded {
    tape: Tape,
    driven: Driven,
    /// Why not all could be written.
    error: Option<io::Error>,
}

/// The file that is being written.
struct Tape {
    writer: Writer<File>,
    started: Instant,
    seen: Seen,
}

/// What came so far.
#[derive(Default)]
struct Seen {
    records: u64,
    lost: BTreeMap<String, u64>,
    met: Met,
}

impl Seen {
    fn add(&mut self, records: &[Record]) {
        self.records += records.len() as u64;
        records.iter().for_each(|record| self.met.add(record));
    }
}

impl Tape {
    /// Begins a file; `early`: names for the case that its end, with all, is never written. Where that fails there is none.
    fn create(path: &Path, header: Header, early: KnownNames) -> Result<Self, recording::Error> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => recording::Error::Exists { path: path.to_owned() },
            _ => recording::Error::File { path: path.to_owned(), what: "create", source },
        };
        let file = File::create_new(path).map_err(failed)?;
        let begun = Writer::new(file, header).and_then(|mut writer| {
            writer.add(Entry::Names(early))?;
            Ok(writer)
        });
        let writer = begun.map_err(|source| {
            let _gone = fs::remove_file(path);
            unwritten(path, source)
        })?;
        Ok(Self { writer, started: Instant::now(), seen: Seen::default() })
    }

    /// Takes in what happens.
    fn step(&mut self, step: &session::Progress<'_>) -> io::Result<()> {
        match step {
            session::Progress::Heard { node, frame } => {
                let (after, frame) = (self.started.elapsed(), (*frame).clone());
                return self.writer.add(Entry::Heard { node: *node, after, frame });
            }
            session::Progress::AllRecord => return self.writer.add(Entry::AllRecord { after: self.started.elapsed() }),
            session::Progress::Draining => return self.writer.add(Entry::Stopping { after: self.started.elapsed() }),
            session::Progress::Records { new, .. } => self.seen.add(new),
            session::Progress::Lost { node, total } => {
                self.seen.lost.insert((*node).to_owned(), *total);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Runs the sessions, and writes what they say.
async fn record(path: &Path, args: &TraceArgs, cluster: &mut Cluster) -> Result<Recorded, Error> {
    let progress = Progress::start(format!("arming {}", plural(cluster.nodes.len(), "node")));
    let Watching { resolved, sessions, plan } = watching(args, cluster).await?;
    let flows = sessions.iter().map(|(_, request)| request.flows.clone());
    let traffic = resolved.traffic.watched(resolved.ends.source.address, args.one_of);
    let header = header(cluster, &resolved, traffic, flows);
    let mut tape = Tape::create(path, header, early_names(cluster, &resolved))?;
    let full = Notify::new();
    let mut error = None;
    let mut meter = Meter::new(args.wait);
    let driven = session::drive(sessions, plan, stopped(&full, progress.line()), |step| {
        if error.is_none()
            && let Err(source) = tape.step(&step)
        {
            error = Some(source);
            // What is in the file is good: better an early end than a recording with a hole.
            full.notify_one();
        }
        if step == session::Progress::AllRecord {
            progress.reached("podpath: recording; Ctrl-C ends\n");
        }
        if let Some(text) = meter.step(&step, &tape) {
            progress.now(text);
        }
    })
    .await;
    match driven {
        Ok(driven) => Ok(Recorded { tape, driven, error }),
        Err(error) => {
            // There is nothing in it but its header.
            let _gone = fs::remove_file(path);
            Err(error.into())
        }
    }
}

/// Of the two ends, and of the nodes.
fn early_names(cluster: &Cluster, resolved: &Resolved) -> KnownNames {
    let ends = [resolved.ends.source.address, resolved.ends.destination.address];
    let own = cluster.nodes.iter().flat_map(|node| ends::node_addresses(&cluster.directory, &node.name));
    KnownNames::of(&cluster.directory, &ends.into_iter().chain(own).collect(), [])
}

fn header(cluster: &Cluster, resolved: &Resolved, traffic: String, flows: impl Iterator<Item = Vec<Flow>>) -> Header {
    let nodes = cluster.nodes.iter().zip(flows).map(|(node, flows)| RecordedNode { name: node.name.clone(), flows });
    Header {
        program: concat!("podpath ", env!("CARGO_PKG_VERSION")).to_owned(),
        started: rfc3339(SystemTime::now()),
        context: cluster.context.clone(),
        ends: resolved.ends.clone(),
        service: resolved.service.as_ref().map(|behind| behind.asked.clone()),
        traffic,
        nodes: nodes.collect(),
    }
}

/// Says once a second how it goes.
struct Meter {
    of: Duration,
    armed: usize,
    /// When all nodes recorded, and when something was said last, with how many records there were.
    since: Option<Instant>,
    said: Option<(Instant, u64)>,
}

impl Meter {
    fn new(of: Duration) -> Self {
        Self { of, armed: 0, since: None, said: None }
    }

    fn step(&mut self, step: &session::Progress<'_>, tape: &Tape) -> Option<String> {
        if let session::Progress::Armed { .. } = step {
            self.armed += 1;
            self.since = Some(Instant::now());
            return Some(format!("{} armed", plural(self.armed, "node")));
        }
        let (since, records) = (self.since?, tape.seen.records);
        let (at, before) = self.said.unwrap_or((since, 0));
        let passed = at.elapsed().as_secs_f64();
        if self.said.is_some() && passed < 1.0 {
            return None;
        }
        self.said = Some((Instant::now(), records));
        let rate = (records - before) as f64 / passed.max(0.001);
        let lost: u64 = tape.seen.lost.values().sum();
        let size = DecimalBytes(tape.writer.written());
        let (now, of) = (since.elapsed().as_secs(), self.of.as_secs());
        Some(format!("{now} of {of} s: {records} records, {rate:.0}/s, {lost} lost, {size}; Ctrl-C ends"))
    }
}

/// Names for what was met; of a cluster they are asked for now.
async fn names(path: &Path, tape: &Tape, driven: &Driven, cluster: &mut Cluster) -> KnownNames {
    if cluster.kubernetes.is_some()
        && let Ok(mut recording) = Recording::open(path)
    {
        let header = recording.contents.header.clone();
        if let Some(Ok(window)) = recording.windows().next() {
            let joined = window.join(&header.ends, &cluster.directory);
            let _more = cluster.meet(&joined).await;
        }
    }
    let nodes = &driven.evidence.nodes;
    let links = nodes.iter().flat_map(|node| &node.facts.namespaces).flat_map(|namespace| &namespace.links);
    let mut addresses: BTreeSet<IpAddr> = links.flat_map(|link| link.addresses.iter().map(|net| net.addr())).collect();
    addresses.extend(tape.seen.met.addresses());
    KnownNames::of(&cluster.directory, &addresses, nodes.iter().map(|node| &node.facts))
}
