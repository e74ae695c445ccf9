//! nftables' matches as conditions and in nft's own words.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{
    super::facts::{Condition, ConditionField},
    attributes::text,
    expression::{Operator, Source},
    model::{Part, address, prefix_length, protocol_name, states},
    rule::{Loaded, verdict_text},
    sets::Set,
    xt,
};

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
pub(super) const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `ct state untracked`.
const UNTRACKED: u32 = 1 << 6;
/// Flags of a fib lookup: by source address, result oif, with the packet's mark, from the incoming interface.
const FIB_SOURCE: u32 = 1;
const FIB_IIF: u32 = 8;
const FIB_MARK: u32 = 4;
/// So many elements of a set are printed.
const SHOWN: usize = 8;

/// What a value is, which decides how it is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    Mark,
    State,
    Name,
    Index,
    Other,
}

fn kind(loaded: &Loaded<'_>, version: Option<u8>) -> Kind {
    match (loaded.source, version) {
        (Source::Meta(META_MARK), _) => Kind::Mark,
        (Source::Meta(META_IIFNAME | META_OIFNAME), _) => Kind::Name,
        (Source::Meta(META_IIF | META_OIF), _) => Kind::Index,
        (Source::Meta(META_L4PROTO), _) => Kind::Protocol,
        (Source::Conntrack(CT_STATE, _), _) => Kind::State,
        (Source::Payload { base: NETWORK, offset: 12, length: 1..=4 }, Some(4)) => Kind::Source,
        (Source::Payload { base: NETWORK, offset: 16, length: 1..=4 }, Some(4)) => Kind::Destination,
        (Source::Payload { base: NETWORK, offset: 9, length: 1 }, Some(4)) => Kind::Protocol,
        (Source::Payload { base: NETWORK, offset: 8, length: 1..=16 }, Some(6)) => Kind::Source,
        (Source::Payload { base: NETWORK, offset: 24, length: 1..=16 }, Some(6)) => Kind::Destination,
        (Source::Payload { base: NETWORK, offset: 6, length: 1 }, Some(6)) => Kind::Protocol,
        (Source::Payload { base: TRANSPORT, offset: 0, length: 2 }, _) => Kind::SourcePort,
        (Source::Payload { base: TRANSPORT, offset: 2, length: 2 }, _) => Kind::DestinationPort,
        _ => Kind::Other,
    }
}

/// How many bytes of a key a register fills.
pub(super) fn width(loaded: &Loaded<'_>) -> Option<u32> {
    match loaded.source {
        Source::Meta(META_IIFNAME | META_OIFNAME) => Some(16),
        Source::Meta(META_MARK | META_IIF | META_OIF) => Some(4),
        Source::Meta(META_L4PROTO | META_NFPROTO) => Some(1),
        Source::Payload { length, .. } => Some(length),
        Source::Conntrack(CT_STATE, _) => Some(4),
        _ => None,
    }
}

/// The condition that `loaded == value` is, and whether it says the opposite.
pub(super) fn field(
    loaded: &Loaded<'_>,
    value: &[u8],
    version: Option<u8>,
    links: &HashMap<u32, String>,
) -> Option<(ConditionField, bool)> {
    let kind = kind(loaded, version);
    let plain = |field: ConditionField| loaded.masked.is_none().then_some((field, false));
    match kind {
        Kind::Source => Some((ConditionField::Source(net(loaded, value, version)?), false)),
        Kind::Destination => Some((ConditionField::Destination(net(loaded, value, version)?), false)),
        Kind::Protocol => plain(ConditionField::Protocol(*value.first()?)),
        Kind::SourcePort => port(value).and_then(|port| plain(ConditionField::SourcePort(port, port))),
        Kind::DestinationPort => port(value).and_then(|port| plain(ConditionField::DestinationPort(port, port))),
        Kind::Mark => {
            let mask = unflipped(loaded).map_or(Some(u32::MAX), |(mask, zero)| zero.then(|| native(mask))?)?;
            Some((ConditionField::Mark(native(value)?, mask), false))
        }
        Kind::State => match unflipped(loaded) {
            None => plain(ConditionField::ConntrackState(states(native(value)?, UNTRACKED))),
            // `ct state a,b` is "the masked state is not 0".
            Some((mask, true)) if native(value)? == 0 => {
                Some((ConditionField::ConntrackState(states(native(mask)?, UNTRACKED)), true))
            }
            Some(_) => None,
        },
        Kind::Name => plain(interface(loaded, name(value))),
        Kind::Index => plain(interface(loaded, links.get(&native(value)?)?.clone())),
        Kind::Other => reverse_path(loaded, value),
    }
}

