//! Each planted fault does what it says, and nothing else; taken out, it is gone. Needs what `lab.rs` needs.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Lab, address, exec, requests_seen, times};
use xtask::lab::plant::{Direction, Echo, Plant, Way};
use xtask::lab::{self, LabInfo, inside};

mod support;

const MS: Duration = Duration::from_millis(1);

/// The median round trip of some pings from a pod.
fn rtt(lab: &LabInfo, from: &str, to: &str) -> Duration {
    median_rtt(&lab.pod(from).unwrap().namespace, to)
}

/// The same between two nodes' own addresses: what only the wire does.
fn node_rtt(lab: &LabInfo, from: &str, to: &str) -> Duration {
    let to = lab.node(to).unwrap().address.to_string();
    median_rtt(&lab.node(from).unwrap().namespace, &to)
}

fn median_rtt(namespace: &str, to: &str) -> Duration {
    let times = pings(namespace, to, "-c7 -i0.02");
    times[times.len() / 2]
}

/// Round trips, sorted; all pings must be answered. The first goes alone: it resolves neighbours, and until conntrack
/// has confirmed its flow, other packets of that flow (same id) are dropped.
fn pings(namespace: &str, to: &str, arguments: &str) -> Vec<Duration> {
    exec(namespace, &format!("ping -n -e77 -c1 -W2 {to}"));
    let output = exec(namespace, &format!("ping -n -e77 -W2 {arguments} {to}"));
    assert!(output.contains(" 0% packet loss"), "{output}");
    let mut times = times(&output);
    times.sort_unstable();
    times
}

/// The planted delay and at most what a busy or emulated machine adds; delays here differ by more than that.
fn assert_about(rtt: Duration, planted: Duration) {
    assert!((planted..planted + 15 * MS).contains(&rtt), "{rtt:?}, planted {planted:?}");
}

/// Whether a single ping is answered.
fn answered(lab: &LabInfo, from: &str, to: &str) -> bool {
    let namespace = &lab.pod(from).unwrap().namespace;
    let output = inside(namespace, || {
        let arguments = ["-n", "-c1", "-W1", to];
        Ok(Command::new("ping").args(arguments).output()?)
    });
    output.unwrap().status.success()
}

/// Every rule of every namespace of the lab, without counters.
fn rules(lab: &LabInfo) -> String {
    let of = |namespace: &String| {
        let tables = ["raw", "mangle", "nat", "filter"];
        let rules = tables.map(|table| exec(namespace, &format!("iptables-nft -t {table} -S")));
        rules.concat() + &exec(namespace, "nft list tables bridge")
    };
    // Without br_netfilter, bridged packets pass no iptables either.
    let bridge = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let bridge = inside(&lab.wire, || Ok(fs::read_to_string(bridge).unwrap_or("0\n".to_owned())));
    lab.namespaces.iter().map(of).collect::<String>() + &bridge.unwrap()
}

#[test]
fn a_node_delay_holds_what_the_node_forwards_and_nothing_on_the_wire() {
    let lab = Lab::up("t-node-delay", "calico-bgp");
    let (bb1, bb3) = (address(&lab, "bb1"), address(&lab, "bb3"));
    let before = rules(&lab);
    assert_about(rtt(&lab, "bb2", &bb1), Duration::ZERO);

    let plant = Plant::NodeDelay { node: "node1".to_owned(), ms: 20, to: None };
    let planted = plant.plant(&lab).unwrap();
    assert_about(rtt(&lab, "bb2", &bb1), 40 * MS);
    assert_about(rtt(&lab, "bb1", &bb3), 40 * MS);
    assert_about(node_rtt(&lab, "node2", "node1"), Duration::ZERO);
    planted.remove().unwrap();
    assert_about(rtt(&lab, "bb2", &bb1), Duration::ZERO);
    assert_eq!(rules(&lab), before);

    let one_way = Plant::NodeDelay { node: "node1".to_owned(), ms: 20, to: bb1.parse().ok() };
    let _planted = one_way.plant(&lab).unwrap();
    assert_about(rtt(&lab, "bb2", &bb1), 20 * MS);
}

