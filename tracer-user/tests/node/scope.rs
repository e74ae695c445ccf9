use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use tracer_user::node::{
    Node,
    facts::{Link, LinkRef, Role},
};

use crate::lab::Lab;

fn link<'a>(node: &'a Node, netns: u32, name: &str) -> &'a Link {
    let namespace = node.namespaces().iter().find(|namespace| namespace.inode == netns).expect("namespace in scope");
    namespace.links.iter().find(|link| link.name == name).expect("link")
}

#[test]
fn a_node_sees_itself_and_its_own_pods_and_nobody_else() {
    let mut lab = Lab::up();
    let p4 = lab.inode("p4");
    lab.unname("p4");
    let inodes = |names: &[&str]| names.iter().map(|name| lab.inode(name)).collect::<BTreeSet<u32>>();

    let first = lab.survey("n1");
    let mut expected = inodes(&["n1", "p1", "p2", "p3"]);
    expected.insert(p4);
    assert_eq!(first.scope()[0], lab.inode("n1"));
    assert_eq!(first.scope().into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(first.scope().len(), expected.len(), "each once");
    assert!(first.notes().is_empty(), "{:?}", first.notes());

    let second = lab.survey("n2");
    assert_eq!(second.scope(), [lab.inode("n2"), lab.inode("q1")]);
    let roles: Vec<Role> = second.namespaces().iter().map(|namespace| namespace.role).collect();
    assert_eq!(roles, [Role::Node, Role::Pod]);
    assert_eq!(
        second.namespaces().iter().map(|n| n.names.clone()).collect::<Vec<_>>(),
        [vec![lab.name("n2")], vec![lab.name("q1")]]
    );
}

#[test]
fn the_internet_has_no_pods() {
    let lab = Lab::up();
    assert_eq!(lab.survey("inet").scope(), [lab.inode("inet")]);
}

/// Each node's default route leads into the other, over a pair of NICs: nothing but the uplink tells them from pods.
#[test]
fn two_nodes_back_to_back_are_not_each_others_pods() {
    let mut lab = Lab::up();
    lab.add("d1");
    lab.add("d2");
    let other = lab.name("d2");
    lab.ip("d1", &format!("link add ens5 index 7 type veth peer name ens5 index 7 netns {other}"));
    for (name, address, gateway) in [("d1", "10.5.0.1/24", "10.5.0.2"), ("d2", "10.5.0.2/24", "10.5.0.1")] {
        lab.ip(name, "link set ens5 up");
        lab.ip(name, &format!("address add {address} dev ens5"));
        lab.ip(name, &format!("route add default via {gateway}"));
    }
    assert_eq!(lab.survey("d1").scope(), [lab.inode("d1")]);
    assert_eq!(lab.survey("d2").scope(), [lab.inode("d2")]);
}

/// As on a machine that runs kind: nodes are its containers, and their pods are not its own.
#[test]
fn a_host_of_nodes_has_the_nodes_but_not_their_pods() {
    let lab = Lab::up();
    lab.ip("inet", "link set eth0 down");
    lab.ip("wire", "address add 172.20.32.1/19 dev br0");
    let scope: BTreeSet<u32> = lab.survey("wire").scope().into_iter().collect();
    for inside in ["wire", "n1", "n2"] {
        assert!(scope.contains(&lab.inode(inside)), "{inside}");
    }
    for outside in ["p1", "p2", "p3", "p4", "q1"] {
        assert!(!scope.contains(&lab.inode(outside)), "{outside}");
    }
}

#[test]
fn links_have_their_kind_addresses_and_other_end() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    let (own, p1, p2) = (lab.inode("n1"), lab.inode("p1"), lab.inode("p2"));

    let host = link(&node, own, "cali1");
    assert_eq!((host.ifindex, host.kind.as_deref(), host.up), (14, Some("veth"), true));
    assert_eq!(host.peer, Some(LinkRef { netns: p1, ifindex: 14 }));
    assert_eq!(host.mac, lab.exec("n1", "cat /sys/class/net/cali1/address").trim());
    let eth0 = link(&node, p1, "eth0");
    assert_eq!(eth0.peer, Some(LinkRef { netns: own, ifindex: 14 }));
    assert!(eth0.addresses.contains(&"100.115.37.81/32".parse().unwrap()));
    assert_eq!(link(&node, p1, "net1").peer, None, "its other end is out of scope");

    let port = link(&node, own, "veth2");
    assert_eq!(port.master, Some(lab.ifindex("n1", "cni0")));
    assert_eq!(port.peer, Some(LinkRef { netns: p2, ifindex: lab.ifindex("p2", "eth0") }));
    assert_eq!(link(&node, own, "cni0").kind.as_deref(), Some("bridge"));
    assert_eq!(link(&node, own, "ens5").peer, None, "its other end is the wire");
    assert_eq!(link(&node, own, "ens5").mtu, 1500);
    assert_eq!(link(&node, own, "lo").kind, None);
}

