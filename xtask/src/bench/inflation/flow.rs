//! What is measured: a flow of pings and one of TCP, flat out, between two pods of a lab; and how many devices a ping crosses.

use std::{
    io::{Read, Seek},
    net::Ipv4Addr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::session::Guard;
use crate::{
    lab::{LabInfo, LabPod, inside},
    proc,
};

/// Of iperf3.
pub(super) const PORT: u16 = 5201;
/// Between two pings that are not flat out, s.
const PAUSE: &str = "0.05";
const LIMIT: Duration = Duration::from_secs(120);

/// Two pods: who asks, and who is asked.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) source: LabPod,
    pub(super) destination: LabPod,
}

impl Pair {
    pub(super) fn new(lab: &LabInfo, source: &str, destination: &str) -> Result<Pair> {
        Ok(Pair { source: lab.pod(source)?.clone(), destination: lab.pod(destination)?.clone() })
    }
}

/// Some pings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Burst {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// From the first to the last, ms.
    pub(super) took_ms: f64,
    /// Their average round trip, as ping says it, ms.
    pub(super) avg_ms: f64,
    /// The average of the middle half of the round trips, ms: without those in which the machine did something else, and yet finer
    /// than the microseconds that ping counts in.
    pub(super) mid_ms: f64,
    /// The least, the quarters and the most, ms.
    pub(super) quarters_ms: [f64; 5],
}

impl Burst {
    /// Of what ping(8) said.
    fn read(text: &str) -> Option<Burst> {
        let mut times: Vec<f64> = text.lines().filter_map(time).collect();
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1)?;
        let middle = &times[times.len() / 4..times.len() - times.len() / 4];
        let counts = text.lines().find(|line| line.contains(" packets transmitted"))?;
        let mut parts = counts.split(", ");
        let number = |part: &str| part.split(' ').next()?.parse().ok();
        let sent = number(parts.next()?)?;
        let received = number(parts.find(|part| part.ends_with(" received"))?)?;
        let took_ms = parts.find_map(|part| part.strip_prefix("time ")?.strip_suffix("ms")?.parse().ok())?;
        let summary = text.lines().find_map(|line| line.strip_prefix("rtt ")?.split(" = ").nth(1))?;
        let avg_ms = summary.split('/').nth(1)?.parse().ok()?;
        Some(Burst {
            sent,
            received,
            took_ms,
            avg_ms,
            mid_ms: middle.iter().sum::<f64>() / middle.len() as f64,
            quarters_ms: [0, 1, 2, 3, 4].map(|quarter| times[last * quarter / 4]),
        })
    }
}

/// `64 bytes from 10.0.0.2: icmp_seq=1 ttl=62 time=0.112 ms`, ms.
fn time(line: &str) -> Option<f64> {
    line.split_once(" time=")?.1.strip_suffix(" ms")?.parse().ok()
}

/// Sends pings as fast as they are answered; or with a pause between.
///
/// # Errors
/// Nothing came back.
pub(super) fn ping(pair: &Pair, count: u32, flat_out: bool) -> Result<Burst> {
    // No pipe, whose reader would wake up for each.
    let mut output = tempfile::tempfile().context("create a file for what ping says")?;
    let mut command = Command::new("ping");
    command.args(["-n", "-c", &count.to_string()]).args(if flat_out { &["-A"][..] } else { &["-i", PAUSE] });
    command.arg(pair.destination.address.to_string()).stdout(output.try_clone().context("share a file")?);
    let status = inside(&pair.source.namespace, || proc::shown(&mut command, LIMIT))?;
    let mut text = String::new();
    output.rewind().and_then(|()| output.read_to_string(&mut text)).context("read what ping said")?;
    ensure!(status.success(), "{} {}:\n{text}", proc::describe(&command), proc::ended(status));
    Burst::read(&text).with_context(|| format!("ping said something else than ever:\n{text}"))
}

/// What iperf3 said of one TCP connection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Throughput {
    /// What arrived, Gbit/s.
    pub(super) gbit: f64,
    pub(super) retransmits: u64,
}

