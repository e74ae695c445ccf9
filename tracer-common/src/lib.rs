//! What podpath's kernel programs and userspace share: the records in the ring buffer and the maps' keys and values.
//!
//! Addresses are 16 bytes in network order, kept as two words ([`Address`]); IPv4 ones are IPv4-mapped
//! (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
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
    /// Not a hook: where packets are counted whose headers lie in page fragments and could not be read.
    pub const UNREAD: u8 = 7;
    /// `nf_nat_manip_pkt`: conntrack's translation is about to be written into the packet. The sighting shows the packet
    /// before it, [`super::Sighting::data`] is a [`super::Rewrite`].
    pub const REWRITE: u8 = 8;
    /// Number of entries that a table indexed by hook needs.
    pub const COUNT: usize = 9;
}

/// Bits of [`Head::flags`].
pub mod flag {
    /// The packet was recognised by its tracked `sk_buff` or its conntrack entry, not by its addresses.
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
    /// GRE with an IP packet or an Ethernet frame in it (RFC 2784, RFC 2890).
    pub const GRE: u8 = 3;
    /// Geneve (RFC 8926) on port 6081.
    pub const GENEVE: u8 = 4;
}

/// Size of every record in the ring buffer but [`WrappedFree`], bytes.
pub const RECORD_SIZE: usize = 128;

/// The bytes of an address as two words of the machine: compared and copied without loops.
pub type Address = [u64; 2];

/// 16 bytes as an [`Address`].
pub const fn address(bytes: [u8; 16]) -> Address {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

/// What every record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Head {
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Stands for the address of the `sk_buff`: an identity that is reused soon after a free.
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
    /// IP protocol number of the L4 header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length of the IP header with its options or extensions, bytes.
    pub header_len: u16,
}

/// One packet at one hook: the innermost IP packet, and in `data` what wraps it or why it was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sighting {
    /// Where, when, which.
    pub head: Head,
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The first 16 bytes of the L4 header, as they are in the packet; what lies beyond the packet's end is not its own.
    pub l4: [u8; 16],
    /// `skb->mark`.
    pub mark: u32,
    /// IPv4 identification; 0 for IPv6.
    pub ip_id: u16,
    /// IPv4 total length, or IPv6 payload length + 40; bytes.
    pub ip_len: u16,
    /// [`Free`] or [`Outer`], by the flags, with both [`Free`]; [`Rewrite`] at [`hook::REWRITE`]; zeros if none.
    pub data: [u8; 40],
}

/// The free of a packet that was still encapsulated: a longer record, because `data` says why it was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WrappedFree {
    /// Of it the flags [`flag::FREED`] and [`flag::ENCAPSULATED`] are set.
    pub sighting: Sighting,
    /// What wraps it.
    pub outer: Outer,
}

/// The outermost IP header of an encapsulated packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Outer {
    /// Source address of the outer header.
    pub src: Address,
    /// Destination address of the outer header.
    pub dst: Address,
    /// Outer IPv4 identification.
    pub ip_id: u16,
    /// Outer total length, bytes.
    pub ip_len: u16,
    /// Outer TTL.
    pub ttl: u8,
    /// One of [`encapsulation`].
    pub encapsulation: u8,
    /// Of a received packet, and there also of one that nothing wraps: its VLAN tag, [`VLAN_TAGGED`] and the number of the
    /// VLAN. 0 without.
    pub vlan: u16,
}

/// Set in [`Outer::vlan`] where there is a tag: VLAN 0 is one.
pub const VLAN_TAGGED: u16 = 1 << 12;

/// Where and why a packet was freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Free {
    /// Return address of the caller: a kernel text address, for `/proc/kallsyms`. 0 where the kernel does not say.
    pub location: u64,
    /// `enum skb_drop_reason`; only with [`flag::REASON`].
    pub reason: u32,
    /// One of [`netfilter`]: what evaluated rules on this packet last. [`netfilter::NONE`] where no probe saw any.
    pub netfilter: u8,
    /// `nf_hook_state.hook`: 0 PREROUTING, 1 INPUT, 2 FORWARD, 3 OUTPUT, 4 POSTROUTING.
    pub nf_hook: u8,
    /// `nf_hook_state.pf`: 2 IPv4, 10 IPv6, 7 bridge, 1 inet, 5 netdev; 0: neither it nor the hook is known.
    pub nf_family: u8,
    /// Always 0.
    pub zero: u8,
    /// [`netfilter::IPTABLES`]: name of the table, NUL-padded. [`netfilter::NFTABLES`]: handles of table and base chain, 8 bytes
    /// each, 0 where unknown, then zeros.
    pub table: [u8; 24],
}

