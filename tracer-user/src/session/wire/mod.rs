//! The messages as protobuf. `docs/PROTOCOL.md` says who sends what when.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;

mod examine;
mod facts;
mod field;
mod protobuf;
mod record;
mod request;
mod rules;
#[cfg(test)]
mod tests;

pub(super) use self::facts::{Collected, Fact, facts};
pub use self::field::Malformed;
use self::protobuf::Reader;
use super::{Counters, Error, Failure, Hello, Request, Version};
use crate::{doctor::Check, event, path::Probe};

/// Longest frame, bytes, without its length header.
pub(super) const MAX_FRAME: usize = 64 * 1024;

/// A batch is closed before it exceeds this: room for the envelope stays below [`MAX_FRAME`].
const BATCH: usize = 56 * 1024;

/// Everything that one side can say to the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    Hello(Hello),
    /// What to do, and the protocol and program of the one who asks.
    Request(Version, Request),
    /// Everything is attached; how long that took, ns.
    Armed(u64),
    Fire,
    Probe(Probe),
    /// The injector is done.
    Fired,
    /// Records, and how many more this program could not understand.
    Records(Vec<event::Record>, u64),
    Facts(Vec<Fact>),
    /// The kernel side's counters, and how many records the session discarded because the peer was too slow.
    Counters(Counters, u64),
    Stop,
    /// Everything was sent; until when everything was recorded, by the node's `CLOCK_MONOTONIC`, ns (0: not told).
    Drained(u64),
    End,
    Error(Failure),
    Keepalive,
    /// In place of a request: say what this node can do. The protocol of the one who asks.
    Examine(Version),
    /// What the node can do.
    Checks(Vec<Check>),
    /// A message of a newer peer.
    Unknown,
}

impl Message {
    /// Its name in `docs/PROTOCOL.md`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Request(..) => "request",
            Self::Armed(_) => "armed",
            Self::Fire => "fire",
            Self::Probe(_) => "probe",
            Self::Fired => "fired",
            Self::Records(..) => "records",
            Self::Facts(_) => "facts",
            Self::Counters(..) => "counters",
            Self::Stop => "stop",
            Self::Drained(_) => "drained",
            Self::End => "end",
            Self::Error(_) => "error",
            Self::Keepalive => "keepalive",
            Self::Examine(_) => "examine",
            Self::Checks(_) => "checks",
            Self::Unknown => "unknown",
        }
    }
}

