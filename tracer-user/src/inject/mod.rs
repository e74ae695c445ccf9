//! Probes from inside the source's network namespace: ICMP echoes, TCP SYNs, UDP datagrams, over IPv4 and IPv6.
//!
//! The round-trip time is the kernel's own, by its stamps on our socket's packets (`SO_TIMESTAMPING`): from where the
//! request is handed to its device's queue to where the answer's device delivers it. Neither the way through the system
//! call nor the time until our thread runs again counts, and no program of ours has a part in it, so that it checks what
//! they say. Where the kernel does not stamp the request, our clock just before the system call stands in: some
//! 20 to 50 us more.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sched::{CloneFlags, setns},
    sys::time::TimeSpec,
};

use crate::{
    path::{Probe, Unsent},
    session::{Ping, ProbeKind},
};

mod answer;
mod error;
mod filter;
mod packet;
mod pending;
mod port;
mod socket;
#[cfg(test)]
mod tests;

pub use self::error::Error;
use self::{
    packet::{Ends, Header},
    pending::{Pending, SendTime},
    port::Port,
    socket::RawSocket,
};

/// The nonce needs this much payload, bytes.
pub const SMALLEST: u16 = 8;
/// What fits into an IPv4 packet beside 20 bytes of IP and 8 of ICMP header, bytes.
pub const LARGEST: u16 = u16::MAX - 28;

/// How often to ask whether the run is to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// When to try again to send what does not fit into the send buffer.
const SEND_AGAIN: Duration = Duration::from_millis(5);

/// Keeps the kernel stamping what it receives, for as long as it lives. To be had some time before [`run`]: the kernel begins
/// some milliseconds after the first socket asked for it (a work item patches the code: `net_enable_timestamp`), and a packet
/// received before is stamped when it is read, tens of us too late.
#[derive(Debug)]
pub struct Stamps {
    /// None where that is impossible: then our thread's clock stands in for the stamps that are missing.
    _socket: Option<OwnedFd>,
}

impl Stamps {
    /// From now on; the first may be missing for some milliseconds.
    pub fn keep() -> Self {
        Self { _socket: socket::stamped_socket().ok() }
    }
}

