//! Causes outside of netfilter: routes, forwarding, reverse paths, TTLs, MTUs, neighbours, links.

use super::{Cause, Scene, refuses, setting, sign::Sign};
use crate::{
    event::L4,
    node::facts::{Link, Route, RouteKind},
    path::{
        model::{Basis, DropCause},
        route,
        touch::Way,
    },
};

pub(super) fn by_sign(scene: &Scene<'_, '_>, sign: Sign, cause: &mut Cause<'_>) {
    match sign {
        Sign::Netfilter => cause.is(DropCause::Netfilter, "netfilter rule"),
        Sign::RpFilter => rp_filter(scene, cause),
        Sign::Routes => routes(scene, cause),
        Sign::Forward => not_forwarded(scene, cause),
        Sign::Source => source(scene, cause),
        Sign::Header if expired(scene) => cause.is(DropCause::TtlExpired, ttl_words(scene)),
        Sign::Header => cause.is(DropCause::Malformed, "bad IP header"),
        Sign::TooBig => too_big(scene, cause),
        Sign::Neighbour => neighbour(scene, cause, ""),
        Sign::NeighbourQueue => neighbour(scene, cause, ", and too many packets wait for it"),
        Sign::Queue => queue(scene, cause),
        Sign::Device => match scene.out().filter(|_| scene.last.way == Way::Out).and_then(down) {
            Some((kind, words)) => cause.is(kind, words),
            None => cause.is(DropCause::InterfaceDown, "the interface is not up"),
        },
        Sign::NoSocket => port_closed(scene, cause),
        Sign::Program(words) => cause.is(DropCause::Program, words),
        Sign::Malformed(words) => cause.is(DropCause::Malformed, words),
        Sign::Other(words) => cause.is(DropCause::Other, words),
    }
}

/// By the port that NAT made of the one that was asked for.
pub(super) fn port_closed(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    let why = match scene.free.packet.l4 {
        _ if scene.free.outer.is_some() => "nothing listens on the tunnel's port: no such tunnel there".to_owned(),
        L4::Tcp { dst_port, .. } | L4::Udp { dst_port, .. } => format!("nothing listens on port {dst_port}"),
        _ => "nothing listens there".to_owned(),
    };
    cause.is(DropCause::PortClosed, why);
}

/// The look-up ended in an error. Which, the routes say: as they are now, hence a route that works now says nothing.
fn routes(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    let reason = cause.detail.reason.as_deref();
    let no_routes = reason.is_some_and(|name| name.ends_with("NOROUTES"));
    let (name, value) = forwarding(scene);
    // `ip_error` gives this reason only where forwarding is off, and then whatever the routes say.
    let off = value == Some("0") || (reason == Some("IP_INADDRERRORS") && scene.is_v4());
    if off && scene.last.way == Way::In && !scene.is_for_here() {
        cause.is(DropCause::NotForwarding, format!("forwarding is disabled ({name} = 0)"));
        cause.detail.settings.extend(value.map(|value| setting(name, value)));
        return;
    }
    if let Some((link, words)) = way_that_is_down(scene) {
        let way =
            format!("{words}, so the kernel has removed the routes by it: {link} leads to {}", scene.header().dst);
        cause.detail.proof.push(way);
        cause.detail.out_interface = Some(link.to_owned());
    }
    let Some(answer) = scene.answer else {
        let why = if no_routes { "no route" } else { "the route look-up failed" };
        cause.is(DropCause::NoRoute, why);
        return;
    };
    match &answer.route {
        None => cause.is(DropCause::NoRoute, "no route"),
        Some(Route { kind, text, .. }) => match refuses(*kind) {
            Some((kind, why)) => {
                cause.is(kind, why);
                cause.route = Some(text.clone());
            }
            None if no_routes => {
                cause.is(DropCause::NoRoute, "no route");
                cause.detail.proof.push(format!("there is a route now: {text}"));
                cause.detail.basis = Basis::Inferred;
            }
            None => {
                cause.is(DropCause::Unknown, "the route look-up failed");
                cause.detail.proof.push(format!("yet there is a route now: {text}"));
                cause.detail.basis = Basis::Inferred;
            }
        },
    }
}

