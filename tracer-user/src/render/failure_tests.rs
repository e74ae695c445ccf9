//! What is said about every cause of a drop, as it stands above the path.

use insta::assert_snapshot;

use super::{Style, samples, text};
use crate::path::model::{
    Action, Basis, CulpritRule, Detail, DropCause, DropDetail, Hop, NamedPolicy, Outcome, Policies, PoliciesRead,
    PolicyDirection, PolicyStage, Rejection, SettingDetail, Trace,
};

/// A terminal of 100 columns.
const STYLE: Style = Style { color: false, width: 100, verbose: false };

/// bb2 -> bb1, dropped by node1, before routing or after it.
fn dropped(drop: DropDetail, route: Option<&str>) -> Trace {
    let mut trace = samples::blackhole();
    let forwarded = matches!(drop.cause, DropCause::Policy | DropCause::Netfilter | DropCause::Neighbour);
    trace.destination = samples::cross_node().destination;
    for exchange in &mut trace.exchanges {
        let hops = &mut exchange.request.hops;
        hops.iter_mut().for_each(|hop| hop.dst = trace.destination.address);
        let last = hops.last_mut().expect("a hop");
        last.detail =
            Detail { drop: Some(Box::new(drop.clone())), route: route.map(str::to_owned), ..Detail::default() };
        if forwarded {
            let interface = Some("cali98fd8882b62".into());
            let routed = Hop { action: Action::Routed, interface, detail: Detail::default(), ..last.clone() };
            hops.insert(hops.len() - 1, routed);
        }
    }
    trace
}

fn answered(trace: Trace, answer: (u8, u8, &str), arrived: bool) -> Trace {
    let mut trace = trace;
    for exchange in &mut trace.exchanges {
        exchange.rejection = Some(Rejection {
            from: "172.20.50.50".parse().expect("an address"),
            node: Some(samples::NODE1.to_owned()),
            pod: None,
            icmp_type: Some(answer.0),
            icmp_code: Some(answer.1),
            meaning: answer.2.to_owned(),
            mtu: None,
            arrived,
            fate: (!arrived).then(|| format!("dropped at {} ens5: netfilter rule", samples::NODE2)),
        });
        if arrived {
            exchange.outcome = Outcome::Rejected;
        }
    }
    trace
}

fn because(cause: DropCause, why: &str, function: &str, reason: Option<&str>) -> DropDetail {
    let freed = match reason {
        Some(reason) => format!("freed in {function}, reason by the kernel {reason}"),
        None => format!("freed in {function} (this kernel has no drop reasons)"),
    };
    DropDetail {
        why: why.to_owned(),
        reason: reason.map(str::to_owned),
        function: Some(function.to_owned()),
        cause,
        basis: if reason.is_some() { Basis::Observed } else { Basis::Inferred },
        proof: vec![freed],
        ..DropDetail::default()
    }
}

fn rule(chain: &str, text: &str, comment: Option<&str>) -> CulpritRule {
    CulpritRule {
        engine: "iptables-nft",
        family: "ip".to_owned(),
        table: "filter".to_owned(),
        chain: chain.to_owned(),
        position: Some(4),
        handle: Some(42),
        text: text.to_owned(),
        comment: comment.map(str::to_owned),
        rejects_with: None,
        packets: Some(5),
        traced: 0,
        understood: true,
    }
}

fn by_rules(cause: DropCause, why: &str, rules: Vec<CulpritRule>, proof: &str) -> DropDetail {
    let mut drop = because(cause, why, "nf_hook_slow", None);
    drop.proof.insert(0, proof.to_owned());
    drop.rule_known = rules.len() == 1;
    DropDetail { rules, ..drop }
}

const COUNTER: &str = "rule counter +5 for 5 packets dropped here";

/// What stands above the context line.
fn head(trace: &Trace) -> String {
    let text = text(trace, &STYLE);
    let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("context ")).collect();
    let mut command = false;
    for line in &lines {
        command = line.starts_with("next ") || (command && line.starts_with("        "));
        assert!(command || line.len() <= STYLE.width, "{} columns: {line}", line.len());
    }
    lines.join("\n")
}

fn heads(traces: &[Trace]) -> String {
    traces.iter().map(head).collect::<Vec<_>>().join("\n\n")
}

