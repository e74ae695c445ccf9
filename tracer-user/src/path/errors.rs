//! Which request an ICMP error is about (RFC 792, RFC 4443).

use std::net::IpAddr;

use foldhash::{HashMap, HashMapExt, HashSet};

use super::group::Group;
use crate::event::{L4, Packet, Sighting};

/// ICMP messages that say a packet was not delivered: unreachable, too big, time exceeded, parameter problem.
pub(super) fn is_error(s: &Sighting) -> bool {
    let L4::Icmp { kind, .. } = s.packet.l4 else { return false };
    match s.packet.src {
        IpAddr::V4(_) => matches!(kind, 3 | 11 | 12),
        IpAddr::V6(_) => matches!(kind, 1..=4),
    }
}

/// An error repeats the head of the packet it is about; its first 8 bytes are recorded. IPv4: length (bytes 2, 3) and
/// identification (4, 5). IPv6: payload length (4, 5) and next header (6), which all packets of a flow may share. It goes to the
/// packet's source, by what that was there, or to the `source` of all, which a node's own SNAT may have hidden before any hook.
fn is_about(error: &Packet, packet: &Packet, source: IpAddr) -> bool {
    let L4::Icmp { nonce, .. } = error.l4 else { return false };
    let bytes = nonce.to_be_bytes();
    let word = |i: usize| u16::from_be_bytes([bytes[i], bytes[i + 1]]);
    let same = match packet.src {
        IpAddr::V4(_) => (word(2), word(4)) == (packet.ip_len, packet.ip_id),
        IpAddr::V6(_) => (word(4).saturating_add(40), bytes[6]) == (packet.ip_len, protocol(packet)),
    };
    same && (error.dst == packet.src || error.dst == source)
}

fn protocol(packet: &Packet) -> u8 {
    match (packet.l4, packet.src) {
        (L4::Icmp { .. }, IpAddr::V4(_)) => 1,
        (L4::Icmp { .. }, IpAddr::V6(_)) => 58,
        (L4::Tcp { .. }, _) => 6,
        (L4::Udp { .. }, _) => 17,
        (L4::Other { protocol }, _) => protocol,
    }
}

/// An error's sighting with its node.
pub(super) type Seen<'a> = (usize, &'a Sighting);

/// For every group the sightings of the ICMP errors about its request. Of several requests that look the same to the error
/// it is about the last that passed its node before it. `source`: who sends the requests.
pub(super) fn assign<'a>(groups: &[Group<'a>], errors: &[Seen<'a>], source: IpAddr) -> Vec<Vec<Seen<'a>>> {
    let mut found = vec![Vec::new(); groups.len()];
    if errors.is_empty() {
        return found;
    }
    // By what an error repeats of a packet: each is compared with a few requests, not with all.
    let mut alike: HashMap<(IpAddr, u16), Vec<usize>> = HashMap::new();
    for (i, group) in groups.iter().enumerate() {
        let packets = group.request.iter().flatten().map(|s| told_apart_by(&s.packet));
        let packets: HashSet<_> = packets.flat_map(|(src, word)| [(src, word), (source, word)]).collect();
        packets.into_iter().for_each(|packet| alike.entry(packet).or_default().push(i));
    }
    for &(node, error) in errors {
        let alike = alike.get(&repeated(&error.packet)).map_or(&[][..], Vec::as_slice);
        let passed = |g: &Group<'_>| {
            let on_node = g.request[node].iter().filter(|s| s.time_ns <= error.time_ns);
            on_node.filter(|s| is_about(&error.packet, &s.packet, source)).map(|s| s.time_ns).max()
        };
        let last = alike.iter().filter_map(|&i| Some((passed(&groups[i])?, i))).max();
        if let Some((_, i)) = last {
            found[i].push((node, error));
            continue;
        }
        // On a node that the request did not pass no order tells; but there may be only one like it.
        let about =
            |i: &&usize| groups[**i].request.iter().flatten().any(|s| is_about(&error.packet, &s.packet, source));
        let mut like = alike.iter().filter(about);
        if let (Some(&i), None) = (like.next(), like.next()) {
            found[i].push((node, error));
        }
    }
    found
}

/// Source, and the word that [`is_about`] compares first.
fn told_apart_by(packet: &Packet) -> (IpAddr, u16) {
    (packet.src, if packet.src.is_ipv4() { packet.ip_id } else { packet.ip_len })
}

/// The same of the packet that an error is about.
fn repeated(error: &Packet) -> (IpAddr, u16) {
    let L4::Icmp { nonce, .. } = error.l4 else { return (error.dst, 0) };
    let word = (nonce >> 16) as u16;
    (error.dst, if error.dst.is_ipv4() { word } else { word.saturating_add(40) })
}
