//! The kernel's own trace of rules.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tracer_user::{node::Node, session::Flow};

use crate::rules::lab;

/// What `a` pings is traced rule by rule, also the reply to what a rule rewrote; and nothing is left of it.
#[test]
fn the_kernels_own_trace_tells_the_rules_of_one_flow() {
    let lab = lab();
    let rules = r#"
    table inet t {
        chain forward { type filter hook forward priority 0; policy accept; ip saddr 10.1.0.0/24 jump sub; oifname "cali1" accept; }
        chain sub { icmp type echo-request accept; drop; }
        chain in { type filter hook input priority 0; policy drop; iifname "lo" accept; }
    }
    table ip n {
        chain post { type nat hook postrouting priority 100; oifname "cali2" masquerade; }
    }
    "#;
    lab.feed("n", "nft -f -", rules);
    let flow = |a: &str| Flow {
        a: a.parse().unwrap(),
        b: Some("10.2.0.2".parse().unwrap()),
        protocol: 1,
        a_port: None,
        b_port: None,
        one_of: 1,
    };
    let met_by = |flow: Flow| {
        let node = lab.survey("n");
        let before = node.rule_counters(&[]);
        let traces = node.trace_rules(&before, &[flow]);
        assert_eq!(traces.notes(), &[] as &[String]);
        assert!(lab.exec("n", "nft list tables").contains("podpath"), "the marking table is there");
        lab.exec("a", "ping -c1 -W2 10.2.0.2");
        let rules = node.rules_met(&before, traces, &node.scope());
        assert!(!lab.exec("n", "nft list tables").contains("podpath"), "the marking table is gone");
        assert_eq!(rules.notes, Vec::<String>::new());
        let traced = rules.hits.iter().filter(|hit| hit.traced > 0);
        traced
            .map(|hit| {
                format!(
                    "{} {} {:?} {}",
                    hit.chain,
                    hit.rule.as_ref().map_or(0, |r| r.position),
                    hit.verdict,
                    hit.traced
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(met_by(flow("10.1.0.2")), ["forward 2 Accept 1", "sub 1 Accept 1", "post 1 Masquerade 1"]);
    assert_eq!(met_by(flow("10.1.0.9")), Vec::<String>::new(), "another flow's rules");
}

#[test]
fn legacy_iptables_is_not_traced_and_that_is_said() {
    let lab = lab();
    lab.exec("n", "iptables-legacy -A FORWARD -j ACCEPT");
    let node = lab.survey("n");
    let flow = Flow { a: "10.1.0.2".parse().unwrap(), b: None, protocol: 1, a_port: None, b_port: None, one_of: 1 };
    let traces = node.trace_rules(&node.rule_counters(&[]), &[flow]);
    let [note] = traces.notes() else { panic!("{:?}", traces.notes()) };
    assert!(note.contains("legacy iptables"), "{note}");
}

/// Run again as a process of its own, it starts a trace and waits to be killed.
#[test]
fn a_killed_tracer_leaves_no_table() {
    const INSIDE: &str = "PODPATH_TEST_TRACE_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        let node = Node::survey().expect("survey");
        let flow = Flow { a: "10.1.0.2".parse().unwrap(), b: None, protocol: 1, a_port: None, b_port: None, one_of: 1 };
        let _traces = node.trace_rules(&node.rule_counters(&[]), &[flow]);
        loop {
            std::thread::park();
        }
    }
    let lab = lab();
    lab.feed("n", "nft -f -", "table ip t {\n chain c { type filter hook forward priority 0; }\n}\n");
    let mut child = lab.inside("n", || {
        let this = std::env::current_exe().expect("this test");
        let mut command = Command::new(this);
        command.args(["--exact", "rule_traces::a_killed_tracer_leaves_no_table"]).env(INSIDE, "1");
        command.stdout(Stdio::null()).spawn().expect("started")
    });
    let tables = || lab.exec("n", "nft list tables");
    let until = Instant::now() + Duration::from_secs(20);
    let there = loop {
        let listed = tables();
        if listed.contains("podpath-") || Instant::now() > until {
            break listed;
        }
        std::thread::yield_now();
    };
    child.kill().expect("killed by SIGKILL");
    child.wait().expect("ended");
    assert!(there.contains("podpath-"), "{there}");
    assert_eq!(tables().trim(), "table ip t");
}
