//! What a session needs from the node it runs on, and the task that drives it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    About, Counters, Failure, Hello, PROTOCOL, Ping, Request,
    link::Outbox,
    wire::{self, Message},
};
use crate::{doctor::Check, event::Record, node::facts::NodeFacts, path::Probe};

/// How often the ring is emptied.
const DRAIN_EVERY: Duration = Duration::from_millis(10);

/// How often the peer is told the counters, if records were lost meanwhile.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// The node's part of a session: kernel programs, netlink, injector.
///
/// Calls come one at a time, in the order `hello`, then only `checks`, or `arm`, `known`, any of `drain` and `fire`, then `detach`, `drain`, `finish`; they may
/// stop after any of them. They may block: each runs on a thread of a pool, so a call that changes its thread's namespace must do so on
/// a thread of its own. Dropping the backend detaches everything and must be quick.
pub trait Backend: Send + 'static {
    /// Who this node is.
    ///
    /// # Errors
    /// What makes this node unfit, e.g. not root.
    fn hello(&mut self) -> Result<About, Failure>;

    /// What this node's kernel and user can do, what is missing, and what that costs; tried out, with nothing left behind.
    fn checks(&mut self) -> Vec<Check>;

    /// Loads and attaches everything, and sets the request's flows. On return every matching packet is recorded.
    ///
    /// # Errors
    /// What could not be attached.
    fn arm(&mut self, request: &Request) -> Result<(), Failure>;

    /// What is known about this node once it is armed, so that a session that dies half-way leaves more than numbers.
    /// `finish` tells it again.
    fn known(&mut self) -> NodeFacts {
        NodeFacts::default()
    }

    /// Adds what was recorded since the last call, if anything was, to what the caller has room for.
    ///
    /// # Errors
    /// The ring cannot be read.
    fn drain(&mut self, into: &mut Vec<Record>) -> Result<(), Failure>;

    /// Prepares the injection; the job then runs on a thread of its own.
    ///
    /// # Errors
    /// E.g. no namespace of this node has the source address.
    fn fire(&mut self, ping: &Ping) -> Result<InjectorJob, Failure>;

    /// Stops recording: afterwards `drain` gets the rest. Returns until when every matching packet was recorded, ns of the node's
    /// `CLOCK_MONOTONIC`; 0 if that is not known.
    ///
    /// # Errors
    /// A program could not be detached.
    fn detach(&mut self) -> Result<u64, Failure>;

    /// The kernel side's counters so far.
    ///
    /// # Errors
    /// They cannot be read.
    fn counters(&mut self) -> Result<Counters, Failure>;

    /// Facts for what was drained, and the kernel side's counters.
    ///
    /// # Errors
    /// The facts cannot be read.
    fn finish(&mut self) -> Result<(NodeFacts, Counters), Failure>;
}

/// Sends the probes of one [`Ping`]: reports each as it completes, returns after the last, and returns early when told [`Ended`].
pub type InjectorJob = Box<dyn FnOnce(&ProbeSender) -> Result<(), Failure> + Send>;

/// Where an injector reports.
#[derive(Clone, Debug)]
pub struct ProbeSender(mpsc::UnboundedSender<Probe>);

/// The session is over: inject no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl ProbeSender {
    /// Reports one completed probe.
    ///
    /// # Errors
    /// [`Ended`]: return.
    pub fn send(&self, probe: Probe) -> Result<(), Ended> {
        self.0.send(probe).map_err(|_| Ended)
    }

    /// Whether the session is over; to be asked before each probe.
    pub fn is_ended(&self) -> bool {
        self.0.is_closed()
    }
}

/// What the peer asks for.
#[derive(Debug)]
pub(super) enum Command {
    Arm(Request),
    Examine,
    Fire,
    Stop,
}

