//! Live traffic, recorded and watched through the API.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{Cluster, command, podpath, until};
use crate::support::address;
use crate::terminal::OnTerminal;
use crate::{NODE1, NODE2};

/// Pings of bb1 from bb2 that end with the test.
struct Pings(Child);

impl Pings {
    fn of(cluster: &Cluster) -> Self {
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", &cluster.lab.pod("bb2").unwrap().namespace, "ping", "-n", "-q", "-i", "0.02"]);
        Self(ping.arg(address(&cluster.lab, "bb1")).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
fn live_traffic_is_recorded_and_watched_by_who_may_trace() {
    let cluster = Cluster::installed("kube-live", "calico-bgp");
    let alice = cluster.user("alice");
    let _pings = Pings::of(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pings.ppr");
    let file = file.to_str().unwrap();
    cluster.server.forget_requests();
    podpath(&alice, &["record", "bb2", "bb1", "--for", "3s", "-w", file]).succeeds().says(&["next: podpath report"]);
    // The pods, their nodes, the agents, a session in each; and who has the addresses that were met.
    let requests = cluster.server.requests();
    assert!(requests.len() <= 12, "{requests:#?}");
    let changed = requests.iter().find(|request| request.method != "GET" && !request.path.ends_with("/exec"));
    assert!(changed.is_none(), "{changed:?}");
    until("its sessions end", || cluster.sessions() == 0);
    let said = podpath(&alice, &["report", file, "-o", "json"]).succeeds();
    let report: Value = serde_json::from_str(&said.out).unwrap();
    let delivered = report["exchanges"]["delivered"].as_u64().unwrap();
    assert!(delivered > 30, "{report:#}");
    let said = podpath(&alice, &["report", file]).succeeds();
    let short = |node: &str| format!("node {} ", node.split('.').next().unwrap());
    for name in [short(NODE1), short(NODE2), "pod default/bb1".to_owned()] {
        assert!(said.out.contains(&name), "no {name} in {}", said.out);
    }
    // What was written is all there is to say: no cluster is asked for it.
    let said = podpath(&folder.path().join("none"), &["report", file, "--slowest", "1"]).succeeds();
    assert!(said.out.contains("pod default/bb2"), "{}", said.out);

    let mut shown = OnTerminal::start(command(&alice, &["watch", "bb2", "bb1"]), 100, 30);
    shown.wait_for("DELIVERED 100%");
    shown.wait_for("pod default/bb1");
    shown.press(b"q");
    shown.ends();
    until("its sessions end", || cluster.sessions() == 0);
}
