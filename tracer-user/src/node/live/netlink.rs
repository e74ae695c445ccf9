//! Blocking requests over one netlink socket.
//!
//! A netlink socket belongs to the namespace it was created in, wherever its thread goes afterwards.

use std::{fmt::Debug, io};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
};

use super::{error::Failure, rules::attributes::Raw};

/// The kernel fills at most this much per read of a dump (`net/netlink/af_netlink.c`, netlink_dump), bytes.
const BUFFER: usize = 32 * 1024;
/// The kernel answers at once; this only bounds the damage if it does not, seconds.
const PATIENCE_S: i64 = 5;
/// Attempts at a list that changes while it is read. On a node where pods come and go all the time the last one
/// counts as it is: a node half seen is better than none.
const ATTEMPTS: u32 = 4;

/// What a netlink protocol's message must be able to do.
pub(super) trait Message: NetlinkSerializable + NetlinkDeserializable + Debug + Clone {}
impl<T: NetlinkSerializable + NetlinkDeserializable + Debug + Clone> Message for T {}

/// One netlink socket in one namespace.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What one datagram of answers said.
struct Progress {
    /// Nothing follows.
    done: bool,
    /// The list changed while the kernel walked it.
    interrupted: bool,
}

impl Netlink {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE`, ...) in the calling thread's namespace.
    pub(super) fn open(protocol: isize) -> Result<Self, Failure> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(Failure::Socket)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Asks for one object and returns the kernel's one answer.
    pub(super) fn get<M: Message>(&mut self, message: M) -> Result<M, Failure> {
        self.send(message, NLM_F_REQUEST)?;
        loop {
            let mut answer = None;
            let progress = self.receive(|m| {
                answer.get_or_insert(m);
            })?;
            match answer {
                Some(answer) => return Ok(answer?),
                None if progress.done => return Err(Failure::Refused(io::ErrorKind::NotFound.into())),
                None => {}
            }
        }
    }

    /// Lists what `message` asks for, keeping what `keep` makes something of.
    ///
    /// An object that the decoder does not understand is left out and logged: newer kernels have odder objects,
    /// and one strange device must not hide the node.
    pub(super) fn dump<M: Message, T>(
        &mut self,
        message: &M,
        mut keep: impl FnMut(M) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let last = attempt == ATTEMPTS;
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut found = Vec::new();
            let mut changed = false;
            loop {
                let progress = self.receive(|m| match m {
                    Ok(m) => found.extend(keep(m)),
                    Err(error) => tracing::warn!(%error, "left an object out of a netlink list"),
                })?;
                changed |= progress.interrupted;
                if progress.done {
                    break;
                }
            }
            if changed && last {
                tracing::warn!("a netlink list changed {ATTEMPTS} times while it was read; it may lack something");
            }
            if !changed || last {
                return Ok(found);
            }
        }
    }

    /// Lists what `message` asks for as long as `more` wants more; false: it did not want all, or the list changed meanwhile.
    /// A socket that was left in the middle of a list is of no more use, so it ends here.
    pub(super) fn dump_while<M: Message>(
        mut self,
        message: M,
        mut more: impl FnMut(M) -> bool,
    ) -> Result<bool, Failure> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        loop {
            let mut whole = true;
            let progress = self.receive(|m| whole &= m.is_ok_and(&mut more))?;
            if progress.done || !whole || progress.interrupted {
                return Ok(whole && !progress.interrupted);
            }
        }
    }

    /// Changes something of nfnetlink's `subsystem`: all of `messages` or, if one is refused, none
    /// (`net/netfilter/nfnetlink.c`, nfnetlink_rcv_batch).
    pub(super) fn batch(&mut self, subsystem: u16, messages: &[Raw]) -> Result<(), Failure> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        const CHANGE: u16 = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        self.sequence += 1;
        let mark = |kind| (Raw { kind, resource: subsystem, ..Raw::default() }, NLM_F_REQUEST);
        let inside = messages.iter().map(|message| (message.clone(), CHANGE));
        let mut bytes = Vec::new();
        for (message, flags) in [mark(BEGIN)].into_iter().chain(inside).chain([mark(END)]) {
            bytes.extend(self.encoded(message, flags));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        self.socket.send(&bytes, 0).map_err(Failure::Socket)?;
        // Each is acknowledged in a datagram of its own.
        for _ in messages {
            self.receive(|_: Result<Raw, DecodeError>| {})?;
        }
        Ok(())
    }

    fn encoded<M: Message>(&self, message: M, flags: u16) -> Vec<u8> {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        packet.header.flags = flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        bytes
    }

    fn send<M: Message>(&mut self, message: M, flags: u16) -> Result<(), Failure> {
        self.sequence += 1;
        let bytes = self.encoded(message, flags);
        self.socket.send(&bytes, 0).map_err(Failure::Socket)?;
        Ok(())
    }

    /// Reads one datagram, hands its objects to `each`, and says whether the answer is complete.
    fn receive<M: Message>(&mut self, mut each: impl FnMut(Result<M, DecodeError>)) -> Result<Progress, Failure> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Socket(error)),
            }
        }
        let (mut rest, mut interrupted) = (self.buffer.as_slice(), false);
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest)?;
            let (length, sequence) = (header.length() as usize, header.sequence_number());
            interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            let bytes = &rest[..length];
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if sequence != self.sequence {
                continue; // The tail of an answer that was given up.
            }
            match NetlinkMessage::<M>::deserialize(bytes) {
                Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => each(Ok(message)),
                Ok(NetlinkMessage { payload: NetlinkPayload::Done(done), .. }) => {
                    return match done.code {
                        0 => Ok(Progress { done: true, interrupted }),
                        code => Err(Failure::Refused(io::Error::from_raw_os_error(code.abs()))),
                    };
                }
                Ok(NetlinkMessage { payload: NetlinkPayload::Error(error), .. }) => {
                    return match error.code {
                        None => Ok(Progress { done: true, interrupted }),
                        Some(_) => Err(Failure::Refused(error.to_io())),
                    };
                }
                Ok(_) => {}
                Err(error) => each(Err(error)),
            }
        }
        Ok(Progress { done: false, interrupted })
    }
}

/// A socket that only hears.
pub(super) struct Watch {
    socket: Socket,
}

impl Watch {
    /// Subscribes to the multicast `groups` of `protocol` in the calling thread's namespace.
    pub(super) fn open(protocol: isize, groups: &[u32]) -> Result<Self, Failure> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            for group in groups {
                socket.add_membership(*group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(Failure::Socket)? })
    }

    /// Makes room for many messages, bytes. More than the system's limit needs CAP_NET_ADMIN.
    pub(super) fn widen(&self, bytes: usize) {
        // What there is without it will do for most.
        let _refused = setsockopt(&self.socket, sockopt::RcvBufForce, &bytes);
    }

    /// Hands to `each` what was heard since the last call; true: some of it was lost. Never blocks.
    pub(super) fn messages<M: Message>(&self, mut each: impl FnMut(M)) -> bool {
        let (mut buffer, mut lost) = (Vec::with_capacity(BUFFER), false);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {
                    if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
                        NetlinkMessage::<M>::deserialize(&buffer)
                    {
                        each(message);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return lost,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(_) => return true,
            }
        }
    }

    /// Has anything been heard since the last call? Never blocks. Too much to be kept counts as heard.
    pub(super) fn heard(&self) -> bool {
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut heard = false;
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => heard = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: the kernel threw notices away, and says so once.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(_) => return true,
            }
        }
    }
}
