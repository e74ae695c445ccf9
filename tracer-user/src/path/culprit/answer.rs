//! Who refused a packet, by the ICMP error that came back (RFC 792, RFC 1812, RFC 4443).

use std::net::IpAddr;

use crate::{
    event::{L4, Sighting},
    path::{
        Answer, Probe,
        chain::Chain,
        drops::{self, End},
        group::{Role, Sorted},
        model::Rejection,
        world::World,
    },
};

/// The ICMP error about one request: by its sightings and their [`way`], or by the injector's word.
pub(in crate::path) fn rejection(
    world: &World<'_>,
    errors: &[(usize, &Sighting)],
    probe: Option<&Probe>,
    way: &Chain<'_>,
) -> Option<Rejection> {
    let by_injector = probe.and_then(|p| p.answer).filter(|a| matches!(a, Answer::IcmpError { .. }));
    match (errors.iter().min_by_key(|(_, s)| std::cmp::Reverse(s.packet.ttl)), by_injector) {
        (Some((_, first)), _) => {
            let L4::Icmp { kind, code, id, seq, .. } = first.packet.l4 else { return None };
            let from = first.packet.src;
            let mut rejection = of_icmp(world, from, (kind, code), told_mtu(from, (kind, code), (id, seq)));
            let (arrived, fate) = fate(world, way);
            rejection.arrived = arrived || by_injector.is_some();
            rejection.fate = fate.filter(|_| !rejection.arrived);
            Some(rejection)
        }
        (None, Some(Answer::IcmpError { from, kind, code, mtu })) => {
            let too_big = is_too_big(from, (kind, code));
            let mtu = (too_big && mtu != 0).then_some(mtu);
            Some(Rejection { arrived: true, ..of_icmp(world, from, (kind, code), mtu) })
        }
        _ => None,
    }
}

fn of_icmp(world: &World<'_>, from: IpAddr, (kind, code): (u8, u8), mtu: Option<u32>) -> Rejection {
    let owner = world.owner(from);
    let meaning = meaning(from, (kind, code));
    Rejection {
        from,
        node: owner.map(|(node, _)| world.node(node).name.clone()).or_else(|| world.names.node(from)),
        pod: match owner {
            Some((node, at)) => world.pod(node, at.netns),
            None => world.names.pod(from),
        },
        icmp_type: Some(kind),
        icmp_code: Some(code),
        meaning: match mtu {
            Some(mtu) => format!("{meaning}, MTU {mtu}"),
            None => meaning,
        },
        mtu,
        arrived: false,
        fate: None,
    }
}

/// "Fragmentation needed" (RFC 1191) and "packet too big" (RFC 4443, 3.2) tell an MTU.
fn is_too_big(from: IpAddr, kind: (u8, u8)) -> bool {
    matches!((from, kind), (IpAddr::V4(_), (3, 4)) | (IpAddr::V6(_), (2, _)))
}

/// `rest`: the two halves of the header's second word.
fn told_mtu(from: IpAddr, kind: (u8, u8), rest: (u16, u16)) -> Option<u32> {
    let mtu = match from {
        IpAddr::V4(_) => u32::from(rest.1),
        IpAddr::V6(_) => u32::from(rest.0) << 16 | u32::from(rest.1),
    };
    (is_too_big(from, kind) && mtu != 0).then_some(mtu)
}

