//! Both directions of a connection: frames in, queued messages out, keepalives and the limits on silence.

use std::{collections::VecDeque, io, sync::Mutex, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::{
    Error,
    wire::{self, MAX_FRAME, Malformed, Message},
};
use crate::event::Record;

/// A side that has sent nothing for this long sends a keepalive.
pub const KEEPALIVE: Duration = Duration::from_secs(2);

/// A side that has heard nothing, or could write nothing, for this long gives up.
pub const SILENCE: Duration = Duration::from_secs(10);

/// Records that wait for a slow peer, at most: some 20 MiB.
pub(super) const RECORDS_WAITING: usize = 64 * 1024;

pub(super) fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_type::<u32>().max_frame_length(MAX_FRAME).new_codec()
}

/// What the peer says.
pub(super) struct Incoming<R> {
    frames: FramedRead<R, LengthDelimitedCodec>,
    heard: Instant,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { frames: FramedRead::new(reader, codec()), heard: Instant::now() }
    }

    /// The next message that is neither a keepalive nor unknown; None at the end of input. Cancel-safe.
    ///
    /// # Errors
    /// Read errors, malformed frames, [`Error::Silent`].
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Error> {
        Ok(self.next_framed().await?.map(|(message, _)| message))
    }

    /// The same, with the content of its frame.
    ///
    /// # Errors
    /// As above.
    pub(super) async fn next_framed(&mut self) -> Result<Option<(Message, Bytes)>, Error> {
        loop {
            let frame = timeout_at(self.heard + SILENCE, self.frames.next())
                .await
                .map_err(|_| Error::Silent { after: SILENCE })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(broken_frame)?.freeze();
            let message = wire::decode(frame.clone())?;
            self.heard = Instant::now();
            if !matches!(message, Message::Keepalive | Message::Unknown) {
                return Ok(Some((message, frame)));
            }
        }
    }
}

/// The codec reports a frame over the limit, and an end of input inside a frame, as I/O errors.
fn broken_frame(source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::InvalidData {
        return Malformed::Framing { reason: format!("a frame is longer than {MAX_FRAME} bytes") }.into();
    }
    // FramedRead's word for an end of input within a frame, which is how a peer that is killed while it writes ends; a real
    // error of the system carries its number.
    if source.kind() == io::ErrorKind::Other && source.raw_os_error().is_none() {
        return Error::EndOfInput;
    }
    Error::Read { source }
}

/// Decodes a stream of frames to its end, as a fuzz target; returns how many messages were good.
///
/// # Errors
/// The first frame or message that is malformed.
#[doc(hidden)]
pub fn decode_stream(input: &[u8]) -> Result<usize, Error> {
    use tokio_util::codec::Decoder;

    let (mut codec, mut input, mut good) = (codec(), bytes::BytesMut::from(input), 0);
    let mut collected = wire::Collected::default();
    while let Some(frame) = codec.decode_eof(&mut input).map_err(broken_frame)? {
        if let Message::Facts(facts) = wire::decode(frame.freeze())? {
            facts.into_iter().try_for_each(|fact| collected.add(fact))?;
        }
        good += 1;
    }
    Ok(good)
}

/// A request and the order to send its probes, as bytes of the stream: what a test feeds an agent by hand.
///
/// # Errors
/// The request does not fit into a frame.
#[doc(hidden)]
pub fn request_stream(request: &super::Request) -> Result<Vec<u8>, Error> {
    use tokio_util::codec::Encoder;

    let (mut codec, mut stream) = (codec(), bytes::BytesMut::new());
    for message in [Message::Request(super::PROTOCOL, request.clone()), Message::Fire] {
        codec.encode(wire::encode(message)?, &mut stream).map_err(|source| Error::Write { source })?;
    }
    Ok(stream.to_vec())
}