#[test]
fn policies() {
    let comment = Some("End of tier default. Drop if no policies passed packet");
    let to = rule("cali-tw-cali98fd8882b62", "-m mark --mark 0x0/0x20000 -j DROP", comment);
    let nft = CulpritRule { engine: "nftables", table: "calico".to_owned(), ..to.clone() };
    assert_snapshot!(heads(&[
        dropped(by_rules(DropCause::Policy, "ingress policy at default/bb1", vec![to], COUNTER), None),
        dropped(by_rules(DropCause::Policy, "ingress policy at default/bb1", vec![nft], COUNTER), None),
    ]));
}

/// What is said below the rule about the policies behind it.
#[test]
fn policies_by_name() {
    let kubernetes = |name: &str| NamedPolicy {
        kind: "NetworkPolicy".to_owned(),
        api_group: "networking.k8s.io".to_owned(),
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    };
    let calico = |name: &str| NamedPolicy { api_group: "crd.projectcalico.org".to_owned(), ..kubernetes(name) };
    let global = |name: &str| NamedPolicy { kind: "GlobalNetworkPolicy".to_owned(), namespace: None, ..calico(name) };
    let base = Policies {
        pod: "default/bb1".to_owned(),
        direction: PolicyDirection::Ingress,
        stage: PolicyStage::NoneAllowed,
        read: PoliciesRead::All,
        selecting: Vec::new(),
        unclear: Vec::new(),
    };
    let with = |stage, selecting: Vec<NamedPolicy>| Policies { stage, selecting, ..base.clone() };
    let all = [
        with(PolicyStage::NoneAllowed, vec![kubernetes("deny-all")]),
        with(
            PolicyStage::NoneAllowed,
            vec![kubernetes("deny-all"), calico("web"), global("default.base"), kubernetes("d")],
        ),
        with(PolicyStage::NoneAllowed, Vec::new()),
        Policies { read: PoliciesRead::Some, ..base.clone() },
        Policies { read: PoliciesRead::None, ..base.clone() },
        Policies { unclear: vec![global("default.odd")], ..base.clone() },
        Policies { unclear: vec![calico("odd")], ..with(PolicyStage::NoneAllowed, vec![kubernetes("deny-all")]) },
        with(PolicyStage::Denied, vec![calico("default.no-ping")]),
        with(PolicyStage::Denied, Vec::new()),
        with(PolicyStage::Profile, vec![kubernetes("deny-all")]),
        Policies { read: PoliciesRead::Some, ..with(PolicyStage::Unknown, vec![kubernetes("deny-all")]) },
        Policies { direction: PolicyDirection::Egress, ..with(PolicyStage::NoneAllowed, vec![kubernetes("deny-all")]) },
    ];
    let told = all.map(|policies| {
        let rule = rule("cali-tw-cali98fd8882b62", "-j DROP", None);
        let mut drop = by_rules(DropCause::Policy, "ingress policy at default/bb1", vec![rule], COUNTER);
        drop.policies = Some(policies);
        let text = head(&dropped(drop, None));
        let of_policies = text.lines().skip(2).filter(|line| !line.starts_with("proof") && !line.starts_with("next"));
        of_policies.filter(|line| !line.contains("freed in")).collect::<Vec<_>>().join("\n")
    });
    assert_snapshot!(told.join("\n\n"));
}

