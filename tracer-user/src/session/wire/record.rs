//! [`event::Record`] on the wire: written and read without anything in between, because there are millions of them. `reference.rs` has the
//! same messages as prost takes them, and the tests hold the two against each other.

use std::net::IpAddr;

use super::{
    field::{Fields, Malformed},
    protobuf::{Reader, Writer},
};
use crate::event::{
    CtDirection, Encapsulation, Engine, Free, Hook, L4, Netfilter, Outer, Packet, Record, Rewrite, Side, Sighting,
    Translation, Tuple,
};

#[cfg(test)]
#[path = "reference.rs"]
pub(super) mod reference;

/// Appends a record, as the content of its message.
pub(super) fn put(record: &Record, to: &mut Vec<u8>) {
    let mut to = Writer(to);
    match record {
        Record::Sighting(sighting) => to.message(1, |to| put_sighting(sighting, to)),
        Record::Translation(translation) => to.message(2, |to| put_translation(translation, to)),
        Record::Rewrite(rewrite) => to.message(3, |to| put_rewrite(rewrite, to)),
    }
}

/// Reads one from the content of its message.
///
/// # Errors
/// [`Malformed::Unknown`] of what only a newer peer knows; else what is wrong with it.
pub(super) fn get(bytes: &[u8]) -> Result<Record, Malformed> {
    let mut body = None;
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        if (1..=3).contains(&tag) {
            body = Some((tag, value.bytes()?));
        }
    }
    match body {
        Some((1, bytes)) => sighting(bytes).map(Record::Sighting),
        Some((2, bytes)) => translation(bytes).map(Record::Translation),
        Some((_, bytes)) => rewrite(bytes).map(Record::Rewrite),
        // Of a kind that this program does not know.
        None => Err(Fields("records").unknown("kind of record", 0)),
    }
}

// 0 is what an absent field reads as; no enumeration uses it.
fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Receive => 1,
        Hook::Queue => 2,
        Hook::Xmit => 3,
        Hook::Drop => 4,
        Hook::Consume => 5,
    }
}

fn hook(fields: Fields, value: u32) -> Result<Hook, Malformed> {
    match value {
        1 => Ok(Hook::Receive),
        2 => Ok(Hook::Queue),
        3 => Ok(Hook::Xmit),
        4 => Ok(Hook::Drop),
        5 => Ok(Hook::Consume),
        _ => Err(fields.unknown("hook", value)),
    }
}

fn direction_number(direction: CtDirection) -> u32 {
    match direction {
        CtDirection::Original => 1,
        CtDirection::Reply => 2,
    }
}

fn direction(fields: Fields, value: u32) -> Result<CtDirection, Malformed> {
    match value {
        1 => Ok(CtDirection::Original),
        2 => Ok(CtDirection::Reply),
        _ => Err(fields.unknown("conntrack direction", value)),
    }
}

/// As 4 or 16 bytes.
fn put_address(to: &mut Writer<'_>, tag: u8, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => to.bytes(tag, &v4.octets()),
        IpAddr::V6(v6) => to.bytes(tag, &v6.octets()),
    }
}

// Kernel addresses and nonces use all 64 bits: fixed64 takes 8 bytes for them where a varint takes 10.
fn put_sighting(sighting: &Sighting, to: &mut Writer<'_>) {
    let Sighting { time_ns, skb, hook, cpu, netns, ifindex, mark, tracked, conntrack, vlan, packet, outer, free } =
        sighting;
    to.number(1, *time_ns);
    to.fixed64(2, *skb);
    to.number(3, hook_number(*hook));
    to.number(4, *cpu);
    to.number(5, *netns);
    to.number(6, *ifindex);
    to.number(7, *mark);
    to.number(8, *tracked);
    if let Some(conntrack) = conntrack {
        to.set(9, direction_number(*conntrack));
    }
    to.message(10, |to| put_packet(packet, to));
    if let Some(outer) = outer {
        to.message(11, |to| put_outer(outer, to));
    }
    if let Some(free) = free {
        to.message(12, |to| put_free(free, to));
    }
    if let Some(vlan) = vlan {
        to.set(13, *vlan);
    }
}

