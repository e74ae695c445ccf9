//! Answers route questions the way the kernel would.

use std::{fs, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteType},
    rule::{RuleAction, RuleMessage},
};

use super::{
    error::Failure,
    facts::{Link, Route, RouteAnswer, RouteKind, RouteQuestion},
    fib::{self, Decision, Packet, decide, default_rules},
    netlink::Netlink,
    text::{Names, Words, route_text, rule_text},
};

/// The namespace that questions are put to.
pub(super) struct Place<'a> {
    /// A socket of that namespace.
    pub(super) netlink: Netlink,
    pub(super) links: &'a [Link],
    pub(super) names: Names,
    pub(super) switches: Switches,
}

/// Switches that decide which address an ICMP error comes from, and which of several next hops a packet takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Switches {
    /// `net.ipv4.icmp_errors_use_inbound_ifaddr`.
    pub(super) inbound_address: bool,
    /// `net.ipv4.fwmark_reflect`.
    pub(super) reflect_mark: bool,
    /// `net.ipv6.fwmark_reflect`.
    pub(super) reflect_mark6: bool,
    /// `net.ipv4.fib_multipath_hash_policy`: more than addresses decides.
    pub(super) hash_more: bool,
}

impl Switches {
    /// Those of the calling thread's namespace, whichever process's `/proc/sys` it is. Absent means off.
    pub(super) fn read() -> Self {
        let on = |name: &str| fs::read_to_string(format!("/proc/sys/net/{name}")).is_ok_and(|text| text.trim() != "0");
        Self {
            inbound_address: on("ipv4/icmp_errors_use_inbound_ifaddr"),
            reflect_mark: on("ipv4/fwmark_reflect"),
            reflect_mark6: on("ipv6/fwmark_reflect"),
            hash_more: on("ipv4/fib_multipath_hash_policy"),
        }
    }
}

impl Place<'_> {
    /// Answers one question.
    pub(super) fn answer(&mut self, question: &RouteQuestion) -> Result<RouteAnswer, Failure> {
        let route = self.route(question)?;
        let icmp_source = self.icmp_source(question, route.as_ref());
        Ok(RouteAnswer { question: question.clone(), route, icmp_source })
    }

    fn route(&mut self, question: &RouteQuestion) -> Result<Option<Route>, Failure> {
        let asked = lookup(&mut self.netlink, question.dst, |request| {
            // Without LookupTable the kernel says "main" whatever the table was (inet_rtm_getroute).
            request.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
            put(request, question);
        });
        match asked {
            Ok(route) => {
                let described = self.describe(&route);
                Ok(described.map(|described| self.chosen(question, described, &route)))
            }
            Err(Failure::Refused(error)) => self.match_here(question, error.raw_os_error()),
            Err(failure) => Err(failure),
        }
    }

    /// The kernel answered only `errno`: find out by which route or rule.
    fn match_here(&mut self, question: &RouteQuestion, errno: Option<i32>) -> Result<Option<Route>, Failure> {
        let family = family(question.dst);
        let rules = dump_rules(&mut self.netlink, family)?;
        let routes = dump_routes(&mut self.netlink, question.dst)?;
        let iif = match question.in_ifindex {
            Some(index) => self.names.get(&index).map_or("", String::as_str),
            None => "lo",
        };
        let packet = Packet { src: question.src, dst: question.dst, iif, mark: question.mark };
        let found = match decide(&rules, &routes, &packet) {
            Some(Decision::Route(route)) => self.describe(route),
            Some(Decision::Rule(rule)) => Some(describe_rule(rule, question.dst)),
            None => None,
        };
        // Other errors leave the lookup's result standing: reverse path filter (EXDEV), a martian source (EINVAL),
        // no forwarding (EHOSTUNREACH). This one says that the lookup found nothing.
        Ok(found.filter(|route| route.kind != RouteKind::Unicast || errno != Some(libc::ENETUNREACH)))
    }

    /// Of several next hops, the one the kernel takes for these two addresses. Where it goes by more than them (ports, IPv6 flow
    /// labels) the question does not tell enough.
    fn chosen(&mut self, question: &RouteQuestion, mut route: Route, of: &RouteMessage) -> Route {
        let several = fib::out_ifindexes(of).len() > 1;
        if !several || self.switches.hash_more || !question.dst.is_ipv4() || question.src.is_unspecified() {
            return route;
        }
        if let Ok(taken) = lookup(&mut self.netlink, question.dst, |request| put(request, question))
            && let [out] = fib::out_ifindexes(&taken).as_slice()
        {
            (route.out_ifindex, route.gateway) = (Some(*out), fib::gateway(&taken));
        }
        route
    }

    fn describe(&self, route: &RouteMessage) -> Option<Route> {
        let out = fib::out_ifindexes(route);
        Some(Route {
            kind: kind(route.header.kind),
            destination: fib::destination(route)?,
            gateway: fib::gateway(route),
            // Several next hops: which one a packet took, only the packet's own hop tells.
            out_ifindex: if let [only] = out.as_slice() { Some(*only) } else { None },
            table: fib::route_table(route),
            text: route_text(route, &self.names, Words::of_this_machine()),
        })
    }

    /// The source that `icmp_send` would choose (`net/ipv4/icmp.c`, __icmp_send; `net/ipv6/icmp.c`, icmp6_send).
    fn icmp_source(&mut self, question: &RouteQuestion, route: Option<&Route>) -> Option<IpAddr> {
        if route.is_some_and(|route| route.kind == RouteKind::Local) {
            return Some(question.dst); // For us: answered from the address it was sent to.
        }
        let v4 = question.src.is_ipv4();
        let inbound = question.in_ifindex.filter(|_| v4 && self.switches.inbound_address);
        if let Some(address) = inbound.and_then(|index| inbound_address(self.links, index, question.src)) {
            return Some(address);
        }
        let reflect = if v4 { self.switches.reflect_mark } else { self.switches.reflect_mark6 };
        let back = lookup(&mut self.netlink, question.src, |request| {
            if reflect {
                request.attributes.push(RouteAttribute::Mark(question.mark));
            }
        });
        // No way back to the sender: no error is sent.
        back.ok()?.attributes.iter().find_map(|a| match a {
            RouteAttribute::PrefSource(address) => fib::ip(address),
            _ => None,
        })
    }
}

