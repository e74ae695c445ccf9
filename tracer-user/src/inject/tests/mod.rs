//! Against the real kernel, as root, in network namespaces of their own.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};

use super::*;

mod echo;
mod errors;
mod tcp;
mod udp;

const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const A_SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// Source and destination in each family.
const ENDS: [(IpAddr, IpAddr); 2] = [(IpAddr::V4(A), IpAddr::V4(B)), (IpAddr::V6(A6), IpAddr::V6(B6))];

/// Two namespaces joined by a veth pair; removed when it goes out of scope.
struct Pair {
    a: String,
    b: String,
}

impl Pair {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("ppinj{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let pair = Self { a: format!("{unique}a"), b: format!("{unique}b") };
        let Self { a, b } = &pair;
        ip(&format!("netns add {a}"));
        ip(&format!("netns add {b}"));
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
        for (ns, address) in [(a, A), (a, A_SECOND), (b, B)] {
            ip(&format!("-n {ns} address add {address}/24 dev eth0"));
        }
        for (ns, address) in [(a, A6), (b, B6)] {
            ip(&format!("-n {ns} address add {address}/64 dev eth0 nodad"));
        }
        for ns in [a, b] {
            ip(&format!("-n {ns} link set lo up"));
            ip(&format!("-n {ns} link set eth0 up"));
        }
        pair.wait_for_link();
        pair
    }

    /// A new link drops everything until the kernel has noticed its carrier, which it does at most once a second for all
    /// links of the machine together (net/core/link_watch.c); IPv6 begins to answer its neighbours only then.
    fn wait_for_link(&self) {
        for ends in ENDS {
            let answered = AtomicBool::new(false);
            let patient = Ping { timeout: Duration::from_secs(1), ..from_to(ends, ping(500)) };
            run(
                &patient,
                Self::netns(&self.a).as_fd(),
                || answered.load(Ordering::Relaxed),
                |probe| {
                    answered.fetch_or(probe.answer.is_some(), Ordering::Relaxed);
                },
            )
            .expect("runs");
            assert!(answered.into_inner(), "the link carries nothing within 10 s");
        }
    }

    /// Runs `work` on a thread in a namespace.
    fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
        let netns = Self::netns(name);
        let work = || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("tests of injection need root");
            work()
        };
        thread::scope(|scope| scope.spawn(work).join().expect("no panic"))
    }

    /// Has nftables do this to what comes in at `b`: `tcp dport 80 drop`.
    fn rule(&self, rule: &str) {
        nft(&self.b, "add table inet test");
        nft(&self.b, "add chain inet test in { type filter hook input priority 0 ; }");
        nft(&self.b, &format!("add rule inet test in {rule}"));
    }

    fn netns(name: &str) -> File {
        File::open(format!("/run/netns/{name}")).expect("namespace was made")
    }

    /// Runs the probes in `a`.
    fn run(&self, ping: &Ping) -> Result<Vec<Probe>, Error> {
        collect(ping, &Self::netns(&self.a))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for ns in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

/// A packet socket in a namespace: what its interfaces get and send.
struct Capture(OwnedFd);

impl Capture {
    fn open(name: &str) -> Self {
        let netns = Pair::netns(name);
        let open = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("tests of injection need root");
            let all = SockProtocol::EthAll;
            let fd = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), all).expect("packet socket");
            setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 200_000)).expect("time limit");
            fd
        };
        Self(thread::spawn(open).join().expect("capture opens"))
    }

    /// The echo requests among what was captured.
    fn requests(&self) -> Vec<Vec<u8>> {
        let mut packets = self.packets();
        packets.retain(|packet| match packet[0] >> 4 {
            4 => packet[9] == 1 && packet[20] == 8,
            _ => packet[6] == 58 && packet[40] == 128,
        });
        packets
    }

    /// All IP packets that were captured.
    fn packets(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let mut packets = Vec::new();
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let packet = &buffer[..length];
            if matches!((packet.first(), length), (Some(0x45), 28..) | (Some(0x60), 48..)) {
                packets.push(packet.to_vec());
            }
        }
        packets
    }
}

fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(
        out.status.success(),
        "ip {arguments} (tests of injection need root): {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn nft(netns: &str, arguments: &str) {
    let words = ["netns", "exec", netns, "nft"].into_iter().chain(arguments.split(' '));
    assert!(Command::new("ip").args(words).status().expect("ip and nft are installed").success(), "nft {arguments}");
}

fn set_sysctl(netns: &str, name: &str, value: &str) {
    let script = format!("echo {value} > /proc/sys/net/{name}");
    let done = Command::new("ip").args(["netns", "exec", netns, "sh", "-c", &script]).status();
    assert!(done.expect("ip is installed").success(), "{script}");
}

fn ping(count: u16) -> Ping {
    Ping {
        src: A.into(),
        home: None,
        any_source: false,
        dst: B.into(),
        kind: ProbeKind::Echo { id: 0x4242 },
        count,
        interval: Duration::from_millis(20),
        size: 56,
        timeout: Duration::from_millis(300),
        nonce_base: 0xfeed_0000_0000_0000,
    }
}

/// Between other ends.
fn from_to((src, dst): (IpAddr, IpAddr), ping: Ping) -> Ping {
    Ping { src, dst, ..ping }
}

fn collect(ping: &Ping, netns: &File) -> Result<Vec<Probe>, Error> {
    let mut probes = Vec::new();
    run(ping, netns.as_fd(), || false, |probe| probes.push(probe))?;
    probes.sort_by_key(|probe| probe.seq);
    Ok(probes)
}
