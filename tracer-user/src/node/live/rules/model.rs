//! The rules of one namespace as data, whoever evaluates them.

use std::net::IpAddr;

use super::super::facts::{Condition, ConditionField, RuleEngine, RuleVerdict};

/// The tables of a namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Ruleset {
    pub(super) tables: Vec<Table>,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) engine: RuleEngine,
    /// As nft names it.
    pub(super) family: &'static str,
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Of a base chain.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Entry>,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// NF_INET_*; None where the number means something else (netdev).
    pub(super) hook: Option<u8>,
    pub(super) policy: RuleVerdict,
    /// Packets that met the policy, if they are counted.
    pub(super) packets: Option<u64>,
}

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// What makes it the same rule in two readings, apart from its handle: its bytes without its counters.
    pub(super) content: u64,
    /// 0 for legacy iptables.
    pub(super) handle: u64,
    /// Packets counted, if it has a counter.
    pub(super) packets: Option<u64>,
    /// What it may do; several for a verdict map.
    pub(super) outcomes: Vec<Outcome>,
    pub(super) text: String,
    pub(super) comment: Option<String>,
}

/// One thing that a rule may do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) verdict: RuleVerdict,
    pub(super) conditions: Vec<Condition>,
    /// Nothing but the conditions decides.
    pub(super) understood: bool,
}

impl Outcome {
    /// Is it about what a trace explains: does it end or rewrite packets?
    pub(super) fn matters(&self) -> bool {
        matters(&self.verdict)
    }
}

/// Does a verdict end or rewrite packets?
pub(super) fn matters(verdict: &RuleVerdict) -> bool {
    match verdict {
        RuleVerdict::Drop
        | RuleVerdict::Reject(_)
        | RuleVerdict::Masquerade
        | RuleVerdict::Snat(_)
        | RuleVerdict::Dnat(_) => true,
        RuleVerdict::Accept | RuleVerdict::Jump(_) | RuleVerdict::Other => false,
    }
}

/// A piece of a rule, in the order the rule has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A condition that has a type of its own, and what nft prints for it.
    Is(Condition, String),
    /// Something else that decides, as its tool prints it.
    Decides(String),
    /// An iptables match: how it is printed, the conditions it stands for, and whether those are all of it.
    Match { text: String, conditions: Vec<Condition>, exact: bool },
    /// Decides nothing.
    Does(String),
}

/// What a rule's parts come to: its conditions, and whether they are all.
pub(super) fn conditions(parts: &[Part]) -> (Vec<Condition>, bool) {
    let (mut all, mut understood) = (Vec::new(), true);
    for part in parts {
        match part {
            Part::Is(condition, _) => all.push(condition.clone()),
            Part::Decides(_) => understood = false,
            Part::Match { conditions, exact, .. } => {
                all.extend(conditions.iter().cloned());
                understood &= exact;
            }
            Part::Does(_) => {}
        }
    }
    (all, understood)
}

/// A rule as iptables-save prints it: addresses, interfaces and protocol first, then matches and target.
pub(super) fn iptables_text(parts: &[Part], target: &str) -> String {
    let first = |condition: &Condition| match &condition.field {
        ConditionField::Source(_) => Some(0),
        ConditionField::Destination(_) => Some(1),
        ConditionField::InInterface(_) => Some(2),
        ConditionField::OutInterface(_) => Some(3),
        ConditionField::Protocol(_) => Some(4),
        _ => None,
    };
    let mut fixed: Vec<(u8, String)> = Vec::new();
    let mut rest: Vec<String> = Vec::new();
    let mut protocol = None;
    for part in parts {
        match part {
            Part::Is(condition, _) => {
                if let ConditionField::Protocol(number) = condition.field {
                    protocol = Some(number);
                }
                let words = iptables_words(condition, protocol);
                match first(condition) {
                    Some(rank) => fixed.push((rank, words)),
                    None if rest.last().is_some_and(|last| same_match(last, &words)) => {
                        // `-m tcp --sport 1 --dport 2`: one match.
                        let options = words.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
                        rest.push(options);
                    }
                    None => rest.push(words),
                }
            }
            Part::Decides(text) | Part::Match { text, .. } | Part::Does(text) => rest.push(text.clone()),
        }
    }
    fixed.sort_by_key(|(rank, _)| *rank);
    let target = if target.is_empty() { None } else { Some(format!("-j {target}")) };
    let words = fixed.into_iter().map(|(_, words)| words).chain(rest).chain(target);
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn same_match(last: &str, next: &str) -> bool {
    let of = |text: &str| text.starts_with("-m ").then(|| text.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" "));
    matches!((of(last), of(next)), (Some(a), Some(b)) if a == b && (a == "-m tcp" || a == "-m udp"))
}

