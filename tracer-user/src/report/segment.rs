//! An exchange's round trip, cut where a hook saw the packet.

use std::sync::Arc;

use serde::Serialize;

use crate::path::model::{Action, Direction, Exchange, Hop};

/// A place where packets are seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Name of the node.
    pub node: Arc<str>,
    /// `namespace/pod`; None: the node's own namespace.
    pub pod: Option<Arc<str>>,
    /// Interface.
    pub interface: Arc<str>,
}

/// What takes the time between two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Waiting in an interface's queue: from `net_dev_queue` to `net_dev_start_xmit`.
    Queue,
    /// Inside one network namespace: routing, netfilter, bridges, encapsulation.
    Forwarding,
    /// From one network namespace of a node into another, over a virtual cable.
    Link,
    /// From one traced node to another.
    Wire,
    /// From the request's arrival to the reply's first sight, at the destination.
    Answer,
    /// Beyond the last traced node.
    Beyond,
    /// Between sights that do not follow each other.
    Unknown,
}

impl Kind {
    /// In a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Forwarding => "forwarding",
            Self::Link => "link",
            Self::Wire => "wire",
            Self::Answer => "answer",
            Self::Beyond => "beyond",
            Self::Unknown => "unknown",
        }
    }
}

/// What a segment is told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// Of the request or of the reply; the answer is the request's.
    pub direction: Direction,
    /// What takes the time.
    pub kind: Kind,
    /// Where it begins.
    pub from: Place,
    /// Where it ends; of a queue the same.
    pub to: Place,
}

/// A part of one round trip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which.
    pub key: Key,
    /// How long it took, ns.
    pub ns: u64,
    /// Bound of the error of that, ns; 0 within a node. Of a wire, half of its two-way time: what the two directions have
    /// too much and too little cancels.
    pub error_ns: u64,
}

/// A sight with a time of its own.
struct Sight<'e> {
    direction: Direction,
    hop: &'e Hop,
    place: Place,
    /// When it came to the queue, or in.
    from: u64,
    /// When it left the queue.
    until: u64,
}

impl<'e> Sight<'e> {
    fn of(direction: Direction, hop: &'e Hop) -> Option<Self> {
        let at = hop.at_ns?;
        let queue = hop.detail.queue_ns.unwrap_or(0);
        let (from, until) = match hop.action {
            Action::Sent => (at, at + queue),
            Action::Transmitted | Action::Encapsulated => (at.saturating_sub(queue), at),
            Action::Received | Action::Decapsulated => (at, at),
            _ => return None,
        };
        let place = Place { node: hop.node.clone(), pod: hop.pod.clone(), interface: hop.interface.clone()? };
        Some(Self { direction, hop, place, from, until })
    }

    fn comes_in(&self) -> bool {
        matches!(self.hop.action, Action::Received | Action::Decapsulated)
    }
}

/// The parts of an exchange's round trip, in order; they add up to its `rtt_ns`, but for the bounds of their errors. Empty where the
/// round trip is not known.
pub fn segments(exchange: &Exchange) -> Vec<Segment> {
    if exchange.rtt_ns.is_none() {
        return Vec::new();
    }
    let there = exchange.request.hops.iter().filter_map(|hop| Sight::of(Direction::Request, hop));
    let back = exchange.reply.hops.iter().filter_map(|hop| Sight::of(Direction::Reply, hop));
    let sights: Vec<_> = there.chain(back).collect();
    let mut segments = Vec::new();
    for (index, sight) in sights.iter().enumerate() {
        if sight.until > sight.from {
            let (from, to) = (sight.place.clone(), sight.place.clone());
            let key = Key { direction: sight.direction, kind: Kind::Queue, from, to };
            segments.push(Segment { key, ns: sight.until - sight.from, error_ns: 0 });
        }
        let Some(next) = sights.get(index + 1) else { continue };
        let (from, to) = (sight.place.clone(), next.place.clone());
        let kind = between(sight, next);
        let same_clock = sight.hop.error_ns == next.hop.error_ns && sight.place.node == next.place.node;
        let error_ns = if same_clock { 0 } else { sight.hop.error_ns.max(next.hop.error_ns) };
        let ns = next.from.saturating_sub(sight.until);
        segments.push(Segment { key: Key { direction: sight.direction, kind, from, to }, ns, error_ns });
    }
    segments
}

fn between(a: &Sight<'_>, b: &Sight<'_>) -> Kind {
    let (from, to) = (&a.place, &b.place);
    let same_space = (&from.node, &from.pod) == (&to.node, &to.pod);
    match (a.direction == b.direction, a.comes_in(), b.comes_in()) {
        (false, true, false) if same_space => Kind::Answer,
        (false, false, true) => Kind::Beyond,
        (false, ..) => Kind::Unknown,
        (true, _, true) if from.node != to.node => Kind::Wire,
        (true, false, true) if !same_space => Kind::Link,
        // Out by a node's own interface and in again: there was a router between.
        (true, false, true) => Kind::Beyond,
        (true, _, _) if same_space => Kind::Forwarding,
        (true, ..) => Kind::Unknown,
    }
}
