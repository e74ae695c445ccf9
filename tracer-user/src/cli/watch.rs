//! Counting the exchanges of a passive trace while they are recorded.

use std::{collections::HashSet, net::IpAddr};

use crate::event::{L4, Packet, Record, Sighting};

const SYN: u8 = 2;

/// The exchanges that began so far.
#[derive(Debug)]
pub(super) struct Watch {
    source: IpAddr,
    /// What tells the source's packets apart, as it sent them: the same packet is seen at many hooks, on other nodes, and
    /// beyond a NAT with another identifier or port.
    begun: HashSet<(u16, u64, u16)>,
    /// How many of them do not count: they may have begun before all nodes recorded.
    before: usize,
}

impl Watch {
    /// Counts the exchanges that `source` begins.
    pub(super) fn new(source: IpAddr) -> Self {
        Self { source, begun: HashSet::new(), before: 0 }
    }

    /// How many began, with those in `records`.
    pub(super) fn add(&mut self, records: &[Record]) -> usize {
        for record in records {
            if let Record::Sighting(Sighting { packet, .. }) = record
                && packet.src == self.source
                && let Some(key) = begins(packet)
            {
                self.begun.insert(key);
            }
        }
        self.begun.len() - self.before
    }

    /// What began until now does not count; answers how many do: none.
    pub(super) fn start(&mut self) -> usize {
        self.before = self.begun.len();
        0
    }
}

/// Does this packet want an answer? Then what tells it apart: of an echo request its numbers, of TCP the port and the number
/// of what is to be acknowledged (a SYN, data), of a datagram its port, first bytes and IP id.
fn begins(packet: &Packet) -> Option<(u16, u64, u16)> {
    let request = if packet.src.is_ipv4() { 8 } else { 128 };
    match packet.l4 {
        L4::Icmp { kind, id, seq, .. } => (kind == request).then_some((id, seq.into(), 0)),
        L4::Tcp { src_port, seq, flags, payload, .. } => {
            (flags & SYN != 0 || payload > 0).then_some((src_port, seq.into(), 0))
        }
        L4::Udp { src_port, nonce, .. } => Some((src_port, nonce, packet.ip_id)),
        L4::Other { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Hook;

    fn seen(src: &str, kind: u8, id: u16, seq: u16) -> Record {
        sighting(src, L4::Icmp { kind, code: 0, id, seq, nonce: 0 })
    }

    fn sighting(src: &str, l4: L4) -> Record {
        let address = |text: &str| text.parse().expect("address");
        Record::Sighting(Sighting {
            time_ns: 1,
            skb: 1,
            hook: Hook::Queue,
            cpu: 0,
            netns: 1,
            ifindex: 1,
            mark: 0,
            tracked: false,
            conntrack: None,
            vlan: None,
            packet: Packet { src: address(src), dst: address("10.0.0.2"), ttl: 64, ip_id: 1, ip_len: 84, l4 },
            outer: None,
            free: None,
        })
    }

    #[test]
    fn an_exchange_counts_once_however_often_it_is_seen() {
        let mut watch = Watch::new("10.0.0.1".parse().expect("address"));
        let twice = [seen("10.0.0.1", 8, 7, 1), seen("10.0.0.1", 8, 7, 1)];
        assert_eq!(watch.add(&twice), 1);
        assert_eq!(watch.add(&twice), 1);
        assert_eq!(watch.add(&[seen("192.168.0.1", 8, 99, 1)]), 1, "beyond a NAT");
        assert_eq!(watch.add(&[seen("10.0.0.1", 0, 7, 2)]), 1, "a reply");
        assert_eq!(watch.add(&[seen("10.0.0.1", 8, 7, 2), seen("10.0.0.1", 8, 8, 2)]), 3, "two programs");
    }

    #[test]
    fn what_began_before_all_nodes_recorded_does_not_count() {
        let mut watch = Watch::new("10.0.0.1".parse().expect("address"));
        assert_eq!(watch.add(&[seen("10.0.0.1", 8, 7, 1)]), 1);
        assert_eq!(watch.start(), 0);
        assert_eq!(watch.add(&[seen("10.0.0.1", 8, 7, 1)]), 0, "seen by another node, too");
        assert_eq!(watch.add(&[seen("10.0.0.1", 8, 7, 2)]), 1);
    }

    #[test]
    fn of_tcp_what_is_to_be_acknowledged_counts() {
        let mut watch = Watch::new("10.0.0.1".parse().expect("address"));
        let segment = |src, seq, flags, payload| {
            sighting(src, L4::Tcp { src_port: 4000, dst_port: 80, seq, ack: 0, flags, payload })
        };
        assert_eq!(watch.add(&[segment("10.0.0.1", 7, 2, 0), segment("10.0.0.1", 7, 2, 0)]), 1, "a SYN, and again");
        assert_eq!(watch.add(&[segment("10.0.0.2", 9, 18, 0), segment("10.0.0.1", 8, 16, 0)]), 1, "acknowledged");
        assert_eq!(watch.add(&[segment("10.0.0.1", 8, 24, 100)]), 2, "data");
        assert_eq!(watch.add(&[segment("10.0.0.2", 10, 24, 100)]), 2, "the other side's data");
    }

    #[test]
    fn of_udp_and_ipv6_too() {
        let mut watch = Watch::new("fd00::1".parse().expect("address"));
        let udp = |nonce| L4::Udp { src_port: 4000, dst_port: 53, checksum: 1, nonce };
        assert_eq!(watch.add(&[sighting("fd00::1", udp(1)), sighting("fd00::1", udp(2))]), 2);
        assert_eq!(watch.add(&[sighting("fd00::2", udp(3))]), 2, "an answer");
        assert_eq!(watch.add(&[seen("fd00::1", 128, 7, 1), seen("fd00::1", 8, 7, 2)]), 3);
    }
}
