//! What looks lost, refused or answered, and may not be.

use super::{
    cases::{cross_node, two_nodes},
    tcp::{DATA, SERVER, back, probes, segment, there, watched},
};
use crate::{
    event::{Hook, L4},
    path::{
        model::{Direction, Exchange, Outcome, What},
        testing::{ENS5, ETH0, Kind, PORT, Walk, pod, tcp, veth},
    },
};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

/// Leaves the first node, and comes nowhere.
fn lost(w: &mut Walk) -> &mut Walk {
    w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5))
}

fn outcomes(exchanges: &[Exchange]) -> Vec<(Outcome, Option<Direction>)> {
    exchanges.iter().map(|e| (e.outcome, e.failed_direction)).collect()
}

fn has_note(e: &Exchange, part: &str) -> bool {
    e.notes.iter().any(|note| note.contains(part))
}

/// Sockets that are not connected send datagrams with IP id 0, and IPv6 has none.
#[test]
fn of_equal_datagrams_nobody_knows_which_was_lost() {
    let mut w = probes(Kind::Udp);
    for first in [true, false] {
        w.request(1);
        w.packet.ip_id = 0;
        if first {
            lost(&mut w);
        } else {
            there(&mut w);
            back(w.reply());
        }
    }
    w.evidence.probes.clear();
    let joined = w.join();
    assert_eq!(outcomes(&joined.exchanges), [(Outcome::Incomplete, None); 2], "{:#?}", joined.exchanges);
    assert!(joined.exchanges.iter().all(|e| has_note(e, "look the same")), "{:?}", joined.exchanges[0].notes);
}

#[test]
fn of_equal_echoes_nobody_knows_which_was_lost() {
    let mut w = two_nodes();
    for first in [true, false] {
        w.request(1);
        let L4::Icmp { nonce, .. } = &mut w.packet.l4 else { panic!("an echo") };
        (*nonce, w.packet.ip_id) = (0, 0);
        if first {
            lost(&mut w).wait(10 * S);
        } else {
            there(&mut w);
            back(w.reply());
        }
    }
    w.evidence.probes.clear();
    assert_eq!(outcomes(&w.join().exchanges), [(Outcome::Incomplete, None); 2]);
}

/// To a segment with an ACK a closed port answers with a RST without one (RFC 9293, 3.10.7.1).
#[test]
fn a_reset_without_an_acknowledgement_answers_the_data_whose_number_it_has() {
    for (seq, outcome) in [(SERVER, Outcome::Rejected), (SERVER + 1, Outcome::Lost)] {
        let mut w = watched();
        segment(&mut w, true, (DATA, SERVER), 100, 1);
        there(&mut w);
        segment(&mut w, false, (SERVER, 0), 0, 0);
        w.packet.l4 = tcp((PORT, 40_001), (seq, 0), 4, 0);
        back(&mut w);
        let joined = w.join();
        let e = &joined.exchanges[1];
        assert_eq!((e.what, e.outcome), (Some(What::Data), outcome), "{:?}", e.notes);
        if outcome == Outcome::Rejected {
            let rejection = e.rejection.as_ref().expect("an answer");
            assert_eq!(rejection.meaning, "connection reset on port 8080: its data were not taken");
        }
    }
}

#[test]
fn a_reset_that_acknowledges_the_data_does_not_say_that_they_were_not_taken() {
    let mut w = watched();
    segment(&mut w, true, (DATA, SERVER), 100, 1);
    there(&mut w);
    segment(&mut w, false, (SERVER, DATA + 100), 0, 0);
    w.packet.l4 = tcp((PORT, 40_001), (SERVER, DATA + 100), 0x14, 0);
    back(&mut w);
    let rejection = w.join().exchanges[1].rejection.clone().expect("an answer");
    assert_eq!(
        rejection.meaning,
        "connection reset on port 8080 after its data had arrived; whether they were read is not known"
    );
}

/// Linux joins neighbouring segments when it sends them again (`tcp_retrans_try_collapse`).
#[test]
fn segments_that_are_sent_again_as_one() {
    // With IP ids, and without as in IPv6.
    for ids in [[1, 2, 3], [0; 3]] {
        let mut w = watched();
        for i in 0..2u16 {
            segment(&mut w, true, (DATA + 100 * u32::from(i), SERVER), 100, ids[usize::from(i)]);
            lost(&mut w);
        }
        w.wait(204 * MS);
        segment(&mut w, true, (DATA, SERVER), 200, ids[2]);
        there(&mut w);
        segment(&mut w, false, (SERVER, DATA + 200), 0, 7);
        back(&mut w);
        let joined = w.join();
        let [_, first, second, again] = joined.exchanges.as_slice() else { panic!("{:#?}", joined.exchanges) };
        assert_eq!((first.outcome, first.failed_direction), (Outcome::Lost, Some(Direction::Request)));
        let fair = if ids[0] == 0 { Outcome::Incomplete } else { Outcome::Lost };
        assert_eq!(second.outcome, fair, "{:?}", second.notes);
        assert_eq!(again.outcome, Outcome::Delivered);
        assert!(has_note(again, "a retransmission"), "{:?}", again.notes);
    }
}

fn stopped(w: &mut Walk, after: [u64; 2]) {
    for (node, after) in after.into_iter().enumerate() {
        w.evidence.nodes[node].stopped_ns = Some(w.now + w.clocks[node] + after);
    }
}

