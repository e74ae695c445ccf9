//! The bytes of one record of the ring buffer.

use std::mem::offset_of;

use tracer_common::{self as raw, RECORD_SIZE, VLAN_TAGGED, encapsulation, flag, hook, netfilter};

use super::{
    CtDirection, Encapsulation, Engine, Free, Hook, L4, Netfilter, Outer, Packet, Record, Rewrite, Side, Sighting,
    Translation, Tuple, from_bytes,
};

/// A record that is not one: kernel programs and userspace of different versions.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Wrong size.
    #[error(
        "a record of {0} bytes, expected {RECORD_SIZE} or {wrapped}; kernel programs and agent do not belong together: rebuild both",
        wrapped = size_of::<raw::WrappedFree>()
    )]
    Size(usize),
    /// Unknown hook.
    #[error("a record of hook {0}, which is unknown; kernel programs and agent do not belong together: rebuild both")]
    Hook(u8),
    /// Unknown encapsulation.
    #[error(
        "a record of encapsulation {0}, which is unknown; kernel programs and agent do not belong together: rebuild both"
    )]
    Encapsulation(u8),
}

/// Reads integers of the machine's byte order. Of a size that the compiler knows, or it checks the bounds of each.
struct Fields<'a, const SIZE: usize = RECORD_SIZE>(&'a [u8; SIZE]);

/// Bytes of the header that wraps a packet.
const OUTER: usize = size_of::<raw::Outer>();

impl<const SIZE: usize> Fields<'_, SIZE> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(at))
    }
}

/// Decodes one record.
pub fn record(bytes: &[u8]) -> Result<Record, Error> {
    let size = || Error::Size(bytes.len());
    let (record, behind) = bytes.split_first_chunk().ok_or_else(size)?;
    let (fields, around) = (Fields(record), behind.as_array().map(Fields));
    if around.is_none() && !behind.is_empty() {
        return Err(size());
    }
    let hook = match fields.u8(offset_of!(raw::Head, hook)) {
        hook::RECEIVE => Hook::Receive,
        hook::QUEUE => Hook::Queue,
        hook::XMIT => Hook::Xmit,
        hook::DROP => Hook::Drop,
        hook::CONSUME => Hook::Consume,
        hook::TRANSLATION => return Ok(Record::Translation(translation(&fields))),
        hook::REWRITE => return Ok(Record::Rewrite(rewrite(&fields))),
        other => return Err(Error::Hook(other)),
    };
    Ok(Record::Sighting(sighting(&fields, around, hook)?))
}

/// `around`: what wraps a packet that was freed, behind the rest of its record.
fn sighting(fields: &Fields<'_>, around: Option<Fields<'_, OUTER>>, hook: Hook) -> Result<Sighting, Error> {
    let flags = fields.u8(offset_of!(raw::Head, flags));
    Ok(Sighting {
        time_ns: fields.u64(offset_of!(raw::Head, time_ns)),
        skb: fields.u64(offset_of!(raw::Head, skb)),
        hook,
        cpu: fields.u16(offset_of!(raw::Head, cpu)),
        netns: fields.u32(offset_of!(raw::Head, netns)),
        ifindex: fields.u32(offset_of!(raw::Head, ifindex)),
        mark: fields.u32(offset_of!(raw::Sighting, mark)),
        tracked: flags & flag::TRACKED != 0,
        conntrack: direction(flags),
        vlan: (hook == Hook::Receive).then(|| vlan(fields)).flatten(),
        packet: packet(fields, flags),
        outer: match (flags & flag::ENCAPSULATED != 0, flags & flag::FREED != 0) {
            (false, _) => None,
            (true, false) => Some(outer(&Fields(&fields.bytes(offset_of!(raw::Sighting, data))))?),
            (true, true) => around.as_ref().map(outer).transpose()?,
        },
        free: (flags & flag::FREED != 0).then(|| free(fields, flags)),
    })
}

