//! A packet at a device: is it asked for, and if so, record it. Cheapest tests first.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::map,
    maps::PerCpuArray,
};
use tracer_common::{Head, Outer, Sighting, WrappedFree, flag, hook, last_word};
use tracer_ebpf::{
    flow,
    parse::{self, Bytes, Headers, Start},
};

use crate::{
    conntrack,
    fragments::{Packet, complete},
    kernel::{Device, Memory, Skb},
    maps::{EVENTS, LEARNED, LOST, WANTED, count, in_scope, maybe_learned, slot},
};

/// What wraps a packet, or why it was freed: [`tracer_common::Sighting::data`]. As words, so that it is 8-byte aligned and
/// cheap to clear and copy.
pub type Data = [u64; 5];

/// Runs at the three device hooks.
#[inline(always)]
pub fn seen(skb: Skb, hook: u8) {
    let Some(device) = skb.device() else { return };
    let identity = skb.identity();
    if !in_scope(device.netns) {
        // On a kernel that several nodes share the packet has left this node: its free is not ours to report.
        forget(identity);
        return;
    }
    if !skb.is_ip() || (hook == hook::RECEIVE && skb.is_for_others()) {
        return;
    }
    let mut packet = if hook == hook::RECEIVE { skb.at_data() } else { skb.at_network_header() };
    let mut vlan = if hook == hook::RECEIVE { skb.vlan() } else { 0 };
    if hook == hook::RECEIVE && skb.is_tagged() {
        let Some((behind, tag)) = packet.behind_tag() else { return };
        (packet, vlan) = (behind, tag);
    }
    if packet.may_be_cut() && !complete(&mut packet, skb.shared(), hook) {
        return count(&LOST, hook::UNREAD);
    }
    let direct = packet.bytes.direct();
    let ordinary = match direct {
        Some(direct) => parse::ordinary(|word| direct.word(word)),
        None => {
            let Some(Work { start, .. }) = begin(hook, packet) else { return };
            parse::ordinary(|word| start[word])
        }
    };
    let Some(wanted_flows) = WANTED.get(0) else { return };
    // The way nearly all packets go: ordinary, between strangers, not seen before.
    if let Some((src, dst)) = ordinary
        && flow::strangers(wanted_flows, src, dst)
        && !maybe_learned(src, dst)
        && slot(identity).is_none_or(|slot| slot.skb != identity)
        && !(hook == hook::QUEUE && rewritten_at_home(skb))
    {
        return;
    }
    if direct.is_some() && begin(hook, packet).is_none() {
        return;
    }
    let found = examine(hook.into());
    if found & found::CUT != 0 {
        return count(&LOST, hook::UNREAD);
    }
    if found & found::PACKET == 0 {
        return;
    }
    let mut flags = found as u8;
    let Some(Work { headers, data, .. }) = work(hook.into()) else { return };
    if !wanted(hook.into(), packet.bytes, headers) {
        let known = was_recognised(identity, headers) || hook == hook::QUEUE && conntrack::is_of_wanted(skb.nfct());
        if !known {
            return;
        }
        flags |= flag::TRACKED;
    }
    let [a, b] = vlan.to_ne_bytes();
    // Where `Outer::vlan` is.
    data[4] |= u64::from_ne_bytes([0, 0, 0, 0, 0, 0, a, b]);
    record(skb, identity, hook, device, headers, flags, data);
}

/// What a program works on. In a map, because the verifier takes what is read from one for any number, and so follows what comes
/// after only once; on the stack it would remember by which way each field was filled.
#[repr(C)]
pub struct Work {
    packet: Packet,
    /// A free of a packet is being looked at: see [`crate::free`].
    pub busy: u64,
    start: Start,
    /// Headers of the innermost packet.
    pub headers: Headers,
    /// What wraps it.
    pub data: Data,
}

/// One per hook, because the programs of two hooks may interrupt each other: a packet is freed in a process, another comes in.
/// Those of one device hook do not: softirqs are off there. Nor do kprobes (`bpf_prog_active`).
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(2 * QUOTED, 0);

/// So far behind a hook's own lies what is for the packet that an ICMP error quotes.
const QUOTED: u32 = hook::COUNT as u32;

