//! The node's side of a session, over any pair of streams.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Error, PROTOCOL,
    backend::{Backend, Command, attend},
    link::{Incoming, Outbox, RECORDS_WAITING},
    wire::Message,
};

/// Longest time that a request may set.
pub const MAX_TIME_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A request must come within this time.
const REQUEST_WITHIN: Duration = Duration::from_secs(60);

/// Trying out what a node can do may take this long: seconds on a slow machine.
const EXAMINED_WITHIN: Duration = Duration::from_secs(60);

/// Detaching may take this long before the session ends without waiting; the process's end then detaches.
const CLEANUP: Duration = Duration::from_secs(5);

/// The peer gets this long to take the reason why the session ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves one session and returns when it is over, with the backend dropped: nothing of it is left in the kernel.
///
/// `signal` completes with the name of the signal that asks the process to end; [`std::future::pending`] if none can.
///
/// The session ends in order after the peer's Stop, and otherwise on end of input, signal, broken pipe, a peer that stops talking or
/// reading, a malformed or misplaced message, a failure of the backend, or at the time limit; also while a write is blocked.
/// If a call of the backend hangs, this returns some seconds later without it: then the process must exit, which closes the
/// file descriptors that hold the kernel programs.
///
/// # Errors
/// Why the session did not end in order. The peer has been told, if it could be.
pub async fn serve<R, W, B>(
    reader: R,
    writer: W,
    backend: B,
    signal: impl Future<Output = &'static str>,
) -> Result<(), Error>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    B: Backend,
{
    serve_with(reader, writer, backend, signal, RECORDS_WAITING).await
}

/// [`serve`] with room for `capacity` unsent records.
pub(super) async fn serve_with<R, W, B>(
    reader: R,
    writer: W,
    backend: B,
    signal: impl Future<Output = &'static str>,
    capacity: usize,
) -> Result<(), Error>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    B: Backend,
{
    let outbox = Arc::new(Outbox::new(capacity));
    let (commands, inbox) = mpsc::unbounded_channel();
    // A task, so that the backend winds down by itself also if this future is dropped.
    let mut node = tokio::spawn(attend(backend, inbox, outbox.clone()));
    let mut write = pin!(outbox.write_to(writer));

    let (result, written) = tokio::select! {
        biased;
        result = &mut write => (result, true),
        result = converse(Incoming::new(reader), commands, &outbox) => match result {
            Err(error) => (Err(error), false),
        },
        signal = signal => (Err(Error::Signal { signal }), false),
    };
    // `commands` is gone: the task drops the backend and ends.
    let failure = timeout(CLEANUP, &mut node).await.ok().and_then(Result::ok).flatten();
    let result = match failure {
        Some(failure) => Err(Error::Backend(failure)),
        None => result,
    };
    if let (Err(error), false) = (&result, written) {
        outbox.abandon(Message::Error(error.to_failure()));
        let _peer_gone = timeout(LAST_WORDS, write).await;
    }
    result
}

/// Listens to the peer until something ends the session.
async fn converse<R: AsyncRead + Unpin>(
    mut incoming: Incoming<R>,
    commands: mpsc::UnboundedSender<Command>,
    outbox: &Outbox,
) -> Result<Infallible, Error> {
    let request =
        timeout(REQUEST_WITHIN, incoming.next()).await.map_err(|_| Error::NoRequest { after: REQUEST_WITHIN })??;
    let command = accepted(request.ok_or(Error::EndOfInput)?)?;
    // An examination ends by itself; what comes while it lasts is misplaced.
    let (limit, mut stopped) = match &command {
        Command::Arm(request) => (request.time_limit, false),
        _ => (EXAMINED_WITHIN, true),
    };
    let deadline = Instant::now() + limit;
    tell(&commands, command);

    loop {
        let next = timeout_at(deadline, incoming.next()).await.map_err(|_| Error::TimeLimit { limit })??;
        let Some(next) = next else {
            if outbox.is_spent() {
                // The peer has everything and hung up first; the writer, which has its own limit, ends the session.
                return std::future::pending().await;
            }
            return Err(Error::EndOfInput);
        };
        match next {
            Message::Fire if !stopped => tell(&commands, Command::Fire),
            Message::Stop if !stopped => {
                stopped = true;
                tell(&commands, Command::Stop);
            }
            Message::Error(failure) => return Err(Error::Peer(failure)),
            other => return Err(Error::Unexpected { message: other.name(), when: "after the request" }),
        }
    }
}

fn accepted(message: Message) -> Result<Command, Error> {
    let (theirs, command) = match message {
        Message::Request(theirs, request) => (theirs, Command::Arm(request)),
        Message::Examine(theirs) => (theirs, Command::Examine),
        Message::Error(failure) => return Err(Error::Peer(failure)),
        other => return Err(Error::Unexpected { message: other.name(), when: "before the request" }),
    };
    if !PROTOCOL.talks_to(theirs) {
        return Err(Error::Version { ours: PROTOCOL, theirs, our_name: "podpath-agent", their_name: "podpath" });
    }
    if let Command::Arm(request) = &command
        && request.time_limit > MAX_TIME_LIMIT
    {
        return Err(Error::Peer(super::Failure::new(
            "request",
            format!(
                "a time limit of {} s is over the {} s allowed",
                request.time_limit.as_secs(),
                MAX_TIME_LIMIT.as_secs()
            ),
            "ask for less",
        )));
    }
    Ok(command)
}

fn tell(commands: &mpsc::UnboundedSender<Command>, command: Command) {
    // The task is gone after a failure or the end: then the writer is about to end the session.
    let _gone = commands.send(command);
}
