//! One direction of a TCP connection: which sightings carry which bytes.
//!
//! One buffer can be several packets on the wire (GSO), and several packets one buffer (GRO). What is followed is the
//! first byte of what its sender made: at every place the packet that carries this byte. That cannot join the wrong
//! packets, as no other byte of the stream has its sequence number.

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::super::transmissions;
use crate::{
    event::{Hook, L4, Sighting},
    path::{group::probes::SYN, touch},
};

/// What a transmission is known by.
type Key = (i64, u16, Option<(u32, u8)>);

/// A TCP segment at one hook.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) sighting: &'a Sighting,
    /// Number of its first byte, from the first that was seen of the stream; may be negative.
    pub(super) start: i64,
    /// Bytes of data.
    pub(super) len: i64,
    pub(super) ack: u32,
    pub(super) flags: u8,
}

impl Segment<'_> {
    /// One past its last byte; a SYN counts as one.
    pub(super) fn end(&self) -> i64 {
        self.start + self.len + i64::from(self.flags & SYN != 0)
    }

    /// Segments with data are known by their first byte, others by all they say; both by the IP id, which Linux counts
    /// per connection (0 in IPv6, in SYN+ACK and RST).
    fn key(&self) -> Key {
        (self.start, self.sighting.packet.ip_id, (self.len == 0).then_some((self.ack, self.flags)))
    }
}

/// What its sender sent at once.
pub(super) struct Unit<'a> {
    pub(super) node: usize,
    /// Its first sighting.
    pub(super) segment: Segment<'a>,
}

impl Unit<'_> {
    pub(super) fn time(&self) -> u64 {
        self.segment.sighting.time_ns
    }

    /// Its sequence number.
    pub(super) fn number(&self) -> Option<u32> {
        match self.segment.sighting.packet.l4 {
            L4::Tcp { seq, .. } => Some(seq),
            _ => None,
        }
    }

    /// The byte is one of those it carries.
    pub(super) fn covers(&self, byte: i64) -> bool {
        self.segment.start <= byte && byte < self.segment.end().max(self.segment.start + 1)
    }
}

