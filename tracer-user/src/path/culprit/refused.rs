//! What its own kernel refused to send, before any device saw it: by netfilter, or for want of a route. Of a probe the sender was
//! told by an error, and perhaps answered; of a reply nobody is told. Which rule it was, counters tell.

use std::net::IpAddr;

use super::{
    Cause, conntrack, refuses,
    rules::{self, Fit},
};
use crate::{
    event::L4,
    node::facts::{Condition, ConditionField, Link, LinkRef, RouteKind, RuleEngine, RuleHit, RuleVerdict},
    path::{
        self, Probe,
        chain::Chain,
        drops::{End, Turned},
        model::{Basis, DropCause, DropDetail, Nat, NatSide},
        nat_rule, route,
        world::World,
    },
};

/// What is known of it.
struct Unsent<'a> {
    protocol: u8,
    src: IpAddr,
    dst: IpAddr,
    /// 0 where there are none.
    ports: (u16, u16),
    /// Some rule may have given it another destination before the one that refused it.
    turned: bool,
    /// Where its route leads out.
    out: Option<&'a Link>,
}

/// The probe's end, if it was refused.
pub(in crate::path) fn at_source<'a>(world: &World<'a>, probe: &Probe) -> Option<End<'a>> {
    let (src, dst) = (world.ends.source.address, world.ends.destination.address);
    let why = probe.unsent?;
    let (node, own) = world.owner(src)?;
    let unsent =
        Unsent { protocol: probe.protocol, src, dst, ports: (probe.id, probe.dst_port), turned: false, out: None };
    let told = format!("the sender's kernel refused to send it ({}), before any device saw it", why.errno());
    if why != path::Unsent::Filtered {
        return Some(unsent.without_way(world, (node, own), told, why));
    }
    let (refused, suspects) = unsent.refused(world, (node, own), &told);
    // Without a rule: conntrack, or a program of the sender's cgroup.
    let (cause, why) = match suspects.as_slice() {
        [] => (DropCause::Unknown, "the sender's own kernel refused to send it"),
        _ => (DropCause::Netfilter, "netfilter rule"),
    };
    Some(refused.end(cause, why, suspects))
}

/// The end of a reply that no device saw where the request arrived, if a rule there is for such a reply and counted some.
pub(in crate::path) fn reply<'a>(world: &World<'a>, request: &Chain<'a>) -> Option<End<'a>> {
    // Where records are missing, a device may have seen it.
    let (node, last) = request.last().filter(|(node, last)| !last.wrapped() && !world.unreliable(*node))?;
    let packet = &last.last.packet;
    let (protocol, ports) = match packet.l4 {
        L4::Icmp { .. } if packet.src.is_ipv4() => (1, (0, 0)),
        L4::Icmp { .. } => (58, (0, 0)),
        L4::Tcp { src_port, dst_port, .. } => (6, (dst_port, src_port)),
        L4::Udp { src_port, dst_port, .. } => (17, (dst_port, src_port)),
        L4::Other { .. } => return None,
    };
    let unsent = Unsent { protocol, src: packet.dst, dst: packet.src, ports, turned: false, out: None };
    let told = "the request arrived, and no device saw a reply";
    let (refused, suspects) = unsent.refused(world, (node, last.at()), told);
    let for_it = |hit: &&RuleHit| {
        let fits = |condition| refused.unsent.fit(hit, condition) == Fit::Yes;
        (hit.packets > 0 || hit.traced > 0) && hit.conditions.iter().all(fits)
    };
    suspects.iter().any(for_it).then(|| refused.end(DropCause::Netfilter, "netfilter rule", suspects))
}

/// Where it was refused, and what is known of that.
struct Refused<'a> {
    unsent: Unsent<'a>,
    node: usize,
    at: LinkRef,
    proof: String,
    doubt: conntrack::Doubt<'a>,
}