#[test]
fn the_holder_of_an_address_is_the_namespace_that_has_it() {
    let lab = Lab::up();
    let node = lab.survey("n1");
    let holder = |address: &str| node.holder_of(address.parse().unwrap()).map(|holder| holder.netns);
    assert_eq!(holder("100.115.37.81"), Some(lab.inode("p1")));
    assert_eq!(holder("10.42.0.5"), Some(lab.inode("p2")));
    assert_eq!(holder("172.20.50.50"), Some(lab.inode("n1")));
    assert_eq!(holder("127.0.0.1"), Some(lab.inode("n1")), "own before pods'");
    assert_eq!(holder("100.106.133.221"), None, "a pod of the other node");
    assert_eq!(holder("8.8.8.8"), None);
}

#[test]
fn a_pod_that_starts_later_comes_into_scope_by_a_refresh() {
    let lab = Lab::up();
    lab.ip("n1", "link set cali3 down");
    lab.ip("n1", "link del cali3");
    let mut node = lab.survey("n1");
    assert!(!node.scope().contains(&lab.inode("p3")));
    let p3 = lab.name("p3");
    lab.ip("n1", &format!("link add cali9 type veth peer name eth0 netns {p3}"));
    lab.ip("p3", "link set eth0 up");
    lab.ip("p3", "address add 100.115.37.83/32 dev eth0");
    lab.ip("n1", "link set cali9 up");
    lab.ip("n1", "route add 100.115.37.83 dev cali9 scope link");
    assert_eq!(node.refresh().unwrap(), [lab.inode("p3")]);
    assert_eq!(node.refresh().unwrap(), [0; 0]);
    assert!(node.routes_changed(), "the host route came after the survey");
    assert_eq!(node.scope()[0], lab.inode("n1"));
}

#[test]
fn the_survey_leaves_the_callers_thread_where_it_is() {
    let lab = Lab::up();
    let own = lab.inside("n1", || {
        Node::survey().expect("survey");
        fs::read_link("/proc/thread-self/ns/net").unwrap()
    });
    assert_eq!(own.to_str().unwrap(), format!("net:[{}]", lab.inode("n1")));
}

/// Prints what a survey costs; the bounds are far off on purpose, for machines under load.
#[test]
fn a_survey_is_quick() {
    let mut lab = Lab::up();
    let best = |lab: &Lab| {
        let timed = || {
            let start = Instant::now();
            let node = lab.survey("n1");
            (start.elapsed(), node.scope().len())
        };
        (0..5).map(|_| timed()).min().unwrap()
    };
    let (few, scope) = best(&lab);
    println!("survey with {scope} namespaces in scope: {few:?}");
    assert_eq!(scope, 5);
    assert!(few < Duration::from_millis(500), "{few:?}");

    lab.crowd(200);
    let (many, scope) = best(&lab);
    println!("survey with {scope} namespaces in scope: {many:?}");
    assert_eq!(scope, 205);
    assert!(many < Duration::from_secs(2), "{many:?}");
}

#[test]
fn a_macvlan_in_a_pod_stands_on_the_nodes_nic() {
    let lab = Lab::up();
    lab.ip("n1", &format!("link add link ens5 name mv0 netns {} type macvlan mode bridge", lab.name("p1")));
    // Of the node's own, another one: its lower link is in the same namespace.
    lab.ip("n1", "link add link ens5 name shim type macvlan mode bridge");
    let node = lab.survey("n1");
    let ens5 = Some(LinkRef { netns: lab.inode("n1"), ifindex: lab.ifindex("n1", "ens5") });
    assert_eq!(link(&node, lab.inode("p1"), "mv0").lower, ens5);
    assert_eq!(link(&node, lab.inode("n1"), "shim").lower, ens5);
    assert_eq!(link(&node, lab.inode("p1"), "eth0").lower, None);
}
