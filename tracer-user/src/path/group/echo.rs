//! Echoes of ICMP and ICMPv6: by nonce, sequence number and identifier.

use std::{collections::BTreeMap, net::IpAddr};

use foldhash::{HashMap, HashMapExt};

use super::{super::touch, Group, Role, Sorted, transmissions};
use crate::event::{L4, Sighting};

/// Sightings of one node that are further apart belong to different packets, even with equal content: a `ping -s 0`
/// repeats itself when its sequence number wraps, which takes a flood ping several seconds. ns.
const SAME_PACKET_NS: u64 = 2_000_000_000;

/// A reply can come much later than its request. One with a nonce is that request's, unless it was sent again. ns.
const LATEST_REPLY_NS: u64 = 60_000_000_000;

/// The fields of an ICMP or ICMPv6 echo.
#[derive(Clone, Copy, Debug)]
pub(in crate::path) struct Echo {
    pub(in crate::path) role: Role,
    pub(in crate::path) id: u16,
    pub(in crate::path) seq: u16,
    pub(in crate::path) nonce: u64,
}

pub(in crate::path) fn echo(s: &Sighting) -> Option<Echo> {
    let L4::Icmp { kind, id, seq, nonce, .. } = s.packet.l4 else { return None };
    let role = match (s.packet.src, kind) {
        (IpAddr::V4(_), 8) | (IpAddr::V6(_), 128) => Role::Request,
        (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129) => Role::Reply,
        _ => return None,
    };
    Some(Echo { role, id, seq, nonce })
}

/// Identifiers that NAT put in the place of others: (translated address, translated id) -> id.
fn identifiers(sorted: &[Sorted<'_>]) -> HashMap<(IpAddr, u16), u16> {
    let mut ids = HashMap::new();
    for records in sorted {
        for t in &records.translations {
            if matches!(t.protocol, 1 | 58) && t.original.l4_src != t.reply.l4_dst {
                ids.insert((t.reply.dst, t.reply.l4_dst), t.original.l4_src);
            }
        }
        // The translation's own record may be lost: the same buffer with the same content tells as much.
        for (earlier, s) in records.successive() {
            let (Some(then), Some(now)) = (echo(earlier), echo(s)) else { continue };
            let same = (now.role, now.seq, now.nonce) == (then.role, then.seq, then.nonce)
                && (s.packet.ip_id, s.packet.ip_len) == (earlier.packet.ip_id, earlier.packet.ip_len);
            if same && now.id != then.id {
                match now.role {
                    Role::Request => ids.insert((s.packet.src, now.id), then.id),
                    Role::Reply => ids.insert((earlier.packet.dst, then.id), now.id),
                };
            }
        }
    }
    ids
}

/// The identifier that the sender of the request chose.
fn own_id(s: &Sighting, echo: Echo, ids: &HashMap<(IpAddr, u16), u16>) -> u16 {
    let address = if echo.role == Role::Request { s.packet.src } else { s.packet.dst };
    ids.get(&(address, echo.id)).copied().unwrap_or(echo.id)
}

type Key = (u16, u64, u16);
type Burst<'a> = Vec<&'a Sighting>;

/// The sighting is of the same exchange as those before it on its node.
fn is_same(burst: &[&Sighting], s: &Sighting, now: Echo) -> bool {
    let since = s.time_ns - burst[burst.len() - 1].time_ns;
    let first_reply =
        now.role == Role::Reply && burst.iter().all(|b| echo(b).is_some_and(|then| then.role == Role::Request));
    since <= SAME_PACKET_NS || (first_reply && now.nonce != 0 && since <= LATEST_REPLY_NS)
}

pub(super) fn passive<'a>(sorted: &[Sorted<'a>]) -> Vec<Group<'a>> {
    let ids = identifiers(sorted);
    let mut found: BTreeMap<Key, Vec<Vec<Burst<'a>>>> = BTreeMap::new();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            let Some(echo) = echo(s) else { continue };
            let key = (own_id(s, echo, &ids), echo.nonce, echo.seq);
            let bursts = &mut found.entry(key).or_insert_with(|| vec![Vec::new(); sorted.len()])[node];
            match bursts.last_mut() {
                Some(b) if touch::is_free(s) || is_same(b, s, echo) => b.push(s),
                _ => bursts.push(vec![s]),
            }
        }
    }
    let mut groups = Vec::new();
    for ((_, _, seq), nodes) in found {
        for (nodes, doubt) in transmissions::align(nodes) {
            let mut group = Group::new(u32::from(seq), None, nodes.len());
            group.doubts.extend(doubt.map(str::to_owned));
            for (node, sightings) in nodes.into_iter().enumerate() {
                for s in sightings {
                    let Some(Echo { role, .. }) = echo(s) else { continue };
                    group.add(node, role, s);
                }
            }
            groups.push(group);
        }
    }
    groups
}
