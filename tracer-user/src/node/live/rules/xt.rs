//! Matches and targets of iptables (`uapi/linux/netfilter/xt_*.h`), which its nft variant puts into nftables as they are.
//!
//! What is not known here is shown by its name and three dots.

use std::net::IpAddr;

use super::{
    super::facts::{Condition, ConditionField, RuleVerdict},
    attributes::text,
    model::{Part, address, masked, negated, states},
};

/// Names for what rules have only as a number.
pub(super) trait SetNames {
    /// The ipset with that index.
    fn of(&self, index: u16) -> Option<String>;
}

pub(super) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

/// The comment that a match is.
pub(super) fn comment(name: &str, data: &[u8]) -> Option<String> {
    (name == "comment").then(|| text(data))
}

/// A match as a part of a rule. `v6`: of ip6tables.
pub(super) fn matched(name: &str, revision: u32, data: &[u8], sets: &dyn SetNames) -> Part {
    known_match(name, revision, data, sets).unwrap_or_else(|| Part::Decides(format!("-m {name} ...")))
}

fn known_match(name: &str, revision: u32, data: &[u8], sets: &dyn SetNames) -> Option<Part> {
    let known = match (name, revision) {
        ("comment", 0) => Part::Does(format!("-m comment --comment {}", quoted(&text(data)))),
        ("conntrack", 2 | 3) => conntrack(data)?,
        ("state", 0) => {
            let field = ConditionField::ConntrackState(states(u32_at(data, 0)?, 1 << 6));
            let text = match &field {
                ConditionField::ConntrackState(names) => format!("-m state --state {}", names.join(",")),
                _ => return None,
            };
            exact(text, vec![Condition { field, not: false }])
        }
        ("mark", 1) => {
            let (value, mask, not) = (u32_at(data, 0)?, u32_at(data, 4)?, *data.get(8)? != 0);
            let text = negated("-m mark", not, &format!("--mark {}", masked(value, mask)));
            exact(text, vec![Condition { field: ConditionField::Mark(value, mask), not }])
        }
        ("rpfilter", 0) => rpfilter(*data.first()?),
        ("addrtype", 1) => addrtype(data)?,
        ("set", 1..=4) => set(data, sets)?,
        ("tcp", 0) => ports("tcp", data, *data.get(11)?, Some(data))?,
        ("udp", 0) => ports("udp", data, *data.get(8)?, None)?,
        ("icmp" | "icmp6", 0) => icmp(name, data)?,
        ("multiport", 1) => multiport(data)?,
        ("statistic", 0) => statistic(data)?,
        _ => return None,
    };
    Some(known)
}

fn exact(text: String, conditions: Vec<Condition>) -> Part {
    Part::Match { text, conditions, exact: true }
}

/// As iptables-save quotes: all but plain words (iptables, `xtables.c`, xtables_save_string).
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let escaped = text.chars().flat_map(|c| ['"', '\\', '\''].contains(&c).then_some('\\').into_iter().chain([c]));
    format!("\"{}\"", escaped.collect::<String>())
}

/// `struct xt_conntrack_mtinfo2` and `3`: the fields up to `status_mask` lie alike.
fn conntrack(data: &[u8]) -> Option<Part> {
    const STATE: u16 = 1;
    let (flags, inverted, bits) = (u16_at(data, 146)?, u16_at(data, 148)?, u16_at(data, 150)?);
    if flags & STATE == 0 {
        return None;
    }
    let mut names = states(bits.into(), 1 << 8);
    // SNAT and DNAT stand among the states here, and are none.
    let translated = [(1 << 6, "SNAT"), (1 << 7, "DNAT")];
    names.extend(translated.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()));
    let not = inverted & STATE != 0;
    let text = negated("-m conntrack", not, &format!("--ctstate {}", names.join(",")));
    if flags != STATE {
        return Some(Part::Decides(format!("{text} ...")));
    }
    if bits & (1 << 6 | 1 << 7) != 0 {
        return Some(Part::Decides(text));
    }
    Some(exact(text, vec![Condition { field: ConditionField::ConntrackState(names), not }]))
}

