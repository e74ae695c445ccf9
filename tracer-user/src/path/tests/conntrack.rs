//! What conntrack refuses is told from what rules drop, and the one cause of it from the other.

use super::{
    cases::two_nodes,
    drops::{At, condition, dies, drop_of, exchange, netns, one, plain, routes},
};
use crate::{
    event::Record,
    node::facts::{ConditionField, ConntrackDrops, Rule, RuleHit, RuleVerdict, Setting},
    path::{
        model::{Basis, DropCause, DropDetail},
        testing::{Walk, host, pod},
    },
};

/// One packet, freed by `nf_hook_slow`; what conntrack counted, and what its table holds of 100 entries.
fn died(at: At, (dropped, insert_failed): (u64, u64), held: u64, change: impl FnOnce(&mut Walk)) -> DropDetail {
    one(at, "nf_hook_slow", None, |w| {
        let netns = netns(w, 1);
        let facts = &mut w.evidence.nodes[1].facts;
        facts.rules_complete = vec![netns];
        facts.conntrack_drops = vec![ConntrackDrops { netns, dropped, insert_failed }];
        let setting = |name: &str, value: u64| Setting {
            name: format!("net.netfilter.nf_conntrack_{name}"),
            value: value.to_string(),
        };
        facts.namespaces[0].settings.extend([setting("count", held), setting("max", 100)]);
        change(w);
    })
}

/// A rule that translates what leaves the second node.
fn masquerade(w: &Walk, packets: u64) -> RuleHit {
    RuleHit {
        table: "nat".to_owned(),
        chain: "POSTROUTING".to_owned(),
        hook: Some(4),
        way: vec!["POSTROUTING".to_owned()],
        rule: Some(Rule { position: 1, handle: None, text: "-j MASQUERADE --to-ports 1-2".to_owned(), comment: None }),
        verdict: RuleVerdict::Masquerade,
        packets,
        ..plain(w)
    }
}

