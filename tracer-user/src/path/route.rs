//! Which route look-ups the packets of a node caused.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    culprit::OUTPUT,
    group::{self, Role, Sorted},
    nat, nat_rule,
    touch::{self, Header, Touch, Way},
    world::Namespaces,
};
use crate::{
    event::{CtDirection, Free, Hook, L4, Record, Sighting, Translation},
    node::facts::{self, RouteQuestion, RuleHit, RuleVerdict},
};

/// The look-up of what is sent from an address of the namespace, with no mark.
pub(super) fn sent(netns: u32, src: IpAddr, dst: IpAddr) -> RouteQuestion {
    RouteQuestion { netns, src, dst, in_ifindex: None, mark: 0 }
}

/// Look-ups of what was sent as asked, after each rule of DNAT in its namespace's OUTPUT that something met: if one refuses, the packet
/// went no further, and no record tells of it. No more than [`MOST_TURNED`], those whose counters prove something first.
pub fn turned_questions(sent: &RouteQuestion, rules: &[RuleHit]) -> Vec<RouteQuestion> {
    let mut met: Vec<&RuleHit> = rules.iter().filter(|hit| hit.netns == sent.netns).collect();
    met.retain(|hit| hit.hook.is_none_or(|hook| hook == OUTPUT) && (hit.packets > 0 || hit.traced > 0 || !hit.counted));
    met.sort_by_key(|hit| hit.packets == 0 && hit.traced == 0);
    let targets = met.into_iter().filter_map(|hit| match &hit.verdict {
        RuleVerdict::Dnat(to) => nat_rule::target(to),
        _ => None,
    });
    let mut questions: Vec<RouteQuestion> = Vec::new();
    for (dst, _) in targets.filter(|(dst, _)| dst.is_ipv4() == sent.dst.is_ipv4()) {
        let question = RouteQuestion { dst, ..sent.clone() };
        if questions.len() < MOST_TURNED && !questions.contains(&question) {
            questions.push(question);
        }
    }
    questions
}

/// A node's rules may lead to thousands of endpoints.
const MOST_TURNED: usize = 32;

/// The look-up between coming in by `p` and going out by `q`: after DNAT, before SNAT.
pub(super) fn forwarding(p: &Touch<'_>, q: &Touch<'_>) -> RouteQuestion {
    let (before, after) = (p.header(), q.header());
    RouteQuestion {
        netns: p.at().netns,
        src: before.src,
        dst: after.dst,
        in_ifindex: Some(p.at().ifindex),
        mark: q.first.mark,
    }
}

/// The look-up for a packet that came in by `p` and died in the namespace.
pub(super) fn dying(p: &Touch<'_>, free: Option<&Sighting>, translation: Option<&Translation>) -> RouteQuestion {
    let before = p.header();
    let freed = free.filter(|f| f.outer.is_some() == p.wrapped()).map(|f| (Header::of(f).dst, f.mark));
    let role = group::echo(p.last).map_or(Role::Request, |e| e.role);
    let by_conntrack = translation.filter(|_| !p.wrapped()).map(|t| {
        let s = free.unwrap_or(p.last);
        nat::routed_to(t, nat::direction(s, Some(t), role))
    });
    let dst = match freed {
        Some((dst, _)) if dst != before.dst => dst,
        _ => by_conntrack.unwrap_or(before.dst),
    };
    let mark = freed.map_or(p.last.mark, |(_, mark)| mark);
    RouteQuestion { netns: p.at().netns, src: before.src, dst, in_ifindex: Some(p.at().ifindex), mark }
}

/// The look-up for the outer packet that was made of the one seen last, and died before it was seen.
pub(super) fn wrapped_dying(last: &Touch<'_>, free: &Sighting) -> Option<RouteQuestion> {
    let outer = free.outer.as_ref().filter(|_| !last.wrapped())?;
    Some(RouteQuestion { netns: last.at().netns, src: outer.src, dst: outer.dst, in_ifindex: None, mark: free.mark })
}

/// The look-up for a packet that its namespace made itself (also a tunnel's outer packet).
pub(super) fn local(q: &Touch<'_>, translation: Option<&Translation>) -> RouteQuestion {
    let mut src = q.header().src;
    if let Some(t) = translation.filter(|_| !q.wrapped()) {
        src = match q.first.conntrack.unwrap_or(t.direction) {
            CtDirection::Original => t.original.src,
            CtDirection::Reply => t.reply.src,
        };
    }
    RouteQuestion { netns: q.at().netns, src, dst: q.header().dst, in_ifindex: None, mark: q.first.mark }
}

/// The way back to an address, as `fib_validate_source` asks for it: what the reverse path filter goes by.
pub(super) fn back(netns: u32, src: IpAddr) -> RouteQuestion {
    let any = if src.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    RouteQuestion { netns, src: any, dst: src, in_ifindex: None, mark: 0 }
}

