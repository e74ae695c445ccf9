//! Netfilter rules and their counters, read the way their tools read them: nftables by netlink, legacy iptables by getsockopt.
//!
//! Reading changes nothing: no module is loaded for it and no table comes to be.
//!
//! Counters are read twice, before anything is injected and at the end. The first reading is kept as the bytes it came in,
//! the second is understood: which rules counted packets meanwhile, what they ask of a packet, and which jumps lead to them.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader},
};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    conntrack_stats,
    error::Error,
    facts::{ConntrackDrops, RuleHit},
    netlink::Netlink,
};

pub(super) mod attributes;
mod expression;
mod hits;
mod legacy;
mod legacy_rule;
mod model;
pub(super) mod nft;
mod nft_words;
mod rule;
mod sets;
pub(super) mod trace;
mod ways;
mod xt;

pub(super) use hits::Traced;

/// The rules of one namespace at one time, undecoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    nft: Option<nft::Dump>,
    legacy: Vec<legacy::Blob>,
    conntrack: Option<ConntrackDrops>,
}

/// What two readings of a namespace come to.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) hits: Vec<RuleHit>,
    /// Every rule that ends or rewrites packets and may have met one is among them.
    pub(super) complete: bool,
    /// What conntrack dropped.
    pub(super) conntrack: Option<ConntrackDrops>,
    /// A sentence each.
    pub(super) notes: Vec<String>,
}

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// What counters need.
    Counters,
    /// What rules are made of.
    Everything,
}

impl Snapshot {
    /// Reads the namespace `netns`, which the calling thread is in.
    pub(super) fn read(netns: u32, depth: Depth) -> Result<Self, Error> {
        let nft = if nft_present() { read_nft(netns, depth)? } else { None };
        let legacy = legacy::tables().map_err(|source| Error::Iptables { netns, source })?;
        Ok(Self { nft, legacy, conntrack: conntrack_stats::read(netns) })
    }
}

impl Snapshot {
    /// Are there tables of nftables, of legacy iptables, and does nftables translate?
    pub(super) fn has(&self) -> (bool, bool, bool) {
        let translates = self.nft.as_ref().is_some_and(nft::translates);
        (self.nft.is_some(), !self.legacy.is_empty(), translates)
    }

    /// The names of an nftables table and chain by their handles.
    pub(super) fn names(&self, table: u64, chain: u64) -> Option<(String, Option<String>)> {
        self.nft.as_ref().and_then(|dump| nft::names(dump, table, chain))
    }
}

fn read_nft(netns: u32, depth: Depth) -> Result<Option<nft::Dump>, Error> {
    let read = Netlink::open(NETLINK_NETFILTER).and_then(|mut netlink| match depth {
        Depth::Counters => nft::counters(&mut netlink),
        Depth::Everything => nft::everything(&mut netlink),
    });
    match read {
        Ok(dump) => Ok(dump),
        // A kernel without nftables.
        Err(failure) if matches!(failure.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
        Err(failure) => Err(failure.during("read nftables", netns)),
    }
}

/// Is nftables there already? Asking for its rules would load its module.
fn nft_present() -> bool {
    let Ok(modules) = fs::read_to_string("/proc/modules") else { return true }; // Nothing can be loaded.
    let named = |line: &str| line.split(' ').next() == Some("nf_tables");
    modules.lines().any(named) || built_in()
}

/// Symbols of modules carry the module's name, so that a line's end tells.
fn built_in() -> bool {
    let Ok(file) = File::open("/proc/kallsyms") else { return false };
    BufReader::with_capacity(1 << 16, file)
        .lines()
        .map_while(Result::ok)
        .any(|line| line.ends_with(" nf_tables_newrule"))
}

/// Compares two readings of the namespace that the calling thread is in. `links` names its interfaces.
/// `traced`: what a trace of rules heard.
pub(super) fn compare(
    netns: u32,
    (before, after): (&Snapshot, &Snapshot),
    traced: &Traced,
    links: &HashMap<u32, String>,
) -> Met {
    let ipsets = legacy::IpSets::open();
    let mut ruleset = legacy::read(&after.legacy, &ipsets);
    if let Some(dump) = &after.nft {
        let then = before.nft.as_ref().and_then(nft::generation);
        let steady = then.is_some() && then == nft::generation(dump);
        ruleset.tables.extend(nft::read(dump, steady, links, &ipsets).tables);
    }
    let found = hits::hits(netns, &ruleset, &baseline(before), traced);
    let partly = after.nft.as_ref().is_some_and(|dump| dump.partly);
    let mut notes = Vec::new();
    if found.changed {
        notes.push(format!(
            "netfilter rules of network namespace {netns} changed during the trace: what replaced rules counted is not known"
        ));
    }
    if found.too_many || partly {
        notes.push(format!(
            "network namespace {netns} has too many netfilter rules without counters to tell which of them met packets"
        ));
    }
    let conntrack = conntrack_stats::between(before.conntrack, after.conntrack);
    Met { hits: found.hits, complete: !found.vanished && !found.too_many && !partly, conntrack, notes }
}

fn baseline(snapshot: &Snapshot) -> hits::Baseline {
    let mut baseline = hits::Baseline::default();
    for table in legacy::counters(&snapshot.legacy).tables {
        for chain in table.chains {
            let place = (table.family, table.name.clone(), chain.name);
            for rule in &chain.rules {
                baseline.add(true, place.clone(), 0, rule.content, rule.packets);
            }
            if let Some(base) = chain.base {
                baseline.add_policy(true, place, base.packets);
            }
        }
    }
    let Some(dump) = &snapshot.nft else { return baseline };
    let named = |(family, table, chain): nft::Place| Some((nft::family_name(family)?, table, chain));
    for (place, handle, content, packets) in dump.rules.iter().filter_map(nft::counted) {
        if let Some(place) = named(place) {
            baseline.add(false, place, handle, content, packets);
        }
    }
    for (place, packets) in dump.chains.iter().filter_map(nft::policy_counted) {
        if let Some(place) = named(place) {
            baseline.add_policy(false, place, packets);
        }
    }
    baseline
}
