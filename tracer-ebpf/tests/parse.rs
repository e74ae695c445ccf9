//! The parsers on the host, on packets built byte by byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use tracer_common::{Address, MAX_FLOWS, Rule, Wanted, address, chosen, encapsulation};
use tracer_ebpf::{
    flow,
    parse::{self, Bytes, FIRST_READ, Headers},
};

/// A packet in the middle of kernel memory: what lies behind it can be read too, as behind a real one.
struct Packet(Vec<u8>);

const BEHIND: u8 = 0xee;

impl Bytes for Packet {
    fn read<const N: usize>(&self, offset: u32, into: &mut [u32; N]) -> bool {
        for (index, word) in into.iter_mut().enumerate() {
            let byte = |at: usize| self.0.get(offset as usize + index * 4 + at).copied().unwrap_or(BEHIND);
            *word = u32::from_ne_bytes([byte(0), byte(1), byte(2), byte(3)]);
        }
        true
    }
}

fn parsed(bytes: &[u8]) -> Option<Headers> {
    parsed_at(bytes, 0)
}

fn parsed_at(bytes: &[u8], offset: u32) -> Option<Headers> {
    let packet = Packet(bytes.to_vec());
    let mut start = [0; FIRST_READ];
    assert!(packet.read(offset, &mut start));
    let mut headers = Headers::default();
    parse::packet(&packet, offset, &start, &mut headers).then_some(headers)
}

fn v4(text: &str) -> Address {
    address(text.parse::<Ipv4Addr>().expect("an address").to_ipv6_mapped().octets())
}

fn v6(text: &str) -> Address {
    address(text.parse::<Ipv6Addr>().expect("an address").octets())
}

/// An IPv4 packet with `options` (whole words) around `payload`.
fn ipv4(protocol: u8, flags_offset: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(flags_offset.to_be_bytes());
    packet.extend([63, protocol, 0xab, 0xcd]);
    packet.extend([100, 106, 133, 221, 100, 115, 37, 81]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 61]);
    packet.extend("fd00::1".parse::<Ipv6Addr>().expect("an address").octets());
    packet.extend("fd00::2".parse::<Ipv6Addr>().expect("an address").octets());
    packet.extend(payload);
    packet
}

const ECHO: [u8; 16] = [8, 0, 0x11, 0x22, 0x33, 0x44, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8];
const UDP: [u8; 12] = [0x30, 0x39, 0, 53, 0, 12, 0xbe, 0xef, b'p', b'o', b'd', b's'];

fn words(bytes: &[u8]) -> [u64; 2] {
    let mut padded = [0; 16];
    padded[..bytes.len()].copy_from_slice(bytes);
    address(padded)
}

#[test]
fn what_is_needed_of_a_packet_ends_with_it() {
    // A whole L4 header, a shorter one, options, one that says less than its own header, and one too long for its field.
    assert_eq!(parsed(&ipv4(1, 0, &[], &ECHO)).unwrap().needed(), 36);
    assert_eq!(parsed(&ipv4(1, 0, &[], &ECHO[..8])).unwrap().needed(), 28);
    assert_eq!(parsed(&ipv4(17, 0, &[1; 8], &UDP)).unwrap().needed(), 40);
    assert_eq!(parsed(&ipv6(17, &UDP)).unwrap().needed(), 52);
    assert_eq!(Headers { header_len: 20, ip_len: 3, ..Headers::default() }.needed(), 20);
    assert_eq!(Headers { header_len: 40, ip_len: 0, ..Headers::default() }.needed(), 56);
    assert_eq!(Headers { offset: 50, header_len: 20, ip_len: 84, ..Headers::default() }.needed(), 86);
}

#[test]
fn an_ipv4_echo_request() {
    let headers = parsed(&ipv4(1, 0x4000, &[], &ECHO)).expect("IPv4");
    assert_eq!(
        headers,
        Headers {
            src: v4("100.106.133.221"),
            dst: v4("100.115.37.81"),
            l4: words(&ECHO),
            offset: 0,
            header_len: 20,
            ip_id: 0x1234,
            ip_len: 36,
            ttl: 63,
            protocol: 1,
            fragment: false,
        }
    );
    assert!(!headers.is_icmp_error());
}