/// The server, until dropped.
///
/// # Errors
/// It cannot be started.
pub(super) fn serve(pair: &Pair) -> Result<Guard> {
    let mut server = Command::new("iperf3");
    server.args(["-s", "-p", &PORT.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    inside(&pair.destination.namespace, || proc::spawn(&mut server).map(Guard))
}

/// Sends over one TCP connection as much as goes.
///
/// # Errors
/// The server is not there.
pub(super) fn tcp(pair: &Pair, seconds: u32) -> Result<Throughput> {
    let mut client = Command::new("iperf3");
    client.args(["-J", "-p", &PORT.to_string(), "-t", &seconds.to_string()]);
    client.args(["-c", &pair.destination.address.to_string()]);
    let output = inside(&pair.source.namespace, || proc::collected(&mut client, LIMIT))?;
    let said: Value = serde_json::from_str(&output.stdout).with_context(|| format!("iperf3: {}", output.stderr))?;
    ensure!(output.status.success(), "iperf3: {}", said["error"]);
    let read = || {
        let gbit = said["end"]["sum_received"]["bits_per_second"].as_f64()? / 1e9;
        Some(Throughput { gbit, retransmits: said["end"]["sum_sent"]["retransmits"].as_u64()? })
    };
    read().with_context(|| format!("iperf3 said something else than ever:\n{}", output.stdout))
}

/// How many packets the devices of all nodes and pods have received and sent.
///
/// # Errors
/// `ip` fails.
pub(super) fn crossings(lab: &LabInfo) -> Result<u64> {
    let nodes = lab.nodes.iter().map(|node| &node.namespace);
    let mut sum = 0;
    for namespace in nodes.chain(lab.pods.iter().map(|pod| &pod.namespace)) {
        let text = proc::quiet(Command::new("ip").args(["-n", namespace, "-s", "-j", "link"]))?;
        sum += counted(&text).with_context(|| format!("`ip -s -j link` in {namespace} said:\n{text}"))?;
    }
    Ok(sum)
}

fn counted(links: &str) -> Option<u64> {
    let links: Value = serde_json::from_str(links).ok()?;
    let of = |link: &Value, way: &str| link["stats64"][way]["packets"].as_u64();
    links.as_array()?.iter().map(|link| Some(of(link, "rx")? + of(link, "tx")?)).sum()
}

/// The pods' addresses.
pub(super) fn addresses(pair: &Pair) -> (Ipv4Addr, Ipv4Addr) {
    (pair.source.address, pair.destination.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ping_says_is_read() {
        let line = |ms: &str| format!("64 bytes from 10.0.0.2: icmp_seq=1 ttl=62 time={ms} ms\n");
        let lines: String = ["1.03", "0.109", "12.0", "0.110", "0.112", "0.113", "0.020", "0.030"].map(line).concat();
        let whole = format!(
            "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n{lines}\n--- 10.0.0.2 ping statistics ---\n\
             9 packets transmitted, 8 received, +1 duplicates, 11.1% packet loss, time 61ms\n\
             rtt min/avg/max/mdev = 0.020/1.912/12.000/0.009 ms, pipe 2, ipg/ewma 0.122/0.040 ms\n"
        );
        let burst = Burst::read(&whole).unwrap();
        assert_eq!((burst.sent, burst.received, burst.took_ms, burst.avg_ms), (9, 8, 61.0, 1.912));
        assert!((burst.mid_ms - 0.111).abs() < 1e-9, "of 0.109 to 0.113: {burst:?}");
        assert_eq!(burst.quarters_ms, [0.02, 0.03, 0.11, 0.113, 12.0]);
        let nothing = "3 packets transmitted, 0 received, 100% packet loss, time 2040ms\n\n";
        assert_eq!(Burst::read(nothing), None);
        assert!(Burst::read(&whole.replace("rtt ", "round-trip ")).is_none());
    }

    #[test]
    fn packets_of_all_links_are_counted() {
        let text = r#"[{"ifname":"lo","stats64":{"rx":{"packets":1},"tx":{"packets":2}}},
                       {"ifname":"eth0","stats64":{"rx":{"packets":30},"tx":{"packets":400}}}]"#;
        assert_eq!(counted(text), Some(433));
        assert_eq!(counted(r#"[{"ifname":"lo"}]"#), None);
    }
}
