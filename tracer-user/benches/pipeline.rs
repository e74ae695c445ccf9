//! What userspace costs per event, from the ring buffer's bytes to a recording and from there to a report: `cargo xtask bench pipeline`.
//!
//! The traffic is generated (`traffic/`), the code is the one that `podpath-agent`, `podpath record` and `podpath report` run. Each stage
//! runs alone, on one thread, in turns with the others; then all of them one after the other over many events, while the memory is
//! watched; then whole sessions, with a node's side and the CLI's in this process; and at last the real ring buffer of this kernel, too
//! small for what comes (needs root).
#![cfg(target_os = "linux")]

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tracer_user::{
    event::{Record, decode},
    recording::{Entry, Header, KnownNames, RecordedNode, Recording, Writer},
    report::{PARTS, Report},
    session::{Frames, replay},
};

use measure::{Cost, Counting, cost, kernel, machine, median, memory};
use traffic::{Bytes, Traffic};

mod measure;
#[path = "pipeline/saturated.rs"]
mod saturated;
#[path = "pipeline/sessions.rs"]
mod sessions;
mod traffic;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NODES: usize = 3;
const FLOWS: u64 = 1_000;
/// Records of a round of a stage: between two drains of the ring there are at most some 30,000.
const RECORDS: usize = 300_000;
const DRAINED: usize = 30_000;
const ROUNDS: usize = 7;
/// A reading takes longer.
const READINGS: usize = 3;
/// Events of the long run,
const LONG: u64 = 100_000_000;
/// or as many as there are in this time.
const LONGEST: Duration = Duration::from_secs(100);

/// What a stage took in each round, per event.
struct Stage {
    name: &'static str,
    rounds: Vec<Cost>,
    events: usize,
}

impl Stage {
    fn new(name: &'static str, events: usize) -> Self {
        Self { name, rounds: Vec::new(), events }
    }

    fn of(&self, what: impl Fn(&Cost) -> f64) -> f64 {
        median(self.rounds.iter().map(|cost| what(cost) / self.events as f64).collect())
    }

    fn ns(&self) -> f64 {
        self.of(|cost| cost.cpu.as_nanos() as f64)
    }

    fn print(&self) {
        let (ns, allocations, bytes) =
            (self.ns(), self.of(|cost| cost.allocations as f64), self.of(|cost| cost.bytes as f64));
        println!("{:<34}{:>9.0}{:>10.2}{allocations:>14.4}{bytes:>12.1}", self.name, ns, 1000.0 / ns);
    }

    fn json(&self) -> Value {
        let rounds = self.rounds.iter().map(|cost| {
            json!({
                "wall_ns": cost.wall.as_nanos() as u64, "cpu_ns": cost.cpu.as_nanos() as u64,
                "allocations": cost.allocations, "bytes": cost.bytes,
            })
        });
        json!({ "stage": self.name, "events": self.events, "rounds": rounds.collect::<Vec<_>>() })
    }
}

/// Records of all nodes in the order in which they came.
fn generated(traffic: &mut Traffic, events: usize) -> Vec<Bytes> {
    let (mut all, mut by_node) = (Vec::with_capacity(events + 64), vec![Vec::new(); NODES]);
    while all.len() < events {
        traffic.exchange(&mut by_node);
        by_node.iter_mut().for_each(|records| all.append(records));
    }
    all
}

fn header() -> Header {
    let node = |node| RecordedNode { name: traffic::node_name(node), flows: traffic::flows() };
    Header {
        program: "bench".to_owned(),
        started: "2026-11-29T00:00:00Z".to_owned(),
        context: None,
        ends: traffic::ends(),
        service: None,
        traffic: "generated".to_owned(),
        nodes: (0..NODES).map(node).collect(),
    }
}

/// What a node does with the bytes between two drains, and what `podpath record` does with what comes of it; each part with what it
/// needs again and again.
struct Pipe {
    queue: VecDeque<Record>,
    frames: Frames,
    sent: Vec<bytes::Bytes>,
    writer: Writer<io::Sink>,
    heard: u64,
}

