//! Names the rule, once all exchanges are told: its counter must have risen by at least the drops that it is to explain.

use std::collections::HashMap;

use super::{
    answer, asymmetric,
    conntrack::{self, Doubt, Refusal},
    policy, rules,
};
use crate::{
    node::facts::{Rule, RuleEngine, RuleHit, RuleVerdict},
    path::{
        drops::End,
        model::{Action, Basis, CulpritRule, Direction, DropCause, DropDetail, Exchange, Rejection},
        world::World,
    },
};

/// A netfilter drop whose rule is still to be named.
pub(in crate::path) struct Suspicion<'a> {
    node: usize,
    direction: Direction,
    suspects: Vec<&'a RuleHit>,
    /// Of the namespace all rules were read that can have dropped a packet, but for those of ebtables.
    read: bool,
    /// It may have been a rule of ebtables, which are not read.
    unread: bool,
    /// The kernel was seen evaluating the table.
    located: bool,
    /// Conntrack may have dropped it, for all that is known of the place.
    doubt: Option<Doubt<'a>>,
}

impl<'a> Suspicion<'a> {
    /// The drops that conntrack must have counted together, if it was conntrack: those in one namespace that the same rules may
    /// have been.
    fn conntrack_of(&self, suspects: &[&RuleHit]) -> (usize, Option<u32>, Vec<*const RuleHit>) {
        (self.node, self.doubt.as_ref().map(|doubt| doubt.netns), identities(suspects))
    }

    pub(in crate::path) fn of(world: &World<'a>, end: &End<'a>, direction: Direction) -> Option<Self> {
        let (node, netns, cause, netfilter) = match end {
            End::Dropped { node, at, cause } => {
                (node, at.netns, cause, at.free.as_ref().and_then(|free| free.netfilter.as_ref()))
            }
            End::Unsent { node, at, cause, .. } => (node, at.netns, cause, None),
            _ => return None,
        };
        Some(Self {
            node: *node,
            direction,
            suspects: cause.suspects.clone()?,
            read: world.node(*node).facts.rules_complete.contains(&netns),
            unread: cause.unread,
            located: netfilter.is_some_and(|seen| seen.table.is_some()),
            doubt: cause.doubt.clone(),
        })
    }
}

/// One exchange, and what is to be named in it.
pub(in crate::path) type Case<'t, 'a> = (&'t mut Exchange, &'t Suspicion<'a>);

/// Names rules in the dropped hops of all cases.
pub(in crate::path) fn name<'a>(world: &World<'a>, cases: Vec<Case<'_, 'a>>) {
    let suspects: Vec<_> = cases.iter().map(|(exchange, suspicion)| of_answer(world, suspicion, exchange)).collect();
    // What the same rules may have dropped, they must have counted together.
    let mut counts: HashMap<Vec<*const RuleHit>, u64> = HashMap::new();
    let mut of_namespace: HashMap<_, u64> = HashMap::new();
    for ((_, suspicion), of_one) in cases.iter().zip(&suspects) {
        *counts.entry(identities(of_one)).or_default() += 1;
        *of_namespace.entry(suspicion.conntrack_of(of_one)).or_default() += 1;
    }
    for ((exchange, suspicion), suspects) in cases.into_iter().zip(&suspects) {
        let unread = suspicion.unread && !answered_by_ip(world, suspicion, exchange);
        let path = match suspicion.direction {
            Direction::Request => &mut exchange.request,
            Direction::Reply => &mut exchange.reply,
        };
        let dropped = path.hops.iter_mut().rev().find(|hop| hop.action == Action::Dropped);
        let Some(hop) = dropped else { continue };
        let (src, dst) = (hop.src, hop.dst);
        let Some(detail) = hop.detail.drop.as_mut() else { continue };
        let mut verdict = judge(suspicion, unread, suspects, counts[&identities(suspects)]);
        let drops = of_namespace[&suspicion.conntrack_of(suspects)];
        let refusal =
            suspicion.doubt.as_ref().and_then(|doubt| conntrack::refusal(world, suspicion.node, doubt, drops));
        let refusal = refusal.filter(|_| verdict.basis != Basis::Observed);
        if let Some(Refusal { proof, .. }) = refusal.as_ref().filter(|_| !verdict.rules.is_empty()) {
            verdict.sure = false;
            verdict.proof.push_str(&format!("; or none of them, but conntrack: {proof}"));
        }
        let pod = |hit: &RuleHit, interface: &str| pod_behind(world, suspicion.node, hit.netns, interface);
        let causes: Vec<_> =
            verdict.rules.iter().map(|hit| rules::cause(hit, |interface| pod(hit, interface))).collect();
        blame(detail, &verdict, causes);
        if let Some(refusal) = refusal.filter(|_| verdict.rules.is_empty()) {
            refused(detail, refusal, suspicion.read && !unread);
        }
        detail.policies =
            policy::behind(world.names, detail, (src, dst), &verdict.rules, |hit, interface| pod(hit, interface));
        let invalid =
            suspicion.direction == Direction::Reply && detail.rule_known && verdict.rules.iter().all(rules::of_invalid);
        if let Some(dropped) = invalid.then(|| hop.clone()) {
            let note = asymmetric::note(exchange, &dropped.node, &dropped);
            exchange.notes.push(note);
        }
    }
}

