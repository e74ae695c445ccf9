//! Packets in tunnels.

use std::{fs::File, net::UdpSocket, path::Path, thread};

use tracer_user::{
    event::{Encapsulation, Hook, L4, Record, Sighting},
    probe::RING_SIZE,
    session::Flow,
};

use crate::{Pair, finish, kind, sh, start};

fn flow(protocol: u8, a: &str, b: &str) -> Flow {
    Flow { a: a.parse().unwrap(), b: Some(b.parse().unwrap()), protocol, a_port: None, b_port: None, one_of: 1 }
}

/// A tunnel of the same name at both ends, made by `ip link add NAME KIND local ME remote PEER`; 10.42.0.1 and .2.
fn tunnel(pair: &Pair, name: &str, kind: &str, addressed: bool) {
    for (namespace, me, peer) in [(&pair.a, 1, 2), (&pair.b, 2, 1)] {
        let local = if addressed { format!("local 198.51.100.{me}") } else { String::new() };
        sh(&format!(
            "ip -n {namespace} link add {name} type {kind} {local} remote 198.51.100.{peer}
             ip -n {namespace} addr add 10.42.0.{me}/24 dev {name}; ip -n {namespace} link set {name} up"
        ));
    }
}

/// Both ways through a tunnel: what wraps the request at each device hook.
fn wrapped(pair: &Pair) -> Vec<(Hook, Option<Encapsulation>)> {
    pair.ping(&["-c", "1", "10.42.0.2"]);
    let mut probe = start(&[flow(1, "10.42.0.1", "10.42.0.2")], &pair.scope(), RING_SIZE);
    pair.ping(&["-c", "1", "10.42.0.2"]);
    let seen = finish(&mut probe);
    let outer = |s: &Sighting| s.outer.as_ref().map(|outer| outer.encapsulation);
    seen.iter().filter(|s| kind(s) == 8 && s.free.is_none()).map(|s| (s.hook, outer(s))).collect()
}

fn expected(by: Encapsulation) -> [(Hook, Option<Encapsulation>); 6] {
    [
        (Hook::Queue, None),
        (Hook::Xmit, None),
        (Hook::Queue, Some(by)),
        (Hook::Xmit, Some(by)),
        (Hook::Receive, Some(by)),
        (Hook::Receive, None),
    ]
}

#[test]
#[ignore = "needs ipip devices, which not every kernel has"]
fn ipip_devices() {
    let pair = Pair::new("ipip");
    tunnel(&pair, "tun9", "ipip", true);
    assert_eq!(wrapped(&pair), expected(Encapsulation::Ipip));
}

#[test]
#[ignore = "needs gre devices, which not every kernel has"]
fn gre_devices_with_key_and_sequence_numbers() {
    let pair = Pair::new("gre");
    tunnel(&pair, "tun9", "gre key 7 seq csum", true);
    assert_eq!(wrapped(&pair), expected(Encapsulation::Gre));
}

#[test]
#[ignore = "needs gre devices, which not every kernel has"]
fn gretap_devices() {
    let pair = Pair::new("gretap");
    tunnel(&pair, "tun9", "gretap", true);
    assert_eq!(wrapped(&pair), expected(Encapsulation::Gre));
}

#[test]
#[ignore = "needs geneve devices, which not every kernel has"]
fn geneve_devices() {
    let pair = Pair::new("geneve");
    tunnel(&pair, "tun9", "geneve id 7", false);
    assert_eq!(wrapped(&pair), expected(Encapsulation::Geneve));
}

/// Sends one datagram from the first namespace, which the second receives at `at`.
fn datagram(pair: &Pair, to: &str, at: &str) {
    let inside = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let namespace = File::open(Path::new("/run/netns").join(name)).unwrap();
        thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run();
        })
        .join()
        .unwrap();
    };
    let (to, at) = (to.to_owned(), at.to_owned());
    let (give, take) = std::sync::mpsc::channel();
    inside(&pair.b, Box::new(move || give.send(UdpSocket::bind(at).unwrap()).unwrap()));
    let receiver = take.recv().unwrap();
    receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    inside(
        &pair.a,
        Box::new(move || {
            let sent = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"one datagram", to).unwrap();
            assert_eq!(sent, 12);
        }),
    );
    assert_eq!(receiver.recv(&mut [0; 64]).unwrap(), 12);
}

/// What Felix does to a node's own traffic into a tunnel, and kube-proxy to what asks for a service: both addresses and both
/// ports change before the first device.
#[test]
fn a_node_asks_a_service_behind_a_tunnel() {
    let pair = Pair::new("service");
    tunnel(&pair, "tun9", "vxlan id 1 dstport 8472", true);
    sh(&format!(
        "ip netns exec {a} iptables -t nat -A OUTPUT -p udp -d 203.0.113.9 --dport 53 -j DNAT --to-destination 10.42.0.2:5353
         ip netns exec {a} iptables -t nat -A POSTROUTING -o tun9 -p udp -j MASQUERADE --to-ports 40000-40010
         ip -n {a} route add 203.0.113.9 via 198.51.100.2",
        a = pair.a
    ));
    let [a, b] = pair.scope();
    let mut probe = start(&[flow(17, "198.51.100.1", "203.0.113.9")], &pair.scope(), RING_SIZE);
    datagram(&pair, "203.0.113.9:53", "10.42.0.2:5353");
    probe.detach().unwrap();
    let records = probe.drain().unwrap();
    assert!(records.iter().any(|record| matches!(record, Record::Translation(_))), "{records:#?}");
    let mut seen: Vec<_> = crate::sightings(records).into_iter().filter(|s| s.free.is_none()).collect();
    seen.retain(|s| matches!(s.packet.l4, L4::Udp { .. }));
    let steps: Vec<_> = seen.iter().map(|s| (s.hook, s.netns, s.outer.is_some())).collect();
    let (queue, xmit, receive) = (Hook::Queue, Hook::Xmit, Hook::Receive);
    let expected = [
        (queue, a, false),
        (xmit, a, false),
        (queue, a, true),
        (xmit, a, true),
        (receive, b, true),
        (receive, b, false),
    ];
    assert_eq!(steps, expected, "{seen:#?}");
    for s in &seen {
        assert_eq!((s.packet.src.to_string(), s.packet.dst.to_string()), ("10.42.0.1".into(), "10.42.0.2".into()));
    }
}