#[test]
fn rules() {
    let plain = || rule("FORWARD", "-s 100.106.133.221/32 -j DROP", None);
    let default = CulpritRule { position: None, handle: None, text: "policy DROP".to_owned(), ..plain() };
    let legacy = CulpritRule { engine: "iptables", handle: None, ..plain() };
    let nft = CulpritRule { engine: "nftables", family: "inet".to_owned(), table: "fw".to_owned(), ..plain() };
    let v6 = CulpritRule { family: "ip6".to_owned(), ..plain() };
    let raw =
        CulpritRule { table: "raw".to_owned(), ..rule("PREROUTING", "-i ens5 -m rpfilter --invert -j DROP", None) };
    let one = |rule| dropped(by_rules(DropCause::Netfilter, "netfilter rule", vec![rule], COUNTER), None);
    let several = "one of 2 rules that fit the packet and may have met it";
    let unknown = "which rule is not known: none whose counter rose by 5 fits the packet (it may have no counter, or \
                   conntrack or a queue dropped it)";
    let mut maybe = by_rules(
        DropCause::Netfilter,
        "netfilter rule",
        vec![plain()],
        "the only rule there that drops and fits the packet, but it has no counter that could prove it",
    );
    maybe.rule_known = false;
    let policy = by_rules(DropCause::Netfilter, "the default policy of chain FORWARD", vec![default], COUNTER);
    let reverse = by_rules(DropCause::RpFilterRule, "reverse path filter rule", vec![raw], COUNTER);
    assert_snapshot!(heads(&[
        one(plain()),
        one(legacy.clone()),
        one(nft),
        one(v6),
        dropped(policy, None),
        dropped(reverse, None),
        dropped(by_rules(DropCause::Netfilter, "netfilter rule", vec![plain(), legacy], several), None),
        dropped(maybe, None),
        dropped(by_rules(DropCause::Netfilter, "netfilter rule", Vec::new(), unknown), None),
    ]));
}

#[test]
fn rejections() {
    let with = "icmp-port-unreachable";
    let text = format!("-s 100.106.133.221/32 -j REJECT --reject-with {with}");
    let reject = CulpritRule { rejects_with: Some(with.to_owned()), ..rule("FORWARD", &text, None) };
    let drop = by_rules(DropCause::Netfilter, "netfilter reject rule", vec![reject], COUNTER);
    let mut beyond = answered(samples::request_lost(), (3, 1, "host unreachable"), true);
    for exchange in &mut beyond.exchanges {
        exchange.request.hops.pop();
    }
    assert_snapshot!(heads(&[
        answered(dropped(drop.clone(), None), (3, 3, "port unreachable"), true),
        dropped(drop, None),
        beyond,
    ]));
}

#[test]
fn routes() {
    let of = |cause, why| because(cause, why, "ip_error", Some("NOT_SPECIFIED"));
    let blackhole = of(DropCause::Blackhole, "blackhole route");
    let mut forwarding = because(
        DropCause::NotForwarding,
        "forwarding is disabled (net.ipv4.ip_forward = 0)",
        "ip_error",
        Some("IP_INADDRERRORS"),
    );
    forwarding.settings = vec![SettingDetail { name: "net.ipv4.ip_forward".to_owned(), value: "0".to_owned() }];
    let mut reverse = because(DropCause::RpFilter, "reverse path filter", "ip_rcv_finish_core", Some("IP_RPFILTER"));
    reverse.settings = vec![SettingDetail { name: "net.ipv4.conf.ens5.rp_filter".to_owned(), value: "1".to_owned() }];
    reverse.reverse_route = Some("100.106.133.221 dev cali98fd8882b62 scope link".to_owned());
    let unreachable = dropped(of(DropCause::Unreachable, "unreachable route"), Some("unreachable 100.115.37.81"));
    let prohibit = dropped(of(DropCause::Prohibit, "prohibit route"), Some("prohibit 100.115.37.81"));
    assert_snapshot!(heads(&[
        dropped(blackhole, Some("blackhole 100.115.37.64/26 proto bird")),
        answered(unreachable.clone(), (3, 1, "host unreachable"), true),
        unreachable,
        answered(prohibit, (3, 13, "administratively prohibited"), true),
        answered(dropped(of(DropCause::NoRoute, "no route"), None), (3, 0, "network unreachable"), true),
        dropped(forwarding, None),
        dropped(reverse, None),
    ]));
}

