//! The real ring buffer of this kernel, too small for what comes: what is lost is counted.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket},
    unistd::geteuid,
};
use serde_json::{Value, json};
use tracer_user::{
    probe::{Probe, RING_SIZE, Setup},
    session::Flow,
};

use wire::{A, B, Wire};

#[path = "../wire/mod.rs"]
mod wire;

const NAMESPACES: [&str; 2] = ["podpath-ring-a", "podpath-ring-b"];
/// Echo requests; each is answered before the call that sends it returns.
const PACKETS: u64 = 200_000;

/// How the ring is emptied meanwhile.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    ring: u32,
    /// None: not before the end.
    every: Option<Duration>,
}

const CASES: [Case; 4] = [
    Case { name: "4 MiB, drained each ms", ring: RING_SIZE, every: Some(Duration::from_millis(1)) },
    Case { name: "4 MiB, drained each 10 ms", ring: RING_SIZE, every: Some(Duration::from_millis(10)) },
    Case { name: "4 KiB, drained each 10 ms", ring: 4096, every: Some(Duration::from_millis(10)) },
    Case { name: "4 MiB, the drain stands still", ring: RING_SIZE, every: None },
];

fn flood(to: Ipv4Addr) -> Result<()> {
    setns(File::open(format!("/run/netns/{}", NAMESPACES[0]))?, CloneFlags::CLONE_NEWNET)?;
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp)?;
    let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let mut echo = [0_u8; 64];
    for number in 0..PACKETS {
        (echo[0], echo[2], echo[3]) = (8, 0, 0);
        echo[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
        echo[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        echo[8..16].copy_from_slice(&number.to_be_bytes());
        let sum: u32 = echo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        echo[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        sendto(socket.as_raw_fd(), &echo, &address, MsgFlags::empty())?;
    }
    Ok(())
}

/// Received, and told to be lost.
fn measure(case: Case) -> Result<(u64, u64, Duration)> {
    let flow = Flow { a: IpAddr::V4(A), b: Some(IpAddr::V4(B)), protocol: 1, a_port: None, b_port: None, one_of: 1 };
    let inode = |name: &&str| anyhow::Ok(u32::try_from(std::fs::metadata(format!("/run/netns/{name}"))?.ino())?);
    let scope = NAMESPACES.iter().map(inode).collect::<Result<Vec<_>>>()?;
    let mut probe = Probe::start(&Setup { flows: &[flow], scope: &scope, ring_size: case.ring })?;
    let begin = std::time::Instant::now();
    let flood = thread::spawn(|| flood(B));
    let mut received = 0;
    while !flood.is_finished() {
        match case.every {
            Some(every) => {
                received += probe.drain()?.len() as u64;
                thread::sleep(every);
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    let took = begin.elapsed();
    flood.join().expect("the flood does not panic")?;
    probe.detach()?;
    received += probe.drain()?.len() as u64;
    let counters = probe.counters()?;
    ensure!(counters.recorded == received, "{} taken out of the ring, {received} records", counters.recorded);
    Ok((received, counters.lost(), took))
}

/// Floods each ring, and compares.
///
/// # Errors
/// The namespaces cannot be made, or what was taken out of the ring is not what the kernel wrote into it.
pub(crate) fn run() -> Result<Value> {
    if !geteuid().is_root() {
        println!("\nthe real ring buffer: not measured, it needs root");
        return Ok(Value::Null);
    }
    let _wire = Wire::new(NAMESPACES, "").context("the real ring buffer needs root, iproute2 and ping")?;
    println!(
        "\nthe real ring buffer: {PACKETS} echo requests as fast as they go, each answered; expected is what an exchange has in the first case"
    );
    println!(
        "{:<32}{:>12}{:>12}{:>12}{:>12}{:>14}",
        "ring", "expected", "received", "told lost", "unaccounted", "records/s"
    );
    let mut expected = None;
    let mut all = Vec::new();
    for case in CASES {
        let (received, lost, took) = measure(case)?;
        // By the first case: how many records an exchange has on this kernel.
        let expected = *expected.get_or_insert((received + lost).div_ceil(PACKETS) * PACKETS);
        let unaccounted = expected as i64 - (received + lost) as i64;
        let rate = (received + lost) as f64 / took.as_secs_f64();
        println!("{:<32}{expected:>12}{received:>12}{lost:>12}{unaccounted:>12}{rate:>14.0}", case.name);
        all.push(json!({
            "case": case.name, "expected": expected, "received": received, "lost": lost, "took_ns": took.as_nanos() as u64,
        }));
    }
    Ok(json!(all))
}
