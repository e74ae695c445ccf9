//! The kernel's own trace of rules (`nft monitor trace`), for the packets of certain flows.
//!
//! A table with the owner flag marks them. It belongs to the socket it was made by and is gone with it, however the process
//! ends (`net/netfilter/nf_tables_api.c`, nft_rcv_nl_event; Linux 5.12).

use std::{collections::HashSet, net::IpAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    attributes::{Raw, attribute, be64, number, put, put_nested, put_text, string},
    hits::{Ended, Place, Traced},
    nft::{SUBSYSTEM, family_name},
};
use crate::{
    node::live::{
        error::Failure,
        netlink::{Netlink, Watch},
    },
    session::Flow,
};

const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const TRACE: u16 = SUBSYSTEM | 17;
/// `NFNLGRP_NFTRACE`.
const GROUP: u32 = 9;
/// A packet that passes fifty rules makes fifty messages of about a kilobyte, bytes.
const ROOM: usize = 4 << 20;
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// Before the raw tables (-300), so that nothing is missed; and just after conntrack (-200), which knows the replies of
/// translated flows by what was sent.
const BEFORE_RAW: i32 = -301;
const AFTER_CONNTRACK: i32 = -199;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const IP: u8 = 2;
const IP6: u8 = 10;

/// A running trace in one namespace; ends when dropped.
pub(in crate::node::live) struct Trace {
    /// Its end takes the table away.
    _owner: Netlink,
    heard: Watch,
    name: String,
    /// The packets that a rule of our table marked, by the kernel's name for them.
    ours: HashSet<u32>,
    met: Traced,
    lost: bool,
}

impl Trace {
    /// Marks the packets of `flows` in the calling thread's namespace. With `translated`, replies of translated flows too; only
    /// for where conntrack runs already, because asking for its state starts it.
    ///
    /// # Errors
    /// `EINVAL` or `EOPNOTSUPP` where the kernel has no tables with owners.
    pub(in crate::node::live) fn start(flows: &[Flow], translated: bool) -> Result<Self, Failure> {
        let heard = Watch::open(NETLINK_NETFILTER, &[GROUP])?;
        heard.widen(ROOM);
        let mut owner = Netlink::open(NETLINK_NETFILTER)?;
        let name = format!("podpath-{}", std::process::id());
        let mut batch = Vec::new();
        for family in [IP, IP6] {
            let of: Vec<&Flow> = flows.iter().filter(|flow| flow.a.is_ipv4() == (family == IP)).collect();
            if !of.is_empty() {
                table(&mut batch, family, &name, &of, translated);
            }
        }
        owner.batch(SUBSYSTEM >> 8, &batch)?;
        Ok(Self { _owner: owner, heard, name, ours: HashSet::new(), met: Traced::new(), lost: false })
    }

    /// Takes in what was heard since the last call. Never blocks.
    pub(in crate::node::live) fn collect(&mut self) {
        let Self { _owner: _, heard, name, ours, met, lost } = self;
        *lost |= heard.messages(|message: Raw| take(&message, name, ours, met));
    }

    /// What the marked packets met so far, and whether something was not heard.
    pub(in crate::node::live) fn met(&self) -> (&Traced, bool) {
        (&self.met, self.lost)
    }
}

/// Takes in one message. Others may have marked packets too, which all listeners hear of: ours are those that a rule of our
/// table, `own`, has let through; each rule of it marks.
fn take(message: &Raw, own: &str, ours: &mut HashSet<u32>, met: &mut Traced) {
    let Some(Event { packet, place, handle, ended }) = event(message) else { return };
    if place.1 == own {
        if handle != 0 {
            ours.insert(packet);
        }
    } else if ours.contains(&packet) {
        *met.entry((place, handle, ended)).or_default() += 1;
    }
}

/// A packet met a rule, or with handle 0 a policy.
struct Event {
    /// Tells packets apart (`nft_trace_fill_id`, `net/netfilter/nf_tables_trace.c`).
    packet: u32,
    place: Place,
    handle: u64,
    ended: Ended,
}

