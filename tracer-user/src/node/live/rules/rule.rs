//! What an nftables rule means: its expressions run over registers that hold not values but where values come from.

use std::collections::HashMap;

use super::{
    super::facts::{Condition, ConditionField, RuleVerdict},
    attributes::text,
    expression::{Expression, Operator, Source, Verdict, expressions},
    model::{Outcome, Part, conditions, iptables_text},
    nft_words as words,
    sets::{Element, Set, Sets},
    xt::{self, SetNames},
};

/// What a rule cannot be read without.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// As nft names it.
    pub(super) family: &'a str,
    /// It is a table of iptables' nft variant.
    pub(super) iptables: bool,
    /// The table's sets.
    pub(super) sets: &'a Sets,
    /// Names of the namespace's interfaces.
    pub(super) links: &'a HashMap<u32, String>,
    pub(super) ipsets: &'a dyn SetNames,
}

/// A rule read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) text: String,
    pub(super) comment: Option<String>,
    pub(super) packets: Option<u64>,
}

/// What a register holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded<'a> {
    pub(super) source: Source,
    /// It was masked with the first and flipped by the second.
    pub(super) masked: Option<(&'a [u8], &'a [u8])>,
}

struct Machine<'a> {
    context: Context<'a>,
    slots: HashMap<u32, Loaded<'a>>,
    constants: HashMap<u32, &'a [u8]>,
    parts: Vec<Part>,
    /// 4 or 6, once it is clear.
    version: Option<u8>,
    protocol: Option<u8>,
    /// Parts that nft leaves away when a later one implies them.
    implied_version: Option<usize>,
    implied_protocol: Option<usize>,
    /// `>= value`, waiting for its `<= value`.
    low: Option<(u32, usize, &'a [u8])>,
    end: Option<(RuleVerdict, String)>,
    map: Option<(Vec<Loaded<'a>>, &'a Set, String)>,
    reading: Reading,
}

/// Reads a rule's list of expressions.
pub(super) fn read<'a>(list: &'a [u8], context: Context<'a>) -> Reading {
    let version = match context.family {
        "ip" => Some(4),
        "ip6" => Some(6),
        _ => None,
    };
    let mut machine = Machine {
        context,
        slots: HashMap::new(),
        constants: HashMap::new(),
        parts: Vec::new(),
        version,
        protocol: None,
        implied_version: None,
        implied_protocol: None,
        low: None,
        end: None,
        map: None,
        reading: Reading::default(),
    };
    expressions(list).for_each(|expression| machine.step(expression));
    machine.finish()
}

