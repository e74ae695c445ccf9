//! What conntrack makes of a packet: read, not inferred, from the entry that `sk_buff._nfct` points to.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use tracer_common::{Head, Learned, Translation, Tuple, flag, hook, last_word, learned_bit};
use tracer_ebpf::parse::{Bytes, Headers, join, mapped, protocol};

use crate::{
    kernel::{LAYOUT, Memory, frozen},
    maps::{EVENTS, LEARNED, LOST, MAYBE_LEARNED, count},
    packet::flow_wanted,
};

/// `NFCT_INFOMASK` of net/netfilter/nf_conntrack.h.
const INFO_MASK: u64 = 7;
/// `IP_CT_IS_REPLY`: from this value of `enum ip_conntrack_info` on the packet goes the reply way.
const IS_REPLY: u64 = 3;
/// `IPS_SRC_NAT | IPS_DST_NAT`: set only when a rule really changes something.
const NAT: u32 = 1 << 4 | 1 << 5;
/// `sizeof(struct nf_conntrack_tuple)` in words; the structure is unchanged since 2.6: source address 16 bytes, source port or
/// ICMP id 2, L3 protocol 2, destination address 16, destination port or ICMP type and code 2, L4 protocol 1, direction 1.
const TUPLE_WORDS: usize = 10;
/// `AF_INET`, in the L3 protocol's field.
const AF_INET: u16 = 2;

/// The flags that follow from `_nfct`.
#[inline(always)]
pub fn flags(nfct: u64) -> u8 {
    if nfct & !INFO_MASK == 0 {
        return 0;
    }
    let reply = if nfct & INFO_MASK >= IS_REPLY { flag::CT_REPLY } else { 0 };
    flag::CONNTRACK | reply
}

/// Does the packet have an entry, and goes the way of its originator?
#[inline(always)]
pub fn is_original(nfct: u64) -> bool {
    nfct & !INFO_MASK != 0 && nfct & INFO_MASK < IS_REPLY
}

/// The entry that `_nfct` points to, and its status, if it translates.
#[inline(always)]
fn translating(nfct: u64) -> Option<(u64, u32)> {
    let entry = Memory(nfct & !INFO_MASK);
    // An unsigned long, of which the lower half is used.
    let mut status = [0; 2];
    if entry.0 == 0 || !entry.read(frozen(&LAYOUT.ct_status), &mut status) {
        return None;
    }
    let status = if cfg!(target_endian = "little") { status[0] } else { status[1] };
    (status & NAT != 0).then_some((entry.0, status))
}

/// If the entry translates, records both its tuples, and makes the flow wanted as it looks on the other side.
#[inline(always)]
pub fn translation(nfct: u64, head: &Head) {
    if let Some((entry, status)) = translating(nfct) {
        translated(entry, status, head);
    }
}

/// Does the entry translate a wanted flow? So it is with what a node itself sends: its addresses are rewritten before the
/// first device sees it.
#[inline(always)]
pub fn is_of_wanted(nfct: u64) -> bool {
    match translating(nfct) {
        Some((entry, _)) => original_is_wanted(entry) != 0,
        None => false,
    }
}

/// 1: it does. Looked at by the verifier once, as [`crate::packet::examine`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn original_is_wanted(entry: u64) -> u32 {
    let mut original = Tuple::default();
    if !tuple(entry + u64::from(frozen(&LAYOUT.ct_original)), &mut original) {
        return 0;
    }
    let headers = Headers {
        src: original.src,
        dst: original.dst,
        l4: [l4_of(&original, false), 0],
        protocol: original.protocol as u8,
        ..Headers::default()
    };
    u32::from(flow_wanted(&headers))
}