fn vlan(fields: &Fields<'_>) -> Option<u16> {
    let vlan = fields.u16(offset_of!(raw::Sighting, data) + offset_of!(raw::Outer, vlan));
    (vlan & VLAN_TAGGED != 0).then_some(vlan & (VLAN_TAGGED - 1))
}

fn direction(flags: u8) -> Option<CtDirection> {
    match (flags & flag::CONNTRACK != 0, flags & flag::CT_REPLY != 0) {
        (false, _) => None,
        (true, false) => Some(CtDirection::Original),
        (true, true) => Some(CtDirection::Reply),
    }
}

fn packet(fields: &Fields<'_>, flags: u8) -> Packet {
    Packet {
        src: from_bytes(fields.bytes(offset_of!(raw::Sighting, src))),
        dst: from_bytes(fields.bytes(offset_of!(raw::Sighting, dst))),
        ttl: fields.u8(offset_of!(raw::Head, ttl)),
        ip_id: fields.u16(offset_of!(raw::Sighting, ip_id)),
        ip_len: fields.u16(offset_of!(raw::Sighting, ip_len)),
        l4: l4(fields, flags),
    }
}

/// Reads the transport header's beginning. What the packet is too short to hold is 0.
fn l4(fields: &Fields<'_>, flags: u8) -> L4 {
    let protocol = fields.u8(offset_of!(raw::Head, protocol));
    let header_len = fields.u16(offset_of!(raw::Head, header_len));
    // A length of 0 is that of a packet too long for the field (BIG TCP).
    let room = match fields.u16(offset_of!(raw::Sighting, ip_len)) {
        0 => usize::MAX,
        ip_len => usize::from(ip_len.saturating_sub(header_len)),
    };
    if flags & flag::FRAGMENT != 0 || room < 8 {
        return L4::Other { protocol };
    }
    let mut b: [u8; 16] = fields.bytes(offset_of!(raw::Sighting, l4));
    b[room.min(16)..].fill(0);
    let u16_at = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    let u32_at = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let nonce = if room < 16 { 0 } else { u64::from(u32_at(8)) << 32 | u64::from(u32_at(12)) };
    match protocol {
        1 | 58 => L4::Icmp { kind: b[0], code: b[1], id: u16_at(4), seq: u16_at(6), nonce },
        6 => L4::Tcp {
            src_port: u16_at(0),
            dst_port: u16_at(2),
            seq: u32_at(4),
            ack: u32_at(8),
            flags: b[13],
            // The data offset counts words. A BIG TCP packet's length is not in its header.
            payload: if room == usize::MAX { 0 } else { room.saturating_sub(usize::from(b[12] >> 4) * 4) as u16 },
        },
        17 => L4::Udp { src_port: u16_at(0), dst_port: u16_at(2), checksum: u16_at(6), nonce },
        protocol => L4::Other { protocol },
    }
}

fn outer(fields: &Fields<'_, OUTER>) -> Result<Outer, Error> {
    Ok(Outer {
        src: from_bytes(fields.bytes(offset_of!(raw::Outer, src))),
        dst: from_bytes(fields.bytes(offset_of!(raw::Outer, dst))),
        ttl: fields.u8(offset_of!(raw::Outer, ttl)),
        ip_id: fields.u16(offset_of!(raw::Outer, ip_id)),
        ip_len: fields.u16(offset_of!(raw::Outer, ip_len)),
        encapsulation: match fields.u8(offset_of!(raw::Outer, encapsulation)) {
            encapsulation::IPIP => Encapsulation::Ipip,
            encapsulation::VXLAN => Encapsulation::Vxlan,
            encapsulation::GRE => Encapsulation::Gre,
            encapsulation::GENEVE => Encapsulation::Geneve,
            other => return Err(Error::Encapsulation(other)),
        },
    })
}

fn free(fields: &Fields<'_>, flags: u8) -> Free {
    let at = offset_of!(raw::Sighting, data);
    Free {
        location: fields.u64(at + offset_of!(raw::Free, location)),
        function: None,
        reason: (flags & flag::REASON != 0).then(|| fields.u32(at + offset_of!(raw::Free, reason))),
        reason_name: None,
        netfilter: evaluated(fields, at).map(Box::new),
    }
}

