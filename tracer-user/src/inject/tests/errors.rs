//! ICMP errors, and what is refused.

use super::*;
use crate::path::{Answer, Unsent};

/// Every kind of probe, to the same place.
const KINDS: [ProbeKind; 3] =
    [ProbeKind::Echo { id: 0x4242 }, ProbeKind::Tcp { dst_port: 80 }, ProbeKind::Udp { dst_port: 80 }];

/// Beyond `b`, in each family.
fn beyond(pair: &Pair) -> [(IpAddr, IpAddr); 2] {
    set_sysctl(&pair.b, "ipv4/ip_forward", "1");
    set_sysctl(&pair.b, "ipv6/conf/all/forwarding", "1");
    // Else errors to one peer soon stop (`icmpv4_xrlim_allow` in net/ipv4/icmp.c).
    set_sysctl(&pair.b, "ipv4/icmp_ratelimit", "0");
    set_sysctl(&pair.b, "ipv6/icmp/ratelimit", "0");
    ip(&format!("-n {} route add 10.78.0.0/16 via {B}", pair.a));
    ip(&format!("-n {} route add fd78::/16 via {B6}", pair.a));
    let [(a, _), (a6, _)] = ENDS;
    [(a, [10, 78, 0, 1].into()), (a6, [0xfd78, 0, 0, 0, 0, 0, 0, 1].into())]
}

#[test]
fn an_icmp_error_ends_a_probe_at_once_and_is_its_answer() {
    let pair = Pair::new();
    let far = beyond(&pair);
    ip(&format!("-n {} route add unreachable 10.78.0.0/16", pair.b));
    ip(&format!("-n {} route add unreachable fd78::/16", pair.b));
    // Host unreachable; no route (`ip6_pkt_discard` in net/ipv6/route.c).
    for ((ends, from), (type_, code)) in far.into_iter().zip([IpAddr::from(B), B6.into()]).zip([(3, 1), (1, 0)]) {
        for kind in KINDS {
            let begun = Instant::now();
            let asked = Ping { kind, timeout: Duration::from_secs(20), ..from_to(ends, ping(1)) };
            let probes = pair.run(&asked).expect("runs");
            let [probe] = probes[..] else { panic!("one probe: {probes:?}") };
            assert_eq!(probe.answer, Some(Answer::IcmpError { from, kind: type_, code, mtu: 0 }), "{kind:?}");
            let rtt = probe.rtt_ns.expect("an error is an answer");
            assert!((1..10_000_000_000).contains(&rtt), "{rtt} ns");
            assert!(begun.elapsed() < Duration::from_secs(10), "did not wait for the time limit");
        }
    }
}

/// The own kernel's rules: the system call fails, and who rejects answers by the loopback.
#[test]
fn what_the_own_kernel_refuses_is_told_with_its_answer() {
    let pair = Pair::new();
    set_sysctl(&pair.a, "ipv4/icmp_ratelimit", "0");
    set_sysctl(&pair.a, "ipv6/icmp/ratelimit", "0");
    for rejects in [true, false] {
        nft(&pair.a, "add table inet refuse");
        nft(&pair.a, "add chain inet refuse out { type filter hook output priority 0 ; }");
        let what = if rejects { "reject" } else { "drop" };
        // Not its own answer.
        nft(&pair.a, &format!("add rule inet refuse out oifname eth0 {what}"));
        for (ends, code) in ENDS.into_iter().zip([(3, 3), (1, 4)]) {
            for kind in KINDS {
                let begun = Instant::now();
                let asked = Ping { kind, timeout: Duration::from_secs(20), ..from_to(ends, ping(2)) };
                let probes = pair.run(&asked).expect("runs");
                let (kind_, code) = code;
                let error = Answer::IcmpError { from: ends.0, kind: kind_, code, mtu: 0 };
                let expected = (Some(Unsent::Filtered), rejects.then_some(error));
                assert_eq!(probes.iter().map(|p| (p.unsent, p.answer)).collect::<Vec<_>>(), [expected; 2], "{kind:?}");
                assert!(begun.elapsed() < Duration::from_secs(10), "did not wait for the time limit");
            }
        }
        nft(&pair.a, "delete table inet refuse");
    }
}

/// The routes': also those to what DNAT makes of the destination, which has a good one itself.
#[test]
fn what_has_no_way_out_is_told_with_the_reason() {
    let pair = Pair::new();
    let a = &pair.a;
    for (v4, v6, kind) in
        [("10.79.1", "fd79:1", "blackhole"), ("10.79.2", "fd79:2", "unreachable"), ("10.79.3", "fd79:3", "prohibit")]
    {
        ip(&format!("-n {a} route add {kind} {v4}.0/24"));
        ip(&format!("-n {a} route add {kind} {v6}::/64"));
    }
    let service = Ipv4Addr::new(10, 77, 0, 99);
    nft(a, "add table ip turn");
    nft(a, "add chain ip turn out { type nat hook output priority -100 ; }");
    nft(a, &format!("add rule ip turn out ip daddr {service} dnat to 10.79.3.1"));
    let cases = [
        (Unsent::NoRoute, "8.8.8.8", "2001:db8::1"),
        (Unsent::Blackhole, "10.79.1.1", "fd79:1::1"),
        (Unsent::Unreachable, "10.79.2.1", "fd79:2::1"),
        (Unsent::Prohibit, "10.79.3.1", "fd79:3::1"),
        (Unsent::Prohibit, "10.77.0.99", "fd79:3::1"),
    ];
    for (why, v4, v6) in cases {
        for (src, dst) in [(ENDS[0].0, v4), (ENDS[1].0, v6)] {
            for kind in KINDS {
                let ends = (src, dst.parse().expect("an address"));
                let probes = pair.run(&Ping { kind, ..from_to(ends, ping(2)) }).expect("runs");
                let found: Vec<_> = probes.iter().map(|p| (p.unsent, p.answer)).collect();
                assert_eq!(found, [(Some(why), None); 2], "{kind:?} to {dst}");
            }
        }
    }
}

