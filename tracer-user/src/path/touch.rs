//! Sightings of one packet on one node -> touches (one device passed in one way) -> fragments (touches that follow
//! each other without a gap).

use std::{cmp::Reverse, net::IpAddr};

use super::world::Namespaces;
use crate::{
    event::{Hook, Sighting},
    node::facts::LinkRef,
};

/// In by a device, or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// One packet passing one device: a `Receive`, or a `Queue` with its `Xmit`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touch<'a> {
    pub(super) way: Way,
    /// `Receive` or `Queue`; `Xmit` where the `Queue` was not seen.
    pub(super) first: &'a Sighting,
    /// `Receive` or `Xmit`; `Queue` where the `Xmit` was not seen.
    pub(super) last: &'a Sighting,
    /// Another link got the packet from the one where a hook saw it.
    handed_to: Option<(LinkRef, Handing)>,
}

/// How a link gets a received packet without a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handing {
    /// It stands on the other.
    Up,
    /// Somebody redirected it before IP saw it.
    Redirect,
}

/// The header that the network sees: the outer one while encapsulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ttl: u8,
}

impl Header {
    pub(super) fn of(sighting: &Sighting) -> Self {
        match &sighting.outer {
            Some(outer) => Self { src: outer.src, dst: outer.dst, ttl: outer.ttl },
            None => Self { src: sighting.packet.src, dst: sighting.packet.dst, ttl: sighting.packet.ttl },
        }
    }
}

pub(super) fn place(sighting: &Sighting) -> LinkRef {
    LinkRef { netns: sighting.netns, ifindex: sighting.ifindex }
}

pub(super) fn is_free(sighting: &Sighting) -> bool {
    matches!(sighting.hook, Hook::Drop | Hook::Consume)
}

impl Touch<'_> {
    pub(super) fn at(&self) -> LinkRef {
        self.handed_to.map_or(place(self.first), |(at, _)| at)
    }

    /// Concluded: no hook saw the packet at this link.
    pub(super) fn concluded(&self) -> bool {
        self.handed_to.is_some()
    }

    pub(super) fn redirected(&self) -> bool {
        matches!(self.handed_to, Some((_, Handing::Redirect)))
    }

    /// The same packet, redirected to `at`.
    pub(super) fn redirected_to(&self, at: LinkRef) -> Self {
        Self { way: Way::In, first: self.last, last: self.last, handed_to: Some((at, Handing::Redirect)) }
    }

    pub(super) fn start(&self) -> u64 {
        self.first.time_ns
    }

    pub(super) fn end(&self) -> u64 {
        self.last.time_ns
    }

    pub(super) fn header(&self) -> Header {
        Header::of(self.last)
    }

    /// TTL of the innermost packet.
    pub(super) fn ttl(&self) -> u8 {
        self.last.packet.ttl
    }

    pub(super) fn wrapped(&self) -> bool {
        self.last.outer.is_some()
    }

    /// Both ends of the touch were seen.
    pub(super) fn whole(&self) -> bool {
        self.way == Way::In || (self.first.hook == Hook::Queue && self.last.hook == Hook::Xmit)
    }

    pub(super) fn queue_ns(&self) -> Option<u64> {
        (self.way == Way::Out && self.whole()).then(|| self.end() - self.start())
    }
}

/// Order of the sightings of one packet on one node. Times hardly ever tie; if they do, the result must not depend on
/// the order of the input.
pub(super) fn order(s: &Sighting) -> (u64, Reverse<u8>, u8, u32, u32, u64) {
    let rank = match s.hook {
        Hook::Queue => 0,
        Hook::Xmit => 1,
        Hook::Receive => 2,
        Hook::Drop => 3,
        Hook::Consume => 4,
    };
    (s.time_ns, Reverse(s.packet.ttl), rank, s.netns, s.ifindex, s.skb)
}

/// The links that a received packet is handed up to, the nearest first: `netif_receive_skb` is told once, at the device it
/// came in by (`__netif_receive_skb_core` in net/core/dev.c goes round for the others).
pub(super) fn uppers(s: &Sighting, namespaces: Namespaces<'_>) -> Vec<LinkRef> {
    let (mut at, mut vlan) = (place(s), s.vlan);
    let mut found = Vec::new();
    while let Some(upper) = namespaces.upper(at, &mut vlan, Header::of(s).dst).filter(|up| !found.contains(up)) {
        found.push(upper);
        at = upper;
    }
    found
}