impl<'a> Machine<'a> {
    fn step(&mut self, expression: Expression<'a>) {
        match expression {
            Expression::Load { to, source } => {
                // What was compared before is not in the register any more.
                self.low = None;
                self.slots.insert(to, Loaded { source, masked: None });
            }
            Expression::Bitwise { from, to, mask, xor } => {
                let loaded = self.loaded(from);
                self.low = None;
                // Masked twice: nobody writes that.
                let source = if loaded.masked.is_some() { Source::Unknown } else { loaded.source };
                self.slots.insert(to, Loaded { source, masked: Some((mask, xor)) });
            }
            Expression::Compare { from, operator, value } => self.compare(from, operator, value),
            Expression::Range { from, not, low, high } => self.range(from, not, low, high),
            Expression::Lookup { from, set, not, to } => self.lookup(from, &set, not, to),
            Expression::Constant { to, value } => {
                self.constants.insert(to, value);
            }
            Expression::Verdict(verdict) => self.end = Some(end(verdict)),
            Expression::Counter { packets } => self.reading.packets = Some(packets),
            Expression::Reject { kind, code } => {
                let (name, text) = words::reject(kind, code, self.version, self.context.family);
                self.end = Some((RuleVerdict::Reject(name), text));
            }
            Expression::Masquerade { ports, flags } => {
                let ports = words::masquerade_ports(ports.map(|port| self.constant(port)));
                let text = format!("masquerade{ports}{}", words::nat_flags(flags));
                self.end = Some((RuleVerdict::Masquerade, text));
            }
            Expression::Nat { source, address, port, ranged, flags } => {
                let (own, own_port) = (self.constant(address), self.constant(port));
                let to = words::nat_to(own, own_port);
                let known = !ranged && own.is_some() && own_port.is_some() == port.is_some();
                let target = if known { to.clone() } else { String::new() };
                let (verdict, word) =
                    if source { (RuleVerdict::Snat(target), "snat") } else { (RuleVerdict::Dnat(target), "dnat") };
                self.end = Some((verdict, format!("{word} to {to}{}", words::nat_flags(flags))));
            }
            Expression::Redirect { port } => {
                let to = port.map(|port| format!(" to {}", words::nat_to(None, self.constant(Some(port)))));
                self.end = Some((RuleVerdict::Dnat(String::new()), format!("redirect{}", to.unwrap_or_default())));
            }
            Expression::Match { name, revision, data } => self.xt_match(&name, revision, data),
            Expression::Target { name, revision, data } => {
                let v6 = self.version == Some(6);
                let (verdict, text) = xt::target(&name, revision, data, v6);
                let text = if self.context.iptables { text } else { format!("xt target \"{name}\"") };
                self.end = Some((verdict, text));
            }
            Expression::Other { name, decides: true } => self.decides(format!("{name} ...")),
            Expression::Other { name, decides: false } => self.parts.push(Part::Does(format!("{name} ..."))),
        }
    }

