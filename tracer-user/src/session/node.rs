//! One node's session, as the CLI sees it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    Connection, Counters, Error, Hello, PROTOCOL, Request,
    drive::{Death, Driven, DrivenNode, Progress},
    link::{Incoming, Outbox},
    wire::{Collected, Message},
};
use crate::{event::Record, path::NodeEvidence};

/// What comes from a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// With the content of its frame, and the room that it takes until it is taken in.
    Message(Message, Bytes, Room),
    /// The last one.
    Ended(Result<(), Death>),
}

/// So many messages of all sessions wait for the driver, at most: some 15 MB if all are records. Where it is slower than they are (a
/// disk that hangs), the sessions are not read, and what they then have to discard they count.
pub(super) const MESSAGES_WAITING: usize = 64;

/// Room for one message. None: the driver takes no more in, and nobody waits for it.
pub(super) type Room = Option<OwnedSemaphorePermit>;

/// Talks to one session until it ends, and then waits for what held it. Reads no further message until there is room for the last one.
pub(super) async fn talk(
    index: usize,
    connection: Connection,
    outbox: Arc<Outbox>,
    room: Arc<Semaphore>,
    events: mpsc::UnboundedSender<(usize, Event)>,
) {
    let Connection { name: _, reader, writer, host } = connection;
    let room = || async { Arc::clone(&room).acquire_owned().await.ok() };
    let ended = listen(Incoming::new(reader), &outbox, writer, room, |message, frame, room| {
        // The driver is gone: so is this task, soon.
        let _gone = events.send((index, Event::Message(message, frame, room)));
        Ok(())
    })
    .await;
    let remains = host.close().await;
    let _gone = events.send((index, Event::Ended(ended.map_err(|cause| Death { cause, remains }))));
}

/// Until the end that the session announces. Waits for `room` for each message; what is to be written is written meanwhile.
pub(super) async fn listen<T, R: Future<Output = T>>(
    mut incoming: Incoming<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    outbox: &Outbox,
    writer: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    room: impl Fn() -> R,
    mut heard: impl FnMut(Message, Bytes, T) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut write = std::pin::pin!(outbox.write_to(writer));
    let mut writing = true;
    let mut read = None;
    loop {
        let next = async {
            // Room is not held while nothing comes: others may need it.
            if read.is_none() {
                read = Some(incoming.next_framed().await?);
            }
            Ok::<_, Error>(room().await)
        };
        tokio::select! {
            room = next => match (room?, read.take().flatten()) {
                (_, Some((Message::End, _))) => return Ok(()),
                (_, Some((Message::Error(failure), _))) => return Err(Error::Peer(failure)),
                (room, Some((message, frame))) => heard(message, frame, room)?,
                (_, None) => return Err(Error::EndOfInput),
            },
            // A broken pipe alone says little: the other direction may still hold the reason, or at least its end.
            _broken = &mut write, if writing => writing = false,
        }
    }
}

/// What a session has said so far.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) request: Request,
    pub(super) outbox: Arc<Outbox>,
    pub(super) requested: bool,
    pub(super) hello: Option<Hello>,
    pub(super) armed: bool,
    pub(super) fired: bool,
    pub(super) ended: Option<Result<(), Death>>,
    /// It died before it was armed, and the trace went on without it.
    pub(super) left_out: bool,
    /// Its records are passed on only.
    passes_on: bool,
    records: Vec<Record>,
    /// How many records came.
    total: usize,
    /// The time of the last of them, by its clock, ns.
    latest_ns: Option<u64>,
    unknown: u64,
    collected: Collected,
    counters: Option<(Counters, u64)>,
    drained: bool,
    /// Until when everything was recorded, by its clock, ns.
    stopped_ns: Option<u64>,
    /// The last that was recorded before all nodes surely did, by its clock, ns.
    alone_ns: Option<u64>,
}

impl Node {
    pub(super) fn new(name: String, request: Request, passes_on: bool) -> Self {
        Self {
            name,
            request,
            // The CLI sends no records.
            outbox: Arc::new(Outbox::new(0)),
            requested: false,
            hello: None,
            armed: false,
            fired: false,
            ended: None,
            left_out: false,
            passes_on,
            records: Vec::new(),
            total: 0,
            latest_ns: None,
            unknown: 0,
            collected: Collected::default(),
            counters: None,
            drained: false,
            stopped_ns: None,
            alone_ns: None,
        }
    }

    /// What has come by now may be of before all nodes recorded.
    pub(super) fn all_record(&mut self) {
        self.alone_ns = self.latest_ns;
    }

    /// What it said so far, without its records, as if it were complete.
    pub(super) fn so_far(&self) -> NodeEvidence {
        NodeEvidence {
            name: self.name.clone(),
            records: Vec::new(),
            facts: self.collected.facts.clone(),
            lost: self.counters.map_or(0, |(counters, discarded)| counters.lost() + discarded),
            unread: 0,
            complete: true,
            watched: self.request.flows.clone(),
            stopped_ns: None,
            alone_ns: self.alone_ns,
        }
    }

    /// Whether probes can come from it.
    pub(super) fn fires(&self) -> bool {
        self.armed && self.request.ping.is_some()
    }

