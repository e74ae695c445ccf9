//! The maps, and what is counted in them.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_common::{Learned, TRACK_SLOTS, Track, Wanted, hook};

/// Records for userspace. The size is set at load.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Inodes of the network namespaces in scope.
#[map]
pub static SCOPE: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

/// The wanted flows.
#[map]
pub static WANTED: Array<Wanted> = Array::with_max_entries(1, 0);

/// Translated flows, learned from conntrack.
#[map]
pub static LEARNED: LruHashMap<Learned, u8> = LruHashMap::with_max_entries(4096, 0);

/// One slot: is there anything in `LEARNED`? Spares every packet that nobody asked about a lookup.
#[map]
pub static ANY_LEARNED: Array<u32> = Array::with_max_entries(1, 0);

/// Packets on their way, by a hash of their `sk_buff`. Not an LRU hash map: a slot costs a tenth of it, and a packet
/// that loses its slot to another is still found by its addresses.
#[map]
pub static TRACK: Array<Track> = Array::with_max_entries(TRACK_SLOTS, 0);

/// Per hook: records lost because the ring was full.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(hook::COUNT as u32, 0);

/// Adds one.
#[inline(always)]
pub fn count(map: &PerCpuArray<u64>, index: u8) {
    if let Some(counter) = map.get_ptr_mut(u32::from(index)) {
        // SAFETY: the value belongs to this CPU; a tracing program is not preempted by another of its kind that
        // writes it, and an interrupt that does costs one count at worst.
        unsafe { *counter += 1 };
    }
}

/// The slot of a packet.
#[inline(always)]
pub fn slot(skb: u64) -> Option<&'static mut Track> {
    // Fibonacci hashing; an `sk_buff` is at least 64-byte aligned, the multiplication mixes that away.
    let index = (skb >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TRACK_SLOTS.trailing_zeros());
    let slot = TRACK.get_ptr_mut(index as u32)?;
    // SAFETY: a map value lives as long as the map. Another CPU may write it at the same time: a torn slot fails
    // the comparison with the packet's headers and counts as free.
    Some(unsafe { &mut *slot })
}
