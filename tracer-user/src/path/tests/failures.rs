//! Ways that end badly, one test each.

use std::net::IpAddr;

use super::cases::{cross_node, two_nodes};
use crate::{
    event::{Hook, L4, Record},
    node::facts::RouteKind,
    path::{
        join_within,
        model::{Action, Basis, Direction, Hop, Outcome},
        testing::{ENS5, ETH0, Kind, NoNames, Walk, host, ip, pod, veth},
    },
    session::Flow,
};

fn last(hops: &[Hop]) -> &Hop {
    hops.last().expect("hops")
}

pub(super) fn to_the_wire(w: &mut Walk) -> &mut Walk {
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5))
}

#[test]
fn blackhole() {
    let mut w = two_nodes();
    w.ends.destination.address = ip("100.64.1.99");
    to_the_wire(&mut w).received((1, 0, ENS5));
    w.freed(Hook::Drop, (1, 0, ENS5), "ip_error", Some("IP_INNOROUTES")).ended((1, 0, ENS5), "dropped");
    // The session of the first node, on the same kernel, sees that free too.
    w.freed(Hook::Drop, (0, 0, ENS5), "ip_error", Some("IP_INNOROUTES"));
    w.answer(RouteKind::Blackhole, None);
    let joined = w.check();
    let e = &joined.exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
    let hop = last(&e.request.hops);
    let drop = hop.detail.drop.clone().expect("a drop");
    assert_eq!((&*hop.node, drop.why.as_str(), hop.basis), ("node1", "blackhole route", Basis::Observed));
    assert_eq!(hop.detail.route.as_deref(), Some("route to 100.64.1.99"));
    assert_eq!(joined.routers, [host(0)]);
}

#[test]
fn what_dies_after_its_ttl_went_down_was_routed_before() {
    let mut w = two_nodes();
    to_the_wire(&mut w).received((1, 0, ENS5)).decrement();
    w.freed(Hook::Drop, (1, 0, ENS5), "nft_do_chain", Some("NETFILTER_DROP"));
    w.ended((1, 0, veth(1)), "routed").ended((1, 0, ENS5), "dropped");
    w.answer(RouteKind::Unicast, None);
    for answer in w.evidence.nodes.iter_mut().flat_map(|n| &mut n.facts.routes) {
        let route = answer.route.as_mut().expect("all are answered");
        route.out_ifindex = answer.question.in_ifindex.map(|i| if i == ENS5 { veth(1) } else { ENS5 });
    }
    let joined = w.check();
    assert_eq!(joined.exchanges[0].outcome, Outcome::Dropped);
    // It would have answered a probe whose TTL ran out.
    assert_eq!(joined.routers, [host(0), host(1)]);
}

#[test]
fn netfilter_without_reasons_is_inferred_from_the_function() {
    let mut w = two_nodes();
    to_the_wire(&mut w).received((1, 0, ENS5));
    w.freed(Hook::Drop, (1, 0, ENS5), "nf_hook_slow", None).ended((1, 0, ENS5), "dropped");
    let e = &w.check().exchanges[0];
    let hop = last(&e.request.hops);
    let drop = hop.detail.drop.clone().expect("a drop");
    assert_eq!((drop.why.as_str(), drop.basis, drop.reason), ("netfilter rule", Basis::Inferred, None));
    assert_eq!(hop.basis, Basis::Observed, "that it was dropped");
}

#[test]
fn dropped_at_the_destination_by_a_rule() {
    let mut w = two_nodes();
    to_the_wire(&mut w).received((1, 0, ENS5)).routed((1, 0, veth(1))).received((1, 1, ETH0));
    w.freed(Hook::Drop, (1, 1, ETH0), "nf_hook_slow", Some("NETFILTER_DROP")).ended((1, 1, ETH0), "dropped");
    assert_eq!(w.check().exchanges[0].outcome, Outcome::Dropped);
}