fn identities(rules: &[&RuleHit]) -> Vec<*const RuleHit> {
    rules.iter().copied().map(std::ptr::from_ref).collect()
}

/// Who was seen to answer with an error or a reset has rejected; of others it is not known.
fn of_answer<'a>(world: &World<'_>, suspicion: &Suspicion<'a>, exchange: &Exchange) -> Vec<&'a RuleHit> {
    let rejection = exchange.rejection.as_ref().filter(|_| suspicion.direction == Direction::Request);
    // A reset comes in the destination's name; nobody but who dropped the packet can have sent it.
    let from_there = |rejection: &&Rejection| {
        rejection.icmp_type.is_none() || world.owner(rejection.from).is_none_or(|(node, _)| node == suspicion.node)
    };
    let Some(rejection) = rejection.filter(from_there) else { return suspicion.suspects.clone() };
    let answers = |hit: &&&RuleHit| match &hit.verdict {
        RuleVerdict::Reject(with) => answer::is_of(rejection, with),
        _ => false,
    };
    suspicion.suspects.iter().filter(answers).copied().collect()
}

/// It was answered by an ICMP error from an address of the node's own: rules of a bridge answer in the destination's name, and those
/// of ebtables never.
fn answered_by_ip(world: &World<'_>, suspicion: &Suspicion<'_>, exchange: &Exchange) -> bool {
    let rejection = exchange.rejection.as_ref().filter(|_| suspicion.direction == Direction::Request);
    let own = |address| world.owner(address).is_some_and(|(node, _)| node == suspicion.node);
    rejection.is_some_and(|rejection| {
        rejection.icmp_type.is_some() && own(rejection.from) && rejection.from != world.ends.destination.address
    })
}

/// What is left of the suspects, and how sure that is.
struct Verdict<'a> {
    rules: Vec<&'a RuleHit>,
    /// It was one of them.
    sure: bool,
    basis: Basis,
    proof: String,
}

