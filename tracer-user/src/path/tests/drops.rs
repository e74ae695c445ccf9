//! Every cause told apart from its neighbours, and no rule named that cannot have been it.

use proptest::prelude::*;

use super::{
    cases::{cross_node, two_nodes},
    failures::to_the_wire,
};
use crate::{
    event::{Encapsulation, Engine, Hook, L4, Netfilter, Record, Sighting},
    node::facts::{Condition, ConditionField, Neighbour, RouteKind, Rule, RuleEngine, RuleHit, RuleVerdict, Setting},
    path::{
        model::{Basis, DropCause, DropDetail, Exchange, Outcome},
        testing::{ENS5, ETH0, Kind, TUNL0, Walk, host, ip, pod, veth},
    },
};

/// How a packet comes to its end at the second node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum At {
    /// Before routing.
    Prerouting,
    /// After its TTL went down.
    Forward,
}

/// A request that dies at the second node, with the way it would have taken on.
pub(super) fn dies(w: &mut Walk, seq: u16, at: At, function: &str, reason: Option<&str>) {
    w.request(seq).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
    if at == At::Forward {
        w.decrement();
    }
    w.freed(Hook::Drop, (1, 0, ENS5), function, reason);
}

pub(super) fn routes(w: &mut Walk, kind: RouteKind) {
    w.answer(kind, None);
    for answer in w.evidence.nodes.iter_mut().flat_map(|n| &mut n.facts.routes) {
        let route = answer.route.as_mut().expect("all are answered");
        route.out_ifindex = answer.question.in_ifindex.map(|i| if i == ENS5 { veth(1) } else { ENS5 });
    }
}

pub(super) fn exchange(w: &Walk) -> Exchange {
    w.join().exchanges.remove(0)
}

pub(super) fn drop_of(exchange: &Exchange) -> DropDetail {
    let hop = exchange.request.hops.last().expect("hops");
    hop.detail.drop.as_deref().cloned().unwrap_or_else(|| panic!("no drop: {exchange:?}"))
}

pub(super) fn one(at: At, function: &str, reason: Option<&str>, change: impl FnOnce(&mut Walk)) -> DropDetail {
    let mut w = two_nodes();
    dies(&mut w, 1, at, function, reason);
    routes(&mut w, RouteKind::Unicast);
    change(&mut w);
    drop_of(&exchange(&w))
}

pub(super) fn condition(field: ConditionField) -> Condition {
    Condition { field, not: false }
}

pub(super) fn netns(w: &Walk, node: usize) -> u32 {
    w.evidence.nodes[node].facts.namespaces[0].inode
}

/// A rule in Calico's chain for what goes to pod 1 of the second node.
fn policy(w: &Walk) -> RuleHit {
    RuleHit {
        netns: netns(w, 1),
        engine: RuleEngine::IptablesNft,
        family: "ip".to_owned(),
        table: "filter".to_owned(),
        chain: "cali-tw-cali1".to_owned(),
        hook: Some(2),
        way: ["FORWARD", "cali-FORWARD", "cali-to-wl-dispatch", "cali-tw-cali1"].map(str::to_owned).into(),
        rule: Some(Rule {
            position: 4,
            handle: Some(42),
            text: "-m mark --mark 0x0/0x20000 -j DROP".to_owned(),
            comment: Some("End of tier default. Drop if no policies passed packet".to_owned()),
        }),
        verdict: RuleVerdict::Drop,
        conditions: vec![
            condition(ConditionField::OutInterface("cali+".to_owned())),
            condition(ConditionField::OutInterface("cali1".to_owned())),
            condition(ConditionField::Mark(0, 0x20000)),
        ],
        understood: true,
        counted: true,
        packets: 1,
        traced: 0,
    }
}

