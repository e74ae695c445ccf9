//! The backend of a real node: kernel programs, netlink, injector.

use std::{
    collections::HashSet,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
    unistd::geteuid,
};

use super::{About, Backend, Counters, Failure, InjectorJob, Ping, Request};
use crate::{
    event::{CtDirection, Hook, L4, Record, Sighting, Translation},
    inject,
    node::{Node, facts},
    path,
    probe::{self, Probe, RING_SIZE, Setup},
};

/// New pods are looked for this often while a trace runs.
const LOOK_FOR_PODS_EVERY: Duration = Duration::from_secs(1);

/// So many records are kept for the questions to the routes at the end. What comes later raises no new question in practice.
const KEPT_RECORDS: usize = 100_000;

/// This machine, or the namespace of the thread that calls: the node that a session traces.
#[derive(Default)]
pub struct LiveNode {
    node: Option<Node>,
    probe: Option<Probe>,
    records: Vec<Record>,
    looked: Option<Instant>,
}

impl LiveNode {
    /// Nothing is read or loaded before a session asks.
    pub fn new() -> Self {
        Self::default()
    }

    fn node(&self) -> Result<&Node, Failure> {
        self.node.as_ref().ok_or_else(not_armed)
    }

    fn probe(&mut self) -> Result<&mut Probe, Failure> {
        self.probe.as_mut().ok_or_else(not_armed)
    }

    /// Takes pods that started meanwhile into scope.
    fn look_for_pods(&mut self) -> Result<(), Failure> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_FOR_PODS_EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let (Some(node), Some(probe)) = (&mut self.node, &mut self.probe) else { return Ok(()) };
        // A survey that fails now is no reason to end a trace: the namespaces known so far stay in scope.
        for inode in node.refresh().unwrap_or_default() {
            probe.add_namespace(inode).map_err(kernel)?;
        }
        Ok(())
    }
}

fn not_armed() -> Failure {
    Failure::new("session", "asked to trace before it was armed", "use podpath and podpath-agent of the same release")
}

/// A failure of the kernel side.
fn kernel(error: probe::Error) -> Failure {
    use probe::Error as E;

    let text = error.to_string();
    let (cause, way_out) = match error {
        E::NoObject | E::NoBtf { .. } | E::NoField { .. } | E::NotPermitted { .. } | E::TooManyFlows { .. } => {
            text.rsplit_once("; ").unwrap_or((&text, ""))
        }
        // The kernel's own words, and the verifier's have semicolons of their own.
        _ => (text.as_str(), "`podpath doctor` says what this node lacks"),
    };
    Failure::new("kernel programs", cause, way_out)
}

impl Backend for LiveNode {
    fn hello(&mut self) -> Result<About, Failure> {
        if !geteuid().is_root() {
            let cause = format!("uid {} may not load them, only root may", geteuid());
            return Err(Failure::new("kernel programs", cause, "run podpath by sudo, or its command on that node"));
        }
        let uts = uname().map_err(|errno| Failure::new("uname", errno.to_string(), ""))?;
        Ok(About {
            node: uts.nodename().to_string_lossy().into_owned(),
            kernel: uts.release().to_string_lossy().into_owned(),
            capabilities: probe::TRACEPOINTS.iter().map(|name| format!("tp_btf/{name}")).collect(),
            realtime_offset_ns: realtime_offset_ns(),
        })
    }

    fn arm(&mut self, request: &Request) -> Result<(), Failure> {
        let node = Node::survey().map_err(|error| {
            Failure::new("this node's namespaces", error.to_string(), "`podpath doctor` says what this node lacks")
        })?;
        let setup = Setup { flows: &request.flows, scope: &node.scope(), ring_size: RING_SIZE };
        self.probe = Some(Probe::start(&setup).map_err(kernel)?);
        self.node = Some(node);
        self.looked = Some(Instant::now());
        Ok(())
    }

    fn drain(&mut self) -> Result<Vec<Record>, Failure> {
        self.look_for_pods()?;
        let records = self.probe()?.drain().map_err(kernel)?;
        let room = KEPT_RECORDS.saturating_sub(self.records.len());
        self.records.extend(records.iter().take(room).cloned());
        Ok(records)
    }

