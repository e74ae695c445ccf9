//! Request and reply together: how the exchange ended, what each hop's time is, where the time went.

use std::net::IpAddr;

use super::{
    Answer, Probe,
    chain::{Between, Chain, between},
    clock::{Bounds, Offset},
    drops::{self, End},
    group::{Group, Role, Sorted},
    hops::{self, Timed},
    model::{Direction, Exchange, Outcome, Path},
    shares,
    world::World,
};
use crate::{
    event::{L4, Sighting},
    node::facts::LinkRef,
};

/// The chains of one exchange.
pub(super) struct Story<'a> {
    seq: u16,
    probe: Option<&'a Probe>,
    pub(super) request: Chain<'a>,
    pub(super) reply: Chain<'a>,
    pub(super) bounds: Bounds,
    /// An ICMP error about the request.
    error: Option<&'a Sighting>,
}

/// An exchange, and which routers its request passed.
pub(super) struct Told {
    pub(super) exchange: Exchange,
    /// Node, and the source address of its ICMP errors.
    pub(super) routers: Vec<(usize, Option<IpAddr>)>,
    /// Nobody says it is one of the trace's, and its node would have seen it begin.
    pub(super) began_before: bool,
}

/// How both ways ended.
struct Verdict {
    outcome: Outcome,
    failed: Option<Direction>,
    note: Option<String>,
}

impl<'a> Story<'a> {
    pub(super) fn new(world: &World<'a>, group: &Group<'a>, sorted: &[Sorted<'a>], errors: &[&'a Sighting]) -> Self {
        let request = Chain::new(world, Role::Request, &group.request, sorted);
        let reply = Chain::new(world, Role::Reply, &group.reply, sorted);
        let mut bounds = Bounds::new(sorted.len());
        for chain in [&request, &reply] {
            for pair in chain.fragments.windows(2) {
                let [a, b] = pair else { continue };
                if between(world, a, b) == Between::Wire {
                    bounds.crossing(a.node, a.last().end(), b.node, b.first().start());
                }
            }
        }
        let error = errors.iter().find(|e| group.request.iter().flatten().any(|s| is_about(e, s))).copied();
        Self { seq: group.seq, probe: group.probe, request, reply, bounds, error }
    }

    /// Every device the packets passed.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, LinkRef)> + '_ {
        let fragments = self.request.fragments.iter().chain(&self.reply.fragments);
        fragments.flat_map(|f| f.touches.iter().map(|t| (f.node, t.at())))
    }

    fn answered(&self) -> bool {
        !self.reply.fragments.is_empty() || self.confirmed()
    }

    /// The injector got the reply.
    fn confirmed(&self) -> bool {
        self.probe.is_some_and(|p| p.rtt_ns.is_some() && !matches!(p.answer, Some(Answer::IcmpError { .. })))
    }

    /// `others`: the bounds that the trace's other exchanges give, the best first.
    pub(super) fn tell<'b>(&self, world: &World<'a>, others: impl Iterator<Item = &'b Bounds>) -> Told {
        let answered = self.answered();
        let mut request_end = drops::end(world, &self.request, answered);
        if self.error.is_some() && matches!(request_end, End::Lost(_)) {
            request_end = End::Left;
        }
        let reply_end = drops::end(world, &self.reply, self.confirmed());
        let verdict = self.verdict(world, &request_end, &reply_end);
        let rtt_ns = shares::rtt(world, &self.request, &self.reply);
        let answer = shares::answer_time(&self.request, &self.reply).map(|(.., ns)| ns);

        let mut there = hops::write(world, &self.request);
        there.finish(request_end, answered, answer);
        let began_before = self.probe.is_none() && sender_was_watched(world) && !there.is_from_its_sender();
        let mut back = hops::write(world, &self.reply);
        if self.answered() {
            back.finish(reply_end, self.confirmed(), None);
        }
        let chains = [&self.request, &self.reply];
        let mut notes: Vec<String> = chains.iter().flat_map(|c| c.doubts.iter().chain(&c.notes).cloned()).collect();
        notes.append(&mut there.notes);
        notes.append(&mut back.notes);
        notes.extend(verdict.note);
        let (request, reply) = self.date(there.hops, back.hops, others);
        let exchange = Exchange {
            seq: u32::from(self.seq),
            outcome: verdict.outcome,
            failed_direction: verdict.failed,
            rtt_ns,
            injector_rtt_ns: self.probe.and_then(|p| p.rtt_ns),
            request,
            reply,
            shares: rtt_ns.map_or_else(Vec::new, |ns| shares::shares(world, &self.request, &self.reply, ns)),
            notes,
        };
        Told { exchange, routers: there.routers, began_before }
    }

    fn verdict(&self, world: &World<'_>, request: &End<'_>, reply: &End<'_>) -> Verdict {
        let is = |outcome, failed| Verdict { outcome, failed, note: None };
        if !self.request.doubts.is_empty() || !self.reply.doubts.is_empty() {
            return is(Outcome::Incomplete, None);
        }
        if self.confirmed() {
            return is(Outcome::Delivered, None);
        }
        if !self.reply.fragments.is_empty() {
            return match reply {
                End::Delivered if self.probe.is_some() => Verdict {
                    note: Some("reply: it arrived, but the injector did not take it within its time limit".to_owned()),
                    ..is(Outcome::Delivered, None)
                },
                End::Delivered | End::Left => is(Outcome::Delivered, None),
                End::Dropped { .. } => is(Outcome::Dropped, Some(Direction::Reply)),
                End::Lost(_) => is(Outcome::Lost, Some(Direction::Reply)),
                End::Unknown(_) | End::Unseen => is(Outcome::Incomplete, None),
            };
        }
        if let Some(error) = self.error {
            return Verdict { note: Some(error_in_words(error)), ..is(Outcome::Rejected, Some(Direction::Request)) };
        }
        match request {
            End::Dropped { .. } => is(Outcome::Dropped, Some(Direction::Request)),
            End::Lost(_) => is(Outcome::Lost, Some(Direction::Request)),
            End::Delivered => unanswered(world),
            End::Left | End::Unknown(_) | End::Unseen => is(Outcome::Incomplete, None),
        }
    }

    fn date<'b>(&self, there: Vec<Timed>, back: Vec<Timed>, others: impl Iterator<Item = &'b Bounds>) -> (Path, Path) {
        let Some(start) = there.first().or(back.first()).map(|h| (h.node, h.time_ns)) else {
            return (Path::default(), Path::default());
        };
        let needed: Vec<usize> = there.iter().chain(&back).map(|h| h.node).collect();
        let offsets = self.offsets(start.0, &needed, others);
        let path = |hops: Vec<Timed>| Path { hops: hops.into_iter().map(|h| dated(h, start.1, &offsets)).collect() };
        (path(there), path(back))
    }

    /// From this exchange alone if it can be; else with the help of the others.
    fn offsets<'b>(
        &self,
        reference: usize,
        needed: &[usize],
        others: impl Iterator<Item = &'b Bounds>,
    ) -> Vec<Option<Offset>> {
        let mut offsets = self.bounds.clone().solve(reference);
        for other in others {
            if needed.iter().all(|n| offsets[*n].is_some()) {
                break;
            }
            let helped = self.bounds.and(other).solve(reference);
            for (mine, theirs) in offsets.iter_mut().zip(helped) {
                *mine = mine.or(theirs);
            }
        }
        offsets
    }
}