/// One direction of a connection.
pub(super) struct Stream<'a> {
    base: Option<u32>,
    /// The longest of its segments, bytes.
    longest: i64,
    /// By node, by first byte; in order of time.
    nodes: Vec<BTreeMap<i64, Vec<Segment<'a>>>>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(nodes: usize) -> Self {
        Self { base: None, longest: 0, nodes: (0..nodes).map(|_| BTreeMap::new()).collect() }
    }

    /// In order of time on each node.
    pub(super) fn add(&mut self, node: usize, sighting: &'a Sighting) {
        let L4::Tcp { seq, ack, flags, payload, .. } = sighting.packet.l4 else { return };
        let start = offset(*self.base.get_or_insert(seq), seq);
        let segment = Segment { sighting, start, len: i64::from(payload), ack, flags };
        self.longest = self.longest.max(segment.end() - start);
        self.nodes[node].entry(start).or_default().push(segment);
    }

    /// An acknowledgement number of the other direction, as the byte it means.
    pub(super) fn acknowledged(&self, ack: u32) -> i64 {
        self.base.map_or(i64::MIN, |base| offset(base, ack))
    }

    pub(super) fn seen_on(&self, node: usize) -> bool {
        !self.nodes[node].is_empty()
    }

    /// What was sent, in the order of time: told by the sender's namespace, and where that saw nothing of it by the nodes
    /// in their order. `wanted` picks.
    pub(super) fn units(&self, home: Option<(usize, u32)>, wanted: impl Fn(&Segment<'_>) -> bool) -> Units<'a> {
        let mut units: Vec<Unit<'a>> = Vec::new();
        let at_home = |node, s: &Sighting| home == Some((node, s.netns)) && matches!(s.hook, Hook::Queue | Hook::Xmit);
        let order = home.map(|(node, _)| node).into_iter().chain(0..self.nodes.len());
        for (round, node) in order.enumerate() {
            let first = home.is_some() && round == 0;
            let known: Covered = units.iter().collect();
            for (_, bursts) in self.bursts(node, |s| wanted(s) && (!first || at_home(node, s.sighting))) {
                for segment in bursts {
                    // Bytes of a packet that was cut between the queue and the driver were seen before.
                    let part = segment.sighting.hook == Hook::Xmit && self.was_queued(node, &segment);
                    if !part && !known.has(&segment) {
                        units.push(Unit { node, segment });
                    }
                }
            }
        }
        units.sort_by_key(|u| (u.time(), u.segment.start));
        Units::new(units)
    }

    /// The first segment of every transmission, by what it is known by.
    fn bursts(&self, node: usize, wanted: impl Fn(&Segment<'_>) -> bool) -> BTreeMap<Key, Vec<Segment<'a>>> {
        let mut found: BTreeMap<_, Vec<Segment<'a>>> = BTreeMap::new();
        for segment in self.nodes[node].values().flatten() {
            if wanted(segment) && !touch::is_free(segment.sighting) {
                found.entry(segment.key()).or_default().push(*segment);
            }
        }
        for segments in found.values_mut() {
            transmissions::keep_firsts(segments, |s| s.sighting);
        }
        found
    }

    fn was_queued(&self, node: usize, segment: &Segment<'_>) -> bool {
        let same_place = |s: &Segment<'_>| touch::place(s.sighting) == touch::place(segment.sighting);
        let before = |s: &&Segment<'_>| s.sighting.time_ns <= segment.sighting.time_ns;
        self.around(node, segment.start).filter(before).any(|s| {
            s.sighting.hook == Hook::Queue
                && same_place(s)
                && s.start < segment.start
                && segment.start < s.start + s.len
        })
    }

    /// Segments that may carry this byte.
    fn around(&self, node: usize, byte: i64) -> impl Iterator<Item = &Segment<'a>> {
        self.nodes[node].range(byte - self.longest..=byte).flat_map(|(_, segments)| segments)
    }

    /// The sightings of the `i`-th unit.
    pub(super) fn of(&self, i: usize, units: &Units<'a>) -> Found<'a> {
        let unit = &units.list[i];
        let key = unit.segment.key();
        let alike = &units.by_key[&key];
        let (rank, count) = (alike.iter().filter(|j| **j < i).count(), alike.len());
        let alone = unit.segment.len > 0 && units.covering(unit.segment.start).count() == 1;
        let mut found = Found { nodes: Vec::with_capacity(self.nodes.len()), note: None, doubt: None };
        for node in 0..self.nodes.len() {
            let mut sightings: Vec<&'a Sighting> = self
                .around(node, unit.segment.start)
                .filter(|s| s.key() == key || (alone && joined(s, unit)))
                .map(|s| s.sighting)
                .collect();
            sightings.sort_by_key(|s| touch::order(s));
            let of_several = |s: &&Segment<'a>| joined(s, unit) && !units.surely_carries(s, unit.segment.start);
            if sightings.is_empty() && !alone && self.around(node, unit.segment.start).any(|s| of_several(&s)) {
                found.doubt = Some(
                    "its bytes were sent more than once, and passed joined with others: which of them is not known",
                );
            }
            if count > 1 && !sightings.is_empty() {
                let mut bursts = transmissions::split(&sightings);
                // Whoever sends again does so until one arrives.
                let missing = count.saturating_sub(bursts.len());
                if missing > 0 {
                    let came = bursts.len();
                    found.note = Some(format!("sent {count} times, and {came} came through: taken for the last"));
                }
                let own = rank.checked_sub(missing).and_then(|i| bursts.get_mut(i));
                sightings = own.map(std::mem::take).unwrap_or_default();
            }
            found.nodes.push(sightings);
        }
        found
    }
}

/// What was seen of a unit.
pub(super) struct Found<'a> {
    /// By node.
    pub(super) nodes: Vec<Vec<&'a Sighting>>,
    /// If it had to be chosen which of several that look the same a sighting is of: how.
    pub(super) note: Option<String>,
    /// Why that cannot even be chosen, if so.
    pub(super) doubt: Option<&'static str>,
}

/// What was sent in one direction, in the order of time.
pub(super) struct Units<'a> {
    pub(super) list: Vec<Unit<'a>>,
    by_key: HashMap<Key, Vec<usize>>,
    by_first: BTreeMap<i64, Vec<usize>>,
    /// The longest of them, bytes.
    longest: i64,
}

impl<'a> Units<'a> {
    fn new(list: Vec<Unit<'a>>) -> Self {
        let (mut by_key, mut by_first) = (HashMap::<_, Vec<usize>>::new(), BTreeMap::<_, Vec<usize>>::new());
        for (i, unit) in list.iter().enumerate() {
            by_key.entry(unit.segment.key()).or_default().push(i);
            by_first.entry(unit.segment.start).or_default().push(i);
        }
        let longest = list.iter().map(|unit| unit.segment.end() - unit.segment.start).max().unwrap_or(0);
        Self { list, by_key, by_first, longest }
    }

    /// Those that carry this byte.
    fn covering(&self, byte: i64) -> impl Iterator<Item = usize> + '_ {
        let near = self.by_first.range(byte - self.longest..=byte).flat_map(|(_, list)| list.iter().copied());
        near.filter(move |i| self.list[*i].covers(byte))
    }

    /// The first unit before the `i`-th that carried its first byte, where there is one.
    pub(super) fn first_of(&self, i: usize) -> Option<usize> {
        let unit = &self.list[i];
        let same = |j: &usize| *j < i && self.list[*j].segment.flags & SYN == unit.segment.flags & SYN;
        self.covering(unit.segment.start).filter(same).min()
    }

    /// The next unit after the `i`-th that carries its first byte: Linux may send several segments again as one
    /// (`tcp_retrans_try_collapse` in net/ipv4/tcp_output.c).
    pub(super) fn next_of(&self, i: usize) -> Option<&Unit<'a>> {
        let unit = &self.list[i];
        let same = |j: &usize| *j > i && self.list[*j].segment.flags & SYN == unit.segment.flags & SYN;
        self.covering(unit.segment.start).filter(same).min().map(|j| &self.list[j])
    }

    /// What looks like this segment was sent with this byte in it, and never without.
    fn surely_carries(&self, segment: &Segment<'a>, byte: i64) -> bool {
        let alike = self.by_key.get(&segment.key());
        alike.is_some_and(|alike| alike.iter().all(|j| self.list[*j].covers(byte)))
    }
}