pub(super) fn plain(w: &Walk) -> RuleHit {
    RuleHit {
        chain: "FORWARD".to_owned(),
        way: vec!["FORWARD".to_owned()],
        rule: Some(Rule { position: 1, handle: None, text: "-j DROP".to_owned(), comment: None }),
        conditions: Vec::new(),
        ..policy(w)
    }
}

fn with_rules(rules: impl FnOnce(&Walk) -> Vec<RuleHit>) -> DropDetail {
    one(At::Forward, "nf_hook_slow", None, |w| {
        w.evidence.nodes[1].facts.rules = rules(w);
        w.evidence.nodes[1].facts.rules_complete = vec![netns(w, 1)];
    })
}

#[test]
fn a_policy_names_its_pod_and_rule() {
    let drop = with_rules(|w| vec![policy(w)]);
    let why = format!("ingress policy at {}", pod(1, 1));
    assert_eq!((drop.cause, drop.why, drop.basis), (DropCause::Policy, why, Basis::Inferred));
    assert_eq!((drop.hook, drop.rules[0].chain.as_str()), (Some("forward"), "cali-tw-cali1"));
    let proof =
        ["rule counter +1 for 1 packet dropped here", "freed in nf_hook_slow (this kernel has no drop reasons)"];
    assert_eq!(drop.proof, proof);
}

#[test]
fn a_policy_of_the_sender_is_egress() {
    let from = |w: &Walk| RuleHit {
        chain: "filter-cali-fw-cali1".to_owned(),
        way: vec!["filter-FORWARD".to_owned(), "filter-cali-fw-cali1".to_owned()],
        engine: RuleEngine::Nftables,
        conditions: Vec::new(),
        ..policy(w)
    };
    let drop = with_rules(|w| vec![from(w)]);
    assert_eq!((drop.cause, drop.why), (DropCause::Policy, format!("egress policy at {}", pod(1, 1))));
}

#[test]
fn a_plain_rule_and_a_chains_policy_are_no_network_policy() {
    let drop = with_rules(|w| vec![plain(w)]);
    assert_eq!((drop.cause, drop.why.as_str()), (DropCause::Netfilter, "netfilter rule"));
    let drop = with_rules(|w| vec![RuleHit { rule: None, ..plain(w) }]);
    assert_eq!(drop.why, "the default policy of chain FORWARD");
    assert_eq!((drop.rules[0].position, drop.rules[0].text.as_str()), (None, "policy DROP"));
}

#[test]
fn rules_for_invalid_packets_and_wrong_sources_are_told_apart() {
    let asks = |field| move |w: &Walk| vec![RuleHit { conditions: vec![condition(field)], ..policy(w) }];
    let drop = with_rules(asks(ConditionField::ConntrackState(vec!["INVALID".to_owned()])));
    assert_eq!(
        (drop.cause, drop.why.as_str()),
        (DropCause::Netfilter, "netfilter rule for packets that conntrack calls invalid")
    );
    let raw = |w: &Walk| RuleHit {
        hook: Some(0),
        chain: "cali-PREROUTING".to_owned(),
        way: vec!["PREROUTING".to_owned(), "cali-PREROUTING".to_owned()],
        conditions: vec![condition(ConditionField::ReversePathFails)],
        ..plain(w)
    };
    let drop = one(At::Prerouting, "nft_do_chain", Some("NETFILTER_DROP"), |w| {
        w.evidence.nodes[1].facts.rules = vec![raw(w)];
        w.evidence.nodes[1].facts.rules_complete = vec![netns(w, 1)];
    });
    assert_eq!((drop.cause, drop.hook), (DropCause::RpFilterRule, Some("prerouting")));
}

#[test]
fn two_rules_that_fit_are_both_suspects() {
    let drop = with_rules(|w| vec![policy(w), plain(w)]);
    assert_eq!((drop.rules.len(), drop.why.as_str()), (2, "netfilter rule"));
    assert_eq!(drop.proof[0], "one of 2 rules that fit the packet and may have met it");
}

