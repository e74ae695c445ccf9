//! Packets that no device gets: those that wait for a neighbour, as a trace may be over before the kernel frees them, and those that
//! their own kernel refuses to send.

use std::net::IpAddr;

use super::{
    cases::two_nodes,
    drops::{condition, drop_of, exchange, plain},
};
use crate::{
    event::Hook,
    node::facts::{
        ConditionField, Neighbour, Ranges, Route, RouteAnswer, RouteKind, RouteQuestion, RuleHit, RuleVerdict,
    },
    path::{
        Answer, Unsent,
        model::{Action, Basis, Direction, DropCause, Exchange, Outcome},
        testing::{ENS5, ETH0, Kind, PORT, Walk, ip, pod, veth},
        turned_questions,
    },
};

/// The entry of a next hop, in the namespace of that number.
fn neighbour(w: &mut Walk, (node, netns, ifindex): (usize, usize, u32), address: IpAddr, state: &str) {
    let facts = &mut w.evidence.nodes[node].facts;
    let netns = facts.namespaces[netns].inode;
    facts.neighbours = vec![Neighbour { netns, ifindex, address, mac: None, state: state.to_owned() }];
}

#[test]
fn a_request_that_its_source_keeps_is_told_with_the_neighbour_it_waits_for() {
    let with = |state: &str| {
        let mut w = two_nodes();
        w.request(1);
        let netns = w.evidence.nodes[0].facts.namespaces[1].inode;
        let question = RouteQuestion { netns, src: pod(0, 1), dst: pod(1, 1), in_ifindex: None, mark: 0 };
        let route = Route {
            kind: RouteKind::Unicast,
            destination: "0.0.0.0/0".parse().expect("a prefix"),
            gateway: Some(ip("169.254.1.1")),
            out_ifindex: Some(ETH0),
            table: 254,
            text: "default via 169.254.1.1 dev eth0".to_owned(),
        };
        w.evidence.nodes[0].facts.routes = vec![RouteAnswer { question, route: Some(route), icmp_source: None }];
        neighbour(&mut w, (0, 1, ETH0), ip("169.254.1.1"), state);
        exchange(&w)
    };
    for state in ["INCOMPLETE", "FAILED"] {
        let e = with(state);
        assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
        let [hop] = e.request.hops.as_slice() else { panic!("{:?}", e.request.hops) };
        assert_eq!((hop.interface.as_deref(), hop.ttl, hop.at_ns), (Some("eth0"), None, None));
        let drop = drop_of(&e);
        assert_eq!((drop.cause, drop.basis), (DropCause::Neighbour, Basis::Inferred));
        assert_eq!(drop.why, "no answer to ARP for 169.254.1.1");
        assert_eq!(drop.neighbour, Some(format!("169.254.1.1 dev eth0 {state}")));
    }
    let e = with("REACHABLE");
    assert_eq!((e.outcome, e.request.hops.len()), (Outcome::Incomplete, 0), "that is no reason");
}

#[test]
fn a_packet_that_waits_on_its_way_is_not_called_unknown() {
    let with = |state: &str| {
        let mut w = two_nodes();
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
        w.answer(RouteKind::Unicast, None);
        for answer in &mut w.evidence.nodes[1].facts.routes {
            answer.route.as_mut().expect("answered").out_ifindex = Some(veth(1));
        }
        neighbour(&mut w, (1, 0, veth(1)), pod(1, 1), state);
        exchange(&w)
    };
    let e = with("INCOMPLETE");
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
    let last = e.request.hops.last().expect("hops");
    assert_eq!((last.interface.as_deref(), last.ttl, last.basis), (Some("ens5"), Some(62), Basis::Inferred));
    assert_eq!(drop_of(&e).why, format!("no answer to ARP for {}", pod(1, 1)));
    assert_eq!(with("STALE").outcome, Outcome::Incomplete);
}

/// A SYN that its own kernel refused to send, answered with that; the rules of its namespace by `rules`, from one that drops.
fn refused(answer: Option<Answer>, rules: impl FnOnce(RuleHit) -> Vec<RuleHit>) -> Exchange {
    let mut w = Walk { kind: Kind::Tcp, ..two_nodes() };
    w.request(1);
    let probe = w.evidence.probes.last_mut().expect("sent");
    (probe.unsent, probe.answer, probe.rtt_ns) = (Some(Unsent::Filtered), answer, answer.map(|_| 5_000));
    let facts = &w.evidence.nodes[0].facts;
    let netns = facts.namespaces[1].inode;
    let (chain, way) = ("OUTPUT".to_owned(), vec!["OUTPUT".to_owned()]);
    let hit = RuleHit { netns, chain, way, hook: Some(3), packets: 1, ..plain(&w) };
    let facts = &mut w.evidence.nodes[0].facts;
    (facts.rules, facts.rules_complete) = (rules(hit), vec![netns]);
    exchange(&w)
}