/// That of this hook on this CPU. Not to be kept while a function is called that asks for the same.
#[inline(always)]
pub fn work(index: u32) -> Option<&'static mut Work> {
    let work = WORK.get_ptr_mut(index)?;
    // SAFETY: a map value lives as long as the map, and this one belongs to this CPU and this hook.
    Some(unsafe { &mut *work })
}

/// Reads a packet's first bytes, for [`examine`]; None where they cannot be read.
#[inline(always)]
pub fn begin(hook: u8, packet: Packet) -> Option<&'static mut Work> {
    let work = work(hook.into())?;
    work.packet = packet;
    packet.bytes.read(0, &mut work.start).then_some(work)
}

/// What [`examine`] answers, above the eight bits of a sighting's flags.
pub mod found {
    /// An IP packet.
    pub const PACKET: u32 = 1 << 8;
    /// Its headers do not all lie where they were read.
    pub const CUT: u32 = 1 << 9;
}

/// Lays out the headers of the innermost packet, of which the start has been read; answers [`found`] and a sighting's flags. A
/// function that the verifier looks at once, for any arguments, and not again for each way to each call of it: so it does with
/// functions of external linkage whose arguments are plain numbers (`do_check_subprogs` in kernel/bpf/verifier.c, from 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn examine(hook: u32) -> u32 {
    if lay_out(hook, 0) == 0 {
        return 0;
    }
    let Some(Work { headers, data, .. }) = work(hook) else { return 0 };
    let mut flags = 0;
    let (offset, encapsulation) = parse::inner(headers);
    *data = [0; 5];
    if offset != 0 {
        // SAFETY: Outer is 40 bytes without padding.
        *data = unsafe { core::mem::transmute::<Outer, Data>(parse::outer_fields(headers, encapsulation)) };
        if read_at(hook, offset) {
            flags = flag::ENCAPSULATED;
        } else {
            // Not a tunnel after all: ordinary UDP on that port.
            if let Some(work) = work(hook) {
                work.data = [0; 5];
            }
            read_at(hook, 0);
        }
    }
    let Some(Work { packet, headers, .. }) = work(hook) else { return 0 };
    if headers.fragment {
        flags |= flag::FRAGMENT;
    }
    if headers.needed() > packet.reach {
        return found::CUT;
    }
    found::PACKET | u32::from(flags)
}

/// Reads what lies at `offset` of the packet and lays out the headers there.
#[inline(always)]
fn read_at(index: u32, offset: u32) -> bool {
    let Some(Work { packet, start, .. }) = work(index) else { return false };
    packet.bytes.read(offset, start) && lay_out(index, offset) != 0
}

/// Lays out the headers at `offset` of the packet, whose first bytes have been read. 0: it is not IP, or cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lay_out(index: u32, offset: u32) -> u32 {
    let Some(Work { packet, start, headers, .. }) = work(index) else { return 0 };
    u32::from(parse::packet(&packet.bytes, offset, start, headers))
}

/// 1: the packet's headers are of a flow that is wanted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_wanted(index: u32) -> u32 {
    work(index).is_some_and(|work| flow_wanted(&work.headers)).into()
}

/// Is this packet wanted: by its own addresses, because conntrack translates a wanted flow into it, or because it is an ICMP
/// error about one?
#[inline(always)]
fn wanted(hook: u32, bytes: Memory, headers: &Headers) -> bool {
    if is_wanted(hook) != 0 {
        return true;
    }
    let quoted = hook + QUOTED;
    if !headers.is_icmp_error() || work(quoted).map(|work| work.packet.bytes = bytes).is_none() {
        return false;
    }
    read_at(quoted, parse::quoted_offset(headers)) && is_wanted(quoted) != 0
}

/// Is this a packet of the node's own, of a wanted flow, of which conntrack rewrote both addresses before its first device? So
/// does a node that asks for a service whose backend lies behind a tunnel.
#[inline(always)]
fn rewritten_at_home(skb: Skb) -> bool {
    let nfct = skb.nfct();
    conntrack::is_original(nfct) && skb.has_socket() && conntrack::is_of_wanted(nfct)
}

#[inline(always)]
fn forget(skb: u64) {
    if let Some(slot) = slot(skb)
        && slot.skb == skb
    {
        slot.skb = 0;
    }
}

