//! [`event::Record`] as prost writes it by docs/PROTOCOL.md's messages: what `record.rs` must write too.

use crate::{
    event::{self, CtDirection, Encapsulation, Engine, Hook, L4, Side},
    session::wire::field::bytes,
};

/// One record. A kind that this program does not know leaves `body` empty.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::session::wire) struct Record {
    #[prost(oneof = "RecordBody", tags = "1, 2, 3")]
    body: Option<RecordBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RecordBody {
    #[prost(message, tag = "1")]
    Sighting(Box<Sighting>),
    #[prost(message, tag = "2")]
    Translation(Translation),
    #[prost(message, tag = "3")]
    Rewrite(Box<Rewrite>),
}

// Kernel addresses and nonces use all 64 bits: fixed64 takes 8 bytes for them where a varint takes 10.
#[derive(Clone, PartialEq, prost::Message)]
struct Sighting {
    #[prost(uint64, tag = "1")]
    time_ns: u64,
    #[prost(fixed64, tag = "2")]
    skb: u64,
    #[prost(uint32, tag = "3")]
    hook: u32,
    #[prost(uint32, tag = "4")]
    cpu: u32,
    #[prost(uint32, tag = "5")]
    netns: u32,
    #[prost(uint32, tag = "6")]
    ifindex: u32,
    #[prost(uint32, tag = "7")]
    mark: u32,
    #[prost(bool, tag = "8")]
    tracked: bool,
    #[prost(uint32, optional, tag = "9")]
    conntrack: Option<u32>,
    #[prost(message, optional, tag = "10")]
    packet: Option<Packet>,
    #[prost(message, optional, tag = "11")]
    outer: Option<Outer>,
    #[prost(message, optional, tag = "12")]
    free: Option<Free>,
    #[prost(uint32, optional, tag = "13")]
    vlan: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Packet {
    #[prost(bytes = "vec", tag = "1")]
    src: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    dst: Vec<u8>,
    #[prost(uint32, tag = "3")]
    ttl: u32,
    #[prost(uint32, tag = "4")]
    ip_id: u32,
    #[prost(uint32, tag = "5")]
    ip_len: u32,
    #[prost(oneof = "Transport", tags = "6, 7, 8, 9")]
    l4: Option<Transport>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Transport {
    #[prost(message, tag = "6")]
    Icmp(Icmp),
    #[prost(message, tag = "7")]
    Tcp(Tcp),
    #[prost(message, tag = "8")]
    Udp(Udp),
    #[prost(uint32, tag = "9")]
    Other(u32),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Icmp {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    code: u32,
    #[prost(uint32, tag = "3")]
    id: u32,
    #[prost(uint32, tag = "4")]
    seq: u32,
    #[prost(fixed64, tag = "5")]
    nonce: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Tcp {
    #[prost(uint32, tag = "1")]
    src_port: u32,
    #[prost(uint32, tag = "2")]
    dst_port: u32,
    #[prost(fixed32, tag = "3")]
    seq: u32,
    #[prost(fixed32, tag = "4")]
    ack: u32,
    #[prost(uint32, tag = "5")]
    flags: u32,
    #[prost(uint32, tag = "6")]
    payload: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Udp {
    #[prost(uint32, tag = "1")]
    src_port: u32,
    #[prost(uint32, tag = "2")]
    dst_port: u32,
    #[prost(uint32, tag = "3")]
    checksum: u32,
    #[prost(fixed64, tag = "4")]
    nonce: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Outer {
    #[prost(bytes = "vec", tag = "1")]
    src: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    dst: Vec<u8>,
    #[prost(uint32, tag = "3")]
    ttl: u32,
    #[prost(uint32, tag = "4")]
    ip_id: u32,
    #[prost(uint32, tag = "5")]
    ip_len: u32,
    #[prost(uint32, tag = "6")]
    encapsulation: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Free {
    #[prost(fixed64, tag = "1")]
    location: u64,
    #[prost(string, optional, tag = "2")]
    function: Option<String>,
    #[prost(uint32, optional, tag = "3")]
    reason: Option<u32>,
    #[prost(string, optional, tag = "4")]
    reason_name: Option<String>,
    #[prost(message, optional, tag = "5")]
    netfilter: Option<Netfilter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Netfilter {
    #[prost(uint32, tag = "1")]
    hook: u32,
    #[prost(uint32, tag = "2")]
    family: u32,
    #[prost(uint32, tag = "3")]
    engine: u32,
    #[prost(uint64, tag = "4")]
    table_handle: u64,
    #[prost(uint64, tag = "5")]
    chain_handle: u64,
    #[prost(string, optional, tag = "6")]
    table: Option<String>,
    #[prost(string, optional, tag = "7")]
    chain: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Rewrite {
    #[prost(uint64, tag = "1")]
    time_ns: u64,
    #[prost(fixed64, tag = "2")]
    skb: u64,
    #[prost(uint32, tag = "3")]
    netns: u32,
    #[prost(uint32, tag = "4")]
    ifindex: u32,
    #[prost(uint32, tag = "5")]
    side: u32,
    #[prost(message, optional, tag = "6")]
    packet: Option<Packet>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tuple {
    #[prost(bytes = "vec", tag = "1")]
    src: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    dst: Vec<u8>,
    #[prost(uint32, tag = "3")]
    l4_src: u32,
    #[prost(uint32, tag = "4")]
    l4_dst: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Translation {
    #[prost(uint64, tag = "1")]
    time_ns: u64,
    #[prost(fixed64, tag = "2")]
    skb: u64,
    #[prost(uint32, tag = "3")]
    netns: u32,
    #[prost(message, optional, tag = "4")]
    original: Option<Tuple>,
    #[prost(message, optional, tag = "5")]
    reply: Option<Tuple>,
    #[prost(uint32, tag = "6")]
    status: u32,
    #[prost(uint32, tag = "7")]
    protocol: u32,
    #[prost(uint32, tag = "8")]
    direction: u32,
}

impl From<&event::Record> for Record {
    fn from(record: &event::Record) -> Self {
        let body = match record {
            event::Record::Sighting(sighting) => RecordBody::Sighting(Box::new(sighting.into())),
            event::Record::Translation(translation) => RecordBody::Translation(translation.into()),
            event::Record::Rewrite(rewrite) => RecordBody::Rewrite(Box::new(rewrite.into())),
        };
        Self { body: Some(body) }
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

fn direction_number(direction: CtDirection) -> u32 {
    match direction {
        CtDirection::Original => 1,
        CtDirection::Reply => 2,
    }
}

impl From<&event::Sighting> for Sighting {
    fn from(sighting: &event::Sighting) -> Self {
        let event::Sighting {
            time_ns,
            skb,
            hook,
            cpu,
            netns,
            ifindex,
            mark,
            tracked,
            conntrack,
            vlan,
            packet,
            outer,
            free,
        } = sighting;
        Self {
            time_ns: *time_ns,
            skb: *skb,
            hook: hook_number(*hook),
            cpu: (*cpu).into(),
            netns: *netns,
            ifindex: *ifindex,
            mark: *mark,
            tracked: *tracked,
            conntrack: conntrack.map(direction_number),
            packet: Some(packet.into()),
            outer: outer.as_ref().map(Into::into),
            free: free.as_ref().map(Into::into),
            vlan: vlan.map(Into::into),
        }
    }
}

impl From<&event::Packet> for Packet {
    fn from(packet: &event::Packet) -> Self {
        let event::Packet { src, dst, ttl, ip_id, ip_len, l4 } = packet;
        Self {
            src: bytes(*src),
            dst: bytes(*dst),
            ttl: (*ttl).into(),
            ip_id: (*ip_id).into(),
            ip_len: (*ip_len).into(),
            l4: Some((*l4).into()),
        }
    }
}

impl From<L4> for Transport {
    fn from(l4: L4) -> Self {
        match l4 {
            L4::Icmp { kind, code, id, seq, nonce } => {
                Self::Icmp(Icmp { kind: kind.into(), code: code.into(), id: id.into(), seq: seq.into(), nonce })
            }
            L4::Tcp { src_port, dst_port, seq, ack, flags, payload } => Self::Tcp(Tcp {
                src_port: src_port.into(),
                dst_port: dst_port.into(),
                seq,
                ack,
                flags: flags.into(),
                payload: payload.into(),
            }),
            L4::Udp { src_port, dst_port, checksum, nonce } => Self::Udp(Udp {
                src_port: src_port.into(),
                dst_port: dst_port.into(),
                checksum: checksum.into(),
                nonce,
            }),
            L4::Other { protocol } => Self::Other(protocol.into()),
        }
    }
}

impl From<&event::Outer> for Outer {
    fn from(outer: &event::Outer) -> Self {
        let event::Outer { src, dst, ttl, ip_id, ip_len, encapsulation } = outer;
        Self {
            src: bytes(*src),
            dst: bytes(*dst),
            ttl: (*ttl).into(),
            ip_id: (*ip_id).into(),
            ip_len: (*ip_len).into(),
            encapsulation: match encapsulation {
                Encapsulation::Ipip => 1,
                Encapsulation::Vxlan => 2,
                Encapsulation::Gre => 3,
                Encapsulation::Geneve => 4,
            },
        }
    }
}

impl From<&event::Free> for Free {
    fn from(free: &event::Free) -> Self {
        let event::Free { location, function, reason, reason_name, netfilter } = free.clone();
        let text = |text: Option<std::sync::Arc<str>>| text.map(|text| text.to_string());
        let netfilter = netfilter.map(|netfilter| (*netfilter).into());
        Self { location, function: text(function), reason, reason_name: text(reason_name), netfilter }
    }
}

impl From<event::Netfilter> for Netfilter {
    fn from(netfilter: event::Netfilter) -> Self {
        let event::Netfilter { hook, family, engine, table, chain } = netfilter;
        let (engine, table_handle, chain_handle) = match engine {
            Engine::Unknown => (1, 0, 0),
            Engine::Iptables => (2, 0, 0),
            Engine::Nftables { table, chain } => (3, table, chain),
        };
        Self { hook: hook.into(), family: family.into(), engine, table_handle, chain_handle, table, chain }
    }
}

impl From<&event::Rewrite> for Rewrite {
    fn from(rewrite: &event::Rewrite) -> Self {
        let event::Rewrite { time_ns, skb, netns, ifindex, side, packet } = rewrite;
        let side = match side {
            Side::Source => 1,
            Side::Destination => 2,
        };
        Self { time_ns: *time_ns, skb: *skb, netns: *netns, ifindex: *ifindex, side, packet: Some(packet.into()) }
    }
}

impl From<&event::Tuple> for Tuple {
    fn from(tuple: &event::Tuple) -> Self {
        let event::Tuple { src, dst, l4_src, l4_dst } = *tuple;
        Self { src: bytes(src), dst: bytes(dst), l4_src: l4_src.into(), l4_dst: l4_dst.into() }
    }
}

impl From<&event::Translation> for Translation {
    fn from(translation: &event::Translation) -> Self {
        let event::Translation { time_ns, skb, netns, original, reply, status, protocol, direction } = translation;
        Self {
            time_ns: *time_ns,
            skb: *skb,
            netns: *netns,
            original: Some(original.into()),
            reply: Some(reply.into()),
            status: *status,
            protocol: (*protocol).into(),
            direction: direction_number(*direction),
        }
    }
}
