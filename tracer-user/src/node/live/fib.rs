//! The kernel's routing decision, repeated in userspace on dumped rules and routes.
//!
//! Needed where the kernel itself answers a lookup with nothing but an error: blackhole, unreachable and prohibit
//! routes (`net/ipv4/route.c`, inet_rtm_getroute; `net/ipv6/route.c`, inet6_rtm_getroute). Follows
//! `net/core/fib_rules.c` (fib_rules_lookup, fib_rule_match) and the longest match of both FIBs. Pure.
//!
//! A rule that asks for what a [`RouteQuestion`](super::facts::RouteQuestion) does not tell (type of service, ports,
//! protocol, user, tunnel id, output interface, VRF) is taken not to match.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

/// `RT_TABLE_LOCAL`, `RT_TABLE_MAIN`, `RT_TABLE_DEFAULT`: the tables of the rules every namespace starts with.
pub(super) const TABLE_LOCAL: u32 = 255;
pub(super) const TABLE_MAIN: u32 = 254;
pub(super) const TABLE_DEFAULT: u32 = 253;

/// What a lookup goes by.
#[derive(Clone, Debug)]
pub(super) struct Packet<'a> {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    /// Name of the interface it came in by; `lo` for the namespace's own packets, as the kernel has it.
    pub(super) iif: &'a str,
    pub(super) mark: u32,
}

/// What decided.
#[derive(Debug, PartialEq)]
pub(super) enum Decision<'a> {
    /// A route, of any type.
    Route(&'a RouteMessage),
    /// A rule that ends the lookup by itself (blackhole, unreachable, prohibit).
    Rule(&'a RuleMessage),
}

/// Walks the `rules`, which the kernel lists in the order it asks them, over `routes` of all tables.
pub(super) fn decide<'a>(
    rules: &'a [RuleMessage],
    routes: &'a [RouteMessage],
    packet: &Packet<'_>,
) -> Option<Decision<'a>> {
    let mut at = 0;
    while let Some(rule) = rules.get(at) {
        at += 1;
        if !rule_matches(rule, packet) {
            continue;
        }
        match rule.header.action {
            RuleAction::ToTable => {
                if let Some(route) = longest_match(routes, rule_table(rule), packet)
                    && route.header.kind != RouteType::Throw
                    && !suppressed(rule, route)
                {
                    return Some(Decision::Route(route));
                }
            }
            RuleAction::Goto => {
                // The kernel refuses jumps backwards, so this ends. An unresolved target is passed over.
                let target = attribute(rule, |a| match a {
                    RuleAttribute::Goto(priority) => Some(*priority),
                    _ => None,
                });
                if let Some(next) = rules.iter().skip(at).position(|r| Some(rule_priority(r)) == target) {
                    at += next;
                }
            }
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => {
                return Some(Decision::Rule(rule));
            }
            _ => {}
        }
    }
    None
}

/// The rules of a namespace whose kernel has no policy routing.
pub(super) fn default_rules(family: AddressFamily) -> Vec<RuleMessage> {
    let rule = |table: u32| {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.attributes.push(RuleAttribute::Table(table));
        rule
    };
    [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT].map(rule).to_vec()
}

fn longest_match<'a>(routes: &'a [RouteMessage], table: u32, packet: &Packet<'_>) -> Option<&'a RouteMessage> {
    routes
        .iter()
        .filter(|route| route_table(route) == table && usable(route))
        .filter(|route| destination(route).is_some_and(|prefix| prefix.contains(&packet.dst)))
        .filter(|route| source(route).is_none_or(|prefix| prefix.contains(&packet.src)))
        // The last maximum would win in max_by_key; of equals the kernel takes the first.
        .min_by_key(|route| {
            let header = &route.header;
            let longest_first = |length: u8| u8::MAX - length;
            (longest_first(header.destination_prefix_length), longest_first(header.source_prefix_length), metric(route))
        })
}

/// Cached entries and dead next hops do not take part; routes for one type of service need a packet that has it.
fn usable(route: &RouteMessage) -> bool {
    let header = &route.header;
    !header.flags.intersects(RouteFlags::Cloned | RouteFlags::Dead) && header.tos == 0
}

