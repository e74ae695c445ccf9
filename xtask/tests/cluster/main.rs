//! podpath against a Kubernetes API: the real binaries, a kubeconfig, and behind it a server of our own whose nodes are a lab's
//! (`xtask::kube`). podpath knows nothing of that: against a real cluster runs `real_cluster.rs`. Needs root,
//! the tools of `xtask::lab::PACKAGES`, `podpath`, `podpath-agent` and `xtask` in the target folder; fails without them.

use std::{net::TcpStream, path::Path, sync::mpsc, time::Duration};

use serde_json::{Value, json};
use xtask::kube::{Fault, Options};
use xtask::lab::inside;

use harness::{Cluster, Said, assert_warned, nodes, outcomes, podpath, start, until};

mod harness;
#[path = "../leftovers/held.rs"]
mod held;
mod live;
mod shared;
mod states;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;
#[path = "../support/terminal.rs"]
mod terminal;
mod versions;

const NODE1: &str = "ip-172-20-50-50.ec2.internal";
const NODE2: &str = "ip-172-20-58-60.ec2.internal";
const NODE3: &str = "ip-172-20-62-7.ec2.internal";

#[test]
fn from_install_to_trace_to_uninstall() {
    let cluster = Cluster::up("kube-whole", "calico-bgp", &Options::default());
    cluster.admin(&["trace", "bb2", "bb1"]).refuses(&["no agent runs there", "podpath install", "--ephemeral"]);
    cluster.admin(&["install"]).succeeds();
    cluster.admin(&["install"]).succeeds();
    let alice = cluster.user("alice");
    let said = podpath(&alice, &["trace", "bb2", "bb1", "-o", "json"]).succeeds();
    let trace = said.trace();
    assert_eq!(outcomes(&trace), ["delivered"; 5]);
    assert_eq!(nodes(&trace), [NODE2, NODE1], "only those that it concerns");
    assert_eq!(trace["source"]["name"], "default/bb2");
    assert_eq!(trace["routers"], json!(["172.20.58.60", "172.20.50.50", "100.115.37.81"]));
    assert_eq!(trace["lost_events"], 0);
    assert_eq!(trace["warnings"], json!([]));
    // The same by other names, to the Internet and on one node.
    for (ends, traced) in [
        (["default/bb1", "pod/bb3"], vec![NODE1]),
        (["bb1", "8.8.8.8"], vec![NODE1]),
        (["100.106.133.221", "100.115.37.81"], vec![NODE2, NODE1]),
        (["bb1", "node/ip-172-20-58-60.ec2.internal"], vec![NODE1, NODE2]),
    ] {
        let said = podpath(&alice, &["trace", ends[0], ends[1], "-c", "1", "-o", "json"]).succeeds();
        assert_eq!(nodes(&said.trace()), traced, "{ends:?}");
    }
    podpath(&alice, &["uninstall"]).refuses(&["forbidden"]);
    cluster.admin(&["uninstall"]).succeeds();
    assert_eq!(cluster.server.get("/api/v1/namespaces/podpath"), None);
    assert_eq!(cluster.server.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/podpath-user"), None);
    cluster.admin(&["uninstall"]).succeeds();
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn a_workload_is_one_of_its_pods() {
    let cluster = Cluster::installed("kube-work", "calico-bgp");
    cluster.server.put(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "run": "bb1" } } },
    }));
    cluster.server.put(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "none", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "run": "nobody" } } },
    }));
    let said = cluster.admin(&["trace", "bb2", "deploy/web", "-c", "1", "-o", "json"]).succeeds();
    let trace = said.trace();
    assert_eq!(trace["destination"]["name"], "default/bb1");
    assert_warned(&trace, &["deployment default/web", "bb1 was taken"]);
    cluster.admin(&["trace", "bb2", "deploy/none"]).refuses(&["no pod of it is running", "kubectl"]);
    cluster.admin(&["trace", "bb2", "deploy/nothing"]).refuses(&["no such deployment", "kubectl -n default get"]);
    cluster.admin(&["trace", "bb2", "bb11"]).refuses(&["no such pod", "context kube-work", "bb1"]);
    // A static pod is called after its node.
    let etcd = format!("kube-system/etcd-{NODE3}");
    let said = cluster.admin(&["trace", "bb1", &etcd, "-c", "1", "-o", "json"]).succeeds();
    assert_eq!(said.trace()["destination"]["name"], etcd);
    let said = cluster.admin(&[
        "trace",
        "default/bb1",
        &format!("etcd-{NODE3}"),
        "-n",
        "kube-system",
        "-c",
        "1",
        "-o",
        "json",
    ]);
    assert_eq!(said.succeeds().trace()["destination"]["name"], etcd);
    cluster.admin(&["trace", "bb 2", "bb1"]).ends_with(1).says(&["is not a name podpath knows"]);
    cluster.admin(&["trace", "bb2", "bb1", "-n", "shop"]).refuses(&["bb2: no such pod", "kubectl"]);
}

