//! A reply in one line, if it took the same way back.

use super::{hops::rewrite, units::micros};
use crate::path::model::{Action, Exchange, Hop, Path, QUEUED, REDIRECTED_UNSEEN};

/// Interfaces visited, in order, without detours.
fn visits(path: &Path) -> Vec<Visit<'_>> {
    let mut visits: Vec<_> = path
        .hops
        .iter()
        .filter(|hop| hop.interface.is_some() && hop.detail.text.as_deref() != Some(QUEUED))
        .map(|hop| (&*hop.node, hop.pod.as_deref(), hop.interface.as_deref()))
        .collect();
    visits.dedup();
    visits
}

/// Node, pod and interface.
type Visit<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// Something redirected the packet past a device: of the way back, which may have one more, that says nothing.
fn passes_over(path: &Path) -> bool {
    path.hops.iter().any(|hop| hop.detail.text.as_deref().is_some_and(|text| text == REDIRECTED_UNSEEN))
}

fn namespaces<'a>(visits: &[Visit<'a>]) -> Vec<(&'a str, Option<&'a str>)> {
    let mut namespaces: Vec<_> = visits.iter().map(|(node, pod, _)| (*node, *pod)).collect();
    namespaces.dedup();
    namespaces
}

/// The reply visited the request's interfaces in the opposite order, and arrived.
pub(super) fn same_way_back(exchange: &Exchange) -> bool {
    let mut back = visits(&exchange.reply);
    let mut there = visits(&exchange.request);
    there.reverse();
    if (passes_over(&exchange.request) || passes_over(&exchange.reply)) && namespaces(&there) == namespaces(&back) {
        let all = there.clone();
        there.retain(|visit| back.contains(visit));
        back.retain(|visit| all.contains(visit));
    }
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
        words.push(at.interface.as_deref().unwrap_or_default().to_owned());
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
