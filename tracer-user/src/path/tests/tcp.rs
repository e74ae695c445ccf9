//! TCP and UDP: probes that are answered, refused or filtered, and connections that others make.

use super::cases::two_nodes;
use crate::{
    event::{Hook, L4},
    node::facts::{RouteKind, Rule, RuleEngine, RuleHit, RuleVerdict},
    path::{
        Answer,
        model::{Action, Direction, DropCause, Outcome, Segmentation, What},
        testing::{ENS5, ETH0, Kind, PORT, Walk, host, ip, pod, six, tcp, veth},
    },
};

/// A rule that met a packet in the namespace `at`: node, and which.
fn rule_in(w: &Walk, (node, netns): (usize, usize), verdict: RuleVerdict) -> RuleHit {
    RuleHit {
        netns: w.evidence.nodes[node].facts.namespaces[netns].inode,
        engine: RuleEngine::Iptables,
        family: "ip".to_owned(),
        table: "filter".to_owned(),
        chain: "a".to_owned(),
        hook: None,
        way: vec!["a".to_owned()],
        rule: Some(Rule { position: 1, handle: None, text: String::new(), comment: None }),
        verdict,
        conditions: Vec::new(),
        understood: true,
        counted: true,
        packets: 1,
        traced: 0,
    }
}

pub(super) fn probes(kind: Kind) -> Walk {
    Walk { kind, ..two_nodes() }
}

pub(super) fn there(w: &mut Walk) -> &mut Walk {
    w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0))
}

pub(super) fn back(w: &mut Walk) -> &mut Walk {
    w.sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5));
    w.received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0))
}

pub(super) fn answered(w: &mut Walk, answer: Answer) {
    w.confirm();
    w.evidence.probes.last_mut().expect("a probe").answer = Some(answer);
}

fn set_flags(w: &mut Walk, new: u8) {
    let L4::Tcp { flags, .. } = &mut w.packet.l4 else { panic!("TCP walks") };
    *flags = new;
}

#[test]
fn an_open_port_and_the_sources_own_reset() {
    let mut w = probes(Kind::Tcp);
    there(w.request(1));
    back(w.reply());
    answered(&mut w, Answer::SynAck);
    // The pod's kernel knows nothing of the connection.
    w.back = false;
    w.packet.l4 = tcp((40_001, PORT), (0xabcd_0002, 0), 4, 0);
    (w.packet.src, w.packet.dst, w.packet.ttl) = (pod(0, 1), pod(1, 1), 64);
    let expected = w.expected.clone();
    there(&mut w);
    w.expected = expected;
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, &e.notes[..], e.what), (Outcome::Delivered, &[][..], None));
}

#[test]
fn a_closed_port_is_refused_by_its_pod() {
    for told in [true, false] {
        let mut w = probes(Kind::Tcp);
        there(w.request(1)).freed(Hook::Drop, (1, 1, ETH0), "tcp_v4_rcv", Some("NO_SOCKET"));
        w.reply();
        set_flags(&mut w, 0x14);
        back(&mut w);
        if told {
            answered(&mut w, Answer::Reset);
        }
        let joined = w.check();
        let e = &joined.exchanges[0];
        assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, None));
        let rejection = e.rejection.as_ref().expect("an answer");
        assert_eq!(rejection.meaning, "connection refused: nothing listens on port 8080");
        assert_eq!((rejection.pod.clone(), rejection.node.as_deref()), (Some(pod(1, 1).to_string()), Some("node1")));
        assert_eq!(joined.routers.last(), Some(&pod(1, 1)));
    }
}

#[test]
fn a_reset_in_the_destinations_name_is_told_from_its_own() {
    let mut w = probes(Kind::Tcp);
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
    w.freed(Hook::Drop, (1, 0, ENS5), "nf_hook_slow", Some("NETFILTER_DROP")).ended((1, 0, ENS5), "dropped");
    w.reply();
    set_flags(&mut w, 0x14);
    w.transmitted((1, 0, ENS5)).received((0, 0, ENS5)).routed((0, 0, veth(1))).delivered((0, 1, ETH0));
    answered(&mut w, Answer::Reset);
    let joined = w.join();
    let e = &joined.exchanges[0];
    assert_eq!((e.outcome, joined.routers.contains(&pod(1, 1))), (Outcome::Rejected, false));
    let rejection = e.rejection.as_ref().expect("an answer");
    assert!(rejection.meaning.contains("a firewall rule, not the destination"), "{}", rejection.meaning);
    assert_eq!(e.failed_direction, Some(Direction::Request));
    assert_eq!(e.request.hops.last().map(|h| h.action), Some(Action::Dropped));
    assert!(e.notes.is_empty(), "the reset began where the rule is: {:?}", e.notes);
    assert_eq!((rejection.pod.as_deref(), rejection.node.as_deref()), (None, Some("node1")));
}

