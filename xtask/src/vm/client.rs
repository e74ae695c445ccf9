//! This machine's end of a channel: runs one command in a VM.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::frame::{Frame, Request};
use crate::interrupt;

/// How often a silent channel's watcher is asked whether to go on.
const TICK: Duration = Duration::from_millis(100);
/// qemu makes its sockets within this.
const CONNECT: Duration = Duration::from_secs(10);

/// What a command that answers at once gets for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What comes from a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// It runs.
    Started,
    /// It wrote to its standard output.
    Output(&'a [u8]),
    /// It wrote to its standard error.
    Error(&'a [u8]),
}

/// A channel with a command on it.
pub(super) struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects and hands over the command; it starts once the VM is up.
    ///
    /// # Errors
    /// No qemu listens there.
    pub(super) fn start(socket: &Path, request: Request) -> Result<Client> {
        let connecting = || format!("connect to {}", socket.display());
        let start = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > CONNECT => return Err(error).with_context(connecting),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(TICK)).with_context(connecting)?;
        Frame::Run(request).write(&mut stream).with_context(connecting)?;
        Ok(Client { stream })
    }

    /// The command's input ends here.
    ///
    /// # Errors
    /// The VM has gone.
    pub(super) fn end_input(&mut self) -> Result<()> {
        Frame::InputEnds.write(&mut self.stream).context("end the input of a command in a VM")
    }

    /// Hands the command a piece of input, and waits for the piece of output that answers it.
    ///
    /// # Errors
    /// The VM has gone, or the command ended or complained instead.
    pub(super) fn ask(&mut self, question: &[u8]) -> Result<Vec<u8>> {
        Frame::Input(question.to_vec()).write(&mut self.stream).context("ask a command in a VM")?;
        let mut reader = Watched { stream: &mut self.stream, watch: within(PATIENCE), refused: None };
        loop {
            match Frame::read(&mut reader) {
                Ok(Frame::Started) => {}
                Ok(Frame::Output(bytes)) => return Ok(bytes),
                Ok(frame) => bail!("a command in a VM answered with {frame:?}"),
                Err(error) => return Err(reader.refused.take().unwrap_or_else(|| error.into())),
            }
        }
    }

    /// Copies `input` to the command's, in a thread of its own.
    ///
    /// # Errors
    /// The channel cannot be shared.
    pub(super) fn feed(&self, input: impl Read + Send + 'static) -> Result<()> {
        let mut input = input;
        let mut stream = self.stream.try_clone().context("share a channel")?;
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(length @ 1..) = input.read(&mut buffer) {
                if Frame::Input(buffer[..length].to_vec()).write(&mut stream).is_err() {
                    return;
                }
            }
            // The VM has gone: whoever reads from it will know.
            let _ = Frame::InputEnds.write(&mut stream);
        });
        Ok(())
    }

    /// Hands everything that comes to `sink`, until the command has ended: its exit code, as a shell gives it. `watch` is
    /// asked with every piece, and ten times a second while none comes, whether to go on.
    ///
    /// # Errors
    /// The VM has gone; or `watch` or `sink` refuses.
    pub(super) fn finish(
        mut self,
        mut sink: impl FnMut(Event<'_>) -> Result<()>,
        watch: impl FnMut() -> Result<()>,
    ) -> Result<i32> {
        let mut reader = Watched { stream: &mut self.stream, watch, refused: None };
        loop {
            match Frame::read(&mut reader) {
                Ok(Frame::Started) => sink(Event::Started)?,
                Ok(Frame::Output(bytes)) => sink(Event::Output(&bytes))?,
                Ok(Frame::Error(bytes)) => sink(Event::Error(&bytes))?,
                Ok(Frame::Ended(code)) => return Ok(code),
                Ok(frame) => bail!("a VM said {frame:?}, which is ours to say"),
                Err(error) => return Err(reader.refused.take().unwrap_or_else(|| error.into())),
            }
        }
    }
}

/// For [`Client::finish`]: refuses to go on after `limit`, and when we are interrupted.
pub(super) fn within(limit: Duration) -> impl FnMut() -> Result<()> {
    let start = Instant::now();
    move || {
        if interrupt::received().is_some() {
            bail!("interrupted");
        }
        match start.elapsed() > limit {
            true => bail!("not done after {} s", limit.as_secs()),
            false => Ok(()),
        }
    }
}

/// A reader that asks its watcher before each piece, and while nothing comes.
struct Watched<'a, W> {
    stream: &'a mut UnixStream,
    watch: W,
    refused: Option<anyhow::Error>,
}

impl<W: FnMut() -> Result<()>> Read for Watched<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Err(error) = (self.watch)() {
                self.refused = Some(error);
                return Err(io::Error::other("refused"));
            }
            match self.stream.read(buffer) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                other => return other,
            }
        }
    }
}

/// Runs a command in a VM with our own standard input and output: what an inventory's `command` calls.
///
/// # Errors
/// The VM is not there, or ends.
pub fn pipe(socket: &Path, words: &[String]) -> Result<i32> {
    let client = Client::start(socket, Request { words: words.to_vec(), environment: Vec::new() })?;
    client.feed(io::stdin())?;
    let sink = |event: Event<'_>| match event {
        Event::Started => Ok(()),
        Event::Output(bytes) => print(&mut io::stdout().lock(), bytes),
        Event::Error(bytes) => print(&mut io::stderr().lock(), bytes),
    };
    client.finish(sink, || Ok(()))
}

pub(super) fn print(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("write what a command in a VM printed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(TICK)).unwrap();
        (Client { stream: ours }, theirs)
    }

    #[test]
    fn a_limit_ends_a_command_that_never_stops_writing() {
        let (client, mut vm) = client();
        // Ends when the client has gone.
        let writer = thread::spawn(move || while Frame::Output(vec![0; 100]).write(&mut vm).is_ok() {});
        let start = Instant::now();
        let error = client.finish(|_| Ok(()), within(Duration::from_millis(200))).unwrap_err().to_string();
        assert!(error.contains("not done after"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
        writer.join().unwrap();
    }

    #[test]
    fn a_limit_ends_a_command_that_says_nothing() {
        let (client, _vm) = client();
        let error = client.finish(|_| Ok(()), within(Duration::from_millis(200))).unwrap_err().to_string();
        assert!(error.contains("not done after"), "{error}");
    }
}
