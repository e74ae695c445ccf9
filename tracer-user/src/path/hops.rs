//! A chain of touches -> hops, each with what is known about it. What was not seen is not shown.

use std::net::IpAddr;

use super::{
    chain::{Between, Chain, between},
    group::Role,
    model::{
        Action, Basis, Detail, Hop, Nat, OLD_ENTRY, QUEUED, REDIRECTED, REDIRECTED_UNSEEN, Segmentation, Segments,
        Tunnel,
    },
    nat, nat_rule, route,
    touch::{self, Header, Touch, Way},
    world::{Called, World},
};
use crate::{
    event::{Encapsulation, Hook, L4, Packet, Rewrite, Side, Sighting},
    node::facts::{LinkRef, RouteAnswer, RouteQuestion},
};

mod end;

/// A hop with the clock it was timed by.
pub(super) struct Timed {
    pub(super) hop: Hop,
    pub(super) node: usize,
    /// By that node's clock; None: it was concluded, and nothing tells when.
    pub(super) time_ns: Option<u64>,
}

/// Where and when.
#[derive(Clone, Copy)]
struct Spot {
    node: usize,
    at: LinkRef,
    time_ns: u64,
}

/// Between a packet's own `nf_nat_manip_pkt` and its first device lies at most this much, ns.
const BEFORE_QUEUE_NS: u64 = 1_000_000;

/// A packet's way through a namespace's netfilter hooks.
pub(super) struct Passage {
    pub(super) node: usize,
    pub(super) skb: u64,
    /// When it came in; None: it was made here.
    from: Option<u64>,
    /// When it was next seen.
    to: u64,
    pub(super) came: Option<LinkRef>,
    pub(super) goes: Option<LinkRef>,
}

/// The hops of one packet, and the sentences about what is missing.
pub(super) struct Walk<'w, 'a> {
    world: &'w World<'a>,
    chain: &'w Chain<'a>,
    pub(super) hops: Vec<Timed>,
    pub(super) notes: Vec<String>,
    /// The sources of the ICMP errors of the routers passed, as the sender sees them; None: not known.
    pub(super) routers: Vec<(usize, Option<IpAddr>)>,
    /// TCP data in the packet when it was last seen, bytes.
    data: Option<u16>,
}

/// `made_on`: the node that made the packet in its sender's name, as a rule that resets a connection does.
pub(super) fn write<'w, 'a>(world: &'w World<'a>, chain: &'w Chain<'a>, made_on: Option<usize>) -> Walk<'w, 'a> {
    // Most are told in two: what came in was routed before it went out.
    let touches: usize = chain.fragments.iter().map(|fragment| fragment.touches.len()).sum();
    let hops = Vec::with_capacity(2 * touches + 1);
    let mut walk = Walk { world, chain, hops, notes: Vec::new(), routers: Vec::new(), data: None };
    walk.start(made_on);
    for (i, fragment) in chain.fragments.iter().enumerate() {
        if i > 0 {
            walk.gap(i);
        }
        for (j, touch) in fragment.touches.iter().enumerate() {
            let before = j.checked_sub(1).map(|j| &fragment.touches[j]);
            let next = fragment.touches.get(j + 1);
            let is_last = i + 1 == chain.fragments.len() && next.is_none();
            let node = fragment.node;
            match touch.way {
                Way::In => walk.came_in(node, before, touch),
                Way::Out => walk.went_out(node, before, touch, next, is_last),
            }
        }
    }
    walk
}