#[test]
fn requests_grow_with_the_path_not_with_the_cluster() {
    let options = Options { nodes: 5_000, pods: 150_000, ..Options::default() };
    let cluster = Cluster::up("kube-large", "calico-bgp", &options);
    cluster.admin(&["install"]).succeeds();
    let asked = |ends: [&str; 2]| {
        cluster.server.forget_requests();
        let said = cluster.admin(&["trace", ends[0], ends[1], "-c", "1", "-o", "json"]).succeeds();
        assert_eq!(outcomes(&said.trace()), ["delivered"]);
        let requests = cluster.server.requests();
        requests.iter().map(|request| format!("{} {}", request.method, request.path)).collect::<Vec<_>>()
    };
    // Of two pods: themselves, their nodes, those nodes' agents, and a session in each.
    let two_pods = asked(["bb2", "bb1"]);
    assert!(two_pods.len() <= 8, "{two_pods:#?}");
    // An address is looked for once, also where nobody has it.
    let internet = asked(["bb1", "8.8.8.8"]);
    assert!(internet.len() <= 10, "{internet:#?}");
}

#[test]
fn a_further_node_on_the_path_is_traced_too() {
    let cluster = Cluster::installed("kube-further", "calico-bgp");
    // No pod has this address; the block is the third node's.
    let said =
        cluster.admin(&["trace", "bb1", "100.104.132.9", "-c", "1", "--timeout", "0.3", "-o", "json"]).ends_with(3);
    assert_eq!(nodes(&said.trace()), [NODE1, NODE3]);
    cluster.server.fault(Fault::NoAgent { node: NODE3.to_owned(), without: true });
    until("its agent goes", || cluster.server.pod_on("podpath", "podpath-agent", NODE3).is_none());
    let said =
        cluster.admin(&["trace", "bb1", "100.104.132.9", "-c", "1", "--timeout", "0.3", "-o", "json"]).ends_with(3);
    assert_eq!(nodes(&said.trace()), [NODE1]);
    assert_warned(&said.trace(), &["not traced", NODE3, "no agent runs there"]);
}

#[test]
fn agents_for_one_trace_leave_nothing() {
    let cluster = Cluster::up("kube-ephemeral", "calico-bgp", &Options::default());
    let said = cluster.admin(&["trace", "bb1", "8.8.8.8", "--ephemeral", "-c", "2", "-o", "json"]).succeeds();
    assert_eq!(outcomes(&said.trace()), ["delivered"; 2]);
    until("the namespace goes", || cluster.server.get("/api/v1/namespaces/podpath").is_none());
    cluster.server.fault(Fault::ImageMissing { node: NODE1.to_owned(), missing: true });
    let words = ["trace", "bb1", "8.8.8.8", "--ephemeral", "--ready-within", "2"];
    cluster.admin(&words).refuses(&["ImagePullBackOff", "load the image"]);
    until("the namespace goes again", || cluster.server.get("/api/v1/namespaces/podpath").is_none());
    until("sessions end", || cluster.sessions() == 0);
}

