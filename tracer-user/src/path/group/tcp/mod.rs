//! TCP that others send: handshakes, and data with what acknowledges it.
//!
//! An exchange is what the source sends: a SYN with its SYN+ACK or RST, or a segment with data with the first segment back
//! that acknowledges all of it.

use foldhash::{HashMap, HashMapExt};

use super::{
    super::{model::What, world::World},
    Group, Sorted,
    flow::{Aliases, Tuple},
    probes::{ACK, RST, SYN},
};
use crate::event::Sighting;

mod stream;

use stream::{Segment, Stream, Unit};

/// Both directions of a connection, as the source calls them.
struct Connection<'a> {
    there: Stream<'a>,
    back: Stream<'a>,
}

pub(super) fn passive<'a>(world: &World<'a>, sorted: &[Sorted<'a>], flows: &Aliases) -> Vec<Group<'a>> {
    let source = world.ends.source.address;
    let mut connections: HashMap<Tuple, Connection<'a>> = HashMap::new();
    let mut order = Vec::new();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            let Some(own) = flows.of(s).filter(|t| t.protocol == 6) else { continue };
            let there = own.src == source;
            let key = if there { own } else { own.turned() };
            if key.src != source {
                continue;
            }
            let connection = connections.entry(key).or_insert_with(|| {
                order.push(key);
                let [there, back] = [(); 2].map(|()| Stream::new(sorted.len()));
                Connection { there, back }
            });
            if there { connection.there.add(node, s) } else { connection.back.add(node, s) }
        }
    }
    let mut groups = Vec::new();
    for key in order {
        let first = groups.len();
        for mut group in connections[&key].exchanges(world) {
            group.again = group.again.map(|(i, ns)| (first + i, ns));
            groups.push(group);
        }
    }
    groups
}

fn begins(segment: &Segment<'_>) -> bool {
    segment.flags & (SYN | ACK) == SYN
}

