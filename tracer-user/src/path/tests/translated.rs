//! The moment of a rewrite, and the rule that asked for it; tunnels that encrypt.

use super::cases::{out_and_back, two_nodes};
use crate::{
    event::{Hook, Record, Rewrite, Side, Sighting},
    node::facts::{Condition, ConditionField, Rule, RuleEngine, RuleHit, RuleVerdict},
    path::{
        model::{Action, Basis, Hop, OLD_ENTRY, Outcome},
        testing::{ENS5, ETH0, TUNL0, Walk, host, ip, pod, veth},
    },
};

fn hop(hops: &[Hop], action: Action) -> &Hop {
    hops.iter().find(|h| h.action == action).expect("a hop")
}

fn masqueraded() -> Walk {
    let mut w = Walk::new(1, pod(0, 1), ip("8.8.8.8"));
    out_and_back(&mut w, 1);
    w
}

fn sightings(w: &Walk) -> Vec<Sighting> {
    let of = |r: &Record| match r {
        Record::Sighting(s) => Some(s.clone()),
        _ => None,
    };
    w.evidence.nodes[0].records.iter().filter_map(of).collect()
}

#[test]
fn a_rewrite_is_dated_by_its_own_moment() {
    let mut w = masqueraded();
    // Before the packet is seen leaving by ens5.
    let received = &sightings(&w)[2];
    let rewrite = Rewrite {
        time_ns: received.time_ns + 400,
        skb: received.skb,
        netns: received.netns,
        ifindex: received.ifindex,
        side: Side::Source,
        packet: received.packet.clone(),
    };
    let start = sightings(&w)[0].time_ns;
    // Another packet's, in the same memory.
    let mut other = rewrite.clone();
    (other.time_ns, other.packet.ip_id) = (other.time_ns + 100, 0x7777);
    w.evidence.nodes[0].records.extend([Record::Rewrite(rewrite.clone()), Record::Rewrite(other)]);
    let joined = w.check();
    let hops = &joined.exchanges[0].request.hops;
    let snat = hop(hops, Action::Snat);
    assert_eq!(snat.at_ns, Some(rewrite.time_ns - start));
    assert_eq!(snat.detail.nat.as_ref().expect("both sides").moment, Basis::Observed);
    assert!(hops.iter().map(|h| h.at_ns).is_sorted(), "{hops:#?}");
    let unsnat = hop(&joined.exchanges[0].reply.hops, Action::Unsnat);
    assert_eq!(unsnat.detail.nat.as_ref().expect("both sides").moment, Basis::Inferred);
}

#[test]
fn what_is_rewritten_behind_the_last_device_is_delivered_after_that() {
    let mut w = Walk::new(1, pod(0, 1), host(0));
    let port = (0, 0, veth(1));
    w.request(1).sent((0, 1, ETH0)).received(port);
    let received = sightings(&w).pop().expect("the last");
    let (time_ns, side, packet) = (received.time_ns + 400, Side::Destination, received.packet);
    let (skb, netns, ifindex) = (received.skb, received.netns, received.ifindex);
    w.evidence.nodes[0].records.push(Record::Rewrite(Rewrite { time_ns, skb, netns, ifindex, side, packet }));
    // The node's, too.
    w.packet.dst = ip("10.244.0.1");
    w.evidence.nodes[0].facts.namespaces[0].links[0].addresses.push(w.packet.dst.into());
    w.wait(1_000).freed(Hook::Consume, port, "icmp_rcv", None).ended(port, "dnat").ended(port, "delivered");
    let joined = w.check();
    let hops = &joined.exchanges[0].request.hops;
    assert_eq!(hop(hops, Action::Dnat).detail.nat.as_ref().map(|nat| nat.moment), Some(Basis::Observed));
    assert!(hops.iter().map(|hop| hop.at_ns).is_sorted(), "{hops:#?}");
}

fn rule(w: &Walk, chain: &str, out: &str, packets: u64) -> RuleHit {
    RuleHit {
        netns: w.evidence.nodes[0].facts.namespaces[0].inode,
        engine: RuleEngine::Iptables,
        family: "ip".to_owned(),
        table: "nat".to_owned(),
        chain: chain.to_owned(),
        hook: Some(4),
        way: vec!["POSTROUTING".to_owned(), chain.to_owned()],
        rule: Some(Rule { position: 1, handle: None, text: "-j MASQUERADE".to_owned(), comment: None }),
        verdict: RuleVerdict::Masquerade,
        conditions: vec![Condition { field: ConditionField::OutInterface(out.to_owned()), not: false }],
        understood: true,
        counted: packets > 0,
        packets,
        traced: 0,
    }
}