/// `sightings` are those of one packet on one node, in order.
pub(super) fn touches<'a>(sightings: &[&'a Sighting], namespaces: Namespaces<'_>) -> Vec<Touch<'a>> {
    let mut touches: Vec<Touch<'a>> = Vec::new();
    for &s in sightings {
        let touch = |way, handed_to| Touch { way, first: s, last: s, handed_to };
        match s.hook {
            Hook::Receive => {
                touches.push(touch(Way::In, None));
                touches
                    .extend(uppers(s, namespaces).into_iter().map(|upper| touch(Way::In, Some((upper, Handing::Up)))));
            }
            Hook::Queue => touches.push(touch(Way::Out, None)),
            Hook::Xmit => match touches.last_mut() {
                Some(t) if t.way == Way::Out && t.at() == place(s) && t.last.hook == Hook::Queue => t.last = s,
                _ => touches.push(touch(Way::Out, None)),
            },
            Hook::Drop | Hook::Consume => {}
        }
    }
    touches
}

/// The way of the packet itself, and what copies of it touched: a mirror of tc or a flooding bridge clones a packet, sends the
/// clone, and goes on with the packet (`tcf_mirred_act`, `deliver_clone`), which may be what nobody wants: where one of them
/// arrives, it is the packet. `frees` are the packet's.
pub(super) fn apart<'a>(
    touches: Vec<Touch<'a>>,
    frees: &[&Sighting],
    namespaces: Namespaces<'_>,
) -> (Vec<Touch<'a>>, Vec<Touch<'a>>) {
    let all = touches;
    // NAT on a bridge may have turned it to another port.
    let handed_on = |t: &Touch<'_>| {
        let is_it = |other: &&Touch<'_>| std::ptr::eq(other.first, t.first) && other.at() == t.at();
        all.iter().skip_while(|other| !is_it(other)).skip(1).any(|later| later.first.skb == t.last.skb)
    };
    let arrives = |t: &Touch<'_>| {
        t.way == Way::In && !t.wrapped() && namespaces.owns(t.at().netns, t.last.packet.dst) && !handed_on(t)
    };
    let (mut own, mut copies, mut alive) = (Vec::new(), Vec::new(), Vec::new());
    let mut touches = all.as_slice();
    if all.iter().any(arrives) {
        let is_dead_end = |i: usize, t: &Touch<'_>| {
            t.way == Way::Out
                && !namespaces.leads_out(t.at())
                && all[i + 1..].iter().all(|later| later.first.skb != t.last.skb && !continues(t, later, namespaces))
        };
        for (i, touch) in all.iter().enumerate() {
            if is_dead_end(i, touch) { &mut copies } else { &mut alive }.push(*touch);
        }
        touches = &alive;
    }
    let mut i = 0;
    while let Some(touch) = touches.get(i) {
        let skb = touch.last.skb;
        if touches.get(i + 1).is_some_and(|next| leads_nowhere(touch, next, namespaces)) {
            copies.push(*touch);
            i += 1;
            continue;
        }
        own.push(*touch);
        let next = i + 1 + touches[i + 1..].iter().take_while(|t| t.first.skb != skb).count();
        // The buffer that others came after goes on from where it was, or is dropped there.
        let goes_on = match touches.get(next) {
            Some(later) => continues(touch, later, namespaces),
            None => frees.iter().any(|free| {
                let here = free.skb == skb && place(free) == place(touch.last);
                here && free.hook == Hook::Drop && free.time_ns >= touch.end()
            }),
        };
        let others = touches.get(i + 1..next).filter(|_| goes_on).unwrap_or_default();
        let others = if others.iter().any(arrives) { &[] } else { others };
        copies.extend(others);
        i += 1 + others.len();
    }
    (own, copies)
}

/// Sent by a device that hands on to no other of its namespace, in a buffer of its own, before the packet is sent by another.
fn leads_nowhere(p: &Touch<'_>, q: &Touch<'_>, namespaces: Namespaces<'_>) -> bool {
    let both = (p.way, q.way) == (Way::Out, Way::Out) && p.at().netns == q.at().netns && p.at() != q.at();
    let copied = p.last.skb != q.first.skb && p.ttl() == q.ttl() && p.wrapped() == q.wrapped();
    let stacked = namespaces.is_stacked(p.at()) || namespaces.lower(p.at()).is_some();
    both && copied && !stacked
}