fn sighting(bytes: &[u8]) -> Result<Sighting, Malformed> {
    let fields = Fields("sighting");
    let (mut time_ns, mut skb, mut hook_is, mut cpu, mut netns, mut ifindex, mut mark) = (0, 0, 0, 0, 0, 0, 0);
    let (mut tracked, mut conntrack, mut vlan) = (false, None, None);
    let (mut packet_is, mut outer_is, mut free_is) = (None, None, None);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => time_ns = value.number()?,
            2 => skb = value.fixed64()?,
            3 => hook_is = value.word()?,
            4 => cpu = value.word()?,
            5 => netns = value.word()?,
            6 => ifindex = value.word()?,
            7 => mark = value.word()?,
            8 => tracked = value.number()? != 0,
            9 => conntrack = Some(value.word()?),
            10 => packet_is = Some(value.bytes()?),
            11 => outer_is = Some(value.bytes()?),
            12 => free_is = Some(value.bytes()?),
            13 => vlan = Some(value.word()?),
            _ => {}
        }
    }
    Ok(Sighting {
        time_ns,
        skb,
        hook: hook(fields, hook_is)?,
        cpu: fields.narrow("cpu", cpu)?,
        netns,
        ifindex,
        mark,
        tracked,
        conntrack: conntrack.map(|value| direction(fields, value)).transpose()?,
        vlan: vlan.map(|value| fields.narrow("VLAN", value)).transpose()?,
        packet: packet(fields.required("packet", packet_is)?)?,
        outer: outer_is.map(outer).transpose()?,
        free: free_is.map(free).transpose()?,
    })
}

fn put_packet(packet: &Packet, to: &mut Writer<'_>) {
    let Packet { src, dst, ttl, ip_id, ip_len, l4 } = packet;
    put_address(to, 1, *src);
    put_address(to, 2, *dst);
    to.number(3, *ttl);
    to.number(4, *ip_id);
    to.number(5, *ip_len);
    match *l4 {
        L4::Icmp { kind, code, id, seq, nonce } => to.message(6, |to| {
            to.number(1, kind);
            to.number(2, code);
            to.number(3, id);
            to.number(4, seq);
            to.fixed64(5, nonce);
        }),
        L4::Tcp { src_port, dst_port, seq, ack, flags, payload } => to.message(7, |to| {
            to.number(1, src_port);
            to.number(2, dst_port);
            to.fixed32(3, seq);
            to.fixed32(4, ack);
            to.number(5, flags);
            to.number(6, payload);
        }),
        L4::Udp { src_port, dst_port, checksum, nonce } => to.message(8, |to| {
            to.number(1, src_port);
            to.number(2, dst_port);
            to.number(3, checksum);
            to.fixed64(4, nonce);
        }),
        L4::Other { protocol } => to.set(9, protocol),
    }
}

fn packet(bytes: &[u8]) -> Result<Packet, Malformed> {
    let fields = Fields("sighting.packet");
    let (mut src, mut dst): (&[u8], &[u8]) = (&[], &[]);
    let (mut ttl, mut ip_id, mut ip_len, mut l4) = (0, 0, 0, None);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => src = value.bytes()?,
            2 => dst = value.bytes()?,
            3 => ttl = value.word()?,
            4 => ip_id = value.word()?,
            5 => ip_len = value.word()?,
            6 => l4 = Some(icmp(value.bytes()?)?),
            7 => l4 = Some(tcp(value.bytes()?)?),
            8 => l4 = Some(udp(value.bytes()?)?),
            9 => {
                let protocol = Fields("sighting.packet.transport").narrow("protocol", value.word()?)?;
                l4 = Some(L4::Other { protocol });
            }
            _ => {}
        }
    }
    Ok(Packet {
        src: fields.address("source", src)?,
        dst: fields.address("destination", dst)?,
        ttl: fields.narrow("ttl", ttl)?,
        ip_id: fields.narrow("IP id", ip_id)?,
        ip_len: fields.narrow("length", ip_len)?,
        // A transport of a newer peer reads as absent.
        l4: l4.ok_or_else(|| fields.unknown("transport", 0))?,
    })
}

const TRANSPORT: Fields = Fields("sighting.packet.transport");

fn icmp(bytes: &[u8]) -> Result<L4, Malformed> {
    let (mut numbers, mut nonce) = ([0; 4], 0);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1..=4 => numbers[tag as usize - 1] = value.word()?,
            5 => nonce = value.fixed64()?,
            _ => {}
        }
    }
    let [kind, code, id, seq] = numbers;
    Ok(L4::Icmp {
        kind: TRANSPORT.narrow("ICMP type", kind)?,
        code: TRANSPORT.narrow("ICMP code", code)?,
        id: TRANSPORT.narrow("ICMP id", id)?,
        seq: TRANSPORT.narrow("ICMP sequence", seq)?,
        nonce,
    })
}

