//! Reading kernel structures: by direct loads where BTF vouches for the pointer, by `bpf_probe_read_kernel` elsewhere.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracer_common::{ABSENT, Layout};

use tracer_ebpf::parse::Bytes;

/// Set by userspace before the programs are loaded, and frozen then.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout {
    skb_dev: 0,
    skb_head: 0,
    skb_data: 0,
    skb_network_header: 0,
    skb_protocol: 0,
    skb_len: 0,
    skb_data_len: 0,
    skb_mark: 0,
    skb_nfct: 0,
    skb_pkt_type: 0,
    skb_pkt_type_shift: 0,
    dev_ifindex: 0,
    dev_net: 0,
    net_inum: 0,
    ct_status: 0,
    ct_original: 0,
    ct_reply: 0,
    kfree_location_arg: 0,
    kfree_reason_arg: 0,
    consume_location_arg: 0,
};

/// A field of [`LAYOUT`] as the loader set it. A volatile read, because the compiler sees only zeros.
#[inline(always)]
pub fn frozen(field: &u32) -> u32 {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(field) }
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
pub const PACKET_OTHERHOST: u8 = 3;
/// An IPv4 header and what names a flow of the L4 header, bytes.
const LEAST_HEADERS: u32 = 28;
/// `ETH_P_IP` and `ETH_P_IPV6`, as stored in `sk_buff.protocol`.
const ETH_P_IP: u16 = 0x0800u16.to_be();
const ETH_P_IPV6: u16 = 0x86ddu16.to_be();

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

    /// Is it IPv4 or IPv6?
    #[inline(always)]
    pub fn is_ip(self) -> bool {
        // SAFETY: a field of sk_buff.
        let protocol: u16 = unsafe { load(self.0, frozen(&LAYOUT.skb_protocol)) };
        protocol == ETH_P_IP || protocol == ETH_P_IPV6
    }

    /// `sk_buff.pkt_type`.
    #[inline(always)]
    pub fn packet_type(self) -> u8 {
        // SAFETY: the byte of sk_buff that holds the bit field.
        let byte: u8 = unsafe { load(self.0, frozen(&LAYOUT.skb_pkt_type)) };
        (byte >> frozen(&LAYOUT.skb_pkt_type_shift)) & 7
    }

    /// Do the packet's headers lie outside the linear part? So it comes from drivers that hand over page fragments, until the
    /// IP layer pulls the headers in (`pskb_may_pull`), which it does after `netif_receive_skb`. What lies at `skb->data` then
    /// is not the packet.
    #[inline(always)]
    pub fn headers_are_elsewhere(self) -> bool {
        // SAFETY: fields of sk_buff.
        let (len, elsewhere): (u32, u32) =
            unsafe { (load(self.0, frozen(&LAYOUT.skb_len)), load(self.0, frozen(&LAYOUT.skb_data_len))) };
        elsewhere != 0 && len.wrapping_sub(elsewhere) < LEAST_HEADERS
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

    /// The packet from `skb->data` on: at `netif_receive_skb` that is the network header, which is not yet set itself.
    #[inline(always)]
    pub fn at_data(self) -> Memory {
        // SAFETY: a field of sk_buff.
        Memory(unsafe { load(self.0, frozen(&LAYOUT.skb_data)) })
    }

    /// The packet from its network header on.
    #[inline(always)]
    pub fn at_network_header(self) -> Memory {
        // SAFETY: fields of sk_buff.
        unsafe {
            let head: u64 = load(self.0, frozen(&LAYOUT.skb_head));
            let offset: u16 = load(self.0, frozen(&LAYOUT.skb_network_header));
            Memory(head + u64::from(offset))
        }
    }
}

/// Kernel memory that BTF does not vouch for.
#[derive(Clone, Copy)]
pub struct Memory(pub u64);

impl Bytes for Memory {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32, into: &mut [u32; N]) -> bool {
        let (size, from) = ((N * 4) as u32, (self.0 + u64::from(offset)) as *const c_void);
        // SAFETY: the helper answers an error for memory that cannot be read, and writes `into` alone.
        unsafe { bpf_probe_read_kernel(into.as_mut_ptr().cast(), size, from) == 0 }
    }
}
