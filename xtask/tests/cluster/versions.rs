//! `podpath trace` where an agent is of another release than podpath: its hello tells another version of the protocol.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;
use tempfile::TempDir;
use tracer_user::session::PROTOCOL;
use xtask::kube::Options;

use crate::{
    NODE1, NODE2,
    harness::{Cluster, assert_warned, beside, nodes, outcomes, until},
};

/// Runs the agent, and adds to its first frame what the file of the node's namespace has.
const STAND_IN: &str = r#"#!/bin/sh
more="FOLDER/$(ip netns identify $$)"
[ -f "$more" ] || exec AGENT "$@"
AGENT "$@" | {
    length=$((0x$(head -c 4 | od -An -tx1 | tr -d ' ')))
    longer=$((length + $(wc -c < "$more")))
    printf "$(printf '\\0\\0\\%o\\%03o' $((longer / 256)) $((longer % 256)))"
    head -c $length
    cat "$more" -
}
"#;

/// A program to run as the agent: the real one, but for the version that it tells.
struct StandIn(TempDir);

impl StandIn {
    fn new() -> StandIn {
        let folder = tempfile::tempdir().unwrap();
        let script = STAND_IN.replace("FOLDER", folder.path().to_str().unwrap());
        let stand_in = folder.path().join("podpath-agent");
        fs::write(&stand_in, script.replace("AGENT", beside("podpath-agent").to_str().unwrap())).unwrap();
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
        StandIn(folder)
    }

    /// From now on the agent in that namespace tells this version.
    fn speaks(&self, namespace: &str, major: u8, minor: u8) {
        // Field 1 of the frame, hello, a second time: of fields told twice the last one counts. Field 15 is nobody's yet.
        let hello = [0x0a, 6, 0x08, major, 0x10, minor, 0x78, 1];
        fs::write(self.0.path().join(namespace), hello).unwrap();
    }

    /// Its own.
    fn speaks_its_own(&self, namespace: &str) {
        fs::remove_file(self.0.path().join(namespace)).unwrap();
    }
}

#[test]
fn agents_of_other_versions_work_or_it_is_said_which_side_to_upgrade() {
    let agent = StandIn::new();
    let options = Options { agent: Some(agent.0.path().join("podpath-agent")), ..Options::default() };
    let cluster = Cluster::up("kube-versions", "calico-bgp", &options);
    cluster.admin(&["install"]).succeeds();
    let [near, far] = [NODE2, NODE1].map(|node| cluster.lab.node(node).unwrap().namespace.as_str());
    let trace = |words: &[&str]| {
        let said = cluster.admin(&[&["trace", "bb2", "bb1", "-c", "1", "-o", "json"], words].concat()).succeeds();
        let trace = said.trace();
        assert_eq!(outcomes(&trace), ["delivered"]);
        trace
    };
    let whole = |words: &[&str]| {
        let trace = trace(words);
        assert_eq!((nodes(&trace), &trace["warnings"]), (vec![NODE2, NODE1], &json!([])));
        assert!(trace["nodes"].as_array().unwrap().iter().all(|node| node["complete"] == true), "{trace:#}");
    };
    let refuses =
        |words: &[&str], said: &[&str]| cluster.admin(&[&["trace", "bb2", "bb1"], words].concat()).refuses(said);
    let partly = |words: &[&str], said: &[&str]| {
        let trace = trace(words);
        assert_eq!(nodes(&trace), [NODE2]);
        assert_warned(&trace, &[&["not traced", NODE1], said].concat());
    };

    // Newer, with something that this podpath does not know.
    agent.speaks(far, 1, 99);
    agent.speaks(near, 1, 99);
    whole(&[]);
    whole(&["--trace-rules"]);
    // Older: enough for what it knows.
    agent.speaks(far, 1, 0);
    agent.speaks(near, 1, 0);
    whole(&[]);
    let old = "podpath-agent speaks version 1.0, which has no";
    refuses(&["--tcp", "80"], &[NODE2, old, "TCP probes\n  upgrade podpath-agent there\n"]);
    agent.speaks_its_own(near);
    partly(&["--trace-rules"], &[old, "tracing of rules; upgrade podpath-agent there"]);
    // Of another major version.
    for (major, minor, old) in [(0, 9, "podpath-agent"), (2, 0, "podpath")] {
        agent.speaks(far, major, minor);
        let speaks = format!("podpath-agent speaks version {major}.{minor} and podpath speaks {PROTOCOL}");
        partly(&[], &[&format!("{speaks}; upgrade {old}")]);
        agent.speaks(near, major, minor);
        refuses(&[], &[NODE2, &speaks, &format!("\n  upgrade {old}\n")]);
        agent.speaks_its_own(near);
    }
    until("sessions end", || cluster.sessions() == 0);
}
