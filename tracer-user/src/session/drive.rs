//! The CLI's side: sessions on all nodes of one trace, together.

use std::{
    fmt, io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::FusedFuture};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Connection, Counters, Error, Failure, Hello, Malformed, PROTOCOL, Request,
    connection::Remains,
    node::{Event, MESSAGES_WAITING, Node, talk},
    wire::Message,
};
use crate::{
    event::Record,
    path::{Evidence, Probe},
};

/// All nodes have this long to drain and end, once told to stop; where they were given long to get ready, half of that: what is
/// slow to attach is slow to detach.
const DRAINED_WITHIN: Duration = Duration::from_secs(15);

/// Records are this late, at most: the ring is emptied every 10 ms, the rest is the way. Where nobody knows at which node exchanges
/// begin, so long after the last one began to record what has come by then is taken to be of before.
const RECORDS_ARRIVE_WITHIN: Duration = Duration::from_millis(100);

/// Then all connections have this long to close. Longer than one waits for its command.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);

/// Frees and a reply's last hops are recorded after the injector has its reply.
const LEAST_LINGER: Duration = Duration::from_millis(20);

/// How a trace runs. The requests say what is recorded and injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All nodes must be armed within this time, and have ended within half of it, or 15 s.
    pub armed_within: Duration,
    /// Without a ping in any request: record for this long; None: until stopped.
    pub record_for: Option<Duration>,
    /// Index of a node that is armed only when all others are. Where others send, it is the sender's: then whatever was
    /// seen from its beginning has been seen by all.
    pub armed_last: Option<usize>,
    /// Whether a node whose session dies before it is armed ends the trace. Otherwise it is left out, with a warning, unless it
    /// is where the sender is, or the last one.
    pub all_needed: bool,
    /// Records are not kept for the evidence: [`Progress::Heard`] passes them on.
    pub passes_on: bool,
}

/// What happens, while it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// A session is being reached.
    Connecting {
        /// Name of the node.
        node: &'a str,
    },
    /// A session answered.
    Hello {
        /// Name of the node.
        node: &'a str,
        /// What it says.
        hello: &'a Hello,
    },
    /// A node records.
    Armed {
        /// Name of the node.
        node: &'a str,
        /// How long attaching took there.
        took: Duration,
    },
    /// A session said something; as it stands on the wire, for [`super::Replay`].
    Heard {
        /// Index of its connection.
        node: usize,
        /// Content of one frame.
        frame: &'a Bytes,
    },
    /// Whatever is seen from now on was seen by all nodes. Said of a trace without probes, where no node was armed last.
    AllRecord,
    /// A probe completed.
    Probe(Probe),
    /// A node delivered more records.
    Records {
        /// Name of the node.
        node: &'a str,
        /// Its records so far.
        total: usize,
        /// Those that are new.
        new: &'a [Record],
    },
    /// A node told how many records it lost.
    Lost {
        /// Name of the node.
        node: &'a str,
        /// So far.
        total: u64,
    },
    /// All nodes were told to stop.
    Draining,
    /// A node's session is over, in order or not.
    Ended {
        /// Name of the node.
        node: &'a str,
    },
}

/// What the sessions delivered.
#[derive(Clone, Debug, Default)]
pub struct Driven {
    /// For the joiner.
    pub evidence: Evidence,
    /// One per connection, in order, but for those that were left out.
    pub nodes: Vec<DrivenNode>,
    /// What a reader must know, in sentences.
    pub warnings: Vec<String>,
    /// `stop` ended it.
    pub interrupted: bool,
}

/// What one session told about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrivenNode {
    /// Name of the node, as its connection has it.
    pub name: String,
    /// None if the trace was interrupted before.
    pub hello: Option<Hello>,
    /// The kernel side's; None if the session died.
    pub counters: Option<Counters>,
    /// Records that its session discarded because the CLI, or the way to it, was too slow.
    pub discarded: u64,
    /// Records that this program does not understand.
    pub unknown: u64,
}

