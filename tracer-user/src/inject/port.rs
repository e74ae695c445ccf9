//! Source ports of TCP and UDP probes.
//!
//! Probes are written by hand, so no socket of the kernel's owns their ports. One that is merely bound does: while it is
//! open, neither bind(2) of another program (there is no SO_REUSEADDR on ours) nor the kernel's own choice for a
//! connect(2) takes that port (`inet_csk_bind_conflict`, `__inet_hash_connect`), so that no answer to a probe meets
//! somebody's connection.
//!
//! **TCP.** A bound socket that neither listens nor connects is not found by an arriving segment. So the source's own kernel
//! answers the SYN+ACK to our SYN: with a RST whose sequence number is what the SYN+ACK acknowledged (`tcp_v4_send_reset`
//! in net/ipv4/tcp_ipv4.c). That is the very RST we would send, at once, and it passes netfilter and conntrack on its way
//! like any packet: the server forgets the half-open connection, conntrack closes its entry. We need send nothing more.
//! Also where the SYN+ACK comes too late for us, or only a later one of the server's. If none of them comes, the server gives
//! up by itself (net.ipv4.tcp_synack_retries, after about a minute). A RST of ours behind each unanswered SYN would not wait
//! for that, but where it was the SYN that was dropped, it would raise the counters of rules by which the drop is explained.
//!
//! **UDP.** Answers come to the bound socket and are read from it. Without it the kernel would answer an answer with port
//! unreachable.

use std::{
    io::IoSliceMut,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockFlag, SockType, SockaddrStorage, bind, getsockname, recvmsg, socket},
};

use super::{
    Error,
    answer::{Answered, Proof},
    packet::Header,
    pending::ReceiveTime,
    socket::{CONTROL, family, peer, receive_time, stamp_received},
};
use crate::{path::Answer, session::ProbeKind};

/// A port that no other program has until this is dropped.
#[derive(Debug)]
pub(super) struct Port {
    fd: OwnedFd,
    pub(super) number: u16,
    /// Where answers come from; None: not to this socket.
    answers_from: Option<SocketAddr>,
}

impl Port {
    /// Has the kernel choose a free one, in the thread's namespace. None for probes that have no port.
    pub(super) fn reserve(header: &Header) -> Result<Option<Self>, Error> {
        let (kind, answers_from) = match header.kind {
            ProbeKind::Echo { .. } => return Ok(None),
            ProbeKind::Tcp { .. } => (SockType::Stream, None),
            ProbeKind::Udp { dst_port } => (SockType::Datagram, Some(SocketAddr::new(header.dst(), dst_port))),
        };
        let src = header.src();
        let failed = |operation| move |cause| Error::Socket { operation, src, cause };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family(src), kind, flags, None).map_err(failed("socket"))?;
        if answers_from.is_some() {
            stamp_received(&fd).map_err(failed("setsockopt SO_TIMESTAMPING"))?;
        }
        let any = SocketAddr::new(src, 0);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(any)).map_err(failed("bind"))?;
        let bound: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(failed("getsockname"))?;
        let number = peer(&bound).map_or(0, |address| address.port());
        Ok(Some(Self { fd, number, answers_from }))
    }

    /// To be polled, if answers come here.
    pub(super) fn pollable(&self) -> Option<BorrowedFd<'_>> {
        self.answers_from.map(|_| self.fd.as_fd())
    }

    /// The answer that came; None if there is none now.
    pub(super) fn receive(&self, header: &Header) -> Result<Option<(Answered, ReceiveTime)>, Error> {
        let (mut content, mut control) = ([0; 8], vec![0; CONTROL]);
        loop {
            let mut iov = [IoSliceMut::new(&mut content)];
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmsg::<SockaddrStorage>(self.fd.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Ok(message) if message.address.as_ref().and_then(peer) == self.answers_from => {
                    let answered = Answered { key: self.number, proof: Proof::Port, answer: Answer::Reply };
                    return Ok(Some((answered, receive_time(&message))));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(cause) => return Err(Error::Socket { operation: "recvmsg", src: header.src(), cause }),
            }
        }
    }
}
