//! The kernel's own trace of rules (`nft monitor trace`), for the packets of certain flows.
//!
//! A table with the owner flag marks them. It belongs to the socket it was made by and is gone with it, however the process
//! ends (`net/netfilter/nf_tables_api.c`, nft_rcv_nl_event; Linux 5.12).

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    attributes::{Raw, attribute, be64, number, put, put_nested, put_text, string},
    hits::{Place, Traced},
    nft::{SUBSYSTEM, family_name},
};
use crate::{
    node::{
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
pub(in crate::node) struct Trace {
    /// Its end takes the table away.
    _owner: Netlink,
    heard: Watch,
    name: String,
    met: Traced,
    lost: bool,
}

impl Trace {
    /// Marks the packets of `flows` in the calling thread's namespace. With `translated`, replies of translated flows too; only
    /// for where conntrack runs already, because asking for its state starts it.
    ///
    /// # Errors
    /// `EINVAL` or `EOPNOTSUPP` where the kernel has no tables with owners.
    pub(in crate::node) fn start(flows: &[Flow], translated: bool) -> Result<Self, Failure> {
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
        Ok(Self { _owner: owner, heard, name, met: Traced::new(), lost: false })
    }

    /// Takes in what was heard since the last call. Never blocks.
    pub(in crate::node) fn collect(&mut self) {
        let Self { _owner: _, heard, name, met, lost } = self;
        *lost |= heard.messages(|message: Raw| {
            if let Some(key) = event(&message).filter(|((_, table, _), _)| table != name) {
                *met.entry(key).or_default() += 1;
            }
        });
    }

    /// What the marked packets met so far, and whether something was not heard.
    pub(in crate::node) fn met(&self) -> (&Traced, bool) {
        (&self.met, self.lost)
    }
}

/// The rule, or with handle 0 the policy, that a message says a packet met.
fn event(message: &Raw) -> Option<(Place, u64)> {
    const POLICY: u32 = 1;
    const RULE: u32 = 3;
    if message.kind != TRACE {
        return None;
    }
    let body = &message.body;
    let place = (family_name(message.family)?, string(body, 1)?, string(body, 2)?);
    match number(body, 4)? {
        POLICY => Some((place, 0)),
        RULE => Some((place, attribute(body, 3).and_then(be64)?)),
        _ => None,
    }
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
    let Flow { a, b, protocol: number, a_port, b_port } = flow;
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
    let Flow { a, b, protocol: number, a_port: _, b_port: _ } = flow;
    protocol(list, *number);
    for (key, address) in [(SOURCE, Some(a)), (DESTINATION, b.as_ref())] {
        let Some(address) = address else { continue };
        expression(list, "ct", |data| {
            put(data, 1, &REGISTER);
            put(data, 2, &key.to_be_bytes());
            put(data, 3, &[0]);
        });
        equals(list, &octets(*address));
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

    proptest::proptest! {
        #[test]
        fn no_message_makes_it_panic(family: u8, body: Vec<u8>) {
            event(&Raw { kind: TRACE, family, resource: 0, body });
        }
    }
}
