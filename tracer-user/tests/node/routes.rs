use std::net::IpAddr;

use tracer_user::node::{
    Error, Node,
    facts::{Flow, RouteAnswer, RouteKind, RouteQuestion},
};

use crate::lab::Lab;

const IPS_SRC_NAT: u32 = 1 << 4;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A packet that came in by cali1 on n1.
fn forwarded(lab: &Lab, dst: &str, mark: u32) -> RouteQuestion {
    let src = if dst.contains(':') { "fd00:1::81" } else { "100.115.37.81" };
    let (src, dst) = (address(src), address(dst));
    RouteQuestion { netns: lab.inode("n1"), src, dst, in_ifindex: Some(14), mark }
}

/// A packet of n1's own.
fn sent(lab: &Lab, dst: &str) -> RouteQuestion {
    RouteQuestion { netns: lab.inode("n1"), src: address("172.20.50.50"), dst: address(dst), in_ifindex: None, mark: 0 }
}

fn answer(node: &Node, question: RouteQuestion) -> RouteAnswer {
    let mut answers = node.answer(&[question]).expect("answer");
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

fn text(node: &Node, question: RouteQuestion) -> (RouteKind, String) {
    let route = answer(node, question).route.expect("a route");
    (route.kind, route.text)
}

#[test]
fn unicast_routes_read_as_ip_prints_them() {
    let lab = Lab::up();
    lab.ip("n1", "route add 10.9.0.0/16 via 172.20.58.60 dev ens5 proto 80 onlink metric 7 src 172.20.50.50 mtu 1400");
    lab.ip("n1", "route add 10.10.0.0/16 nexthop via 172.20.58.60 dev ens5 nexthop via 172.20.32.1 dev ens5 weight 2");
    let node = lab.survey("n1");
    let kinds = [
        ("100.106.133.221", "100.106.133.192/26 via 172.20.58.60 dev ens5 proto bird", RouteKind::Unicast),
        ("100.115.37.83", "100.115.37.83 dev cali3 scope link", RouteKind::Unicast),
        ("8.8.8.8", "default via 172.20.32.1 dev ens5", RouteKind::Unicast),
        ("172.20.58.60", "172.20.32.0/19 dev ens5 proto kernel scope link src 172.20.50.50", RouteKind::Unicast),
        (
            "10.9.1.1",
            "10.9.0.0/16 via 172.20.58.60 dev ens5 proto 80 src 172.20.50.50 metric 7 onlink mtu 1400",
            RouteKind::Unicast,
        ),
        (
            "10.10.1.1",
            "10.10.0.0/16 nexthop via 172.20.58.60 dev ens5 weight 1 nexthop via 172.20.32.1 dev ens5 weight 2",
            RouteKind::Unicast,
        ),
        ("172.20.50.50", "local 172.20.50.50 dev ens5 proto kernel scope host src 172.20.50.50", RouteKind::Local),
    ];
    for (dst, expected, kind) in kinds {
        assert_eq!(text(&node, forwarded(&lab, dst, 0)), (kind, expected.to_owned()));
        let from_ip = lab.ip_line("n1", &format!("route get fibmatch {dst} from 100.115.37.81 iif cali1"));
        assert_eq!(from_ip, expected, "ip itself");
        assert_eq!(text(&node, sent(&lab, dst)).1, expected, "for a packet of the node's own");
    }
    let route = answer(&node, forwarded(&lab, "100.106.133.221", 0)).route.unwrap();
    assert_eq!(route.destination, "100.106.133.192/26".parse().unwrap());
    assert_eq!(route.gateway, Some(address("172.20.58.60")));
    assert_eq!(route.out_ifindex, Some(lab.ifindex("n1", "ens5")));
    assert_eq!(route.table, 254);
}

#[test]
fn routes_that_the_kernel_answers_with_an_error_are_found_too() {
    let lab = Lab::up();
    lab.ip("n1", "route add unreachable 10.1.0.0/16");
    lab.ip("n1", "route add prohibit 10.2.0.0/16 metric 9");
    lab.ip("n1", "route add throw 10.3.0.0/16");
    let node = lab.survey("n1");
    let cases = [
        ("100.115.37.99", RouteKind::Blackhole, "blackhole 100.115.37.64/26 proto bird"),
        ("10.1.2.3", RouteKind::Unreachable, "unreachable 10.1.0.0/16"),
        ("10.2.2.3", RouteKind::Prohibit, "prohibit 10.2.0.0/16 metric 9"),
    ];
    for (dst, kind, expected) in cases {
        assert_eq!(text(&node, forwarded(&lab, dst, 0)), (kind, expected.to_owned()));
        assert_eq!(text(&node, sent(&lab, dst)), (kind, expected.to_owned()));
        let prefix = expected.split(' ').nth(1).unwrap();
        assert_eq!(lab.ip_line("n1", &format!("route show {prefix}")), expected, "ip itself");
    }
    // A route that sends on to the next rule, of which none matches.
    assert_eq!(answer(&node, forwarded(&lab, "10.3.2.3", 0)).route, None);
}

#[test]
fn no_route_is_no_route() {
    let lab = Lab::up();
    lab.ip("n1", "route del default");
    let node = lab.survey("n1");
    assert_eq!(node.scope().len(), 5, "a node without default route has its pods still");
    for question in [forwarded(&lab, "8.8.8.8", 0), sent(&lab, "8.8.8.8"), sent(&lab, "2001:db8::1")] {
        assert_eq!(answer(&node, question).route, None);
    }
}

#[test]
fn policy_rules_are_followed() {
    let lab = Lab::up();
    lab.ip("n1", "rule add fwmark 0x40/0xf0 lookup 100 priority 50");
    lab.ip("n1", "route add blackhole 8.8.8.0/24 table 100 proto static");
    lab.ip("n1", "route add 9.9.9.0/24 via 172.20.58.60 table 100");
    lab.ip("n1", "rule add iif cali1 to 7.7.7.7 prohibit priority 60");
    let node = lab.survey("n1");
    assert_eq!(text(&node, forwarded(&lab, "8.8.8.8", 0)).1, "default via 172.20.32.1 dev ens5");
    let marked = text(&node, forwarded(&lab, "8.8.8.8", 0x4a));
    assert_eq!(marked, (RouteKind::Blackhole, "blackhole 8.8.8.0/24 table 100 proto static".to_owned()));
    let other = "9.9.9.0/24 via 172.20.58.60 dev ens5 table 100";
    assert_eq!(text(&node, forwarded(&lab, "9.9.9.9", 0x40)).1, other);
    assert_eq!(lab.ip_line("n1", "route get fibmatch 9.9.9.9 from 100.115.37.81 iif cali1 mark 0x40"), other);
    let ruled = text(&node, forwarded(&lab, "7.7.7.7", 0));
    assert_eq!(ruled, (RouteKind::Prohibit, "prohibit by rule 60".to_owned()));
    assert_eq!(text(&node, sent(&lab, "7.7.7.7")).1, "default via 172.20.32.1 dev ens5", "not its interface");
}

#[test]
fn what_another_check_refuses_keeps_the_route_that_matched() {
    let lab = Lab::up();
    lab.sysctl("n1", "net.ipv4.conf.all.rp_filter=1");
    let node = lab.survey("n1");
    // A source that does not live behind cali1: refused by the reverse path filter, after the lookup.
    let question = RouteQuestion { src: address("10.42.0.5"), ..forwarded(&lab, "8.8.8.8", 0) };
    assert_eq!(text(&node, question).1, "default via 172.20.32.1 dev ens5");
}

#[test]
fn ipv6_routes_are_answered_alike() {
    let lab = Lab::up();
    lab.sysctl("n1", "net.ipv6.conf.all.forwarding=1");
    lab.ip("n1", "address add fd00:20::50/64 dev ens5 nodad");
    lab.ip("n1", "route add fd00:1::81/128 dev cali1 proto bird");
    lab.ip("n1", "route add fd00:2::/64 via fd00:20::60 dev ens5 metric 5");
    lab.ip("n1", "route add blackhole fd00:1::/64 proto bird");
    lab.ip("n1", "route add unreachable fd00:3::/64");
    let node = lab.survey("n1");
    for dst in ["fd00:2::7", "fd00:20::60"] {
        let from_ip = lab.ip_line("n1", &format!("-6 route get fibmatch {dst} from fd00:1::81 iif cali1"));
        // For IPv6 the kernel repeats the question's interface, which is no part of the route.
        let from_ip = from_ip.replace(" iif cali1", "");
        assert_eq!(text(&node, forwarded(&lab, dst, 0)), (RouteKind::Unicast, from_ip));
    }
    for (dst, prefix, kind) in
        [("fd00:1::99", "fd00:1::/64", RouteKind::Blackhole), ("fd00:3::1", "fd00:3::/64", RouteKind::Unreachable)]
    {
        let from_ip = lab.ip_line("n1", &format!("-6 route show {prefix}"));
        assert!(from_ip.contains(prefix), "{from_ip}");
        assert_eq!(text(&node, forwarded(&lab, dst, 0)), (kind, from_ip));
    }
    assert_eq!(answer(&node, forwarded(&lab, "fd00:9::1", 0)).route, None);
    let back = RouteQuestion { src: address("fd00:2::7"), ..forwarded(&lab, "fd00:1::81", 0) };
    let back = RouteQuestion { in_ifindex: Some(lab.ifindex("n1", "ens5")), ..back };
    assert_eq!(answer(&node, back).icmp_source, Some(address("fd00:20::50")));
}

#[test]
fn icmp_errors_come_from_the_address_towards_the_sender() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    // From the pod outwards: cali1 has no address, the kernel takes the node's.
    assert_eq!(answer(&node, forwarded(&lab, "8.8.8.8", 0)).icmp_source, Some(address("172.20.50.50")));
    // From the wire to a pod.
    let inbound = RouteQuestion {
        src: address("172.20.58.60"),
        in_ifindex: Some(lab.ifindex("n1", "ens5")),
        ..forwarded(&lab, "100.115.37.81", 0)
    };
    assert_eq!(answer(&node, inbound.clone()).icmp_source, Some(address("172.20.50.50")));
    // From the bridged pod: the bridge's address.
    let bridged = RouteQuestion {
        src: address("10.42.0.5"),
        in_ifindex: Some(lab.ifindex("n1", "cni0")),
        ..forwarded(&lab, "8.8.8.8", 0)
    };
    assert_eq!(answer(&node, bridged).icmp_source, Some(address("10.42.0.1")));
    // For the node itself: the address asked.
    let own = RouteQuestion { dst: address("10.42.0.1"), ..inbound };
    assert_eq!(answer(&node, own).icmp_source, Some(address("10.42.0.1")));

    // Asymmetric: comes in by ens5 from an address that is routed to cni0.
    let odd = RouteQuestion {
        src: address("10.42.0.77"),
        in_ifindex: Some(lab.ifindex("n1", "ens5")),
        ..forwarded(&lab, "100.115.37.81", 0)
    };
    assert_eq!(answer(&node, odd.clone()).icmp_source, Some(address("10.42.0.1")));
    lab.sysctl("n1", "net.ipv4.icmp_errors_use_inbound_ifaddr=1");
    let node = lab.survey("n1");
    assert_eq!(answer(&node, odd).icmp_source, Some(address("172.20.50.50")));
}

