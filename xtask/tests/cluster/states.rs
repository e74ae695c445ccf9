//! `podpath trace` where nodes, pods, users and the server are in odd states: what is traced all the same, what is said, and that
//! nothing stays.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tracer_user::session::SILENCE;
use xtask::kube::{Fault, Options};

use crate::{
    NODE1, NODE2,
    harness::{Cluster, Said, assert_warned, nodes, start, until},
    held::{Held, assert_ended},
};

impl Cluster {
    fn start(&self, words: &[&str]) -> Child {
        start(&self.server.admin_kubeconfig(), words)
    }

    #[track_caller]
    fn trace(&self, words: &[&str], code: i32) -> Value {
        self.admin(&[&["trace"], words, &["-c", "1", "-o", "json"]].concat()).ends_with(code).trace()
    }

    #[track_caller]
    fn refuses(&self, words: &[&str], said: &[&str]) {
        self.admin(&[&["trace"], words].concat()).refuses(said);
    }

    fn pod(&self, name: &str) -> Value {
        self.server.get(&format!("/api/v1/namespaces/default/pods/{name}")).unwrap()
    }

    /// A pod like another, under another name.
    fn put_like(&self, model: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.pod(model);
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["uid"] = json!(format!("00000000-0000-0000-0000-{:0>12}", name.len()));
        change(&mut pod);
        self.server.put(pod);
    }

    /// How many were asked for.
    fn jobs(&self) -> usize {
        let requests = self.server.requests();
        requests.iter().filter(|request| request.method == "POST" && request.path.ends_with("/jobs")).count()
    }
}

/// What a run that was begun said in the end.
fn ended(child: Child, code: i32) -> Said {
    Said::of(child.wait_with_output().unwrap()).ends_with(code)
}

