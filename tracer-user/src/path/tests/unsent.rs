//! Packets that wait for a neighbour: a trace may be over before the kernel frees them.

use super::{
    cases::two_nodes,
    drops::{drop_of, exchange},
};
use crate::{
    node::facts::{Neighbour, Route, RouteAnswer, RouteKind, RouteQuestion},
    path::{
        model::{Basis, Direction, DropCause, Outcome},
        testing::{ENS5, ETH0, Walk, ip, pod, veth},
    },
};

/// The entry of a next hop, in the namespace of that number.
fn neighbour(w: &mut Walk, (node, netns, ifindex): (usize, usize, u32), address: std::net::IpAddr, state: &str) {
    let facts = &mut w.evidence.nodes[node].facts;
    let netns = facts.namespaces[netns].inode;
    facts.neighbours = vec![Neighbour { netns, ifindex, address, mac: None, state: state.to_owned() }];
}

#[test]
fn a_request_that_its_source_keeps_is_told_with_the_neighbour_it_waits_for() {
    let with = |state: &str| {
        let mut w = two_nodes();
        w.request(1);
        let netns = w.evidence.nodes[0].facts.namespaces[1].inode;
        let question = RouteQuestion { netns, src: pod(0, 1), dst: pod(1, 1), in_ifindex: None, mark: 0 };
        let route = Route {
            kind: RouteKind::Unicast,
            destination: "0.0.0.0/0".parse().expect("a prefix"),
            gateway: Some(ip("169.254.1.1")),
            out_ifindex: Some(ETH0),
            table: 254,
            text: "default via 169.254.1.1 dev eth0".to_owned(),
        };
        w.evidence.nodes[0].facts.routes = vec![RouteAnswer { question, route: Some(route), icmp_source: None }];
        neighbour(&mut w, (0, 1, ETH0), ip("169.254.1.1"), state);
        exchange(&w)
    };
    for state in ["INCOMPLETE", "FAILED"] {
        let e = with(state);
        assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
        let [hop] = e.request.hops.as_slice() else { panic!("{:?}", e.request.hops) };
        assert_eq!((hop.interface.as_deref(), hop.ttl, hop.at_ns), (Some("eth0"), None, None));
        let drop = drop_of(&e);
        assert_eq!((drop.cause, drop.basis), (DropCause::Neighbour, Basis::Inferred));
        assert_eq!(drop.why, "no answer to ARP for 169.254.1.1");
        assert_eq!(drop.neighbour, Some(format!("169.254.1.1 dev eth0 {state}")));
    }
    let e = with("REACHABLE");
    assert_eq!((e.outcome, e.request.hops.len()), (Outcome::Incomplete, 0), "that is no reason");
}

#[test]
fn a_packet_that_waits_on_its_way_is_not_called_unknown() {
    let with = |state: &str| {
        let mut w = two_nodes();
        w.request(1).sent((0, 1, ETH0)).received((0, 0, veth(1))).routed((0, 0, ENS5)).received((1, 0, ENS5));
        w.answer(RouteKind::Unicast, None);
        for answer in &mut w.evidence.nodes[1].facts.routes {
            answer.route.as_mut().expect("answered").out_ifindex = Some(veth(1));
        }
        neighbour(&mut w, (1, 0, veth(1)), pod(1, 1), state);
        exchange(&w)
    };
    let e = with("INCOMPLETE");
    assert_eq!((e.outcome, e.failed_direction), (Outcome::Dropped, Some(Direction::Request)));
    let last = e.request.hops.last().expect("hops");
    assert_eq!((last.interface.as_deref(), last.ttl, last.basis), (Some("ens5"), Some(62), Basis::Inferred));
    assert_eq!(drop_of(&e).why, format!("no answer to ARP for {}", pod(1, 1)));
    assert_eq!(with("STALE").outcome, Outcome::Incomplete);
}
