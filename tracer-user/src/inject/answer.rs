//! What comes back to probes. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{ACK, Ends, Header, IPV4_HEADER, IPV6_HEADER, RST, SYN};
use crate::{
    path::{Answer, Probe},
    session::ProbeKind,
};

const ICMP_HEADER: usize = 8;
/// TCP header without options, bytes.
const TCP_HEADER: usize = 20;

/// Unreachable, time exceeded, parameter problem (RFC 792).
pub(super) const ERRORS: [u8; 3] = [3, 11, 12];
/// Unreachable, too big, time exceeded, parameter problem (RFC 4443).
pub(super) const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

/// An answer, and which probe it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// Sequence number of an echo, source port of other probes.
    pub(super) key: u16,
    /// What else must agree.
    pub(super) proof: Proof,
    pub(super) answer: Answer,
}

/// What an answer knows of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Nonce(u64),
    IpId(u16),
    /// It came to the port that only this probe has.
    Port,
}

impl Answered {
    pub(super) fn is_for(&self, probe: &Probe) -> bool {
        let key = if probe.dst_port == 0 { probe.seq } else { probe.id };
        let proven = match self.proof {
            Proof::Nonce(nonce) => nonce == probe.nonce,
            Proof::IpId(ip_id) => ip_id == probe.ip_id,
            Proof::Port => true,
        };
        self.key == key && proven
    }
}

impl Header {
    /// Reads what came from `from`, without its IP header; None if it does not answer a probe of this run.
    pub(super) fn answer(&self, from: IpAddr, content: &[u8]) -> Option<Answered> {
        match self.kind {
            ProbeKind::Echo { id } => self.echo_reply(from, content, id).or_else(|| self.error(from, content)),
            ProbeKind::Tcp { dst_port } => self.segment(from, content, dst_port),
            // Answers come to the probes' own sockets.
            ProbeKind::Udp { .. } => None,
        }
    }

    fn echo_reply(&self, from: IpAddr, content: &[u8], own: u16) -> Option<Answered> {
        let reply = match self.ends {
            Ends::V4(..) => 0,
            Ends::V6(..) => 129,
        };
        let (kind, id, seq) = icmp(content)?;
        let nonce = u64::from_be_bytes(*content.get(ICMP_HEADER..)?.first_chunk()?);
        let ours = kind == reply && from == self.dst() && id == own;
        ours.then_some(Answered { key: seq, proof: Proof::Nonce(nonce), answer: Answer::Reply })
    }

    /// SYN+ACK, or a RST that acknowledges the SYN: any other is not valid for a connection just begun (RFC 9293, 3.10.7.3).
    fn segment(&self, from: IpAddr, content: &[u8], dst_port: u16) -> Option<Answered> {
        let &[s0, s1, d0, d1, _, _, _, _, a0, a1, a2, a3, _, flags, ..]: &[u8; TCP_HEADER] = content.first_chunk()?;
        let answer = match flags & (SYN | RST | ACK) {
            both if both == SYN | ACK => Answer::SynAck,
            both if both == RST | ACK => Answer::Reset,
            _ => return None,
        };
        let sequence = u32::from_be_bytes([a0, a1, a2, a3]).wrapping_sub(1);
        let ours = from == self.dst() && u16::from_be_bytes([s0, s1]) == dst_port;
        let key = u16::from_be_bytes([d0, d1]);
        ours.then_some(Answered { key, proof: Proof::Nonce(sequence.into()), answer })
    }

    /// An ICMP error that quotes a probe.
    pub(super) fn error(&self, from: IpAddr, content: &[u8]) -> Option<Answered> {
        let &[kind, code, _, _, rest @ ..]: &[u8; ICMP_HEADER] = content.first_chunk()?;
        let quoted = content.get(ICMP_HEADER..)?;
        let (known, quoted) = match self.ends {
            Ends::V4(..) => (ERRORS.contains(&kind), Quoted::ipv4(quoted)?),
            Ends::V6(..) => (ERRORS_V6.contains(&kind), Quoted::ipv6(quoted)?),
        };
        if !known || quoted.ends != self.ends || quoted.protocol != self.protocol() {
            return None;
        }
        let (key, proof) = self.quoted(&quoted)?;
        let mtu = match self.ends {
            // The other half has another use (RFC 4884).
            Ends::V4(..) if (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED) => {
                u32::from(u16::from_be_bytes([rest[2], rest[3]]))
            }
            _ => u32::from_be_bytes(rest),
        };
        Some(Answered { key, proof, answer: Answer::IcmpError { from, kind, code, mtu } })
    }

