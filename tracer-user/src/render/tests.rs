//! What a person and a program read, as snapshots.

use insta::assert_snapshot;
use proptest::prelude::*;

use super::{Style, exit_code, json, json_line, samples, text};
use crate::path::model::{
    Action, Basis, Detail, DropCause, DropDetail, RuleRef, Segmentation, Segments, Trace, Tunnel, What,
};

const PIPE: Style = Style { color: false, width: 120, verbose: false };

fn screen(trace: &Trace) -> String {
    text(trace, &PIPE)
}

#[test]
fn delivered_across_nodes() {
    assert_snapshot!(screen(&samples::cross_node()));
}

#[test]
fn delivered_across_nodes_verbose() {
    assert_snapshot!(text(&samples::cross_node(), &Style { verbose: true, ..PIPE }));
}

#[test]
fn delivered_across_nodes_in_80_columns() {
    assert_snapshot!(text(&samples::cross_node(), &Style { width: 80, ..PIPE }));
}

#[test]
fn delivered_across_nodes_in_colour() {
    let colored = text(&samples::cross_node(), &Style { color: true, ..PIPE });
    assert_snapshot!(colored.replace('\u{1b}', "^"));
}

#[test]
fn out_of_the_cluster_through_snat() {
    assert_snapshot!(screen(&samples::snat()));
}

#[test]
fn out_of_the_cluster_through_snat_verbose() {
    assert_snapshot!(text(&samples::snat(), &Style { verbose: true, ..PIPE }));
}

#[test]
fn on_the_same_node() {
    assert_snapshot!(screen(&samples::same_node()));
}

#[test]
fn dropped_by_a_blackhole_route() {
    assert_snapshot!(screen(&samples::blackhole()));
}

#[test]
fn request_lost_on_the_wire() {
    assert_snapshot!(screen(&samples::request_lost()));
}

#[test]
fn reply_lost_on_the_wire() {
    assert_snapshot!(screen(&samples::reply_lost()));
}

#[test]
fn some_of_each() {
    assert_snapshot!(screen(&samples::mixed()));
}

#[test]
fn some_of_each_verbose() {
    assert_snapshot!(text(&samples::mixed(), &Style { verbose: true, ..PIPE }));
}

#[test]
fn incomplete_with_lost_events() {
    assert_snapshot!(screen(&samples::incomplete()));
}

#[test]
fn nothing_seen() {
    assert_snapshot!(screen(&samples::nothing()));
    let mut outside = samples::nothing();
    (outside.source.name, outside.source.node) = (None, None);
    assert_snapshot!(screen(&outside));
}

#[test]
fn json_keeps_its_contract() {
    let mut trace = samples::snat();
    trace.exchanges.truncate(1);
    let bytes = json(&trace);
    assert_snapshot!(String::from_utf8(bytes).expect("UTF-8"));
}

#[test]
fn a_json_line_is_one_line() {
    let line = json_line(&samples::cross_node().exchanges[0]);
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    let value: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!(value["outcome"], "delivered");
}

#[test]
fn only_a_whole_trace_ends_in_success() {
    let codes: Vec<u8> = samples::all().iter().map(exit_code).collect();
    assert_eq!(codes, [0, 3, 3, 3, 3, 0, 0, 3, 3, 0]);
}

#[test]
fn text_fits_the_terminal_but_for_commands_and_is_plain_ascii() {
    for trace in samples::all() {
        for (width, verbose) in [(80, false), (100, false), (80, true)] {
            let text = text(&trace, &Style { width, verbose, color: false });
            assert!(text.is_ascii());
            let mut command = false;
            for line in text.lines() {
                command = line.starts_with("next ") || (command && line.starts_with("        "));
                assert!(command || line.len() <= width, "{} columns of {width}: {line}", line.len());
                assert_eq!(line, line.trim_end(), "blanks at the end");
            }
        }
    }
}

#[test]
fn colour_changes_nothing_but_the_looks() {
    for trace in samples::all() {
        let colored = text(&trace, &Style { color: true, ..PIPE });
        let mut plain = String::new();
        let mut rest = colored.as_str();
        while let Some((before, after)) = rest.split_once("\u{1b}[") {
            plain.push_str(before);
            rest = after.split_once('m').expect("SGR ends in m").1;
        }
        plain.push_str(rest);
        assert_eq!(plain, screen(&trace));
    }
}

#[test]
fn a_name_cannot_steer_the_terminal() {
    let mut trace = samples::cross_node();
    trace.destination.name = Some("evil\u{1b}[2J\r/pod".to_owned());
    trace.warnings.push("bell\u{7}".to_owned());
    let text = screen(&trace);
    assert!(!text.contains(['\u{1b}', '\r', '\u{7}']), "{text}");
}

