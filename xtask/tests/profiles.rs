//! Every profile on this kernel: what the owners of such a cluster see with `ip`, `ping` and `traceroute`.
//! Needs root and the tools of `xtask::lab::PACKAGES`. Where the kernel has no such tunnel device, the lab says so and
//! the rest of it is as documented.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use support::{Lab, address, exec, requests_seen, times};
use xtask::lab::{LabInfo, inside, run};

mod support;

/// What ping prints, answered or not.
fn ping(lab: &LabInfo, pod: &str, arguments: &str) -> String {
    let output = inside(&lab.pod(pod).unwrap().namespace, || {
        Ok(Command::new("ping").arg("-n").args(arguments.split(' ')).output()?)
    });
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// TTL of the answer, if there is one within a second.
fn ttl(lab: &LabInfo, pod: &str, to: &str) -> Option<u32> {
    let output = ping(lab, pod, &format!("-c1 -W1 {to}"));
    assert_eq!(times(&output).len(), output.matches("ttl=").count(), "{output}");
    output.split_once("ttl=")?.1.split(' ').next()?.parse().ok()
}

/// Who answers when the TTL runs out, as traceroute lists them, up to the destination; `*` where nobody does.
fn routers(lab: &LabInfo, from: &str, to: &str) -> Vec<String> {
    let mut routers = Vec::new();
    for ttl in 1..=5 {
        let text = ping(lab, from, &format!("-c1 -W1 -t{ttl} {to}"));
        let line = text.lines().find_map(|line| {
            line.strip_prefix("From ").or_else(|| line.split_once("bytes from ").map(|parts| parts.1))
        });
        let line = line.unwrap_or("*");
        // The colon after an address that answered is no part of it, IPv6 or not.
        routers.push(line.split(' ').next().unwrap().trim_end_matches(':').to_owned());
        if text.contains("bytes from ") {
            break;
        }
    }
    routers
}

fn assert_has_line(text: &str, line: &str) {
    assert!(text.lines().any(|have| have.trim() == line), "no `{line}` in:\n{text}");
}

fn assert_routes(lab: &LabInfo, node: &str, routes: &[&str]) {
    let have = exec(&lab.node(node).unwrap().namespace, "ip route");
    routes.iter().for_each(|route| assert_has_line(&have, route));
}

fn link(namespace: &str, name: &str) -> Value {
    let links: Value = serde_json::from_str(&exec(namespace, &format!("ip -j -d link show dev {name}"))).unwrap();
    links[0].clone()
}

/// Whether every node has the device; if not, the lab must say that none has.
fn has(lab: &LabInfo, device: &str) -> bool {
    let absent = lab.nodes.iter().filter(|node| {
        let text = format!("{}: no {device}: this kernel has no ", node.namespace);
        lab.absent.iter().any(|absent| absent.starts_with(&text))
    });
    match absent.count() {
        0 => assert_eq!(lab.absent, [""; 0]),
        all => assert_eq!(all, lab.nodes.len(), "{:?}", lab.absent),
    }
    lab.absent.is_empty()
}

#[test]
fn without_ipip_only_pods_of_one_node_reach_each_other() {
    let lab = Lab::up("t-ipip-none", "calico-ipip");
    let across = has(&lab, "tunl0").then_some(62);
    assert_eq!(ttl(&lab, "bb2", "100.115.37.81"), across);
    assert_eq!(ttl(&lab, "bb1", &address(&lab, "bb3")), Some(63));
}

#[test]
#[ignore = "needs ipip devices, which not every kernel has"]
fn ipip_always_goes_through_the_tunnel() {
    let lab = Lab::up("t-ipip", "calico-ipip");
    assert!(has(&lab, "tunl0"), "{:?}", lab.absent);
    assert_routes(&lab, "node1", &["100.106.133.192/26 via 172.20.58.60 dev tunl0 proto bird onlink"]);
    assert_routes(&lab, "node2", &["100.115.37.64/26 via 172.20.50.50 dev tunl0 proto bird onlink"]);
    let tunl0 = link(&lab.node("node1").unwrap().namespace, "tunl0");
    assert_eq!((&tunl0["mtu"], &tunl0["link_type"]), (&8981.into(), &"ipip".into()));
    assert_eq!(ttl(&lab, "bb2", "100.115.37.81"), Some(62));
    // The second line is node1's tunnel address.
    assert_eq!(routers(&lab, "bb2", "100.115.37.81"), ["172.20.58.60", "100.115.37.64", "100.115.37.81"]);
}

#[test]
fn ipip_across_subnets_is_direct_within_one() {
    let lab = Lab::up("t-ipip-cross", "calico-ipip-crosssubnet");
    assert_routes(&lab, "node1", &["100.106.133.192/26 via 172.20.58.60 dev ens5 proto bird"]);
    assert_eq!(routers(&lab, "bb2", "100.115.37.81"), ["172.20.58.60", "172.20.50.50", "100.115.37.81"]);
    // The gateway routes between the subnets.
    let node4 = lab.node("node4").unwrap().address.to_string();
    assert_eq!(routers(&lab, "bb1", &node4), ["172.20.50.50", "172.20.32.1", "172.20.70.80"]);
    let across = has(&lab, "tunl0").then_some(62);
    assert_eq!(ttl(&lab, "bb1", &address(&lab, "bb4")), across);
}

#[test]
#[ignore = "needs ipip devices, which not every kernel has"]
fn ipip_across_subnets_goes_through_the_tunnel() {
    let lab = Lab::up("t-ipip-far", "calico-ipip-crosssubnet");
    assert!(has(&lab, "tunl0"), "{:?}", lab.absent);
    assert_routes(&lab, "node1", &["100.111.9.64/26 via 172.20.70.80 dev tunl0 proto bird onlink"]);
    assert_routes(&lab, "node4", &["100.115.37.64/26 via 172.20.50.50 dev tunl0 proto bird onlink"]);
    // The outer packet inherits the inner one's TTL: at the gateway the second dies with it, and the error, being about
    // the outer packet, does not reach the pod. Two nodes and a router decrement two headers: three lines.
    assert_eq!(routers(&lab, "bb1", "100.111.9.70"), ["172.20.50.50", "*", "100.111.9.70"]);
    assert_eq!(ttl(&lab, "bb1", "100.111.9.70"), Some(62));
}

#[test]
fn without_wireguard_the_main_table_leads_there_unencrypted() {
    let lab = Lab::up("t-wireguard-none", "calico-wireguard");
    has(&lab, "wireguard.cali");
    assert_eq!(ttl(&lab, "customer", "10.48.0.129"), Some(62));
}

#[test]
#[ignore = "needs WireGuard devices, which not every kernel has"]
fn wireguard_hides_every_packet_between_pods_of_two_nodes() {
    let lab = Lab::up("t-wireguard", "calico-wireguard");
    let worker1 = lab.node("worker1").unwrap();
    assert!(has(&lab, "wireguard.cali"), "{:?}", lab.absent);
    assert_has_line(&exec(&worker1.namespace, "ip rule"), "99:\tnot from all fwmark 0x100000/0x100000 lookup 1");
    assert_has_line(
        &exec(&worker1.namespace, "ip route show table 1"),
        "10.48.0.128/26 dev wireguard.cali proto bird scope link",
    );
    let worker2 = &lab.node("worker2").unwrap().namespace;
    let table = exec(worker2, "ip route show table 1");
    assert_has_line(&table, "throw 10.48.0.128/26 proto bird");
    assert_has_line(&table, "throw 10.48.0.80 proto bird");
    assert_eq!(link(&worker1.namespace, "wireguard.cali")["mtu"], 1440);
    let plain = requests_seen(&lab.wire, || assert_eq!(ttl(&lab, "customer", "10.48.0.129"), Some(62)));
    assert_eq!(plain, BTreeSet::new());
    assert_eq!(ttl(&lab, "customer", "10.48.0.80"), Some(62));
    let transfer = exec(&worker1.namespace, "wg show wireguard.cali transfer");
    assert!(transfer.lines().any(|line| !line.ends_with("\t0")), "{transfer}");
}

#[test]
fn vxlan_of_calico_is_as_felix_makes_it() {
    let lab = Lab::up("t-vxlan", "calico-vxlan");
    assert!(has(&lab, "vxlan.calico"));
    assert_routes(
        &lab,
        "worker",
        &[
            "192.168.121.64/26 via 192.168.121.64 dev vxlan.calico proto 80 onlink",
            "blackhole 192.168.157.128/26 proto 80",
        ],
    );
    let (worker, worker2) = (&lab.node("worker").unwrap().namespace, &lab.node("worker2").unwrap().namespace);
    let device = link(worker, "vxlan.calico");
    let data = &device["linkinfo"]["info_data"];
    assert_eq!((&device["mtu"], &data["id"], &data["port"]), (&1450.into(), &4096.into(), &4789.into()));
    assert_eq!(data["learning"], false);
    let mac = link(worker2, "vxlan.calico")["address"].as_str().unwrap().to_owned();
    assert!(mac.starts_with("66:"), "{mac}");
    let neighbours = exec(worker, "ip neigh show dev vxlan.calico");
    assert_has_line(&neighbours, &format!("192.168.121.64 lladdr {mac} PERMANENT"));
    let entries = exec(worker, "bridge fdb show dev vxlan.calico");
    assert_has_line(&entries, &format!("{mac} dst 172.18.0.2 self permanent"));

    assert_eq!(routers(&lab, "bb2", "192.168.157.134"), ["172.18.0.2", "192.168.157.128", "192.168.157.134"]);
    assert_eq!(exec(worker, "conntrack -L -p udp"), "", "packets of the tunnel are not tracked");
}

#[test]
fn vms_have_dockers_bridge_and_a_stray_address() {
    let lab = Lab::up("t-vms", "calico-vms");
    assert_routes(
        &lab,
        "worker1",
        &[
            "default via 10.0.0.254 dev ens160",
            "blackhole 10.48.0.64/26 proto bird",
            "10.48.0.128/26 via 10.0.0.12 dev ens160 proto bird",
            "10.48.0.80 via 10.0.0.12 dev ens160 proto bird",
            "172.17.0.0/16 dev docker0 proto kernel scope link src 172.17.0.1 linkdown",
        ],
    );
    let worker1 = &lab.node("worker1").unwrap().namespace;
    assert_eq!(link(worker1, "ens160")["mtu"], 1500);
    let docker0 = link(worker1, "docker0");
    assert_eq!(docker0["operstate"], "DOWN");
    assert!(docker0["flags"].as_array().unwrap().contains(&"NO-CARRIER".into()), "{docker0}");
    let customer = lab.pod("customer").unwrap();
    assert_eq!(customer.kubernetes_namespace, "yaobank");
    assert_eq!(link(worker1, &customer.host_interface)["ifindex"], 9);
    let eth0 = link(&customer.namespace, "eth0");
    assert_eq!((&eth0["ifindex"], &eth0["link_index"]), (&3.into(), &9.into()));
    assert!(eth0["link_netnsid"].is_number());

    assert_eq!(routers(&lab, "customer", "10.48.0.80"), ["10.0.0.11", "10.0.0.12", "10.48.0.80"]);
    assert_eq!(ttl(&lab, "customer", "10.48.0.66"), Some(63));
    assert_eq!(ttl(&lab, "customer", "10.48.0.99"), None, "a deleted pod's address answers");
}

#[test]
fn kindnet_routes_by_pod_cidr_and_masquerades() {
    let lab = Lab::up("t-kindnet", "kindnet");
    let one = lab.pod("echoserver-1").unwrap();
    assert_routes(
        &lab,
        "kind-worker",
        &["10.244.2.0/24 via 172.18.0.4 dev eth0", &format!("10.244.1.2 dev {} scope host", one.host_interface)],
    );
    let worker = &lab.node("kind-worker").unwrap().namespace;
    assert!(exec(worker, &format!("ip addr show dev {}", one.host_interface)).contains("inet 10.244.1.1/32 "));
    assert_eq!(
        exec(&one.namespace, "ip route").lines().map(str::trim).collect::<Vec<_>>(),
        [
            "default via 10.244.1.1 dev eth0",
            "10.244.1.0/24 via 10.244.1.1 dev eth0 src 10.244.1.2",
            "10.244.1.1 dev eth0 scope link src 10.244.1.2"
        ]
    );
    assert_eq!(routers(&lab, "echoserver-2", "10.244.1.2"), ["10.244.2.1", "172.18.0.3", "10.244.1.2"]);
    assert_eq!(ttl(&lab, "echoserver-1", "10.244.1.3"), Some(63));
    out_as(&lab, "echoserver-1", "172.18.0.3", "203.0.113.10");
}

#[test]
fn flannel_bridges_the_pods_of_a_node() {
    let lab = Lab::up("t-flannel", "flannel");
    assert_routes(
        &lab,
        "vagrant",
        &["10.42.0.0/24 dev cni0 proto kernel scope link src 10.42.0.1", "default via 10.0.2.2 dev eth0"],
    );
    let vagrant = &lab.node("vagrant").unwrap().namespace;
    let port = link(vagrant, "veth4869ce8a");
    assert_eq!((&port["ifindex"], &port["master"]), (&16.into(), &"cni0".into()));
    assert_eq!(link(vagrant, "cni0")["mtu"], 1450);
    let pod = &lab.pod("busybox-on-master").unwrap().namespace;
    assert_eq!(link(pod, "eth0")["ifindex"], 2);
    assert_eq!(
        exec(pod, "ip route").lines().map(str::trim).collect::<Vec<_>>(),
        [
            "default via 10.42.0.1 dev eth0",
            "10.42.0.0/24 dev eth0 proto kernel scope link src 10.42.0.5",
            "10.42.0.0/16 via 10.42.0.1 dev eth0"
        ]
    );
    assert_eq!(routers(&lab, "busybox-on-master", "10.42.0.7"), ["10.42.0.7"]);
    assert_eq!(ttl(&lab, "busybox-on-master", "10.42.0.7"), Some(64));
    out_as(&lab, "busybox-on-master", "10.0.2.15", "203.0.113.10");
}

#[test]
fn flannels_second_node_is_behind_vxlan() {
    let lab = Lab::up("t-flannel-vxlan", "flannel-vxlan");
    assert!(has(&lab, "flannel.1"));
    assert_routes(&lab, "vagrant", &["10.42.1.0/24 via 10.42.1.0 dev flannel.1 onlink"]);
    let data = link(&lab.node("vagrant").unwrap().namespace, "flannel.1")["linkinfo"]["info_data"].clone();
    assert_eq!((&data["id"], &data["port"]), (&1.into(), &8472.into()));
    assert_eq!(routers(&lab, "busybox-on-master", "10.42.1.5"), ["10.42.0.1", "10.42.1.0", "10.42.1.5"]);
}

#[test]
fn nftables_mode_translates_and_drops() {
    let lab = Lab::up("t-nft", "calico-nft");
    let node1 = &lab.node("node1").unwrap().namespace;
    assert_eq!(ttl(&lab, "bb2", "100.115.37.81"), Some(62));
    out_as(&lab, "bb1", "172.20.50.50", "3.90.60.2");
    let chain = exec(node1, "nft list chain ip calico nat-cali-nat-outgoing");
    assert!(chain.contains("masquerade fully-random") && !chain.contains("packets 0 "), "{chain}");
    for chain in ["filter-cali-fw-cali98fd8882b62", "filter-cali-tw-cali98fd8882b62"] {
        let rules = exec(node1, &format!("nft list chain ip calico {chain}"));
        assert!(rules.contains("drop comment \"Drop if no profiles matched\""), "{rules}");
    }
    let map = exec(node1, "nft list map ip calico filter-cali-to-wl-dispatch");
    assert!(map.contains("\"cali98fd8882b62\" : goto filter-cali-tw-cali98fd8882b62"), "{map}");
    // Not its own address.
    exec(&lab.pod("bb1").unwrap().namespace, "ip addr add 100.115.37.99/32 dev eth0");
    let seen = requests_seen(&lab.pod("bb2").unwrap().namespace, || {
        ping(&lab, "bb1", "-c1 -W1 -I 100.115.37.99 100.106.133.221");
    });
    assert_eq!(seen, BTreeSet::new());
}

#[test]
fn dual_stack_pods_have_both_families_everywhere() {
    let lab = Lab::up("t-dual", "calico-dual");
    let (bb1, worker) = (lab.pod("bb1").unwrap(), lab.node("dual-worker").unwrap());
    assert_eq!(ttl(&lab, "bb2", "192.168.157.134"), Some(62));
    assert_eq!(ttl(&lab, "bb1", "fd00:10:244:9d80::7"), Some(63));
    assert_eq!(
        routers(&lab, "bb2", "fd00:10:244:9d80::6"),
        ["fc00:f853:ccd:e793::2", "fc00:f853:ccd:e793::4", "fd00:10:244:9d80::6"]
    );
    let routes = exec(&bb1.namespace, "ip -6 route");
    assert_has_line(&routes, "default via fe80::ecee:eeff:feee:eeee dev eth0 metric 1024 pref medium");
    let routes = exec(&worker.namespace, "ip -6 route");
    for route in [
        "blackhole fd00:10:244:9d80::/122 dev lo proto 80 metric 1024 pref medium",
        "fd00:10:244:9d80::6 dev cali98fd8882b62 metric 1024 pref medium",
        "fd00:10:244:7940::/122 via fc00:f853:ccd:e793::2 dev eth0 proto 80 metric 1024 onlink pref medium",
    ] {
        assert_has_line(&routes, route);
    }
    // NAT66, by the node and again by the gateway.
    let mut at_gateway = String::new();
    let at_internet = sources6(&lab.internet, || {
        at_gateway = sources6(&lab.gateway, || {
            assert_eq!(ttl(&lab, "bb1", "2001:4860:4860::8888"), Some(62));
        });
    });
    assert!(at_gateway.contains("elements = { fc00:f853:ccd:e793::4 }"), "{at_gateway}");
    assert!(at_internet.contains("elements = { 2001:db8:0:1::10 }"), "{at_internet}");
}

/// A pod's ping to the Internet arrives there, translated twice.
fn out_as(lab: &LabInfo, pod: &str, node: &str, outside: &str) {
    let mut at_gateway = BTreeSet::new();
    let at_internet = requests_seen(&lab.internet, || {
        at_gateway = requests_seen(&lab.gateway, || assert_eq!(ttl(lab, pod, "8.8.8.8"), Some(62)));
    });
    assert_eq!(at_gateway, BTreeSet::from([node.to_owned()]));
    assert_eq!(at_internet, BTreeSet::from([outside.to_owned()]));
}

/// The set of IPv6 sources whose echo requests arrive while `work` runs, as nft lists it.
fn sources6(namespace: &str, work: impl FnOnce()) -> String {
    let table = "table ip6 watch {\n set seen {\n type ipv6_addr\n flags dynamic\n }\n \
                 chain prerouting {\n type filter hook prerouting priority 0\n \
                 icmpv6 type echo-request add @seen { ip6 saddr }\n }\n}\n";
    inside(namespace, || run("nft", &["-f", "-"], table)).unwrap();
    work();
    let text = exec(namespace, "nft list set ip6 watch seen");
    exec(namespace, "nft delete table ip6 watch");
    text
}