/// Ports or ICMP identifier of a tuple, where they are in the L4 header; of its inverse on demand.
#[inline(always)]
fn l4_of(tuple: &Tuple, inverse: bool) -> u64 {
    let (a, b) = (tuple.l4_src.to_be_bytes(), tuple.l4_dst.to_be_bytes());
    let bytes = match (tuple.protocol as u8, inverse) {
        (protocol::ICMP | protocol::ICMPV6, _) => [0, 0, 0, 0, a[0], a[1], 0, 0],
        (_, false) => [a[0], a[1], b[0], b[1], 0, 0, 0, 0],
        (_, true) => [b[0], b[1], a[0], a[1], 0, 0, 0, 0],
    };
    u64::from_ne_bytes(bytes)
}

/// The rare part of [`translation`], with a stack frame of its own.
#[inline(never)]
fn translated(entry: u64, status: u32, head: &Head) {
    let (mut original, mut reply) = (Tuple::default(), Tuple::default());
    if !tuple(entry + u64::from(frozen(&LAYOUT.ct_original)), &mut original)
        || !tuple(entry + u64::from(frozen(&LAYOUT.ct_reply)), &mut reply)
    {
        return;
    }
    learn(&reply);
    learn(&original);
    let Some(mut record) = EVENTS.reserve::<Translation>(0) else {
        count(&LOST, hook::QUEUE);
        return;
    };
    let at = record.as_mut_ptr();
    // SAFETY: the entry is a Translation's memory, 8-byte aligned, and every field of it is written here.
    unsafe {
        (&raw mut (*at).head).write(Head { hook: hook::TRANSLATION, ..*head });
        (&raw mut (*at).original).write(original);
        (&raw mut (*at).reply).write(reply);
        (&raw mut (*at).status).write(status);
        (&raw mut (*at).zero).write([0; 12]);
    }
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Reads one tuple; false where it cannot be read.
#[inline(never)]
fn tuple(at: u64, into: &mut Tuple) -> bool {
    let mut w = [0; TUPLE_WORDS];
    if !Memory(at).read(0, &mut w) {
        return false;
    }
    // Source address, then its port and the L3 protocol; destination address, then its port, L4 protocol and direction.
    let [s0, s1, s2, s3, source, d0, d1, d2, d3, destination] = w;
    let (source, destination) = (source.to_ne_bytes(), destination.to_ne_bytes());
    if u16::from_ne_bytes([source[2], source[3]]) == AF_INET {
        (into.src, into.dst) = (mapped(s0), mapped(d0));
    } else {
        (into.src, into.dst) = ([join(s0, s1), join(s2, s3)], [join(d0, d1), join(d2, d3)]);
    }
    into.l4_src = u16::from_be_bytes([source[0], source[1]]);
    into.l4_dst = u16::from_be_bytes([destination[0], destination[1]]);
    into.protocol = u32::from(destination[2]);
    true
}

/// Makes packets of this tuple wanted, both ways.
#[inline(never)]
fn learn(tuple: &Tuple) {
    let mut key =
        Learned { src: tuple.src, dst: tuple.dst, l4: l4_of(tuple, false), protocol: u64::from(tuple.protocol) };
    remember(&key);
    (key.src, key.dst) = (tuple.dst, tuple.src);
    key.l4 = l4_of(tuple, true);
    remember(&key);
    let bit = learned_bit(last_word(&tuple.src), last_word(&tuple.dst));
    if let Some(word) = MAYBE_LEARNED.get_ptr_mut(bit / 32) {
        // SAFETY: a map value lives as long as the map. Two CPUs that set bits of one word at once may lose one; the
        // next packet of that flow sets it again.
        unsafe { *word |= 1 << (bit % 32) };
    }
}

/// Puts one key into `LEARNED` unless it is there.
#[inline(always)]
fn remember(key: &Learned) {
    // SAFETY: only read.
    if unsafe { LEARNED.get(key) }.is_none() && LEARNED.insert(key, 1, 0).is_err() {
        // A reply that is not wanted is a reply that is not recorded.
        count(&LOST, hook::QUEUE);
    }
}