/// Sends the probes of `ping` from the namespace `netns` and waits for their fates; blocks until all are known.
///
/// `on_probe` is called once for each probe that was sent, as soon as its fate is known, so not always in the order of
/// `seq`. Once `stopped` says so (it is asked every 50 ms) nothing more is
/// sent, and what is under way counts as unanswered.
///
/// All of it happens on a thread that is made for this call and ends with it: the caller's thread keeps its
/// namespace, and no other work ever runs in the pod's.
///
/// # Errors
/// [`Error`]; probes sent before the error have been handed to `on_probe`.
pub fn run(
    ping: &Ping,
    netns: BorrowedFd<'_>,
    stopped: impl Fn() -> bool + Send,
    on_probe: impl FnMut(Probe) + Send,
) -> Result<(), Error> {
    let header = check(ping)?;
    thread::scope(|scope| {
        let injector = thread::Builder::new()
            .name("podpath-inject".into())
            .spawn_scoped(scope, move || {
                // A thread of its own: setns moves this thread only, and it ends with the closure.
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(|cause| Error::Setns { src: ping.src, cause })?;
                Injector::open(ping, header)?.run(stopped, on_probe)
            })
            .map_err(Error::Thread)?;
        injector.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What can be refused without entering the namespace.
fn check(ping: &Ping) -> Result<Header, Error> {
    let ends = Ends::new(ping.src, ping.dst)?;
    match ping.kind {
        ProbeKind::Tcp { dst_port: 0 } | ProbeKind::Udp { dst_port: 0 } => return Err(Error::Port),
        ProbeKind::Echo { .. } | ProbeKind::Udp { .. } if !(SMALLEST..=LARGEST).contains(&ping.size) => {
            return Err(Error::Size { size: ping.size });
        }
        _ => {}
    }
    if ping.interval.is_zero() {
        return Err(Error::Interval);
    }
    Ok(Header { ends, kind: ping.kind })
}

/// What came of sending a probe.
enum Attempt {
    /// Be it that it got no further than out of our hands.
    Sent,
    /// It did not get out of them.
    NotNow,
}

/// One run, already in the namespace.
struct Injector<'p> {
    ping: &'p Ping,
    header: Header,
    socket: RawSocket,
    /// For probes that are not ICMP.
    errors: Option<RawSocket>,
    pending: Pending,
    hops: u8,
    first_ip_id: u16,
}

impl<'p> Injector<'p> {
    fn open(ping: &'p Ping, header: Header) -> Result<Self, Error> {
        let socket = RawSocket::of_probes(&header)?;
        let errors = match header.kind {
            ProbeKind::Echo { .. } => None,
            ProbeKind::Tcp { .. } | ProbeKind::Udp { .. } => Some(RawSocket::of_errors(&header)?),
        };
        let hops = socket.default_hops()?;
        let pending = Pending::new(ping.timeout);
        Ok(Self { ping, header, socket, errors, pending, hops, first_ip_id: rand::random() })
    }

    fn run(&mut self, stopped: impl Fn() -> bool, mut on_probe: impl FnMut(Probe)) -> Result<(), Error> {
        let result = self.send_and_wait(stopped, &mut on_probe);
        // What was sent counts, however the run ends.
        self.pending.drain().for_each(on_probe);
        result
    }

    fn send_and_wait(&mut self, stopped: impl Fn() -> bool, mut on_probe: impl FnMut(Probe)) -> Result<(), Error> {
        let mut sent = 0;
        let mut next_send = Instant::now();
        while (sent < self.ping.count || !self.pending.is_empty()) && !stopped() {
            let now = Instant::now();
            let mut ready = Vec::new();
            if sent < self.ping.count && now >= next_send {
                match self.send(sent + 1)? {
                    Attempt::NotNow => next_send = now + SEND_AGAIN,
                    Attempt::Sent => {
                        sent += 1;
                        // Late by more than an interval (a stopped machine): go on from here instead of catching up in a burst.
                        next_send = (next_send + self.ping.interval).max(now);
                    }
                }
            } else {
                let wake = if sent < self.ping.count { Some(next_send) } else { None };
                let wake = wake.into_iter().chain(self.pending.next_deadline()).min();
                let pause = wake.map_or(STOP_CHECK, |at| at.saturating_duration_since(now)).min(STOP_CHECK);
                ready = self.wait(pause)?;
            }
            self.receive(&ready, &mut on_probe)?;
            self.pending.expire(Instant::now()).for_each(&mut on_probe);
        }
        Ok(())
    }

    /// Sends a probe.
    fn send(&mut self, seq: u16) -> Result<Attempt, Error> {
        let Self { ping, header, socket, errors: _, pending, hops, first_ip_id } = self;
        let port = Port::reserve(header)?;
        let id = match header.kind {
            ProbeKind::Echo { id } => id,
            ProbeKind::Tcp { .. } | ProbeKind::Udp { .. } => port.as_ref().map_or(0, |port| port.number),
        };
        let probe = header.probe(seq, id, *first_ip_id, ping.nonce_base.wrapping_add(seq.into()));
        let bytes = header.packet(&probe, *hops, ping.size);
        // Right before it is sent.
        let at = SendTime::now();
        // Refused on its way out, by a netfilter rule, the routes or a full queue, it is a probe that got no further. Its path is
        // what the trace is for, and a rule that rejects answers.
        let unsent = match socket.send(&bytes, header.dst()) {
            Ok(key) => {
                pending.sent(probe, port, key, at);
                return Ok(Attempt::Sent);
            }
            // What was sent before fills the socket's send buffer, in a queue that is slow to empty.
            Err(Errno::EAGAIN) => return Ok(Attempt::NotNow),
            // A queue was full behind the hook that sees the packet.
            Err(Errno::ENOBUFS) => None,
            Err(Errno::EPERM) => Some(Unsent::Filtered),
            Err(Errno::ENETUNREACH) => Some(Unsent::NoRoute),
            Err(Errno::EINVAL) => Some(Unsent::Blackhole),
            Err(Errno::EHOSTUNREACH) => Some(Unsent::Unreachable),
            Err(Errno::EACCES) => Some(Unsent::Prohibit),
            Err(cause) => return Err(Error::Send { seq, dst: header.dst(), cause }),
        };
        pending.refused(Probe { unsent, ..probe }, port, at);
        Ok(Attempt::Sent)
    }

    /// Waits until something can be received, at most for `pause`; returns the ports at which it can.
    fn wait(&self, pause: Duration) -> Result<Vec<u16>, Error> {
        let (mut fds, mut numbers) = (vec![self.socket.pollable()], Vec::new());
        fds.extend(self.errors.as_ref().map(RawSocket::pollable));
        let sockets = fds.len();
        for port in self.pending.ports() {
            if let Some(fd) = port.pollable() {
                fds.push(fd);
                numbers.push(port.number);
            }
        }
        let mut fds: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match ppoll(&mut fds, Some(TimeSpec::from_duration(pause)), None) {
            Ok(_) => {
                let ready = fds[sockets..].iter().zip(numbers).filter(|(fd, _)| fd.any().unwrap_or(false));
                Ok(ready.map(|(_, number)| number).collect())
            }
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(cause) => Err(self.socket.failed("ppoll")(cause)),
        }
    }

    /// Takes in what came, at the raw sockets and at these ports.
    fn receive(&mut self, ready: &[u16], on_probe: &mut impl FnMut(Probe)) -> Result<(), Error> {
        let mut answers = Vec::new();
        while let Some(answer) = self.socket.receive(&self.header)? {
            answers.push(answer);
        }
        if let Some(errors) = &mut self.errors {
            while let Some(answer) = errors.receive(&self.header)? {
                answers.push(answer);
            }
        }
        for port in self.pending.ports().filter(|port| ready.contains(&port.number)) {
            answers.extend(port.receive(&self.header)?);
        }
        // In this order, because an answer's request has its stamp by now.
        while let Some((key, at)) = self.socket.handed_over()? {
            self.pending.queued(key, at);
        }
        for (answered, at) in answers {
            self.pending.answer(answered, at).into_iter().for_each(&mut *on_probe);
        }
        Ok(())
    }
}