#[test]
fn links_and_sizes() {
    let mut neighbour =
        because(DropCause::Neighbour, "no answer to ARP for 100.115.37.81", "neigh_invalidate", Some("NEIGH_FAILED"));
    neighbour.neighbour = Some("100.115.37.81 dev cali98fd8882b62 FAILED".to_owned());
    neighbour.out_interface = Some("cali98fd8882b62".to_owned());
    let down = |cause, why| DropDetail {
        out_interface: Some("cali98fd8882b62".to_owned()),
        ..because(cause, why, "neigh_invalidate", None)
    };
    let no_carrier = down(DropCause::NoCarrier, "cali98fd8882b62 has no carrier: its other end is down");
    let admin = down(DropCause::InterfaceDown, "cali98fd8882b62 is administratively down");
    let mut big = because(
        DropCause::TooBig,
        "1480 bytes do not fit the MTU 1400 of cali98fd8882b62",
        "ip_forward",
        Some("PKT_TOO_BIG"),
    );
    (big.mtu, big.out_interface) = (Some(1400), Some("cali98fd8882b62".to_owned()));
    let too_big = (3, 4, "fragmentation needed, MTU 1400");
    let expired = because(DropCause::TtlExpired, "TTL expired", "ip_forward", Some("IP_INHDR"));
    let full = because(DropCause::QueueFull, "the interface's queue is full", "__dev_queue_xmit", Some("QDISC_DROP"));
    let port = because(DropCause::PortClosed, "nothing listens on port 53", "__udp4_lib_rcv", Some("NO_SOCKET"));
    assert_snapshot!(heads(&[
        answered(dropped(neighbour, None), (3, 1, "host unreachable"), true),
        dropped(no_carrier, None),
        dropped(admin, None),
        answered(dropped(big.clone(), None), too_big, true),
        answered(dropped(big.clone(), None), too_big, false),
        dropped(big, None),
        answered(dropped(expired, None), (11, 0, "TTL expired in transit"), true),
        dropped(full, None),
        dropped(port, None),
        dropped(because(DropCause::Other, "A_NEW_REASON", "somewhere", Some("A_NEW_REASON")), None),
    ]));
}

#[test]
fn a_routing_loop() {
    let expired = because(DropCause::TtlExpired, "TTL expired", "ip_forward", Some("IP_INHDR"));
    let mut trace = answered(dropped(expired, None), (11, 0, "TTL expired in transit"), true);
    for exchange in &mut trace.exchanges {
        let hops = &mut exchange.request.hops;
        let (sent, [received, ended]) = hops.split_at(hops.len() - 2) else { panic!("it comes to node1 and ends") };
        let ways = [(samples::NODE1, "172.20.58.60"), (samples::NODE2, "172.20.50.50")];
        let round = ways.into_iter().flat_map(|(node, via)| {
            let on = |action, route: Option<String>| {
                let detail = Detail { route, ..Detail::default() };
                Hop { node: node.into(), action, detail, ..received.clone() }
            };
            let route = format!("100.115.37.81 via {via} dev ens5");
            [on(Action::Received, None), on(Action::Routed, Some(route)), on(Action::Transmitted, None)]
        });
        let round: Vec<Hop> = round.collect();
        *hops = [sent, &round, &round, &round, &[received.clone(), ended.clone()]].concat();
        exchange.note_loop();
    }
    let [node1, node2] = ["172.20.50.50", "172.20.58.60"].map(|address| address.parse().expect("an address"));
    trace.routers = vec![node2, node1, node2, node1, node2, node1, node2];
    assert_snapshot!(text(&trace, &STYLE));
}

#[test]
fn what_conntrack_refused() {
    let full = DropDetail {
        basis: Basis::Inferred,
        proof: vec![
            "conntrack gave no entry to 5 new connections, for 5 dropped here (conntrack -S: drop +5)".to_owned(),
        ],
        settings: ["count", "max"]
            .map(|name| SettingDetail {
                name: format!("net.netfilter.nf_conntrack_{name}"),
                value: "262144".to_owned(),
            })
            .into(),
        ..because(DropCause::ConntrackFull, "conntrack's table is full", "nf_hook_slow", Some("NETFILTER_DROP"))
    };
    let masquerade = CulpritRule {
        table: "nat".to_owned(),
        ..rule("POSTROUTING", "-p tcp -j MASQUERADE --to-ports 40000-40001", None)
    };
    let ports = by_rules(DropCause::NatPorts, "no free port for source NAT", vec![masquerade], COUNTER);
    let clash = because(
        DropCause::Conntrack,
        "conntrack has another connection of the same addresses and ports",
        "nf_hook_slow",
        Some("NETFILTER_DROP"),
    );
    assert_snapshot!(heads(&[dropped(full, None), dropped(ports, None), dropped(clash, None)]));
}
