//! The small messages: hello, request, probe, counters, error.

use std::time::Duration;

use super::field::{Fields, Malformed, bytes};
use crate::{
    path::{self, Unsent},
    session::{self, ProbeKind},
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    major: u32,
    #[prost(uint32, tag = "2")]
    minor: u32,
    #[prost(string, tag = "3")]
    program: String,
    #[prost(string, tag = "4")]
    node: String,
    #[prost(string, tag = "5")]
    kernel: String,
    #[prost(string, repeated, tag = "6")]
    capabilities: Vec<String>,
    #[prost(sint64, tag = "7")]
    realtime_offset_ns: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(uint32, tag = "1")]
    major: u32,
    #[prost(uint32, tag = "2")]
    minor: u32,
    #[prost(message, repeated, tag = "3")]
    flows: Vec<Flow>,
    #[prost(uint64, tag = "4")]
    time_limit_ns: u64,
    #[prost(message, optional, tag = "5")]
    ping: Option<Ping>,
    #[prost(bool, tag = "6")]
    trace_rules: bool,
    #[prost(bool, tag = "7")]
    sparing: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Flow {
    #[prost(bytes = "vec", tag = "1")]
    a: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    b: Option<Vec<u8>>,
    #[prost(uint32, tag = "3")]
    protocol: u32,
    #[prost(uint32, optional, tag = "4")]
    a_port: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    b_port: Option<u32>,
    /// 0, as from those who do not know it: 1.
    #[prost(uint32, tag = "6")]
    one_of: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ping {
    #[prost(bytes = "vec", tag = "1")]
    src: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    dst: Vec<u8>,
    #[prost(uint32, tag = "3")]
    id: u32,
    #[prost(uint32, tag = "4")]
    count: u32,
    #[prost(uint64, tag = "5")]
    interval_ns: u64,
    #[prost(uint32, tag = "6")]
    size: u32,
    #[prost(uint64, tag = "7")]
    timeout_ns: u64,
    #[prost(fixed64, tag = "8")]
    nonce_base: u64,
    #[prost(uint32, tag = "9")]
    protocol: u32,
    #[prost(uint32, tag = "10")]
    dst_port: u32,
    #[prost(bytes = "vec", optional, tag = "11")]
    home: Option<Vec<u8>>,
    #[prost(bool, tag = "12")]
    any_source: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Probe {
    #[prost(uint32, tag = "1")]
    seq: u32,
    #[prost(uint32, tag = "2")]
    id: u32,
    #[prost(uint32, tag = "3")]
    ip_id: u32,
    #[prost(fixed64, tag = "4")]
    nonce: u64,
    #[prost(uint64, optional, tag = "5")]
    rtt_ns: Option<u64>,
    #[prost(uint32, tag = "6")]
    protocol: u32,
    #[prost(uint32, tag = "7")]
    dst_port: u32,
    #[prost(message, optional, tag = "8")]
    answer: Option<Answer>,
    #[prost(bool, tag = "9")]
    unsent: bool,
    /// Why it is unsent, from protocol 1.5 on: see [`WHY_UNSENT`].
    #[prost(uint32, tag = "10")]
    why_unsent: u32,
}

/// By number, from 1; a number that is not known, and 0, is the first.
const WHY_UNSENT: [Unsent; 5] =
    [Unsent::Filtered, Unsent::NoRoute, Unsent::Blackhole, Unsent::Unreachable, Unsent::Prohibit];

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(uint32, tag = "1")]
    what: u32,
    #[prost(bytes = "vec", tag = "2")]
    from: Vec<u8>,
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(uint32, tag = "4")]
    code: u32,
    #[prost(uint32, tag = "5")]
    mtu: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Counters {
    #[prost(uint64, tag = "1")]
    recorded: u64,
    #[prost(uint64, tag = "2")]
    lost_receive: u64,
    #[prost(uint64, tag = "3")]
    lost_queue: u64,
    #[prost(uint64, tag = "4")]
    lost_xmit: u64,
    #[prost(uint64, tag = "5")]
    lost_drop: u64,
    #[prost(uint64, tag = "6")]
    lost_consume: u64,
    #[prost(uint64, tag = "7")]
    discarded: u64,
    #[prost(uint64, tag = "8")]
    unread: u64,
    #[prost(uint64, tag = "9")]
    skipped_frees: u64,
    #[prost(uint64, tag = "10")]
    lost_rewrite: u64,
    #[prost(uint64, tag = "11")]
    skipped_kprobes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Failure {
    #[prost(string, tag = "1")]
    thing: String,
    #[prost(string, tag = "2")]
    cause: String,
    #[prost(string, tag = "3")]
    way_out: String,
    #[prost(bytes = "vec", optional, tag = "4")]
    send_from: Option<Vec<u8>>,
}

/// Nanoseconds; more than 584 years become 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl From<session::Hello> for Hello {
    fn from(hello: session::Hello) -> Self {
        let session::Hello { protocol: session::Version { major, minor }, program, about } = hello;
        let session::About { node, kernel, capabilities, realtime_offset_ns } = about;
        Self { major, minor, program, node, kernel, capabilities, realtime_offset_ns }
    }
}

