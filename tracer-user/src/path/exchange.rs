//! Request and reply together: how the exchange ended, what each hop's time is, where the time went.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Answer, Probe,
    chain::{Between, Chain, between},
    clock::{Bounds, Offset, Solved, Together},
    culprit::{self, answer, naming::Suspicion},
    drops::{self, End},
    ending,
    errors::Seen,
    group::{ACK, Group, RST, Role, Sorted},
    hops::{self, Timed},
    model::{Action, ClockAtStart, Direction, DropCause, Exchange, Outcome, Path, Rejection, What},
    shares,
    touch::{Touch, Way},
    world::World,
};
use crate::{
    event::{L4, Sighting},
    node::facts::LinkRef,
};

/// The chains of one exchange.
pub(super) struct Story<'a> {
    seq: u32,
    what: Option<What>,
    notes: Vec<String>,
    probe: Option<&'a Probe>,
    pub(super) request: Chain<'a>,
    pub(super) reply: Chain<'a>,
    pub(super) bounds: Bounds,
    /// The answer that refused the request.
    rejection: Option<Rejection>,
}

/// An exchange, and which routers its request passed.
pub(super) struct Told<'a> {
    pub(super) exchange: Exchange,
    /// Node, and the source address of its ICMP errors.
    pub(super) routers: Vec<(usize, Option<IpAddr>)>,
    /// Nobody says it is one of the trace's, and its node would have seen it begin, or not all nodes recorded yet.
    pub(super) began_before: bool,
    /// The drop whose rule is still to be named.
    pub(super) suspicion: Option<Suspicion<'a>>,
}

/// How both ways ended.
struct Verdict {
    outcome: Outcome,
    failed: Option<Direction>,
    note: Option<String>,
}

impl<'a> Story<'a> {
    pub(super) fn new(world: &World<'a>, group: &Group<'a>, sorted: &[Sorted<'a>], errors: &[Seen<'a>]) -> Self {
        let mut request = Chain::new(world, Role::Request, &group.request, sorted);
        request.doubts.extend(group.doubts.iter().cloned());
        let mut reply = Chain::new(world, Role::Reply, &group.reply, sorted);
        let error = answer::way(world, errors, sorted);
        let mut bounds = Bounds::default();
        for chain in [&request, &reply, &error] {
            for pair in chain.fragments.windows(2) {
                let [a, b] = pair else { continue };
                if between(world, a, b) == Between::Wire {
                    bounds.crossing(a.node, a.last().end(), b.node, b.first().start());
                }
            }
        }
        let Group { seq, what, probe, request: _, reply: _, again: _, notes, doubts: _ } = group;
        request.redirected(world, reply.first().map(|(node, first)| (node, first.at())));
        let confirmed = probe.is_some_and(|p| p.rtt_ns.is_some());
        reply.redirected(world, request.first().filter(|_| confirmed).map(|(node, first)| (node, first.at())));
        let rejection = answer::rejection(world, errors, *probe, &error);
        let (seq, what, probe, notes) = (*seq, *what, *probe, notes.clone());
        let mut story = Self { seq, what, notes, probe, request, reply, bounds, rejection };
        if story.refused() {
            story.rejection = Some(story.refusal(world));
        }
        story
    }

