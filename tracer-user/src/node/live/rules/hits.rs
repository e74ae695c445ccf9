//! Which rules did packets meet: two readings of the counters compared.

use std::collections::{HashMap, hash_map::Entry as Slot};

use super::{
    super::facts::{ConditionField, Rule, RuleHit, RuleVerdict},
    model::{Chain, Entry, Outcome, Ruleset, Table, matters},
    sets::MOST_RANGES,
    ways::{Graph, Ways},
};

/// So many rules without a counter are told; with more of them nothing can be concluded from their being there.
const MOST_UNCOUNTED: usize = 512;

/// Names a chain.
pub(in crate::node::live) type Place = (&'static str, String, String);

/// The counters of one reading.
#[derive(Clone, Debug, Default)]
pub(super) struct Baseline {
    by_handle: HashMap<(Place, u64), Option<u64>>,
    /// By content, and as which of several of the same content in a chain.
    by_content: HashMap<(bool, Place, u64, u32), Option<u64>>,
    policies: HashMap<(bool, Place), Option<u64>>,
    seen: HashMap<(bool, Place, u64), u32>,
}

impl Baseline {
    /// Adds a rule; `legacy` tells iptables' own tables from those of the same name in nftables.
    pub(super) fn add(&mut self, legacy: bool, place: Place, handle: u64, content: u64, packets: Option<u64>) {
        let nth = count(&mut self.seen, (legacy, place.clone(), content));
        self.by_content.insert((legacy, place.clone(), content, nth), packets);
        if !legacy {
            self.by_handle.insert((place, handle), packets);
        }
    }

    /// Adds a policy.
    pub(super) fn add_policy(&mut self, legacy: bool, place: Place, packets: Option<u64>) {
        self.policies.insert((legacy, place), packets);
    }
}

fn count(seen: &mut HashMap<(bool, Place, u64), u32>, key: (bool, Place, u64)) -> u32 {
    match seen.entry(key) {
        Slot::Occupied(mut known) => {
            *known.get_mut() += 1;
            *known.get()
        }
        Slot::Vacant(new) => *new.insert(0),
    }
}

/// Packets of the traced flows that met a rule, by chain, handle and what became of them; by handle 0 the chain's policy.
pub(in crate::node::live) type Traced = HashMap<(Place, u64, Ended), u64>;

/// What a rule's verdict did to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::node::live) enum Ended {
    Dropped,
    Accepted,
    /// It went on to another rule, or elsewhere.
    Not,
}

/// What the comparison found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) hits: Vec<RuleHit>,
    /// More rules without counter may have been met than are told.
    pub(super) too_many: bool,
    /// Rules that had been there are no more, or were replaced or reset: what their counters had counted is lost.
    pub(super) vanished: bool,
    /// That, or rules that had not been there before have counted something.
    pub(super) changed: bool,
}

/// The rules and policies of `after` that packets met since `before`, and those that may have been met uncounted.
pub(super) fn hits(netns: u32, after: &Ruleset, before: &Baseline, traced: &Traced) -> Found {
    let mut comparison = Comparison {
        netns,
        before,
        traced,
        seen: HashMap::new(),
        sure: Vec::new(),
        maybe: Vec::new(),
        again: 0,
        reset: false,
        new: false,
    };
    after.tables.iter().for_each(|table| comparison.table(table));
    let Comparison { sure, mut maybe, again, reset, new, .. } = comparison;
    let too_many = maybe.len() > MOST_UNCOUNTED;
    let vanished = reset || again < before.by_content.len();
    // What ends packets is worth more than what rewrites them.
    maybe.sort_by_key(|hit| !matches!(hit.verdict, RuleVerdict::Drop | RuleVerdict::Reject(_)));
    maybe.truncate(MOST_UNCOUNTED);
    let mut hits = sure;
    hits.extend(maybe);
    Found { hits, too_many, vanished, changed: new || vanished }
}

const ENDS: [Ended; 3] = [Ended::Dropped, Ended::Accepted, Ended::Not];

struct Comparison<'a> {
    netns: u32,
    before: &'a Baseline,
    traced: &'a Traced,
    seen: HashMap<(bool, Place, u64), u32>,
    sure: Vec<RuleHit>,
    maybe: Vec<RuleHit>,
    /// So many rules were there before too.
    again: usize,
    /// A counter fell.
    reset: bool,
    /// A rule is new, and has counted.
    new: bool,
}

