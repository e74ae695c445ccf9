//! Packets of which part lies in page fragments.

use std::{
    fs::File,
    io::{IoSlice, Write},
    net::IpAddr,
    os::fd::AsRawFd,
    thread,
};

use tracer_user::{
    event::{Hook, L4, Record, Sighting},
    probe::{Probe, RING_SIZE, btf::KernelTypes, layout, pages},
    session::{Counters, Flow},
};

use crate::{Pair, sh, sightings, start};

/// Ethernet to the device, from an address of nobody; IPv4 or IPv6 follows.
pub(crate) const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9, 8, 0];
const ETHERNET6: [u8; 14] = [2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9, 0x86, 0xdd];

/// A TAP device whose packets lie in page fragments, as those of many NIC drivers do (`IFF_NAPI_FRAGS`, drivers/net/tun.c): each
/// buffer but the first of one write becomes a fragment.
fn open_tap(name: &str) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_NAPI | libc::IFF_NAPI_FRAGS;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq and writes the name into it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}

/// Two namespaces of which the first has a TAP device with 192.0.2.1, and forwards from there to the second.
pub(crate) struct Forwarding {
    pub(crate) pair: Pair,
    tap: File,
}

impl Forwarding {
    pub(crate) fn new(name: &str) -> Self {
        let pair = Pair::new(name);
        let namespace = File::open(format!("/run/netns/{}", pair.a)).unwrap();
        let tap = thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            open_tap("tap0")
        });
        let tap = tap.join().unwrap();
        sh(&format!(
            "ip -n {a} addr add 192.0.2.1/24 dev tap0; ip -n {a} -6 addr add fd00:1::1/64 dev tap0 nodad
             ip -n {a} link set tap0 address 02:00:00:00:00:08 up
             ip -n {a} -6 addr add fd00:2::1/64 dev e0 nodad; ip -n {b} -6 addr add fd00:2::2/64 dev e1 nodad
             ip netns exec {a} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
             ip netns exec {a} sysctl -qw net.ipv4.conf.tap0.rp_filter=0
             ip -n {b} route add 192.0.2.0/24 via 198.51.100.1",
            a = pair.a,
            b = pair.b
        ));
        // So that the packet does not wait for a neighbour, and no error comes back for lack of one.
        sh(&format!(
            "ip netns exec {a} ping -n -q -c 1 198.51.100.2; ip netns exec {a} ping -n -q -c 1 fd00:2::2",
            a = pair.a
        ));
        Self { pair, tap }
    }

    pub(crate) fn send(&mut self, buffers: &[&[u8]]) {
        let slices: Vec<_> = buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
        let sent = self.tap.write_vectored(&slices).unwrap();
        assert_eq!(sent, buffers.iter().map(|buffer| buffer.len()).sum::<usize>());
    }
}

/// Can page fragments be read here?
fn readable() -> bool {
    let types = KernelTypes::open().unwrap();
    let readable = pages::read(&types, &layout::resolve(&types).unwrap());
    if let Err(why) = &readable {
        println!("{why}");
    }
    readable.is_ok()
}

pub(crate) fn flow(protocol: u8, a: &str, b: &str) -> Flow {
    Flow { a: a.parse().unwrap(), b: Some(b.parse().unwrap()), protocol, a_port: None, b_port: None, one_of: 1 }
}

/// What was recorded, by time, and the counters.
pub(crate) fn finish(probe: &mut Probe) -> (Vec<Record>, Counters) {
    probe.detach().unwrap();
    let records = probe.drain().unwrap();
    let counters = probe.counters().unwrap();
    assert_eq!(counters.lost(), 0, "{counters:?}");
    (records, counters)
}

/// The sightings of what was sent, which goes from the device on, without answers to it.
pub(crate) fn of_request(records: Vec<Record>, to: &str) -> Vec<Sighting> {
    let to: IpAddr = to.parse().unwrap();
    sightings(records).into_iter().filter(|s| s.packet.dst == to).collect()
}

pub(crate) fn steps(seen: &[Sighting]) -> Vec<(Hook, u32)> {
    seen.iter().filter(|s| s.free.is_none()).map(|s| (s.hook, s.netns)).collect()
}