/// What a rule with `tcp-reset` does at the destination looks like a closed port to all but its kernel.
#[test]
fn a_reset_by_a_rule_at_the_destination_is_no_closed_port() {
    let mut w = probes(Kind::Tcp);
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5));
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).received((1, 1, ETH0));
    w.freed(Hook::Drop, (1, 1, ETH0), "nf_hook_slow", None).ended((1, 1, ETH0), "dropped");
    w.reply();
    set_flags(&mut w, 0x14);
    back(&mut w);
    answered(&mut w, Answer::Reset);
    let hit = |verdict| rule_in(&w, (1, 1), verdict);
    let [rejects, drops, answers] = [
        RuleVerdict::Reject("tcp-reset".into()),
        RuleVerdict::Drop,
        RuleVerdict::Reject("icmp-port-unreachable".into()),
    ]
    .map(hit);
    w.evidence.nodes[1].facts.rules_complete = vec![rejects.netns];
    w.evidence.nodes[1].facts.rules = vec![drops, answers, rejects];
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, Some(Direction::Request)));
    let rejection = e.rejection.as_ref().expect("an answer");
    assert_eq!(
        rejection.meaning,
        format!("TCP reset by a firewall rule at {} itself (whether the port is open is not known)", pod(1, 1))
    );
    let drop = e.request.hops.last().and_then(|h| h.detail.drop.clone()).expect("a drop");
    assert!(drop.rule_known && drop.why == "netfilter reject rule", "{drop:?}");
    assert_eq!(drop.rules[0].rejects_with.as_deref(), Some("tcp-reset"));
}

/// Whoever sent it, nobody saw TCP take the segment.
#[test]
fn a_reset_whose_cause_was_not_seen_is_left_open() {
    let mut w = probes(Kind::Tcp);
    there(w.request(1));
    w.reply();
    set_flags(&mut w, 0x14);
    back(&mut w);
    let e = &w.check().exchanges[0];
    let meaning = &e.rejection.as_ref().expect("an answer").meaning;
    assert!(meaning.ends_with("(TCP reset): nothing listens there, or a rule there refuses"), "{meaning}");
}

#[test]
fn a_filtered_port_is_not_refused() {
    let mut w = probes(Kind::Tcp);
    w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
    w.freed(Hook::Drop, (1, 0, ENS5), "nf_hook_slow", Some("NETFILTER_DROP")).ended((1, 0, ENS5), "dropped");
    let e = &w.check().exchanges[0];
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
    assert!(e.rejection.is_none());
}

#[test]
fn a_syn_ack_that_is_sent_again() {
    let mut w = probes(Kind::Tcp);
    there(w.request(1));
    w.reply();
    let packet = w.packet.clone();
    w.sent((1, 1, ETH0)).received((1, 0, veth(1))).routed((1, 0, ENS5));
    // That one was lost on the wire.
    w.expected[1].clear();
    (w.packet, w.skb) = (packet, w.skb + 0x100);
    back(w.wait(1_000_000_000));
    answered(&mut w, Answer::SynAck);
    let e = &w.check().exchanges[0];
    assert_eq!(e.outcome, Outcome::Delivered);
    assert!(e.notes[0].contains("seen 2 times, and 1 of them came through"), "{:?}", e.notes);
}

#[test]
fn a_closed_udp_port_answers_with_icmp() {
    for v6 in [false, true] {
        let family = |address| if v6 { six(address) } else { address };
        let (source, destination) = (family(pod(0, 1)), family(pod(1, 1)));
        let mut w = Walk { kind: Kind::Udp, ..Walk::new(2, source, destination) };
        for seq in 1..=2 {
            there(w.request(seq));
            back(refused(&mut w));
        }
        w.expected[1].clear();
        let joined = w.check();
        for e in &joined.exchanges {
            assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, Some(Direction::Request)), "{:?}", e.notes);
            let rejection = e.rejection.as_ref().expect("an answer");
            assert_eq!(rejection.meaning, "port unreachable: nothing listens on port 8080");
            assert!(rejection.arrived);
            // The error crossed the wire back: that tells how far apart the nodes' clocks are.
            assert!(e.request.hops.iter().all(|hop| hop.at_ns.is_some()), "{:?}", e.request.hops);
        }
    }
}

