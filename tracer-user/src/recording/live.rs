//! Sessions that still run, window by window.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Window, window::MARGIN_NS};
use crate::{
    event::Record,
    path::{Evidence, NodeEvidence},
    session::{self, Flow, Replay},
};

/// What is younger may not have come from all nodes, nor have been answered, ns.
const TOO_YOUNG_NS: u64 = 300_000_000;

/// So many records are kept of all nodes together, some 280 bytes each; of more, the oldest are forgotten, and counted. A few seconds of
/// what one core can join in a second.
const MOST_KEPT: usize = 400_000;

/// What sessions say, a few seconds of it.
pub struct Live {
    replay: Replay,
    nodes: Vec<Recent>,
    most_kept: usize,
    /// Records that were forgotten before they were looked at.
    pub forgotten: u64,
}

/// What a node said last.
#[derive(Default)]
struct Recent {
    name: String,
    records: VecDeque<Record>,
    /// The last, ns of its clock.
    latest: u64,
    /// Until here windows were had.
    from: u64,
}

impl Live {
    /// Of nodes with these names, which were asked to record these flows.
    pub fn new(nodes: &[(String, Vec<Flow>)]) -> Self {
        let recent = |(name, _): &(String, _)| Recent { name: name.clone(), ..Recent::default() };
        let (replay, nodes) = (Replay::new(nodes.to_vec()), nodes.iter().map(recent).collect());
        Self { replay, nodes, most_kept: MOST_KEPT, forgotten: 0 }
    }

    /// Takes in the content of one frame.
    ///
    /// # Errors
    /// The frame is malformed.
    pub fn hear(&mut self, node: usize, frame: Bytes) -> Result<(), session::Error> {
        let records = self.replay.hear(node, frame)?;
        let Some(recent) = self.nodes.get_mut(node) else { return Ok(()) };
        recent.latest = records.iter().map(Record::time_ns).fold(recent.latest, u64::max);
        recent.records.extend(records);
        self.forget();
        Ok(())
    }

    /// Keeps what there is memory for: where a node says more than the others, it is the one that has less of the past.
    fn forget(&mut self) {
        let kept: usize = self.nodes.iter().map(|node| node.records.len()).sum();
        for _ in self.most_kept..kept {
            let most = self.nodes.iter_mut().max_by_key(|node| node.records.len());
            let gone = most.and_then(|node| node.records.pop_front());
            self.forgotten += u64::from(gone.is_some());
        }
    }

    /// Whatever follows was seen by all nodes.
    pub fn all_record(&mut self) {
        self.replay.all_record();
    }

    /// What began since the last window, and is old enough to be over.
    pub fn window(&mut self) -> Window {
        let mut core = Vec::new();
        for recent in &mut self.nodes {
            let until = recent.latest.saturating_sub(TOO_YOUNG_NS).max(recent.from);
            core.push((recent.name.clone(), (recent.from, until)));
            recent.from = until;
        }
        let nodes = self.replay.so_far().zip(&mut self.nodes).zip(&core).map(|((node, recent), (_, (from, _)))| {
            let least = from.saturating_sub(MARGIN_NS);
            while recent.records.front().is_some_and(|record| record.time_ns() < least) {
                recent.records.pop_front();
            }
            let alone_ns = node.alone_ns.max(Some(least).filter(|ns| *ns > 0));
            let stopped_ns = Some(recent.latest).filter(|ns| *ns > 0);
            NodeEvidence { records: recent.records.iter().cloned().collect(), alone_ns, stopped_ns, ..node }
        });
        let evidence = Evidence { nodes: nodes.collect(), probes: Vec::new(), interrupted: false };
        Window { evidence, core }
    }
}

#[cfg(test)]
mod tests {
    use super::Live;
    use crate::{path::testing::pings, session::replay};

    #[test]
    fn the_oldest_of_who_says_most_is_forgotten_and_counted() {
        let (evidence, _) = pings(2, 50, 1_000_000);
        let nodes: Vec<_> = evidence.nodes.iter().map(|node| (node.name.clone(), Vec::new())).collect();
        // The second node says half of what it saw, and there is no room for 30 of all.
        let half = evidence.nodes[1].records.len() / 2;
        let mut second = evidence.nodes[1].clone();
        second.records.truncate(half);
        let first = evidence.nodes[0].records.len();
        let mut live = Live { most_kept: first + half - 30, ..Live::new(&nodes) };
        for (node, seen) in [&evidence.nodes[0], &second].into_iter().enumerate() {
            for frame in replay::frames(seen) {
                live.hear(node, frame).expect("a good frame");
            }
        }
        let kept: Vec<usize> = live.nodes.iter().map(|node| node.records.len()).collect();
        assert_eq!((kept, live.forgotten), (vec![first - 30, half], 30));
        assert_eq!(live.nodes[0].records.front(), Some(&evidence.nodes[0].records[30]), "the oldest are gone");
        assert_eq!(live.nodes[0].records.back(), evidence.nodes[0].records.last(), "the newest is kept");
    }
}