#[test]
fn a_request_that_its_own_kernel_refuses_is_told_with_the_rule() {
    let e = refused(None, |hit| {
        let other = |field| RuleHit { conditions: vec![condition(field)], ..hit.clone() };
        let elsewhere = ip("10.9.9.9");
        vec![
            RuleHit { hook: Some(2), ..hit.clone() },
            RuleHit { packets: 0, ..hit.clone() },
            other(ConditionField::Destination(elsewhere.into())),
            other(ConditionField::DestinationIn(Ranges([(elsewhere, elsewhere)].into()))),
            other(ConditionField::DestinationPort(PORT + 1, PORT + 1)),
            other(ConditionField::InInterface("eth0".to_owned())),
            other(ConditionField::DestinationPort(PORT, PORT)),
        ]
    });
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
    let [hop] = e.request.hops.as_slice() else { panic!("{:?}", e.request.hops) };
    assert_eq!((hop.interface.as_deref(), hop.ttl, hop.at_ns, hop.basis), (Some("eth0"), None, None, Basis::Inferred));
    let drop = drop_of(&e);
    assert_eq!((drop.cause, drop.why.as_str(), drop.rule_known), (DropCause::Netfilter, "netfilter rule", true));
    assert_eq!(drop.proof[0], "rule counter +1 for 1 packet dropped here");
    assert!(drop.proof[1].starts_with("the sender's kernel refused to send it (EPERM)"), "{:?}", drop.proof);
}

#[test]
fn who_rejects_its_own_request_has_answered_it() {
    let answer = |code| Answer::IcmpError { from: pod(0, 1), kind: 3, code, mtu: 0 };
    let rejects = |hit: RuleHit| {
        let with = |with: &str| RuleHit { verdict: RuleVerdict::Reject(with.to_owned()), ..hit.clone() };
        vec![hit.clone(), with("icmp-port-unreachable"), with("icmp-host-prohibited")]
    };
    let e = refused(Some(answer(3)), rejects);
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, Some(Direction::Request)));
    let drop = drop_of(&e);
    assert_eq!((drop.why.as_str(), drop.rules.len()), ("netfilter reject rule", 1));
    assert_eq!(drop.rules[0].rejects_with.as_deref(), Some("icmp-port-unreachable"));
    let e = refused(Some(Answer::Reset), |hit| {
        vec![RuleHit { verdict: RuleVerdict::Reject("tcp-reset".to_owned()), ..hit }]
    });
    assert_eq!((e.outcome, drop_of(&e).why.as_str()), (Outcome::Rejected, "netfilter reject rule"));
    assert!(e.rejection.expect("refused").meaning.contains("a firewall rule, not the destination"));
}

#[test]
fn without_a_rule_that_fits_nobody_is_blamed() {
    let e = refused(None, |hit| vec![RuleHit { family: "ip6".to_owned(), ..hit }]);
    let drop = drop_of(&e);
    assert_eq!((drop.cause, drop.rules.len()), (DropCause::Unknown, 0));
    assert_eq!(drop.why, "the sender's own kernel refused to send it");
    // What DNAT in OUTPUT makes of it nobody saw.
    let elsewhere = ConditionField::Destination(ip("10.9.9.9").into());
    let turned = |hit: RuleHit| {
        vec![
            RuleHit { conditions: vec![condition(elsewhere)], ..hit.clone() },
            RuleHit { verdict: RuleVerdict::Dnat("10.9.9.9".to_owned()), table: "nat".to_owned(), ..hit },
        ]
    };
    assert_eq!(drop_of(&refused(None, turned)).rules.len(), 1);
}

/// A SYN for which its sender's kernel had no way out, with that error; rules of its namespace lead it to these addresses, and there are
/// routes to them by kind, first that to the destination itself.
fn without_way(why: Unsent, turned: &[&str], routes: &[(IpAddr, RouteKind)]) -> Exchange {
    let mut w = Walk { kind: Kind::Tcp, ..two_nodes() };
    w.request(1);
    w.evidence.probes.last_mut().expect("sent").unsent = Some(why);
    let netns = w.evidence.nodes[0].facts.namespaces[1].inode;
    let rule = |to: &&str| RuleHit {
        netns,
        table: "nat".to_owned(),
        chain: "KUBE-SEP".to_owned(),
        hook: Some(3),
        packets: 1,
        verdict: RuleVerdict::Dnat((*to).to_owned()),
        ..plain(&w)
    };
    let rules = turned.iter().map(rule).collect();
    let answer = |(dst, kind): &(IpAddr, RouteKind)| {
        let question = RouteQuestion { netns, src: pod(0, 1), dst: *dst, in_ifindex: None, mark: 0 };
        let route = Route {
            kind: *kind,
            destination: (*dst).into(),
            gateway: None,
            out_ifindex: None,
            table: 254,
            text: format!("{kind:?} {dst}"),
        };
        RouteAnswer { question, route: Some(route).filter(|_| *kind != RouteKind::Other), icmp_source: None }
    };
    let facts = &mut w.evidence.nodes[0].facts;
    (facts.rules, facts.routes) = (rules, routes.iter().map(answer).collect());
    exchange(&w)
}

