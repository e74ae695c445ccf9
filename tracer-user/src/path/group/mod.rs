//! Which records belong to which exchange: by content, never by pointer or clock alone.

use foldhash::HashMap;

use super::{Probe, model::What, touch, world::World};
use crate::event::{Record, Rewrite, Sighting, Translation};

mod echo;
mod flow;
mod probes;
mod tcp;
mod transmissions;
mod udp;

pub(super) use echo::echo;
pub(super) use probes::{ACK, RST, SYN};

/// One node's records: in order, without duplicates.
#[derive(Default)]
pub(super) struct Sorted<'a> {
    pub(super) sightings: Vec<&'a Sighting>,
    pub(super) translations: Vec<&'a Translation>,
    rewrites: HashMap<u64, Vec<&'a Rewrite>>,
    /// By address of the sighting that follows it: the translation.
    of: HashMap<*const Sighting, &'a Translation>,
    /// By buffer, those of each in order.
    by_buffer: Vec<(u64, &'a Sighting)>,
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
        sorted.by_buffer.extend(sorted.sightings.iter().map(|s| (s.skb, *s)));
        sorted.by_buffer.sort_by_key(|(skb, _)| *skb);
        sorted.attach();
        sorted
    }

    /// A translation is about the next sighting of its buffer. If that one is lost, the next may be another packet's in
    /// reused memory; then addresses or direction disagree.
    fn attach(&mut self) {
        for &t in &self.translations {
            let next = self.by_buffer.partition_point(|(skb, s)| (*skb, s.time_ns) < (t.skb, t.time_ns));
            let Some(&(_, next)) = self.by_buffer.get(next).filter(|(skb, _)| *skb == t.skb) else { continue };
            if next.conntrack.is_none_or(|d| d == t.direction) && consistent(t, next) {
                self.of.insert(std::ptr::from_ref(next), t);
            }
        }
    }

    /// Sightings that follow each other in a buffer: of one packet, or of two, where the buffer was used again.
    fn successive(&self) -> impl Iterator<Item = (&'a Sighting, &'a Sighting)> + '_ {
        let pairs = self.by_buffer.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        pairs.map(|pair| (pair[0].1, pair[1].1))
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

/// Whether the packet may be of this entry.
pub(super) fn consistent(t: &Translation, s: &Sighting) -> bool {
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
    /// Why it is not certain that they belong together.
    pub(super) doubts: Vec<String>,
}

impl<'a> Group<'a> {
    fn new(seq: u32, probe: Option<&'a Probe>, nodes: usize) -> Self {
        let [request, reply] = [(); 2].map(|()| vec![Vec::new(); nodes]);
        Self { seq, what: None, probe, request, reply, again: None, notes: Vec::new(), doubts: Vec::new() }
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

/// Those of which something was seen in these spans, by node, of time of its clock, from and until before, ns; and those that these
/// repeat. `about`: what is known of each beside.
pub(super) fn within<'a, T>(groups: Vec<Group<'a>>, about: Vec<T>, spans: &[(u64, u64)]) -> (Vec<Group<'a>>, Vec<T>) {
    let meets = |sightings: &[&Sighting], (from, until): (u64, u64)| {
        let mut times = sightings.iter().map(|s| s.time_ns);
        times.any(|ns| (from..until).contains(&ns))
    };
    let seen = |group: &Group<'_>| {
        let ways = group.request.iter().zip(&group.reply).zip(spans);
        let mut ways = ways.map(|((there, back), span)| meets(there, *span) || meets(back, *span));
        ways.any(|met| met)
    };
    let mut wanted: Vec<bool> = groups.iter().map(seen).collect();
    for (i, group) in groups.iter().enumerate() {
        if let Some((first, _)) = group.again.filter(|_| wanted[i]) {
            wanted[first] = true;
        }
    }
    let places: Vec<usize> = wanted
        .iter()
        .scan(0, |place, wanted| {
            let own = *place;
            *place += usize::from(*wanted);
            Some(own)
        })
        .collect();
    let all = groups.into_iter().zip(about).zip(wanted);
    let (mut kept, about): (Vec<Group<'a>>, Vec<T>) = all.filter_map(|(group, wanted)| wanted.then_some(group)).unzip();
    for group in &mut kept {
        group.again = group.again.map(|(first, ns)| (places[first], ns));
    }
    (kept, about)
}

/// In the order of their first packets; what refers to another group keeps to it.
fn in_order(groups: Vec<Group<'_>>) -> Vec<Group<'_>> {
    let order = order(&groups.iter().map(first_times).collect::<Vec<_>>());
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

/// By node: when the exchange was first seen there, ns of that node's clock.
fn first_times(group: &Group<'_>) -> Vec<Option<u64>> {
    let first = |seen: &Vec<&Sighting>| seen.first().map(|s| s.time_ns);
    group.request.iter().zip(&group.reply).map(|(there, back)| first(there).or(first(back))).collect()
}

/// The order of exchanges of which each has such times. No two nodes have a clock in common: the node that saw most of them gives the
/// time, and what it did not see is placed by how its clock differs from others' in the exchanges that both saw.
fn order(times: &[Vec<Option<u64>>]) -> Vec<usize> {
    let nodes = times.first().map_or(0, Vec::len);
    let saw = |node: usize| times.iter().filter(|t| t[node].is_some()).count();
    // Of several the first, so that the order does not hang on the order of the nodes alone.
    let Some(clock) = (0..nodes).rev().max_by_key(|&node| saw(node)) else { return (0..times.len()).collect() };
    let ahead = |node: usize| {
        let both = times.iter().filter_map(|t| Some(i128::from(t[clock]?) - i128::from(t[node]?)));
        let mut both: Vec<_> = both.collect();
        both.sort_unstable();
        both.get(both.len() / 2).copied().unwrap_or(0)
    };
    let ahead: Vec<i128> = (0..nodes).map(ahead).collect();
    let at = |i: usize| {
        let on = |node: usize| times[i][node].map(|ns| i128::from(ns) + ahead[node]);
        on(clock).or_else(|| (0..nodes).filter_map(on).min())
    };
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|&i| at(i));
    order
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn exchanges_are_in_order_whatever_the_nodes_clocks_say() {
        let (a, b) = (100_000_u64, 7_u64);
        // The third was dropped before the second node, which started much later than the first.
        let times = [
            vec![Some(a + 10), Some(b + 11)],
            vec![Some(a + 20), Some(b + 21)],
            vec![Some(a + 30), None],
            vec![Some(a + 40), Some(b + 41)],
            vec![Some(a + 50), Some(b + 51)],
        ];
        assert_eq!(order(&times), [0, 1, 2, 3, 4]);
        // And where it is the first node that missed one.
        let mut times = times.to_vec();
        times[1][0] = None;
        assert_eq!(order(&times), [0, 1, 2, 3, 4]);
        assert_eq!(order(&[]), [0_usize; 0]);
    }
}