/// The interface of this namespace that leads to the pod with the destination's address, if it is administratively down: then
/// the routes by it are gone (`fib_sync_down_dev`).
fn way_that_is_down<'a>(scene: &Scene<'_, 'a>) -> Option<(&'a str, String)> {
    let (node, pod) = scene.world.owner(scene.header().dst)?;
    let namespaces = scene.world.namespaces(scene.node);
    let peer = namespaces.link(pod).filter(|_| node == scene.node)?.peer?;
    let link = namespaces.link(peer).filter(|_| peer.netns == scene.place().netns)?;
    match down(link)? {
        (DropCause::InterfaceDown, words) => Some((&link.name, words)),
        _ => None,
    }
}

/// The sysctl that lets the namespace forward what comes in by this interface, and its value.
fn forwarding<'a>(scene: &Scene<'_, 'a>) -> (String, Option<&'a str>) {
    let link = scene.inbound().map_or("all", |link| link.name.as_str());
    if scene.is_v4() {
        // Writing ip_forward sets all of them; each interface's own decides.
        let own = format!("net.ipv4.conf.{link}.forwarding");
        match scene.setting(&own) {
            Some(value) if scene.setting("net.ipv4.ip_forward") != Some(value) => (own, Some(value)),
            _ => ("net.ipv4.ip_forward".to_owned(), scene.setting("net.ipv4.ip_forward")),
        }
    } else {
        // `ip6_forward` asks for all interfaces only.
        let name = "net.ipv6.conf.all.forwarding".to_owned();
        let value = scene.setting(&name);
        (name, value)
    }
}

fn rp_filter(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    cause.is(DropCause::RpFilter, "reverse path filter");
    cause.detail.settings = rp_settings(scene);
    cause.detail.reverse_route = reverse(scene).map(|found| found.map_or_else(none, |route| route.text.clone()));
}

fn none() -> String {
    "none".to_owned()
}

fn rp_settings(scene: &Scene<'_, '_>) -> Vec<crate::path::model::SettingDetail> {
    let own = scene.inbound().map(|link| format!("net.ipv4.conf.{}.rp_filter", link.name));
    std::iter::once("net.ipv4.conf.all.rp_filter".to_owned())
        .chain(own)
        .filter_map(|name| Some(setting(name.clone(), scene.setting(&name)?)))
        .collect()
}

/// The route back to the packet's source; outer None: not asked, inner None: there is none.
pub(super) fn reverse<'a>(scene: &Scene<'_, 'a>) -> Option<Option<&'a Route>> {
    let question = route::back(scene.place().netns, scene.header().src);
    scene.world.answer(scene.node, &question).map(|answer| answer.route.as_ref())
}

/// Before 5.17 nothing but the place of the free tells the reverse path filter from a martian source: the settings and
/// the route back decide (`fib_validate_source`).
fn source(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    let settings = rp_settings(scene);
    // The higher of both counts (Documentation/networking/ip-sysctl.rst).
    let mode = settings.iter().filter_map(|s| s.value.parse::<u8>().ok()).max();
    let elsewhere = match (mode, reverse(scene), scene.inbound()) {
        (Some(1), Some(Some(back)), Some(came)) => back.out_ifindex.is_some_and(|out| out != came.ifindex),
        (Some(1 | 2), Some(back), Some(_)) => back.is_none(),
        _ => false,
    };
    let own = matches!(reverse(scene), Some(Some(back)) if back.kind == RouteKind::Local);
    if own {
        let why = format!("its source {} is an address of this node itself (martian)", scene.header().src);
        cause.is(DropCause::Other, &why);
    } else if elsewhere && cause.detail.reason.is_none() {
        rp_filter(scene, cause);
        let settings: Vec<String> = cause.detail.settings.iter().map(|s| format!("{} = {}", s.name, s.value)).collect();
        let back = cause.detail.reverse_route.clone().unwrap_or_else(none);
        cause.detail.proof.push(format!("{}; the route back to {}: {back}", settings.join(", "), scene.header().src));
    } else if mode == Some(0) && scene.inbound().is_some() {
        cause.is(DropCause::Other, "a source or destination address that the kernel refuses (martian)");
    } else {
        cause.is(DropCause::Unknown, "reverse path filter, or an address that the kernel refuses (martian)");
    }
    cause.detail.basis = Basis::Inferred;
}