#[test]
fn a_request_for_which_there_is_no_way_out_is_told_with_the_route() {
    for (why, kind, cause, words) in [
        (Unsent::Blackhole, RouteKind::Blackhole, DropCause::Blackhole, "blackhole route"),
        (Unsent::Unreachable, RouteKind::Unreachable, DropCause::Unreachable, "unreachable route"),
        (Unsent::Prohibit, RouteKind::Prohibit, DropCause::Prohibit, "prohibit route"),
        (Unsent::NoRoute, RouteKind::Other, DropCause::NoRoute, "no route"),
    ] {
        let e = without_way(why, &[], &[(pod(1, 1), kind)]);
        assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
        let [hop] = e.request.hops.as_slice() else { panic!("{:?}", e.request.hops) };
        assert_eq!((hop.interface.as_deref(), hop.dst, hop.ttl, hop.at_ns), (Some("eth0"), pod(1, 1), None, None));
        assert_eq!((drop_of(&e).cause, drop_of(&e).why.as_str()), (cause, words));
        let text = (kind != RouteKind::Other).then(|| format!("{kind:?} {}", pod(1, 1)));
        assert_eq!(hop.detail.route, text);
        let told = format!("the sender's kernel refused to send it ({}), before any device saw it", why.errno());
        assert_eq!(drop_of(&e).proof, [told]);
    }
}

#[test]
fn a_request_whose_endpoint_has_no_way_is_told_with_the_translation() {
    let (endpoint, other) = (ip("10.9.9.9"), ip("10.9.9.8"));
    let direct = (pod(1, 1), RouteKind::Unicast);
    let routes = [direct, (endpoint, RouteKind::Blackhole), (other, RouteKind::Unicast)];
    let e = without_way(Unsent::Blackhole, &["10.9.9.8:80", "10.9.9.9:8080"], &routes);
    let [dnat, hop] = e.request.hops.as_slice() else { panic!("{:?}", e.request.hops) };
    let nat = dnat.detail.nat.as_ref().expect("translated");
    assert_eq!((dnat.action, dnat.ttl, dnat.at_ns, dnat.basis), (Action::Dnat, None, None, Basis::Inferred));
    assert_eq!(
        (nat.before.dst, nat.before.dst_port, nat.after.dst, nat.after.dst_port),
        (pod(1, 1), Some(PORT), endpoint, Some(8080))
    );
    assert_eq!(dnat.detail.rule.as_ref().expect("a rule").chain, "KUBE-SEP");
    assert_eq!((hop.dst, drop_of(&e).cause), (endpoint, DropCause::Blackhole));
    // Two that have none: which of them it was is not known.
    let routes = [direct, (endpoint, RouteKind::Blackhole), (other, RouteKind::Blackhole)];
    for (why, cause) in [(Unsent::Blackhole, DropCause::Unknown), (Unsent::NoRoute, DropCause::NoRoute)] {
        let e = without_way(why, &["10.9.9.8:80", "10.9.9.9:8080"], &routes);
        assert_eq!((e.request.hops.len(), drop_of(&e).cause), (1, cause));
    }
    for (why, hint) in [(Unsent::Prohibit, " (an address for broadcasts?)"), (Unsent::Unreachable, "")] {
        let e = without_way(why, &[], &[direct]);
        assert_eq!(drop_of(&e).why, format!("the sender's own kernel refused to send it{hint}"));
    }
}

/// With kprobes the translation is seen, and then the free, at no device.
#[test]
fn a_refused_request_that_was_seen_freed_is_told_as_one_that_was_not() {
    let mut w = Walk { kind: Kind::Tcp, ..two_nodes() };
    w.request(1).freed(Hook::Drop, (0, 1, 0), "nf_hook_slow", Some("NETFILTER_DROP"));
    w.evidence.probes.last_mut().expect("sent").unsent = Some(Unsent::NoRoute);
    let e = exchange(&w);
    assert_eq!((e.outcome, drop_of(&e).cause), (Outcome::Dropped, DropCause::NoRoute));
}

