//! Planted services lead where kube-proxy's would, in both of its modes; taken out, they are gone. Needs what `lab.rs` needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;
use support::{Lab, exec};
use xtask::kube::{Options, Server};
use xtask::lab::plant::Plant;
use xtask::lab::service::Mode;
use xtask::lab::{LabInfo, LabPod, inside};

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;

/// Longer than any answer in a lab takes; what is dropped is waited for as long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections after which each of two endpoints has been chosen: one stays out once in 2^39 runs.
const MANY: usize = 40;
const PORT: u16 = 8080;

/// In both Calico labs `bb1`, `web` and `bb3` are on node1, `bb2` on node2 and none on node3.
const SERVICES: &str = include_str!("../../scenarios/services/calico-bgp.toml");
const WEB: &str = "100.64.0.10";
const NONE: &str = "100.64.0.11";
const LOCAL: &str = "100.64.0.12";
const STICKY: &str = "100.64.0.13";
const SELF: &str = "100.64.0.14";

/// The file's services, in either mode.
fn plant(mode: Mode) -> Plant {
    #[derive(serde::Deserialize)]
    struct File {
        plants: Vec<Plant>,
    }
    let File { plants } = toml::from_str(SERVICES).unwrap();
    let [Plant::Services { services, .. }] = &plants[..] else { panic!("{plants:?}") };
    Plant::Services { mode, services: services.clone() }
}

/// A server in each pod, which answers with the pod's name and the client's address; until the test ends.
fn serve(lab: &LabInfo) {
    for pod in &lab.pods {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let listener = inside(&pod.namespace, || Ok(TcpListener::bind(any)?)).unwrap();
        let name = pod.name.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let client = stream.peer_addr().unwrap().ip();
                stream.write_all(format!("{name} {client}").as_bytes()).unwrap();
            }
        });
    }
}

/// Who answers, and which address it saw.
fn ask(namespace: &str, address: &str, port: u16) -> Result<(String, IpAddr), ErrorKind> {
    let server = SocketAddr::new(address.parse().unwrap(), port);
    let answer = inside(namespace, || {
        let text = TcpStream::connect_timeout(&server, PATIENCE).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        Ok(text.map_err(|error| error.kind()))
    });
    answer.unwrap().map(|text| {
        let (name, client) = text.split_once(' ').unwrap();
        (name.to_owned(), client.parse().unwrap())
    })
}

fn ask_often(namespace: &str, address: &str, port: u16) -> BTreeSet<(String, IpAddr)> {
    (0..MANY).map(|_| ask(namespace, address, port).unwrap()).collect()
}

fn names(answers: &BTreeSet<(String, IpAddr)>) -> BTreeSet<&str> {
    answers.iter().map(|(name, _)| name.as_str()).collect()
}

/// Every rule of every namespace of the lab, and what the API would say.
fn settings(lab: &LabInfo) -> String {
    let rules = lab.namespaces.iter().map(|namespace| exec(namespace, "nft --stateless list ruleset"));
    rules.collect::<String>() + &fs::read_to_string(&lab.identity).unwrap()
}

fn both_modes(name: &str, profile: &str, check: impl Fn(&LabInfo)) {
    let lab = Lab::up(name, profile);
    serve(&lab);
    let before = settings(&lab);
    for mode in [Mode::Iptables, Mode::Nftables] {
        eprintln!("{mode:?}");
        let planted = plant(mode).plant(&lab).unwrap();
        check(&lab);
        planted.remove().unwrap();
        assert_eq!(settings(&lab), before, "{mode:?}");
    }
    let bb1 = &lab.pod("bb1").unwrap().namespace;
    ask(bb1, WEB, 80).unwrap_err();
}

