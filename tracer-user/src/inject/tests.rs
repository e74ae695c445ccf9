//! Against the real kernel, as root, in network namespaces of their own.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const A_SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);

/// Two namespaces joined by a veth pair; removed when it goes out of scope.
struct Pair {
    a: String,
    b: String,
}

impl Pair {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("ppinj{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let pair = Self { a: format!("{unique}a"), b: format!("{unique}b") };
        let Self { a, b } = &pair;
        ip(&format!("netns add {a}"));
        ip(&format!("netns add {b}"));
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
        for (ns, address) in [(a, A), (a, A_SECOND), (b, B)] {
            ip(&format!("-n {ns} address add {address}/24 dev eth0"));
        }
        for ns in [a, b] {
            ip(&format!("-n {ns} link set lo up"));
            ip(&format!("-n {ns} link set eth0 up"));
        }
        pair.wait_for_link();
        pair
    }

    /// A new link drops everything until the kernel has noticed its carrier, which it does at most once a second for all
    /// links of the machine together (net/core/link_watch.c).
    fn wait_for_link(&self) {
        let answered = AtomicBool::new(false);
        let patient = Ping { timeout: Duration::from_secs(1), ..ping(500) };
        run(
            &patient,
            Self::netns(&self.a).as_fd(),
            || answered.load(Ordering::Relaxed),
            |probe| {
                answered.fetch_or(probe.rtt_ns.is_some(), Ordering::Relaxed);
            },
        )
        .expect("runs");
        assert!(answered.into_inner(), "the link carries nothing within 10 s");
    }

    fn netns(name: &str) -> File {
        File::open(format!("/run/netns/{name}")).expect("namespace was made")
    }

    /// Runs the probes in `a`.
    fn run(&self, ping: &Ping) -> Result<Vec<Probe>, Error> {
        collect(ping, &Self::netns(&self.a))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for ns in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

/// A packet socket in a namespace: what its interfaces get and send.
struct Capture(OwnedFd);

impl Capture {
    fn open(name: &str) -> Self {
        let netns = Pair::netns(name);
        let open = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("tests of injection need root");
            let all = SockProtocol::EthAll;
            let fd = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), all).expect("packet socket");
            setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 200_000)).expect("time limit");
            fd
        };
        Self(thread::spawn(open).join().expect("capture opens"))
    }

    /// The echo requests among what was captured.
    fn requests(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let mut requests = Vec::new();
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let packet = &buffer[..length];
            if length >= 36 && packet[0] == 0x45 && packet[9] == 1 && packet[20] == 8 {
                requests.push(packet.to_vec());
            }
        }
        requests
    }
}

fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(
        out.status.success(),
        "ip {arguments} (tests of injection need root): {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn set_sysctl(netns: &str, name: &str, value: u32) {
    let script = format!("echo {value} > /proc/sys/net/ipv4/{name}");
    let done = Command::new("ip").args(["netns", "exec", netns, "sh", "-c", &script]).status();
    assert!(done.expect("ip is installed").success(), "{script}");
}

fn ping(count: u16) -> Ping {
    Ping {
        src: A.into(),
        dst: B.into(),
        kind: ProbeKind::Echo { id: 0x4242 },
        count,
        interval: Duration::from_millis(20),
        size: 56,
        timeout: Duration::from_millis(300),
        nonce_base: 0xfeed_0000_0000_0000,
    }
}

fn collect(ping: &Ping, netns: &File) -> Result<Vec<Probe>, Error> {
    let mut probes = Vec::new();
    run(ping, netns.as_fd(), || false, |probe| probes.push(probe))?;
    probes.sort_by_key(|probe| probe.seq);
    Ok(probes)
}

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
        assert_eq!(packet::checksum(&packet[..20]), 0, "IP checksum");
        assert_eq!(packet::checksum(&packet[20..]), 0, "ICMP checksum");
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
    assert!(first < 15_000_000, "{first}");
    assert!((60_000_000..130_000_000).contains(&second), "{second}");
    assert!((140_000_000..240_000_000).contains(&third), "by our thread's clock it is over 360 ms: {third}");
}

