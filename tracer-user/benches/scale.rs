//! What many nodes and many flows cost: `cargo xtask bench scale`. On generated traffic (`traffic/`); each measurement is a process of its
//! own, whose peak memory is its own.
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tracer_user::{
    event::decode,
    path::{Evidence, NodeEvidence, join_all},
    recording::{KnownNames, Recording},
    report::{PARTS, Report},
};

use measure::{Counting, cost, kernel, machine, median, memory};
use traffic::Traffic;

mod measure;
#[path = "pipeline/sessions.rs"]
#[expect(dead_code, reason = "shared with another bench, which uses more of it")]
mod sessions;
mod traffic;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 3;
const NODES: [usize; 3] = [2, 10, 100];
/// Records that are joined at once: a window of a recording has so many in its core.
const RECORDS: usize = 200_000;
const FLOWS: u64 = 1_000_000;
/// Between two exchanges: some 17,000 a second, of 22 records each.
const GAP_NS: u64 = 60_000;

fn join(nodes: usize) -> Result<Value> {
    let mut traffic = Traffic::new(nodes, 1_000, 20_000);
    let mut by_node = vec![Vec::new(); nodes];
    while by_node.iter().map(Vec::len).sum::<usize>() < RECORDS {
        traffic.exchange(&mut by_node);
    }
    let seen = |(node, bytes): (usize, Vec<traffic::Bytes>)| -> Result<NodeEvidence> {
        Ok(NodeEvidence {
            name: traffic::node_name(node),
            records: bytes.iter().map(|bytes| decode::record(bytes)).collect::<Result<_, _>>()?,
            facts: traffic::facts(node, nodes),
            complete: true,
            ..NodeEvidence::default()
        })
    };
    let seen = by_node.into_iter().enumerate().map(seen).collect::<Result<_>>()?;
    let evidence = Evidence { nodes: seen, probes: Vec::new(), interrupted: false };
    let before = memory()?;
    let (joined, cost) = cost(|| join_all(&evidence, &traffic::ends(), &KnownNames::default()));
    let after = memory()?;
    ensure!(
        joined.exchanges.len() as u64 == traffic.made(),
        "{} of {} exchanges",
        joined.exchanges.len(),
        traffic.made()
    );
    Ok(json!({
        "what": format!("join, {nodes} nodes"), "nodes": nodes, "records": RECORDS, "exchanges": joined.exchanges.len(),
        "cpu_ns": cost.cpu.as_nanos() as u64, "allocations": cost.allocations,
        "records_rss_bytes": before.now, "peak_rss_bytes": after.peak,
    }))
}

fn record(file: &Path) -> Result<Value> {
    let whole = sessions::record_of(file, 3, FLOWS, FLOWS, GAP_NS)?;
    let mut data = whole.json();
    data["what"] = json!("record a million flows");
    data["peak_rss_bytes"] = json!(memory()?.peak);
    Ok(data)
}

fn report(file: &Path) -> Result<Value> {
    let (reported, cost) = cost(|| -> Result<_> {
        let mut recording = Recording::open(file)?;
        let mut report = Report::new(5);
        recording.exchanges(PARTS, |exchange, part| report.add(exchange, part))?;
        Ok((report, recording.contents))
    });
    let (report, contents) = reported?;
    ensure!(report.exchanges() == FLOWS, "{} of {FLOWS} exchanges", report.exchanges());
    Ok(json!({
        "what": "report of a million flows", "events": contents.records, "exchanges": report.exchanges(),
        "outcomes": report.outcomes.iter().map(|(outcome, count)| (format!("{outcome:?}"), json!(count))).collect::<serde_json::Map<_, _>>(),
        "cpu_ns": cost.cpu.as_nanos() as u64, "wall_ns": cost.wall.as_nanos() as u64, "peak_rss_bytes": memory()?.peak,
        "warnings": contents.driven.warnings,
    }))
}

/// Runs a part of this bench as a process of its own.
fn apart(words: &[&str]) -> Result<Value> {
    let own = std::env::current_exe().context("this program")?;
    let output = Command::new(own).arg("--part").args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{words:?} failed");
    serde_json::from_slice(&output.stdout).with_context(|| format!("{words:?}"))
}

fn middle(rows: &[Value], field: &str) -> f64 {
    median(rows.iter().filter_map(|row| row[field].as_f64()).collect())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["--part", part, of] = words[..] {
        let measured = match part {
            "join" => join(of.parse()?)?,
            "record" => record(Path::new(of))?,
            "report" => report(Path::new(of))?,
            other => bail!("no part {other}"),
        };
        println!("{measured}");
        return Ok(());
    }
    println!("generated traffic; see tracer-user/benches/traffic/");
    let mut rows = Vec::new();
    println!(
        "\n{:<30}{:>12}{:>12}{:>12}{:>14}{:>14}",
        "joining at once", "records", "exchanges", "ms", "records, MB", "peak RSS, MB"
    );
    let mut joins = vec![Vec::new(); NODES.len()];
    for _round in 0..ROUNDS {
        for (nodes, rows) in NODES.iter().zip(&mut joins) {
            rows.push(apart(&["join", &nodes.to_string()])?);
        }
    }
    for (nodes, measured) in NODES.iter().zip(joins) {
        let of = |field| middle(&measured, field);
        println!(
            "{:<30}{RECORDS:>12}{:>12}{:>12.0}{:>14.0}{:>14.0}",
            format!("{nodes} nodes"),
            of("exchanges"),
            of("cpu_ns") / 1e6,
            of("records_rss_bytes") / 1e6,
            of("peak_rss_bytes") / 1e6
        );
        rows.extend(measured);
    }
    let folder = tempfile::tempdir().context("a folder")?;
    let file: PathBuf = folder.path().join("million.ppr");
    let file = file.to_str().context("a path of text")?;
    println!("\n{:<30}{:>12}{:>12}{:>12}{:>14}", "a million flows", "records", "s of CPU", "file, MB", "peak RSS, MB");
    for part in ["record", "report"] {
        let measured = apart(&[part, file])?;
        println!(
            "{part:<30}{:>12}{:>12.1}{:>12.0}{:>14.0}",
            measured["events"],
            measured["cpu_ns"].as_f64().unwrap_or(f64::NAN) / 1e9,
            std::fs::metadata(file)?.len() as f64 / 1e6,
            measured["peak_rss_bytes"].as_f64().unwrap_or(f64::NAN) / 1e6
        );
        if let Some(outcomes) = measured.get("outcomes") {
            println!("  {} exchanges: {outcomes}", measured["exchanges"]);
        }
        measured["warnings"].as_array().into_iter().flatten().for_each(|warning| println!("  told: {warning}"));
        rows.push(measured);
    }
    let data = json!({ "input": "generated", "kernel": kernel()?, "machine": machine()?, "rows": rows });
    println!("\nmedian of {ROUNDS} rounds");
    println!("{data}");
    Ok(())
}
