//! One kernel under several nodes (kind, k3d, a lab): each agent sees all of the kernel's packets, and tells only of its own node's.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    time::Duration,
};

use serde_json::{Value, json};
use tracer_user::{
    event::Record,
    session::{Connection, Flow, Ping, Plan, ProbeKind, Request, drive},
};

use crate::{
    harness::{Cluster, Said, beside, nodes, outcomes, start, until},
    support::{Lab, exec},
};

const ICMP: u8 = 1;

/// The namespaces of a node: its own under "", and its pods'.
fn namespaces<'a>(lab: &'a Lab, node: &str) -> BTreeMap<String, &'a str> {
    let node = lab.node(node).unwrap();
    let pods = lab.pods.iter().filter(|pod| pod.node == node.host);
    let pods = pods.map(|pod| (format!("{}/{}", pod.kubernetes_namespace, pod.name), pod.namespace.as_str()));
    pods.chain([(String::new(), node.namespace.as_str())]).collect()
}

/// Index -> name of the links in a namespace.
fn links(namespace: &str) -> BTreeMap<u64, String> {
    let links: Value = serde_json::from_str(&exec(namespace, "ip -j link")).unwrap();
    let links = links.as_array().unwrap().iter();
    links.map(|link| (link["ifindex"].as_u64().unwrap(), link["ifname"].as_str().unwrap().to_owned())).collect()
}

/// Each hop is of a namespace of its node. From when to when they happened, by the one clock of the one kernel.
fn owned(lab: &Lab, trace: &Value) -> (i64, i64) {
    let known: BTreeMap<&str, BTreeMap<String, BTreeMap<u64, String>>> = nodes(trace)
        .into_iter()
        .map(|node| (node, namespaces(lab, node).into_iter().map(|(pod, namespace)| (pod, links(namespace))).collect()))
        .collect();
    let mut times = Vec::new();
    for exchange in trace["exchanges"].as_array().unwrap() {
        let clocks = exchange["clocks"].as_array().unwrap().iter();
        let clocks: BTreeMap<&str, i64> =
            clocks.map(|at| (at["node"].as_str().unwrap(), at["monotonic_ns"].as_i64().unwrap())).collect();
        for hop in hops(exchange) {
            let node = hop["node"].as_str().unwrap();
            let links = known[node].get(hop["pod"].as_str().unwrap_or_default());
            let link = links.and_then(|links| links.get(&hop["ifindex"].as_u64()?)).map(String::as_str);
            assert!(link.is_some() && link == hop["interface"].as_str(), "not of {node}: {hop:#}");
            // That of the node's clock is exact, whatever is made of the way between two clocks.
            times.push(clocks[node] + hop["at_ns"].as_i64().unwrap());
        }
    }
    assert!(times.is_sorted(), "not in the order of the kernel's clock");
    (times[0], times[times.len() - 1])
}

/// There and back.
fn hops(exchange: &Value) -> impl Iterator<Item = &Value> {
    ["request", "reply"].into_iter().flat_map(|way| exchange[way]["hops"].as_array().unwrap())
}

/// The pods, and the nodes by their names, in the order in which they told of the packets.
fn tellers(exchange: &Value) -> Vec<&str> {
    let mut all: Vec<&str> = hops(exchange).map(|hop| hop["pod"].as_str().or(hop["node"].as_str()).unwrap()).collect();
    all.dedup();
    all
}