#[test]
fn options_move_the_transport_header() {
    let headers = parsed(&ipv4(1, 0, &[1; 12], &ECHO)).expect("IPv4");
    assert_eq!((headers.header_len, headers.l4, headers.l4_offset()), (32, words(&ECHO), 32));
}

#[test]
fn what_lies_behind_a_short_packet_is_not_its_own() {
    // ping -s 0: 8 bytes of ICMP, no payload.
    let headers = parsed(&ipv4(1, 0, &[], &ECHO[..8])).expect("IPv4");
    assert_eq!(headers.l4, words(&ECHO[..8]));
    let headers = parsed(&ipv4(1, 0, &[], &ECHO[..4])).expect("IPv4");
    assert_eq!(headers.l4, [0; 2]);
    // 12 bytes: the second half is not whole.
    let headers = parsed(&ipv4(17, 0, &[], &UDP)).expect("IPv4");
    assert_eq!(headers.l4, words(&UDP[..8]));
}

#[test]
fn a_packet_too_long_for_its_length_field_keeps_its_ports() {
    let mut packet = ipv4(17, 0, &[], &[UDP.as_slice(), &[0; 8]].concat());
    packet[2..4].fill(0);
    let headers = parsed(&packet).expect("IPv4");
    assert_eq!((headers.ip_len, headers.l4[0]), (0, words(&UDP)[0]));
}

#[test]
fn only_the_first_fragment_has_a_transport_header() {
    let first = parsed(&ipv4(17, 0x2000, &[], &UDP)).expect("IPv4");
    assert!(!first.fragment);
    assert_eq!(first.l4[0], words(&UDP)[0]);
    let later = parsed(&ipv4(17, 0x2001, &[], &UDP)).expect("IPv4");
    assert!(later.fragment);
    assert_eq!(later.l4, [0; 2]);
}