    fn fire(&mut self, ping: &Ping) -> Result<InjectorJob, Failure> {
        let holder = self.node()?.holder_of(ping.src).ok_or_else(|| {
            Failure::new(
                ping.src.to_string(),
                "no namespace of this node has this address: the pod is gone, or on another node",
                "look it up again with kubectl get pod -o wide",
            )
        })?;
        let netns = holder.fd.try_clone_to_owned().map_err(|error| {
            Failure::new(
                format!("network namespace of {}", ping.src),
                error.to_string(),
                "check the limit on open files",
            )
        })?;
        let ping = ping.clone();
        Ok(Box::new(move |sender| {
            let ended = || sender.is_ended();
            // When the session is over nobody wants the rest; `ended` then stops the injector.
            let report = |probe| {
                let _ended = sender.send(probe);
            };
            inject::run(&ping, netns.as_fd(), ended, report)
                .map_err(|error| Failure::new("injector", error.to_string(), ""))
        }))
    }

    fn detach(&mut self) -> Result<(), Failure> {
        self.probe()?.detach().map_err(kernel)
    }

    fn finish(&mut self) -> Result<(facts::NodeFacts, Counters), Failure> {
        let node = self.node()?;
        let questions = path::route_questions(&self.records, node.namespaces());
        let (facts, notes) = node.facts(&questions, &conntrack_flows(&self.records));
        for note in notes {
            tracing::warn!("{note}");
        }
        let counters = self.probe()?.counters().map_err(kernel)?;
        Ok((facts, counters))
    }
}

/// CLOCK_REALTIME - CLOCK_MONOTONIC, ns; 0 if a clock cannot be read.
fn realtime_offset_ns() -> i64 {
    let ns = |clock| clock_gettime(clock).map(|t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
    match (ns(ClockId::CLOCK_REALTIME), ns(ClockId::CLOCK_MONOTONIC)) {
        (Ok(real), Ok(monotonic)) => real - monotonic,
        _ => 0,
    }
}

/// The flows among the records that have a conntrack entry, each once, as their originator sent them.
fn conntrack_flows(records: &[Record]) -> Vec<facts::Flow> {
    let mut seen = HashSet::new();
    let flows = records.iter().filter_map(|record| match record {
        Record::Translation(translation) => Some(translated(translation)),
        Record::Sighting(sighting) => tracked(sighting),
    });
    flows.filter(|flow| seen.insert(flow.clone())).collect()
}

fn translated(translation: &Translation) -> facts::Flow {
    let Translation { netns, original, protocol, .. } = translation;
    let icmp = matches!(protocol, 1 | 58);
    facts::Flow {
        netns: *netns,
        protocol: *protocol,
        src: original.src,
        dst: original.dst,
        src_port: original.l4_src,
        dst_port: if icmp { 0 } else { original.l4_dst },
    }
}

fn tracked(sighting: &Sighting) -> Option<facts::Flow> {
    if sighting.hook != Hook::Queue || sighting.conntrack != Some(CtDirection::Original) || sighting.outer.is_some() {
        return None;
    }
    let (protocol, src_port, dst_port) = match sighting.packet.l4 {
        L4::Icmp { id, .. } => (if sighting.packet.src.is_ipv4() { 1 } else { 58 }, id, 0),
        L4::Tcp { src_port, dst_port, .. } => (6, src_port, dst_port),
        L4::Udp { src_port, dst_port, .. } => (17, src_port, dst_port),
        L4::Other { .. } => return None,
    };
    let (src, dst) = (sighting.packet.src, sighting.packet.dst);
    Some(facts::Flow { netns: sighting.netns, protocol, src, dst, src_port, dst_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_kernel_side_ends_in_its_own_way_out() {
        insta::assert_snapshot!(kernel(probe::Error::NoObject), @"kernel programs: this podpath-agent was built without its kernel programs; build it with `cargo xtask build`");
        insta::assert_snapshot!(kernel(probe::Error::NotPermitted { what: "load eBPF programs" }), @"kernel programs: the kernel refuses to load eBPF programs: operation not permitted; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (`podpath doctor` says what is missing)");
        assert_eq!(kernel(probe::Error::NoObject).way_out, "build it with `cargo xtask build`");
    }
}