impl<'a> Walk<'_, 'a> {
    fn push(&mut self, spot: Spot, action: Action, header: Header, basis: Basis, detail: Detail) {
        let Called { node, pod, interface } = self.world.called(spot.node, spot.at);
        let hop = Hop {
            node,
            pod,
            interface,
            ifindex: Some(spot.at.ifindex),
            action,
            src: header.src,
            dst: header.dst,
            ttl: Some(header.ttl),
            at_ns: None,
            error_ns: 0,
            basis,
            detail,
        };
        self.hops.push(Timed { hop, node: spot.node, time_ns: Some(spot.time_ns) });
    }

    /// The hop just written is at a link where no hook saw the packet: nothing tells when.
    fn undated(&mut self, touch: &Touch<'_>) {
        if let Some(last) = self.hops.last_mut().filter(|_| touch.concluded()) {
            last.time_ns = None;
        }
    }

    fn mtu(&self, node: usize, at: LinkRef) -> Option<u32> {
        self.world.namespaces(node).link(at).map(|l| l.mtu)
    }

    /// The wrapping of `s`, which the device at `at` put on or took off.
    fn tunnel(&self, node: usize, at: LinkRef, s: &Sighting) -> Option<Box<Tunnel>> {
        let outer = s.outer.as_ref()?;
        let kind = match outer.encapsulation {
            Encapsulation::Ipip => "ipip",
            Encapsulation::Vxlan => "vxlan",
            Encapsulation::Gre => "gre",
            Encapsulation::Geneve => "geneve",
        };
        let vni = self.world.namespaces(node).link(at).and_then(|l| l.tunnel?.id);
        Some(Box::new(Tunnel { kind: kind.to_owned(), vni, src: outer.src, dst: outer.dst }))
    }

    /// What became of the size of TCP data since it was last seen, and while it passed here.
    fn segments(&mut self, node: usize, touch: &Touch<'a>) -> Option<Segments> {
        let data = |s: &Sighting| match s.packet.l4 {
            L4::Tcp { payload, .. } => Some(payload),
            _ => None,
        };
        let (came, left) = (data(touch.first)?, data(touch.last)?);
        let before = self.data.replace(left);
        let mtu = self.mtu(node, touch.at()).unwrap_or(u32::MAX);
        let how = match (before.unwrap_or(came), left) {
            (_, left) if left < came => {
                return Some(Segments { how: Segmentation::Segmented, bytes: left, before: came });
            }
            (before, left) if left < before => Segmentation::Segmented,
            (before, left) if left > before => Segmentation::Joined,
            _ if before.is_none() && u32::from(touch.last.packet.ip_len) > mtu => Segmentation::Super,
            _ => return None,
        };
        Some(Segments { how, bytes: left, before: before.unwrap_or(came) })
    }

    fn note(&mut self, text: String) {
        let direction = if self.chain.role == Role::Request { "request" } else { "reply" };
        self.notes.push(format!("{direction}: {text}"));
    }

    /// The first hop seen is that where the packet was made.
    pub(super) fn is_from_its_sender(&self) -> bool {
        self.chain.first().is_some_and(|(node, first)| self.is_sender(node, first))
    }

    /// The beginning: is anything missing before it?
    fn start(&mut self, made_on: Option<usize>) {
        let Some((node, first)) = self.chain.first() else { return };
        if first.way == Way::Out && made_on == Some(node) {
            return;
        }
        let enters = first.way == Way::In && self.world.namespaces(node).leads_out(first.at());
        let outside = enters && self.world.owner(first.last.packet.src).is_none();
        if !outside && !self.is_sender(node, first) {
            self.note(format!("hops before {} were not seen", self.world.place(node, first.at())));
        }
    }

    fn gap(&mut self, i: usize) {
        let (a, b) = (&self.chain.fragments[i - 1], &self.chain.fragments[i]);
        if between(self.world, a, b) == Between::Wire {
            let (node, out, next) = (a.node, *a.last(), b.node);
            self.crossed_sealed(node, &out, next);
            self.perhaps_by_others(i);
            return;
        }
        if between(self.world, a, b) == Between::Gap {
            let from = self.world.place(a.node, a.last().at());
            let to = self.world.place(b.node, b.first().at());
            self.note(format!("hops between {from} and {to} were not seen"));
        }
    }

    /// On the wire before the `i`-th fragment somebody routed it, and that may have been a traced node whose records are lost.
    fn perhaps_by_others(&mut self, i: usize) {
        let (a, b) = (&self.chain.fragments[i - 1], &self.chain.fragments[i]);
        let (left, came) = (a.last().header(), b.first().header());
        let routed = a.last().wrapped() != b.first().wrapped() || came.ttl < left.ttl;
        let (from, to) = (self.world.place(a.node, a.last().at()), self.world.place(b.node, b.first().at()));
        let others = (0..self.world.evidence.nodes.len()).filter(|node| ![a.node, b.node].contains(node));
        let lossy: Vec<&str> = others
            .filter(|node| self.world.unreliable(*node))
            .map(|node| self.world.node(node).name.as_str())
            .collect();
        if routed && !lossy.is_empty() {
            self.note(format!(
                "between {from} and {to} it was routed by somebody: if by {}, those hops are missing",
                lossy.join(" or ")
            ));
        }
    }

    /// The namespace made this packet itself. Its own address as source is not enough on a node: SNAT puts it there.
    fn is_sender(&self, node: usize, touch: &Touch<'_>) -> bool {
        if touch.way != Way::Out || touch.wrapped() {
            return false;
        }
        let translation = self.chain.translation(node, touch.first);
        let sent = translation.and_then(|t| nat::as_sent(touch.first, t, self.chain.role));
        let src = sent.map_or(touch.first.packet.src, |p| p.src);
        let namespaces = self.world.namespaces(node);
        let in_pod = self.world.in_pod(node, touch.at().netns);
        let ends = self.world.ends;
        let is_end = [ends.source.address, ends.destination.address].contains(&src);
        namespaces.owns(touch.at().netns, src) && (in_pod || is_end || translation.is_some())
    }

    fn came_in(&mut self, node: usize, before: Option<&Touch<'a>>, touch: &Touch<'a>) {
        let spot = Spot { node, at: touch.at(), time_ns: touch.start() };
        if let Some(before) = before.filter(|b| b.way == Way::In && !b.wrapped() && !touch.wrapped()) {
            self.translated_at_port(spot, before, touch);
        }
        let (mtu, segments) = (self.mtu(node, touch.at()), self.segments(node, touch));
        let unwrapped = self.world.namespaces(node).is_tunnel(touch.at()) && !touch.wrapped();
        let wrapped_before = before.filter(|b| b.wrapped() && !touch.wrapped());
        if unwrapped || wrapped_before.is_some() {
            let tunnel = wrapped_before.and_then(|b| self.tunnel(node, touch.at(), b.last));
            let sealed = self.world.namespaces(node).is_sealed(touch.at());
            let text = sealed.then(|| "decrypted".to_owned());
            let detail = Detail { tunnel, text, mtu, segments, ..Detail::default() };
            self.push(spot, Action::Decapsulated, touch.header(), Basis::Observed, detail);
        } else {
            let text = touch.redirected().then(|| REDIRECTED_UNSEEN.to_owned());
            let detail = Detail { mtu, segments, text, ..Detail::default() };
            let basis = if touch.concluded() { Basis::Inferred } else { Basis::Observed };
            self.push(spot, Action::Received, touch.header(), basis, detail);
            self.undated(touch);
        }
    }

    /// With br_netfilter a bridge's port hands packets to PREROUTING before the bridge itself has them.
    fn translated_at_port(&mut self, spot: Spot, before: &Touch<'a>, touch: &Touch<'a>) {
        let rewrites = self.rewrites(spot.node, touch.first, &before.last.packet, &touch.first.packet, false);
        if let Some((action, nat)) = rewrites.before_routing {
            let (skb, from, to) = (touch.first.skb, Some(before.end()), touch.start());
            let passage = Passage { node: spot.node, skb, from, to, came: Some(before.at()), goes: None };
            self.rewritten(Spot { at: before.at(), ..spot }, action, nat, &before.last.packet, &passage);
        }
    }

    /// With br_netfilter a bridge hands packets to POSTROUTING once its own device has sent them, before the port has them.
    fn translated_before_port(&mut self, node: usize, p: &Touch<'a>, q: &Touch<'a>) {
        let rewrites = self.rewrites(node, q.first, &p.last.packet, &q.first.packet, q.wrapped());
        if let Some((action, nat)) = rewrites.after_routing {
            let (skb, from, to) = (q.first.skb, Some(p.end()), q.start());
            let passage = Passage { node, skb, from, to, came: Some(p.at()), goes: Some(q.at()) };
            self.rewritten(Spot { node, at: q.at(), time_ns: q.start() }, action, nat, &q.first.packet, &passage);
        }
    }

    fn went_out(
        &mut self,
        node: usize,
        before: Option<&Touch<'a>>,
        touch: &Touch<'a>,
        next: Option<&Touch<'a>>,
        is_last: bool,
    ) {
        let wrapped_next = next.filter(|n| n.way == Way::Out && n.wrapped() && !touch.wrapped());
        let is_first = self.hops.is_empty();
        if is_first && self.is_sender(node, touch) {
            self.sent(node, touch);
        } else {
            match before {
                Some(before) if before.way == Way::In => self.forwarded(node, before, touch),
                Some(before) => self.bridged(node, before, touch),
                None => {}
            }
            let sealed = self.world.namespaces(node).is_sealed(touch.at());
            let handed_over = touch.last.hook == Hook::Xmit || !is_last;
            // A tunnel device wraps what it is handed; if what came of it may be lost, the hop is unknown.
            let hides_wrapping = wrapped_next.is_none()
                && (!is_last || self.world.unreliable(node))
                && self.world.namespaces(node).is_tunnel(touch.at());
            if wrapped_next.is_none() && handed_over && sealed {
                self.sealed(node, touch);
            } else if wrapped_next.is_none() && handed_over && !hides_wrapping {
                let segments = self.segments(node, touch);
                let (queue_ns, mtu) = (touch.queue_ns(), self.mtu(node, touch.at()));
                let text = match before.filter(|b| self.redirected(node, b, touch)) {
                    Some(_) if self.world.namespaces(node).hands_back(touch.at()) => Some(QUEUED.to_owned()),
                    Some(_) => Some(format!("transmitted; {REDIRECTED}")),
                    None => None,
                };
                let detail = Detail { queue_ns, mtu, segments, text, ..Detail::default() };
                let spot = Spot { node, at: touch.at(), time_ns: touch.end() };
                self.push(spot, Action::Transmitted, touch.header(), Basis::Observed, detail);
            }
        }
        if let Some(next) = wrapped_next {
            self.encapsulated(node, touch, next.first, &route::local(next, None));
        }
        if !touch.whole() && !is_last {
            let missing = if touch.queue_unseen() { "net_dev_queue" } else { "net_dev_start_xmit" };
            let at = self.world.place(node, touch.at());
            self.note(format!("{missing} of {at} was not seen"));
        }
    }

    /// From one device to another, and neither routed, which lowers the TTL, nor through a bridge.
    fn redirected(&self, node: usize, p: &Touch<'a>, q: &Touch<'a>) -> bool {
        let forwarded = (p.way, q.way) == (Way::In, Way::Out) && !p.wrapped() && !q.wrapped();
        forwarded && p.ttl() == q.ttl() && self.world.namespaces(node).bridge_of(p.at()).is_none()
    }

    fn sent(&mut self, node: usize, touch: &Touch<'a>) {
        let spot = Spot { node, at: touch.at(), time_ns: touch.start() };
        let ttl = touch.ttl();
        let translation = self.chain.translation(node, touch.first);
        let made = translation.and_then(|t| nat::as_sent(touch.first, t, self.chain.role));
        let original = made.as_ref().unwrap_or(&touch.first.packet);
        let (queue_ns, mtu, segments) = (touch.queue_ns(), self.mtu(node, touch.at()), self.segments(node, touch));
        let detail = Detail { queue_ns, mtu, segments, ..Detail::default() };
        let header = Header { src: original.src, dst: original.dst, ttl };
        self.push(spot, Action::Sent, header, Basis::Observed, detail);
        let direction = nat::direction(touch.first, translation, self.chain.role);
        let rewrites = nat::rewrites(original, &touch.first.packet, direction);
        let own =
            Passage { node, skb: touch.first.skb, from: None, to: touch.start(), came: None, goes: Some(touch.at()) };
        if let Some((action, nat)) = rewrites.before_routing {
            self.rewritten(spot, action, nat, &touch.first.packet, &own);
        }
        let namespaces = self.world.namespaces(node);
        if !self.world.in_pod(node, touch.at().netns) && !namespaces.is_loopback(touch.at()) {
            let question = route::local(touch, translation);
            if let Some(answer) = self.world.answer(node, &question) {
                let header = Header { src: original.src, ..touch.header() };
                self.routed(spot, header, Some(answer));
            }
        }
        if let Some((action, nat)) = rewrites.after_routing {
            self.rewritten(spot, action, nat, &touch.first.packet, &own);
        }
    }

    /// From a bridge's own device to one of its ports; or through a bridge without having been seen at the port it came in by,
    /// which no hook reports.
    fn bridged(&mut self, node: usize, p: &Touch<'a>, q: &Touch<'a>) {
        let namespaces = self.world.namespaces(node);
        if namespaces.bridge_of(q.at()) == Some(p.at()) {
            return self.translated_before_port(node, p, q);
        }
        let Some(port) = touch::bridged_unseen(p, q, namespaces) else { return };
        let Some(bridge) = namespaces.bridge_of(port) else { return };
        for (at, action) in [(port, Action::Received), (bridge, Action::Bridged)] {
            let spot = Spot { node, at, time_ns: q.start() };
            self.push(spot, action, q.header(), Basis::Inferred, Detail::default());
        }
    }

    /// A rewrite, dated by the moment that a hook saw, else by when the packet was next seen; with the rule that asked for
    /// it. `packet`: with its TTL, and what else NAT leaves alone.
    fn rewritten(&mut self, spot: Spot, action: Action, mut nat: Nat, packet: &Packet, passage: &Passage) {
        let moment = self.moment(passage, action, packet);
        if moment.is_some() {
            nat.moment = Basis::Observed;
        }
        let (rule, text) = match nat_rule::find(self.world, passage, action, &nat, packet) {
            nat_rule::Found::Rule(rule) => (Some(rule), None),
            nat_rule::Found::Older(why) => (None, Some(format!("{why}: rule not known"))),
            nat_rule::Found::Entry => (None, Some(OLD_ENTRY.to_owned())),
            nat_rule::Found::Open => (None, None),
        };
        let header = nat::header(&nat, packet.ttl);
        let spot = Spot { time_ns: moment.unwrap_or(spot.time_ns), ..spot };
        self.push(spot, action, header, Basis::Observed, Detail { rule, text, ..nat::detail(nat) });
    }

    /// When netfilter wrote it (`nf_nat_manip_pkt`).
    fn moment(&self, passage: &Passage, action: Action, packet: &Packet) -> Option<u64> {
        let side = match action {
            Action::Snat | Action::Undnat => Side::Source,
            _ => Side::Destination,
        };
        let within = |r: &&(usize, &Rewrite)| {
            let (node, r) = **r;
            let after = passage.from.map_or(passage.to.saturating_sub(BEFORE_QUEUE_NS), |from| from);
            node == passage.node
                && (r.skb, r.side) == (passage.skb, side)
                && (after..=passage.to).contains(&r.time_ns)
                && nat::same_packet(&r.packet, packet)
        };
        self.chain.rewrites.iter().rev().find(within).map(|(_, r)| r.time_ns)
    }

    /// Conntrack puts the address that was asked for in the place of the sources of all errors from behind a DNAT, those of
    /// the node that did it too (`nf_nat_icmp_reply_translation`).
    fn router(&mut self, node: usize, answer: Option<&RouteAnswer>) {
        let dnat = self.hops.iter().find(|timed| timed.hop.action == Action::Dnat);
        let asked = dnat.and_then(|timed| Some(timed.hop.detail.nat.as_ref()?.before.dst));
        let source = match answer {
            // Without an address to send from, as where no route leads back, it says nothing, whatever it would be called.
            Some(answer) => answer.icmp_source.map(|own| asked.unwrap_or(own)),
            None => asked,
        };
        self.routers.push((node, source));
    }

    fn routed(&mut self, spot: Spot, header: Header, answer: Option<&RouteAnswer>) {
        let route = answer.and_then(|a| a.route.as_ref());
        // An answer that names another interface is not about the way this packet took.
        let route = route.filter(|r| r.out_ifindex.is_none_or(|i| i == spot.at.ifindex));
        let basis = if route.is_some() { Basis::Configured } else { Basis::Inferred };
        let detail = Detail { route: route.map(|r| r.text.clone()), ..Detail::default() };
        self.push(spot, Action::Routed, header, basis, detail);
    }

    /// What happened between coming in by `p` and going out by `q`. No hook saw the moments; they are dated by `q`.
    fn forwarded(&mut self, node: usize, p: &Touch<'a>, q: &Touch<'a>) {
        let namespaces = self.world.namespaces(node);
        let (before, after) = (p.header(), q.header());
        let received = Spot { node, at: p.at(), time_ns: q.start() };
        let mut leaving = Spot { node, at: q.at(), time_ns: q.start() };
        let rewrites = self.rewrites(node, q.first, &p.last.packet, &q.first.packet, q.wrapped());
        let passage = Passage {
            node,
            skb: q.first.skb,
            from: Some(p.end()),
            to: q.start(),
            came: Some(p.at()),
            goes: Some(q.at()),
        };
        let mut header = before;
        if let Some((action, nat)) = rewrites.before_routing {
            header = nat::header(&nat, before.ttl);
            self.rewritten(received, action, nat, &p.last.packet, &passage);
        }
        // Routing came before the source was rewritten.
        if let Some((action, _)) = &rewrites.after_routing
            && let Some(moment) = self.moment(&passage, *action, &q.first.packet)
        {
            leaving.time_ns = moment;
        }
        header.ttl = after.ttl;
        match namespaces.bridge_of(q.at()).filter(|b| namespaces.bridge_of(p.at()) == Some(*b)) {
            Some(bridge) if before.ttl == after.ttl => {
                let spot = Spot { at: bridge, ..leaving };
                self.push(spot, Action::Bridged, header, Basis::Inferred, Detail::default());
            }
            _ if before.ttl != after.ttl => {
                let answer = self.world.answer(node, &route::forwarding(p, q));
                self.router(node, answer);
                self.routed(leaving, header, answer);
            }
            _ => {}
        }
        if let Some((action, nat)) = rewrites.after_routing {
            self.rewritten(leaving, action, nat, &q.first.packet, &passage);
        }
    }

    fn rewrites(&self, node: usize, s: &Sighting, from: &Packet, to: &Packet, wrapped: bool) -> nat::Rewrites {
        // What is inside a tunnel is not this node's to rewrite.
        if wrapped {
            return nat::Rewrites::default();
        }
        let direction = nat::direction(s, self.chain.translation(node, s), self.chain.role);
        nat::rewrites(from, to, direction)
    }

    /// Encrypted: what leaves the node cannot be recognised, so neither its interface nor its addresses are shown.
    fn sealed(&mut self, node: usize, touch: &Touch<'a>) {
        let spot = Spot { node, at: touch.at(), time_ns: touch.end() };
        let (queue_ns, mtu) = (touch.queue_ns(), self.mtu(node, touch.at()));
        let name = self.world.interface(node, touch.at()).unwrap_or("a WireGuard device");
        let text = Some(format!("encrypted by {name}; what leaves the node cannot be recognised"));
        let detail = Detail { queue_ns, mtu, text, ..Detail::default() };
        self.push(spot, Action::Encapsulated, touch.header(), Basis::Observed, detail);
    }

    /// A wire that was crossed encrypted: what came out at the other end was the same packet, the rest is concluded.
    fn crossed_sealed(&mut self, a: usize, out: &Touch<'a>, b: usize) {
        if !self.world.namespaces(a).is_sealed(out.at()) {
            return;
        }
        let text = format!("encrypted, to {}: not observed", self.world.node(b).name);
        let detail = Detail { text: Some(text), ..Detail::default() };
        let spot = Spot { node: a, at: out.at(), time_ns: out.end() };
        self.push(spot, Action::Transmitted, out.header(), Basis::Inferred, detail);
        if let Some(last) = self.hops.last_mut() {
            (last.hop.interface, last.hop.ifindex, last.time_ns) = (None, None, None);
        }
    }

    /// A tunnel's device made `wrapped` of it, whose route was that.
    fn encapsulated(&mut self, node: usize, touch: &Touch<'a>, wrapped: &Sighting, route: &RouteQuestion) {
        let answer = self.world.answer(node, route);
        let detail = Detail {
            tunnel: self.tunnel(node, touch.at(), wrapped),
            route: answer.and_then(|a| Some(a.route.as_ref()?.text.clone())),
            queue_ns: touch.queue_ns(),
            mtu: self.mtu(node, touch.at()),
            ..Detail::default()
        };
        let spot = Spot { node, at: touch.at(), time_ns: touch.end() };
        self.push(spot, Action::Encapsulated, Header::of(wrapped), Basis::Observed, detail);
    }
}

impl Touch<'_> {
    /// `net_dev_start_xmit` was seen, `net_dev_queue` was not.
    pub(super) fn queue_unseen(&self) -> bool {
        self.way == Way::Out && self.first.hook == Hook::Xmit
    }
}
