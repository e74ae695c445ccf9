//! The backend of a real node: kernel programs, netlink, injector.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    os::fd::AsFd,
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
    unistd::geteuid,
};

use super::{About, Backend, Counters, Failure, InjectorJob, Ping, Request};
use crate::{
    doctor::{self, Check},
    event::{CtDirection, Engine, Hook, L4, Record, Sighting, Translation},
    inject,
    node::{self, Node, facts},
    path,
    probe::{self, Probe, RING_SIZE, Setup},
};

/// New pods are looked for this often while a trace runs. Looking enters every pod's namespace, which on a large node takes
/// so long that it would be felt in what is measured; an ordinary trace is over before.
const LOOK_FOR_PODS_EVERY: Duration = Duration::from_secs(5);

/// So many records are kept for the questions to routes and conntrack at the end, some 280 bytes each. What comes later raises a new question
/// only where packets go elsewhere; that is told.
const KEPT_RECORDS: usize = 100_000;

/// This machine, or the namespace of the thread that calls: the node that a session traces.
#[derive(Default)]
pub struct LiveNode {
    node: Option<Node>,
    /// As they were when the session was armed.
    rules: node::RuleCounters,
    traces: node::RuleTraces,
    probe: Option<Probe>,
    records: Vec<Record>,
    unasked: Unasked,
    looked: Option<Instant>,
    notes: Notes,
    stamps: Option<inject::Stamps>,
    /// How the probes are routed in their namespace.
    sent: Option<facts::RouteQuestion>,
    /// For one of them there was no way out.
    without_way: Arc<AtomicBool>,
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
        match node.refresh() {
            Ok(new) => {
                self.notes.of_node(node.notes());
                new.into_iter().try_for_each(|inode| self.notes.of_new_pod(probe.add_namespace(inode)))
            }
            // No reason to end a trace: the namespaces known so far stay in scope.
            Err(error) => {
                self.notes.add(format!("could not look for new pods: {error}"));
                Ok(())
            }
        }
    }
}

/// What could not be read on the node, each text once: a survey a second finds the same again.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: String) {
        if !self.0.contains(&note) {
            self.0.push(note);
        }
    }

    /// Of what the node's reader could not read. A namespace out of scope by now, though a record is from it, has vanished: that is how
    /// pods end. If it could not be read any more, the survey that left it out has a note of that.
    fn of_node<'e>(&mut self, errors: impl IntoIterator<Item = &'e node::Error>) {
        let unread = errors.into_iter().filter(|error| !matches!(error, node::Error::OutOfScope { .. }));
        unread.for_each(|error| self.add(error.to_string()));
    }

    /// A kernel without kprobes, or a module that nothing uses, is `doctor`'s to tell.
    fn of_kprobes(&mut self, probe: &Probe) {
        for lack in probe.without().iter().filter(|lack| matches!(lack.why, probe::Why::Refused(_))) {
            self.add(format!("kprobe {} could not be attached: {}; {}", lack.hook.name, lack.why, lack.hook.cost));
        }
    }

    /// A pod more than the kernel's table can hold is no reason to end the trace of the others.
    fn of_new_pod(&mut self, added: Result<(), probe::Error>) -> Result<(), Failure> {
        match added {
            Err(error @ probe::Error::TooManyNamespaces) => {
                self.add(format!("not all pods that started during the trace could be recorded in: {error}"));
                Ok(())
            }
            added => added.map_err(kernel),
        }
    }
}

/// Refuses to send from another address than the sender's own kernel would.
fn other_source(node: &Node, ping: &Ping) -> Result<(), Failure> {
    let Some(source) = node.source_towards(ping.src, ping.dst).filter(|_| ping.any_source) else { return Ok(()) };
    if source == ping.src {
        return Ok(());
    }
    let cause = format!("what it sends to {} leaves with {source}", ping.dst);
    Err(Failure { send_from: Some(source), ..Failure::new(ping.src.to_string(), cause, "trace from that address") })
}

/// What came after the last record that was kept, and goes where none of those went.
#[derive(Default)]
struct Unasked {
    /// From where to where the kept ones went, and by which link; known once it is needed.
    asked: HashSet<(facts::LinkRef, IpAddr, IpAddr)>,
    records: u64,
}

impl Unasked {
    fn add(&mut self, kept: &[Record], rest: &[Record]) {
        // What is to leave by a link was routed there.
        let leads = |record: &Record| match record {
            Record::Sighting(Sighting { hook: Hook::Queue, netns, ifindex, packet, .. }) => {
                Some((facts::LinkRef { netns: *netns, ifindex: *ifindex }, packet.src, packet.dst))
            }
            _ => None,
        };
        if self.asked.is_empty() && !rest.is_empty() {
            self.asked = kept.iter().filter_map(leads).collect();
        }
        let new = rest.iter().filter_map(leads).filter(|lead| !self.asked.contains(lead));
        self.records += new.count() as u64;
    }

