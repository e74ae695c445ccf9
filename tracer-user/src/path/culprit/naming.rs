//! Names the rule, once all exchanges are told: its counter must have risen by at least the drops that it is to explain.

use std::{collections::HashMap, net::IpAddr};

use super::{answer, rules};
use crate::{
    node::facts::{LinkRef, Rule, RuleEngine, RuleHit, RuleVerdict},
    path::{
        drops::End,
        model::{Action, Basis, CulpritRule, Direction, DropCause, DropDetail, Exchange, Rejection},
        world::World,
    },
};

/// Drops of packets that are alike, at one place: one rule explains them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    node: usize,
    at: LinkRef,
    src: IpAddr,
    dst: IpAddr,
    forwarded: bool,
}

/// A netfilter drop whose rule is still to be named.
pub(in crate::path) struct Suspicion<'a> {
    place: Place,
    direction: Direction,
    suspects: Vec<&'a RuleHit>,
}

impl<'a> Suspicion<'a> {
    pub(in crate::path) fn of(end: &End<'a>, direction: Direction) -> Option<Self> {
        let End::Dropped { node, at, cause } = end else { return None };
        let place = Place {
            node: *node,
            at: LinkRef { netns: at.netns, ifindex: at.ifindex },
            src: at.packet.src,
            dst: at.packet.dst,
            forwarded: cause.detail.out_interface.is_some(),
        };
        Some(Self { place, direction, suspects: cause.suspects.clone()? })
    }
}

/// One exchange, and what is to be named in it.
pub(in crate::path) type Case<'t, 'a> = (&'t mut Exchange, &'t Suspicion<'a>);

/// Names rules in the dropped hops of all cases.
pub(in crate::path) fn name(world: &World<'_>, cases: Vec<Case<'_, '_>>) {
    let mut counts: HashMap<Place, u64> = HashMap::new();
    for (_, suspicion) in &cases {
        *counts.entry(suspicion.place).or_default() += 1;
    }
    for (exchange, suspicion) in cases {
        let rejection = exchange.rejection.clone().filter(|_| suspicion.direction == Direction::Request);
        let path = match suspicion.direction {
            Direction::Request => &mut exchange.request,
            Direction::Reply => &mut exchange.reply,
        };
        let dropped = path.hops.iter_mut().rev().find(|hop| hop.action == Action::Dropped);
        let Some(detail) = dropped.and_then(|hop| hop.detail.drop.as_mut()) else { continue };
        let drops = counts[&suspicion.place];
        let suspects = of_answer(world, suspicion, rejection.as_ref());
        blame(detail, &culprits(&suspects, drops), drops, &|hit| {
            rules::cause(hit, |interface| pod_behind(world, suspicion.place.node, hit.netns, interface))
        });
    }
}

/// Who was seen to answer with an error has rejected; of others it is not known.
fn of_answer<'a>(world: &World<'_>, suspicion: &Suspicion<'a>, rejection: Option<&Rejection>) -> Vec<&'a RuleHit> {
    let from_there =
        |rejection: &&Rejection| world.owner(rejection.from).is_none_or(|(node, _)| node == suspicion.place.node);
    let Some(rejection) = rejection.filter(from_there) else { return suspicion.suspects.clone() };
    let answers = |hit: &&&RuleHit| match &hit.verdict {
        RuleVerdict::Reject(with) => answer::is_of(rejection, with),
        _ => false,
    };
    suspicion.suspects.iter().filter(answers).copied().collect()
}

/// What is left of the suspects.
struct Culprits<'a> {
    rules: Vec<&'a RuleHit>,
    /// The kernel's trace of rules shows it.
    traced: bool,
}

fn culprits<'a>(suspects: &[&'a RuleHit], drops: u64) -> Culprits<'a> {
    let traced: Vec<_> = suspects.iter().filter(|hit| hit.traced >= drops).copied().collect();
    if !traced.is_empty() {
        return Culprits { rules: traced, traced: true };
    }
    let enough: Vec<_> = suspects.iter().filter(|hit| hit.packets >= drops).copied().collect();
    let all: u64 = suspects.iter().map(|hit| hit.packets).sum();
    let rules = match enough.is_empty() && all >= drops {
        true => suspects.to_vec(),
        false => enough,
    };
    Culprits { rules, traced: false }
}

fn blame(
    detail: &mut DropDetail,
    culprits: &Culprits<'_>,
    drops: u64,
    cause: &dyn Fn(&RuleHit) -> (DropCause, String),
) {
    let causes: Vec<_> = culprits.rules.iter().map(|hit| cause(hit)).collect();
    if let [first, others @ ..] = causes.as_slice()
        && others.iter().all(|other| other == first)
    {
        (detail.cause, detail.why) = first.clone();
    }
    let proof = match culprits.rules.as_slice() {
        [] => format!(
            "which rule is not known: none whose counter rose by {drops} fits the packet; it may have no counter, or \
             conntrack or a queue dropped it"
        ),
        [only] => {
            detail.hook = only.hook.and_then(rules::hook_name).or(detail.hook);
            one(only, culprits.traced, drops)
        }
        several => format!("one of {} rules that fit the packet and whose counters rose", several.len()),
    };
    if let ([_], false) = (culprits.rules.as_slice(), culprits.traced) {
        detail.basis = Basis::Inferred;
    } else if culprits.rules.len() > 1 {
        detail.basis = Basis::Inferred;
    } else if culprits.traced {
        detail.basis = Basis::Observed;
    }
    detail.proof.insert(0, proof);
    detail.rules = culprits.rules.iter().map(|hit| shown(hit)).collect();
}

fn one(hit: &RuleHit, traced: bool, drops: u64) -> String {
    let probes = if drops == 1 { "1 packet".to_owned() } else { format!("{drops} packets") };
    if traced {
        return format!("the kernel's own trace shows it ending {} of {probes}", hit.traced.min(drops));
    }
    let what = if hit.rule.is_some() { "rule counter" } else { "the chain policy's counter" };
    let others = if hit.packets > drops { " (others met it too)" } else { "" };
    let conditions = if hit.understood { "" } else { ", its further conditions not checked" };
    format!("{what} +{} for {probes} dropped here{others}{conditions}", hit.packets)
}

fn pod_behind(world: &World<'_>, node: usize, netns: u32, interface: &str) -> Option<String> {
    let namespace = world.namespaces(node).get(netns)?;
    let peer = namespace.links.iter().find(|link| link.name == interface)?.peer?;
    world.pod(node, peer.netns)
}

fn shown(hit: &RuleHit) -> CulpritRule {
    let RuleHit {
        netns: _,
        engine,
        family,
        table,
        chain,
        hook: _,
        way: _,
        rule,
        verdict,
        conditions: _,
        understood,
        packets,
        traced,
    } = hit;
    let rejects_with = match verdict {
        RuleVerdict::Reject(with) => Some(with.clone()),
        _ => None,
    };
    let (position, handle, text, comment) = match rule {
        Some(Rule { position, handle, text, comment }) => (Some(*position), *handle, text.clone(), comment.clone()),
        None => (None, None, "policy DROP".to_owned(), None),
    };
    CulpritRule {
        engine: match engine {
            RuleEngine::Iptables => "iptables",
            RuleEngine::IptablesNft => "iptables-nft",
            RuleEngine::Nftables => "nftables",
        },
        family: family.clone(),
        table: table.clone(),
        chain: chain.clone(),
        position,
        handle,
        text,
        comment,
        rejects_with,
        packets: *packets,
        traced: *traced,
        understood: *understood,
    }
}