/// A client inside of the cluster reaches every endpoint by the cluster IP.
fn a_cluster_ip_leads_to_its_endpoints(lab: &LabInfo) {
    let (bb1, node1, node3) = (lab.pod("bb1").unwrap(), lab.node("node1").unwrap(), lab.node("node3").unwrap());
    let both = BTreeSet::from(["bb2", "web"]);
    let answers = ask_often(&bb1.namespace, WEB, 80);
    assert_eq!(names(&answers), both);
    assert!(answers.iter().all(|(_, client)| *client == IpAddr::from(bb1.address)), "{answers:?}");
    for node in [node1, node3] {
        let answers = ask_often(&node.namespace, WEB, 80);
        assert_eq!(names(&answers), both, "{}", node.name);
        assert!(answers.contains(&("bb2".to_owned(), node.address.into())), "{answers:?}");
    }

    let (name, client) = ask(&bb1.namespace, SELF, 80).unwrap();
    assert_eq!(name, "bb1");
    assert_ne!(client, IpAddr::from(bb1.address), "the node takes the client's place");
    let addresses = exec(&node1.namespace, "ip -4 -o address");
    assert!(addresses.contains(&format!(" {client}/")), "{client} in\n{addresses}");

    let answers = ask_often(&bb1.namespace, STICKY, 80);
    assert_eq!(answers.len(), 1, "{answers:?}");
}

/// Nobody is there: the client is told at once.
fn without_endpoints_clients_are_refused(lab: &LabInfo) {
    let gateway = &lab.gateway;
    let node1 = lab.node("node1").unwrap();
    for (from, address, port) in [
        (&lab.pod("bb1").unwrap().namespace, NONE, 80),
        (&node1.namespace, NONE, 80),
        (gateway, &node1.address.to_string(), 30_081),
    ] {
        assert_eq!(ask(from, address, port), Err(ErrorKind::ConnectionRefused), "from {from}");
    }
}

/// A client outside of the cluster, on the nodes' subnet.
fn a_node_port_leads_in(lab: &LabInfo) {
    let [node1, node2, node3] = ["node1", "node2", "node3"].map(|node| lab.node(node).unwrap());
    for node in [node1, node3] {
        let answers = ask_often(&lab.gateway, &node.address.to_string(), 30_080);
        assert_eq!(names(&answers), BTreeSet::from(["bb2", "web"]), "{}", node.name);
        assert!(answers.contains(&("bb2".to_owned(), node.address.into())), "the node takes its place: {answers:?}");
    }
    for (node, pod) in [(node1, "web"), (node2, "bb2")] {
        let answers = ask_often(&lab.gateway, &node.address.to_string(), 30_082);
        assert_eq!(names(&answers), BTreeSet::from([pod]), "{}", node.name);
        let gateways = exec(&lab.gateway, "ip -4 -o address show dev eth0");
        let keeps = |client: &IpAddr| gateways.contains(&format!(" {client}/"));
        assert!(answers.iter().all(|(_, client)| keeps(client)), "{answers:?}");
    }
    assert_eq!(ask(&lab.gateway, &node3.address.to_string(), 30_082), Err(ErrorKind::TimedOut));
    // To clients inside the policy does not apply: by the cluster IP, and by the node port of their own node.
    let bb1 = &lab.pod("bb1").unwrap().namespace;
    assert_eq!(names(&ask_often(bb1, LOCAL, 80)), BTreeSet::from(["bb2", "web"]));
    assert_eq!(names(&ask_often(bb1, &node1.address.to_string(), 30_082)), BTreeSet::from(["bb2", "web"]));
}

/// A client far away, and one that the load balancer does not let in.
fn balancers_and_external_addresses_lead_in(lab: &LabInfo) {
    let [balancer, external, local] = ["198.51.100.10", "198.51.100.20", "198.51.100.11"];
    let client: IpAddr = "203.0.113.9".parse().unwrap();
    let node3 = IpAddr::from(lab.node("node3").unwrap().address);
    for address in [balancer, external] {
        assert_eq!(
            ask(&lab.internet, address, 80),
            Ok(("bb2".to_owned(), node3)),
            "the node takes its place: {address}"
        );
    }
    let bb1 = lab.pod("bb1").unwrap();
    assert_eq!(ask(&bb1.namespace, balancer, 80), Err(ErrorKind::TimedOut), "not in its source ranges");
    assert_eq!(ask(&bb1.namespace, external, 80).unwrap().0, "bb2");
    assert_eq!(
        ask_often(&lab.internet, local, 80),
        BTreeSet::from([("bb2".to_owned(), client)]),
        "it keeps its address"
    );
    let inside = BTreeSet::from(["bb2", "web"].map(|name| (name.to_owned(), IpAddr::from(bb1.address))));
    assert_eq!(ask_often(&bb1.namespace, local, 80), inside);
}