#[test]
fn each_refusal_says_what_to_do() {
    let cluster = Cluster::installed("kube-refusals", "calico-bgp");
    let words = ["trace", "bb2", "bb1", "-c", "1", "--request-timeout", "2s"];
    let nobody = cluster.server.user("nobody", &[]);
    podpath(&nobody, &words).refuses(&["not allowed", "podpath-user"]);
    let alice = cluster.user("alice");
    podpath(&alice, &words).succeeds();
    // May look, and may not exec.
    cluster.server.delete("/apis/rbac.authorization.k8s.io/v1/namespaces/podpath/rolebindings/podpath-alice");
    podpath(&alice, &words).refuses(&["namespace podpath", "not allowed"]);
    cluster.server.expire("alice");
    podpath(&alice, &words).refuses(&["401", "log in again"]);
    cluster.server.fault(Fault::TooMany { retry_after: 1, times: 1 });
    cluster.admin(&words).succeeds();
    cluster.server.fault(Fault::Slow(5_000));
    cluster.admin(&words).refuses(&["no answer within 2 s", "--request-timeout"]);
    cluster.server.fault(Fault::Slow(0));
    cluster.server.stop();
    cluster.admin(&words).refuses(&["does not answer", "refused"]);
    cluster.server.resume();
    cluster.admin(&words).succeeds();
    let missing = Path::new("no/such/kubeconfig");
    podpath(missing, &words).refuses(&["kubeconfig", "--kubeconfig"]);
    cluster.admin(&["trace", "bb2", "bb1", "--context", "other"]).refuses(&["context other", "kube-refusals"]);
}

/// Connects again and again from a network namespace, until dropped.
fn knock(namespace: String, server: &'static str) -> mpsc::Sender<()> {
    let (sender, dropped) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        inside(&namespace, move || {
            let pause = Duration::from_millis(200);
            while dropped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Refused: nothing listens.
                let _ = TcpStream::connect_timeout(&server.parse()?, pause);
            }
            Ok(())
        })
        .unwrap();
    });
    sender
}

/// Of a service the nodes of its endpoints are traced, of a node port also the node that is asked; both are found by few requests.
#[test]
fn a_service_leads_to_its_endpoints() {
    let shop = json!({
        "name": "shop", "cluster_ip": "100.64.0.10", "port": 80, "target_port": 8080, "node_port": 30080, "endpoints": ["bb2"],
        "load_balancer_ips": ["198.51.100.10"], "announced_by": "node3",
    });
    let plant = serde_json::from_value(json!({ "plant": "services", "mode": "nftables", "services": [shop] })).unwrap();
    let cluster = Cluster::planted("kube-service", "calico-bgp", &plant);
    let alice = cluster.user("alice");
    for destination in ["svc/shop", "100.64.0.10"] {
        cluster.server.forget_requests();
        let said = podpath(&alice, &["trace", "bb1", destination, "--tcp", "80", "-c", "2", "-o", "json"]).ends_with(3);
        let trace = said.trace();
        // Nothing listens there; it is the endpoint that says so.
        assert_eq!((nodes(&trace), outcomes(&trace)), (vec![NODE1, NODE2], vec!["rejected"; 2]), "{destination}");
        assert_eq!(trace["exchanges"][0]["rejection"]["pod"], "default/bb2");
        assert_eq!(
            trace["service"],
            json!({
                "namespace": "default", "name": "shop", "endpoints": 1, "ready": 1, "addresses": ["100.106.133.221"],
                "local": null,
            })
        );
        let requests = cluster.server.requests();
        assert!(requests.len() <= 16, "{}: {requests:#?}", requests.len());
    }
    let port = ["trace", "bb1", "node/ip-172-20-62-7.ec2.internal", "--tcp", "30080", "-c", "2", "-o", "json"];
    let trace = podpath(&alice, &port).ends_with(3).trace();
    assert_eq!(nodes(&trace), [NODE1, NODE3, NODE2]);
    assert_eq!(trace["exchanges"][0]["rejection"]["pod"], "default/bb2");
    // From outside it may come in at any node; who comes is only watched.
    let client = knock(cluster.lab.internet.clone(), "198.51.100.10:80");
    for destination in ["198.51.100.10:80", "svc/shop"] {
        let trace =
            podpath(&alice, &["trace", "203.0.113.9", destination, "-c", "2", "-o", "json"]).ends_with(3).trace();
        assert_eq!(nodes(&trace), [NODE2, NODE1, NODE3], "{destination}");
        assert_eq!(outcomes(&trace), ["rejected"; 2]);
        assert_eq!(trace["exchanges"][0]["request"]["hops"][0]["node"], NODE3);
        assert_eq!(trace["exchanges"][0]["rejection"]["pod"], "default/bb2");
    }
    drop(client);
    podpath(&alice, &["trace", "svc/shop", "bb1"]).refuses(&["a service sends nothing"]);
    podpath(&alice, &["trace", "bb1", "svc/shop", "--tcp", "81"]).refuses(&["--tcp 81", "80/TCP"]);
}

