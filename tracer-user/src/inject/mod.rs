//! ICMP echo probes from inside the source's network namespace.
//!
//! The round-trip time is the kernel's own, by its stamps on our socket's packets (`SO_TIMESTAMPING`): from where the
//! request is handed to its device's queue to where the reply's device delivers it. Neither the way through the system
//! call nor the time until our thread runs again counts, and no program of ours has a part in it, so that it checks what
//! they say. Where the kernel does not stamp the request, our clock just before the system call stands in: some
//! 20 to 50 us more.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};

use crate::{
    path::Probe,
    session::{Ping, ProbeKind},
};

mod packet;
mod pending;
mod socket;
#[cfg(test)]
mod tests;

use packet::Header;
use pending::Pending;
use socket::EchoSocket;

/// The nonce needs this much payload, bytes.
pub const SMALLEST: u16 = 8;
/// What fits into an IPv4 packet beside 20 bytes of IP and 8 of ICMP header, bytes.
pub const LARGEST: u16 = u16::MAX - 28;

/// How often to ask whether the run is to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

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

/// Why probes could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// IPv6 probes are not built yet.
    #[error("probe {src} -> {dst}: IPv6 probes are not supported yet; trace an IPv4 address")]
    Ipv6 {
        /// Source asked for.
        src: IpAddr,
        /// Destination asked for.
        dst: IpAddr,
    },
    /// The payload is smaller than the nonce or larger than IPv4 allows.
    #[error("probe size {size}: the payload must be between {SMALLEST} bytes (for the nonce) and {LARGEST}")]
    Size {
        /// Bytes asked for.
        size: u16,
    },
    /// The interval is zero.
    #[error("probe interval 0: probes need a time between them; try 0.01 seconds")]
    Interval,
    /// No thread could be had.
    #[error("start the probe thread: {0}")]
    Thread(#[source] io::Error),
    /// The namespace could not be entered.
    #[error("setns into the network namespace of {src}: {cause}{}", setns_way_out(.cause))]
    Setns {
        /// Whose namespace.
        src: Ipv4Addr,
        /// Cause.
        #[source]
        cause: Errno,
    },
    /// A socket call failed.
    #[error("{operation} for probes from {src}: {cause}{}", socket_way_out(operation, .cause))]
    Socket {
        /// The call, as in its man page.
        operation: &'static str,
        /// Source of the probes.
        src: Ipv4Addr,
        /// Cause.
        #[source]
        cause: Errno,
    },
    /// The kernel refused to build a packet.
    #[error("send probe {seq} to {dst}: {cause}{}", send_way_out(.cause))]
    Send {
        /// Sequence number.
        seq: u16,
        /// Destination.
        dst: Ipv4Addr,
        /// Cause.
        #[source]
        cause: Errno,
    },
}

fn setns_way_out(cause: &Errno) -> &'static str {
    match cause {
        Errno::EPERM => "; entering a namespace needs CAP_SYS_ADMIN: run as root",
        Errno::EINVAL => "; what was opened is not a network namespace (any more): has the pod gone?",
        _ => "",
    }
}

fn socket_way_out(operation: &str, cause: &Errno) -> &'static str {
    match (operation, cause) {
        ("socket", Errno::EPERM) => "; a raw socket needs CAP_NET_RAW: run as root",
        ("bind", Errno::EADDRNOTAVAIL) => "; the namespace does not have this address (any more): has the pod gone?",
        _ => "",
    }
}

fn send_way_out(cause: &Errno) -> &'static str {
    match cause {
        Errno::EMSGSIZE => "; the probe is larger than the interface's MTU: choose a smaller size",
        // fib_props in net/ipv4/fib_semantics.c
        Errno::ENETUNREACH => "; the source's namespace has no route to it",
        Errno::EINVAL => "; the source's namespace has a blackhole route for it, or it is no address to send to",
        Errno::EHOSTUNREACH => "; the source's namespace has an unreachable route for it, or no neighbour answers",
        Errno::EACCES => "; the source's namespace has a prohibit route for it, or it is a broadcast address",
        _ => "",
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
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(|cause| Error::Setns { src: header.src, cause })?;
                inject(ping, header, stopped, on_probe)
            })
            .map_err(Error::Thread)?;
        injector.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What can be refused without entering the namespace.
