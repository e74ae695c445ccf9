//! Ways that end well, one test each.

use crate::{
    event::{CtDirection, Encapsulation, Hook, L4, Record},
    node::facts::RouteKind,
    path::{
        model::{Action, Basis, Outcome, ShareOf},
        route_questions,
        testing::{CNI0, ENS5, ENS6, ETH0, TUNL0, Walk, host, ip, pod, veth},
    },
};

/// Pod 1 of node 0 asks pod 1 of node 1, routed.
pub(super) fn cross_node(w: &mut Walk, seq: u16) {
    w.request(seq);
    w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).wait(40_000);
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).wait(40_000);
    w.received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0));
    w.freed(Hook::Drop, (0, 1, ETH0), "ping_rcv", Some("NO_SOCKET")).confirm();
}

pub(super) fn two_nodes() -> Walk {
    Walk::new(2, pod(0, 1), pod(1, 1))
}

fn share(exchange: &crate::path::model::Exchange, pick: impl Fn(&ShareOf) -> bool) -> u64 {
    exchange.shares.iter().filter(|s| pick(&s.of)).map(|s| s.ns).sum()
}

fn is_node(name: &str) -> impl Fn(&ShareOf) -> bool {
    move |of| matches!(of, ShareOf::Node { node, .. } if node == name)
}

#[test]
fn routed_across_two_nodes() {
    let mut w = two_nodes();
    cross_node(&mut w, 1);
    cross_node(&mut w, 2);
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    let e = &joined.exchanges[0];
    assert_eq!((e.outcome, e.failed_direction, e.notes.len()), (Outcome::Delivered, None, 0), "{:?}", e.notes);
    assert_eq!(joined.routers, [host(0), host(1), pod(1, 1)]);
    assert_eq!((joined.smallest_mtu, joined.smallest_mtu_at.len()), (Some(9001), 0));
    assert!(joined.warnings.is_empty(), "{:?}", joined.warnings);
    assert_eq!(e.reply.hops.last().expect("hops").ttl, Some(62));
    let routed: Vec<_> = e.request.hops.iter().filter(|h| h.action == Action::Routed).collect();
    assert!(routed.iter().all(|h| h.basis == Basis::Configured && h.detail.route.is_some()), "{routed:?}");
    assert_eq!(e.shares.len(), 3, "{:?}", e.shares);
}

#[test]
fn same_node_is_one_router_and_no_wire() {
    let mut w = Walk::new(1, pod(0, 1), pod(0, 2));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, veth(2))).delivered((0, 2, ETH0));
    w.reply().sent((0, 2, ETH0)).received((0, 0, veth(2))).routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    assert_eq!(joined.routers, [host(0), pod(0, 2)]);
    assert_eq!(joined.exchanges[0].shares.len(), 1);
}

#[test]
fn bridged_on_one_node_is_no_router() {
    let mut w = Walk::new(1, pod(0, 3), pod(0, 4));
    let (a, b, bridge) = ((0, 0, veth(3)), (0, 0, veth(4)), (0, 0, CNI0));
    w.request(1).sent((0, 3, ETH0)).received(a).bridged(bridge, b).delivered((0, 4, ETH0));
    w.reply().sent((0, 4, ETH0)).received(b).bridged(bridge, a).delivered((0, 3, ETH0)).confirm();
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    assert_eq!(joined.routers, [pod(0, 4)]);
    assert_eq!(joined.exchanges[0].request.hops.last().expect("hops").ttl, Some(64));
    assert!(w.evidence.nodes[0].facts.routes.is_empty(), "a bridge asks no route");
}

