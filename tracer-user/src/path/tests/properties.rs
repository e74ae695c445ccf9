//! Generated networks, damaged records: never a wrong path.

use proptest::prelude::*;

use crate::{
    event::{Encapsulation, Hook},
    node::facts::RouteKind,
    path::{
        model::{Exchange, Outcome},
        testing::{ENS5, ENS6, ETH0, TUNL0, Walk, host, ip, pod, shape, veth},
    },
};

/// A way through the network.
#[derive(Clone, Debug)]
struct Plan {
    nodes: usize,
    tunnel: Option<bool>,
    masquerade: bool,
    same_memory: bool,
    step: u64,
    clocks: Vec<u64>,
    exchanges: u16,
}

fn plan() -> impl Strategy<Value = Plan> {
    let clocks = proptest::collection::vec(0..36_000_000_000_000u64, 4);
    (1..=4usize, any::<Option<bool>>(), any::<bool>(), any::<bool>(), 1..2_000u64, clocks, 1..4u16).prop_map(
        |(nodes, tunnel, masquerade, same_memory, step, clocks, exchanges)| Plan {
            nodes,
            tunnel,
            masquerade,
            same_memory,
            step: step * 2,
            clocks,
            exchanges,
        },
    )
}

/// One way over all nodes of the plan, in the given order.
fn over(w: &mut Walk, plan: &Plan, order: &[usize]) {
    let (first, last) = (order[0], order[order.len() - 1]);
    w.sent((first, 1, ETH0)).received((first, 0, veth(1)));
    let kind = match plan.tunnel {
        Some(true) => Some(Encapsulation::Ipip),
        Some(false) => Some(Encapsulation::Vxlan),
        None => None,
    };
    match kind {
        Some(kind) => w.wrapped((first, 0, TUNL0), kind, host(last), (first, 0, ENS5)),
        None => w.routed((first, 0, ENS5)),
    };
    for &node in &order[1..order.len() - 1] {
        w.received((node, 0, ENS6)).routed((node, 0, ENS5));
    }
    w.received((last, 0, ENS6));
    if kind.is_some() {
        w.unwrapped((last, 0, TUNL0));
    }
    w.routed((last, 0, veth(1))).delivered((last, 1, ETH0));
}

fn walk(plan: &Plan) -> Walk {
    let alone = plan.nodes == 1;
    let to = if alone { ip("8.8.8.8") } else { pod(plan.nodes - 1, 1) };
    let mut w = Walk::new(plan.nodes, pod(0, 1), to);
    w.step = plan.step;
    w.clocks = plan.clocks[..plan.nodes].to_vec();
    for seq in 1..=plan.exchanges {
        w.request(seq);
        let mut order: Vec<_> = (0..plan.nodes).collect();
        if alone {
            outside(&mut w, plan);
        } else {
            over(&mut w, plan, &order);
            answer(&mut w, plan);
            order.reverse();
            over(&mut w, plan, &order);
        }
        w.freed(Hook::Drop, (0, 1, ETH0), "ping_rcv", Some("NO_SOCKET")).confirm();
    }
    w.answer(RouteKind::Unicast, None);
    w
}

fn answer(w: &mut Walk, plan: &Plan) {
    if plan.same_memory {
        w.reply_in_same_memory()
    } else {
        w.reply()
    };
}

fn outside(w: &mut Walk, plan: &Plan) {
    let (inside, out) = ((0, 0, veth(1)), (0, 0, ENS5));
    w.sent((0, 1, ETH0)).received(inside);
    if plan.masquerade {
        w.masqueraded(out, host(0), 4711).wait(9_000);
        answer(w, plan);
        w.received(out).unmasqueraded(out, inside, pod(0, 1));
    } else {
        w.routed(out).wait(9_000);
        answer(w, plan);
        w.received(out).routed(inside);
    }
    w.delivered((0, 1, ETH0));
}

/// Every element of `part` is in `whole`, in that order.
fn is_part(part: &[String], whole: &[String]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|p| rest.any(|w| w == p))
}

fn add_up(e: &Exchange) -> bool {
    e.rtt_ns.is_none_or(|rtt| e.shares.iter().map(|s| s.ns).sum::<u64>() == rtt)
}

/// Shuffles, and repeats some, by a generated seed.
fn shake(w: &mut Walk, seed: u64) {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for node in &mut w.evidence.nodes {
        let repeated: Vec<_> = node.records.iter().filter(|_| next() % 4 == 0).cloned().collect();
        node.records.extend(repeated);
        for i in (1..node.records.len()).rev() {
            let j = usize::try_from(next() % (i as u64 + 1)).expect("small");
            node.records.swap(i, j);
        }
    }
}

proptest! {
    #[test]
    fn complete_records_in_any_order_give_the_true_path(plan in plan(), seed in any::<u64>()) {
        let mut w = walk(&plan);
        let ordered = w.join();
        shake(&mut w, seed);
        let joined = w.check();
        prop_assert_eq!(&joined, &ordered);
        for e in &joined.exchanges {
            prop_assert_eq!(e.outcome, Outcome::Delivered);
            prop_assert!(e.notes.is_empty(), "{:?}", e.notes);
            let times: Vec<_> = e.request.hops.iter().chain(&e.reply.hops).map(|h| h.at_ns).collect();
            prop_assert!(times.iter().all(Option::is_some) && times.is_sorted(), "{:?}", times);
            prop_assert!(add_up(e));
        }
    }

    #[test]
    fn lost_records_never_make_a_wrong_path(
        plan in plan(),
        seed in any::<u64>(),
        keep in proptest::collection::vec(0..100u8, 200),
        chance in 1..100u8,
        confirmed in any::<bool>(),
    ) {
        let mut w = walk(&Plan { exchanges: 1, ..plan });
        let mut keep = keep.into_iter().cycle();
        for node in &mut w.evidence.nodes {
            let before = node.records.len();
            node.records.retain(|_| keep.next().is_some_and(|k| k >= chance));
            node.lost = (before - node.records.len()) as u64;
        }
        if !confirmed {
            w.evidence.probes[0].rtt_ns = None;
        }
        shake(&mut w, seed);
        let joined = w.join();
        let e = &joined.exchanges[0];
        for (path, truth) in [(&e.request, &w.expected[0]), (&e.reply, &w.expected[1])] {
            let hops = shape(path);
            prop_assert!(is_part(&hops, truth), "{hops:#?} is not part of {truth:#?}; notes {:#?}", e.notes);
            prop_assert!(hops.len() == truth.len() || !e.notes.is_empty(), "{hops:#?} lacks hops without a note");
        }
        // What happened is that both arrived; nothing else may be claimed.
        let fair = [Outcome::Delivered, Outcome::Incomplete];
        prop_assert!(fair.contains(&e.outcome) || no_answer_seen(e), "{:?}", e.outcome);
        prop_assert!(add_up(e));
    }
}

/// The request was seen to arrive, and all of the reply's records are lost: "no reply was seen" is true.
fn no_answer_seen(e: &Exchange) -> bool {
    e.outcome == Outcome::Lost && e.reply.hops.is_empty() && !e.notes.is_empty()
}