    fn loaded(&self, slot: u32) -> Loaded<'a> {
        self.slots.get(&slot).copied().unwrap_or(Loaded { source: Source::Unknown, masked: None })
    }

    fn constant(&self, slot: Option<u32>) -> Option<&'a [u8]> {
        self.constants.get(&slot?).copied()
    }

    /// Something that has no condition of its own. nft's words have no place in a rule of iptables.
    fn decides(&mut self, text: String) {
        self.parts.push(Part::Decides(if self.context.iptables { "...".to_owned() } else { text }));
    }

    fn xt_match(&mut self, name: &str, revision: u32, data: &'a [u8]) {
        let part = xt::matched(name, revision, data, self.context.ipsets);
        if let Some(comment) = xt::comment(name, data) {
            self.reading.comment = Some(comment);
        }
        self.parts.push(match part {
            part if self.context.iptables => part,
            Part::Match { conditions, exact, .. } => {
                Part::Match { text: format!("xt match \"{name}\""), conditions, exact }
            }
            Part::Does(_) => Part::Does(format!("xt match \"{name}\"")),
            _ => Part::Decides(format!("xt match \"{name}\"")),
        });
    }

    fn compare(&mut self, from: u32, operator: Operator, value: &'a [u8]) {
        let loaded = self.loaded(from);
        let left = self.left(&loaded);
        if operator == Operator::AtMost
            && let Some((register, part, low)) = self.low.take()
            && register == from
            && part + 1 == self.parts.len()
        {
            self.parts.pop();
            return self.range(from, false, low, value);
        }
        let equal = match operator {
            Operator::Equal => true,
            Operator::Differs => false,
            other => {
                let right = words::right(&loaded, value, self.version);
                if other == Operator::AtLeast {
                    self.low = Some((from, self.parts.len(), value));
                }
                self.decides(format!("{left} {} {right}", words::operator(other)));
                return;
            }
        };
        if loaded.source == Source::Meta(words::META_NFPROTO) && equal {
            return self.nfproto(value, &left);
        }
        match self.equals(&loaded, value) {
            Some((field, inverted)) => {
                let condition = Condition { field, not: equal == inverted };
                let text = words::condition(&left, &condition, &loaded, value, self.version);
                self.push(condition, text, equal);
            }
            None => {
                if let Some(flags) = words::tcp_flags(&loaded, value, self.protocol, equal) {
                    let text = if self.context.iptables { flags.iptables } else { flags.nft };
                    return self.parts.push(Part::Decides(text));
                }
                let right = words::right(&loaded, value, self.version);
                self.decides(words::relation(&left, equal, &right));
            }
        }
    }

    /// `meta nfproto ipv4` has no condition of its own: it is "from any IPv4 address".
    fn nfproto(&mut self, value: &[u8], left: &str) {
        let (version, any, name) = match value.first() {
            Some(2) => (4, "0.0.0.0/0", "ipv4"),
            Some(10) => (6, "::/0", "ipv6"),
            _ => return self.decides(format!("{left} ...")),
        };
        self.version = Some(version);
        let Ok(any) = any.parse() else { return };
        self.implied_version = Some(self.parts.len());
        let condition = Condition { field: ConditionField::Source(any), not: false };
        self.parts.push(Part::Is(condition, format!("{left} {name}")));
    }

    /// The condition that `loaded == value` is, and whether it says the opposite.
    fn equals(&self, loaded: &Loaded<'_>, value: &[u8]) -> Option<(ConditionField, bool)> {
        words::field(loaded, value, self.version, self.context.links)
    }

    fn push(&mut self, condition: Condition, text: String, equal: bool) {
        if let (ConditionField::Protocol(number), true) = (&condition.field, equal) {
            self.protocol = Some(*number);
            self.implied_protocol = Some(self.parts.len());
        }
        self.parts.push(Part::Is(condition, text));
    }

    /// The left side of a comparison; what it implies need not be said.
    fn left(&mut self, loaded: &Loaded<'_>) -> String {
        let (version, protocol) = words::implies(loaded, self.version, self.protocol);
        let implied = [version.then(|| self.implied_version.take()), protocol.then(|| self.implied_protocol.take())];
        for at in implied.into_iter().flatten().flatten() {
            if let Some(Part::Is(_, text)) = self.parts.get_mut(at) {
                text.clear();
            }
        }
        words::left(loaded, self.version, self.protocol)
    }

    fn range(&mut self, from: u32, not: bool, low: &'a [u8], high: &'a [u8]) {
        let loaded = self.loaded(from);
        let left = self.left(&loaded);
        let right =
            format!("{}-{}", words::right(&loaded, low, self.version), words::right(&loaded, high, self.version));
        let text = words::relation(&left, !not, &right);
        match words::port_range(&loaded, low, high) {
            Some(field) => self.push(Condition { field, not }, text, !not),
            None => self.decides(text),
        }
    }

    fn lookup(&mut self, from: u32, name: &str, not: bool, to: Option<u32>) {
        let set = self.context.sets.get(name);
        let keys = self.keys(from, set);
        let left: Vec<String> = keys.iter().map(|key| self.left(key)).collect();
        let left = left.join(" . ");
        match (to, set) {
            (Some(0), Some(set)) => {
                let text = format!("{left} vmap {}", words::set(set, &keys, self.version));
                self.map = Some((keys, set, text));
            }
            (Some(0), None) => self.decides(format!("{left} vmap @{name}")),
            (Some(to), _) => {
                self.slots.insert(to, Loaded { source: Source::Unknown, masked: None });
                self.constants.remove(&to);
                self.decides(format!("{left} map @{name}"));
            }
            (None, Some(set)) => {
                let text = words::relation(&left, !not, &words::set(set, &keys, self.version));
                let part = words::set_condition(set, &keys, self.version, self.context.links);
                match part {
                    Some(field) => self.parts.push(Part::Is(Condition { field, not }, text)),
                    None => self.decides(text),
                }
            }
            (None, None) => self.decides(words::relation(&left, !not, &format!("@{name}"))),
        }
    }

    /// What the registers hold that a key of `set` lies in.
    fn keys(&self, from: u32, set: Option<&Set>) -> Vec<Loaded<'a>> {
        let length = set.map_or(4, |set| set.key_length);
        let (mut keys, mut taken) = (Vec::new(), 0);
        while taken < length && keys.len() < 8 {
            let Some(loaded) = self.slots.get(&(from + taken / 4)).copied() else { break };
            keys.push(loaded);
            match words::width(&loaded) {
                Some(width) => taken += width.next_multiple_of(4),
                None => break,
            }
        }
        if keys.is_empty() {
            keys.push(self.loaded(from));
        }
        keys
    }

    fn finish(self) -> Reading {
        let Self { context, parts, end, map, mut reading, version, .. } = self;
        let (all, understood) = conditions(&parts);
        let all = without_implied(all);
        reading.outcomes = match &map {
            Some((keys, set, _)) => set
                .elements
                .iter()
                .filter_map(|element| through_map(keys, set, element, version, context, (&all, understood)))
                .collect(),
            None => {
                let verdict = end.as_ref().map_or(RuleVerdict::Other, |(verdict, _)| verdict.clone());
                vec![Outcome { verdict, conditions: all, understood }]
            }
        };
        let last = map.map(|(_, _, text)| text).or(end.map(|(_, text)| text)).unwrap_or_default();
        reading.text =
            if context.iptables { iptables_text(&parts, &iptables_target(&last)) } else { words::rule(&parts, &last) };
        reading
    }
}

