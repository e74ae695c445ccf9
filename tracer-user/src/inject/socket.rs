//! The raw ICMP socket.

use std::{
    io::IoSliceMut,
    mem::size_of_val,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind,
            getsockopt, recvmsg, sendto, socket, sockopt,
        },
        time::TimeSpec,
    },
};

use super::{
    Error,
    packet::{Answer, Header},
    pending::ReceiveTime,
};

/// Stamps on both ways: on what is received, when its device delivers it; on what is sent, when it is handed to its
/// device's queue (in `__dev_queue_xmit`, net/core/dev.c). The latter come through the socket's error queue, numbered in
/// the order of sending, each as a packet of its own without the sent one's content: nothing is cloned, so the traced
/// packet takes its way alone.
const STAMPS: libc::c_uint = libc::SOF_TIMESTAMPING_SOFTWARE
    | libc::SOF_TIMESTAMPING_RX_SOFTWARE
    | libc::SOF_TIMESTAMPING_TX_SCHED
    | libc::SOF_TIMESTAMPING_OPT_ID
    | libc::SOF_TIMESTAMPING_OPT_TSONLY;

/// Sends packets whole (`IP_HDRINCL`), receives answers to probes with one ICMP id.
pub(super) struct EchoSocket {
    fd: OwnedFd,
    src: Ipv4Addr,
    /// The number that the kernel gives the stamp of the next packet.
    next_key: u32,
    buffer: Vec<u8>,
    control: Vec<u8>,
}

impl EchoSocket {
    /// Opens it in the thread's namespace, bound to `src`.
    pub(super) fn open(src: Ipv4Addr, id: u16) -> Result<Self, Error> {
        let failed = |operation| move |cause| Error::Socket { operation, src, cause };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp).map_err(failed("socket"))?;
        attach_filter(&fd, id).map_err(failed("setsockopt SO_ATTACH_FILTER"))?;
        include_header(&fd).map_err(failed("setsockopt IP_HDRINCL"))?;
        set(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &STAMPS).map_err(failed("setsockopt SO_TIMESTAMPING"))?;
        let [a, b, c, d] = src.octets();
        bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).map_err(failed("bind"))?;
        // Of an answer only the headers and the nonce matter.
        let control = nix::cmsg_space!([libc::timespec; 3], libc::sock_extended_err, libc::sockaddr_in);
        Ok(Self { fd, src, next_key: 0, buffer: vec![0; 256], control })
    }

    /// `net.ipv4.ip_default_ttl` of the namespace: what a socket without a TTL of its own says it has
    /// (`do_ip_getsockopt` in net/ipv4/ip_sockglue.c).
    pub(super) fn default_ttl(&self) -> Result<u8, Error> {
        let ttl = getsockopt(&self.fd, sockopt::Ipv4Ttl).map_err(self.failed("getsockopt IP_TTL"))?;
        Ok(u8::try_from(ttl).unwrap_or(64))
    }

    /// Sends an IP packet; returns the key under which [`Self::handed_over`] tells when it left.
    pub(super) fn send(&mut self, packet: &[u8], dst: Ipv4Addr) -> Result<u32, Errno> {
        let [a, b, c, d] = dst.octets();
        let to = SockaddrIn::new(a, b, c, d, 0);
        let key = self.next_key;
        loop {
            match sendto(self.fd.as_raw_fd(), packet, &to, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                sent => {
                    // A packet that was built and then refused has taken a number too (`raw_send_hdrinc` in
                    // net/ipv4/raw.c); after any other error nothing more is sent.
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

    /// Waits until something can be received, at most for `pause`.
    pub(super) fn wait(&self, pause: Duration) -> Result<(), Error> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(pause)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(cause) => Err(self.failed("ppoll")(cause)),
        }
    }

    /// The next answer to a probe of `header`; None if there is none now.
    pub(super) fn receive(&mut self, header: &Header) -> Result<Option<(Answer, ReceiveTime)>, Error> {
        let failed = self.failed("recvmsg");
        loop {
            let mut iov = [IoSliceMut::new(&mut self.buffer)];
            let control = Some(self.control.as_mut_slice());
            let (length, kernel) = match recvmsg::<()>(self.fd.as_raw_fd(), &mut iov, control, MsgFlags::MSG_DONTWAIT) {
                Ok(message) => {
                    (message.bytes, message.cmsgs().ok().and_then(|mut all| all.find_map(|part| stamp(&part))))
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(cause) => return Err(failed(cause)),
            };
            let at = ReceiveTime { monotonic: Instant::now(), kernel };
            if let Some(answer) = self.buffer.get(..length).and_then(|packet| header.answer(packet)) {
                return Ok(Some((answer, at)));
            }
        }
    }

    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> Error + use<> {
        let src = self.src;
        move |cause| Error::Socket { operation, src, cause }
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
        ControlMessageOwned::Ipv4RecvErr(about, _) if about.ee_origin == libc::SO_EE_ORIGIN_TIMESTAMPING => {
            Some(about.ee_data)
        }
        _ => None,
    }
}

/// Lets the kernel drop what cannot answer our probes: a busy node gets many ICMP packets, and each raw socket gets a
/// copy of each. The packet begins at its IP header (`raw_rcv` in net/ipv4/raw.c).
fn attach_filter(fd: &OwnedFd, id: u16) -> Result<(), Errno> {
    let mut program = filter(id);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a dozen instructions"),
        filter: program.as_mut_ptr(),
    };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn include_header(fd: &OwnedFd) -> Result<(), Errno> {
    set::<libc::c_int>(fd, libc::IPPROTO_IP, libc::IP_HDRINCL, &1)
}

/// `setsockopt` for the options that nix does not have, or not with all their values.
fn set<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of_val(value)).expect("options are small");
    // SAFETY: `value` is a live T of `length` bytes, of the type this option takes; the kernel only reads it (and the
    // instructions a sock_fprog points to, which outlive the call) and keeps no pointer.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    Errno::result(result).map(drop)
}

/// Accepts echo replies with our id, and ICMP errors that quote an ICMP echo with our id (with no IP options in the
/// quoted header: we send none).
fn filter(id: u16) -> Vec<libc::sock_filter> {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    const LOAD_HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).expect("opcodes have 16 bits"),
        jt,
        jf,
        k,
    };
    vec![
        step(LOAD_HEADER_LENGTH, 0, 0, 0),
        step(LOAD_BYTE, 0, 0, 0),
        // Echo reply: on to its id, at 10. Error types: on to what they quote, at 6. Else to the end, at 13.
        step(JUMP_IF_EQUAL, 7, 0, 0),
        step(JUMP_IF_EQUAL, 2, 0, 3),
        step(JUMP_IF_EQUAL, 1, 0, 11),
        step(JUMP_IF_EQUAL, 0, 7, 12),
        step(LOAD_BYTE, 0, 0, 8 + 9),
        step(JUMP_IF_EQUAL, 0, 5, 1),
        step(LOAD_HALF, 0, 0, 8 + 20 + 4),
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(LOAD_HALF, 0, 0, 4),
        step(JUMP_IF_EQUAL, 0, 1, u32::from(id)),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}