/// But for records, which [`Frames`] writes and [`records`] reads.
#[derive(Clone, PartialEq, prost::Message)]
struct Frame {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Hello(request::Hello),
    #[prost(message, tag = "2")]
    Request(Box<request::Request>),
    #[prost(uint64, tag = "3")]
    Armed(u64),
    #[prost(message, tag = "4")]
    Fire(Empty),
    #[prost(message, tag = "5")]
    Probe(request::Probe),
    #[prost(message, tag = "6")]
    Fired(Empty),
    #[prost(message, tag = "8")]
    Facts(Facts),
    #[prost(message, tag = "9")]
    Counters(request::Counters),
    #[prost(message, tag = "10")]
    Stop(Empty),
    #[prost(message, tag = "11")]
    Drained(Drained),
    #[prost(message, tag = "12")]
    End(Empty),
    #[prost(message, tag = "13")]
    Error(request::Failure),
    #[prost(message, tag = "14")]
    Keepalive(Empty),
    #[prost(message, tag = "15")]
    Examine(examine::Examine),
    #[prost(message, tag = "16")]
    Checks(examine::Checks),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Drained {
    #[prost(uint64, tag = "1")]
    until_ns: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Facts {
    #[prost(message, repeated, tag = "1")]
    facts: Vec<Fact>,
}

/// A message as the content of one frame.
///
/// # Errors
/// [`Error::Oversized`] if it does not fit.
pub(super) fn encode(message: Message) -> Result<Bytes, Error> {
    let name = message.name();
    let body = match message {
        Message::Hello(hello) => Some(Body::Hello(hello.into())),
        Message::Request(version, request) => Some(Body::Request(Box::new((version, &request).into()))),
        Message::Armed(took_ns) => Some(Body::Armed(took_ns)),
        Message::Fire => Some(Body::Fire(Empty {})),
        Message::Probe(probe) => Some(Body::Probe(probe.into())),
        Message::Fired => Some(Body::Fired(Empty {})),
        Message::Records(records, _) => {
            let mut queue = records.into();
            let frame = Frames::default().next(&mut queue)?;
            let rest: usize = queue.iter().map(|record| Frames::default().listed(record)).sum();
            let length = frame.len() + rest;
            return if rest == 0 {
                Ok(frame)
            } else {
                Err(Error::Oversized { message: name, length, limit: MAX_FRAME })
            };
        }
        Message::Facts(facts) => Some(Body::Facts(Facts { facts })),
        Message::Counters(counters, discarded) => Some(Body::Counters((counters, discarded).into())),
        Message::Stop => Some(Body::Stop(Empty {})),
        Message::Drained(until_ns) => Some(Body::Drained(Drained { until_ns })),
        Message::End => Some(Body::End(Empty {})),
        Message::Error(failure) => Some(Body::Error(failure.into())),
        Message::Keepalive => Some(Body::Keepalive(Empty {})),
        Message::Examine(version) => Some(Body::Examine(version.into())),
        Message::Checks(checks) => Some(Body::Checks(checks.into())),
        Message::Unknown => None,
    };
    sealed(name, Frame { body })
}

fn sealed(message: &'static str, frame: Frame) -> Result<Bytes, Error> {
    let length = frame.encoded_len();
    if length > MAX_FRAME {
        return Err(Error::Oversized { message, length, limit: MAX_FRAME });
    }
    Ok(frame.encode_to_vec().into())
}

/// One message from the content of one frame.
///
/// # Errors
/// [`Malformed`] names message and field. Records with unknown enumeration values are counted instead: they come from a
/// newer peer, whose other records are good.
pub(super) fn decode(frame: Bytes) -> Result<Message, Malformed> {
    if frame.first() == Some(&RECORDS) {
        return records(&frame);
    }
    Ok(match Frame::decode(frame)?.body {
        Some(Body::Hello(hello)) => Message::Hello(hello.into()),
        Some(Body::Request(request)) => {
            let (version, request) = (*request).try_into()?;
            Message::Request(version, request)
        }
        Some(Body::Armed(took_ns)) => Message::Armed(took_ns),
        Some(Body::Fire(Empty {})) => Message::Fire,
        Some(Body::Probe(probe)) => Message::Probe(probe.try_into()?),
        Some(Body::Fired(Empty {})) => Message::Fired,
        Some(Body::Facts(Facts { facts })) => Message::Facts(facts),
        Some(Body::Counters(counters)) => {
            let (counters, discarded) = counters.into();
            Message::Counters(counters, discarded)
        }
        Some(Body::Stop(Empty {})) => Message::Stop,
        Some(Body::Drained(Drained { until_ns })) => Message::Drained(until_ns),
        Some(Body::End(Empty {})) => Message::End,
        Some(Body::Error(failure)) => Message::Error(failure.into()),
        Some(Body::Keepalive(Empty {})) => Message::Keepalive,
        Some(Body::Examine(version)) => Message::Examine(version.into()),
        Some(Body::Checks(checks)) => Message::Checks(checks.into()),
        None => Message::Unknown,
    })
}

/// The key of the field that has a message's records, and that of each of them in it: tags 7 and 1, with their length.
const RECORDS: u8 = 7 << 3 | 2;
const LISTED: u8 = 1 << 3 | 2;

/// What a record takes at least, bytes, as a rule: so that room for all of a frame is made at once.
const SMALL: usize = 64;

/// The records of a frame that begins with them.
fn records(frame: &[u8]) -> Result<Message, Malformed> {
    let (mut known, mut unknown) = (Vec::with_capacity(frame.len() / SMALL), 0);
    let mut fields = Reader(frame);
    while let Some((tag, value)) = fields.field()? {
        if tag != u32::from(RECORDS >> 3) {
            continue;
        }
        let mut list = Reader(value.bytes()?);
        while let Some((tag, value)) = list.field()? {
            if tag != u32::from(LISTED >> 3) {
                continue;
            }
            match record::get(value.bytes()?) {
                Ok(record) => known.push(record),
                Err(Malformed::Unknown { .. }) => unknown += 1,
                Err(malformed) => return Err(malformed),
            }
        }
    }
    Ok(Message::Records(known, unknown))
}

/// Records -> the content of frames. What it allocates it uses again, once the frame before is gone.
#[derive(Debug, Default)]
pub struct Frames {
    frame: BytesMut,
    record: Vec<u8>,
}

impl Frames {
    /// Room for the key and the length of all records, which is known last.
    const HEAD: usize = 4;

    /// Takes as many records from the front as fit in one frame.
    ///
    /// # Errors
    /// [`Error::Oversized`] if a single one does not fit.
    pub fn next(&mut self, queue: &mut VecDeque<event::Record>) -> Result<Bytes, Error> {
        self.frame.clear();
        self.frame.reserve(Self::HEAD + BATCH);
        self.frame.put_bytes(0, Self::HEAD);
        while let Some(next) = queue.front() {
            let listed = self.listed(next);
            let before = self.frame.len() - Self::HEAD;
            if before > 0 && before + listed > BATCH {
                break;
            }
            self.frame.put_u8(LISTED);
            prost::encode_length_delimiter(self.record.len(), &mut self.frame).expect("a buffer grows");
            self.frame.put_slice(&self.record);
            queue.pop_front();
        }
        let length = self.frame.len() - Self::HEAD;
        if Self::HEAD + length > MAX_FRAME {
            return Err(Error::Oversized { message: "records", length, limit: MAX_FRAME });
        }
        let unused = Self::HEAD - 1 - prost::length_delimiter_len(length);
        let mut head = &mut self.frame[unused..Self::HEAD];
        head.put_u8(RECORDS);
        prost::encode_length_delimiter(length, &mut head).expect("it was counted");
        let mut frame = self.frame.split();
        frame.advance(unused);
        Ok(frame.freeze())
    }

    /// How many bytes a record takes in a frame; [`Self::record`] has its content then.
    fn listed(&mut self, record: &event::Record) -> usize {
        self.record.clear();
        record::put(record, &mut self.record);
        1 + prost::length_delimiter_len(self.record.len()) + self.record.len()
    }
}

/// Facts in messages that fit, in order.
pub(super) fn batches(facts: Vec<Fact>) -> Vec<Message> {
    let (mut messages, mut batch, mut length) = (Vec::new(), Vec::new(), 0);
    for fact in facts {
        let next = listed_len(&fact);
        if length + next > BATCH && !batch.is_empty() {
            messages.push(Message::Facts(std::mem::take(&mut batch)));
            length = 0;
        }
        length += next;
        batch.push(fact);
    }
    if !batch.is_empty() {
        messages.push(Message::Facts(batch));
    }
    messages
}

/// Bytes of one element of a repeated field: tag (fields below 16 take one byte), length, content.
fn listed_len(message: &impl prost::Message) -> usize {
    let length = message.encoded_len();
    1 + prost::length_delimiter_len(length) + length
}
