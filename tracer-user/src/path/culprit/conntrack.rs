//! Drops by conntrack itself, which no rule counts: `nf_hook_slow` frees what its hooks refuse, as if a rule had.
//!
//! Before routing (`nf_conntrack_in`) a new connection gets no entry when the table is full. After routing, as the packet
//! leaves (`nf_confirm`), the connection is entered, and cannot be if another has its addresses and ports: then source NAT
//! found none that was free (`nf_nat_l4proto_unique_tuple` gives up, and takes one that is not).

use std::net::IpAddr;

use super::{Scene, rules, setting};
use crate::{
    event::{L4, Netfilter, Sighting},
    node::facts::{ConditionField, ConntrackDrops, RuleHit, RuleVerdict, Setting},
    path::{
        model::{DropCause, SettingDetail},
        world::World,
    },
};

/// A table is as good as full from so many hundredths on: entries come and go until it is read.
const FULL: u64 = 95;
const COUNT: &str = "net.netfilter.nf_conntrack_count";
const MAX: &str = "net.netfilter.nf_conntrack_max";

/// Where conntrack may have refused a packet.
#[derive(Clone)]
pub(super) struct Doubt<'a> {
    pub(super) netns: u32,
    /// Where it looks packets up.
    enters: bool,
    /// Where it confirms them.
    confirms: bool,
    /// Its source was rewritten when it was freed, and not yet when it was last seen.
    rewritten: bool,
    /// The rules that may have rewritten its source before.
    translating: Vec<&'a RuleHit>,
}

/// What is to be said of it.
pub(super) struct Refusal<'a> {
    pub(super) cause: DropCause,
    pub(super) why: &'static str,
    pub(super) proof: String,
    /// The table's size.
    pub(super) settings: Vec<SettingDetail>,
    /// The rules that asked for a translation.
    pub(super) rules: Vec<&'a RuleHit>,
}

pub(super) fn doubt<'a>(scene: &Scene<'_, 'a>, seen: Option<&Netfilter>) -> Doubt<'a> {
    let hooks = rules::hooks(scene, seen);
    let may_be = |any: &[u8]| hooks.is_empty() || hooks.iter().any(|hook| any.contains(hook));
    let rewrites = |hit: &&RuleHit| {
        let source = matches!(hit.verdict, RuleVerdict::Masquerade | RuleVerdict::Snat(_));
        let there = hit.hook.is_none_or(|hook| hook == rules::POSTROUTING);
        source && there && hit.netns == scene.place().netns && may_have_met(scene, hit)
    };
    Doubt {
        netns: scene.place().netns,
        enters: may_be(&[rules::PREROUTING, rules::OUTPUT]),
        confirms: may_be(&[rules::POSTROUTING, rules::INPUT]),
        rewritten: source(scene.free) != source(scene.last.last),
        translating: scene.world.node(scene.node).facts.rules.iter().filter(rewrites).collect(),
    }
}

/// Of a packet that its maker's kernel refused to send; these rules may have rewritten its source.
pub(super) fn unsent(netns: u32, translating: Vec<&RuleHit>) -> Doubt<'_> {
    Doubt { netns, enters: true, confirms: true, rewritten: false, translating }
}

/// Address and port, or ICMP identifier.
fn source(s: &Sighting) -> (IpAddr, u16) {
    let port = match s.packet.l4 {
        L4::Icmp { id, .. } => id,
        L4::Tcp { src_port, .. } | L4::Udp { src_port, .. } => src_port,
        L4::Other { .. } => 0,
    };
    (s.packet.src, port)
}

/// It asks for nothing that the packet is not. It saw the source before that was rewritten: what was freed has the new one.
fn may_have_met(scene: &Scene<'_, '_>, hit: &RuleHit) -> bool {
    hit.conditions.iter().all(|condition| match &condition.field {
        ConditionField::Source(net) => net.contains(&scene.last.header().src) != condition.not,
        ConditionField::SourceIn(ranges) => ranges.contains(scene.last.header().src) != condition.not,
        ConditionField::SourcePort(..) => true,
        _ => rules::fit(scene, hit.hook, condition) != rules::Fit::No,
    })
}

/// Conntrack's own counters explain so many drops; None: they do not.
pub(super) fn refusal<'a>(world: &World<'a>, node: usize, doubt: &Doubt<'a>, drops: u64) -> Option<Refusal<'a>> {
    let told = world.node(node).facts.conntrack_drops.iter().find(|drops| drops.netns == doubt.netns)?;
    let ConntrackDrops { netns: _, dropped, insert_failed } = *told;
    let got_none = dropped.saturating_sub(insert_failed);
    let (settings, full) = table(&world.namespaces(node).get(doubt.netns)?.settings);
    let new = |count: u64| match count {
        1 => "1 new connection".to_owned(),
        _ => format!("{count} new connections"),
    };
    let for_these = format!("for {drops} dropped here");
    if doubt.enters && got_none >= drops {
        let proof =
            format!("conntrack gave no entry to {}, {for_these} (conntrack -S: drop +{got_none})", new(got_none));
        let (cause, why) = if full {
            (DropCause::ConntrackFull, "conntrack's table is full")
        } else {
            (DropCause::Conntrack, "conntrack gave a new connection no entry")
        };
        return Some(Refusal { cause, why, proof, settings, rules: Vec::new() });
    }
    if doubt.confirms && insert_failed >= drops {
        let counted = doubt.translating.iter().filter(|hit| hit.packets >= drops).copied().collect::<Vec<_>>();
        let uncounted = doubt.translating.iter().filter(|hit| !hit.counted && doubt.rewritten).copied();
        let translated: Vec<_> = counted.into_iter().chain(uncounted).collect();
        let proof = format!(
            "conntrack could not enter {}, {for_these} (conntrack -S: insert_failed +{insert_failed}): another has its \
             addresses and ports",
            new(insert_failed)
        );
        let (cause, why) = if doubt.rewritten || !translated.is_empty() {
            (DropCause::NatPorts, "no free port for source NAT")
        } else {
            (DropCause::Conntrack, "conntrack has another connection of the same addresses and ports")
        };
        return Some(Refusal { cause, why, proof, settings: Vec::new(), rules: translated });
    }
    None
}

/// How many entries the table has and may have, and whether that is all it may have.
fn table(settings: &[Setting]) -> (Vec<SettingDetail>, bool) {
    let find = |name: &str| settings.iter().find(|setting| setting.name == name).map(|setting| setting.value.as_str());
    let [count, max] = [COUNT, MAX].map(find);
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    // 0: no limit.
    let full = number(count).zip(number(max)).is_some_and(|(count, max)| max > 0 && count * 100 >= max * FULL);
    let told = [(COUNT, count), (MAX, max)].into_iter();
    (told.filter_map(|(name, value)| Some(setting(name.to_owned(), value?))).collect(), full)
}
