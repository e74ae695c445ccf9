//! The kernel programs in a real kernel, on real packets. Needs root, `ip` and `ping`; fails without them.
#![cfg(target_os = "linux")]

use std::{
    net::IpAddr,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
};

use tracer_user::{
    event::{Hook, L4, Record, Sighting},
    probe::{Probe, RING_SIZE, Setup},
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
    Flow { a: ip("198.51.100.1"), b: Some(ip("198.51.100.2")), protocol: 1, a_port: None, b_port: None }
}

fn sightings(records: Vec<Record>) -> Vec<Sighting> {
    let mut sightings: Vec<_> = records
        .into_iter()
        .filter_map(|r| match r {
            Record::Sighting(s) => Some(s),
            Record::Translation(_) => None,
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

#[test]
fn a_ping_is_seen_at_every_hook_in_both_namespaces() {
    let pair = Pair::new("hooks");
    let scope = [Pair::inode(&pair.a), Pair::inode(&pair.b)];
    let mut probe = Probe::start(&Setup { flows: &[flow()], scope: &scope, ring_size: RING_SIZE }).unwrap();
    sh(&format!("ip netns exec {} ping -n -c 1 -W 2 198.51.100.2", pair.a));
    probe.detach().unwrap();
    let seen = sightings(probe.drain().unwrap());
    let counters = probe.counters().unwrap();
    for s in &seen {
        eprintln!("{s:?}");
    }
    let request: Vec<_> = seen.iter().filter(|s| kind(s) == 8 && s.free.is_none()).map(|s| (s.hook, s.netns)).collect();
    assert_eq!(request, [(Hook::Queue, scope[0]), (Hook::Xmit, scope[0]), (Hook::Receive, scope[1])]);
    let reply: Vec<_> = seen.iter().filter(|s| kind(s) == 0 && s.free.is_none()).map(|s| (s.hook, s.netns)).collect();
    assert_eq!(reply, [(Hook::Queue, scope[1]), (Hook::Xmit, scope[1]), (Hook::Receive, scope[0])]);
    assert_eq!(counters.recorded, seen.len() as u64);
    assert_eq!(counters.lost(), 0);
}
