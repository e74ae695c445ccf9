//! Fragments of one packet on all nodes -> one chain, in the order the packet took.
//!
//! No clock decides the order: every routing step lowers the TTL, so TTLs order what lies on different nodes, and
//! between two routing steps what goes out of a node comes before what comes in to one.

use std::cmp::Reverse;

use foldhash::{HashSet, HashSetExt};

use super::{
    group::{self, Role, Sorted},
    touch::{self, Fragment, Touch, Way},
    world::World,
};
use crate::{
    event::{Hook, Rewrite, Sighting, Translation},
    node::facts::{self, LinkRef},
};

/// The way of one packet.
pub(super) struct Chain<'a> {
    pub(super) role: Role,
    /// In order.
    pub(super) fragments: Vec<Fragment<'a>>,
    /// Sightings on the free hooks, with their node.
    pub(super) frees: Vec<(usize, &'a Sighting)>,
    /// The conntrack entries that were read from this packet, with their node.
    pub(super) translations: Vec<(usize, &'a Translation)>,
    /// Moments of rewrites in the buffers that this packet was in, with their node: another packet's may be among them.
    pub(super) rewrites: Vec<(usize, &'a Rewrite)>,
    /// Why the order is not certain, if it is not.
    pub(super) doubts: Vec<String>,
    /// What else the reader should know.
    pub(super) notes: Vec<String>,
}

/// What lies between two fragments that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Out of one node, in to another.
    Wire,
    /// Out of a node and back in to it: something that is not traced sent it back.
    Outside,
    /// Hops that must exist were not seen.
    Gap,
}

/// Request and reply: out of a node, and in to it where the answer came. Their TTLs have nothing to do with each other.
pub(super) fn turned_outside(world: &World<'_>, request: &Fragment<'_>, reply: &Fragment<'_>) -> bool {
    request.node == reply.node && crosses(world, request, reply)
}

pub(super) fn between(world: &World<'_>, a: &Fragment<'_>, b: &Fragment<'_>) -> Between {
    match (crosses(world, a, b) && a.last().ttl() >= b.first().ttl(), a.node == b.node) {
        (true, true) => Between::Outside,
        (true, false) => Between::Wire,
        (false, _) => Between::Gap,
    }
}

/// What left by the one came in by the other, as far as the interfaces say.
fn crosses(world: &World<'_>, a: &Fragment<'_>, b: &Fragment<'_>) -> bool {
    let (out, into) = (a.last(), b.first());
    let leaves = out.way == Way::Out && world.namespaces(a.node).leads_out(out.at());
    let enters = into.way == Way::In && world.namespaces(b.node).leads_out(into.at());
    // What goes into an encrypted tunnel comes out of one.
    let sealed = |f: &Fragment<'_>, t: &Touch<'_>| world.namespaces(f.node).is_sealed(t.at());
    leaves && enters && sealed(a, out) == sealed(b, into)
}

impl<'a> Chain<'a> {
    pub(super) fn new(world: &World<'a>, role: Role, by_node: &[Vec<&'a Sighting>], sorted: &[Sorted<'a>]) -> Self {
        let mut chain = Self {
            role,
            fragments: Vec::new(),
            frees: Vec::new(),
            translations: Vec::new(),
            rewrites: Vec::new(),
            doubts: Vec::new(),
            notes: Vec::new(),
        };
        for (node, sightings) in by_node.iter().enumerate() {
            let (frees, seen): (Vec<_>, Vec<_>) = sightings.iter().copied().partition(|s| touch::is_free(s));
            chain.frees.extend(frees.into_iter().map(|s| (node, s)));
            let first_copy = chain.first_copy(world, node, seen);
            chain.translations.extend(sorted[node].translations_of(sightings).into_iter().map(|t| (node, t)));
            chain.rewrites.extend(sorted[node].rewrites_of(sightings).into_iter().map(|r| (node, r)));
            let touches = touch::touches(&first_copy, world.namespaces(node));
            let touches = chain.without_copies(world, node, touches);
            chain.fragments.extend(touch::fragments(node, touches, world.namespaces(node)));
        }
        sort(world, &mut chain.fragments);
        chain.doubt(world);
        chain
    }

    /// What a mirror or a flooding bridge copied is no part of the way, and what becomes of it no end of it.
    fn without_copies(&mut self, world: &World<'_>, node: usize, touches: Vec<Touch<'a>>) -> Vec<Touch<'a>> {
        let frees: Vec<&Sighting> = self.frees.iter().filter(|(n, _)| *n == node).map(|(_, free)| *free).collect();
        let (own, copies) = touch::apart(touches, &frees, world.namespaces(node));
        let end = |t: &Touch<'_>| (t.last.skb, touch::place(t.last));
        let of_copy = |free: &Sighting| copies.iter().any(|copy| end(copy) == (free.skb, touch::place(free)));
        self.frees.retain(|(n, free)| *n != node || !of_copy(free));
        for copy in copies.iter().filter(|copy| copy.way == Way::Out) {
            let place = world.place(node, copy.at());
            let text = format!("{place} was sent a copy of the packet (by a mirror of tc, or a flooding bridge)");
            if !self.notes.contains(&text) {
                self.notes.push(text);
            }
        }
        own
    }

    /// A network may duplicate a packet, and a driver may be handed one twice. The first pass of each place is shown.
    fn first_copy(&mut self, world: &World<'_>, node: usize, seen: Vec<&'a Sighting>) -> Vec<&'a Sighting> {
        let mut places = HashSet::new();
        let mut kept: Vec<&'a Sighting> = Vec::new();
        for s in seen {
            let outer = s.outer.as_ref().map(|o| o.ttl);
            let again = kept.last().is_some_and(|before| {
                let back = before.hook == Hook::Xmit && s.hook == Hook::Receive && before.skb == s.skb;
                back && world.namespaces(node).hands_back(touch::place(before))
            });
            if places.insert((touch::place(s), s.hook, s.packet.ttl, outer)) || again {
                kept.push(s);
            } else if s.hook != Hook::Xmit {
                let text = format!("a second copy passed {}; the first is shown", world.place(node, touch::place(s)));
                if !self.notes.contains(&text) {
                    self.notes.push(text);
                }
            }
        }
        kept
    }

    /// What contradicts the order, or leaves it open.
    fn doubt(&mut self, world: &World<'_>) {
        for (i, a) in self.fragments.iter().enumerate() {
            let later = &self.fragments[i + 1..];
            if later.iter().any(|b| b.node == a.node && b.first().start() < a.last().end()) {
                let text = format!("the order of the hops on {} contradicts their TTLs", world.node(a.node).name);
                self.doubts.push(text);
            }
            let Some(b) = later.first() else { continue };
            if b.first().ttl() > a.last().ttl() {
                let [from, to] = [a, b].map(|f| world.node(f.node).name.as_str());
                self.doubts.push(format!("the TTLs of the hops on {from} and {to} contradict each other"));
            } else if a.node != b.node && stage(world, a) == stage(world, b) {
                let [from, to] = [a, b].map(|f| world.node(f.node).name.as_str());
                self.doubts.push(format!("whether {from} or {to} came first cannot be told"));
            }
        }
    }

    /// It came to `end`, a pod that what came back began in or the sender's own, and was seen last on that node: what takes it there
    /// without routing it does so before IP, and past all hooks (`bpf_redirect_peer`).
    pub(super) fn redirected(&mut self, world: &World<'_>, end: Option<(usize, LinkRef)>) {
        let (Some((node, last)), Some((at_node, at))) = (self.last(), end) else { return };
        let namespaces = world.namespaces(node);
        let is = |netns, role| namespaces.get(netns).is_some_and(|namespace| namespace.role == role);
        let came = node == at_node && last.way == Way::In && !last.wrapped() && is(last.at().netns, facts::Role::Node);
        let dst = last.last.packet.dst;
        let for_it = is(at.netns, facts::Role::Pod) && namespaces.owns(at.netns, dst);
        if came && for_it && !namespaces.owns(last.at().netns, dst) && !world.unreliable(node) {
            let redirected = last.redirected_to(at);
            self.fragments.last_mut().into_iter().for_each(|fragment| fragment.touches.push(redirected));
        }
    }

    pub(super) fn first(&self) -> Option<(usize, &Touch<'a>)> {
        self.fragments.first().map(|f| (f.node, f.first()))
    }

    pub(super) fn last(&self) -> Option<(usize, &Touch<'a>)> {
        self.fragments.last().map(|f| (f.node, f.last()))
    }

    /// The last conntrack entry of this namespace read from this packet while it was in this buffer: one that knows its addresses. In
    /// a loop it comes by again, with others.
    pub(super) fn translation(&self, node: usize, s: &Sighting) -> Option<&'a Translation> {
        let here = |t: &Translation| (t.skb, t.netns) == (s.skb, s.netns);
        let mut read = self.translations.iter().rev().filter(|(n, t)| *n == node && here(t));
        read.find(|(_, t)| group::consistent(t, s)).map(|(_, t)| *t)
    }
}

