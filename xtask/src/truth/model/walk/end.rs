//! How a packet's way ends: by a rule, for want of a way, out there; and what becomes of the answer to that.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::{Answer, Dropped, End, Walk, shown_ttl};
use crate::lab::plant::{Echo, Way};
use crate::truth::model::fib::{self, Kind, Route};
use crate::truth::model::filter::{Filter, Passing, Point, Verdict};
use crate::truth::model::packet::{Outer, Packet, Protocol};
use crate::truth::model::world::{Host, Link, Role};

impl<'a> Walk<'a> {
    /// The first planted rule that ends the packet at this point.
    pub(super) fn filtered(
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
    pub(super) fn drop(
        &mut self,
        host: &Host,
        at: &Link,
        why: &str,
        rule: Option<&str>,
        packet: &Packet,
        answers: bool,
    ) -> End {
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
    pub(super) fn answer(&self, host: &Host, packet: &Packet) -> Option<Box<Answer>> {
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

    /// What the sysctl `rp_filter` says of a packet that a link brought: 1 wants it back by the same link, 2 by any.
    pub(super) fn reverse_path_fails(&self, host: &Host, link: &Link, src: Ipv4Addr) -> bool {
        let back = fib::lookup(&host.routes, src).filter(|route| route.kind == Kind::Unicast);
        match host.rp_filter(&link.name) {
            "1" => back.is_none_or(|route| route.dev != link.name),
            "2" => back.is_none(),
            _ => false,
        }
    }

    /// What DNAT in OUTPUT leads to where no route leads is refused to its maker (`ip_route_me_harder`); no device sees it.
    pub(super) fn without_way(&mut self, host: &Host, route: Option<&Route>, turned: &str) -> End {
        let why =
            route.map_or("no route".to_owned(), |route| format!("{} route, {}", route.kind.word(), route.text(false)));
        let at = format!("{} {}", self.place(host), host.nic());
        self.lines.push(format!("{at} dnat: {turned} (inferred)"));
        self.lines.push(format!("{at} dropped: {why} (inferred)"));
        End::Dropped(Dropped { traced: true, rule: None, answer: None })
    }

    /// What a rule refuses to its maker, no device sees. Of a request its sender is told; that there was a reply, only the counter of a
    /// rule that is for it tells.
    pub(super) fn refused(&mut self, host: &Host, out: &Link, packet: &Packet, dropped: End) -> End {
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
    pub(super) fn kept(&mut self, host: &Host, out: &Link, why: &str) {
        let place = self.place(host);
        let own = |line: &String| line.starts_with(&format!("{place} {} ", out.name));
        while self.lines.len() > self.began && self.lines.last().is_some_and(own) {
            self.lines.pop();
        }
        self.lines.push(format!("{place} {} dropped: {why} (inferred)", out.name));
    }

    /// Out there a packet came to nothing: of what left last, no more is seen.
    pub(super) fn gone(&mut self) {
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

    pub(super) fn swallowed(&mut self, host: &Host, peer: &Host, out: &Link, packet: &mut Packet) -> Option<End> {
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

    /// A datagram that came to a host where nobody listens; whether `who` hears of that.
    pub(in crate::truth::model) fn refuses(
        &mut self,
        host: &str,
        link: &str,
        packet: Packet,
        who: &str,
    ) -> Result<bool> {
        let host = self.world.host(host)?;
        let link = host.link(link)?;
        let why = format!("nothing listens on port {}", packet.port);
        match self.drop(host, link, &why, None, &packet, true) {
            End::Dropped(Dropped { answer: Some(answer), .. }) => Ok(self.fate(*answer, who)?.0),
            _ => Ok(false),
        }
    }

    /// What becomes of an answer: whether it comes to `who`, and whether it is seen on its way there. Nothing of that way is
    /// written down.
    pub(in crate::truth::model) fn fate(&mut self, answer: Answer, who: &str) -> Result<(bool, bool)> {
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
}
