//! One rule of a legacy table: `struct ipt_entry` and `struct ip6t_entry`, which differ only in where things lie.

use std::hash::{DefaultHasher, Hash, Hasher};

use ipnet::IpNet;

use super::{
    super::facts::{Condition, ConditionField, RuleVerdict},
    attributes::text,
    model::{Entry, Outcome, Part, address, conditions, iptables_text, prefix_length},
    xt::{self, SetNames, u16_at, u32_at, u64_at},
};

/// Header of a match or target: size, name, revision; bytes.
const EXTENSION: usize = 32;
/// `IFNAMSIZ`.
const INTERFACE: usize = 16;

/// Where an entry's fields lie, offsets in bytes.
pub(super) struct Shape {
    v6: bool,
    address: usize,
    interfaces: usize,
    protocol: usize,
    flags: usize,
    inverted: usize,
    target: usize,
    next: usize,
    come_from: usize,
    counters: usize,
    matches: usize,
}

impl Shape {
    pub(super) fn of(v6: bool) -> Self {
        if v6 {
            Self {
                v6,
                address: 16,
                interfaces: 64,
                protocol: 128,
                flags: 131,
                inverted: 132,
                target: 140,
                next: 142,
                come_from: 144,
                counters: 152,
                matches: 168,
            }
        } else {
            Self {
                v6,
                address: 4,
                interfaces: 16,
                protocol: 80,
                flags: 82,
                inverted: 83,
                target: 88,
                next: 90,
                come_from: 92,
                counters: 96,
                matches: 112,
            }
        }
    }

