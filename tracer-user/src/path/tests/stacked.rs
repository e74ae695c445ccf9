//! Devices that stand on others: what comes in is told at the lowest alone, and handed up.

use super::{drops::exchange, failures::to_the_wire};
use crate::{
    node::facts::RouteKind,
    path::{
        model::{Basis, Exchange, Outcome},
        testing::{At, BOND0, ENO1, ENS5, ETH0, NET1, VLAN, Walk, pod, second, veth},
    },
};

/// Out of `node` by the VLAN on the bond.
fn out(w: &mut Walk, node: usize) {
    w.routed((node, 0, VLAN)).transmitted((node, 0, BOND0)).transmitted((node, 0, ENO1));
}

/// In by the bond's port, with a tag; what is concluded of it.
fn into(w: &mut Walk, node: usize, uppers: &[u32]) {
    w.vlan = Some(100);
    w.received((node, 0, ENO1));
    for upper in uppers {
        w.ended((node, 0, *upper), "received");
    }
    w.vlan = None;
}

fn from_pod_to_pod(w: &mut Walk, from: At, to: At) {
    w.sent(from).received((from.0, 0, veth(from.1)));
    out(w, from.0);
    into(w, to.0, &[BOND0, VLAN]);
    w.routed((to.0, 0, veth(to.1))).delivered(to);
}

#[test]
fn a_vlan_on_a_bond_is_passed_device_by_device() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    let (there, here) = ((1, 1, ETH0), (0, 1, ETH0));
    w.request(1);
    from_pod_to_pod(&mut w, here, there);
    w.reply();
    from_pod_to_pod(&mut w, there, here);
    w.confirm().answer(RouteKind::Unicast, None);
    // The route was asked for by the device that IP sees.
    for node in &w.evidence.nodes {
        let ins: Vec<_> = node.facts.routes.iter().map(|a| a.question.in_ifindex).collect();
        assert!(ins.contains(&Some(VLAN)) && !ins.contains(&Some(ENO1)), "{ins:?}");
    }
    let joined = w.check();
    let Exchange { outcome, notes, request, .. } = &joined.exchanges[0];
    assert_eq!((outcome, notes.as_slice()), (&Outcome::Delivered, &[][..]));
    let concluded = request.hops.iter().filter(|hop| hop.basis == Basis::Inferred && hop.at_ns.is_none());
    assert_eq!(concluded.map(|hop| hop.interface.as_deref()).collect::<Vec<_>>(), [Some("bond0"), Some("bond0.100")]);
}

#[test]
fn without_a_tag_a_packet_is_not_handed_to_the_vlan() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    to_the_wire(&mut w).received((1, 0, ENO1)).ended((1, 0, BOND0), "received");
    w.routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).received((0, 0, ENS5));
    w.routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
    w.answer(RouteKind::Unicast, None).check();
}

#[test]
fn what_died_behind_the_vlan_died_there() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1)));
    out(&mut w, 0);
    into(&mut w, 1, &[BOND0, VLAN]);
    w.freed(crate::event::Hook::Drop, (1, 0, ENO1), "ip_rcv_finish_core", Some("IP_RPFILTER"));
    w.ended((1, 0, VLAN), "dropped").answer(RouteKind::Unicast, None);
    assert_eq!(w.check().exchanges[0].outcome, Outcome::Dropped);
}

#[test]
fn a_macvlan_is_reached_through_the_link_that_it_stands_on() {
    let (here, there) = ((0, 1, NET1), (1, 2, NET1));
    let mut w = Walk::new(2, second(0, 1), second(1, 2));
    w.request(1).sent(here).transmitted((0, 0, ENS5)).received((1, 0, ENS5)).ended(there, "received");
    w.ended(there, "delivered");
    w.reply().sent(there).transmitted((1, 0, ENS5)).received((0, 0, ENS5)).ended(here, "received");
    w.ended(here, "delivered").confirm();
    w.answer(RouteKind::Unicast, None).check();
    let exchange = exchange(&w);
    assert_eq!((exchange.outcome, exchange.notes.as_slice()), (Outcome::Delivered, &[][..]));
}

#[test]
fn macvlans_of_one_link_reach_each_other_through_it() {
    let (here, there) = ((0, 1, NET1), (0, 2, NET1));
    let mut w = Walk::new(1, second(0, 1), second(0, 2));
    w.request(1).sent(here).received((0, 0, ENS5)).ended(there, "received").ended(there, "delivered");
    w.reply().sent(there).received((0, 0, ENS5)).ended(here, "received").ended(here, "delivered").confirm();
    w.answer(RouteKind::Unicast, None).check();
    let exchange = exchange(&w);
    assert_eq!((exchange.outcome, exchange.notes.as_slice()), (Outcome::Delivered, &[][..]));
}

#[test]
fn a_pod_that_answers_what_no_hook_saw_come_was_redirected_to() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    to_the_wire(&mut w).received((1, 0, ENS5)).ended((1, 1, ETH0), "received").ended((1, 1, ETH0), "delivered");
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).received((0, 0, ENS5));
    w.ended((0, 1, ETH0), "received").ended((0, 1, ETH0), "delivered").confirm().answer(RouteKind::Unicast, None);
    let joined = w.check();
    let Exchange { outcome, notes, request, .. } = &joined.exchanges[0];
    assert_eq!((outcome, notes.as_slice()), (&Outcome::Delivered, &[][..]));
    let hop = request.hops.iter().find(|hop| hop.detail.text.is_some()).expect("marked");
    assert_eq!((hop.interface.as_deref(), hop.basis, hop.at_ns), (Some("eth0"), Basis::Inferred, None));
    // Where records may be missing it could have been routed there.
    w.evidence.nodes[1].lost = 1;
    let doubtful = exchange(&w);
    assert!(doubtful.request.hops.iter().all(|hop| hop.pod.as_deref() != Some("100.64.1.11")), "{doubtful:#?}");
    assert!(!doubtful.notes.is_empty());
}

#[test]
fn what_leaves_with_the_ttl_it_came_with_was_redirected() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    to_the_wire(&mut w).received((1, 0, ENS5)).transmitted((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.answer(RouteKind::Unicast, None);
    let joined = w.join();
    let marked: Vec<_> = joined.exchanges[0].request.hops.iter().filter(|hop| hop.detail.text.is_some()).collect();
    let [hop] = marked.as_slice() else { panic!("{marked:#?}") };
    assert_eq!(hop.interface.as_deref(), Some("cali1"));
    assert!(hop.detail.text.as_deref().is_some_and(|text| text.starts_with("transmitted; redirected")), "{hop:?}");
}