/// Why nothing was traced.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// A node's session did not get as far as being armed.
    #[error("node {node}: {when}: {death:#}")]
    Node {
        /// Its name.
        node: String,
        /// How far it got: `session ended before hello`.
        when: &'static str,
        /// Why.
        death: Box<Death>,
    },
    /// Some nodes took too long.
    #[error(
        "nodes not ready within {} s: {}; check that they are reachable and not overloaded, or give them more time by --ready-within",
        .after.as_secs(), .nodes.join(", ")
    )]
    NotReady {
        /// Their names, each with what it did not say.
        nodes: Vec<String>,
        /// The limit.
        after: Duration,
    },
    /// A command of the inventory cannot be started.
    #[error("node {node}: start `{command}`: {source}; correct the command in the inventory or install it")]
    Start {
        /// Its name.
        node: String,
        /// The command.
        command: String,
        /// The operating system's word.
        source: io::Error,
    },
    /// Nothing to drive, or more than one source.
    #[error(
        "trace: {count} nodes with a ping among {nodes} nodes; a trace has at least one node and at most one source"
    )]
    Sources {
        /// Requests with a ping.
        count: usize,
        /// Connections.
        nodes: usize,
    },
}

impl DriveError {
    /// The address that the sender's kernel would send from, if that is why nothing was traced.
    pub fn other_source(&self) -> Option<IpAddr> {
        match self {
            Self::Node { death, .. } => match &death.cause {
                Error::Peer(failure) | Error::Backend(failure) => failure.send_from,
                _ => None,
            },
            _ => None,
        }
    }
}

/// How a session died.
#[derive(Debug)]
pub struct Death {
    pub(super) cause: Error,
    pub(super) remains: Option<Remains>,
}

impl Death {
    /// Cause and way out; the latter may be empty.
    fn parts(&self) -> (String, String) {
        let Self { cause, remains } = self;
        let Some(Remains { command, status, stderr, in_a_pod }) = remains else { return in_parts(cause) };
        match cause {
            // It said itself why.
            Error::Peer(_) | Error::Backend(_) | Error::Version { .. } => in_parts(cause),
            Error::EndOfInput | Error::Read { .. } | Error::Write { .. } if *in_a_pod => {
                let ended = status.as_deref().unwrap_or("the pod was deleted, or the way to it broke");
                let said = if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") };
                (
                    format!("its session was cut off: {ended}{said}"),
                    format!("see what became of the pod, or run it by hand: {command}"),
                )
            }
            Error::EndOfInput => {
                let status = status.as_deref().unwrap_or("did not exit, killed");
                let said = if stderr.is_empty() { "it said nothing" } else { stderr };
                let way_out = if status.starts_with("signal: 9 ") {
                    "something on that node killed it; its kernel log (dmesg) says whether memory was short".to_owned()
                } else {
                    by_hand(command)
                };
                (format!("its command ended ({status}): {said}"), way_out)
            }
            Error::Malformed(Malformed::Framing { reason }) => (
                format!("what its command prints is not podpath's protocol ({reason})"),
                format!(
                    "only podpath-agent may print there, no greeting and no shell; run it by hand to see: {command}"
                ),
            ),
            _ => {
                let (cause, way_out) = in_parts(cause);
                let said = if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") };
                (format!("{cause} (command: {command}{said})"), way_out)
            }
        }
    }
}

fn in_parts(error: &Error) -> (String, String) {
    let Failure { thing, cause, way_out, send_from: _ } = error.to_failure();
    (format!("{thing}: {cause}"), way_out)
}

/// What to do about a command that ended before its time.
fn by_hand(command: &str) -> String {
    #[cfg(unix)]
    if !nix::unistd::geteuid().is_root() {
        return format!(
            "podpath does not run as root, which the command may need: try sudo, or run it by hand: {command}"
        );
    }
    format!("run it by hand to see more: {command}")
}

/// In one line; the alternate form has the way out on a line of its own.
impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cause, way_out) = self.parts();
        match (way_out.as_str(), f.alternate()) {
            ("", _) => f.write_str(&cause),
            (way_out, false) => write!(f, "{cause}; {way_out}"),
            (way_out, true) => write!(f, "{cause}\n  {way_out}"),
        }
    }
}

/// Runs one trace: arms all nodes, and only when all are armed fires on the one whose request has a ping; collects; stops all.
///
/// `stop` ends it early and in order (Ctrl-C, or the CLI has seen enough). When this future is dropped, the connections are, with
/// their commands killed; the sessions then end by themselves.
///
/// # Errors
/// Until something is fired, any session that does not get armed in time, or dies and is needed. Later that is a warning, and that
/// node's evidence is marked incomplete.
pub async fn drive(
    nodes: Vec<(Connection, Request)>,
    plan: Plan,
    stop: impl Future<Output = ()>,
    progress: impl FnMut(Progress<'_>),
) -> Result<Driven, DriveError> {
    let count = nodes.iter().filter(|(_, request)| request.ping.is_some()).count();
    if nodes.is_empty() || count > 1 {
        return Err(DriveError::Sources { count, nodes: nodes.len() });
    }
    let mut stop = pin!(stop.fuse());
    let mut driver = Driver::start(nodes, plan, progress);
    let result = driver.run(plan, stop.as_mut()).await;
    driver.stop(DRAINED_WITHIN.max(plan.armed_within / 2)).await;
    let interrupted = result?;
    Ok(driver.into_driven(interrupted))
}

/// Why [`Driver::pump`] returned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pumped {
    Done,
    TimedOut,
    Stopped,
}

