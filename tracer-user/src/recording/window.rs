//! A recording piece by piece, so that its length does not decide what memory a report takes.

use super::{Error, Recording, read::Block, related::Flows};
use crate::{
    event::Record,
    path::{Ends, Evidence, Joined, Names, NodeEvidence, join_within, model::Exchange},
};

/// A window has about so many records in its core: some 190 bytes each, and several times as much for what is made of them
/// (`cargo xtask bench scale` measures it). Fewer would be joined once more in the margins of the next window.
const RECORDS: usize = 400_000;
const _: () = assert!(size_of::<Record>() <= 192, "what a window takes hangs on it");

/// What belongs to an exchange, an answer or another transmission, comes within this time, ns.
pub(super) const MARGIN_NS: u64 = 2_000_000_000;

/// But so many records before a window's core are enough: they only tell what is sent again in it.
const MOST_BEFORE: usize = 100_000;

/// And so many after it: more do not go into memory. At this number a window lasts for the second in which what is lost is told from what
/// is late up to some 700,000 records a second.
const MOST_AFTER: usize = 800_000;

/// What is under way where a core begins and ends is looked at whole for so long, ns; beyond that only what may be of a flow that was
/// seen by then: of many flows that is little.
const NEAR_NS: u64 = 100_000_000;

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
        exchange.began().is_some_and(|(node, ns)| {
            let (from, until) = self.span(node);
            (from..until).contains(&ns)
        })
    }

    /// Joins it. Of what is no exchange of this window only some is told.
    pub fn join(&self, ends: &Ends, names: &dyn Names) -> Joined {
        let spans: Vec<_> = self.evidence.nodes.iter().map(|node| self.span(&node.name)).collect();
        join_within(&spans, &self.evidence, ends, names)
    }

    /// Of the core, on that node.
    fn span(&self, node: &str) -> (u64, u64) {
        self.core.iter().find(|(name, _)| name == node).map_or((0, 0), |(_, span)| *span)
    }
}

/// Where a window's core ends: at a block, and by node at a time of its clock, ns.
#[derive(Clone, Debug)]
struct Bound {
    block: usize,
    times: Vec<u64>,
}

/// What did not go into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Windows of which the time before the core was cut.
    before: u64,
    /// Windows of which the time after it was.
    windows: u64,
    /// Records of the blocks that have some within [`MARGIN_NS`] after the cores of these.
    records: u64,
    /// The shortest time after a core that was looked at, on some node, ns.
    least_ns: u64,
}

impl LeftOut {
    /// What a reader must know.
    fn sentences(self) -> impl Iterator<Item = String> {
        let Self { before, windows, records, least_ns } = self;
        let ms = least_ns / 1_000_000;
        let after = format!(
            "in {windows} pieces of the recording more was seen than goes into memory at once: of what followed them up to {records} records \
             were left out, and an answer that came later than {ms} ms may be counted as incomplete; record less at a time to have all"
        );
        let earlier = format!(
            "in {before} pieces of the recording more was seen than goes into memory at once: of what came before them not all was looked at, \
             and a packet that was sent again may be counted as the first; record less at a time to have all"
        );
        [(before > 0).then_some(earlier), (windows > 0).then_some(after)].into_iter().flatten()
    }
}

impl Recording {
    /// Reads the windows in order.
    pub fn windows(&mut self) -> impl Iterator<Item = Result<Window, Error>> {
        let bounds = self.bounds(RECORDS);
        let most = (MOST_BEFORE, MOST_AFTER);
        (0..bounds.len().saturating_sub(1)).map(move |index| self.window(&bounds[index], &bounds[index + 1], most))
    }