#[test]
fn without_a_rule_that_fits_none_is_named() {
    for rules in [Vec::new, || vec![RuleHit { netns: 1, ..policy(&two_nodes()) }]] {
        let drop = with_rules(|_| rules());
        assert!(drop.rules.is_empty() && drop.proof[0].starts_with("which rule is not known"), "{drop:?}");
        assert_eq!((drop.cause, drop.why.as_str()), (DropCause::Netfilter, "netfilter rule"));
    }
}

#[test]
fn counters_must_rise_with_every_drop() {
    let mut w = two_nodes();
    for seq in 1..=5 {
        dies(&mut w, seq, At::Forward, "nft_do_chain", Some("NETFILTER_DROP"));
    }
    routes(&mut w, RouteKind::Unicast);
    w.evidence.nodes[1].facts.rules_complete = vec![netns(&w, 1)];
    let hit = |packets| RuleHit { packets, ..plain(&two_nodes()) };
    let mut with = |rules| {
        w.evidence.nodes[1].facts.rules = rules;
        drop_of(&exchange(&w))
    };
    assert!(with(vec![hit(4)]).rules.is_empty());
    let drop = with(vec![hit(7)]);
    assert_eq!((drop.rule_known, drop.rules[0].packets), (true, Some(7)));
    assert_eq!(drop.proof[0], "rule counter +7 for 5 packets dropped here (others met it too)");
    assert_eq!(with(vec![hit(2), hit(3)]).rules.len(), 2, "each had some of them");
    // The first may have had three of them, and others' packets the rest of the second.
    let drop = with(vec![RuleHit { understood: false, ..hit(3) }, hit(7)]);
    assert_eq!((drop.rule_known, drop.rules.len()), (false, 2));
    assert_eq!(drop.proof[0], "one of 2 rules that fit the packet and may have met it");
}

/// Probes of two ports, each dropped by a rule of its own: what the one counted says nothing of the other.
#[test]
fn packets_that_other_rules_may_have_dropped_are_counted_apart() {
    let mut w = Walk { kind: Kind::Udp, ..two_nodes() };
    for seq in 1..=4 {
        w.request(seq);
        let L4::Udp { dst_port, .. } = &mut w.packet.l4 else { panic!("a datagram") };
        *dst_port = 1 + seq % 2;
        w.evidence.probes.last_mut().expect("a probe").dst_port = 1 + seq % 2;
        w.sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
        w.decrement().freed(Hook::Drop, (1, 0, ENS5), "nf_hook_slow", None);
    }
    routes(&mut w, RouteKind::Unicast);
    w.evidence.nodes[1].facts.rules_complete = vec![netns(&w, 1)];
    let of = |port: u16| RuleHit {
        chain: port.to_string(),
        conditions: vec![condition(ConditionField::DestinationPort(port, port))],
        packets: 2,
        ..plain(&w)
    };
    w.evidence.nodes[1].facts.rules = vec![of(1), of(2)];
    let joined = w.join();
    let named: Vec<_> = joined.exchanges.iter().map(|e| drop_of(e).rules[0].chain.clone()).collect();
    assert_eq!(named, ["2", "1", "2", "1"]);
    assert!(joined.exchanges.iter().all(|e| drop_of(e).rule_known));
}

#[test]
fn what_the_kernel_traced_is_observed() {
    let drop = with_rules(|w| vec![RuleHit { traced: 1, ..policy(w) }, plain(w)]);
    assert_eq!((drop.basis, drop.rules.len()), (Basis::Observed, 1));
    assert_eq!(drop.proof[0], "the kernel's own trace shows the rule ending 1 packet of 1");
}