    /// What a reader must know; None: nothing.
    fn sentence(&self) -> Option<String> {
        let records = self.records;
        (records > 0).then(|| {
            format!(
                "routes and conntrack entries were asked for by the first {KEPT_RECORDS} records: {records} later ones went other ways, which are \
                 shown without"
            )
        })
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
            capabilities: probe::hooks::capabilities(),
            realtime_offset_ns: realtime_offset_ns(),
        })
    }

    fn checks(&mut self) -> Vec<Check> {
        doctor::all()
    }

    fn arm(&mut self, request: &Request) -> Result<(), Failure> {
        // As `podpath install --no-inject` sets it in the agents' pods, where nobody can unset it who may only exec.
        if request.ping.is_some() && std::env::var_os("PODPATH_NO_INJECT").is_some_and(|value| !value.is_empty()) {
            let cause = "the agent was installed with --no-inject and only watches";
            return Err(Failure::new(
                "probes",
                cause,
                "trace with --passive, or have it installed without --no-inject",
            ));
        }
        self.stamps = request.ping.as_ref().map(|_| inject::Stamps::keep());
        let setup = Setup { flows: &request.flows, scope: &[], ring_size: ring_size() };
        let addresses: Vec<IpAddr> = request.flows.iter().flat_map(|flow| [Some(flow.a), flow.b]).flatten().collect();
        // Loading waits for the verifier, so the node and its rules are read meanwhile.
        let (probe, node) = thread::scope(|scope| {
            let probe = scope.spawn(|| Probe::load(&setup));
            let node = Node::survey().map(|node| {
                let rules = node.rule_counters(&addresses);
                (node, rules)
            });
            (probe.join().unwrap_or_else(|payload| panic::resume_unwind(payload)), node)
        });
        let (node, rules) = node.map_err(|error| {
            Failure::new("this node's namespaces", error.to_string(), "`podpath doctor` says what this node lacks")
        })?;
        if let Some(ping) = &request.ping {
            other_source(&node, ping)?;
        }
        let mut probe = probe.map_err(kernel)?;
        node.scope().into_iter().try_for_each(|inode| probe.add_namespace(inode)).map_err(kernel)?;
        if request.sparing { probe.attach_sparing() } else { probe.attach_all() }.map_err(kernel)?;
        self.notes.of_kprobes(&probe);
        self.probe = Some(probe);
        self.notes.of_node(node.notes());
        self.notes.of_node(rules.notes());
        if request.trace_rules {
            self.traces = node.trace_rules(&rules, &request.flows);
            self.traces.notes().iter().for_each(|note| self.notes.add(note.clone()));
        }
        self.rules = rules;
        self.node = Some(node);
        self.looked = Some(Instant::now());
        Ok(())
    }

    fn known(&mut self) -> facts::NodeFacts {
        let namespaces = self.node.as_ref().map(|node| node.namespaces().to_vec()).unwrap_or_default();
        facts::NodeFacts { namespaces, notes: self.notes.0.clone(), ..facts::NodeFacts::default() }
    }

    fn drain(&mut self, into: &mut Vec<Record>) -> Result<(), Failure> {
        self.look_for_pods()?;
        self.traces.collect();
        let before = into.len();
        self.probe()?.drain_into(into).map_err(kernel)?;
        let new = &mut into[before..];
        name_chains(&self.rules, new);
        let room = KEPT_RECORDS.saturating_sub(self.records.len());
        let (kept, rest) = new.split_at(room.min(new.len()));
        self.records.extend_from_slice(kept);
        self.unasked.add(&self.records, rest);
        Ok(())
    }

    fn fire(&mut self, ping: &Ping) -> Result<InjectorJob, Failure> {
        let holder = self.node()?.holder_of(ping.home.unwrap_or(ping.src)).ok_or_else(|| {
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
        let routed =
            facts::RouteQuestion { netns: holder.netns, src: ping.src, dst: ping.dst, in_ifindex: None, mark: 0 };
        self.sent = Some(routed);
        let (ping, without_way) = (ping.clone(), self.without_way.clone());
        Ok(Box::new(move |sender| {
            let ended = || sender.is_ended();
            // When the session is over nobody wants the rest; `ended` then stops the injector.
            let report = |probe: path::Probe| {
                if probe.unsent.is_some_and(|why| why != path::Unsent::Filtered) {
                    without_way.store(true, Ordering::Relaxed);
                }
                let _ended = sender.send(probe);
            };
            inject::run(&ping, netns.as_fd(), ended, report)
                .map_err(|error| Failure::new("injector", error.to_string(), ""))
        }))
    }

    fn detach(&mut self) -> Result<u64, Failure> {
        // Before: detaching takes its time, and what passes meanwhile may be recorded or not.
        let until_ns = clock_ns(ClockId::CLOCK_MONOTONIC).and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0);
        self.probe()?.detach().map_err(kernel)?;
        Ok(until_ns)
    }

    fn counters(&mut self) -> Result<Counters, Failure> {
        self.probe()?.counters().map_err(kernel)
    }

    fn finish(&mut self) -> Result<(facts::NodeFacts, Counters), Failure> {
        let traces = std::mem::take(&mut self.traces);
        let node = self.node()?;
        let mut questions = path::route_questions(&self.records, node.namespaces());
        // If no device saw the probes: where were they to go?
        questions.extend(self.sent.clone().filter(|sent| !questions.contains(sent)));
        let (mut facts, unread) = node.facts(&questions, &conntrack_flows(&self.records));
        let met = path::links_met(&self.records, node.namespaces());
        // Rules of the probes' own namespace may have let none out.
        let sent = self.sent.iter().map(|sent| sent.netns);
        let namespaces: Vec<u32> =
            met.iter().map(|(netns, _)| *netns).chain(sent).collect::<BTreeSet<_>>().into_iter().collect();
        let rules = node.rules_met(&self.rules, traces, &namespaces);
        let refused = self.sent.as_ref().filter(|_| self.without_way.load(Ordering::Relaxed));
        let turned = refused.map(|sent| node.answer(&path::turned_questions(sent, &rules.hits)));
        let no_settings = node.read_settings(&mut facts.namespaces, &met);
        self.notes.of_node(&no_settings);
        match turned.transpose() {
            Ok(answers) => facts.routes.extend(answers.into_iter().flatten()),
            Err(error) => self.notes.of_node(&[error]),
        }
        (facts.rules, facts.rules_complete) = (rules.hits, rules.complete);
        facts.conntrack_drops = rules.conntrack;
        self.notes.of_node(&unread);
        // Some may have been attached only during the session.
        self.notes.of_kprobes(self.probe.as_ref().ok_or_else(not_armed)?);
        rules.notes.into_iter().for_each(|note| self.notes.add(note));
        if let Some(sentence) = self.unasked.sentence() {
            self.notes.add(sentence);
        }
        facts.notes = std::mem::take(&mut self.notes.0);
        Ok((facts, self.counters()?))
    }
}

