//! Packet headers -> [`Headers`]. Plain Rust over a [`Bytes`], with constant-size reads by whole words and few branches, so
//! that the verifier can follow and the host can test it. What a transport header means is for userspace to read.
//!
//! RFC 791 (IPv4), RFC 8200 (IPv6), RFC 792 and 4443 (ICMP), RFC 9293 (TCP), RFC 768 (UDP), RFC 2003 (IP in IP),
//! RFC 7348 (VXLAN), RFC 2784 and 2890 (GRE), RFC 8926 (Geneve).

use tracer_common::{Address, Outer, encapsulation};

/// Somewhere to read packet bytes from.
pub trait Bytes {
    /// Copies `4 * N` bytes at `offset`, as words of the machine; false where they cannot be read, `into` is then undefined.
    /// Into a buffer of the caller's, because a BPF stack holds 512 bytes and every copy of a return value counts.
    fn read<const N: usize>(&self, offset: u32, into: &mut [u32; N]) -> bool;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// The IPv6 extension header that says whether this is the first fragment.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// UDP ports that VXLAN is found on: IANA's, and Linux's default that flannel uses.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// IANA's port of Geneve.
const GENEVE_PORT: u16 = 6081;
/// Bytes of a UDP header, and of the fixed part of a VXLAN or Geneve header.
const UDP_HEADER: u32 = 8;
const TUNNEL_HEADER: u32 = 8;
/// Bytes of an Ethernet header without tags.
const ETHERNET_HEADER: u32 = 14;
/// EtherTypes of what a tunnel carries: IPv4, IPv6, and a whole Ethernet frame ("transparent Ethernet bridging").
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_TEB: u16 = 0x6558;
/// Words of the one read that holds an IPv6 header and 16 bytes of what follows. Behind the linear part of any `sk_buff`
/// lies `skb_shared_info` of some 300 bytes, so that this much can be read of a shorter packet.
pub const FIRST_READ: usize = 14;
/// IPv6 extension headers that are skipped at the most. More than two are not seen in practice.
const MAX_EXTENSIONS: usize = 2;

/// The header fields of one IP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The first 16 bytes of the L4 header. Words that lie beyond the packet's end, and all of a later fragment's, are 0.
    pub l4: [u64; 2],
    /// Where the IP header begins, bytes from where reading began.
    pub offset: u32,
    /// Length of the IP header with its options or extensions, bytes.
    pub header_len: u32,
    /// IPv4 identification.
    pub ip_id: u16,
    /// Total length, bytes.
    pub ip_len: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Protocol of the L4 header.
    pub protocol: u8,
    /// A fragment other than the first: it has no L4 header.
    pub fragment: bool,
}

impl Headers {
    /// Where the L4 header begins, bytes from where reading began.
    #[inline(always)]
    pub fn l4_offset(&self) -> u32 {
        self.offset + self.header_len
    }

    /// So many bytes from where reading began hold its headers and the first 16 bytes behind them, where it has so many.
    #[inline(always)]
    pub fn needed(&self) -> u32 {
        let end = if self.ip_len == 0 { u32::MAX } else { self.offset + u32::from(self.ip_len) };
        (self.l4_offset() + 16).min(end).max(self.l4_offset())
    }

    /// Is this an ICMP error, which quotes the packet it is about?
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        let kind = self.l4[0].to_ne_bytes()[0];
        match self.protocol {
            protocol::ICMP => matches!(kind, 3 | 11 | 12),
            protocol::ICMPV6 => matches!(kind, 1..=4),
            _ => false,
        }
    }
}

/// Two words as one of twice the size, in the order they lie in memory.
#[inline(always)]
pub fn join(first: u32, second: u32) -> u64 {
    let (a, b) = (u64::from(first), u64::from(second));
    if cfg!(target_endian = "little") { a | b << 32 } else { a << 32 | b }
}

/// An IPv4 address, as it lies in the packet, mapped into IPv6.
#[inline(always)]
pub fn mapped(word: u32) -> Address {
    [0, join(0xffff_u32.to_be(), word)]
}

/// The first bytes of an IP packet, as words of the machine.
pub type Start = [u32; FIRST_READ];

