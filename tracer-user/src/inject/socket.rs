//! Raw sockets.

use std::{
    io::IoSliceMut,
    mem::size_of_val,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, RecvMsg, SockFlag, SockProtocol, SockType, SockaddrLike,
        SockaddrStorage, bind, getsockopt, recvmsg, sendto, socket, sockopt,
    },
};

use super::{
    Error,
    answer::{Answered, ipv4_header_length},
    packet::{Ends, Header},
    pending::ReceiveTime,
};
use crate::session::ProbeKind;

/// On what is received: when its device delivers it.
const RECEIVE_STAMPS: libc::c_uint = libc::SOF_TIMESTAMPING_SOFTWARE | libc::SOF_TIMESTAMPING_RX_SOFTWARE;

/// Also on what is sent, when it is handed to its device's queue (in `__dev_queue_xmit`, net/core/dev.c). These come through
/// the socket's error queue, numbered in the order of sending, each as a packet of its own without the sent one's content:
/// nothing is cloned, so the traced packet takes its way alone.
const STAMPS: libc::c_uint = RECEIVE_STAMPS
    | libc::SOF_TIMESTAMPING_TX_SCHED
    | libc::SOF_TIMESTAMPING_OPT_ID
    | libc::SOF_TIMESTAMPING_OPT_TSONLY;

/// Room for control messages: stamps, and of the error queue what they are about. Bytes; too small would lose some.
pub(super) const CONTROL: usize = 256;

/// What a raw socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receives {
    /// Answers.
    Answers,
    /// ICMP errors.
    Errors,
}

/// Sends packets whole (`IP_HDRINCL`), receives what comes back for them.
pub(super) struct RawSocket {
    fd: OwnedFd,
    src: IpAddr,
    receives: Receives,
    /// The number that the kernel gives the stamp of the next packet.
    next_key: u32,
    buffer: Vec<u8>,
    control: Vec<u8>,
}

