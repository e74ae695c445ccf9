use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An exchange whose request was sent on to 10.0.0.9.
fn sent_on(text: Option<&str>) -> Exchange {
    let side =
        |dst: &str| NatSide { src: address("10.0.0.1"), dst: address(dst), src_port: Some(40053), dst_port: Some(53) };
    let nat = Nat { moment: Basis::Inferred, before: side("10.96.0.7"), after: side("10.0.0.9") };
    let hop = Hop {
        node: "node-1".into(),
        pod: None,
        interface: None,
        ifindex: None,
        action: Action::Dnat,
        src: address("10.0.0.1"),
        dst: address("10.0.0.9"),
        ttl: None,
        at_ns: None,
        error_ns: 0,
        basis: Basis::Observed,
        detail: Detail { nat: Some(Box::new(nat)), text: text.map(str::to_owned), ..Detail::default() },
    };
    Exchange {
        seq: 1,
        what: None,
        again_after_ns: None,
        outcome: Outcome::Lost,
        failed_direction: None,
        rtt_ns: None,
        rtt_at: None,
        injector_rtt_ns: None,
        request: Path { hops: vec![hop], incomplete: false },
        reply: Path::default(),
        shares: Vec::new(),
        clocks: Vec::new(),
        notes: Vec::new(),
        rejection: None,
    }
}

#[test]
fn who_sends_to_no_endpoint_is_told() {
    let dns = |addresses: &[&str]| AskedService {
        namespace: "kube-system".to_owned(),
        name: "dns".to_owned(),
        endpoints: addresses.len(),
        ready: addresses.len(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        local: None,
        not_let_in: Vec::new(),
    };
    let told = [
        dns(&["10.0.0.2"]).stranger_in_words(&sent_on(Some(OLD_ENTRY))),
        dns(&["10.0.0.2", "10.0.0.3"]).stranger_in_words(&sent_on(Some("connection may be older than the trace"))),
        dns(&[]).stranger_in_words(&sent_on(None)),
    ];
    insta::assert_snapshot!(told.map(|text| text.expect("a stranger")).join("\n"), @r"
    10.0.0.9 is no endpoint of kube-system/svc/dns (it has 10.0.0.2): conntrack on node-1 chose it, not the rules: an entry from before the endpoint moved, which lives as long as the client goes on sending from this port
    10.0.0.9 is no endpoint of kube-system/svc/dns (it has 10.0.0.2, 10.0.0.3): the rules on node-1 are behind, or an entry of conntrack there is older than the endpoint's move
    10.0.0.9 is no endpoint of kube-system/svc/dns (it has none): the rules on node-1 are behind: does kube-proxy run there?
    ");
    assert_eq!(dns(&["10.0.0.2", "10.0.0.9"]).stranger_in_words(&sent_on(None)), None, "one of them");
    let plain = Exchange { request: Path::default(), ..sent_on(None) };
    assert_eq!(dns(&[]).stranger_in_words(&plain), None, "it was sent nowhere else");
}
