//! How packets get to a chain: the jumps that lead there from base chains, and what they ask of a packet.

use std::collections::{BTreeSet, HashMap};

use super::{
    super::facts::{Condition, RuleVerdict},
    model::{Base, Table},
};

/// So many ways to a chain are compared. A chain that half the others jump to (`KUBE-MARK-MASQ`) has no common conditions anyway.
const MOST_WAYS: usize = 256;

/// All ways to one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// The chains of one of them, base chain first.
    pub(super) one: Vec<String>,
    /// The hook of all of them, if it is one.
    pub(super) hook: Option<u8>,
    /// What every packet that comes by any of them fulfils.
    pub(super) conditions: Vec<Condition>,
    /// There is one way, and nothing but the conditions decides who takes it.
    pub(super) understood: bool,
}

/// A jump: from which chain, under which conditions, and whether those are all.
struct Jump<'a> {
    from: usize,
    conditions: &'a [Condition],
    understood: bool,
}

/// The jumps of a table, by the chain they lead to.
pub(super) struct Graph<'a> {
    table: &'a Table,
    into: HashMap<&'a str, Vec<Jump<'a>>>,
}

/// One way, as it is walked backwards.
#[derive(Clone, Default)]
struct Walk {
    /// Target first.
    chains: Vec<usize>,
    conditions: Vec<Condition>,
    partly: bool,
}

impl<'a> Graph<'a> {
    pub(super) fn of(table: &'a Table) -> Self {
        let mut into: HashMap<&str, Vec<Jump<'_>>> = HashMap::new();
        for (from, chain) in table.chains.iter().enumerate() {
            for outcome in chain.rules.iter().flat_map(|rule| &rule.outcomes) {
                if let RuleVerdict::Jump(to) = &outcome.verdict {
                    let jump = Jump { from, conditions: &outcome.conditions, understood: outcome.understood };
                    into.entry(to).or_default().push(jump);
                }
            }
        }
        Self { table, into }
    }

    /// The ways to chain `target`; None: no packet gets there.
    pub(super) fn to(&self, target: usize) -> Option<Ways> {
        let mut walks = Vec::new();
        let start = Walk { chains: vec![target], ..Walk::default() };
        let all = self.walk(start, &mut walks);
        let (first, rest) = walks.split_first()?;
        let name = |index: &usize| self.table.chains[*index].name.clone();
        let common = |condition: &Condition| rest.iter().all(|walk| walk.conditions.contains(condition));
        let mut conditions: Vec<Condition> = Vec::new();
        for condition in first.conditions.iter().filter(|condition| all && common(condition)) {
            if !conditions.contains(condition) {
                conditions.push(condition.clone());
            }
        }
        let hooks: BTreeSet<Option<u8>> = walks.iter().map(|walk| self.hook(walk)).collect();
        let hook = if all && hooks.len() == 1 { hooks.first().copied().flatten() } else { None };
        let understood = all && rest.is_empty() && !first.partly;
        Some(Ways { one: first.chains.iter().rev().map(name).collect(), hook, conditions, understood })
    }

    fn base(&self, chain: usize) -> Option<&Base> {
        self.table.chains[chain].base.as_ref()
    }

    fn hook(&self, walk: &Walk) -> Option<u8> {
        walk.chains.last().and_then(|chain| self.base(*chain)).and_then(|base| base.hook)
    }

    /// Walks backwards to all base chains; false: there are too many ways.
    fn walk(&self, walk: Walk, found: &mut Vec<Walk>) -> bool {
        let Some(at) = walk.chains.last().copied() else { return true };
        if self.base(at).is_some() {
            found.push(walk);
            return found.len() < MOST_WAYS;
        }
        let jumps = self.into.get(self.table.chains[at].name.as_str()).map(Vec::as_slice).unwrap_or_default();
        for jump in jumps {
            // The kernel refuses circles; bytes that claim one must not hang us.
            if walk.chains.contains(&jump.from) {
                continue;
            }
            let mut further = walk.clone();
            further.chains.push(jump.from);
            further.conditions.extend(jump.conditions.iter().cloned());
            further.partly |= !jump.understood;
            if !self.walk(further, found) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{
        facts::{ConditionField, RuleEngine},
        live::rules::model::{Chain, Entry, Outcome},
    };

    fn port(number: u16) -> Condition {
        Condition { field: ConditionField::DestinationPort(number, number), not: false }
    }

    fn jump(to: &str, conditions: &[Condition]) -> Entry {
        let outcome =
            Outcome { verdict: RuleVerdict::Jump(to.into()), conditions: conditions.to_vec(), understood: true };
        Entry { content: 0, handle: 0, packets: None, outcomes: vec![outcome], text: String::new(), comment: None }
    }

    fn table(chains: &[(&str, Option<u8>, Vec<Entry>)]) -> Table {
        let chains = chains.iter().map(|(name, hook, rules)| Chain {
            name: (*name).into(),
            base: hook.map(|hook| Base { hook: Some(hook), policy: RuleVerdict::Accept, packets: None }),
            rules: rules.clone(),
        });
        Table { engine: RuleEngine::Nftables, family: "ip", name: "t".into(), chains: chains.collect() }
    }

    #[test]
    fn several_ways_have_in_common_what_all_ask() {
        let table = table(&[
            ("in", Some(1), vec![jump("mid", &[port(80), port(1)])]),
            ("fwd", Some(2), vec![jump("mid", &[port(80)])]),
            ("mid", None, vec![jump("end", &[port(9)])]),
            ("end", None, vec![]),
            ("lost", None, vec![]),
        ]);
        let graph = Graph::of(&table);
        let ways = graph.to(3).unwrap();
        assert_eq!(ways.one, ["in", "mid", "end"]);
        assert_eq!((ways.hook, ways.understood), (None, false));
        assert_eq!(ways.conditions, [port(9), port(80)]);
        assert_eq!(graph.to(4), None, "nothing jumps there");
        let own = graph.to(0).unwrap();
        assert_eq!((own.one, own.hook, own.understood), (vec!["in".to_owned()], Some(1), true));
    }

    #[test]
    fn circles_end() {
        let table = table(&[("a", None, vec![jump("b", &[])]), ("b", None, vec![jump("a", &[])])]);
        assert_eq!(Graph::of(&table).to(0), None);
    }
}
