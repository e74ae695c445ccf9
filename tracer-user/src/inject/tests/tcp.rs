//! SYN probes against real listeners.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
};

use super::{
    packet::{ACK, RST, SYN, sequence},
    *,
};
use crate::path::Answer;

const PORT: u16 = 8080;

fn syns(ends: (IpAddr, IpAddr), count: u16) -> Ping {
    Ping { kind: ProbeKind::Tcp { dst_port: PORT }, ..from_to(ends, ping(count)) }
}

/// Listens in `b`.
fn listener(pair: &Pair, address: IpAddr) -> TcpListener {
    let listener = Pair::within(&pair.b, || TcpListener::bind(SocketAddr::new(address, PORT)).expect("listens"));
    listener.set_nonblocking(true).expect("sets");
    listener
}

fn answers(probes: &[Probe]) -> Vec<Option<Answer>> {
    for probe in probes {
        assert_eq!(probe.answer.is_some(), probe.rtt_ns.is_some(), "{probe:?}");
        assert_eq!((probe.protocol, probe.dst_port), (6, PORT));
    }
    probes.iter().map(|probe| probe.answer).collect()
}

/// Source port, sequence and acknowledgement number and flags of the TCP segments between A and B, in order.
fn segments(packets: &[Vec<u8>]) -> Vec<(u16, u32, u32, u8)> {
    let content = packets.iter().filter_map(|packet| match packet[0] >> 4 {
        4 if packet[9] == 6 => Some(&packet[20..]),
        6 if packet[6] == 6 => Some(&packet[40..]),
        _ => None,
    });
    let u32_at = |bytes: &[u8], at: usize| u32::from_be_bytes(*bytes[at..].first_chunk().expect("a TCP header"));
    content.map(|s| (u16::from_be_bytes([s[0], s[1]]), u32_at(s, 4), u32_at(s, 8), s[13])).collect()
}

/// Connections of `b` that are not just listeners, by state as in /proc/net/tcp (03: SYN_RECV).
fn connections(pair: &Pair) -> Vec<String> {
    let read = || {
        ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).expect("reads"))
    };
    let tables = Pair::within(&pair.b, read);
    let states = tables.iter().flat_map(|table| table.lines().skip(1)).map(|line| line.split_whitespace().nth(3));
    states.flatten().filter(|state| *state != "0A").map(str::to_owned).collect()
}