/// The kernel calls it a packet for another host when it comes in by the port, and no hook reports that.
#[test]
fn bridged_without_a_sighting_at_the_port() {
    let mut w = Walk::new(1, pod(0, 3), pod(0, 4));
    let (a, b, bridge) = ((0, 0, veth(3)), (0, 0, veth(4)), (0, 0, CNI0));
    w.request(1).sent((0, 3, ETH0)).ended(a, "received").bridged(bridge, b).delivered((0, 4, ETH0));
    w.reply().sent((0, 4, ETH0)).ended(b, "received").bridged(bridge, a).delivered((0, 3, ETH0)).confirm();
    let joined = w.check();
    let e = &joined.exchanges[0];
    assert_eq!((&e.notes[..], e.shares.len()), (&[][..], 1), "{:?}", e.shares);
    let port = e.request.hops.iter().find(|h| h.action == Action::Received).expect("a port");
    assert_eq!(port.basis, Basis::Inferred);
    // Another buffer, as a bridge that floods makes one for each port.
    let leaves = |r: &Record| matches!(r, Record::Sighting(s) if s.ifindex == veth(4) && s.hook == Hook::Queue);
    let skb = w.evidence.nodes[0].records.iter_mut().find(|r| leaves(r));
    let Some(Record::Sighting(s)) = skb else { panic!("it leaves") };
    s.skb += 0x80;
    assert!(w.check().exchanges[0].notes.is_empty());
    // What left with a lower TTL did not pass through a bridge.
    w.evidence.nodes[0].records.iter_mut().for_each(|r| {
        if let Record::Sighting(s) = r
            && s.ifindex == veth(4)
        {
            s.packet.ttl -= 1;
        }
    });
    assert!(!w.join().exchanges[0].notes.is_empty());
}

#[test]
fn bridge_then_route() {
    let mut w = Walk::new(2, pod(0, 3), pod(1, 3));
    w.request(1).sent((0, 3, ETH0)).received((0, 0, veth(3))).received((0, 0, CNI0)).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, CNI0)).transmitted((1, 0, veth(3))).delivered((1, 3, ETH0));
    w.reply().sent((1, 3, ETH0)).received((1, 0, veth(3))).received((1, 0, CNI0)).routed((1, 0, ENS5));
    w.received((0, 0, ENS5)).routed((0, 0, CNI0)).transmitted((0, 0, veth(3))).delivered((0, 3, ETH0)).confirm();
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    assert_eq!(joined.routers, [host(0), host(1), pod(1, 3)]);
    assert_eq!(joined.exchanges[0].notes, [""; 0]);
}

/// br_netfilter hands packets to PREROUTING at the port, before the bridge itself has them.
#[test]
fn nat_at_a_bridges_port_is_shown_there() {
    let front = ip("198.51.100.7");
    let mut w = Walk::new(2, pod(0, 3), front);
    let (port, bridge) = ((0, 0, veth(3)), (0, 0, CNI0));
    w.request(1).sent((0, 3, ETH0)).received(port);
    w.packet.dst = pod(1, 3);
    w.ended(port, "dnat").received(bridge).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, CNI0)).transmitted((1, 0, veth(3))).delivered((1, 3, ETH0));
    w.reply().sent((1, 3, ETH0)).received((1, 0, veth(3))).received((1, 0, CNI0)).routed((1, 0, ENS5));
    w.received((0, 0, ENS5)).decrement().ended(bridge, "routed");
    w.packet.src = front;
    w.ended(bridge, "undnat").transmitted(bridge).transmitted(port).delivered((0, 3, ETH0)).confirm();
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    assert_eq!(joined.exchanges[0].outcome, Outcome::Delivered);
}

/// What is to go to another port of the same bridge is bridged there; by the bridge's own device, while the node has no hardware
/// address for it.
#[test]
fn nat_to_another_port_of_a_bridge_goes_by_the_bridge_itself() {
    let front = ip("198.51.100.7");
    let mut w = Walk::new(1, pod(0, 3), front);
    let (port, bridge, other) = ((0, 0, veth(3)), (0, 0, CNI0), (0, 0, veth(4)));
    w.request(1).sent((0, 3, ETH0)).received(port);
    w.packet.dst = pod(0, 4);
    w.ended(port, "dnat").transmitted(bridge).transmitted(other).delivered((0, 4, ETH0));
    w.reply().sent((0, 4, ETH0)).received(other).ended(bridge, "bridged");
    w.packet.src = front;
    w.ended(port, "undnat").transmitted(port).delivered((0, 3, ETH0)).confirm();
    let joined = w.check();
    assert_eq!((joined.exchanges[0].outcome, joined.exchanges[0].notes.len()), (Outcome::Delivered, 0));
}