fn iptables_words(condition: &Condition, protocol: Option<u8>) -> String {
    use ConditionField as F;
    let port = |option: &str, from: u16, to: u16| {
        let module = protocol.map_or_else(|| "...".to_owned(), protocol_name);
        let not = if condition.not { "! " } else { "" };
        let range = if from == to { from.to_string() } else { format!("{from}:{to}") };
        format!("-m {module} {not}{option} {range}")
    };
    let words = match &condition.field {
        F::Source(net) => format!("-s {net}"),
        F::Destination(net) => format!("-d {net}"),
        F::InInterface(name) => format!("-i {name}"),
        F::OutInterface(name) => format!("-o {name}"),
        F::Protocol(number) => format!("-p {}", protocol_name(*number)),
        F::SourcePort(from, to) => return port("--sport", *from, *to),
        F::DestinationPort(from, to) => return port("--dport", *from, *to),
        F::Mark(value, mask) => return negated("-m mark", condition.not, &format!("--mark {}", masked(*value, *mask))),
        F::ConntrackState(states) => {
            return negated("-m conntrack", condition.not, &format!("--ctstate {}", states.join(",")));
        }
        F::ReversePathFails => "-m rpfilter --invert".to_owned(),
        // A set of nftables: iptables has no words for it.
        F::SourceIn(_) | F::DestinationIn(_) => return "...".to_owned(),
    };
    if condition.not { format!("! {words}") } else { words }
}

/// `-m mark ! --mark 1`: where iptables puts the exclamation mark.
pub(super) fn negated(module: &str, not: bool, option: &str) -> String {
    format!("{module} {}{option}", if not { "! " } else { "" })
}

/// A number and its mask as iptables prints them.
pub(super) fn masked(value: u32, mask: u32) -> String {
    if mask == u32::MAX { format!("{value:#x}") } else { format!("{value:#x}/{mask:#x}") }
}

/// An IP protocol's name in `/etc/protocols`, or its number.
pub(super) fn protocol_name(number: u8) -> String {
    let name = match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipencap",
        6 => "tcp",
        17 => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "ipv6-icmp",
        89 => "ospf",
        112 => "vrrp",
        132 => "sctp",
        136 => "udplite",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// The address in 4 or 16 bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// The length of the prefix that `mask` is; None: it is none.
pub(super) fn prefix_length(mask: &[u8]) -> Option<u8> {
    let ones: u32 = mask.iter().take_while(|byte| **byte == 0xff).map(|_| 8).sum();
    let (whole, rest) = ((ones / 8) as usize, mask.get((ones / 8) as usize..)?);
    let part = rest.first().map_or(0, |byte| byte.leading_ones());
    let zeros =
        rest.first().is_none_or(|byte| byte.count_ones() == part) && mask.iter().skip(whole + 1).all(|b| *b == 0);
    zeros.then(|| u8::try_from(ones + part).ok())?
}

/// States of conntrack in a bit set; the same bits in `ct state` and, but for UNTRACKED, in xt's conntrack match.
pub(super) fn states(bits: u32, untracked: u32) -> Vec<String> {
    let names = [(1, "INVALID"), (8, "NEW"), (4, "RELATED"), (2, "ESTABLISHED"), (untracked, "UNTRACKED")];
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_have_a_length() {
        assert_eq!(prefix_length(&[255, 255, 224, 0]), Some(19));
        assert_eq!(prefix_length(&[255; 4]), Some(32));
        assert_eq!(prefix_length(&[0; 16]), Some(0));
        assert_eq!(prefix_length(&[255, 0, 255, 0]), None);
        assert_eq!(prefix_length(&[0, 1, 0, 0]), None);
    }

    #[test]
    fn iptables_has_its_own_order() {
        let is = |field, not| Part::Is(Condition { field, not }, String::new());
        let parts = [
            is(ConditionField::InInterface("cali+".into()), false),
            is(ConditionField::Protocol(6), false),
            is(ConditionField::Source("10.0.0.0/8".parse().unwrap()), true),
            is(ConditionField::SourcePort(1, 1), false),
            is(ConditionField::DestinationPort(80, 90), true),
        ];
        insta::assert_snapshot!(iptables_text(&parts, "DROP"), @"! -s 10.0.0.0/8 -i cali+ -p tcp -m tcp --sport 1 ! --dport 80:90 -j DROP");
    }
}