struct Driver<P> {
    nodes: Vec<Node>,
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    /// For what waits in `events`.
    room: Arc<Semaphore>,
    /// Their drop ends the connections.
    tasks: JoinSet<()>,
    progress: P,
    probes: Vec<Probe>,
}

impl<P: FnMut(Progress<'_>)> Driver<P> {
    fn start(connections: Vec<(Connection, Request)>, plan: Plan, mut progress: P) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (mut nodes, mut tasks) = (Vec::new(), JoinSet::new());
        let room = Arc::new(Semaphore::new(MESSAGES_WAITING));
        for (index, (connection, request)) in connections.into_iter().enumerate() {
            progress(Progress::Connecting { node: &connection.name });
            let node = Node::new(connection.name.clone(), request, plan.passes_on);
            tasks.spawn(talk(index, connection, Arc::clone(&node.outbox), Arc::clone(&room), sender.clone()));
            nodes.push(node);
        }
        Self { nodes, events, room, tasks, progress, probes: Vec::new() }
    }

    /// Until there is nothing more to see. Returns whether `stop` ended it.
    async fn run(&mut self, plan: Plan, mut stop: Pin<&mut impl FusedFuture<Output = ()>>) -> Result<bool, DriveError> {
        let deadline = Instant::now() + plan.armed_within;
        if self.all(deadline, plan, stop.as_mut(), |node| node.hello.is_some()).await? {
            return Ok(true);
        }
        for last in [false, true] {
            for (index, node) in self.nodes.iter_mut().enumerate() {
                if (plan.armed_last == Some(index)) == last && node.ended.is_none() {
                    node.requested = true;
                    node.outbox.send(Message::Request(PROTOCOL, node.request.clone()));
                }
            }
            if self.all(deadline, plan, stop.as_mut(), |node| node.armed || !node.requested).await? {
                return Ok(true);
            }
        }
        let source = self.nodes.iter().position(|node| node.request.ping.is_some());
        let Some(source) = source else {
            // Of a recording that is cut off nobody will know that the sender's node was watched without a gap.
            if plan.armed_last.is_none() || plan.passes_on {
                let settled = Instant::now() + RECORDS_ARRIVE_WITHIN;
                if self.pump(all_ended, Some(settled), stop.as_mut()).await == Pumped::Stopped {
                    return Ok(true);
                }
                self.nodes.iter_mut().for_each(Node::all_record);
                (self.progress)(Progress::AllRecord);
            }
            let deadline = plan.record_for.map(|time| Instant::now() + time);
            return Ok(self.pump(all_ended, deadline, stop).await == Pumped::Stopped);
        };
        self.nodes[source].outbox.send(Message::Fire);
        let fired = |nodes: &[Node]| nodes[source].fired || nodes[source].ended.is_some();
        if self.pump(fired, None, stop.as_mut()).await == Pumped::Stopped {
            return Ok(true);
        }
        self.able_to_send(source)?;
        let deadline = Instant::now() + self.linger(source);
        Ok(self.pump(all_ended, Some(deadline), stop).await == Pumped::Stopped)
    }

    /// A source whose session says itself that it failed, before any probe completed, leaves nothing to show.
    fn able_to_send(&mut self, source: usize) -> Result<(), DriveError> {
        let node = &mut self.nodes[source];
        if self.probes.is_empty()
            && let Some(Err(death)) =
                node.ended.take_if(|ended| matches!(ended, Err(Death { cause: Error::Peer(_), .. })))
        {
            node.ended = Some(Ok(()));
            let (node, death) = (node.name.clone(), Box::new(death));
            return Err(DriveError::Node { node, when: "session could not send a probe", death });
        }
        Ok(())
    }

    /// Waits until all nodes are `ready`, or left out. Returns whether `stop` came first.
    async fn all(
        &mut self,
        deadline: Instant,
        plan: Plan,
        stop: Pin<&mut impl FusedFuture<Output = ()>>,
        ready: impl Fn(&Node) -> bool,
    ) -> Result<bool, DriveError> {
        let missed = |nodes: &[Node]| {
            let all_dead = nodes.iter().all(|node| node.ended.is_some());
            nodes.iter().enumerate().position(|(index, node)| {
                let sends = node.request.ping.is_some() || plan.armed_last == Some(index);
                node.ended.is_some() && (plan.all_needed || all_dead || sends)
            })
        };
        let waits = |node: &Node| node.ended.is_none() && !ready(node);
        let settled = |nodes: &[Node]| missed(nodes).is_some() || !nodes.iter().any(waits);
        let pumped = self.pump(settled, Some(deadline), stop).await;
        if let Some(missed) = missed(&self.nodes) {
            let dead = &mut self.nodes[missed];
            let cause = Error::EndOfInput;
            let death = dead.ended.replace(Ok(())).and_then(Result::err).unwrap_or(Death { cause, remains: None });
            return Err(DriveError::Node { node: dead.name.clone(), when: dead.died(), death: Box::new(death) });
        }
        for node in &mut self.nodes {
            node.left_out = node.ended.is_some() && !node.armed;
        }
        if pumped == Pumped::TimedOut {
            let late = self.nodes.iter().filter(|node| waits(node));
            let nodes = late.map(|node| format!("{} ({})", node.name, node.waits_for())).collect();
            return Err(DriveError::NotReady { nodes, after: plan.armed_within });
        }
        Ok(pumped == Pumped::Stopped)
    }

    /// How long after the last probe records may still come that belong to it.
    fn linger(&self, source: usize) -> Duration {
        let longest = self.probes.iter().filter_map(|probe| probe.rtt_ns).max().unwrap_or(0);
        let timeout = self.nodes[source].request.ping.as_ref().map_or(LEAST_LINGER, |ping| ping.timeout);
        Duration::from_nanos(longest.saturating_mul(2)).min(timeout).max(LEAST_LINGER)
    }

    /// Tells all sessions to stop, and waits until all connections are closed.
    async fn stop(&mut self, within: Duration) {
        (self.progress)(Progress::Draining);
        for node in &self.nodes {
            if node.requested {
                node.outbox.send(Message::Stop);
            } else {
                // Without a request there is nothing to drain: the end of input ends it.
                node.outbox.conclude([]);
            }
        }
        let never = pin!(futures::future::Fuse::<std::future::Pending<()>>::terminated());
        self.pump(all_ended, Some(Instant::now() + within), never).await;
        for node in &mut self.nodes {
            node.give_up(within);
        }
        // Nothing more is taken in: nobody is to wait for that.
        self.room.close();
        let closed = async { while self.tasks.join_next().await.is_some() {} };
        let _some_hang = timeout(CLOSED_WITHIN, closed).await;
        // Kills the commands of those.
        self.tasks.shutdown().await;
    }

    /// Takes in what the sessions say until `done`.
    async fn pump(
        &mut self,
        done: impl Fn(&[Node]) -> bool,
        deadline: Option<Instant>,
        mut stop: Pin<&mut impl FusedFuture<Output = ()>>,
    ) -> Pumped {
        loop {
            if done(&self.nodes) {
                return Pumped::Done;
            }
            let late = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What has arrived counts, also when it is late.
                biased;
                Some((index, event)) = self.events.recv() => self.take(index, event),
                () = &mut stop, if !stop.is_terminated() => return Pumped::Stopped,
                () = late => return Pumped::TimedOut,
            }
        }
    }

    fn take(&mut self, index: usize, event: Event) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if let Event::Message(_, frame, _) = &event {
            (self.progress)(Progress::Heard { node: index, frame });
        }
        match event {
            Event::Message(Message::Probe(probe), ..) if node.fires() => {
                self.probes.push(probe);
                (self.progress)(Progress::Probe(probe));
            }
            Event::Message(message, _, room) => {
                drop(node.hear(message, &mut self.progress));
                drop(room);
            }
            Event::Ended(ended) => {
                if node.ended.is_none() {
                    node.ended = Some(ended);
                }
                (self.progress)(Progress::Ended { node: &node.name });
            }
        }
    }

    fn into_driven(self, interrupted: bool) -> Driven {
        let mut driven = Driven { interrupted, ..Driven::default() };
        (driven.evidence.probes, driven.evidence.interrupted) = (self.probes, interrupted);
        for node in self.nodes {
            node.conclude(&mut driven);
        }
        driven
    }
}

fn all_ended(nodes: &[Node]) -> bool {
    nodes.iter().all(|node| node.ended.is_some())
}