/// A pod that asks its own service: the bridge's device sends it, and the source is rewritten before the port.
#[test]
fn a_source_rewritten_between_a_bridge_and_its_port_is_shown() {
    let (front, gateway) = (ip("198.51.100.7"), ip("10.244.0.1"));
    let mut w = Walk::new(1, pod(0, 3), front);
    let (port, bridge) = ((0, 0, veth(3)), (0, 0, CNI0));
    w.request(1).sent((0, 3, ETH0)).received(port);
    w.packet.dst = pod(0, 3);
    w.ended(port, "dnat").transmitted(bridge);
    w.packet.src = gateway;
    w.ended(port, "snat").transmitted(port).delivered((0, 3, ETH0));
    w.reply().sent((0, 3, ETH0)).received(port);
    w.packet.dst = pod(0, 3);
    w.ended(port, "unsnat").transmitted(bridge);
    w.packet.src = front;
    w.ended(port, "undnat").transmitted(port).delivered((0, 3, ETH0)).confirm();
    let joined = w.check();
    assert_eq!((joined.exchanges[0].outcome, joined.exchanges[0].notes.len()), (Outcome::Delivered, 0));
}

#[test]
fn tunnels() {
    for kind in [Encapsulation::Ipip, Encapsulation::Vxlan] {
        let mut w = two_nodes();
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1)));
        w.wrapped((0, 0, TUNL0), kind, host(1), (0, 0, ENS5));
        w.received((1, 0, ENS5)).unwrapped((1, 0, TUNL0)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
        w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1)));
        w.wrapped((1, 0, TUNL0), kind, host(0), (1, 0, ENS5));
        w.received((0, 0, ENS5)).unwrapped((0, 0, TUNL0)).routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
        w.answer(RouteKind::Unicast, None);
        let joined = w.check();
        let e = &joined.exchanges[0];
        assert_eq!(e.notes, [""; 0]);
        let wrapped: Vec<_> = e.request.hops.iter().filter(|h| h.dst == host(1)).map(|h| h.action).collect();
        assert_eq!(wrapped, [Action::Encapsulated, Action::Transmitted, Action::Received]);
        assert_eq!(joined.smallest_mtu, Some(8981));
        assert_eq!(joined.smallest_mtu_at, ["node0 tunl0", "node1 tunl0"]);
        assert_eq!(joined.routers, [host(0), host(1), pod(1, 1)]);
    }
}

/// Pod 1 of node 0 asks the Internet.
pub(super) fn out_and_back(w: &mut Walk, seq: u16) {
    let (inside, outside) = ((0, 0, veth(1)), (0, 0, ENS5));
    w.request(seq).sent((0, 1, ETH0)).received(inside).masqueraded(outside, host(0), 4711).wait(9_000_000);
    w.reply().decrement().received(outside).unmasqueraded(outside, inside, pod(0, 1)).delivered((0, 1, ETH0)).confirm();
}

#[test]
fn masqueraded_out_and_back_with_another_id() {
    let mut w = Walk::new(1, pod(0, 1), ip("8.8.8.8"));
    out_and_back(&mut w, 1);
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    let e = &joined.exchanges[0];
    assert_eq!((e.outcome, &e.notes[..]), (Outcome::Delivered, &[][..]));
    let nat = |hops: &[crate::path::model::Hop], action| {
        let hop = hops.iter().find(|h| h.action == action).expect("a rewrite");
        assert_eq!(hop.basis, Basis::Observed);
        let nat = hop.detail.nat.clone().expect("both sides");
        (nat.before.src, nat.before.dst, nat.before.src_port, nat.after.src, nat.after.dst, nat.after.src_port)
    };
    let (me, node, there) = (pod(0, 1), host(0), ip("8.8.8.8"));
    let snat = nat(&e.request.hops, Action::Snat);
    assert_eq!(snat, (me, there, Some(77), node, there, Some(4711)));
    let unsnat = nat(&e.reply.hops, Action::Unsnat);
    assert_eq!(unsnat, (there, node, Some(4711), there, me, Some(77)));
    assert!(share(e, |of| matches!(of, ShareOf::Beyond { .. })) >= 9_000_000);
    let questions = route_questions(&w.evidence.nodes[0].records, &w.evidence.nodes[0].facts.namespaces);
    let asked: Vec<_> = questions.iter().map(|q| (q.src, q.dst, q.in_ifindex)).collect();
    assert_eq!(asked, [(me, there, Some(veth(1))), (there, me, Some(ENS5))]);
}

