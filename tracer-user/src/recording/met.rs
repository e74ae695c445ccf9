//! The addresses that a recording meets: their names are asked for when it ends.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use crate::event::Record;

/// Of more addresses the names are not kept: so many a report shows nobody, and each takes some 50 bytes here and in the file.
const MOST: usize = 100_000;

/// Pairs of addresses that came by lately, a power of two: most records have one of them.
const RECENT: usize = 256;

/// What was met so far.
#[derive(Debug)]
pub struct Met {
    known: HashSet<IpAddr>,
    most: usize,
    recent: Vec<Option<(IpAddr, IpAddr)>>,
    /// How often an address came by that there was no room for.
    pub left_out: u64,
}

impl Default for Met {
    fn default() -> Self {
        Self { known: HashSet::new(), most: MOST, recent: vec![None; RECENT], left_out: 0 }
    }
}

impl Met {
    /// Takes in the addresses of a record; of a translation those that it leads to.
    pub fn add(&mut self, record: &Record) {
        let pair = match record {
            Record::Sighting(sighting) => (sighting.packet.src, sighting.packet.dst),
            Record::Translation(translation) => (translation.reply.src, translation.reply.dst),
            Record::Rewrite(rewrite) => (rewrite.packet.src, rewrite.packet.dst),
        };
        let place = &mut self.recent[place(pair)];
        if *place == Some(pair) {
            return;
        }
        let mut all_known = true;
        for address in [pair.0, pair.1] {
            if self.known.len() < self.most {
                self.known.insert(address);
            } else if !self.known.contains(&address) {
                (self.left_out, all_known) = (self.left_out + 1, false);
            }
        }
        if all_known {
            *place = Some(pair);
        }
    }

    /// All of them, in order.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.known.iter().copied().collect()
    }

    /// What a reader must know; None: there was room for all.
    pub fn sentence(&self) -> Option<String> {
        let Self { most, left_out, .. } = self;
        (*left_out > 0).then(|| {
            format!(
                "more than {most} addresses were met: of those that came later ({left_out} times) no names are kept"
            )
        })
    }
}

/// Which of the recent pairs it replaces.
fn place((src, dst): (IpAddr, IpAddr)) -> usize {
    let word = |address: IpAddr| match address {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => v6
            .octets()
            .chunks_exact(4)
            .fold(0_u32, |all, part| u32::from_be_bytes([part[0], part[1], part[2], part[3]]) ^ all.rotate_left(7)),
    };
    let mixed = (word(src) ^ word(dst).rotate_left(16)).wrapping_mul(0x9e37_79b9);
    (mixed >> (u32::BITS - RECENT.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::Met;
    use crate::event::{L4, Packet, Record, Rewrite, Side};

    fn seen(src: u32, dst: u32) -> Record {
        let [src, dst] = [src, dst].map(|number| Ipv4Addr::from(number).into());
        let packet = Packet { src, dst, ttl: 64, ip_id: 1, ip_len: 84, l4: L4::Other { protocol: 47 } };
        Record::Rewrite(Rewrite { time_ns: 1, skb: 1, netns: 1, ifindex: 1, side: Side::Source, packet })
    }

    #[test]
    fn every_address_is_met_whatever_came_by_lately() {
        let mut met = Met::default();
        for number in 0..5_000 {
            met.add(&seen(7, number));
            met.add(&seen(number, 9));
        }
        assert_eq!(met.addresses().len(), 5_000);
        assert_eq!(met.sentence(), None);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut met = Met { most: 3, ..Met::default() };
        for (src, dst) in [(1, 2), (1, 3), (1, 4), (1, 4), (2, 3)] {
            met.add(&seen(src, dst));
        }
        assert_eq!(met.addresses().len(), 3);
        assert_eq!(met.left_out, 2, "twice the fourth");
        assert!(met.sentence().is_some_and(|text| text.contains("(2 times)")));
    }
}