/// So many bytes of a packet whose headers are [`ordinary`] hold all of them that is read: 16 bytes of the L4 header too.
#[inline(always)]
pub fn ordinary_needs(w: &Start) -> u32 {
    if u32::from_be(w[0]) >> 28 == 6 { 40 + 16 } else { 20 + 16 }
}

/// Last words of both addresses, protocol and first word of the L4 header of a packet whose headers are of the ordinary kind:
/// no options, no extensions, not encapsulated, no ICMP error. None: any other packet, which takes a closer look. `w` gives a word
/// of the packet's [`Start`], so that only the few are loaded that matter.
#[inline(always)]
pub fn ordinary(w: impl Fn(usize) -> u32) -> Option<(u32, u32)> {
    let first = u32::from_be(w(0)) >> 24;
    let (src, dst, protocol, l4) = if first == 0x45 {
        (w(3), w(4), u32::from_be(w(2)) >> 16 & 0xff, w(5))
    } else if first >> 4 == 6 {
        (w(5), w(9), u32::from_be(w(1)) >> 8 & 0xff, w(10))
    } else {
        return None;
    };
    let l4 = u32::from_be(l4);
    match protocol as u8 {
        protocol::ICMP if matches!(l4 >> 24, 0 | 8) => Some((src, dst)),
        protocol::ICMPV6 if l4 >> 24 >= 128 => Some((src, dst)),
        protocol::TCP => Some((src, dst)),
        protocol::UDP if !is_tunnel_port(l4 as u16) => Some((src, dst)),
        _ => None,
    }
}

/// Reads the IP packet's headers at `offset`, which begin with `w`. False: not IP, or they cannot be read.
#[inline(always)]
pub fn packet(bytes: &impl Bytes, offset: u32, w: &Start, headers: &mut Headers) -> bool {
    headers.offset = offset;
    let first = u32::from_be(w[0]);
    match first >> 28 {
        4 => {
            headers.src = mapped(w[3]);
            headers.dst = mapped(w[4]);
            headers.ip_len = first as u16;
            let second = u32::from_be(w[1]);
            headers.ip_id = (second >> 16) as u16;
            headers.fragment = second & 0x1fff != 0;
            let third = u32::from_be(w[2]);
            headers.ttl = (third >> 24) as u8;
            headers.protocol = (third >> 16) as u8;
            headers.header_len = (first >> 24 & 0xf) * 4;
            if headers.header_len == 20 {
                transport(headers, join(w[5], w[6]), join(w[7], w[8]));
                return true;
            }
            headers.header_len > 20 && far_transport(bytes, headers)
        }
        6 => {
            headers.src = [join(w[2], w[3]), join(w[4], w[5])];
            headers.dst = [join(w[6], w[7]), join(w[8], w[9])];
            let second = u32::from_be(w[1]);
            // 0: longer than the field can say (BIG TCP), as of IPv4.
            let payload = (second >> 16) as u16;
            headers.ip_len = if payload == 0 { 0 } else { payload.saturating_add(40) };
            headers.ip_id = 0;
            headers.fragment = false;
            headers.ttl = second as u8;
            headers.protocol = (second >> 8) as u8;
            headers.header_len = 40;
            if !is_extension(headers.protocol) {
                transport(headers, join(w[10], w[11]), join(w[12], w[13]));
                return true;
            }
            extensions(bytes, headers) && far_transport(bytes, headers)
        }
        _ => false,
    }
}

/// IPv6 extension headers that are skipped: hop-by-hop, routing, fragment, destination options.
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | protocol::FRAGMENT | 60)
}

/// Goes past IPv6 extension headers.
#[inline(always)]
fn extensions(bytes: &impl Bytes, headers: &mut Headers) -> bool {
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(headers.protocol) {
            return true;
        }
        let mut w = [0; 1];
        if !bytes.read(headers.l4_offset(), &mut w) {
            return false;
        }
        let word = u32::from_be(w[0]);
        if headers.protocol == protocol::FRAGMENT {
            headers.fragment = word & 0xfff8 != 0;
            headers.header_len += 8;
        } else {
            headers.header_len += ((word >> 16 & 0xff) + 1) * 8;
        }
        headers.protocol = (word >> 24) as u8;
    }
    true
}

/// Reads an L4 header that the first read did not reach.
#[inline(always)]
fn far_transport(bytes: &impl Bytes, headers: &mut Headers) -> bool {
    let mut w = [0; 4];
    let read = bytes.read(headers.l4_offset(), &mut w);
    transport(headers, join(w[0], w[1]), join(w[2], w[3]));
    read
}

