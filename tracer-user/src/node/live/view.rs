//! What one namespace shows of itself: links, addresses, default routes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoData, InfoVlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    },
    route::{RouteFlags, RouteMessage, RouteType},
};

use super::{
    error::Failure,
    facts::Link,
    fib::{TABLE_MAIN, gateway, metric, out_ifindexes, route_table},
    netlink::Netlink,
    tunnel,
};

/// A link, with where its other end is, as seen from its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SeenLink {
    /// Without peer: the other end has no inode yet, only an id.
    pub(super) link: Link,
    /// `IFLA_LINK`: interface index of the other end (veth) or of the device underneath (VLAN, macvlan, tunnel).
    pub(super) other: Option<u32>,
    /// `IFLA_LINK_NETNSID`: in which namespace `other` is, if in another one. The number means something only in
    /// this namespace.
    pub(super) other_nsid: Option<i32>,
}

/// A route that packets leave by when nothing nearer is known, or by way of another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WayOut {
    pub(super) family: AddressFamily,
    /// Prefix length 0.
    pub(super) default: bool,
    pub(super) metric: u32,
    /// Interface indexes.
    pub(super) out: Vec<u32>,
}

/// One namespace, read from inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// By interface index.
    pub(super) links: BTreeMap<u32, SeenLink>,
    /// Default routes and routes with a gateway, main table.
    pub(super) ways_out: Vec<WayOut>,
}

/// Reads the namespace that the calling thread is in and that `netlink` belongs to.
pub(super) fn read(netlink: &mut Netlink) -> Result<View, Failure> {
    let mut links = read_links(netlink)?;
    for (ifindex, address) in read_addresses(netlink)? {
        if let Some(seen) = links.get_mut(&ifindex) {
            seen.link.addresses.push(address);
        }
    }
    let mut ways_out = read_ways_out(netlink, AddressFamily::Inet)?;
    ways_out.extend(read_ways_out(netlink, AddressFamily::Inet6)?);
    Ok(View { links, ways_out })
}

fn read_links(netlink: &mut Netlink) -> Result<BTreeMap<u32, SeenLink>, Failure> {
    let mut request = LinkMessage::default();
    // Counters are half of each answer, and nobody reads them.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = netlink.dump(&RouteNetlinkMessage::GetLink(request), |message| match message {
        RouteNetlinkMessage::NewLink(message) => Some(seen_link(message)),
        _ => None,
    })?;
    Ok(links.into_iter().map(|seen| (seen.link.ifindex, seen)).collect())
}

fn seen_link(message: LinkMessage) -> SeenLink {
    let header = message.header;
    let up = header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let admin_up = header.flags.contains(LinkFlags::Up);
    let link = Link { ifindex: header.index, up, admin_up, ..Link::default() };
    let mut seen = SeenLink { link, ..SeenLink::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => seen.link.name = name,
            LinkAttribute::Mtu(mtu) => seen.link.mtu = mtu,
            LinkAttribute::Address(bytes) => seen.link.mac = hardware_address(header.link_layer_type, &bytes),
            LinkAttribute::Controller(master) => seen.link.master = Some(master),
            // 0: a tunnel bound to no device.
            LinkAttribute::Link(index) => seen.other = (index != 0).then_some(index),
            LinkAttribute::Xdp(infos) => {
                seen.link.xdp = infos.iter().find_map(|info| match info {
                    LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
                    _ => None,
                });
            }
            LinkAttribute::LinkNetNsId(id) => seen.other_nsid = Some(id),
            LinkAttribute::LinkInfo(infos) => {
                seen.link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                seen.link.vlan = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(all)) => all.iter().find_map(|info| match info {
                        InfoVlan::Id(id) => Some(*id),
                        _ => None,
                    }),
                    _ => None,
                });
                seen.link.tunnel = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(data) => tunnel::settings(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    seen
}

/// As `ip link` prints it: tunnels over IPv4 have an address of that kind.
pub(super) fn hardware_address(layer: LinkLayerType, bytes: &[u8]) -> String {
    match (layer, bytes) {
        (LinkLayerType::Tunnel | LinkLayerType::Sit | LinkLayerType::Ipgre, [a, b, c, d]) => {
            format!("{a}.{b}.{c}.{d}")
        }
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
    }
}

fn read_addresses(netlink: &mut Netlink) -> Result<Vec<(u32, IpNet)>, Failure> {
    netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        // On a point-to-point link ADDRESS is the other side's, LOCAL ours; IPv6 mostly has ADDRESS only.
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })?;
        Some((message.header.index, IpNet::new(address, message.header.prefix_len).ok()?))
    })
}

fn read_ways_out(netlink: &mut Netlink, family: AddressFamily) -> Result<Vec<WayOut>, Failure> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    netlink.dump(&RouteNetlinkMessage::GetRoute(request), |message| {
        let RouteNetlinkMessage::NewRoute(route) = message else { return None };
        let default = route.header.destination_prefix_length == 0;
        let counts = route.header.kind == RouteType::Unicast
            && route_table(&route) == TABLE_MAIN
            && !route.header.flags.contains(RouteFlags::Cloned)
            && (default || gateway(&route).is_some());
        counts.then(|| WayOut { family, default, metric: metric(&route), out: out_ifindexes(&route) })
    })
}
