//! Where the time of many exchanges went: distributions per segment of the path. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::path::model::{Action, Direction, Exchange, Hop, Outcome, Path, What};

mod compare;
mod json;
mod segment;
#[cfg(test)]
mod tests;

pub use compare::{Finding, compare};
pub use json::{comparison, json};
pub use segment::{Key, Kind, Place, Segment, segments};

/// A recording is cut into so many parts of equal length: how much their medians differ is the noise.
pub const PARTS: usize = 16;

/// So many different segments are told apart, each of some 1 MB, and 3 MB where its times spread from a microsecond to a second; all
/// others together are only counted. There are some ten to each endpoint: these are the ways to fifty.
pub const MOST_SEGMENTS: usize = 512;

/// So many different failures, rewrites and ways, each, are told apart; all others together are only counted. A person reads a few, and a
/// program that wants every client of a million can have the exchanges (`podpath convert`).
pub const MOST_DIFFERENT: usize = 10_000;

/// Of exact values up to 1000 ns; above, of three digits.
const DIGITS: u8 = 3;

/// A distribution of times.
#[derive(Clone, Debug)]
pub struct Times {
    /// ns.
    pub histogram: Histogram<u64>,
    /// Sum of all, ns: exact.
    pub total_ns: u128,
    /// The largest bound of the error of one of them, ns.
    pub error_ns: u64,
    /// The same distribution, for each part of the recording up to the last that has something.
    pub parts: Vec<Histogram<u64>>,
}

impl Default for Times {
    fn default() -> Self {
        Self { histogram: histogram(), total_ns: 0, error_ns: 0, parts: Vec::new() }
    }
}

/// Grows with what is put in.
fn histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("three digits are a precision")
}

impl Times {
    fn add(&mut self, ns: u64, error_ns: u64, part: usize) {
        self.histogram += ns;
        self.total_ns += u128::from(ns);
        self.error_ns = self.error_ns.max(error_ns);
        self.have(part + 1);
        self.parts[part] += ns;
    }

    /// Makes so many parts, where there are fewer.
    fn have(&mut self, parts: usize) {
        self.parts.resize_with(parts.max(self.parts.len()), histogram);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value below which this many of a hundred are, ns; within a thousandth of it.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.histogram.value_at_percentile(percent).min(self.histogram.max())
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        self.histogram += &other.histogram;
        self.total_ns += other.total_ns;
        self.error_ns = self.error_ns.max(other.error_ns);
        self.have(other.parts.len());
        for (part, other) in self.parts.iter_mut().zip(&other.parts) {
            *part += other;
        }
    }
}

/// Why exchanges did not complete, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Failure {
    /// How they ended.
    pub outcome: Outcome,
    /// Which way failed.
    pub direction: Option<Direction>,
    /// Name of the node where.
    pub node: Option<Arc<str>>,
    /// The pod there.
    pub pod: Option<Arc<str>>,
    /// The interface.
    pub interface: Option<Arc<str>>,
    /// Why.
    pub why: String,
}

/// A NAT rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rewrite {
    /// Name of the node.
    pub node: Arc<str>,
    /// `SNAT` and so on.
    pub action: Action,
    /// The address before,
    pub before: IpAddr,
    /// and after.
    pub after: IpAddr,
}

/// The way that a request and its reply took.
pub type Way = Vec<Step>;

/// A step of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Step {
    /// Of the request or of the reply.
    pub direction: Direction,
    /// Where.
    pub place: Place,
    /// With this TTL: one less tells of a router between that no hook saw.
    pub ttl: Option<u8>,
    /// The route that led here, as `ip route` prints it.
    pub route: Option<String>,
}

/// What all exchanges of a recording have to say together.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How they ended.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Transmissions of what had been sent before.
    pub retransmissions: u64,
    /// Round trips, of each kind of exchange.
    pub round_trips: BTreeMap<Option<What>, Times>,
    /// The parts of the round trips, in the order of the path.
    pub segments: Vec<(Key, Times)>,
    /// What came to nothing.
    pub failures: BTreeMap<Failure, u64>,
    /// Addresses that were rewritten.
    pub rewrites: BTreeMap<Rewrite, u64>,
    /// The ways that requests and their replies took.
    pub ways: BTreeMap<Way, u64>,
    /// The slowest, the slowest first.
    pub slowest: Vec<Exchange>,
    /// How many of those to keep.
    keep: usize,
    /// What was too different from all before to be kept.
    pub left_out: LeftOut,
}

