//! The file: a signature, then blocks of entries. Pure but for the stream that is written to.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status, read::DeflateDecoder};
use prost::Message as _;
use serde::{Serialize, de::DeserializeOwned};

use super::{Closing, Header, KnownNames};

/// No text file begins so, and a transfer that mends line ends, or loses the eighth bit, breaks it. The last byte is the version.
pub(super) const SIGNATURE: [u8; 8] = [0x89, b'P', b'P', b'R', b'\r', b'\n', 0x1a, VERSION];

/// Version of the format. It grows when an old reader would misread what is new; what it can pass over is just added.
pub(super) const VERSION: u8 = 1;

/// Bytes of a block before what is compressed: its length, the length of what comes out, and the CRC-32 of what is compressed.
pub(super) const BLOCK_HEADER: usize = 12;

/// A block is closed when so many bytes are in it,
const BLOCK: usize = 256 * 1024;
/// or after this time: no more is lost with a crash.
const BLOCK_TIME: Duration = Duration::from_secs(1);
/// So much room beside that of its entries a block is compressed into.
const SPARE: usize = 4096;
/// No block is larger, compressed or not.
pub(super) const MAX_BLOCK: usize = 1024 * 1024;

/// One thing that a recording says.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// The first one.
    Header(Box<Header>),
    /// A session said something.
    Heard {
        /// Index among the header's nodes.
        node: usize,
        /// When it came, since the recording began.
        after: Duration,
        /// Content of one frame of the session protocol.
        frame: Bytes,
    },
    /// Whatever follows was seen by all nodes.
    AllRecord {
        /// Since the recording began; 0 in older recordings, which do not say it.
        after: Duration,
    },
    /// All nodes are told to stop: what follows may not have been seen by all.
    Stopping {
        /// As above.
        after: Duration,
    },
    /// Who is who.
    Names(KnownNames),
    /// The last one.
    Closing(Closing),
    /// Of a later version.
    Unknown,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6")]
    body: Option<Body>,
    /// Of [`Entry::AllRecord`] and [`Entry::Stopping`], whose own field has no room for it.
    #[prost(uint64, tag = "7")]
    after_ns: u64,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    /// JSON.
    #[prost(bytes = "bytes", tag = "1")]
    Header(Bytes),
    #[prost(message, tag = "2")]
    Heard(Heard),
    #[prost(bool, tag = "3")]
    AllRecord(bool),
    /// JSON.
    #[prost(bytes = "bytes", tag = "4")]
    Names(Bytes),
    /// JSON.
    #[prost(bytes = "bytes", tag = "5")]
    Closing(Bytes),
    #[prost(bool, tag = "6")]
    Stopping(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Heard {
    #[prost(uint32, tag = "1")]
    node: u32,
    #[prost(uint64, tag = "2")]
    after_ns: u64,
    #[prost(bytes = "bytes", tag = "3")]
    frame: Bytes,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("string keys and integers only").into()
}

fn parsed<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

impl From<Entry> for Wire {
    fn from(entry: Entry) -> Self {
        let after_ns = match entry {
            Entry::AllRecord { after } | Entry::Stopping { after } => nanos(after),
            _ => 0,
        };
        let body = match entry {
            Entry::Header(header) => Some(Body::Header(json(&header))),
            Entry::Heard { node, after, frame } => Some(Body::Heard(Heard {
                node: u32::try_from(node).unwrap_or(u32::MAX),
                after_ns: nanos(after),
                frame,
            })),
            Entry::AllRecord { .. } => Some(Body::AllRecord(true)),
            Entry::Stopping { .. } => Some(Body::Stopping(true)),
            Entry::Names(names) => Some(Body::Names(json(&names))),
            Entry::Closing(closing) => Some(Body::Closing(json(&closing))),
            Entry::Unknown => None,
        };
        Self { body, after_ns }
    }
}

impl TryFrom<Wire> for Entry {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        let after = Duration::from_nanos(wire.after_ns);
        Ok(match wire.body {
            Some(Body::Header(bytes)) => Self::Header(parsed(&bytes)?),
            Some(Body::Heard(Heard { node, after_ns, frame })) => {
                Self::Heard { node: node as usize, after: Duration::from_nanos(after_ns), frame }
            }
            Some(Body::AllRecord(_)) => Self::AllRecord { after },
            Some(Body::Stopping(_)) => Self::Stopping { after },
            Some(Body::Names(bytes)) => Self::Names(parsed(&bytes)?),
            Some(Body::Closing(bytes)) => Self::Closing(parsed(&bytes)?),
            None => Self::Unknown,
        })
    }
}

