//! Which netfilter rules did packets of a session meet?

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    error::Error,
    facts::{ConntrackDrops, Namespace, RuleHit},
    reader::Node,
    rules::{Depth, Snapshot, Traced, compare, trace::Trace},
};
use crate::session::Flow;

/// Beyond so many pods only those are read that have an address asked about: of a pod, rules are rare.
const MOST_PODS: usize = 64;

/// The counters of netfilter rules, by namespace, as they were at one time.
#[derive(Debug, Default)]
pub struct RuleCounters {
    before: BTreeMap<u32, Snapshot>,
    notes: Vec<Error>,
}

impl RuleCounters {
    /// The names of an nftables table and of its chain in namespace `netns`, by their handles; None: made since.
    pub fn names(&self, netns: u32, table: u64, chain: u64) -> Option<(String, Option<String>)> {
        self.before.get(&netns)?.names(table, chain)
    }

    /// What could not be read.
    pub fn notes(&self) -> &[Error] {
        &self.notes
    }
}

/// Running traces of rules, by namespace. When this is dropped, or the process ends in any way, the kernel takes the marking
/// tables away.
#[derive(Default)]
pub struct RuleTraces {
    running: BTreeMap<u32, Trace>,
    notes: Vec<String>,
}

impl RuleTraces {
    /// Takes in what was heard since the last call, so that the kernel's queue does not overflow. Never blocks.
    pub fn collect(&mut self) {
        self.running.values_mut().for_each(Trace::collect);
    }

    /// What could not be traced, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The rules that packets met.
#[derive(Debug, Default)]
pub struct RulesMet {
    /// Those whose counters rose, and those without counter that may have been met.
    pub hits: Vec<RuleHit>,
    /// Inodes of the namespaces of which `hits` lacks nothing.
    pub complete: Vec<u32>,
    /// What conntrack dropped.
    pub conntrack: Vec<ConntrackDrops>,
    /// What could not be read or not be told, a sentence each.
    pub notes: Vec<String>,
}

impl Node {
    /// Reads the counters of all netfilter rules: of this node's own namespace and, if they are not too many, of all pods';
    /// else of those that have one of `addresses`.
    pub fn rule_counters(&self, addresses: &[IpAddr]) -> RuleCounters {
        let mut counters = RuleCounters::default();
        let has = |namespace: &Namespace| {
            namespace.links.iter().flat_map(|link| &link.addresses).any(|net| addresses.contains(&net.addr()))
        };
        let few = self.namespaces().len() <= MOST_PODS;
        for (index, namespace) in self.namespaces().iter().enumerate() {
            if index != 0 && !few && !has(namespace) {
                continue;
            }
            match self.rules_of(namespace.inode, Depth::Counters) {
                Ok(snapshot) => {
                    counters.before.insert(namespace.inode, snapshot);
                }
                Err(error) => {
                    let refusal = error.is_refusal();
                    counters.notes.push(error);
                    // It would be the same of every pod.
                    if refusal {
                        break;
                    }
                }
            }
        }
        counters
    }

    /// Lets the kernel trace the rules that packets of `flows` meet, in the namespaces that had rules when `before` was read and
    /// are this node's own or have an address of the flows. What cannot be traced is a note, not an error.
    pub fn trace_rules(&self, before: &RuleCounters, flows: &[Flow]) -> RuleTraces {
        let mut traces = RuleTraces::default();
        let own = self.scope().first().copied();
        let addressed = |netns: u32| {
            let links = self.namespaces().iter().filter(|namespace| namespace.inode == netns).flat_map(|n| &n.links);
            let addresses = links.flat_map(|link| &link.addresses).map(ipnet::IpNet::addr);
            addresses.into_iter().any(|address| flows.iter().any(|flow| flow.a == address || flow.b == Some(address)))
        };
        for (netns, snapshot) in &before.before {
            let (nftables, iptables, translates) = snapshot.has();
            if Some(*netns) != own && !addressed(*netns) || !nftables && !iptables {
                continue;
            }
            if iptables {
                // `net/ipv4/netfilter/ip_tables.c`, trace_packet.
                traces.notes.push(format!(
                    "rules in network namespace {netns} were not traced: it has tables of legacy iptables, which would write \
                     each traced packet to the kernel's log; their counters tell"
                ));
                continue;
            }
            let started = self.member(*netns).and_then(|(entered, _)| {
                entered
                    .within(|| Trace::start(flows, translates).map_err(|failure| failure.during("trace rules", *netns)))
            });
            match started {
                Ok(trace) => {
                    traces.running.insert(*netns, trace);
                }
                Err(Error::Netlink { source, .. })
                    if matches!(source.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
                {
                    traces.notes.push(format!(
                        "rules in network namespace {netns} were not traced: this kernel has no nftables tables that vanish \
                         with their owner (Linux 5.12 has them), and podpath adds no others; counters tell"
                    ));
                }
                Err(error) => traces.notes.push(format!("rules were not traced: {error}")),
            }
        }
        traces
    }

    fn rules_of(&self, netns: u32, depth: Depth) -> Result<Snapshot, Error> {
        self.member(netns)?.0.within(|| Snapshot::read(netns, depth))
    }

    /// The rules that packets met since `before` was read, in those of the namespaces `met` that were read then. Ends the traces.
    pub fn rules_met(&self, before: &RuleCounters, mut traces: RuleTraces, met: &[u32]) -> RulesMet {
        traces.collect();
        let RuleTraces { running, notes } = traces;
        let mut found = RulesMet { notes, ..RulesMet::default() };
        // Their tables are no part of what is read below.
        let mut traced: BTreeMap<u32, Traced> = BTreeMap::new();
        for (netns, trace) in running {
            let (met, lost) = trace.met();
            if lost {
                found.notes.push(format!("some of the trace of rules in network namespace {netns} was lost"));
            }
            traced.insert(netns, met.clone());
        }
        for (netns, snapshot) in before.before.iter().filter(|(netns, _)| met.contains(netns)) {
            let compared = self.member(*netns).and_then(|(entered, namespace)| {
                let links = namespace.links.iter().map(|link| (link.ifindex, link.name.clone())).collect();
                entered.within(|| {
                    let after = Snapshot::read(*netns, Depth::Everything)?;
                    Ok(compare(*netns, (snapshot, &after), traced.get(netns).unwrap_or(&Traced::new()), &links))
                })
            });
            match compared {
                Ok(rules) => {
                    found.hits.extend(rules.hits);
                    found.notes.extend(rules.notes);
                    found.conntrack.extend(rules.conntrack);
                    found.complete.extend(rules.complete.then_some(*netns));
                }
                // It vanished, and its rules with it.
                Err(Error::OutOfScope { .. }) => {}
                Err(error) => found.notes.push(error.to_string()),
            }
        }
        found
    }
}