/// All that the source sends is recorded, from a certain moment on.
fn sender_was_watched(world: &World<'_>) -> bool {
    world.owner(world.ends.source.address).is_some_and(|(node, _)| !world.unreliable(node))
}

/// The request arrived, and no reply was seen anywhere.
fn unanswered(world: &World<'_>) -> Verdict {
    let (outcome, failed, note) = if world.any_unreliable() {
        (Outcome::Incomplete, None, "reply: none was seen, but records are missing")
    } else {
        (Outcome::Lost, Some(Direction::Reply), "reply: the request arrived, but no reply to it was seen leaving")
    };
    Verdict { outcome, failed, note: Some(note.to_owned()) }
}

fn dated(timed: Timed, start: u64, offsets: &[Option<Offset>]) -> super::model::Hop {
    let Timed { mut hop, node, time_ns } = timed;
    if let Some(offset) = offsets[node] {
        let since = i128::from(time_ns) - offset.ns - i128::from(start);
        hop.at_ns = Some(u64::try_from(since).unwrap_or(0));
        hop.error_ns = offset.error_ns;
    }
    hop
}

/// ICMP messages that say a packet was not delivered (RFC 792): unreachable, time exceeded, parameter problem.
pub(super) fn is_error(s: &Sighting) -> bool {
    matches!((s.packet.src, s.packet.l4), (IpAddr::V4(_), L4::Icmp { kind: 3 | 11 | 12, .. }))
}

/// An ICMP error repeats the head of the packet it is about; the first 8 bytes of that hold its length (bytes 2 and 3)
/// and its identification (4 and 5).
fn is_about(error: &Sighting, packet: &Sighting) -> bool {
    let L4::Icmp { nonce, .. } = error.packet.l4 else { return false };
    let bytes = nonce.to_be_bytes();
    let len = u16::from_be_bytes([bytes[2], bytes[3]]);
    let id = u16::from_be_bytes([bytes[4], bytes[5]]);
    error.packet.dst == packet.packet.src && (len, id) == (packet.packet.ip_len, packet.packet.ip_id)
}

fn error_in_words(error: &Sighting) -> String {
    let L4::Icmp { kind, code, .. } = error.packet.l4 else { return String::new() };
    let what = match kind {
        3 => "destination unreachable",
        11 => "time exceeded",
        _ => "parameter problem",
    };
    format!("request: {} answered with an ICMP error: {what}, code {code}", error.packet.src)
}
