//! One packet on its way through the modelled hosts, as Linux forwards it: what it meets is written down the way scenario
//! files write hops.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use super::fib::{self, Kind, Route};
use super::filter::Point;
use super::packet::{Flow, Outer, Packet};
use super::world::{Host, Link, LinkKind, Role, World};
use crate::lab::profile::{Cni, WIRE};

mod end;

/// How a packet ended.
#[derive(Debug)]
pub(super) enum End {
    /// At the host that has its destination, by a link.
    Delivered(String, String, Packet),
    Dropped(Dropped),
    /// The wire between two nodes took it.
    Lost,
    /// The wire between a node and the gateway did.
    Beyond,
}

/// Where nobody else is to blame.
#[derive(Debug)]
pub(super) struct Dropped {
    /// Not out there.
    pub(super) traced: bool,
    /// The rule: `filter/FORWARD rule 1`.
    pub(super) rule: Option<String>,
    /// What the host says to the sender.
    pub(super) answer: Option<Box<Answer>>,
}

#[derive(Debug)]
pub(super) struct Answer {
    host: String,
    error: Packet,
}

/// Two packets of an exchange share what conntrack remembers.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) world: &'a World,
    pub(super) flows: BTreeMap<&'a str, Vec<Flow>>,
    pub(super) lines: Vec<String>,
    pub(super) routers: Vec<Ipv4Addr>,
    /// A router behind DNAT whose errors do not come back.
    pub(super) unnamed: bool,
    /// Lines that may stand in place of others, for reasons that the configuration does not tell.
    pub(super) instead: Vec<(Vec<String>, String)>,
    steps: u32,
    /// How many lines there were when what is on its way now was sent.
    began: usize,
    /// What left a traced host last: the host, its link.
    left: Option<(String, String, Packet)>,
}

/// More than any TTL allows.
const TOO_MANY: u32 = 5_000;

