//! What conntrack and the rules for NAT make of the model's packets.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::filter::{Passing, Point, Verdict};
use super::packet::{Flow, Packet, Protocol};
use super::service::Turned;
use super::walk::{Walk, has};
use super::world::{Host, Link, LinkKind, Role};
use crate::lab::profile::Cni;

impl<'a> Walk<'a> {
    pub(super) fn known(&self, host: &Host, packet: &Packet) -> bool {
        let flows = self.flows.get(host.name.as_str()).map_or(&[][..], Vec::as_slice);
        let ends = packet.about.unwrap_or(packet.ends());
        flows.iter().any(|flow| {
            let turned = |(a, b): (Ipv4Addr, Ipv4Addr)| (b, a);
            match packet.about {
                Some(_) => [flow.forth, flow.back, turned(flow.forth), turned(flow.back)].contains(&ends),
                // The destination may be translated back already.
                None => flow.back.0 == ends.0 && [flow.back.1, flow.forth.0].contains(&ends.1),
            }
        })
    }

    /// Conntrack at PREROUTING.
    pub(super) fn translate_destination(&mut self, host: &'a Host, link: &'a Link, packet: &mut Packet) -> Result<()> {
        let flows = self.flows.entry(&host.name).or_default();
        if packet.about.is_some() {
            as_sent(flows, packet);
            return Ok(());
        }
        let ends = packet.ends();
        if let Some(flow) = flows.iter().find(|flow| flow.back == ends).cloned() {
            let before = packet.dst;
            if flow.forth.0 != before {
                packet.dst = flow.forth.0;
                let changed = id_changed(packet, flow.id);
                self.line(host, &link.name, "unsnat", packet.ttl, &format!("dst {before} -> {}{changed}", packet.dst));
            } else if flow.id.0 != flow.id.1 {
                // Only the port is another one, of the destination.
                packet.id = flow.id.0;
                self.line(host, &link.name, "unsnat", packet.ttl, "");
            }
            return Ok(());
        }
        let rule = host.filters.iter().find_map(|filter| match filter.verdict {
            Verdict::Dnat(to) => {
                let passing = Passing { packet, from: Some(&link.name), to: None, established: false };
                (filter.point == Point::Prerouting && filter.fits(&passing)).then_some(to)
            }
            _ => None,
        });
        let rule = rule.map(|to| Turned { to, to_port: None, marked: false });
        if let Some(text) = self.turn(host, packet, rule) {
            self.line(host, &link.name, "dnat", packet.ttl, &text);
        }
        Ok(())
    }

    /// Conntrack at OUTPUT. What it did, if it did something; nothing is written down.
    pub(super) fn translate_output(&mut self, host: &'a Host, packet: &mut Packet) -> Option<String> {
        if packet.about.is_some() {
            return None;
        }
        self.turn(host, packet, None)
    }

    /// Conntrack at INPUT.
    pub(super) fn translate_input(&mut self, host: &'a Host, link: &Link, packet: &mut Packet) {
        let flows = self.flows.entry(&host.name).or_default();
        if let Some(about) = packet.about {
            packet.src = fronted(flows, about).unwrap_or(packet.src);
        } else if let Some(text) = undone(flows, packet) {
            self.line(host, &link.name, "undnat", packet.ttl, &text);
        }
    }

    /// DNAT by a rule or a service, of what begins a flow or belongs to one.
    fn turn(&mut self, host: &'a Host, packet: &mut Packet, rule: Option<Turned>) -> Option<String> {
        let rule = rule.or_else(|| self.world.portals.turn(self.world.pool, host, packet));
        let flows = self.flows.entry(&host.name).or_default();
        let ends = packet.ends();
        if flows.iter().any(|flow| (flow.forth.0, flow.back.0) == ends && flow.ttl == packet.ttl) {
            // A bridge's port had it first.
            return None;
        }
        // What comes around again with another port begins another one.
        let same = |flow: &&Flow| flow.forth == ends && (flow.id.0 == packet.id || !packet.begins());
        let known = flows.iter().find(same).map(|flow| flow.back.0);
        let turned = rule.filter(|_| known.is_none() && packet.begins());
        let to = known.or(turned.map(|turned| turned.to)).unwrap_or(packet.dst);
        if known.is_none() && packet.begins() {
            let port = turned.and_then(|turned| turned.to_port).unwrap_or(packet.port);
            let turns_port = port != packet.port;
            packet.port = port;
            let id = (packet.id, packet.id);
            flows.push(Flow { forth: ends, back: (to, packet.src), id, port, ttl: packet.ttl, turns_port });
            packet.marked = turned.is_some_and(|turned| turned.marked);
        }
        let text = (to != packet.dst).then(|| format!("dst {} -> {to}", packet.dst));
        packet.dst = to;
        text
    }