fn named(w: &Walk) -> Option<(String, Basis)> {
    let joined = w.check();
    assert!(joined.exchanges[0].reply.hops.iter().all(|h| h.detail.rule.is_none()), "conntrack undoes it, not a rule");
    let rule = hop(&joined.exchanges[0].request.hops, Action::Snat).detail.rule.clone()?;
    Some((rule.chain, rule.basis))
}

#[test]
fn the_one_rule_that_fits_is_named_with_what_it_rests_on() {
    let mut w = masqueraded();
    let own = |w: &Walk, packets| vec![rule(w, "tunnel", "tunl0", 5), rule(w, "outgoing", "ens+", packets)];
    w.evidence.nodes[0].facts.rules = own(&w, 0);
    assert_eq!(named(&w), Some(("outgoing".to_owned(), Basis::Configured)));
    w.evidence.nodes[0].facts.rules = own(&w, 1);
    assert_eq!(named(&w), Some(("outgoing".to_owned(), Basis::Inferred)));
    w.evidence.nodes[0].facts.rules[1].traced = 1;
    assert_eq!(named(&w), Some(("outgoing".to_owned(), Basis::Observed)));
    // Two that fit: neither.
    let second = rule(&w, "another", "ens5", 1);
    w.evidence.nodes[0].facts.rules = own(&w, 1);
    w.evidence.nodes[0].facts.rules.push(second);
    assert_eq!(named(&w), None);
}

/// Rules of the nat table see a connection's first packet: what counted later is others'.
#[test]
fn no_rule_is_named_for_a_connection_older_than_the_trace() {
    let mut w = masqueraded();
    w.evidence.nodes[0].facts.rules = vec![rule(&w, "outgoing", "ens+", 1)];
    w.evidence.probes.clear();
    let mut with = |seen_reply: [bool; 2]| {
        let mut seen = seen_reply.into_iter();
        for record in &mut w.evidence.nodes[0].records {
            if let Record::Translation(t) = record {
                t.status = 1 << 4 | u32::from(seen.next().unwrap_or(true)) << 1;
            }
        }
        let joined = w.join();
        let snat = hop(&joined.exchanges[0].request.hops, Action::Snat).detail.clone();
        (snat.rule.is_some(), snat.text)
    };
    assert_eq!(with([false, true]), (true, None), "it began in the trace");
    let older = "connection older than the trace: rule not known".to_owned();
    assert_eq!(with([true, true]), (false, Some(older)));
    let may_be = "connection may be older than the trace: rule not known".to_owned();
    assert_eq!(with([false, false]), (false, Some(may_be)), "nothing but its own packets was seen");
}

/// A client's datagrams still go where the service's endpoint was.
#[test]
fn what_no_rule_chose_the_connections_entry_did() {
    let mut w = Walk::new(1, pod(0, 1), ip("10.96.0.7"));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1)));
    let old = pod(0, 2);
    for record in &mut w.evidence.nodes[0].records {
        if let Record::Sighting(s) = record {
            s.conntrack = None;
        }
    }
    w.packet.dst = old;
    w.routed((0, 0, veth(2))).delivered((0, 2, ETH0));
    w.evidence.probes.clear();
    let netns = w.evidence.nodes[0].facts.namespaces[0].inode;
    let text = |w: &Walk| {
        let joined = w.join();
        hop(&joined.exchanges[0].request.hops, Action::Dnat).detail.text.clone()
    };
    assert_eq!(text(&w).as_deref(), Some("connection may be older than the trace: rule not known"));
    w.evidence.nodes[0].facts.rules_complete = vec![netns];
    assert_eq!(text(&w).as_deref(), Some(OLD_ENTRY));
    let chose = RuleHit {
        verdict: RuleVerdict::Dnat(old.to_string()),
        hook: Some(0),
        conditions: Vec::new(),
        ..rule(&w, "services", "ens5", 1)
    };
    w.evidence.nodes[0].facts.rules = vec![chose];
    assert_eq!(
        text(&w).as_deref(),
        Some("connection may be older than the trace: rule not known"),
        "it may have been that"
    );
}

