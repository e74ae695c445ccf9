use super::{super::facts::Link, *};

fn link(ifindex: u32, kind: &str, other: Option<(u32, Option<i32>)>) -> SeenLink {
    SeenLink {
        link: Link { ifindex, name: format!("{kind}{ifindex}"), kind: Some(kind.into()), ..Link::default() },
        other: other.map(|(index, _)| index),
        other_nsid: other.and_then(|(_, nsid)| nsid),
    }
}

fn with_address(mut seen: SeenLink, address: &str) -> SeenLink {
    seen.link.addresses.push(address.parse().unwrap());
    seen
}

fn with_master(mut seen: SeenLink, master: u32) -> SeenLink {
    seen.link.master = Some(master);
    seen
}

fn view(links: Vec<SeenLink>, ways_out: Vec<WayOut>) -> View {
    let links = links.into_iter().map(|seen| (seen.link.ifindex, seen)).collect();
    View { links, ways_out }
}

fn default_by(out: u32) -> WayOut {
    WayOut { family: AddressFamily::Inet, default: true, metric: 0, out: vec![out] }
}

/// ens5 (2) on the wire (nsid 7), cali (4) to a pod (nsid 1), and a port (5) of bridge 6 to another one (nsid 3).
fn node() -> View {
    let links = vec![
        link(2, "veth", Some((2, Some(7)))),
        link(4, "veth", Some((4, Some(1)))),
        with_master(link(5, "veth", Some((4, Some(3)))), 6),
        link(6, "bridge", None),
        link(8, "vxlan", Some((4, Some(1)))),
    ];
    view(links, vec![default_by(2)])
}

fn judge(own: &View, nsid: i32, other: &View, host_route: Option<u32>) -> bool {
    is_pod(own, &uplinks(own), &pairs(own, nsid), &standing(other, 0), other, |_| host_route)
}

#[test]
fn pairs_go_by_namespace_id_and_kind_not_by_index() {
    assert_eq!(pairs(&node(), 1), BTreeMap::from([(4, 4)]));
    assert_eq!(pairs(&node(), 3), BTreeMap::from([(5, 4)]));
    assert_eq!(pairs(&node(), 9), BTreeMap::new());
}

#[test]
fn a_default_route_over_the_pair_makes_a_pod() {
    let pod = view(vec![link(4, "veth", Some((4, Some(0))))], vec![default_by(4)]);
    assert!(judge(&node(), 1, &pod, None));
    assert!(!judge(&node(), 9, &pod, None), "no pair between the two");
}

#[test]
fn a_default_route_elsewhere_makes_none() {
    let other = view(vec![link(4, "veth", Some((4, Some(0)))), link(9, "veth", None)], vec![default_by(9)]);
    assert!(!judge(&node(), 1, &other, Some(4)));
}

#[test]
fn whoever_hangs_on_the_uplink_is_no_pod() {
    let other_node = view(vec![link(2, "veth", Some((2, Some(0))))], vec![default_by(2)]);
    assert!(!judge(&node(), 7, &other_node, Some(2)));
    let wire = view(vec![with_address(link(2, "veth", Some((2, Some(0)))), "172.20.32.1/19")], vec![]);
    assert!(!judge(&node(), 7, &wire, Some(2)));
}

#[test]
fn without_default_route_a_host_route_or_a_bridge_decides() {
    let pod = view(vec![with_address(link(4, "veth", Some((4, Some(0)))), "100.115.37.81/32")], vec![]);
    assert!(judge(&node(), 1, &pod, Some(4)));
    assert!(!judge(&node(), 1, &pod, Some(2)));
    assert!(!judge(&node(), 1, &pod, None));
    assert!(judge(&node(), 3, &pod, None), "port of a bridge");
    let bare = view(vec![with_address(link(4, "veth", Some((4, Some(0)))), "fe80::1/64")], vec![]);
    assert!(!judge(&node(), 3, &bare, None), "nothing but a link-local address");
}

#[test]
fn the_lowest_metric_counts_and_one_family_is_enough() {
    let links = || vec![link(4, "veth", Some((4, Some(0)))), link(9, "veth", None)];
    let worse = WayOut { metric: 5, ..default_by(4) };
    assert!(!judge(&node(), 1, &view(links(), vec![default_by(9), worse.clone()]), None));
    let v6 = WayOut { family: AddressFamily::Inet6, ..worse };
    assert!(judge(&node(), 1, &view(links(), vec![default_by(9), v6]), None));
}

#[test]
fn uplinks_reach_down_to_bond_members_and_vlan_parents_but_not_to_bridge_ports() {
    let mut vlan = link(10, "vlan", Some((11, None)));
    vlan.link.master = None;
    let links = vec![
        vlan,
        link(11, "bond", None),
        with_master(link(12, "veth", Some((1, Some(4)))), 11),
        link(20, "bridge", None),
        with_master(link(21, "veth", Some((1, Some(5)))), 20),
    ];
    let own = view(links.clone(), vec![default_by(10)]);
    assert_eq!(uplinks(&own), BTreeSet::from([10, 11, 12]));
    let own = view(links, vec![default_by(20)]);
    assert_eq!(uplinks(&own), BTreeSet::from([20]));
}

#[test]
fn a_node_without_default_route_leaves_by_its_gateways() {
    let mut own = node();
    own.ways_out = vec![WayOut { default: false, ..default_by(2) }];
    assert_eq!(uplinks(&own), BTreeSet::from([2]));
}

#[test]
fn a_default_route_over_a_macvlan_on_this_node_makes_a_pod() {
    let macvlan = |nsid| with_address(link(5, "macvlan", Some((2, Some(nsid)))), "10.56.0.11/24");
    let eth0 = link(4, "veth", Some((4, Some(0))));
    // Beside a pair that its default route does not take.
    assert!(judge(&node(), 1, &view(vec![eth0.clone(), macvlan(0)], vec![default_by(5)]), None));
    // Alone.
    assert!(judge(&node(), 9, &view(vec![macvlan(0)], vec![default_by(5)]), None));
    assert!(judge(&node(), 9, &view(vec![macvlan(0)], Vec::new()), None));
    assert!(!judge(&node(), 9, &view(vec![macvlan(3)], vec![default_by(5)]), None), "on another namespace's link");
    assert!(!judge(&node(), 9, &view(vec![eth0, macvlan(0)], vec![default_by(4)]), None), "its way out is another");
}
