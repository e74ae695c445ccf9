//! One packet on its way through the modelled hosts, as Linux forwards it: what it meets is written down the way scenario
//! files write hops.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use super::fib::{self, Kind, Route};
use super::filter::{Filter, Passing, Point, Verdict};
use super::packet::{Flow, Outer, Packet, Protocol};
use super::world::{Host, Link, LinkKind, Role, World};
use crate::lab::plant::{Echo, Way};
use crate::lab::profile::{Cni, WIRE};

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

    /// What becomes of an answer: whether it comes to `who`, and whether it is seen on its way there. Nothing of that way is
    /// written down.
    pub(super) fn fate(&mut self, answer: Answer, who: &str) -> Result<(bool, bool)> {
        if answer.host == who {
            return Ok((true, true));
        }
        let (lines, routers) = (self.lines.len(), self.routers.len());
        let end = self.send(&answer.host, answer.error)?;
        let seen = self.lines.len() > lines;
        self.lines.truncate(lines);
        self.routers.truncate(routers);
        Ok((matches!(end, End::Delivered(host, ..) if host == who), seen))
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

    /// A datagram that came to a host where nobody listens; whether `who` hears of that.
    pub(super) fn refuses(&mut self, host: &str, link: &str, packet: Packet, who: &str) -> Result<bool> {
        let host = self.world.host(host)?;
        let link = host.link(link)?;
        let why = format!("nothing listens on port {}", packet.port);
        match self.drop(host, link, &why, None, &packet, true) {
            End::Dropped(Dropped { answer: Some(answer), .. }) => Ok(self.fate(*answer, who)?.0),
            _ => Ok(false),
        }
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

    /// What DNAT in OUTPUT leads to where no route leads is refused to its maker (`ip_route_me_harder`); no device sees it.
    fn without_way(&mut self, host: &Host, route: Option<&Route>, turned: &str) -> End {
        let why =
            route.map_or("no route".to_owned(), |route| format!("{} route, {}", route.kind.word(), route.text(false)));
        let at = format!("{} {}", self.place(host), host.nic());
        self.lines.push(format!("{at} dnat: {turned} (inferred)"));
        self.lines.push(format!("{at} dropped: {why} (inferred)"));
        End::Dropped(Dropped { traced: true, rule: None, answer: None })
    }

    /// What a rule refuses to its maker, no device sees. Of a request its sender is told; that there was a reply, only the counter of a
    /// rule that is for it tells.
    fn refused(&mut self, host: &Host, out: &Link, packet: &Packet, dropped: End) -> End {
        let last = self.lines.pop().unwrap_or_default();
        let why = last.split_once(": ").map_or("", |(_, why)| why);
        let counted =
            ["netfilter rule", "netfilter reject rule"].contains(&why) && packet.protocol == Protocol::EchoReply;
        self.kept(host, out, why);
        if !packet.begins() && !counted {
            self.lines.pop();
            return End::Lost;
        }
        dropped
    }

    /// What its maker keeps for want of a neighbour, no device sees: not even that it was sent.
    fn kept(&mut self, host: &Host, out: &Link, why: &str) {
        let place = self.place(host);
        let own = |line: &String| line.starts_with(&format!("{place} {} ", out.name));
        while self.lines.len() > self.began && self.lines.last().is_some_and(own) {
            self.lines.pop();
        }
        self.lines.push(format!("{place} {} dropped: {why} (inferred)", out.name));
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

    /// Out there a packet came to nothing: of what left last, no more is seen.
    fn gone(&mut self) {
        let Some((name, link, packet)) = self.left.clone() else { return };
        let Some(host) = self.world.hosts.get(&name) else { return };
        let Role::Node { name, .. } = &host.role else { return };
        let of_pod = |host: &Host| matches!(host.role, Role::Pod { .. });
        let to_nobody = self.world.owner(packet.dst).is_none_or(|owner| owner.role == Role::Outside);
        let bare = packet.outer.is_none() && to_nobody && self.world.owner(packet.src).is_some_and(of_pod);
        let with = if bare { format!(" with the pod's own address {} (no SNAT)", packet.src) } else { String::new() };
        let text = format!("left {name} {link}{with}; beyond is not traced, no reply came back");
        self.line(host, &link, "lost", shown_ttl(&packet), &text);
    }

    fn swallowed(&mut self, host: &Host, peer: &Host, out: &Link, packet: &mut Packet) -> Option<End> {
        let kind = match packet.protocol {
            Protocol::EchoRequest => Echo::EchoRequest,
            Protocol::EchoReply => Echo::EchoReply,
            _ => return None,
        };
        // The wire's rule looks at plain IPv4 only.
        let hit = packet.outer.is_none()
            && self.world.swallowed.iter().any(|(node, way, echo)| {
                *echo == kind
                    && match way {
                        Way::To => *node == peer.name,
                        Way::From => *node == host.name,
                    }
            });
        if !hit {
            return None;
        }
        let (Role::Node { name: here, .. }, Role::Node { name: there, .. }) = (&host.role, &peer.role) else {
            self.gone();
            return Some(End::Beyond);
        };
        let text = format!("left {here} {}, never arrived at {there} {}", out.name, peer.nic());
        self.line(host, &out.name, "lost", packet.ttl, &text);
        Some(End::Lost)
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
        if let Some(outer) = packet.outer.clone().filter(|outer| host.is_local(outer.dst)) {
            for point in [Point::Prerouting, Point::Input] {
                if let Some(dropped) = self.filtered(host, point, Some(link), None, &packet)? {
                    return Ok(dropped);
                }
            }
            packet.outer = None;
            let tunnel = host.tunnel_link().with_context(|| format!("no tunnel at {}", host.name))?;
            let text = format!("{} {} -> {}", outer.kind, outer.src, outer.dst);
            self.line(host, &tunnel.name, "decapsulated", packet.ttl, &text);
            return self.enter(host, tunnel, packet);
        }
        if let Some(dropped) = self.filtered(host, Point::Prerouting, Some(link), None, &packet)? {
            return Ok(dropped);
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

    /// What the sysctl `rp_filter` says of a packet that a link brought: 1 wants it back by the same link, 2 by any.
    fn reverse_path_fails(&self, host: &Host, link: &Link, src: Ipv4Addr) -> bool {
        let back = fib::lookup(&host.routes, src).filter(|route| route.kind == Kind::Unicast);
        match host.rp_filter(&link.name) {
            "1" => back.is_none_or(|route| route.dev != link.name),
            "2" => back.is_none(),
            _ => false,
        }
    }

    /// The first planted rule that ends the packet at this point.
    fn filtered(
        &mut self,
        host: &'a Host,
        point: Point,
        from: Option<&'a Link>,
        to: Option<&'a Link>,
        packet: &Packet,
    ) -> Result<Option<End>> {
        let seen = packet.outermost();
        let passing = Passing {
            packet: &seen,
            from: from.map(|link| link.name.as_str()),
            to: to.map(|link| link.name.as_str()),
            established: self.known(host, &seen),
        };
        let here = host.filters.iter().filter(|filter| filter.point == point && !filter.is_translation());
        let Some(filter) = here.filter(|filter| filter.fits(&passing)).min_by_key(|filter| filter.order()) else {
            return Ok(None);
        };
        let before = host.filters.iter().take_while(|other| !std::ptr::eq(*other, filter));
        let before = before.filter(|other| other.table == filter.table && other.chain == filter.chain);
        let before = before.filter(|other| other.point == filter.point);
        let before = before.filter(|other| other.verdict != Verdict::Invalid).count();
        let Filter { table, chain, .. } = filter;
        let (why, rule) = match &filter.verdict {
            // Behind ESTABLISHED, INVALID, and the reset of the mark.
            Verdict::NetworkPolicy(direction, pod) => {
                (format!("{direction} policy at {pod}"), format!("rule {}", 4 + before))
            }
            Verdict::Invalid => {
                let place = if chain == "KUBE-FORWARD" { 1 } else { 2 };
                ("netfilter rule for packets that conntrack calls invalid".to_owned(), format!("rule {place}"))
            }
            Verdict::Policy => (format!("the default policy of chain {chain}"), "policy".to_owned()),
            Verdict::Reject if table != "kube-proxy" => {
                ("netfilter reject rule".to_owned(), format!("rule {}", filter.position.unwrap_or(1 + before)))
            }
            _ => ("netfilter rule".to_owned(), format!("rule {}", filter.position.unwrap_or(1 + before))),
        };
        // What a tunnel has just made was seen there last.
        let made = packet.outer.as_ref().filter(|outer| host.is_local(outer.src));
        let at = made.and_then(|_| host.tunnel_link()).or(from).or(to).context("neither in nor out")?;
        let answers = filter.verdict == Verdict::Reject;
        let rule = format!("{table}/{chain} {rule}");
        Ok(Some(self.drop(host, at, &why, Some(&rule), packet, answers)))
    }

    /// `answers`: it tells the sender, if it may.
    fn drop(&mut self, host: &Host, at: &Link, why: &str, rule: Option<&str>, packet: &Packet, answers: bool) -> End {
        let why = match &packet.outer {
            Some(Outer { src, dst, kind, .. }) => match why.split_once(" route, ") {
                Some((word, route)) => format!("{word} route, {kind} {src} -> {dst}, {route}"),
                None => format!("{why}, {kind} {src} -> {dst}"),
            },
            None => why.to_owned(),
        };
        self.line(host, &at.name, "dropped", shown_ttl(packet), &why);
        if host.role == Role::Outside {
            self.gone();
        }
        let answer = if answers { self.answer(host, packet) } else { None };
        End::Dropped(Dropped { traced: host.role != Role::Outside, rule: rule.map(str::to_owned), answer })
    }

    /// The ICMP error that a host sends about a packet, if it may and can.
    fn answer(&self, host: &Host, packet: &Packet) -> Option<Box<Answer>> {
        if packet.protocol == Protocol::Error || packet.outer.is_some() {
            return None;
        }
        let to_itself = host.is_local(packet.src);
        let route = fib::lookup(&host.routes, packet.src).filter(|route| route.kind == Kind::Unicast);
        let src = match route {
            _ if host.is_local(packet.dst) => packet.dst,
            _ if to_itself => packet.src,
            route => host.source(route?)?,
        };
        let about = Some(packet.ends());
        let (ttl, protocol) = (host.default_ttl().ok()?, Protocol::Error);
        let error = Packet {
            src,
            dst: packet.src,
            port: 0,
            id: 0,
            ttl,
            protocol,
            size: 100,
            about,
            outer: None,
            marked: false,
        };
        Some(Box::new(Answer { host: host.name.clone(), error }))
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