/// Why the backend's task ended early.
enum Halt {
    /// The session is over; nobody listens.
    Over,
    /// The backend failed.
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Drives the backend through one session. Ends, with the backend dropped, after Stop, on failure, or when `commands` closes.
///
/// Returns the failure, if that is what ended it; the peer has been told.
pub(super) async fn attend<B: Backend>(
    backend: B,
    mut commands: mpsc::UnboundedReceiver<Command>,
    outbox: Arc<Outbox>,
) -> Option<Failure> {
    let mut node = Node(Some(backend));
    let halt = session(&mut node, &mut commands, &outbox).await.err();
    // Detaching blocks. If a call panicked, unwinding has dropped the backend already.
    if let Some(backend) = node.0.take() {
        let _panicked = spawn_blocking(move || drop(backend)).await;
    }
    match halt {
        Some(Halt::Failed(failure)) => {
            outbox.abandon(Message::Error(failure.clone()));
            Some(failure)
        }
        Some(Halt::Over) | None => None,
    }
}

async fn session<B: Backend>(
    node: &mut Node<B>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    outbox: &Outbox,
) -> Result<(), Halt> {
    let about = node.call(B::hello).await?;
    let program = concat!("podpath-agent ", env!("CARGO_PKG_VERSION")).to_owned();
    outbox.send(Message::Hello(Hello { protocol: PROTOCOL, program, about }));

    let request = match commands.recv().await.ok_or(Halt::Over)? {
        Command::Arm(request) => request,
        Command::Examine => {
            let checks = node.call(|backend| Ok(backend.checks())).await?;
            outbox.conclude(vec![Message::Checks(checks), Message::End]);
            return Ok(());
        }
        // `converse` lets nothing else through before a request.
        Command::Fire | Command::Stop => return Err(Halt::Over),
    };
    let ping = request.ping.clone();
    let started = Instant::now();
    node.call(move |backend| backend.arm(&request)).await?;
    let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    outbox.send(Message::Armed(took));
    let known = node.call(|backend| Ok(backend.known())).await?;
    if known != NodeFacts::default() {
        wire::batches(wire::facts(&known)).into_iter().for_each(|facts| outbox.send(facts));
    }

    record(node, commands, outbox, ping).await?;

    let until_ns = node.call(B::detach).await?;
    node.drain(&mut Vec::new(), outbox).await?;
    let (facts, counters) = node.call(B::finish).await?;
    let mut last = wire::batches(wire::facts(&facts));
    last.extend([Message::Counters(counters, outbox.discarded()), Message::Drained(until_ns), Message::End]);
    outbox.conclude(last);
    Ok(())
}

/// Empties the ring on a timer, until Stop.
async fn record<B: Backend>(
    node: &mut Node<B>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    outbox: &Outbox,
    ping: Option<Ping>,
) -> Result<(), Halt> {
    let mut ticks = interval(DRAIN_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counts = interval(COUNT_EVERY);
    let mut lost = 0;
    let mut drained = Vec::new();
    // Dropped on return: that is what tells the injector to end.
    let mut injector: Option<Injector> = None;
    loop {
        tokio::select! {
            command = commands.recv() => match command.ok_or(Halt::Over)? {
                Command::Stop => return Ok(()),
                Command::Fire => match ping.clone() {
                    Some(ping) if injector.is_none() => {
                        let job = node.call(move |backend| backend.fire(&ping)).await?;
                        injector = Some(Injector::start(job));
                    }
                    _ => return Err(refused_fire(ping.is_some()).into()),
                },
                Command::Arm(_) | Command::Examine => return Err(Halt::Over),
            },
            report = next_report(&mut injector) => match report? {
                Some(probe) => outbox.send(Message::Probe(probe)),
                None => outbox.send(Message::Fired),
            },
            _ = ticks.tick() => node.drain(&mut drained, outbox).await?,
            _ = counts.tick() => {
                let counters = node.call(B::counters).await?;
                let now = counters.lost() + outbox.discarded();
                if now > lost {
                    lost = now;
                    outbox.send(Message::Counters(counters, outbox.discarded()));
                }
            }
        }
    }
}

fn refused_fire(again: bool) -> Failure {
    let cause = if again { "message fire came twice" } else { "message fire without a ping in the request" };
    Failure::new("session", cause, "use podpath and podpath-agent of the same release")
}

/// The backend, or None while a call has it.
struct Node<B>(Option<B>);

impl<B: Backend> Node<B> {
    /// Hands on what was recorded. `room` is empty before and after, and keeps what it has allocated.
    async fn drain(&mut self, room: &mut Vec<Record>, outbox: &Outbox) -> Result<(), Failure> {
        let mut records = std::mem::take(room);
        *room = self.call(move |backend| backend.drain(&mut records).map(|()| records)).await?;
        outbox.record(room);
        Ok(())
    }

    async fn call<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut B) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let broken = || Failure::new("podpath-agent", "panicked; its last lines say where", "report this as a bug");
        let mut backend = self.0.take().ok_or_else(broken)?;
        let task = spawn_blocking(move || {
            let result = call(&mut backend);
            (backend, result)
        });
        let (backend, result) = task.await.map_err(|_| broken())?;
        self.0 = Some(backend);
        result
    }
}

/// A running injection.
struct Injector {
    probes: mpsc::UnboundedReceiver<Probe>,
    /// None once its result was taken.
    job: Option<tokio::task::JoinHandle<Result<(), Failure>>>,
}

impl Injector {
    fn start(job: InjectorJob) -> Self {
        let (sender, probes) = mpsc::unbounded_channel();
        // A thread of its own, because the job enters a pod's namespace and a pool's thread would stay there; waited for from a
        // pool's thread, so that a panic becomes an error.
        let job = spawn_blocking(move || {
            std::thread::spawn(move || job(&ProbeSender(sender))).join().unwrap_or_else(|_| {
                Err(Failure::new("injector", "panicked; the agent's last lines say where", "report this as a bug"))
            })
        });
        Self { probes, job: Some(job) }
    }
}

/// The next probe; None, once, when the injector is done; waits forever after that or without an injector. Cancel-safe.
async fn next_report(injector: &mut Option<Injector>) -> Result<Option<Probe>, Failure> {
    let Some(Injector { probes, job }) = injector else { return std::future::pending().await };
    let Some(running) = job else { return std::future::pending().await };
    if let Some(probe) = probes.recv().await {
        return Ok(Some(probe));
    }
    let result = running.await;
    *job = None;
    match result {
        Ok(done) => done.map(|()| None),
        Err(_) => Err(Failure::new("injector", "its thread could not be started", "check the limits on threads")),
    }
}
