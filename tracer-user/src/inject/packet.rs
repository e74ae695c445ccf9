//! The bytes of probes (RFC 791, 8200, 792, 4443, 9293, 768). Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Error;
use crate::{checksum::checksum, path::Probe, session::ProbeKind};

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
const DONT_FRAGMENT: u16 = 0x4000;

pub(super) const PROTOCOL_ICMP: u8 = 1;
pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;

pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// Source and destination, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    pub(super) fn new(src: IpAddr, dst: IpAddr) -> Result<Self, Error> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Ok(Self::V4(src, dst)),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Ok(Self::V6(src, dst)),
            (src, dst) => Err(Error::Families { src, dst }),
        }
    }
}

/// What all probes of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) ends: Ends,
    pub(super) kind: ProbeKind,
}

impl Header {
    pub(super) fn src(&self) -> IpAddr {
        match self.ends {
            Ends::V4(src, _) => src.into(),
            Ends::V6(src, _) => src.into(),
        }
    }

    pub(super) fn dst(&self) -> IpAddr {
        match self.ends {
            Ends::V4(_, dst) => dst.into(),
            Ends::V6(_, dst) => dst.into(),
        }
    }

    /// IP protocol number.
    pub(super) fn protocol(&self) -> u8 {
        match (self.kind, self.ends) {
            (ProbeKind::Echo { .. }, Ends::V4(..)) => PROTOCOL_ICMP,
            (ProbeKind::Echo { .. }, Ends::V6(..)) => PROTOCOL_ICMPV6,
            (ProbeKind::Tcp { .. }, _) => PROTOCOL_TCP,
            (ProbeKind::Udp { .. }, _) => PROTOCOL_UDP,
        }
    }

    /// Type of an echo request in this family.
    pub(super) fn echo_request(&self) -> u8 {
        match self.ends {
            Ends::V4(..) => 8,
            Ends::V6(..) => 128,
        }
    }

    /// Probe `seq` of a run; `id` is its identifier or source port.
    pub(super) fn probe(&self, seq: u16, id: u16, first_ip_id: u16, nonce: u64) -> Probe {
        let (dst_port, nonce) = match self.kind {
            ProbeKind::Echo { .. } => (0, nonce),
            ProbeKind::Tcp { dst_port } => (dst_port, nonce & u64::from(u32::MAX)),
            ProbeKind::Udp { dst_port } => (dst_port, nonce),
        };
        let ip_id = match self.ends {
            Ends::V4(..) => ip_id(first_ip_id, seq),
            Ends::V6(..) => 0,
        };
        Probe { seq, protocol: self.protocol(), id, dst_port, ip_id, nonce, rtt_ns: None, answer: None, unsent: None }
    }

