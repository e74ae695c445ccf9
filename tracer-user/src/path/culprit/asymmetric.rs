//! Why conntrack calls a reply invalid: where its request went, and what the entry there knows.

use crate::path::model::{Action, Exchange, Hop};

/// What the two ways say about a reply that `node` dropped as invalid: one sentence.
pub(super) fn note(exchange: &Exchange, node: &str, reply: &Hop) -> String {
    let [there, back] = [&exchange.request.hops, &exchange.reply.hops].map(|hops| nodes(hops));
    let passed = |hop: &&Hop| hop.node == node && hop.pod.is_none();
    let Some(left) = exchange.request.hops.iter().rev().find(passed) else {
        return format!(
            "the request never passed {node}, so conntrack there knows no connection for the reply (asymmetric path): there {}, \
             back {}",
            there.join(" > "),
            back.join(" > ")
        );
    };
    let elsewhere = exchange.request.hops.iter().find(|hop| hop.action == Action::Dnat && !back.contains(&&*hop.node));
    match elsewhere {
        Some(dnat) if left.dst != reply.src => format!(
            "the request left {node} for {}, and the reply comes from {}: the DNAT on {} is undone only there, and the reply did \
             not come back that way (asymmetric path)",
            left.dst, reply.src, dnat.node
        ),
        _ => format!(
            "the request passed {node} too: conntrack there does not track it (a NOTRACK rule), or has given up its entry"
        ),
    }
}

/// The nodes that a packet passed, in order.
fn nodes(hops: &[Hop]) -> Vec<&str> {
    let mut nodes: Vec<&str> = hops.iter().map(|hop| hop.node.as_str()).collect();
    nodes.dedup();
    nodes
}