impl From<Hello> for session::Hello {
    fn from(hello: Hello) -> Self {
        let Hello { major, minor, program, node, kernel, capabilities, realtime_offset_ns } = hello;
        let about = session::About { node, kernel, capabilities, realtime_offset_ns };
        Self { protocol: session::Version { major, minor }, program, about }
    }
}

impl From<(session::Version, &session::Request)> for Request {
    fn from((version, request): (session::Version, &session::Request)) -> Self {
        let session::Version { major, minor } = version;
        let session::Request { flows, time_limit, ping, trace_rules, sparing } = request;
        Self {
            major,
            minor,
            flows: flows.iter().map(Into::into).collect(),
            time_limit_ns: nanos(*time_limit),
            ping: ping.as_ref().map(Into::into),
            trace_rules: *trace_rules,
            sparing: *sparing,
        }
    }
}

impl TryFrom<Request> for (session::Version, session::Request) {
    type Error = Malformed;

    fn try_from(request: Request) -> Result<Self, Malformed> {
        let Request { major, minor, flows, time_limit_ns, ping, trace_rules, sparing } = request;
        let request = session::Request {
            flows: flows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            time_limit: Duration::from_nanos(time_limit_ns),
            ping: ping.map(TryInto::try_into).transpose()?,
            trace_rules,
            sparing,
        };
        Ok((session::Version { major, minor }, request))
    }
}

impl From<&session::Flow> for Flow {
    fn from(flow: &session::Flow) -> Self {
        let session::Flow { a, b, protocol, a_port, b_port, one_of } = *flow;
        Self {
            a: bytes(a),
            b: b.map(bytes),
            protocol: protocol.into(),
            a_port: a_port.map(Into::into),
            b_port: b_port.map(Into::into),
            one_of,
        }
    }
}

impl TryFrom<Flow> for session::Flow {
    type Error = Malformed;

    fn try_from(flow: Flow) -> Result<Self, Malformed> {
        let fields = Fields("request.flow");
        Ok(Self {
            a: fields.address("a", &flow.a)?,
            b: fields.maybe_address("b", flow.b.as_deref())?,
            protocol: fields.narrow("protocol", flow.protocol)?,
            a_port: fields.maybe_narrow("port of a", flow.a_port)?,
            b_port: fields.maybe_narrow("port of b", flow.b_port)?,
            one_of: flow.one_of.max(1),
        })
    }
}

impl From<&session::Ping> for Ping {
    fn from(ping: &session::Ping) -> Self {
        let session::Ping { src, home, any_source, dst, kind, count, interval, size, timeout, nonce_base } = *ping;
        let (id, dst_port) = match kind {
            ProbeKind::Echo { id } => (id, 0),
            ProbeKind::Tcp { dst_port } | ProbeKind::Udp { dst_port } => (0, dst_port),
        };
        Self {
            src: bytes(src),
            dst: bytes(dst),
            id: id.into(),
            count: count.into(),
            interval_ns: nanos(interval),
            size: size.into(),
            timeout_ns: nanos(timeout),
            nonce_base,
            protocol: kind.protocol(src).into(),
            dst_port: dst_port.into(),
            home: home.map(bytes),
            any_source,
        }
    }
}

impl TryFrom<Ping> for session::Ping {
    type Error = Malformed;

    fn try_from(ping: Ping) -> Result<Self, Malformed> {
        let fields = Fields("request.ping");
        let id = fields.narrow("id", ping.id)?;
        let dst_port = fields.narrow("destination port", ping.dst_port)?;
        Ok(Self {
            kind: match ping.protocol {
                // 0: a peer that knows no other probes.
                0 | 1 | 58 => ProbeKind::Echo { id },
                6 => ProbeKind::Tcp { dst_port },
                17 => ProbeKind::Udp { dst_port },
                other => return Err(fields.unknown("protocol", other)),
            },
            src: fields.address("source", &ping.src)?,
            home: ping.home.map(|home| fields.address("home", &home)).transpose()?,
            any_source: ping.any_source,
            dst: fields.address("destination", &ping.dst)?,
            count: fields.narrow("count", ping.count)?,
            interval: Duration::from_nanos(ping.interval_ns),
            size: fields.narrow("size", ping.size)?,
            timeout: Duration::from_nanos(ping.timeout_ns),
            nonce_base: ping.nonce_base,
        })
    }
}

impl From<path::Probe> for Probe {
    fn from(probe: path::Probe) -> Self {
        let path::Probe { seq, protocol, id, dst_port, ip_id, nonce, rtt_ns, answer, unsent } = probe;
        Self {
            seq: seq.into(),
            id: id.into(),
            ip_id: ip_id.into(),
            nonce,
            rtt_ns,
            protocol: protocol.into(),
            dst_port: dst_port.into(),
            answer: answer.map(Into::into),
            unsent: unsent.is_some(),
            why_unsent: (1..).zip(WHY_UNSENT).find(|(_, why)| Some(*why) == unsent).map_or(0, |(number, _)| number),
        }
    }
}