impl<'a> Walk<'a> {
    pub(super) fn new(world: &'a World) -> Walk<'a> {
        Walk {
            world,
            flows: BTreeMap::new(),
            lines: Vec::new(),
            routers: Vec::new(),
            unnamed: false,
            instead: Vec::new(),
            steps: 0,
            began: 0,
            left: None,
        }
    }

    /// By what name the sender hears of a host that says its packet's TTL ran out: conntrack, where it undoes DNAT, puts the
    /// address that was asked in the place of who says it (`nf_nat_icmp_reply_translation`).
    fn named(&mut self, host: &'a Host, own: Ipv4Addr, packet: &Packet) -> Result<Ipv4Addr> {
        let answer = self.answer(host, packet).filter(|_| !host.is_local(packet.src));
        let Some(answer) = answer else { return Ok(own) };
        let (lines, routers) = (self.lines.len(), self.routers.len());
        let end = self.send(&answer.host, answer.error)?;
        self.lines.truncate(lines);
        self.routers.truncate(routers);
        Ok(match end {
            End::Delivered(_, _, error) => error.src,
            // Nobody hears of it: which name it would have cannot be seen.
            _ => {
                self.unnamed |= self.flows.values().flatten().any(|flow| flow.forth.1 != flow.back.0);
                own
            }
        })
    }

    /// A packet that `host` sends itself.
    pub(super) fn send(&mut self, host: &str, mut packet: Packet) -> Result<End> {
        let host = self.world.host(host)?;
        self.began = self.lines.len();
        if packet.about.is_some() {
            super::nat::as_sent(self.flows.entry(&host.name).or_default(), &mut packet);
        }
        if host.is_local(packet.dst) {
            bail!("{} to itself", host.name);
        }
        let Some(route) = fib::lookup(&host.routes, packet.dst) else {
            // Only answers and replies get here: what a probe cannot be sent by is not asked for.
            return Ok(End::Dropped(Dropped { traced: host.role != Role::Outside, rule: None, answer: None }));
        };
        if route.kind != Kind::Unicast {
            return Ok(End::Dropped(Dropped { traced: host.role != Role::Outside, rule: None, answer: None }));
        }
        // DNAT comes before any device sees it.
        let turned = self.translate_output(host, &mut packet);
        let route = match &turned {
            Some(text) => match fib::lookup(&host.routes, packet.dst) {
                Some(route) if route.kind == Kind::Unicast => route,
                refused => return Ok(self.without_way(host, refused, text)),
            },
            None => route,
        };
        self.line(host, &route.dev, "sent", packet.ttl, "");
        if let Some(text) = turned {
            self.line(host, &route.dev, "dnat", packet.ttl, &text);
        }
        if matches!(host.role, Role::Node { .. }) {
            let text = self.text(host, route);
            self.line(host, &route.dev, "routed", packet.ttl, &text);
        }
        self.leave(host, None, route, packet)
    }

    /// Through the last hooks, and out.
    fn leave(&mut self, host: &'a Host, from: Option<&'a Link>, route: &'a Route, mut packet: Packet) -> Result<End> {
        let out = host.link(&route.dev)?;
        let next = route.via.unwrap_or(packet.outer.as_ref().map_or(packet.dst, |outer| outer.dst));
        // What a tunnel makes is the node's own.
        let wraps = packet.outer.as_ref().is_some_and(|outer| host.is_local(outer.src));
        let came = from.filter(|_| !wraps);
        let point = if came.is_some() { Point::Forward } else { Point::Output };
        for point in [point, Point::Postrouting] {
            if let Some(dropped) = self.filtered(host, point, came, Some(out), &packet)? {
                let told = from.is_none() && !wraps;
                return Ok(if told { self.refused(host, out, &packet, dropped) } else { dropped });
            }
        }
        if packet.outer.is_none() {
            let source = host.source(route);
            self.translate_source(host, out, &out.name, source, &mut packet)?;
        }
        self.transmit(host, from, out, next, packet)
    }

    fn transmit(
        &mut self,
        host: &'a Host,
        from: Option<&'a Link>,
        out: &'a Link,
        next: Ipv4Addr,
        packet: Packet,
    ) -> Result<End> {
        self.steps += 1;
        if self.steps > TOO_MANY {
            bail!("it goes round and round");
        }
        let known = match &out.kind {
            LinkKind::Veth(peer, _) if peer == WIRE => self.world.hosts.values().find(|other| {
                let nic = other.links.get(other.nic()).filter(|nic| nic.up && nic.is_on_wire());
                other.name != host.name && nic.is_some_and(|nic| has(nic, next))
            }),
            LinkKind::Veth(peer, port) => {
                let peer = self.world.host(peer)?;
                // A node answers for the pods' gateway; over a bridge, who has the address does.
                let answers = |peer: &Host| match peer.links.get(port).and_then(|port| port.master.as_deref()) {
                    // Proxy ARP is for those who forward (`arp_process` in net/ipv4/arp.c).
                    None if matches!(peer.role, Role::Node { .. }) => {
                        peer.is_local(next) || peer.setting("ipv4/ip_forward") == "1"
                    }
                    None => !peer.silent && peer.is_local(next),
                    Some(bridge) => {
                        peer.links.get(bridge).is_some_and(|bridge| has(bridge, next))
                            || self.world.owner(next).is_some_and(|pod| !pod.silent && pod.is_behind(peer, bridge))
                    }
                };
                Some(peer).filter(|peer| answers(peer))
            }
            LinkKind::Bridge => {
                let owner = self.world.owner(next);
                owner.filter(|pod| pod.is_behind(host, &out.name) && !pod.silent)
            }
            LinkKind::Ipip(local) => {
                let outer = Outer { src: *local, dst: next, ttl: packet.ttl, kind: "ipip" };
                return self.encapsulate(host, from, out, outer, packet);
            }
            LinkKind::Vxlan(local) => {
                let dst = *host.beyond.get(&next).with_context(|| format!("no neighbour {next} at {}", host.name))?;
                // `vxlan_xmit_one`: of a tunnel without a TTL of its own.
                let outer = Outer { src: *local, dst, ttl: host.default_ttl()?, kind: "vxlan" };
                return self.encapsulate(host, from, out, outer, packet);
            }
            LinkKind::Loopback => bail!("by a loopback"),
        };
        let at = from.unwrap_or(out);
        let why = match known {
            _ if !out.up => format!("{} is administratively down", out.name),
            _ if !host.carrier(self.world, out) => format!("{} has no carrier: its other end is down", out.name),
            Some(peer) => return self.hand_over(host, from, out, next, packet, peer),
            None => format!("no answer to ARP for {next}"),
        };
        if from.is_none() {
            self.kept(host, out, &why);
            return Ok(End::Dropped(Dropped { traced: true, rule: None, answer: self.answer(host, &packet) }));
        }
        Ok(self.drop(host, at, &why, None, &packet, true))
    }

    fn hand_over(
        &mut self,
        host: &'a Host,
        from: Option<&'a Link>,
        out: &'a Link,
        next: Ipv4Addr,
        mut packet: Packet,
        peer: &'a Host,
    ) -> Result<End> {
        let ttl = shown_ttl(&packet);
        if from.is_some() || packet.outer.is_some() {
            self.line(host, &out.name, "transmitted", ttl, "");
        }
        if host.role != Role::Outside {
            self.left = Some((host.name.clone(), out.name.clone(), packet.clone()));
        }
        match &out.kind {
            LinkKind::Bridge => {
                let LinkKind::Veth(_, port) = &peer.link("eth0")?.kind else { bail!("no port") };
                self.line(host, port, "transmitted", ttl, "");
                self.receive(peer, peer.link("eth0")?, next, packet)
            }
            LinkKind::Veth(wire, _) if wire == WIRE => {
                if let Some(end) = self.swallowed(host, peer, out, &mut packet) {
                    return Ok(end);
                }
                self.receive(peer, peer.link(peer.nic())?, next, packet)
            }
            LinkKind::Veth(_, link) => self.receive(peer, peer.link(link)?, next, packet),
            _ => bail!("a tunnel"),
        }
    }

    fn encapsulate(
        &mut self,
        host: &'a Host,
        from: Option<&'a Link>,
        tunnel: &'a Link,
        outer: Outer,
        mut packet: Packet,
    ) -> Result<End> {
        let route = fib::lookup(&host.routes, outer.dst).with_context(|| format!("no route to {}", outer.dst))?;
        let text = format!("{} {} -> {}, {}", outer.kind, outer.src, outer.dst, self.text(host, route));
        self.line(host, &tunnel.name, "encapsulated", outer.ttl, &text);
        packet.outer = Some(outer);
        self.leave(host, from, route, packet)
    }

    /// A link brings a packet for the neighbour `next`.
    fn receive(&mut self, host: &'a Host, link: &'a Link, next: Ipv4Addr, mut packet: Packet) -> Result<End> {
        let ttl = shown_ttl(&packet);
        self.line(host, &link.name, "received", ttl, "");
        let Some(bridge) = &link.master else { return self.enter(host, link, packet) };
        let bridge = host.link(bridge)?;
        if has(bridge, next) {
            // The bridge hands it to iptables first, as Kubernetes asks.
            if let Some(dropped) = self.filtered(host, Point::Prerouting, Some(link), None, &packet)? {
                return Ok(dropped);
            }
            let asked = packet.dst;
            self.translate_destination(host, link, &mut packet)?;
            let turned = packet.dst;
            let back = fib::lookup(&host.routes, turned).filter(|route| route.via.is_none());
            if turned == asked || host.is_local(turned) || back.is_none_or(|route| route.dev != bridge.name) {
                self.line(host, &bridge.name, "received", ttl, "");
                return self.enter(host, bridge, packet);
            }
            // What NAT sends to another port is bridged there, not routed (`br_nf_pre_routing_finish`); by way of the bridge's own
            // device where the node has not sent anything to that neighbour yet.
            let [bridged, sent] =
                ["bridged", "transmitted"].map(|action| self.hop(host, &bridge.name, action, ttl, ""));
            let before = self.lines.len();
            let end = self.bridge(host, link, bridge, turned, packet)?;
            if let Some(dropped) = self.lines[before..].first().filter(|line| line.contains(" dropped ")) {
                let there = dropped.replacen(&link.name, &bridge.name, 1);
                self.instead.push((vec![sent.clone(), there], dropped.clone()));
            }
            self.instead.push((vec![sent], bridged));
            return Ok(end);
        }
        if let Some(dropped) = self.filtered(host, Point::Prerouting, Some(link), Some(bridge), &packet)? {
            return Ok(dropped);
        }
        self.translate_destination(host, link, &mut packet)?;
        self.bridge(host, link, bridge, next, packet)
    }

    /// From one port to another, past iptables.
    fn bridge(
        &mut self,
        host: &'a Host,
        link: &'a Link,
        bridge: &'a Link,
        next: Ipv4Addr,
        mut packet: Packet,
    ) -> Result<End> {
        let ttl = shown_ttl(&packet);
        let other = self.world.owner(next).context("bridged to nobody")?;
        let LinkKind::Veth(_, port) = &other.link("eth0")?.kind else { bail!("no port") };
        for point in [Point::Forward, Point::Postrouting] {
            if let Some(dropped) = self.filtered(host, point, Some(link), Some(bridge), &packet)? {
                return Ok(dropped);
            }
        }
        // What POSTROUTING drops does not leave the bridge.
        self.line(host, &bridge.name, "bridged", ttl, "");
        self.translate_source(host, bridge, port, None, &mut packet)?;
        self.line(host, port, "transmitted", ttl, "");
        self.receive(other, other.link("eth0")?, next, packet)
    }

    /// IP takes it in.
    fn enter(&mut self, host: &'a Host, link: &'a Link, mut packet: Packet) -> Result<End> {
        self.steps += 1;
        if self.steps > TOO_MANY {
            bail!("it goes round and round");
        }
        if let Some(dropped) = self.filtered(host, Point::Prerouting, Some(link), None, &packet)? {
            return Ok(dropped);
        }
        if let Some(outer) = packet.outer.clone().filter(|outer| host.is_local(outer.dst)) {
            if let Some(dropped) = self.filtered(host, Point::Input, Some(link), None, &packet)? {
                return Ok(dropped);
            }
            packet.outer = None;
            let tunnel = host.tunnel_link().with_context(|| format!("no tunnel at {}", host.name))?;
            let text = format!("{} {} -> {}", outer.kind, outer.src, outer.dst);
            self.line(host, &tunnel.name, "decapsulated", packet.ttl, &text);
            return self.enter(host, tunnel, packet);
        }
        if packet.outer.is_none() {
            // Calico's rule for what comes from a pod.
            if matches!(self.world.cni, Cni::Calico { .. }) && link.name.starts_with("cali") {
                let back = fib::lookup(&host.routes, packet.src).filter(|route| route.kind == Kind::Unicast);
                if back.is_none_or(|route| route.dev != link.name) {
                    return Ok(self.drop(
                        host,
                        link,
                        "reverse path filter",
                        Some("raw/cali-PREROUTING"),
                        &packet,
                        false,
                    ));
                }
            }
            self.translate_destination(host, link, &mut packet)?;
        }
        let dst = packet.outer.as_ref().map_or(packet.dst, |outer| outer.dst);
        let forwards = host.setting("ipv4/ip_forward") == "1";
        let local = host.is_local(dst);
        let route = fib::lookup(&host.routes, dst);
        if !local {
            let unusable = match route {
                _ if !forwards => Some(("forwarding is disabled (net.ipv4.ip_forward = 0)".to_owned(), false)),
                None => Some(("no route".to_owned(), true)),
                Some(route) if route.kind == Kind::Unicast => None,
                Some(route) => {
                    let why = format!("{} route, {}", route.kind.word(), route.text(false));
                    Some((why, route.kind != Kind::Blackhole))
                }
            };
            if let Some((why, answers)) = unusable {
                return Ok(self.drop(host, link, &why, None, &packet, answers));
            }
        }
        let src = packet.outer.as_ref().map_or(packet.src, |outer| outer.src);
        if host.is_local(src) {
            let why = "its source is an address of this node itself: it came back (a routing loop), or somebody else uses that address";
            return Ok(self.drop(host, link, why, None, &packet, false));
        }
        if self.reverse_path_fails(host, link, src) {
            return Ok(self.drop(host, link, "reverse path filter", None, &packet, false));
        }
        let Some(route) = route.filter(|_| !local) else {
            if let Some(dropped) = self.filtered(host, Point::Input, Some(link), None, &packet)? {
                return Ok(dropped);
            }
            self.translate_input(host, link, &mut packet);
            self.line(host, &link.name, "delivered", packet.ttl, "");
            return Ok(End::Delivered(host.name.clone(), link.name.clone(), packet));
        };
        self.forward(host, link, route, packet)
    }

    fn forward(&mut self, host: &'a Host, link: &'a Link, route: &'a Route, mut packet: Packet) -> Result<End> {
        let ttl = shown_ttl(&packet);
        if ttl <= 1 {
            return Ok(self.drop(host, link, "TTL expired", None, &packet, true));
        }
        let mtu = host.link(&route.dev)?.mtu;
        if packet.outer.is_none() && packet.size > mtu {
            let why = format!("{} bytes do not fit the MTU {mtu} of {}", packet.size, route.dev);
            return Ok(self.drop(host, link, &why, None, &packet, true));
        }
        match &mut packet.outer {
            Some(outer) => outer.ttl -= 1,
            None => packet.ttl -= 1,
        }
        if matches!(host.role, Role::Node { .. }) {
            let back = fib::lookup(&host.routes, packet.src).filter(|route| route.kind == Kind::Unicast);
            let own = back.and_then(|route| host.source(route));
            if let Some(own) = own {
                let name = self.named(host, own, &packet)?;
                self.routers.push(name);
            }
            let text = self.text(host, route);
            self.line(host, &route.dev, "routed", shown_ttl(&packet), &text);
        }
        self.leave(host, Some(link), route, packet)
    }

    fn text(&self, host: &Host, route: &Route) -> String {
        let carrier = host.links.get(&route.dev).is_none_or(|link| host.carrier(self.world, link));
        route.text(!carrier)
    }

    fn place(&self, host: &Host) -> String {
        match &host.role {
            Role::Outside | Role::Node { .. } => host.name.clone(),
            Role::Pod { node, name } => format!("{node} {name}"),
        }
    }

    /// As scenario files write a hop.
    pub(super) fn line(&mut self, host: &Host, link: &str, action: &str, ttl: u8, detail: &str) {
        if host.role != Role::Outside {
            self.lines.push(self.hop(host, link, action, ttl, detail));
        }
    }

    fn hop(&self, host: &Host, link: &str, action: &str, ttl: u8, detail: &str) -> String {
        let place = self.place(host);
        let colon = if detail.is_empty() { "" } else { ": " };
        let basis = if action == "bridged" { " (inferred)" } else { "" };
        format!("{place} {link} {action} ttl {ttl}{colon}{detail}{basis}")
    }
}

pub(super) fn has(link: &Link, address: Ipv4Addr) -> bool {
    link.addresses.iter().any(|own| own.addr() == address)
}

/// Of the outermost header.
fn shown_ttl(packet: &Packet) -> u8 {
    packet.outer.as_ref().map_or(packet.ttl, |outer| outer.ttl)
}
