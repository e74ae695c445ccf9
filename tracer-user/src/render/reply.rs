//! A reply in one line, if it took the same way back.

use super::{hops::rewrite, units::micros};
use crate::path::model::{Action, Exchange, Hop, Path};

/// Interfaces visited, in order.
fn visits(path: &Path) -> Vec<(&str, Option<&str>, Option<&str>)> {
    let mut visits: Vec<_> = path
        .hops
        .iter()
        .map(|hop| (hop.node.as_str(), hop.pod.as_deref(), hop.interface.as_deref()))
        .filter(|(_, _, interface)| interface.is_some())
        .collect();
    visits.dedup();
    visits
}

/// The reply visited the request's interfaces in the opposite order, and arrived.
pub(super) fn same_way_back(exchange: &Exchange) -> bool {
    let back = visits(&exchange.reply);
    let mut there = visits(&exchange.request);
    there.reverse();
    let failed = |hop: &Hop| matches!(hop.action, Action::Dropped | Action::Lost);
    !back.is_empty() && back == there && !exchange.reply.hops.iter().any(failed)
}

/// `eth0 +3 cali98fd8882b62 +6 ens5 ~wire~ ens5 un-SNAT ... +7 cali9270933bb0b +3 eth0`.
pub(super) fn one_line(path: &Path) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut last: Option<(&Hop, Option<u64>)> = None;
    for visit in path.hops.chunk_by(|a, b| (&a.node, &a.pod, &a.interface) == (&b.node, &b.pod, &b.interface)) {
        let Some(at) = visit.iter().rev().find(|hop| hop.interface.is_some()) else { continue };
        // A visit is complete with its last observation, as in the table.
        let time = visit.iter().rev().find_map(|hop| hop.at_ns);
        if let Some((before, before_ns)) = last {
            if before.node != at.node {
                words.push("~wire~".to_owned());
            } else if let (Some(from), Some(to)) = (before_ns, time) {
                words.push(format!("+{}", micros(to.saturating_sub(from))));
            }
        }
        words.push(at.interface.clone().unwrap_or_default());
        for hop in visit {
            match hop.action {
                Action::Snat | Action::Dnat | Action::Unsnat | Action::Undnat => {
                    words.push(format!("[{}]", rewrite(hop)))
                }
                Action::Encapsulated => words.push("[encapsulated]".to_owned()),
                Action::Decapsulated => words.push("[decapsulated]".to_owned()),
                _ => {}
            }
        }
        last = Some((at, time));
    }
    words.join(" ")
}
