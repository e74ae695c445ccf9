//! Datagrams to real sockets.

use std::net::{SocketAddr, UdpSocket};

use super::*;
use crate::path::Answer;

const PORT: u16 = 5300;

fn datagrams(ends: (IpAddr, IpAddr), count: u16) -> Ping {
    Ping { kind: ProbeKind::Udp { dst_port: PORT }, ..from_to(ends, ping(count)) }
}

fn answers(probes: &[Probe]) -> Vec<Option<Answer>> {
    for probe in probes {
        assert_eq!(probe.answer.is_some(), probe.rtt_ns.is_some(), "{probe:?}");
        assert_eq!((probe.protocol, probe.dst_port), (17, PORT));
    }
    probes.iter().map(|probe| probe.answer).collect()
}

fn server(pair: &Pair, address: IpAddr, port: u16) -> UdpSocket {
    let server = Pair::within(&pair.b, || UdpSocket::bind(SocketAddr::new(address, port)).expect("binds"));
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    server
}

#[test]
fn a_server_that_answers_is_heard_and_got_what_was_sent() {
    for ends in ENDS {
        let pair = Pair::new();
        let server = server(&pair, ends.1, PORT);
        let capture = Capture::open(&pair.b);
        let (probes, heard) = thread::scope(|scope| {
            let heard = scope.spawn(|| {
                let mut heard = Vec::new();
                let mut buffer = [0; 100];
                while heard.len() < 3 {
                    let (length, from) = server.recv_from(&mut buffer).expect("a datagram");
                    server.send_to(b"yes", from).expect("answers");
                    heard.push((from.port(), buffer[..length].to_vec()));
                }
                heard
            });
            (pair.run(&datagrams(ends, 3)).expect("runs"), heard.join().expect("no panic"))
        });
        assert_eq!(answers(&probes), [Some(Answer::Reply); 3]);
        for (probe, (port, payload)) in probes.iter().zip(&heard) {
            assert_eq!(*port, probe.id);
            assert_eq!(payload.len(), 56);
            assert_eq!(payload[..8], probe.nonce.to_be_bytes());
        }
        assert!(probes.windows(2).all(|pair| pair[0].id != pair[1].id), "ports of their own: {probes:?}");
        // Neither side complains: the answer found a socket.
        let is_error = |packet: &Vec<u8>| match packet[0] >> 4 {
            4 => packet[9] == 1 && packet[20] == 3,
            _ => packet[6] == 58 && packet[40] == 1,
        };
        assert!(!capture.packets().iter().any(is_error));
    }
}

#[test]
fn a_port_without_a_socket_is_unreachable() {
    let pair = Pair::new();
    for (ends, kind, code) in [(ENDS[0], 3, 3), (ENDS[1], 1, 4)] {
        // Kernels limit how fast they send such errors to one peer: a burst is allowed.
        let error = Answer::IcmpError { from: ends.1, kind, code, mtu: 0 };
        assert_eq!(answers(&pair.run(&datagrams(ends, 2)).expect("runs")), [Some(error); 2]);
    }
}

#[test]
fn a_server_that_does_not_answer_and_a_filter_are_both_silent() {
    let pair = Pair::new();
    let server = server(&pair, B.into(), PORT);
    assert_eq!(answers(&pair.run(&datagrams(ENDS[0], 2)).expect("runs")), [None; 2]);
    let mut buffer = [0; 100];
    assert_eq!(server.recv(&mut buffer).expect("the first"), 56);
    pair.rule(&format!("udp dport {PORT} drop"));
    assert_eq!(answers(&pair.run(&datagrams(ENDS[0], 2)).expect("runs")), [None; 2]);
}

#[test]
fn a_datagram_from_elsewhere_is_no_answer() {
    let pair = Pair::new();
    let (server, other) = (server(&pair, B.into(), PORT), server(&pair, B.into(), PORT + 1));
    let probes = thread::scope(|scope| {
        scope.spawn(|| {
            let (_, from) = server.recv_from(&mut [0; 100]).expect("a datagram");
            other.send_to(b"from another port", from).expect("sends");
        });
        pair.run(&datagrams(ENDS[0], 1)).expect("runs")
    });
    assert_eq!(answers(&probes), [None]);
}
