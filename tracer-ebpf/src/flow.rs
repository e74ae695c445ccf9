//! Does a packet belong to a wanted flow, and is it the packet that was tracked?

use tracer_common::{Learned, Rule, Track, Wanted, chosen, flow_mask, netfilter};

use crate::parse::{Headers, protocol};

/// Does the packet belong to one of these flows, in either direction? One way through for both rules of a flow: the verifier
/// follows every branch, and comes here from everywhere.
#[inline(always)]
pub fn is_wanted(wanted: &Wanted, headers: &Headers) -> bool {
    // Fragments other than the first are wanted by their addresses alone.
    let l4_mask = u64::from(headers.fragment).wrapping_sub(1);
    let mut misses = 1;
    for (index, [there, back]) in wanted.rules.iter().enumerate() {
        if index as u32 >= wanted.flows {
            break;
        }
        misses &= is_not_0(differs(there, headers, l4_mask)) & is_not_0(differs(back, headers, l4_mask));
    }
    misses == 0
}

/// 1 for any number but 0, by arithmetic: BPF has comparisons only as branches.
#[inline(always)]
fn is_not_0(number: u64) -> u64 {
    let folded = (number | number >> 32) & 0xffff_ffff;
    (folded + 0xffff_ffff) >> 32
}

/// In what `headers` differs from the rule; 0: in nothing that matters.
#[inline(always)]
fn differs(rule: &Rule, headers: &Headers, l4_mask: u64) -> u64 {
    (headers.src[0] ^ rule.src[0]) & rule.src_mask[0]
        | (headers.src[1] ^ rule.src[1]) & rule.src_mask[1]
        | (headers.dst[0] ^ rule.dst[0]) & rule.dst_mask[0]
        | (headers.dst[1] ^ rule.dst[1]) & rule.dst_mask[1]
        | u64::from(headers.protocol) ^ rule.protocol
        | (headers.l4[0] ^ rule.l4) & rule.l4_mask & l4_mask
        | chosen(headers.l4[0] >> (rule.port_shift & 63), rule.one_of) & l4_mask
}

/// Does a packet whose addresses end so belong to no flow for certain?
#[inline(always)]
pub fn strangers(wanted: &Wanted, src: u32, dst: u32) -> bool {
    let mut stranger = true;
    for (index, end) in wanted.ends.iter().enumerate() {
        if index as u32 >= wanted.flows {
            break;
        }
        stranger &= src != *end && dst != *end;
    }
    stranger
}

/// The key under which a translated flow of this packet would have been learned.
#[inline(always)]
pub fn learned_key(headers: &Headers) -> Learned {
    Learned {
        src: headers.src,
        dst: headers.dst,
        l4: headers.l4[0] & flow_mask(headers.protocol),
        protocol: u64::from(headers.protocol),
    }
}

/// What NAT leaves alone of the L4 header. ICMP: type, code, sequence number, and the first 8 bytes of what follows.
/// Others: bytes 4 and 5 (TCP: half of the sequence number, UDP: length), and bytes 8 to 15 (TCP: acknowledgement number,
/// flags, window; UDP: payload).
#[inline(always)]
fn lasting(headers: &Headers) -> [u64; 2] {
    let mask = match headers.protocol {
        protocol::ICMP | protocol::ICMPV6 => u64::from_ne_bytes([0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]),
        _ => u64::from_ne_bytes([0, 0, 0, 0, 0xff, 0xff, 0, 0]),
    };
    [headers.l4[0] & mask, headers.l4[1]]
}

/// What is remembered of a packet seen at a device.
#[inline(always)]
pub fn track(skb: u64, headers: &Headers, netns: u32, ifindex: u32) -> Track {
    Track {
        skb,
        l4: lasting(headers),
        netns,
        ifindex,
        ip_id: headers.ip_id,
        ip_len: headers.ip_len,
        protocol: headers.protocol,
        netfilter: netfilter::NONE,
        nf_hook: 0,
        nf_family: 0,
        table: [0; 3],
    }
}

/// Is this still the packet that was tracked? What is compared survives NAT and encapsulation.
#[inline(always)]
pub fn is_tracked(track: &Track, headers: &Headers) -> bool {
    let l4 = lasting(headers);
    let difference = (l4[0] ^ track.l4[0])
        | (l4[1] ^ track.l4[1])
        | u64::from(headers.ip_id ^ track.ip_id)
        | u64::from(headers.ip_len ^ track.ip_len)
        | u64::from(headers.protocol ^ track.protocol);
    difference == 0
}
