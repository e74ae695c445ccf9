//! What netfilter does with a packet, from the beginnings of its functions. Nearly every packet that comes here is one that
//! nobody asked about: first its slot is looked up.

use tracer_common::{ABSENT, Rewrite, Track, flag, hook, netfilter};
use tracer_ebpf::{
    flow,
    parse::{Bytes, join},
};

use crate::{
    conntrack,
    fragments::complete,
    kernel::{Device, LAYOUT, Memory, frozen, identity},
    maps::{LOST, count, in_scope, slot},
    packet::{Data, Work, begin, examine, found, head, submit, work},
};

/// The slot of the packet at this address, if it is one that was recognised.
#[inline(always)]
fn known(skb: u64) -> Option<&'static mut Track> {
    let identity = identity(skb);
    slot(identity).filter(|slot| slot.skb == identity)
}

/// `nf_hook_slow(skb, state, entries, index)` of net/netfilter/core.c.
#[inline(always)]
pub fn hook(skb: u64, state: u64) {
    if let Some(slot) = known(skb) {
        slot.netfilter = netfilter::HOOK;
        slot.table = [0; 3];
        of_state(slot, state);
    }
}

/// Notes which hook a `struct nf_hook_state` is about.
#[inline(always)]
fn of_state(slot: &mut Track, state: u64) {
    if frozen(&LAYOUT.state_hook) != ABSENT {
        slot.nf_hook = Memory(state).byte(frozen(&LAYOUT.state_hook));
        slot.nf_family = Memory(state).byte(frozen(&LAYOUT.state_family));
    }
}

/// `ipt_do_table` of net/ipv4/netfilter/ip_tables.c and `ip6t_do_table`: (skb, state, table), from 5.16 (table, skb, state). That
/// one of them is a packet that is known tells which it is.
#[inline(always)]
pub fn iptables([first, second, third]: [u64; 3]) {
    let (slot, state, table) = match known(first) {
        Some(slot) => (slot, second, third),
        None => match known(second) {
            Some(slot) => (slot, third, first),
            None => return,
        },
    };
    slot.netfilter = netfilter::IPTABLES;
    slot.table = [0; 3];
    of_state(slot, state);
    let mut name = [0; 6];
    if frozen(&LAYOUT.xt_table_name) != ABSENT && Memory(table).read(frozen(&LAYOUT.xt_table_name), &mut name) {
        slot.table = [join(name[0], name[1]), join(name[2], name[3]), join(name[4], name[5])];
    }
}

/// `nft_do_chain(pkt, chain)` of net/netfilter/nf_tables_core.c.
#[inline(always)]
pub fn nftables(packet: u64, chain: u64) {
    let skb = Memory(packet).word(frozen(&LAYOUT.nft_packet_skb));
    let Some(slot) = known(skb) else { return };
    slot.netfilter = netfilter::NFTABLES;
    slot.table = [0; 3];
    // Else it stays what `nf_hook_slow` said, which calls us.
    if frozen(&LAYOUT.nft_packet_state) != ABSENT {
        of_state(slot, Memory(packet).word(frozen(&LAYOUT.nft_packet_state)));
    }
    if frozen(&LAYOUT.nft_chain_table) != ABSENT {
        let table = Memory(Memory(chain).word(frozen(&LAYOUT.nft_chain_table)));
        slot.table[0] = table.word(frozen(&LAYOUT.nft_table_handle));
        slot.table[1] = Memory(chain).word(frozen(&LAYOUT.nft_chain_handle));
    }
}

/// `nf_nat_manip_pkt(skb, ct, manip, direction)` of net/netfilter/nf_nat_proto.c.
#[inline(always)]
pub fn translates(skb: u64, entry: u64, manip: u32) {
    let identity = identity(skb);
    let Some(slot) = slot(identity) else { return };
    if slot.skb != identity && !is_ours(entry) {
        return;
    }
    let mut packet = Memory(skb).packet();
    if packet.may_be_cut() && !complete(&mut packet, Memory(skb).shared(), hook::REWRITE) {
        return count(&LOST, hook::REWRITE);
    }
    if begin(hook::REWRITE, packet).is_none() {
        return;
    }
    let found = examine(hook::REWRITE.into());
    if found & found::CUT != 0 {
        return count(&LOST, hook::REWRITE);
    }
    if found & found::PACKET == 0 {
        return;
    }
    let Some(Work { headers, .. }) = work(hook::REWRITE.into()) else { return };
    let flags = found as u8;
    // What is rewritten around a tunnelled packet is the tunnel's.
    if flags & flag::ENCAPSULATED != 0 {
        return;
    }
    if slot.skb != identity {
        // What a node sends itself is seen here before any device.
        *slot = flow::track(identity, headers, namespace_of(entry), 0);
    } else if !flow::is_tracked(slot, headers) {
        return;
    }
    let device = Device { netns: slot.netns, ifindex: slot.ifindex };
    let head = head(identity, hook::REWRITE, flags | flag::TRACKED, device, headers);
    // SAFETY: Rewrite is 40 bytes without padding.
    let data = unsafe { core::mem::transmute::<Rewrite, Data>(Rewrite { manip, zero: [0; 36] }) };
    submit(&head, headers, Memory(skb).half(frozen(&LAYOUT.skb_mark)), &data);
}

/// Does the conntrack entry translate a wanted flow, in a namespace in scope?
#[inline(always)]
fn is_ours(entry: u64) -> bool {
    frozen(&LAYOUT.ct_net) != ABSENT && in_scope(namespace_of(entry)) && conntrack::is_of_wanted(entry)
}

/// Inode of the network namespace of a conntrack entry; 0 if it cannot be read.
#[inline(always)]
fn namespace_of(entry: u64) -> u32 {
    Memory(Memory(entry).word(frozen(&LAYOUT.ct_net))).half(frozen(&LAYOUT.net_inum))
}
