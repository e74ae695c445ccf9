//! Short names of nodes: the first label, where that is unambiguous.

use std::collections::{BTreeMap, BTreeSet};

use crate::path::model::Trace;

/// Full name -> the name to show.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    /// For all nodes that the trace mentions.
    pub(super) fn of(trace: &Trace) -> Names {
        let listed = trace.nodes.iter().map(|node| node.name.as_str());
        let ends = [&trace.source.node, &trace.destination.node].into_iter().filter_map(|node| node.as_deref());
        let paths =
            trace.exchanges.iter().flat_map(|exchange| exchange.request.hops.iter().chain(&exchange.reply.hops));
        Names::of_nodes(listed.chain(ends).chain(paths.map(|hop| &*hop.node)))
    }

    /// For these nodes.
    pub(super) fn of_nodes<'n>(nodes: impl Iterator<Item = &'n str>) -> Names {
        let all: BTreeSet<&str> = nodes.collect();
        let label = |name: &str| name.split('.').next().unwrap_or(name).to_owned();
        let short = |name: &&str| {
            let short = label(name);
            // The first label of an address says nothing.
            let unique = all.iter().filter(|other| label(other) == short).count() == 1;
            let shown = if unique && name.parse::<std::net::IpAddr>().is_err() { short } else { (*name).to_owned() };
            ((*name).to_owned(), shown)
        };
        Names(all.iter().map(short).collect())
    }

    /// The name to show.
    pub(super) fn short<'a>(&'a self, node: &'a str) -> &'a str {
        self.0.get(node).map_or(node, String::as_str)
    }

    /// A sentence with the nodes' full names in it -> the same with short ones.
    pub(super) fn shorten(&self, sentence: &str) -> String {
        // Longest first: one name may be the beginning of another.
        let mut names: Vec<(&String, &String)> = self.0.iter().collect();
        names.sort_by_key(|(full, _)| std::cmp::Reverse(full.len()));
        names.into_iter().fold(sentence.to_owned(), |text, (full, short)| text.replace(full.as_str(), short))
    }
}