#[test]
fn a_node_delay_holds_every_packet_equally_long() {
    let lab = Lab::up("t-many", "calico-bgp");
    let plant = Plant::NodeDelay { node: "node2".to_owned(), ms: 20, to: None };
    let _planted = plant.plant(&lab).unwrap();
    // Ten in flight at once: a delay that took them one after the other would add up.
    let times = pings(&lab.pod("bb2").unwrap().namespace, &address(&lab, "bb1"), "-c40 -i0.004");
    assert_eq!(times.len(), 40);
    assert!(times[0] >= 40 * MS && times[20] < 100 * MS, "{times:?}");
}

#[test]
fn a_wire_delay_is_outside_of_both_nodes() {
    let lab = Lab::up("t-wire-delay", "calico-bgp");
    let bb1 = address(&lab, "bb1");
    let before = rules(&lab);
    let between = ["node1", "ip-172-20-58-60.ec2.internal"].map(str::to_owned);
    let plant = |direction| Plant::WireDelay { between: between.clone(), ms: 20, direction };

    let both = plant(Direction::Both).plant(&lab).unwrap();
    assert_about(rtt(&lab, "bb2", &bb1), 40 * MS);
    assert_about(node_rtt(&lab, "node2", "node1"), 40 * MS);
    assert_about(rtt(&lab, "bb1", &address(&lab, "bb3")), Duration::ZERO);
    assert_about(node_rtt(&lab, "node3", "node1"), Duration::ZERO);

    // A second one on the same wire outlives the first.
    let there = plant(Direction::There).plant(&lab).unwrap();
    drop(both);
    assert_about(rtt(&lab, "bb2", &bb1), 20 * MS);
    drop(there);
    assert_about(rtt(&lab, "bb2", &bb1), Duration::ZERO);
    assert_eq!(rules(&lab), before);
}

#[test]
fn a_wire_drop_takes_one_way_only_and_leaves_the_link_up() {
    let lab = Lab::up("t-wire-drop", "kind-calico");
    let (bb1, bb2) = (address(&lab, "bb1"), address(&lab, "bb2"));
    let before = rules(&lab);
    let drop_to_worker = |way, icmp| Plant::WireDrop { node: "worker".to_owned(), way, icmp };
    let bb1_sees = |work: &dyn Fn()| requests_seen(&lab.pod("bb1").unwrap().namespace, work);

    let request_lost = drop_to_worker(Way::To, Echo::EchoRequest).plant(&lab).unwrap();
    let seen = bb1_sees(&|| assert!(!answered(&lab, "bb2", &bb1)));
    assert_eq!(seen, BTreeSet::new());
    assert!(answered(&lab, "bb1", &bb2), "the other way must pass");
    let nic = exec(&lab.node("worker").unwrap().namespace, "ip link show dev eth0");
    assert!(nic.contains("LOWER_UP"), "{nic}");
    drop(request_lost);
    assert!(answered(&lab, "bb2", &bb1));

    let reply_lost = drop_to_worker(Way::From, Echo::EchoReply).plant(&lab).unwrap();
    let seen = bb1_sees(&|| assert!(!answered(&lab, "bb2", &bb1)));
    assert_eq!(seen, BTreeSet::from([bb2.clone()]));
    assert!(answered(&lab, "bb1", &bb2), "the other way must pass");
    drop(reply_lost);
    assert!(answered(&lab, "bb2", &bb1));
    assert_eq!(rules(&lab), before);
}

#[test]
fn a_policy_drops_at_its_pod_only() {
    let lab = Lab::up("t-policy", "calico-bgp");
    let bb1 = address(&lab, "bb1");
    let identity = || fs::read_to_string(&lab.identity).unwrap();
    let before = rules(&lab) + &identity();
    let planted = Plant::PolicyDrop { pod: "bb1".to_owned(), way: Way::To }.plant(&lab).unwrap();
    assert!(identity().contains("kind: NetworkPolicy"));
    assert!(!answered(&lab, "bb2", &bb1));
    assert!(!answered(&lab, "bb3", &bb1));
    assert!(answered(&lab, "bb2", &address(&lab, "bb3")));
    assert!(answered(&lab, "bb1", &address(&lab, "bb2")), "replies are of an established connection");
    drop(planted);
    assert!(answered(&lab, "bb2", &bb1));
    assert_eq!(rules(&lab) + &identity(), before);
}

