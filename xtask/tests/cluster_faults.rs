//! `podpath trace` through a Kubernetes API whose nodes, pods and users are in odd states: what is traced all the same, what is said,
//! and that nothing stays. The server is `xtask::kube`. Needs root, the tools of `xtask::lab::PACKAGES`, and `podpath`,
//! `podpath-agent` and `xtask` in the target folder; fails without them.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::kube::{Fault, Options, Server};

use support::Lab;

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;

const NODE1: &str = "ip-172-20-50-50.ec2.internal";
const NODE2: &str = "ip-172-20-58-60.ec2.internal";

/// A lab, and the API server whose nodes are its.
struct Cluster {
    server: Server,
    _folder: TempDir,
    _lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    fn up(name: &str, profile: &str) -> Cluster {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lab = Lab::up(name, profile);
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(name, folder.path(), &Options::default()).unwrap();
        Cluster { server, _folder: folder, _lab: lab, _turn: turn }
    }

    fn installed(name: &str, profile: &str) -> Cluster {
        let cluster = Cluster::up(name, profile);
        cluster.run(&["install"], 0);
        cluster
    }

    fn start(&self, words: &[&str]) -> Child {
        let mut command = Command::new(beside("podpath"));
        command.args(words).env("KUBECONFIG", self.server.admin_kubeconfig()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Standard output and standard error of podpath, which must end with this code.
    #[track_caller]
    fn run(&self, words: &[&str], code: i32) -> (String, String) {
        ended(self.start(words).wait_with_output().unwrap(), code)
    }

    #[track_caller]
    fn trace(&self, words: &[&str], code: i32) -> Value {
        let (out, _) = self.run(&[&["trace"], words, &["-c", "1", "-o", "json"]].concat(), code);
        serde_json::from_str(&out).unwrap()
    }

    #[track_caller]
    fn refuses(&self, words: &[&str], said: &[&str]) {
        let (_, err) = self.run(&[&["trace"], words].concat(), 1);
        assert!(said.iter().all(|word| err.contains(word)), "no {said:?} in {err}");
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

    /// Sessions of agents, which are the server's children.
    fn sessions(&self) -> usize {
        let output = Command::new("pgrep").args(["-c", "-P", &self.server.id().to_string()]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    }
}

#[track_caller]
fn ended(output: Output, code: i32) -> (String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (status, out, err) = (output.status, text(output.stdout), text(output.stderr));
    assert_eq!(status.code(), Some(code), "{out}{err}");
    (out, err)
}

fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).map(|folder: &Path| folder.join(name)).unwrap();
    assert!(path.is_file(), "no {}: run the tests by `cargo xtask test`", path.display());
    path
}

#[track_caller]
fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn nodes(trace: &Value) -> Vec<&str> {
    trace["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

#[track_caller]
fn assert_warned(trace: &Value, words: &[&str]) {
    let warnings = trace["warnings"].as_array().unwrap();
    let said = |warning: &Value| words.iter().all(|word| warning.as_str().unwrap().contains(word));
    assert!(warnings.iter().any(said), "no {words:?} in {warnings:#?}");
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
    let output = child.wait_with_output().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    // What was seen until then is shown.
    let (out, _) = ended(output, 3);
    let trace: Value = serde_json::from_str(&out).unwrap();
    assert_warned(&trace, &[NODE1, "its session ended half-way"]);
    assert_warned(&trace, &[NODE2, "its session ended half-way"]);
    assert!(trace["nodes"].as_array().unwrap().iter().all(|node| node["complete"] == false), "{trace:#}");
    until("sessions end", || cluster.sessions() == 0);
    cluster.server.resume();
    cluster.trace(&["bb2", "bb1"], 0);
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
    let cluster = Cluster::up("kf-interrupt", "calico-bgp");
    cluster.server.fault(Fault::Delay(4_000));
    let child = cluster.start(&["trace", "bb1", "8.8.8.8", "--ephemeral"]);
    until("a job is asked for", || cluster.jobs() > 0);
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let (_, err) = ended(child.wait_with_output().unwrap(), 1);
    assert!(err.contains("interrupted"), "{err}");
    cluster.server.fault(Fault::Delay(100));
    until("all goes", || cluster.server.get("/api/v1/namespaces/podpath").is_none());
}

#[test]
fn a_namespace_that_others_use_meanwhile_stays() {
    let cluster = Cluster::up("kf-shared", "calico-bgp");
    let child = cluster.start(&["trace", "bb1", "8.8.8.8", "--ephemeral", "-c", "40", "-i", "0.1"]);
    until("it traces", || cluster.sessions() > 0);
    cluster.run(&["install"], 0);
    ended(child.wait_with_output().unwrap(), 0);
    std::thread::sleep(Duration::from_secs(1));
    cluster.trace(&["bb2", "bb1"], 0);
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn a_lab_that_runs_beside_it_is_not_passed_over_in_silence() {
    let cluster = Cluster::installed("kf-both", "calico-bgp");
    let (_, err) = cluster.run(&["trace", "bb2", "bb1", "-c", "1"], 0);
    assert!(err.contains("$KUBECONFIG was taken") && err.contains("--lab"), "{err}");
    let (out, err) = cluster.run(&["trace", "bb2", "bb1", "-c", "1", "--lab", "kf-both"], 0);
    assert!(!err.contains("was taken") && out.contains("context lab kf-both"), "{out}{err}");
}