/// What evaluates netfilter rules. The value is [`Free::netfilter`].
pub mod netfilter {
    /// Nothing was seen to.
    pub const NONE: u8 = 0;
    /// `nf_hook_slow` ran, and nothing more precise is known.
    pub const HOOK: u8 = 1;
    /// `ipt_do_table` or `ip6t_do_table`: legacy iptables.
    pub const IPTABLES: u8 = 2;
    /// `nft_do_chain`: nftables, and iptables in its nft variant.
    pub const NFTABLES: u8 = 3;
}

/// The moment of a translation: [`Sighting::data`] at [`hook::REWRITE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rewrite {
    /// `enum nf_nat_manip_type`: 0 the source is rewritten, 1 the destination.
    pub manip: u32,
    /// Always 0.
    pub zero: [u8; 36],
}

/// One direction of a conntrack entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Tuple {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Source port, or ICMP identifier.
    pub l4_src: u16,
    /// Destination port; for ICMP type << 8 | code.
    pub l4_dst: u16,
    /// IP protocol number.
    pub protocol: u32,
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
    /// Always 0.
    pub zero: [u8; 12],
}

/// One direction of a flow that the user asked for: a packet matches if it agrees in every bit that a mask has set.
/// Compared by arithmetic alone, one branch for all of it, because the verifier follows every branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Rule {
    /// Source address.
    pub src: Address,
    /// Which bits of it matter.
    pub src_mask: Address,
    /// Destination address.
    pub dst: Address,
    /// Which bits of it matter.
    pub dst_mask: Address,
    /// The first 8 bytes of [`Sighting::l4`]: ports, or ICMP type, code, checksum, identifier, sequence number.
    pub l4: u64,
    /// Which bits of it matter. Fragments other than the first have no L4 header and are wanted without.
    pub l4_mask: u64,
    /// IP protocol number.
    pub protocol: u64,
    /// Of so many flows one is wanted, chosen by [`chosen`]; 0 and 1: all. Fragments other than the first have no port, and are wanted
    /// of all.
    pub one_of: u32,
    /// By how many bits `l4` is to be shifted right, as a number of this machine, until the asking end's port, or the ICMP
    /// identifier, is in the lowest 16.
    pub port_shift: u32,
}

/// Whether sampling of one in `one_of` flows chooses that of this port: 0 if so, for a comparison without branches. `port` is as
/// it lies in the packet, read as a number of this machine; bits above its 16 are ignored. Multiplying by 2^32 divided by the
/// golden ratio spreads neighbouring ports, as kernels give them out, evenly over the upper bits (Knuth, volume 3, 6.4).
#[inline(always)]
pub const fn chosen(port: u64, one_of: u32) -> u64 {
    let spread = ((port & 0xffff).wrapping_mul(0x9e37_79b1) & 0xffff_ffff) >> 16;
    (spread * one_of as u64) >> 16
}

/// Number of flows a session can ask for.
pub const MAX_FLOWS: usize = 4;

/// The wanted flows: the one value of the map `WANTED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Wanted {
    /// How many there are.
    pub flows: u32,
    /// Always 0.
    pub zero: u32,
    /// Per flow, the last four bytes of the end that is not a wildcard: a packet with neither address ending so is of no flow.
    pub ends: [u32; MAX_FLOWS],
    /// Per flow, the rules of its two directions.
    pub rules: [[Rule; 2]; MAX_FLOWS],
}

/// What a field or argument that this kernel lacks is set to in [`Layout`].
pub const ABSENT: u32 = u32::MAX;