fn rpfilter(flags: u8) -> Part {
    const INVERT: u8 = 8;
    let names = [(1, " --loose"), (2, " --validmark"), (4, " --accept-local"), (INVERT, " --invert")];
    let options: String = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    let field = ConditionField::ReversePathFails;
    exact(format!("-m rpfilter{options}"), vec![Condition { field, not: flags & INVERT == 0 }])
}

fn addrtype(data: &[u8]) -> Option<Part> {
    // RTN_* in their order.
    const NAMES: [&str; 12] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
        "THROW",
        "NAT",
        "XRESOLVE",
    ];
    let named = |bits: u16| {
        let names = NAMES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
        names.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    };
    let (source, destination, flags) = (u16_at(data, 0)?, u16_at(data, 2)?, u32_at(data, 4)?);
    let mut text = "-m addrtype".to_owned();
    for (bits, inverted, option) in [(source, 1, "--src-type"), (destination, 2, "--dst-type")] {
        if bits != 0 {
            let not = if flags & inverted != 0 { "! " } else { "" };
            text += &format!(" {not}{option} {}", named(bits));
        }
    }
    let limits = [(4, " --limit-iface-in"), (8, " --limit-iface-out")];
    limits.iter().filter(|(bit, _)| flags & bit != 0).for_each(|(_, option)| text += option);
    Some(Part::Decides(text))
}

/// `struct xt_set_info`: index, dimensions, flags: bit 0 inverts, bit n says source for dimension n.
fn set(data: &[u8], sets: &dyn SetNames) -> Option<Part> {
    let (index, dimensions, flags) = (u16_at(data, 0)?, *data.get(2)?, *data.get(3)?);
    let name = sets.of(index).unwrap_or_else(|| "...".to_owned());
    let side = |n: u8| if flags.checked_shr(n.into()).is_some_and(|bits| bits & 1 != 0) { "src" } else { "dst" };
    let sides: Vec<&str> = (1..=dimensions.min(7)).map(side).collect();
    Some(Part::Decides(negated("-m set", flags & 1 != 0, &format!("--match-set {name} {}", sides.join(",")))))
}

/// `struct xt_tcp` and `xt_udp` begin with both ranges of ports.
fn ports(name: &str, data: &[u8], inverted: u8, tcp: Option<&[u8]>) -> Option<Part> {
    let (mut text, mut conditions) = (format!("-m {name}"), Vec::new());
    for (at, bit, option) in [(0, 1, "--sport"), (4, 2, "--dport")] {
        let (from, to, not) = (u16_at(data, at)?, u16_at(data, at + 2)?, inverted & bit != 0);
        if (from, to, not) == (0, u16::MAX, false) {
            continue;
        }
        let range = if from == to { from.to_string() } else { format!("{from}:{to}") };
        text += &format!(" {}{option} {range}", if not { "! " } else { "" });
        let field =
            if at == 0 { ConditionField::SourcePort(from, to) } else { ConditionField::DestinationPort(from, to) };
        conditions.push(Condition { field, not });
    }
    let mut all = true;
    if let Some(data) = tcp {
        let (option, mask, compare) = (*data.get(8)?, *data.get(9)?, *data.get(10)?);
        if option != 0 {
            all = false;
            text += &format!(" {}--tcp-option {option}", if inverted & 8 != 0 { "! " } else { "" });
        }
        if mask != 0 || inverted & 4 != 0 {
            all = false;
            let not = if inverted & 4 != 0 { "! " } else { "" };
            text += &format!(" {not}--tcp-flags {} {}", tcp_flags(mask), tcp_flags(compare));
        }
    }
    Some(Part::Match { text, conditions, exact: all })
}

/// Names of TCP's flags.
pub(super) const TCP_FLAGS: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];

/// Flags of TCP as iptables lists them.
pub(super) fn tcp_flags(bits: u8) -> String {
    let set: Vec<&str> = (0..6).filter(|bit| bits & (1 << bit) != 0).map(|bit| TCP_FLAGS[bit]).collect();
    if set.is_empty() { "NONE".to_owned() } else { set.join(",") }
}

