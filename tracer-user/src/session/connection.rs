//! The CLI's end of one session: two streams, and what holds the other end.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt,
    future::ready,
    io,
    pin::Pin,
    process::{ExitStatus, Stdio},
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, FusedFuture, Shared},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::AttachedProcess;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{Backend, Error, serve};

/// Of a command's stderr this much is kept, bytes: the end says why it died.
const STDERR_KEPT: usize = 4096;

/// After its input ended, the other side has this long to end by itself. Longer than a session takes to clean up.
const GRACE: Duration = Duration::from_secs(7);

/// A process in a container is not waited for longer than this: it is another machine that ends it.
const ENDED_WITHIN: Duration = Duration::from_secs(2);

/// A session that can be driven.
pub struct Connection {
    pub(super) name: String,
    pub(super) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub(super) host: Host,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("name", &self.name).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Connection {
    /// Over streams that someone else made, e.g. an exec through the Kubernetes API.
    pub fn over(
        name: impl Into<String>,
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { name: name.into(), reader: Box::new(reader), writer: Box::new(writer), host: Host::Elsewhere }
    }

    /// In this process.
    pub fn local(name: impl Into<String>, backend: impl Backend) -> Self {
        let (ours, theirs) = tokio::io::duplex(256 * 1024);
        let (reader, writer) = tokio::io::split(theirs);
        let task = tokio::spawn(async move { serve(reader, writer, backend, std::future::pending()).await });
        let (reader, writer) = tokio::io::split(ours);
        Self { host: Host::Task(task), ..Self::over(name, reader, writer) }
    }

    /// Over a command's stdin and stdout. Its process group is its own, so that Ctrl-C in the terminal reaches only the CLI, which then
    /// stops all sessions in order. It is killed when dropped.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn spawn(name: impl Into<String>, words: &[OsString]) -> io::Result<Self> {
        let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        let (Some(writer), Some(reader), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let command = as_typed(words.iter().map(|word| word.to_string_lossy()));
        let process = Process { child, stderr: tokio::spawn(tail(stderr)), command };
        Ok(Self { host: Host::Process(Box::new(process)), ..Self::over(name, reader, writer) })
    }
}

impl Connection {
    /// Over a process in a container, started through the Kubernetes API; `typed` is how a person starts the same.
    pub(crate) fn exec(name: impl Into<String>, mut process: AttachedProcess, typed: String) -> Self {
        let name = name.into();
        let status = process.take_status().map_or_else(|| ready(None).boxed(), FutureExt::boxed).shared();
        let (reader, writer) = match (process.stdout(), process.stdin()) {
            (Some(reader), Some(writer)) => {
                (Box::new(Until { reader, ended: status.clone() }) as Box<_>, Box::new(writer) as Box<_>)
            }
            // It was not asked for; then the session ends before it begins.
            _ => (Box::new(tokio::io::empty()) as Box<_>, Box::new(tokio::io::sink()) as Box<_>),
        };
        let stderr = process.stderr();
        let stderr = stderr.map(|reader| tokio::spawn(tail(Until { reader, ended: status.clone() })));
        let exec = Exec { process, stderr, status, typed };
        Self { name, reader, writer, host: Host::Exec(Box::new(exec)) }
    }
}

/// A command as it can be typed into a shell.
pub(crate) fn as_typed<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    let typed = words.into_iter().map(|word| match word.as_ref() {
        word if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    typed.collect::<Vec<_>>().join(" ")
}

/// What holds the other end.
#[derive(Debug)]
pub(super) enum Host {
    Process(Box<Process>),
    Task(JoinHandle<Result<(), Error>>),
    Exec(Box<Exec>),
    Elsewhere,
}

/// When the connection of an exec is over, however it ended; its process's status, if that was still told.
type EndOfExec = Shared<BoxFuture<'static, Option<Status>>>;

/// A stream of a process in a container, which ends with the connection. Of its own it only ends where that is closed in order:
/// `kube` leaves it open for ever when the connection breaks.
struct Until<R> {
    reader: R,
    ended: EndOfExec,
}

impl<R: AsyncRead + Unpin> AsyncRead for Until<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { reader, ended } = &mut *self;
        if let read @ Poll::Ready(_) = Pin::new(&mut *reader).poll_read(cx, buffer) {
            return read;
        }
        if !ended.is_terminated() && ended.poll_unpin(cx).is_pending() {
            return Poll::Pending;
        }
        // What came between the two looks; after the end nothing more does.
        match Pin::new(reader).poll_read(cx, buffer) {
            Poll::Pending => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

/// A process in a container. Its end of input may never be told it (before v5 of the protocol there is no half-close), so that
/// what ends it is the close of the connection, or its own limits on silence.
pub(super) struct Exec {
    process: AttachedProcess,
    stderr: Option<JoinHandle<String>>,
    status: EndOfExec,
    typed: String,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("typed", &self.typed).finish_non_exhaustive()
    }
}

impl Exec {
    async fn close(self) -> Remains {
        let Self { process, stderr, status, typed } = self;
        let status = timeout(ENDED_WITHIN, status).await.ok().flatten();
        process.abort();
        let stderr = match stderr {
            Some(mut task) => {
                let text = timeout(Duration::from_secs(1), &mut task).await.ok().and_then(Result::ok);
                task.abort();
                text.unwrap_or_default()
            }
            None => String::new(),
        };
        let status = status.and_then(|status| status.message.or(status.reason));
        Remains { command: typed, status, stderr, in_a_pod: true }
    }
}

#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stderr: JoinHandle<String>,
    command: String,
}

/// What is left of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remains {
    pub(super) command: String,
    /// `exit status: 1`, `signal: 9 (SIGKILL)`; None: it did not end by itself.
    pub(super) status: Option<String>,
    /// The last lines of its stderr.
    pub(super) stderr: String,
    /// It ran in a pod, and may have ended with it.
    pub(super) in_a_pod: bool,
}