/// Which network policies select a pod is asked only where one dropped a packet; who may not ask is traced for all the same.
#[test]
fn a_policy_that_drops_is_named() {
    let plant = serde_json::from_value(json!({ "plant": "policy-drop", "pod": "bb1" })).unwrap();
    let cluster = Cluster::planted("kube-policy", "calico-bgp", &plant);
    let alice = cluster.user("alice");
    let trace = |words: &[&str]| {
        let words = [&["trace", "bb2", "bb1", "-c", "2", "--timeout", "0.3"], words].concat();
        podpath(&alice, &words).ends_with(3)
    };
    let policies = |trace: &Value| {
        let hops = trace["exchanges"][0]["request"]["hops"].as_array().unwrap();
        hops.last().unwrap()["detail"]["drop"]["policies"].clone()
    };
    cluster.server.forget_requests();
    let told = trace(&["-o", "json"]).trace();
    let named = json!({
        "kind": "NetworkPolicy", "api_group": "networking.k8s.io", "namespace": "default", "name": "deny-ingress-bb1",
    });
    let expected = json!({
        "pod": "default/bb1", "direction": "ingress", "stage": "none-allowed", "read": "all", "names": [named],
    });
    assert_eq!((policies(&told), &told["warnings"]), (expected, &json!([])));
    let asked = |about: &str| {
        let requests = cluster.server.requests();
        requests.into_iter().filter(|request| request.path.contains(about)).count()
    };
    assert_eq!((asked("/networkpolicies"), asked("/globalnetworkpolicies")), (2, 1), "Kubernetes' and Calico's");

    cluster.server.put(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": { "name": "default.base" },
        "spec": { "selector": "run in {'bb1', 'bb3'}", "types": ["Ingress"] },
    }));
    let text = trace(&[]).out.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = "policy default/deny-ingress-bb1, Calico's global default.base select default/bb1 for ingress; none of them lets this packet in";
    assert!(text.contains(said), "{text}");

    // What an older version's role allows.
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/podpath-user";
    let mut role = cluster.server.get(path).unwrap();
    let rules = role["rules"].as_array_mut().unwrap();
    rules.retain(|rule| !rule["resources"].to_string().contains("networkpolicies"));
    cluster.server.put(role);
    let told = trace(&["-o", "json"]).trace();
    assert_eq!((&policies(&told)["read"], &policies(&told)["names"]), (&json!("some"), &json!([])));
    assert_warned(&told, &["not all network policies could be read", "networkpolicies", "podpath-user"]);
    assert_eq!(told["warnings"].as_array().map(Vec::len), Some(1), "{}", told["warnings"]);
}