    /// Conntrack at POSTROUTING.
    pub(super) fn translate_source(
        &mut self,
        host: &'a Host,
        out: &'a Link,
        shown: &str,
        source: Option<Ipv4Addr>,
        packet: &mut Packet,
    ) -> Result<()> {
        if let Some(about) = packet.about {
            let flows = self.flows.entry(&host.name).or_default();
            // What DNAT hid stays hidden.
            packet.src = fronted(flows, about).unwrap_or(packet.src);
            return Ok(());
        }
        let ends = packet.ends();
        let flows = self.flows.entry(&host.name).or_default();
        // An answer: its source becomes what the sender called it.
        if let Some(text) = undone(flows, packet) {
            self.line(host, shown, "undnat", packet.ttl, &text);
            return Ok(());
        }
        // The latest: what DNAT turned and comes around again begins a flow of its own.
        let own = |flow: &Flow| flow.forth.0 == ends.0 && flow.back.0 == ends.1 && flow.id.0 == packet.id;
        let Some(place) = flows.iter().rposition(own) else { return Ok(()) };
        if !packet.begins() {
            return Ok(());
        }
        let masquerade = out.addresses.first().map(ipnet::Ipv4Net::addr).or(source);
        let rule = self.source_rule(host, out, packet);
        packet.marked = false;
        let to = match rule {
            Some(Source::Masquerade { random }) => masquerade.map(|to| (to, random)),
            Some(Source::To(to)) => Some((to, false)),
            None => None,
        };
        let to = to.filter(|(to, random)| *to != packet.src || *random);
        // Answers to both would look alike, so the later one gets another port (`nf_nat_used_tuple`).
        let to = to.or_else(|| self.is_taken(host, place, packet).then_some((packet.src, true)));
        let Some((to, random)) = to else { return Ok(()) };
        let flow = self.flows.get_mut(host.name.as_str()).and_then(|flows| flows.get_mut(place)).context("there")?;
        let id = if random { packet.id + 1 } else { packet.id };
        flow.back.1 = to;
        flow.id = (packet.id, id);
        let changed = if random { ", id changed" } else { "" };
        let text = match to == packet.src {
            true => "id changed".to_owned(),
            false => format!("src {} -> {to}{changed}", packet.src),
        };
        (packet.src, packet.id) = (to, id);
        self.line(host, shown, "snat", packet.ttl, &text);
        Ok(())
    }

    /// Do the answers to another flow look as those to the one at `place` would?
    fn is_taken(&self, host: &Host, place: usize, packet: &Packet) -> bool {
        let others = self.flows.get(host.name.as_str()).map_or(&[][..], |flows| flows.get(..place).unwrap_or_default());
        let like =
            |flow: &Flow| (flow.back, flow.id.1, flow.port) == ((packet.dst, packet.src), packet.id, packet.port);
        others.iter().any(like)
    }

    /// The first rule that translates the source of a new flow: planted, else of the CNI or the gateway.
    fn source_rule(&self, host: &Host, out: &Link, packet: &Packet) -> Option<Source> {
        let passing = Passing { packet, from: None, to: Some(&out.name), established: false };
        let random = Some(Source::Masquerade { random: true });
        if packet.marked && self.world.portals.before_iptables(&self.world.cni) {
            return random;
        }
        let planted = host.filters.iter().filter(|filter| filter.point == Point::Postrouting && filter.fits(&passing));
        for filter in planted {
            match filter.verdict {
                Verdict::Masquerade => return Some(Source::Masquerade { random: false }),
                Verdict::Snat(to) => return Some(Source::To(to)),
                _ => {}
            }
        }
        if packet.marked {
            return random;
        }
        let pool = self.world.pool;
        let (from_pool, to_pool) = (pool.contains(&packet.src), pool.contains(&packet.dst));
        match (&host.role, &self.world.cni) {
            (Role::Outside, _) => match self.world.translated.get(&packet.src) {
                Some(external) if out.name == "eth1" => Some(Source::To(*external)),
                _ if host.masquerades && out.name == "eth1" => Some(Source::Masquerade { random: false }),
                _ => None,
            },
            (Role::Pod { .. }, _) => None,
            (Role::Node { .. }, Cni::Calico { .. }) => {
                let tunnel = matches!(out.kind, LinkKind::Ipip(_) | LinkKind::Vxlan(_));
                let own = tunnel && host.is_local(packet.src) && !has(out, packet.src);
                random.filter(|_| from_pool && !to_pool || own)
            }
            (Role::Node { .. }, Cni::Kindnet) => Some(Source::Masquerade { random: false }).filter(|_| !to_pool),
            (Role::Node { block, .. }, Cni::Flannel { .. }) => {
                let own = (block.contains(&packet.src), block.contains(&packet.dst));
                let stays = match own {
                    (true, _) if to_pool => true,
                    (_, true) => true,
                    _ => false,
                };
                random.filter(|_| !stays && (from_pool || to_pool))
            }
        }
    }
}

/// An error about a packet that a host translated: it says what the sender sent, to the sender. Who says it is rewritten later,
/// in POSTROUTING.
pub(super) fn as_sent(flows: &[Flow], error: &mut Packet) {
    let Some(flow) = flows.iter().find(|flow| Some((flow.back.1, flow.back.0)) == error.about) else { return };
    error.dst = flow.forth.0;
    error.about = Some(flow.forth);
}

/// What DNAT hid, as the one who answers.
fn fronted(flows: &[Flow], about: (Ipv4Addr, Ipv4Addr)) -> Option<Ipv4Addr> {
    flows.iter().find(|flow| flow.forth == about && flow.forth.1 != flow.back.0).map(|flow| flow.forth.1)
}

/// Undoes DNAT of an answer: its source becomes what the sender called it.
fn undone(flows: &[Flow], packet: &mut Packet) -> Option<String> {
    let ends = packet.ends();
    if packet.begins() {
        return None;
    }
    let flow = flows.iter().find(|flow| (flow.back.0, flow.forth.0) == ends && flow.forth.1 != flow.back.0)?;
    let changed = if flow.turns_port { ", id changed" } else { "" };
    let text = format!("src {} -> {}{changed}", packet.src, flow.forth.1);
    packet.src = flow.forth.1;
    Some(text)
}

/// What becomes of a source address.
enum Source {
    Masquerade { random: bool },
    To(Ipv4Addr),
}

/// The identifier goes back to what it was: of an echo it is both ports at once, of the others the other one.
fn id_changed(packet: &mut Packet, (before, after): (u32, u32)) -> &'static str {
    packet.id = before;
    let echo = matches!(packet.protocol, Protocol::EchoRequest | Protocol::EchoReply);
    if echo && before != after { ", id changed" } else { "" }
}