/// Everything that the faults of a node or pod change, of both.
fn settings(lab: &LabInfo) -> String {
    let sysctls = ["ip_forward", "ip_default_ttl", "conf/ens5/rp_filter", "conf/eth0/arp_ignore"];
    let of = |namespace: &str| {
        let commands = ["ip -o link show", "ip -4 route show table main", "iptables-legacy -S", "nft -s list ruleset"];
        let text = commands.map(|command| exec(namespace, command)).concat();
        let value = |name: &&str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        text + &inside(namespace, || Ok(sysctls.iter().map(value).collect::<String>())).unwrap()
    };
    of(&lab.node("node1").unwrap().namespace) + &of(&lab.pod("bb1").unwrap().namespace)
}

/// Faults that keep bb2 from bb1, as scenario files write them.
const FAULTS: &str = r#"
    fault = [
        { plant = "rule", at = "node1", rule = "-I FORWARD -d 100.115.37.81 -m comment --comment \"two words\" -j DROP" },
        { plant = "rule", at = "node1", tool = "legacy", rule = "-A FORWARD -d 100.115.37.81 -j REJECT" },
        { plant = "chain-policy", at = "bb1", chain = "INPUT" },
        { plant = "nft-table", at = "node1", table = "ip t-x", content = "chain f { type filter hook forward priority 9; drop; }" },
        { plant = "route", at = "node1", route = "prohibit 100.115.37.81 table 7" },
        { plant = "no-route", at = "node1", route = "100.115.37.81" },
        { plant = "sysctl", at = "node1", name = "net.ipv4.ip_forward", value = "0" },
        { plant = "link-down", at = "bb1", interface = "eth0" },
        { plant = "link-down", at = "node1", interface = "ens5" },
        { plant = "mtu", at = "node1", interface = "cali98fd8882b62", mtu = 1400 },
        { plant = "unresolved", pod = "bb1" },
        { plant = "policy-drop", pod = "bb2", way = "from" },
    ]
"#;

#[derive(serde::Deserialize)]
struct Faults {
    fault: Vec<Plant>,
}

#[test]
fn a_fault_of_a_node_or_pod_is_undone_by_what_was_before() {
    let lab = Lab::up("t-faults", "calico-bgp");
    let bb1 = address(&lab, "bb1");
    let faults: Faults = toml::from_str(FAULTS).unwrap();
    for fault in faults.fault {
        assert!(answered(&lab, "bb2", &bb1), "before {fault:?}");
        let before = settings(&lab);
        let planted = fault.plant(&lab).unwrap();
        // These two change what only some packets meet.
        let spares = matches!(&fault, Plant::Mtu { .. } | Plant::Route { .. });
        assert_eq!(answered(&lab, "bb2", &bb1), spares, "{fault:?}");
        planted.remove().unwrap();
        assert_eq!(state(&settings(&lab)), state(&before), "{fault:?}");
    }
    assert!(answered(&lab, "bb2", &bb1));
}

#[test]
fn a_link_that_was_down_has_its_ipv6_addresses_and_routes_again() {
    let lab = Lab::up("t-down6", "calico-dual");
    let (worker, bb1) = (lab.node("dual-worker").unwrap(), lab.pod("bb1").unwrap());
    let to = bb1.address6.unwrap().to_string();
    let answered = || answered(&lab, "bb2", &to);
    for (at, namespace, interface) in
        [("dual-worker", &worker.namespace, worker.nic.as_str()), ("bb1", &bb1.namespace, "eth0")]
    {
        let ipv6 = || exec(namespace, "ip -6 route") + &exec(namespace, "ip -6 -brief address");
        assert!(answered(), "before {at}");
        let before = ipv6();
        let plant = Plant::LinkDown { at: at.to_owned(), interface: interface.to_owned() };
        let planted = plant.plant(&lab).unwrap();
        assert!(!answered(), "{at}");
        planted.remove().unwrap();
        // The carrier, and with it the link-local address, comes a moment later.
        let start = Instant::now();
        while sorted(&ipv6()) != sorted(&before) && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(sorted(&ipv6()), sorted(&before), "{at}");
        while !answered() && start.elapsed() < Duration::from_secs(10) {}
        assert!(answered(), "after {at}");
    }
}