impl<'a> Connection<'a> {
    fn exchanges(&self, world: &World<'a>) -> Vec<Group<'a>> {
        let home = |address| world.owner(address).map(|(node, at)| (node, at.netns));
        let source = home(world.ends.source.address);
        let destination = home(world.ends.destination.address);
        let requests = self.there.units(source, |s| begins(s) || (s.len > 0 && s.flags & SYN == 0));
        let replies = self.back.units(destination, |s| s.flags & (ACK | RST) != 0);
        // Where answers are first seen: on one node its clock decides which came first.
        let near = |node: &usize| self.back.seen_on(*node);
        let answering = [destination, source].into_iter().flatten().map(|(node, _)| node).find(near);
        let answering = answering.or_else(|| replies.list.first().map(|r| r.node));
        let arrived = destination.filter(|(node, _)| Some(*node) == answering).map(|(_, netns)| netns);
        let answers = Answers { arrived, ..Answers::new(self, answering, &replies.list) };
        let mut groups = Vec::with_capacity(requests.list.len());
        for (i, unit) in requests.list.iter().enumerate() {
            let mut group = Group::new(0, None, world.evidence.nodes.len());
            group.what = Some(if begins(&unit.segment) { What::Handshake } else { What::Data });
            let request = self.there.of(i, &requests);
            group.notes.extend(request.note.map(|n| format!("request: {n}")));
            group.doubts.extend(request.doubt.map(|d| format!("request: {d}")));
            let again = requests.first_of(i);
            group.again = again.map(|first| (first, unit.time().saturating_sub(requests.list[first].time())));
            if let Some(answer) = answers.to(unit, &request.nodes, requests.next_of(i), again.is_some()) {
                if begins(&unit.segment) && answer.acknowledged < unit.segment.end() {
                    let len = unit.segment.len;
                    group
                        .notes
                        .push(format!("the answer does not acknowledge the {len} bytes of data that the SYN carried"));
                }
                let reply = self.back.of(answer.index, &replies);
                group.reply = reply.nodes;
                group.notes.extend(reply.note.map(|n| format!("reply: {n}")));
                group.doubts.extend(reply.doubt.map(|d| format!("reply: {d}")));
            }
            group.request = request.nodes;
            groups.push(group);
        }
        groups
    }
}

struct Answer<'r, 'a> {
    /// Among all.
    index: usize,
    unit: &'r Unit<'a>,
    /// The byte up to which it acknowledges; of a reset without an acknowledgement the first there can be.
    acknowledged: i64,
    /// The most up to here.
    most: i64,
}

/// What came back, in order of time on the node where it is first seen.
struct Answers<'r, 'a> {
    node: Option<usize>,
    /// The destination's namespace, if it is on that node.
    arrived: Option<u32>,
    replies: Vec<Answer<'r, 'a>>,
    /// Resets that acknowledge nothing.
    resets: Vec<Answer<'r, 'a>>,
}

impl<'r, 'a> Answers<'r, 'a> {
    fn new(connection: &Connection<'a>, node: Option<usize>, replies: &'r [Unit<'a>]) -> Self {
        let mut most = i64::MIN;
        let on_node = replies.iter().enumerate().filter(|(_, r)| Some(r.node) == node);
        let all = on_node.map(|(index, unit)| {
            let acknowledges = unit.segment.flags & ACK != 0;
            let acknowledged = if acknowledges { connection.there.acknowledged(unit.segment.ack) } else { i64::MIN };
            most = most.max(acknowledged);
            Answer { index, unit, acknowledged, most }
        });
        let (replies, resets) = all.partition(|answer| answer.unit.segment.flags & ACK != 0);
        Self { node, arrived: None, replies, resets }
    }

    /// The first answer to a unit with these sightings. `next`: the same bytes sent again; `again`: it is that itself.
    fn to(
        &self,
        unit: &Unit<'a>,
        sightings: &[Vec<&Sighting>],
        next: Option<&Unit<'a>>,
        again: bool,
    ) -> Option<&Answer<'r, 'a>> {
        let node = self.node?;
        let came = sightings[node].first().map(|s| s.time_ns);
        // Sent more than once, and this one did not come to where the answers come from: they answer another.
        if came.is_none() && (again || next.is_some()) {
            return None;
        }
        let end = unit.segment.end();
        let handshake = begins(&unit.segment);
        let least = if handshake { unit.segment.start + 1 } else { end };
        let from = self.replies.partition_point(|r| r.most < least);
        let answers = |r: &&Answer<'_, '_>| {
            let flags = r.unit.segment.flags;
            came.is_none_or(|came| r.unit.time() >= came)
                && if handshake {
                    // Of a SYN with data (TCP Fast Open, RFC 7413) the data may not be taken.
                    flags & (SYN | RST) != 0 && (unit.segment.start + 1..=end).contains(&r.acknowledged)
                } else {
                    flags & SYN == 0 && r.acknowledged >= end
                }
        };
        // To a segment with an ACK, a socket that is not there resets with that very number, and without an ACK (RFC 9293, 3.10.7.1).
        let resets = |r: &&Answer<'_, '_>| {
            !handshake && came.is_none_or(|came| r.unit.time() >= came) && r.unit.number() == Some(unit.segment.ack)
        };
        let answer = self.replies[from..].iter().find(answers);
        let reset = self.resets.iter().find(resets);
        let reply = answer.into_iter().chain(reset).min_by_key(|r| r.index)?;
        // Where only the sender is seen, what comes after it was sent again is taken for the answer to that.
        let overtaken = next.is_some_and(|n| n.node == node && n.time() <= reply.unit.time() && unit.node == node);
        // Seen where it arrived too, the first to arrive is answered.
        let arrived = self.arrived.is_some_and(|netns| sightings[node].iter().any(|s| s.netns == netns));
        (!overtaken || arrived).then_some(reply)
    }
}