/// The way of the error.
pub(in crate::path) fn way<'a>(
    world: &World<'a>,
    errors: &[(usize, &'a Sighting)],
    sorted: &[Sorted<'a>],
) -> Chain<'a> {
    let nodes = if errors.is_empty() { 0 } else { sorted.len() };
    let mut by_node = vec![Vec::new(); nodes];
    for (node, sighting) in errors {
        by_node[*node].push(*sighting);
    }
    Chain::new(world, Role::Reply, &by_node, sorted)
}

/// Whether the error came to the source of the request; if not, what became of it.
fn fate(world: &World<'_>, way: &Chain<'_>) -> (bool, Option<String>) {
    match drops::end(world, way, false) {
        // Of a source out there no more can be seen.
        End::Delivered | End::Left => (true, None),
        End::Dropped { node, at, cause } => {
            let interface = world.interface(node, crate::path::touch::place(at)).unwrap_or("an interface");
            let place = world.pod(node, at.netns).map_or(String::new(), |pod| format!("pod {pod} on "));
            let place = format!("{place}{} {interface}", world.node(node).name);
            (false, Some(format!("dropped at {place}: {}", cause.detail.why)))
        }
        End::Lost(text, _) => (false, Some(text)),
        End::Unseen | End::Unsent { .. } | End::Unknown(_) => (false, None),
    }
}

/// In plain words.
fn meaning(from: IpAddr, kind: (u8, u8)) -> String {
    let words = match (from, kind) {
        (IpAddr::V4(_), (3, 0)) => "network unreachable",
        (IpAddr::V4(_), (3, 1)) => "host unreachable",
        (IpAddr::V4(_), (3, 2)) => "protocol unreachable",
        (IpAddr::V4(_), (3, 3)) | (IpAddr::V6(_), (1, 4)) => "port unreachable",
        (IpAddr::V4(_), (3, 4)) => "fragmentation needed",
        (IpAddr::V4(_), (3, 9)) => "network administratively prohibited",
        (IpAddr::V4(_), (3, 10)) => "host administratively prohibited",
        (IpAddr::V4(_), (3, 13)) | (IpAddr::V6(_), (1, 1)) => "administratively prohibited",
        (IpAddr::V4(_), (11, 0)) => "TTL expired in transit",
        (IpAddr::V4(_), (11, 1)) | (IpAddr::V6(_), (3, 1)) => "fragments missing after the time limit",
        (IpAddr::V4(_), (12, _)) | (IpAddr::V6(_), (4, _)) => "a header field is wrong",
        (IpAddr::V6(_), (1, 0)) => "no route to the destination",
        (IpAddr::V6(_), (1, 2)) => "beyond the scope of the source address",
        (IpAddr::V6(_), (1, 3)) => "address unreachable",
        (IpAddr::V6(_), (1, 5)) => "source address refused by policy",
        (IpAddr::V6(_), (1, 6)) => "route rejected",
        (IpAddr::V6(_), (2, _)) => "packet too big",
        (IpAddr::V6(_), (3, 0)) => "hop limit expired in transit",
        (_, (kind, code)) => return format!("ICMP error of type {kind}, code {code}"),
    };
    words.to_owned()
}

/// The answer is what a REJECT rule `with` this sends; `with` as iptables and nft name it. An unknown name excludes nothing.
pub(in crate::path) fn is_of(rejection: &Rejection, with: &str) -> bool {
    let Some(kind) = rejection.icmp_type.zip(rejection.icmp_code) else {
        return with == "tcp-reset" || with == "tcp reset";
    };
    // nft_reject_icmp_code, nft_reject_icmpv6_code.
    let by_version = |v4, v6| if rejection.from.is_ipv6() { v6 } else { v4 };
    let sent = match with {
        "tcp-reset" | "tcp reset" => return false,
        "icmp-net-unreachable" => (3, 0),
        "icmp-host-unreachable" => (3, 1),
        "icmp-proto-unreachable" => (3, 2),
        "icmp-port-unreachable" => (3, 3),
        "icmp-net-prohibited" => (3, 9),
        "icmp-host-prohibited" => (3, 10),
        "icmp-admin-prohibited" => (3, 13),
        "icmp6-no-route" => (1, 0),
        "icmp6-adm-prohibited" => (1, 1),
        "icmp6-addr-unreachable" => (1, 3),
        "icmp6-port-unreachable" => (1, 4),
        "icmpx-no-route" => by_version((3, 0), (1, 0)),
        "icmpx-port-unreachable" => by_version((3, 3), (1, 4)),
        "icmpx-host-unreachable" => by_version((3, 1), (1, 3)),
        "icmpx-admin-prohibited" => by_version((3, 13), (1, 1)),
        "icmp6-policy-fail" => (1, 5),
        "icmp6-reject-route" => (1, 6),
        _ => return true,
    };
    kind == sent
}