#[test]
fn services_lead_where_kube_proxys_would() {
    both_modes("t-services", "calico-bgp", |lab| {
        a_cluster_ip_leads_to_its_endpoints(lab);
        without_endpoints_clients_are_refused(lab);
        a_node_port_leads_in(lab);
        balancers_and_external_addresses_lead_in(lab);
    });
}

#[test]
fn services_lead_beside_calicos_nftables_mode() {
    both_modes("t-services-nft", "calico-nft", |lab| {
        a_cluster_ip_leads_to_its_endpoints(lab);
        a_node_port_leads_in(lab);
    });
}

/// The node takes the place of a pod that asks itself, with its address on the way back to it.
#[test]
fn other_networks_have_services_too() {
    for (profile, client, other, nodes) in [
        ("flannel", "busybox-on-master", "nginx-on-master", "10.42.0.1"),
        ("kindnet", "echoserver-1", "echoserver-2", "10.244.1.1"),
    ] {
        let lab = Lab::up(&format!("t-services-{profile}"), profile);
        serve(&lab);
        let before = settings(&lab);
        for mode in [Mode::Iptables, Mode::Nftables] {
            let endpoints = [client, other].map(str::to_owned);
            let service = format!("name = 'web'\ncluster_ip = '{WEB}'\nport = {PORT}\nendpoints = {endpoints:?}");
            let services = vec![toml::from_str(&service).unwrap()];
            let planted = Plant::Services { mode, services }.plant(&lab).unwrap();
            let LabPod { namespace, address, .. } = lab.pod(client).unwrap();
            let expected = [(client, nodes.parse().unwrap()), (other, IpAddr::from(*address))]
                .map(|(pod, seen)| (pod.to_owned(), seen));
            assert_eq!(ask_often(namespace, WEB, PORT), BTreeSet::from(expected), "{profile} {mode:?}");
            planted.remove().unwrap();
            assert_eq!(settings(&lab), before, "{profile} {mode:?}");
        }
    }
}

#[test]
fn services_are_planted_all_at_once() {
    let lab = Lab::up("t-services-two", "calico-bgp");
    let before = settings(&lab);
    let planted = plant(Mode::Iptables).plant(&lab).unwrap();
    for mode in [Mode::Iptables, Mode::Nftables] {
        let error = format!("{:#}", plant(mode).plant(&lab).unwrap_err());
        assert!(error.contains("services stand there already"), "{error}");
    }
    drop(planted);
    assert_eq!(settings(&lab), before);
}

#[test]
fn the_api_serves_what_is_planted() {
    let lab = Lab::up("t-services-api", "calico-bgp");
    let _planted = plant(Mode::Nftables).plant(&lab).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Nothing is traced: any program does for the agent.
    let options = Options { agent: Some("/bin/true".into()), ..Options::default() };
    let server = Server::start(&lab.name, folder.path(), &options).unwrap();
    let service = server.get("/api/v1/namespaces/default/services/web").unwrap();
    assert_eq!(service["spec"]["clusterIP"], WEB);
    let list: Value = serde_norway::from_str(&fs::read_to_string(&lab.identity).unwrap()).unwrap();
    let of_web = |item: &&Value| item["metadata"]["labels"]["kubernetes.io/service-name"] == "web";
    let slice = list["items"].as_array().unwrap().iter().find(of_web).unwrap();
    let name = slice["metadata"]["name"].as_str().unwrap();
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{name}");
    assert_eq!(server.get(&path).unwrap()["endpoints"][0]["targetRef"]["name"], "bb2");
}
