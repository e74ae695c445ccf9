//! Reading a recording.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Closing, Entry, Error, Header, KnownNames,
    file::{BLOCK_HEADER, BlockHeader, MAX_BLOCK, SIGNATURE, VERSION, entries},
    window::LeftOut,
};
use crate::{
    event::Record,
    session::{Driven, Replay, replay},
};

/// What nodes say comes this late, at most, one after the other, ns: of a recording that was cut off the rest may be some nodes' only.
const LAG_NS: u64 = 100_000_000;

/// The records of a block, by node.
pub(super) type Records = Vec<(usize, Vec<Record>)>;

/// A recording that was read once, so that it is known what is in it. The records stay in the file.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    file: File,
    pub(super) blocks: Vec<Block>,
    /// By node: until when all nodes recorded, ns of its clock.
    pub(super) until: Vec<u64>,
    /// By windows so far.
    pub(super) left_out: LeftOut,
    /// Blocks of the window that was read last, by their number: the next one has most of them too.
    pub(super) at_hand: HashMap<usize, Records>,
    /// What it says of itself.
    pub contents: Contents,
}

/// What a recording says, but for its records.
#[derive(Clone, Debug)]
pub struct Contents {
    /// How it began.
    pub header: Header,
    /// What the sessions said, without their records.
    pub driven: Driven,
    /// Who is who.
    pub names: KnownNames,
    /// It ended in order.
    pub closed: bool,
    /// How long all nodes recorded: until they were told to stop, or the last entry came.
    pub lasted: Duration,
    /// Records of all nodes.
    pub records: u64,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Of them, at its end, bytes that are no whole block.
    pub torn: u64,
}

impl Contents {
    /// Events that could not be recorded or did not arrive, all nodes together.
    pub fn lost_events(&self) -> u64 {
        self.driven.evidence.nodes.iter().map(|node| node.lost).sum()
    }
}

/// Where a block lies, and what records it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    at: u64,
    length: usize,
    inflated: usize,
    /// Records.
    pub(super) count: usize,
    /// By node: the first and last time, ns of its clock.
    pub(super) times: Vec<Option<(u64, u64)>>,
}

impl Recording {
    /// Reads a file through.
    ///
    /// # Errors
    /// It cannot be read, is none, or nothing in it is whole. What merely ends too early is read as far as it goes:
    /// [`Contents::torn`] and [`Contents::closed`] say so.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |what| move |source| Error::File { path: path.to_owned(), what, source };
        let mut file = File::open(path).map_err(failed("open"))?;
        let bytes = file.metadata().map_err(failed("read"))?.len();
        let mut signature = [0; SIGNATURE.len()];
        match file.read_exact(&mut signature) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(failed("read")(error)),
            _ => {}
        }
        let [start @ .., version] = signature;
        let [own @ .., _] = SIGNATURE;
        if start != own {
            return Err(Error::NotOne { path: path.to_owned() });
        }
        if version != VERSION {
            return Err(Error::Newer { path: path.to_owned(), version, known: VERSION });
        }
        let mut recording = Scan::new(path);
        let mut at = SIGNATURE.len() as u64;
        while let Some((header, compressed)) = next_block(&mut file).map_err(failed("read"))? {
            let Some(entries) = header.open(&compressed) else { break };
            recording.block(at, header, entries)?;
            at += (BLOCK_HEADER + header.length) as u64;
        }
        recording.finish(file, bytes, bytes.saturating_sub(at))
    }

    /// Reads the records of a block.
    pub(super) fn records(&mut self, block: usize) -> Result<Records, Error> {
        let Block { at, length, .. } = self.blocks[block];
        let failed = |source| Error::File { path: self.path.clone(), what: "read", source };
        self.file.seek(SeekFrom::Start(at)).map_err(failed)?;
        let opened = next_block(&mut self.file).map_err(failed)?;
        let opened = opened.filter(|(header, _)| header.length == length);
        let changed = || Error::Malformed {
            path: self.path.clone(),
            what: "a block",
            at,
            reason: "it changed while it was read".to_owned(),
        };
        let block = opened.and_then(|(header, compressed)| header.open(&compressed)).ok_or_else(changed)?;
        let mut records = Vec::new();
        for entry in entries(block) {
            if let Ok(Entry::Heard { node, frame, .. }) = entry {
                let source = |error| Error::Frame { path: self.path.clone(), source: Box::new(error) };
                records.push((node, replay::records(frame).map_err(source)?));
            }
        }
        Ok(records)
    }
}