fn tcp(bytes: &[u8]) -> Result<L4, Malformed> {
    let mut numbers = [0; 6];
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 | 2 | 5 | 6 => numbers[tag as usize - 1] = value.word()?,
            3 | 4 => numbers[tag as usize - 1] = value.fixed32()?,
            _ => {}
        }
    }
    let [src_port, dst_port, seq, ack, flags, payload] = numbers;
    Ok(L4::Tcp {
        src_port: TRANSPORT.narrow("source port", src_port)?,
        dst_port: TRANSPORT.narrow("destination port", dst_port)?,
        seq,
        ack,
        flags: TRANSPORT.narrow("TCP flags", flags)?,
        payload: TRANSPORT.narrow("TCP payload", payload)?,
    })
}

fn udp(bytes: &[u8]) -> Result<L4, Malformed> {
    let (mut numbers, mut nonce) = ([0; 3], 0);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1..=3 => numbers[tag as usize - 1] = value.word()?,
            4 => nonce = value.fixed64()?,
            _ => {}
        }
    }
    let [src_port, dst_port, checksum] = numbers;
    Ok(L4::Udp {
        src_port: TRANSPORT.narrow("source port", src_port)?,
        dst_port: TRANSPORT.narrow("destination port", dst_port)?,
        checksum: TRANSPORT.narrow("UDP checksum", checksum)?,
        nonce,
    })
}

fn put_outer(outer: &Outer, to: &mut Writer<'_>) {
    let Outer { src, dst, ttl, ip_id, ip_len, encapsulation } = outer;
    put_address(to, 1, *src);
    put_address(to, 2, *dst);
    to.number(3, *ttl);
    to.number(4, *ip_id);
    to.number(5, *ip_len);
    let encapsulation: u32 = match encapsulation {
        Encapsulation::Ipip => 1,
        Encapsulation::Vxlan => 2,
        Encapsulation::Gre => 3,
        Encapsulation::Geneve => 4,
    };
    to.number(6, encapsulation);
}

fn outer(bytes: &[u8]) -> Result<Outer, Malformed> {
    let fields = Fields("sighting.outer");
    let (mut src, mut dst): (&[u8], &[u8]) = (&[], &[]);
    let mut numbers = [0; 4];
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => src = value.bytes()?,
            2 => dst = value.bytes()?,
            3..=6 => numbers[tag as usize - 3] = value.word()?,
            _ => {}
        }
    }
    let [ttl, ip_id, ip_len, encapsulation] = numbers;
    Ok(Outer {
        src: fields.address("source", src)?,
        dst: fields.address("destination", dst)?,
        ttl: fields.narrow("ttl", ttl)?,
        ip_id: fields.narrow("IP id", ip_id)?,
        ip_len: fields.narrow("length", ip_len)?,
        encapsulation: match encapsulation {
            1 => Encapsulation::Ipip,
            2 => Encapsulation::Vxlan,
            3 => Encapsulation::Gre,
            4 => Encapsulation::Geneve,
            other => return Err(fields.unknown("encapsulation", other)),
        },
    })
}

fn put_free(free: &Free, to: &mut Writer<'_>) {
    let Free { location, function, reason, reason_name, netfilter } = free;
    to.fixed64(1, *location);
    put_text(to, 2, function.as_deref());
    if let Some(reason) = reason {
        to.set(3, *reason);
    }
    put_text(to, 4, reason_name.as_deref());
    if let Some(netfilter) = netfilter {
        to.message(5, |to| put_netfilter(netfilter, to));
    }
}

fn put_text(to: &mut Writer<'_>, tag: u8, text: Option<&str>) {
    if let Some(text) = text {
        to.bytes(tag, text.as_bytes());
    }
}

fn free(bytes: &[u8]) -> Result<Free, Malformed> {
    let mut free = Free::default();
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => free.location = value.fixed64()?,
            2 => free.function = Some(value.text()?.into()),
            3 => free.reason = Some(value.word()?),
            4 => free.reason_name = Some(value.text()?.into()),
            5 => free.netfilter = Some(Box::new(netfilter(value.bytes()?)?)),
            _ => {}
        }
    }
    Ok(free)
}

fn put_netfilter(netfilter: &Netfilter, to: &mut Writer<'_>) {
    let Netfilter { hook, family, engine, table, chain } = netfilter;
    let (engine, table_handle, chain_handle) = match *engine {
        Engine::Unknown => (1_u32, 0, 0),
        Engine::Iptables => (2, 0, 0),
        Engine::Nftables { table, chain } => (3, table, chain),
    };
    to.number(1, *hook);
    to.number(2, *family);
    to.number(3, engine);
    to.number(4, table_handle);
    to.number(5, chain_handle);
    put_text(to, 6, table.as_deref());
    put_text(to, 7, chain.as_deref());
}