#[test]
fn request_lost_on_the_wire() {
    let mut w = two_nodes();
    to_the_wire(&mut w).ended((0, 0, ENS5), "lost");
    // What the kernel shared with the wire did with it.
    w.freed(Hook::Drop, (0, 0, ENS5), "ip_rcv_core", Some("OTHERHOST")).answer(RouteKind::Unicast, Some(host(1)));
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Lost, Some(Direction::Request)));
    let hop = last(&e.request.hops);
    assert_eq!(hop.basis, Basis::Inferred);
    assert_eq!(hop.detail.text.as_deref(), Some("left node0 ens5, never arrived at node1 ens5"));
    w.evidence.nodes[1].lost = 1;
    assert_eq!(w.join().exchanges[0].outcome, Outcome::Incomplete, "it may have arrived");
    assert_eq!(w.join().warnings, ["node1: 1 events could not be recorded; hops may be missing"]);
    w.evidence.nodes[1].unread = 1;
    let joined = w.join();
    assert_eq!(joined.exchanges[0].outcome, Outcome::Incomplete, "it may have arrived unread");
    assert_eq!(joined.warnings, [""; 0], "told by the driver");
}

#[test]
fn what_a_node_could_not_read_is_told_with_its_name() {
    let mut w = two_nodes();
    cross_node(&mut w, 1);
    w.answer(RouteKind::Unicast, None);
    let note =
        "cannot list links, addresses and routes in network namespace 7: the list changed 3 times while it was read";
    w.evidence.nodes[1].facts.notes = vec![note.to_owned()];
    let joined = w.check();
    assert_eq!(joined.exchanges[0].outcome, Outcome::Delivered);
    assert_eq!(joined.warnings, [format!("node1: {note}")]);
}

#[test]
fn reply_lost_on_the_wire_is_dated_by_the_other_exchange() {
    let mut w = two_nodes();
    w.clocks = vec![0, 3_600_000_000_000];
    cross_node(&mut w, 1);
    w.request(2).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    w.reply().sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5)).ended((1, 0, ENS5), "lost");
    let e = &w.check().exchanges[1];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Lost, Some(Direction::Reply)));
    let delivered = last(&e.request.hops);
    assert_eq!((delivered.action, delivered.basis), (Action::Delivered, Basis::Observed));
    assert!(e.reply.hops.iter().all(|h| h.at_ns.is_some()));
    assert_eq!((e.rtt_ns, e.shares.len()), (None, 0));
}

#[test]
fn lost_beyond_the_traced_nodes() {
    let mut w = Walk::new(1, pod(0, 1), ip("8.8.8.8"));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).masqueraded((0, 0, ENS5), host(0), 5);
    w.ended((0, 0, ENS5), "lost");
    let e = &w.check().exchanges[0];
    let text = last(&e.request.hops).detail.text.clone();
    assert_eq!(text.as_deref(), Some("left node0 ens5; beyond is not traced, no reply came back"));
}

#[test]
fn never_answered() {
    let mut w = two_nodes();
    to_the_wire(&mut w).received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Lost, Some(Direction::Reply)));
    assert_eq!(last(&e.request.hops).basis, Basis::Inferred);
    assert!(last(&e.request.hops).at_ns.is_none(), "no reply: the clocks cannot be related");
}

#[test]
fn rejected_by_an_icmp_error() {
    let mut w = two_nodes();
    to_the_wire(&mut w);
    let (len, id) = (w.packet.ip_len.to_be_bytes(), w.packet.ip_id.to_be_bytes());
    let nonce = u64::from_be_bytes([0x45, 0, len[0], len[1], id[0], id[1], 0x40, 0]);
    w.packet.l4 = L4::Icmp { kind: 3, code: 1, id: 0, seq: 0, nonce };
    (w.packet.src, w.packet.dst) = (ip("172.20.0.99"), pod(0, 1));
    w.queue((0, 0, veth(1)));
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, Some(Direction::Request)));
    let rejection = e.rejection.as_ref().expect("an answer");
    assert_eq!((rejection.from, rejection.meaning.as_str()), (ip("172.20.0.99"), "host unreachable"));
}

