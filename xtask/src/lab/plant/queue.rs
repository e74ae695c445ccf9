//! The little of nfnetlink_queue that a delay needs (linux/netfilter/nfnetlink_queue.h).
//!
//! Not the crate `nfq`: its socket cannot be polled together with a stop signal, and it is inherited by every
//! process started meanwhile, which would keep the queue alive with nobody reading it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// `NFNL_SUBSYS_QUEUE`, the upper byte of the message types.
const SUBSYSTEM: u16 = 3 << 8;
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_VERDICT: u16 = SUBSYSTEM | 1;
const MSG_CONFIG: u16 = SUBSYSTEM | 2;
const NLMSG_ERROR: u16 = 2;

const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_REQUEST: u16 = 1;

const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_CFG_CMD: u16 = 1;
const NFQA_CFG_PARAMS: u16 = 2;
const NFQA_CFG_MASK: u16 = 4;
const NFQA_CFG_FLAGS: u16 = 5;

const CMD_BIND: u8 = 1;
const COPY_META: u8 = 1;
/// Hand over what segmentation offload left whole as it is; otherwise the kernel would cut it, and make new packets of one.
const FLAG_GSO: u32 = 1 << 2;
const NF_ACCEPT: u32 = 1;

/// Length of `nlmsghdr`, and of `nlmsghdr` with the `nfgenmsg` behind it.
const NLMSG_HEADER: usize = 16;
const HEADERS: usize = NLMSG_HEADER + 4;

/// Which packet of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PacketId(u32);

/// A netfilter queue of the namespace it was bound in, receiving nothing of its packets but their numbers.
#[derive(Debug)]
pub(super) struct Queue {
    socket: OwnedFd,
    number: u16,
}

impl Queue {
    /// Bind to queue `number` of the calling thread's network namespace.
    pub(super) fn bind(number: u16) -> Result<Queue> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                .context("opening a netfilter netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("binding a netlink socket")?;
        let queue = Queue { socket, number };
        queue
            .configure(&[(NFQA_CFG_CMD, &[CMD_BIND, 0, 0, 0])])
            .with_context(|| format!("binding netfilter queue {number} (another process may have it)"))?;
        queue.configure(&[(NFQA_CFG_PARAMS, &[0, 0, 0, 0, COPY_META])])?;
        let gso = FLAG_GSO.to_be_bytes();
        queue.configure(&[(NFQA_CFG_FLAGS, &gso), (NFQA_CFG_MASK, &gso)])?;
        Ok(queue)
    }

    fn configure(&self, attributes: &[(u16, &[u8])]) -> Result<()> {
        self.send(&message(MSG_CONFIG, NLM_F_REQUEST_ACK, self.number, attributes))?;
        let mut buffer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .context("reading the answer of nfnetlink_queue")?;
        match acknowledgement(&buffer[..length]) {
            Some(0) => Ok(()),
            Some(code) => Err(Errno::from_raw(code)).context("nfnetlink_queue refused"),
            None => bail!("nfnetlink_queue answered something that is no acknowledgement"),
        }
    }

    /// The packets that have come in since the last call.
    pub(super) fn receive(&self) -> Result<Vec<PacketId>> {
        let mut packets = Vec::new();
        let mut buffer = [0; 16384];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => packets.extend(packets_in(&buffer[..length])),
                Err(Errno::EAGAIN) => return Ok(packets),
                // The kernel dropped packets, for this socket's buffer was full: a delay that lost some is none.
                Err(error) => return Err(error).context("reading from the netfilter queue"),
            }
        }
    }

    /// Let a packet go on, unchanged.
    pub(super) fn accept(&self, PacketId(packet): PacketId) -> Result<()> {
        let mut verdict = NF_ACCEPT.to_be_bytes().to_vec();
        verdict.extend(packet.to_be_bytes());
        self.send(&message(MSG_VERDICT, NLM_F_REQUEST, self.number, &[(NFQA_VERDICT_HDR, &verdict)]))
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), message, MsgFlags::empty()).context("writing to nfnetlink_queue").map(drop)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `nlmsghdr`, `nfgenmsg` and attributes: netlink's numbers in this machine's order, netfilter's in the network's.
fn message(kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend(queue.to_be_bytes());
    for (kind, value) in attributes {
        // The longest value here has 8 bytes.
        body.extend((4 + value.len() as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = ((NLMSG_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: the kernel needs neither.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The messages of a datagram, as type and whole message.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
        let message = datagram.get(..length).filter(|message| message.len() >= NLMSG_HEADER)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

/// The error number of the first acknowledgement, 0 for success.
fn acknowledgement(datagram: &[u8]) -> Option<i32> {
    let (_, message) = messages(datagram).find(|(kind, _)| *kind == NLMSG_ERROR)?;
    Some(-i32::from_ne_bytes(*message.get(NLMSG_HEADER..)?.first_chunk()?))
}

fn packets_in(datagram: &[u8]) -> impl Iterator<Item = PacketId> {
    messages(datagram).filter(|(kind, _)| *kind == MSG_PACKET).filter_map(|(_, message)| {
        let mut attributes = message.get(HEADERS..)?;
        loop {
            let length = u16::from_ne_bytes(*attributes.first_chunk()?) as usize;
            let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
            if kind == NFQA_PACKET_HDR {
                let id = *attributes.get(4..length)?.first_chunk()?;
                return Some(PacketId(u32::from_be_bytes(id)));
            }
            attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_laid_out_as_the_kernel_reads_it() {
        let message = message(MSG_VERDICT, NLM_F_REQUEST, 7, &[(NFQA_VERDICT_HDR, &[0, 0, 0, 1, 0, 0, 0, 9])]);
        let mut expected = 32u32.to_ne_bytes().to_vec();
        expected.extend(0x301u16.to_ne_bytes());
        expected.extend(1u16.to_ne_bytes());
        expected.extend([0; 8]);
        expected.extend([0, 0, 0, 7]);
        expected.extend(12u16.to_ne_bytes());
        expected.extend(2u16.to_ne_bytes());
        expected.extend([0, 0, 0, 1, 0, 0, 0, 9]);
        assert_eq!(message, expected);
    }

    #[test]
    fn packets_are_found_behind_other_attributes_and_in_every_message() {
        let header = [0, 0, 0, 42, 8, 0, 2];
        let mut datagram = message(MSG_PACKET, 0, 1, &[(3, &[1]), (NFQA_PACKET_HDR, &header)]);
        datagram.extend(message(MSG_PACKET, 0, 1, &[(NFQA_PACKET_HDR, &header)]));
        let packets: Vec<PacketId> = packets_in(&datagram).collect();
        assert_eq!(packets, [PacketId(42), PacketId(42)]);
    }

    #[test]
    fn a_datagram_cut_anywhere_is_no_packet_and_no_panic() {
        let datagram = message(MSG_PACKET, 0, 1, &[(3, &[1]), (NFQA_PACKET_HDR, &[0, 0, 0, 42, 8, 0, 2])]);
        for end in 0..datagram.len() {
            assert_eq!(packets_in(&datagram[..end]).count(), 0, "{end}");
        }
    }

    #[test]
    fn a_refusal_carries_its_error_number() {
        let mut refusal = message(NLMSG_ERROR, 0, 0, &[]);
        refusal.truncate(NLMSG_HEADER);
        refusal.extend((-16i32).to_ne_bytes());
        refusal[..4].copy_from_slice(&20u32.to_ne_bytes());
        assert_eq!(acknowledgement(&refusal), Some(16));
        assert_eq!(acknowledgement(&[]), None);
    }
}