    /// The entries of a table, with their offsets.
    pub(super) fn entries<'a>(&'a self, table: &'a [u8]) -> impl Iterator<Item = (u32, &'a [u8])> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let length = usize::from(u16_at(table, offset + self.next)?);
            let entry = table.get(offset..offset + length).filter(|entry| entry.len() >= self.matches)?;
            let at = u32::try_from(offset).ok()?;
            offset += length;
            Some((at, entry))
        })
    }

    pub(super) fn packets(&self, entry: &[u8]) -> u64 {
        u64_at(entry, self.counters).unwrap_or_default()
    }

    /// Name, revision and data of the target.
    fn target<'a>(&self, entry: &'a [u8]) -> Option<Extension<'a>> {
        let target = entry.get(usize::from(u16_at(entry, self.target)?)..)?;
        extension(target).map(|(extension, _)| extension)
    }

    /// The standard target's verdict: a chain's offset, or negative.
    pub(super) fn verdict(&self, entry: &[u8]) -> Option<i32> {
        let (name, _, data) = self.target(entry)?;
        if name.is_empty() { u32_at(data, 0).map(u32::cast_signed) } else { None }
    }

    /// The name of the chain that begins after this entry.
    pub(super) fn names_chain(&self, entry: &[u8]) -> Option<String> {
        let (name, _, data) = self.target(entry)?;
        (name == "ERROR").then(|| text(data))
    }

    fn matches<'a>(&self, entry: &'a [u8]) -> Vec<Extension<'a>> {
        let end = u16_at(entry, self.target).map_or(0, usize::from);
        let (mut rest, mut found) = (entry.get(self.matches..end).unwrap_or_default(), Vec::new());
        while let Some((extension, length)) = extension(rest) {
            found.push(extension);
            rest = rest.get(length..).unwrap_or_default();
        }
        found
    }

    /// What makes an entry the same in two readings: all but counters, marks of the kernel's own walk, and where a jump leads to.
    fn content(&self, entry: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        entry.get(..self.come_from).hash(&mut hasher);
        let end = u16_at(entry, self.target).map_or(0, usize::from);
        match self.verdict(entry) {
            Some(to @ 0..) => (entry.get(self.matches..end), to.signum()).hash(&mut hasher),
            _ => entry.get(self.matches..).hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// A match or target: name, revision, data.
type Extension<'a> = (String, u32, &'a [u8]);

/// A match or target at the beginning of `bytes`, and its whole length.
fn extension(bytes: &[u8]) -> Option<(Extension<'_>, usize)> {
    let length = usize::from(u16_at(bytes, 0)?);
    let data = bytes.get(EXTENSION..length)?;
    Some(((text(&bytes[2..EXTENSION - 1]), u32::from(bytes[EXTENSION - 1]), data), length))
}

/// A rule of which nothing is known but its counter.
pub(super) fn counted(shape: &Shape, entry: &[u8]) -> Entry {
    Entry {
        content: shape.content(entry),
        handle: 0,
        packets: Some(shape.packets(entry)),
        outcomes: Vec::new(),
        text: String::new(),
        comment: None,
    }
}

/// Reads a rule; `chain_at` names the chain that begins at an offset.
pub(super) fn read(
    shape: &Shape,
    offset: u32,
    entry: &[u8],
    ipsets: &dyn SetNames,
    chain_at: &dyn Fn(u32) -> Option<String>,
) -> Entry {
    let mut parts = header(shape, entry);
    let mut comment = None;
    for (name, revision, data) in shape.matches(entry) {
        comment = xt::comment(&name, data).or(comment);
        parts.push(xt::matched(&name, revision, data, ipsets));
    }
    let (verdict, target) = end(shape, offset, entry, chain_at);
    let text = iptables_text(&parts, &target);
    let (conditions, understood) = conditions(&parts);
    Entry { outcomes: vec![Outcome { verdict, conditions, understood }], text, comment, ..counted(shape, entry) }
}

fn end(shape: &Shape, offset: u32, entry: &[u8], chain_at: &dyn Fn(u32) -> Option<String>) -> (RuleVerdict, String) {
    /// `IPT_F_GOTO`; `IP6T_F_GOTO` is 4.
    const GOTO: u8 = 2;
    let Some(verdict) = shape.verdict(entry) else {
        return match shape.target(entry) {
            Some((name, revision, data)) => xt::target(&name, revision, data, shape.v6),
            None => (RuleVerdict::Other, "...".to_owned()),
        };
    };
    match verdict {
        -1 => (RuleVerdict::Drop, "DROP".to_owned()),
        -2 => (RuleVerdict::Accept, "ACCEPT".to_owned()),
        -4 => (RuleVerdict::Other, "QUEUE".to_owned()),
        -5 => (RuleVerdict::Other, "RETURN".to_owned()),
        to => {
            let to = to.cast_unsigned();
            if Some(to) == u32::try_from(entry.len()).ok().and_then(|length| offset.checked_add(length)) {
                return (RuleVerdict::Other, String::new()); // No target: on to the next rule.
            }
            let goto = if shape.v6 { GOTO << 1 } else { GOTO };
            let going = entry.get(shape.flags).is_some_and(|flags| flags & goto != 0);
            match chain_at(to) {
                Some(chain) => (RuleVerdict::Jump(chain.clone()), if going { format!("goto {chain}") } else { chain }),
                None => (RuleVerdict::Other, "...".to_owned()),
            }
        }
    }
}

/// Addresses, interfaces and protocol.
fn header(shape: &Shape, entry: &[u8]) -> Vec<Part> {
    const VIA_IN: u8 = 1;
    const VIA_OUT: u8 = 2;
    const SOURCE: u8 = 8;
    const DESTINATION: u8 = 16;
    const FRAGMENT: u8 = 32;
    const PROTOCOL: u8 = 64;
    let inverted = entry.get(shape.inverted).copied().unwrap_or_default();
    let mut parts = Vec::new();
    let mut add = |field: Option<ConditionField>, bit: u8| {
        let not = inverted & bit != 0;
        parts.extend(field.map(|field| Part::Is(Condition { field, not }, String::new())));
    };
    let size = shape.address;
    let net = |index: usize| {
        let (value, mask) =
            (entry.get(index * size..(index + 1) * size)?, entry.get((index + 2) * size..(index + 3) * size)?);
        let asked = mask.iter().any(|byte| *byte != 0);
        asked.then(|| prefix_length(mask).and_then(|length| IpNet::new(address(value)?, length).ok()))
    };
    let (source, destination) = (net(0), net(1));
    add(source.flatten().map(ConditionField::Source), SOURCE);
    add(destination.flatten().map(ConditionField::Destination), DESTINATION);
    add(interface(shape, entry, 0).map(ConditionField::InInterface), VIA_IN);
    add(interface(shape, entry, 1).map(ConditionField::OutInterface), VIA_OUT);
    let protocol = u16_at(entry, shape.protocol).and_then(|number| u8::try_from(number).ok()).filter(|n| *n != 0);
    add(protocol.map(ConditionField::Protocol), PROTOCOL);
    // A mask that is no prefix.
    for (option, net) in [("-s", source), ("-d", destination)] {
        if matches!(net, Some(None)) {
            parts.push(Part::Decides(format!("{option} ...")));
        }
    }
    // `IPT_F_FRAG`, and for IPv6 the type of service.
    let flags = entry.get(shape.flags).copied().unwrap_or_default();
    if !shape.v6 && flags & 1 != 0 {
        parts.push(Part::Decides(if inverted & FRAGMENT != 0 { "! -f" } else { "-f" }.to_owned()));
    }
    if shape.v6 && flags & 2 != 0 {
        parts.push(Part::Decides("...".to_owned()));
    }
    parts
}

/// A name of which the mask says how much counts: with its NUL it is whole.
fn interface(shape: &Shape, entry: &[u8], index: usize) -> Option<String> {
    let at = shape.interfaces + index * INTERFACE;
    let name = entry.get(at..at + INTERFACE)?;
    let mask = entry.get(at + (2 * INTERFACE)..at + 3 * INTERFACE)?;
    let counts = mask.iter().take_while(|byte| **byte != 0).count();
    let name = text(name);
    match counts {
        0 => None,
        counts if counts > name.len() => Some(name),
        // The plus sign is part of the name already.
        counts => Some(format!("{}+", name.get(..counts).unwrap_or(&name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoSets;

    impl SetNames for NoSets {
        fn of(&self, _index: u16) -> Option<String> {
            None
        }
    }

    /// `iptables-legacy -A OUTPUT -d 10.0.0.0/8 -o eth+ -p tcp -j DROP`, as the kernel tells it.
    fn entry() -> Vec<u8> {
        let mut entry = vec![0; 112];
        entry[4..8].copy_from_slice(&[10, 0, 0, 0]);
        entry[12] = 255;
        entry[32..36].copy_from_slice(b"eth+");
        entry[64..67].copy_from_slice(&[255; 3]);
        entry[80] = 6;
        entry[88..90].copy_from_slice(&112u16.to_ne_bytes());
        entry[90..92].copy_from_slice(&152u16.to_ne_bytes());
        entry[96..104].copy_from_slice(&9u64.to_ne_bytes());
        entry.extend(40u16.to_ne_bytes());
        entry.extend([0; 30]);
        entry.extend((-1i32).to_ne_bytes());
        entry.extend([0; 4]);
        entry
    }

    fn read_at(v6: bool, entry: &[u8]) -> Entry {
        read(&Shape::of(v6), 0, entry, &NoSets, &|_| None)
    }

    #[test]
    fn a_rule_reads_as_iptables_save_prints_it() {
        let read = read_at(false, &entry());
        assert_eq!((read.text.as_str(), read.packets), ("-d 10.0.0.0/8 -o eth+ -p tcp -j DROP", Some(9)));
        assert_eq!(read.outcomes[0].verdict, RuleVerdict::Drop);
        assert!(read.outcomes[0].understood);
    }

    #[test]
    fn a_rule_is_the_same_whatever_it_counted() {
        let (mut counted, shape) = (entry(), Shape::of(false));
        counted[96] = 77;
        counted[92] = 1;
        assert_eq!(shape.content(&counted), shape.content(&entry()));
        counted[4] = 11;
        assert_ne!(shape.content(&counted), shape.content(&entry()));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400), v6: bool, lengths: [u8; 4]) {
            read_at(v6, &bytes);
            // Nearly good ones get further.
            let shape = Shape::of(v6);
            for (at, length) in [shape.target, shape.next].into_iter().zip(lengths) {
                if let Some(field) = bytes.get_mut(at..at + 2) {
                    field.copy_from_slice(&u16::from(length).to_ne_bytes());
                }
            }
            for (_, entry) in shape.entries(&bytes) {
                read_at(v6, entry);
            }
        }

        #[test]
        fn no_extension_makes_it_panic(data: Vec<u8>, revision in 0..5u32, v6: bool) {
            for name in ["comment", "conntrack", "state", "mark", "rpfilter", "addrtype", "set", "tcp", "udp", "icmp", "multiport", "statistic"] {
                xt::matched(name, revision, &data, &NoSets);
            }
            for name in ["REJECT", "MARK", "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "LOG"] {
                xt::target(name, revision, &data, v6);
            }
        }
    }
}