#[test]
fn the_time_beyond_is_known_whatever_the_answers_ttl() {
    let mut w = Walk::new(1, pod(0, 1), ip("8.8.8.8"));
    let (inside, outside) = ((0, 0, veth(1)), (0, 0, ENS5));
    w.request(1).sent((0, 1, ETH0)).received(inside).masqueraded(outside, host(0), 4711).wait(9_000_000);
    w.reply();
    w.packet.ttl = 117;
    w.received(outside).unmasqueraded(outside, inside, pod(0, 1)).delivered((0, 1, ETH0)).confirm();
    let e = &w.check().exchanges[0];
    assert!(share(e, |of| matches!(of, ShareOf::Beyond { .. })) >= 9_000_000, "{:?}", e.shares);
    assert!(e.shares.iter().all(|share| share.of != ShareOf::Unattributed), "{:?}", e.shares);
}

#[test]
fn a_source_rewritten_between_pods_is_noted() {
    let mut w = two_nodes();
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).masqueraded((0, 0, ENS5), host(0), 4711);
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5));
    w.received((0, 0, ENS5)).unmasqueraded((0, 0, ENS5), (0, 0, veth(1)), pod(0, 1)).delivered((0, 1, ETH0)).confirm();
    let e = &w.check().exchanges[0];
    let begins = format!("SNAT between pods, on node0: {} sees {}, not {};", pod(1, 1), host(0), pod(0, 1));
    assert_eq!((e.outcome, e.notes.len()), (Outcome::Delivered, 1));
    assert!(e.notes[0].starts_with(&begins), "{}", e.notes[0]);
}

#[test]
fn passive_finds_the_same_without_probes_even_where_the_id_changes() {
    let mut w = Walk::new(1, pod(0, 1), ip("8.8.8.8"));
    out_and_back(&mut w, 1);
    out_and_back(&mut w, 2);
    w.evidence.probes.clear();
    let joined = w.check();
    assert_eq!(joined.exchanges.len(), 2);
    assert!(joined.exchanges.iter().all(|e| e.outcome == Outcome::Delivered));
    // Without the conntrack records too.
    w.evidence.nodes[0].records.retain(|r| matches!(r, Record::Sighting(_)));
    assert_eq!(w.join().exchanges.len(), 2);
}

#[test]
fn passive_does_not_merge_equal_packets_far_apart() {
    let mut w = two_nodes();
    for _ in 0..2 {
        cross_node(&mut w, 1);
        w.wait(10_000_000_000);
    }
    w.evidence.probes.clear();
    for node in &mut w.evidence.nodes {
        for record in &mut node.records {
            let Record::Sighting(s) = record else { continue };
            let L4::Icmp { nonce, .. } = &mut s.packet.l4 else { continue };
            *nonce = 0;
        }
    }
    assert_eq!(w.check().exchanges.len(), 2);
}

#[test]
fn passive_leaves_out_what_began_before_recording_or_is_another_flows() {
    let mut w = two_nodes();
    let watched_from = |w: &mut Walk, node: usize| {
        // Under way: the first node's session was not yet armed.
        let before = w.evidence.nodes[node].records.len();
        cross_node(w, 1);
        w.evidence.nodes[node].records.truncate(before);
    };
    watched_from(&mut w, 0);
    w.expected = [Vec::new(), Vec::new()];
    cross_node(&mut w, 2);
    w.evidence.probes.clear();
    let joined = w.check();
    assert_eq!(joined.exchanges.iter().map(|e| (e.seq, e.outcome)).collect::<Vec<_>>(), [(2, Outcome::Delivered)]);
    // Where records of that node are missing anyway, nobody knows when it began.
    w.evidence.nodes[0].lost = 1;
    assert_eq!(w.join().exchanges.len(), 2);
}