#[test]
fn a_rule_without_a_counter_may_have_met_it_unseen() {
    let uncounted = |w: &Walk| RuleHit { counted: false, packets: 0, ..plain(w) };
    let drop = with_rules(|w| vec![uncounted(w)]);
    assert!(!drop.rule_known && drop.rules[0].packets.is_none(), "{drop:?}");
    assert_eq!(drop.cause, DropCause::Netfilter, "it may have been conntrack");
    let drop = with_rules(|w| vec![policy(w), uncounted(w)]);
    assert_eq!((drop.rule_known, drop.rules.len(), drop.why.as_str()), (false, 2, "netfilter rule"));
}

#[test]
fn where_rules_could_not_all_be_read_none_is_blamed() {
    let drop = one(At::Forward, "nf_hook_slow", None, |w| w.evidence.nodes[1].facts.rules = vec![policy(w)]);
    assert_eq!((drop.rule_known, drop.cause, drop.rules.len()), (false, DropCause::Netfilter, 1));
    assert!(drop.proof[0].ends_with("but not all rules could be read: it may have been another"), "{drop:?}");
}

#[test]
fn where_the_kernel_was_seen_evaluating_excludes_the_rest() {
    let seen = |table: &str| Netfilter {
        hook: 2,
        family: 2,
        engine: Engine::Nftables { table: 1, chain: 1 },
        table: Some(table.to_owned()),
        chain: Some("FORWARD".to_owned()),
    };
    let at = |seen: Netfilter| {
        one(At::Forward, "nf_hook_slow", None, |w| {
            for record in &mut w.evidence.nodes[1].records {
                if let Record::Sighting(s) = record
                    && let Some(free) = &mut s.free
                {
                    free.netfilter = Some(Box::new(seen.clone()));
                }
            }
            w.evidence.nodes[1].facts.rules = vec![policy(w)];
        })
    };
    assert_eq!(at(seen("filter")).rules.len(), 1);
    assert!(at(seen("mangle")).rules.is_empty());
    assert!(at(Netfilter { hook: 0, ..seen("filter") }).rules.is_empty());
    // A probe that was attached half-way through a hook does not know which one: what follows from the path counts.
    let half_way = at(Netfilter { hook: 0, family: 0, ..seen("filter") });
    assert_eq!(half_way.rules.len(), 1);
    assert_eq!((half_way.hook, at(seen("filter")).hook), (None, Some("forward")));
}

#[test]
fn reasons_settle_the_cause() {
    use At::{Forward, Prerouting};
    for (at, function, reason, cause) in [
        (Prerouting, "ip_rcv_finish_core", "IP_RPFILTER", DropCause::RpFilter),
        (Prerouting, "ip_error", "IP_INADDRERRORS", DropCause::NotForwarding),
        (Forward, "neigh_invalidate", "NEIGH_FAILED", DropCause::Neighbour),
        (Prerouting, "ip_forward", "PKT_TOO_BIG", DropCause::TooBig),
        (Prerouting, "ip_rcv_core", "IP_CSUM", DropCause::Malformed),
        (Prerouting, "tc_run", "TC_INGRESS", DropCause::Program),
        (Prerouting, "somewhere", "A_NEW_REASON", DropCause::Other),
    ] {
        let drop = one(at, function, Some(reason), |_| {});
        assert_eq!((drop.cause, drop.basis, drop.reason.as_deref()), (cause, Basis::Observed, Some(reason)));
    }
    let drop = one(Prerouting, "ip_rcv", Some("NOT_SPECIFIED"), |_| {});
    assert_eq!((drop.cause, drop.why.as_str()), (DropCause::Unknown, "freed in ip_rcv"));
}

