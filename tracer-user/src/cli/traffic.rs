//! What is traced: pings, TCP or UDP to a port.

use std::net::IpAddr;

use crate::session::ProbeKind;

/// What the probes are, or in passive mode what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Echo requests and replies.
    Echo,
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
}

/// `node-1:30080`, `10.0.0.1:53/udp`, `[fd00::1]:80`: what stands before the port, and what is sent there; None: no port is typed.
///
/// # Errors
/// What is no port.
pub(super) fn with_port(typed: &str) -> Result<Option<(&str, Traffic)>, String> {
    let Some((host, port)) = typed.rsplit_once(':').filter(|_| typed.parse::<IpAddr>().is_err()) else {
        return Ok(None);
    };
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let number = number.parse().ok().filter(|number| *number > 0);
    let traffic = match (number, protocol.to_ascii_lowercase().as_str()) {
        (Some(number), "tcp") => Traffic::Tcp(number),
        (Some(number), "udp") => Traffic::Udp(number),
        _ => return Err(format!("`{port}` in {typed} is no port: write HOST:PORT, HOST:PORT/udp, or HOST --tcp PORT")),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok(Some((host, traffic)))
}

impl Traffic {
    /// The probes; echoes have this identifier.
    pub(super) fn probes(self, id: u16) -> ProbeKind {
        match self {
            Self::Echo => ProbeKind::Echo { id },
            Self::Tcp(dst_port) => ProbeKind::Tcp { dst_port },
            Self::Udp(dst_port) => ProbeKind::Udp { dst_port },
        }
    }

    /// As it is asked for: `--tcp 80`.
    pub(super) fn option(self) -> Option<String> {
        match self {
            Self::Echo => None,
            Self::Tcp(port) => Some(format!("--tcp {port}")),
            Self::Udp(port) => Some(format!("--udp {port}")),
        }
    }

    /// Port of the destination.
    pub(super) fn port(self) -> Option<u16> {
        match self {
            Self::Echo => None,
            Self::Tcp(port) | Self::Udp(port) => Some(port),
        }
    }

    /// Length of a probe's IP packet with `size` bytes of payload.
    pub(super) fn length(self, source: IpAddr, size: u16) -> u32 {
        /// A SYN with its options.
        const SYN: u32 = 40;
        /// The header of ICMP, or UDP.
        const HEADER: u32 = 8;
        let ip = if source.is_ipv4() { 20 } else { 40 };
        match self {
            Self::Tcp(_) => ip + SYN,
            Self::Echo | Self::Udp(_) => ip + HEADER + u32::from(size),
        }
    }

    /// Probes with `size` bytes of payload, in words: `icmp echo 84 B`. Lengths are those of the IP packets.
    pub(super) fn sent(self, source: IpAddr, size: u16) -> String {
        let length = self.length(source, size);
        match self {
            Self::Echo => format!("{} echo {length} B", icmp(source)),
            Self::Tcp(port) => format!("tcp syn to port {port}, {length} B"),
            Self::Udp(port) => format!("udp to port {port}, {length} B"),
        }
    }

    /// The same for what others send, where of so many flows one is recorded.
    pub(super) fn watched(self, source: IpAddr, one_of: u32) -> String {
        let sampled = if one_of > 1 { format!(", 1 flow of {one_of}") } else { String::new() };
        match self {
            Self::Echo => format!("{} echo, passive{sampled}", icmp(source)),
            Self::Tcp(port) => format!("tcp to port {port}, passive{sampled}"),
            Self::Udp(port) => format!("udp to port {port}, passive{sampled}"),
        }
    }

    /// What a passive trace waits for.
    pub(super) fn awaited(self) -> String {
        match self {
            Self::Echo => "pings".to_owned(),
            Self::Tcp(port) => format!("tcp to port {port}"),
            Self::Udp(port) => format!("udp to port {port}"),
        }
    }
}

fn icmp(source: IpAddr) -> &'static str {
    if source.is_ipv4() { "icmp" } else { "icmpv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_be_part_of_the_destination() {
        assert_eq!(with_port("node-1:30080"), Ok(Some(("node-1", Traffic::Tcp(30080)))));
        assert_eq!(with_port("shop/svc/dns:53/UDP"), Ok(Some(("shop/svc/dns", Traffic::Udp(53)))));
        assert_eq!(with_port("[fd00::1]:80"), Ok(Some(("fd00::1", Traffic::Tcp(80)))));
        for none in ["bb1", "shop/web", "10.0.0.1", "fd00::80"] {
            assert_eq!(with_port(none), Ok(None));
        }
        for wrong in ["node-1:", "node-1:http", "node-1:0", "node-1:65536", "node-1:80/sctp", "https://node-1"] {
            with_port(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn probes_are_named_with_their_length_on_the_wire() {
        let four = IpAddr::from([10, 0, 0, 1]);
        let six = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        let all = [Traffic::Echo, Traffic::Tcp(80), Traffic::Udp(53)];
        let told = all.map(|traffic| [four, six].map(|source| (traffic.sent(source, 56), traffic.watched(source, 1))));
        insta::assert_debug_snapshot!(told, @r#"
        [
            [
                (
                    "icmp echo 84 B",
                    "icmp echo, passive",
                ),
                (
                    "icmpv6 echo 104 B",
                    "icmpv6 echo, passive",
                ),
            ],
            [
                (
                    "tcp syn to port 80, 60 B",
                    "tcp to port 80, passive",
                ),
                (
                    "tcp syn to port 80, 80 B",
                    "tcp to port 80, passive",
                ),
            ],
            [
                (
                    "udp to port 53, 84 B",
                    "udp to port 53, passive",
                ),
                (
                    "udp to port 53, 104 B",
                    "udp to port 53, passive",
                ),
            ],
        ]
        "#);
    }
}
