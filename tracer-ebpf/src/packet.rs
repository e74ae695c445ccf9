//! A packet at a device: is it asked for, and if so, record it. Cheapest tests first.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use tracer_common::{Head, Outer, Sighting, flag, hook, last_word};
use tracer_ebpf::{
    flow,
    parse::{self, Bytes, FIRST_READ, Headers, Start},
};

use crate::{
    conntrack,
    fragments::{complete, cuts},
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
    if packet.may_be_cut() && !complete(&mut packet, skb.shared(), hook) {
        return count(&LOST, hook::UNREAD);
    }
    let bytes = packet.bytes;
    let mut start = [0; FIRST_READ];
    if !bytes.read(0, &mut start) {
        return;
    }
    let Some(wanted_flows) = WANTED.get(0) else { return };
    // The way nearly all packets go: ordinary, between strangers, not seen before.
    if let Some((src, dst)) = parse::ordinary(&start)
        && flow::strangers(wanted_flows, src, dst)
        && !maybe_learned(src, dst)
        && slot(identity).is_none_or(|slot| slot.skb != identity)
        && !(hook == hook::QUEUE && rewritten_at_home(skb))
    {
        return;
    }
    let mut headers = Headers::default();
    let mut data = [0; 5];
    if !parse_start(bytes.0, 0, &start, &mut headers) {
        return;
    }
    let mut flags = unwrap(&bytes, &mut headers, &mut data);
    if cuts(&packet, &headers) {
        return count(&LOST, hook::UNREAD);
    }
    if !wanted(&bytes, &headers) {
        let known = was_recognised(identity, &headers) || hook == hook::QUEUE && conntrack::is_of_wanted(skb.nfct());
        if !known {
            return;
        }
        flags |= flag::TRACKED;
    }
    record(skb, identity, hook, device, &headers, flags, &data);
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

/// [`parse::packet`] as a function of its own, with its own stack frame.
#[inline(never)]
fn parse_start(address: u64, offset: u32, start: &Start, headers: &mut Headers) -> bool {
    parse::packet(&Memory(address), offset, start, headers)
}

/// Reads and parses the headers at `offset`.
#[inline(never)]
pub fn parse(address: u64, offset: u32, headers: &mut Headers) -> bool {
    let mut start = [0; FIRST_READ];
    Memory(address).read(offset, &mut start) && parse::packet(&Memory(address), offset, &start, headers)
}

/// Goes to the innermost packet, keeping in `data` what wraps it. Returns the flags for it.
#[inline(always)]
pub fn unwrap(bytes: &Memory, headers: &mut Headers, data: &mut Data) -> u8 {
    let mut flags = 0;
    let (offset, encapsulation) = parse::inner(headers);
    if offset != 0 {
        // SAFETY: Outer is 40 bytes without padding.
        *data = unsafe { core::mem::transmute::<Outer, Data>(parse::outer_fields(headers, encapsulation)) };
        if parse(bytes.0, offset, headers) {
            flags |= flag::ENCAPSULATED;
        } else {
            // Not a tunnel after all: ordinary UDP on that port.
            *data = [0; 5];
            parse(bytes.0, 0, headers);
        }
    }
    if headers.fragment {
        flags |= flag::FRAGMENT;
    }
    flags
}

/// Is this packet wanted: by its own addresses, because conntrack translates a wanted flow into it, or because it is an
/// ICMP error about one?
#[inline(always)]
fn wanted(bytes: &Memory, headers: &Headers) -> bool {
    flow_wanted(headers) || (headers.is_icmp_error() && quoted_wanted(bytes.0, parse::quoted_offset(headers)))
}

#[inline(never)]
fn quoted_wanted(address: u64, offset: u32) -> bool {
    let mut quoted = Headers::default();
    parse(address, offset, &mut quoted) && flow_wanted(&quoted)
}

/// Does the packet belong to a wanted flow or to one that was learned?
#[inline(never)]
pub fn flow_wanted(headers: &Headers) -> bool {
    let Some(wanted) = WANTED.get(0) else { return false };
    for (index, rule) in wanted.rules.iter().enumerate() {
        if index as u32 >= wanted.count {
            break;
        }
        if flow::differs(rule, headers) == 0 {
            return true;
        }
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
    let at = entry.as_mut_ptr();
    let Headers { src, dst, l4, ip_id, ip_len, ttl: _, protocol: _, header_len: _, fragment: _, offset: _ } = headers;
    // SAFETY: the entry is a Sighting's memory, 8-byte aligned, and every field of it is written here.
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
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
