//! A packet is freed: if it is one that was recognised, say where and why.

use tracer_common::{Free, Track, flag};
use tracer_ebpf::flow;

use crate::{
    fragments::complete,
    kernel::{Device, Skb},
    maps::{LOST, count, slot},
    packet::{Data, Work, begin, examine, found, head, submit, submit_wrapped, work},
};

/// What tunnels put before a packet, bytes at the most.
const WRAPPED: u32 = 200;

/// Runs at `kfree_skb` and `consume_skb`. The slot is looked up first: nearly every free on a machine is of a packet that
/// nobody asked about, and `skb->dev` means nothing here.
#[inline(always)]
pub fn freed(skb: Skb, hook: u8, location: u64, reason: Option<u32>) {
    let identity = skb.identity();
    let Some(slot) = slot(identity) else { return };
    if slot.skb != identity {
        return;
    }
    let track = *slot;
    slot.skb = 0;
    if !skb.is_ip() {
        // Another packet in a reused `sk_buff`: what a TCP socket kept until it was acknowledged, a netlink message.
        return;
    }
    // Before 6.1 or so a free in a process can be interrupted by one in a softirq, that of another packet that was recognised.
    if work(hook.into()).is_none_or(|work| core::mem::replace(&mut work.busy, 1) != 0) {
        return count(&LOST, hook);
    }
    known(skb, identity, hook, &track, location, reason);
    if let Some(work) = work(hook.into()) {
        work.busy = 0;
    }
}

/// The packet is probably one that was recognised.
#[inline(always)]
fn known(skb: Skb, identity: u64, hook: u8, track: &Track, location: u64, reason: Option<u32>) {
    let mut packet = skb.at_network_header();
    if packet.may_be_cut() {
        let len = packet.reach.wrapping_add(skb.elsewhere());
        if !complete(&mut packet, skb.shared(), hook) {
            // Of what cannot be read, only a packet of such a length may be the one that was recognised.
            let more = len.wrapping_sub(u32::from(track.ip_len));
            if more <= WRAPPED {
                count(&LOST, hook);
            }
            return;
        }
    }
    if begin(hook, packet).is_none() {
        return count(&LOST, hook);
    }
    let found = examine(hook.into());
    // What is cut, or no IP packet, was not recognised at a device either: it is another packet, in a reused `sk_buff`. (What a TCP
    // socket kept until it was acknowledged has no network header of its own, but may say that it is IP.)
    if found & (found::CUT | found::PACKET) != found::PACKET {
        return;
    }
    let Some(Work { headers, data: outer, .. }) = work(hook.into()) else { return };
    if !flow::is_tracked(track, headers) {
        return;
    }
    let reason_flag = if reason.is_some() { flag::REASON } else { 0 };
    let fragment = if headers.fragment { flag::FRAGMENT } else { 0 };
    let device = Device { netns: track.netns, ifindex: track.ifindex };
    let wrapped = found as u8 & flag::ENCAPSULATED;
    let head = head(identity, hook, flag::TRACKED | flag::FREED | reason_flag | fragment | wrapped, device, headers);
    let free = Free {
        location,
        reason: reason.unwrap_or(0),
        netfilter: track.netfilter,
        nf_hook: track.nf_hook,
        nf_family: track.nf_family,
        ..Free::default()
    };
    // SAFETY: Free is 40 bytes without padding.
    let mut data = unsafe { core::mem::transmute::<Free, Data>(free) };
    let [.., a, b, c] = &mut data;
    [*a, *b, *c] = track.table;
    if wrapped != 0 {
        submit_wrapped(&head, headers, skb.mark(), &data, outer);
    } else {
        submit(&head, headers, skb.mark(), &data);
    }
}