#[test]
fn routes_that_refuse_are_told_apart_from_none() {
    for (kind, cause) in [
        (RouteKind::Blackhole, DropCause::Blackhole),
        (RouteKind::Unreachable, DropCause::Unreachable),
        (RouteKind::Prohibit, DropCause::Prohibit),
    ] {
        for reason in [Some("IP_INNOROUTES"), Some("NOT_SPECIFIED"), None] {
            let drop = one(At::Prerouting, "ip_error", reason, |w| routes(w, kind));
            assert_eq!(drop.cause, cause, "{reason:?}");
        }
    }
    let none =
        |w: &mut Walk| w.evidence.nodes.iter_mut().for_each(|n| n.facts.routes.iter_mut().for_each(|a| a.route = None));
    assert_eq!(one(At::Prerouting, "ip_error", None, none).cause, DropCause::NoRoute);
    // A route that works now cannot have failed then.
    let drop = one(At::Prerouting, "ip_error", Some("IP_INNOROUTES"), |_| {});
    assert_eq!((drop.cause, drop.basis), (DropCause::NoRoute, Basis::Inferred));
    let drop = one(At::Prerouting, "ip_error", None, |_| {});
    assert_eq!((drop.cause, drop.why.as_str()), (DropCause::Unknown, "the route look-up failed"));
}

pub(super) fn set(w: &mut Walk, name: &str, value: &str) {
    let setting = Setting { name: name.to_owned(), value: value.to_owned() };
    w.evidence.nodes[1].facts.namespaces[0].settings.push(setting);
}

#[test]
fn forwarding_that_is_off_is_the_cause_whatever_the_routes_say() {
    for reason in [Some("IP_INADDRERRORS"), None] {
        let drop = one(At::Prerouting, "ip_error", reason, |w| set(w, "net.ipv4.ip_forward", "0"));
        assert_eq!((drop.cause, drop.settings.len()), (DropCause::NotForwarding, 1));
        assert_eq!(drop.why, "forwarding is disabled (net.ipv4.ip_forward = 0)");
    }
    let drop = one(At::Prerouting, "ip_error", None, |w| set(w, "net.ipv4.ip_forward", "1"));
    assert_eq!(drop.cause, DropCause::Unknown);
}

#[test]
fn without_reasons_a_reverse_path_needs_the_setting_and_the_route_back() {
    let with = |value: &'static str, out: Option<u32>| {
        one(At::Prerouting, "ip_rcv_finish_core.constprop.0", None, move |w| {
            set(w, "net.ipv4.conf.all.rp_filter", "0");
            set(w, "net.ipv4.conf.ens5.rp_filter", value);
            for answer in &mut w.evidence.nodes[1].facts.routes {
                answer.route.as_mut().expect("answered").out_ifindex = out;
            }
        })
    };
    let drop = with("1", Some(veth(1)));
    assert_eq!((drop.cause, drop.basis, drop.settings.len()), (DropCause::RpFilter, Basis::Inferred, 2));
    assert!(drop.reverse_route.is_some() && drop.proof[0].contains("rp_filter = 1"), "{drop:?}");
    assert_eq!(with("1", Some(ENS5)).cause, DropCause::Unknown, "the way back is by that interface");
    assert_eq!(with("2", Some(veth(1))).cause, DropCause::Unknown, "loose");
    assert_eq!(with("0", Some(veth(1))).cause, DropCause::Other, "off: a martian");
}

#[test]
fn without_reasons_ttl_and_mtu_are_told_apart_in_ip_forward() {
    let mut w = two_nodes();
    to_the_wire(&mut w);
    w.packet.ttl = 1;
    w.received((1, 0, ENS5)).freed(Hook::Drop, (1, 0, ENS5), "ip_forward", None);
    routes(&mut w, RouteKind::Unicast);
    assert_eq!(drop_of(&exchange(&w)).cause, DropCause::TtlExpired);

    let drop = one(At::Prerouting, "ip_forward", None, |w| {
        let out = &mut w.evidence.nodes[1].facts.namespaces[0].links;
        out.iter_mut().find(|l| l.ifindex == veth(1)).expect("a link").mtu = 80;
    });
    assert_eq!((drop.cause, drop.mtu, drop.basis), (DropCause::TooBig, Some(80), Basis::Inferred));
    assert_eq!(drop.why, "84 bytes do not fit the MTU 80 of cali1");
    let drop = one(At::Prerouting, "ip_forward", None, |_| {});
    assert_eq!(drop.cause, DropCause::Unknown);
}

