//! A request that its own kernel refused to send: netfilter, before any device saw it. The sender was told (EPERM), and perhaps
//! answered; which rule it was, counters tell.

use std::net::IpAddr;

use super::{
    Cause, conntrack,
    rules::{self, Fit},
};
use crate::{
    node::facts::{Condition, ConditionField, Link, LinkRef, RouteQuestion, RuleHit, RuleVerdict},
    path::{
        Probe,
        model::{Basis, DropCause, DropDetail},
        world::World,
    },
};

/// What is known of it.
struct Unsent<'a> {
    probe: &'a Probe,
    src: IpAddr,
    dst: IpAddr,
    /// Some rule may have given it another destination before the one that refused it.
    turned: bool,
    /// Where its route leads out.
    out: Option<&'a Link>,
}

/// Node, interface and cause, if the probe was refused.
pub(in crate::path) fn at_source<'a>(world: &World<'a>, probe: &'a Probe) -> Option<(usize, LinkRef, Cause<'a>)> {
    let (src, dst) = (world.ends.source.address, world.ends.destination.address);
    let (node, own) = world.owner(src).filter(|_| probe.unsent)?;
    let netns = own.netns;
    let route = world.answer(node, &RouteQuestion { netns, src, dst, in_ifindex: None, mark: 0 });
    let route = route.and_then(|answer| answer.route.as_ref());
    let out = route.and_then(|route| Some(LinkRef { netns, ifindex: route.out_ifindex? }));
    let link = out.and_then(|out| world.namespaces(node).link(out));
    let of_namespace = || world.node(node).facts.rules.iter().filter(|hit| hit.netns == netns && was_met(hit));
    let turned = of_namespace().any(|hit| matches!(hit.verdict, RuleVerdict::Dnat(_)));
    let unsent = Unsent { probe, src, dst, turned, out: link };
    let ends = |hit: &&RuleHit| matches!(hit.verdict, RuleVerdict::Drop | RuleVerdict::Reject(_));
    let suspects: Vec<_> = of_namespace().filter(ends).filter(|hit| unsent.may_have_met(hit)).collect();
    let rewrites = |hit: &&RuleHit| matches!(hit.verdict, RuleVerdict::Masquerade | RuleVerdict::Snat(_));
    let translating = of_namespace().filter(rewrites).filter(|hit| unsent.may_have_met(hit)).collect();
    let mut told = "the sender's kernel refused to send it (EPERM), before any device saw it".to_owned();
    if let Some(route) = route {
        told.push_str(&format!("; its route is {}", route.text));
    }
    let (cause, why) = match suspects.as_slice() {
        // Conntrack, or a program of the sender's cgroup.
        [] => (DropCause::Unknown, "the sender's own kernel refused to send it"),
        _ => (DropCause::Netfilter, "netfilter rule"),
    };
    let detail = DropDetail {
        why: why.to_owned(),
        cause,
        basis: Basis::Inferred,
        proof: vec![told],
        out_interface: link.map(|link| link.name.clone()),
        ..DropDetail::default()
    };
    let doubt = Some(conntrack::unsent(netns, translating));
    Some((node, out.unwrap_or(own), Cause { suspects: Some(suspects), doubt, ..Cause::of(detail) }))
}

fn was_met(hit: &RuleHit) -> bool {
    hit.packets > 0 || hit.traced > 0 || !hit.counted
}

impl Unsent<'_> {
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
        let Unsent { probe, src, dst, turned, out } = self;
        let ports = [6, 17].contains(&probe.protocol);
        let fits = match field {
            ConditionField::Source(_) | ConditionField::SourceIn(_) | ConditionField::SourcePort(..)
                if hit.hook != Some(rules::OUTPUT) =>
            {
                Fit::Unknown
            }
            ConditionField::Destination(_) | ConditionField::DestinationIn(_) | ConditionField::DestinationPort(..)
                if *turned =>
            {
                Fit::Unknown
            }
            ConditionField::SourcePort(..) | ConditionField::DestinationPort(..) if !ports => Fit::Unknown,
            ConditionField::Source(net) => net.contains(src).into(),
            ConditionField::Destination(net) => net.contains(dst).into(),
            ConditionField::SourceIn(ranges) => ranges.contains(*src).into(),
            ConditionField::DestinationIn(ranges) => ranges.contains(*dst).into(),
            ConditionField::SourcePort(from, to) => (*from..=*to).contains(&probe.id).into(),
            ConditionField::DestinationPort(from, to) => (*from..=*to).contains(&probe.dst_port).into(),
            ConditionField::Protocol(protocol) => (*protocol == probe.protocol).into(),
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