#[test]
fn the_address_traceroute_prints_is_the_one_named() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    let named = answer(&node, forwarded(&lab, "8.8.8.8", 0)).icmp_source.unwrap();
    let name = lab.name("p1");
    let ping = std::process::Command::new("ip")
        .args(["netns", "exec", &name, "ping", "-n", "-c1", "-W2", "-t1", "8.8.8.8"])
        .output()
        .expect("ping");
    let printed = String::from_utf8(ping.stdout).unwrap();
    assert!(printed.contains(&format!("From {named} ")), "{printed}");
}

#[test]
fn answers_keep_the_order_of_questions_and_strangers_are_named() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    let pod = RouteQuestion { netns: lab.inode("p1"), src: address("100.115.37.81"), ..sent(&lab, "8.8.8.8") };
    let questions = [sent(&lab, "8.8.8.8"), pod, sent(&lab, "100.115.37.81")];
    let answers = node.answer(&questions).unwrap();
    assert_eq!(answers.iter().map(|a| a.question.clone()).collect::<Vec<_>>(), questions);
    assert_eq!(answers[1].route.as_ref().unwrap().text, "default via 169.254.1.1 dev eth0");

    let stranger = RouteQuestion { netns: lab.inode("q1"), ..sent(&lab, "8.8.8.8") };
    let error = node.answer(&[stranger]).unwrap_err();
    assert!(matches!(error, Error::OutOfScope { netns } if netns == lab.inode("q1")), "{error}");
}