    /// Every device the packets passed.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, LinkRef)> + '_ {
        let fragments = self.request.fragments.iter().chain(&self.reply.fragments);
        fragments.flat_map(|f| f.touches.iter().map(|t| (f.node, t.at())))
    }

    /// It was seen when another node, where it may have come by before, may not have recorded yet.
    fn may_lack_its_beginning(&self, world: &World<'_>) -> bool {
        let fragments = self.request.fragments.iter().chain(&self.reply.fragments);
        let mut began = fragments.map(|f| (f.first().start(), world.node(f.node).alone_ns));
        began.any(|(start, alone)| alone.is_some_and(|until| start <= until))
    }

    fn answered(&self) -> bool {
        !self.reply.fragments.is_empty() || self.confirmed()
    }

    /// The injector got the reply, be it a refusal.
    fn confirmed(&self) -> bool {
        self.probe.is_some_and(|p| p.rtt_ns.is_some() && !matches!(p.answer, Some(Answer::IcmpError { .. })))
    }

    /// What came back says that nobody takes the request: the port is closed, or somebody refuses in its name.
    fn refused(&self) -> bool {
        let reset = |(_, first): (usize, &Touch<'_>)| match first.first.packet.l4 {
            L4::Tcp { flags, .. } => flags & RST != 0,
            _ => false,
        };
        self.probe.is_some_and(|p| p.answer == Some(Answer::Reset)) || self.reply.first().is_some_and(reset)
    }

    /// The first segment back acknowledges something.
    fn acknowledged(&self) -> bool {
        let acknowledges = |(_, first): (usize, &Touch<'_>)| match first.first.packet.l4 {
            L4::Tcp { flags, .. } => flags & ACK != 0,
            _ => false,
        };
        self.reply.first().is_some_and(acknowledges)
    }

    /// What the trace's other exchanges say of the clocks: `all` together, and `others` one by one, the best first.
    pub(super) fn tell<'b>(
        &self,
        world: &World<'a>,
        all: &Together,
        others: impl Iterator<Item = &'b Bounds> + Clone,
    ) -> Told<'a> {
        let answered = self.answered();
        let mut request_end = self.request_end(world, answered);
        if self.rejection.is_some() && matches!(request_end, End::Lost(..)) {
            request_end = End::Left;
        }
        let mut reply_end = self.reply_end(world, &request_end);
        for (chain, end) in [(&self.request, &mut request_end), (&self.reply, &mut reply_end)] {
            if let (End::Lost(..), Some(ns), Some((node, last))) =
                (&*end, self.cut_off(world, chain, all, others.clone()), chain.last())
            {
                let (place, ms) = (world.place(node, last.at()), milliseconds(ns));
                *end =
                    End::Unknown(format!("it left {place} {ms} before the recording ended: it may have come further"));
            }
        }
        let unanswered = || match self.cut_off(world, &self.request, all, others.clone()) {
            Some(ns) => too_soon(ns),
            None => unanswered(world),
        };
        let verdict = self.verdict(unanswered, &request_end, &reply_end);
        let suspicion = match verdict.failed {
            Some(Direction::Request) => Suspicion::of(world, &request_end, Direction::Request),
            Some(Direction::Reply) => Suspicion::of(world, &reply_end, Direction::Reply),
            None => None,
        };
        let round_trip = shares::round_trip(world, &self.request, &self.reply);
        let rtt_ns = round_trip.as_ref().map(|trip| trip.ns);
        let rtt_at = round_trip.and_then(|trip| trip.edge).map(|(node, edge)| world.place(node, edge));
        let answer = shares::answer_time(&self.request, &self.reply).map(|(.., ns)| ns);

        // A drop that was seen says more than the answer that came of it.
        let rejection = match &request_end {
            End::Dropped { .. } | End::Unsent { .. } if self.refused() => {
                self.rejection.clone().map(|r| self.of_rule(world, r))
            }
            End::Dropped { .. } | End::Unsent { .. } => self.rejection.clone(),
            _ => self.rejection.clone().map(|r| self.of_port(world, r)),
        };
        let rejecting = match &request_end {
            End::Dropped { node, .. } | End::Unsent { node, .. } if self.refused() => Some(*node),
            _ => None,
        };
        let hint = match &request_end {
            End::Lost(_, hint) => hint.clone(),
            _ => None,
        };
        let mut there = hops::write(world, &self.request, None);
        there.finish(request_end, answered, answer);
        if let Some((node, first)) = self.reply.first().filter(|(node, _)| rejecting == Some(*node)) {
            // The rule had decided when its answer left; the buffer is freed, and dates what was not seen, after that.
            for hop in there.hops.iter_mut().filter(|hop| hop.node == node) {
                hop.time_ns = hop.time_ns.map(|ns| ns.min(first.start()));
            }
        }
        let unbegun = sender_was_watched(world) && !there.is_from_its_sender();
        let began_before = self.probe.is_none() && (unbegun || self.may_lack_its_beginning(world));
        let mut back = hops::write(world, &self.reply, rejecting);
        if self.answered() || matches!(reply_end, End::Unsent { .. }) {
            back.finish(reply_end, self.confirmed(), None);
        }
        let chains = [&self.request, &self.reply];
        let mut notes = self.notes.clone();
        let of_chains = chains.iter().flat_map(|c| c.doubts.iter().chain(&c.notes).cloned());
        notes.extend(of_chains);
        let incomplete = [!there.notes.is_empty(), !back.notes.is_empty()];
        notes.append(&mut there.notes);
        notes.append(&mut back.notes);
        notes.extend(hint);
        notes.extend(self.between_pods(world, &there.hops));
        // A verdict's own words come first: they may be all that the first screen shows.
        notes.splice(0..0, verdict.note);
        let (mut request, mut reply, clocks) = self.date(world, there.hops, back.hops, (all, others));
        [request.incomplete, reply.incomplete] = incomplete;
        let mut exchange = Exchange {
            seq: self.seq,
            what: self.what,
            again_after_ns: None,
            outcome: verdict.outcome,
            failed_direction: verdict.failed,
            rtt_ns,
            rtt_at,
            injector_rtt_ns: self.probe.and_then(|p| p.rtt_ns),
            request,
            reply,
            shares: rtt_ns.map_or_else(Vec::new, |ns| shares::shares(world, &self.request, &self.reply, ns)),
            clocks,
            notes,
            rejection: rejection.filter(|_| verdict.outcome != Outcome::Delivered),
        };
        exchange.note_loop();
        Told { exchange, routers: there.routers, began_before, suspicion }
    }

    /// What a pod sends to a pod has the pods' addresses at both ends: a source that was rewritten on the way hides who sent it. Not
    /// where it was sent to a service or a node, which translate.
    fn between_pods(&self, world: &World<'_>, there: &[Timed]) -> Option<String> {
        let [from, to] = [&world.ends.source, &world.ends.destination].map(|end| {
            let (node, at) = world.owner(end.address)?;
            world.pod(node, at.netns)
        });
        let (from, to) = (from?, to?);
        let is = |action| move |timed: &&Timed| timed.hop.action == action;
        let snat = there.iter().rev().find(is(Action::Snat)).filter(|_| !there.iter().any(|t| is(Action::Dnat)(&t)))?;
        Some(format!(
            "SNAT between pods, on {}: {to} sees {}, not {from}; so do its network policies and logs. Masquerade rules are to \
             spare what goes to pods (nonMasqueradeCIDRs, IP pools)",
            snat.hop.node, snat.hop.src
        ))
    }

    /// A reset is an answer that does not prove the request's arrival: a rule that drops the request sends it in the
    /// destination's name (`nf_send_reset`).
    fn request_end(&self, world: &World<'a>, answered: bool) -> End<'a> {
        // That it was freed is known of what a kprobe saw translated before that.
        let unseen = self.request.fragments.is_empty();
        if let Some(refused) = self.probe.filter(|_| unseen).and_then(|p| culprit::refused::at_source(world, p)) {
            return refused;
        }
        if self.port_unreachable()
            && let Some(closed) = drops::port_closed(world, &self.request)
        {
            return closed;
        }
        if self.refused() {
            let by_rule = drops::end(world, &self.request, false);
            if matches!(&by_rule, End::Dropped { cause, .. } if cause.detail.cause == DropCause::Netfilter) {
                return by_rule;
            }
        }
        drops::end(world, &self.request, answered)
    }

    /// Where the request arrived, a rule there may have refused to let a reply out.
    fn reply_end(&self, world: &World<'a>, request: &End<'a>) -> End<'a> {
        let unseen = !self.answered() && self.reply.frees.is_empty();
        let refused = matches!(request, End::Delivered).then(|| culprit::refused::reply(world, &self.request));
        match refused.flatten().filter(|_| unseen) {
            Some(refused) => refused,
            None => drops::end(world, &self.reply, self.confirmed()),
        }
    }

    /// How long after the packet was last seen recording ended, ns, if that was too soon to say what became of it.
    fn cut_off<'b>(
        &self,
        world: &World<'_>,
        chain: &Chain<'_>,
        all: &Together,
        others: impl Iterator<Item = &'b Bounds>,
    ) -> Option<u64> {
        let (node, last) = chain.last()?;
        let needed: Vec<usize> = (0..world.evidence.nodes.len()).collect();
        ending::too_soon(world, node, last.end(), &self.offsets(node, &needed, (all, others)))
    }

    fn verdict(&self, unanswered: impl FnOnce() -> Verdict, request: &End<'_>, reply: &End<'_>) -> Verdict {
        let is = |outcome, failed| Verdict { outcome, failed, note: None };
        if !self.request.doubts.is_empty() || !self.reply.doubts.is_empty() {
            return is(Outcome::Incomplete, None);
        }
        let answered = if self.refused() { Outcome::Rejected } else { Outcome::Delivered };
        // By a rule on its way, be the answer in the destination's name.
        let by_rule = self.refused() && matches!(request, End::Dropped { .. } | End::Unsent { .. });
        if self.confirmed() {
            return is(answered, by_rule.then_some(Direction::Request));
        }
        if !self.reply.fragments.is_empty() {
            return match reply {
                End::Delivered if self.probe.is_some() => Verdict {
                    note: Some("reply: it arrived, but the injector did not take it within its time limit".to_owned()),
                    ..is(answered, None)
                },
                End::Delivered | End::Left => is(answered, by_rule.then_some(Direction::Request)),
                // A reply that was sent was seen.
                End::Dropped { .. } | End::Unsent { .. } => is(Outcome::Dropped, Some(Direction::Reply)),
                End::Lost(..) => is(Outcome::Lost, Some(Direction::Reply)),
                End::Unknown(_) | End::Unseen => is(Outcome::Incomplete, None),
            };
        }
        // An answer that did not come back is none to who waits for it.
        if self
            .rejection
            .as_ref()
            .is_some_and(|r| r.arrived || !matches!(request, End::Dropped { .. } | End::Unsent { .. }))
        {
            return is(Outcome::Rejected, Some(Direction::Request));
        }
        match request {
            End::Dropped { .. } | End::Unsent { .. } => is(Outcome::Dropped, Some(Direction::Request)),
            End::Lost(..) => is(Outcome::Lost, Some(Direction::Request)),
            End::Delivered if matches!(reply, End::Unsent { .. }) => is(Outcome::Dropped, Some(Direction::Reply)),
            End::Delivered => unanswered(),
            End::Left | End::Unknown(_) | End::Unseen => is(Outcome::Incomplete, None),
        }
    }

    /// The port that was asked for, as the source sent it.
    fn port(&self) -> Option<u16> {
        self.probe.map(|p| p.dst_port).filter(|p| *p != 0).or_else(|| self.request.first().and_then(destination_port))
    }

    /// The port where the request came to its end: behind DNAT another one than was asked.
    fn port_at_end(&self) -> Option<u16> {
        self.request.last().and_then(destination_port).or_else(|| self.port())
    }

    /// A reset: by the destination itself, or by somebody in its name, as a rule with `tcp-reset` does.
    fn refusal(&self, world: &World<'_>) -> Rejection {
        let asked = world.ends.destination.address;
        // Its own address, whatever NAT makes of that on the way back.
        let from = self.reply.first().map_or(asked, |(_, first)| first.first.packet.src);
        let port = self.port_at_end().map_or_else(String::new, |p| format!(" {p}"));
        let closed = match self.what {
            // Somebody had listened, or there were no data.
            Some(What::Data) if self.acknowledged() => format!(
                "connection reset on port{port} after its data had arrived; whether they were read is not known"
            ),
            Some(What::Data) => format!("connection reset on port{port}: its data were not taken"),
            _ => format!("connection refused: nothing listens on port{port}"),
        };
        let of = |place: Option<(usize, u32)>, meaning: String| Rejection {
            from,
            node: place.map(|(node, _)| world.node(node).name.clone()).or_else(|| world.names.node(from)),
            pod: match place {
                Some((node, netns)) => world.pod(node, netns),
                None => world.names.pod(from),
            },
            icmp_type: None,
            icmp_code: None,
            meaning,
            mtu: None,
            arrived: true,
            fate: None,
        };
        let Some((node, first)) = self.reply.first() else {
            return of(None, format!("connection refused on port{port} (TCP reset)"));
        };
        let netns = first.at().netns;
        let reached = self.request.last().is_some_and(|(n, t)| n == node && t.at().netns == netns);
        let own = world.namespaces(node).owns(netns, first.first.packet.src);
        let place = Some((node, netns));
        let certain = self.what == Some(What::Data) || self.came_to_tcp(node, netns);
        match first.way {
            Way::Out if reached && own && certain => of(place, closed),
            // A rule of its own may have sent it as well.
            Way::Out if reached && own => of(
                place,
                format!("connection refused on port{port} (TCP reset): nothing listens there, or a rule there refuses"),
            ),
            Way::Out => of(place, in_the_name_of(asked)),
            Way::In => of(None, format!("connection refused on port{port} (TCP reset)")),
        }
    }

    /// TCP itself freed the request there, be it for want of a socket: no rule did.
    fn came_to_tcp(&self, node: usize, netns: u32) -> bool {
        let by_tcp = |free: &Sighting| {
            let function = free.free.as_ref().and_then(|free| free.function.as_deref());
            function.is_some_and(|name| name.starts_with("tcp_"))
        };
        self.request.frees.iter().any(|(n, free)| *n == node && free.netns == netns && by_tcp(free))
    }

    /// The request was seen dropped by a rule, so what refused it was that rule.
    fn of_rule(&self, world: &World<'_>, rejection: Rejection) -> Rejection {
        let from = world.ends.destination.address;
        let Some((node, last)) = self.request.last() else {
            return Rejection { meaning: in_the_name_of(from), ..rejection };
        };
        let netns = last.at().netns;
        let meaning = if world.namespaces(node).owns(netns, from) {
            format!("TCP reset by a firewall rule at {from} itself (whether the port is open is not known)")
        } else {
            in_the_name_of(from)
        };
        Rejection { meaning, pod: world.pod(node, netns), node: Some(world.node(node).name.clone()), ..rejection }
    }

    fn port_unreachable(&self) -> bool {
        self.rejection.as_ref().is_some_and(|rejection| {
            let kind = (rejection.from, rejection.icmp_type, rejection.icmp_code);
            matches!(kind, (IpAddr::V4(_), Some(3), Some(3)) | (IpAddr::V6(_), Some(1), Some(4)))
        })
    }

    /// "Port unreachable" by the destination itself says that nothing listens; by others it is a firewall's word.
    fn of_port(&self, world: &World<'_>, mut rejection: Rejection) -> Rejection {
        let own = rejection.from == world.ends.destination.address && rejection.pod.is_some();
        if let (true, true, Some(port)) = (self.port_unreachable(), own, self.port()) {
            rejection.meaning = format!("{}: nothing listens on port {port}", rejection.meaning);
        }
        rejection
    }

    fn date<'b>(
        &self,
        world: &World<'_>,
        there: Vec<Timed>,
        back: Vec<Timed>,
        clocks: (&Together, impl Iterator<Item = &'b Bounds>),
    ) -> (Path, Path, Vec<ClockAtStart>) {
        let Some(start) = there.first().or(back.first()).and_then(|h| Some((h.node, h.time_ns?))) else {
            // What its source kept has no time; all other ways begin with one.
            let undated =
                |hops: Vec<Timed>| Path { hops: hops.into_iter().map(|h| h.hop).collect(), incomplete: false };
            return (undated(there), undated(back), Vec::new());
        };
        let needed: Vec<usize> = there.iter().chain(&back).map(|h| h.node).collect();
        let offsets = self.offsets(start.0, &needed, clocks);
        let path = |hops: Vec<Timed>| Path {
            hops: hops.into_iter().map(|h| dated(h, start.1, &offsets)).collect(),
            incomplete: false,
        };
        let on_the_path: BTreeSet<usize> = needed.into_iter().collect();
        let clocks = on_the_path.into_iter().filter_map(|node| {
            let offset = offsets[node]?;
            let monotonic_ns = i64::try_from(i128::from(start.1) + offset.ns).ok()?;
            Some(ClockAtStart { node: world.node(node).name.clone(), monotonic_ns, error_ns: offset.error_ns })
        });
        let clocks = clocks.collect();
        (path(there), path(back), clocks)
    }

    /// By node; those `needed` from this exchange alone if it can be, else with the help of the others.
    fn offsets<'b>(
        &self,
        reference: usize,
        needed: &[usize],
        (all, others): (&Together, impl Iterator<Item = &'b Bounds>),
    ) -> Vec<Option<Offset>> {
        let nodes = needed.iter().max().map_or(0, |most| most + 1);
        let own = self.bounds.solve();
        let mut offsets: Vec<_> = (0..nodes).map(|node| own.offset(reference, node)).collect();
        let lack = |offsets: &[Option<Offset>]| needed.iter().any(|n| offsets[*n].is_none());
        let complete = |offsets: &mut [Option<Offset>], helped: &Solved| {
            for (node, mine) in offsets.iter_mut().enumerate() {
                *mine = mine.or_else(|| helped.offset(reference, node));
            }
        };
        if lack(&offsets) {
            complete(&mut offsets, all.solved());
        }
        for other in others {
            if !lack(&offsets) {
                break;
            }
            complete(&mut offsets, &self.bounds.clone().and(other).solve());
        }
        offsets
    }
}

