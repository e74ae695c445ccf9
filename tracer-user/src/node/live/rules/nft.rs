//! nftables by netlink (`net/netfilter/nf_tables_api.c`): what is asked, and what the answers come to.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    super::{
        error::Failure,
        facts::{RuleEngine, RuleVerdict},
        netlink::Netlink,
    },
    attributes::{Raw, attribute, attributes, be64, number, put_text, string},
    model::{Base, Chain, Entry, Ruleset, Table},
    rule::{self, Context},
    sets::{self, Set, Sets},
    xt::SetNames,
};

/// `NFNL_SUBSYS_NFTABLES`.
pub(in crate::node::live) const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_SET: u16 = SUBSYSTEM | 10;
const GET_SET_ELEMENTS: u16 = SUBSYSTEM | 13;
/// NFPROTO_UNSPEC: all families.
const ALL: u8 = 0;
/// So many sets' elements are read; what lies beyond decides unread.
const MOST_SETS: usize = 4096;
/// So many named sets of addresses are read, and so many elements of them all together.
const MOST_NAMED: usize = 1024;
const MOST_ELEMENTS: usize = 1 << 16;

/// Chains, rules and sets as the kernel told them.
#[derive(Clone, Debug, Default)]
pub(super) struct Dump {
    pub(super) tables: Vec<Raw>,
    pub(super) chains: Vec<Raw>,
    pub(super) rules: Vec<Raw>,
    pub(super) sets: Vec<Raw>,
    pub(super) elements: Vec<Raw>,
    /// Named sets whose elements are all there.
    pub(super) whole: HashSet<Place>,
    /// Not all elements that belong to rules were read.
    pub(super) partly: bool,
}

/// Reads counters: chains and rules, no sets. None: there are no tables.
pub(super) fn counters(netlink: &mut Netlink) -> Result<Option<Dump>, Failure> {
    let tables = dump(netlink, Raw::new(GET_TABLE, ALL))?;
    if tables.is_empty() {
        return Ok(None);
    }
    let chains = dump(netlink, Raw::new(GET_CHAIN, ALL))?;
    let rules = dump(netlink, Raw::new(GET_RULE, ALL))?;
    Ok(Some(Dump { tables, chains, rules, ..Dump::default() }))
}

/// Reads everything that rules are made of.
pub(super) fn everything(netlink: &mut Netlink) -> Result<Option<Dump>, Failure> {
    let Some(mut found) = counters(netlink)? else { return Ok(None) };
    found.sets = dump(netlink, Raw::new(GET_SET, ALL))?;
    let wanted = found.sets.iter().filter_map(|message| {
        let (table, set) = Set::decode(&message.body)?;
        set.wanted().then_some((message.family, table, set.name))
    });
    let wanted: Vec<_> = wanted.collect();
    found.partly = wanted.len() > MOST_SETS;
    for (family, table, name) in wanted.into_iter().take(MOST_SETS) {
        let mut request = Raw::new(GET_SET_ELEMENTS, family);
        put_text(&mut request.body, 1, &table);
        put_text(&mut request.body, 2, &name);
        match dump(netlink, request) {
            Ok(elements) => found.elements.extend(elements),
            // Its rule was deleted meanwhile.
            Err(failure) if failure.errno() == Some(libc::ENOENT) => {}
            Err(failure) => return Err(failure),
        }
    }
    read_named(&mut found);
    Ok(Some(found))
}

/// Reads small named sets of addresses. An interval has two elements, and before the first one may lie another. A set that cannot be read
/// counts as too large: the rules are told without it.
fn read_named(found: &mut Dump) {
    let named = found.sets.iter().filter_map(|message| {
        let (table, set) = Set::decode(&message.body)?;
        set.addresses.then_some((message.family, table, set.name))
    });
    let mut room = MOST_ELEMENTS;
    for place in named.take(MOST_NAMED).collect::<Vec<_>>() {
        let mut request = Raw::new(GET_SET_ELEMENTS, place.0);
        put_text(&mut request.body, 1, &place.1);
        put_text(&mut request.body, 2, &place.2);
        let (mut elements, mut count) = (Vec::new(), 0);
        let most = room.min(2 * sets::MOST_RANGES + 1);
        let Ok(netlink) = Netlink::open(NETLINK_NETFILTER) else { return };
        let whole = netlink.dump_while(request, |message: Raw| {
            count += sets::told(&message);
            elements.push(message);
            count <= most
        });
        if let Ok(true) = whole {
            room -= count;
            found.elements.extend(elements);
            found.whole.insert(place);
        }
    }
}

