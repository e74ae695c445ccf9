//! The maps, and what is counted in them.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_common::{LEARNED_BITS, Learned, SCOPE_SLOTS, TRACK_SLOTS, Track, Wanted, hook, learned_bit, scope_slots};

/// Records for userspace. The size is set at load.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Inodes of the network namespaces in scope, each in one of its [`scope_slots`]; 0: a free slot, where a search ends. Not a hash
/// map: every packet of the machine asks, and nearly always the first slot answers.
#[map]
pub static SCOPE: Array<u32> = Array::with_max_entries(SCOPE_SLOTS, 0);

/// The wanted flows.
#[map]
pub static WANTED: Array<Wanted> = Array::with_max_entries(1, 0);

/// Translated flows, learned from conntrack.
#[map]
pub static LEARNED: LruHashMap<Learned, u8> = LruHashMap::with_max_entries(4096, 0);

/// A bit per pair of addresses that something in `LEARNED` may be about. Spares packets of others a closer look.
#[map]
pub static MAYBE_LEARNED: Array<u32> = Array::with_max_entries(LEARNED_BITS / 32, 0);

/// Packets on their way, by a hash of their `sk_buff`. Not an LRU hash map: every free of the machine asks, and the kernel
/// turns the lookup in an array into a few instructions (`array_map_gen_lookup`). A packet that loses its slot to another is
/// still found by its addresses where it has those that were asked for; its free is not.
#[map]
pub static TRACK: Array<Track> = Array::with_max_entries(TRACK_SLOTS, 0);

/// Per hook: what could not be recorded, because the ring was full or the packet could not be read.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(hook::COUNT as u32, 0);

/// Adds one.
#[inline(always)]
pub fn count(map: &PerCpuArray<u64>, index: u8) {
    if let Some(counter) = map.get_ptr_mut(u32::from(index)) {
        // SAFETY: the value belongs to this CPU, and nothing else writes it but an interrupt that runs a program of
        // ours between the load and the store: that costs one count of many.
        unsafe { *counter += 1 };
    }
}

/// May a flow between addresses that end so have been learned?
#[inline(always)]
pub fn maybe_learned(src: u32, dst: u32) -> bool {
    let bit = learned_bit(src, dst);
    MAYBE_LEARNED.get(bit / 32).is_some_and(|word| word >> (bit % 32) & 1 != 0)
}

/// Is this network namespace in scope?
#[inline(always)]
pub fn in_scope(inode: u32) -> bool {
    for slot in scope_slots(inode) {
        match SCOPE.get(slot) {
            Some(found) if *found == inode => return true,
            Some(0) | None => return false,
            Some(_) => {}
        }
    }
    false
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