fn icmp(name: &str, data: &[u8]) -> Option<Part> {
    let [kind, low, high, inverted] = *data.get(..4)?.as_array::<4>()?;
    let (option, not) = (if name == "icmp" { "--icmp-type" } else { "--icmpv6-type" }, inverted & 1 != 0);
    let code = if (low, high) == (0, u8::MAX) { String::new() } else { format!("/{low}") };
    let value = if name == "icmp" && kind == u8::MAX { "any".to_owned() } else { format!("{kind}{code}") };
    Some(Part::Decides(negated(&format!("-m {name}"), not, &format!("{option} {value}"))))
}

fn multiport(data: &[u8]) -> Option<Part> {
    let (flags, count) = (*data.first()?, usize::from(*data.get(1)?));
    let option = ["--sports", "--dports", "--ports"].get(usize::from(flags))?;
    let not = *data.get(47)? != 0;
    let mut list = String::new();
    for index in 0..count.min(15) {
        // A port with this flag set begins a range.
        let separator = match index {
            0 => "",
            _ if *data.get(32 + index - 1)? != 0 => ":",
            _ => ",",
        };
        list += &format!("{separator}{}", u16_at(data, 2 + 2 * index)?);
    }
    Some(Part::Decides(negated("-m multiport", not, &format!("{option} {list}"))))
}

fn statistic(data: &[u8]) -> Option<Part> {
    let (mode, flags, value) = (u16_at(data, 0)?, u16_at(data, 2)?, u32_at(data, 4)?);
    let not = if flags & 1 != 0 { "! " } else { "" };
    Some(Part::Decides(match mode {
        0 => format!("-m statistic --mode random {not}--probability {:.11}", f64::from(value) / f64::from(1u32 << 31)),
        1 => format!("-m statistic --mode nth {not}--every {} --packet {}", value.checked_add(1)?, u32_at(data, 8)?),
        _ => return None,
    }))
}

/// A target: what it does, and as iptables-save prints it. `v6`: of ip6tables.
pub(super) fn target(name: &str, revision: u32, data: &[u8], v6: bool) -> (RuleVerdict, String) {
    let verdict = match name {
        "REJECT" => {
            let with = u32_at(data, 0).and_then(|code| reject_name(code, v6)).unwrap_or("...");
            return (RuleVerdict::Reject(with.to_owned()), format!("REJECT --reject-with {with}"));
        }
        "MARK" if revision == 2 => {
            if let (Some(mark), Some(mask)) = (u32_at(data, 0), u32_at(data, 4)) {
                return (RuleVerdict::Other, format!("MARK --set-xmark {mark:#x}/{mask:#x}"));
            }
            RuleVerdict::Other
        }
        "DROP" => RuleVerdict::Drop,
        "ACCEPT" => RuleVerdict::Accept,
        "MASQUERADE" => RuleVerdict::Masquerade,
        "SNAT" => RuleVerdict::Snat(nat_target(revision, data, v6)),
        "DNAT" => RuleVerdict::Dnat(nat_target(revision, data, v6)),
        // Where to depends on the packet.
        "NETMAP" => RuleVerdict::Snat(String::new()),
        "REDIRECT" => RuleVerdict::Dnat(String::new()),
        // It looks after the packet's own address and drops what has none, rules apart; no verdict of this rule.
        _ => {
            return (
                RuleVerdict::Other,
                if data.iter().all(|b| *b == 0) { name.to_owned() } else { format!("{name} ...") },
            );
        }
    };
    let text = match name {
        "MASQUERADE" | "SNAT" | "DNAT" | "REDIRECT" => format!("{name}{}", nat_options(name, revision, data, v6)),
        _ => name.to_owned(),
    };
    (verdict, text)
}