#[test]
fn nodes_are_listed_with_what_they_can() {
    let cluster = Cluster::installed("c-nodes", "calico-bgp");
    let alice = cluster.user("alice");
    let said = podpath(&alice, &["nodes"]).succeeds();
    let lines: Vec<&str> = said.out.lines().take(4).collect();
    assert!(lines[0].starts_with("NODE") && lines[0].ends_with("TRACES"), "{}", said.out);
    assert!(lines[1..].iter().all(|line| line.contains("Ready") && line.contains("yes")), "{}", said.out);

    cluster.server.fault(Fault::NoAgent { node: NODE2.to_owned(), without: true });
    until("its agent goes", || cluster.server.pod_on("podpath", "podpath-agent", NODE2).is_none());
    let said = podpath(&alice, &["nodes", "-o", "json", NODE1, NODE2]).ends_with(1);
    let told = said.trace();
    assert_eq!(nodes(&told), [NODE1, NODE2]);
    assert_eq!((&told["nodes"][0]["can_trace"], &told["nodes"][1]["can_trace"]), (&json!(true), &json!(null)));
    assert_eq!(told["nodes"][0]["version"], env!("CARGO_PKG_VERSION"));
    let error = told["nodes"][1]["error"].as_str().unwrap();
    assert!(error.contains("no agent runs there"), "{error}");
    let said = podpath(&alice, &["nodes", "-o", "yaml", NODE1]).succeeds();
    let yaml: Value = serde_norway::from_str(&said.out).unwrap();
    assert_eq!(yaml["nodes"][0], told["nodes"][0]);
    podpath(&alice, &["nodes", "node-9"]).refuses(&["node-9", NODE1]);
    assert_eq!(cluster.sessions(), 0);
}

#[test]
fn one_of_two_nodes_without_an_agent() {
    let cluster = Cluster::installed("kube-half", "calico-bgp");
    let gone = |node: &str, without| {
        cluster.server.fault(Fault::NoAgent { node: node.to_owned(), without });
        until("agents come and go", || cluster.server.pod_on("podpath", "podpath-agent", node).is_none() == without);
    };
    gone(NODE1, true);
    let said = cluster.admin(&["trace", "bb2", "bb1", "-c", "1", "-o", "json"]).succeeds();
    let trace = said.trace();
    assert_eq!((nodes(&trace), outcomes(&trace)), (vec![NODE2], vec!["delivered"]));
    assert_warned(&trace, &["not traced", NODE1, "podpath install"]);
    cluster.admin(&["trace", "bb1", "bb2", "-c", "1"]).refuses(&[NODE1, "no agent runs there"]);
    cluster.server.fault(Fault::ImageMissing { node: NODE1.to_owned(), missing: true });
    gone(NODE1, false);
    until("the image is missed", || {
        cluster.admin(&["trace", "bb1", "bb2", "-c", "1"]).err.contains("ImagePullBackOff")
    });
    cluster.admin(&["trace", "bb1", "bb2", "-c", "1"]).refuses(&["load the image"]);
}

#[test]
fn what_breaks_in_mid_trace_is_told() {
    let cluster = Cluster::installed("kube-broken", "calico-bgp");
    let admin = cluster.server.admin_kubeconfig();
    let words = ["trace", "bb2", "bb1", "-c", "40", "-i", "0.1", "-o", "json"];
    let run = |break_it: &dyn Fn()| {
        let child = start(&admin, &words);
        until("it traces", || cluster.sessions() >= 2);
        std::thread::sleep(Duration::from_millis(1500));
        break_it();
        Said::of(child.wait_with_output().unwrap())
    };
    // The destination's agent is deleted: the trace goes on.
    let pod = cluster.server.pod_on("podpath", "podpath-agent", NODE1).unwrap();
    let said = run(&|| cluster.server.delete(&format!("/api/v1/namespaces/podpath/pods/{pod}")));
    let trace = said.trace();
    assert_warned(&trace, &[NODE1]);
    let complete = |trace: &Value, node: &str| {
        let nodes = trace["nodes"].as_array().unwrap();
        nodes.iter().find(|known| known["name"] == node).map(|known| known["complete"].clone())
    };
    assert_eq!((complete(&trace, NODE1), complete(&trace, NODE2)), (Some(json!(false)), Some(json!(true))));
    // All connections are cut.
    until("the agent is back", || cluster.admin(&["trace", "bb2", "bb1", "-c", "1"]).code == Some(0));
    let said = run(&|| cluster.server.fault(Fault::CutAllExecs));
    assert_ne!(said.code, Some(0), "{}", said.out);
    until("sessions end", || cluster.sessions() == 0);
    // A server that never tells the agents of an end of input.
    cluster.server.fault(Fault::NoHalfClose(true));
    cluster.admin(&["trace", "bb2", "bb1", "-c", "1"]).succeeds();
    until("sessions end all the same", || cluster.sessions() == 0);
}
