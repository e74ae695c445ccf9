//! Copies of a packet, and devices that hand it back: not its way.

use super::failures::to_the_wire;
use crate::{
    event::Hook,
    node::facts::RouteKind,
    path::{
        model::{Direction, Outcome},
        testing::{CNI0, ENS5, ENS6, ETH0, NET1, Walk, host, pod, second, veth},
    },
};

/// In by `ens5`, a copy out by `copy`, and on.
fn mirrored(w: &mut Walk, copy: u32) -> u64 {
    to_the_wire(w).received((1, 0, ENS5));
    let skb = w.skb;
    w.skb += 0x1000;
    w.queue((1, 0, copy)).xmit((1, 0, copy));
    w.freed(Hook::Drop, (1, 0, copy), "sk_skb_reason_drop", Some("NETFILTER_DROP"));
    skb
}

#[test]
fn what_a_mirror_copies_is_no_part_of_the_way() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    w.skb = mirrored(&mut w, ENS6);
    w.routed((1, 0, veth(1))).delivered((1, 1, ETH0)).answer(RouteKind::Unicast, None);
    let note = "node1 ens6 was sent a copy of the packet (by a mirror of tc, or a flooding bridge)";
    assert!(w.check().exchanges[0].notes.iter().any(|told| told == note));
}

#[test]
fn what_becomes_of_a_copy_is_not_the_end_of_the_packet() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    w.skb = mirrored(&mut w, ENS6);
    w.freed(Hook::Drop, (1, 0, ENS5), "sch_handle_ingress", Some("TC_INGRESS")).ended((1, 0, ENS5), "dropped");
    let exchange = w.answer(RouteKind::Unicast, None).check().exchanges.remove(0);
    let drop = exchange.request.hops.last().and_then(|hop| hop.detail.drop.clone()).expect("a drop");
    assert_eq!(drop.why, "traffic control filter or program");
}

#[test]
fn a_copy_that_is_sent_before_the_packet_is_none_of_its_hops() {
    let mut w = Walk::new(2, host(0), pod(1, 1));
    w.request(1);
    let skb = w.skb;
    w.skb += 0x1000;
    w.queue((0, 0, ENS6)).xmit((0, 0, ENS6));
    w.skb = skb;
    w.sent((0, 0, ENS5));
    w.ended((0, 0, ENS5), "routed")
        .received((1, 0, ENS5))
        .routed((1, 0, veth(1)))
        .delivered((1, 1, ETH0))
        .answer(RouteKind::Unicast, None)
        .check();
}

#[test]
fn what_an_ifb_hands_back_is_no_second_copy() {
    let mut w = Walk::new(2, pod(0, 1), pod(1, 1));
    let ens6 = w.evidence.nodes[0].facts.namespaces[0].links.iter_mut().find(|link| link.ifindex == ENS6);
    ens6.expect("a link of the test").kind = Some("ifb".to_owned());
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).transmitted((0, 0, ENS6)).received((0, 0, veth(1)));
    w.routed((0, 0, ENS5)).received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    let exchange = w.answer(RouteKind::Unicast, None).check().exchanges.remove(0);
    assert_eq!(exchange.notes, ["reply: the request arrived, but no reply to it was seen leaving"]);
}

#[test]
fn of_what_a_bridge_floods_the_one_that_arrives_is_the_packet() {
    let (here, there) = ((0, 3, ETH0), (0, 4, ETH0));
    let mut w = Walk::new(1, pod(0, 3), pod(0, 4));
    w.request(1).sent(here);
    let skb = w.skb;
    w.skb += 0x1000;
    w.ended((0, 0, veth(3)), "received").bridged((0, 0, CNI0), (0, 0, veth(4)));
    // By the port it came from (hairpin), in its first buffer, before the other is received.
    w.skb = skb;
    w.queue((0, 0, veth(3))).xmit((0, 0, veth(3)));
    w.skb += 0x1000;
    w.delivered(there);
    w.skb = skb;
    w.freed(Hook::Drop, (0, 0, veth(3)), "ip_rcv_core", Some("OTHERHOST")).answer(RouteKind::Unicast, None);
    let exchange = w.check().exchanges.remove(0);
    let note = "node0 cali3 was sent a copy of the packet (by a mirror of tc, or a flooding bridge)";
    assert!(exchange.notes.iter().any(|told| told == note), "{:?}", exchange.notes);
}

/// It was for the node until NAT turned it, and lies in the buffer that then goes on: no copy of one that arrived.
#[test]
fn nat_to_another_port_of_a_bridge_takes_away_what_was_for_the_node() {
    let mut w = Walk::new(1, pod(0, 3), host(0));
    let (port, bridge) = ((0, 0, veth(3)), (0, 0, CNI0));
    w.request(1).sent((0, 3, ETH0)).received(port);
    w.packet.dst = pod(0, 4);
    w.ended(port, "dnat").transmitted(bridge);
    w.freed(Hook::Drop, bridge, "nf_hook_slow", Some("NETFILTER_DROP")).ended(bridge, "dropped");
    let joined = w.check();
    let exchange = &joined.exchanges[0];
    assert_eq!((exchange.outcome, exchange.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
    assert!(exchange.notes.is_empty(), "{:?}", exchange.notes);
}

/// The touch of the link below and that of the link above are of one sighting: the one above is not handed on.
#[test]
fn what_a_link_handed_up_arrived_whatever_was_copied_of_it() {
    let (here, there) = ((0, 1, NET1), (0, 2, NET1));
    let mut w = Walk::new(1, second(0, 1), second(0, 2));
    w.request(1).sent(here).received((0, 0, ENS5)).ended(there, "received").ended(there, "delivered");
    let skb = w.skb;
    w.skb += 0x1000;
    w.queue((0, 0, veth(3))).xmit((0, 0, veth(3)));
    w.skb = skb;
    w.reply().sent(there).received((0, 0, ENS5)).ended(here, "received").ended(here, "delivered").confirm();
    let exchange = w.answer(RouteKind::Unicast, None).check().exchanges.remove(0);
    assert_eq!(exchange.outcome, Outcome::Delivered, "{:?}", exchange.notes);
}