#[test]
fn a_neighbour_that_fails_is_told_apart_from_a_link_that_is_down() {
    let with = |up: bool, admin_up: bool| {
        one(At::Forward, "neigh_invalidate", None, move |w| {
            let facts = &mut w.evidence.nodes[1].facts;
            let link = facts.namespaces[0].links.iter_mut().find(|l| l.ifindex == veth(1)).expect("a link");
            (link.up, link.admin_up) = (up, admin_up);
            facts.neighbours.push(Neighbour {
                netns: facts.namespaces[0].inode,
                ifindex: veth(1),
                address: pod(1, 1),
                mac: None,
                state: "FAILED".to_owned(),
            });
        })
    };
    let drop = with(true, true);
    assert_eq!((drop.cause, drop.neighbour.as_deref()), (DropCause::Neighbour, Some("100.64.1.11 dev cali1 FAILED")));
    assert_eq!(drop.why, "no answer to ARP for 100.64.1.11");
    assert_eq!(with(false, true).cause, DropCause::NoCarrier);
    assert_eq!(with(false, false).cause, DropCause::InterfaceDown);
}

#[test]
fn a_route_that_went_with_its_interface_is_said_to() {
    let drop = one(At::Prerouting, "ip_error", Some("IP_INNOROUTES"), |w| {
        routes(w, RouteKind::Blackhole);
        let links = &mut w.evidence.nodes[1].facts.namespaces[0].links;
        let link = links.iter_mut().find(|l| l.ifindex == veth(1)).expect("a link");
        (link.up, link.admin_up) = (false, false);
    });
    assert_eq!(drop.cause, DropCause::Blackhole, "that is what dropped it");
    assert!(drop.proof[0].starts_with("cali1 is administratively down"), "{drop:?}");
}

/// An ICMP error about the packet under way, from the second node towards its source.
fn error(w: &mut Walk, kind: (u8, u8), mtu: u16) {
    let (len, id) = (w.packet.ip_len.to_be_bytes(), w.packet.ip_id.to_be_bytes());
    let nonce = u64::from_be_bytes([0x45, 0, len[0], len[1], id[0], id[1], 0x40, 0]);
    w.skb += 0x100;
    w.packet.l4 = L4::Icmp { kind: kind.0, code: kind.1, id: 0, seq: mtu, nonce };
    (w.packet.src, w.packet.dst, w.packet.ttl, w.packet.ip_len) = (host(1), pod(0, 1), 64, 112);
    w.queue((1, 0, ENS5)).xmit((1, 0, ENS5));
}

fn error_comes_back(w: &mut Walk) {
    w.sighting_in((0, 0, ENS5)).decrement().queue((0, 0, veth(1))).xmit((0, 0, veth(1))).sighting_in((0, 1, ETH0));
}

#[test]
fn an_error_that_came_back_names_its_sender_and_mtu() {
    let mut w = two_nodes();
    dies(&mut w, 1, At::Prerouting, "ip_forward", Some("PKT_TOO_BIG"));
    error(&mut w, (3, 4), 1400);
    error_comes_back(&mut w);
    routes(&mut w, RouteKind::Unicast);
    let e = exchange(&w);
    let rejection = e.rejection.clone().expect("an answer");
    assert_eq!((e.outcome, rejection.arrived, rejection.mtu), (Outcome::Rejected, true, Some(1400)));
    assert_eq!((rejection.node.as_deref(), rejection.from), (Some("node1"), host(1)));
    assert_eq!(rejection.meaning, "fragmentation needed, MTU 1400");
}