/// The next block, if it is there in its full length.
fn next_block(file: &mut File) -> io::Result<Option<(BlockHeader, Vec<u8>)>> {
    let mut header = [0; BLOCK_HEADER];
    let mut compressed = Vec::new();
    let whole = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    };
    if !whole(file.read_exact(&mut header))? {
        return Ok(None);
    }
    let Some(header) = BlockHeader::parse(header) else { return Ok(None) };
    compressed.resize(header.length.min(MAX_BLOCK), 0);
    Ok(whole(file.read_exact(&mut compressed))?.then_some((header, compressed)))
}

/// The first reading.
struct Scan {
    path: PathBuf,
    blocks: Vec<Block>,
    header: Option<Header>,
    replay: Replay,
    names: KnownNames,
    closing: Option<Closing>,
    /// Since the recording began: when the last entry came, when all nodes recorded, and when they were told to stop.
    last: Duration,
    began: Duration,
    ended: Option<Duration>,
    records: u64,
    /// By node: the time of the last record so far, ns of its clock.
    seen: Vec<u64>,
    /// The same, when all were told to stop.
    stopping: Option<Vec<u64>>,
}

impl Scan {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            blocks: Vec::new(),
            header: None,
            replay: Replay::new([]),
            names: KnownNames::default(),
            closing: None,
            last: Duration::ZERO,
            began: Duration::ZERO,
            ended: None,
            records: 0,
            seen: Vec::new(),
            stopping: None,
        }
    }

    fn block(&mut self, at: u64, header: BlockHeader, block: Bytes) -> Result<(), Error> {
        let BlockHeader { length, inflated, .. } = header;
        let nodes = self.header.as_ref().map_or(0, |header| header.nodes.len());
        let mut found = Block { at, length, inflated, count: 0, times: vec![None; nodes] };
        let malformed = |reason| Error::Malformed { path: self.path.clone(), what: "an entry", at, reason };
        for entry in entries(block) {
            match entry.map_err(malformed)? {
                Entry::Header(header) => {
                    let nodes = header.nodes.iter().map(|node| (node.name.clone(), node.flows.clone()));
                    self.replay = Replay::new(nodes);
                    found.times = vec![None; header.nodes.len()];
                    self.seen = vec![0; header.nodes.len()];
                    self.header = Some(*header);
                }
                Entry::Heard { node, after, frame } => {
                    let source = |error| Error::Frame { path: self.path.clone(), source: Box::new(error) };
                    let records = self.replay.hear(node, frame).map_err(source)?;
                    self.last = self.last.max(after);
                    found.count += records.len();
                    if let Some(times) = found.times.get_mut(node) {
                        for time in records.iter().map(Record::time_ns) {
                            let (first, last) = times.get_or_insert((time, time));
                            (*first, *last) = ((*first).min(time), (*last).max(time));
                            self.seen[node] = self.seen[node].max(time);
                        }
                    }
                }
                Entry::AllRecord { after } => {
                    self.replay.all_record();
                    self.last = self.last.max(after);
                    self.began = self.last;
                }
                Entry::Stopping { after } => {
                    self.last = self.last.max(after);
                    self.stopping = Some(self.seen.clone());
                    self.ended = Some(self.last);
                }
                Entry::Names(names) => self.names.extend(names),
                Entry::Closing(closing) => self.closing = Some(closing),
                Entry::Unknown => {}
            }
        }
        self.records += found.count as u64;
        self.blocks.push(found);
        Ok(())
    }

    fn finish(self, file: File, bytes: u64, torn: u64) -> Result<Recording, Error> {
        let Self { path, blocks, header, replay, names, closing, last, began, ended, records, seen, stopping } = self;
        let lasted = ended.unwrap_or(last).saturating_sub(began);
        let Some(header) = header else { return Err(Error::Empty { path }) };
        let mut driven = replay.finish();
        let closed = closing.is_some();
        let until = stopping.unwrap_or_else(|| match closed {
            true => vec![u64::MAX; seen.len()],
            false => seen.iter().map(|last| last.saturating_sub(LAG_NS)).collect(),
        });
        match closing {
            Some(Closing { warnings, interrupted }) => (driven.warnings, driven.interrupted) = (warnings, interrupted),
            None => driven.warnings.insert(0, cut_off(lasted, torn)),
        }
        driven.evidence.interrupted = driven.interrupted;
        let contents = Contents { header, driven, names, closed, lasted, records, bytes, torn };
        Ok(Recording { path, file, blocks, until, left_out: LeftOut::default(), at_hand: HashMap::new(), contents })
    }
}

fn cut_off(lasted: Duration, torn: u64) -> String {
    let rest = if torn > 0 { format!(" (its last {torn} bytes are no whole block)") } else { String::new() };
    format!(
        "the recording was cut off after {:.1} s{rest}: podpath or its machine was stopped, or the disk was full; what is in it is good",
        lasted.as_secs_f64()
    )
}