/// What evaluated rules on the packet last.
fn evaluated(fields: &Fields<'_>, free: usize) -> Option<Netfilter> {
    let table = free + offset_of!(raw::Free, table);
    let (engine, name) = match fields.u8(free + offset_of!(raw::Free, netfilter)) {
        netfilter::HOOK => (Engine::Unknown, None),
        netfilter::IPTABLES => {
            let name: [u8; 24] = fields.bytes(table);
            let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
            (Engine::Iptables, Some(String::from_utf8_lossy(&name[..end]).into_owned()).filter(|name| !name.is_empty()))
        }
        netfilter::NFTABLES => (Engine::Nftables { table: fields.u64(table), chain: fields.u64(table + 8) }, None),
        _ => return None,
    };
    Some(Netfilter {
        hook: fields.u8(free + offset_of!(raw::Free, nf_hook)),
        family: fields.u8(free + offset_of!(raw::Free, nf_family)),
        engine,
        table: name,
        chain: None,
    })
}

fn rewrite(fields: &Fields<'_>) -> Rewrite {
    let flags = fields.u8(offset_of!(raw::Head, flags));
    let at = offset_of!(raw::Sighting, data);
    Rewrite {
        time_ns: fields.u64(offset_of!(raw::Head, time_ns)),
        skb: fields.u64(offset_of!(raw::Head, skb)),
        netns: fields.u32(offset_of!(raw::Head, netns)),
        ifindex: fields.u32(offset_of!(raw::Head, ifindex)),
        side: if fields.u32(at + offset_of!(raw::Rewrite, manip)) == 0 { Side::Source } else { Side::Destination },
        packet: packet(fields, flags),
    }
}

fn translation(fields: &Fields<'_>) -> Translation {
    let flags = fields.u8(offset_of!(raw::Head, flags));
    Translation {
        time_ns: fields.u64(offset_of!(raw::Head, time_ns)),
        skb: fields.u64(offset_of!(raw::Head, skb)),
        netns: fields.u32(offset_of!(raw::Head, netns)),
        original: tuple(fields, offset_of!(raw::Translation, original)),
        reply: tuple(fields, offset_of!(raw::Translation, reply)),
        status: fields.u32(offset_of!(raw::Translation, status)),
        protocol: fields.u32(offset_of!(raw::Translation, original) + offset_of!(raw::Tuple, protocol)) as u8,
        direction: direction(flags | flag::CONNTRACK).unwrap_or(CtDirection::Original),
    }
}