#[test]
fn too_big_for_a_link_on_the_way_tells_its_mtu() {
    let pair = Pair::new();
    let far = beyond(&pair);
    let b = &pair.b;
    ip(&format!("-n {b} link add small mtu 1300 type veth peer name other mtu 1300"));
    ip(&format!("-n {b} link set small up"));
    ip(&format!("-n {b} link set other up"));
    ip(&format!("-n {b} route add 10.78.0.0/16 dev small"));
    ip(&format!("-n {b} route add fd78::/16 dev small"));
    // Fragmentation needed; packet too big.
    for ((ends, from), (type_, code)) in far.into_iter().zip([IpAddr::from(B), B6.into()]).zip([(3, 4), (2, 0)]) {
        for kind in [KINDS[0], KINDS[2]] {
            // The first answer teaches the kernel the path's MTU, which must not keep the second probe in.
            let asked = Ping { kind, size: 1400, ..from_to(ends, ping(2)) };
            let probes = pair.run(&asked).expect("runs");
            let expected = Answer::IcmpError { from, kind: type_, code, mtu: 1300 };
            assert_eq!(probes.iter().map(|p| p.answer).collect::<Vec<_>>(), [Some(expected); 2], "{kind:?}");
        }
    }
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
    insta::assert_snapshot!(message(&Ping { size: 1473, ..ping(1) }, &own), @"send probe 1 to 10.77.0.2: EMSGSIZE: Message too long; the probe is larger than the interface's MTU: choose a smaller size");
    insta::assert_snapshot!(message(&Ping { size: 7, ..ping(1) }, &own), @"probe size 7: the payload must be between 8 bytes (for the nonce) and 65507");
    insta::assert_snapshot!(message(&Ping { interval: Duration::ZERO, ..ping(1) }, &own), @"probe interval 0: probes need a time between them; try 0.01 seconds");
    insta::assert_snapshot!(message(&Ping { dst: B6.into(), ..ping(1) }, &own), @"probe 10.77.0.1 -> fd77::2: one is an IPv4 and one an IPv6 address; trace two addresses of one family");
    insta::assert_snapshot!(message(&Ping { kind: ProbeKind::Tcp { dst_port: 0 }, ..ping(1) }, &own), @"probe port 0: nothing can listen on it; give a port from 1 to 65535");
    let six = |dst: &str| from_to((A6.into(), dst.parse().expect("address")), ping(1));
    insta::assert_snapshot!(message(&Ping { size: 1453, ..six("fd77::2") }, &own), @"send probe 1 to fd77::2: EMSGSIZE: Message too long; the probe is larger than the interface's MTU: choose a smaller size");
    let udp = Ping { kind: ProbeKind::Udp { dst_port: 9 }, ..ping(1) };
    insta::assert_snapshot!(message(&Ping { size: 1473, ..udp.clone() }, &own), @"send probe 1 to 10.77.0.2: EMSGSIZE: Message too long; the probe is larger than the interface's MTU: choose a smaller size");
    insta::assert_snapshot!(message(&Ping { size: 7, ..udp }, &own), @"probe size 7: the payload must be between 8 bytes (for the nonce) and 65507");
}

#[test]
fn a_run_that_fails_later_still_tells_what_it_sent() {
    let pair = Pair::new();
    let asked = Ping { kind: KINDS[2], ..from_to((A.into(), NOBODY.into()), ping(3)) };
    let mut probes = Vec::new();
    let error = Pair::within(&pair.a, || {
        let mut injector = Injector::open(&asked, check(&asked).expect("sound")).expect("opens");
        injector.errors.as_mut().expect("datagrams have it").break_off();
        injector.run(|| false, |probe| probes.push(probe)).expect_err("fails").to_string()
    });
    assert!(error.starts_with("recvmsg for probes from 10.77.0.1: ENOTSOCK"), "{error}");
    assert_eq!(probes.iter().map(|p| (p.seq, p.rtt_ns)).collect::<Vec<_>>(), [(1, None)]);
}

/// What waits for an unknown neighbour fills the send buffer (net.core.wmem_default), if it may be more than that.
#[test]
fn a_full_send_buffer_is_waited_for() {
    let pair = Pair::new();
    set_sysctl(&pair.a, "ipv4/neigh/eth0/unres_qlen_bytes", "10000000");
    let asked = Ping {
        size: 1400,
        interval: Duration::from_millis(1),
        timeout: Duration::from_secs(10),
        ..from_to((A.into(), NOBODY.into()), ping(400))
    };
    let probes = pair.run(&asked).expect("runs");
    assert_eq!(probes.iter().map(|p| p.seq).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
    // Once the kernel has given up on the neighbour, it says so of each that waited.
    let told = probes.iter().filter(|p| matches!(p.answer, Some(Answer::IcmpError { kind: 3, code: 1, .. }))).count();
    assert!(told > 0, "{:?}", probes[0]);
}
