//! Reading kernel structures: by direct loads where BTF vouches for the pointer. Elsewhere too where the kernel has
//! `bpf_rdonly_cast`, by which the verifier takes any address for a structure's; and by `bpf_probe_read_kernel` before.

use core::{
    cell::UnsafeCell,
    ffi::c_void,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
#[cfg(doc)]
use tracer_common::Outer;
use tracer_common::{ABSENT, BYTES, CAST, Layout, VLAN_TAGGED};

use tracer_ebpf::parse::{Bytes, join};

use crate::fragments::Packet;

/// Set by userspace before the programs are loaded, and frozen then.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout {
    skb_dev: 0,
    skb_head: 0,
    skb_data: 0,
    skb_network_header: 0,
    skb_end: 0,
    shared_nr_frags: 0,
    shared_frags: 0,
    skb_protocol: 0,
    skb_len: 0,
    skb_data_len: 0,
    skb_mark: 0,
    skb_nfct: 0,
    skb_sk: 0,
    skb_vlan_proto: 0,
    skb_vlan_tci: 0,
    skb_pkt_type: 0,
    skb_pkt_type_shift: 0,
    dev_ifindex: 0,
    dev_rx_handler: 0,
    dev_net: 0,
    net_inum: 0,
    ct_status: 0,
    ct_original: 0,
    ct_reply: 0,
    kfree_location_arg: 0,
    kfree_reason_arg: 0,
    consume_location_arg: 0,
    ct_net: 0,
    state_hook: 0,
    state_family: 0,
    xt_table_name: 0,
    nft_packet_skb: 0,
    nft_packet_state: 0,
    nft_chain_table: 0,
    nft_chain_handle: 0,
    nft_table_handle: 0,
    bytes_type: 0,
};

/// The address of [`LAYOUT`] as a number; 0: not known yet.
static BASE: Cell = Cell(UnsafeCell::new(0));

/// A word in a map, which any CPU may write.
struct Cell(UnsafeCell<u64>);

// SAFETY: read and written whole, by volatile accesses, and always with the same value.
unsafe impl Sync for Cell {}

/// Always 0, which the verifier does not know.
static ZERO: Cell = Cell(UnsafeCell::new(0));

/// `u32::MAX`, of which the verifier does not know that it is, so that it follows what comes after only once for it and any
/// other number.
#[inline(always)]
pub fn endless() -> u32 {
    // SAFETY: the cell is a map's memory, valid and aligned.
    !unsafe { read_volatile(ZERO.0.get()) } as u32
}

/// What [`Skb::identity`] makes of the packet at `address`, which is a number here: a kprobe's arguments have no BTF types, and
/// subtracting a pointer from a number is not allowed. A pointer that was stored in a map is a number when it is read again.
#[inline(always)]
pub fn identity(address: u64) -> u64 {
    // SAFETY: the cell is a map's memory, valid and aligned.
    unsafe {
        let mut base = read_volatile(BASE.0.get());
        if base == 0 {
            write_volatile(BASE.0.get(), &raw const LAYOUT as u64);
            base = read_volatile(BASE.0.get());
        }
        address.wrapping_sub(base)
    }
}

/// A field of [`LAYOUT`] as the loader set it. A volatile read, because the compiler sees only zeros.
#[inline(always)]
pub fn frozen(field: &u32) -> u32 {
    // SAFETY: a reference is valid and aligned.
    unsafe { read_volatile(field) }
}

/// Loads a `T` at `base + offset`.
///
/// # Safety
/// `base` must be a pointer that the verifier knows by BTF type, and `offset` that of a field of type `T`.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks the access against BTF and gives a faulting load the value 0.
    unsafe { *base.add(offset as usize).cast::<T>() }
}

/// A packet as a tracepoint's argument.
#[derive(Clone, Copy)]
pub struct Skb(*const u8);

/// `PACKET_OTHERHOST` of uapi/linux/if_packet.h: for somebody else, seen in promiscuous mode or on a bridge port.
const PACKET_OTHERHOST: u8 = 3;
/// `ETH_P_IP` and `ETH_P_IPV6`, as stored in `sk_buff.protocol`.
const ETH_P_IP: u16 = 0x0800u16.to_be();
const ETH_P_IPV6: u16 = 0x86ddu16.to_be();
/// `ETH_P_8021Q` and `ETH_P_8021AD`: a VLAN tag stands before what is carried.
const ETH_P_8021Q: u16 = 0x8100u16.to_be();
const ETH_P_8021AD: u16 = 0x88a8u16.to_be();
/// Length of a VLAN tag and the type behind it, bytes.
const VLAN_HLEN: u32 = 4;

