//! Which records belong to which exchange: by content, never by pointer or clock alone.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{Evidence, Probe, touch};
use crate::event::{L4, Record, Sighting, Translation};

/// Sightings of one node that are further apart belong to different packets, even with equal content: a `ping -s 0`
/// repeats itself when its sequence number wraps, which takes a flood ping several seconds. ns.
const SAME_PACKET_NS: u64 = 2_000_000_000;

/// One node's records: in order, without duplicates.
#[derive(Default)]
pub(super) struct Sorted<'a> {
    pub(super) sightings: Vec<&'a Sighting>,
    pub(super) translations: Vec<&'a Translation>,
    /// By address of the sighting that follows it: the translation.
    of: HashMap<*const Sighting, &'a Translation>,
}

impl<'a> Sorted<'a> {
    pub(super) fn new(records: &'a [Record]) -> Self {
        let mut sorted = Self::default();
        for record in records {
            match record {
                Record::Sighting(s) => sorted.sightings.push(s),
                Record::Translation(t) => sorted.translations.push(t),
                Record::Rewrite(_) => {}
            }
        }
        sorted.sightings.sort_by_key(|s| touch::order(s));
        sorted.sightings.dedup();
        sorted.translations.sort_by_key(|t| (t.time_ns, t.skb));
        sorted.translations.dedup();
        sorted.attach();
        sorted
    }

    /// A translation is about the next sighting of its buffer. If that one is lost, the next may be another packet's in
    /// reused memory; then addresses or direction disagree.
    fn attach(&mut self) {
        let mut by_skb: HashMap<u64, Vec<&'a Sighting>> = HashMap::new();
        for &s in &self.sightings {
            by_skb.entry(s.skb).or_default().push(s);
        }
        for &t in &self.translations {
            let Some(same) = by_skb.get(&t.skb) else { continue };
            let Some(&next) = same.get(same.partition_point(|s| s.time_ns < t.time_ns)) else { continue };
            if next.conntrack.is_none_or(|d| d == t.direction) && consistent(t, next) {
                self.of.insert(std::ptr::from_ref(next), t);
            }
        }
    }

    /// The translations read from a packet, which has these sightings.
    pub(super) fn translations_of(&self, sightings: &[&'a Sighting]) -> Vec<&'a Translation> {
        sightings.iter().filter_map(|s| self.of.get(&std::ptr::from_ref(*s)).copied()).collect()
    }
}

fn consistent(t: &Translation, s: &Sighting) -> bool {
    let addresses = [t.original.src, t.original.dst, t.reply.src, t.reply.dst];
    addresses.contains(&s.packet.src) && addresses.contains(&s.packet.dst)
}

/// What an echo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Request,
    Reply,
}

/// The fields of an ICMP or ICMPv6 echo.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echo {
    pub(super) role: Role,
    pub(super) id: u16,
    pub(super) seq: u16,
    pub(super) nonce: u64,
}

pub(super) fn echo(s: &Sighting) -> Option<Echo> {
    let L4::Icmp { kind, id, seq, nonce, .. } = s.packet.l4 else { return None };
    let role = match (s.packet.src, kind) {
        (IpAddr::V4(_), 8) | (IpAddr::V6(_), 128) => Role::Request,
        (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129) => Role::Reply,
        _ => return None,
    };
    Some(Echo { role, id, seq, nonce })
}

/// The sightings of one exchange.
pub(super) struct Group<'a> {
    pub(super) seq: u16,
    pub(super) probe: Option<&'a Probe>,
    /// By node: in order.
    pub(super) request: Vec<Vec<&'a Sighting>>,
    /// By node: in order.
    pub(super) reply: Vec<Vec<&'a Sighting>>,
}

impl<'a> Group<'a> {
    fn new(seq: u16, probe: Option<&'a Probe>, nodes: usize) -> Self {
        Self { seq, probe, request: vec![Vec::new(); nodes], reply: vec![Vec::new(); nodes] }
    }