#[test]
fn a_changed_route_or_rule_is_noticed_in_the_node_and_in_pods() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    assert!(!node.routes_changed());
    lab.ip("q1", "route add 10.5.0.0/16 via 169.254.1.1");
    assert!(!node.routes_changed(), "somebody else's pod");
    lab.ip("n1", "route add 10.5.0.0/16 via 172.20.58.60");
    assert!(node.routes_changed());
    assert!(node.routes_changed(), "and stays noticed");
    for (name, change) in [("n1", "rule add fwmark 9 lookup 100"), ("p1", "route add 10.5.0.0/16 via 169.254.1.1")] {
        let node = lab.survey("n1");
        assert!(!node.routes_changed());
        lab.ip(name, change);
        assert!(node.routes_changed(), "{change}");
    }
}

#[test]
fn facts_of_a_translated_ping() {
    let lab = Lab::up();
    lab.exec("n1", "iptables -t nat -A POSTROUTING -s 100.115.37.64/26 -o ens5 -j MASQUERADE --random-fully");
    let node = lab.survey("n1");
    lab.exec("p1", "ping -c2 -i0.2 -W2 -e 4660 8.8.8.8");
    let flow = Flow {
        netns: lab.inode("n1"),
        protocol: 1,
        src: address("100.115.37.81"),
        dst: address("8.8.8.8"),
        src_port: 4660,
        dst_port: 0,
    };
    let (facts, notes) = node.facts(&[forwarded(&lab, "8.8.8.8", 0)], std::slice::from_ref(&flow));
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(facts.namespaces.len(), 5);
    assert!(!facts.routes_changed);

    let [entry] = facts.conntrack.as_slice() else { panic!("{:?}", facts.conntrack) };
    assert_eq!(entry.original, (flow.src, flow.dst, 4660, 0));
    assert_eq!((entry.reply.0, entry.reply.1), (flow.dst, address("172.20.50.50")));
    assert_ne!(entry.status & IPS_SRC_NAT, 0);
    assert!((1..=30).contains(&entry.timeout_s), "{}", entry.timeout_s);
    // The reply direction, as it arrives on ens5, finds the same entry.
    let reply = Flow { src: entry.reply.0, dst: entry.reply.1, src_port: entry.reply.2, ..flow.clone() };
    assert_eq!(node.conntrack(&[reply, flow.clone()]).unwrap().len(), 1);
    assert!(node.conntrack(&[Flow { src_port: 1, ..flow }]).unwrap().is_empty());

    let [neighbour] = facts.neighbours.as_slice() else { panic!("{:?}", facts.neighbours) };
    assert_eq!(neighbour.address, address("172.20.32.1"));
    let printed = lab.ip("n1", "neigh show 172.20.32.1 dev ens5");
    let mac = neighbour.mac.clone().unwrap();
    assert!(printed.contains(&mac) && printed.contains(&neighbour.state), "{printed} {neighbour:?}");
}