fn event(message: &Raw) -> Option<Event> {
    const POLICY: u32 = 1;
    const RULE: u32 = 3;
    if message.kind != TRACE {
        return None;
    }
    let body = &message.body;
    let place = (family_name(message.family)?, string(body, 1)?, string(body, 2)?);
    let (handle, verdict) = match number(body, 4)? {
        POLICY => (0, number(body, 16)?),
        // NFTA_TRACE_VERDICT, and in it NFTA_VERDICT_CODE.
        RULE => (attribute(body, 3).and_then(be64)?, number(attribute(body, 5)?, 1)?),
        _ => return None,
    };
    let ended = match verdict & 0xff {
        0 => Ended::Dropped,
        1 => Ended::Accepted,
        _ => Ended::Not,
    };
    Some(Event { packet: number(body, 6)?, place, handle, ended })
}

fn table(batch: &mut Vec<Raw>, family: u8, name: &str, flows: &[&Flow], translated: bool) {
    let mut table = Raw::new(NEW_TABLE, family);
    put_text(&mut table.body, 1, name);
    put(&mut table.body, 2, &OWNER.to_be_bytes());
    batch.push(table);
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        batch.push(self::chain(family, name, chain, hook, BEFORE_RAW));
        for flow in flows {
            for back in [false, true] {
                batch.push(rule(family, name, chain, |list| packet(list, family, flow, back)));
            }
        }
    }
    if translated {
        for (chain, hook) in [("prerouting-translated", PREROUTING), ("output-translated", OUTPUT)] {
            batch.push(self::chain(family, name, chain, hook, AFTER_CONNTRACK));
            for flow in flows {
                batch.push(rule(family, name, chain, |list| original(list, flow)));
            }
        }
    }
}

fn chain(family: u8, table: &str, name: &str, hook: u32, priority: i32) -> Raw {
    let mut chain = Raw::new(NEW_CHAIN, family);
    put_text(&mut chain.body, 1, table);
    put_text(&mut chain.body, 3, name);
    put_nested(&mut chain.body, 4, |inside| {
        put(inside, 1, &hook.to_be_bytes());
        put(inside, 2, &priority.to_be_bytes());
    });
    put_text(&mut chain.body, 7, "filter");
    chain
}

/// A rule that marks what `matches` lets through.
fn rule(family: u8, table: &str, chain: &str, matches: impl FnOnce(&mut Vec<u8>)) -> Raw {
    const NFTRACE: u32 = 12;
    let mut rule = Raw::new(NEW_RULE, family);
    put_text(&mut rule.body, 1, table);
    put_text(&mut rule.body, 2, chain);
    put_nested(&mut rule.body, 4, |list| {
        matches(list);
        expression(list, "immediate", |data| {
            put(data, 1, &REGISTER);
            put_nested(data, 2, |value| put(value, 1, &[1]));
        });
        expression(list, "meta", |data| {
            put(data, 2, &NFTRACE.to_be_bytes());
            put(data, 3, &REGISTER);
        });
    });
    rule
}

/// `NFT_REG_1`.
const REGISTER: [u8; 4] = 1u32.to_be_bytes();

fn expression(list: &mut Vec<u8>, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    put_nested(list, 1, |element| {
        put_text(element, 1, name);
        put_nested(element, 2, fill);
    });
}

fn equals(list: &mut Vec<u8>, value: &[u8]) {
    expression(list, "cmp", |data| {
        put(data, 1, &REGISTER);
        put(data, 2, &0u32.to_be_bytes());
        put_nested(data, 3, |inside| put(inside, 1, value));
    });
}

fn protocol(list: &mut Vec<u8>, number: u8) {
    const L4PROTO: u32 = 16;
    expression(list, "meta", |data| {
        put(data, 1, &REGISTER);
        put(data, 2, &L4PROTO.to_be_bytes());
    });
    equals(list, &[number]);
}

fn header(list: &mut Vec<u8>, base: u32, offset: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or_default();
    expression(list, "payload", |data| {
        put(data, 1, &REGISTER);
        put(data, 2, &base.to_be_bytes());
        put(data, 3, &offset.to_be_bytes());
        put(data, 4, &length.to_be_bytes());
    });
    equals(list, value);
}