    /// The IP packet of a probe; `size` is the payload of an echo or datagram, at least 8 bytes. The kernel adds the IPv4
    /// header's checksum (`raw_send_hdrinc` in net/ipv4/raw.c).
    pub(super) fn packet(&self, probe: &Probe, hops: u8, size: u16) -> Vec<u8> {
        let (mut content, checksum_at) = match self.kind {
            ProbeKind::Echo { .. } => (echo(self.echo_request(), probe, size), 2),
            ProbeKind::Tcp { .. } => (syn(probe, self.segment_size()), 16),
            ProbeKind::Udp { .. } => (datagram(probe, size), 6),
        };
        let mut sum = checksum(&[self.pseudo_header(content.len()), content.clone()].concat());
        if sum == 0 && matches!(self.kind, ProbeKind::Udp { .. }) {
            // 0 would say that there is none (RFC 768).
            sum = 0xffff;
        }
        content[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = self.ip_header(probe, hops, content.len());
        bytes.append(&mut content);
        bytes
    }

    fn ip_header(&self, probe: &Probe, hops: u8, content: usize) -> Vec<u8> {
        let half = |length| u16::try_from(length).expect("size is checked against LARGEST").to_be_bytes();
        let mut bytes = Vec::with_capacity(IPV6_HEADER + content);
        match self.ends {
            Ends::V4(src, dst) => {
                bytes.extend([0x45, 0]);
                bytes.extend(half(IPV4_HEADER + content));
                bytes.extend(probe.ip_id.to_be_bytes());
                bytes.extend(DONT_FRAGMENT.to_be_bytes());
                bytes.extend([hops, self.protocol(), 0, 0]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            Ends::V6(src, dst) => {
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(half(content));
                bytes.extend([self.protocol(), hops]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
        }
        bytes
    }

    /// What the checksum covers beside the content: nothing for ICMP over IPv4.
    fn pseudo_header(&self, content: usize) -> Vec<u8> {
        let length = u32::try_from(content).expect("fits a packet").to_be_bytes();
        let rest = [0, 0, 0, self.protocol()];
        match self.ends {
            _ if self.protocol() == PROTOCOL_ICMP => Vec::new(),
            // The order of the words does not matter to the sum.
            Ends::V4(src, dst) => [&src.octets()[..], &dst.octets(), &length, &rest].concat(),
            Ends::V6(src, dst) => [&src.octets()[..], &dst.octets(), &length, &rest].concat(),
        }
    }

    /// What a SYN offers: Ethernet's. Nothing is ever sent in segments of this size.
    fn segment_size(&self) -> u16 {
        match self.ends {
            Ends::V4(..) => 1460,
            Ends::V6(..) => 1440,
        }
    }
}

fn echo(kind: u8, probe: &Probe, size: u16) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(probe.id.to_be_bytes());
    bytes.extend(probe.seq.to_be_bytes());
    payload(&mut bytes, probe, size);
    bytes
}

fn datagram(probe: &Probe, size: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(probe.id.to_be_bytes());
    bytes.extend(probe.dst_port.to_be_bytes());
    bytes.extend((8 + size).to_be_bytes());
    bytes.extend([0, 0]);
    payload(&mut bytes, probe, size);
    bytes
}

fn payload(bytes: &mut Vec<u8>, probe: &Probe, size: u16) {
    bytes.extend(probe.nonce.to_be_bytes());
    bytes.extend((8_u8..=u8::MAX).chain(0..8).cycle().take(usize::from(size).saturating_sub(8)));
}

/// With the options that Linux sends too: firewalls drop SYNs that look unlike any system's.
fn syn(probe: &Probe, segment_size: u16) -> Vec<u8> {
    /// Words of the header with its options.
    const WORDS: u8 = 10;
    let sequence = sequence(probe.nonce).to_be_bytes();
    let [high, low] = segment_size.to_be_bytes();
    let mut bytes = Vec::new();
    bytes.extend(probe.id.to_be_bytes());
    bytes.extend(probe.dst_port.to_be_bytes());
    bytes.extend(sequence);
    bytes.extend([0; 4]);
    bytes.extend([WORDS << 4, SYN]);
    bytes.extend(64_240_u16.to_be_bytes());
    bytes.extend([0; 4]);
    // Largest segment; selective acknowledgement; timestamp (any number) and its echo; padding; window scale.
    bytes.extend([2, 4, high, low, 4, 2, 8, 10]);
    bytes.extend(sequence);
    bytes.extend([0, 0, 0, 0, 1, 3, 3, 7]);
    bytes
}

/// The sequence number of a SYN: all of its probe's nonce.
pub(super) fn sequence(nonce: u64) -> u32 {
    (nonce & u64::from(u32::MAX)) as u32
}

/// The IP id of probe `seq`: a different one for each, and never 0, which the kernel would replace by one of its own.
fn ip_id(first: u16, seq: u16) -> u16 {
    // Counts through 1..=65535, which are as many as there are sequence numbers.
    let ids = u32::from(u16::MAX);
    let at = (u32::from(first) + u32::from(seq)) % ids;
    u16::try_from(at + 1).expect("at most 65535 by the remainder")
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: Ends = Ends::V4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    const V6: Ends = Ends::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

    pub(in super::super) const ECHO: Header = Header { ends: V4, kind: ProbeKind::Echo { id: 0x1234 } };
    pub(in super::super) const ECHO6: Header = Header { ends: V6, ..ECHO };
    pub(in super::super) const TCP: Header = Header { ends: V4, kind: ProbeKind::Tcp { dst_port: 443 } };
    pub(in super::super) const TCP6: Header = Header { ends: V6, ..TCP };
    pub(in super::super) const UDP: Header = Header { ends: V4, kind: ProbeKind::Udp { dst_port: 53 } };
    pub(in super::super) const UDP6: Header = Header { ends: V6, ..UDP };
    pub(in super::super) const ALL: [Header; 6] = [ECHO, ECHO6, TCP, TCP6, UDP, UDP6];

    pub(in super::super) fn probe(header: &Header, seq: u16) -> Probe {
        header.probe(seq, 0x1234, 0xbeee - seq, 0x0102_0304_0506_0708)
    }

    /// Where the content begins.
    pub(in super::super) fn content(header: &Header) -> usize {
        if header.src().is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
    }

    #[test]
    fn ipv4_fields_are_where_rfc_791_and_792_put_them() {
        let bytes = ECHO.packet(&probe(&ECHO, 3), 61, 56);
        assert_eq!(bytes.len(), 84);
        assert_eq!(bytes[..10], [0x45, 0, 0, 84, 0xbe, 0xef, 0x40, 0, 61, 1]);
        assert_eq!(bytes[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(bytes[20..22], [8, 0]);
        assert_eq!(bytes[24..36], [0x12, 0x34, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[36..40], [8, 9, 10, 11]);
    }

    #[test]
    fn ipv6_fields_are_where_rfc_8200_and_4443_put_them() {
        let probe = probe(&ECHO6, 3);
        assert_eq!(probe.ip_id, 0);
        let bytes = ECHO6.packet(&probe, 61, 56);
        assert_eq!(bytes.len(), 104);
        assert_eq!(bytes[..10], [0x60, 0, 0, 0, 0, 64, 58, 61, 0xfd, 0]);
        assert_eq!((bytes[23], bytes[39]), (1, 2));
        assert_eq!(bytes[40..42], [128, 0]);
        assert_eq!(bytes[44..56], [0x12, 0x34, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_syn_has_the_lower_half_of_the_nonce_for_its_sequence_number() {
        for header in [TCP, TCP6] {
            let probe = probe(&header, 3);
            assert_eq!(probe.nonce, 0x0506_0708);
            let bytes = header.packet(&probe, 64, 56);
            let segment = &bytes[content(&header)..];
            assert_eq!(segment.len(), 40, "no payload");
            assert_eq!(segment[..14], [0x12, 0x34, 1, 187, 5, 6, 7, 8, 0, 0, 0, 0, 0xa0, SYN]);
            let size = if header.src().is_ipv4() { 1460_u16 } else { 1440 };
            assert_eq!(segment[20..24], [&[2, 4], &size.to_be_bytes()[..]].concat());
        }
    }

    #[test]
    fn a_datagram_begins_with_the_nonce() {
        let bytes = UDP.packet(&probe(&UDP, 3), 64, 9);
        assert_eq!(bytes.len(), 37);
        assert_eq!(bytes[20..26], [0x12, 0x34, 0, 53, 0, 17]);
        assert_eq!(bytes[28..], [1, 2, 3, 4, 5, 6, 7, 8, 8]);
    }

    #[test]
    fn a_udp_checksum_is_never_0() {
        let mut seen = false;
        for nonce in 0..=u64::from(u16::MAX) {
            let probe = Probe { nonce, ..probe(&UDP, 1) };
            let bytes = UDP.packet(&probe, 64, 8);
            assert_ne!(bytes[26..28], [0, 0]);
            seen |= bytes[26..28] == [0xff, 0xff];
        }
        assert!(seen, "some nonce makes it so");
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

    proptest! {
        #[test]
        fn any_size_has_a_right_checksum_and_length(size in super::super::SMALLEST..2000, nonce: u64, seq: u16) {
            for header in ALL {
                let bytes = header.packet(&header.probe(seq, 7, 8, nonce), 64, size);
                let content = &bytes[content(&header)..];
                let expected = if header.protocol() == PROTOCOL_TCP { 40 } else { usize::from(size) + 8 };
                prop_assert_eq!(content.len(), expected);
                let covered = [&header.pseudo_header(content.len())[..], content].concat();
                prop_assert_eq!(checksum(&covered), 0, "a right checksum makes the whole sum up to 0");
            }
        }
    }
}