#[test]
fn conntrack_entries_of_other_protocols_are_found_by_their_tuples() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    for (name, protocol, src, dst) in
        [("tcp", 6, "10.0.0.1", "10.0.0.2"), ("udp", 17, "10.0.0.1", "10.0.0.2"), ("udp", 17, "fd00::1", "fd00::2")]
    {
        let state = if name == "tcp" { "--state ESTABLISHED" } else { "" };
        lab.exec("n1", &format!("conntrack -I -p {name} -s {src} -d {dst} --sport 1234 --dport 80 -t 100 {state}"));
        let (src, dst) = (address(src), address(dst));
        let flow = Flow { netns: lab.inode("n1"), protocol, src, dst, src_port: 1234, dst_port: 80 };
        let found = node.conntrack(std::slice::from_ref(&flow)).unwrap();
        let [entry] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((entry.original, entry.protocol), ((src, dst, 1234, 80), protocol));
        assert_eq!(entry.reply, (dst, src, 80, 1234));
        assert!(node.conntrack(&[Flow { src_port: 1235, ..flow }]).unwrap().is_empty());
    }
}

#[test]
fn one_namespace_out_of_reach_does_not_spoil_the_facts() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    let stranger = RouteQuestion { netns: lab.inode("q1"), ..sent(&lab, "8.8.8.8") };
    let (facts, notes) = node.facts(&[stranger, sent(&lab, "8.8.8.8")], &[]);
    assert_eq!(facts.routes.len(), 1);
    assert!(matches!(notes.as_slice(), [Error::OutOfScope { .. }]), "{notes:?}");
}