#[test]
fn a_rule_that_translates_to_something_else_is_not_named() {
    let mut w = masqueraded();
    let to = |target: &str| {
        let verdict = RuleVerdict::Snat(target.to_owned());
        vec![RuleHit { verdict, ..rule(&w, "outgoing", "ens5", 1) }]
    };
    let targets = [
        (host(0).to_string(), true),
        ("172.20.0.0-172.20.0.9:1-65535".to_owned(), true),
        (String::new(), true),
        ("172.20.0.9".to_owned(), false),
        (format!("{}:9", host(0)), false),
        ("[fd00::1]:9".to_owned(), false),
    ]
    .map(|(target, fits)| (to(&target), fits, target));
    for (rules, fits, target) in targets {
        w.evidence.nodes[0].facts.rules = rules;
        assert_eq!(named(&w).is_some(), fits, "{target}");
    }
}

#[test]
fn an_encrypted_wire_is_concluded_from_both_its_ends() {
    let mut w = two_nodes();
    for node in &mut w.evidence.nodes {
        let links = &mut node.facts.namespaces[0].links;
        let device = links.iter_mut().find(|l| l.ifindex == TUNL0).expect("a tunnel");
        (device.name, device.kind) = ("wireguard.cali".to_owned(), Some("wireguard".to_owned()));
    }
    let cross = |w: &mut Walk, a: usize, b: usize| {
        w.sent((a, 1, ETH0)).received((a, 0, veth(1))).decrement();
        let device = (a, 0, TUNL0);
        w.ended(device, "routed").ended(device, "encapsulated").queue(device).xmit(device);
        w.unwrapped((b, 0, TUNL0)).routed((b, 0, veth(1))).delivered((b, 1, ETH0));
    };
    cross(w.request(1), 0, 1);
    cross(w.reply(), 1, 0);
    w.confirm();
    // Not seen, and shown without a place.
    w.expected[0].insert(4, "node0 ? transmitted".to_owned());
    w.expected[1].insert(4, "node1 ? transmitted".to_owned());
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, &e.notes[..]), (Outcome::Delivered, &[][..]));
    let concluded: Vec<_> = e.request.hops.iter().filter(|h| h.basis == Basis::Inferred).collect();
    let inferred = concluded.iter().find(|h| h.action == Action::Transmitted).expect("the wire");
    assert_eq!(inferred.detail.text.as_deref(), Some("encrypted, to node1: not observed"));
    assert_eq!(e.shares.len(), 3, "{:?}", e.shares);
}

#[test]
fn what_is_lost_encrypted_is_lost_behind_its_device() {
    let mut w = two_nodes();
    let links = &mut w.evidence.nodes[0].facts.namespaces[0].links;
    let device = links.iter_mut().find(|l| l.ifindex == TUNL0).expect("a tunnel");
    (device.name, device.kind) = ("wireguard.cali".to_owned(), Some("wireguard".to_owned()));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).decrement();
    let device = (0, 0, TUNL0);
    w.ended(device, "routed").ended(device, "encapsulated").queue(device).xmit(device).ended(device, "lost");
    let e = &w.check().exchanges[0];
    let text = e.request.hops.last().and_then(|h| h.detail.text.clone());
    assert_eq!(text.as_deref(), Some("left node0 wireguard.cali, never arrived at node1"));
}

#[test]
fn a_tunnels_vni_and_the_mtu_of_its_devices() {
    let mut w = two_nodes();
    for node in &mut w.evidence.nodes {
        let links = &mut node.facts.namespaces[0].links;
        let device = links.iter_mut().find(|l| l.ifindex == TUNL0).expect("a tunnel");
        device.tunnel = Some(crate::node::facts::TunnelSettings { id: Some(4096), ..Default::default() });
    }
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1)));
    w.wrapped((0, 0, TUNL0), crate::event::Encapsulation::Vxlan, host(1), (0, 0, ENS5));
    w.received((1, 0, ENS5)).unwrapped((1, 0, TUNL0)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    let e = &w.check().exchanges[0];
    for action in [Action::Encapsulated, Action::Decapsulated] {
        let detail = &hop(&e.request.hops, action).detail;
        let tunnel = detail.tunnel.as_ref().expect("a tunnel");
        assert_eq!((tunnel.kind.as_str(), tunnel.vni, detail.mtu), ("vxlan", Some(4096), Some(8981)));
    }
}