fn netfilter(bytes: &[u8]) -> Result<Netfilter, Malformed> {
    let fields = Fields("sighting.free.netfilter");
    let (mut hook, mut family, mut engine, mut table_handle, mut chain_handle) = (0, 0, 0, 0, 0);
    let (mut table, mut chain) = (None, None);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => hook = value.word()?,
            2 => family = value.word()?,
            3 => engine = value.word()?,
            4 => table_handle = value.number()?,
            5 => chain_handle = value.number()?,
            6 => table = Some(value.text()?),
            7 => chain = Some(value.text()?),
            _ => {}
        }
    }
    let engine = match engine {
        0 => return Err(fields.unknown("engine", 0)),
        2 => Engine::Iptables,
        3 => Engine::Nftables { table: table_handle, chain: chain_handle },
        // The hook stays true of what a newer peer may say.
        _ => Engine::Unknown,
    };
    Ok(Netfilter { hook: fields.narrow("hook", hook)?, family: fields.narrow("family", family)?, engine, table, chain })
}

fn put_rewrite(rewrite: &Rewrite, to: &mut Writer<'_>) {
    let Rewrite { time_ns, skb, netns, ifindex, side, packet } = rewrite;
    to.number(1, *time_ns);
    to.fixed64(2, *skb);
    to.number(3, *netns);
    to.number(4, *ifindex);
    let side: u32 = match side {
        Side::Source => 1,
        Side::Destination => 2,
    };
    to.number(5, side);
    to.message(6, |to| put_packet(packet, to));
}

fn rewrite(bytes: &[u8]) -> Result<Rewrite, Malformed> {
    let fields = Fields("rewrite");
    let (mut time_ns, mut skb, mut netns, mut ifindex, mut side, mut packet_is) = (0, 0, 0, 0, 0, None);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => time_ns = value.number()?,
            2 => skb = value.fixed64()?,
            3 => netns = value.word()?,
            4 => ifindex = value.word()?,
            5 => side = value.word()?,
            6 => packet_is = Some(value.bytes()?),
            _ => {}
        }
    }
    let side = match side {
        1 => Side::Source,
        2 => Side::Destination,
        other => return Err(fields.unknown("side", other)),
    };
    Ok(Rewrite { time_ns, skb, netns, ifindex, side, packet: packet(fields.required("packet", packet_is)?)? })
}

fn put_tuple(tuple: &Tuple, to: &mut Writer<'_>) {
    let Tuple { src, dst, l4_src, l4_dst } = *tuple;
    put_address(to, 1, src);
    put_address(to, 2, dst);
    to.number(3, l4_src);
    to.number(4, l4_dst);
}

fn tuple(bytes: &[u8]) -> Result<Tuple, Malformed> {
    let fields = Fields("translation.tuple");
    let (mut src, mut dst): (&[u8], &[u8]) = (&[], &[]);
    let (mut l4_src, mut l4_dst) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => src = value.bytes()?,
            2 => dst = value.bytes()?,
            3 => l4_src = value.word()?,
            4 => l4_dst = value.word()?,
            _ => {}
        }
    }
    Ok(Tuple {
        src: fields.address("source", src)?,
        dst: fields.address("destination", dst)?,
        l4_src: fields.narrow("source port", l4_src)?,
        l4_dst: fields.narrow("destination port", l4_dst)?,
    })
}

fn put_translation(translation: &Translation, to: &mut Writer<'_>) {
    let Translation { time_ns, skb, netns, original, reply, status, protocol, direction } = translation;
    to.number(1, *time_ns);
    to.fixed64(2, *skb);
    to.number(3, *netns);
    to.message(4, |to| put_tuple(original, to));
    to.message(5, |to| put_tuple(reply, to));
    to.number(6, *status);
    to.number(7, *protocol);
    to.number(8, direction_number(*direction));
}

fn translation(bytes: &[u8]) -> Result<Translation, Malformed> {
    let fields = Fields("translation");
    let (mut time_ns, mut skb, mut netns, mut status, mut protocol, mut direction_is) = (0, 0, 0, 0, 0, 0);
    let (mut original, mut reply) = (None, None);
    let mut reader = Reader(bytes);
    while let Some((tag, value)) = reader.field()? {
        match tag {
            1 => time_ns = value.number()?,
            2 => skb = value.fixed64()?,
            3 => netns = value.word()?,
            4 => original = Some(value.bytes()?),
            5 => reply = Some(value.bytes()?),
            6 => status = value.word()?,
            7 => protocol = value.word()?,
            8 => direction_is = value.word()?,
            _ => {}
        }
    }
    Ok(Translation {
        time_ns,
        skb,
        netns,
        original: tuple(fields.required("original tuple", original)?)?,
        reply: tuple(fields.required("reply tuple", reply)?)?,
        status,
        protocol: fields.narrow("protocol", protocol)?,
        direction: direction(fields, direction_is)?,
    })
}