/// Keeps of the L4 header what belongs to the packet.
#[inline(always)]
fn transport(headers: &mut Headers, first: u64, second: u64) {
    // A length of 0 is that of a packet too long for the field (BIG TCP, net/ipv6/ip6_offload.c).
    let ip_len = if headers.ip_len == 0 { u32::MAX } else { u32::from(headers.ip_len) };
    let room = if headers.fragment { 0 } else { ip_len.saturating_sub(headers.header_len) };
    headers.l4[0] = if room >= 8 { first } else { 0 };
    headers.l4[1] = if room >= 16 { second } else { 0 };
}

/// Where the IP packet inside `outer` begins, and how it is wrapped; 0: nothing that we unwrap.
#[inline(always)]
pub fn inner(outer: &Headers) -> (u32, u8) {
    match outer.protocol {
        protocol::IPIP | protocol::IPV6 if !outer.fragment => (outer.l4_offset(), encapsulation::IPIP),
        protocol::GRE => within(outer.l4_offset(), gre(outer.l4[0]), encapsulation::GRE),
        protocol::UDP => {
            let udp = outer.l4[0].to_ne_bytes();
            let (after, port) = (outer.l4_offset() + UDP_HEADER, u16::from_be_bytes([udp[2], udp[3]]));
            if VXLAN_PORTS.contains(&port) {
                (after + TUNNEL_HEADER + ETHERNET_HEADER, encapsulation::VXLAN)
            } else if port == GENEVE_PORT {
                within(after, geneve(outer.l4[1]), encapsulation::GENEVE)
            } else {
                (0, 0)
            }
        }
        _ => (0, 0),
    }
}

#[inline(always)]
fn is_tunnel_port(port: u16) -> bool {
    VXLAN_PORTS.contains(&port) || port == GENEVE_PORT
}

/// The answer of [`inner`] for a tunnel header at `offset` that is so long; 0: it carries no IP.
#[inline(always)]
fn within(offset: u32, header_len: u32, encapsulation: u8) -> (u32, u8) {
    if header_len == 0 { (0, 0) } else { (offset + header_len, encapsulation) }
}

/// Bytes of a GRE header of version 0 with its optional fields and the inner Ethernet header; 0: it carries no IP, or source
/// routes, which nobody sends any more.
#[inline(always)]
fn gre(first: u64) -> u32 {
    let [flags, version, high, low, ..] = first.to_ne_bytes();
    let len = 4 + u32::from(flags >> 7 & 1) * 4 + u32::from(flags >> 5 & 1) * 4 + u32::from(flags >> 4 & 1) * 4;
    let understood = flags & 0x40 == 0 && version & 7 == 0;
    if understood { carrying(len, u16::from_be_bytes([high, low])) } else { 0 }
}

/// Bytes of a Geneve header of version 0 with its options and the inner Ethernet header; 0: it carries no IP.
#[inline(always)]
fn geneve(first: u64) -> u32 {
    let [version_len, _flags, high, low, ..] = first.to_ne_bytes();
    let len = TUNNEL_HEADER + u32::from(version_len & 0x3f) * 4;
    if version_len >> 6 == 0 { carrying(len, u16::from_be_bytes([high, low])) } else { 0 }
}

/// How far behind the beginning of a tunnel header of `len` bytes the IP packet begins, if `ethertype` says that there is one.
#[inline(always)]
fn carrying(len: u32, ethertype: u16) -> u32 {
    match ethertype {
        ETH_P_IP | ETH_P_IPV6 => len,
        ETH_P_TEB => len + ETHERNET_HEADER,
        _ => 0,
    }
}

/// What an event says of the header that wraps a packet.
#[inline(always)]
pub fn outer_fields(outer: &Headers, encapsulation: u8) -> Outer {
    Outer {
        src: outer.src,
        dst: outer.dst,
        ip_id: outer.ip_id,
        ip_len: outer.ip_len,
        ttl: outer.ttl,
        encapsulation,
        vlan: 0,
    }
}

/// Where the packet that an ICMP error quotes begins: 8 bytes into the ICMP message.
#[inline(always)]
pub fn quoted_offset(error: &Headers) -> u32 {
    error.l4_offset() + 8
}