/// The steps of a forwarded packet.
pub(crate) fn forwarded([a, b]: [u32; 2]) -> Vec<(Hook, u32)> {
    vec![(Hook::Receive, a), (Hook::Queue, a), (Hook::Xmit, a), (Hook::Receive, b)]
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

pub(crate) fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// An echo request of 200 bytes with identifier 0x4321.
pub(crate) fn echo(seq: u8) -> Vec<u8> {
    let mut echo = vec![8, 0, 0, 0, 0x43, 0x21, 0, seq];
    echo.extend((0..192).map(|byte| byte as u8));
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    echo
}

/// A datagram from port 12345 to port 4242, without a checksum.
fn datagram(to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x30, 0x39];
    datagram.extend(to_port.to_be_bytes());
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

const NEAR: [u8; 4] = [192, 0, 2, 1];
pub(crate) const OUTSIDE: [u8; 4] = [192, 0, 2, 2];
pub(crate) const BEYOND: [u8; 4] = [198, 51, 100, 2];

#[test]
fn what_lies_in_a_page_fragment_is_read_or_counted_and_never_misread() {
    let mut here = Forwarding::new("frags");
    let mut probe = start(&[flow(1, "192.0.2.1", "192.0.2.2")], &here.pair.scope(), RING_SIZE);
    here.send(&[&ETHERNET, &ipv4(1, OUTSIDE, NEAR, &echo(7))]);
    let (records, counters) = finish(&mut probe);
    let seen = of_request(records, "192.0.2.1");
    let [a, _] = here.pair.scope();
    let (expected, unread) = if readable() { (vec![(Hook::Receive, a)], 0) } else { (vec![], 1) };
    assert_eq!((steps(&seen), counters.unread), (expected, unread), "{seen:#?}");
}

#[test]
#[ignore = "needs /proc/kcore, which not every kernel has"]
fn a_forwarded_ping_is_read_at_every_hook() {
    assert!(readable());
    let mut here = Forwarding::new("fping");
    let mut probe = start(&[flow(1, "192.0.2.2", "198.51.100.2")], &here.pair.scope(), RING_SIZE);
    here.send(&[&ETHERNET, &ipv4(1, OUTSIDE, BEYOND, &echo(7))]);
    let (records, counters) = finish(&mut probe);
    let seen = of_request(records, "198.51.100.2");
    assert_eq!((steps(&seen), counters.unread), (forwarded(here.pair.scope()), 0), "{seen:#?}");
    assert!(seen.iter().any(|s| s.free.is_some()), "{seen:#?}");
    for s in &seen {
        assert_eq!((s.packet.src.to_string(), s.packet.ip_id), ("192.0.2.2".to_owned(), 0x1234), "{s:#?}");
        assert!(matches!(s.packet.l4, L4::Icmp { kind: 8, id: 0x4321, seq: 7, .. }), "{s:#?}");
    }
}

#[test]
#[ignore = "needs /proc/kcore, which not every kernel has"]
fn a_forwarded_datagram_is_told_by_its_ports_at_every_hook() {
    assert!(readable());
    let mut here = Forwarding::new("fudp");
    let wanted = Flow { b_port: Some(4242), ..flow(17, "192.0.2.2", "198.51.100.2") };
    let mut probe = start(&[wanted], &here.pair.scope(), RING_SIZE);
    here.send(&[&ETHERNET, &ipv4(17, OUTSIDE, BEYOND, &datagram(4243, &[7; 300]))]);
    // The headers end in the first fragment, the packet in the second.
    let packet = ipv4(17, OUTSIDE, BEYOND, &datagram(4242, &[7; 300]));
    here.send(&[&ETHERNET, &packet[..100], &packet[100..]]);
    let (records, counters) = finish(&mut probe);
    let mut seen = of_request(records, "198.51.100.2");
    seen.retain(|s| matches!(s.packet.l4, L4::Udp { .. }));
    assert_eq!((steps(&seen), counters.unread), (forwarded(here.pair.scope()), 0), "{seen:#?}");
    for s in &seen {
        assert!(matches!(s.packet.l4, L4::Udp { src_port: 12345, dst_port: 4242, .. }), "{s:#?}");
    }
}

#[test]
#[ignore = "needs /proc/kcore, which not every kernel has"]
fn a_forwarded_ipv6_datagram_too() {
    assert!(readable());
    let mut here = Forwarding::new("fsix");
    let ip = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut packet = vec![0x60, 0, 0, 0];
    let mut payload = datagram(4242, &[7; 300]);
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([17, 64]);
    packet.extend(ip("fd00:1::2"));
    packet.extend(ip("fd00:2::2"));
    let mut pseudo = packet[8..40].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend((payload.len() as u16).to_be_bytes());
    pseudo.extend(&payload);
    payload[6..8].copy_from_slice(&checksum(&pseudo));
    packet.extend(payload);
    let mut probe = start(&[flow(17, "fd00:1::2", "fd00:2::2")], &here.pair.scope(), RING_SIZE);
    here.send(&[&ETHERNET6, &packet]);
    let (records, counters) = finish(&mut probe);
    let mut seen = of_request(records, "fd00:2::2");
    seen.retain(|s| matches!(s.packet.l4, L4::Udp { .. }));
    assert_eq!((steps(&seen), counters.unread), (forwarded(here.pair.scope()), 0), "{seen:#?}");
    for s in &seen {
        assert!(matches!(s.packet.l4, L4::Udp { src_port: 12345, dst_port: 4242, .. }), "{s:#?}");
    }
}

/// An echo request inside a tunnel.
fn inner(seq: u8) -> Vec<u8> {
    ipv4(1, [10, 42, 0, 1], [10, 42, 0, 2], &echo(seq))
}

fn ipip(seq: u8) -> Vec<u8> {
    ipv4(4, OUTSIDE, BEYOND, &inner(seq))
}

fn vxlan(seq: u8) -> Vec<u8> {
    let mut frame = vec![8, 0, 0, 0, 0, 0, 1, 0];
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame.extend(inner(seq));
    ipv4(17, OUTSIDE, BEYOND, &datagram(8472, &frame))
}

/// From nothing of the packet to all of its headers: so much lies in the linear part, as it does once somebody has pulled it in.
const LINEAR: [u8; 12] = [0, 7, 20, 28, 36, 39, 40, 50, 60, 70, 86, 120];

#[test]
#[ignore = "needs /proc/kcore, which not every kernel has"]
fn a_packet_in_a_tunnel_is_read_wherever_the_linear_part_ends() {
    assert!(readable());
    let mut here = Forwarding::new("ftun");
    let mut probe = start(&[flow(1, "10.42.0.1", "10.42.0.2")], &here.pair.scope(), RING_SIZE);
    let mut send = |packet: &[u8], linear: u8| {
        let (first, rest) = packet.split_at(usize::from(linear));
        here.send(&[&[&ETHERNET, first].concat(), rest]);
    };
    for linear in LINEAR {
        send(&ipip(linear), linear);
        send(&vxlan(128 + linear), linear);
    }
    let (records, counters) = finish(&mut probe);
    assert_eq!(counters.unread, 0);
    let seen = of_request(records, "10.42.0.2");
    for number in LINEAR.into_iter().chain(LINEAR.map(|linear| 128 + linear)) {
        let of_this = |s: &&Sighting| matches!(s.packet.l4, L4::Icmp { kind: 8, id: 0x4321, seq, .. } if seq == u16::from(number));
        let of_this: Vec<_> = seen.iter().filter(of_this).cloned().collect();
        assert_eq!(steps(&of_this), forwarded(here.pair.scope()), "{number}: {of_this:#?}");
        let outer = |s: &Sighting| s.outer.as_ref().map(|outer| outer.src.to_string());
        let outers: Vec<_> = of_this.iter().filter(|s| s.free.is_none()).map(outer).collect();
        assert_eq!(outers, vec![Some("192.0.2.2".to_owned()); 4], "{number}: {of_this:#?}");
    }
}