/// Where the running kernel keeps what the programs read: byte offsets, resolved from its BTF before the programs are
/// loaded (`probe::layout` has the one table of names). Frozen at load, so that the verifier sees constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Layout {
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.data`.
    pub skb_data: u32,
    /// `sk_buff.network_header`.
    pub skb_network_header: u32,
    /// `sk_buff.end`: where `skb_shared_info` lies, from `head`.
    pub skb_end: u32,
    /// `skb_shared_info.nr_frags`.
    pub shared_nr_frags: u32,
    /// `skb_shared_info.frags`, an array of [`Fragment`]; [`ABSENT`] where a fragment is something else.
    pub shared_frags: u32,
    /// `sk_buff.protocol`.
    pub skb_protocol: u32,
    /// `sk_buff.len`.
    pub skb_len: u32,
    /// `sk_buff.data_len`: how much of it is not in the linear part.
    pub skb_data_len: u32,
    /// `sk_buff.mark`.
    pub skb_mark: u32,
    /// `sk_buff._nfct`, or [`ABSENT`] without conntrack.
    pub skb_nfct: u32,
    /// `sk_buff.sk`.
    pub skb_sk: u32,
    /// `sk_buff.vlan_proto`: 0 without a tag beside the packet's bytes; or [`ABSENT`].
    pub skb_vlan_proto: u32,
    /// `sk_buff.vlan_tci`, or [`ABSENT`] likewise.
    pub skb_vlan_tci: u32,
    /// The byte that holds the bit field `sk_buff.pkt_type`.
    pub skb_pkt_type: u32,
    /// By how many bits that byte is to be shifted right before it is masked with 7.
    pub skb_pkt_type_shift: u32,
    /// `net_device.ifindex`.
    pub dev_ifindex: u32,
    /// `net_device.rx_handler`.
    pub dev_rx_handler: u32,
    /// `net_device.nd_net.net`.
    pub dev_net: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `nf_conn.status`, or [`ABSENT`] without conntrack.
    pub ct_status: u32,
    /// `nf_conn.tuplehash[0].tuple`.
    pub ct_original: u32,
    /// `nf_conn.tuplehash[1].tuple`.
    pub ct_reply: u32,
    /// Which argument of `kfree_skb` is the location.
    pub kfree_location_arg: u32,
    /// Which argument of `kfree_skb` is the reason, or [`ABSENT`] (before 5.17).
    pub kfree_reason_arg: u32,
    /// Which argument of `consume_skb` is the location, or [`ABSENT`] (before 6.3).
    pub consume_location_arg: u32,
    /// `nf_conn.ct_net.net`, or [`ABSENT`] without conntrack.
    pub ct_net: u32,
    /// `nf_hook_state.hook`: its lowest byte, or [`ABSENT`] without netfilter.
    pub state_hook: u32,
    /// `nf_hook_state.pf`, or [`ABSENT`] without netfilter.
    pub state_family: u32,
    /// `xt_table.name`, or [`ABSENT`] where BTF has no such structure.
    pub xt_table_name: u32,
    /// `nft_pktinfo.skb`.
    pub nft_packet_skb: u32,
    /// `nft_pktinfo.state`, or [`ABSENT`] where BTF has no such structure.
    pub nft_packet_state: u32,
    /// `nft_chain.table`, or [`ABSENT`] where BTF has no such structure.
    pub nft_chain_table: u32,
    /// `nft_chain.handle`, or [`ABSENT`] likewise.
    pub nft_chain_handle: u32,
    /// `nft_table.handle`, or [`ABSENT`] likewise.
    pub nft_table_handle: u32,
    /// The BTF id of `struct new_utsname`, which begins with [`BYTES`] bytes that mean nothing to the verifier; [`ABSENT`] where
    /// [`CAST`] is not a function of the kernel's.
    pub bytes_type: u32,
}

/// So many bytes are read through [`Layout::bytes_type`] at the most: `__NEW_UTS_LEN` (include/uapi/linux/utsname.h).
pub const BYTES: usize = 64;

/// The programs call a helper of this number, which no kernel has. The loader makes of these calls what the running kernel understands:
/// a call of its function `bpf_rdonly_cast` (from 6.2), or nothing but the answer 0.
pub const CAST: u32 = 0x706f_6470;

/// A page fragment of a packet: `struct bio_vec` from 5.4, `struct skb_frag` from 6.10, alike on 64-bit machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Fragment {
    /// Its `struct page`; where the lowest bit is set, memory of a device (`netmem_ref`, include/net/netmem.h).
    pub page: u64,
    /// Bytes.
    pub len: u32,
    /// From the beginning of the page, bytes.
    pub offset: u32,
}

/// Where the kernel keeps its pages: what `page_address` (include/linux/mm.h) computes with. Frozen at load, as [`Layout`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Pages {
    /// The `struct page` of the first page of physical memory (`vmemmap_base`); 0: unknown, and page fragments are not read.
    pub first: u64,
    /// Size of a `struct page`, bytes.
    pub stride: u64,
    /// Where physical memory is mapped (`page_offset_base`).
    pub memory: u64,
    /// Size of a page, bytes.
    pub size: u64,
}

/// What a slot of the map `TRACK` remembers of a packet that was recognised: enough to recognise it at its next hook
/// after NAT or encapsulation, and to tell it from another packet in a reused `sk_buff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Track {
    /// The `sk_buff`; 0: the slot is free.
    pub skb: u64,
    /// What NAT leaves alone of the first 16 bytes of the L4 header: no ports, identifiers or checksums.
    pub l4: [u64; 2],
    /// Namespace of the device last seen.
    pub netns: u32,
    /// Interface last seen.
    pub ifindex: u32,
    /// [`Sighting::ip_id`].
    pub ip_id: u16,
    /// [`Sighting::ip_len`].
    pub ip_len: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Free::netfilter`], since the device last seen.
    pub netfilter: u8,
    /// [`Free::nf_hook`].
    pub nf_hook: u8,
    /// [`Free::nf_family`].
    pub nf_family: u8,
    /// [`Free::table`].
    pub table: [u64; 3],
}

/// Slots of the map `TRACK`, a power of two. A packet's slot is a hash of its `sk_buff`; a newer packet takes the slot.
pub const TRACK_SLOTS: u32 = 1 << 14;

/// The key of the map `LEARNED`: one direction of a flow that conntrack translates, as packets show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Learned {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The ports or the ICMP identifier, where they are in the first 8 bytes of the L4 header; the other bytes 0.
    pub l4: u64,
    /// IP protocol number.
    pub protocol: u64,
}

/// Slots of the map `SCOPE`, a power of two.
pub const SCOPE_SLOTS: u32 = 1 << 13;

/// How many slots, from the one that the low bits of its inode name, a namespace may lie in.
pub const SCOPE_PROBES: u32 = 8;

/// The slots that a namespace may lie in.
pub fn scope_slots(inode: u32) -> impl Iterator<Item = u32> {
    (0..SCOPE_PROBES).map(move |step| (inode.wrapping_add(step)) & (SCOPE_SLOTS - 1))
}

/// Bits of the table `LEARNED_BITS`, a power of two.
pub const LEARNED_BITS: u32 = 1 << 12;

/// The bit that stands for all flows between two addresses, of which the last words are given in either order.
pub const fn learned_bit(a: u32, b: u32) -> u32 {
    (a ^ b).wrapping_mul(0x9e37_79b9) >> (32 - LEARNED_BITS.trailing_zeros())
}

/// The last four bytes of an address, as a word of the machine.
pub const fn last_word(address: &Address) -> u32 {
    let [.., a, b, c, d] = address[1].to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Which of the first 8 bytes of an L4 header name the flow: of ICMP the identifier, else both ports.
pub const fn flow_mask(protocol: u8) -> u64 {
    match protocol {
        1 | 58 => u64::from_ne_bytes([0, 0, 0, 0, 0xff, 0xff, 0, 0]),
        _ => u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
    }
}

const _: () = assert!(size_of::<Sighting>() == RECORD_SIZE);
const _: () = assert!(size_of::<Translation>() == RECORD_SIZE);
const _: () = assert!(size_of::<WrappedFree>() == RECORD_SIZE + 40);
// One cache line.
const _: () = assert!(size_of::<Track>() == 64);
const _: () = assert!(
    size_of::<Outer>() == 40 && size_of::<Free>() == 40 && size_of::<Rewrite>() == 40 && size_of::<Head>() == 32
);

#[cfg(all(feature = "user", target_os = "linux"))]
mod user {
    // SAFETY: `repr(C)`, no padding (every byte is a named integer), any bit pattern is valid.
    unsafe impl aya::Pod for super::Wanted {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Layout {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Pages {}
}