/// Does the packet belong to a wanted flow or to one that was learned?
#[inline(always)]
pub fn flow_wanted(headers: &Headers) -> bool {
    let Some(wanted) = WANTED.get(0) else { return false };
    if flow::is_wanted(wanted, headers) {
        return true;
    }
    let (src, dst) = (last_word(&headers.src), last_word(&headers.dst));
    // SAFETY: only read.
    maybe_learned(src, dst) && unsafe { LEARNED.get(flow::learned_key(headers)) }.is_some()
}

/// Was this very packet recognised at an earlier hook, before NAT hid its addresses?
#[inline(always)]
fn was_recognised(skb: u64, headers: &Headers) -> bool {
    let Some(slot) = slot(skb) else { return false };
    if slot.skb != skb {
        return false;
    }
    let same = flow::is_tracked(slot, headers);
    if !same {
        // The pointer serves another packet by now.
        slot.skb = 0;
    }
    same
}

/// Writes the sighting, remembers the packet, and learns what conntrack makes of it.
#[inline(always)]
fn record(skb: Skb, identity: u64, hook: u8, device: Device, headers: &Headers, flags: u8, data: &Data) {
    let nfct = skb.nfct();
    let flags = flags | conntrack::flags(nfct);
    let head = head(identity, hook, flags, device, headers);
    if let Some(slot) = slot(head.skb) {
        *slot = flow::track(head.skb, headers, device.netns, device.ifindex);
    }
    // An encapsulated packet's entry is the tunnel's, not the flow's.
    if hook == hook::QUEUE && flags & (flag::CONNTRACK | flag::ENCAPSULATED) == flag::CONNTRACK {
        conntrack::translation(nfct, &head);
    }
    submit(&head, headers, skb.mark(), data);
}

/// What a record begins with, here and now.
#[inline(always)]
pub fn head(skb: u64, hook: u8, flags: u8, device: Device, headers: &Headers) -> Head {
    Head {
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        skb,
        hook,
        flags,
        // SAFETY: as above.
        cpu: unsafe { bpf_get_smp_processor_id() } as u16,
        netns: device.netns,
        ifindex: device.ifindex,
        protocol: headers.protocol,
        ttl: headers.ttl,
        header_len: headers.header_len as u16,
    }
}

/// Writes one sighting to the ring, field by field: a whole one does not fit on the stack beside the rest.
#[inline(always)]
pub fn submit(head: &Head, headers: &Headers, mark: u32, data: &Data) {
    let Some(mut entry) = EVENTS.reserve::<Sighting>(0) else {
        count(&LOST, head.hook);
        return;
    };
    // SAFETY: the entry is a Sighting's memory, 8-byte aligned.
    unsafe { fill(entry.as_mut_ptr(), head, headers, mark, data) };
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// As [`submit`], of the free of a packet that is still encapsulated.
#[inline(always)]
pub fn submit_wrapped(head: &Head, headers: &Headers, mark: u32, data: &Data, outer: &Data) {
    let Some(mut entry) = EVENTS.reserve::<WrappedFree>(0) else {
        count(&LOST, head.hook);
        return;
    };
    let at = entry.as_mut_ptr();
    // SAFETY: the entry is a WrappedFree's memory, 8-byte aligned, and both its fields are written here.
    unsafe {
        fill(&raw mut (*at).sighting, head, headers, mark, data);
        (&raw mut (*at).outer).cast::<Data>().write(*outer);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Writes every field of the sighting at `at`.
///
/// # Safety
/// There is a Sighting's memory, 8-byte aligned.
#[inline(always)]
unsafe fn fill(at: *mut Sighting, head: &Head, headers: &Headers, mark: u32, data: &Data) {
    let Headers { src, dst, l4, ip_id, ip_len, ttl: _, protocol: _, header_len: _, fragment: _, offset: _ } = headers;
    // SAFETY: the caller's word, and every field of it is written here.
    unsafe {
        (&raw mut (*at).head).write(*head);
        (&raw mut (*at).src).write(*src);
        (&raw mut (*at).dst).write(*dst);
        (&raw mut (*at).l4).cast::<[u64; 2]>().write(*l4);
        (&raw mut (*at).mark).write(mark);
        (&raw mut (*at).ip_id).write(*ip_id);
        (&raw mut (*at).ip_len).write(*ip_len);
        (&raw mut (*at).data).cast::<Data>().write(*data);
    }
}
