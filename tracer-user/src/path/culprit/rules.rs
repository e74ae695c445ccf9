//! Which netfilter rule dropped a packet: by the rules' counters, the place, and what the rules ask for.
//!
//! A rule that the packet cannot have met is never named. What is not understood of a rule excludes nothing, so a second
//! rule that may have been it makes both "one of".

use super::{DropCause, Scene};
use crate::{
    event::{Encapsulation, Engine, L4, Netfilter},
    node::facts::{Condition, ConditionField, Link, LinkRef, RuleEngine, RuleHit, RuleVerdict},
    path::touch::Way,
};

/// `NFPROTO_UNSPEC`, which no hook has: not known; `NFPROTO_BRIDGE` and `NFPROTO_NETDEV` (uapi/linux/netfilter.h).
const UNSPEC: u8 = 0;
const BRIDGE: u8 = 7;
const NETDEV: u8 = 5;

pub(super) const PREROUTING: u8 = 0;
pub(super) const INPUT: u8 = 1;
const FORWARD: u8 = 2;
pub(in crate::path) const OUTPUT: u8 = 3;
pub(super) const POSTROUTING: u8 = 4;

/// Whether a packet fulfils a condition, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Fit {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Fit {
    pub(super) fn not(self, not: bool) -> Self {
        match (self, not) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (fit, _) => fit,
        }
    }
}

/// As `iptables` names a hook.
pub(super) fn hook_name(hook: u8) -> Option<&'static str> {
    ["prerouting", "input", "forward", "output", "postrouting"].get(usize::from(hook)).copied()
}

/// The hooks that the packet can have died in; empty: not known.
pub(super) fn hooks(scene: &Scene<'_, '_>, seen: Option<&Netfilter>) -> Vec<u8> {
    if let Some(seen) = seen.filter(|seen| seen.family != UNSPEC) {
        return if seen.family == NETDEV { Vec::new() } else { vec![seen.hook] };
    }
    let namespaces = scene.world.namespaces(scene.node);
    if namespaces.bridge_of(scene.place()).is_some() {
        return Vec::new();
    }
    match scene.last.way {
        Way::In if scene.wrapped() || scene.unwrapped() => Vec::new(),
        // `ip_forward` comes after PREROUTING and lowers the TTL before FORWARD.
        Way::In if scene.forwarded() => vec![FORWARD, POSTROUTING],
        Way::In if scene.is_for_here() => vec![PREROUTING, INPUT],
        // Routed elsewhere, it would have been forwarded; without a route that is known to be its own it may have been for here.
        Way::In if scene.route().is_some() && !scene.world.node(scene.node).facts.routes_changed => vec![PREROUTING],
        Way::In => vec![PREROUTING, INPUT],
        // A tunnel device sends what it wrapped as a packet of the node's own.
        Way::Out if scene.wrapped() => vec![OUTPUT, POSTROUTING],
        Way::Out => Vec::new(),
    }
}

/// The rules of ebtables, which are not read, may have dropped it: it came by a bridge's port, and nothing else was seen
/// evaluated.
pub(super) fn may_be_of_ebtables(scene: &Scene<'_, '_>, seen: Option<&Netfilter>) -> bool {
    match seen {
        Some(seen) => seen.family == BRIDGE && !matches!(seen.engine, Engine::Nftables { .. }),
        None => scene.world.namespaces(scene.node).bridge_of(scene.place()).is_some(),
    }
}

/// The hook's name, if there is only one it can be.
pub(super) fn only_hook(scene: &Scene<'_, '_>, seen: Option<&Netfilter>) -> Option<&'static str> {
    match hooks(scene, seen).as_slice() {
        [only] => hook_name(*only),
        _ => None,
    }
}

/// The rules that can have dropped the packet: in its namespace, at a hook where it can have died, with a verdict that
/// ends it, met by somebody, and asking for nothing that the packet is not.
pub(super) fn suspects<'a>(scene: &Scene<'_, 'a>, seen: Option<&Netfilter>) -> Vec<&'a RuleHit> {
    let hooks = hooks(scene, seen);
    let rules = scene.world.node(scene.node).facts.rules.iter();
    let ends = |hit: &RuleHit| matches!(hit.verdict, RuleVerdict::Drop | RuleVerdict::Reject(_));
    rules
        .filter(|hit| hit.netns == scene.place().netns && ends(hit))
        .filter(|hit| hit.packets > 0 || hit.traced > 0 || !hit.counted)
        .filter(|hit| of_family(scene, hit, seen))
        .filter(|hit| hooks.is_empty() || hit.hook.is_none_or(|hook| hooks.contains(&hook)))
        .filter(|hit| seen.is_none_or(|seen| seen_there(hit, seen)))
        .filter(|hit| hit.conditions.iter().all(|condition| fit(scene, hit.hook, condition) != Fit::No))
        .collect()
}

