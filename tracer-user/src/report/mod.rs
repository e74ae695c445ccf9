//! Where the time of many exchanges went: distributions per segment of the path. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
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
    /// The same distribution, for each part of the recording.
    pub parts: Vec<Histogram<u64>>,
}

impl Default for Times {
    fn default() -> Self {
        Self { histogram: histogram(), total_ns: 0, error_ns: 0, parts: vec![histogram(); PARTS] }
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
        if let Some(part) = self.parts.get_mut(part) {
            *part += ns;
        }
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
    pub node: Option<String>,
    /// The pod there.
    pub pod: Option<String>,
    /// The interface.
    pub interface: Option<String>,
    /// Why.
    pub why: String,
}

/// A NAT rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rewrite {
    /// Name of the node.
    pub node: String,
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
            place = self.place_of(key, place);
            self.segments[place].1.add(ns, error_ns, part);
            place += 1;
        }
        if exchange.outcome != Outcome::Delivered {
            *self.failures.entry(failure(exchange)).or_default() += 1;
        }
        let hops = || exchange.request.hops.iter().chain(&exchange.reply.hops);
        for rewrite in hops().filter_map(rewrite).collect::<BTreeSet<_>>() {
            *self.rewrites.entry(rewrite).or_default() += 1;
        }
        if exchange.outcome == Outcome::Delivered {
            *self.ways.entry(way(exchange)).or_default() += 1;
        }
        self.slow(exchange);
    }

    /// Where a segment stands; one that is new comes to `next`, behind what was before it on its way.
    fn place_of(&mut self, key: Key, next: usize) -> usize {
        if let Some(known) = self.segments.iter().position(|(known, _)| *known == key) {
            return known;
        }
        self.segments.insert(next, (key, Times::default()));
        next
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
        fn sum<K: Ord + Clone>(own: &mut BTreeMap<K, u64>, other: &BTreeMap<K, u64>) {
            other.iter().for_each(|(key, count)| *own.entry(key.clone()).or_default() += count);
        }
        sum(&mut self.outcomes, &other.outcomes);
        sum(&mut self.failures, &other.failures);
        sum(&mut self.rewrites, &other.rewrites);
        sum(&mut self.ways, &other.ways);
        self.retransmissions += other.retransmissions;
        for (what, times) in &other.round_trips {
            self.round_trips.entry(*what).or_default().merge(times);
        }
        let mut place = 0;
        for (key, times) in &other.segments {
            place = self.place_of(key.clone(), place);
            self.segments[place].1.merge(times);
            place += 1;
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