fn expired(scene: &Scene<'_, '_>) -> bool {
    scene.last.way == Way::In && scene.header().ttl <= 1
}

fn ttl_words(scene: &Scene<'_, '_>) -> &'static str {
    if scene.is_v4() { "TTL expired" } else { "hop limit expired" }
}

/// `ip_forward` freed it, and no reason says for what.
fn not_forwarded(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    let mtu = scene.out().map(|link| link.mtu);
    // `ip6_forward` asks for this before all else.
    if !scene.is_v4() && scene.setting("net.ipv6.conf.all.forwarding") == Some("0") {
        routes(scene, cause);
    } else if expired(scene) {
        cause.is(DropCause::TtlExpired, ttl_words(scene));
        cause.detail.proof.push(format!("it came in with TTL {}", scene.header().ttl));
    } else if mtu.is_some_and(|mtu| u32::from(scene.length()) > mtu) {
        too_big(scene, cause);
    } else {
        cause.is(DropCause::Unknown, "not forwarded: TTL, MTU or policy");
    }
}

fn too_big(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    let length = scene.length();
    match scene.out().filter(|out| u32::from(length) > out.mtu) {
        Some(out) => {
            cause.is(DropCause::TooBig, format!("{length} bytes do not fit the MTU {} of {}", out.mtu, out.name));
            cause.detail.mtu = Some(out.mtu);
        }
        // The MTU of a route, or one learned.
        None => cause.is(DropCause::TooBig, format!("{length} bytes are more than the MTU of the path")),
    }
    cause.detail.out_interface = scene.out().map(|out| out.name.clone());
}

/// Down, as the node's links were read.
pub(super) fn down(link: &Link) -> Option<(DropCause, String)> {
    match link {
        Link { up: true, .. } => None,
        Link { admin_up: true, name, .. } => {
            Some((DropCause::NoCarrier, format!("{name} has no carrier: its other end is down")))
        }
        Link { name, .. } => Some((DropCause::InterfaceDown, format!("{name} is administratively down"))),
    }
}

/// The queue of an interface refuses packets when it is full, and all when the interface is down (`noop_qdisc`).
fn queue(scene: &Scene<'_, '_>, cause: &mut Cause<'_>) {
    match scene.out().and_then(down) {
        Some((kind, words)) => {
            cause.is(kind, words);
            cause.detail.basis = Basis::Inferred;
        }
        None if cause.detail.reason.as_deref().is_some_and(|reason| reason != "NOT_SPECIFIED") => {
            cause.is(DropCause::QueueFull, "the interface's queue is full");
        }
        // `__dev_queue_xmit` frees what an egress filter refuses (before 5.17 without saying so), too.
        None => cause.is(DropCause::Unknown, "not queued: a traffic control filter or program, or a full queue"),
    }
}

fn neighbour(scene: &Scene<'_, '_>, cause: &mut Cause<'_>, what: &str) {
    let route = scene.route().filter(|route| route.kind == RouteKind::Unicast);
    let next = route.map_or(scene.header().dst, |route| route.gateway.unwrap_or(scene.header().dst));
    let protocol = if scene.is_v4() { "ARP" } else { "neighbour discovery" };
    // Without a route it is not known by which gateway.
    let asked = if route.is_some() { next.to_string() } else { format!("the next hop towards {next}") };
    let Some(out) = scene.out() else {
        cause.is(DropCause::Neighbour, format!("no answer to {protocol} for {asked}{what}"));
        return;
    };
    // An interface without carrier resolves nothing.
    if let Some((kind, words)) = down(out) {
        cause.is(kind, words);
        cause.detail.proof.push(format!("{protocol} for {asked} got no answer"));
        cause.detail.basis = Basis::Inferred;
    } else {
        cause.is(DropCause::Neighbour, format!("no answer to {protocol} for {asked}{what}"));
    }
    let entries = &scene.world.node(scene.node).facts.neighbours;
    let entry = entries.iter().find(|n| (n.netns, n.ifindex, n.address) == (scene.place().netns, out.ifindex, next));
    cause.detail.out_interface = Some(out.name.clone());
    cause.detail.neighbour = entry.map(|n| match &n.mac {
        Some(mac) => format!("{next} dev {} lladdr {mac} {}", out.name, n.state),
        None => format!("{next} dev {} {}", out.name, n.state),
    });
}