/// The device of a packet and its namespace.
#[derive(Clone, Copy)]
pub struct Device {
    /// Namespace inode.
    pub netns: u32,
    /// Interface index.
    pub ifindex: u32,
}

impl Skb {
    /// Wraps the `skb` argument of a BTF tracepoint.
    #[inline(always)]
    pub fn new(skb: *const u8) -> Self {
        Self(skb)
    }

    /// A number that stands for its address as long as the session lasts: the distance to a map of this session's. Pointers can
    /// be neither hashed nor multiplied in BPF; the difference of two is the one operation that makes a number of them
    /// (`adjust_reg_min_max_vals` in kernel/bpf/verifier.c).
    #[inline(always)]
    pub fn identity(self) -> u64 {
        // Opaque, or LLVM may turn a comparison with the difference into arithmetic on the map's address.
        core::hint::black_box((self.0 as u64).wrapping_sub(&raw const LAYOUT as u64))
    }

    /// Its device. None: it has none at the moment.
    #[inline(always)]
    pub fn device(self) -> Option<Device> {
        // SAFETY: fields of sk_buff, net_device and net, each reached through the BTF pointer before it.
        unsafe {
            let device: *const u8 = load(self.0, frozen(&LAYOUT.skb_dev));
            if device.is_null() {
                return None;
            }
            let net: *const u8 = load(device, frozen(&LAYOUT.dev_net));
            Some(Device {
                netns: load(net, frozen(&LAYOUT.net_inum)),
                ifindex: load(device, frozen(&LAYOUT.dev_ifindex)),
            })
        }
    }

    /// Is it for another machine's link-layer address, so that this one drops it? Not what comes in by the port of a bridge or
    /// by the lower device of a macvlan: there it is for others nearly always, and handed on to them.
    #[inline(always)]
    pub fn is_for_others(self) -> bool {
        if self.packet_type() != PACKET_OTHERHOST {
            return false;
        }
        // SAFETY: fields of sk_buff and net_device, each reached through the BTF pointer before it.
        unsafe {
            let device: *const u8 = load(self.0, frozen(&LAYOUT.skb_dev));
            let handler: u64 = if device.is_null() { 0 } else { load(device, frozen(&LAYOUT.dev_rx_handler)) };
            handler == 0
        }
    }

    /// Is it IPv4 or IPv6, or may it be behind a VLAN tag?
    #[inline(always)]
    pub fn is_ip(self) -> bool {
        let protocol = self.protocol();
        protocol == ETH_P_IP || protocol == ETH_P_IPV6 || self.is_tagged()
    }

    /// Does a VLAN tag stand in its bytes? So where a NIC neither takes tags off nor puts them on.
    #[inline(always)]
    pub fn is_tagged(self) -> bool {
        let protocol = self.protocol();
        protocol == ETH_P_8021Q || protocol == ETH_P_8021AD
    }

    /// The VLAN tag that is kept beside its bytes, as [`Outer::vlan`] has it; 0 without.
    #[inline(always)]
    pub fn vlan(self) -> u16 {
        if frozen(&LAYOUT.skb_vlan_tci) == ABSENT {
            return 0;
        }
        // SAFETY: fields of sk_buff.
        let (proto, tci): (u16, u16) =
            unsafe { (load(self.0, frozen(&LAYOUT.skb_vlan_proto)), load(self.0, frozen(&LAYOUT.skb_vlan_tci))) };
        if proto == 0 { 0 } else { vlan(tci) }
    }

    /// `sk_buff.protocol`.
    #[inline(always)]
    fn protocol(self) -> u16 {
        // SAFETY: a field of sk_buff.
        unsafe { load(self.0, frozen(&LAYOUT.skb_protocol)) }
    }

    /// `sk_buff.pkt_type`.
    #[inline(always)]
    fn packet_type(self) -> u8 {
        // SAFETY: the byte of sk_buff that holds the bit field.
        let byte: u8 = unsafe { load(self.0, frozen(&LAYOUT.skb_pkt_type)) };
        (byte >> frozen(&LAYOUT.skb_pkt_type_shift)) & 7
    }