#[test]
fn an_error_that_is_dropped_leaves_a_silent_black_hole() {
    let mut w = two_nodes();
    dies(&mut w, 1, At::Prerouting, "ip_forward", Some("PKT_TOO_BIG"));
    error(&mut w, (3, 4), 1400);
    w.sighting_in((0, 0, ENS5)).decrement();
    w.freed(Hook::Drop, (0, 0, ENS5), "nft_do_chain", Some("NETFILTER_DROP"));
    routes(&mut w, RouteKind::Unicast);
    let e = exchange(&w);
    let rejection = e.rejection.clone().expect("an answer");
    assert_eq!((e.outcome, rejection.arrived), (Outcome::Dropped, false));
    assert_eq!(rejection.fate.as_deref(), Some("dropped at node0 ens5: netfilter rule"));
}

#[test]
fn who_answered_has_rejected_and_who_did_not_may_have_dropped() {
    let reject = |w: &Walk, with: &str| RuleHit { verdict: RuleVerdict::Reject(with.to_owned()), ..plain(w) };
    let mut w = two_nodes();
    dies(&mut w, 1, At::Forward, "nft_do_chain", Some("NETFILTER_DROP"));
    error(&mut w, (3, 3), 0);
    error_comes_back(&mut w);
    routes(&mut w, RouteKind::Unicast);
    let port = reject(&w, "icmp-port-unreachable");
    w.evidence.nodes[1].facts.rules_complete = vec![netns(&w, 1)];
    w.evidence.nodes[1].facts.rules = vec![plain(&w), port, reject(&w, "icmp-host-prohibited")];
    let e = exchange(&w);
    let drop = drop_of(&e);
    assert_eq!((e.outcome, drop.why.as_str()), (Outcome::Rejected, "netfilter reject rule"));
    assert_eq!(
        drop.rules.iter().map(|r| r.rejects_with.as_deref()).collect::<Vec<_>>(),
        [Some("icmp-port-unreachable")]
    );
    w.evidence.nodes[1].facts.rules.remove(1);
    assert!(drop_of(&exchange(&w)).rules.is_empty(), "neither can have sent that answer");
}

/// What makes a rule impossible as the culprit of a packet from `ens5` to `cali1`, forwarded by the second node.
fn impossible() -> impl Strategy<Value = fn(&mut RuleHit)> {
    proptest::sample::select(vec![
        (|hit| hit.netns += 1) as fn(&mut RuleHit),
        |hit| hit.family = "ip6".to_owned(),
        |hit| hit.family = "bridge".to_owned(),
        |hit| hit.hook = Some(0),
        |hit| hit.hook = Some(1),
        |hit| hit.hook = Some(3),
        |hit| hit.verdict = RuleVerdict::Accept,
        |hit| hit.verdict = RuleVerdict::Jump("x".to_owned()),
        |hit| hit.packets = 0,
        |hit| hit.conditions.push(condition(ConditionField::InInterface("ens6".to_owned()))),
        |hit| hit.conditions.push(condition(ConditionField::InInterface("cali+".to_owned()))),
        |hit| hit.conditions.push(condition(ConditionField::OutInterface("cali2".to_owned()))),
        |hit| hit.conditions.push(Condition { field: ConditionField::OutInterface("cali+".to_owned()), not: true }),
        |hit| hit.conditions.push(condition(ConditionField::Source("10.0.0.0/8".parse().expect("a net")))),
        |hit| hit.conditions.push(condition(ConditionField::Destination("100.64.1.12/32".parse().expect("a net")))),
        |hit| {
            let field = ConditionField::Destination("100.64.1.0/24".parse().expect("a net"));
            hit.conditions.push(Condition { field, not: true });
        },
        |hit| hit.conditions.push(condition(ConditionField::Protocol(6))),
        |hit| hit.conditions.push(Condition { field: ConditionField::Protocol(1), not: true }),
    ])
}