#[test]
fn a_reply_through_nat_says_so_in_one_line() {
    let text = screen(&samples::snat());
    let reply = text.lines().find(|line| line.contains("reply:")).expect("a reply in one line");
    assert!(reply.contains("un-SNAT 172.20.50.50 -> 100.115.37.81"), "{reply}");
}

#[test]
fn a_reply_by_another_way_is_shown_whole() {
    let mut trace = samples::cross_node();
    trace.exchanges.truncate(1);
    for hop in &mut trace.exchanges[0].reply.hops {
        if hop.interface.as_deref() == Some("ens5") {
            hop.interface = Some("ens6".into());
        }
    }
    let text = screen(&trace);
    assert!(text.contains("reply took another way back") && text.contains("reply, by another way"), "{text}");
    assert!(text.contains("ens6"), "{text}");
    // Two paths without gaps that differ prove nothing, if records of a node are missing.
    let mut cut = trace.clone();
    cut.nodes[1].complete = false;
    trace.lost_events = 1;
    for text in [screen(&trace), screen(&cut)] {
        assert!(!text.contains("another way") && text.contains("records are missing: the reply may have"), "{text}");
    }
}

#[test]
fn nodes_whose_first_labels_collide_keep_their_full_names() {
    let mut trace = samples::cross_node();
    trace.nodes[1].name = "ip-172-20-58-60.other".to_owned();
    for exchange in &mut trace.exchanges {
        for hop in exchange.request.hops.iter_mut().chain(&mut exchange.reply.hops) {
            if *hop.node == *samples::NODE1 {
                hop.node = "ip-172-20-58-60.other".into();
            }
        }
    }
    let text = screen(&trace);
    assert!(
        text.contains("node ip-172-20-58-60.other") && text.contains(&format!("node {}", samples::NODE2)),
        "{text}"
    );
}

#[test]
fn dropped_by_netfilter_between_two_interfaces() {
    let mut trace = samples::blackhole();
    for exchange in &mut trace.exchanges {
        let hops = &mut exchange.request.hops;
        let dropped = hops.last_mut().expect("a hop");
        dropped.detail.route = None;
        dropped.detail.drop = Some(Box::new(DropDetail {
            why: "netfilter rule".to_owned(),
            reason: Some("NETFILTER_DROP".to_owned()),
            function: Some("nft_do_chain".to_owned()),
            cause: DropCause::Netfilter,
            basis: Basis::Observed,
            proof: vec!["freed in nft_do_chain, reason by the kernel NETFILTER_DROP".to_owned()],
            ..DropDetail::default()
        }));
        let mut routed = dropped.clone();
        let route = Some("100.115.37.90 dev cali98fd8882b62 scope link".to_owned());
        (routed.action, routed.basis) = (Action::Routed, Basis::Configured);
        (routed.interface, routed.detail) = (Some("cali98fd8882b62".into()), Detail { route, ..Detail::default() });
        hops.insert(hops.len() - 1, routed);
    }
    assert_snapshot!(screen(&trace));
}

#[test]
fn an_unknown_reason_is_said_to_be_unknown() {
    let mut trace = samples::blackhole();
    for exchange in &mut trace.exchanges {
        let hop = exchange.request.hops.last_mut().expect("a hop");
        assert_eq!(hop.action, Action::Dropped);
        (hop.detail.drop, hop.detail.route, hop.basis) = (None, None, Basis::Inferred);
    }
    assert_snapshot!(screen(&trace));
}

#[test]
fn a_bridge_is_no_router() {
    let mut trace = samples::same_node();
    for hop in &mut trace.exchanges[0].request.hops {
        if hop.action == Action::Routed {
            hop.action = Action::Bridged;
        }
    }
    let text = screen(&trace);
    assert!(text.contains("bridged, no router, no tunnel"), "{text}");
    assert!(text.contains("\n1  pod default/bb3") && text.contains("\n   node ip-172-20-50-50"), "{text}");
}