    /// Which probe was quoted. Routers quote at least 8 bytes of what the IP packet carried.
    fn quoted(&self, quoted: &Quoted<'_>) -> Option<(u16, Proof)> {
        let &[a, b, c, d, e, f, g, h]: &[u8; 8] = quoted.content.first_chunk()?;
        let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match self.kind {
            ProbeKind::Echo { id } => {
                let ours = a == self.echo_request() && u16::from_be_bytes([e, f]) == id;
                ours.then_some((u16::from_be_bytes([g, h]), Proof::IpId(quoted.ip_id)))
            }
            ProbeKind::Tcp { dst_port } => {
                let sequence = u32::from_be_bytes([e, f, g, h]);
                (second == dst_port).then_some((first, Proof::Nonce(sequence.into())))
            }
            ProbeKind::Udp { dst_port } => (second == dst_port).then_some((first, Proof::IpId(quoted.ip_id))),
        }
    }
}

/// The packet that an ICMP error is about.
struct Quoted<'a> {
    ends: Ends,
    protocol: u8,
    /// 0 for IPv6.
    ip_id: u16,
    content: &'a [u8],
}

impl<'a> Quoted<'a> {
    fn ipv4(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = bytes.first_chunk()?;
        let length = ipv4_header_length(bytes)?;
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        Some(Self {
            ends: Ends::V4(Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3)),
            protocol: header[9],
            ip_id: u16::from_be_bytes([header[4], header[5]]),
            content: bytes.get(length..)?,
        })
    }

    /// Our probes have no extension headers.
    fn ipv6(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = bytes.first_chunk()?;
        let address = |at: usize| header[at..].first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes));
        if header[0] >> 4 != 6 {
            return None;
        }
        let ends = Ends::V6(address(8)?, address(24)?);
        Some(Self { ends, protocol: header[6], ip_id: 0, content: bytes.get(IPV6_HEADER..)? })
    }
}

/// Length of the IPv4 header that a packet begins with, bytes.
pub(super) fn ipv4_header_length(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let length = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && length >= IPV4_HEADER).then_some(length)
}