fn tuple(fields: &Fields<'_>, at: usize) -> Tuple {
    Tuple {
        src: from_bytes(fields.bytes(at + offset_of!(raw::Tuple, src))),
        dst: from_bytes(fields.bytes(at + offset_of!(raw::Tuple, dst))),
        l4_src: fields.u16(at + offset_of!(raw::Tuple, l4_src)),
        l4_dst: fields.u16(at + offset_of!(raw::Tuple, l4_dst)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    /// The bytes of a record, written at the places that the kernel side's structures give.
    struct Bytes([u8; RECORD_SIZE]);

    impl Bytes {
        fn of(hook: u8, flags: u8) -> Self {
            let mut bytes = Self([0; RECORD_SIZE]);
            bytes.put(offset_of!(raw::Head, hook), [hook]).put(offset_of!(raw::Head, flags), [flags]);
            bytes
        }

        fn put<const N: usize>(&mut self, at: usize, value: [u8; N]) -> &mut Self {
            self.0[at..at + N].copy_from_slice(&value);
            self
        }

        fn address(&mut self, at: usize, text: &str) -> &mut Self {
            self.put(at, crate::event::to_bytes(text.parse().expect("an address")))
        }
    }

    /// An echo request from 10.0.0.1 to 10.0.0.2.
    fn echo(hook: u8, flags: u8) -> Bytes {
        let mut bytes = Bytes::of(hook, flags);
        bytes
            .put(offset_of!(raw::Head, time_ns), 123_456_u64.to_ne_bytes())
            .put(offset_of!(raw::Head, skb), 77_u64.to_ne_bytes())
            .put(offset_of!(raw::Head, cpu), 3_u16.to_ne_bytes())
            .put(offset_of!(raw::Head, netns), 4_026_531_840_u32.to_ne_bytes())
            .put(offset_of!(raw::Head, ifindex), 22_u32.to_ne_bytes())
            .put(offset_of!(raw::Head, protocol), [1])
            .put(offset_of!(raw::Head, ttl), [63])
            .put(offset_of!(raw::Head, header_len), 20_u16.to_ne_bytes())
            .put(offset_of!(raw::Sighting, mark), 0x4000_u32.to_ne_bytes())
            .put(offset_of!(raw::Sighting, ip_id), 0x1234_u16.to_ne_bytes())
            .put(offset_of!(raw::Sighting, ip_len), 84_u16.to_ne_bytes())
            .put(offset_of!(raw::Sighting, l4), [8, 0, 0xaa, 0xbb, 0x12, 0x34, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8])
            .address(offset_of!(raw::Sighting, src), "10.0.0.1")
            .address(offset_of!(raw::Sighting, dst), "10.0.0.2");
        bytes
    }

    fn sighting_of(bytes: &Bytes) -> Sighting {
        sighting_of_bytes(&bytes.0)
    }

    fn sighting_of_bytes(bytes: &[u8]) -> Sighting {
        match record(bytes) {
            Ok(Record::Sighting(sighting)) => sighting,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_echo_request_is_read_field_by_field() {
        let sighting = sighting_of(&echo(hook::QUEUE, flag::CONNTRACK | flag::TRACKED));
        let packet = Packet {
            src: "10.0.0.1".parse().expect("an address"),
            dst: "10.0.0.2".parse().expect("an address"),
            ttl: 63,
            ip_id: 0x1234,
            ip_len: 84,
            l4: L4::Icmp { kind: 8, code: 0, id: 0x1234, seq: 5, nonce: 0x0102_0304_0506_0708 },
        };
        let expected = Sighting {
            time_ns: 123_456,
            skb: 77,
            hook: Hook::Queue,
            cpu: 3,
            netns: 4_026_531_840,
            ifindex: 22,
            mark: 0x4000,
            tracked: true,
            conntrack: Some(CtDirection::Original),
            vlan: None,
            packet,
            outer: None,
            free: None,
        };
        assert_eq!(sighting, expected);
    }

    #[test]
    fn a_received_packet_says_its_vlan() {
        let vlan = |hook: u8, tag: u16| {
            let mut bytes = echo(hook, 0);
            let at = offset_of!(raw::Sighting, data) + offset_of!(raw::Outer, vlan);
            bytes.put(at, tag.to_ne_bytes());
            sighting_of(&bytes).vlan
        };
        assert_eq!(vlan(hook::RECEIVE, VLAN_TAGGED | 100), Some(100));
        // A tag that gives a priority alone.
        assert_eq!(vlan(hook::RECEIVE, VLAN_TAGGED), Some(0));
        assert_eq!(vlan(hook::RECEIVE, 0), None);
        // Elsewhere these bytes are another field's.
        assert_eq!(vlan(hook::CONSUME, VLAN_TAGGED | 100), None);
    }

    #[test]
    fn a_free_says_where_and_why() {
        let mut bytes = echo(hook::DROP, flag::FREED | flag::REASON);
        let at = offset_of!(raw::Sighting, data);
        bytes.put(at + offset_of!(raw::Free, location), 0xffff_ffff_8123_4567_u64.to_ne_bytes());
        bytes.put(at + offset_of!(raw::Free, reason), 3_u32.to_ne_bytes());
        let free = sighting_of(&bytes).free.expect("a free");
        assert_eq!((free.location, free.reason), (0xffff_ffff_8123_4567, Some(3)));
        // Before 5.17 the kernel gives no reason; 0 would be one.
        let older = sighting_of(&echo(hook::DROP, flag::FREED));
        assert_eq!(older.free.expect("a free").reason, None);
    }

    #[test]
    fn an_outer_header_is_read_where_there_is_one() {
        let mut bytes = echo(hook::XMIT, flag::ENCAPSULATED);
        let at = offset_of!(raw::Sighting, data);
        bytes
            .address(at + offset_of!(raw::Outer, src), "172.20.58.60")
            .address(at + offset_of!(raw::Outer, dst), "172.20.50.50")
            .put(at + offset_of!(raw::Outer, ttl), [62])
            .put(at + offset_of!(raw::Outer, encapsulation), [encapsulation::IPIP]);
        let outer = sighting_of(&bytes).outer.expect("an outer header");
        assert_eq!((outer.src.to_string(), outer.ttl), ("172.20.58.60".to_owned(), 62));
        assert_eq!(outer.encapsulation, Encapsulation::Ipip);
        bytes.put(at + offset_of!(raw::Outer, encapsulation), [9]);
        assert_eq!(record(&bytes.0), Err(Error::Encapsulation(9)));
    }

    #[test]
    fn a_free_of_a_wrapped_packet_says_both() {
        let mut bytes = echo(hook::DROP, flag::FREED | flag::ENCAPSULATED).0.to_vec();
        assert_eq!(sighting_of_bytes(&bytes).outer, None, "there is no room for it");
        bytes.extend([0; size_of::<raw::Outer>()]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(raw::Sighting, data) + offset_of!(raw::Free, location), &77_u64.to_ne_bytes());
        let at = offset_of!(raw::WrappedFree, outer);
        put(at + offset_of!(raw::Outer, dst), &crate::event::to_bytes("172.20.50.50".parse().expect("an address")));
        put(at + offset_of!(raw::Outer, encapsulation), &[encapsulation::VXLAN]);
        let Sighting { outer, free, .. } = sighting_of_bytes(&bytes);
        let outer = outer.expect("an outer header");
        assert_eq!((outer.dst.to_string(), outer.encapsulation), ("172.20.50.50".to_owned(), Encapsulation::Vxlan));
        assert_eq!(free.expect("a free").location, 77);
    }

    #[test]
    fn what_a_packet_is_too_short_for_is_not_read() {
        let mut bytes = echo(hook::QUEUE, 0);
        // ping -s 0: the nonce's bytes are not the packet's.
        bytes.put(offset_of!(raw::Sighting, ip_len), 28_u16.to_ne_bytes());
        assert!(matches!(sighting_of(&bytes).packet.l4, L4::Icmp { seq: 5, nonce: 0, .. }));
        bytes.put(offset_of!(raw::Sighting, ip_len), 24_u16.to_ne_bytes());
        assert_eq!(sighting_of(&bytes).packet.l4, L4::Other { protocol: 1 });
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert_eq!(record(&[0; 127]), Err(Error::Size(127)));
        assert_eq!(record(&Bytes::of(42, 0).0), Err(Error::Hook(42)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = record(&bytes);
        }

        #[test]
        fn every_record_of_the_right_size_and_a_known_hook_decodes(
            mut bytes in prop_oneof![Just(RECORD_SIZE), Just(RECORD_SIZE + 40)].prop_flat_map(|size| proptest::collection::vec(any::<u8>(), size)),
            known in prop_oneof![1_u8..=6, Just(hook::REWRITE)],
        ) {
            bytes[offset_of!(raw::Head, hook)] = known;
            let decoded = record(&bytes);
            let refused = matches!(decoded, Err(Error::Encapsulation(_)));
            prop_assert!(refused || decoded.is_ok(), "{decoded:?}");
        }

        #[test]
        fn addresses_survive(address in any::<IpAddr>()) {
            // An IPv4-mapped IPv6 address and its IPv4 address are the same to the kernel programs.
            prop_assert_eq!(from_bytes(crate::event::to_bytes(address)), address.to_canonical());
        }
    }
}
