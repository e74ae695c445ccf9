//! A whole session's facts: armed, a ping that a rule drops, finished.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use tracer_user::{
    node::facts::{NodeFacts, RuleVerdict},
    session::{Backend, Flow, LiveNode, Request},
};

use crate::{lab::Lab, rules::lab};

const RULES: &str = r#"
table ip pods {
    chain forward { type filter hook forward priority 0; policy accept; oifname "cali2" jump to-cali2; }
    chain to-cali2 { ip daddr 10.2.0.2 icmp type echo-request counter drop comment "no pings"; }
}
"#;

/// What a session in `n` tells of a ping from `a` to `b` that gets no answer.
fn session(lab: &Lab, trace_rules: bool) -> NodeFacts {
    let flow = |a: &str, b: &str| Flow {
        a: a.parse().unwrap(),
        b: Some(b.parse().unwrap()),
        protocol: 1,
        a_port: None,
        b_port: None,
        one_of: 1,
    };
    let request = Request {
        flows: vec![flow("10.1.0.2", "10.2.0.2")],
        time_limit: Duration::from_secs(60),
        ping: None,
        trace_rules,
        sparing: false,
    };
    let full = lab.name("a");
    lab.inside("n", || {
        let mut node = LiveNode::new();
        let started = Instant::now();
        node.arm(&request).expect("armed");
        println!("armed in {:?}", started.elapsed());
        let ping = Command::new("ip").args(["netns", "exec", &full, "ping", "-c1", "-W1", "10.2.0.2"]).output();
        assert!(!ping.expect("ping runs").status.success(), "dropped");
        node.drain(&mut Vec::new()).expect("drained");
        node.detach().expect("detached");
        node.drain(&mut Vec::new()).expect("drained");
        node.finish().expect("finished").0
    })
}

#[test]
fn a_session_tells_the_rule_that_dropped_and_the_settings_on_the_way() {
    let lab = lab();
    lab.feed("n", "nft -f -", RULES);
    let facts = session(&lab, false);
    let [hit] = facts.rules.as_slice() else { panic!("{:?}", facts.rules) };
    let rule = hit.rule.as_ref().expect("a rule");
    assert_eq!(hit.way, ["forward", "to-cali2"]);
    assert_eq!((&hit.verdict, hit.packets, hit.traced), (&RuleVerdict::Drop, 1, 0));
    assert_eq!(rule.text, "ip daddr 10.2.0.2 icmp type echo-request drop");
    assert_eq!(rule.comment.as_deref(), Some("no pings"));
    assert!(facts.rules_complete.contains(&lab.inode("n")));
    let settings = &facts.namespaces[0].settings;
    assert!(settings.iter().any(|s| s.name == "net.ipv4.conf.cali1.rp_filter"), "{settings:?}");
    assert_eq!(facts.notes, Vec::<String>::new());
}

#[test]
fn a_session_that_traces_rules_leaves_none() {
    let lab = lab();
    lab.feed("n", "nft -f -", RULES);
    let facts = session(&lab, true);
    let [hit] = facts.rules.as_slice() else { panic!("{:?}", facts.rules) };
    assert_eq!((&hit.verdict, hit.packets, hit.traced), (&RuleVerdict::Drop, 1, 1));
    assert_eq!(lab.exec("n", "nft list tables").trim(), "table ip pods");
}