/// The destination answers "port unreachable" to the datagram that came to it.
fn refused(w: &mut Walk) -> &mut Walk {
    let (src, dst) = (w.packet.dst, w.packet.src);
    let (len, id) = (u64::from(w.packet.ip_len), u64::from(w.packet.ip_id));
    let (code, nonce) = match dst.is_ipv6() {
        false => ((3, 3), [0x4500, len, id, 0x4000]),
        true => ((1, 4), [0x6000, 0, len - 40, 0x1140]),
    };
    let nonce = nonce.into_iter().fold(0, |all, word| all << 16 | word);
    w.packet.l4 = L4::Icmp { kind: code.0, code: code.1, id: 0, seq: 0, nonce };
    (w.packet.src, w.packet.dst, w.packet.ttl, w.packet.ip_id) = (src, dst, 64, 99);
    (w.back, w.skb) = (true, w.skb + 0x100);
    w
}

#[test]
fn without_drop_reasons_the_answer_says_why_udp_freed_a_datagram() {
    for answers in [true, false] {
        let mut w = Walk { kind: Kind::Udp, ..Walk::new(2, pod(0, 1), pod(1, 1)) };
        there(w.request(1));
        w.expected[0].pop();
        w.freed(Hook::Drop, (1, 1, ETH0), "__udp4_lib_rcv", None);
        if answers {
            w.ended((1, 1, ETH0), "dropped");
            back(refused(&mut w));
            w.expected[1].clear();
        }
        let e = &w.check().exchanges[0];
        let drop = e.request.hops.last().and_then(|hop| hop.detail.drop.as_ref());
        if answers {
            assert_eq!((e.outcome, e.failed_direction), (Outcome::Rejected, Some(Direction::Request)), "{:?}", e.notes);
            assert_eq!(drop.map(|drop| drop.cause), Some(DropCause::PortClosed));
            assert!(e.notes.is_empty(), "{:?}", e.notes);
        } else {
            assert_eq!((e.outcome, drop), (Outcome::Incomplete, None));
        }
    }
}

#[test]
fn a_datagram_that_is_sent_again_has_the_only_reply() {
    let mut w = Walk { kind: Kind::Udp, ..Walk::new(2, pod(0, 1), pod(1, 1)) };
    for seq in 1..=2 {
        w.request(seq);
        let L4::Udp { src_port, .. } = &mut w.packet.l4 else { panic!("a datagram") };
        *src_port = 40_000;
        match seq {
            // The first is lost on the wire.
            1 => w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).wait(5_000_000),
            _ => back(there(&mut w).reply()),
        };
    }
    w.evidence.probes.clear();
    let joined = w.join();
    let outcomes: Vec<_> = joined.exchanges.iter().map(|e| (e.seq, e.outcome)).collect();
    assert_eq!(outcomes, [(1, Outcome::Lost), (2, Outcome::Delivered)], "{:#?}", joined.exchanges);
}

#[test]
fn of_a_bulk_transfer_the_first_exchanges_are_told() {
    let mut w = watched();
    for i in 0..1_010u16 {
        segment(&mut w, true, (DATA + 100 * u32::from(i), SERVER), 100, 1 + i);
        w.sent((0, 1, ETH0)).received((0, 0, veth(1)));
    }
    let joined = w.join();
    assert_eq!(joined.exchanges.len(), 1_000);
    assert_eq!(joined.warnings[0], "11 more exchanges were seen: only the first 1000 are told");
}

/// A connection that others make: SYN, SYN+ACK, a request in `sizes`, its acknowledgement.
pub(super) fn watched() -> Walk {
    let mut w = probes(Kind::Tcp);
    there(w.request(1));
    back(w.reply());
    w.evidence.probes.clear();
    w
}

/// A data segment of the source's, or an acknowledgement of it.
pub(super) fn segment(w: &mut Walk, from_source: bool, (seq, ack): (u32, u32), payload: u16, ip_id: u16) {
    let (a, b) = (pod(0, 1), pod(1, 1));
    let (src, dst, ports) = if from_source { (a, b, (40_001, PORT)) } else { (b, a, (PORT, 40_001)) };
    w.packet.l4 = tcp(ports, (seq, ack), 0x10, payload);
    (w.packet.src, w.packet.dst, w.packet.ttl) = (src, dst, 64);
    (w.packet.ip_id, w.packet.ip_len) = (ip_id, 52 + payload);
    (w.back, w.skb) = (!from_source, w.skb + 0x100);
}

pub(super) const DATA: u32 = 0xabcd_0002;
pub(super) const SERVER: u32 = 0x7000_0001;

#[test]
fn a_watched_handshake_and_data_with_its_acknowledgement() {
    let mut w = watched();
    segment(&mut w, true, (DATA, SERVER), 100, 1);
    there(&mut w);
    segment(&mut w, true, (DATA + 100, SERVER), 50, 2);
    there(&mut w);
    // One segment back acknowledges both.
    segment(&mut w, false, (SERVER, DATA + 150), 0, 7);
    let replies = w.expected[1].len();
    back(&mut w);
    let again = w.expected[1][replies..].to_vec();
    w.expected[1].extend(again);
    let joined = w.check();
    let what: Vec<_> = joined.exchanges.iter().map(|e| (e.seq, e.what, e.outcome)).collect();
    let delivered = Outcome::Delivered;
    assert_eq!(
        what,
        [(1, Some(What::Handshake), delivered), (2, Some(What::Data), delivered), (3, Some(What::Data), delivered)]
    );
    assert!(joined.exchanges.iter().all(|e| e.notes.is_empty()), "{:?}", joined.exchanges[0].notes);
}

