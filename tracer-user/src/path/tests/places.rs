//! What is known of the packet and its place decides: outer headers, devices on devices, bridges, kernels without reasons.

use super::{
    cases::two_nodes,
    drops::{At, condition, drop_of, exchange, netns, one, plain, set},
    failures::to_the_wire,
};
use crate::{
    event::{Encapsulation, Hook, Outer},
    node::facts::{Condition, ConditionField, RouteKind, RuleHit, RuleVerdict},
    path::{
        Answer,
        culprit::answer,
        model::{DropCause, DropDetail, Rejection},
        testing::{ENS5, ENS6, ETH0, TUNL0, Walk, host, pod, six, veth},
    },
};

/// The second node wraps the packet for a third, and the outer one dies there.
fn outer_dies(function: &str, change: impl FnOnce(&mut Walk)) -> DropDetail {
    let mut w = two_nodes();
    to_the_wire(&mut w).received((1, 0, ENS5)).decrement();
    w.queue((1, 0, TUNL0)).xmit((1, 0, TUNL0));
    let encapsulation = Encapsulation::Ipip;
    w.outer = Some(Outer { src: host(1), dst: host(2), ttl: 64, ip_id: 9, ip_len: 104, encapsulation });
    w.freed(Hook::Drop, (1, 0, TUNL0), function, None);
    w.answer(RouteKind::Unicast, None);
    for answer in &mut w.evidence.nodes[1].facts.routes {
        answer.route.as_mut().expect("answered").out_ifindex = Some(ENS5);
    }
    change(&mut w);
    drop_of(&exchange(&w))
}

#[test]
fn an_outer_packet_is_judged_by_its_own_header() {
    let net = |address: std::net::IpAddr| condition(ConditionField::Destination(address.into()));
    let with = |conditions: Vec<Condition>| {
        outer_dies("nf_hook_slow", |w| {
            w.evidence.nodes[1].facts.rules_complete = vec![netns(w, 1)];
            w.evidence.nodes[1].facts.rules = vec![RuleHit { conditions, hook: Some(3), ..plain(w) }];
        })
        .rule_known
    };
    assert!(with(vec![net(host(2)), condition(ConditionField::Protocol(4))]));
    assert!(with(vec![condition(ConditionField::OutInterface("ens5".to_owned()))]));
    assert!(!with(vec![net(pod(1, 1))]), "that is whom the inner one is for");
    assert!(!with(vec![condition(ConditionField::Protocol(1))]), "so is that");
    assert!(!with(vec![condition(ConditionField::OutInterface("tunl0".to_owned()))]));
    let drop = outer_dies("neigh_invalidate", |_| {});
    assert_eq!((drop.cause, drop.out_interface.as_deref()), (DropCause::Neighbour, Some("ens5")));
    assert_eq!(drop.why, format!("no answer to ARP for {}", host(2)));
}

/// What netfilter calls the interface of a packet that was seen at the one below it.
#[test]
fn devices_on_top_of_others_are_not_mistaken() {
    let with = |wanted: &str, kind: Option<&str>, master: bool| {
        let condition = condition(ConditionField::InInterface(wanted.to_owned()));
        one(At::Forward, "nf_hook_slow", None, |w| {
            w.evidence.nodes[1].facts.rules_complete = vec![netns(w, 1)];
            w.evidence.nodes[1].facts.rules = vec![RuleHit { conditions: vec![condition], ..plain(w) }];
            let links = &mut w.evidence.nodes[1].facts.namespaces[0].links;
            let top = links.iter_mut().find(|l| l.ifindex == ENS6).expect("a link");
            (top.kind, top.name) = (kind.map(str::to_owned), "top".to_owned());
            links.iter_mut().find(|l| l.ifindex == ENS5).expect("a link").master = master.then_some(ENS6);
        })
        .rules
        .len()
    };
    assert_eq!((with("ens5", None, false), with("top", None, false)), (1, 0));
    assert_eq!((with("ens5", Some("bond"), true), with("top", Some("bond"), true)), (0, 1));
    // It may have come with the VLAN's tag or without.
    assert_eq!((with("ens5", Some("vlan"), false), with("top", Some("vlan"), false)), (1, 1));
}

