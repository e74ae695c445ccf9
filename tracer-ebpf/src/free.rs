//! A packet is freed: if it is one that was recognised, say where and why.

use tracer_common::{Free, flag};
use tracer_ebpf::{
    flow,
    parse::{self, Headers},
};

use crate::{
    fragments::complete,
    kernel::{Device, Skb},
    maps::{LOST, count, slot},
    packet::{Data, head, parse, submit},
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
    let bytes = packet.bytes;
    let mut headers = Headers::default();
    if !parse(bytes.0, 0, &mut headers) {
        count(&LOST, hook);
        return;
    }
    let (offset, _) = parse::inner(&headers);
    if offset != 0 && !parse(bytes.0, offset, &mut headers) && !parse(bytes.0, 0, &mut headers) {
        count(&LOST, hook);
        return;
    }
    if !flow::is_tracked(&track, &headers) {
        return;
    }
    let reason_flag = if reason.is_some() { flag::REASON } else { 0 };
    let fragment = if headers.fragment { flag::FRAGMENT } else { 0 };
    let device = Device { netns: track.netns, ifindex: track.ifindex };
    let head = head(identity, hook, flag::TRACKED | flag::FREED | reason_flag | fragment, device, &headers);
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
    submit(&head, &headers, skb.mark(), &data);
}