/// A packet that a rule dropped met one that it fits, and each drop raised a counter of those: so one is left, if all
/// rules were read and only one has counted. A counter that rose by less excludes nothing: others' packets may have raised
/// the rest, and conditions that are not understood (limits, states) may part packets that look alike.
fn judge<'a>(suspicion: &Suspicion<'_>, unread: bool, suspects: &[&'a RuleHit], drops: u64) -> Verdict<'a> {
    let complete = suspicion.read && !unread;
    let packets = if drops == 1 { "1 packet".to_owned() } else { format!("{drops} packets") };
    let traced: Vec<_> = suspects.iter().filter(|hit| hit.traced >= drops).copied().collect();
    if !traced.is_empty() {
        let proof = format!("the kernel's own trace shows the rule ending {packets} of {drops}");
        return Verdict { rules: traced, sure: true, basis: Basis::Observed, proof };
    }
    let all: u64 = suspects.iter().map(|hit| hit.packets).sum();
    let explained = all >= drops || suspects.iter().any(|hit| !hit.counted);
    let rules = if explained { suspects.to_vec() } else { Vec::new() };
    let proof = match rules.as_slice() {
        [] => format!(
            "which rule is not known: none whose counter rose by {drops} fits the packet (it may have no counter, or \
             conntrack or a queue dropped it)"
        ),
        [only] => one(only, &packets, drops),
        several => format!("one of {} rules that fit the packet and may have met it", several.len()),
    };
    let proof = match (unread, complete || rules.is_empty()) {
        (true, _) => format!("{proof}; the bridge's rules of ebtables are not read: it may have been one of those"),
        (false, true) => proof,
        (false, false) => format!("{proof}, but not all rules could be read: it may have been another"),
    };
    let exact = matches!(rules.as_slice(), [only] if only.counted && only.packets == drops);
    let observed = suspicion.located && complete && exact;
    let basis = if observed { Basis::Observed } else { Basis::Inferred };
    // What leaves no trace of having been met may as well not have been: conntrack and queues drop too.
    // And a counter that others raised too proves something only of a rule of which every condition is understood.
    let proven = |hit: &&RuleHit| hit.counted && (hit.packets == drops || hit.understood);
    let sure = complete && !rules.is_empty() && rules.iter().all(proven);
    Verdict { sure, rules, basis, proof }
}

fn one(hit: &RuleHit, packets: &str, drops: u64) -> String {
    if !hit.counted {
        return "the only rule there that drops and fits the packet, but it has no counter that could prove it"
            .to_owned();
    }
    let what = if hit.rule.is_some() { "rule counter" } else { "the chain policy's counter" };
    let others = if hit.packets > drops { " (others met it too)" } else { "" };
    format!("{what} +{} for {packets} dropped here{others}", hit.packets)
}

/// Conntrack did it, not a rule.
fn refused(detail: &mut DropDetail, refusal: Refusal<'_>, all_read: bool) {
    let Refusal { cause, why, proof, settings, rules } = refusal;
    (detail.cause, detail.why, detail.basis) = (cause, why.to_owned(), Basis::Inferred);
    let doubt = if all_read { "no rule that drops did" } else { "but not all rules could be read" };
    // In place of that no rule is known.
    detail.proof[0] = format!("{proof}; {doubt}");
    detail.settings = settings;
    detail.rule_known = matches!(rules.as_slice(), [only] if only.counted);
    detail.rules = rules.into_iter().map(shown).collect();
}

fn blame(detail: &mut DropDetail, verdict: &Verdict<'_>, causes: Vec<(DropCause, String)>) {
    let Verdict { rules, sure, basis, proof } = verdict;
    if let ([first, others @ ..], true) = (causes.as_slice(), sure)
        && others.iter().all(|other| other == first)
    {
        (detail.cause, detail.why) = first.clone();
    }
    if let ([only], true) = (rules.as_slice(), sure) {
        detail.hook = only.hook.and_then(rules::hook_name).or(detail.hook);
        detail.basis = *basis;
        detail.rule_known = true;
    } else if !rules.is_empty() {
        detail.basis = Basis::Inferred;
    }
    detail.proof.insert(0, proof.clone());
    detail.rules = rules.iter().map(|hit| shown(hit)).collect();
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
        counted,
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
        packets: counted.then_some(*packets),
        traced: *traced,
        understood: *understood,
    }
}
