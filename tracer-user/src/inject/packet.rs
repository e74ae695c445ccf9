//! The bytes of probes and of what comes back (RFC 791, RFC 792). Pure.

use std::net::Ipv4Addr;

use crate::path::Probe;

const IP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const DONT_FRAGMENT: u16 = 0x4000;
const PROTOCOL_ICMP: u8 = 1;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// What all probes of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    /// ICMP identifier.
    pub(super) id: u16,
}

/// What came back for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The echo reply.
    Reply { seq: u16, nonce: u64 },
    /// An ICMP error that quotes the probe.
    Refused { seq: u16, ip_id: u16 },
}

impl Header {
    /// The IP packet of a probe with `size` bytes (at least 8) behind the ICMP header. The kernel adds the IP checksum
    /// (`raw_send_hdrinc` in net/ipv4/raw.c).
    pub(super) fn echo_request(&self, probe: &Probe, ttl: u8, size: u16) -> Vec<u8> {
        let total = IP_HEADER + ICMP_HEADER + usize::from(size);
        let mut bytes = Vec::with_capacity(total);
        bytes.extend([0x45, 0]);
        bytes.extend(u16::try_from(total).expect("size is checked against LARGEST").to_be_bytes());
        bytes.extend(probe.ip_id.to_be_bytes());
        bytes.extend(DONT_FRAGMENT.to_be_bytes());
        bytes.extend([ttl, PROTOCOL_ICMP, 0, 0]);
        bytes.extend(self.src.octets());
        bytes.extend(self.dst.octets());

        bytes.extend([ECHO_REQUEST, 0, 0, 0]);
        bytes.extend(probe.id.to_be_bytes());
        bytes.extend(probe.seq.to_be_bytes());
        bytes.extend(probe.nonce.to_be_bytes());
        bytes.extend((8_u8..=u8::MAX).chain(0..8).cycle().take(total - bytes.len()));
        let sum = checksum(&bytes[IP_HEADER..]).to_be_bytes();
        bytes[IP_HEADER + 2..IP_HEADER + 4].copy_from_slice(&sum);
        bytes
    }

    /// Reads a received IP packet; None if it does not answer a probe of this run.
    pub(super) fn answer(&self, packet: &[u8]) -> Option<Answer> {
        let ip = Ip::parse(packet)?;
        let (kind, id, seq) = icmp(ip.payload)?;
        let quoted = ip.payload.get(ICMP_HEADER..)?;
        match kind {
            ECHO_REPLY if ip.src == self.dst && id == self.id => {
                let nonce = u64::from_be_bytes(*quoted.first_chunk()?);
                Some(Answer::Reply { seq, nonce })
            }
            UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => {
                let probe = Ip::parse(quoted)?;
                let (kind, id, seq) = icmp(probe.payload)?;
                let ours = kind == ECHO_REQUEST && id == self.id && probe.src == self.src && probe.dst == self.dst;
                ours.then_some(Answer::Refused { seq, ip_id: probe.id })
            }
            _ => None,
        }
    }
}

/// An IPv4 packet that carries ICMP.
struct Ip<'a> {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    id: u16,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; IP_HEADER] = bytes.first_chunk()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || length < IP_HEADER || header[9] != PROTOCOL_ICMP {
            return None;
        }
        Some(Self {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
            id: u16::from_be_bytes([header[4], header[5]]),
            payload: bytes.get(length..)?,
        })
    }
}

/// Type, and identifier and sequence number as an echo has them.
fn icmp(bytes: &[u8]) -> Option<(u8, u16, u16)> {
    let header: &[u8; ICMP_HEADER] = bytes.first_chunk()?;
    Some((header[0], u16::from_be_bytes([header[4], header[5]]), u16::from_be_bytes([header[6], header[7]])))
}

/// The Internet checksum (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { src: Ipv4Addr::new(10, 0, 0, 1), dst: Ipv4Addr::new(10, 0, 0, 2), id: 0x1234 };

    fn probe(seq: u16) -> Probe {
        Probe { seq, id: HEADER.id, ip_id: 0xbeef, nonce: 0x0102_0304_0506_0708, protocol: 1, ..Probe::default() }
    }

    fn ip(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, 1, 0, 0];
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(payload);
        bytes
    }

    fn reply_to(request: &[u8]) -> Vec<u8> {
        let mut icmp = request[IP_HEADER..].to_vec();
        icmp[0] = ECHO_REPLY;
        ip(HEADER.dst, HEADER.src, &icmp)
    }

    #[test]
    fn a_request_has_the_fields_where_rfc_791_and_792_put_them() {
        let bytes = HEADER.echo_request(&probe(3), 61, 56);
        assert_eq!(bytes.len(), 84);
        assert_eq!(bytes[..10], [0x45, 0, 0, 84, 0xbe, 0xef, 0x40, 0, 61, 1]);
        assert_eq!(bytes[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(bytes[20..22], [8, 0]);
        assert_eq!(bytes[24..36], [0x12, 0x34, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[36..40], [8, 9, 10, 11]);
        assert_eq!(checksum(&bytes[20..]), 0, "a right checksum makes the whole sum up to 0");
    }

    #[test]
    fn a_reply_is_matched_by_source_and_id() {
        let reply = reply_to(&HEADER.echo_request(&probe(3), 64, 8));
        assert_eq!(HEADER.answer(&reply), Some(Answer::Reply { seq: 3, nonce: 0x0102_0304_0506_0708 }));
        assert_eq!(Header { id: 1, ..HEADER }.answer(&reply), None, "other id");
        assert_eq!(Header { dst: HEADER.src, ..HEADER }.answer(&reply), None, "other source");
        assert_eq!(HEADER.answer(&reply[..reply.len() - 1]), None, "nonce cut off");
    }

    #[test]
    fn an_error_is_matched_by_the_packet_it_quotes() {
        let request = HEADER.echo_request(&probe(9), 64, 56);
        let router = Ipv4Addr::new(10, 9, 9, 9);
        for kind in [UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM] {
            // The least a router quotes: the IP header and 8 bytes.
            let payload = [&[kind, 1, 0, 0, 0, 0, 0, 0], &request[..28]].concat();
            let error = ip(router, HEADER.src, &payload);
            assert_eq!(HEADER.answer(&error), Some(Answer::Refused { seq: 9, ip_id: 0xbeef }));
            assert_eq!(Header { id: 1, ..HEADER }.answer(&error), None, "about another program's probe");
            assert_eq!(HEADER.answer(&error[..error.len() - 1]), None, "quotes too little");
        }
    }

    #[test]
    fn our_own_request_is_no_answer() {
        assert_eq!(HEADER.answer(&HEADER.echo_request(&probe(1), 64, 56)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = HEADER.answer(&bytes);
        }

        #[test]
        fn any_size_has_a_right_checksum_and_length(size in super::super::SMALLEST..2000, nonce: u64, seq: u16) {
            let bytes = HEADER.echo_request(&Probe { nonce, ..probe(seq) }, 64, size);
            prop_assert_eq!(bytes.len(), usize::from(size) + 28);
            prop_assert_eq!(checksum(&bytes[20..]), 0);
            prop_assert_eq!(HEADER.answer(&reply_to(&bytes)), Some(Answer::Reply { seq, nonce }));
        }
    }
}