impl Pipe {
    fn new() -> Result<Self> {
        let writer = Writer::new(io::sink(), header())?;
        Ok(Self { queue: VecDeque::new(), frames: Frames::default(), sent: Vec::new(), writer, heard: 0 })
    }

    fn decode(&mut self, drained: &[Bytes]) -> Result<()> {
        for bytes in drained {
            self.queue.push_back(decode::record(bytes)?);
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<()> {
        while !self.queue.is_empty() {
            self.sent.push(self.frames.next(&mut self.queue)?);
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<()> {
        for frame in &self.sent {
            self.heard += replay::records(frame.clone())?.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        for frame in self.sent.drain(..) {
            self.writer.add(Entry::Heard { node: 0, after: Duration::from_secs(1), frame })?;
        }
        Ok(())
    }

    fn all(&mut self, drained: &[Bytes]) -> Result<()> {
        self.decode(drained)?;
        // As it goes over a connection: frame by frame.
        while !self.queue.is_empty() {
            let frame = self.frames.next(&mut self.queue)?;
            self.heard += replay::records(frame.clone())?.len() as u64;
            self.writer.add(Entry::Heard { node: 0, after: Duration::from_secs(1), frame })?;
        }
        Ok(())
    }
}

fn stages(pool: &[Bytes]) -> Result<(Vec<Stage>, f64)> {
    let names = [
        "ring bytes -> record",
        "record -> wire frame",
        "wire frame -> record",
        "frame -> recording",
        "all four, frame by frame",
    ];
    let mut stages = names.map(|name| Stage::new(name, pool.len()));
    let mut pipe = Pipe::new()?;
    let mut wire = 0;
    for round in 0..=ROUNDS {
        let mut costs = [Cost::default(); 5];
        for drained in pool.chunks(DRAINED) {
            let mut step = |stage: usize, (done, cost): (Result<()>, Cost)| -> Result<()> {
                costs[stage] += cost;
                done
            };
            step(0, cost(|| pipe.decode(drained)))?;
            step(1, cost(|| pipe.frame()))?;
            step(2, cost(|| pipe.hear()))?;
            wire += pipe.sent.iter().map(bytes::Bytes::len).sum::<usize>();
            step(3, cost(|| pipe.write()))?;
            step(4, cost(|| pipe.all(drained)))?;
        }
        // The first one warms up.
        if round > 0 {
            stages.iter_mut().zip(costs).for_each(|(stage, cost)| stage.rounds.push(cost));
        }
    }
    ensure!(pipe.heard == (2 * (ROUNDS + 1) * pool.len()) as u64, "all that was sent was heard");
    let total = ((ROUNDS + 1) * pool.len()) as f64;
    println!(
        "on the wire {:.1} bytes per event, in the recording {:.1}",
        wire as f64 / total,
        pipe.writer.written() as f64 / total / 2.0
    );
    Ok((stages.into(), wire as f64 / total))
}

/// Memory while very many events pass.
fn long(pool: &[Bytes]) -> Result<Value> {
    let mut pipe = Pipe::new()?;
    // The first round fills what is used again afterwards.
    pool.chunks(DRAINED).try_for_each(|drained| pipe.all(drained))?;
    let (mut seen, mut done, begin) = (Vec::new(), 0_u64, Instant::now());
    let (ran, cost) = cost(|| -> Result<()> {
        while done < LONG && begin.elapsed() < LONGEST {
            pool.chunks(DRAINED).try_for_each(|drained| pipe.all(drained))?;
            done += pool.len() as u64;
            seen.push(memory()?.now);
        }
        Ok(())
    });
    ran?;
    let tenths = (1..=10).filter_map(|tenth| seen.get((seen.len() * tenth / 10).saturating_sub(1)));
    let megabytes: Vec<String> = tenths.map(|bytes| format!("{:.1}", *bytes as f64 / 1e6)).collect();
    let rate = done as f64 / cost.cpu.as_secs_f64() / 1e6;
    // Of them, those of reading how much memory there is.
    let allocations = cost.allocations;
    println!(
        "\n{done} events, frame by frame: {rate:.2} million/s on one core, {:.4} allocations per event;",
        allocations as f64 / done as f64
    );
    println!("resident memory after each tenth, MB: {}", megabytes.join(" "));
    Ok(
        json!({ "events": done, "cpu_ns": cost.cpu.as_nanos() as u64, "allocations": allocations, "rss_bytes": seen, "peak_rss_bytes": memory()?.peak }),
    )
}

/// From a recording to a report.
fn reading(recording: &std::path::Path, events: usize) -> Result<Vec<Stage>> {
    let names = [
        "recording -> records, read through",
        "records -> exchanges (join)",
        "exchanges -> histograms",
        "recording -> report, whole",
    ];
    let mut stages = names.map(|name| Stage::new(name, events));
    for round in 0..=READINGS {
        let (opened, open) = cost(|| Recording::open(recording));
        let mut opened = opened?;
        let (ends, names) = (opened.contents.header.ends.clone(), KnownNames::default());
        let (mut joining, mut adding) = (Cost::default(), Cost::default());
        let mut report = Report::new(0);
        for window in opened.windows() {
            let window = window?;
            let (joined, cost_of_join) = cost(|| window.join(&ends, &names));
            joining += cost_of_join;
            let own: Vec<_> = joined.exchanges.iter().filter(|exchange| window.has(exchange)).collect();
            adding += cost(|| own.iter().for_each(|exchange| report.add(exchange, 0))).1;
        }
        let (whole, all) = cost(|| -> Result<u64> {
            let mut report = Report::new(0);
            Recording::open(recording)?.exchanges(PARTS, |exchange, part| report.add(exchange, part))?;
            Ok(report.exchanges())
        });
        ensure!(whole? == report.exchanges(), "the same exchanges");
        if round > 0 {
            for (stage, cost) in stages.iter_mut().zip([open, joining, adding, all]) {
                stage.rounds.push(cost);
            }
        }
    }
    Ok(stages.into())
}

/// Whole sessions, and what a report of their recording costs.
fn recorded_and_read() -> Result<(Value, Vec<Stage>)> {
    let folder = tempfile::tempdir().context("a folder")?;
    let file = folder.path().join("bench.ppr");
    let whole = sessions::record(&file)?;
    println!("\n{whole}");
    let read = reading(&file, whole.events)?;
    println!(
        "\n{:<34}{:>9}{:>10}{:>14}{:>12}",
        "per event of the recording", "ns", "million/s", "allocations", "bytes"
    );
    read.iter().for_each(Stage::print);
    Ok((whole.json(), read))
}

fn main() -> Result<()> {
    // Alone, after `--`: what takes a kernel, and the rest of the bench a while; and what is often looked at.
    if std::env::args().any(|word| word == "saturated") {
        return saturated::run().map(drop);
    }
    if std::env::args().any(|word| word == "reading") {
        return recorded_and_read().map(drop);
    }
    println!("generated traffic: {NODES} nodes, {FLOWS} connections; see tracer-user/benches/traffic/");
    let mut traffic = Traffic::new(NODES, FLOWS, 20_000);
    let pool = generated(&mut traffic, RECORDS);
    let (stages, wire) = stages(&pool)?;
    println!("\n{:<34}{:>9}{:>10}{:>14}{:>12}", "per event, on one core", "ns", "million/s", "allocations", "bytes");
    stages.iter().for_each(Stage::print);
    let sum: f64 = stages[..2].iter().map(Stage::ns).sum();
    println!("{:<34}{sum:>9.0}{:>10.2}", "the node's part (the first two)", 1000.0 / sum);
    let sum: f64 = stages[2..4].iter().map(Stage::ns).sum();
    println!("{:<34}{sum:>9.0}{:>10.2}", "the CLI's part (the next two)", 1000.0 / sum);
    let long = long(&pool)?;
    let (whole, read) = recorded_and_read()?;
    let saturated = saturated::run()?;
    let stages: Vec<_> = stages.iter().chain(&read).map(Stage::json).collect();
    let data = json!({
        "input": "generated", "kernel": kernel()?, "machine": machine()?, "stages": stages, "wire_bytes_per_event": wire,
        "long": long, "sessions": whole, "saturated": saturated,
    });
    println!("\nmedian of {ROUNDS} rounds, of {READINGS} where a recording is read");
    println!("{data}");
    Ok(())
}