#[test]
fn a_node_that_is_not_ready_is_left_out_and_named() {
    let cluster = Cluster::installed("kf-notready", "calico-bgp");
    cluster.server.fault(Fault::NodeReady { node: NODE1.to_owned(), ready: false });
    until("the node is not ready", || {
        let node = cluster.server.get(&format!("/api/v1/nodes/{NODE1}")).unwrap();
        node["status"]["conditions"]
            .as_array()
            .is_none_or(|all| all.iter().all(|condition| condition["type"] != "Ready" || condition["status"] != "True"))
    });
    let trace = cluster.trace(&["bb2", "bb1"], 0);
    assert_eq!(nodes(&trace), [NODE2]);
    assert_eq!(trace["exchanges"][0]["outcome"], "delivered");
    assert_warned(&trace, &["not traced", NODE1, "no session could be started there", "connection refused"]);
    assert_warned(&trace, &[NODE1, "the node is not ready (Ready: Unknown", "kubectl describe node"]);
    // As the source it is needed.
    cluster.refuses(&["bb1", "bb2", "-c", "1"], &[NODE1, "the node is not ready", "kubectl describe node"]);
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn a_server_that_goes_in_mid_trace_ends_it() {
    let cluster = Cluster::installed("kf-gone", "calico-bgp");
    let child =
        cluster.start(&["trace", "bb2", "bb1", "-c", "40", "-i", "0.1", "-o", "json", "--request-timeout", "2s"]);
    until("it traces", || cluster.sessions() >= 2);
    std::thread::sleep(Duration::from_millis(1500));
    cluster.server.stop();
    let begin = Instant::now();
    let said = ended(child, 3);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    // What was seen until then is shown.
    let trace = said.trace();
    assert_warned(&trace, &[NODE1, "its session ended half-way"]);
    assert_warned(&trace, &[NODE2, "its session ended half-way"]);
    assert!(trace["nodes"].as_array().unwrap().iter().all(|node| node["complete"] == false), "{trace:#}");
    until("sessions end", || cluster.sessions() == 0);
    cluster.server.resume();
    cluster.trace(&["bb2", "bb1"], 0);
}

#[test]
fn an_exec_that_is_cut_costs_that_nodes_part() {
    let cluster = Cluster::installed("kf-cut", "calico-bgp");
    let cut = |node: &str, after| cluster.server.fault(Fault::CutExec { node: node.to_owned(), after });
    // Before its first word: the trace does without the node, as if it had no agent.
    cut(NODE1, Some(0));
    let trace = cluster.trace(&["bb2", "bb1"], 0);
    assert_eq!(nodes(&trace), [NODE2]);
    assert_eq!(trace["exchanges"][0]["outcome"], "delivered");
    assert_warned(&trace, &["not traced", NODE1, "ended before hello", "cut off", "kubectl -n podpath exec"]);
    // Half-way: what it had said until then is shown.
    cut(NODE1, Some(2_000));
    let trace = cluster.trace(&["bb2", "bb1"], 0);
    assert_eq!(nodes(&trace), [NODE2, NODE1]);
    assert_warned(&trace, &[NODE1, "its session ended half-way", "cut off"]);
    assert_eq!(trace["nodes"][1]["complete"], false);
    // The source is needed. The other session is told to end.
    cut(NODE1, None);
    cut(NODE2, Some(0));
    let begin = Instant::now();
    cluster.refuses(&["bb2", "bb1"], &[NODE2, "session ended before hello", "cut off", "kubectl -n podpath exec"]);
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    // And so is one at least.
    cut(NODE1, Some(0));
    cluster.refuses(&["bb2", "bb1", "--passive"], &["session ended before hello", "cut off"]);
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn a_server_without_an_end_of_input_is_as_good() {
    let cluster = Cluster::installed("kf-v4", "calico-bgp");
    cluster.server.fault(Fault::OnlyV4(true));
    let trace = cluster.trace(&["bb2", "bb1"], 0);
    assert_eq!((nodes(&trace), &trace["warnings"]), (vec![NODE2, NODE1], &json!([])));
    assert!(trace["nodes"].as_array().unwrap().iter().all(|node| node["complete"] == true), "{trace:#}");
    until("sessions end", || cluster.sessions() == 0);
    // A session that is not wanted after all has only the close of its connection to go by.
    cluster.server.fault(Fault::CutExec { node: NODE2.to_owned(), after: Some(0) });
    cluster.refuses(&["bb2", "bb1"], &[NODE2, "session ended before hello", "cut off"]);
    until("sessions end again", || cluster.sessions() == 0);
}

#[test]
fn a_session_of_whose_clients_death_it_is_not_told_ends_by_the_silence() {
    let cluster = Cluster::installed("kf-orphan", "calico-bgp");
    cluster.server.fault(Fault::OnlyV4(true));
    cluster.server.fault(Fault::Orphans(true));
    let mut child = cluster.start(&["trace", "bb2", "bb1", "-c", "60000", "-i", "0.1"]);
    // With five programs each, they are armed.
    let held = || Held::by(&cluster.agents());
    until("both record", || cluster.sessions() == 2 && held().links.len() >= 10);
    let (agents, held) = (cluster.agents(), held());
    assert_eq!(held.alive(), held, "what is held is found in the kernel");
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    // Neither an end of input nor a signal comes to them.
    std::thread::sleep(SILENCE - Duration::from_secs(4));
    assert_eq!(cluster.agents(), agents);
    assert_ended(&agents, SILENCE + Duration::from_secs(5) - killed.elapsed());
    held.assert_gone();
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn a_server_that_is_ill_is_asked_again_and_then_named() {
    let cluster = Cluster::installed("kf-ill", "calico-bgp");
    let broken = |times| cluster.server.fault(Fault::Broken { times });
    broken(1);
    let trace = cluster.trace(&["bb2", "bb1"], 0);
    assert_eq!(trace["warnings"], json!([]));
    broken(u32::MAX);
    let ill = ["context kf-ill", "etcdserver: request timed out", "500", "busy or ill"];
    cluster.refuses(&["bb2", "bb1", "--request-timeout", "1s"], &[&["get pod bb2"], &ill[..]].concat());
    cluster.admin(&["install", "--request-timeout", "1s"]).refuses(&ill);
    cluster.admin(&["uninstall", "--request-timeout", "1s"]).refuses(&ill);
    broken(3);
    cluster.admin(&["install"]).succeeds();
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn agents_for_one_trace_go_also_where_the_server_has_too_much_to_do() {
    let cluster = Cluster::up("kf-busy", "calico-bgp", &Options::default());
    for fault in [Fault::Broken { times: 4 }, Fault::TooMany { retry_after: 1, times: 2 }] {
        let child = cluster.start(&["trace", "bb1", "bb3", "--ephemeral", "-c", "20", "-i", "0.1"]);
        until("it traces", || cluster.sessions() > 0);
        cluster.server.fault(fault);
        let said = ended(child, 0);
        assert!(!said.out.contains("could not be removed"), "{}", said.out);
        until("all goes", || cluster.server.get("/api/v1/namespaces/podpath").is_none());
    }
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn pods_in_odd_states_are_told_apart() {
    let cluster = Cluster::installed("kf-pods", "calico-bgp");
    let address = cluster.pod("bb1")["status"]["podIP"].as_str().unwrap().to_owned();
    // The address was a Job's before, and is still listed of a pod that is going.
    cluster.server.fault(Fault::Delay(60_000));
    cluster.put_like("bb1", "aaa-done", |pod| pod["status"]["phase"] = json!("Succeeded"));
    cluster.put_like("bb1", "aab-going", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-01T08:00:00Z"));
    let trace = cluster.trace(&["bb2", &address], 0);
    assert_eq!(trace["destination"]["name"], "default/bb1");
    cluster.refuses(&["bb2", "aaa-done"], &["default/aaa-done", "has ended", "Succeeded"]);
    // One that uses its node's network has no address of its own.
    let host = "172.20.50.50";
    cluster.put_like("bb1", "hosted", |pod| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["status"]["podIP"] = json!(host);
        pod["status"]["podIPs"] = json!([{ "ip": host }]);
    });
    let trace = cluster.trace(&["bb2", host], 0);
    assert_eq!(trace["destination"]["name"], NODE1, "the node, not a pod on its network");
    let trace = cluster.trace(&["bb2", "hosted"], 0);
    assert_warned(&trace, &["hosted uses its node's network"]);
    // One that has no address yet.
    cluster.put_like("bb1", "waiting", |pod| {
        pod["spec"]["nodeName"] = Value::Null;
        pod["status"] = json!({ "phase": "Pending" });
    });
    cluster.refuses(&["bb2", "waiting"], &["default/waiting", "no address yet", "kubectl -n default describe pod"]);
}

#[test]
fn a_second_address_is_found_among_the_pods_of_the_nodes_on_the_path() {
    let cluster = Cluster::installed("kf-dual", "calico-dual");
    let second = |name: &str| {
        let pod = cluster.pod(name);
        assert_ne!(pod["status"]["podIP"], pod["status"]["podIPs"][1]["ip"]);
        pod["status"]["podIPs"][1]["ip"].as_str().unwrap().to_owned()
    };
    // Named, a pod is known with all its addresses.
    let trace = cluster.trace(&["bb2", "bb1", "-6"], 0);
    assert_eq!(trace["destination"]["address"], json!(second("bb1")));
    assert_eq!(nodes(&trace).len(), 2);
    // Typed, it is looked for where the packet went.
    let trace = cluster.trace(&["bb1", &second("bb3")], 0);
    assert_eq!(trace["destination"]["name"], "default/bb3");
    // On another node it stays unnamed, and the number of requests small.
    cluster.server.forget_requests();
    let trace = cluster.trace(&["bb1", &second("bb2")], 0);
    assert_eq!(trace["exchanges"][0]["outcome"], "delivered");
    let requests = cluster.server.requests();
    assert!(requests.len() <= 16, "{requests:#?}");
    // As the source it says what to do.
    cluster.refuses(&[&second("bb1"), "bb2"], &["no pod and no node", "name a pod"]);
    // With neither end known there is no node.
    cluster.refuses(&["192.0.2.1", "192.0.2.2"], &["192.0.2.1: no pod and no node", "name a pod"]);
    cluster.refuses(&["192.0.2.1", "192.0.2.2", "--passive"], &["192.0.2.1: no pod and no node", "name a pod"]);
}

#[test]
fn agents_that_are_being_made_go_with_an_interrupt() {
    let cluster = Cluster::up("kf-interrupt", "calico-bgp", &Options::default());
    cluster.server.fault(Fault::Delay(4_000));
    let child = cluster.start(&["trace", "bb1", "8.8.8.8", "--ephemeral"]);
    until("a job is asked for", || cluster.jobs() > 0);
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    ended(child, 1).says(&["interrupted"]);
    cluster.server.fault(Fault::Delay(100));
    until("all goes", || cluster.server.get("/api/v1/namespaces/podpath").is_none());
}

/// The namespace that the first removes is still going when the next one wants it.
#[test]
fn what_is_being_removed_is_waited_for() {
    let cluster =
        Cluster::up("kube-again", "calico-bgp", &Options { delay: Some(Duration::from_secs(1)), ..Options::default() });
    let ephemeral = ["trace", "bb2", "bb1", "--ephemeral", "-c", "1"];
    cluster.admin(&ephemeral).succeeds();
    cluster.admin(&ephemeral).succeeds();
    cluster.admin(&["install"]).succeeds();
    cluster.admin(&["uninstall"]).succeeds();
    cluster.admin(&["install"]).succeeds();
    cluster.admin(&["trace", "bb2", "bb1", "-c", "1"]).succeeds();
}

#[test]
fn a_namespace_that_others_use_meanwhile_stays() {
    let cluster = Cluster::up("kf-shared", "calico-bgp", &Options::default());
    let child = cluster.start(&["trace", "bb1", "8.8.8.8", "--ephemeral", "-c", "40", "-i", "0.1"]);
    until("it traces", || cluster.sessions() > 0);
    cluster.admin(&["install"]).succeeds();
    ended(child, 0);
    std::thread::sleep(Duration::from_secs(1));
    cluster.trace(&["bb2", "bb1"], 0);
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn a_lab_that_runs_beside_it_is_not_passed_over_in_silence() {
    let cluster = Cluster::installed("kf-both", "calico-bgp");
    cluster.admin(&["trace", "bb2", "bb1", "-c", "1"]).succeeds().says(&["$KUBECONFIG was taken", "--lab"]);
    let said = cluster.admin(&["trace", "bb2", "bb1", "-c", "1", "--lab", "kf-both"]).succeeds();
    assert!(!said.err.contains("was taken") && said.out.contains("context lab kf-both"), "{}{}", said.out, said.err);
}