    fn add(&mut self, node: usize, role: Role, s: &'a Sighting) {
        match role {
            Role::Request => self.request[node].push(s),
            Role::Reply => self.reply[node].push(s),
        }
    }
}

/// One group per probe, in their order; without probes, one per echo that was met.
pub(super) fn groups<'a>(evidence: &'a Evidence, sorted: &[Sorted<'a>]) -> Vec<Group<'a>> {
    if evidence.probes.is_empty() { passive(sorted) } else { of_probes(evidence, sorted) }
}

fn of_probes<'a>(evidence: &'a Evidence, sorted: &[Sorted<'a>]) -> Vec<Group<'a>> {
    let mut groups: Vec<_> = evidence.probes.iter().map(|p| Group::new(p.seq, Some(p), sorted.len())).collect();
    let index: HashMap<_, _> = evidence.probes.iter().enumerate().map(|(i, p)| ((p.nonce, p.seq), i)).collect();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            let Some(echo) = echo(s) else { continue };
            let Some(&i) = index.get(&(echo.nonce, echo.seq)) else { continue };
            let probe = &evidence.probes[i];
            // A payload too short for a nonce identifies nothing: another ping may use the same sequence number.
            if probe.nonce == 0 && echo.role == Role::Request && probe.ip_id != s.packet.ip_id {
                continue;
            }
            groups[i].add(node, echo.role, s);
        }
    }
    groups
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
        let mut before: HashMap<u64, &Sighting> = HashMap::new();
        for &s in &records.sightings {
            let Some(now) = echo(s) else { continue };
            let Some(earlier) = before.insert(s.skb, s) else { continue };
            let Some(then) = echo(earlier) else { continue };
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
type Burst<'a> = Vec<(Role, &'a Sighting)>;

fn passive<'a>(sorted: &[Sorted<'a>]) -> Vec<Group<'a>> {
    let ids = identifiers(sorted);
    let mut found: BTreeMap<Key, Vec<Vec<Burst<'a>>>> = BTreeMap::new();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            let Some(echo) = echo(s) else { continue };
            let key = (own_id(s, echo, &ids), echo.nonce, echo.seq);
            let bursts = &mut found.entry(key).or_insert_with(|| vec![Vec::new(); sorted.len()])[node];
            match bursts.last_mut() {
                Some(b) if touch::is_free(s) || s.time_ns - b[b.len() - 1].1.time_ns <= SAME_PACKET_NS => {
                    b.push((echo.role, s));
                }
                _ => bursts.push(vec![(echo.role, s)]),
            }
        }
    }
    let mut groups = Vec::new();
    for ((_, _, seq), nodes) in found {
        groups.extend(align(seq, nodes));
    }
    groups.sort_by_key(|g: &Group<'_>| first_time(g));
    groups
}

/// Bursts of equal content on several nodes belong together in their order, if every node saw all of them; a node that
/// missed some cannot be aligned and gets groups of its own.
fn align(seq: u16, nodes: Vec<Vec<Burst<'_>>>) -> Vec<Group<'_>> {
    let count = nodes.len();
    let most = nodes.iter().map(Vec::len).max().unwrap_or(0);
    let mut groups: Vec<_> = (0..most).map(|_| Group::new(seq, None, count)).collect();
    for (node, bursts) in nodes.into_iter().enumerate() {
        let whole = bursts.len() == most;
        for (i, burst) in bursts.into_iter().enumerate() {
            let mut own = Group::new(seq, None, count);
            let group = if whole { &mut groups[i] } else { &mut own };
            for (role, s) in burst {
                group.add(node, role, s);
            }
            if !whole {
                groups.push(own);
            }
        }
    }
    groups
}

fn first_time(group: &Group<'_>) -> Option<u64> {
    let of = |nodes: &[Vec<&Sighting>]| nodes.iter().filter_map(|n| Some(n.first()?.time_ns)).min();
    of(&group.request).or_else(|| of(&group.reply))
}