/// As with any other reply: of what leaves for a client out there no more can be seen.
#[test]
fn an_icmp_error_that_leaves_for_its_client_has_answered() {
    let mut w = Walk { kind: Kind::Udp, ..Walk::new(1, ip("203.0.113.9"), pod(0, 1)) };
    w.request(1).received((0, 0, ENS5)).routed((0, 0, veth(1))).received((0, 1, ETH0));
    w.freed(Hook::Drop, (0, 1, ETH0), "__udp4_lib_rcv", Some("NO_SOCKET"));
    w.evidence.probes.clear();
    let (len, id) = (w.packet.ip_len.to_be_bytes(), w.packet.ip_id.to_be_bytes());
    let nonce = u64::from_be_bytes([0x45, 0, len[0], len[1], id[0], id[1], 0x40, 0]);
    w.skb += 0x100;
    w.packet.l4 = L4::Icmp { kind: 3, code: 3, id: 0, seq: 0, nonce };
    (w.packet.src, w.packet.dst, w.packet.ttl) = (pod(0, 1), ip("203.0.113.9"), 64);
    w.queue((0, 1, ETH0)).xmit((0, 1, ETH0)).sighting_in((0, 0, veth(1))).decrement();
    w.queue((0, 0, ENS5)).xmit((0, 0, ENS5));
    let joined = w.join();
    let e = &joined.exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, Some(Direction::Request)), "{:?}", e.notes);
    assert!(e.rejection.as_ref().is_some_and(|r| r.arrived && r.fate.is_none()), "{:?}", e.rejection);
}

/// A node that asks by its own SNAT: no hook saw the request with the node's own address, which the error has behind un-SNAT.
#[test]
fn an_error_that_its_senders_own_rules_drop_did_not_arrive() {
    let mut w = Walk { kind: Kind::Udp, ..Walk::new(1, host(0), pod(0, 1)) };
    let hidden = ip("10.244.0.1");
    w.request(1);
    w.packet.src = hidden;
    w.queue((0, 0, veth(1))).xmit((0, 0, veth(1))).received((0, 1, ETH0));
    w.freed(Hook::Drop, (0, 1, ETH0), "__udp4_lib_rcv", Some("NO_SOCKET"));
    let (len, id) = (w.packet.ip_len.to_be_bytes(), w.packet.ip_id.to_be_bytes());
    let nonce = u64::from_be_bytes([0x45, 0, len[0], len[1], id[0], id[1], 0x40, 0]);
    w.skb += 0x100;
    w.packet.l4 = L4::Icmp { kind: 3, code: 3, id: 0, seq: 0, nonce };
    (w.packet.src, w.packet.dst, w.packet.ttl) = (pod(0, 1), hidden, 64);
    w.queue((0, 1, ETH0)).xmit((0, 1, ETH0)).sighting_in((0, 0, veth(1)));
    w.packet.dst = host(0);
    w.freed(Hook::Drop, (0, 0, veth(1)), "nft_do_chain", Some("NETFILTER_DROP"));
    let joined = w.join();
    let rejection = joined.exchanges[0].rejection.as_ref().expect("an answer");
    assert!(!rejection.arrived && rejection.fate.is_some(), "{rejection:?}");
}

/// No hook between tells of the translation then; what its buffer held before does.
#[test]
fn a_datagram_that_dies_of_what_dnat_made_of_it_is_told() {
    for watched in [false, true] {
        let mut w = Walk { kind: Kind::Udp, ..two_nodes() };
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1)));
        let endpoint = ip("10.9.9.9");
        w.packet.dst = endpoint;
        let L4::Udp { dst_port, .. } = &mut w.packet.l4 else { panic!("a datagram") };
        *dst_port = 4998;
        w.freed(Hook::Drop, (0, 0, veth(1)), "ip_error", Some("IP_INADDRERRORS"));
        if watched {
            w.evidence.probes.clear();
        }
        let joined = w.join();
        let [e] = joined.exchanges.as_slice() else { panic!("one exchange: {:?}", joined.exchanges) };
        assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)), "{:?}", e.notes);
        let dnat = e.request.hops.iter().find(|hop| hop.action == Action::Dnat).expect("a translation");
        let nat = dnat.detail.nat.as_ref().expect("its addresses");
        assert_eq!((nat.after.dst, nat.after.dst_port), (endpoint, Some(4998)));
    }
}