impl TryFrom<Probe> for path::Probe {
    type Error = Malformed;

    fn try_from(probe: Probe) -> Result<Self, Malformed> {
        let fields = Fields("probe");
        let Probe { seq, id, ip_id, nonce, rtt_ns, protocol, dst_port, answer, unsent, why_unsent } = probe;
        let why =
            (1..).zip(WHY_UNSENT).find(|(number, _)| *number == why_unsent).map_or(Unsent::Filtered, |(_, why)| why);
        Ok(Self {
            seq: fields.narrow("sequence", seq)?,
            id: fields.narrow("id", id)?,
            ip_id: fields.narrow("IP id", ip_id)?,
            nonce,
            rtt_ns,
            protocol: fields.narrow("protocol", protocol)?,
            dst_port: fields.narrow("destination port", dst_port)?,
            answer: answer.map(TryInto::try_into).transpose()?,
            unsent: unsent.then_some(why),
        })
    }
}

impl From<path::Answer> for Answer {
    fn from(answer: path::Answer) -> Self {
        let what = |what| Self { what, ..Self::default() };
        match answer {
            path::Answer::Reply => what(1),
            path::Answer::SynAck => what(2),
            path::Answer::Reset => what(3),
            path::Answer::IcmpError { from, kind, code, mtu } => {
                Self { what: 4, from: bytes(from), kind: kind.into(), code: code.into(), mtu }
            }
        }
    }
}

impl TryFrom<Answer> for path::Answer {
    type Error = Malformed;

    fn try_from(answer: Answer) -> Result<Self, Malformed> {
        let fields = Fields("probe.answer");
        let Answer { what, from, kind, code, mtu } = answer;
        Ok(match what {
            1 => Self::Reply,
            2 => Self::SynAck,
            3 => Self::Reset,
            4 => Self::IcmpError {
                from: fields.address("sender", &from)?,
                kind: fields.narrow("ICMP type", kind)?,
                code: fields.narrow("ICMP code", code)?,
                mtu,
            },
            other => return Err(fields.unknown("answer", other)),
        })
    }
}

impl From<(session::Counters, u64)> for Counters {
    fn from((counters, discarded): (session::Counters, u64)) -> Self {
        let session::Counters {
            recorded,
            lost_receive,
            lost_queue,
            lost_xmit,
            lost_drop,
            lost_consume,
            unread,
            skipped_frees,
            lost_rewrite,
            skipped_kprobes,
        } = counters;
        Self {
            recorded,
            lost_receive,
            lost_queue,
            lost_xmit,
            lost_drop,
            lost_consume,
            discarded,
            unread,
            skipped_frees,
            lost_rewrite,
            skipped_kprobes,
        }
    }
}

impl From<Counters> for (session::Counters, u64) {
    fn from(counters: Counters) -> Self {
        let Counters {
            recorded,
            lost_receive,
            lost_queue,
            lost_xmit,
            lost_drop,
            lost_consume,
            discarded,
            unread,
            skipped_frees,
            lost_rewrite,
            skipped_kprobes,
        } = counters;
        let counters = session::Counters {
            recorded,
            lost_receive,
            lost_queue,
            lost_xmit,
            lost_drop,
            lost_consume,
            unread,
            skipped_frees,
            lost_rewrite,
            skipped_kprobes,
        };
        (counters, discarded)
    }
}

impl From<session::Failure> for Failure {
    fn from(failure: session::Failure) -> Self {
        let session::Failure { thing, cause, way_out, send_from } = failure;
        Self { thing, cause, way_out, send_from: send_from.map(bytes) }
    }
}

impl From<Failure> for session::Failure {
    fn from(failure: Failure) -> Self {
        let Failure { thing, cause, way_out, send_from } = failure;
        // It says in words, too, what it is about.
        let send_from = send_from.and_then(|source| Fields("error").address("source", &source).ok());
        Self { thing, cause, way_out, send_from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_without_a_protocol_is_of_echoes_and_of_an_unknown_one_is_none() {
        let kind = |protocol, id, dst_port| {
            let (src, dst) = (vec![10, 0, 0, 1], vec![10, 0, 0, 2]);
            let ping = Ping { src, dst, protocol, id, dst_port, ..Ping::default() };
            session::Ping::try_from(ping).map(|ping| ping.kind)
        };
        // What a peer of version 1.0 sends.
        assert_eq!(kind(0, 5, 0), Ok(ProbeKind::Echo { id: 5 }));
        for icmp in [1, 58] {
            assert_eq!(kind(icmp, 5, 9), Ok(ProbeKind::Echo { id: 5 }));
        }
        assert_eq!(kind(6, 5, 80), Ok(ProbeKind::Tcp { dst_port: 80 }));
        assert_eq!(kind(17, 5, 53), Ok(ProbeKind::Udp { dst_port: 53 }));
        insta::assert_snapshot!(kind(33, 0, 0).unwrap_err(), @"message request.ping: unknown protocol 33");
        assert!(kind(6, 0, 65_536).is_err(), "no port");
    }
}
