//! The sightings of what the injector sent: one group per probe.

use foldhash::{HashMap, HashMapExt};

use super::{
    super::{Probe, world::World},
    Group, Role, Sorted, echo,
    flow::{Aliases, Tuple},
    transmissions,
};
use crate::event::{L4, Sighting};

/// TCP flags.
pub(in crate::path) const SYN: u8 = 2;
pub(in crate::path) const RST: u8 = 4;
pub(in crate::path) const ACK: u8 = 16;

pub(super) fn groups<'a>(world: &World<'a>, sorted: &[Sorted<'a>]) -> Vec<Group<'a>> {
    let probes = &world.evidence.probes;
    let mut groups: Vec<_> = probes.iter().map(|p| Group::new(u32::from(p.seq), Some(p), sorted.len())).collect();
    let index = Index::new(world, sorted);
    let mut shared = Vec::new();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            match index.find(s) {
                Some(Found::Of(i, role)) => groups[i].add(node, role, s),
                Some(Found::ToPort(probes)) => shared.push((node, s, probes)),
                None => {}
            }
        }
    }
    by_time(&mut groups, &shared);
    index.datagrams.values().filter(|probes| probes.len() > 1).for_each(|probes| doubt_late(&mut groups, probes));
    for group in groups.iter_mut().filter(|g| g.probe.is_some_and(|p| p.protocol == 6)) {
        // A server that gets no answer to its SYN+ACK sends it again.
        if let Some(note) = transmissions::keep_one(&mut group.reply) {
            group.notes.push(format!("reply: {note}"));
        }
    }
    groups
}