/// The mask of a masked value, and whether nothing is flipped.
fn unflipped<'a>(loaded: &Loaded<'a>) -> Option<(&'a [u8], bool)> {
    loaded.masked.map(|(mask, xor)| (mask, xor.iter().all(|byte| *byte == 0)))
}

fn interface(loaded: &Loaded<'_>, name: String) -> ConditionField {
    match loaded.source {
        Source::Meta(META_IIF | META_IIFNAME) => ConditionField::InInterface(name),
        _ => ConditionField::OutInterface(name),
    }
}

/// A name that is compared without its NUL is the beginning of one.
fn name(value: &[u8]) -> String {
    if value.contains(&0) { text(value) } else { format!("{}+", text(value)) }
}

/// `fib saddr . iif oif missing`, with `. mark` or without.
fn reverse_path(loaded: &Loaded<'_>, value: &[u8]) -> Option<(ConditionField, bool)> {
    let Source::Fib { result: 1 | 2, flags } = loaded.source else { return None };
    let by_source = flags & FIB_SOURCE != 0 && flags & FIB_IIF != 0 && flags & 0b1_0010 == 0;
    let missing = value.iter().all(|byte| *byte == 0);
    (by_source && loaded.masked.is_none()).then_some((ConditionField::ReversePathFails, !missing))
}