/// The generation of the rules that a reading shows: each change of any of them makes a new one (its lower 16 bits are told with
/// everything: `nft_base_seq` in net/netfilter/nf_tables_api.c). None: it shows several.
pub(super) fn generation(dump: &Dump) -> Option<u16> {
    let Dump { tables, chains, rules, sets, elements, whole: _, partly: _ } = dump;
    let mut all = [tables, chains, rules, sets, elements].into_iter().flatten().map(|message| message.resource);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

fn dump(netlink: &mut Netlink, request: Raw) -> Result<Vec<Raw>, Failure> {
    netlink.dump(&request, Some)
}

/// Is there a chain of type nat? Then conntrack runs.
pub(super) fn translates(dump: &Dump) -> bool {
    dump.chains.iter().any(|message| string(&message.body, 7).as_deref() == Some("nat"))
}

/// The names of the table with that handle and of its chain with the other.
pub(super) fn names(dump: &Dump, table: u64, chain: u64) -> Option<(String, Option<String>)> {
    let table = dump.tables.iter().find(|message| handle(&message.body, 4) == table)?;
    let name = string(&table.body, 1)?;
    let own = |message: &&Raw| {
        message.family == table.family
            && string(&message.body, 1).as_ref() == Some(&name)
            && handle(&message.body, 2) == chain
    };
    let chain = dump.chains.iter().find(own).and_then(|message| string(&message.body, 3));
    Some((name, chain))
}

/// Where a chain is: family, table, chain.
pub(super) type Place = (u8, String, String);

/// Table and chain of a rule, or of a chain itself.
fn place(message: &Raw, chain: u16) -> Option<Place> {
    Some((message.family, string(&message.body, 1)?, string(&message.body, chain)?))
}

/// A rule's counter and what else makes it that rule, without reading more of it.
pub(super) fn counted(message: &Raw) -> Option<(Place, u64, u64, Option<u64>)> {
    let list = attribute(&message.body, 4).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    let mut packets = None;
    for (_, element) in attributes(list) {
        match attribute(element, 1) {
            Some(b"counter\0") => {
                packets = attribute(element, 2).and_then(|data| attribute(data, 2)).and_then(be64);
            }
            // They have a state of their own.
            Some(b"quota\0" | b"limit\0" | b"last\0" | b"connlimit\0") => {}
            _ => element.hash(&mut hasher),
        }
    }
    Some((place(message, 2)?, handle(&message.body, 3), hasher.finish(), packets))
}

/// A base chain's policy counter.
pub(super) fn policy_counted(message: &Raw) -> Option<(Place, Option<u64>)> {
    attribute(&message.body, 4)?;
    Some((place(message, 3)?, policy_packets(&message.body)))
}

fn policy_packets(chain: &[u8]) -> Option<u64> {
    attribute(chain, 8).and_then(|counters| attribute(counters, 2)).and_then(be64)
}

fn handle(body: &[u8], kind: u16) -> u64 {
    attribute(body, kind).and_then(be64).unwrap_or_default()
}

/// NFPROTO_* as nft names it. arp is left out: no packet of a trace is one.
pub(super) fn family_name(family: u8) -> Option<&'static str> {
    Some(match family {
        1 => "inet",
        2 => "ip",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    })
}

/// Reads the tables of a dump. `steady`: nothing of them has changed since packets passed, so that named sets are as they were.
pub(super) fn read(dump: &Dump, steady: bool, links: &HashMap<u32, String>, ipsets: &dyn SetNames) -> Ruleset {
    let mut tables: HashMap<(u8, String), (Table, Sets)> = HashMap::new();
    let mut order: Vec<(u8, String)> = Vec::new();
    for message in &dump.chains {
        let (Some((family, table, name)), Some(family_name)) = (place(message, 3), family_name(message.family)) else {
            continue;
        };
        let key = (family, table.clone());
        let (table, _) = tables.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            (Table { engine: RuleEngine::Nftables, family: family_name, name: table, chains: Vec::new() }, Sets::new())
        });
        table.chains.push(Chain { name, base: base(&message.body, family), rules: Vec::new() });
    }
    read_sets(dump, steady, &mut tables);
    for (table, _) in tables.values_mut() {
        let priorities = dump.chains.iter().filter(|message| string(&message.body, 1).as_ref() == Some(&table.name));
        let priorities: Vec<(String, i32)> =
            priorities.filter_map(|m| Some((string(&m.body, 3)?, priority(&m.body)?))).collect();
        if of_iptables(table, &priorities) {
            table.engine = RuleEngine::IptablesNft;
        }
    }
    read_rules(dump, &mut tables, links, ipsets);
    let tables = order.iter().filter_map(|key| tables.remove(key)).map(|(table, _)| table).collect();
    Ruleset { tables }
}

