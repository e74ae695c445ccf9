//! Why conntrack calls a reply invalid: where its request went, and what the entry there knows.

use crate::path::model::{Action, Exchange, Hop, REDIRECTED};

/// What the two ways say about a reply that `node` dropped as invalid: one sentence.
pub(super) fn note(exchange: &Exchange, node: &str, reply: &Hop) -> String {
    let [there, back] = [&exchange.request.hops, &exchange.reply.hops].map(|hops| nodes(hops));
    let passed = |hop: &&Hop| *hop.node == *node && hop.pod.is_none();
    let Some(left) = exchange.request.hops.iter().rev().find(passed) else {
        return format!(
            "the request never passed {node}, so conntrack there knows no connection for the reply (asymmetric path): there {}, \
             back {}",
            there.join(" > "),
            back.join(" > ")
        );
    };
    let elsewhere = exchange.request.hops.iter().find(|hop| hop.action == Action::Dnat && !back.contains(&&*hop.node));
    let redirected =
        |hop: &Hop| *hop.node == *node && hop.detail.text.as_ref().is_some_and(|text| text.contains(REDIRECTED));
    match elsewhere {
        Some(dnat) if left.dst != reply.src => format!(
            "the request left {node} for {}, and the reply comes from {}: the DNAT on {} is undone only there, and the reply did \
             not come back that way (asymmetric path)",
            left.dst, reply.src, dnat.node
        ),
        _ if exchange.request.hops.iter().any(redirected) => {
            format!("on {node} the request was {REDIRECTED}, so conntrack there knows no connection for the reply")
        }
        _ => format!(
            "the request passed {node} too: conntrack there does not track it (a NOTRACK rule), or has given up its entry"
        ),
    }
}

/// The nodes that a packet passed, in order.
fn nodes(hops: &[Hop]) -> Vec<&str> {
    let mut nodes: Vec<&str> = hops.iter().map(|hop| &*hop.node).collect();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::model::{Basis, Detail, Direction, Outcome, Path};

    fn hop(node: &str, action: Action, src: &str, dst: &str) -> Hop {
        Hop {
            node: node.into(),
            pod: None,
            interface: Some("ens5".into()),
            ifindex: None,
            action,
            src: src.parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            ttl: None,
            at_ns: None,
            error_ns: 0,
            basis: Basis::Observed,
            detail: Detail::default(),
        }
    }

    fn told(there: Vec<Hop>, back: Vec<Hop>) -> String {
        let dropped = back.last().expect("a hop").clone();
        let path = |hops| Path { hops, incomplete: false };
        let exchange = Exchange {
            seq: 1,
            what: None,
            again_after_ns: None,
            outcome: Outcome::Dropped,
            failed_direction: Some(Direction::Reply),
            rtt_ns: None,
            rtt_at: None,
            injector_rtt_ns: None,
            request: path(there),
            reply: path(back),
            shares: Vec::new(),
            clocks: Vec::new(),
            notes: Vec::new(),
            rejection: None,
        };
        note(&exchange, &dropped.node, &dropped)
    }

    #[test]
    fn each_reason_of_an_invalid_reply_is_told_from_the_others() {
        use Action::{Dnat, Dropped, Sent, Transmitted};
        let (a, b, vip) = ("10.0.0.1", "10.0.0.2", "10.0.0.9");
        let other_way = told(
            vec![hop("n1", Sent, a, b), hop("n2", Transmitted, a, b)],
            vec![hop("n2", Sent, b, a), hop("n3", Dropped, b, a)],
        );
        let past_the_nat = told(
            vec![hop("n1", Transmitted, a, vip), hop("n3", Dnat, a, b), hop("n2", Transmitted, a, b)],
            vec![hop("n2", Sent, b, a), hop("n1", Dropped, b, a)],
        );
        let untracked = told(
            vec![hop("n1", Transmitted, a, b), hop("n2", Transmitted, a, b)],
            vec![hop("n2", Sent, b, a), hop("n1", Dropped, b, a)],
        );
        let mut moved = hop("n2", Transmitted, a, b);
        moved.detail.text = Some(format!("transmitted; {REDIRECTED}"));
        let redirected =
            told(vec![hop("n1", Transmitted, a, b), moved], vec![hop("n1", Sent, b, a), hop("n2", Dropped, b, a)]);
        insta::assert_snapshot!([other_way, past_the_nat, untracked, redirected].join("\n"), @r"
        the request never passed n3, so conntrack there knows no connection for the reply (asymmetric path): there n1 > n2, back n2 > n3
        the request left n1 for 10.0.0.9, and the reply comes from 10.0.0.2: the DNAT on n3 is undone only there, and the reply did not come back that way (asymmetric path)
        the request passed n1 too: conntrack there does not track it (a NOTRACK rule), or has given up its entry
        on n2 the request was redirected before IP (tc, XDP, a CNI's eBPF), so conntrack there knows no connection for the reply
        ");
    }
}