#[test]
fn host_network_source() {
    let mut w = Walk::new(2, host(0), pod(1, 1));
    w.request(1).sent((0, 0, ENS5)).received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).delivered((0, 0, ENS5)).confirm();
    let joined = w.check();
    assert_eq!((joined.exchanges[0].outcome, joined.exchanges[0].notes.len()), (Outcome::Delivered, 0));
    assert_eq!(joined.exchanges[0].request.hops[0].pod, None);
}

#[test]
fn reply_in_the_requests_memory_and_late_free_of_the_request() {
    let mut w = two_nodes();
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    let (request, skb) = (w.packet.clone(), w.skb);
    w.reply_in_same_memory().sent((1, 1, ETH0)).received((1, 0, veth(1)));
    let reply = std::mem::replace(&mut w.packet, request);
    w.freed(Hook::Consume, (1, 1, ETH0), "icmp_rcv", None);
    (w.packet, w.skb) = (reply, skb);
    w.routed((1, 0, ENS5)).received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.notes.len()), (Outcome::Delivered, 0));
}

#[test]
fn three_nodes_in_a_row_with_clocks_hours_apart() {
    let mut w = Walk::new(3, pod(0, 1), pod(2, 1));
    w.clocks = vec![7_200_000_000_000, 0, 3_600_000_000_000];
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).wait(5_000);
    w.received((1, 0, ENS5)).routed((1, 0, ENS6)).wait(9_000);
    w.received((2, 0, ENS5)).routed((2, 0, veth(1))).delivered((2, 1, ETH0));
    w.reply().sent((2, 1, ETH0)).received((2, 0, veth(1))).routed((2, 0, ENS5)).wait(9_000);
    w.received((1, 0, ENS6)).routed((1, 0, ENS5)).wait(5_000);
    w.received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
    let e = &w.check().exchanges[0];
    assert_eq!(e.notes, [""; 0]);
    let times: Vec<_> = e.request.hops.iter().chain(&e.reply.hops).map(|h| h.at_ns.expect("related")).collect();
    assert!(times.is_sorted(), "{times:?}");
    let last = &e.request.hops[e.request.hops.len() - 1];
    assert!(last.error_ns >= 14_000 && last.error_ns < 20_000, "{}", last.error_ns);
}

#[test]
fn hairpin_through_a_router_that_is_not_traced() {
    let mut w = Walk::new(1, pod(0, 1), pod(0, 2));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).decrement().wait(3_000);
    w.received((0, 0, ENS5)).routed((0, 0, veth(2))).delivered((0, 2, ETH0));
    w.reply().sent((0, 2, ETH0)).received((0, 0, veth(2))).routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
    let e = &w.check().exchanges[0];
    assert_eq!(e.notes, [""; 0]);
    assert_eq!(share(e, |of| matches!(of, ShareOf::Beyond { .. })), 4_000);
}

#[test]
fn a_delay_shows_where_it_is() {
    let run = |in_node: u64, on_wire: u64| {
        let mut w = two_nodes();
        w.clocks = vec![0, 5_000_000_000];
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).wait(in_node).routed((0, 0, ENS5)).wait(on_wire);
        w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
        w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5));
        w.received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0)).confirm();
        let joined = w.check();
        let e = &joined.exchanges[0];
        let wire = share(e, |of| matches!(of, ShareOf::Wire { .. }));
        (share(e, is_node("node0")), wire, share(e, is_node("node1")))
    };
    let (a, wire, b) = run(0, 0);
    assert_eq!(run(5_000_000, 0), (a + 5_000_000, wire, b));
    assert_eq!(run(0, 5_000_000), (a, wire + 5_000_000, b));
}