fn read_sets(dump: &Dump, steady: bool, tables: &mut HashMap<(u8, String), (Table, Sets)>) {
    for message in &dump.sets {
        let Some((table, mut set)) = Set::decode(&message.body) else { continue };
        let place = (message.family, table, set.name.clone());
        set.read = if set.wanted() { !dump.partly } else { steady && dump.whole.contains(&place) };
        if let Some((_, sets)) = tables.get_mut(&(place.0, place.1)) {
            sets.insert(set.name.clone(), set);
        }
    }
    for message in &dump.elements {
        let Some((table, set, elements)) = sets::elements(message) else { continue };
        let set = tables.get_mut(&(message.family, table)).and_then(|(_, sets)| sets.get_mut(&set));
        if let Some(set) = set {
            set.elements.extend(elements);
        }
    }
    // The kernel lists them by hash; an interval may begin where another ends.
    tables
        .values_mut()
        .flat_map(|(_, sets)| sets.values_mut())
        .for_each(|set| set.elements.sort_by(|a, b| (&a.key, !a.end).cmp(&(&b.key, !b.end))));
}

fn read_rules(
    dump: &Dump,
    tables: &mut HashMap<(u8, String), (Table, Sets)>,
    links: &HashMap<u32, String>,
    ipsets: &dyn SetNames,
) {
    // Rules come chain by chain: the last chain is mostly the next one's too.
    let places: HashMap<Place, usize> = tables
        .iter()
        .flat_map(|((family, name), (table, _))| {
            let chains = table.chains.iter().enumerate();
            chains.map(move |(index, chain)| ((*family, name.clone(), chain.name.clone()), index))
        })
        .collect();
    for message in &dump.rules {
        let Some(((family, table, chain), handle, content, packets)) = counted(message) else { continue };
        let place = (family, table, chain);
        let Some(index) = places.get(&place) else { continue };
        let Some((table, sets)) = tables.get_mut(&(place.0, place.1)) else { continue };
        let context =
            Context { family: table.family, iptables: table.engine == RuleEngine::IptablesNft, sets, links, ipsets };
        let read = rule::read(attribute(&message.body, 4).unwrap_or_default(), context);
        let comment = attribute(&message.body, 7).and_then(rule::comment).or(read.comment);
        let entry = Entry { content, handle, packets, outcomes: read.outcomes, text: read.text, comment };
        table.chains[*index].rules.push(entry);
    }
}

fn priority(chain: &[u8]) -> Option<i32> {
    attribute(chain, 4).and_then(|hook| number(hook, 2)).map(u32::cast_signed)
}

fn base(chain: &[u8], family: u8) -> Option<Base> {
    const NETDEV: u8 = 5;
    let hook = attribute(chain, 4).and_then(|hook| number(hook, 1))?;
    let hook = u8::try_from(hook).ok().filter(|hook| family != NETDEV && *hook < 5);
    let policy = if number(chain, 5) == Some(0) { RuleVerdict::Drop } else { RuleVerdict::Accept };
    Some(Base { hook, policy, packets: policy_packets(chain) })
}

/// iptables' nft variant knows its tables by their names and those of their base chains, each at its own hook and priority
/// (iptables, `nft.c`, nft_is_table_compatible).
fn of_iptables(table: &Table, priorities: &[(String, i32)]) -> bool {
    const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let own = |name: &str| match (table.name.as_str(), name) {
        ("filter", _) => Some(0),
        ("raw", _) => Some(-300),
        ("mangle", _) => Some(-150),
        ("security", _) => Some(50),
        ("nat", "PREROUTING" | "OUTPUT") => Some(-100),
        ("nat", _) => Some(100),
        _ => None,
    };
    let mut bases = table.chains.iter().filter_map(|chain| Some((chain, chain.base.as_ref()?))).peekable();
    matches!(table.family, "ip" | "ip6")
        && bases.peek().is_some()
        && bases.all(|(chain, base)| {
            let hook = HOOKS.iter().position(|hook| *hook == chain.name);
            let priority = priorities.iter().find(|(name, _)| *name == chain.name).map(|(_, priority)| *priority);
            hook.is_some() && hook == base.hook.map(usize::from) && own(&chain.name) == priority && priority.is_some()
        })
}
