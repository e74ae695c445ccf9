//! Packets of the model, and what its conntrack remembers.

use std::net::Ipv4Addr;

use anyhow::{Result, bail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    EchoRequest,
    EchoReply,
    Tcp,
    /// The answer of a closed port.
    Reset,
    Udp,
    /// An ICMP error.
    Error,
}

impl Protocol {
    /// As iptables names it.
    pub(super) fn named(name: &str) -> Result<Protocol> {
        match name {
            "icmp" => Ok(Protocol::EchoRequest),
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => bail!("the model knows no protocol {name}"),
        }
    }

    /// The first of those that iptables calls the same.
    pub(super) fn iptables(self) -> Protocol {
        match self {
            Protocol::EchoRequest | Protocol::EchoReply | Protocol::Error => Protocol::EchoRequest,
            Protocol::Tcp | Protocol::Reset => Protocol::Tcp,
            Protocol::Udp => Protocol::Udp,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    /// Of TCP and UDP the destination port.
    pub(super) port: u16,
    /// Of TCP and UDP the source port, of an echo its identifier: counted up at each change, so that changes show.
    pub(super) id: u32,
    pub(super) ttl: u8,
    pub(super) protocol: Protocol,
    /// With the IP header, bytes.
    pub(super) size: u32,
    /// Of an error: source and destination of the packet it is about, as its sender saw that.
    pub(super) about: Option<(Ipv4Addr, Ipv4Addr)>,
    pub(super) outer: Option<Outer>,
    /// kube-proxy's mark: the node is to take the sender's place.
    pub(super) marked: bool,
}

/// The header around it.
#[derive(Debug, Clone)]
pub(super) struct Outer {
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    pub(super) ttl: u8,
    pub(super) kind: &'static str,
}

/// A flow that a host's conntrack knows: each way, as its packets come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) forth: (Ipv4Addr, Ipv4Addr),
    pub(super) back: (Ipv4Addr, Ipv4Addr),
    /// The identifier before and after.
    pub(super) id: (u32, u32),
    /// The destination port after.
    pub(super) port: u16,
    /// Of the packet that began it: one that comes around again has another.
    pub(super) ttl: u8,
    /// DNAT changed the port as well.
    pub(super) turns_port: bool,
}

impl Packet {
    pub(super) fn ends(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.src, self.dst)
    }

    /// What netfilter sees of it: of a tunnel's packet that alone.
    pub(super) fn outermost(&self) -> Packet {
        let Some(outer) = &self.outer else { return self.clone() };
        // IPIP has no port, and flannel's VXLAN another; no rule asks for those.
        let (protocol, port) = (Protocol::Udp, 4789);
        Packet {
            src: outer.src,
            dst: outer.dst,
            ttl: outer.ttl,
            protocol,
            port,
            outer: None,
            about: None,
            ..self.clone()
        }
    }

    /// Whether conntrack would begin a flow with it.
    pub(super) fn begins(&self) -> bool {
        matches!(self.protocol, Protocol::EchoRequest | Protocol::Tcp | Protocol::Udp)
    }
}
