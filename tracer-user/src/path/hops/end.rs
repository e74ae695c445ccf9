//! How a packet's way ended -> its last hops.

use std::net::IpAddr;

use super::{Spot, Walk};
use crate::{
    event::{Hook, Side, Sighting},
    node::facts::LinkRef,
    path::{
        culprit::Cause,
        drops::{End, Turned, delivered_as},
        hops::Passage,
        model::{Action, Basis, Detail, DropCause},
        nat, route,
        touch::{Header, Touch, Way},
    },
};

impl<'a> Walk<'_, 'a> {
    /// The last hop, by how the way ended. `answered_after_ns` is set if an answer was seen.
    pub(in crate::path) fn finish(&mut self, end: End<'a>, answered: bool, answered_after_ns: Option<u64>) {
        let last = self.chain.last();
        match (end, last) {
            (End::Delivered, Some((node, last))) => {
                let spot = Spot { node, at: last.at(), time_ns: last.end() };
                let basis = if answered { Basis::Observed } else { Basis::Inferred };
                let detail = Detail { answered_after_ns, ..Detail::default() };
                let free = delivered_as(self.chain, node, last);
                if let Some(free) = free {
                    // In INPUT the source is rewritten, too.
                    self.translated_before(spot, free, last, Side::Destination);
                    self.translated_before(spot, free, last, Side::Source);
                }
                // After what INPUT rewrote, whose moment a hook may have seen.
                let before = self.hops.last().filter(|hop| hop.node == node).and_then(|hop| hop.time_ns);
                let spot = Spot { time_ns: spot.time_ns.max(before.unwrap_or(0)), ..spot };
                self.push(spot, Action::Delivered, free.map_or(last.header(), Header::of), basis, detail);
                self.undated(last);
            }
            (End::Lost(text, _), Some((node, last))) => {
                let spot = Spot { node, at: last.at(), time_ns: last.end() };
                let detail = Detail { text: Some(text), ..Detail::default() };
                self.push(spot, Action::Lost, last.header(), Basis::Inferred, detail);
            }
            (End::Dropped { node, at, cause }, Some((_, last))) => self.dropped(node, at, *cause, last),
            (End::Unsent { node, at, ends, turned, cause }, _) => {
                self.unsent(node, at, ends, turned, cause.into_detail());
            }
            (End::Unknown(text), _) => self.note(text),
            (End::Unseen, _) => self.note("no hook saw it".to_owned()),
            _ => {}
        }
    }

    /// It waits for a neighbour, or was refused before its first device, and no hook sees that: no time is known, and of what its
    /// source kept no TTL.
    fn unsent(
        &mut self,
        node: usize,
        at: LinkRef,
        (src, dst): (IpAddr, IpAddr),
        turned: Option<Box<Turned>>,
        detail: Detail,
    ) {
        if let Some((_, last)) = self.chain.last() {
            let header = self.unsent_routed(node, last);
            self.push(Spot { node, at, time_ns: last.end() }, Action::Dropped, header, Basis::Inferred, detail);
            return;
        }
        let (spot, before) = (Spot { node, at, time_ns: 0 }, self.hops.len());
        if let Some(turned) = turned {
            let Turned { nat, rule } = *turned;
            let detail = Detail { rule: Some(rule), ..nat::detail(nat) };
            self.push(spot, Action::Dnat, Header { src, dst, ttl: 0 }, Basis::Inferred, detail);
        }
        self.push(spot, Action::Dropped, Header { src, dst, ttl: 0 }, Basis::Inferred, detail);
        for timed in &mut self.hops[before..] {
            (timed.hop.ttl, timed.time_ns) = (None, None);
        }
    }

    /// The route of what waits for a neighbour; its header then.
    fn unsent_routed(&mut self, node: usize, last: &Touch<'a>) -> Header {
        let translation = self.chain.translation(node, last.first);
        let Some(answer) = self.world.answer(node, &route::dying(last, None, translation)) else {
            return last.header();
        };
        let Some(ifindex) = answer.route.as_ref().and_then(|route| route.out_ifindex) else { return last.header() };
        let header = Header { ttl: last.ttl().saturating_sub(1), ..last.header() };
        self.routers.push((node, answer.icmp_source));
        let at = LinkRef { netns: last.at().netns, ifindex };
        self.routed(Spot { node, at, time_ns: last.end() }, header, Some(answer));
        header
    }

    /// What NAT made of the packet between the last device and the end, which `free` shows: of its destination, or of its source.
    fn translated_before(&mut self, spot: Spot, free: &'a Sighting, last: &Touch<'a>, side: Side) {
        let rewrites = self.rewrites(spot.node, free, &last.last.packet, &free.packet, false);
        let (came, from, to) = (Some(last.at()), Some(last.end()), free.time_ns);
        let passage = Passage { node: spot.node, skb: free.skb, from, to, came, goes: None };
        let (rewrite, packet) = match side {
            Side::Destination => (rewrites.before_routing, &last.last.packet),
            Side::Source => (rewrites.after_routing, &free.packet),
        };
        if let Some((action, nat)) = rewrite {
            self.rewritten(spot, action, nat, packet, &passage);
        }
    }

    /// A TTL that went down since it came in: `ip_forward` had it, after its route was chosen
    /// (`net/ipv4/ip_forward.c`), and it died before its next device.
    fn died_forwarded(&mut self, node: usize, free: &'a Sighting, last: &Touch<'a>) {
        if last.way != Way::In || last.wrapped() || free.outer.is_some() || free.packet.ttl >= last.ttl() {
            return;
        }
        let translation = self.chain.translation(node, free);
        let Some(answer) = self.world.answer(node, &route::dying(last, Some(free), translation)) else { return };
        let Some(ifindex) = answer.route.as_ref().and_then(|route| route.out_ifindex) else { return };
        let at = LinkRef { netns: last.at().netns, ifindex };
        self.router(node, Some(answer));
        self.routed(Spot { node, at, time_ns: free.time_ns }, Header::of(free), Some(answer));
    }

    fn dropped(&mut self, node: usize, free: &'a Sighting, cause: Cause<'_>, last: &Touch<'a>) {
        let spot = Spot { node, at: last.at(), time_ns: free.time_ns };
        let wrapped = route::wrapped_dying(last, free).filter(|_| last.way == Way::Out);
        if let Some(route) = &wrapped {
            // That the tunnel's device got it, the wrapping says.
            self.hops.pop_if(|timed| timed.hop.action == Action::Transmitted);
            self.encapsulated(node, last, free, route);
        }
        let as_freed = wrapped.is_some() || free.outer.is_some() == last.wrapped();
        let header = if as_freed { Header::of(free) } else { last.header() };
        let plain = last.way == Way::In && !last.wrapped() && free.outer.is_none();
        if plain {
            self.translated_before(spot, free, last, Side::Destination);
        }
        self.died_forwarded(node, free, last);
        let of_next_hop = matches!(
            cause.detail.cause,
            DropCause::Neighbour | DropCause::NoCarrier | DropCause::InterfaceDown | DropCause::QueueFull
        );
        if plain && of_next_hop {
            // That is behind POSTROUTING.
            let out =
                self.hops.last().filter(|last| last.hop.action == Action::Routed).and_then(|last| last.hop.ifindex);
            let at = LinkRef { ifindex: out.unwrap_or(spot.at.ifindex), ..spot.at };
            self.translated_before(Spot { at, ..spot }, free, last, Side::Source);
        }
        // That the kernel dropped it was seen; the cause has a basis of its own.
        let basis = if free.hook == Hook::Drop { Basis::Observed } else { Basis::Inferred };
        let tunnel = self.tunnel(node, spot.at, free);
        self.push(spot, Action::Dropped, header, basis, Detail { tunnel, ..cause.into_detail() });
    }
}