/// How often something was not told apart any more, because too much that was different came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Parts of round trips; see [`MOST_SEGMENTS`].
    pub segments: u64,
    /// Failures; see [`MOST_DIFFERENT`].
    pub failures: u64,
    /// Rewrites.
    pub rewrites: u64,
    /// Ways.
    pub ways: u64,
}

impl LeftOut {
    /// What a reader must know; None: nothing was left out.
    pub fn sentence(&self) -> Option<String> {
        let Self { segments, failures, rewrites, ways } = *self;
        let counts =
            [(segments, "segments of round trips"), (failures, "failures"), (rewrites, "rewrites"), (ways, "ways")];
        let told: Vec<String> =
            counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let and = "were unlike all that is told, and too many to be told apart: they are only counted";
        (!told.is_empty()).then(|| format!("{} {and}", told.join(", ")))
    }
}

/// Counts what is known, or new while there is room; whether it was counted.
fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, by: u64) -> bool {
    let room = counts.len() < MOST_DIFFERENT;
    match counts.entry(key) {
        Entry::Occupied(mut known) => *known.get_mut() += by,
        Entry::Vacant(new) if room => *new.insert(0) += by,
        Entry::Vacant(_) => return false,
    }
    true
}

impl Report {
    /// Of nothing; keeps so many of the slowest exchanges.
    pub fn new(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Takes in an exchange of this part of the recording.
    pub fn add(&mut self, exchange: &Exchange, part: usize) {
        *self.outcomes.entry(exchange.outcome).or_default() += 1;
        self.retransmissions += u64::from(exchange.again_after_ns.is_some());
        if let Some(ns) = exchange.rtt_ns {
            self.round_trips.entry(exchange.what).or_default().add(ns, 0, part);
        }
        let mut place = 0;
        for Segment { key, ns, error_ns } in segments(exchange) {
            let Some(at) = self.place_of(key, place) else {
                self.left_out.segments += 1;
                continue;
            };
            self.segments[at].1.add(ns, error_ns, part);
            place = at + 1;
        }
        if exchange.outcome != Outcome::Delivered {
            self.left_out.failures += u64::from(!count(&mut self.failures, failure(exchange), 1));
        }
        let hops = || exchange.request.hops.iter().chain(&exchange.reply.hops);
        for rewrite in hops().filter_map(rewrite).collect::<BTreeSet<_>>() {
            self.left_out.rewrites += u64::from(!count(&mut self.rewrites, rewrite, 1));
        }
        if exchange.outcome == Outcome::Delivered {
            self.left_out.ways += u64::from(!count(&mut self.ways, way(exchange), 1));
        }
        self.slow(exchange);
    }

    /// Where a segment stands; one that is new comes to `next`, behind what was before it on its way. None: there is no room for more.
    fn place_of(&mut self, key: Key, next: usize) -> Option<usize> {
        // Most follow what was before them.
        let is = |at: usize| self.segments.get(at).is_some_and(|(known, _)| *known == key);
        let known = if is(next) { Some(next) } else { self.segments.iter().position(|(known, _)| *known == key) };
        if known.is_none() && self.segments.len() < MOST_SEGMENTS {
            self.segments.insert(next, (key, Times::default()));
            return Some(next);
        }
        known
    }

    fn slow(&mut self, exchange: &Exchange) {
        let Some(rtt) = exchange.rtt_ns else { return };
        let place = self.slowest.partition_point(|slower| slower.rtt_ns >= Some(rtt));
        if place < self.keep {
            self.slowest.insert(place, exchange.clone());
            self.slowest.truncate(self.keep);
        }
    }

    /// How many exchanges.
    pub fn exchanges(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// How many ended so.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// All round trips, of whatever kind.
    pub fn round_trip(&self) -> Times {
        let mut all = Times::default();
        self.round_trips.values().for_each(|times| all.merge(times));
        all
    }

    /// Sum of all round trips, ns.
    pub fn total_ns(&self) -> u128 {
        self.round_trips.values().map(|times| times.total_ns).sum()
    }

    /// Adds all of another one: the distributions are then those of both together.
    pub fn merge(&mut self, other: &Self) {
        /// How many found no room.
        fn sum<K: Ord + Clone>(own: &mut BTreeMap<K, u64>, other: &BTreeMap<K, u64>) -> u64 {
            let left_out = other.iter().filter(|(key, by)| !count(own, (*key).clone(), **by));
            left_out.map(|(_, by)| by).sum()
        }
        sum(&mut self.outcomes, &other.outcomes);
        self.left_out.segments += other.left_out.segments;
        self.left_out.failures += other.left_out.failures + sum(&mut self.failures, &other.failures);
        self.left_out.rewrites += other.left_out.rewrites + sum(&mut self.rewrites, &other.rewrites);
        self.left_out.ways += other.left_out.ways + sum(&mut self.ways, &other.ways);
        self.retransmissions += other.retransmissions;
        for (what, times) in &other.round_trips {
            self.round_trips.entry(*what).or_default().merge(times);
        }
        let mut place = 0;
        for (key, times) in &other.segments {
            let Some(at) = self.place_of(key.clone(), place) else {
                self.left_out.segments += times.count();
                continue;
            };
            self.segments[at].1.merge(times);
            place = at + 1;
        }
        other.slowest.iter().for_each(|exchange| self.slow(exchange));
    }
}

/// Where and why it ended.
fn failure(exchange: &Exchange) -> Failure {
    let (outcome, direction) = (exchange.outcome, exchange.failed_direction);
    let Some(hop) = exchange.ended_at() else {
        let said = exchange.rejection.as_ref().map(|rejection| rejection.meaning.clone());
        let noted = || exchange.notes.first().map(|note| timeless(note));
        let why = said.or_else(noted).unwrap_or_else(|| "not enough was seen to say why".to_owned());
        return Failure { outcome, direction, node: None, pod: None, interface: None, why };
    };
    let drop = hop.detail.drop.as_ref().map(|drop| drop.why.clone());
    let why = drop.or_else(|| hop.detail.text.clone()).unwrap_or_else(|| "never seen again".to_owned());
    let (node, pod, interface) = (Some(hop.node.clone()), hop.pod.clone(), hop.interface.clone());
    Failure { outcome, direction, node, pod, interface, why }
}

/// A note without the numbers that differ from one exchange to the next: what is counted together is said once.
fn timeless(note: &str) -> String {
    note.split(',').next().unwrap_or(note).to_owned()
}

fn rewrite(hop: &Hop) -> Option<Rewrite> {
    let nat = hop.detail.nat.as_ref()?;
    let source = matches!(hop.action, Action::Snat | Action::Undnat);
    let side = |side: &crate::path::model::NatSide| if source { side.src } else { side.dst };
    let (before, after) = (side(&nat.before), side(&nat.after));
    // Of a reply it is the same again.
    let there = matches!(hop.action, Action::Snat | Action::Dnat) && before != after;
    there.then(|| Rewrite { node: hop.node.clone(), action: hop.action, before, after })
}

/// The steps of an exchange, but for what differs from one to the next.
fn way(exchange: &Exchange) -> Way {
    let steps = |direction, path: &Path| {
        let told = path.hops.iter().filter(|hop| !matches!(hop.action, Action::Delivered));
        let step = |hop: &Hop| {
            let place = Place { node: hop.node.clone(), pod: hop.pod.clone(), interface: hop.interface.clone()? };
            Some(Step { direction, place, ttl: hop.ttl, route: hop.detail.route.clone() })
        };
        let mut steps: Way = told.filter_map(step).collect();
        steps.dedup();
        steps
    };
    [steps(Direction::Request, &exchange.request), steps(Direction::Reply, &exchange.reply)].concat()
}