/// [`RING_SIZE`], or what a test of losses asks for.
fn ring_size() -> u32 {
    std::env::var("PODPATH_RING_BYTES").ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(RING_SIZE)
}

/// CLOCK_REALTIME - CLOCK_MONOTONIC, ns; 0 if a clock cannot be read.
fn realtime_offset_ns() -> i64 {
    match (clock_ns(ClockId::CLOCK_REALTIME), clock_ns(ClockId::CLOCK_MONOTONIC)) {
        (Some(real), Some(monotonic)) => real - monotonic,
        _ => 0,
    }
}

/// None if the clock cannot be read.
fn clock_ns(clock: ClockId) -> Option<i64> {
    clock_gettime(clock).ok().map(|t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// Names the nftables tables and chains among what was evaluated last on freed packets.
fn name_chains(rules: &node::RuleCounters, records: &mut [Record]) {
    for record in records {
        let Record::Sighting(sighting) = record else { continue };
        let Some(seen) = sighting.free.as_mut().and_then(|free| free.netfilter.as_mut()) else { continue };
        let Engine::Nftables { table, chain } = seen.engine else { continue };
        if let Some((table, chain)) = rules.names(sighting.netns, table, chain) {
            (seen.table, seen.chain) = (Some(table), chain);
        }
    }
}

/// The flows among the records that have a conntrack entry, each once, as their originator sent them.
fn conntrack_flows(records: &[Record]) -> Vec<facts::Flow> {
    let mut seen = HashSet::new();
    let flows = records.iter().filter_map(|record| match record {
        Record::Translation(translation) => Some(translated(translation)),
        Record::Sighting(sighting) => tracked(sighting),
        Record::Rewrite(_) => None,
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
        insta::assert_snapshot!(kernel(probe::Error::NotPermitted { what: "load eBPF programs" }), @"kernel programs: the kernel refuses to load eBPF programs: operation not permitted; run as root (`podpath doctor` says what is missing)");
        assert_eq!(kernel(probe::Error::NoObject).way_out, "build it with `cargo xtask build`");
    }

    #[test]
    fn what_could_not_be_read_is_noted_once_and_what_vanished_never() {
        let refused = || node::Error::Enter { netns: 7, source: std::io::Error::from_raw_os_error(1) };
        let mut notes = Notes::default();
        notes.of_node(&[refused(), node::Error::OutOfScope { netns: 8 }]);
        notes.of_node(&[refused()]);
        for _ in 0..2 {
            notes.of_new_pod(Err(probe::Error::TooManyNamespaces)).expect("the trace goes on");
        }
        notes.of_new_pod(Ok(())).expect("no failure");
        notes.of_new_pod(Err(probe::Error::NoObject)).expect_err("anything else ends the trace");
        insta::assert_snapshot!(notes.0.join("\n"), @r"
        cannot enter network namespace 7: Operation not permitted (os error 1); entering needs CAP_SYS_ADMIN, run as root
        not all pods that started during the trace could be recorded in: too many network namespaces on this node for one session; please report it with the output of `ip netns | wc -l`
        ");
    }
}
