//! The kernel programs in a real kernel, on real packets. Needs root, `ip` and `ping`; fails without them.
#![cfg(target_os = "linux")]

use std::{
    net::IpAddr,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
};

mod fragments;
mod kprobes;
mod sampling;
mod tags;
mod tunnels;

use tracer_user::{
    event::{Hook, L4, Record, Sighting},
    probe::{Probe, RING_SIZE, Setup, btf::KernelTypes, layout::CAST_FUNCTION},
    session::Flow,
};

/// Two namespaces joined by a veth pair; removed on drop.
struct Pair {
    a: String,
    b: String,
}

fn sh(line: &str) {
    let output = Command::new("sh").arg("-ec").arg(line).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Pair {
    fn new(name: &str) -> Self {
        let (a, b) = (format!("ppk-{name}-a"), format!("ppk-{name}-b"));
        let pair = Self { a: a.clone(), b: b.clone() };
        pair.remove();
        sh(&format!(
            "ip netns add {a}; ip netns add {b}
             ip link add e0 netns {a} type veth peer name e1 netns {b}
             ip -n {a} addr add 198.51.100.1/24 dev e0; ip -n {b} addr add 198.51.100.2/24 dev e1
             ip -n {a} link set lo up; ip -n {a} link set e0 up; ip -n {b} link set lo up; ip -n {b} link set e1 up"
        ));
        pair
    }

    fn scope(&self) -> [u32; 2] {
        [Self::inode(&self.a), Self::inode(&self.b)]
    }

    /// Pings from the first namespace; fails unless all is answered.
    fn ping(&self, arguments: &[&str]) {
        sh(&format!("ip netns exec {} ping -n -q -W 5 {}", self.a, arguments.join(" ")));
    }

    fn inode(name: &str) -> u32 {
        std::fs::metadata(format!("/run/netns/{name}")).unwrap().ino() as u32
    }

    fn remove(&self) {
        for name in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.remove();
    }
}

fn flow() -> Flow {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    Flow { a: ip("198.51.100.1"), b: Some(ip("198.51.100.2")), protocol: 1, a_port: None, b_port: None, one_of: 1 }
}

fn sightings(records: Vec<Record>) -> Vec<Sighting> {
    let mut sightings: Vec<_> = records
        .into_iter()
        .filter_map(|r| match r {
            Record::Sighting(s) => Some(s),
            Record::Translation(_) | Record::Rewrite(_) => None,
        })
        .collect();
    sightings.sort_by_key(|s| s.time_ns);
    sightings
}

fn kind(sighting: &Sighting) -> u8 {
    match sighting.packet.l4 {
        L4::Icmp { kind, .. } => kind,
        _ => panic!("not ICMP: {sighting:?}"),
    }
}

fn start(flows: &[Flow], scope: &[u32], ring_size: u32) -> Probe {
    Probe::start(&Setup { flows, scope, ring_size }).unwrap()
}

/// What was recorded, by time.
fn finish(probe: &mut Probe) -> Vec<Sighting> {
    probe.detach().unwrap();
    sightings(probe.drain().unwrap())
}

/// The device hooks that packets of this ICMP type passed.
fn passed(seen: &[Sighting], wanted: u8) -> Vec<(Hook, u32)> {
    seen.iter().filter(|s| kind(s) == wanted && s.free.is_none()).map(|s| (s.hook, s.netns)).collect()
}

/// Not the other way, which would only be slower.
#[test]
fn packets_are_loaded_directly_where_the_kernel_can() {
    let probe = Probe::load(&Setup { flows: &[flow()], scope: &[], ring_size: RING_SIZE }).unwrap();
    let function = KernelTypes::open().unwrap().function(CAST_FUNCTION);
    assert_eq!(probe.loads_directly(), function.is_some());
}

#[test]
fn a_ping_is_seen_at_every_hook_in_both_namespaces() {
    let pair = Pair::new("hooks");
    let [a, b] = pair.scope();
    let mut probe = start(&[flow()], &[a, b], RING_SIZE);
    pair.ping(&["-c", "1", "198.51.100.2"]);
    let seen = finish(&mut probe);
    assert_eq!(passed(&seen, 8), [(Hook::Queue, a), (Hook::Xmit, a), (Hook::Receive, b)], "{seen:#?}");
    assert_eq!(passed(&seen, 0), [(Hook::Queue, b), (Hook::Xmit, b), (Hook::Receive, a)], "{seen:#?}");
    let counters = probe.counters().unwrap();
    assert_eq!((counters.recorded, counters.lost()), (seen.len() as u64, 0));
    // Both packets are freed where the kernel is done with them, and the function is named.
    let frees: Vec<_> = seen.iter().filter_map(|s| s.free.as_ref()).collect();
    assert!(!frees.is_empty(), "{seen:#?}");
    assert!(frees.iter().any(|free| free.function.is_some()), "{frees:?}");
}

#[test]
fn what_is_not_in_scope_is_not_recorded() {
    let pair = Pair::new("scope");
    let [a, _] = pair.scope();
    let mut probe = start(&[flow()], &[a], RING_SIZE);
    pair.ping(&["-c", "1", "198.51.100.2"]);
    let seen = finish(&mut probe);
    // Also no free: the request's happens in the other namespace, with the pointer that was seen here.
    let request: Vec<_> = seen.iter().filter(|s| kind(s) == 8).map(|s| (s.hook, s.netns)).collect();
    assert_eq!(request, [(Hook::Queue, a), (Hook::Xmit, a)], "{seen:#?}");
    assert_eq!(passed(&seen, 0), [(Hook::Receive, a)], "{seen:#?}");
}

#[test]
fn what_is_not_wanted_is_not_recorded() {
    let pair = Pair::new("wanted");
    let other = Flow { a_port: Some(1), ..flow() };
    let elsewhere = Flow { b: Some("198.51.100.3".parse().unwrap()), ..flow() };
    let mut probe = start(&[other, elsewhere], &pair.scope(), RING_SIZE);
    // iputils takes the process's id for identifier, which is not 1.
    pair.ping(&["-c", "2", "-i", "0.2", "198.51.100.2"]);
    assert_eq!(finish(&mut probe), []);
}

#[test]
fn a_wildcard_peer_matches_any() {
    let pair = Pair::new("any");
    let mut probe = start(&[Flow { b: None, ..flow() }], &pair.scope(), RING_SIZE);
    pair.ping(&["-c", "1", "198.51.100.2"]);
    assert_eq!(passed(&finish(&mut probe), 8).len(), 3);
}

/// A step that the verifier follows again from every place makes that many times as much: then a session takes seconds to get
/// ready on a slow machine.
#[test]
fn the_verifier_looks_at_each_step_once() {
    const MOST: u32 = 25_000;
    let pair = Pair::new("verifier");
    let _probe = start(&[flow()], &pair.scope(), RING_SIZE);
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let infos: Vec<_> = infos.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect();
    let count = |info: &String| info.lines().find_map(|line| line.strip_prefix("verified_insns:")?.trim().parse().ok());
    // Those of tests beside this one are the same.
    let verified: Vec<u32> = infos.iter().filter_map(count).collect();
    assert!(verified.iter().all(|&count| count <= MOST), "{verified:?}");
    // Kernels tell it from 5.16.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let told = (numbers.next(), numbers.next()) >= (Some(5), Some(16));
    assert!(!told || verified.len() >= 5, "{verified:?}");
}

#[test]
fn a_full_ring_loses_nothing_silently() {
    let pair = Pair::new("ring");
    // The smallest ring holds some 30 records; a ping makes about eight, and nobody drains.
    let mut probe = start(&[flow()], &pair.scope(), 4096);
    pair.ping(&["-c", "20", "-i", "0.01", "198.51.100.2"]);
    let seen = finish(&mut probe);
    let counters = probe.counters().unwrap();
    assert!(counters.lost() > 0, "{counters:?}");
    assert_eq!(counters.recorded, seen.len() as u64);
    // Six device hooks per ping: none of them happened without being recorded or counted.
    let at_devices = seen.iter().filter(|s| s.free.is_none()).count() as u64;
    let lost_at_devices = counters.lost_receive + counters.lost_queue + counters.lost_xmit;
    assert_eq!(at_devices + lost_at_devices, 20 * 6, "{counters:?}");
}

/// The second namespace masquerades what it forwards to 203.0.113.9, in `beyond`.
fn masquerading(pair: &Pair, beyond: &Pair) {
    sh(&format!(
        "ip link add e2 netns {b} type veth peer name e3 netns {c}
         ip -n {b} addr add 203.0.113.1/24 dev e2; ip -n {c} addr add 203.0.113.9/24 dev e3
         ip -n {b} link set e2 up; ip -n {c} link set e3 up
         ip -n {a} route add 203.0.113.0/24 via 198.51.100.2
         ip netns exec {b} sysctl -qw net.ipv4.ip_forward=1
         ip netns exec {b} iptables -t nat -A POSTROUTING -o e2 -j MASQUERADE --random-fully",
        a = pair.a,
        b = pair.b,
        c = beyond.a
    ));
}

#[test]
fn masquerading_is_read_from_conntrack_and_the_reply_is_followed() {
    let pair = Pair::new("nat");
    let beyond = Pair::new("beyond");
    masquerading(&pair, &beyond);
    let [_, b] = pair.scope();
    let outside = Flow { b: Some("203.0.113.9".parse().unwrap()), ..flow() };
    let mut probe = start(&[outside], &pair.scope(), RING_SIZE);
    pair.ping(&["-c", "1", "203.0.113.9"]);
    probe.detach().unwrap();
    let records = probe.drain().unwrap();
    let translation = records
        .iter()
        .find_map(|record| match record {
            Record::Translation(translation) => Some(translation.clone()),
            Record::Sighting(_) | Record::Rewrite(_) => None,
        })
        .expect("a translation");
    assert_eq!(translation.original.src.to_string(), "198.51.100.1");
    assert_eq!(translation.reply.dst.to_string(), "203.0.113.1");
    assert_eq!(translation.protocol, 1);
    let seen = sightings(records);
    let id = |s: &Sighting| match s.packet.l4 {
        L4::Icmp { id, .. } => id,
        _ => panic!("not ICMP: {s:?}"),
    };
    // The packet leaves with an address that nobody asked for; it is known by its sk_buff.
    let sent = seen.iter().find(|s| s.tracked && s.hook == Hook::Queue && s.netns == b).expect("sent on");
    assert_eq!((kind(sent), sent.packet.src.to_string()), (8, "203.0.113.1".to_owned()));
    assert_eq!(id(sent), translation.reply.l4_src);
    // The reply comes to that address; it is wanted because conntrack told of it.
    let back = seen.iter().find(|s| kind(s) == 0 && s.hook == Hook::Receive && s.netns == b).expect("the reply");
    assert_eq!((back.packet.dst.to_string(), id(back)), ("203.0.113.1".to_owned(), id(sent)));
    // And behind the translation it is itself again.
    let on = seen.iter().find(|s| kind(s) == 0 && s.hook == Hook::Queue && s.netns == b).expect("sent on");
    assert_eq!((on.packet.dst.to_string(), id(on)), ("198.51.100.1".to_owned(), translation.original.l4_src));
}

#[test]
fn a_packet_in_vxlan_is_known_by_what_is_inside() {
    let pair = Pair::new("vxlan");
    for (name, me, peer) in [(&pair.a, 1, 2), (&pair.b, 2, 1)] {
        sh(&format!(
            "ip -n {name} link add flannel.1 type vxlan id 1 dstport 8472 local 198.51.100.{me} remote 198.51.100.{peer}
             ip -n {name} addr add 10.42.0.{me}/24 dev flannel.1; ip -n {name} link set flannel.1 up"
        ));
    }
    pair.ping(&["-c", "1", "10.42.0.2"]);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let inner =
        Flow { a: ip("10.42.0.1"), b: Some(ip("10.42.0.2")), protocol: 1, a_port: None, b_port: None, one_of: 1 };
    let mut probe = start(&[inner], &pair.scope(), RING_SIZE);
    pair.ping(&["-c", "1", "10.42.0.2"]);
    let seen = finish(&mut probe);
    let request: Vec<_> = seen.iter().filter(|s| kind(s) == 8 && s.free.is_none()).collect();
    let wrapped: Vec<_> = request.iter().map(|s| s.outer.as_ref().map(|o| o.dst.to_string())).collect();
    let outer = || Some("198.51.100.2".to_owned());
    // flannel.1 queue and xmit, e0 queue and xmit with the outer header; e1 with it, flannel.1 without.
    assert_eq!(wrapped, [None, None, outer(), outer(), outer(), None], "{seen:#?}");
    assert!(request.iter().all(|s| s.packet.dst == ip("10.42.0.2")));
}

#[test]
fn an_icmp_error_about_the_flow_is_recorded() {
    let pair = Pair::new("error");
    sh(&format!(
        "ip -n {a} route add 203.0.113.9 via 198.51.100.2; ip netns exec {b} sysctl -qw net.ipv4.ip_forward=1
         ip -n {b} route add unreachable 203.0.113.9",
        a = pair.a,
        b = pair.b
    ));
    let lost = Flow { b: Some("203.0.113.9".parse().unwrap()), ..flow() };
    let mut probe = start(&[lost], &pair.scope(), RING_SIZE);
    let unanswered = Command::new("ip")
        .args(["netns", "exec", &pair.a, "ping", "-n", "-c", "1", "-W", "1", "203.0.113.9"])
        .output()
        .unwrap();
    assert!(!unanswered.status.success());
    let seen = finish(&mut probe);
    assert_eq!(passed(&seen, 3).len(), 3, "queue, xmit, receive of the error: {seen:#?}");
}

#[test]
fn namespaces_that_share_a_slot_are_all_in_scope() {
    let pair = Pair::new("slots");
    let [a, b] = pair.scope();
    // Six others are first in the slots that the two would have.
    let crowd = |inode: u32| (1..=3).map(move |turn| inode + turn * tracer_common::SCOPE_SLOTS);
    let scope: Vec<u32> = crowd(a).chain(crowd(b)).chain([a, b]).collect();
    let mut probe = start(&[flow()], &scope, RING_SIZE);
    pair.ping(&["-c", "1", "198.51.100.2"]);
    // A ninth that wants the same slots is refused, not forgotten.
    let ninth = (4..=12).map(|turn| probe.add_namespace(a + turn * tracer_common::SCOPE_SLOTS)).find(Result::is_err);
    assert!(ninth.is_some());
    assert_eq!(passed(&finish(&mut probe), 8).len(), 3);
}

/// What the first namespace sends to 203.0.113.9 goes to the second.
fn own_service(pair: &Pair) {
    sh(&format!(
        "ip netns exec {a} iptables -t nat -A OUTPUT -d 203.0.113.9 -j DNAT --to-destination 198.51.100.2
         ip -n {a} route add 203.0.113.9 via 198.51.100.2",
        a = pair.a
    ));
}

#[test]
fn what_a_node_sends_is_known_although_its_addresses_are_rewritten_before_any_device() {
    let pair = Pair::new("output");
    own_service(&pair);
    let [a, b] = pair.scope();
    let service = Flow { b: Some("203.0.113.9".parse().unwrap()), ..flow() };
    let mut probe = start(&[service], &[a, b], RING_SIZE);
    pair.ping(&["-c", "1", "203.0.113.9"]);
    let seen = finish(&mut probe);
    assert_eq!(passed(&seen, 8), [(Hook::Queue, a), (Hook::Xmit, a), (Hook::Receive, b)], "{seen:#?}");
    assert_eq!(passed(&seen, 0), [(Hook::Queue, b), (Hook::Xmit, b), (Hook::Receive, a)], "{seen:#?}");
    let service: IpAddr = "203.0.113.9".parse().unwrap();
    let at_devices = seen.iter().filter(|s| s.free.is_none());
    assert!(at_devices.into_iter().all(|s| s.packet.src != service && s.packet.dst != service), "{seen:#?}");
}