#[test]
fn a_full_table_is_told_with_its_figures() {
    let drop = died(At::Prerouting, (1, 0), 100, |_| {});
    assert_eq!((drop.cause, drop.why.as_str()), (DropCause::ConntrackFull, "conntrack's table is full"));
    assert_eq!(drop.basis, Basis::Inferred);
    let settings: Vec<_> = drop.settings.iter().map(|s| format!("{} {}", s.name, s.value)).collect();
    assert_eq!(settings, ["net.netfilter.nf_conntrack_count 100", "net.netfilter.nf_conntrack_max 100"]);
    insta::assert_snapshot!(drop.proof.join("\n"), @r"
    conntrack gave no entry to 1 new connection, for 1 dropped here (conntrack -S: drop +1); no rule that drops did
    freed in nf_hook_slow (this kernel has no drop reasons)
    ");
}

#[test]
fn a_table_with_room_is_not_called_full() {
    let drop = died(At::Prerouting, (1, 0), 94, |_| {});
    assert_eq!((drop.cause, drop.why.as_str()), (DropCause::Conntrack, "conntrack gave a new connection no entry"));
    let full = died(At::Prerouting, (1, 0), 95, |_| {});
    assert_eq!(full.cause, DropCause::ConntrackFull, "entries go until it is read");
}

#[test]
fn what_conntrack_did_not_count_it_did_not_do() {
    for (at, counts) in [
        (At::Prerouting, (0, 0)),
        // After routing nothing is looked up, before routing nothing is entered.
        (At::Forward, (1, 0)),
        (At::Prerouting, (1, 1)),
    ] {
        let drop = died(at, counts, 100, |_| {});
        assert_eq!((drop.cause, drop.why.as_str()), (DropCause::Netfilter, "netfilter rule"), "{at:?} {counts:?}");
    }
}

/// What is freed has the new source.
fn translate(w: &mut Walk) {
    let freed = w.evidence.nodes[1].records.iter_mut().filter_map(|record| match record {
        Record::Sighting(sighting) => sighting.free.is_some().then_some(&mut sighting.packet),
        _ => None,
    });
    freed.for_each(|packet| packet.src = host(1));
}

fn texts(drop: &DropDetail) -> Vec<&str> {
    drop.rules.iter().map(|rule| rule.text.as_str()).collect()
}

#[test]
fn a_translation_without_a_free_port_names_its_rule() {
    let drop = died(At::Forward, (1, 1), 7, |w| {
        let mut other = masquerade(w, 1);
        other.conditions = vec![condition(ConditionField::Protocol(17))];
        let mut of_pods = masquerade(w, 1);
        of_pods.conditions = vec![condition(ConditionField::Source(pod(0, 1).into()))];
        w.evidence.nodes[1].facts.rules = vec![of_pods, other, masquerade(w, 0)];
        translate(w);
    });
    assert_eq!((drop.cause, drop.why.as_str()), (DropCause::NatPorts, "no free port for source NAT"));
    assert_eq!((drop.rule_known, texts(&drop)), (true, vec!["-j MASQUERADE --to-ports 1-2"]));
}

#[test]
fn a_rule_without_a_counter_may_have_translated_only_what_was_translated() {
    let uncounted = |w: &Walk| RuleHit { counted: false, ..masquerade(w, 0) };
    let drop = died(At::Forward, (1, 1), 7, |w| {
        w.evidence.nodes[1].facts.rules = vec![uncounted(w)];
        translate(w);
    });
    assert_eq!((drop.cause, drop.rule_known, texts(&drop).len()), (DropCause::NatPorts, false, 1));
    let unread = died(At::Forward, (1, 1), 7, translate);
    assert_eq!((unread.cause, texts(&unread).len()), (DropCause::NatPorts, 0));
    let untranslated = died(At::Forward, (1, 1), 7, |w| w.evidence.nodes[1].facts.rules = vec![uncounted(w)]);
    assert_eq!((untranslated.cause, texts(&untranslated).len()), (DropCause::Conntrack, 0));
}

#[test]
fn a_rule_that_may_have_done_it_as_well_is_not_made_the_culprit() {
    let at_prerouting = |w: &Walk| RuleHit { hook: Some(0), way: vec!["PREROUTING".to_owned()], ..plain(w) };
    let drop = died(At::Prerouting, (1, 0), 100, |w| w.evidence.nodes[1].facts.rules = vec![at_prerouting(w)]);
    assert_eq!((drop.cause, drop.rule_known, drop.rules.len()), (DropCause::Netfilter, false, 1));
    assert!(drop.proof[0].contains("; or none of them, but conntrack: "), "{:?}", drop.proof);
    // Its counter tells of fewer.
    let drop = died(At::Prerouting, (0, 0), 100, |w| w.evidence.nodes[1].facts.rules = vec![at_prerouting(w)]);
    assert!(drop.rule_known);
}

#[test]
fn all_drops_of_a_namespace_must_have_been_counted() {
    for (counted, cause) in [(2, DropCause::ConntrackFull), (1, DropCause::Netfilter)] {
        let mut w = two_nodes();
        dies(&mut w, 1, At::Prerouting, "nf_hook_slow", None);
        dies(&mut w, 2, At::Prerouting, "nf_hook_slow", None);
        routes(&mut w, crate::node::facts::RouteKind::Unicast);
        let netns = netns(&w, 1);
        let facts = &mut w.evidence.nodes[1].facts;
        facts.conntrack_drops = vec![ConntrackDrops { netns, dropped: counted, insert_failed: 0 }];
        let settings = ["count", "max"]
            .map(|name| Setting { name: format!("net.netfilter.nf_conntrack_{name}"), value: "9".to_owned() });
        facts.namespaces[0].settings.extend(settings);
        assert_eq!(drop_of(&exchange(&w)).cause, cause);
    }
}