/// A packet of the flow as its ends write it; `back`: from `b` to `a`.
fn packet(list: &mut Vec<u8>, family: u8, flow: &Flow, back: bool) {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let Flow { a, b, protocol: number, a_port, b_port, one_of: _ } = flow;
    protocol(list, *number);
    let (source, destination) = if family == IP { (12, 16) } else { (8, 24) };
    let (of_a, of_b) = if back { (destination, source) } else { (source, destination) };
    header(list, NETWORK, of_a, &octets(*a));
    if let Some(b) = b {
        header(list, NETWORK, of_b, &octets(*b));
    }
    if matches!(number, 1 | 58) {
        // The identifier of an echo: the same both ways.
        if let Some(id) = a_port {
            header(list, TRANSPORT, 4, &id.to_be_bytes());
        }
        return;
    }
    let (of_a, of_b) = if back { (2, 0) } else { (0, 2) };
    for (at, port) in [(of_a, a_port), (of_b, b_port)] {
        if let Some(port) = port {
            header(list, TRANSPORT, at, &port.to_be_bytes());
        }
    }
}

/// A packet of a connection that began as the flow.
fn original(list: &mut Vec<u8>, flow: &Flow) {
    /// NFT_CT_SRC and NFT_CT_DST: of the table's own family.
    const SOURCE: u32 = 8;
    const DESTINATION: u32 = 9;
    /// NFT_CT_PROTO_SRC and NFT_CT_PROTO_DST.
    const SOURCE_PORT: u32 = 11;
    const DESTINATION_PORT: u32 = 12;
    let Flow { a, b, protocol: number, a_port, b_port, one_of: _ } = flow;
    protocol(list, *number);
    let address = |key, address: &IpAddr| (key, octets(*address));
    // Of an echo the identifier is both ends'; conntrack keeps it as the source's port (`icmp_pkt_to_tuple`).
    let port = |key, port: &u16| (key, port.to_be_bytes().to_vec());
    let b_port = b_port.as_ref().filter(|_| !matches!(number, 1 | 58));
    let asked = [
        Some(address(SOURCE, a)),
        b.as_ref().map(|b| address(DESTINATION, b)),
        a_port.as_ref().map(|own| port(SOURCE_PORT, own)),
        b_port.map(|own| port(DESTINATION_PORT, own)),
    ];
    for (key, value) in asked.into_iter().flatten() {
        expression(list, "ct", |data| {
            put(data, 1, &REGISTER);
            put(data, 2, &key.to_be_bytes());
            put(data, 3, &[0]);
        });
        equals(list, &value);
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(table: &str, packet: u32, handle: u64, verdict: i32) -> Raw {
        let mut message = Raw::new(TRACE, IP);
        put_text(&mut message.body, 1, table);
        put_text(&mut message.body, 2, "chain");
        put(&mut message.body, 3, &handle.to_be_bytes());
        put(&mut message.body, 4, &3u32.to_be_bytes());
        put_nested(&mut message.body, 5, |inside| put(inside, 1, &verdict.to_be_bytes()));
        put(&mut message.body, 6, &packet.to_be_bytes());
        message
    }

    /// A rule that only counts, and one of a verdict map that let the packet pass, have ended nothing.
    #[test]
    fn verdicts_count_and_only_of_packets_that_our_table_marked() {
        let (mut ours, mut met) = (HashSet::new(), Traced::new());
        let continues = -1;
        for (table, packet, handle, verdict) in [
            ("filter", 7, 4, 0), // Marked by another.
            ("podpath-1", 9, 1, continues),
            ("filter", 9, 3, continues),
            ("filter", 9, 4, 0),
            ("filter", 8, 4, 0),
        ] {
            take(&message(table, packet, handle, verdict), "podpath-1", &mut ours, &mut met);
        }
        let place = |handle, ended| ((("ip", "filter".to_owned(), "chain".to_owned()), handle, ended), 1);
        assert_eq!(met, Traced::from([place(3, Ended::Not), place(4, Ended::Dropped)]));
    }

    proptest::proptest! {
        #[test]
        fn no_message_makes_it_panic(family: u8, body: Vec<u8>) {
            event(&Raw { kind: TRACE, family, resource: 0, body });
        }
    }
}