    /// Joins it window by window, and takes each exchange once, in order, with the number of its part of so many of equal length, from 0.
    /// What the last window has in common is answered. If something did not go into memory, its warnings say so afterwards.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn exchanges(&mut self, parts: usize, mut take: impl FnMut(&Exchange, usize)) -> Result<Joined, Error> {
        let (ends, names) = (self.contents.header.ends.clone(), self.contents.names.clone());
        let (clock, mut last) = (self.clock(), None);
        for window in self.windows() {
            let window = window?;
            let joined = window.join(&ends, &names);
            let own = joined.exchanges.iter().filter(|exchange| window.has(exchange));
            own.for_each(|exchange| take(exchange, clock.part(exchange, parts)));
            // What nothing was exchanged in says nothing of the way.
            if last.is_none() || !joined.exchanges.is_empty() {
                last = Some(joined);
            }
        }
        self.tell_left_out();
        Ok(last.unwrap_or_default())
    }

    /// Adds to the warnings what windows had to leave out.
    pub fn tell_left_out(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        self.contents.driven.warnings.extend(left_out.sentences());
    }

    /// The moments between windows. The first is 0, the last when all nodes stopped.
    fn bounds(&self, records: usize) -> Vec<Bound> {
        let nodes = self.contents.header.nodes.len();
        let mut bounds = vec![Bound { block: 0, times: vec![0; nodes] }];
        let (mut count, mut seen) = (0, vec![0; nodes]);
        for (index, block) in self.blocks.iter().enumerate() {
            count += block.count;
            for (seen, times) in seen.iter_mut().zip(&block.times) {
                *seen = times.map_or(*seen, |(_, last)| last.max(*seen));
            }
            let more = self.blocks[index + 1..].iter().any(|block| block.count > 0);
            if count >= records && more {
                // What a node said last so far. All nodes say what they saw within some 10 ms, so that this is one moment.
                let last = bounds.last().expect("the first one");
                let times = seen.iter().zip(&last.times).map(|(seen, last)| seen.saturating_add(1).max(*last));
                let times: Vec<u64> = times.collect();
                // Else nothing would begin in the last window.
                if times.iter().zip(&self.until).any(|(end, until)| end < until) {
                    bounds.push(Bound { block: index + 1, times });
                    count = 0;
                }
            }
        }
        bounds.push(Bound { block: self.blocks.len(), times: self.until.clone() });
        bounds
    }

    fn window(&mut self, from: &Bound, until: &Bound, (before, after): (usize, usize)) -> Result<Window, Error> {
        let first = far(self.blocks[..from.block].iter().rev(), before).map_or(0, |count| from.block - count);
        let last = far(self.blocks[until.block..].iter(), after).map_or(self.blocks.len(), |count| until.block + count);
        let margins = from.times.iter().zip(&until.times);
        let margins = margins.map(|(from, until)| (from.saturating_sub(MARGIN_NS), until.saturating_add(MARGIN_NS)));
        let mut spans: Vec<(u64, u64)> = margins.collect();
        let mut is_cut = false;
        for (node, (least, _)) in spans.iter_mut().enumerate() {
            let begin = self.seen(first, node).map_or(0, |ns| ns.saturating_add(1));
            is_cut |= begin > *least;
            *least = begin.max(*least);
        }
        self.left_out.before += u64::from(is_cut);
        self.cut(until, last, &mut spans);
        let around = from.times.iter().zip(&until.times);
        let around = around.map(|(from, until)| (from.saturating_sub(NEAR_NS), until.saturating_add(NEAR_NS)));
        let mut records = self.within(&spans, &around.collect::<Vec<_>>())?;
        let names: Vec<String> = self.contents.header.nodes.iter().map(|node| node.name.clone()).collect();
        let evidence = &self.contents.driven.evidence;
        // Nodes may have been left out.
        let nodes = evidence.nodes.iter().filter_map(|node| {
            let index = names.iter().position(|name| *name == node.name)?;
            let (least, most) = spans[index];
            // What began before the window lacks its beginning, what goes on after it its end.
            let alone_ns = node.alone_ns.max(Some(least).filter(|ns| *ns > 0));
            let stopped_ns = [node.stopped_ns, Some(most).filter(|ns| *ns < u64::MAX)].into_iter().flatten().min();
            let records = std::mem::take(&mut records[index]);
            Some(NodeEvidence { records, alone_ns, stopped_ns, ..node.clone() })
        });
        let evidence = Evidence { nodes: nodes.collect(), probes: Vec::new(), interrupted: evidence.interrupted };
        let core = names.into_iter().enumerate().map(|(node, name)| (name, (from.times[node], until.times[node])));
        Ok(Window { evidence, core: core.collect() })
    }

    /// The records in these spans, by node; outside of `near` only what may be of a flow that was seen inside.
    fn within(&mut self, spans: &[(u64, u64)], near: &[(u64, u64)]) -> Result<Vec<Vec<Record>>, Error> {
        let meets = |block: &Block| {
            let mut times = block.times.iter().zip(spans);
            times.any(|(times, (least, most))| times.is_some_and(|(first, last)| first < *most && last >= *least))
        };
        // Wherever they lie: what was freed may be told much later than the rest.
        let wanted: Vec<usize> = (0..self.blocks.len()).filter(|index| meets(&self.blocks[*index])).collect();
        self.at_hand.retain(|index, _| wanted.binary_search(index).is_ok());
        for index in &wanted {
            if !self.at_hand.contains_key(index) {
                let read = self.records(*index)?;
                self.at_hand.insert(*index, read);
            }
        }
        let all = || {
            let blocks = wanted.iter().filter_map(|index| self.at_hand.get(index)).flatten();
            let blocks =
                blocks.filter_map(|(node, records)| Some((*node, spans.get(*node)?, near.get(*node)?, records)));
            blocks.flat_map(|(node, span, near, records)| {
                let within = records.iter().filter(|record| (span.0..span.1).contains(&record.time_ns()));
                within.map(move |record| (node, (near.0..near.1).contains(&record.time_ns()), record))
            })
        };
        let mut flows = Flows::default();
        all().filter(|(_, near, _)| *near).for_each(|(.., record)| flows.add(record));
        let mut records = vec![Vec::new(); spans.len()];
        for (node, near, record) in all() {
            if near || flows.may_have(record) {
                records[node].push(record.clone());
            }
        }
        Ok(records)
    }

    /// The last that a node said in the blocks before this one, ns of its clock.
    fn seen(&self, block: usize, node: usize) -> Option<u64> {
        self.blocks[..block].iter().filter_map(|block| Some((*block.times.get(node)?)?.1)).max()
    }

    /// Ends a window with what was said before the block `last`, if the rest has something of it.
    fn cut(&mut self, until: &Bound, last: usize, spans: &mut [(u64, u64)]) {
        let ends = spans.iter().enumerate().map(|(node, (_, most))| {
            let seen = self.seen(last, node).map_or(0, |ns| ns.saturating_add(1));
            seen.max(until.times[node]).min(*most)
        });
        let ends: Vec<u64> = ends.collect();
        let left_out = |block: &&Block| {
            let mut times = block.times.iter().zip(&ends).zip(&*spans);
            times.any(|((times, end), (_, most))| times.is_some_and(|(first, last)| first < *most && last >= *end))
        };
        let records: u64 = self.blocks[last..].iter().filter(left_out).map(|block| block.count as u64).sum();
        if records == 0 {
            return;
        }
        let before = self.left_out;
        let after = ends.iter().zip(&until.times).map(|(end, until)| end - until);
        // Of those that said something meanwhile.
        let least_ns = after.filter(|ns| *ns > 0).min().unwrap_or(0);
        let least_ns = if before.windows == 0 { least_ns } else { least_ns.min(before.least_ns) };
        let windows = before.windows + 1;
        self.left_out = LeftOut { windows, records: before.records + records, least_ns, ..before };
        spans.iter_mut().zip(ends).for_each(|((_, most), end)| *most = end);
    }
}

