//! Counting the exchanges of a passive trace while they are recorded.

use std::{collections::HashSet, net::IpAddr};

use crate::event::{L4, Record, Sighting};

const ECHO_REQUEST: u8 = 8;

/// The exchanges that began so far.
#[derive(Debug)]
pub(super) struct Watch {
    source: IpAddr,
    /// Identifier and sequence number, as the source sent them: the same packet is seen at many hooks, on other nodes, and
    /// beyond a NAT with another identifier.
    begun: HashSet<(u16, u16)>,
}

impl Watch {
    /// Counts the exchanges that `source` begins.
    pub(super) fn new(source: IpAddr) -> Self {
        Self { source, begun: HashSet::new() }
    }

    /// How many began, with those in `records`.
    pub(super) fn add(&mut self, records: &[Record]) -> usize {
        for record in records {
            if let Record::Sighting(Sighting { packet, .. }) = record
                && let L4::Icmp { kind: ECHO_REQUEST, id, seq, .. } = packet.l4
                && packet.src == self.source
            {
                self.begun.insert((id, seq));
            }
        }
        self.begun.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Hook, Packet};

    fn seen(src: &str, kind: u8, id: u16, seq: u16) -> Record {
        let l4 = L4::Icmp { kind, code: 0, id, seq, nonce: 0 };
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
}
