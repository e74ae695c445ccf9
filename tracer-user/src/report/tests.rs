//! Reports of generated exchanges.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Kind, MOST_DIFFERENT, MOST_SEGMENTS, Report, Times, segments};
use crate::path::{join_all, model::Exchange, testing::pings};

struct NoNames;

impl crate::path::Names for NoNames {
    fn pod(&self, _: std::net::IpAddr) -> Option<String> {
        None
    }

    fn node(&self, _: std::net::IpAddr) -> Option<String> {
        None
    }
}

fn exchanges(nodes: usize, count: u16) -> Vec<Exchange> {
    let (evidence, ends) = pings(nodes, count, 0);
    join_all(&evidence, &ends, &NoNames).exchanges
}

fn report(exchanges: &[Exchange], keep: usize) -> Report {
    let mut report = Report::new(keep);
    exchanges.iter().enumerate().for_each(|(index, exchange)| report.add(exchange, index % super::PARTS));
    report
}

/// Everything but what stands in no order.
fn whole(report: &Report) -> String {
    // However much room a histogram took.
    let values = |histogram: &hdrhistogram::Histogram<u64>| {
        let counts = histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value()));
        counts.collect::<Vec<_>>()
    };
    let times = |times: &Times| {
        let parts: Vec<_> = times.parts.iter().map(values).collect();
        (values(&times.histogram), times.total_ns, times.error_ns, parts)
    };
    let segments: BTreeMap<_, _> = report.segments.iter().map(|(key, of)| (key, times(of))).collect();
    let round_trips: Vec<_> = report.round_trips.iter().map(|(what, of)| (what, times(of))).collect();
    format!("{:?} {round_trips:?} {segments:?} {:?}", report.outcomes, report.slowest)
}

#[test]
fn a_round_trip_is_cut_where_it_was_seen() {
    let exchange = exchanges(2, 1).remove(0);
    let told: Vec<String> = segments(&exchange)
        .iter()
        .map(|s| {
            format!(
                "{} {} {} -> {} {}",
                s.key.from.node,
                s.key.kind.word(),
                s.key.from.interface,
                s.key.to.interface,
                s.ns
            )
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r"
    node0 queue eth0 -> eth0 1000
    node0 link eth0 -> cali1 1000
    node0 forwarding cali1 -> ens5 1000
    node0 queue ens5 -> ens5 1000
    node0 wire ens5 -> ens6 1000
    node1 forwarding ens6 -> cali1 1000
    node1 queue cali1 -> cali1 1000
    node1 link cali1 -> eth0 1000
    node1 answer eth0 -> eth0 1000
    node1 queue eth0 -> eth0 1000
    node1 link eth0 -> cali1 1000
    node1 forwarding cali1 -> ens5 1000
    node1 queue ens5 -> ens5 1000
    node1 wire ens5 -> ens6 1000
    node0 forwarding ens6 -> cali1 1000
    node0 queue cali1 -> cali1 1000
    node0 link cali1 -> eth0 1000
    ");
    let wires: Vec<_> = segments(&exchange).into_iter().filter(|s| s.key.kind == Kind::Wire).collect();
    assert!(wires.len() == 2 && wires.iter().all(|wire| wire.error_ns > 0));
}

#[test]
fn the_slowest_are_kept() {
    let mut all = exchanges(2, 9);
    for (exchange, ns) in all.iter_mut().zip([5, 9, 1, 7, 3, 8, 2, 6, 4]) {
        exchange.rtt_ns = Some(ns);
    }
    let rtts: Vec<_> = report(&all, 3).slowest.iter().filter_map(|exchange| exchange.rtt_ns).collect();
    assert_eq!(rtts, [9, 8, 7]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Distributions of two halves, put together, are those of the whole, to the last count.
    #[test]
    fn reports_merge_exactly(cut in 0..40usize, times in prop::collection::vec(1_000..50_000_000u64, 40)) {
        let mut all = [exchanges(2, 20), exchanges(3, 20)].concat();
        for (exchange, time) in all.iter_mut().zip(times) {
            exchange.rtt_ns = Some(time);
        }
        let mut first = Report::new(5);
        let mut second = Report::new(5);
        for (index, exchange) in all.iter().enumerate() {
            if index < cut { &mut first } else { &mut second }.add(exchange, index % super::PARTS);
        }
        first.merge(&second);
        prop_assert_eq!(whole(&first), whole(&report(&all, 5)));
    }
}

#[test]
fn what_is_too_different_to_be_told_apart_is_counted() {
    let exchange = exchanges(2, 1).remove(0);
    let of_each = segments(&exchange).len();
    let mut report = Report::new(0);
    let count = MOST_DIFFERENT + 7;
    for number in 0..count {
        // Each by another way.
        let mut exchange = exchange.clone();
        let hops = exchange.request.hops.iter_mut().chain(&mut exchange.reply.hops);
        hops.for_each(|hop| hop.interface = Some(format!("eth{number}").into()));
        report.add(&exchange, 0);
    }
    assert_eq!((report.exchanges(), report.ways.len()), (count as u64, MOST_DIFFERENT));
    assert_eq!(report.left_out.ways, 7);
    assert_eq!(report.segments.len(), MOST_SEGMENTS);
    let told: u64 = report.segments.iter().map(|(_, times)| times.count()).sum();
    assert_eq!(told + report.left_out.segments, (count * of_each) as u64);
    assert!(report.left_out.sentence().is_some_and(|text| text.contains("7 ways")));
    // Known ones still count, and those of another report that are new do not.
    let (ways, segments) = (report.ways.values().sum::<u64>(), report.left_out.segments);
    report.merge(&report.clone());
    assert_eq!(report.ways.values().sum::<u64>() + report.left_out.ways, 2 * (ways + 7));
    assert_eq!(report.left_out.segments, 2 * segments);
    assert_eq!(self::report(&[exchange], 0).left_out.sentence(), None);
}