#[test]
fn a_tunnel_has_its_own_row() {
    let mut trace = samples::cross_node();
    for exchange in &mut trace.exchanges {
        let hops = &mut exchange.request.hops;
        let at = hops.iter().position(|hop| hop.action == Action::Routed).expect("a route");
        hops[at].interface = Some("tunl0".into());
        hops[at].detail.route = Some("100.115.37.64/26 via 172.20.50.50 dev tunl0 proto bird onlink".to_owned());
        let mut wrapped = hops[at].clone();
        wrapped.action = Action::Encapsulated;
        wrapped.detail.route = None;
        let [src, dst] = ["172.20.58.60", "172.20.50.50"].map(|text| text.parse().expect("an address"));
        wrapped.detail.tunnel = Some(Box::new(Tunnel { kind: "ipip".to_owned(), vni: None, src, dst }));
        hops.insert(at + 1, wrapped);
    }
    let text = screen(&trace);
    assert!(text.contains("routed, IPIP tunnel, no NAT"), "{text}");
    assert!(text.contains("tunl0            100.115.37.64/26 via 172.20.50.50 dev tunl0 "), "{text}");
    assert!(text.contains("encapsulated in ipip 172.20.58.60 -> 172.20.50.50"), "{text}");
}

#[test]
fn a_vxlan_tunnel_in_100_columns() {
    assert_snapshot!(text(&samples::vxlan6(), &Style { width: 100, ..PIPE }));
}

#[test]
fn a_rule_that_translates_is_named() {
    let mut trace = samples::snat();
    for exchange in &mut trace.exchanges {
        let snat = exchange.request.hops.iter_mut().find(|hop| hop.action == Action::Snat).expect("a rewrite");
        snat.at_ns = Some(9_000);
        snat.detail.nat.as_mut().expect("both sides").moment = Basis::Observed;
        snat.detail.rule = Some(Box::new(RuleRef {
            engine: "iptables".to_owned(),
            table: "nat".to_owned(),
            chain: "cali-nat-outgoing".to_owned(),
            text: Some("-m set --match-set cali40masq-ipam-pools src -j MASQUERADE --random-fully".to_owned()),
            comment: Some("cali:flqWnvo8yq4ULQLa".to_owned()),
            packets: 3,
            basis: Basis::Inferred,
        }));
    }
    assert_snapshot!(screen(&trace));
    let verbose = text(&trace, &Style { verbose: true, ..PIPE });
    let said = verbose.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("by iptables nat/cali-nat-outgoing") && said.contains("counter +3"), "{verbose}");
}

#[test]
fn encrypted_and_in_segments() {
    let mut trace = samples::cross_node();
    trace.exchanges.truncate(1);
    let exchange = &mut trace.exchanges[0];
    exchange.what = Some(What::Data);
    let hops = &mut exchange.request.hops;
    let sizes = |how, before, bytes| Some(Segments { how, bytes, before });
    hops[0].detail.segments = sizes(Segmentation::Super, 5792, 5792);
    let out = hops.iter().position(|hop| hop.action == Action::Transmitted).expect("a transmission");
    let mut wire = hops[out].clone();
    (hops[out].action, hops[out].interface) = (Action::Encapsulated, Some("wireguard.cali".into()));
    hops[out].detail.text = Some("encrypted by wireguard.cali; what leaves the node cannot be recognised".to_owned());
    (wire.interface, wire.ifindex, wire.at_ns, wire.basis) = (None, None, None, Basis::Inferred);
    wire.detail = Detail { text: Some("encrypted, to ip-172-20-50-50: not observed".to_owned()), ..Detail::default() };
    hops.insert(out + 1, wire);
    let back = &mut hops[out + 2];
    (back.action, back.interface) = (Action::Decapsulated, Some("wireguard.cali".into()));
    back.detail.text = Some("decrypted".to_owned());
    back.detail.segments = sizes(Segmentation::Segmented, 5792, 1448);
    assert_snapshot!(screen(&trace));
}

proptest! {
    /// Hops missing, in any order, with times of any size: something readable comes out, and never a panic.
    #[test]
    fn any_trace_can_be_shown(
        which in 0..10_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4_u8, any::<u64>()), 0..20),
        width in 0..200_usize,
        verbose: bool,
    ) {
        let mut trace = samples::all().swap_remove(which);
        for (exchange, hop, change, number) in changes {
            if trace.exchanges.is_empty() {
                break;
            }
            let exchange = exchange.get_mut(&mut trace.exchanges);
            exchange.rtt_ns = exchange.rtt_ns.map(|_| number);
            let hops = if number % 2 == 0 { &mut exchange.request.hops } else { &mut exchange.reply.hops };
            if hops.is_empty() {
                continue;
            }
            let at = hop.index(hops.len());
            match change {
                0 => { hops.remove(at); }
                1 => hops.swap(0, at),
                2 => hops[at].at_ns = Some(number),
                _ => hops[at].error_ns = number,
            }
        }
        let text = text(&trace, &Style { color: false, width, verbose });
        prop_assert!(text.is_ascii() && text.ends_with('\n'));
        prop_assert_eq!(json(&trace).last().copied(), Some(b'\n'));
    }
}
