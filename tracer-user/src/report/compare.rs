//! What is different in one report from another, beyond what the noise of both explains. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Failure, Key, Kind, Place, Report, Step, Times, Way};
use crate::path::model::{Direction, Outcome};

/// A median moves by chance: so many times the spread of the medians of a recording's parts it does not.
const NOISES: f64 = 4.0;

/// Less than this is nobody's reason, ns.
const LEAST_NS: f64 = 3_000.0;

/// Nor is less than this part of the round trip,
const LEAST_SHARE: f64 = 0.05;

/// or less than this times what it was, where everything else has become slower alike (another CPU frequency, other load).
const LEAST_TIMES: f64 = 1.5;

/// Standard deviations by which a rate of failures must differ: by chance it does that once in 30,000 comparisons.
const DEVIATIONS: f64 = 4.0;

/// Fewer failures are chance.
const LEAST_FAILURES: u64 = 5;

/// A part of a recording with fewer times has no median worth the name.
const LEAST_IN_A_PART: u64 = 5;

/// One thing that is different.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "finding", rename_all = "lowercase")]
pub enum Finding {
    /// Most packets take another way: where it first differs.
    Way {
        /// Request or reply.
        direction: Direction,
        /// Before; None: it went on there no further.
        before: Option<Step>,
        /// Now.
        now: Option<Step>,
    },
    /// More exchanges fail.
    Failures {
        /// Where and how.
        failure: Failure,
        /// Of the exchanges before, this part failed so.
        before: f64,
        /// And of these.
        now: f64,
    },
    /// A part of the path takes another time.
    Time {
        /// Which; of a wire both directions, for their sum alone is exact.
        key: Key,
        /// Median before, ns.
        before_ns: u64,
        /// Median now, ns.
        now_ns: u64,
        /// The median varies by this within the recordings, ns.
        noise_ns: u64,
    },
}

/// What is different in `now` from `before`, the most telling first: another way, then failures, then times by how much they changed.
pub fn compare(now: &Report, before: &Report) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ways(now, before).into_iter().collect();
    findings.extend(failures(now, before));
    findings.extend(times(now, before));
    findings
}

fn ways(now: &Report, before: &Report) -> Option<Finding> {
    let (before, now) = (usual(before)?, usual(now)?);
    let at = (0..before.len().max(now.len())).find(|&at| before.get(at) != now.get(at))?;
    let step = |way: &Way| way.get(at).cloned();
    let direction = now.get(at).or(before.get(at))?.direction;
    Some(Finding::Way { direction, before: step(before), now: step(now) })
}

/// The way that most exchanges took.
fn usual(report: &Report) -> Option<&Way> {
    let all: u64 = report.ways.values().sum();
    let (way, count) = report.ways.iter().max_by_key(|(_, count)| **count)?;
    (count * 2 > all).then_some(way)
}

fn failures(now: &Report, before: &Report) -> Vec<Finding> {
    let [n, m] = [now, before].map(|report| report.exchanges() as f64);
    let mut found: Vec<_> = now
        .failures
        .iter()
        .filter(|(failure, _)| failure.outcome != Outcome::Incomplete)
        .filter_map(|(failure, count)| {
            let was = before.failures.get(failure).copied().unwrap_or(0);
            let (rate, old) = (*count as f64 / n, if m > 0.0 { was as f64 / m } else { 0.0 });
            let pooled = (*count + was) as f64 / (n + m);
            let deviation = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
            let differs = *count >= LEAST_FAILURES && m > 0.0 && rate - old > DEVIATIONS * deviation;
            differs.then(|| Finding::Failures { failure: failure.clone(), before: old, now: rate })
        })
        .collect();
    found.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    found
}

fn rate(finding: &Finding) -> f64 {
    match finding {
        Finding::Failures { now, .. } => *now,
        Finding::Way { .. } | Finding::Time { .. } => 0.0,
    }
}

/// A segment's median, and how much the medians of its parts differ.
struct Median {
    ns: f64,
    noise: f64,
}

impl Median {
    fn of(times: &Times) -> Self {
        let parts = times.parts.iter().filter(|part| part.len() >= LEAST_IN_A_PART);
        let mut medians: Vec<f64> = parts.map(|part| part.value_at_quantile(0.5) as f64).collect();
        let middle = middle(&mut medians);
        let mut away: Vec<f64> = medians.iter().map(|median| (median - middle).abs()).collect();
        // Of a normal distribution that is its standard deviation.
        let noise = 1.4826 * self::middle(&mut away);
        Self { ns: times.percentile(50.0) as f64, noise }
    }

    fn and(&self, other: &Self) -> Self {
        Self { ns: self.ns + other.ns, noise: self.noise.hypot(other.noise) }
    }
}

/// The median; 0 of none.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A wire's two directions together, under the key of its request.
fn medians(report: &Report) -> BTreeMap<Key, Median> {
    let mut medians: BTreeMap<Key, Median> = BTreeMap::new();
    for (key, times) in &report.segments {
        let there = if key.kind == Kind::Wire && key.direction == Direction::Reply {
            let back = |place: &Place| report.segments.iter().find(|(k, _)| ends_at(k, place)).map(|(k, _)| k.clone());
            // The wire that was crossed the other way.
            back(&key.from).filter(|there| there.from.node == key.to.node).unwrap_or_else(|| key.clone())
        } else {
            key.clone()
        };
        let median = Median::of(times);
        let sum = medians.get(&there).map_or_else(|| Median { ..median }, |known| known.and(&median));
        medians.insert(there, sum);
    }
    medians
}

fn ends_at(key: &Key, place: &Place) -> bool {
    key.kind == Kind::Wire && key.direction == Direction::Request && key.to.node == place.node
}

fn times(now: &Report, before: &Report) -> Vec<Finding> {
    let (new, old) = (medians(now), medians(before));
    let mut both: Vec<(&Key, &Median, &Median)> =
        new.iter().filter_map(|(key, median)| Some((key, median, old.get(key)?))).collect();
    let whole: f64 = old.values().map(|median| median.ns).sum();
    let mut ratios: Vec<f64> =
        both.iter().filter(|(.., old)| old.ns > 0.0).map(|(_, new, old)| new.ns / old.ns).collect();
    // What has become slower alike has become so for one reason, which is in none of them.
    let alike = middle(&mut ratios).max(f64::MIN_POSITIVE);
    both.sort_by(|(_, a, b), (_, c, d)| (c.ns - d.ns).abs().total_cmp(&(a.ns - b.ns).abs()));
    let differs = |new: &Median, old: &Median| {
        let expected = old.ns * alike;
        let (change, noise) = ((new.ns - expected).abs(), new.noise.max(old.noise * alike));
        let (less, more) = (new.ns.min(expected), new.ns.max(expected));
        change > NOISES * noise && change > LEAST_NS.max(LEAST_SHARE * whole * alike) && more > LEAST_TIMES * less
    };
    let found = both.into_iter().filter(|(_, new, old)| differs(new, old));
    let whole_ns = |ns: f64| ns.round() as u64;
    found
        .map(|(key, new, old)| Finding::Time {
            key: key.clone(),
            before_ns: whole_ns(old.ns),
            now_ns: whole_ns(new.ns),
            noise_ns: whole_ns(new.noise.max(old.noise)),
        })
        .collect()
}