impl<'a> Refused<'a> {
    fn end(self, cause: DropCause, why: &str, suspects: Vec<&'a RuleHit>) -> End<'a> {
        let Self { unsent, node, at, proof, doubt } = self;
        let detail = DropDetail {
            why: why.to_owned(),
            cause,
            basis: Basis::Inferred,
            proof: vec![proof],
            out_interface: unsent.out.map(|link| link.name.clone()),
            ..DropDetail::default()
        };
        let cause = Cause { suspects: Some(suspects), doubt: Some(doubt), ..Cause::of(detail) };
        End::Unsent { node, at, ends: (unsent.src, unsent.dst), turned: None, cause: Box::new(cause) }
    }
}

fn cause_of(why: path::Unsent) -> (DropCause, &'static str) {
    let kind = match why {
        path::Unsent::Blackhole => RouteKind::Blackhole,
        path::Unsent::Unreachable => RouteKind::Unreachable,
        path::Unsent::Prohibit => RouteKind::Prohibit,
        path::Unsent::NoRoute | path::Unsent::Filtered => RouteKind::Other,
    };
    refuses(kind).unwrap_or((DropCause::NoRoute, "no route"))
}

fn was_met(hit: &RuleHit) -> bool {
    hit.packets > 0 || hit.traced > 0 || !hit.counted
}

impl<'a> Unsent<'a> {
    /// The look-up of its route failed: of that to its destination, or to what a rule of DNAT had made of that. Which it was, the
    /// routes say.
    fn without_way(self, world: &World<'a>, (node, own): (usize, LinkRef), told: String, why: path::Unsent) -> End<'a> {
        let Self { src, dst, ports: (src_port, dst_port), .. } = self;
        // None: there is a way, or it was not asked for; inner None: no route at all.
        let blocked = |dst| {
            let answer = world.answer(node, &route::sent(own.netns, src, dst))?;
            match &answer.route {
                None => Some(None),
                Some(route) => refuses(route.kind).map(|_| Some(route)),
            }
        };
        let turned = || {
            let rules = world.node(node).facts.rules.iter().filter(|hit| hit.netns == own.netns && was_met(hit));
            let mut found = rules.filter(|hit| self.may_have_met(hit)).filter_map(|hit| {
                let RuleVerdict::Dnat(to) = &hit.verdict else { return None };
                let (to, port) = nat_rule::target(to)?;
                Some((hit, to, port, blocked(to)?))
            });
            // One of several: not known.
            found.next().filter(|(_, to, ..)| found.all(|(_, other, ..)| other == *to))
        };
        let ((cause, words), known) = (cause_of(why), blocked(dst));
        let (ends, turned, route) = match (known, known.is_none().then(turned).flatten()) {
            (Some(route), _) => ((src, dst), None, route),
            (None, Some((hit, to, port, route))) => {
                let has_ports = [6, 17].contains(&self.protocol);
                let side = |dst, port| NatSide {
                    src,
                    dst,
                    src_port: Some(src_port),
                    dst_port: Some(port).filter(|_| has_ports),
                };
                let nat = Nat {
                    moment: Basis::Inferred,
                    before: side(dst, dst_port),
                    after: side(to, port.unwrap_or(dst_port)),
                };
                let rule = Box::new(nat_rule::shown(hit, Basis::Inferred));
                ((src, to), Some(Box::new(Turned { nat, rule })), route)
            }
            (None, None) => ((src, dst), None, None),
        };
        // Other causes have the same errors.
        let sure = known.is_some() || turned.is_some() || why == path::Unsent::NoRoute;
        let (cause, words) = match why {
            _ if sure => (cause, words),
            path::Unsent::Blackhole => {
                (DropCause::Unknown, "the sender's own kernel refused to send it (an address that nobody can have?)")
            }
            path::Unsent::Prohibit => {
                (DropCause::Unknown, "the sender's own kernel refused to send it (an address for broadcasts?)")
            }
            _ => (DropCause::Unknown, "the sender's own kernel refused to send it"),
        };
        let detail = DropDetail {
            why: words.to_owned(),
            cause,
            basis: Basis::Inferred,
            proof: vec![told],
            ..DropDetail::default()
        };
        let cause = Cause { route: route.map(|route| route.text.clone()), ..Cause::of(detail) };
        End::Unsent { node, at: own, ends, turned, cause: Box::new(cause) }
    }

    /// In the namespace of that link of its sender's: what is known of it there, and the rules that may have refused it.
    fn refused(
        mut self,
        world: &World<'a>,
        (node, own): (usize, LinkRef),
        told: &str,
    ) -> (Refused<'a>, Vec<&'a RuleHit>) {
        let netns = own.netns;
        let route = world.answer(node, &route::sent(netns, self.src, self.dst));
        let route = route.and_then(|answer| answer.route.as_ref());
        let out = route.and_then(|route| Some(LinkRef { netns, ifindex: route.out_ifindex? }));
        let of_namespace = || world.node(node).facts.rules.iter().filter(|hit| hit.netns == netns && was_met(hit));
        self.turned = of_namespace().any(|hit| matches!(hit.verdict, RuleVerdict::Dnat(_)));
        self.out = out.and_then(|out| world.namespaces(node).link(out));
        let may_have_met = |hit: &&RuleHit| self.may_have_met(hit);
        let ends = |hit: &&RuleHit| matches!(hit.verdict, RuleVerdict::Drop | RuleVerdict::Reject(_));
        let suspects = of_namespace().filter(ends).filter(may_have_met).collect();
        let rewrites = |hit: &&RuleHit| matches!(hit.verdict, RuleVerdict::Masquerade | RuleVerdict::Snat(_));
        let translating = of_namespace().filter(rewrites).filter(may_have_met).collect();
        let mut proof = told.to_owned();
        if let Some(route) = route {
            proof.push_str(&format!("; its route is {}", route.text));
        }
        let doubt = conntrack::unsent(netns, translating);
        (Refused { unsent: self, node, at: out.unwrap_or(own), proof, doubt }, suspects)
    }

    fn may_have_met(&self, hit: &RuleHit) -> bool {
        let family = match hit.family.as_str() {
            "inet" => true,
            "ip" => self.src.is_ipv4(),
            "ip6" => self.src.is_ipv6(),
            _ => false,
        };
        let hook = hit.hook.is_none_or(|hook| [rules::OUTPUT, rules::POSTROUTING].contains(&hook));
        family && hook && hit.conditions.iter().all(|condition| self.fit(hit, condition) != Fit::No)
    }

    fn fit(&self, hit: &RuleHit, Condition { field, not }: &Condition) -> Fit {
        let Unsent { protocol, src, dst, ports: (src_port, dst_port), turned, out } = self;
        let has_ports = [6, 17].contains(protocol);
        // In POSTROUTING, SNAT comes behind the table mangle (`enum nf_ip_hook_priorities`).
        let before_snat = match hit.hook {
            Some(rules::OUTPUT) => true,
            Some(rules::POSTROUTING) => hit.table == "mangle" && hit.engine != RuleEngine::Nftables,
            _ => false,
        };
        let fits = match field {
            ConditionField::Source(_) | ConditionField::SourceIn(_) | ConditionField::SourcePort(..)
                if !before_snat =>
            {
                Fit::Unknown
            }
            ConditionField::Destination(_) | ConditionField::DestinationIn(_) | ConditionField::DestinationPort(..)
                if *turned =>
            {
                Fit::Unknown
            }
            ConditionField::SourcePort(..) | ConditionField::DestinationPort(..) if !has_ports => Fit::Unknown,
            ConditionField::Source(net) => net.contains(src).into(),
            ConditionField::Destination(net) => net.contains(dst).into(),
            ConditionField::SourceIn(ranges) => ranges.contains(*src).into(),
            ConditionField::DestinationIn(ranges) => ranges.contains(*dst).into(),
            ConditionField::SourcePort(from, to) => (*from..=*to).contains(src_port).into(),
            ConditionField::DestinationPort(from, to) => (*from..=*to).contains(dst_port).into(),
            ConditionField::Protocol(asked) => (protocol == asked).into(),
            // DNAT may have led it elsewhere.
            ConditionField::OutInterface(pattern) if !turned => {
                out.map_or(Fit::Unknown, |link| rules::matches(pattern, &link.name).into())
            }
            // Nothing brought it in.
            ConditionField::InInterface(_) if hit.hook.is_some() => Fit::No,
            _ => Fit::Unknown,
        };
        fits.not(*not)
    }
}