/// Both sessions on one kernel: one pointer all the way, and the first node sees the free that happens on the second.
#[test]
fn shared_kernel() {
    let mut w = two_nodes();
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.freed(Hook::Consume, (1, 1, ETH0), "icmp_rcv", None).freed(Hook::Consume, (0, 0, ENS5), "icmp_rcv", None);
    w.reply_in_same_memory().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5));
    w.received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0));
    w.freed(Hook::Drop, (0, 1, ETH0), "icmp_rcv", None).freed(Hook::Drop, (1, 0, ENS5), "icmp_rcv", None).confirm();
    assert_eq!(w.check().exchanges[0].notes, [""; 0]);
    assert_eq!(w.source(), pod(0, 1));
}

/// A service's address is translated on the client's node, and back on the reply.
#[test]
fn service_address() {
    let service = ip("10.96.0.10");
    let mut w = Walk::new(2, pod(0, 1), service);
    let (inside, wire) = ((0, 0, veth(1)), (0, 0, ENS5));
    w.request(1).sent((0, 1, ETH0)).received(inside).ended(inside, "dnat");
    w.packet.dst = pod(1, 1);
    w.conntrack = Some(CtDirection::Original);
    w.routed(wire).received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).received(wire);
    w.decrement().ended(inside, "routed").ended(inside, "undnat");
    w.packet.src = service;
    w.conntrack = Some(CtDirection::Reply);
    w.transmitted(inside).delivered((0, 1, ETH0)).confirm();
    w.answer(RouteKind::Unicast, None);
    let joined = w.check();
    let e = &joined.exchanges[0];
    assert_eq!(e.notes, [""; 0]);
    assert_eq!(joined.routers, [service; 3], "errors come back as from the address that was asked");
    let routed = e.request.hops.iter().find(|h| h.action == Action::Routed).expect("a routed hop");
    assert_eq!(routed.detail.route.as_deref(), Some("route to 100.64.1.11"), "routing sees the translated address");
    let undnat = e.reply.hops.iter().find(|h| h.action == Action::Undnat).expect("a rewrite");
    assert_eq!((undnat.src, undnat.dst), (service, pod(0, 1)));
}

/// No hook saw the packet before its source was rewritten: conntrack tells.
#[test]
fn host_network_source_behind_snat() {
    let mut w = Walk::new(1, host(0), ip("8.8.8.8"));
    let wire = (0, 0, ENS5);
    let new = ip("172.20.99.1");
    w.request(1).ended(wire, "sent").ended(wire, "routed").ended(wire, "snat");
    w.packet.src = new;
    w.conntrack = Some(CtDirection::Original);
    w.translation(wire, host(0), new, 77);
    w.queue(wire).xmit(wire).ended(wire, "lost").answer(RouteKind::Unicast, None);
    let e = &w.check().exchanges[0];
    assert_eq!((e.request.hops[1].src, e.request.hops[2].src), (host(0), new));
    assert_eq!(e.outcome, Outcome::Lost);
}

/// A client that is on no traced node: what can be measured is from where its packets come in until the answers leave there.
#[test]
fn a_source_outside_of_all_nodes() {
    let client = ip("203.0.113.9");
    let mut w = Walk::new(2, client, pod(1, 1));
    let edge = (0, 0, ENS5);
    w.request(1).received(edge);
    let came = w.now;
    w.routed(edge).received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).received(edge).routed(edge);
    w.evidence.probes.clear();
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.rtt_at.as_deref()), (Outcome::Delivered, Some("node0 ens5")));
    assert_eq!(e.shares.len(), 3, "two nodes and a wire: {:?}", e.shares);
    assert!(e.rtt_ns.is_some_and(|ns| ns > 0 && ns <= w.now - came), "{:?}", e.rtt_ns);
    // Another interface is another edge.
    let mut w = Walk::new(1, client, pod(0, 1));
    w.request(1).received(edge).routed((0, 0, veth(1))).delivered((0, 1, ETH0));
    w.reply().sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS6));
    w.evidence.probes.clear();
    assert_eq!(w.check().exchanges[0].rtt_ns, None);
    // Seen until another node recorded for certain: it may have come by there.
    w.evidence.nodes[0].alone_ns = Some(came - 1);
    assert_eq!(w.join().exchanges.len(), 1);
    w.evidence.nodes[0].alone_ns = Some(w.now);
    assert_eq!(w.join().exchanges.len(), 0);
}