#[test]
fn the_kernel_stamps_each_request_under_its_own_number() {
    let pair = Pair::new();
    let netns = Pair::netns(&pair.a);
    let header = Header { src: A, dst: B, id: 0x4242 };
    let probe = |seq| Probe { seq, id: header.id, ip_id: seq, nonce: 1, protocol: 1, ..Probe::default() };
    let work = || {
        setns(&netns, CloneFlags::CLONE_NEWNET).expect("tests of injection need root");
        let mut socket = EchoSocket::open(A, header.id).expect("opens");
        let refused = |refuse: &str| {
            let words: Vec<&str> = refuse.split(' ').collect();
            assert!(Command::new("nft").args(words).status().expect("nft is installed").success(), "{refuse}");
        };
        for seq in 1..=4 {
            if seq == 3 {
                refused("add table ip refuse");
                refused("add chain ip refuse out { type filter hook output priority 0 ; policy drop ; }");
                assert_eq!(send(&mut socket, &header, &probe(seq), 64, 56).map(|sent| sent.0), Err(Errno::EPERM));
                assert_eq!(socket.handed_over().expect("reads"), None, "no device saw it");
                refused("delete table ip refuse");
                continue;
            }
            let before = std::time::SystemTime::now();
            let (key, _) = send(&mut socket, &header, &probe(seq), 64, 56).expect("sends");
            let after = std::time::SystemTime::now();
            let (stamped, at) = socket.handed_over().expect("reads").expect("a stamp by the time the call returns");
            assert_eq!(stamped, key, "probe {seq}");
            assert!((before..=after).contains(&at), "probe {seq}: {before:?} {at:?} {after:?}");
        }
    };
    thread::scope(|scope| scope.spawn(work).join().expect("no panic"));
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
fn an_icmp_error_ends_a_probe_at_once() {
    let pair = Pair::new();
    set_sysctl(&pair.b, "ip_forward", 1);
    ip(&format!("-n {} route add unreachable 10.78.0.0/24", pair.b));
    ip(&format!("-n {} route add 10.78.0.0/24 via {B}", pair.a));
    let far = Ping { dst: Ipv4Addr::new(10, 78, 0, 1).into(), timeout: Duration::from_secs(20), ..ping(1) };
    let begun = Instant::now();
    let probes = pair.run(&far).expect("runs");
    assert_eq!(probes.len(), 1);
    assert_eq!(probes[0].rtt_ns, None);
    assert!(begun.elapsed() < Duration::from_secs(10), "did not wait for the time limit");
}

#[test]
fn size_interval_ttl_and_source_are_as_asked() {
    let pair = Pair::new();
    let capture = Capture::open(&pair.b);
    set_sysctl(&pair.a, "ip_default_ttl", 33);
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

#[test]
fn refusals_name_the_cause_and_the_way_out() {
    let pair = Pair::new();
    let own = Pair::netns(&pair.a);
    // What `ip netns del` leaves when the pod's namespace went away behind its back.
    let stale = tempfile::tempfile().expect("temporary file");
    let message = |ping: &Ping, netns: &File| collect(ping, netns).expect_err("must be refused").to_string();
    insta::assert_snapshot!(message(&ping(1), &stale), @"setns into the network namespace of 10.77.0.1: EINVAL: Invalid argument; what was opened is not a network namespace (any more): has the pod gone?");
    insta::assert_snapshot!(message(&Ping { src: NOBODY.into(), ..ping(1) }, &own), @"bind for probes from 10.77.0.200: EADDRNOTAVAIL: Cannot assign requested address; the namespace does not have this address (any more): has the pod gone?");
    insta::assert_snapshot!(message(&Ping { dst: Ipv4Addr::new(8, 8, 8, 8).into(), ..ping(1) }, &own), @"send probe 1 to 8.8.8.8: ENETUNREACH: Network is unreachable; the source's namespace has no route to it");
    insta::assert_snapshot!(message(&Ping { size: 1473, ..ping(1) }, &own), @"send probe 1 to 10.77.0.2: EMSGSIZE: Message too long; the probe is larger than the interface's MTU: choose a smaller size");
    insta::assert_snapshot!(message(&Ping { size: 7, ..ping(1) }, &own), @"probe size 7: the payload must be between 8 bytes (for the nonce) and 65507");
    insta::assert_snapshot!(message(&Ping { interval: Duration::ZERO, ..ping(1) }, &own), @"probe interval 0: probes need a time between them; try 0.01 seconds");
    insta::assert_snapshot!(message(&Ping { dst: std::net::Ipv6Addr::LOCALHOST.into(), ..ping(1) }, &own), @"probe 10.77.0.1 -> ::1: IPv6 probes are not supported yet; trace an IPv4 address");
}

#[test]
fn ip_ids_are_never_zero_and_differ() {
    for first in [0, 1, 0x7fff, u16::MAX - 1, u16::MAX] {
        let mut seen = std::collections::HashSet::new();
        for seq in 1..=u16::MAX {
            let id = ip_id(first, seq);
            assert_ne!(id, 0);
            assert!(seen.insert(id), "{id} twice from {first}");
        }
    }
}