    /// `sk_buff.mark`.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        // SAFETY: a field of sk_buff.
        unsafe { load(self.0, frozen(&LAYOUT.skb_mark)) }
    }

    /// `sk_buff._nfct`: the conntrack entry, and in the low three bits what the packet is to it. 0 without conntrack.
    #[inline(always)]
    pub fn nfct(self) -> u64 {
        if frozen(&LAYOUT.skb_nfct) == ABSENT {
            return 0;
        }
        // SAFETY: a field of sk_buff.
        unsafe { load(self.0, frozen(&LAYOUT.skb_nfct)) }
    }

    /// Does it belong to a socket? What a node sends itself does; what it forwards belongs to none, or to one that is another
    /// namespace's.
    #[inline(always)]
    pub fn has_socket(self) -> bool {
        // SAFETY: a field of sk_buff.
        let socket: u64 = unsafe { load(self.0, frozen(&LAYOUT.skb_sk)) };
        socket != 0
    }

    /// The packet from `skb->data` on: at `netif_receive_skb` that is the network header, which is not yet set itself.
    #[inline(always)]
    pub fn at_data(self) -> Packet {
        // SAFETY: a field of sk_buff.
        let at = Memory(unsafe { load(self.0, frozen(&LAYOUT.skb_data)) });
        Packet { bytes: at, reach: self.reach(|| 0) }
    }

    /// The packet from its network header on.
    #[inline(always)]
    pub fn at_network_header(self) -> Packet {
        // SAFETY: fields of sk_buff.
        unsafe {
            let head: u64 = load(self.0, frozen(&LAYOUT.skb_head));
            let offset: u16 = load(self.0, frozen(&LAYOUT.skb_network_header));
            let behind_data = || {
                let data: u64 = load(self.0, frozen(&LAYOUT.skb_data));
                // Opaque: newer kernels take these for pointers, with which nothing but this may be computed.
                u32::from(offset).wrapping_sub(core::hint::black_box(data.wrapping_sub(head)) as u32)
            };
            Packet { bytes: Memory(head + u64::from(offset)), reach: self.reach(behind_data) }
        }
    }

    /// Bytes of it that do not lie in its linear part.
    #[inline(always)]
    pub fn elsewhere(self) -> u32 {
        // SAFETY: a field of sk_buff.
        unsafe { load(self.0, frozen(&LAYOUT.skb_data_len)) }
    }

    /// So much of its linear part lies behind the byte that is so far behind `skb->data`; without fragments, all.
    #[inline(always)]
    fn reach(self, behind_data: impl Fn() -> u32) -> u32 {
        let elsewhere = self.elsewhere();
        if elsewhere == 0 {
            return endless();
        }
        // SAFETY: a field of sk_buff.
        unsafe {
            let len: u32 = load(self.0, frozen(&LAYOUT.skb_len));
            len.wrapping_sub(elsewhere).wrapping_sub(behind_data())
        }
    }

    /// Its `skb_shared_info`.
    #[inline(always)]
    pub fn shared(self) -> Memory {
        // SAFETY: fields of sk_buff.
        unsafe {
            let head: u64 = load(self.0, frozen(&LAYOUT.skb_head));
            let end: u32 = load(self.0, frozen(&LAYOUT.skb_end));
            Memory(head + u64::from(end))
        }
    }
}

/// A tag's control information as [`Outer::vlan`] has it: without the priority.
#[inline(always)]
fn vlan(tci: u16) -> u16 {
    tci & (VLAN_TAGGED - 1) | VLAN_TAGGED
}

impl Packet {
    /// Of one that begins with a VLAN tag: what is behind it, and the tag as [`Outer::vlan`] has it. None: that is no IP.
    #[inline(always)]
    pub fn behind_tag(self) -> Option<(Packet, u16)> {
        let mut tag = [0; 1];
        if !self.bytes.read(0, &mut tag) {
            return None;
        }
        let [a, b, c, d] = tag[0].to_ne_bytes();
        let behind = u16::from_ne_bytes([c, d]);
        if behind != ETH_P_IP && behind != ETH_P_IPV6 {
            return None;
        }
        let bytes = Memory(self.bytes.0 + u64::from(VLAN_HLEN));
        // So much less of it lies there; of all, still more than is looked at.
        let reach = self.reach.saturating_sub(VLAN_HLEN);
        Some((Packet { bytes, reach }, vlan(u16::from_be_bytes([a, b]))))
    }
}

