//! Sampling of flows: one of so many, chosen by the asking end's port, in both directions.

use std::{collections::BTreeSet, fs::File, net::UdpSocket, path::Path, thread, time::Duration};

use tracer_common::chosen;
use tracer_user::{
    event::{L4, Sighting},
    probe::RING_SIZE,
    session::Flow,
};

use crate::{Pair, finish, flow, start};

const ONE_OF: u32 = 4;
const SERVER: u16 = 4242;

/// Whether a port is one of those recorded. Packets have it in network order.
fn is_sampled(port: u16) -> bool {
    chosen(u16::from_ne_bytes(port.to_be_bytes()).into(), ONE_OF) == 0
}

/// A socket that is bound in a namespace.
fn bound(namespace: &str, at: (&str, u16)) -> UdpSocket {
    let namespace = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    let at = (at.0.to_owned(), at.1);
    let bind = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind((at.0.as_str(), at.1)).unwrap()
    };
    let socket = thread::spawn(bind).join().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// The clients' ports of what was seen from one end.
fn clients(seen: &[Sighting], from_server: bool) -> BTreeSet<u16> {
    let client = |sighting: &Sighting| match sighting.packet.l4 {
        L4::Udp { src_port: SERVER, dst_port, .. } if from_server => Some(dst_port),
        L4::Udp { src_port, dst_port: SERVER, .. } if !from_server => Some(src_port),
        L4::Udp { .. } => None,
        _ => panic!("not UDP: {sighting:?}"),
    };
    seen.iter().filter_map(client).collect()
}

#[test]
fn of_connections_those_are_recorded_that_their_client_ports_choose() {
    let pair = Pair::new("sample");
    let wanted = Flow { protocol: 17, b_port: Some(SERVER), one_of: ONE_OF, ..flow() };
    let mut probe = start(&[wanted], &pair.scope(), RING_SIZE);
    let server = bound(&pair.b, ("198.51.100.2", SERVER));
    let ports: BTreeSet<u16> = (40000..40080).collect();
    for port in &ports {
        let client = bound(&pair.a, ("198.51.100.1", *port));
        client.send_to(b"question", ("198.51.100.2", SERVER)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        server.send_to(b"answer", from).unwrap();
        client.recv(&mut [0; 16]).unwrap();
    }
    let seen = finish(&mut probe);
    let expected: BTreeSet<u16> = ports.iter().copied().filter(|port| is_sampled(*port)).collect();
    assert!((15..=25).contains(&expected.len()), "about a quarter: {expected:?}");
    assert_eq!([clients(&seen, false), clients(&seen, true)], [expected.clone(), expected]);
}

#[test]
fn of_pings_those_are_recorded_that_their_identifiers_choose() {
    let pair = Pair::new("samplei");
    let mut probe = start(&[Flow { one_of: ONE_OF, ..flow() }], &pair.scope(), RING_SIZE);
    let ids = 1000..1024_u16;
    for id in ids.clone() {
        pair.ping(&["-c", "1", "-e", &id.to_string(), "198.51.100.2"]);
    }
    let of = |kind_wanted: u8, seen: &[Sighting]| -> BTreeSet<u16> {
        let id = |sighting: &Sighting| match sighting.packet.l4 {
            L4::Icmp { kind, id, .. } => (kind == kind_wanted).then_some(id),
            _ => panic!("not ICMP: {sighting:?}"),
        };
        seen.iter().filter_map(id).collect()
    };
    let seen = finish(&mut probe);
    let expected: BTreeSet<u16> = ids.filter(|id| is_sampled(*id)).collect();
    assert!(!expected.is_empty());
    assert_eq!([of(8, &seen), of(0, &seen)], [expected.clone(), expected]);
}