/// `inet_select_addr` (`net/ipv4/devinet.c`): of the interface the address that shares a subnet with `towards`, else
/// its first, else the first of any interface.
fn inbound_address(links: &[Link], ifindex: u32, towards: IpAddr) -> Option<IpAddr> {
    let usable = |net: &&IpNet| net.addr().is_ipv4() && !net.addr().is_loopback();
    let on = links.iter().find(|link| link.ifindex == ifindex)?;
    on.addresses
        .iter()
        .filter(usable)
        .find(|net| net.contains(&towards))
        .or_else(|| on.addresses.iter().find(usable))
        .or_else(|| links.iter().flat_map(|link| &link.addresses).find(usable))
        .map(IpNet::addr)
}

/// `RTM_GETROUTE` towards `dst`, with what `more` adds to the request.
pub(super) fn lookup(
    netlink: &mut Netlink,
    dst: IpAddr,
    more: impl FnOnce(&mut RouteMessage),
) -> Result<RouteMessage, Failure> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(dst);
    request.header.destination_prefix_length = host_length(dst);
    request.attributes.push(RouteAttribute::Destination(dst.into()));
    more(&mut request);
    match netlink.get(RouteNetlinkMessage::GetRoute(request))? {
        RouteNetlinkMessage::NewRoute(route) => Ok(route),
        other => Err(Failure::Decode(format!("expected a route, got {other:?}").into())),
    }
}

/// The address that a packet to `dst` leaves with, if nobody binds it to another.
pub(super) fn preferred_source(netlink: &mut Netlink, dst: IpAddr) -> Result<Option<IpAddr>, Failure> {
    let route = lookup(netlink, dst, |_| {})?;
    Ok(route.attributes.iter().find_map(|a| match a {
        RouteAttribute::PrefSource(address) => fib::ip(address),
        _ => None,
    }))
}

/// What a question asks beside the destination.
fn put(request: &mut RouteMessage, question: &RouteQuestion) {
    if !question.src.is_unspecified() {
        request.header.source_prefix_length = host_length(question.src);
        request.attributes.push(RouteAttribute::Source(question.src.into()));
    }
    request.attributes.extend(question.in_ifindex.map(RouteAttribute::Iif));
    request.attributes.push(RouteAttribute::Mark(question.mark));
}

fn dump_rules(netlink: &mut Netlink, family: AddressFamily) -> Result<Vec<RuleMessage>, Failure> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    let rules = netlink.dump(&RouteNetlinkMessage::GetRule(request), |message| match message {
        RouteNetlinkMessage::NewRule(rule) if rule.header.family == family => Some(rule),
        _ => None,
    });
    match rules {
        Ok(rules) => Ok(rules),
        // A kernel without policy routing for this family.
        Err(failure) if failure.errno() == Some(libc::EOPNOTSUPP) => Ok(default_rules(family)),
        Err(failure) => Err(failure),
    }
}

/// The routes of all tables whose prefix holds `dst`; nothing else is kept of tables that may be long.
fn dump_routes(netlink: &mut Netlink, dst: IpAddr) -> Result<Vec<RouteMessage>, Failure> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(dst);
    netlink.dump(&RouteNetlinkMessage::GetRoute(request), |message| match message {
        RouteNetlinkMessage::NewRoute(route) => {
            fib::destination(&route).is_some_and(|prefix| prefix.contains(&dst)).then_some(route)
        }
        _ => None,
    })
}

fn describe_rule(rule: &RuleMessage, dst: IpAddr) -> Route {
    let kind = match rule.header.action {
        RuleAction::Blackhole => RouteKind::Blackhole,
        RuleAction::Unreachable => RouteKind::Unreachable,
        RuleAction::Prohibit => RouteKind::Prohibit,
        _ => RouteKind::Other,
    };
    let all: IpNet = if dst.is_ipv4() { ipnet::Ipv4Net::default().into() } else { ipnet::Ipv6Net::default().into() };
    Route { kind, destination: all, gateway: None, out_ifindex: None, table: 0, text: rule_text(rule) }
}

fn kind(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => RouteKind::Broadcast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        _ => RouteKind::Other,
    }
}

/// The netlink family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, addresses: &[&str]) -> Link {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Link { ifindex, addresses, ..Link::default() }
    }

    #[test]
    fn an_inbound_address_is_of_the_senders_subnet_if_there_is_one() {
        let links = [
            link(1, &["127.0.0.1/8", "::1/128"]),
            link(2, &["172.20.50.50/19", "10.1.0.1/24"]),
            link(3, &["fe80::1/64"]),
        ];
        let to = |index, address: &str| inbound_address(&links, index, address.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(to(2, "10.1.0.9").as_deref(), Some("10.1.0.1"));
        assert_eq!(to(2, "8.8.8.8").as_deref(), Some("172.20.50.50"));
        assert_eq!(to(3, "8.8.8.8").as_deref(), Some("172.20.50.50"), "an interface without one borrows");
        assert_eq!(to(9, "8.8.8.8"), None);
    }
}