#[test]
fn only_rules_that_were_met_are_asked_where_they_lead() {
    let w = two_nodes();
    let sent = RouteQuestion { netns: 7, src: pod(0, 1), dst: pod(1, 1), in_ifindex: None, mark: 0 };
    let to = |to: &str| RuleHit {
        netns: 7,
        hook: Some(3),
        packets: 1,
        verdict: RuleVerdict::Dnat(to.to_owned()),
        ..plain(&w)
    };
    let rules = [
        RuleHit { netns: 8, ..to("10.0.0.1") },
        RuleHit { hook: Some(0), ..to("10.0.0.2") },
        RuleHit { packets: 0, ..to("10.0.0.3") },
        RuleHit { packets: 0, counted: false, ..to("10.0.0.4") },
        to("10.0.0.5-10.0.0.9"),
        to("[fd00::1]:80"),
        to("10.0.0.10:80"),
        RuleHit { hook: None, ..to("10.0.0.11") },
        to("10.0.0.10:81"),
    ];
    let asked: Vec<IpAddr> = turned_questions(&sent, &rules).into_iter().map(|question| question.dst).collect();
    assert_eq!(asked, ["10.0.0.10", "10.0.0.11", "10.0.0.4"].map(ip));
}

/// The way of pings that arrive and are not answered; one rule of the destination's pod, with that condition, dropped something, and so
/// many records of its node were lost.
fn unanswered(asks: ConditionField, packets: u64, lost: u64) -> Exchange {
    unanswered_by(asks, packets, lost, |hit| hit)
}

fn unanswered_by(asks: ConditionField, packets: u64, lost: u64, at: impl FnOnce(RuleHit) -> RuleHit) -> Exchange {
    let mut w = two_nodes();
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
    w.routed((1, 0, veth(1))).delivered((1, 1, ETH0)).answer(RouteKind::Unicast, None);
    let facts = &w.evidence.nodes[1].facts;
    let netns = facts.namespaces[1].inode;
    let (chain, way) = ("OUTPUT".to_owned(), vec!["OUTPUT".to_owned()]);
    let conditions = vec![condition(asks)];
    let hit = at(RuleHit { netns, chain, way, hook: Some(3), packets, conditions, ..plain(&w) });
    let node = &mut w.evidence.nodes[1];
    node.lost = lost;
    (node.facts.rules, node.facts.rules_complete) = (vec![hit], vec![netns]);
    exchange(&w)
}

#[test]
fn a_reply_that_a_rule_of_its_sender_is_for_was_dropped_by_it() {
    let e = unanswered(ConditionField::Destination(pod(0, 1).into()), 1, 0);
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Reply)));
    let [hop] = e.reply.hops.as_slice() else { panic!("{:?}", e.reply.hops) };
    assert_eq!((hop.src, hop.dst, hop.interface.as_deref()), (pod(1, 1), pod(0, 1), Some("eth0")));
    assert_eq!((hop.ttl, hop.at_ns, hop.basis), (None, None, Basis::Inferred));
    let drop = hop.detail.drop.as_ref().expect("a drop");
    assert_eq!((drop.why.as_str(), drop.rule_known), ("netfilter rule", true));
    assert_eq!(drop.proof[1], "the request arrived, and no device saw a reply");
}

/// SNAT may have given what comes later another source.
#[test]
fn in_postrouting_only_mangle_knows_the_senders_own_address() {
    for (table, dropped) in [("mangle", true), ("filter", false)] {
        let at = |hit: RuleHit| RuleHit { hook: Some(4), table: table.to_owned(), ..hit };
        let e = unanswered_by(ConditionField::Source(pod(1, 1).into()), 1, 0, at);
        assert_eq!(e.outcome == Outcome::Dropped, dropped, "{table}");
    }
}

#[test]
fn a_rule_that_is_for_others_or_met_none_or_may_be_for_others_dropped_no_reply() {
    let own = ConditionField::Destination(pod(0, 1).into());
    let marked = ConditionField::Mark(1, 1);
    for (asks, packets) in [(ConditionField::Source(pod(0, 1).into()), 1), (own, 0), (marked, 1)] {
        let e = unanswered(asks, packets, 0);
        assert_eq!((e.outcome, e.failed_direction), (Outcome::Lost, Some(Direction::Reply)));
        assert!(e.reply.hops.is_empty());
    }
}

#[test]
fn where_records_are_missing_no_rule_is_blamed_for_a_reply() {
    let e = unanswered(ConditionField::Destination(pod(0, 1).into()), 1, 5);
    assert_ne!(e.outcome, Outcome::Dropped);
    assert!(e.reply.hops.is_empty());
}