/// Two datagrams that an error cannot tell apart: it is about the second, which is not told, and not about the first.
#[test]
fn an_error_about_what_is_not_told_is_about_nothing_else() {
    let mut w = Walk { kind: Kind::Udp, ..two_nodes() };
    let mut begins = Vec::new();
    for seq in [1, 2] {
        w.request(seq);
        w.packet.ip_id = 0;
        w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5));
        begins.push(w.evidence.nodes[0].records.last().expect("it was sent").time_ns());
        w.wait(1_000_000);
    }
    let len = w.packet.ip_len.to_be_bytes();
    let nonce = u64::from_be_bytes([0x45, 0, len[0], len[1], 0, 0, 0x40, 0]);
    w.skb += 0x100;
    w.packet.l4 = L4::Icmp { kind: 3, code: 1, id: 0, seq: 0, nonce };
    (w.packet.src, w.packet.dst) = (ip("172.20.0.99"), pod(0, 1));
    w.queue((0, 0, veth(1)));
    w.evidence.probes.clear();
    let told = |spans: [(u64, u64); 2]| {
        let joined = join_within(&spans, &w.evidence, &w.ends, &NoNames);
        joined.exchanges.iter().map(|e| e.rejection.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(told([(0, u64::MAX); 2]), [false, true]);
    assert_eq!(told([(0, begins[0] + 1), (0, 0)]), [false]);
}

#[test]
fn a_probe_without_sightings_is_an_exchange() {
    let mut w = two_nodes();
    w.request(1);
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.notes.len()), (Outcome::Incomplete, 1));
}

#[test]
fn a_missing_receive_is_noted_and_not_guessed() {
    let mut w = two_nodes();
    cross_node(&mut w, 1);
    w.evidence.nodes[1].lost = 1;
    let receive = |r: &Record| matches!(r, Record::Sighting(s) if s.hook == Hook::Receive && s.ifindex == ENS5);
    w.evidence.nodes[1].records.retain(|r| !receive(r));
    let e = &w.join().exchanges[0];
    assert_eq!(e.outcome, Outcome::Delivered, "the injector says so");
    assert!(e.notes.iter().any(|n| n.contains("node0 ens5 and node1 cali1 were not seen")), "{:?}", e.notes);
    assert!(!e.request.hops.iter().any(|h| *h.node == *"node1" && h.action == Action::Routed));
    assert_eq!(Some(e.shares.iter().map(|s| s.ns).sum()), e.rtt_ns);
}

#[test]
fn a_reply_that_dies_before_its_snat_is_undone_is_not_delivered_to_the_node() {
    let mut w = Walk::new(1, pod(0, 1), ip("8.8.8.8"));
    let outside = (0, 0, ENS5);
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).masqueraded(outside, host(0), 5);
    w.reply().received(outside).freed(Hook::Drop, outside, "nf_hook_slow", None).ended(outside, "dropped");
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Reply)));
}

/// The first node translates; what the second one was asked for decides whether it can be missed there.
#[test]
fn what_a_node_was_not_asked_to_record_is_not_lost_before_it() {
    let mut w = two_nodes();
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).masqueraded((0, 0, ENS5), ip("10.0.0.9"), 5);
    w.ended((0, 0, ENS5), "lost").answer(RouteKind::Unicast, Some(host(1)));
    let flow = |a: IpAddr| Flow { a, b: Some(pod(1, 1)), protocol: 1, a_port: None, b_port: None, one_of: 1 };
    w.evidence.nodes[1].watched = vec![flow(pod(0, 1)), flow(ip("10.0.0.9"))];
    assert_eq!(w.join().exchanges[0].outcome, Outcome::Lost);
    w.evidence.nodes[1].watched.pop();
    let e = w.join().exchanges.remove(0);
    assert_eq!(e.outcome, Outcome::Incomplete);
    let note = format!("it left node0 ens5 as 10.0.0.9 -> {}, which node1 ens5 was not asked to record", pod(1, 1));
    assert!(e.notes[0].contains(&note), "{:?}", e.notes);
}