#[test]
fn ipv6_with_and_without_extensions() {
    let plain = parsed(&ipv6(58, &ECHO)).expect("IPv6");
    assert_eq!((plain.src, plain.dst, plain.l4), (v6("fd00::1"), v6("fd00::2"), words(&ECHO)));
    assert_eq!((plain.ip_len, plain.ttl, plain.protocol, plain.header_len), (56, 61, 58, 40));
    // Hop-by-hop options of 16 bytes, then a fragment header: the first fragment.
    let mut payload = vec![44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    payload.extend([58, 0, 0, 1, 0, 0, 0, 9]);
    payload.extend(ECHO);
    let first = parsed(&ipv6(0, &payload)).expect("IPv6");
    assert_eq!((first.protocol, first.header_len, first.fragment, first.l4), (58, 64, false, words(&ECHO)));
    // The same at offset 8.
    payload[19] = 9;
    let later = parsed(&ipv6(0, &payload)).expect("IPv6");
    assert_eq!((later.protocol, later.fragment, later.l4), (58, true, [0; 2]));
}

#[test]
fn what_is_not_ip_is_refused() {
    assert_eq!(parsed(&[0x00; 60]), None);
    assert_eq!(parsed(&[0x50; 60]), None);
    // A header length below the minimum.
    assert_eq!(parsed(&[0x44; 60]), None);
}

#[test]
fn icmp_errors_are_told_from_echoes() {
    for (protocol, kind, error) in
        [(1, 0, false), (1, 3, true), (1, 8, false), (1, 11, true), (58, 1, true), (58, 128, false), (58, 4, true)]
    {
        let mut message = ECHO;
        message[0] = kind;
        let packet = if protocol == 1 { ipv4(1, 0, &[], &message) } else { ipv6(58, &message) };
        assert_eq!(parsed(&packet).expect("IP").is_icmp_error(), error, "protocol {protocol} type {kind}");
    }
}

#[test]
fn an_icmp_error_quotes_its_packet() {
    let mut message = vec![11, 0, 0, 0, 0, 0, 0, 0];
    message.extend(ipv4(1, 0, &[], &ECHO));
    let packet = ipv4(1, 0, &[], &message);
    let error = parsed(&packet).expect("IPv4");
    let quoted = parsed_at(&packet, parse::quoted_offset(&error)).expect("the quoted packet");
    assert_eq!((quoted.l4, quoted.ip_id, quoted.offset), (words(&ECHO), 0x1234, 28));
}

#[test]
fn ipip_is_unwrapped() {
    let inner = ipv4(1, 0, &[], &ECHO);
    let packet = ipv4(4, 0, &[], &inner);
    let outer = parsed(&packet).expect("IPv4");
    assert_eq!(parse::inner(&outer), (20, encapsulation::IPIP));
    assert_eq!(parsed_at(&packet, 20).expect("inner").l4, words(&ECHO));
    let six = ipv4(41, 0, &[], &ipv6(58, &ECHO));
    assert_eq!(parse::inner(&parsed(&six).expect("IPv4")), (20, encapsulation::IPIP));
    assert_eq!(parsed_at(&six, 20).expect("inner").protocol, 58);
}

#[test]
fn vxlan_is_unwrapped_on_both_ports_and_nothing_else_is() {
    for (port, offset) in [(4789, 50), (8472, 50), (53, 0), (4790, 0)] {
        let inner = ipv4(1, 0, &[], &ECHO);
        let mut payload = vec![0xc0, 0];
        payload.extend(u16::to_be_bytes(port));
        payload.extend(((8 + 8 + 14 + inner.len()) as u16).to_be_bytes());
        payload.extend([0, 0]);
        payload.extend([8, 0, 0, 0, 0, 0, 1, 0]);
        payload.extend([0xee; 14]);
        payload.extend(&inner);
        let packet = ipv4(17, 0, &[], &payload);
        let outer = parsed(&packet).expect("IPv4");
        assert_eq!(parse::inner(&outer).0, offset, "port {port}");
        if offset != 0 {
            assert_eq!(parsed_at(&packet, offset).expect("inner").l4, words(&ECHO));
        }
    }
    // A later fragment of a tunnel's packet holds no header to unwrap.
    let fragment = parsed(&ipv4(4, 0x2001, &[], &ipv4(1, 0, &[], &ECHO))).expect("IPv4");
    assert_eq!(parse::inner(&fragment), (0, 0));
}

/// The rules of one ICMP flow between the two addresses of [`ipv4`], as `probe` makes them.
/// What is inside the outer packet, as its offset and kind, once there is an IP packet to be read.
fn unwrapped(packet: &[u8]) -> Option<(u8, Headers)> {
    let (offset, encapsulation) = parse::inner(&parsed(packet).expect("IP"));
    if offset == 0 { None } else { Some((encapsulation, parsed_at(packet, offset)?)) }
}

#[test]
fn gre_is_unwrapped_with_all_its_optional_fields() {
    let inside = ipv4(1, 0, &[], &ECHO);
    let gre = |flags: u8, ethertype: u16, optional: usize, inside: &[u8]| {
        let mut header = vec![flags, 0];
        header.extend(ethertype.to_be_bytes());
        header.extend(vec![0x5a; optional * 4]);
        ipv4(47, 0, &[], &[header.as_slice(), inside].concat())
    };
    // Plain, with checksum, key, sequence number, and all three.
    for (flags, optional) in [(0, 0), (0x80, 1), (0x20, 1), (0x10, 1), (0x30, 2), (0xb0, 3)] {
        let (kind, headers) = unwrapped(&gre(flags, 0x0800, optional, &inside)).expect("GRE");
        assert_eq!((kind, headers.l4), (encapsulation::GRE, words(&ECHO)), "flags {flags:#x}");
        assert_eq!(headers.offset as usize, 20 + 4 + optional * 4);
    }
    let (_, headers) = unwrapped(&gre(0x20, 0x86dd, 1, &ipv6(58, &ECHO))).expect("IPv6 in GRE");
    assert_eq!(headers.src, v6("fd00::1"));
    let frame = [[0x0e; 14].as_slice(), &inside].concat();
    let (_, headers) = unwrapped(&gre(0x20, 0x6558, 1, &frame)).expect("Ethernet in GRE");
    assert_eq!(headers.l4, words(&ECHO));
    // Source routes, version 1 (PPTP), and what is not IP.
    let mut pptp = gre(0, 0x0800, 0, &inside);
    pptp[21] = 1;
    assert!(unwrapped(&gre(0x40, 0x0800, 0, &inside)).is_none() && unwrapped(&pptp).is_none());
    assert!(unwrapped(&gre(0, 0x88be, 0, &inside)).is_none());
}

#[test]
fn geneve_is_unwrapped_behind_its_options() {
    let inside = ipv4(1, 0, &[], &ECHO);
    let geneve = |options: usize, ethertype: u16, inside: &[u8]| {
        let mut payload = vec![0x30, 0x39, 0x17, 0xc1, 0, 0, 0, 0, options as u8, 0];
        payload.extend(ethertype.to_be_bytes());
        payload.extend([0, 0, 7, 0]);
        payload.extend(vec![0x5a; options * 4]);
        ipv4(17, 0, &[], &[payload.as_slice(), inside].concat())
    };
    let frame = [[0x0e; 14].as_slice(), &inside].concat();
    for options in [0, 1, 7, 63] {
        let packet = geneve(options, 0x6558, &frame);
        let (kind, headers) = unwrapped(&packet).expect("Geneve");
        assert_eq!((kind, headers.l4), (encapsulation::GENEVE, words(&ECHO)));
        assert_eq!(headers.offset as usize, 20 + 8 + 8 + options * 4 + 14);
        // Such a packet takes the closer look.
        let mut start = [0; FIRST_READ];
        assert!(Packet(packet).read(0, &mut start) && parse::ordinary(|word| start[word]).is_none());
    }
    assert!(unwrapped(&geneve(1, 0x0800, &inside)).is_some());
    assert!(unwrapped(&geneve(0, 0x8847, &inside)).is_none(), "MPLS");
    let mut version = geneve(0, 0x6558, &frame);
    version[28] = 0x40;
    assert!(unwrapped(&version).is_none());
}

fn wanted() -> Wanted {
    let all = [u64::MAX; 2];
    let id = u64::from_ne_bytes([0, 0, 0, 0, 0x33, 0x44, 0, 0]);
    let mask = u64::from_ne_bytes([0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    let (a, b) = (v4("100.106.133.221"), v4("100.115.37.81"));
    let rule = |src, dst| Rule {
        src,
        src_mask: all,
        dst,
        dst_mask: all,
        l4: id,
        l4_mask: mask,
        protocol: 1,
        ..Rule::default()
    };
    let mut rules = [[Rule::default(); 2]; MAX_FLOWS];
    rules[0] = [rule(a, b), rule(b, a)];
    Wanted { flows: 1, zero: 0, ends: [u32::from_ne_bytes([100, 106, 133, 221]), 0, 0, 0], rules }
}

#[test]
fn of_sampled_flows_a_fragment_is_wanted_and_a_first_one_by_its_port() {
    let mut wanted = wanted();
    for rule in wanted.rules[0].iter_mut() {
        (rule.l4_mask, rule.one_of, rule.port_shift) = (0, 7, 32);
    }
    let asked = |id: u16| {
        let mut echo = ECHO;
        echo[4..6].copy_from_slice(&id.to_be_bytes());
        flow::is_wanted(&wanted, &parsed(&ipv4(1, 0, &[], &echo)).expect("IPv4"))
    };
    let recorded = (0..700).filter(|id| asked(*id)).count();
    assert!((80..=120).contains(&recorded), "of 700 one in seven: {recorded}");
    let expected = |id: u16| chosen(u16::from_ne_bytes(id.to_be_bytes()).into(), 7) == 0;
    assert!((0..700).all(|id| asked(id) == expected(id)));
    // A later fragment has no port to choose by.
    let mut fragment = parsed(&ipv4(1, 0, &[], &ECHO)).expect("IPv4");
    (fragment.fragment, fragment.l4) = (true, [u64::MAX; 2]);
    assert!(flow::is_wanted(&wanted, &fragment));
}

#[test]
fn rules_match_both_ways_and_the_identifier() {
    let mut wanted = wanted();
    let ask = |wanted: &Wanted, packet: &[u8]| flow::is_wanted(wanted, &parsed(packet).expect("IPv4"));
    let reversed = |mut packet: Vec<u8>| {
        packet[12..20].rotate_left(4);
        packet
    };
    let echo = ipv4(1, 0, &[], &ECHO);
    assert!(ask(&wanted, &echo));
    assert!(ask(&wanted, &reversed(echo.clone())));
    let mut other = ECHO;
    other[5] ^= 1;
    assert!(!ask(&wanted, &ipv4(1, 0, &[], &other)), "another identifier");
    assert!(!ask(&wanted, &ipv4(17, 0, &[], &ECHO)), "another protocol");
    for at in [12, 15, 16, 19] {
        let mut packet = echo.clone();
        packet[at] ^= 0x80;
        assert!(!ask(&wanted, &packet), "byte {at} of the addresses");
    }
    // A later fragment has no identifier to compare.
    let mut fragment = parsed(&echo).expect("IPv4");
    (fragment.fragment, fragment.l4) = (true, [0; 2]);
    assert!(flow::is_wanted(&wanted, &fragment));
    // The last of several, and none that is not in use.
    wanted.rules[MAX_FLOWS - 1] = std::mem::take(&mut wanted.rules[0]);
    assert!(!ask(&wanted, &echo));
    wanted.flows = MAX_FLOWS as u32;
    assert!(ask(&wanted, &echo));
}

/// Differences in high bits, in low ones, in one bit or in all must all count.
#[test]
fn no_difference_is_lost_in_the_arithmetic() {
    let wanted = wanted();
    let echo = parsed(&ipv4(1, 0, &[], &ECHO)).expect("IPv4");
    for bit in 0..64 {
        for word in 0..2 {
            let mut headers = echo;
            headers.src[word] ^= 1 << bit;
            assert!(!flow::is_wanted(&wanted, &headers), "bit {bit} of word {word}");
        }
    }
    let mut headers = echo;
    headers.src = [!headers.src[0], !headers.src[1]];
    assert!(!flow::is_wanted(&wanted, &headers));
}

/// The way that most packets take must never swallow one that the closer look would have found.
#[test]
fn the_quick_way_out_is_for_strangers_only() {
    let wanted = wanted();
    let quick = |bytes: &[u8]| {
        let mut start = [0; FIRST_READ];
        Packet(bytes.to_vec()).read(0, &mut start);
        parse::ordinary(|word| start[word]).is_some_and(|(src, dst)| flow::strangers(&wanted, src, dst))
    };
    let mut error = vec![3, 1, 0, 0, 0, 0, 0, 0];
    error.extend(ipv4(1, 0, &[], &ECHO));
    let from_others = |mut packet: Vec<u8>| {
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        packet
    };
    assert!(!quick(&ipv4(1, 0, &[], &ECHO)), "the flow itself");
    assert!(quick(&from_others(ipv4(1, 0, &[], &ECHO))), "a ping of others");
    assert!(quick(&from_others(ipv4(6, 0, &[], &[0; 20]))), "TCP of others");
    assert!(!quick(&from_others(ipv4(1, 0, &[], &error))), "an ICMP error of a router about it");
    assert!(!quick(&from_others(ipv4(4, 0, &[], &ipv4(1, 0, &[], &ECHO)))), "the flow in IPIP");
    assert!(!quick(&from_others(ipv4(17, 0, &[], &[0xc0, 0, 0x12, 0xb5, 0, 8, 0, 0]))), "VXLAN");
    assert!(!quick(&from_others(ipv4(1, 0, &[1; 4], &ECHO))), "options: a closer look");
    assert!(quick(&ipv6(58, &[128; 16])), "an IPv6 ping of others");
    assert!(!quick(&ipv6(44, &[0; 24])), "extensions: a closer look");
}

#[test]
fn a_tracked_packet_is_known_after_nat_and_no_other_is() {
    let before = parsed(&ipv4(1, 0, &[], &ECHO)).expect("IPv4");
    let track = flow::track(7, &before, 1, 2);
    // Masquerading changes source, checksum and identifier.
    let mut masked = ECHO;
    masked[2..6].copy_from_slice(&[9, 9, 9, 9]);
    let mut packet = ipv4(1, 0, &[], &masked);
    packet[12..16].copy_from_slice(&[172, 20, 50, 50]);
    assert!(flow::is_tracked(&track, &parsed(&packet).expect("IPv4")));
    for at in [0, 7, 8, 15] {
        let mut other = ECHO;
        other[at] ^= 0x10;
        let other = parsed(&ipv4(1, 0, &[], &other)).expect("IPv4");
        assert!(!flow::is_tracked(&track, &other), "byte {at} of the message differs");
    }
    let mut reused = ipv4(1, 0, &[], &ECHO);
    reused[5] ^= 1;
    assert!(!flow::is_tracked(&track, &parsed(&reused).expect("IPv4")), "another IP id");
}