/// Writes a recording. What it allocates it uses again from block to block.
#[derive(Debug)]
pub struct Writer<W: Write> {
    to: W,
    block: Vec<u8>,
    /// A block as it is written.
    closed: Vec<u8>,
    deflate: Compress,
    /// When the first entry of the block came.
    since: Option<Instant>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with the header, and writes it at once: who has no right to write learns it before anything is traced.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(mut to: W, header: Header) -> io::Result<Self> {
        to.write_all(&SIGNATURE)?;
        // The fastest level: recording must keep up, and what repeats here repeats within a few bytes.
        let deflate = Compress::new(Compression::fast(), false);
        let (block, closed, written) = (Vec::with_capacity(BLOCK), Vec::new(), SIGNATURE.len() as u64);
        let mut writer = Self { to, block, closed, deflate, since: None, written };
        writer.add(Entry::Header(Box::new(header)))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Adds an entry. What is a second old is with the operating system then.
    ///
    /// # Errors
    /// A block cannot be written, or the entry is longer than any block. What was written before stays good.
    pub fn add(&mut self, entry: Entry) -> io::Result<()> {
        let wire = Wire::from(entry);
        let length = wire.encoded_len();
        if length > MAX_BLOCK / 2 {
            return Err(io::Error::other(format!("an entry of {length} bytes does not go into a block")));
        }
        if self.block.len() + length > MAX_BLOCK / 2 {
            self.flush()?;
        }
        wire.encode_length_delimited(&mut self.block).expect("a vector grows");
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.block.len() >= BLOCK || since.elapsed() >= BLOCK_TIME {
            self.flush()?;
        }
        Ok(())
    }

    /// Closes the block.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.since = None;
        if self.block.is_empty() {
            return Ok(());
        }
        self.close()?;
        self.block.clear();
        // In one go: less of it is torn.
        self.to.write_all(&self.closed)?;
        self.to.flush()?;
        self.written += self.closed.len() as u64;
        Ok(())
    }

    /// Compresses the block, and puts its header before it.
    fn close(&mut self) -> io::Result<()> {
        let Self { block, closed, deflate, .. } = self;
        closed.clear();
        closed.resize(BLOCK_HEADER, 0);
        deflate.reset();
        let mut rest = &block[..];
        loop {
            // What does not get smaller grows by a few bytes.
            closed.reserve(rest.len() + SPARE);
            let before = deflate.total_in();
            let status = deflate.compress_vec(rest, closed, FlushCompress::Finish).map_err(io::Error::other)?;
            rest = &rest[usize::try_from(deflate.total_in() - before).unwrap_or(rest.len())..];
            if status == Status::StreamEnd {
                break;
            }
        }
        let fields = [closed.len() - BLOCK_HEADER, block.len()].map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        let crc = crc32fast::hash(&closed[BLOCK_HEADER..]);
        for (place, field) in closed.chunks_exact_mut(4).zip([fields[0], fields[1], crc]) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        Ok(())
    }

    /// Bytes so far, without the block that is open.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Ends it, with what there is to say at its end.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self, names: KnownNames, closing: Closing) -> io::Result<W> {
        for part in names.parts() {
            self.add(Entry::Names(part))?;
        }
        self.add(Entry::Closing(closing))?;
        self.flush()?;
        Ok(self.to)
    }
}

/// What the header of a block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHeader {
    /// Bytes that follow.
    pub(super) length: usize,
    /// Bytes of its entries.
    pub(super) inflated: usize,
    crc: u32,
}

impl BlockHeader {
    /// None: there is no such block.
    pub(super) fn parse(bytes: [u8; BLOCK_HEADER]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let number = |bytes| u32::from_be_bytes(bytes);
        let (length, inflated) = (number([a, b, c, d]) as usize, number([e, f, g, h]) as usize);
        let sound = (1..=MAX_BLOCK).contains(&length) && (1..=MAX_BLOCK).contains(&inflated);
        sound.then_some(Self { length, inflated, crc: number([i, j, k, l]) })
    }

    /// The block's entries; None: it is not whole.
    pub(super) fn open(self, compressed: &[u8]) -> Option<Bytes> {
        if crc32fast::hash(compressed) != self.crc {
            return None;
        }
        let mut entries = Vec::with_capacity(self.inflated);
        let mut decoder = DeflateDecoder::new(compressed).take(self.inflated as u64 + 1);
        decoder.read_to_end(&mut entries).ok()?;
        (entries.len() == self.inflated).then(|| entries.into())
    }
}

/// The entries of a block.
///
/// # Errors
/// What is wrong with one.
pub(super) fn entries(mut block: Bytes) -> impl Iterator<Item = Result<Entry, String>> {
    std::iter::from_fn(move || {
        if block.is_empty() {
            return None;
        }
        let entry = Wire::decode_length_delimited(&mut block).map_err(|error| error.to_string());
        if entry.is_err() {
            block.clear();
        }
        Some(entry.and_then(Entry::try_from))
    })
}