fn reject_name(code: u32, v6: bool) -> Option<&'static str> {
    // enum ipt_reject_with, enum ip6t_reject_with.
    let names: &[&str] = if v6 {
        &[
            "icmp6-no-route",
            "icmp6-adm-prohibited",
            "icmp6-not-neighbour",
            "icmp6-addr-unreachable",
            "icmp6-port-unreachable",
            "icmp6-echoreply",
            "tcp-reset",
            "icmp6-policy-fail",
            "icmp6-reject-route",
        ]
    } else {
        &[
            "icmp-net-unreachable",
            "icmp-host-unreachable",
            "icmp-proto-unreachable",
            "icmp-port-unreachable",
            "icmp-echoreply",
            "icmp-net-prohibited",
            "icmp-host-prohibited",
            "tcp-reset",
            "icmp-admin-prohibited",
        ]
    };
    names.get(usize::try_from(code).ok()?).copied()
}

/// The range of a NAT target: `struct nf_nat_ipv4_multi_range_compat` or `struct nf_nat_range[2]`
/// (`uapi/linux/netfilter/nf_nat.h`).
fn nat_options(name: &str, revision: u32, data: &[u8], v6: bool) -> String {
    nat_range(name, revision, data, v6).unwrap_or_else(|| " ...".to_owned())
}

/// Where SNAT and DNAT send to, as nft writes it; empty: not known.
fn nat_target(revision: u32, data: &[u8], v6: bool) -> String {
    NatRange::read(revision == 0, data, v6).map(|range| range.sent_to()).unwrap_or_default()
}

/// `nf_nat_range2`, or what came before it.
struct NatRange {
    flags: u32,
    addresses: Option<(IpAddr, IpAddr)>,
    ports: Option<String>,
}

impl NatRange {
    /// Before revision 1 (MASQUERADE, REDIRECT: always) IPv4 has its own shape, which starts with a count.
    fn read(old: bool, data: &[u8], v6: bool) -> Option<Self> {
        const ADDRESSES: u32 = 1;
        const PORTS: u32 = 2;
        let old = old && !v6;
        let width = if old || !v6 { 4 } else { 16 };
        let (flags_at, first, second, ports) = if old { (4, 8, 12, 16) } else { (0, 4, 20, 36) };
        let flags = u32_at(data, flags_at)?;
        let end = |at: usize| address(data.get(at..at + width)?);
        let port = |at: usize| Some(u16::from_be_bytes(*data.get(at..at + 2)?.as_array::<2>()?));
        let ports = if flags & PORTS == 0 { None } else { Some(range(port(ports)?, port(ports + 2)?)) };
        let addresses = if flags & ADDRESSES == 0 { None } else { Some((end(first)?, end(second)?)) };
        Some(Self { flags, addresses, ports })
    }

    fn sent_to(&self) -> String {
        nat_end(self.addresses, self.ports.as_deref())
    }
}

fn nat_range(name: &str, revision: u32, data: &[u8], v6: bool) -> Option<String> {
    let to_itself = matches!(name, "MASQUERADE" | "REDIRECT");
    let range = NatRange::read(revision == 0 || to_itself, data, v6)?;
    let mut text = match to_itself {
        true => range.ports.as_ref().map(|ports| format!(" --to-ports {ports}")).unwrap_or_default(),
        false => {
            let option = if name == "SNAT" { "--to-source" } else { "--to-destination" };
            format!(" {option} {}", range.sent_to())
        }
    };
    for (bit, option) in [(4, " --random"), (16, " --random-fully"), (8, " --persistent")] {
        if range.flags & bit != 0 {
            text += option;
        }
    }
    Some(text)
}

fn nat_end(addresses: Option<(IpAddr, IpAddr)>, ports: Option<&str>) -> String {
    let addresses = addresses.map(|(from, to)| range(from, to)).unwrap_or_default();
    match ports {
        None => addresses,
        Some(ports) if addresses.contains(':') => format!("[{addresses}]:{ports}"),
        Some(ports) => format!("{addresses}:{ports}"),
    }
}

fn range<T: PartialEq + std::fmt::Display>(from: T, to: T) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}