#[test]
fn two_traces_at_once_on_one_kernel_tell_each_nodes_own_hops() {
    let cluster = Cluster::installed("kube-shared", "kindnet");
    // kind-worker2 is in both, with an agent for each.
    let (pod1, node1) = ("default/busybox", "kind-worker");
    let (pod2, node2, node3) = ("default/echoserver-2", "kind-worker2", "kind-control-plane");
    let ends = [("alice", "busybox", "echoserver-2"), ("bob", "echoserver-2", "node/kind-control-plane")];
    let children = ends.map(|(user, source, destination)| {
        let words = ["trace", source, destination, "-c", "40", "-i", "0.1", "-o", "json"];
        start(&cluster.user(user), &words)
    });
    until("all four agents are at work", || cluster.sessions() == 4);
    let traces = children.map(|child| Said::of(child.wait_with_output().unwrap()).succeeds().trace());
    let on = [[node1, node2], [node2, node3]];
    let ways = [vec![pod1, node1, node2, pod2, node2, node1, pod1], vec![pod2, node2, node3, node2, pod2]];
    for ((trace, on), way) in traces.iter().zip(on).zip(&ways) {
        assert_eq!((nodes(trace), outcomes(trace)), (on.to_vec(), vec!["delivered"; 40]));
        assert_eq!((&trace["lost_events"], &trace["warnings"]), (&json!(0), &json!([])));
        assert!(trace["nodes"].as_array().unwrap().iter().all(|node| node["complete"] == true), "{trace:#}");
        for exchange in trace["exchanges"].as_array().unwrap() {
            assert_eq!((&tellers(exchange), &exchange["notes"]), (way, &json!([])));
        }
    }
    let [alice, bob] = traces.each_ref().map(|trace| owned(&cluster.lab, trace));
    assert!(alice.0 < bob.1 && bob.0 < alice.1, "not at the same time: {alice:?}, {bob:?}");
    until("sessions end", || cluster.sessions() == 0);
}

/// The same of what the agents record, before anything is made of it: no joiner puts right what two nodes tell.
#[tokio::test]
async fn agents_on_one_kernel_record_their_own_nodes_packets_alone() {
    let lab = Lab::up("shared-raw", "kindnet");
    let address = |pod: &str| lab.pod(pod).unwrap().address.into();
    let (src, dst) = (address("busybox"), address("echoserver-2"));
    let echo = 4711;
    let flow = Flow { a: src, b: Some(dst), protocol: ICMP, a_port: Some(echo), b_port: None, one_of: 1 };
    let ping = Ping {
        src,
        home: None,
        any_source: false,
        dst,
        kind: ProbeKind::Echo { id: echo },
        count: 10,
        interval: Duration::from_millis(50),
        size: 56,
        timeout: Duration::from_secs(1),
        nonce_base: 1,
    };
    let request = |ping| Request {
        flows: vec![flow.clone()],
        time_limit: Duration::from_secs(60),
        ping,
        trace_rules: false,
        sparing: false,
    };
    let plan = Plan {
        armed_within: Duration::from_secs(40),
        record_for: None,
        armed_last: None,
        all_needed: true,
        passes_on: false,
    };
    let agent = beside("podpath-agent");
    let sessions = lab.nodes.iter().map(|node| {
        let command = ["ip", "netns", "exec", &node.namespace, agent.to_str().unwrap(), "session"];
        let ping = (node.name == "kind-worker").then(|| ping.clone());
        (Connection::spawn(&node.name, &command.map(OsString::from)).unwrap(), request(ping))
    });
    let driven = drive(sessions.collect(), plan, std::future::pending(), |_| {}).await.unwrap();
    assert_eq!(driven.warnings, [""; 0]);
    for node in &driven.evidence.nodes {
        assert!(node.complete && node.lost == 0, "{}", node.name);
        let own: BTreeSet<u64> = namespaces(&lab, &node.name)
            .values()
            .map(|namespace| fs::metadata(format!("/run/netns/{namespace}")).unwrap().ino())
            .collect();
        for record in &node.records {
            let netns = match record {
                Record::Sighting(sighting) => sighting.netns,
                Record::Translation(translation) => translation.netns,
                Record::Rewrite(rewrite) => rewrite.netns,
            };
            // No namespace is of two nodes, so this is also to say that nothing is told twice.
            assert!(own.contains(&u64::from(netns)), "not of {}: {record:?}", node.name);
        }
    }
    let records = |name: &str| driven.evidence.nodes.iter().find(|node| node.name == name).unwrap().records.len();
    // Ten exchanges over three interfaces of each of the two; nothing of the third.
    assert!(records("kind-worker") >= 60 && records("kind-worker2") >= 60);
    assert_eq!(records("kind-control-plane"), 0);
}
