//! ICMP errors: what they are about, and what they say (RFC 792, RFC 4443).

use std::net::IpAddr;

use super::{Answer, group::Group};
use crate::event::{L4, Packet, Sighting};

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) from: IpAddr,
    pub(super) kind: u8,
    pub(super) code: u8,
    /// Of "fragmentation needed" and "packet too big".
    pub(super) mtu: u32,
}

impl Said {
    /// By an error that a hook saw.
    pub(super) fn seen(s: &Sighting) -> Option<Self> {
        let L4::Icmp { kind, code, id, seq, .. } = s.packet.l4 else { return None };
        let is_error = match s.packet.src {
            IpAddr::V4(_) => matches!(kind, 3 | 11 | 12),
            IpAddr::V6(_) => matches!(kind, 1..=4),
        };
        // The rest of the header, which of an echo is identifier and sequence number.
        let mtu = u32::from(id) << 16 | u32::from(seq);
        is_error.then_some(Self { from: s.packet.src, kind, code, mtu })
    }

    /// By the injector's account.
    pub(super) fn told(answer: Option<Answer>) -> Option<Self> {
        match answer? {
            Answer::IcmpError { from, kind, code, mtu } => Some(Self { from, kind, code, mtu }),
            Answer::Reply | Answer::SynAck | Answer::Reset => None,
        }
    }

    /// Nothing listens on the port that was asked for.
    pub(super) fn is_port(&self) -> bool {
        matches!((self.from, self.kind, self.code), (IpAddr::V4(_), 3, 3) | (IpAddr::V6(_), 1, 4))
    }

    /// `host unreachable`, as ping says it.
    pub(super) fn words(&self) -> String {
        let words = match (self.from, self.kind, self.code) {
            (IpAddr::V4(_), 3, 0) => "network unreachable",
            (IpAddr::V4(_), 3, 1) | (IpAddr::V6(_), 1, 3) => "host unreachable",
            (IpAddr::V4(_), 3, 2) => "protocol unreachable",
            (IpAddr::V4(_), 3, 3) | (IpAddr::V6(_), 1, 4) => "port unreachable",
            (IpAddr::V4(_), 3, 9 | 10 | 13) | (IpAddr::V6(_), 1, 1) => "administratively prohibited",
            (IpAddr::V6(_), 1, 0) => "no route",
            (IpAddr::V6(_), 1, 5) => "source address not allowed",
            (IpAddr::V6(_), 1, 6) => "route rejects",
            (IpAddr::V4(_), 3, 4) => return format!("fragmentation needed, MTU {}", self.mtu & 0xffff),
            (IpAddr::V6(_), 2, _) => return format!("packet too big, MTU {}", self.mtu),
            (IpAddr::V4(_), 11, 0) => "TTL exceeded on the way",
            (IpAddr::V6(_), 3, 0) => "hop limit exceeded on the way",
            (IpAddr::V4(_), 11, _) | (IpAddr::V6(_), 3, _) => "fragments did not all arrive in time",
            (IpAddr::V4(_), 3, code) | (IpAddr::V6(_), 1, code) => {
                return format!("destination unreachable, code {code}");
            }
            _ => return format!("parameter problem, code {}", self.code),
        };
        words.to_owned()
    }
}

/// An error repeats the head of the packet it is about; its first 8 bytes are recorded. IPv4: length (bytes 2, 3) and
/// identification (4, 5). IPv6: payload length (4, 5) and next header (6), which all packets of a flow may share.
fn is_about(error: &Packet, packet: &Packet) -> bool {
    let L4::Icmp { nonce, .. } = error.l4 else { return false };
    let bytes = nonce.to_be_bytes();
    let word = |i: usize| u16::from_be_bytes([bytes[i], bytes[i + 1]]);
    let same = match packet.src {
        IpAddr::V4(_) => (word(2), word(4)) == (packet.ip_len, packet.ip_id),
        IpAddr::V6(_) => (word(4).saturating_add(40), bytes[6]) == (packet.ip_len, protocol(packet)),
    };
    same && error.dst == packet.src
}

fn protocol(packet: &Packet) -> u8 {
    match (packet.l4, packet.src) {
        (L4::Icmp { .. }, IpAddr::V4(_)) => 1,
        (L4::Icmp { .. }, IpAddr::V6(_)) => 58,
        (L4::Tcp { .. }, _) => 6,
        (L4::Udp { .. }, _) => 17,
        (L4::Other { protocol }, _) => protocol,
    }
}

/// For every group the ICMP error about its request, if one was seen. Of several requests that look the same to the error
/// it is about the last that passed its node before it.
pub(super) fn assign<'a>(groups: &[Group<'a>], errors: &[(usize, &'a Sighting)]) -> Vec<Option<&'a Sighting>> {
    let mut found: Vec<Option<&'a Sighting>> = vec![None; groups.len()];
    for &(node, error) in errors {
        let passed = |g: &Group<'_>| {
            let on_node = g.request[node].iter().filter(|s| s.time_ns <= error.time_ns);
            on_node.filter(|s| is_about(&error.packet, &s.packet)).map(|s| s.time_ns).max()
        };
        let last = groups.iter().enumerate().filter_map(|(i, g)| Some((passed(g)?, i))).max();
        if let Some((_, i)) = last {
            found[i].get_or_insert(error);
        }
    }
    found
}
