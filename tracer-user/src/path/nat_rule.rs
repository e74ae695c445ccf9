//! Which netfilter rule asked for a rewrite.
//!
//! The rules of the nat table see the first packet of a connection only, so one rule's counter rises by one however many
//! packets it rewrites; for a connection older than the trace by none.

use super::{
    hops::Passage,
    model::{Action, Basis, Nat, RuleRef},
    world::World,
};
use crate::{
    event::{L4, Packet},
    node::facts::{Condition, ConditionField, LinkRef, Rule, RuleEngine, RuleHit, RuleVerdict},
};

/// The one rule that fits; None if several do, or none.
pub(super) fn find(
    world: &World<'_>,
    passage: &Passage,
    action: Action,
    nat: &Nat,
    packet: &Packet,
) -> Option<RuleRef> {
    let scene = Scene { world, passage, nat, packet };
    let hits = &world.node(passage.node).facts.rules;
    let fitting: Vec<&RuleHit> = hits.iter().filter(|hit| scene.fits(hit, action)).collect();
    let by = |evidence: fn(&RuleHit) -> bool| fitting.iter().filter(|hit| evidence(hit)).copied().collect::<Vec<_>>();
    let (traced, counted) = (by(|hit| hit.traced > 0), by(|hit| hit.packets > 0 || !hit.counted));
    let (candidates, basis) = if !traced.is_empty() {
        (traced, Basis::Observed)
    } else if counted.iter().any(|hit| hit.packets > 0) {
        (counted, Basis::Inferred)
    } else {
        (fitting, Basis::Configured)
    };
    match candidates.as_slice() {
        [only] => Some(shown(only, basis)),
        _ => None,
    }
}

fn shown(hit: &RuleHit, basis: Basis) -> RuleRef {
    let engine = match hit.engine {
        RuleEngine::Iptables => "iptables",
        RuleEngine::IptablesNft => "iptables-nft",
        RuleEngine::Nftables => "nftables",
    };
    let (text, comment) = match &hit.rule {
        Some(Rule { position: _, handle: _, text, comment }) => (Some(text.clone()), comment.clone()),
        None => (None, None),
    };
    RuleRef {
        engine: engine.to_owned(),
        table: hit.table.clone(),
        chain: hit.chain.clone(),
        text,
        comment,
        packets: hit.packets,
        basis,
    }
}

/// The packet at the moment of its rewrite.
struct Scene<'s, 'a> {
    world: &'s World<'a>,
    passage: &'s Passage,
    nat: &'s Nat,
    packet: &'s Packet,
}

impl Scene<'_, '_> {
    fn fits(&self, hit: &RuleHit, action: Action) -> bool {
        let place = self.passage.goes.or(self.passage.came);
        let verdict = match action {
            Action::Snat => matches!(hit.verdict, RuleVerdict::Snat | RuleVerdict::Masquerade),
            Action::Dnat => hit.verdict == RuleVerdict::Dnat,
            // What undoes a translation is conntrack, not a rule.
            _ => false,
        };
        // INPUT 1 and POSTROUTING 4 rewrite the source, PREROUTING 0 and OUTPUT 3 the destination.
        let hook = match (action, self.passage.came) {
            (Action::Snat, _) => hit.hook.is_none_or(|hook| hook == 4 || hook == 1),
            (_, Some(_)) => hit.hook.is_none_or(|hook| hook == 0),
            (_, None) => hit.hook.is_none_or(|hook| hook == 3),
        };
        let family = match hit.family.as_str() {
            "ip" => self.packet.src.is_ipv4(),
            "ip6" => self.packet.src.is_ipv6(),
            _ => true,
        };
        let here = place.is_some_and(|at| at.netns == hit.netns);
        verdict && hook && family && here && hit.conditions.iter().all(|c| self.may_meet(c, action))
    }

    /// False only if the packet certainly does not meet it.
    fn may_meet(&self, condition: &Condition, action: Action) -> bool {
        let Condition { field, not } = condition;
        let before = &self.nat.before;
        let protocol = match (self.packet.l4, self.packet.src.is_ipv4()) {
            (L4::Icmp { .. }, true) => 1,
            (L4::Icmp { .. }, false) => 58,
            (L4::Tcp { .. }, _) => 6,
            (L4::Udp { .. }, _) => 17,
            (L4::Other { protocol }, _) => protocol,
        };
        let is = match field {
            // POSTROUTING does not know the interface that a packet came in by.
            ConditionField::InInterface(name) if action == Action::Dnat => self.is_interface(self.passage.came, name),
            ConditionField::OutInterface(name) if action == Action::Snat => self.is_interface(self.passage.goes, name),
            ConditionField::Source(net) => Some(net.contains(&before.src)),
            ConditionField::Destination(net) => Some(net.contains(&before.dst)),
            ConditionField::Protocol(wanted) => Some(*wanted == protocol),
            ConditionField::SourcePort(from, to) => before.src_port.map(|port| (*from..=*to).contains(&port)),
            ConditionField::DestinationPort(from, to) => before.dst_port.map(|port| (*from..=*to).contains(&port)),
            ConditionField::ConntrackState(states) => Some(states.iter().any(|s| s == "NEW")),
            ConditionField::InInterface(_)
            | ConditionField::OutInterface(_)
            | ConditionField::Mark(..)
            | ConditionField::ReversePathFails => None,
        };
        is.is_none_or(|is| is != *not)
    }

    fn is_interface(&self, at: Option<LinkRef>, wanted: &str) -> Option<bool> {
        let name = self.world.interface(self.passage.node, at?)?;
        Some(match wanted.strip_suffix('+') {
            Some(beginning) => name.starts_with(beginning),
            None => name == wanted,
        })
    }
}
