//! What conntrack makes of a packet: read, not inferred, from the entry that `sk_buff._nfct` points to.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use tracer_common::{Head, Learned, Translation, Tuple, address, flag, hook};
use tracer_ebpf::parse::{Bytes, mapped, protocol};

use crate::{
    kernel::{LAYOUT, Memory, frozen},
    maps::{ANY_LEARNED, EVENTS, LEARNED, LOST, WRITTEN, count},
};

/// `NFCT_INFOMASK` of net/netfilter/nf_conntrack.h.
const INFO_MASK: u64 = 7;
/// `IP_CT_IS_REPLY`: from this value of `enum ip_conntrack_info` on the packet goes the reply way.
const IS_REPLY: u64 = 3;
/// `IPS_SRC_NAT | IPS_DST_NAT`: set only when a rule really changes something.
const NAT: u64 = 1 << 4 | 1 << 5;
/// `sizeof(struct nf_conntrack_tuple)`, unchanged since 2.6: source address 16, source port or ICMP id 2, L3 protocol 2,
/// destination address 16, destination port or ICMP type and code 2, L4 protocol 1, direction 1.
const TUPLE_SIZE: usize = 40;
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

/// If the entry translates, records both its tuples, and makes the flow wanted as it looks on the other side.
#[inline(always)]
pub fn translation(nfct: u64, head: &Head) {
    let entry = Memory(nfct & !INFO_MASK);
    let mut status = [0; 8];
    if !entry.read(frozen(&LAYOUT.ct_status) as usize, &mut status) {
        return;
    }
    let status = u64::from_ne_bytes(status);
    if status & NAT == 0 {
        return;
    }
    translated(entry.0, status as u32, head);
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
    count(&WRITTEN, hook::TRANSLATION);
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
    let mut bytes = [0; TUPLE_SIZE];
    if !Memory(at).read(0, &mut bytes) {
        return false;
    }
    if u16::from_ne_bytes([bytes[18], bytes[19]]) == AF_INET {
        into.src = mapped(bytes[0], bytes[1], bytes[2], bytes[3]);
        into.dst = mapped(bytes[20], bytes[21], bytes[22], bytes[23]);
    } else {
        let (mut src, mut dst) = ([0; 16], [0; 16]);
        src.copy_from_slice(&bytes[..16]);
        dst.copy_from_slice(&bytes[20..36]);
        (into.src, into.dst) = (address(src), address(dst));
    }
    into.l4_src = u16::from_be_bytes([bytes[16], bytes[17]]);
    into.l4_dst = u16::from_be_bytes([bytes[36], bytes[37]]);
    into.protocol = u32::from(bytes[38]);
    true
}

/// Makes packets of this tuple wanted, both ways.
#[inline(never)]
fn learn(tuple: &Tuple) {
    let icmp = matches!(tuple.protocol as u8, protocol::ICMP | protocol::ICMPV6);
    let (a, b) = (tuple.l4_src.to_be_bytes(), tuple.l4_dst.to_be_bytes());
    let mut key = Learned {
        src: tuple.src,
        dst: tuple.dst,
        l4: u64::from_ne_bytes(if icmp {
            [0, 0, 0, 0, a[0], a[1], 0, 0]
        } else {
            [a[0], a[1], b[0], b[1], 0, 0, 0, 0]
        }),
        protocol: u64::from(tuple.protocol),
    };
    // SAFETY: only read.
    if unsafe { LEARNED.get(key) }.is_some() {
        return;
    }
    // An LRU map always has room; should it fail all the same, the reply is missing, which the path shows.
    let _ = LEARNED.insert(key, 1, 0);
    (key.src, key.dst) = (tuple.dst, tuple.src);
    if !icmp {
        key.l4 = u64::from_ne_bytes([b[0], b[1], a[0], a[1], 0, 0, 0, 0]);
    }
    let _ = LEARNED.insert(key, 1, 0);
    let _ = ANY_LEARNED.set(0, 1, 0);
}
