//! Flows of TCP and UDP under all the addresses and ports that NAT gives them.

use std::net::IpAddr;

use foldhash::HashMap;

use super::Sorted;
use crate::event::{CtDirection, L4, Packet, Sighting, Translation};

/// How many translations one after another are followed: each node on the way can make one.
const TRANSLATIONS: usize = 8;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) protocol: u8,
    pub(super) src: IpAddr,
    pub(super) src_port: u16,
    pub(super) dst: IpAddr,
    pub(super) dst_port: u16,
}

impl Tuple {
    /// Of a TCP or UDP packet.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        let (protocol, src_port, dst_port) = match packet.l4 {
            L4::Tcp { src_port, dst_port, .. } => (6, src_port, dst_port),
            L4::Udp { src_port, dst_port, .. } => (17, src_port, dst_port),
            L4::Icmp { .. } | L4::Other { .. } => return None,
        };
        Some(Self { protocol, src: packet.src, src_port, dst: packet.dst, dst_port })
    }

    /// That of a packet back.
    pub(super) fn turned(self) -> Self {
        let Self { protocol, src, src_port, dst, dst_port } = self;
        Self { protocol, src: dst, src_port: dst_port, dst: src, dst_port: src_port }
    }
}

/// What the originators of flows call them.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// A translated tuple -> what it is nearer to the originator.
    nearer: HashMap<Tuple, Tuple>,
    /// By address of the sighting: what a packet was before a rewrite that only its free shows. Which direction of the flow that is of
    /// is not known, so it says nothing of other packets.
    freed: HashMap<*const Sighting, Tuple>,
}

impl Aliases {
    pub(super) fn new(sorted: &[Sorted<'_>]) -> Self {
        let mut aliases = Self::default();
        for records in sorted {
            for t in &records.translations {
                aliases.translated(t);
            }
            // A translation's own record may be lost: the same buffer with the same content tells as much.
            records.successive().for_each(|(earlier, now)| aliases.rewritten(earlier, now));
        }
        aliases
    }

    fn translated(&mut self, t: &Translation) {
        if !matches!(t.protocol, 6 | 17) {
            return;
        }
        let (o, r) = (t.original, t.reply);
        let tuple = |(src, src_port), (dst, dst_port)| Tuple { protocol: t.protocol, src, src_port, dst, dst_port };
        let own = tuple((o.src, o.l4_src), (o.dst, o.l4_dst));
        // The destination is rewritten before routing, the source after it: in between one is old, the other new.
        self.alias(tuple((o.src, o.l4_src), (r.src, r.l4_src)), own);
        self.alias(tuple((r.dst, r.l4_dst), (r.src, r.l4_src)), own);
    }

    fn rewritten(&mut self, before: &Sighting, now: &Sighting) {
        let (Some(then), Some(tuple)) = (self.before_its_free(before), Tuple::of(&now.packet)) else { return };
        if then == tuple || lasting(&before.packet) != lasting(&now.packet) {
            return;
        }
        match now.conntrack {
            Some(CtDirection::Original) => self.alias(tuple, then),
            Some(CtDirection::Reply) => self.alias(then.turned(), tuple.turned()),
            None if now.free.is_some() => {
                self.freed.insert(std::ptr::from_ref(now), then);
            }
            None => {}
        }
    }

    fn before_its_free(&self, s: &Sighting) -> Option<Tuple> {
        self.freed.get(&std::ptr::from_ref(s)).copied().or_else(|| Tuple::of(&s.packet))
    }

    /// The tuple of a packet's flow as the originator calls it; of TCP and UDP.
    pub(super) fn of(&self, s: &Sighting) -> Option<Tuple> {
        self.before_its_free(s).map(|tuple| self.own(tuple))
    }

    fn alias(&mut self, tuple: Tuple, own: Tuple) {
        if tuple != own {
            self.nearer.entry(tuple).or_insert(own);
            self.nearer.entry(tuple.turned()).or_insert(own.turned());
        }
    }

    fn own(&self, mut tuple: Tuple) -> Tuple {
        for _ in 0..TRANSLATIONS {
            match self.nearer.get(&tuple) {
                Some(nearer) => tuple = *nearer,
                None => break,
            }
        }
        tuple
    }
}

/// What NAT leaves alone.
fn lasting(packet: &Packet) -> (u64, u64, u16, u16) {
    let (a, b) = match packet.l4 {
        L4::Tcp { seq, ack, flags, payload, .. } => {
            (u64::from(seq) << 32 | u64::from(ack), u64::from(flags) << 16 | u64::from(payload))
        }
        L4::Udp { nonce, .. } => (nonce, 1 << 32),
        L4::Icmp { .. } | L4::Other { .. } => (0, 0),
    };
    (a, b, packet.ip_id, packet.ip_len)
}
