//! Which records belong to which exchange: by content, never by pointer or clock alone.

use std::collections::HashMap;

use super::{Probe, model::What, touch, world::World};
use crate::event::{Record, Rewrite, Sighting, Translation};

mod echo;
mod flow;
mod probes;
mod tcp;
mod transmissions;
mod udp;

pub(super) use echo::echo;
pub(super) use probes::RST;

/// One node's records: in order, without duplicates.
#[derive(Default)]
pub(super) struct Sorted<'a> {
    pub(super) sightings: Vec<&'a Sighting>,
    pub(super) translations: Vec<&'a Translation>,
    rewrites: HashMap<u64, Vec<&'a Rewrite>>,
    /// By address of the sighting that follows it: the translation.
    of: HashMap<*const Sighting, &'a Translation>,
}

impl<'a> Sorted<'a> {
    pub(super) fn new(records: &'a [Record]) -> Self {
        let mut sorted = Self::default();
        for record in records {
            match record {
                Record::Sighting(s) => sorted.sightings.push(s),
                Record::Translation(t) => sorted.translations.push(t),
                Record::Rewrite(r) => sorted.rewrites.entry(r.skb).or_default().push(r),
            }
        }
        sorted.sightings.sort_by_key(|s| touch::order(s));
        sorted.sightings.dedup();
        sorted.translations.sort_by_key(|t| (t.time_ns, t.skb));
        sorted.translations.dedup();
        for rewrites in sorted.rewrites.values_mut() {
            rewrites.sort_by_key(|r| r.time_ns);
            rewrites.dedup();
        }
        sorted.attach();
        sorted
    }

    /// A translation is about the next sighting of its buffer. If that one is lost, the next may be another packet's in
    /// reused memory; then addresses or direction disagree.
    fn attach(&mut self) {
        let mut by_skb: HashMap<u64, Vec<&'a Sighting>> = HashMap::new();
        for &s in &self.sightings {
            by_skb.entry(s.skb).or_default().push(s);
        }
        for &t in &self.translations {
            let Some(same) = by_skb.get(&t.skb) else { continue };
            let Some(&next) = same.get(same.partition_point(|s| s.time_ns < t.time_ns)) else { continue };
            if next.conntrack.is_none_or(|d| d == t.direction) && consistent(t, next) {
                self.of.insert(std::ptr::from_ref(next), t);
            }
        }
    }

    /// The rewrites in the buffers of these sightings.
    pub(super) fn rewrites_of(&self, sightings: &[&'a Sighting]) -> Vec<&'a Rewrite> {
        skbs(sightings).iter().filter_map(|skb| self.rewrites.get(skb)).flatten().copied().collect()
    }

    /// The translations read from a packet, which has these sightings.
    pub(super) fn translations_of(&self, sightings: &[&'a Sighting]) -> Vec<&'a Translation> {
        sightings.iter().filter_map(|s| self.of.get(&std::ptr::from_ref(*s)).copied()).collect()
    }
}

fn skbs(sightings: &[&Sighting]) -> std::collections::BTreeSet<u64> {
    sightings.iter().map(|s| s.skb).collect()
}

fn consistent(t: &Translation, s: &Sighting) -> bool {
    let addresses = [t.original.src, t.original.dst, t.reply.src, t.reply.dst];
    addresses.contains(&s.packet.src) && addresses.contains(&s.packet.dst)
}

/// There or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Request,
    Reply,
}

/// The sightings of one exchange.
pub(super) struct Group<'a> {
    pub(super) seq: u32,
    pub(super) what: Option<What>,
    pub(super) probe: Option<&'a Probe>,
    /// By node: in order.
    pub(super) request: Vec<Vec<&'a Sighting>>,
    /// By node: in order.
    pub(super) reply: Vec<Vec<&'a Sighting>>,
    /// Among the groups: the first transmission of the same data, and how much earlier that was sent, ns.
    pub(super) again: Option<(usize, u64)>,
    /// What the reader should know about how they were put together.
    pub(super) notes: Vec<String>,
}

impl<'a> Group<'a> {
    fn new(seq: u32, probe: Option<&'a Probe>, nodes: usize) -> Self {
        let [request, reply] = [(); 2].map(|()| vec![Vec::new(); nodes]);
        Self { seq, what: None, probe, request, reply, again: None, notes: Vec::new() }
    }

    fn add(&mut self, node: usize, role: Role, s: &'a Sighting) {
        match role {
            Role::Request => self.request[node].push(s),
            Role::Reply => self.reply[node].push(s),
        }
    }
}

/// One group per probe, in their order; without probes, one per exchange that was met.
pub(super) fn groups<'a>(world: &World<'a>, sorted: &[Sorted<'a>]) -> Vec<Group<'a>> {
    if !world.evidence.probes.is_empty() {
        return probes::groups(world, sorted);
    }
    let flows = flow::Aliases::new(sorted);
    let mut groups = echo::passive(sorted);
    groups.extend(tcp::passive(world, sorted, &flows));
    groups.extend(udp::passive(world, sorted, &flows));
    in_order(groups)
}

/// In the order of their first packets; what refers to another group keeps to it.
fn in_order(groups: Vec<Group<'_>>) -> Vec<Group<'_>> {
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&i| first_time(&groups[i]));
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
    let mut groups: Vec<_> = groups.into_iter().map(Some).collect();
    let mut sorted: Vec<_> = order.into_iter().filter_map(|i| groups[i].take()).collect();
    for (i, group) in sorted.iter_mut().enumerate() {
        group.again = group.again.map(|(old, ns)| (place[old], ns));
        // An echo has a number of its own.
        if group.what.is_some() {
            group.seq = u32::try_from(i + 1).unwrap_or(u32::MAX);
        }
    }
    sorted
}

fn first_time(group: &Group<'_>) -> Option<u64> {
    let of = |nodes: &[Vec<&Sighting>]| nodes.iter().filter_map(|n| Some(n.first()?.time_ns)).min();
    of(&group.request).or_else(|| of(&group.reply))
}
