//! Holding packets: a thread in the namespace takes them from a netfilter queue and lets each go when its time has come.

use std::collections::VecDeque;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::super::netns;
use super::queue::{PacketId, Queue};

/// A running delay; dropping it lets all held packets go.
#[derive(Debug)]
pub(super) struct Delayer {
    /// Closing it is the thread's sign to end.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Delayer {
    /// Hold what comes into queue `number` of the network namespace for `delay`.
    /// The queue takes packets from the moment this returns.
    pub(super) fn start(namespace: &str, number: u16, delay: Duration) -> Result<Delayer> {
        let (ended, stop) = std::io::pipe().context("making a pipe")?;
        let (ready, bound) = mpsc::channel();
        let namespace = namespace.to_owned();
        let thread = std::thread::Builder::new()
            .name(format!("delay-{number}"))
            .spawn(move || {
                let queue = netns::enter(&namespace).and_then(|()| Queue::bind(number));
                let queue = match queue {
                    Ok(queue) => queue,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                // Nobody hears it: then the starter is gone, and with it the pipe.
                let _ = ready.send(Ok(()));
                if let Err(error) = hold(&queue, &ended, delay) {
                    eprintln!("the delay in {namespace} ended early: {error:#}");
                }
            })
            .context("starting a thread")?;
        bound.recv().context("the delay's thread ended")??;
        Ok(Delayer { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Delayer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has printed itself.
            let _ = thread.join();
        }
    }
}

fn hold(queue: &Queue, ended: &PipeReader, delay: Duration) -> Result<()> {
    // All wait equally long, so the first in is the first out.
    let mut held: VecDeque<(Instant, PacketId)> = VecDeque::new();
    loop {
        let now = Instant::now();
        while let Some((due, packet)) = held.front()
            && *due <= now
        {
            queue.accept(*packet)?;
            held.pop_front();
        }
        let patience = held.front().map(|(due, _)| TimeSpec::from(due.saturating_duration_since(now)));
        let mut waits = [PollFd::new(queue.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut waits, patience, None) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.context("waiting for packets")?,
        };
        // The pipe's other end was closed: nothing else ever comes through it.
        if waits[1].any().unwrap_or(true) {
            break;
        }
        let due = Instant::now() + delay;
        held.extend(queue.receive()?.into_iter().map(|packet| (due, packet)));
    }
    held.extend(queue.receive()?.into_iter().map(|packet| (Instant::now(), packet)));
    held.into_iter().try_for_each(|(_, packet)| queue.accept(packet))
}