/// The kernel lists equal routes in the order in which they came.
fn sorted(lines: &str) -> Vec<String> {
    let mut lines: Vec<String> = state(lines).lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

#[test]
fn a_chain_policy_that_was_there_before_is_there_again() {
    let lab = Lab::up("t-chain-policy", "calico-bgp");
    let bb1 = &lab.pod("bb1").unwrap().namespace;
    let policy = || exec(bb1, "iptables-nft -S INPUT");
    let plant = Plant::ChainPolicy { at: "bb1".to_owned(), chain: "INPUT".to_owned() };
    exec(bb1, "iptables-nft -P INPUT DROP");
    plant.plant(&lab).unwrap().remove().unwrap();
    assert_eq!(policy(), "-P INPUT DROP\n");
    exec(bb1, "iptables-nft -P INPUT ACCEPT");
    let planted = plant.plant(&lab).unwrap();
    assert_eq!(policy(), "-P INPUT DROP\n");
    planted.remove().unwrap();
    assert_eq!(policy(), "-P INPUT ACCEPT\n");
}

/// Without the marks that a carrier leaves for a moment after it came back.
fn state(settings: &str) -> String {
    settings.replace(" linkdown", "").replace("state LOWERLAYERDOWN", "state UP").replace("NO-CARRIER,", "")
}

#[test]
fn a_policy_in_nftables_mode_drops_at_its_pod_only() {
    let lab = Lab::up("t-policy-nft", "calico-nft");
    let bb1 = address(&lab, "bb1");
    let before = rules(&lab) + &settings(&lab);
    let planted = Plant::PolicyDrop { pod: "bb1".to_owned(), way: Way::To }.plant(&lab).unwrap();
    assert!(!answered(&lab, "bb2", &bb1));
    assert!(answered(&lab, "bb2", &address(&lab, "bb3")));
    drop(planted);
    assert!(answered(&lab, "bb2", &bb1));
    assert_eq!(rules(&lab) + &settings(&lab), before);
}

#[test]
fn a_packet_to_an_address_that_no_pod_has_gets_no_answer() {
    let lab = Lab::up("t-blackhole", "calico-bgp");
    assert!(!answered(&lab, "bb2", "100.115.37.99"));
}

#[test]
fn a_plant_for_nobody_is_refused() {
    let lab = Lab::up("t-nobody", "calico-bgp");
    let error = Plant::PolicyDrop { pod: "bb9".to_owned(), way: Way::To }.plant(&lab).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("no pod `bb9`; pods: bb1, web, bb3, bb2"), "{text}");
}

#[test]
#[ignore = "no test: the process that the next one kills"]
fn plant_and_wait() {
    let labs = lab::status().unwrap();
    let lab = labs.iter().find(|lab| lab.name == "t-killed").unwrap();
    let plant = Plant::NodeDelay { node: "node1".to_owned(), ms: 50, to: None };
    let _planted = plant.plant(lab).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_planters_delay_lets_packets_pass() {
    let lab = Lab::up("t-killed", "calico-bgp");
    let bb1 = address(&lab, "bb1");
    let mut planter = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "plant_and_wait"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    // A ping that is on its way while the delay is being planted may be lost.
    let one = || inside(&lab.pod("bb2").unwrap().namespace, || lab::run("ping", &["-n", "-c1", "-W2", &bb1], ""));
    while !one().is_ok_and(|output| times(&output).iter().any(|rtt| *rtt >= 50 * MS)) {
        assert!(start.elapsed() < Duration::from_secs(10), "the delay never came");
    }
    planter.kill().unwrap();
    planter.wait().unwrap();
    assert_about(rtt(&lab, "bb2", &bb1), Duration::ZERO);
}