/// Where the fragment's node stands: at the source's end, in the middle, at the destination's end.
fn standing(world: &World<'_>, f: &Fragment<'_>) -> u8 {
    let packet = &f.first().first.packet;
    let is = |address| world.owner(address).is_some_and(|(node, _)| node == f.node);
    match (is(packet.src), is(packet.dst)) {
        (true, false) => 0,
        (false, true) => 2,
        _ => 1,
    }
}

/// TTLs of the innermost packet first and last, where the node stands, how far along a tunnel (before, inside by the
/// outer TTLs, after), and how the fragment passes its node.
type Stage = (Reverse<u8>, Reverse<u8>, u8, u8, Reverse<u8>, Reverse<u8>, u8);

fn stage(world: &World<'_>, f: &Fragment<'_>) -> Stage {
    let (first, last) = (f.first(), f.last());
    let tunnel = match (first.wrapped(), first.way) {
        (false, Way::Out) => 0,
        (true, _) => 1,
        (false, Way::In) => 2,
    };
    let passage = match (first.way, last.way) {
        (Way::Out, Way::Out) => 0,
        (Way::In, Way::Out) => 1,
        (Way::In, Way::In) => 2,
        (Way::Out, Way::In) => 3,
    };
    let outer = (Reverse(first.header().ttl), Reverse(last.header().ttl));
    (Reverse(first.ttl()), Reverse(last.ttl()), standing(world, f), tunnel, outer.0, outer.1, passage)
}

/// On one node its clock decides.
fn sort(world: &World<'_>, fragments: &mut [Fragment<'_>]) {
    if fragments.iter().all(|f| f.node == fragments[0].node) {
        fragments.sort_by_key(|f| f.first().start());
    } else {
        fragments.sort_by_cached_key(|f| (stage(world, f), f.node, f.first().start()));
    }
}
