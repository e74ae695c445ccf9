//! Echoes: what leaves, what comes back, and when.

use super::*;
use crate::checksum::checksum;
use crate::path::Answer;

#[test]
fn every_probe_is_answered_and_says_what_it_carried() {
    let pair = Pair::new();
    let capture = Capture::open(&pair.b);
    let probes = pair.run(&ping(5)).expect("runs");
    assert_eq!(probes.iter().map(|p| p.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    for probe in &probes {
        let rtt = probe.rtt_ns.expect("answered");
        assert!((1..300_000_000).contains(&rtt), "{rtt} ns");
    }
    let requests = capture.requests();
    assert_eq!(requests.len(), 5);
    let mut ids = Vec::new();
    for (packet, probe) in requests.iter().zip(&probes) {
        let u16_at = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        assert_eq!(u16_at(2), 84, "total length");
        assert_ne!(u16_at(4), 0, "IP id");
        assert_eq!(u16_at(4), probe.ip_id);
        assert_eq!(u16_at(6), 0x4000, "DF");
        assert_eq!(packet[8], 64, "TTL");
        assert_eq!(checksum(&packet[..20]), 0, "IP checksum");
        assert_eq!(checksum(&packet[20..]), 0, "ICMP checksum");
        assert_eq!((packet[12..16].to_vec(), packet[16..20].to_vec()), (A.octets().to_vec(), B.octets().to_vec()));
        assert_eq!((u16_at(24), u16_at(26)), (0x4242, probe.seq));
        let nonce = 0xfeed_0000_0000_0000 + u64::from(probe.seq);
        assert_eq!(packet[28..36], nonce.to_be_bytes());
        assert_eq!(probe.nonce, nonce);
        ids.push(probe.ip_id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 5, "IP ids differ");
}

#[test]
fn rtt_is_the_networks_time_and_not_our_threads() {
    let pair = Pair::new();
    // A reply of 1042 bytes on the wire takes 104 ms of this rate; the first finds the bucket full. Probes leave at 0,
    // 20 and 40 ms, so replies come at about 0, 104 and 208 ms, and the third while we sleep.
    ip(&format!("netns exec {} tc qdisc add dev eth0 root tbf rate 80kbit burst 1100 limit 100000", pair.b));
    let asked = Ping { size: 1000, timeout: Duration::from_secs(2), ..ping(3) };
    let mut rtts = Vec::new();
    run(
        &asked,
        Pair::netns(&pair.a).as_fd(),
        || false,
        |probe| {
            rtts.push(probe.rtt_ns.expect("answered"));
            if probe.seq == 2 {
                thread::sleep(Duration::from_millis(300));
            }
        },
    )
    .expect("runs");
    let [first, second, third] = rtts[..] else { panic!("three answers in order: {rtts:?}") };
    // Wide, because a busy machine delays both sides; the third's bound is what this is about.
    assert!(first < 80_000_000, "{first}");
    assert!((60_000_000..180_000_000).contains(&second), "{second}");
    assert!((140_000_000..300_000_000).contains(&third), "by our thread's clock it is over 360 ms: {third}");
}

#[test]
fn an_ipv6_echo_is_answered_and_says_what_it_carried() {
    let pair = Pair::new();
    set_sysctl(&pair.a, "ipv6/conf/all/hop_limit", "33");
    set_sysctl(&pair.a, "ipv6/conf/eth0/hop_limit", "33");
    let capture = Capture::open(&pair.b);
    let probes = pair.run(&from_to(ENDS[1], ping(3))).expect("runs");
    let requests = capture.requests();
    assert_eq!((probes.len(), requests.len()), (3, 3));
    for (packet, probe) in requests.iter().zip(&probes) {
        assert_eq!(probe.answer, Some(Answer::Reply));
        let rtt = probe.rtt_ns.expect("answered");
        assert!((1..300_000_000).contains(&rtt), "{rtt} ns");
        assert_eq!((probe.protocol, probe.ip_id, probe.dst_port), (58, 0, 0));
        assert_eq!(packet.len(), 104);
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 64, 58, 33]);
        assert_eq!((packet[8..24].to_vec(), packet[24..40].to_vec()), (A6.octets().to_vec(), B6.octets().to_vec()));
        assert_eq!(packet[44..46], 0x4242_u16.to_be_bytes());
        assert_eq!(packet[46..48], probe.seq.to_be_bytes());
        assert_eq!(packet[48..56], probe.nonce.to_be_bytes());
    }
}

#[test]
fn the_kernel_stamps_each_request_under_its_own_number() {
    let pair = Pair::new();
    for (src, dst) in ENDS {
        for kind in [ProbeKind::Echo { id: 0x4242 }, ProbeKind::Tcp { dst_port: 9 }, ProbeKind::Udp { dst_port: 9 }] {
            let header = check(&from_to((src, dst), Ping { kind, ..ping(1) })).expect("sound");
            Pair::within(&pair.a, || stamps_have_numbers(&pair.a, &header));
        }
    }
}

fn stamps_have_numbers(netns: &str, header: &Header) {
    let mut socket = RawSocket::of_probes(header).expect("opens");
    for seq in 1..=4 {
        let bytes = header.packet(&header.probe(seq, 0x4242, 1, 1), 64, 56);
        if seq == 3 {
            nft(netns, "add table inet refuse");
            nft(netns, "add chain inet refuse out { type filter hook output priority 0 ; policy drop ; }");
            assert_eq!(socket.send(&bytes, header.dst()), Err(Errno::EPERM), "{header:?}");
            assert_eq!(socket.handed_over().expect("reads"), None, "no device saw it");
            nft(netns, "delete table inet refuse");
            continue;
        }
        let before = std::time::SystemTime::now();
        let key = socket.send(&bytes, header.dst()).expect("sends");
        let after = std::time::SystemTime::now();
        let (stamped, at) = socket.handed_over().expect("reads").expect("a stamp by the time the call returns");
        assert_eq!(stamped, key, "probe {seq} of {header:?}");
        assert!((before..=after).contains(&at), "probe {seq} of {header:?}: {before:?} {at:?} {after:?}");
    }
}

#[test]
fn probes_are_unanswered_when_the_peer_drops_them() {
    let pair = Pair::new();
    ip(&format!("-n {} route add blackhole {A}", pair.b));
    let begun = Instant::now();
    let probes = pair.run(&Ping { timeout: Duration::from_millis(200), ..ping(3) }).expect("runs");
    assert_eq!(probes.iter().map(|p| (p.seq, p.rtt_ns)).collect::<Vec<_>>(), [(1, None), (2, None), (3, None)]);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(240), "the last probe has its own 200 ms, from 40 ms on: {took:?}");
    assert!(took < Duration::from_millis(500), "probes do not wait for each other: {took:?}");
}