fn net(loaded: &Loaded<'_>, value: &[u8], version: Option<u8>) -> Option<IpNet> {
    let full = if version? == 4 { 4 } else { 16 };
    // nft loads only as many bytes as a prefix has.
    let loaded_bits = u8::try_from(value.len().checked_mul(8)?).ok()?;
    let length = match unflipped(loaded) {
        None => loaded_bits,
        Some((mask, true)) => prefix_length(mask)?.min(loaded_bits),
        Some((_, false)) => return None,
    };
    let mut bytes = value.to_vec();
    bytes.resize(full, 0);
    IpNet::new(address(&bytes)?, length).ok()
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

fn native(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A range of ports.
pub(super) fn port_range(loaded: &Loaded<'_>, low: &[u8], high: &[u8]) -> Option<ConditionField> {
    let (low, high) = (port(low)?, port(high)?);
    match kind(loaded, None) {
        Kind::SourcePort if loaded.masked.is_none() => Some(ConditionField::SourcePort(low, high)),
        Kind::DestinationPort if loaded.masked.is_none() => Some(ConditionField::DestinationPort(low, high)),
        _ => None,
    }
}

/// What an element's key says of the values it is looked up by; None: not all of it is understood.
pub(super) fn element_fields(
    set: &Set,
    keys: &[Loaded<'_>],
    mut key: &[u8],
    version: Option<u8>,
    links: &HashMap<u32, String>,
) -> Option<Vec<ConditionField>> {
    if set.interval || key.is_empty() {
        return None;
    }
    let mut fields = Vec::new();
    for loaded in keys {
        let width = usize::try_from(width(loaded)?).ok()?;
        let (value, rest) = (key.get(..width)?, key.get(width.next_multiple_of(4)..).unwrap_or_default());
        let (field, inverted) = field(loaded, value, version, links)?;
        if inverted {
            return None;
        }
        fields.push(field);
        key = rest;
    }
    key.is_empty().then_some(fields)
}

/// The condition that "is in this set" is: only sets of one element, of states and of addresses are ones.
pub(super) fn set_condition(
    set: &Set,
    keys: &[Loaded<'_>],
    version: Option<u8>,
    links: &HashMap<u32, String>,
) -> Option<ConditionField> {
    let [only] = keys else { return None };
    if set.interval || !set.anonymous || set.elements.len() > 1 {
        let length = if version == Some(6) { 16 } else { 4 };
        let whole = only.masked.is_none() && width(only) == Some(length);
        let ranges = || whole.then(|| set.ranges()).flatten();
        match kind(only, version) {
            Kind::Source => return ranges().map(ConditionField::SourceIn),
            Kind::Destination => return ranges().map(ConditionField::DestinationIn),
            _ => {}
        }
    }
    if set.interval || !set.anonymous || set.elements.is_empty() || set.elements.iter().any(|e| e.end || e.rest) {
        return None;
    }
    if kind(only, version) == Kind::State && only.masked.is_none() {
        let bits = set.elements.iter().map(|element| native(&element.key)).sum::<Option<u32>>()?;
        return Some(ConditionField::ConntrackState(states(bits, UNTRACKED)));
    }
    let [element] = set.elements.as_slice() else { return None };
    match element_fields(set, keys, &element.key, version, links)?.as_slice() {
        [field] => Some(field.clone()),
        _ => None,
    }
}

/// The left side of a comparison.
pub(super) fn left(loaded: &Loaded<'_>, version: Option<u8>, protocol: Option<u8>) -> String {
    let ip = if version == Some(6) { "ip6" } else { "ip" };
    let transport = match protocol {
        Some(number @ (6 | 17 | 132 | 136)) => protocol_name(number),
        _ => "th".to_owned(),
    };
    match (kind(loaded, version), loaded.source) {
        (Kind::Source, _) => format!("{ip} saddr"),
        (Kind::Destination, _) => format!("{ip} daddr"),
        (Kind::SourcePort, _) => format!("{transport} sport"),
        (Kind::DestinationPort, _) => format!("{transport} dport"),
        (Kind::Protocol, Source::Payload { .. }) if version == Some(6) => "ip6 nexthdr".to_owned(),
        (Kind::Protocol, Source::Payload { .. }) => "ip protocol".to_owned(),
        (Kind::State, _) => "ct state".to_owned(),
        (_, Source::Meta(key)) => meta_name(key),
        (_, Source::Conntrack(key, direction)) => conntrack_name(key, direction),
        (_, Source::Fib { result, flags }) => fib_name(result, flags),
        (_, Source::Payload { base, offset, length }) => payload_name(base, offset, length, protocol),
        (_, Source::Unknown) => "...".to_owned(),
    }
}

fn meta_name(key: u32) -> String {
    const NAMES: [&str; 17] = [
        "meta length",
        "meta protocol",
        "meta priority",
        "meta mark",
        "iif",
        "oif",
        "iifname",
        "oifname",
        "iiftype",
        "oiftype",
        "meta skuid",
        "meta skgid",
        "meta nftrace",
        "rtclassid",
        "meta secmark",
        "meta nfproto",
        "meta l4proto",
    ];
    let name = usize::try_from(key).ok().and_then(|key| NAMES.get(key));
    match (name, key) {
        (Some(name), _) => (*name).to_owned(),
        (None, 19) => "meta pkttype".to_owned(),
        (None, 21) => "iifgroup".to_owned(),
        (None, 22) => "oifgroup".to_owned(),
        (None, _) => "meta ...".to_owned(),
    }
}

fn conntrack_name(key: u32, direction: Option<u8>) -> String {
    let way = match direction {
        Some(0) => "original ",
        Some(1) => "reply ",
        _ => "",
    };
    let name = match key {
        1 => "direction",
        2 => "status",
        3 => "mark",
        8 | 19 | 21 => "saddr",
        9 | 20 | 22 => "daddr",
        10 => "protocol",
        11 => "proto-src",
        12 => "proto-dst",
        17 => "zone",
        _ => "...",
    };
    format!("ct {way}{name}")
}

fn fib_name(result: u32, flags: u32) -> String {
    let names = [(FIB_SOURCE, "saddr"), (2, "daddr"), (FIB_MARK, "mark"), (FIB_IIF, "iif"), (16, "oif")];
    let by: Vec<&str> = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    let result = match result {
        1 => "oif",
        2 => "oifname",
        3 => "type",
        _ => "...",
    };
    format!("fib {} {result}", by.join(" . "))
}

fn payload_name(base: u32, offset: u32, length: u32, protocol: Option<u8>) -> String {
    match (base, offset, length, protocol) {
        (TRANSPORT, 0, 1, Some(1)) => "icmp type".to_owned(),
        (TRANSPORT, 0, 1, Some(58)) => "icmpv6 type".to_owned(),
        (TRANSPORT, 13, 1, Some(6)) => "tcp flags".to_owned(),
        _ => {
            let base = ["ll", "nh", "th", "ih"].get(base as usize).copied().unwrap_or("...");
            format!("@{base},{},{}", offset.saturating_mul(8), length.saturating_mul(8))
        }
    }
}

/// The right side of a comparison.
pub(super) fn right(loaded: &Loaded<'_>, value: &[u8], version: Option<u8>) -> String {
    let value = match kind(loaded, version) {
        Kind::Source | Kind::Destination => net(loaded, value, version)
            .map(|net| if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }),
        Kind::Protocol => value.first().map(|number| protocol_name(*number)),
        Kind::SourcePort | Kind::DestinationPort => port(value).map(|port| port.to_string()),
        Kind::Mark => native(value).map(|mark| format!("{mark:#010x}")),
        Kind::State => native(value).map(state_names),
        Kind::Name => Some(format!("\"{}\"", name(value).replace('+', "*"))),
        Kind::Other => icmp_type(loaded, value, version),
        Kind::Index => None,
    };
    value.unwrap_or_else(|| "...".to_owned())
}

fn icmp_type(loaded: &Loaded<'_>, value: &[u8], version: Option<u8>) -> Option<String> {
    let Source::Payload { base: TRANSPORT, offset: 0, length: 1 } = loaded.source else { return None };
    let [number] = value else { return None };
    Some(match (version, number) {
        (Some(4), 0) | (Some(6), 129) => "echo-reply".to_owned(),
        (Some(4), 8) | (Some(6), 128) => "echo-request".to_owned(),
        (_, number) => number.to_string(),
    })
}

fn state_names(bits: u32) -> String {
    state_words(&states(bits, UNTRACKED))
}

/// nft lists states in another order than iptables.
fn state_words(names: &[String]) -> String {
    let order = ["INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED"];
    let named = order.iter().filter(|state| names.iter().any(|name| name == *state));
    named.map(|state| state.to_lowercase()).collect::<Vec<_>>().join(",")
}

/// A comparison of TCP's flags in both languages.
pub(super) struct Flags {
    pub(super) iptables: String,
    pub(super) nft: String,
}

/// `tcp flags & mask == value`.
pub(super) fn tcp_flags(loaded: &Loaded<'_>, value: &[u8], protocol: Option<u8>, equal: bool) -> Option<Flags> {
    let Source::Payload { base: TRANSPORT, offset: 13, length: 1 } = loaded.source else { return None };
    let ((mask, true), Some(6), [value]) = (unflipped(loaded)?, protocol, value) else { return None };
    let ([mask], sign) = (mask, if equal { "==" } else { "!=" }) else { return None };
    let option = format!("--tcp-flags {} {}", xt::tcp_flags(*mask), xt::tcp_flags(*value));
    let nft = |bits: u8| xt::tcp_flags(bits).to_lowercase().replace(',', " | ");
    Some(Flags {
        iptables: format!("-m tcp {}{option}", if equal { "" } else { "! " }),
        nft: format!("tcp flags & ({}) {sign} {}", nft(*mask), nft(*value)),
    })
}

/// A comparison that became a condition.
pub(super) fn condition(
    left: &str,
    condition: &Condition,
    loaded: &Loaded<'_>,
    value: &[u8],
    version: Option<u8>,
) -> String {
    match &condition.field {
        ConditionField::Mark(mark, mask) if *mask != u32::MAX => {
            let operator = if condition.not { "!=" } else { "==" };
            format!("{left} & {mask:#010x} {operator} {mark:#010x}")
        }
        ConditionField::ConntrackState(names) => relation(left, !condition.not, &state_words(names)),
        ConditionField::ReversePathFails => format!("{left} {}", if condition.not { "exists" } else { "missing" }),
        ConditionField::InInterface(name) | ConditionField::OutInterface(name) => {
            relation(left, !condition.not, &format!("\"{}\"", name.replace('+', "*")))
        }
        _ => relation(left, !condition.not, &right(loaded, value, version)),
    }
}

/// A comparison by equality; nft leaves the sign away.
pub(super) fn relation(left: &str, equal: bool, right: &str) -> String {
    if equal { format!("{left} {right}") } else { format!("{left} != {right}") }
}

pub(super) fn operator(operator: Operator) -> &'static str {
    match operator {
        Operator::Equal => "==",
        Operator::Differs => "!=",
        Operator::Less => "<",
        Operator::AtMost => "<=",
        Operator::More => ">",
        Operator::AtLeast => ">=",
    }
}

/// A set as a rule names it: what an anonymous one holds, else its name.
pub(super) fn set(set: &Set, keys: &[Loaded<'_>], version: Option<u8>) -> String {
    if !set.anonymous {
        return format!("@{}", set.name);
    }
    let mut shown: Vec<String> = Vec::new();
    if !set.interval {
        let some = set.elements.iter().take(SHOWN);
        shown.extend(some.map(|element| {
            let key = element_text(keys, &element.key, version);
            element.verdict.as_ref().map_or_else(|| key.clone(), |verdict| format!("{key} : {}", verdict_text(verdict)))
        }));
    }
    if shown.len() < set.elements.len().max(1) {
        shown.push("...".to_owned());
    }
    format!("{{ {} }}", shown.join(", "))
}

fn element_text(keys: &[Loaded<'_>], mut key: &[u8], version: Option<u8>) -> String {
    let mut texts = Vec::new();
    for loaded in keys {
        let width = width(loaded).and_then(|width| usize::try_from(width).ok()).unwrap_or(key.len());
        let (Some(value), rest) = (key.get(..width), key.get(width.next_multiple_of(4)..)) else { break };
        texts.push(right(loaded, value, version));
        key = rest.unwrap_or_default();
    }
    if texts.is_empty() { "...".to_owned() } else { texts.join(" . ") }
}

/// Does a match say which IP version and which protocol it is about, so that nft leaves those matches away?
pub(super) fn implies(loaded: &Loaded<'_>, version: Option<u8>, protocol: Option<u8>) -> (bool, bool) {
    let Source::Payload { base, .. } = loaded.source else { return (false, false) };
    let words = left(loaded, version, protocol);
    let named = !words.starts_with('@') && !words.starts_with("th ");
    (base == NETWORK && named, base == TRANSPORT && named)
}

/// `NFT_REJECT_ICMPX_*` as nft names them.
const ICMPX: [&str; 4] = ["no-route", "port-unreachable", "host-unreachable", "admin-prohibited"];

/// A rejection's name in iptables and in nft; `icmpx-` and nft's name for what depends on the packet's IP version.
pub(super) fn reject(kind: u32, code: u8, version: Option<u8>, family: &str) -> (String, String) {
    let is_mixed = matches!(family, "inet" | "bridge" | "netdev");
    // NFT_REJECT_ICMP_UNREACH, NFT_REJECT_TCP_RST, NFT_REJECT_ICMPX_UNREACH.
    let v4 =
        |code: u8| ["net", "host", "proto", "port"].get(usize::from(code)).map(|name| format!("{name}-unreachable"));
    let name = match (kind, version, code) {
        (1, _, _) => return ("tcp-reset".to_owned(), "reject with tcp reset".to_owned()),
        (0, Some(6), code) => {
            let names = ["no-route", "adm-prohibited", "not-neighbour", "addr-unreachable", "port-unreachable"];
            names.get(usize::from(code)).map(|name| ("icmp6-", "icmpv6", (*name).to_owned()))
        }
        (0, _, 9) => Some(("icmp-", "icmp", "net-prohibited".to_owned())),
        (0, _, 10) => Some(("icmp-", "icmp", "host-prohibited".to_owned())),
        (0, _, 13) => Some(("icmp-", "icmp", "admin-prohibited".to_owned())),
        (0, _, code) => v4(code).map(|name| ("icmp-", "icmp", name)),
        // nft_reject_icmp_code and nft_reject_icmpv6_code (net/netfilter/nft_reject.c); without a version it is either.
        (2, version, code) => {
            let (prefix, names) = match version {
                Some(4) => ("icmp-", ["net-unreachable", "port-unreachable", "host-unreachable", "admin-prohibited"]),
                Some(6) => ("icmp6-", ["no-route", "port-unreachable", "addr-unreachable", "adm-prohibited"]),
                _ => ("icmpx-", ICMPX),
            };
            let name = names.get(usize::from(code)).map(|name| format!("{prefix}{name}"));
            return match (name, ICMPX.get(usize::from(code))) {
                (Some(name), Some(&"port-unreachable")) if is_mixed => (name, "reject".to_owned()),
                (Some(name), Some(word)) => (name, format!("reject with icmpx {word}")),
                _ => ("...".to_owned(), "reject ...".to_owned()),
            };
        }
        _ => None,
    };
    match name {
        // What each family answers if nothing is said.
        Some((prefix, _, name)) if name == "port-unreachable" && !is_mixed => {
            (format!("{prefix}{name}"), "reject".to_owned())
        }
        Some((prefix, word, name)) => (format!("{prefix}{name}"), format!("reject with {word} {name}")),
        None => ("...".to_owned(), "reject ...".to_owned()),
    }
}

pub(super) fn nat_flags(flags: u32) -> String {
    let names = [(4, "random"), (16, "fully-random"), (8, "persistent")];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { String::new() } else { format!(" {}", set.join(",")) }
}

/// The ports that the source may get: ` to :1024-65535`.
pub(super) fn masquerade_ports(lowest_and_highest: [Option<&[u8]>; 2]) -> String {
    match lowest_and_highest.map(|value| port(value?.get(..2)?)) {
        [Some(low), Some(high)] if low != high => format!(" to :{low}-{high}"),
        [Some(low), _] => format!(" to :{low}"),
        [None, _] => String::new(),
    }
}

/// Where a packet is sent to instead.
pub(super) fn nat_to(to: Option<&[u8]>, to_port: Option<&[u8]>) -> String {
    let port = to_port.and_then(|value| port(value.get(..2)?)).map(|port| format!(":{port}"));
    match (to.and_then(address), port) {
        (Some(address), Some(port)) if address.is_ipv6() => format!("[{address}]{port}"),
        (Some(address), port) => format!("{address}{}", port.unwrap_or_default()),
        (None, Some(port)) => port,
        (None, None) => "...".to_owned(),
    }
}

/// A whole rule.
pub(super) fn rule(parts: &[Part], last: &str) -> String {
    let texts = parts.iter().map(|part| match part {
        Part::Is(_, text) | Part::Decides(text) | Part::Does(text) | Part::Match { text, .. } => text.as_str(),
    });
    texts.chain([last]).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}
