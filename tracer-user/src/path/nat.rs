//! Rewrites: seen as a difference between two sightings of one packet, explained by its conntrack entry.

use super::{
    group::{Role, echo},
    model::{Action, Basis, Detail, Nat, NatSide},
    touch::Header,
};
use crate::event::{CtDirection, L4, Packet, Sighting, Translation};

/// The rewrites of one forwarding step: where routing lies in between, the first belongs before it, the second after.
#[derive(Default)]
pub(super) struct Rewrites {
    /// Of the destination.
    pub(super) before_routing: Option<(Action, Nat)>,
    /// Of the source.
    pub(super) after_routing: Option<(Action, Nat)>,
}

/// The direction in the conntrack entry: by the kernel's word, else an echo reply travels in reply direction.
pub(super) fn direction(s: &Sighting, translation: Option<&Translation>, role: Role) -> CtDirection {
    s.conntrack.or(translation.map(|t| t.direction)).unwrap_or(match role {
        Role::Request => CtDirection::Original,
        Role::Reply => CtDirection::Reply,
    })
}

fn side(packet: &Packet) -> NatSide {
    let (src_port, dst_port) = match packet.l4 {
        L4::Icmp { id, .. } => (Some(id), None),
        L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port, .. } => (Some(src_port), Some(dst_port)),
        L4::Other { .. } => (None, None),
    };
    NatSide { src: packet.src, dst: packet.dst, src_port, dst_port }
}

/// What was rewritten between two sightings of one packet in one namespace.
///
/// The destination is rewritten before routing (PREROUTING), the source after it (POSTROUTING), in both directions, each with its
/// port. A new ICMP identifier goes with the side that hides the originator: the source on the way there, the destination back.
pub(super) fn rewrites(before: &Packet, after: &Packet, direction: CtDirection) -> Rewrites {
    let (from, to) = (side(before), side(after));
    let port_changed = from.src_port != to.src_port;
    let is_identifier = from.dst_port.is_none();
    let (dst_action, src_action) = match direction {
        CtDirection::Original => (Action::Dnat, Action::Snat),
        CtDirection::Reply => (Action::Unsnat, Action::Undnat),
    };
    let port_with_dst = port_changed && is_identifier && direction == CtDirection::Reply;
    let port_with_src = port_changed && !port_with_dst;
    let middle = NatSide {
        src: from.src,
        dst: to.dst,
        src_port: if port_with_dst { to.src_port } else { from.src_port },
        dst_port: to.dst_port,
    };
    let mut rewrites = Rewrites::default();
    if from.dst != to.dst || port_with_dst || from.dst_port != to.dst_port {
        rewrites.before_routing =
            Some((dst_action, Nat { moment: Basis::Inferred, before: from, after: middle.clone() }));
    }
    if middle.src != to.src || port_with_src {
        rewrites.after_routing = Some((src_action, Nat { moment: Basis::Inferred, before: middle, after: to }));
    }
    rewrites
}

/// The packet as its sender made it, by its conntrack entry; None if the entry does not say otherwise.
pub(super) fn as_sent(s: &Sighting, t: &Translation, role: Role) -> Option<Packet> {
    let tuple = match direction(s, Some(t), role) {
        CtDirection::Original => t.original,
        CtDirection::Reply => t.reply,
    };
    let mut packet = s.packet.clone();
    (packet.src, packet.dst) = (tuple.src, tuple.dst);
    match &mut packet.l4 {
        L4::Icmp { id, .. } if echo(s).is_some() => *id = tuple.l4_src,
        L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port, .. } => {
            (*src_port, *dst_port) = (tuple.l4_src, tuple.l4_dst);
        }
        L4::Icmp { .. } | L4::Other { .. } => {}
    }
    (packet != s.packet).then_some(packet)
}

/// What NAT leaves alone is the same.
pub(super) fn same_packet(a: &Packet, b: &Packet) -> bool {
    let l4 = match (a.l4, b.l4) {
        (L4::Icmp { kind, seq, nonce, .. }, L4::Icmp { kind: k, seq: s, nonce: n, .. }) => {
            (kind, seq, nonce) == (k, s, n)
        }
        (L4::Tcp { seq, ack, flags, .. }, L4::Tcp { seq: s, ack: a, flags: f, .. }) => (seq, ack, flags) == (s, a, f),
        (L4::Udp { nonce, .. }, L4::Udp { nonce: n, .. }) => nonce == n,
        (L4::Other { protocol }, L4::Other { protocol: p }) => protocol == p,
        _ => false,
    };
    l4 && a.ip_id == b.ip_id
}

/// The destination that routing sees, by the conntrack entry.
pub(super) fn routed_to(t: &Translation, direction: CtDirection) -> std::net::IpAddr {
    match direction {
        CtDirection::Original => t.reply.src,
        CtDirection::Reply => t.original.src,
    }
}

pub(super) fn detail(nat: Nat) -> Detail {
    Detail { nat: Some(Box::new(nat)), ..Detail::default() }
}

/// The visible header once the rewrite is done.
pub(super) fn header(nat: &Nat, ttl: u8) -> Header {
    Header { src: nat.after.src, dst: nat.after.dst, ttl }
}
