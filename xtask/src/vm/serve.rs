//! The VM's end of a channel: runs the commands that come over a virtio-serial port, one after the other.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, process::CommandExt, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::frame::{Frame, Request};

/// How often a port without a peer is looked at.
const IDLE: Duration = Duration::from_millis(50);
/// What a command gets to end by itself once its peer has gone.
const GRACE: Duration = Duration::from_secs(3);

/// Serves the port of that name for ever.
///
/// # Errors
/// There is no such port: this is no VM of ours.
pub fn serve(port: &str) -> Result<()> {
    let port = Port::open(port)?;
    loop {
        match Frame::read(&mut &port) {
            Ok(Frame::Run(request)) => {
                // What went wrong with the command its peer is told; what went wrong with the peer concerns nobody.
                let _ = run(&port, &request);
            }
            // Left over by a peer whose command has ended.
            Ok(_) => {}
            Err(_) => thread::sleep(IDLE),
        }
    }
}

/// A virtio-serial port. Reading ends while nobody is connected; so does writing.
struct Port(File);

impl Port {
    fn open(name: &str) -> Result<Port> {
        const PORTS: &str = "/sys/class/virtio-ports";
        for entry in fs::read_dir(PORTS).with_context(|| format!("list {PORTS}"))?.flatten() {
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name) {
                let path = PathBuf::from("/dev").join(entry.file_name());
                let mut options = OpenOptions::new();
                let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
                return Ok(Port(options.open(&path).with_context(|| format!("open {}", path.display()))?));
            }
        }
        bail!("no virtio-serial port `{name}`");
    }

    /// Waits for `events`; false when nobody is connected.
    fn wait(&self, events: PollFlags, patience: u16) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), events)];
        poll(&mut fds, patience)?;
        let got = fds[0].revents().unwrap_or(PollFlags::empty());
        Ok(got.intersects(events) || !got.contains(PollFlags::POLLHUP))
    }
}

impl Read for &Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.0).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(PollFlags::POLLIN, 1000)? {
                        return Ok(0);
                    }
                }
                other => return other,
            }
        }
    }
}

impl Write for &Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.0).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(PollFlags::POLLOUT, 1000)? {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a command until it has ended or the peer has gone.
fn run(port: &Port, request: &Request) -> io::Result<()> {
    let writer = Mutex::new(port);
    let send = |frame: Frame| match writer.lock() {
        Ok(mut port) => frame.write(&mut *port),
        Err(_) => Err(io::Error::other("a writer panicked")),
    };
    let mut child = match start(request) {
        Ok(child) => child,
        Err(error) => {
            send(Frame::Started)?;
            send(Frame::Error(format!("{error:#}\n").into_bytes()))?;
            return send(Frame::Ended(127));
        }
    };
    send(Frame::Started)?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let output = scope.spawn(|| pump(output, |bytes| send(Frame::Output(bytes))));
        let errors = scope.spawn(|| pump(errors, |bytes| send(Frame::Error(bytes))));
        let group = Pid::from_raw(child.id().cast_signed());
        let ended = &ended;
        let feeding = scope.spawn(move || feed(port, input, group, ended));
        let status = child.wait();
        let _ = (output.join(), errors.join());
        ended.store(true, Ordering::Relaxed);
        // Before the peer knows: what it says next is another command.
        let _ = feeding.join();
        let code = |status: std::process::ExitStatus| {
            status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
        };
        send(Frame::Ended(status.map_or(127, code)))
    })
}

fn start(request: &Request) -> Result<Child> {
    let (program, arguments) = request.words.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(request.environment.iter().cloned()).current_dir("/root").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("start {program}"))
}

fn pump(from: Option<impl Read>, send: impl Fn(Vec<u8>) -> io::Result<()>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 16 << 10];
    // On after a failure to send: a command whose output nobody takes must not hang on it.
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let _ = send(buffer[..length].to_vec());
    }
}

/// Hands the command its input; ends it when the peer has gone.
fn feed(port: &Port, input: Option<ChildStdin>, group: Pid, ended: &AtomicBool) {
    let mut input = input;
    while !ended.load(Ordering::Relaxed) {
        match port.wait(PollFlags::POLLIN, 20) {
            Ok(true) if !is_ready(port) => {}
            Ok(true) => match Frame::read(&mut &*port) {
                Ok(Frame::Input(bytes)) => {
                    // One that takes no more has closed it, or is gone.
                    if input.as_mut().is_some_and(|input| input.write_all(&bytes).is_err()) {
                        input = None;
                    }
                }
                Ok(_) => input = None,
                Err(_) => return end(group, ended),
            },
            _ => {
                drop(input);
                return end(group, ended);
            }
        }
    }
}

fn is_ready(port: &Port) -> bool {
    let mut fds = [PollFd::new(port.0.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, 0_u16).is_ok_and(|count| count > 0)
}

fn end(group: Pid, ended: &AtomicBool) {
    // A group that is gone by now is what we want.
    let _ = killpg(group, Signal::SIGTERM);
    let steps = GRACE.as_millis() / IDLE.as_millis();
    for _ in 0..steps {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        thread::sleep(IDLE);
    }
    let _ = killpg(group, Signal::SIGKILL);
}