/// A free that the reverse path filter may have caused.
fn may_be_of_reverse_path(free: &Sighting) -> bool {
    let Some(Free { function, reason_name, .. }) = &free.free else { return false };
    let by_function =
        || function.as_deref().is_some_and(|f| f.starts_with("ip_rcv_finish") || f.starts_with("nf_hook"));
    match reason_name.as_deref() {
        Some("IP_RPFILTER" | "NETFILTER_DROP") => true,
        Some("NOT_SPECIFIED") | None => by_function(),
        Some(_) => false,
    }
}

/// What stays equal in a packet on one node, whatever is rewritten or wrapped. Several packets may share it, which
/// costs a useless question at worst.
fn content(s: &Sighting) -> (u64, u32, u16, u16) {
    let (a, b) = match s.packet.l4 {
        L4::Icmp { kind, code, seq, nonce, .. } => {
            (nonce, u32::from(kind) << 24 | u32::from(code) << 16 | u32::from(seq))
        }
        L4::Tcp { seq, ack, flags, .. } => (u64::from(seq) << 32 | u64::from(ack), 0x0600_0000 | u32::from(flags)),
        // NAT changes UDP's checksum and ports; the buffer is what stays.
        L4::Udp { .. } => (s.skb, 0x1100_0000),
        L4::Other { protocol } => (s.skb, u32::from(protocol)),
    };
    (a, b, s.packet.ip_id, s.packet.ip_len)
}

/// The links that packets were seen at, and those that these handed them up to: namespace and interface index.
pub fn links_met(records: &[Record], namespaces: &[facts::Namespace]) -> BTreeSet<(u32, u32)> {
    let sightings = records.iter().filter_map(|record| match record {
        Record::Sighting(sighting) => Some(sighting),
        // A sighting of the same packet at the same place comes with it.
        Record::Translation(_) | Record::Rewrite(_) => None,
    });
    let met = sightings.flat_map(|s| {
        let uppers = if s.hook == Hook::Receive { touch::uppers(s, Namespaces(namespaces)) } else { Vec::new() };
        uppers.into_iter().chain([touch::place(s)])
    });
    met.map(|at| (at.netns, at.ifindex)).collect()
}

/// The distinct route look-ups that this node's packets caused, in the order of the packets: for a packet that came in
/// to a namespace and left it again or died in it, and for one that the node itself sent. Not asked: what a pod sends,
/// and what reached the address it was for.
pub fn route_questions(records: &[Record], namespaces: &[facts::Namespace]) -> Vec<RouteQuestion> {
    let namespaces = Namespaces(namespaces);
    let sorted = Sorted::new(records);
    let mut packets: HashMap<_, Vec<&Sighting>> = HashMap::new();
    let mut order = Vec::new();
    for &s in &sorted.sightings {
        let packet = packets.entry(content(s)).or_default();
        if packet.is_empty() {
            order.push(content(s));
        }
        packet.push(s);
    }
    let mut seen = HashSet::new();
    let mut questions = Vec::new();
    for key in order {
        for question in of_packet(&packets[&key], &sorted, namespaces) {
            if seen.insert(question.clone()) {
                questions.push(question);
            }
        }
    }
    questions
}

fn of_packet<'a>(sightings: &[&'a Sighting], sorted: &Sorted<'a>, namespaces: Namespaces<'_>) -> Vec<RouteQuestion> {
    let translations = sorted.translations_of(sightings);
    let translation = |t: &Touch<'_>| translations.iter().rev().find(|x| x.skb == t.first.skb).copied();
    let mut questions = Vec::new();
    let frees: Vec<&Sighting> = sightings.iter().copied().filter(|s| touch::is_free(s)).collect();
    let (touches, _) = touch::apart(touch::touches(sightings, namespaces), &frees, namespaces);
    let fragments = touch::fragments(0, touches, namespaces);
    for fragment in &fragments {
        for pair in fragment.touches.windows(2) {
            let [p, q] = pair else { continue };
            match (p.way, q.way) {
                (Way::In, Way::Out) if namespaces.bridge_of(p.at()).is_none() => questions.push(forwarding(p, q)),
                (Way::Out, Way::Out) if q.wrapped() && !p.wrapped() => questions.push(local(q, None)),
                _ => {}
            }
        }
        let (first, last) = (fragment.first(), fragment.last());
        let is_node = namespaces.get(first.at().netns).is_some_and(|n| n.role == facts::Role::Node);
        let own = local(first, translation(first));
        if first.way == Way::Out && is_node && namespaces.owns(own.netns, own.src) {
            questions.push(own);
        }
        let free = sightings.iter().rfind(|s| touch::is_free(s) && s.time_ns >= last.end()).copied();
        if last.way == Way::Out {
            questions.extend(free.and_then(|free| wrapped_dying(last, free)));
        }
        if last.way == Way::In {
            let question = dying(last, free, translation(last));
            if let Some(free) = free.filter(|f| may_be_of_reverse_path(f) && f.packet.ttl == last.ttl()) {
                questions.push(back(question.netns, Header::of(free).src));
            }
            if !namespaces.owns(question.netns, question.dst) {
                questions.push(question);
            }
        }
    }
    questions
}
