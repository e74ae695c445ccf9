//! What each kernel program costs per run, by the kernel's own run statistics: `cargo xtask bench hooks`.
//!
//! Echo requests are sent as fast as one thread can between two network namespaces of our own. Five cases, interleaved in
//! every round so that a noisy machine disturbs all alike: neither namespace in scope; in scope, but a flow between others
//! wanted (a miss); another flow of the same source wanted (a near miss); the flow wanted (a hit); and wanted behind DNAT (a hit that
//! conntrack translates). An empty program on
//! `net_dev_start_xmit` runs beside the others each time: what is printed is above it. The last line is the raw data.
#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket},
};
use serde_json::{Value, json};
use tracer_user::{
    probe::{Cost, EMPTY, Probe, RING_SIZE, Setup, hooks},
    session::Flow,
};

/// On B's loopback: what A sends to it is translated to B.
use wire::{A, B, Wire};

mod wire;

const SERVICE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const NAMESPACES: [&str; 2] = ["podpath-bench-a", "podpath-bench-b"];
const ROUNDS: usize = 3;
const PACKETS: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    OutOfScope,
    Miss,
    NearMiss,
    Hit,
    Translated,
}

const CASES: [(Case, &str); 5] = [
    (Case::OutOfScope, "not in scope"),
    (Case::Miss, "miss"),
    (Case::NearMiss, "near miss"),
    (Case::Hit, "hit"),
    (Case::Translated, "hit, NAT"),
];

fn inode(name: &str) -> Result<u32> {
    Ok(u32::try_from(std::fs::metadata(format!("/run/netns/{name}"))?.ino())?)
}

/// Sends echo requests from the namespace of A, one after the other; each is answered before the call returns.
fn flood(to: Ipv4Addr, packets: usize) -> Result<()> {
    let run = move || -> Result<()> {
        setns(File::open(format!("/run/netns/{}", NAMESPACES[0]))?, CloneFlags::CLONE_NEWNET)?;
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp)?;
        let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
        let mut echo = [0u8; 64];
        echo[0] = 8;
        echo[4..6].copy_from_slice(&0x1234u16.to_be_bytes());
        for seq in 0..packets {
            let sequence = (seq as u16).to_be_bytes();
            echo[6..8].copy_from_slice(&sequence);
            echo[8..16].copy_from_slice(&(seq as u64).to_be_bytes());
            let sum = checksum(&echo).to_be_bytes();
            echo[2..4].copy_from_slice(&sum);
            sendto(socket.as_raw_fd(), &echo, &address, MsgFlags::empty())?;
            echo[2..4].fill(0);
        }
        Ok(())
    };
    thread::spawn(run).join().expect("the flood does not panic")
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Runs one case with programs of its own and returns what they cost.
fn measure(case: Case) -> Result<(Vec<Cost>, u64)> {
    let elsewhere = |last| Ipv4Addr::new(192, 0, 2, last);
    let (to, a, b) = match case {
        Case::OutOfScope | Case::Hit => (B, A, B),
        Case::Miss => (B, elsewhere(1), elsewhere(2)),
        Case::NearMiss => (B, A, elsewhere(2)),
        Case::Translated => (SERVICE, A, SERVICE),
    };
    let flow = Flow { a: IpAddr::V4(a), b: Some(IpAddr::V4(b)), protocol: 1, a_port: None, b_port: None, one_of: 1 };
    let scope = match case {
        Case::OutOfScope => Vec::new(),
        _ => NAMESPACES.iter().map(|name| inode(name)).collect::<Result<_>>()?,
    };
    let mut probe = Probe::start(&Setup { flows: &[flow], scope: &scope, ring_size: RING_SIZE })?;
    probe.attach_empty()?;
    let done = AtomicBool::new(false);
    let (costs, lost) = thread::scope(|threads| -> Result<_> {
        let drain = threads.spawn(|| -> Result<_> {
            while !done.load(Ordering::Relaxed) {
                probe.discard();
                thread::sleep(Duration::from_millis(1));
            }
            Ok((probe.costs()?, probe.counters()?.lost()))
        });
        let flooded = flood(to, PACKETS);
        done.store(true, Ordering::Relaxed);
        let costs = drain.join().expect("the drain does not panic");
        flooded.and(costs)
    })?;
    Ok((costs, lost))
}

/// ns per run.
fn per_run(cost: &Cost) -> f64 {
    cost.time.as_nanos() as f64 / cost.runs.max(1) as f64
}

fn main() -> Result<()> {
    let [a, b] = NAMESPACES;
    let service = format!(
        "ip -n {a} route add {SERVICE} via {B}
         ip netns exec {b} iptables -t nat -A PREROUTING -d {SERVICE} -j DNAT --to-destination {B}"
    );
    let _wire = Wire::new(NAMESPACES, &service).context("the bench needs root, iproute2, iptables and ping")?;
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .context("switch on the kernel's run statistics (needs root)")?;
    let mut table: BTreeMap<(usize, Case), Vec<(f64, f64)>> = BTreeMap::new();
    let mut lost = 0;
    for _round in 0..ROUNDS {
        for (case, _) in CASES {
            let (costs, lost_here) = measure(case)?;
            lost += lost_here;
            let empty =
                costs.iter().find(|cost| cost.program == EMPTY).map(per_run).context("the empty program ran")?;
            for (place, hook) in hooks::tracepoints().enumerate() {
                let name = hook.name;
                let cost = costs.iter().find(|cost| cost.program == name).context("a program ran")?;
                ensure!(cost.runs as usize >= PACKETS / 2, "{name} ran only {} times", cost.runs);
                table.entry((place, case)).or_default().push((per_run(cost), empty));
            }
        }
    }
    print(&table);
    println!(
        "\n{ROUNDS} rounds of {PACKETS} pings per case; ns per run above an empty program (its own ns in brackets);"
    );
    println!("median of the rounds; {lost} records lost");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    println!("{}", json!({ "kernel": release.trim(), "packets": PACKETS, "lost": lost, "programs": raw(&table) }));
    Ok(())
}

/// ns per run, of the program and of the empty one beside it, in each round.
fn raw(table: &BTreeMap<(usize, Case), Vec<(f64, f64)>>) -> Value {
    let title = |case: &Case| CASES.iter().find(|(known, _)| known == case).map(|(_, title)| *title);
    let entry = |((place, case), rounds): (&(usize, Case), &Vec<(f64, f64)>)| {
        let name = hooks::tracepoints().nth(*place).map(|hook| hook.name);
        let rounds: Value = rounds.iter().map(|(ns, empty)| json!({ "ns": ns, "empty": empty })).collect();
        json!({ "program": name, "case": title(case), "rounds": rounds })
    };
    table.iter().map(entry).collect()
}

fn print(table: &BTreeMap<(usize, Case), Vec<(f64, f64)>>) {
    print!("{:<20}", "program");
    for (_, title) in CASES {
        print!("{title:>18}");
    }
    println!();
    for (place, hook) in hooks::tracepoints().enumerate() {
        print!("{:<20}", hook.name);
        for (case, _) in CASES {
            let mut rounds = table[&(place, case)].clone();
            rounds.sort_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1)));
            let (cost, empty) = rounds[rounds.len() / 2];
            print!("{:>12.0} ({empty:>3.0})", cost - empty);
        }
        println!();
    }
}