    /// What is missing until it is armed.
    pub(super) fn waits_for(&self) -> &'static str {
        if self.hello.is_none() { "no hello" } else { "not armed" }
    }

    /// How far it got that did not get armed.
    pub(super) fn died(&self) -> &'static str {
        if self.hello.is_none() { "session ended before hello" } else { "session ended before it was armed" }
    }

    /// Takes in one message; one that makes no sense ends the session. Answers its records, if they are passed on only.
    pub(super) fn hear(&mut self, message: Message, progress: &mut impl FnMut(Progress<'_>)) -> Vec<Record> {
        if self.ended.is_some() {
            return Vec::new();
        }
        self.understand(message, progress).unwrap_or_else(|cause| {
            self.outbox.abandon(Message::Error(cause.to_failure()));
            self.ended = Some(Err(Death { cause, remains: None }));
            Vec::new()
        })
    }

    fn understand(&mut self, message: Message, progress: &mut impl FnMut(Progress<'_>)) -> Result<Vec<Record>, Error> {
        let node = &*self.name;
        match message {
            Message::Hello(hello) if self.hello.is_none() => {
                let theirs = hello.protocol;
                if !PROTOCOL.talks_to(theirs) {
                    let (our_name, their_name) = ("podpath", "podpath-agent");
                    return Err(Error::Version { ours: PROTOCOL, theirs, our_name, their_name });
                }
                if let Some(lacks) = self.request.lacked_by(theirs) {
                    return Err(Error::TooOld { theirs, lacks });
                }
                progress(Progress::Hello { node, hello: self.hello.insert(hello) });
            }
            Message::Armed(took) if self.requested && !self.armed => {
                self.armed = true;
                progress(Progress::Armed { node, took: Duration::from_nanos(took) });
            }
            Message::Fired if self.fires() => self.fired = true,
            Message::Records(records, unknown) if self.armed => {
                self.latest_ns = self.latest_ns.max(records.iter().map(Record::time_ns).max());
                self.total += records.len();
                self.unknown += unknown;
                progress(Progress::Records { node, total: self.total, new: &records });
                if self.passes_on {
                    return Ok(records);
                }
                self.records.extend(records);
            }
            Message::Facts(facts) if self.armed => {
                for fact in facts {
                    self.collected.add(fact)?;
                }
            }
            Message::Counters(counters, discarded) if self.armed => {
                self.counters = Some((counters, discarded));
                progress(Progress::Lost { node, total: counters.lost() + discarded });
            }
            Message::Drained(until_ns) if self.armed => {
                (self.drained, self.stopped_ns) = (true, Some(until_ns).filter(|ns| *ns != 0));
            }
            other => return Err(Error::Unexpected { message: other.name(), when: self.state() }),
        }
        Ok(Vec::new())
    }

    fn state(&self) -> &'static str {
        match (&self.hello, self.armed) {
            (None, _) => "before hello",
            (_, false) => "before armed",
            _ => "after armed",
        }
    }

    /// Ends a session that did not end in time.
    pub(super) fn give_up(&mut self, after: Duration) {
        if self.ended.is_none() {
            let cause = Error::Undrained { after };
            self.outbox.abandon(Message::Error(cause.to_failure()));
            self.ended = Some(Err(Death { cause, remains: None }));
        }
    }

    /// Adds what it said to the whole.
    pub(super) fn conclude(self, driven: &mut Driven) {
        if self.left_out {
            let when = self.died();
            let why = self.ended.and_then(Result::err).map_or_else(String::new, |death| format!(": {death}"));
            driven.warnings.push(format!("not traced: node {}: {when}{why}", self.name));
            return;
        }
        let Self {
            name,
            request,
            hello,
            records,
            unknown,
            collected,
            counters,
            drained,
            stopped_ns,
            alone_ns,
            ended,
            requested,
            ..
        } = self;
        let (counters, discarded) = counters.map_or((None, 0), |(counters, discarded)| (Some(counters), discarded));
        match ended {
            Some(Err(death)) => {
                driven.warnings.push(format!("node {name}: its session ended half-way, hops are missing: {death}"))
            }
            _ if requested && !drained => {
                driven.warnings.push(format!("node {name}: its session ended without having drained"))
            }
            _ => {}
        }
        if discarded > 0 {
            driven.warnings.push(format!(
                "node {name}: {discarded} records were discarded because this side read too slowly; trace fewer probes at a time"
            ));
        }
        if unknown + collected.unknown > 0 {
            driven.warnings.push(format!(
                "node {name}: {unknown} records and {} facts are of a kind that this podpath does not know; upgrade podpath",
                collected.unknown
            ));
        }
        let Counters { unread, .. } = counters.unwrap_or_default();
        if unread > 0 {
            driven.warnings.push(format!(
                "node {name}: at {unread} sightings a packet could not be read, its headers lay in page fragments; a packet shown as lost on the way to this node may have arrived (`podpath doctor` there says what is missing)"
            ));
        }
        driven.evidence.nodes.push(NodeEvidence {
            name: name.clone(),
            records,
            facts: collected.facts,
            lost: counters.map_or(0, |counters| counters.lost()) + discarded + unknown + unread,
            unread,
            complete: drained && discarded == 0 && unknown == 0,
            watched: request.flows,
            stopped_ns,
            alone_ns,
        });
        driven.nodes.push(DrivenNode { name, hello, counters, discarded, unknown });
    }
}
