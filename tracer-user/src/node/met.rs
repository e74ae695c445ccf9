//! Which netfilter rules did packets of a session meet?

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    error::Error,
    facts::{Namespace, RuleHit},
    reader::Node,
    rules::{Depth, Snapshot, compare},
};

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

/// The rules that packets met.
#[derive(Debug, Default)]
pub struct RulesMet {
    /// Those whose counters rose, and those without counter that may have been met.
    pub hits: Vec<RuleHit>,
    /// Inodes of the namespaces of which `hits` lacks nothing.
    pub complete: Vec<u32>,
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
                Err(error) => counters.notes.push(error),
            }
        }
        counters
    }

    fn rules_of(&self, netns: u32, depth: Depth) -> Result<Snapshot, Error> {
        self.member(netns)?.0.within(|| Snapshot::read(netns, depth))
    }

    /// The rules that packets met since `before` was read, in those of the namespaces `met` that were read then.
    pub fn rules_met(&self, before: &RuleCounters, met: &[u32]) -> RulesMet {
        let mut found = RulesMet::default();
        for (netns, snapshot) in before.before.iter().filter(|(netns, _)| met.contains(netns)) {
            let compared = self.member(*netns).and_then(|(entered, namespace)| {
                let links = namespace.links.iter().map(|link| (link.ifindex, link.name.clone())).collect();
                entered.within(|| {
                    let after = Snapshot::read(*netns, Depth::Everything)?;
                    Ok(compare(*netns, snapshot, &after, &links))
                })
            });
            match compared {
                Ok(rules) => {
                    found.hits.extend(rules.hits);
                    found.notes.extend(rules.notes);
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
