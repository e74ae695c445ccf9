//! What podpath's kernel programs and userspace share: the records in the ring buffer and the maps' keys and values.
//!
//! Addresses are 16 bytes in network order; IPv4 ones are IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
//! All other integers are in the byte order of the machine. No implicit padding anywhere: every byte is a named field,
//! because the verifier refuses to submit memory that was not written.
#![no_std]

/// The places in the kernel where a program runs. The value is [`Head::hook`].
pub mod hook {
    /// `netif_receive_skb`: a packet enters through a device.
    pub const RECEIVE: u8 = 1;
    /// `net_dev_queue`: a packet is handed to a device's queue.
    pub const QUEUE: u8 = 2;
    /// `net_dev_start_xmit`: the device's driver is given the packet.
    pub const XMIT: u8 = 3;
    /// `kfree_skb`: freed, usually because it was dropped.
    pub const DROP: u8 = 4;
    /// `consume_skb`: freed as done.
    pub const CONSUME: u8 = 5;
    /// Not a hook: the record is a [`super::Translation`], read at the hook in the sighting that follows it.
    pub const TRANSLATION: u8 = 6;
    /// Number of entries that a table indexed by hook needs.
    pub const COUNT: usize = 7;
}

/// Bits of [`Head::flags`].
pub mod flag {
    /// The packet was recognised by its tracked `sk_buff`, not by its addresses.
    pub const TRACKED: u8 = 1 << 0;
    /// A conntrack entry is attached to the packet.
    pub const CONNTRACK: u8 = 1 << 1;
    /// The packet travels in the reply direction of that entry.
    pub const CT_REPLY: u8 = 1 << 2;
    /// [`Sighting::data`] is an [`Outer`]: the packet is encapsulated.
    pub const ENCAPSULATED: u8 = 1 << 3;
    /// [`Sighting::data`] is a [`Free`].
    pub const FREED: u8 = 1 << 4;
    /// The packet is a fragment other than the first: it has no L4 header, `l4_*` and `tag` are 0.
    pub const FRAGMENT: u8 = 1 << 5;
    /// [`Free::reason`] is known (from Linux 5.17).
    pub const REASON: u8 = 1 << 6;
}

/// How a packet is wrapped. The value is [`Outer::encapsulation`].
pub mod encapsulation {
    /// IPv4 or IPv6 directly in IP (RFC 2003, RFC 4213, RFC 2473).
    pub const IPIP: u8 = 1;
    /// VXLAN (RFC 7348) on any of the ports seen in the field: 4789 and 8472.
    pub const VXLAN: u8 = 2;
}

/// Size of every record in the ring buffer, bytes.
pub const RECORD_SIZE: usize = 128;

/// What every record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Head {
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Address of the `sk_buff`: an identity that is reused soon after a free.
    pub skb: u64,
    /// One of [`hook`].
    pub hook: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// The CPU that ran the program.
    pub cpu: u16,
    /// Inode of the network namespace of the device (on the free hooks: of the last device seen).
    pub netns: u32,
    /// Interface index in that namespace (on the free hooks: of the last device seen).
    pub ifindex: u32,
    /// `skb->len`, bytes, from the network header on at [`hook::RECEIVE`]; with link-layer header on transmit hooks.
    pub len: u32,
}

/// One packet at one hook: the innermost IP packet, and in `data` what wraps it or why it was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sighting {
    /// Where, when, which.
    pub head: Head,
    /// ICMP: the first 8 bytes after the ICMP header (0 if the packet has fewer). TCP: sequence number << 32 |
    /// acknowledgement number. UDP: checksum. Big-endian bytes read as a number.
    pub tag: u64,
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// `skb->mark`.
    pub mark: u32,
    /// IPv4 identification; 0 for IPv6.
    pub ip_id: u16,
    /// IPv4 total length, or IPv6 payload length + 40; bytes.
    pub ip_len: u16,
    /// Source port, or ICMP identifier.
    pub l4_src: u16,
    /// Destination port, or ICMP sequence number.
    pub l4_dst: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IP protocol number of the L4 header.
    pub protocol: u8,
    /// ICMP type, or TCP flags.
    pub l4_kind: u8,
    /// ICMP code.
    pub l4_code: u8,
    /// [`Outer`] or [`Free`], by the flags; zeros if neither.
    pub data: [u8; 40],
}

/// The outermost IP header of an encapsulated packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Outer {
    /// Source address of the outer header.
    pub src: [u8; 16],
    /// Destination address of the outer header.
    pub dst: [u8; 16],
    /// Outer IPv4 identification.
    pub ip_id: u16,
    /// Outer total length, bytes.
    pub ip_len: u16,
    /// Outer TTL.
    pub ttl: u8,
    /// One of [`encapsulation`].
    pub encapsulation: u8,
    /// Always 0.
    pub zero: [u8; 2],
}

/// Where and why a packet was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Free {
    /// Return address of the caller: a kernel text address, for `/proc/kallsyms`. 0 where the kernel does not say.
    pub location: u64,
    /// `enum skb_drop_reason`; only with [`flag::REASON`].
    pub reason: u32,
    /// Always 0.
    pub zero: [u8; 28],
}

/// One direction of a conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Tuple {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, or ICMP identifier.
    pub l4_src: u16,
    /// Destination port; for ICMP type << 8 | code.
    pub l4_dst: u16,
}

/// The conntrack entry of a packet whose addresses or ports that entry rewrites. Comes before the packet's sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// As in the sighting that follows, but `hook` is [`hook::TRANSLATION`].
    pub head: Head,
    /// What the originator sent.
    pub original: Tuple,
    /// What is expected back: `original` inverted where nothing is rewritten.
    pub reply: Tuple,
    /// `nf_conn.status`: IPS_* bits of `uapi/linux/netfilter/nf_conntrack_common.h`.
    pub status: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: [u8; 19],
}

/// A flow that the user asked for. Both directions match. A wildcard is all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Pattern {
    /// One end.
    pub a: [u8; 16],
    /// The other end; all zeros: any.
    pub b: [u8; 16],
    /// Port of `a`, or ICMP identifier; 0: any.
    pub a_port: u16,
    /// Port of `b`; 0: any; unused for ICMP.
    pub b_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

/// Number of [`Pattern`]s a session can ask for.
pub const MAX_PATTERNS: usize = 8;

/// The wanted flows: the one value of the map `PATTERNS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Patterns {
    /// How many of `list` are in use.
    pub count: u32,
    /// Always 0.
    pub zero: u32,
    /// The patterns.
    pub list: [Pattern; MAX_PATTERNS],
}

const _: () = assert!(size_of::<Sighting>() == RECORD_SIZE);
const _: () = assert!(size_of::<Translation>() == RECORD_SIZE);
const _: () = assert!(size_of::<Outer>() == 40 && size_of::<Free>() == 40 && size_of::<Head>() == 32);

#[cfg(feature = "user")]
mod user {
    // SAFETY: `repr(C)`, no padding (every byte is a named integer), any bit pattern is valid.
    unsafe impl aya::Pod for super::Patterns {}
}