impl Host {
    /// Waits for the other end, whose streams are closed; kills a command that does not end. Nothing of it runs afterwards.
    pub(super) async fn close(self) -> Option<Remains> {
        match self {
            Self::Elsewhere => None,
            Self::Task(task) => {
                // Its error went over the streams; past the grace a call of the backend hangs and nothing can end it.
                let _ended = timeout(GRACE, task).await;
                None
            }
            Self::Process(process) => Some(process.close().await),
            Self::Exec(exec) => Some(exec.close().await),
        }
    }
}

impl Process {
    async fn close(mut self) -> Remains {
        let status = match timeout(GRACE, self.child.wait()).await {
            Ok(status) => status.ok().as_ref().map(ExitStatus::to_string),
            Err(_) => {
                // Fails only if it has just ended; kill_on_drop covers the rest.
                let _ended = self.child.kill().await;
                None
            }
        };
        // A grandchild may hold stderr open.
        let stderr = timeout(Duration::from_secs(1), &mut self.stderr).await.ok().and_then(Result::ok);
        self.stderr.abort();
        Remains { command: self.command, status, stderr: stderr.unwrap_or_default(), in_a_pod: false }
    }
}

/// The end of what a command says, until it closes stderr.
async fn tail(mut stderr: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut chunk) = (VecDeque::new(), [0; 1024]);
    while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
        kept.extend(&chunk[..length]);
        kept.drain(..kept.len().saturating_sub(STDERR_KEPT));
    }
    last_lines(&Vec::from(kept))
}

/// The last lines in one, without what could steer a terminal.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The writing half stays, as with `kube` when a connection breaks.
    #[tokio::test]
    async fn a_stream_ends_with_its_connection_and_not_before_its_last_words() {
        let (reader, mut writer) = tokio::io::simplex(64);
        writer.write_all(b"last words").await.unwrap();
        let ended = ready(None).boxed().shared();
        let mut said = String::new();
        Until { reader, ended }.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "last words");
    }

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        assert_eq!(
            as_typed(["ssh", "root@node-1", "podpath-agent", "session"]),
            "ssh root@node-1 podpath-agent session"
        );
        assert_eq!(as_typed(["sh", "-c", "echo it's; exit 3", ""]), r"sh -c 'echo it'\''s; exit 3' ''");
    }
}
