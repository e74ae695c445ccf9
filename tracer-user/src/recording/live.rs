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

/// So many records are kept of a node; of more, the oldest are forgotten, and counted.
const MOST_KEPT: usize = 200_000;

/// What sessions say, a few seconds of it.
pub struct Live {
    replay: Replay,
    nodes: Vec<Recent>,
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
        Self { replay: Replay::new(nodes.to_vec()), nodes: nodes.iter().map(recent).collect(), forgotten: 0 }
    }

    /// Takes in the content of one frame.
    ///
    /// # Errors
    /// The frame is malformed.
    pub fn hear(&mut self, node: usize, frame: Bytes) -> Result<(), session::Error> {
        let records = self.replay.hear(node, frame)?;
        let Some(recent) = self.nodes.get_mut(node) else { return Ok(()) };
        for record in records {
            recent.latest = recent.latest.max(record.time_ns());
            recent.records.push_back(record);
            if recent.records.len() > MOST_KEPT {
                recent.records.pop_front();
                self.forgotten += 1;
            }
        }
        Ok(())
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