#[test]
fn without_reasons_a_reverse_path_is_not_blamed_for_a_device_that_is_not_known() {
    let drop = one(At::Prerouting, "ip_rcv_finish_core.constprop.0", None, |w| {
        set(w, "net.ipv4.conf.all.rp_filter", "0");
        set(w, "net.ipv4.conf.ens5.rp_filter", "1");
        let links = &mut w.evidence.nodes[1].facts.namespaces[0].links;
        links.iter_mut().find(|l| l.ifindex == ENS6).expect("a link").kind = Some("vlan".to_owned());
        for answer in &mut w.evidence.nodes[1].facts.routes {
            answer.route.as_mut().expect("answered").out_ifindex = Some(ENS6);
        }
    });
    assert_eq!(drop.cause, DropCause::Unknown, "the route back may be by the VLAN that it came by");
}

#[test]
fn what_a_route_makes_local_may_die_in_input() {
    let with = |kind: RouteKind| {
        one(At::Prerouting, "nf_hook_slow", None, |w| {
            w.answer(kind, None);
            w.evidence.nodes[1].facts.rules_complete = vec![netns(w, 1)];
            w.evidence.nodes[1].facts.rules = vec![RuleHit { hook: Some(1), ..plain(w) }];
        })
        .rules
        .len()
    };
    assert_eq!((with(RouteKind::Local), with(RouteKind::Unicast)), (1, 0));
}

#[test]
fn on_a_bridge_rules_that_are_not_read_leave_it_open() {
    let mut w = Walk::new(1, pod(0, 3), pod(0, 4));
    w.request(1).sent((0, 3, ETH0)).received((0, 0, veth(3)));
    w.freed(Hook::Drop, (0, 0, veth(3)), "nf_hook_slow", None);
    w.evidence.nodes[0].facts.rules_complete = vec![netns(&w, 0)];
    w.evidence.nodes[0].facts.rules = vec![RuleHit { netns: netns(&w, 0), ..plain(&two_nodes()) }];
    let drop = drop_of(&exchange(&w));
    assert!(!drop.rule_known && drop.proof[0].ends_with("ebtables are not read: it may have been one of those"));
}

#[test]
fn on_a_bridge_an_answer_of_the_nodes_own_is_a_rules_of_ip() {
    let mut w = Walk::new(1, pod(0, 3), pod(0, 4));
    w.request(1).sent((0, 3, ETH0)).received((0, 0, veth(3)));
    w.freed(Hook::Drop, (0, 0, veth(3)), "nf_hook_slow", None);
    let hit = RuleHit {
        netns: netns(&w, 0),
        verdict: RuleVerdict::Reject("icmp-port-unreachable".to_owned()),
        ..plain(&two_nodes())
    };
    w.evidence.nodes[0].facts.rules_complete = vec![netns(&w, 0)];
    w.evidence.nodes[0].facts.rules = vec![hit];
    let answered = |w: &mut Walk, from| {
        w.evidence.probes[0].answer = Some(Answer::IcmpError { from, kind: 3, code: 3, mtu: 0 });
        drop_of(&exchange(w)).rule_known
    };
    assert!(answered(&mut w, host(0)));
    // A bridge's own rule answers so.
    assert!(!answered(&mut w, pod(0, 4)));
}

#[test]
fn without_reasons_a_filter_is_not_taken_for_a_full_queue() {
    for (reason, cause) in [(None, DropCause::Unknown), (Some("QDISC_DROP"), DropCause::QueueFull)] {
        let drop = one(At::Forward, "__dev_queue_xmit", reason, |_| {});
        assert_eq!(drop.cause, cause, "{}", drop.why);
    }
}

#[test]
fn ipv6_that_is_not_forwarded_is_asked_before_the_hop_limit() {
    let mut w = Walk::new(2, six(pod(0, 1)), six(pod(1, 1)));
    to_the_wire(&mut w);
    w.packet.ttl = 1;
    w.received((1, 0, ENS5)).freed(Hook::Drop, (1, 0, ENS5), "ip6_forward", None);
    set(&mut w, "net.ipv6.conf.all.forwarding", "0");
    assert_eq!(drop_of(&exchange(&w)).cause, DropCause::NotForwarding);
}

#[test]
fn an_inet_tables_reject_answers_by_the_packets_version() {
    let answered = |v6: bool, with: &str| {
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let from = if v6 { six(host(1)) } else { host(1) };
        let rejection = Rejection {
            from,
            node: None,
            pod: None,
            icmp_type: Some(kind),
            icmp_code: Some(code),
            meaning: String::new(),
            mtu: None,
            arrived: true,
            fate: None,
        };
        answer::is_of(&rejection, with)
    };
    for v6 in [false, true] {
        assert!(answered(v6, "icmpx-port-unreachable"), "{v6}");
        assert!(!answered(v6, "icmpx-no-route"), "{v6}");
    }
}