#[test]
fn size_interval_ttl_and_source_are_as_asked() {
    let pair = Pair::new();
    let capture = Capture::open(&pair.b);
    set_sysctl(&pair.a, "ipv4/ip_default_ttl", "33");
    let asked = Ping { src: A_SECOND.into(), size: 1000, interval: Duration::from_millis(50), ..ping(4) };
    let begun = Instant::now();
    let probes = pair.run(&asked).expect("runs");
    let took = begun.elapsed();
    assert!(probes.iter().all(|p| p.rtt_ns.is_some()), "{probes:?}");
    assert!(took >= Duration::from_millis(150), "three intervals of 50 ms: {took:?}");
    let requests = capture.requests();
    assert_eq!(requests.len(), 4);
    for packet in requests {
        assert_eq!(packet.len(), 1028);
        assert_eq!(packet[8], 33);
        assert_eq!(packet[12..16], A_SECOND.octets());
    }
}

#[test]
fn other_peoples_pings_answer_nothing() {
    let pair = Pair::new();
    let other = Ping { kind: ProbeKind::Echo { id: 0x1111 }, interval: Duration::from_millis(5), ..ping(40) };
    let (ours, theirs) = thread::scope(|scope| {
        let theirs = scope.spawn(|| pair.run(&other).expect("runs"));
        let ours = pair.run(&Ping { dst: NOBODY.into(), ..ping(5) }).expect("runs");
        (ours, theirs.join().expect("no panic"))
    });
    assert!(ours.iter().all(|p| p.rtt_ns.is_none()), "{ours:?}");
    assert!(theirs.iter().all(|p| p.rtt_ns.is_some()), "{theirs:?}");
}

#[test]
fn stopping_ends_the_run_early_and_reports_what_was_sent() {
    let pair = Pair::new();
    let stop = AtomicBool::new(false);
    let netns = Pair::netns(&pair.a);
    let endless = Ping { dst: NOBODY.into(), timeout: Duration::from_secs(60), ..ping(u16::MAX) };
    let mut probes = Vec::new();
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(150));
            stop.store(true, Ordering::Relaxed);
        });
        run(&endless, netns.as_fd(), || stop.load(Ordering::Relaxed), |probe| probes.push(probe)).expect("runs");
    });
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!((2..100).contains(&probes.len()), "{}", probes.len());
    assert!(probes.iter().all(|p| p.rtt_ns.is_none()));
}

#[test]
fn the_callers_thread_keeps_its_namespace() {
    let pair = Pair::new();
    let before = std::fs::read_link("/proc/thread-self/ns/net").expect("proc is mounted");
    pair.run(&ping(1)).expect("runs");
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").expect("proc is mounted"), before);
}