/// Several packets were made one, and the first byte of `unit` is in its middle.
fn joined(segment: &Segment<'_>, unit: &Unit<'_>) -> bool {
    let byte = unit.segment.start;
    unit.segment.len > 0 && segment.start < byte && byte < segment.start + segment.len
}

/// Sequence numbers wrap: what is less than half way round ahead is later.
fn offset(base: u32, number: u32) -> i64 {
    i64::from(number.wrapping_sub(base).cast_signed())
}

/// Keys and bytes of units found so far.
struct Covered {
    keys: HashSet<Key>,
    /// First byte -> one past the last.
    ranges: BTreeMap<i64, i64>,
    /// The longest of the ranges.
    longest: i64,
}

impl<'u, 'a: 'u> FromIterator<&'u Unit<'a>> for Covered {
    fn from_iter<T: IntoIterator<Item = &'u Unit<'a>>>(units: T) -> Self {
        let mut covered = Self { keys: HashSet::new(), ranges: BTreeMap::new(), longest: 0 };
        for unit in units {
            covered.keys.insert(unit.segment.key());
            let end = covered.ranges.entry(unit.segment.start).or_default();
            *end = (*end).max(unit.segment.end());
            covered.longest = covered.longest.max(*end - unit.segment.start);
        }
        covered
    }
}

impl Covered {
    fn has(&self, segment: &Segment<'_>) -> bool {
        let data = segment.len > 0;
        let mut before = self.ranges.range(segment.start - self.longest..=segment.start);
        self.keys.contains(&segment.key()) || (data && before.any(|(_, end)| *end > segment.start))
    }
}
