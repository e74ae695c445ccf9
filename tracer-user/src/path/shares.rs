//! Where the round trip's time went. Two-way times on a wire need no common clock: the offset cancels.

use std::collections::BTreeMap;

use super::{
    chain::{Between, Chain, between, turned_outside},
    model::{Share, ShareOf},
    touch::{Fragment, Touch, Way},
    world::World,
};
use crate::node::facts::LinkRef;

/// Times of one wire, between a pair of nodes.
#[derive(Default)]
struct Wire {
    /// Sum over all crossings, each by the two clocks; the offset is in it once per crossing there, and taken out once
    /// per crossing back.
    ns: i128,
    /// Crossings there minus crossings back.
    balance: i64,
    from: usize,
}

#[derive(Default)]
struct Accounts {
    nodes: BTreeMap<usize, u64>,
    wires: BTreeMap<(usize, usize), Wire>,
    beyond: BTreeMap<usize, u64>,
    /// Order in which nodes were met.
    met: Vec<usize>,
}

impl Accounts {
    fn node(&mut self, node: usize, ns: u64) {
        *self.nodes.entry(node).or_default() += ns;
        if !self.met.contains(&node) {
            self.met.push(node);
        }
    }

    fn fragment(&mut self, fragment: &Fragment<'_>) {
        self.node(fragment.node, fragment.last().end().saturating_sub(fragment.first().start()));
    }

    fn step(&mut self, world: &World<'_>, a: &Fragment<'_>, b: &Fragment<'_>) {
        let (out, into) = (a.last(), b.first());
        // Without the Xmit, time in the interface's queue would count as time on the wire.
        match between(world, a, b) {
            _ if !out.whole() => {}
            Between::Outside => self.beyond(a, b),
            Between::Wire => self.wire(a.node, out.end(), b.node, into.start()),
            Between::Gap => {}
        }
    }

    fn beyond(&mut self, a: &Fragment<'_>, b: &Fragment<'_>) {
        *self.beyond.entry(a.node).or_default() += b.first().start().saturating_sub(a.last().end());
    }

    fn wire(&mut self, from: usize, left: u64, to: usize, came: u64) {
        let pair = (from.min(to), from.max(to));
        let wire = self.wires.entry(pair).or_insert(Wire { from, ..Wire::default() });
        wire.ns += i128::from(came) - i128::from(left);
        wire.balance += if from < to { 1 } else { -1 };
    }
}

/// The time in the destination's pod (or node, if that is host-networked): from the request's arrival to its answer.
pub(super) fn answer_time(request: &Chain<'_>, reply: &Chain<'_>) -> Option<(usize, u32, u64)> {
    let ((a, arrived), (b, answered)) = (request.last()?, reply.first()?);
    let turned = arrived.way == Way::In && answered.way == Way::Out && !answered.queue_unseen();
    let same = a == b && arrived.at().netns == answered.at().netns;
    let ns = answered.start().checked_sub(arrived.end())?;
    (turned && same).then_some((a, arrived.at().netns, ns))
}

/// A round trip.
pub(super) struct RoundTrip {
    /// How long it took.
    pub(super) ns: u64,
    /// The node's uplink where it was measured, if that is not the source's own place.
    pub(super) edge: Option<(usize, LinkRef)>,
}

pub(super) fn round_trip(world: &World<'_>, request: &Chain<'_>, reply: &Chain<'_>) -> Option<RoundTrip> {
    let own = rtt(world, request, reply).map(|ns| RoundTrip { ns, edge: None });
    own.or_else(|| at_the_edge(world, request, reply))
}

/// Of a source that is on no traced node: from when its request came in from outside until the reply left the same way.
fn at_the_edge(world: &World<'_>, request: &Chain<'_>, reply: &Chain<'_>) -> Option<RoundTrip> {
    let ((a, first), (b, last)) = (request.first()?, reply.last()?);
    let edge = first.at();
    let there_and_back = (a, edge) == (b, last.at()) && (first.way, last.way) == (Way::In, Way::Out);
    let outside = world.namespaces(a).leads_out(edge) && world.owner(world.ends.source.address).is_none();
    let ns = last.end().checked_sub(first.start())?;
    (there_and_back && outside && last.whole()).then_some(RoundTrip { ns, edge: Some((a, edge)) })
}

/// From the request's first `net_dev_queue` to the reply's last `netif_receive_skb` in the same namespace, ns.
fn rtt(world: &World<'_>, request: &Chain<'_>, reply: &Chain<'_>) -> Option<u64> {
    let ((a, first), (b, last)) = (request.first()?, reply.last()?);
    let own = |t: &Touch<'_>, address| world.namespaces(a).owns(t.at().netns, address);
    let source = world.ends.source.address;
    // Where the source's own records are lost, the node that masquerades looks like it.
    let is_source = world.owner(source).is_none() || own(first, source);
    let starts = first.way == Way::Out && !first.queue_unseen() && is_source;
    let home = a == b && first.at().netns == last.at().netns && last.way == Way::In;
    let arrived = own(last, last.last.packet.dst);
    (starts && home && arrived).then(|| last.start().checked_sub(first.start())).flatten()
}

/// The parts of `rtt_ns`; they add up to it.
pub(super) fn shares(world: &World<'_>, request: &Chain<'_>, reply: &Chain<'_>, rtt_ns: u64) -> Vec<Share> {
    let mut accounts = Accounts::default();
    let answer = answer_time(request, reply);
    for chain in [request, reply] {
        chain.fragments.iter().for_each(|f| accounts.fragment(f));
        for pair in chain.fragments.windows(2) {
            accounts.step(world, &pair[0], &pair[1]);
        }
    }
    if let Some((node, _, ns)) = answer {
        accounts.node(node, ns);
    } else if let (Some(a), Some(b)) = (request.fragments.last(), reply.fragments.first())
        && a.last().whole()
        && turned_outside(world, a, b)
    {
        accounts.beyond(a, b);
    }
    list(world, accounts, answer, rtt_ns)
}

fn list(world: &World<'_>, accounts: Accounts, answer: Option<(usize, u32, u64)>, rtt_ns: u64) -> Vec<Share> {
    let name = |node: usize| world.node(node).name.clone();
    let mut shares = Vec::new();
    for node in &accounts.met {
        let of_pod = answer.filter(|(n, ..)| n == node);
        let pod = of_pod.and_then(|(n, netns, _)| world.pod(n, netns));
        let pod_ns = of_pod.filter(|_| pod.is_some()).map(|(.., ns)| ns);
        shares.push(Share { of: ShareOf::Node { node: name(*node), pod_ns, pod }, ns: accounts.nodes[node] });
    }
    for (&(a, b), wire) in &accounts.wires {
        // One way only, or negative: it cannot be told from the clocks' offset.
        let (0, Ok(ns)) = (wire.balance, u64::try_from(wire.ns)) else { continue };
        let to = if wire.from == a { b } else { a };
        shares.push(Share { of: ShareOf::Wire { from: name(wire.from), to: name(to) }, ns });
    }
    for (&node, &ns) in &accounts.beyond {
        shares.push(Share { of: ShareOf::Beyond { node: name(node) }, ns });
    }
    let known = shares.iter().try_fold(0u64, |sum, s| sum.checked_add(s.ns));
    match known.and_then(|k| rtt_ns.checked_sub(k)) {
        Some(0) => {}
        Some(ns) => shares.push(Share { of: ShareOf::Unattributed, ns }),
        // More than the whole: the records contradict each other, so none of the parts can be believed.
        None => shares = vec![Share { of: ShareOf::Unattributed, ns: rtt_ns }],
    }
    shares
}