/// How many of these blocks, the nearest first, have as many records as are to be had; None: all together have no more.
fn far<'b>(blocks: impl Iterator<Item = &'b Block>, most: usize) -> Option<usize> {
    let mut count = 0;
    let mut blocks = blocks.enumerate();
    blocks.find_map(|(index, block)| {
        count += block.count;
        (count > most).then_some(index)
    })
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
        let part = u128::from(since) * parts as u128 / (u128::from(until - from) + 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{path::testing::pings, recording::tests::file_of};

    /// Where more was seen than goes into memory, less is looked at around a core; what is in it stays whole, and that is told.
    #[test]
    fn a_window_has_no_more_than_goes_into_memory() {
        // Within the margins of each core lies all of it.
        let (evidence, ends) = pings(2, 6_000, 20_000);
        let (_folder, path) = file_of(&evidence, &ends);
        let mut recording = Recording::open(&path).expect("a recording");
        let bounds = recording.bounds(20_000);
        assert!(bounds.len() > 3, "{} windows", bounds.len() - 1);
        let most = recording.blocks.iter().map(|block| block.count).max().unwrap_or(0);
        let (before, after) = (5_000, 8_000);
        let mut found = 0;
        for pair in bounds.windows(2) {
            let window = recording.window(&pair[0], &pair[1], (before, after)).expect("it reads");
            let records: usize = window.evidence.nodes.iter().map(|node| node.records.len()).sum();
            assert!(records <= 20_000 + before + after + 3 * most, "{records} records");
            let joined = window.join(&ends, &recording.contents.names);
            let own: Vec<_> = joined.exchanges.iter().filter(|exchange| window.has(exchange)).collect();
            assert!(own.iter().all(|exchange| exchange.rtt_ns.is_some() && exchange.notes.is_empty()));
            found += own.len();
        }
        assert_eq!(found, 6_000);
        let LeftOut { before, windows, records, least_ns } = recording.left_out;
        assert!(
            before > 0 && windows > 0 && records > 0 && least_ns > 0 && least_ns < MARGIN_NS,
            "{:?}",
            recording.left_out
        );
        recording.tell_left_out();
        let told = recording.contents.driven.warnings.join("\n");
        assert!(told.contains(&format!("up to {records} records were left out")), "{told}");
        assert!(told.contains(&format!("in {before} pieces")), "{told}");
    }
}