fn destination_port((_, touch): (usize, &Touch<'_>)) -> Option<u16> {
    match touch.first.packet.l4 {
        L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. } => Some(dst_port),
        _ => None,
    }
}

fn in_the_name_of(destination: IpAddr) -> String {
    format!("TCP reset in the name of {destination}: a firewall rule, not the destination")
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

/// The request arrived this long before the recording ended, ns.
fn too_soon(ns: u64) -> Verdict {
    let note =
        format!("reply: none was seen until the recording ended, {} after the request arrived", milliseconds(ns));
    Verdict { outcome: Outcome::Incomplete, failed: None, note: Some(note) }
}

/// `204.1 ms`.
pub(super) fn milliseconds(ns: u64) -> String {
    format!("{}.{} ms", ns / 1_000_000, ns / 100_000 % 10)
}

fn dated(timed: Timed, start: u64, offsets: &[Option<Offset>]) -> super::model::Hop {
    let Timed { mut hop, node, time_ns } = timed;
    if let (Some(offset), Some(time_ns)) = (offsets[node], time_ns) {
        let since = i128::from(time_ns) - offset.ns - i128::from(start);
        hop.at_ns = Some(u64::try_from(since).unwrap_or(0));
        hop.error_ns = offset.error_ns;
    }
    hop
}