#[test]
fn what_was_on_its_way_when_the_recording_ended_is_not_lost() {
    for (ns, outcome) in [(MS, Outcome::Incomplete), (5 * S, Outcome::Lost)] {
        let mut w = two_nodes();
        lost(w.request(1));
        w.evidence.probes.clear();
        stopped(&mut w, [ns; 2]);
        let e = &w.join().exchanges[0];
        assert_eq!(e.outcome, outcome, "{:?}", e.notes);
        assert_eq!(has_note(e, "before the recording ended"), outcome == Outcome::Incomplete, "{:?}", e.notes);
    }
}

#[test]
fn a_node_that_stopped_before_the_others_does_not_make_losses() {
    for (second, outcome) in [(5 * S, Outcome::Lost), (MS, Outcome::Incomplete), (0, Outcome::Incomplete)] {
        let mut w = two_nodes();
        w.clocks = vec![0, 3_600 * S];
        cross_node(&mut w, 1);
        lost(w.request(2));
        w.evidence.probes.clear();
        stopped(&mut w, [5 * S, second]);
        assert_eq!(w.join().exchanges[1].outcome, outcome);
    }
}

#[test]
fn what_was_not_yet_answered_when_the_recording_ended_is_not_lost() {
    for (ns, outcome) in [(MS, Outcome::Incomplete), (5 * S, Outcome::Lost)] {
        let mut w = two_nodes();
        there(w.request(1));
        w.evidence.probes.clear();
        stopped(&mut w, [ns; 2]);
        let e = &w.join().exchanges[0];
        assert_eq!(e.outcome, outcome);
        assert_eq!(has_note(e, "until the recording ended"), outcome == Outcome::Incomplete, "{:?}", e.notes);
    }
}

#[test]
fn probes_are_waited_for_unless_the_trace_is_interrupted() {
    for (interrupted, outcome) in [(false, Outcome::Lost), (true, Outcome::Incomplete)] {
        let mut w = two_nodes();
        lost(w.request(1));
        stopped(&mut w, [MS; 2]);
        w.evidence.interrupted = interrupted;
        assert_eq!(w.join().exchanges[0].outcome, outcome);
    }
}

/// Two probes from one port, which the kernel chose again.
fn same_port(answered: bool) -> Walk {
    let mut w = probes(Kind::Udp);
    for seq in 1..=2 {
        w.request(seq);
        let L4::Udp { src_port, .. } = &mut w.packet.l4 else { panic!("a datagram") };
        *src_port = 40_000;
        w.evidence.probes.last_mut().expect("a probe").id = 40_000;
        there(&mut w);
        if (seq == 1) == answered {
            back(w.reply()).confirm();
        }
    }
    w
}

#[test]
fn a_reply_to_a_port_that_two_probes_had_is_the_earlier_ones() {
    let joined = same_port(true).join();
    assert_eq!(outcomes(&joined.exchanges), [(Outcome::Delivered, None), (Outcome::Lost, Some(Direction::Reply))]);
}

#[test]
fn a_reply_to_a_port_of_an_unanswered_probe_may_be_late() {
    let joined = same_port(false).join();
    assert_eq!(outcomes(&joined.exchanges), [(Outcome::Incomplete, None); 2]);
    assert!(joined.exchanges.iter().all(|e| has_note(e, "same port")), "{:?}", joined.exchanges[1].notes);
}

#[test]
fn an_echo_reply_that_comes_late_is_a_reply() {
    let mut w = two_nodes();
    there(w.request(1)).wait(5 * S);
    back(w.reply());
    w.evidence.probes.clear();
    assert_eq!(outcomes(&w.check().exchanges), [(Outcome::Delivered, None)]);
}

/// TCP Fast Open (RFC 7413): a server that does not take the data acknowledges the SYN alone.
#[test]
fn a_syn_with_data_is_answered_whether_the_data_are_taken_or_not() {
    for taken in [true, false] {
        let mut w = probes(Kind::Tcp);
        w.request(1);
        let L4::Tcp { payload, seq, .. } = &mut w.packet.l4 else { panic!("a SYN") };
        *payload = 100;
        let seq = *seq;
        there(&mut w).reply();
        let L4::Tcp { ack, .. } = &mut w.packet.l4 else { panic!("a SYN+ACK") };
        *ack = seq + if taken { 101 } else { 1 };
        back(&mut w);
        w.evidence.probes.clear();
        let joined = w.check();
        assert_eq!(outcomes(&joined.exchanges), [(Outcome::Delivered, None)]);
        assert_eq!(has_note(&joined.exchanges[0], "100 bytes of data"), !taken, "{:?}", joined.exchanges[0].notes);
    }
}

#[test]
fn a_request_freed_at_its_destination_for_no_known_reason_may_not_have_been_taken() {
    for function in ["some_function", "icmp_rcv"] {
        let mut w = two_nodes();
        there(w.request(1)).freed(Hook::Drop, (1, 1, ETH0), function, Some("SOMETHING_NEW"));
        let e = &w.join().exchanges[0];
        if function == "icmp_rcv" {
            assert_eq!(e.outcome, Outcome::Dropped);
        } else {
            assert_eq!((e.outcome, e.failed_direction), (Outcome::Incomplete, None), "{:?}", e.notes);
            let text = format!("freed at pod {} eth0 in some_function, reason by the kernel SOMETHING_NEW", pod(1, 1));
            assert!(has_note(e, &text), "{:?}", e.notes);
        }
        // An answer says that it was taken.
        back(w.reply()).confirm();
        assert_eq!(w.join().exchanges[0].outcome, Outcome::Delivered);
    }
}
