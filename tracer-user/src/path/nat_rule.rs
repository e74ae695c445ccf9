//! Which netfilter rule asked for a rewrite.
//!
//! The rules of the nat table see the first packet of a connection only, so one rule's counter rises by one however many
//! packets it rewrites; for a connection older than the trace by none: what counted meanwhile is others' then.

use std::{net::IpAddr, str::FromStr};

use foldhash::{HashMap, HashSet, HashSetExt};

use super::{
    group::{ACK, SYN},
    hops::Passage,
    model::{Action, Basis, Nat, RuleRef},
    world::World,
};
use crate::{
    event::{L4, Packet, Record, Translation, Tuple},
    node::facts::{Condition, ConditionField, LinkRef, Rule, RuleEngine, RuleHit, RuleVerdict},
};

/// What can be said about the rule.
pub(super) enum Found {
    /// The one rule that fits.
    Rule(Box<RuleRef>),
    /// The connection may be older than the trace, so no rule's counter can tell; why, in words.
    Older(&'static str),
    /// The connection is older: of the rules, which were all read, none has chosen this destination since.
    Entry,
    /// Several fit, or none.
    Open,
}

/// The rule, if only one can have been it.
pub(super) fn find(world: &World<'_>, passage: &Passage, action: Action, nat: &Nat, packet: &Packet) -> Found {
    if !matches!(action, Action::Snat | Action::Dnat) {
        // What undoes a translation is conntrack, not a rule.
        return Found::Open;
    }
    let scene = Scene { world, passage, nat, packet };
    let facts = &world.node(passage.node).facts;
    let fitting: Vec<&RuleHit> = facts.rules.iter().filter(|hit| scene.fits(hit, action)).collect();
    if let Some(why) = may_be_older(world, passage.node, packet) {
        let all_read = passage.came.is_some_and(|at| facts.rules_complete.contains(&at.netns));
        return if action == Action::Dnat && all_read && fitting.is_empty() { Found::Entry } else { Found::Older(why) };
    }
    let by = |evidence: fn(&RuleHit) -> bool| fitting.iter().filter(|hit| evidence(hit)).copied().collect::<Vec<_>>();
    let (traced, counted) = (by(|hit| hit.traced > 0), by(|hit| hit.packets > 0 || !hit.counted));
    let (candidates, basis) = if !traced.is_empty() {
        (traced, Basis::Observed)
    } else if counted.iter().any(|hit| hit.packets > 0) {
        (counted, Basis::Inferred)
    } else {
        (fitting, Basis::Configured)
    };
    match candidates.as_slice() {
        [only] => Found::Rule(Box::new(shown(only, basis))),
        _ => Found::Open,
    }
}

/// Whether the packet's connection may have begun before the trace did. Our probes begin theirs; of watched TCP the SYN
/// was seen; of others the conntrack entry had seen no reply when it was first met, and saw one then.
fn may_be_older(world: &World<'_>, node: usize, packet: &Packet) -> Option<&'static str> {
    /// `IPS_SEEN_REPLY` (`uapi/linux/netfilter/nf_conntrack_common.h`).
    const SEEN_REPLY: u32 = 1 << 1;
    if !world.evidence.probes.is_empty() {
        return None;
    }
    let connections = world.connections(node);
    if let L4::Tcp { .. } = packet.l4 {
        return (!connections.began_with(packet)).then_some("connection older than the trace");
    }
    let of_this = connections.translations.get(&pair(packet.src, packet.dst, port(packet)));
    let of_this = of_this.into_iter().flatten().filter(|t| is_of(packet, t));
    let mut of_this = of_this.map(|t| t.status & SEEN_REPLY != 0);
    match (of_this.next(), of_this.any(|seen| seen)) {
        (Some(true), _) => Some("connection older than the trace"),
        (Some(false), true) => None,
        _ => Some("connection may be older than the trace"),
    }
}

/// What one node's records tell of connections, found without going through all of them for each rewrite.
#[derive(Default)]
pub(super) struct Connections {
    /// Of each SYN: its ports (of the source, or not), each with its addresses (of the source, or not). NAT leaves one port and one address.
    begun: HashSet<(bool, u16, bool, IpAddr)>,
    /// By two addresses, with each port or identifier and without: entries with them, each state of each once, in the order of the records.
    translations: HashMap<Pair, Vec<Translation>>,
}

type Pair = (IpAddr, IpAddr, Option<u16>);

impl Connections {
    pub(super) fn of(records: &[Record]) -> Self {
        let mut connections = Self::default();
        let mut known = HashSet::new();
        for record in records {
            match record {
                Record::Sighting(s) => {
                    if matches!(s.packet.l4, L4::Tcp { flags, .. } if flags & (SYN | ACK) == SYN) {
                        connections.begun.extend(port_with_address(&s.packet));
                    }
                }
                Record::Translation(t) if known.insert((t.original, t.reply, t.status)) => {
                    let keys = [t.original, t.reply].iter().flat_map(keys).collect::<HashSet<_>>();
                    keys.into_iter().for_each(|key| connections.translations.entry(key).or_default().push(t.clone()));
                }
                Record::Translation(_) | Record::Rewrite(_) => {}
            }
        }
        connections
    }

    /// The SYN of the packet's connection was seen, by whatever addresses.
    fn began_with(&self, packet: &Packet) -> bool {
        port_with_address(packet).any(|key| self.begun.contains(&key))
    }
}

fn port_with_address(packet: &Packet) -> impl Iterator<Item = (bool, u16, bool, IpAddr)> {
    let ports = match packet.l4 {
        L4::Tcp { src_port, dst_port, .. } => Some([(true, src_port), (false, dst_port)]),
        _ => None,
    };
    let addresses = [(true, packet.src), (false, packet.dst)];
    let ports = ports.into_iter().flatten();
    ports.flat_map(move |(is_src, port)| addresses.map(|(of_src, address)| (is_src, port, of_src, address)))
}

fn keys(tuple: &Tuple) -> [Pair; 3] {
    [Some(tuple.l4_src), Some(tuple.l4_dst), None].map(|port| pair(tuple.src, tuple.dst, port))
}

/// In either direction.
fn pair(a: IpAddr, b: IpAddr, port: Option<u16>) -> Pair {
    (a.min(b), a.max(b), port)
}

/// One of the two ports, or the identifier; none where only addresses count.
fn port(packet: &Packet) -> Option<u16> {
    match packet.l4 {
        L4::Udp { src_port, .. } => Some(src_port),
        L4::Icmp { id, .. } => Some(id),
        L4::Tcp { .. } | L4::Other { .. } => None,
    }
}

/// The entry is about the packet, as it is before or after its translation.
fn is_of(packet: &Packet, t: &Translation) -> bool {
    let ends = (packet.src, packet.dst);
    [&t.original, &t.reply].iter().any(|tuple| {
        let ports = |a: u16, b: u16| (tuple.l4_src, tuple.l4_dst) == (a, b) || (tuple.l4_src, tuple.l4_dst) == (b, a);
        let l4 = match packet.l4 {
            L4::Udp { src_port, dst_port, .. } => ports(src_port, dst_port),
            L4::Icmp { id, .. } => tuple.l4_src == id || tuple.l4_dst == id,
            L4::Tcp { .. } | L4::Other { .. } => true,
        };
        l4 && (ends == (tuple.src, tuple.dst) || ends == (tuple.dst, tuple.src))
    })
}

pub(super) fn shown(hit: &RuleHit, basis: Basis) -> RuleRef {
    let engine = match hit.engine {
        RuleEngine::Iptables => "iptables",
        RuleEngine::IptablesNft => "iptables-nft",
        RuleEngine::Nftables => "nftables",
    };
    let (text, comment) = match &hit.rule {
        Some(Rule { position: _, handle: _, text, comment }) => (Some(text.clone()), comment.clone()),
        None => (None, None),
    };
    RuleRef {
        engine: engine.to_owned(),
        table: hit.table.clone(),
        chain: hit.chain.clone(),
        text,
        comment,
        packets: hit.packets,
        basis,
    }
}

/// The packet at the moment of its rewrite.
struct Scene<'s, 'a> {
    world: &'s World<'a>,
    passage: &'s Passage,
    nat: &'s Nat,
    packet: &'s Packet,
}

impl Scene<'_, '_> {
    fn fits(&self, hit: &RuleHit, action: Action) -> bool {
        let place = self.passage.goes.or(self.passage.came);
        let verdict = match action {
            Action::Snat => match &hit.verdict {
                RuleVerdict::Snat(to) => may_be_target(to, self.nat.after.src, self.nat.after.src_port),
                verdict => *verdict == RuleVerdict::Masquerade,
            },
            Action::Dnat => match &hit.verdict {
                RuleVerdict::Dnat(to) => may_be_target(to, self.nat.after.dst, self.nat.after.dst_port),
                _ => false,
            },
            _ => false,
        };
        // INPUT 1 and POSTROUTING 4 rewrite the source, PREROUTING 0 and OUTPUT 3 the destination.
        let hook = match (action, self.passage.came) {
            (Action::Snat, _) => hit.hook.is_none_or(|hook| hook == 4 || hook == 1),
            (_, Some(_)) => hit.hook.is_none_or(|hook| hook == 0),
            (_, None) => hit.hook.is_none_or(|hook| hook == 3),
        };
        let family = match hit.family.as_str() {
            "ip" => self.packet.src.is_ipv4(),
            "ip6" => self.packet.src.is_ipv6(),
            _ => true,
        };
        let here = place.is_some_and(|at| at.netns == hit.netns);
        verdict && hook && family && here && hit.conditions.iter().all(|c| self.may_meet(c, action))
    }

    /// False only if the packet certainly does not meet it.
    fn may_meet(&self, condition: &Condition, action: Action) -> bool {
        let Condition { field, not } = condition;
        let before = &self.nat.before;
        let protocol = match (self.packet.l4, self.packet.src.is_ipv4()) {
            (L4::Icmp { .. }, true) => 1,
            (L4::Icmp { .. }, false) => 58,
            (L4::Tcp { .. }, _) => 6,
            (L4::Udp { .. }, _) => 17,
            (L4::Other { protocol }, _) => protocol,
        };
        let is = match field {
            // POSTROUTING does not know the interface that a packet came in by.
            ConditionField::InInterface(name) if action == Action::Dnat => self.is_interface(self.passage.came, name),
            ConditionField::OutInterface(name) if action == Action::Snat => self.is_interface(self.passage.goes, name),
            ConditionField::Source(net) => Some(net.contains(&before.src)),
            ConditionField::Destination(net) => Some(net.contains(&before.dst)),
            ConditionField::SourceIn(ranges) => Some(ranges.contains(before.src)),
            ConditionField::DestinationIn(ranges) => Some(ranges.contains(before.dst)),
            ConditionField::Protocol(wanted) => Some(*wanted == protocol),
            ConditionField::SourcePort(from, to) => before.src_port.map(|port| (*from..=*to).contains(&port)),
            ConditionField::DestinationPort(from, to) => before.dst_port.map(|port| (*from..=*to).contains(&port)),
            ConditionField::ConntrackState(states) => Some(states.iter().any(|s| s == "NEW")),
            ConditionField::InInterface(_)
            | ConditionField::OutInterface(_)
            | ConditionField::Mark(..)
            | ConditionField::ReversePathFails => None,
        };
        is.is_none_or(|is| is != *not)
    }

    fn is_interface(&self, at: Option<LinkRef>, wanted: &str) -> Option<bool> {
        let name = self.world.interface(self.passage.node, at?)?;
        Some(match wanted.strip_suffix('+') {
            Some(beginning) => name.starts_with(beginning),
            None => name == wanted,
        })
    }
}

/// `target` is what a rule translates to, as [`RuleVerdict`] has it; what is not understood of it excludes nothing.
fn may_be_target(target: &str, address: IpAddr, port: Option<u16>) -> bool {
    let (addresses, ports) = addresses_and_ports(target);
    in_range(addresses, address) && ports.zip(port).is_none_or(|(ports, port)| in_range(ports, port))
}

/// The one address that a rule translates to, and the port, if it names one.
pub(super) fn target(target: &str) -> Option<(IpAddr, Option<u16>)> {
    let (addresses, ports) = addresses_and_ports(target);
    Some((addresses.parse().ok()?, ports.and_then(|ports| ports.parse().ok())))
}

fn addresses_and_ports(target: &str) -> (&str, Option<&str>) {
    match target.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((addresses, rest)) => (addresses, rest.strip_prefix(':')),
        None if target.matches(':').count() > 1 => (target, None),
        None => target.split_once(':').map_or((target, None), |(addresses, ports)| (addresses, Some(ports))),
    }
}

fn in_range<T: FromStr + PartialOrd>(range: &str, value: T) -> bool {
    let (from, to) = range.split_once('-').unwrap_or((range, range));
    match (from.parse::<T>(), to.parse::<T>()) {
        (Ok(from), Ok(to)) => (from..=to).contains(&value),
        _ => true,
    }
}