#[test]
fn an_open_port_answers_and_nothing_half_open_stays() {
    for ends in ENDS {
        let pair = Pair::new();
        let listener = listener(&pair, ends.1);
        let capture = Capture::open(&pair.b);
        let probes = pair.run(&syns(ends, 3)).expect("runs");
        assert_eq!(answers(&probes), [Some(Answer::SynAck); 3]);
        assert!(probes.windows(2).all(|pair| pair[0].id != pair[1].id), "ports of their own: {probes:?}");
        // For each the three segments of an attempt that is given up: SYN, SYN+ACK, and a RST right behind what we sent.
        let seen = segments(&capture.packets());
        for probe in &probes {
            let own = sequence(probe.nonce);
            let sent: Vec<_> = seen.iter().filter(|(port, ..)| *port == probe.id).copied().collect();
            assert_eq!(sent, [(probe.id, own, 0, SYN), (probe.id, own.wrapping_add(1), 0, RST)]);
        }
        assert_eq!(seen.iter().filter(|(port, _, _, flags)| (*port, *flags) == (PORT, SYN | ACK)).count(), 3);
        assert_eq!(connections(&pair), [""; 0]);
        assert_eq!(listener.accept().map(drop).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }
}

#[test]
fn a_closed_port_refuses() {
    let pair = Pair::new();
    for ends in ENDS {
        assert_eq!(answers(&pair.run(&syns(ends, 2)).expect("runs")), [Some(Answer::Reset); 2]);
    }
}

#[test]
fn a_filtered_port_is_silent() {
    let pair = Pair::new();
    pair.rule(&format!("tcp dport {PORT} drop"));
    for ends in ENDS {
        let _listener = listener(&pair, ends.1);
        assert_eq!(answers(&pair.run(&syns(ends, 2)).expect("runs")), [None; 2]);
    }
}

#[test]
fn a_rejected_port_says_who_rejects_and_how() {
    for (ends, kind, code) in [(ENDS[0], 3, 13), (ENDS[1], 1, 1)] {
        let pair = Pair::new();
        pair.rule(&format!("tcp dport {PORT} reject with icmpx type admin-prohibited"));
        let error = Answer::IcmpError { from: ends.1, kind, code, mtu: 0 };
        assert_eq!(answers(&pair.run(&syns(ends, 2)).expect("runs")), [Some(error); 2]);
    }
    let pair = Pair::new();
    pair.rule(&format!("tcp dport {PORT} reject with tcp reset"));
    assert_eq!(answers(&pair.run(&syns(ENDS[0], 2)).expect("runs")), [Some(Answer::Reset); 2]);
}

#[test]
fn conntrack_sees_the_connection_closed() {
    let pair = Pair::new();
    let _listener = listener(&pair, B.into());
    // Rules on states have conntrack follow connections. The RST is valid to it.
    pair.rule("ct state invalid counter drop");
    let probes = pair.run(&syns(ENDS[0], 1)).expect("runs");
    assert_eq!(answers(&probes), [Some(Answer::SynAck)]);
    let out = Command::new("ip").args(["netns", "exec", &pair.b, "conntrack", "-L", "-p", "tcp"]).output();
    let listed = String::from_utf8(out.expect("conntrack is installed").stdout).expect("text");
    let entry = listed.lines().find(|line| line.contains(&format!("sport={} ", probes[0].id))).expect("an entry");
    assert!(entry.contains(" CLOSE "), "{entry}");
}

#[test]
fn other_connections_to_the_port_are_no_answers() {
    let pair = Pair::new();
    let listener = listener(&pair, B.into());
    pair.rule(&format!("tcp dport {PORT} tcp flags syn / syn,ack tcp option timestamp exists meta mark set 1"));
    let probes = thread::scope(|scope| {
        let busy = scope.spawn(|| {
            Pair::within(&pair.a, || {
                let connect = || TcpStream::connect(SocketAddr::new(B.into(), PORT)).expect("connects");
                (0..40).map(|_| connect()).collect::<Vec<_>>().len()
            })
        });
        let probes = pair.run(&syns(ENDS[0], 5)).expect("runs");
        assert_eq!(busy.join().expect("no panic"), 40);
        probes
    });
    assert_eq!(answers(&probes), [Some(Answer::SynAck); 5]);
    let accepted = std::iter::from_fn(|| listener.accept().ok()).count();
    assert_eq!(accepted, 40, "theirs, and none of ours");
}

#[test]
fn a_probes_port_is_nobody_elses_while_it_is_under_way() {
    let pair = Pair::new();
    let listener = listener(&pair, B.into());
    // Two ports for everybody.
    set_sysctl(&pair.a, "ipv4/ip_local_port_range", "40000 40001");
    let header = check(&syns(ENDS[0], 1)).expect("sound");
    Pair::within(&pair.a, || {
        let port = Port::reserve(&header).expect("reserves").expect("a port");
        let own = SocketAddr::new(A.into(), port.number);
        assert_eq!(TcpListener::bind(own).map(drop).map_err(|error| error.kind()), Err(ErrorKind::AddrInUse));
        let connect = || TcpStream::connect(SocketAddr::new(B.into(), PORT));
        let other = connect().expect("the other port is free");
        assert_ne!(other.local_addr().expect("connected").port(), port.number);
        assert_eq!(connect().map(drop).map_err(|error| error.kind()), Err(ErrorKind::AddrNotAvailable));
        let none_left = Port::reserve(&header).map(drop).expect_err("none is free").to_string();
        insta::assert_snapshot!(none_left, @"bind for probes from 10.77.0.1: EADDRINUSE: Address already in use; all ports of the source's net.ipv4.ip_local_port_range are in use: send fewer probes at a time");
        drop(port);
        TcpListener::bind(own).map(drop).expect("free again");
    });
    drop(listener);
}