/// "From any IPv4 address" says nothing where another address is asked for.
fn without_implied(conditions: Vec<Condition>) -> Vec<Condition> {
    let any = |condition: &Condition| matches!(&condition.field, ConditionField::Source(net) if net.prefix_len() == 0 && !condition.not);
    let address = |condition: &Condition| {
        use ConditionField as F;
        let address =
            matches!(condition.field, F::Source(_) | F::Destination(_) | F::SourceIn(_) | F::DestinationIn(_));
        address && !any(condition)
    };
    if conditions.iter().any(|condition| address(condition) && !condition.not) {
        return conditions.into_iter().filter(|condition| !any(condition)).collect();
    }
    conditions
}

fn through_map(
    keys: &[Loaded<'_>],
    set: &Set,
    element: &Element,
    version: Option<u8>,
    context: Context<'_>,
    (before, understood): (&[Condition], bool),
) -> Option<Outcome> {
    let verdict = element.verdict.clone()?;
    let fields = words::element_fields(set, keys, &element.key, version, context.links);
    let understood = understood && fields.is_some();
    let mut conditions = before.to_vec();
    conditions.extend(fields.into_iter().flatten().map(|field| Condition { field, not: false }));
    Some(Outcome { verdict: end(verdict).0, conditions, understood })
}

/// iptables writes `DROP` where nftables has `drop`, and the chain's name where that has `jump`.
fn iptables_target(text: &str) -> String {
    match text.split_once(' ') {
        Some(("jump", chain)) => chain.to_owned(),
        Some(("goto", chain)) => format!("goto {chain}"),
        None if matches!(text, "drop" | "accept" | "return" | "queue") => text.to_uppercase(),
        _ => text.to_owned(),
    }
}

fn end(verdict: Verdict) -> (RuleVerdict, String) {
    match verdict {
        Verdict::Accept => (RuleVerdict::Accept, "accept".to_owned()),
        Verdict::Drop => (RuleVerdict::Drop, "drop".to_owned()),
        Verdict::Queue => (RuleVerdict::Other, "queue".to_owned()),
        Verdict::Jump(chain) => (RuleVerdict::Jump(chain.clone()), format!("jump {chain}")),
        Verdict::Goto(chain) => (RuleVerdict::Jump(chain.clone()), format!("goto {chain}")),
        Verdict::Return => (RuleVerdict::Other, "return".to_owned()),
        Verdict::Continue => (RuleVerdict::Other, "continue".to_owned()),
    }
}

/// The verdict as nft writes it in a map.
pub(super) fn verdict_text(verdict: &Verdict) -> String {
    end(verdict.clone()).1
}

/// A comment in a rule's user data: records of type, length and text; type 0 is the comment (libnftnl, `udata.h`).
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
    loop {
        let [kind, length, rest @ ..] = data else { return None };
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = &rest[value.len()..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::live::rules::{
        attributes::{put, put_nested, put_text},
        sets::Set as AnySet,
        sets::elements,
    };

    struct NoSets;

    impl SetNames for NoSets {
        fn of(&self, _index: u16) -> Option<String> {
            None
        }
    }

    fn read_in(family: &str, list: &[u8]) -> Reading {
        let (sets, links) = (Sets::new(), HashMap::new());
        read(list, Context { family, iptables: false, sets: &sets, links: &links, ipsets: &NoSets })
    }

    fn expression(list: &mut Vec<u8>, name: &str, fields: &[(u16, u32)], value: Option<(u16, &[u8])>) {
        put_nested(list, 1, |element| {
            put_text(element, 1, name);
            put_nested(element, 2, |data| {
                fields.iter().for_each(|(kind, number)| put(data, *kind, &number.to_be_bytes()));
                if let Some((kind, bytes)) = value {
                    put_nested(data, kind, |inside| put(inside, 1, bytes));
                }
            });
        });
    }

    /// An expression this program does not know must not make a rule look simpler than it is.
    #[test]
    fn what_is_not_known_is_shown_and_not_understood() {
        let mut list = Vec::new();
        expression(&mut list, "payload", &[(1, 1), (2, 1), (3, 12), (4, 2)], None);
        expression(&mut list, "cmp", &[(1, 1), (2, 0)], Some((3, &[10, 1])));
        expression(&mut list, "oracle", &[], None);
        let reading = read_in("ip", &list);
        assert_eq!(reading.text, "ip saddr 10.1.0.0/16 oracle ...");
        let [outcome] = reading.outcomes.as_slice() else { panic!() };
        assert_eq!(
            outcome.conditions,
            [Condition { field: ConditionField::Source("10.1.0.0/16".parse().unwrap()), not: false }]
        );
        assert!(!outcome.understood);
    }

    #[test]
    fn a_comment_is_found_among_user_data() {
        assert_eq!(comment(&[2, 1, 9, 0, 3, b'h', b'i', 0]).as_deref(), Some("hi"));
        assert_eq!(comment(&[2, 9, 9]), None);
        assert_eq!(comment(&[]), None);
    }

    proptest::proptest! {
        /// Expressions of all names with attributes of all kinds, most of them wrong.
        #[test]
        fn no_rule_makes_it_panic(
            parts in proptest::collection::vec(
                (0..24usize, proptest::collection::vec((1..9u16, 0..40u32), 0..6), 1..6u16, proptest::collection::vec(proptest::num::u8::ANY, 0..20)),
                0..8,
            ),
            family in 0..3usize,
        ) {
            const NAMES: [&str; 24] = [
                "meta", "ct", "fib", "payload", "rt", "socket", "numgen", "hash", "byteorder", "bitwise", "cmp", "range", "lookup",
                "immediate", "counter", "reject", "masq", "nat", "redir", "match", "target", "limit", "log", "exthdr",
            ];
            let mut list = Vec::new();
            for (name, fields, kind, value) in &parts {
                expression(&mut list, NAMES[*name], fields, Some((*kind, value)));
            }
            read_in(["ip", "ip6", "inet"][family], &list);
        }

        #[test]
        fn no_set_makes_it_panic(body: Vec<u8>) {
            AnySet::decode(&body);
            elements(&crate::node::live::rules::attributes::Raw { body: body.clone(), ..Default::default() });
            comment(&body);
        }
    }
}
