//! What is different in one report from another, beyond what the noise of both explains. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Failure, Key, Kind, Place, Report, Step, Times, Way};
use crate::path::model::{Direction, Outcome};

/// What is compared of a segment's times: the median, and what concerns only some exchanges.
const PERCENTS: [u8; 2] = [50, 90];

/// A percentile moves by chance: so many times its spread among a recording's parts it does not.
const NOISES: f64 = 4.0;

/// Less than this is nobody's reason, ns.
const LEAST_NS: f64 = 3_000.0;

/// Nor is less than this part of the round trip,
const LEAST_SHARE: f64 = 0.05;

/// or less than this times what it was, where everything else has become slower alike (another CPU frequency, other load).
const LEAST_TIMES: f64 = 1.5;

/// Standard deviations by which a rate of failures must differ: by chance it does that once in 4,000 comparisons.
const DEVIATIONS: f64 = 3.5;

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
        /// Told by this percentile: 50, or 90 where less than half of the exchanges are concerned.
        percent: u8,
        /// It was this, ns.
        before_ns: u64,
        /// Now it is this, ns.
        now_ns: u64,
        /// It varies by this within the recordings, ns.
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

/// A percentile of a segment's times, and how much those of its parts differ.
struct Level {
    ns: f64,
    noise: f64,
}

impl Level {
    fn of(times: &Times, percent: f64) -> Self {
        let parts = times.parts.iter().filter(|part| part.len() >= LEAST_IN_A_PART);
        let mut levels: Vec<f64> = parts.map(|part| part.value_at_percentile(percent) as f64).collect();
        let middle = middle(&mut levels);
        let mut away: Vec<f64> = levels.iter().map(|level| (level - middle).abs()).collect();
        // Of a normal distribution that is its standard deviation.
        let noise = 1.4826 * self::middle(&mut away);
        Self { ns: times.percentile(percent) as f64, noise }
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

/// Those of all segments; a wire's two directions together, under the key of its request.
fn levels(report: &Report, percent: f64) -> BTreeMap<Key, Level> {
    let mut levels: BTreeMap<Key, Level> = BTreeMap::new();
    for (key, times) in &report.segments {
        let there = if key.kind == Kind::Wire && key.direction == Direction::Reply {
            let back = |place: &Place| report.segments.iter().find(|(k, _)| ends_at(k, place)).map(|(k, _)| k.clone());
            // The wire that was crossed the other way.
            back(&key.from).filter(|there| there.from.node == key.to.node).unwrap_or_else(|| key.clone())
        } else {
            key.clone()
        };
        let level = Level::of(times, percent);
        let sum = levels.get(&there).map_or_else(|| Level { ..level }, |known| known.and(&level));
        levels.insert(there, sum);
    }
    levels
}

fn ends_at(key: &Key, place: &Place) -> bool {
    key.kind == Kind::Wire && key.direction == Direction::Request && key.to.node == place.node
}

/// Each segment by the percentile that changed most.
fn times(now: &Report, before: &Report) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for percent in PERCENTS {
        for finding in times_at(now, before, percent) {
            match found.iter_mut().find(|known| key(known) == key(&finding)) {
                Some(known) if change(known) < change(&finding) => *known = finding,
                Some(_) => {}
                None => found.push(finding),
            }
        }
    }
    found.sort_by_key(|finding| std::cmp::Reverse(change(finding)));
    found
}

fn key(finding: &Finding) -> Option<&Key> {
    match finding {
        Finding::Time { key, .. } => Some(key),
        Finding::Way { .. } | Finding::Failures { .. } => None,
    }
}

/// By how many ns.
fn change(finding: &Finding) -> u64 {
    match finding {
        Finding::Time { before_ns, now_ns, .. } => before_ns.abs_diff(*now_ns),
        Finding::Way { .. } | Finding::Failures { .. } => 0,
    }
}

fn times_at(now: &Report, before: &Report, percent: u8) -> Vec<Finding> {
    let (new, old) = (levels(now, percent.into()), levels(before, percent.into()));
    let both: Vec<(&Key, &Level, &Level)> =
        new.iter().filter_map(|(key, level)| Some((key, level, old.get(key)?))).collect();
    let whole: f64 = old.values().map(|level| level.ns).sum();
    let mut ratios: Vec<f64> =
        both.iter().filter(|(.., old)| old.ns > 0.0).map(|(_, new, old)| new.ns / old.ns).collect();
    // What has become slower alike has become so for one reason, which is in none of them.
    let alike = middle(&mut ratios).max(f64::MIN_POSITIVE);
    let differs = |new: &Level, old: &Level| {
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
            percent,
            before_ns: whole_ns(old.ns),
            now_ns: whole_ns(new.ns),
            noise_ns: whole_ns(new.noise.max(old.noise)),
        })
        .collect()
}
