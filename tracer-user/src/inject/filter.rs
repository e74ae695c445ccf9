//! What the kernel drops before it wakes us: each raw socket gets a copy of every packet of its protocol, and a busy node
//! has many. What a filter lets pass is read again in [`super::answer`].

use nix::libc;

use super::{
    answer::{ERRORS, ERRORS_V6},
    packet::{Ends, Header, IPV4_HEADER, IPV6_HEADER, RST, SYN},
};
use crate::session::ProbeKind;

/// A condition on bytes of what the IP packet carries.
enum Test {
    /// The byte at this place is one of these.
    Byte(usize, Vec<u8>),
    /// The 16 bits at this place are this.
    Half(usize, u16),
    /// The byte at this place has one of these bits.
    Bits(usize, u8),
}

impl Header {
    /// Accepts answers to probes at the socket that sends them.
    pub(super) fn filter(&self) -> Vec<libc::sock_filter> {
        match self.kind {
            ProbeKind::Echo { id } => {
                let reply = if self.is_ipv4() { 0 } else { 129 };
                self.program(&[vec![Test::Byte(0, vec![reply]), Test::Half(4, id)], self.quoting()])
            }
            ProbeKind::Tcp { dst_port } => self.program(&[vec![Test::Half(0, dst_port), Test::Bits(13, SYN | RST)]]),
            ProbeKind::Udp { .. } => self.program(&[]),
        }
    }

    /// Accepts ICMP errors about probes.
    pub(super) fn error_filter(&self) -> Vec<libc::sock_filter> {
        self.program(&[self.quoting()])
    }

    /// An ICMP error that quotes one of our probes: they have no IP options and no extension headers.
    fn quoting(&self) -> Vec<Test> {
        const ERROR_HEADER: usize = 8;
        let (kinds, protocol, length) = match self.ends {
            Ends::V4(..) => (ERRORS.to_vec(), 9, IPV4_HEADER),
            Ends::V6(..) => (ERRORS_V6.to_vec(), 6, IPV6_HEADER),
        };
        let content = ERROR_HEADER + length;
        let number = match self.kind {
            ProbeKind::Echo { id } => Test::Half(content + 4, id),
            ProbeKind::Tcp { dst_port } | ProbeKind::Udp { dst_port } => Test::Half(content + 2, dst_port),
        };
        vec![Test::Byte(0, kinds), Test::Byte(ERROR_HEADER + protocol, vec![self.protocol()]), number]
    }

    fn is_ipv4(&self) -> bool {
        matches!(self.ends, Ends::V4(..))
    }

    /// Accepts what passes all tests of one of the lists.
    fn program(&self, lists: &[Vec<Test>]) -> Vec<libc::sock_filter> {
        // IPv4 sockets filter from the IP header on (`raw_rcv` in net/ipv4/raw.c), IPv6 ones behind it (`rawv6_rcv` in
        // net/ipv6/raw.c).
        let mut program = match self.ends {
            Ends::V4(..) => vec![step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0)],
            Ends::V6(..) => vec![step(libc::BPF_LDX | libc::BPF_IMM, 0, 0, 0)],
        };
        for tests in lists {
            program.extend(all(tests));
        }
        program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
        program
    }
}

/// Accepts if all tests pass, else goes on behind.
fn all(tests: &[Test]) -> Vec<libc::sock_filter> {
    let mut program = vec![step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX)];
    for test in tests.iter().rev() {
        let behind = u8::try_from(program.len()).expect("some dozen instructions");
        let mut this = vec![load(test)];
        match test {
            Test::Byte(_, values) => {
                for (place, value) in values.iter().enumerate() {
                    let left = u8::try_from(values.len() - place - 1).expect("a few values");
                    let otherwise = if left == 0 { behind } else { 0 };
                    this.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, left, otherwise, (*value).into()));
                }
            }
            Test::Half(_, value) => {
                this.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, behind, (*value).into()));
            }
            Test::Bits(_, mask) => {
                this.push(step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, behind, (*mask).into()));
            }
        }
        this.append(&mut program);
        program = this;
    }
    program
}