/// Messages that wait to be written.
///
/// `urgent` goes first, then records, then `last`: so a slow peer still hears that the session lives, and what
/// concludes a session (facts, counters, drained, end) follows all its records.
pub(super) struct Outbox {
    queues: Mutex<Queues>,
    changed: Notify,
    capacity: usize,
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Message>,
    records: VecDeque<Record>,
    last: VecDeque<Message>,
    closed: bool,
    discarded: u64,
}

impl Outbox {
    /// With room for `capacity` records.
    pub(super) fn new(capacity: usize) -> Self {
        Self { queues: Mutex::default(), changed: Notify::new(), capacity }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Queues) -> T) -> T {
        // A panic while the lock is held leaves plain queues: nothing half-done to protect others from.
        let result = change(&mut self.queues.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        self.changed.notify_one();
        result
    }

    /// Queues a message before all records.
    pub(super) fn send(&self, message: Message) {
        self.with(|queues| queues.urgent.push_back(message));
    }

    /// Queues records, and leaves none; what exceeds the capacity is discarded and counted.
    pub(super) fn record(&self, records: &mut Vec<Record>) {
        self.with(|queues| {
            let room = self.capacity.saturating_sub(queues.records.len());
            queues.discarded += records.len().saturating_sub(room) as u64;
            queues.records.extend(records.drain(..).take(room));
        });
    }

    /// How many records were discarded so far.
    pub(super) fn discarded(&self) -> u64 {
        self.with(|queues| queues.discarded)
    }

    /// Queues the messages that conclude; nothing comes after them.
    pub(super) fn conclude(&self, messages: impl IntoIterator<Item = Message>) {
        self.with(|queues| {
            queues.last.extend(messages);
            queues.closed = true;
        });
    }

    /// Forgets the records that wait, and ends with this message.
    pub(super) fn abandon(&self, last_words: Message) {
        self.with(|queues| {
            queues.records.clear();
            queues.last = VecDeque::from([last_words]);
            queues.closed = true;
        });
    }

    /// Whether everything that there will ever be has been taken by the writer.
    pub(super) fn is_spent(&self) -> bool {
        self.with(|Queues { urgent, records, last, closed, discarded: _ }| {
            *closed && urgent.is_empty() && records.is_empty() && last.is_empty()
        })
    }

    /// The next frame; None when closed and empty.
    async fn next(&self, frames: &mut wire::Frames) -> Result<Option<Bytes>, Error> {
        loop {
            let changed = self.changed.notified();
            let frame = {
                let mut queues = self.queues.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(message) = queues.urgent.pop_front() {
                    Some(wire::encode(message)?)
                } else if !queues.records.is_empty() {
                    Some(frames.next(&mut queues.records)?)
                } else if let Some(message) = queues.last.pop_front() {
                    Some(wire::encode(message)?)
                } else if queues.closed {
                    return Ok(None);
                } else {
                    None
                }
            };
            match frame {
                Some(frame) => return Ok(Some(frame)),
                None => changed.await,
            }
        }
    }

    /// Writes until closed and empty, with keepalives in between, then closes the writer.
    ///
    /// # Errors
    /// Write errors, [`Error::Oversized`], [`Error::Stalled`].
    pub(super) async fn write_to<W: AsyncWrite + Unpin>(&self, writer: W) -> Result<(), Error> {
        let mut frames = FramedWrite::new(writer, codec());
        let mut records = wire::Frames::default();
        loop {
            let frame = match timeout(KEEPALIVE, self.next(&mut records)).await {
                Ok(next) => next?,
                Err(_) => Some(wire::encode(Message::Keepalive)?),
            };
            let Some(frame) = frame else { break };
            written(frames.send(frame)).await?;
        }
        written(SinkExt::<Bytes>::close(&mut frames)).await
    }
}

async fn written(write: impl Future<Output = io::Result<()>>) -> Result<(), Error> {
    timeout(SILENCE, write)
        .await
        .map_err(|_| Error::Stalled { after: SILENCE })?
        .map_err(|source| Error::Write { source })
}

#[cfg(test)]
mod tests;