fn rule_matches(rule: &RuleMessage, packet: &Packet<'_>) -> bool {
    let (mut dst, mut src) = (None, None);
    let (mut mark, mut mask) = (0, None);
    let mut matches = rule.header.tos == 0;
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Destination(address) => dst = Some(*address),
            RuleAttribute::Source(address) => src = Some(*address),
            RuleAttribute::Iifname(name) => matches &= name == packet.iif,
            RuleAttribute::FwMark(value) => mark = *value,
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::UidRange(range) => matches &= range.start == 0 && range.end == u32::MAX,
            RuleAttribute::L3MDev(on) => matches &= !on,
            RuleAttribute::TunId(id) => matches &= *id == 0,
            RuleAttribute::IpProtocol(protocol) => matches &= u8::from(*protocol) == 0,
            RuleAttribute::Oifname(_) | RuleAttribute::SourcePortRange(_) | RuleAttribute::DestinationPortRange(_) => {
                matches = false
            }
            _ => {}
        }
    }
    // A mark without a mask stands for all 32 bits; no mark and no mask asks nothing.
    let mask = mask.unwrap_or(if mark == 0 { 0 } else { u32::MAX });
    matches &= (mark ^ packet.mark) & mask == 0;
    matches &= within(dst, rule.header.dst_len, packet.dst) && within(src, rule.header.src_len, packet.src);
    matches != rule.header.flags.contains(RuleFlags::Invert)
}

fn within(prefix: Option<IpAddr>, length: u8, address: IpAddr) -> bool {
    prefix.is_none_or(|prefix| IpNet::new(prefix, length).is_ok_and(|net| net.contains(&address)))
}

/// `suppress_prefixlength N`: a route no longer than N does not count (fib4_rule_suppress, fib6_rule_suppress).
fn suppressed(rule: &RuleMessage, route: &RouteMessage) -> bool {
    rule.attributes.iter().any(|a| match a {
        // -1 means unset.
        RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => {
            u32::from(route.header.destination_prefix_length) <= *length
        }
        _ => false,
    })
}

fn attribute<T>(rule: &RuleMessage, pick: impl Fn(&RuleAttribute) -> Option<T>) -> Option<T> {
    rule.attributes.iter().find_map(pick)
}

fn rule_table(rule: &RuleMessage) -> u32 {
    attribute(rule, |a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    })
    .unwrap_or_else(|| rule.header.table.into())
}

/// Priority of a rule; the first rule of a namespace says none and has 0.
pub(super) fn rule_priority(rule: &RuleMessage) -> u32 {
    attribute(rule, |a| match a {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
    .unwrap_or_default()
}

fn route_attribute<T>(route: &RouteMessage, pick: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    route.attributes.iter().find_map(pick)
}

/// Table of a route: the attribute, because the header's field ends at 255.
pub(super) fn route_table(route: &RouteMessage) -> u32 {
    route_attribute(route, |a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    })
    .unwrap_or_else(|| route.header.table.into())
}

/// Prefix of a route; None for families other than IP.
pub(super) fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route_attribute(route, |a| match a {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    prefix(route.header.address_family, address, route.header.destination_prefix_length)
}

/// Prefix of sources that a (IPv6) route is for, if it is not for all.
fn source(route: &RouteMessage) -> Option<IpNet> {
    let address = route_attribute(route, |a| match a {
        RouteAttribute::Source(address) => ip(address),
        _ => None,
    });
    let length = route.header.source_prefix_length;
    if length == 0 { None } else { prefix(route.header.address_family, address, length) }
}

fn prefix(family: AddressFamily, address: Option<IpAddr>, length: u8) -> Option<IpNet> {
    let any: IpAddr = match family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(address.unwrap_or(any), length).ok()
}

/// Metric of a route; the lowest wins.
pub(super) fn metric(route: &RouteMessage) -> u32 {
    route_attribute(route, |a| match a {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    })
    .unwrap_or_default()
}

/// Next hop of a route with one next hop.
pub(super) fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route_attribute(route, |a| match a {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

/// All interfaces that a route leaves by.
pub(super) fn out_ifindexes(route: &RouteMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.push(*index),
            RouteAttribute::MultiPath(hops) => found.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    found
}

/// The address in an attribute.
pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "fib_tests.rs"]
mod tests;