/// Touches on one node without a gap.
#[derive(Clone, Debug)]
pub(super) struct Fragment<'a> {
    pub(super) node: usize,
    /// Never empty.
    pub(super) touches: Vec<Touch<'a>>,
}

impl<'a> Fragment<'a> {
    pub(super) fn first(&self) -> &Touch<'a> {
        &self.touches[0]
    }

    pub(super) fn last(&self) -> &Touch<'a> {
        &self.touches[self.touches.len() - 1]
    }
}

/// `q` is the next place after `p`: nothing is missing in between.
pub(super) fn continues(p: &Touch<'_>, q: &Touch<'_>, namespaces: Namespaces<'_>) -> bool {
    let Some(fall) = p.ttl().checked_sub(q.ttl()) else { return false };
    let same_namespace = p.at().netns == q.at().netns;
    match (p.way, q.way) {
        (Way::Out, Way::In) => {
            let same = p.last.skb == q.first.skb;
            let joined =
                namespaces.joined(p.at(), q.at(), same) || (same && same_namespace && namespaces.hands_back(p.at()));
            fall == 0 && p.wrapped() == q.wrapped() && joined
        }
        (Way::In, Way::Out) => same_namespace && p.wrapped() == q.wrapped() && forwards(p, q, fall, namespaces),
        (Way::In, Way::In) if q.concluded() => std::ptr::eq(p.last, q.first),
        (Way::In, Way::In) => same_namespace && p.at() != q.at() && fall == 0 && (p.wrapped() || !q.wrapped()),
        (Way::Out, Way::Out) if bridged_unseen(p, q, namespaces).is_some() => true,
        (Way::Out, Way::Out) if namespaces.lower(p.at()) == Some(q.at()) => fall == 0 && p.wrapped() == q.wrapped(),
        (Way::Out, Way::Out) => same_namespace && p.at() != q.at() && fall == 0 && (q.wrapped() || !p.wrapped()),
    }
}

/// A packet that goes through a bridge is for another host as far as its port can tell, and not reported on its way in: it
/// left by the peer of one port, and with the same TTL by another of the same bridge. The port it came
/// in by.
pub(super) fn bridged_unseen(p: &Touch<'_>, q: &Touch<'_>, namespaces: Namespaces<'_>) -> Option<LinkRef> {
    let port = namespaces.link(p.at())?.peer?;
    let bridge = namespaces.bridge_of(port)?;
    // A bridge that floods makes a buffer for each port.
    let same = (p.ttl(), p.wrapped()) == (q.ttl(), q.wrapped());
    let out = (p.way, q.way) == (Way::Out, Way::Out) && q.at() != port;
    (same && out && namespaces.bridge_of(q.at()) == Some(bridge)).then_some(port)
}

/// A packet is forwarded by a bridge between its ports, or routed between interfaces that are no ports. A port on one
/// side of a routed step means that the sighting at the bridge is missing.
fn forwards(p: &Touch<'_>, q: &Touch<'_>, fall: u8, namespaces: Namespaces<'_>) -> bool {
    let (from, to) = (namespaces.bridge_of(p.at()), namespaces.bridge_of(q.at()));
    let routed = fall == 1 || (p.wrapped() && p.header().ttl == q.header().ttl.saturating_add(1));
    match (from, to) {
        (None, None) => fall <= 1,
        // What NAT sends to another port, while the node knows no hardware address for it (`br_nf_pre_routing_finish_bridge`).
        (Some(bridge), None) if bridge == q.at() => fall == 0,
        _ => !routed && from == to,
    }
}

pub(super) fn fragments<'a>(node: usize, touches: Vec<Touch<'a>>, namespaces: Namespaces<'_>) -> Vec<Fragment<'a>> {
    let mut fragments: Vec<Fragment<'a>> = Vec::new();
    for touch in touches {
        match fragments.last_mut() {
            Some(f) if continues(f.last(), &touch, namespaces) => f.touches.push(touch),
            _ => fragments.push(Fragment { node, touches: vec![touch] }),
        }
    }
    fragments
}