fn load(test: &Test) -> libc::sock_filter {
    let (size, at) = match test {
        Test::Byte(at, _) | Test::Bits(at, _) => (libc::BPF_B, at),
        Test::Half(at, _) => (libc::BPF_H, at),
    };
    step(libc::BPF_LD | size | libc::BPF_IND, 0, 0, u32::try_from(*at).expect("within the headers"))
}

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("opcodes have 16 bits"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::{
        super::packet::{
            ACK,
            tests::{ALL, ECHO, ECHO6, TCP, TCP6, UDP, content, probe},
        },
        *,
    };

    /// The instructions used here, as the kernel runs them; a load beyond the end rejects.
    fn accepts(program: &[libc::sock_filter], packet: &[u8]) -> bool {
        let (mut a, mut x, mut at) = (0_u32, 0_usize, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[at];
            let (code, place) = (u32::from(code), x + k as usize);
            at += 1;
            match code {
                _ if code == libc::BPF_RET | libc::BPF_K => return k > 0,
                _ if code == libc::BPF_LDX | libc::BPF_IMM => x = k as usize,
                _ if code == libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH => x = usize::from(packet[0] & 0xf) * 4,
                _ if code == libc::BPF_LD | libc::BPF_B | libc::BPF_IND => {
                    let Some(byte) = packet.get(place) else { return false };
                    a = u32::from(*byte);
                }
                _ if code == libc::BPF_LD | libc::BPF_H | libc::BPF_IND => {
                    let Some(half) = packet.get(place..place + 2) else { return false };
                    a = u32::from(u16::from_be_bytes([half[0], half[1]]));
                }
                _ => {
                    let jump = if code & 0xf0 == libc::BPF_JSET { a & k != 0 } else { a == k };
                    at += usize::from(if jump { jt } else { jf });
                }
            }
        }
    }

    /// As the socket's filter sees content.
    fn received(header: &Header, content: &[u8]) -> Vec<u8> {
        let mut bytes = if header.is_ipv4() { vec![0x46; 24] } else { Vec::new() };
        bytes.extend(content);
        bytes
    }

    #[test]
    fn echo_replies_pass_by_their_id() {
        for header in [ECHO, ECHO6] {
            let mut reply = header.packet(&probe(&header, 1), 64, 8)[content(&header)..].to_vec();
            assert!(!accepts(&header.filter(), &received(&header, &reply)), "our own request");
            reply[0] = if header.is_ipv4() { 0 } else { 129 };
            assert!(accepts(&header.filter(), &received(&header, &reply)));
            assert!(!accepts(&header.error_filter(), &received(&header, &reply)));
            reply[5] ^= 1;
            assert!(!accepts(&header.filter(), &received(&header, &reply)), "another's");
        }
    }

    #[test]
    fn segments_pass_by_port_and_flags() {
        for header in [TCP, TCP6] {
            for (port, flags, passes) in
                [(443, SYN | ACK, true), (443, RST | ACK, true), (443, ACK, false), (80, SYN | ACK, false)]
            {
                let mut segment = header.packet(&probe(&header, 1), 64, 8)[content(&header)..].to_vec();
                segment[..2].copy_from_slice(&u16::to_be_bytes(port));
                segment[13] = flags;
                assert_eq!(accepts(&header.filter(), &received(&header, &segment)), passes, "{port} {flags}");
            }
        }
        assert!(!accepts(&UDP.filter(), &received(&UDP, &[0; 40])), "nothing is received there");
    }

    #[test]
    fn errors_pass_by_what_they_quote() {
        for header in ALL {
            let kinds = if header.is_ipv4() { ERRORS.to_vec() } else { ERRORS_V6.to_vec() };
            let request = header.packet(&probe(&header, 1), 64, 8);
            for kind in 0..=u8::MAX {
                let error = [&[kind, 0, 0, 0, 0, 0, 0, 0], &request[..]].concat();
                assert_eq!(
                    accepts(&header.error_filter(), &received(&header, &error)),
                    kinds.contains(&kind),
                    "{kind}"
                );
            }
            let mut error = [&[kinds[0], 0, 0, 0, 0, 0, 0, 0], &request[..]].concat();
            let number = 8 + content(&header) + if matches!(header.kind, ProbeKind::Echo { .. }) { 5 } else { 3 };
            error[number] ^= 1;
            assert!(!accepts(&header.error_filter(), &received(&header, &error)), "another's");
        }
    }
}
