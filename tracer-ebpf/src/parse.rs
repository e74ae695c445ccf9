//! Packet headers -> [`Headers`]. Plain Rust over a [`Bytes`], with constant-size reads and few branches, so that the
//! verifier can follow and the host can test it. What a transport header means is for userspace to read.
//!
//! RFC 791 (IPv4), RFC 8200 (IPv6), RFC 792 and 4443 (ICMP), RFC 9293 (TCP), RFC 768 (UDP), RFC 2003 (IP in IP),
//! RFC 7348 (VXLAN).

use tracer_common::{Address, Outer, address, encapsulation};

/// Somewhere to read packet bytes from.
pub trait Bytes {
    /// Copies `N` bytes at `offset`; false where they cannot be read, `into` is then undefined. Into a buffer of the
    /// caller's, because a BPF stack holds 512 bytes and every copy of a return value counts.
    fn read<const N: usize>(&self, offset: usize, into: &mut [u8; N]) -> bool;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// The IPv6 extension header that says whether this is the first fragment.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// UDP ports that VXLAN is found on: IANA's, and Linux's default that flannel uses.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// Bytes from the start of the UDP header to the inner IP header: UDP 8, VXLAN 8, Ethernet 14.
const VXLAN_HEADERS: u32 = 8 + 8 + 14;
/// Length of an IPv6 header; one read of this many bytes holds an IPv4 header too. Behind any packet in a linear
/// `sk_buff` lies `skb_shared_info`, so that this much can be read of a shorter one.
const FIRST_READ: usize = 40;
/// IPv6 extension headers that are skipped at the most. More than two are not seen in practice.
const MAX_EXTENSIONS: usize = 2;

/// The header fields of one IP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The first 16 bytes of the L4 header, after [`transport`].
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

    /// Is this an ICMP error, which quotes the packet it is about? Needs [`transport`].
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

/// A buffer for a read. Cleared and read by whole words.
#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes of an IPv4 address.
#[inline(always)]
pub fn mapped(a: u8, b: u8, c: u8, d: u8) -> Address {
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}

/// Reads the IP header at `offset`. False: not IP, or it cannot be read.
#[inline(always)]
pub fn network(bytes: &impl Bytes, offset: u32, headers: &mut Headers) -> bool {
    let mut buffer = Aligned([0; FIRST_READ]);
    let b = &mut buffer.0;
    if !bytes.read(offset as usize, b) {
        return false;
    }
    headers.offset = offset;
    headers.l4 = [0; 2];
    match b[0] >> 4 {
        4 => {
            headers.src = mapped(b[12], b[13], b[14], b[15]);
            headers.dst = mapped(b[16], b[17], b[18], b[19]);
            headers.ip_id = be16(b, 4);
            headers.ip_len = be16(b, 2);
            headers.ttl = b[8];
            headers.protocol = b[9];
            headers.fragment = be16(b, 6) & 0x1fff != 0;
            headers.header_len = u32::from(b[0] & 0xf) * 4;
            headers.header_len >= 20
        }
        6 => {
            headers.src = address16(b, 8);
            headers.dst = address16(b, 24);
            headers.ip_id = 0;
            headers.ip_len = be16(b, 4).saturating_add(40);
            headers.ttl = b[7];
            headers.protocol = b[6];
            headers.fragment = false;
            headers.header_len = 40;
            extensions(bytes, headers)
        }
        _ => false,
    }
}

#[inline(always)]
fn address16(bytes: &[u8; FIRST_READ], at: usize) -> Address {
    let mut copy = [0; 16];
    copy.copy_from_slice(&bytes[at..at + 16]);
    address(copy)
}

/// Goes past IPv6 extension headers: hop-by-hop, routing, fragment, destination options.
#[inline(always)]
fn extensions(bytes: &impl Bytes, headers: &mut Headers) -> bool {
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(headers.protocol, 0 | 43 | protocol::FRAGMENT | 60) {
            return true;
        }
        let mut buffer = Aligned([0; 8]);
        let b = &mut buffer.0;
        if !bytes.read(headers.l4_offset() as usize, b) {
            return false;
        }
        if headers.protocol == protocol::FRAGMENT {
            headers.fragment = be16(b, 2) & 0xfff8 != 0;
            headers.header_len += 8;
        } else {
            headers.header_len += (u32::from(b[1]) + 1) * 8;
        }
        headers.protocol = b[0];
    }
    true
}

/// Reads the beginning of the L4 header, if the packet has one. What lies beyond the packet's end reads as 0 where
/// fewer than 8 or than 16 bytes belong to it.
#[inline(always)]
pub fn transport(bytes: &impl Bytes, headers: &mut Headers) {
    let mut buffer = Aligned([0; 16]);
    if headers.fragment || !bytes.read(headers.l4_offset() as usize, &mut buffer.0) {
        return;
    }
    let room = u32::from(headers.ip_len).saturating_sub(headers.header_len);
    let words = address(buffer.0);
    if room >= 8 {
        headers.l4[0] = words[0];
    }
    if room >= 16 {
        headers.l4[1] = words[1];
    }
}

/// Where the IP packet inside `outer` begins, and how it is wrapped; 0: nothing that we unwrap. Reads the UDP header
/// to tell VXLAN.
#[inline(always)]
pub fn inner(bytes: &impl Bytes, outer: &mut Headers) -> (u32, u8) {
    if outer.fragment {
        return (0, 0);
    }
    match outer.protocol {
        protocol::IPIP | protocol::IPV6 => (outer.l4_offset(), encapsulation::IPIP),
        protocol::UDP => {
            transport(bytes, outer);
            let l4 = outer.l4[0].to_ne_bytes();
            if VXLAN_PORTS.contains(&be16(&l4, 2)) {
                (outer.l4_offset() + VXLAN_HEADERS, encapsulation::VXLAN)
            } else {
                (0, 0)
            }
        }
        _ => (0, 0),
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
        zero: [0; 2],
    }
}

/// Where the packet that an ICMP error quotes begins: 8 bytes into the ICMP message.
#[inline(always)]
pub fn quoted_offset(error: &Headers) -> u32 {
    error.l4_offset() + 8
}
