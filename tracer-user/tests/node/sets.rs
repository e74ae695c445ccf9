//! Named sets of real nftables: which addresses their rules are about.

use std::fmt::Write as _;

use tracer_user::node::{
    RuleTraces,
    facts::{Condition, ConditionField, Ranges},
};

use crate::{lab::Lab, rules::lab};

/// Of each rule the addresses that it asks for, if it says: `daddr 10.0.0.0-10.255.255.255`, `not saddr ...`, `understood` or not.
/// Meanwhile `change` is done.
fn asked(lab: &Lab, change: impl FnOnce()) -> Vec<String> {
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    change();
    let mut hits = node.rules_met(&before, RuleTraces::default(), &node.scope()).hits;
    hits.sort_by_key(|hit| hit.rule.as_ref().map(|rule| rule.position));
    let of = |hit: &tracer_user::node::facts::RuleHit| {
        let mut text = if hit.understood { "understood" } else { "not understood" }.to_owned();
        for Condition { field, not } in &hit.conditions {
            let (what, Ranges(ranges)) = match field {
                ConditionField::SourceIn(ranges) => ("saddr", ranges),
                ConditionField::DestinationIn(ranges) => ("daddr", ranges),
                _ => continue,
            };
            write!(text, "{} {what}", if *not { " not" } else { "" }).unwrap();
            ranges.iter().for_each(|(from, to)| write!(text, " {from}-{to}").unwrap());
        }
        text
    };
    hits.iter().map(of).collect()
}

#[test]
fn small_sets_of_addresses_are_read() {
    let lab = lab();
    lab.feed(
        "n",
        "nft -f -",
        "table inet t {
            set few { type ipv4_addr; elements = { 10.0.0.9, 10.0.0.1 }; }
            set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 11.0.0.0/8, 192.168.7.1, 240.0.0.0/4 }; }
            set none { type ipv4_addr; }
            set six { type ipv6_addr; flags interval; elements = { fd00::/64 }; }
            set timed { type ipv4_addr; flags timeout; elements = { 10.0.0.1 timeout 1h }; }
            set ports { type inet_service; elements = { 80 }; }
            set pairs { type ipv4_addr . inet_service; elements = { 10.0.0.1 . 80 }; }
            chain c { type filter hook forward priority 0;
                ip daddr @few drop
                ip saddr != @nets drop
                ip daddr @none drop
                ip6 saddr @six drop
                ip daddr @timed drop
                tcp dport @ports drop
                ip daddr . tcp dport @pairs drop
                ip saddr { 10.0.0.2, 10.0.0.4 } drop
                ip daddr { 10.0.0.0/8, 172.16.0.0/12 } drop
            }
        }",
    );
    let found = asked(&lab, || {});
    assert_eq!(
        found,
        [
            "understood daddr 10.0.0.1-10.0.0.1 10.0.0.9-10.0.0.9",
            "understood not saddr 10.0.0.0-10.255.255.255 11.0.0.0-11.255.255.255 192.168.7.1-192.168.7.1 \
             240.0.0.0-255.255.255.255",
            "understood daddr",
            "understood saddr fd00::-fd00::ffff:ffff:ffff:ffff",
            "not understood",
            "not understood",
            "not understood",
            "understood saddr 10.0.0.2-10.0.0.2 10.0.0.4-10.0.0.4",
            "understood daddr 10.0.0.0-10.255.255.255 172.16.0.0-172.31.255.255",
        ]
    );
}

#[test]
fn a_large_set_is_left_unread() {
    let sized = |size: u32| {
        let lab = lab();
        let all: Vec<String> = (0..size).map(|n| format!("10.{}.{}.1", n / 250, n % 250)).collect();
        let set = format!("set some {{ type ipv4_addr; elements = {{ {} }}; }}", all.join(", "));
        let chain = "chain c { type filter hook forward priority 0; ip daddr @some drop; }";
        lab.feed("n", "nft -f -", &format!("table ip t {{\n{set}\n{chain}\n}}\n"));
        asked(&lab, || {})
    };
    assert_eq!(sized(1_000)[0].split(' ').count(), 2 + 1_000);
    assert_eq!(sized(1_001), ["not understood"]);
    assert_eq!(sized(20_000), ["not understood"], "nor to its end");
}

#[test]
fn a_set_that_changed_says_nothing() {
    let lab = lab();
    let table = "table ip t {\nset some { type ipv4_addr; elements = { 10.0.0.1 }; }\nchain c { type filter hook forward priority 0; \
                 ip daddr @some drop; }\n}\n";
    lab.feed("n", "nft -f -", table);
    assert_eq!(asked(&lab, || {}), ["understood daddr 10.0.0.1-10.0.0.1"]);
    let change = || drop(lab.exec("n", "nft add element ip t some { 10.0.0.2 }"));
    assert_eq!(asked(&lab, change), ["not understood"]);
}
