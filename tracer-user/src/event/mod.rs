//! Bytes of the ring buffer -> [`Record`].

use std::{net::IpAddr, sync::Arc};

pub mod decode;

/// What one record of the ring buffer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// One packet at one hook.
    Sighting(Sighting),
    /// The conntrack entry of the packet that the next sighting of the same `skb` shows.
    Translation(Translation),
    /// The moment of a translation.
    Rewrite(Rewrite),
}

impl Record {
    /// CLOCK_MONOTONIC of that node, ns.
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Sighting(Sighting { time_ns, .. })
            | Self::Translation(Translation { time_ns, .. })
            | Self::Rewrite(Rewrite { time_ns, .. }) => *time_ns,
        }
    }
}

/// A place in the kernel where one of our programs runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// `netif_receive_skb`: enters through a device.
    Receive,
    /// `net_dev_queue`: handed to a device's queue.
    Queue,
    /// `net_dev_start_xmit`: handed to the device's driver.
    Xmit,
    /// `kfree_skb`: freed, usually as a drop.
    Drop,
    /// `consume_skb`: freed as done.
    Consume,
}

/// One packet seen at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// CLOCK_MONOTONIC of that node, ns.
    pub time_ns: u64,
    /// Stands for the address of the `sk_buff` in this session. Reused soon after a free. Two sessions on one kernel may or may
    /// not show the same number for the same packet: it means nothing outside its session.
    pub skb: u64,
    /// Where.
    pub hook: Hook,
    /// The CPU it happened on.
    pub cpu: u16,
    /// Inode of the network namespace of the device (on the free hooks: of the device last seen).
    pub netns: u32,
    /// Interface index in that namespace (on the free hooks: of the device last seen).
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// Recognised by its tracked `sk_buff` or its conntrack entry, not by its addresses.
    pub tracked: bool,
    /// The direction of the packet in its conntrack entry, if one is attached.
    pub conntrack: Option<CtDirection>,
    /// The number of its VLAN, where it was received with a tag.
    pub vlan: Option<u16>,
    /// The innermost IP packet.
    pub packet: Packet,
    /// The outermost IP header, if the packet is encapsulated.
    pub outer: Option<Outer>,
    /// On the free hooks: where and why.
    pub free: Option<Free>,
}

/// Direction of a packet in its conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtDirection {
    /// As the originator sent it.
    Original,
    /// The way back.
    Reply,
}

/// An IP packet's header fields.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification, 0 for IPv6.
    pub ip_id: u16,
    /// Total length of the IP packet, bytes.
    pub ip_len: u16,
    /// What the IP packet carries.
    pub l4: L4,
}

/// The transport header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum L4 {
    /// ICMP or ICMPv6 (by the address family of the packet).
    Icmp {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// Identifier of an echo.
        id: u16,
        /// Sequence number of an echo.
        seq: u16,
        /// The first 8 bytes after the ICMP header, big-endian; 0 if there are fewer.
        nonce: u64,
    },
    /// TCP.
    Tcp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// The flags byte: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
        flags: u8,
        /// Data after the TCP header, bytes. More than an MTU in a GSO or GRO super-packet.
        payload: u16,
    },
    /// UDP.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// The UDP checksum as it was in the header.
        checksum: u16,
        /// The first 8 bytes after the UDP header, big-endian; 0 if there are fewer.
        nonce: u64,
    },
    /// Anything else, and fragments other than the first.
    Other {
        /// IP protocol number.
        protocol: u8,
    },
}

/// How a packet is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// IP in IP.
    Ipip,
    /// VXLAN.
    Vxlan,
    /// GRE.
    Gre,
    /// Geneve.
    Geneve,
}

/// The outermost IP header of an encapsulated packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outer {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL.
    pub ttl: u8,
    /// IPv4 identification.
    pub ip_id: u16,
    /// Total length, bytes.
    pub ip_len: u16,
    /// What kind of wrapping.
    pub encapsulation: Encapsulation,
}

/// Where and why a packet was freed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Free {
    /// Return address in kernel text; 0 where the kernel does not say.
    pub location: u64,
    /// The function that `location` lies in, e.g. `icmp_rcv`; filled in on the node, from `/proc/kallsyms`.
    pub function: Option<Arc<str>>,
    /// `enum skb_drop_reason` as a number, from Linux 5.17.
    pub reason: Option<u32>,
    /// Its name without the `SKB_DROP_REASON_` prefix, e.g. `NO_SOCKET`; filled in on the node, from BTF.
    pub reason_name: Option<Arc<str>>,
    /// What evaluated netfilter rules on this packet last, if kprobes saw it.
    pub netfilter: Option<Box<Netfilter>>,
}

/// Where netfilter rules were evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Netfilter {
    /// `nf_hook_state.hook`: 0 PREROUTING, 1 INPUT, 2 FORWARD, 3 OUTPUT, 4 POSTROUTING (of the families 2, 10, 1 and 7).
    pub hook: u8,
    /// `nf_hook_state.pf` (NFPROTO_*): 2 IPv4, 10 IPv6, 7 bridge, 1 inet, 5 netdev. 0: neither family nor hook is known, because
    /// the packet was in the hook already when its beginning was first watched.
    pub family: u8,
    /// By what.
    pub engine: Engine,
    /// Name of the table; of nftables filled in on the node, by its handle.
    pub table: Option<String>,
    /// Name of the nftables base chain, filled in on the node, by its handle.
    pub chain: Option<String>,
}

/// What evaluates netfilter rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Only the hook is known.
    Unknown,
    /// Legacy iptables or ip6tables.
    Iptables,
    /// nftables, which the nft variant of iptables is too.
    Nftables {
        /// The kernel's handle of the table in its namespace; 0: unknown.
        table: u64,
        /// The kernel's handle of the base chain in its table; 0: unknown.
        chain: u64,
    },
}

/// The moment when netfilter wrote a translation into a packet (`nf_nat_manip_pkt`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// The packet's `sk_buff`.
    pub skb: u64,
    /// Namespace of the device last seen.
    pub netns: u32,
    /// Interface last seen.
    pub ifindex: u32,
    /// Which side is rewritten.
    pub side: Side,
    /// The packet before it.
    pub packet: Packet,
}

/// A side of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Source address and port.
    Source,
    /// Destination address and port.
    Destination,
}

/// One direction of a conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, or ICMP identifier.
    pub l4_src: u16,
    /// Destination port; for ICMP type << 8 | code.
    pub l4_dst: u16,
}

/// A conntrack entry that rewrites addresses or ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// The packet's `sk_buff`.
    pub skb: u64,
    /// Namespace of the device it was read at.
    pub netns: u32,
    /// What the originator sent.
    pub original: Tuple,
    /// What is expected back: the inverse of `original` where nothing is rewritten.
    pub reply: Tuple,
    /// `nf_conn.status`, IPS_* bits: IPS_SRC_NAT is 1 << 4, IPS_DST_NAT 1 << 5.
    pub status: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Direction of the packet it was read from.
    pub direction: CtDirection,
}

/// An address as the kernel programs write it: 16 bytes, IPv4 mapped into IPv6.
pub fn to_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The reverse of [`to_bytes`].
pub fn from_bytes(bytes: [u8; 16]) -> IpAddr {
    std::net::Ipv6Addr::from(bytes).to_canonical()
}