/// Kernel memory that BTF does not vouch for.
#[derive(Clone, Copy)]
pub struct Memory(pub u64);

impl Bytes for Memory {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32, into: &mut [u32; N]) -> bool {
        const { assert!(N * 4 <= BYTES, "so much can be loaded") };
        let from = self.0 + u64::from(offset);
        if let Some(direct) = Self(from).direct() {
            for (index, word) in into.iter_mut().enumerate() {
                *word = direct.word(index);
            }
            return true;
        }
        // SAFETY: the helper answers an error for memory that cannot be read, and writes `into` alone.
        unsafe { bpf_probe_read_kernel(into.as_mut_ptr().cast(), (N * 4) as u32, from as *const c_void) == 0 }
    }
}

/// Kernel memory whose first [`BYTES`] bytes may be loaded directly. What cannot be read is 0.
#[derive(Clone, Copy)]
pub struct Direct(*const u8);

impl Direct {
    /// The 32-bit word that is so many words on.
    #[inline(always)]
    pub fn word(self, index: usize) -> u32 {
        // SAFETY: a part of what the verifier knows as the bytes of `new_utsname`.
        unsafe { load(self.0, index as u32 * 4) }
    }
}

impl Memory {
    /// To load from, instead of having it copied. None: this kernel has no `bpf_rdonly_cast`.
    #[inline(always)]
    pub fn direct(self) -> Option<Direct> {
        let bytes_type = frozen(&LAYOUT.bytes_type);
        if bytes_type == ABSENT {
            return None;
        }
        // SAFETY: what the loader puts in this place takes these arguments and only changes their types.
        let cast: extern "C" fn(u64, u32) -> *const u8 = unsafe { core::mem::transmute(CAST as usize) };
        Some(Direct(cast(self.0, bytes_type)))
    }

    /// The 64-bit word at `offset`; 0 where it cannot be read.
    #[inline(always)]
    pub fn word(self, offset: u32) -> u64 {
        let mut w = [0; 2];
        if self.read(offset, &mut w) { join(w[0], w[1]) } else { 0 }
    }

    /// The 32-bit word at `offset`; 0 where it cannot be read.
    #[inline(always)]
    pub fn half(self, offset: u32) -> u32 {
        let mut w = [0; 1];
        if self.read(offset, &mut w) { w[0] } else { 0 }
    }

    /// The byte at `offset`; 0 where it cannot be read.
    #[inline(always)]
    pub fn byte(self, offset: u32) -> u8 {
        let at = self.0 + u64::from(offset);
        if let Some(Direct(at)) = Self(at).direct() {
            // SAFETY: a part of what the verifier knows as the bytes of `new_utsname`.
            return unsafe { load(at, 0) };
        }
        let mut byte = 0u8;
        // SAFETY: the helper writes one byte into `byte`, or an error's zero.
        unsafe { bpf_probe_read_kernel((&raw mut byte).cast(), 1, at as *const c_void) };
        byte
    }

    /// Of an `sk_buff` at this address: the packet from its network header on.
    #[inline(always)]
    pub fn packet(self) -> Packet {
        let head = self.word(frozen(&LAYOUT.skb_head));
        let at = head + u64::from(self.half(frozen(&LAYOUT.skb_network_header)) as u16);
        let elsewhere = self.half(frozen(&LAYOUT.skb_data_len));
        let reach = if elsewhere == 0 {
            u32::MAX
        } else {
            let tail = self.word(frozen(&LAYOUT.skb_data))
                + u64::from(self.half(frozen(&LAYOUT.skb_len)).wrapping_sub(elsewhere));
            tail.wrapping_sub(at) as u32
        };
        Packet { bytes: Self(at), reach }
    }

    /// Of an `sk_buff` at this address: its `skb_shared_info`.
    #[inline(always)]
    pub fn shared(self) -> Self {
        Self(self.word(frozen(&LAYOUT.skb_head)) + u64::from(self.half(frozen(&LAYOUT.skb_end))))
    }
}