#[test]
fn a_pod_that_ended_can_still_be_asked() {
    let mut lab = Lab::up();
    let pod = RouteQuestion { netns: lab.inode("p3"), src: address("100.115.37.83"), ..sent(&lab, "8.8.8.8") };
    let node = lab.survey("n1");
    lab.remove("p3");
    // Held open: the namespace lives on with the survey, and without default route, as it was.
    assert_eq!(answer(&node, pod).route, None);
    assert_eq!(lab.survey("n1").scope().len(), node.scope().len() - 1);
}

/// Of two next hops the one that the kernel takes for these addresses; a hop that does not answer has a failed neighbour.
#[test]
fn of_several_next_hops_the_taken_one_is_told() {
    let lab = Lab::up();
    lab.ip("n1", "link add far type veth peer name near");
    for (link, address) in [("far", "10.50.0.1/24"), ("near", "10.51.0.1/24")] {
        lab.ip("n1", &format!("link set {link} up"));
        lab.ip("n1", &format!("address add {address} dev {link}"));
    }
    lab.ip("n1", "route add 10.99.0.0/16 nexthop via 10.50.0.2 dev far nexthop via 10.51.0.2 dev near");
    let (n1, far, near) = (lab.inode("n1"), lab.ifindex("n1", "far"), lab.ifindex("n1", "near"));
    let node = lab.survey("n1");
    let mut taken = std::collections::BTreeSet::new();
    for last in 1..=32 {
        let question = RouteQuestion {
            netns: n1,
            src: "172.20.50.50".parse().unwrap(),
            dst: format!("10.99.0.{last}").parse().unwrap(),
            in_ifindex: None,
            mark: 0,
        };
        let answer = node.answer(&[question]).unwrap().remove(0).route.unwrap();
        assert_eq!(answer.destination.to_string(), "10.99.0.0/16");
        let said = lab.ip("n1", &format!("route get 10.99.0.{last} from 172.20.50.50"));
        let gateway = answer.gateway.expect("a gateway").to_string();
        assert!(said.contains(&format!("via {gateway} ")), "{said}");
        assert_eq!(answer.out_ifindex, Some(if gateway == "10.50.0.2" { far } else { near }));
        taken.insert(gateway);
    }
    assert_eq!(taken.len(), 2, "both are taken by some");
    lab.sysctl("n1", "net.ipv4.fib_multipath_hash_policy=1");
    let question = RouteQuestion {
        netns: n1,
        src: "172.20.50.50".parse().unwrap(),
        dst: "10.99.0.1".parse().unwrap(),
        in_ifindex: None,
        mark: 0,
    };
    let route = node.answer(&[question]).unwrap().remove(0).route.unwrap();
    assert_eq!((route.gateway, route.out_ifindex), (None, None), "ports decide");
}

#[test]
fn a_next_hop_by_link_local_address_has_its_neighbour() {
    let lab = Lab::up();
    let device = lab.ifindex("n1", "ens5");
    lab.ip("n1", "address add fd00:1::1/64 dev ens5 nodad");
    lab.ip("n1", "route add fd00:9::/64 via fe80::99 dev ens5");
    lab.ip("n1", "neigh add fe80::99 dev ens5 nud failed");
    let node = lab.survey("n1");
    let question = RouteQuestion {
        netns: lab.inode("n1"),
        src: "fd00:1::1".parse().unwrap(),
        dst: "fd00:9::5".parse().unwrap(),
        in_ifindex: None,
        mark: 0,
    };
    let answers = node.answer(&[question]).unwrap();
    let route = answers[0].route.as_ref().unwrap();
    assert_eq!((route.gateway, route.out_ifindex), (Some("fe80::99".parse().unwrap()), Some(device)));
    let neighbours = node.neighbours(&answers).unwrap();
    let [neighbour] = neighbours.as_slice() else { panic!("{neighbours:?}") };
    assert_eq!((neighbour.state.as_str(), neighbour.mac.as_deref()), ("FAILED", None));
}

#[test]
fn a_source_is_the_one_that_the_kernel_would_choose() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    let towards = |dst: &str| node.source_towards(address("100.115.37.81"), address(dst)).map(|a| a.to_string());
    assert_eq!(towards("8.8.8.8").as_deref(), Some("100.115.37.81"));
    assert_eq!(towards("10.77.0.9").as_deref(), Some("10.77.0.1"), "by its second interface");
    assert_eq!(towards("127.0.0.1").as_deref(), Some("127.0.0.1"));
    assert_eq!(towards("100.115.37.81").as_deref(), Some("100.115.37.81"));
    assert_eq!(node.source_towards(address("9.9.9.9"), address("8.8.8.8")), None, "nobody's");
}