proptest! {
    #[test]
    fn a_rule_that_cannot_have_been_it_is_never_named(
        breaks in proptest::collection::vec(impossible(), 1..4),
        understood in any::<bool>(),
        packets in 1..10u64,
        culprit in any::<bool>(),
    ) {
        let drop = with_rules(|w| {
            let mut hit = RuleHit { understood, packets, chain: "wrong".to_owned(), ..policy(w) };
            for change in &breaks {
                change(&mut hit);
            }
            let right = culprit.then(|| plain(w));
            [hit].into_iter().chain(right).collect()
        });
        let named: Vec<_> = drop.rules.iter().map(|rule| rule.chain.as_str()).collect();
        prop_assert_eq!(named, if culprit { vec!["FORWARD"] } else { vec![] });
        prop_assert!(culprit || drop.why == "netfilter rule");
    }
}

/// As an agent reads them that may not see the kernel's addresses.
#[test]
fn hidden_functions_are_told_of_where_they_are_missed() {
    let hide = |w: &mut Walk| {
        for record in w.evidence.nodes.iter_mut().flat_map(|node| &mut node.records) {
            if let Record::Sighting(Sighting { free: Some(free), .. }) = record {
                free.function = None;
            }
        }
    };
    let told = |w: &Walk| w.join().warnings.iter().filter(|warning| warning.contains("CAP_SYSLOG")).count();
    let mut w = two_nodes();
    dies(&mut w, 1, At::Forward, "nft_do_chain", None);
    routes(&mut w, RouteKind::Unicast);
    assert_eq!(told(&w), 0);
    hide(&mut w);
    assert_eq!(told(&w), 1, "{:?}", w.join().warnings);
    assert_eq!(
        drop_of(&exchange(&w)).proof,
        ["freed as a drop (where is hidden, and this kernel has no drop reasons)"]
    );
    let mut w = two_nodes();
    cross_node(&mut w, 1);
    routes(&mut w, RouteKind::Unicast);
    hide(&mut w);
    assert_eq!((told(&w), exchange(&w).outcome), (0, Outcome::Delivered));
}

#[test]
fn addresses_of_the_test_are_what_the_property_takes_them_for() {
    assert_eq!((pod(1, 1), pod(0, 1)), (ip("100.64.1.11"), ip("100.64.0.11")));
}

/// What is inside of a tunnel's packet says nothing of who drops it.
#[test]
fn a_tunnels_packet_meets_rules_and_ports_by_its_own_header() {
    let ends = |function: &str, reason: &str, rule: ConditionField| {
        let mut w = Walk { kind: Kind::Tcp, ..two_nodes() };
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1)));
        w.wrapped((0, 0, TUNL0), Encapsulation::Vxlan, host(1), (0, 0, ENS5)).received((1, 0, ENS5));
        w.freed(Hook::Drop, (1, 0, ENS5), function, Some(reason));
        let hit = RuleHit { hook: Some(1), conditions: vec![condition(rule)], ..plain(&w) };
        let facts = &mut w.evidence.nodes[1].facts;
        (facts.rules, facts.rules_complete) = (vec![hit], vec![facts.namespaces[0].inode]);
        let e = exchange(&w);
        let tunnel = e.request.hops.last().and_then(|hop| hop.detail.tunnel.as_deref().cloned());
        assert_eq!(tunnel.map(|tunnel| tunnel.dst), Some(host(1)));
        drop_of(&e)
    };
    let drop = |rule| ends("nft_do_chain", "NETFILTER_DROP", rule).rule_known;
    assert!(drop(ConditionField::Destination(host(1).into())));
    assert!(drop(ConditionField::Protocol(17)));
    assert!(!drop(ConditionField::Destination(pod(1, 1).into())));
    assert!(!drop(ConditionField::Protocol(6)));
    let closed = ends("__udp4_lib_rcv", "NO_SOCKET", ConditionField::Protocol(17));
    assert_eq!(closed.why, "nothing listens on the tunnel's port: no such tunnel there");
}