/// Replies to ports that several probes had one after another: each is of the probe that passed its node last before it.
fn by_time<'a>(groups: &mut [Group<'a>], replies: &[(usize, &'a Sighting, &[usize])]) {
    for &(node, s, probes) in replies {
        let asked = |i: &usize| groups[*i].request[node].first().map(|first| (first.time_ns, *i));
        let last = probes.iter().filter_map(asked).filter(|(time, _)| *time <= s.time_ns).max();
        match last {
            Some((_, i)) => groups[i].add(node, Role::Reply, s),
            None => probes
                .iter()
                .for_each(|i| doubt(&mut groups[*i], "a reply to its port may be to another probe from the same port")),
        }
    }
}

/// An answer may be the late one of an earlier probe from the same port, which the kernel chose again.
fn doubt_late(groups: &mut [Group<'_>], probes: &[usize]) {
    for pair in probes.windows(2) {
        let &[earlier, later] = pair else { continue };
        let answered = |i: usize| groups[i].reply.iter().any(|seen| !seen.is_empty());
        if !answered(earlier) && answered(later) {
            let (a, b) = (groups[earlier].seq, groups[later].seq);
            let text =
                format!("probes {a} and {b} had the same port: which of them the reply to {b} answers is not known");
            doubt(&mut groups[earlier], &text);
            doubt(&mut groups[later], &text);
        }
    }
}

fn doubt(group: &mut Group<'_>, text: &str) {
    if !group.doubts.iter().any(|known| known == text) {
        group.doubts.push(text.to_owned());
    }
}

/// What a packet is.
enum Found<'i> {
    /// A probe's, by its index.
    Of(usize, Role),
    /// A reply to the port of these probes.
    ToPort(&'i [usize]),
}

/// Finds the probe that a packet belongs to.
struct Index<'a> {
    probes: &'a [Probe],
    echoes: HashMap<(u64, u16), usize>,
    /// By sequence number of the SYN.
    syns: HashMap<u32, usize>,
    /// By what the source sent. The kernel may choose a port again, once a probe's fate is known: in their order.
    datagrams: HashMap<Tuple, Vec<usize>>,
    /// By the first bytes of the payload.
    payloads: HashMap<u64, usize>,
    aliases: Aliases,
}

impl<'a> Index<'a> {
    fn new(world: &World<'a>, sorted: &[Sorted<'a>]) -> Self {
        let (src, dst) = (world.ends.source.address, world.ends.destination.address);
        let probes: &'a [Probe] = &world.evidence.probes;
        let mut index = Self {
            probes,
            echoes: HashMap::new(),
            syns: HashMap::new(),
            datagrams: HashMap::new(),
            payloads: HashMap::new(),
            aliases: Aliases::new(sorted),
        };
        for (i, p) in probes.iter().enumerate() {
            match p.protocol {
                6 => {
                    index.syns.insert(sequence_number(p), i);
                }
                17 => {
                    let tuple = Tuple { protocol: 17, src, src_port: p.id, dst, dst_port: p.dst_port };
                    index.datagrams.entry(tuple).or_default().push(i);
                    if p.nonce != 0 {
                        index.payloads.insert(p.nonce, i);
                    }
                }
                _ => {
                    index.echoes.insert((p.nonce, p.seq), i);
                }
            }
        }
        index
    }

    fn find(&self, s: &Sighting) -> Option<Found<'_>> {
        let (i, role) = match s.packet.l4 {
            L4::Icmp { .. } => self.echo(s)?,
            L4::Tcp { seq, ack, flags, .. } => self.handshake(s, seq, ack, flags)?,
            L4::Udp { nonce, .. } => return self.datagram(s, nonce),
            L4::Other { .. } => return None,
        };
        Some(Found::Of(i, role))
    }

    fn echo(&self, s: &Sighting) -> Option<(usize, Role)> {
        let echo = echo(s)?;
        let i = *self.echoes.get(&(echo.nonce, echo.seq))?;
        // A payload too short for a nonce identifies nothing: another ping may use the same sequence number.
        let other = self.probes[i].nonce == 0 && echo.role == Role::Request && self.probes[i].ip_id != s.packet.ip_id;
        (!other).then_some((i, echo.role))
    }

    /// The SYN by its sequence number, its answer by what that acknowledges. The source's own reset, to a SYN+ACK that it
    /// has no socket for, is neither.
    fn handshake(&self, s: &Sighting, seq: u32, ack: u32, flags: u8) -> Option<(usize, Role)> {
        if flags & (SYN | ACK) == SYN {
            let i = *self.syns.get(&seq)?;
            return (self.probes[i].ip_id == s.packet.ip_id).then_some((i, Role::Request));
        }
        let answers = flags & ACK != 0 && flags & (SYN | RST) != 0;
        let i = *self.syns.get(&ack.wrapping_sub(1)).filter(|_| answers)?;
        Some((i, Role::Reply))
    }

    fn datagram(&self, s: &Sighting, nonce: u64) -> Option<Found<'_>> {
        let tuple = Tuple::of(&s.packet)?;
        let own = self.aliases.of(s)?;
        if let Some(probes) = self.datagrams.get(&own) {
            let i = probes.iter().find(|i| self.probes[**i].nonce == nonce)?;
            return Some(Found::Of(*i, Role::Request));
        }
        match self.datagrams.get(&own.turned()).map(Vec::as_slice) {
            Some(&[i]) => return Some(Found::Of(i, Role::Reply)),
            Some(several) => return Some(Found::ToPort(several)),
            None => {}
        }
        // The translation is not known: the payload tells whose it is, a port that was not rewritten in which direction.
        let i = *self.payloads.get(&nonce)?;
        let port = self.probes[i].dst_port;
        match (tuple.src_port == port, tuple.dst_port == port) {
            (false, true) => Some(Found::Of(i, Role::Request)),
            (true, false) => Some(Found::Of(i, Role::Reply)),
            _ => None,
        }
    }
}

/// Of a TCP probe: its nonce is no wider.
fn sequence_number(probe: &Probe) -> u32 {
    u32::try_from(probe.nonce & u64::from(u32::MAX)).unwrap_or_default()
}
