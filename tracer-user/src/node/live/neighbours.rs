//! Neighbour entries of next hops.

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::LinkLayerType,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{
    error::Failure,
    facts::{Neighbour, RouteAnswer, RouteKind},
    netlink::Netlink,
    routes::family,
    view::hardware_address,
};

/// Whom the packets of an answer are handed to: the gateway, or on a direct route the destination.
pub(super) fn next_hop(answer: &RouteAnswer) -> Option<(u32, IpAddr)> {
    let route = answer.route.as_ref().filter(|route| route.kind == RouteKind::Unicast)?;
    Some((route.out_ifindex?, route.gateway.unwrap_or(answer.question.dst)))
}

/// The entry for `address` on interface `ifindex`, if there is one (`net/core/neighbour.c`, neigh_get; Linux 5.0).
pub(super) fn get(
    netlink: &mut Netlink,
    netns: u32,
    ifindex: u32,
    address: IpAddr,
) -> Result<Option<Neighbour>, Failure> {
    let mut request = NeighbourMessage::default();
    request.header.family = family(address);
    request.header.ifindex = ifindex;
    request.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
    match netlink.get(RouteNetlinkMessage::GetNeighbour(request)) {
        Ok(RouteNetlinkMessage::NewNeighbour(message)) => Ok(Some(neighbour(netns, address, &message))),
        // No entry yet, or a device that needs none.
        Ok(_) => Ok(None),
        Err(failure) if matches!(failure.errno(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn neighbour(netns: u32, address: IpAddr, message: &NeighbourMessage) -> Neighbour {
    let mac = message.attributes.iter().find_map(|a| match a {
        // The layer only changes how tunnels' IPv4 addresses are printed, and those have no entries.
        NeighbourAttribute::LinkLayerAddress(bytes) => Some(hardware_address(LinkLayerType::Ether, bytes)),
        _ => None,
    });
    Neighbour { netns, ifindex: message.header.ifindex, address, mac, state: state(message.header.state) }
}

/// As `ip neigh` prints it.
fn state(state: NeighbourState) -> String {
    match state {
        NeighbourState::Other(bits) => format!("{bits:#x}"),
        known => known.to_string().to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::facts::{Route, RouteQuestion};

    fn answer(kind: RouteKind, gateway: Option<&str>) -> RouteAnswer {
        let question = RouteQuestion {
            netns: 1,
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            in_ifindex: None,
            mark: 0,
        };
        let route = Route {
            kind,
            destination: "0.0.0.0/0".parse().unwrap(),
            gateway: gateway.map(|g| g.parse().unwrap()),
            out_ifindex: Some(2),
            table: 254,
            text: String::new(),
        };
        RouteAnswer { question, route: Some(route), icmp_source: None }
    }

    #[test]
    fn the_next_hop_is_the_gateway_or_the_destination() {
        let hop = |kind, gateway| next_hop(&answer(kind, gateway)).map(|(index, address)| (index, address.to_string()));
        assert_eq!(hop(RouteKind::Unicast, Some("10.0.0.254")), Some((2, "10.0.0.254".into())));
        assert_eq!(hop(RouteKind::Unicast, None), Some((2, "10.0.0.2".into())));
        assert_eq!(hop(RouteKind::Blackhole, None), None);
        assert_eq!(hop(RouteKind::Local, None), None);
    }

    #[test]
    fn states_are_named_as_ip_does() {
        assert_eq!(state(NeighbourState::Reachable), "REACHABLE");
        assert_eq!(state(NeighbourState::Permanent), "PERMANENT");
        assert_eq!(state(NeighbourState::Noarp), "NOARP");
    }
}