fn of_family(scene: &Scene<'_, '_>, hit: &RuleHit, seen: Option<&Netfilter>) -> bool {
    let seen = seen.filter(|seen| seen.family != UNSPEC);
    match hit.family.as_str() {
        "inet" => true,
        "ip" => scene.is_v4(),
        "ip6" => !scene.is_v4(),
        "bridge" => {
            scene.world.namespaces(scene.node).bridge_of(scene.place()).is_some()
                && seen.is_none_or(|seen| seen.family == BRIDGE)
        }
        "netdev" => seen.is_none_or(|seen| seen.family == NETDEV),
        _ => false,
    }
}

/// The kernel was seen evaluating there last.
fn seen_there(hit: &RuleHit, seen: &Netfilter) -> bool {
    let engine = match (seen.engine, hit.engine) {
        (Engine::Unknown, _) => true,
        (Engine::Iptables, engine) => engine == RuleEngine::Iptables,
        (Engine::Nftables { .. }, engine) => engine != RuleEngine::Iptables,
    };
    let table = seen.table.as_ref().is_none_or(|table| *table == hit.table);
    // Where there are several ways to the rule (no hook is told then), the packet may have come by another than `way`.
    let one_base = hit.hook.is_some();
    let chain = seen.chain.as_ref().is_none_or(|chain| !one_base || hit.way.first().is_none_or(|base| base == chain));
    engine && table && chain
}

/// `hook`: where the way to the rule begins.
pub(super) fn fit(scene: &Scene<'_, '_>, hook: Option<u8>, condition: &Condition) -> Fit {
    let Condition { field, not } = condition;
    let header = scene.header();
    let fits = match field {
        ConditionField::InInterface(pattern) => match hook {
            Some(OUTPUT | POSTROUTING) | None => Fit::Unknown,
            Some(_) => scene.inbound().map_or(Fit::Unknown, |link| interface(scene, link, pattern)),
        },
        ConditionField::OutInterface(pattern) => match (hook, scene.out()) {
            (Some(PREROUTING | INPUT) | None, _) | (_, None) => Fit::Unknown,
            // Routes are read after the packet passed.
            _ if scene.world.node(scene.node).facts.routes_changed => Fit::Unknown,
            _ if scene.last.way == Way::Out && !scene.wrapped() => Fit::Unknown,
            (_, Some(out)) => interface(scene, out, pattern),
        },
        ConditionField::Source(net) => net.contains(&header.src).into(),
        ConditionField::Destination(net) => net.contains(&header.dst).into(),
        ConditionField::SourceIn(ranges) => ranges.contains(header.src).into(),
        ConditionField::DestinationIn(ranges) => ranges.contains(header.dst).into(),
        ConditionField::Protocol(protocol) => protocol_fits(scene, *protocol),
        ConditionField::SourcePort(from, to) => port(scene, (*from, *to), |(source, _)| source),
        ConditionField::DestinationPort(from, to) => port(scene, (*from, *to), |(_, destination)| destination),
        // The mark is what it was in the end: a condition on the way may have been asked before a rule changed it. No hook
        // of ours says what conntrack thought of the packet, nor what the look-up of the rule gave.
        ConditionField::Mark(..) | ConditionField::ConntrackState(_) | ConditionField::ReversePathFails => Fit::Unknown,
    };
    fits.not(*not)
}

/// A packet on a port of a bridge comes in by the port for some hooks and by the bridge for others; the same goes for a VRF.
fn interface(scene: &Scene<'_, '_>, link: &Link, pattern: &str) -> Fit {
    let namespaces = scene.world.namespaces(scene.node);
    let master = link.master.and_then(|ifindex| namespaces.link(LinkRef { ifindex, ..scene.place() }));
    let own = matches(pattern, &link.name);
    match master.map(|master| matches(pattern, &master.name)) {
        Some(other) if other != own => Fit::Unknown,
        _ => own.into(),
    }
}

pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

fn protocol_fits(scene: &Scene<'_, '_>, protocol: u8) -> Fit {
    let inner_v4 = scene.free.packet.src.is_ipv4();
    if let Some(outer) = &scene.free.outer {
        let own = match outer.encapsulation {
            Encapsulation::Ipip if inner_v4 => 4,
            Encapsulation::Ipip => 41,
            Encapsulation::Gre => 47,
            Encapsulation::Vxlan | Encapsulation::Geneve => 17,
        };
        return (protocol == own).into();
    }
    match scene.free.packet.l4 {
        L4::Icmp { .. } if inner_v4 => (protocol == 1).into(),
        L4::Icmp { .. } => (protocol == 58).into(),
        L4::Tcp { .. } => (protocol == 6).into(),
        L4::Udp { .. } => (protocol == 17).into(),
        L4::Other { protocol: own } => (protocol == own).into(),
    }
}

fn port(scene: &Scene<'_, '_>, (from, to): (u16, u16), pick: impl Fn((u16, u16)) -> u16) -> Fit {
    match scene.free.packet.l4 {
        _ if scene.free.outer.is_some() => Fit::Unknown,
        L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port, .. } => {
            (from..=to).contains(&pick((src_port, dst_port))).into()
        }
        // What has no ports may still be matched by the bytes that stand there (nft's `th dport`).
        L4::Icmp { .. } | L4::Other { .. } => Fit::Unknown,
    }
}

/// The workload endpoint's interface and direction, of a rule in Calico's chains of it: `cali-tw-IF` (to the workload),
/// `cali-fw-IF` (from it), in nftables mode with `filter-` before.
///
/// The chains of a policy are shared by all workloads that it selects, and `way` is one of several then: only a condition
/// that all of them have says which it was.
pub(super) fn calico(hit: &RuleHit) -> Option<(&str, bool)> {
    let (chain, (interface, to)) = hit.way.iter().rev().chain([&hit.chain]).find_map(|chain| {
        let name = chain.strip_prefix("filter-").unwrap_or(chain);
        let to = name.strip_prefix("cali-tw-").map(|interface| (interface, true));
        Some((chain, to.or_else(|| name.strip_prefix("cali-fw-").map(|interface| (interface, false)))?))
    })?;
    let asked = hit.conditions.iter().any(|condition| match &condition.field {
        ConditionField::InInterface(name) | ConditionField::OutInterface(name) => !condition.not && name == interface,
        _ => false,
    });
    (*chain == hit.chain || asked).then_some((interface, to))
}

fn asks(hit: &RuleHit, wanted: fn(&ConditionField) -> bool) -> bool {
    hit.conditions.iter().any(|c| !c.not && wanted(&c.field))
}

/// It is for packets that conntrack calls invalid, and no others.
pub(super) fn of_invalid(hit: &&RuleHit) -> bool {
    asks(hit, |field| matches!(field, ConditionField::ConntrackState(states) if *states == ["INVALID"]))
}

/// What kind of cause a rule is, and in words; the pod of an interface by `pod`.
pub(super) fn cause(hit: &RuleHit, pod: impl Fn(&str) -> Option<String>) -> (DropCause, String) {
    if asks(hit, |field| matches!(field, ConditionField::ReversePathFails)) {
        return (DropCause::RpFilterRule, "reverse path filter rule".to_owned());
    }
    if of_invalid(&hit) {
        return (DropCause::Netfilter, "netfilter rule for packets that conntrack calls invalid".to_owned());
    }
    if let Some((interface, to)) = calico(hit) {
        let direction = if to { "ingress" } else { "egress" };
        let whose = pod(interface).unwrap_or_else(|| interface.to_owned());
        return (DropCause::Policy, format!("{direction} policy at {whose}"));
    }
    let why = match (&hit.rule, &hit.verdict) {
        (None, _) => format!("the default policy of chain {}", hit.chain),
        (_, RuleVerdict::Reject(_)) => "netfilter reject rule".to_owned(),
        _ => "netfilter rule".to_owned(),
    };
    (DropCause::Netfilter, why)
}
