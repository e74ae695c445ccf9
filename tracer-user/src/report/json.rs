//! A report for programs: `podpath.report/v1`.

use std::sync::Arc;

use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::Serialize;

use super::{Finding, Key, Report, Times};
use crate::{
    path::model::{Action, AskedService, Direction, Endpoint, Outcome, What},
    recording::Contents,
};

#[derive(Serialize)]
struct Json<'r> {
    schema: &'static str,
    source: &'r Endpoint,
    destination: &'r Endpoint,
    service: &'r Option<AskedService>,
    started: &'r str,
    context: &'r Option<String>,
    traffic: &'r str,
    lasted_ns: u64,
    exchanges: Exchanges,
    round_trips: Vec<RoundTrip>,
    segments: Vec<SegmentJson<'r>>,
    failures: Vec<FailureJson<'r>>,
    rewrites: Vec<RewriteJson<'r>>,
    lost_events: u64,
    warnings: &'r [String],
}

#[derive(Serialize)]
struct Exchanges {
    total: u64,
    delivered: u64,
    dropped: u64,
    rejected: u64,
    lost: u64,
    incomplete: u64,
    retransmissions: u64,
}

#[derive(Serialize)]
struct RoundTrip {
    what: Option<What>,
    #[serde(flatten)]
    times: TimesJson,
}

#[derive(Serialize)]
struct SegmentJson<'r> {
    #[serde(flatten)]
    key: &'r Key,
    /// Of the sum of all round trips.
    share: f64,
    error_ns: u64,
    #[serde(flatten)]
    times: TimesJson,
}

#[derive(Serialize)]
struct TimesJson {
    count: u64,
    total_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    /// HdrHistogram V2, deflated, in base64: what its log tools read.
    histogram: String,
}

#[derive(Serialize)]
struct FailureJson<'r> {
    count: u64,
    outcome: Outcome,
    failed_direction: Option<Direction>,
    node: &'r Option<Arc<str>>,
    pod: &'r Option<Arc<str>>,
    interface: &'r Option<Arc<str>>,
    why: &'r str,
}

#[derive(Serialize)]
struct RewriteJson<'r> {
    count: u64,
    node: &'r str,
    action: Action,
    before: std::net::IpAddr,
    after: std::net::IpAddr,
}

/// The report as one JSON object, indented, with a newline at its end.
///
/// # Panics
/// Never: it holds nothing that JSON cannot say.
pub fn json(report: &Report, contents: &Contents) -> Vec<u8> {
    let header = &contents.header;
    let total = report.total_ns().max(1) as f64;
    let whole = Json {
        schema: "podpath.report/v1",
        source: &header.ends.source,
        destination: &header.ends.destination,
        service: &header.service,
        started: &header.started,
        context: &header.context,
        traffic: &header.traffic,
        lasted_ns: u64::try_from(contents.lasted.as_nanos()).unwrap_or(u64::MAX),
        exchanges: Exchanges {
            total: report.exchanges(),
            delivered: report.ended(Outcome::Delivered),
            dropped: report.ended(Outcome::Dropped),
            rejected: report.ended(Outcome::Rejected),
            lost: report.ended(Outcome::Lost),
            incomplete: report.ended(Outcome::Incomplete),
            retransmissions: report.retransmissions,
        },
        round_trips: report
            .round_trips
            .iter()
            .map(|(what, times)| RoundTrip { what: *what, times: times.into() })
            .collect(),
        segments: report
            .segments
            .iter()
            .map(|(key, times)| SegmentJson {
                key,
                share: times.total_ns as f64 / total,
                error_ns: times.error_ns,
                times: times.into(),
            })
            .collect(),
        failures: report
            .failures
            .iter()
            .map(|(failure, count)| FailureJson {
                count: *count,
                outcome: failure.outcome,
                failed_direction: failure.direction,
                node: &failure.node,
                pod: &failure.pod,
                interface: &failure.interface,
                why: &failure.why,
            })
            .collect(),
        rewrites: report
            .rewrites
            .iter()
            .map(|(rewrite, count)| RewriteJson {
                count: *count,
                node: &rewrite.node,
                action: rewrite.action,
                before: rewrite.before,
                after: rewrite.after,
            })
            .collect(),
        lost_events: contents.lost_events(),
        warnings: &contents.driven.warnings,
    };
    let mut bytes = serde_json::to_vec_pretty(&whole).expect("string keys and numbers only");
    bytes.push(b'\n');
    bytes
}

#[derive(Serialize)]
struct Comparison<'r> {
    schema: &'static str,
    source: &'r Endpoint,
    destination: &'r Endpoint,
    /// Medians of all round trips, ns.
    round_trip_before_ns: u64,
    round_trip_now_ns: u64,
    findings: &'r [Finding],
}

/// A comparison as one JSON object (`podpath.comparison/v1`), indented, with a newline at its end.
///
/// # Panics
/// Never: it holds nothing that JSON cannot say.
pub fn comparison(findings: &[Finding], now: (&Report, &Contents), before: &Report) -> Vec<u8> {
    let (now, contents) = now;
    let whole = Comparison {
        schema: "podpath.comparison/v1",
        source: &contents.header.ends.source,
        destination: &contents.header.ends.destination,
        round_trip_before_ns: before.round_trip().percentile(50.0),
        round_trip_now_ns: now.round_trip().percentile(50.0),
        findings,
    };
    let mut bytes = serde_json::to_vec_pretty(&whole).expect("string keys and numbers only");
    bytes.push(b'\n');
    bytes
}

impl From<&Times> for TimesJson {
    fn from(times: &Times) -> Self {
        use base64::{Engine as _, engine::general_purpose::STANDARD};

        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(&times.histogram, &mut bytes).expect("a vector grows");
        Self {
            count: times.count(),
            total_ns: u64::try_from(times.total_ns).unwrap_or(u64::MAX),
            p50_ns: times.percentile(50.0),
            p90_ns: times.percentile(90.0),
            p99_ns: times.percentile(99.0),
            max_ns: times.histogram.max(),
            histogram: STANDARD.encode(bytes),
        }
    }
}