impl Comparison<'_> {
    fn table(&mut self, table: &Table) {
        let graph = Graph::of(table);
        let legacy = table.engine == super::super::facts::RuleEngine::Iptables;
        for (index, chain) in table.chains.iter().enumerate() {
            let place: Place = (table.family, table.name.clone(), chain.name.clone());
            // Looked for only if a rule needs them.
            let mut ways: Option<Option<Ways>> = None;
            for (rule, position) in chain.rules.iter().zip(1..) {
                let rise = self.rise(legacy, &place, rule);
                if rise == Some(0) && !ENDS.iter().any(|ended| self.traced_at(&place, rule.handle, *ended) > 0) {
                    continue;
                }
                for outcome in &rule.outcomes {
                    let traced = self.traced(&place, rule.handle, &outcome.verdict);
                    // A traced packet that the rule let pass is no news, a verdict of any kind is.
                    let told = outcome.matters() && (rise != Some(0) || traced > 0)
                        || traced > 0 && outcome.verdict == RuleVerdict::Accept;
                    if !told {
                        continue;
                    }
                    let Some(ways) = ways.get_or_insert_with(|| graph.to(index)) else { continue };
                    let met = Met { packets: rise, traced };
                    let hit = self.hit(table, chain, ways, Some((rule, position, outcome)), met);
                    self.keep(hit, met);
                }
            }
            self.policy(table, chain, legacy, &place);
        }
    }

    fn policy(&mut self, table: &Table, chain: &Chain, legacy: bool, place: &Place) {
        let Some(base) = &chain.base else { return };
        let before = self.before.policies.get(&(legacy, place.clone())).copied();
        let rise = self.difference(base.packets, before);
        let traced = self.traced(place, 0, &base.policy);
        let may_have_ended = matters(&base.policy) && rise != Some(0);
        if traced == 0 && !may_have_ended {
            return;
        }
        let ways = Ways { one: vec![chain.name.clone()], hook: base.hook, conditions: Vec::new(), understood: true };
        let met = Met { packets: rise, traced };
        let hit = self.hit(table, chain, &ways, None, met);
        self.keep(hit, met);
    }

    fn traced_at(&self, place: &Place, handle: u64, ended: Ended) -> u64 {
        self.traced.get(&(place.clone(), handle, ended)).copied().unwrap_or_default()
    }

    /// How many traced packets the rule did that to. NAT's verdict is to accept, or by an iptables target to go on.
    fn traced(&self, place: &Place, handle: u64, verdict: &RuleVerdict) -> u64 {
        let of = |ended| self.traced_at(place, handle, ended);
        match verdict {
            RuleVerdict::Drop | RuleVerdict::Reject(_) => of(Ended::Dropped),
            RuleVerdict::Accept => of(Ended::Accepted),
            RuleVerdict::Masquerade | RuleVerdict::Snat(_) | RuleVerdict::Dnat(_) => {
                of(Ended::Accepted) + of(Ended::Not)
            }
            RuleVerdict::Jump(_) | RuleVerdict::Other => of(Ended::Not),
        }
    }

    /// By how much the rule's counter rose; None: it has none.
    fn rise(&mut self, legacy: bool, place: &Place, rule: &Entry) -> Option<u64> {
        let nth = count(&mut self.seen, (legacy, place.clone(), rule.content));
        let by_handle = self.before.by_handle.get(&(place.clone(), rule.handle)).filter(|_| !legacy);
        let by_content = self.before.by_content.get(&(legacy, place.clone(), rule.content, nth));
        // Of nftables only the handle tells the same rule from its like, which took over its counter or did not.
        self.again += usize::from(if legacy { by_content.is_some() } else { by_handle.is_some() });
        self.difference(rule.packets, by_handle.or(by_content).copied())
    }

    fn difference(&mut self, after: Option<u64>, before: Option<Option<u64>>) -> Option<u64> {
        let after = after?;
        let before = before.flatten();
        self.reset |= before.is_some_and(|before| before > after);
        self.new |= before.is_none() && after > 0;
        // Reset or new: it has counted this since.
        Some(before.and_then(|before| after.checked_sub(before)).unwrap_or(after))
    }

    fn hit(
        &self,
        table: &Table,
        chain: &Chain,
        ways: &Ways,
        rule: Option<(&Entry, u32, &Outcome)>,
        met: Met,
    ) -> RuleHit {
        let Ways { one, hook, conditions, understood } = ways.clone();
        let mut hit = RuleHit {
            netns: self.netns,
            engine: table.engine,
            family: table.family.to_owned(),
            table: table.name.clone(),
            chain: chain.name.clone(),
            hook,
            way: one,
            rule: None,
            verdict: chain.base.as_ref().map_or(RuleVerdict::Other, |base| base.policy.clone()),
            conditions,
            understood,
            counted: met.packets.is_some(),
            packets: met.packets.unwrap_or_default(),
            traced: met.traced,
        };
        if let Some((entry, position, outcome)) = rule {
            let handle = (entry.handle != 0).then_some(entry.handle);
            let (text, comment) = (entry.text.clone(), entry.comment.clone());
            hit.rule = Some(Rule { position, handle, text, comment });
            hit.verdict = outcome.verdict.clone();
            for condition in &outcome.conditions {
                if !hit.conditions.contains(condition) {
                    hit.conditions.push(condition.clone());
                }
            }
            hit.understood &= outcome.understood;
        }
        // A message of a session holds only so much.
        let (mut room, all) = (MOST_RANGES, hit.conditions.len());
        hit.conditions.retain(|condition| match &condition.field {
            ConditionField::SourceIn(ranges) | ConditionField::DestinationIn(ranges) => {
                let left = room.checked_sub(ranges.0.len());
                room = left.unwrap_or(room);
                left.is_some()
            }
            _ => true,
        });
        hit.understood &= hit.conditions.len() == all;
        hit
    }

    fn keep(&mut self, hit: RuleHit, met: Met) {
        if met.packets.is_some() || met.traced > 0 {
            self.sure.push(hit);
        } else {
            self.maybe.push(hit);
        }
    }
}

/// How often packets met something.
#[derive(Clone, Copy)]
struct Met {
    /// None: not counted.
    packets: Option<u64>,
    traced: u64,
}
