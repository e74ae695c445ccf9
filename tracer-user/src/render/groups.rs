//! Exchanges that went the same way and ended the same way are told once.

use crate::path::model::{Exchange, Hop, Path};

/// Exchanges alike, and the one that stands for them.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// In order.
    pub(super) members: Vec<&'a Exchange>,
    /// The one with the median round-trip time (of two, the shorter); the first if no time is known.
    pub(super) median: &'a Exchange,
}

/// Groups, the largest first; equally large ones in the order of their first members.
pub(super) fn group(exchanges: &[Exchange]) -> Vec<Group<'_>> {
    let mut groups: Vec<Vec<&Exchange>> = Vec::new();
    for exchange in exchanges {
        match groups.iter_mut().find(|group| alike(group[0], exchange)) {
            Some(group) => group.push(exchange),
            None => groups.push(vec![exchange]),
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    groups.into_iter().map(|members| Group { median: median(&members), members }).collect()
}

fn median<'a>(members: &[&'a Exchange]) -> &'a Exchange {
    let mut timed: Vec<&Exchange> = members.iter().copied().filter(|exchange| exchange.rtt_ns.is_some()).collect();
    timed.sort_by_key(|exchange| exchange.rtt_ns);
    timed.get(timed.len().saturating_sub(1) / 2).copied().unwrap_or(members[0])
}

fn alike(a: &Exchange, b: &Exchange) -> bool {
    // What had to be noted of one is not true of the other.
    a.notes.is_empty() == b.notes.is_empty()
        && a.what == b.what
        && a.outcome == b.outcome
        && a.failed_direction == b.failed_direction
        && same_ways(a, b)
}

/// Both went the same way, and their replies did.
pub(super) fn same_ways(a: &Exchange, b: &Exchange) -> bool {
    same_way(&a.request, &b.request) && same_way(&a.reply, &b.reply)
}

fn same_way(a: &Path, b: &Path) -> bool {
    a.hops.len() == b.hops.len() && a.hops.iter().zip(&b.hops).all(|(a, b)| same_step(a, b))
}

/// Everything but times, and ports and ids, which a NAT may choose anew for every flow.
fn same_step(a: &Hop, b: &Hop) -> bool {
    (&a.node, &a.pod, &a.interface, a.action, a.src, a.dst, a.ttl)
        == (&b.node, &b.pod, &b.interface, b.action, b.src, b.dst, b.ttl)
        && (&a.detail.route, &a.detail.drop, &a.detail.tunnel, &a.detail.text)
            == (&b.detail.route, &b.detail.drop, &b.detail.tunnel, &b.detail.text)
}