fn check(ping: &Ping) -> Result<Header, Error> {
    let (src, dst) = match (ping.src, ping.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (src, dst),
        (src, dst) => return Err(Error::Ipv6 { src, dst }),
    };
    if !(SMALLEST..=LARGEST).contains(&ping.size) {
        return Err(Error::Size { size: ping.size });
    }
    if ping.interval.is_zero() {
        return Err(Error::Interval);
    }
    // Other kinds of probes are not built yet: those of this protocol's version are echoes.
    let ProbeKind::Echo { id } = ping.kind else { return Err(Error::Ipv6 { src: ping.src, dst: ping.dst }) };
    Ok(Header { src, dst, id })
}

/// The whole run, already in the namespace.
fn inject(
    ping: &Ping,
    header: Header,
    stopped: impl Fn() -> bool,
    mut on_probe: impl FnMut(Probe),
) -> Result<(), Error> {
    let mut socket = EchoSocket::open(header.src, header.id)?;
    let ttl = socket.default_ttl()?;
    let mut pending = Pending::new(ping.timeout);
    let first_ip_id: u16 = rand::random();
    let mut sent = 0;
    let mut next_send = Instant::now();
    while sent < ping.count || !pending.is_empty() {
        if stopped() {
            break;
        }
        let now = Instant::now();
        if sent < ping.count && now >= next_send {
            sent += 1;
            let probe = Probe {
                seq: sent,
                id: header.id,
                ip_id: ip_id(first_ip_id, sent),
                nonce: ping.nonce_base.wrapping_add(u64::from(sent)),
                protocol: 1,
                ..Probe::default()
            };
            match send(&mut socket, &header, &probe, ttl, ping.size) {
                Ok((key, at)) => pending.sent(probe, key, at),
                // Built, and then refused on its way out, by a netfilter rule or a full queue: a probe that got no
                // further. Its path is what the trace is for.
                Err(Errno::EPERM | Errno::ENOBUFS) => on_probe(probe),
                Err(cause) => {
                    pending.drain().for_each(&mut on_probe);
                    return Err(Error::Send { seq: sent, dst: header.dst, cause });
                }
            }
            // Late by more than an interval (a stopped machine): go on from here instead of catching up in a burst.
            next_send = (next_send + ping.interval).max(now);
        } else {
            let wake = if sent < ping.count { Some(next_send) } else { None };
            let wake = wake.into_iter().chain(pending.next_deadline()).min();
            let pause = wake.map_or(STOP_CHECK, |at| at.saturating_duration_since(now)).min(STOP_CHECK);
            socket.wait(pause)?;
        }
        loop {
            let answer = socket.receive(&header)?;
            // In this order, because an answer's request has its stamp by now.
            while let Some((key, at)) = socket.handed_over()? {
                pending.queued(key, at);
            }
            let Some((answer, at)) = answer else { break };
            pending.answer(answer, at).into_iter().for_each(&mut on_probe);
        }
        pending.expire(Instant::now()).for_each(&mut on_probe);
    }
    pending.drain().for_each(on_probe);
    Ok(())
}

/// Sends one probe; the time is read right before. Returns the key of its stamp too.
fn send(
    socket: &mut EchoSocket,
    header: &Header,
    probe: &Probe,
    ttl: u8,
    size: u16,
) -> Result<(u32, pending::SendTime), Errno> {
    let bytes = header.echo_request(probe, ttl, size);
    let at = pending::SendTime::now();
    let key = socket.send(&bytes, header.dst)?;
    Ok((key, at))
}

/// The IP id of probe `seq`: a different one for each, and never 0, which the kernel would replace by one of its own.
fn ip_id(first: u16, seq: u16) -> u16 {
    // Counts through 1..=65535, which are as many as there are sequence numbers.
    let ids = u32::from(u16::MAX);
    let at = (u32::from(first) + u32::from(seq)) % ids;
    u16::try_from(at + 1).expect("at most 65535 by the remainder")
}
