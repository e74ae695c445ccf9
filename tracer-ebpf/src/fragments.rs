//! Packets of which part lies in page fragments, as many drivers hand them over: virtio_net copies no more than the Ethernet
//! header of a packet of over 128 bytes into the linear part (`page_to_skb`, from 5.13). The IP layer pulls its own header in,
//! but nobody needs to pull in what comes behind it: netfilter reads that where it is (`skb_header_pointer`).

use core::{
    ffi::c_void,
    hint::black_box,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, macros::map, maps::PerCpuArray};
use tracer_common::{ABSENT, Pages, hook};
use tracer_ebpf::parse::{self, Bytes, FIRST_READ, join};

use crate::kernel::{LAYOUT, Memory, frozen};

/// Set by userspace before the programs are loaded, and frozen then.
#[unsafe(no_mangle)]
pub static PAGES: Pages = Pages { first: 0, stride: 0, memory: 0, size: 0 };

/// At the most so many bytes of the linear part, and of the fragment, make a packet's beginning; one less than a power of two.
const MOST: u32 = 255;

/// A linear part of so many bytes holds all headers that are read: outer IPv6, UDP, VXLAN, Ethernet, inner IPv6, 16 bytes of L4.
const ENOUGH: u32 = 40 + 8 + 8 + 14 + 40 + 16;

/// The beginning of a packet, gathered from where it lies, behind the address of that beginning.
#[repr(C)]
struct Scratch {
    address: u64,
    buffer: [u64; 64],
}

/// One per hook, because the programs of two hooks may interrupt each other: a packet is freed in a process, another comes in.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(hook::COUNT as u32, 0);

/// The bytes of a packet from its IP header on.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Where they begin.
    pub bytes: Memory,
    /// So many of them lie there; `u32::MAX`: all.
    pub reach: u32,
}

impl Packet {
    /// May its linear part end before the headers do?
    #[inline(always)]
    pub fn may_be_cut(&self) -> bool {
        self.reach < ENOUGH
    }
}

/// Brings linear part and first fragment together, unless what is linear is enough, as it is of all TCP. False: it cannot be done.
#[inline(never)]
pub fn complete(packet: &mut Packet, shared: Memory, hook: u8) -> bool {
    let Packet { bytes, reach } = *packet;
    let mut start = [0; FIRST_READ];
    if bytes.read(0, &mut start)
        && reach >= parse::ordinary_needs(&start)
        && parse::ordinary(|word| start[word]).is_some()
    {
        return true;
    }
    if frozen(&LAYOUT.shared_frags) == ABSENT || word(&PAGES.first) == 0 {
        return false;
    }
    let mut fragment = [0; 4];
    if shared.byte(frozen(&LAYOUT.shared_nr_frags)) == 0 || !shared.read(frozen(&LAYOUT.shared_frags), &mut fragment) {
        return false;
    }
    let [low, high, len, offset] = fragment;
    let page = join(low, high);
    if page & 1 != 0 {
        return false;
    }
    let Some(number) = page.wrapping_sub(word(&PAGES.first)).checked_div(word(&PAGES.stride)) else { return false };
    let from = number.wrapping_mul(word(&PAGES.size)).wrapping_add(word(&PAGES.memory)) + u64::from(offset);
    let Some(scratch) = SCRATCH.get_ptr_mut(u32::from(hook)) else { return false };
    // Opaque, or LLVM drops the masks, by which the verifier knows the bounds.
    let linear = black_box(reach) & MOST;
    let taken = black_box(len.min(MOST)) & MOST;
    // SAFETY: the value belongs to this CPU and this hook; the buffer in it holds twice MOST. Stored and loaded again, its
    // address is a number to the verifier, which may be added to.
    unsafe {
        let buffer = (&raw mut (*scratch).buffer).cast::<u8>();
        if bpf_probe_read_kernel(buffer.cast(), linear, bytes.0 as *const c_void) != 0
            || bpf_probe_read_kernel(buffer.add(linear as usize).cast(), taken, from as *const c_void) != 0
        {
            return false;
        }
        write_volatile(&raw mut (*scratch).address, buffer as u64);
        let at = read_volatile(&raw const (*scratch).address);
        *packet = Packet { bytes: Memory(at), reach: linear + taken };
    }
    true
}

/// A field of [`PAGES`] as the loader set it.
#[inline(always)]
fn word(field: &u64) -> u64 {
    // SAFETY: a reference is valid and aligned.
    unsafe { read_volatile(field) }
}