impl RawSocket {
    /// Sends probes and receives their answers. In the thread's namespace, bound to the source.
    pub(super) fn of_probes(header: &Header) -> Result<Self, Error> {
        let protocol = match header.kind {
            ProbeKind::Echo { .. } => icmp(header),
            ProbeKind::Tcp { .. } => SockProtocol::Tcp,
            // Receives nothing.
            ProbeKind::Udp { .. } => SockProtocol::Raw,
        };
        let opened = Self::open(header, protocol, &header.filter(), Receives::Answers)?;
        let (level, whole, discovery, probe) = match header.ends {
            Ends::V4(..) => (libc::IPPROTO_IP, libc::IP_HDRINCL, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            Ends::V6(..) => {
                (libc::IPPROTO_IPV6, libc::IPV6_HDRINCL, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
            }
        };
        set::<libc::c_int>(&opened.fd, level, whole, &1).map_err(opened.failed("setsockopt IP_HDRINCL"))?;
        // A path MTU learned before, from the answer to the last probe it may be, must not keep the next one in:
        // only the interface's own counts (`ip_skb_dst_mtu` in include/net/ip.h).
        set(&opened.fd, level, discovery, &probe).map_err(opened.failed("setsockopt IP_MTU_DISCOVER"))?;
        let stamps = "setsockopt SO_TIMESTAMPING";
        set(&opened.fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &STAMPS).map_err(opened.failed(stamps))?;
        Ok(opened)
    }

    /// Receives ICMP errors about probes that are not ICMP themselves.
    pub(super) fn of_errors(header: &Header) -> Result<Self, Error> {
        let opened = Self::open(header, icmp(header), &header.error_filter(), Receives::Errors)?;
        stamp_received(&opened.fd).map_err(opened.failed("setsockopt SO_TIMESTAMPING"))?;
        Ok(opened)
    }

    fn open(
        header: &Header,
        protocol: SockProtocol,
        filter: &[libc::sock_filter],
        receives: Receives,
    ) -> Result<Self, Error> {
        let src = header.src();
        let failed = |operation| move |cause| Error::Socket { operation, src, cause };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family(src), SockType::Raw, flags, protocol).map_err(failed("socket"))?;
        attach_filter(&fd, filter).map_err(failed("setsockopt SO_ATTACH_FILTER"))?;
        bind(fd.as_raw_fd(), &address(src)).map_err(failed("bind"))?;
        // Of an answer only the headers and the nonce matter.
        Ok(Self { fd, src, receives, next_key: 0, buffer: vec![0; 256], control: vec![0; CONTROL] })
    }

    /// The namespace's default TTL or hop limit: what a socket without one of its own says it has (`do_ip_getsockopt` in
    /// net/ipv4/ip_sockglue.c, `do_ipv6_getsockopt` in net/ipv6/ipv6_sockglue.c).
    pub(super) fn default_hops(&self) -> Result<u8, Error> {
        let hops = match self.src {
            IpAddr::V4(_) => getsockopt(&self.fd, sockopt::Ipv4Ttl).map_err(self.failed("getsockopt IP_TTL"))?,
            IpAddr::V6(_) => {
                getsockopt(&self.fd, sockopt::Ipv6Ttl).map_err(self.failed("getsockopt IPV6_UNICAST_HOPS"))?
            }
        };
        Ok(u8::try_from(hops).unwrap_or(64))
    }

    /// Sends an IP packet; returns the key under which [`Self::handed_over`] tells when it left.
    pub(super) fn send(&mut self, packet: &[u8], dst: IpAddr) -> Result<u32, Errno> {
        let key = self.next_key;
        loop {
            match sendto(self.fd.as_raw_fd(), packet, &address(dst), MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                // No room for it in the send buffer (`sock_alloc_send_pskb` in net/core/sock.c): it took no number.
                Err(Errno::EAGAIN) => return Err(Errno::EAGAIN),
                sent => {
                    // A packet that was built and then refused has taken a number too (`raw_send_hdrinc` in
                    // net/ipv4/raw.c, `rawv6_send_hdrinc` in net/ipv6/raw.c); after any other error nothing more is sent.
                    self.next_key = key.wrapping_add(1);
                    return sent.map(|_| key);
                }
            }
        }
    }

    /// The key of a packet, and when its device's queue got it; None if there is no news now. A packet that passes
    /// several devices is told of once for each, in order.
    pub(super) fn handed_over(&mut self) -> Result<Option<(u32, SystemTime)>, Error> {
        let failed = self.failed("recvmsg MSG_ERRQUEUE");
        loop {
            let mut iov = [IoSliceMut::new(&mut self.buffer)];
            let control = Some(self.control.as_mut_slice());
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let (mut key, mut at) = (None, None);
            match recvmsg::<()>(self.fd.as_raw_fd(), &mut iov, control, flags) {
                Ok(message) => {
                    for part in message.cmsgs().into_iter().flatten() {
                        at = at.or(stamp(&part));
                        key = key.or(stamped(&part));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(cause) => return Err(failed(cause)),
            }
            if let (Some(key), Some(at)) = (key, at) {
                return Ok(Some((key, at)));
            }
        }
    }

    /// To be polled.
    pub(super) fn pollable(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next answer to a probe of `header`; None if there is none now.
    pub(super) fn receive(&mut self, header: &Header) -> Result<Option<(Answered, ReceiveTime)>, Error> {
        let failed = self.failed("recvmsg");
        loop {
            let mut iov = [IoSliceMut::new(&mut self.buffer)];
            let control = Some(self.control.as_mut_slice());
            let flags = MsgFlags::MSG_DONTWAIT;
            let (length, from, at) = match recvmsg::<SockaddrStorage>(self.fd.as_raw_fd(), &mut iov, control, flags) {
                Ok(message) => (message.bytes, message.address.as_ref().and_then(peer), receive_time(&message)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(cause) => return Err(failed(cause)),
            };
            let answered =
                from.zip(content(header, &self.buffer[..length])).and_then(|(from, content)| match self.receives {
                    Receives::Answers => header.answer(from.ip(), content),
                    Receives::Errors => header.error(from.ip(), content),
                });
            if let Some(answered) = answered {
                return Ok(Some((answered, at)));
            }
        }
    }

    /// Whatever is asked of it from now on fails.
    #[cfg(test)]
    pub(super) fn break_off(&mut self) {
        self.fd = std::fs::File::open("/dev/null").expect("opens").into();
    }

    pub(super) fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> Error + use<> {
        let src = self.src;
        move |cause| Error::Socket { operation, src, cause }
    }
}

/// A socket that nothing is ever sent to, and that wants stamps: while one such socket is open, the kernel takes them, of
/// both families. It begins with that some milliseconds after it is asked to (`net_enable_timestamp` in net/core/dev.c
/// leaves the work to a queue): too late for the first reply to a probe.
pub(super) fn stamped_socket() -> Result<OwnedFd, Errno> {
    let fd = socket(family(Ipv4Addr::UNSPECIFIED.into()), SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    stamp_received(&fd)?;
    Ok(fd)
}

/// Has the kernel stamp what this socket receives.
pub(super) fn stamp_received(fd: &OwnedFd) -> Result<(), Errno> {
    set(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &RECEIVE_STAMPS)
}

/// When a message was received: now, and by the kernel's stamp.
pub(super) fn receive_time<S: SockaddrLike>(message: &RecvMsg<'_, '_, S>) -> ReceiveTime {
    let kernel = message.cmsgs().ok().and_then(|mut all| all.find_map(|part| stamp(&part)));
    ReceiveTime { monotonic: Instant::now(), kernel }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// A socket's address in terms of the standard library.
pub(super) fn peer(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

fn address(ip: IpAddr) -> SockaddrStorage {
    SocketAddr::new(ip, 0).into()
}

fn icmp(header: &Header) -> SockProtocol {
    match header.ends {
        Ends::V4(..) => SockProtocol::Icmp,
        Ends::V6(..) => SockProtocol::IcmpV6,
    }
}

/// Without the IP header, which IPv6's raw sockets do not deliver.
fn content<'b>(header: &Header, received: &'b [u8]) -> Option<&'b [u8]> {
    match header.ends {
        Ends::V4(..) => received.get(ipv4_header_length(received)?..),
        Ends::V6(..) => Some(received),
    }
}

/// The kernel's own stamp on a packet, received or sent.
fn stamp(part: &ControlMessageOwned) -> Option<SystemTime> {
    match part {
        ControlMessageOwned::ScmTimestampsns(at) => {
            // All zero where the kernel took none.
            let at = Duration::from(at.system);
            (!at.is_zero()).then(|| SystemTime::UNIX_EPOCH.checked_add(at)).flatten()
        }
        _ => None,
    }
}

/// Which packet a message of the error queue is about, if it says when that was sent.
fn stamped(part: &ControlMessageOwned) -> Option<u32> {
    match part {
        ControlMessageOwned::Ipv4RecvErr(about, _) | ControlMessageOwned::Ipv6RecvErr(about, _) => {
            (about.ee_origin == libc::SO_EE_ORIGIN_TIMESTAMPING).then_some(about.ee_data)
        }
        _ => None,
    }
}

fn attach_filter(fd: &OwnedFd, filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let mut filter = filter.to_vec();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("some dozen instructions"),
        filter: filter.as_mut_ptr(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// `setsockopt` for the options that nix does not have, or not with all their values.
fn set<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of_val(value)).expect("options are small");
    // SAFETY: `value` is a live T of `length` bytes, of the type this option takes; the kernel only reads it (and the
    // instructions a sock_fprog points to, which outlive the call) and keeps no pointer.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    Errno::result(result).map(drop)
}