/// A node that translates learns itself what comes back.
#[test]
fn a_reply_that_its_own_node_translates_is_missed_there() {
    let mut w = Walk::new(2, pod(0, 1), host(1));
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).masqueraded((0, 0, ENS5), host(0), 5);
    w.delivered((1, 0, ENS5)).reply().sent((1, 0, ENS5)).ended((1, 0, ENS5), "routed").ended((1, 0, ENS5), "lost");
    let flow = |a| Flow { a, b: Some(host(1)), protocol: 1, a_port: None, b_port: None, one_of: 1 };
    w.evidence.nodes[0].watched = vec![flow(pod(0, 1))];
    w.evidence.nodes[1].watched = vec![flow(pod(0, 1)), flow(host(0))];
    w.answer(RouteKind::Unicast, None);
    let e = w.join().exchanges.remove(0);
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Lost, Some(Direction::Reply)), "{:?}", e.notes);
    // A node that has not translated it does not know it.
    w.evidence.nodes[0].records.retain(|record| !matches!(record, Record::Translation(_)));
    assert_eq!(w.join().exchanges[0].outcome, Outcome::Incomplete);
}

#[test]
fn what_leaves_with_a_pods_own_address_is_told_with_it() {
    let lost = |destination: &str, name: Option<&str>| {
        let mut w = Walk::new(1, pod(0, 1), ip(destination));
        w.ends.destination.name = name.map(str::to_owned);
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).ended((0, 0, ENS5), "lost");
        let e = w.check().exchanges.remove(0);
        (last(&e.request.hops).detail.text.clone().expect("a sentence"), e.notes.len())
    };
    let own = format!("left node0 ens5 with the pod's own address {} (no SNAT)", pod(0, 1));
    let (text, notes) = lost("8.8.8.8", None);
    assert!(text.starts_with(&own), "{text}");
    assert_eq!(notes, 1);
    assert!(lost("8.8.8.8", Some("dns.google")).0.starts_with(&own), "a host's name makes no difference");
    let (text, notes) = lost("10.96.0.7", Some("default/svc/web"));
    assert_eq!((text.as_str(), notes), ("left node0 ens5; beyond is not traced, no reply came back", 0));
}

#[test]
fn a_wire_that_ends_at_an_xdp_program_may_not_have_lost_it() {
    let mut w = two_nodes();
    to_the_wire(&mut w).ended((0, 0, ENS5), "lost").answer(RouteKind::Unicast, Some(host(1)));
    let notes = |w: &Walk| w.check().exchanges[0].notes.clone();
    assert_eq!(notes(&w), [""; 0]);
    let program = |w: &mut Walk, node: usize, ifindex| {
        let links = &mut w.evidence.nodes[node].facts.namespaces[0].links;
        links.iter_mut().find(|link| link.ifindex == ifindex).expect("a link of the test").xdp = Some(7);
    };
    program(&mut w, 0, ENS5);
    program(&mut w, 1, veth(1));
    assert_eq!(notes(&w), [""; 0], "not on its way");
    program(&mut w, 1, ENS5);
    let note = "node1 ens5 has an XDP program: what that drops or redirects no hook sees, nor does tcpdump";
    assert_eq!(notes(&w), [note]);
}

#[test]
fn what_ends_at_a_veth_whose_other_end_has_an_xdp_program_was_its() {
    let mut w = two_nodes();
    to_the_wire(&mut w).received((1, 0, ENS5)).routed((1, 0, veth(1)));
    w.answer(RouteKind::Unicast, None);
    w.evidence.nodes[1].facts.namespaces[1].links[0].xdp = Some(7);
    let e = &w.check().exchanges[0];
    assert_eq!(e.outcome, Outcome::Incomplete);
    assert!(e.notes.iter().any(|note| note.contains("100.64.1.11 eth0 has an XDP program")), "{:?}", e.notes);
    // Its driver made a new buffer for the program.
    w.freed(Hook::Consume, (1, 0, veth(1)), "skb_pp_cow_data", None).ended((1, 0, veth(1)), "dropped");
    let e = &w.check().exchanges[0];
    let drop = last(&e.request.hops).detail.drop.clone().expect("a drop");
    assert_eq!((drop.why.as_str(), drop.basis), ("XDP program on pod 100.64.1.11 eth0", Basis::Inferred));
    // The kernel names another cause.
    w.evidence.nodes[1].records.pop();
    w.freed(Hook::Drop, (1, 0, veth(1)), "veth_xmit", Some("FULL_RING"));
    let e = &w.check().exchanges[0];
    let drop = last(&e.request.hops).detail.drop.clone().expect("a drop");
    assert_eq!(drop.why, "the interface's queue is full");
}
