//! A recording piece by piece, so that its length does not decide what memory a report takes.

use super::{Error, Recording};
use crate::path::{Evidence, Joined, NodeEvidence, join_all, model::Exchange};

/// A window has about so many records in its core: some 200 bytes each.
const RECORDS: usize = 200_000;

/// What belongs to an exchange, an answer or another transmission, comes within this time, ns.
pub(super) const MARGIN_NS: u64 = 2_000_000_000;

/// A piece of a recording.
pub struct Window {
    /// What was seen in it, and a while before and after.
    pub evidence: Evidence,
    /// By node: its name, and the span of time of the core, ns of its clock; from, and until before.
    pub(super) core: Vec<(String, (u64, u64))>,
}

impl Window {
    /// Whether an exchange is of this window and no other: it began in its core, by the clock of the node where it was first seen.
    pub fn has(&self, exchange: &Exchange) -> bool {
        let Some((node, ns)) = exchange.began() else { return false };
        self.core.iter().any(|(name, (from, until))| name == node && (*from..*until).contains(&ns))
    }
}

impl Recording {
    /// Reads the windows in order.
    pub fn windows(&mut self) -> impl Iterator<Item = Result<Window, Error>> {
        let bounds = self.bounds();
        (0..bounds.len().saturating_sub(1)).map(move |index| self.window(&bounds[index], &bounds[index + 1]))
    }

    /// Joins it window by window, and takes each exchange once, in order, with the number of its part of so many of equal length, from 0.
    /// What the last window has in common is answered.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn exchanges(&mut self, parts: usize, mut take: impl FnMut(&Exchange, usize)) -> Result<Joined, Error> {
        let (ends, names) = (self.contents.header.ends.clone(), self.contents.names.clone());
        let (clock, mut last) = (self.clock(), Joined::default());
        for window in self.windows() {
            let window = window?;
            let joined = join_all(&window.evidence, &ends, &names);
            let own = joined.exchanges.iter().filter(|exchange| window.has(exchange));
            own.for_each(|exchange| take(exchange, clock.part(exchange, parts)));
            last = joined;
        }
        Ok(last)
    }

    /// The moments between windows: by node, in ns of its clock. The first is 0, the last when all nodes stopped.
    fn bounds(&self) -> Vec<Vec<u64>> {
        let nodes = self.contents.header.nodes.len();
        let mut bounds = vec![vec![0; nodes]];
        let (mut count, mut seen) = (0, vec![0; nodes]);
        for (index, block) in self.blocks.iter().enumerate() {
            count += block.count;
            for (seen, times) in seen.iter_mut().zip(&block.times) {
                *seen = times.map_or(*seen, |(_, last)| last.max(*seen));
            }
            let more = self.blocks[index + 1..].iter().any(|block| block.count > 0);
            if count >= RECORDS && more {
                // What a node said last so far. All nodes say what they saw within some 10 ms, so that this is one moment.
                let last = bounds.last().expect("the first one");
                let next = seen.iter().zip(last).map(|(seen, last)| (*seen + 1).max(*last)).collect();
                bounds.push(next);
                count = 0;
            }
        }
        bounds.push(self.until.clone());
        bounds
    }

    fn window(&mut self, from: &[u64], until: &[u64]) -> Result<Window, Error> {
        let span = |node: usize| (from[node].saturating_sub(MARGIN_NS), until[node].saturating_add(MARGIN_NS));
        let mut records = vec![Vec::new(); from.len()];
        for index in 0..self.blocks.len() {
            let meets = self.blocks[index].times.iter().enumerate().any(|(node, times)| {
                let (least, most) = span(node);
                times.is_some_and(|(first, last)| first < most && last >= least)
            });
            if !meets {
                continue;
            }
            for (node, new) in self.records(index)? {
                let Some(records) = records.get_mut(node) else { continue };
                let (least, most) = span(node);
                records.extend(new.into_iter().filter(|record| (least..most).contains(&record.time_ns())));
            }
        }
        let names: Vec<String> = self.contents.header.nodes.iter().map(|node| node.name.clone()).collect();
        let evidence = &self.contents.driven.evidence;
        // Nodes may have been left out.
        let nodes = evidence.nodes.iter().filter_map(|node| {
            let index = names.iter().position(|name| *name == node.name)?;
            let (least, most) = span(index);
            // What began before the window lacks its beginning, what goes on after it its end.
            let alone_ns = node.alone_ns.max(Some(least).filter(|ns| *ns > 0));
            let stopped_ns = [node.stopped_ns, Some(most).filter(|ns| *ns < u64::MAX)].into_iter().flatten().min();
            let records = std::mem::take(&mut records[index]);
            Some(NodeEvidence { records, alone_ns, stopped_ns, ..node.clone() })
        });
        let evidence = Evidence { nodes: nodes.collect(), probes: Vec::new(), interrupted: evidence.interrupted };
        let core = names.into_iter().enumerate().map(|(node, name)| (name, (from[node], until[node])));
        Ok(Window { evidence, core: core.collect() })
    }
}

/// When recording began and ended, by each node's clock.
#[derive(Clone, Debug)]
struct Clock(Vec<(String, (u64, u64))>);

impl Clock {
    /// In which of so many parts of the recording, of equal length, an exchange began, from 0.
    fn part(&self, exchange: &Exchange, parts: usize) -> usize {
        let Some((node, ns)) = exchange.began() else { return 0 };
        let Some((_, (from, until))) = self.0.iter().find(|(name, _)| name == node) else { return 0 };
        let since = ns.saturating_sub(*from);
        let part = u128::from(since) * parts as u128 / u128::from(until - from + 1);
        usize::try_from(part).unwrap_or(0).min(parts.saturating_sub(1))
    }
}

impl Recording {
    /// When it began and ended.
    fn clock(&self) -> Clock {
        let span = |node: usize| {
            let times = self.blocks.iter().filter_map(|block| *block.times.get(node)?);
            times.reduce(|(a, b), (c, d)| (a.min(c), b.max(d))).unwrap_or((0, 0))
        };
        let nodes = self.contents.header.nodes.iter().enumerate();
        Clock(nodes.map(|(index, node)| (node.name.clone(), span(index))).collect())
    }
}
