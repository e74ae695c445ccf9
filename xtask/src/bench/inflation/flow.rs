//! What is measured: a flow of pings and one of TCP, flat out, between two pods of a lab; and how many devices a ping crosses.

use std::{
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

/// What ping(8) said of some pings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Burst {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// From the first to the last, ms.
    pub(super) took_ms: f64,
    /// Round trips, ms.
    pub(super) min_ms: f64,
    pub(super) avg_ms: f64,
    pub(super) max_ms: f64,
}

impl Burst {
    fn read(text: &str) -> Option<Burst> {
        let counts = text.lines().find(|line| line.contains(" packets transmitted"))?;
        let mut parts = counts.split(", ");
        let number = |part: &str| part.split(' ').next()?.parse().ok();
        let sent = number(parts.next()?)?;
        let received = number(parts.find(|part| part.ends_with(" received"))?)?;
        let took_ms = parts.find_map(|part| part.strip_prefix("time ")?.strip_suffix("ms")?.parse().ok())?;
        let times = text.lines().find(|line| line.starts_with("rtt "))?;
        let mut times = times.split(" = ").nth(1)?.split(['/', ' ']).map(|number| number.parse().ok());
        let (min_ms, avg_ms, max_ms) = (times.next()??, times.next()??, times.next()??);
        Some(Burst { sent, received, took_ms, min_ms, avg_ms, max_ms })
    }
}

/// Sends pings as fast as they are answered; or with a pause between.
///
/// # Errors
/// Nothing came back.
pub(super) fn ping(pair: &Pair, count: u32, flat_out: bool) -> Result<Burst> {
    let mut command = Command::new("ping");
    command.args(["-n", "-q", "-c", &count.to_string()]);
    command.args(if flat_out { &["-f"][..] } else { &["-i", PAUSE] }).arg(pair.destination.address.to_string());
    let text = inside(&pair.source.namespace, || proc::quiet_within(&mut command, LIMIT))?;
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
        let whole = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n\n--- 10.0.0.2 ping statistics ---\n\
                     500 packets transmitted, 499 received, 0.2% packet loss, time 61ms\n\
                     rtt min/avg/max/mdev = 0.029/0.112/2.052/0.009 ms, pipe 2, ipg/ewma 0.122/0.040 ms\n";
        let expected = Burst { sent: 500, received: 499, took_ms: 61.0, min_ms: 0.029, avg_ms: 0.112, max_ms: 2.052 };
        assert_eq!(Burst::read(whole), Some(expected));
        let with_errors = whole.replace("499 received,", "499 received, +1 duplicates,");
        assert_eq!(Burst::read(&with_errors).unwrap().took_ms, 61.0);
        let nothing = "3 packets transmitted, 0 received, 100% packet loss, time 2040ms\n\n";
        assert_eq!(Burst::read(nothing), None);
    }

    #[test]
    fn packets_of_all_links_are_counted() {
        let text = r#"[{"ifname":"lo","stats64":{"rx":{"packets":1},"tx":{"packets":2}}},
                       {"ifname":"eth0","stats64":{"rx":{"packets":30},"tx":{"packets":400}}}]"#;
        assert_eq!(counted(text), Some(433));
        assert_eq!(counted(r#"[{"ifname":"lo"}]"#), None);
    }
}
