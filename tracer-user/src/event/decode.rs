//! The bytes of one record of the ring buffer.

use std::mem::offset_of;

use tracer_common::{self as raw, RECORD_SIZE, encapsulation, flag, hook};

use super::{
    CtDirection, Encapsulation, Free, Hook, L4, Outer, Packet, Record, Sighting, Translation, Tuple, from_bytes,
};

/// A record that is not one: kernel programs and userspace of different versions.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Wrong size.
    #[error(
        "a record of {0} bytes, expected {RECORD_SIZE}; kernel programs and agent do not belong together: rebuild both"
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

/// Reads integers of the machine's byte order out of a record of checked size.
struct Fields<'a>(&'a [u8; RECORD_SIZE]);

impl Fields<'_> {
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
    let fields = Fields(bytes.try_into().map_err(|_| Error::Size(bytes.len()))?);
    let hook = match fields.u8(offset_of!(raw::Head, hook)) {
        hook::RECEIVE => Hook::Receive,
        hook::QUEUE => Hook::Queue,
        hook::XMIT => Hook::Xmit,
        hook::DROP => Hook::Drop,
        hook::CONSUME => Hook::Consume,
        hook::TRANSLATION => return Ok(Record::Translation(translation(&fields))),
        other => return Err(Error::Hook(other)),
    };
    Ok(Record::Sighting(sighting(&fields, hook)?))
}

fn sighting(fields: &Fields<'_>, hook: Hook) -> Result<Sighting, Error> {
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
        packet: packet(fields, flags),
        outer: (flags & flag::ENCAPSULATED != 0).then(|| outer(fields)).transpose()?,
        free: (flags & flag::FREED != 0).then(|| free(fields, flags)),
    })
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
    let room = usize::from(fields.u16(offset_of!(raw::Sighting, ip_len)).saturating_sub(header_len));
    if flags & flag::FRAGMENT != 0 || room < 8 {
        return L4::Other { protocol };
    }
    let mut b: [u8; 16] = fields.bytes(offset_of!(raw::Sighting, l4));
    b[room.min(16)..].fill(0);
    let u16_at = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    let u32_at = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    match protocol {
        1 | 58 => L4::Icmp {
            kind: b[0],
            code: b[1],
            id: u16_at(4),
            seq: u16_at(6),
            nonce: if room < 16 { 0 } else { u64::from(u32_at(8)) << 32 | u64::from(u32_at(12)) },
        },
        6 => L4::Tcp { src_port: u16_at(0), dst_port: u16_at(2), seq: u32_at(4), ack: u32_at(8), flags: b[13] },
        17 => L4::Udp { src_port: u16_at(0), dst_port: u16_at(2), checksum: u16_at(6) },
        protocol => L4::Other { protocol },
    }
}

fn outer(fields: &Fields<'_>) -> Result<Outer, Error> {
    let at = offset_of!(raw::Sighting, data);
    Ok(Outer {
        src: from_bytes(fields.bytes(at + offset_of!(raw::Outer, src))),
        dst: from_bytes(fields.bytes(at + offset_of!(raw::Outer, dst))),
        ttl: fields.u8(at + offset_of!(raw::Outer, ttl)),
        ip_id: fields.u16(at + offset_of!(raw::Outer, ip_id)),
        ip_len: fields.u16(at + offset_of!(raw::Outer, ip_len)),
        encapsulation: match fields.u8(at + offset_of!(raw::Outer, encapsulation)) {
            encapsulation::IPIP => Encapsulation::Ipip,
            encapsulation::VXLAN => Encapsulation::Vxlan,
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