#[test]
fn a_retransmission_says_what_became_of_the_first() {
    let mut w = watched();
    segment(&mut w, true, (DATA, SERVER), 100, 1);
    w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).ended((0, 0, ENS5), "lost");
    w.wait(204_000_000);
    segment(&mut w, true, (DATA, SERVER), 100, 2);
    there(&mut w);
    segment(&mut w, false, (SERVER, DATA + 100), 0, 7);
    back(&mut w);
    w.answer(RouteKind::Unicast, Some(host(1)));
    let joined = w.check();
    let [_, first, second] = joined.exchanges.as_slice() else { panic!("{:?}", joined.exchanges.len()) };
    assert_eq!((first.outcome, first.failed_direction), (Outcome::Lost, Some(Direction::Request)));
    assert_eq!(second.outcome, Outcome::Delivered);
    assert!(
        second.notes[0].starts_with("a retransmission, 204.")
            && second.notes[0].ends_with("exchange 2, which was lost"),
        "{:?}",
        second.notes
    );
}

/// One buffer of 4000 bytes, cut at `ens5` of the first node, and joined with what follows on the second.
#[test]
fn a_super_packet_is_followed_by_its_first_byte() {
    let mut w = watched();
    segment(&mut w, true, (DATA, SERVER), 12_000, 10);
    w.sent((0, 1, ETH0)).received((0, 0, veth(1))).decrement();
    let whole = w.packet.clone();
    let out = (0, 0, ENS5);
    w.queue(out).ended(out, "routed").ended(out, "transmitted");
    for i in 0..3 {
        let seq = DATA + 4_000 * u32::from(i);
        w.packet.l4 = tcp((40_001, PORT), (seq, SERVER), 0x10, 4_000);
        (w.packet.ip_id, w.packet.ip_len, w.skb) = (10 + i, 4_052, w.skb + 0x100);
        w.xmit(out);
    }
    w.packet = whole;
    w.received((1, 0, ENS5)).routed((1, 0, veth(1))).delivered((1, 1, ETH0));
    segment(&mut w, false, (SERVER, DATA + 12_000), 0, 7);
    back(&mut w);
    let joined = w.check();
    assert_eq!(joined.exchanges.len(), 2, "the segments are no exchanges of their own");
    let e = &joined.exchanges[1];
    assert_eq!((e.outcome, &e.notes[..]), (Outcome::Delivered, &[][..]));
    let sizes: Vec<_> = e.request.hops.iter().filter_map(|h| Some((h.action, h.detail.segments.clone()?))).collect();
    let sizes: Vec<_> = sizes.into_iter().map(|(action, s)| (action, s.how, s.before, s.bytes)).collect();
    assert_eq!(
        sizes,
        [
            (Action::Sent, Segmentation::Super, 12_000, 12_000),
            (Action::Transmitted, Segmentation::Segmented, 12_000, 4_000),
            (Action::Received, Segmentation::Joined, 4_000, 12_000),
        ]
    );
}

#[test]
fn watched_datagrams_pair_with_the_next_one_back() {
    let mut w = probes(Kind::Udp);
    for seq in 1..=2 {
        there(w.request(seq));
        back(w.reply());
    }
    w.evidence.probes.clear();
    let joined = w.check();
    let what: Vec<_> = joined.exchanges.iter().map(|e| (e.what, e.outcome)).collect();
    assert_eq!(what, [(Some(What::Datagram), Outcome::Delivered); 2]);
}

#[test]
fn a_masqueraded_connection_is_one_also_where_the_port_changes() {
    for kind in [Kind::Tcp, Kind::Udp] {
        let mut w = Walk { kind, ..Walk::new(1, pod(0, 1), ip("8.8.8.8")) };
        super::cases::out_and_back(&mut w, 1);
        let probe = w.evidence.probes.pop().expect("a probe");
        assert_eq!(w.check().exchanges[0].outcome, Outcome::Delivered);
        // Without the conntrack records too.
        w.evidence.nodes[0].records.retain(|r| matches!(r, crate::event::Record::Sighting(_)));
        assert_eq!(w.check().exchanges.len(), 1);
        w.evidence.probes.push(probe);
        assert_eq!(w.check().exchanges[0].outcome, Outcome::Delivered);
    }
}