/// Type, and identifier and sequence number as an echo has them.
fn icmp(bytes: &[u8]) -> Option<(u8, u16, u16)> {
    let header: &[u8; ICMP_HEADER] = bytes.first_chunk()?;
    Some((header[0], u16::from_be_bytes([header[4], header[5]]), u16::from_be_bytes([header[6], header[7]])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::packet::tests::{ALL, ECHO, ECHO6, TCP, TCP6, UDP, UDP6, content, probe},
        *,
    };

    const NONCE: u64 = 0x0102_0304_0506_0708;

    fn reply_to(header: &Header, request: &[u8]) -> Vec<u8> {
        let mut icmp = request[content(header)..].to_vec();
        icmp[0] = if header.src().is_ipv4() { 0 } else { 129 };
        icmp
    }

    fn segment(flags: u8, ack: u32) -> Vec<u8> {
        let mut bytes = vec![1, 187, 0x12, 0x34, 9, 9, 9, 9];
        bytes.extend(ack.to_be_bytes());
        bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn other(header: &Header) -> Header {
        let kind = match header.kind {
            ProbeKind::Echo { .. } => ProbeKind::Echo { id: 1 },
            ProbeKind::Tcp { .. } => ProbeKind::Tcp { dst_port: 1 },
            ProbeKind::Udp { .. } => ProbeKind::Udp { dst_port: 1 },
        };
        Header { kind, ..*header }
    }

    #[test]
    fn an_echo_reply_is_matched_by_source_and_id() {
        for header in [ECHO, ECHO6] {
            let reply = reply_to(&header, &header.packet(&probe(&header, 3), 64, 8));
            let answered = Answered { key: 3, proof: Proof::Nonce(NONCE), answer: Answer::Reply };
            assert_eq!(header.answer(header.dst(), &reply), Some(answered));
            assert!(answered.is_for(&probe(&header, 3)));
            assert!(!answered.is_for(&probe(&header, 4)), "another one's");
            assert_eq!(other(&header).answer(header.dst(), &reply), None, "other id");
            assert_eq!(header.answer(header.src(), &reply), None, "other source");
            assert_eq!(header.answer(header.dst(), &reply[..reply.len() - 1]), None, "nonce cut off");
            assert_eq!(
                header.answer(header.dst(), &header.packet(&probe(&header, 1), 64, 8)[content(&header)..]),
                None
            );
        }
    }

    #[test]
    fn a_segment_is_matched_by_ports_and_what_it_acknowledges() {
        for header in [TCP, TCP6] {
            let probe = probe(&header, 3);
            let from = |from, flags, ack| header.answer(from, &segment(flags, ack));
            let answered = |flags, ack| from(header.dst(), flags, ack);
            let syn_ack = answered(SYN | ACK, 0x0506_0709).expect("ours");
            assert_eq!((syn_ack.key, syn_ack.answer), (0x1234, Answer::SynAck));
            assert!(syn_ack.is_for(&probe));
            assert_eq!(
                answered(RST | ACK, 0x0506_0709).map(|a| (a.answer, a.is_for(&probe))),
                Some((Answer::Reset, true))
            );
            assert!(!answered(SYN | ACK, 0x0506_0708).expect("a SYN+ACK").is_for(&probe), "of another sequence number");
            for flags in [SYN, ACK, RST, SYN | RST | ACK] {
                assert_eq!(answered(flags, 0x0506_0709), None, "{flags}");
            }
            assert_eq!(from(header.src(), SYN | ACK, 0x0506_0709), None, "other source");
            assert_eq!(other(&header).answer(header.dst(), &segment(SYN | ACK, 0x0506_0709)), None, "other port");
            assert_eq!(header.answer(header.dst(), &segment(SYN | ACK, 0x0506_0709)[..19]), None, "cut off");
        }
        let last = TCP.probe(1, 0x1234, 1, u64::MAX);
        assert!(TCP.answer(TCP.dst(), &segment(SYN | ACK, 0)).expect("a SYN+ACK").is_for(&last), "numbers wrap");
    }

    #[test]
    fn an_error_is_matched_by_the_packet_it_quotes() {
        for header in ALL {
            let probe = probe(&header, 9);
            let request = header.packet(&probe, 64, 56);
            let (from, kinds): (IpAddr, &[u8]) = match header.ends {
                Ends::V4(..) => ([10, 9, 9, 9].into(), &ERRORS),
                Ends::V6(..) => ([0xfd09, 0, 0, 0, 0, 0, 0, 9].into(), &ERRORS_V6),
            };
            for &kind in kinds {
                // The least a router quotes: the IP header and 8 bytes.
                let error = [&[kind, 1, 0, 0, 0, 0, 5, 0xdc], &request[..content(&header) + 8]].concat();
                let answered = header.error(from, &error).expect("ours");
                assert_eq!(answered.answer, Answer::IcmpError { from, kind, code: 1, mtu: 1500 });
                assert!(answered.is_for(&probe));
                assert!(!answered.is_for(&Probe { seq: 1, id: 1, ..probe }));
                assert_eq!(other(&header).error(from, &error), None, "about another program's probe");
                assert_eq!(header.error(from, &error[..error.len() - 1]), None, "quotes too little");
            }
            assert_eq!(header.error(from, &[&[200, 0, 0, 0, 0, 0, 0, 0], &request[..]].concat()), None, "no error");
        }
    }

    #[test]
    fn errors_about_other_protocols_and_families_are_others() {
        let quote =
            |header: &Header| [&[3, 3, 0, 0, 0, 0, 0, 0], &header.packet(&probe(header, 1), 64, 8)[..]].concat();
        for (one, two) in [(TCP, UDP), (UDP, ECHO), (TCP6, UDP6), (ECHO, ECHO6), (UDP6, UDP)] {
            assert_eq!(one.error(one.dst(), &quote(&two)), None);
            assert_eq!(two.error(two.dst(), &quote(&one)), None);
        }
    }

    #[test]
    fn the_mtu_of_fragmentation_needed_is_16_bits_wide() {
        let request = ECHO.packet(&probe(&ECHO, 9), 64, 56);
        let error = [&[3, 4, 0, 0, 0, 7, 5, 0xdc], &request[..]].concat();
        let mtu = ECHO.error(ECHO.dst(), &error).map(|answered| answered.answer);
        assert_eq!(mtu, Some(Answer::IcmpError { from: ECHO.dst(), kind: 3, code: 4, mtu: 1500 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            for header in ALL {
                let _ = header.answer(header.dst(), &bytes);
                let _ = header.error(header.dst(), &bytes);
            }
        }
    }
}
