//! podpath's kernel programs: the entry points. The work is in the modules.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the attribute macros generate public items without docs; a binary has no public API"
)]

mod conntrack;
mod fragments;
mod free;
mod kernel;
mod maps;
mod netfilter;
mod packet;

use aya_ebpf::{
    macros::{btf_tracepoint, kprobe},
    programs::{BtfTracePointContext, ProbeContext},
};
use kernel::{LAYOUT, Skb, frozen};
use tracer_common::hook;

/// A packet enters through a device.
#[btf_tracepoint(function = "netif_receive_skb")]
pub fn netif_receive_skb(ctx: BtfTracePointContext) -> i32 {
    packet::seen(Skb::new(ctx.arg(0)), hook::RECEIVE);
    0
}

/// A packet is handed to a device's queue.
#[btf_tracepoint(function = "net_dev_queue")]
pub fn net_dev_queue(ctx: BtfTracePointContext) -> i32 {
    packet::seen(Skb::new(ctx.arg(0)), hook::QUEUE);
    0
}

/// A device's driver is given the packet.
#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn net_dev_start_xmit(ctx: BtfTracePointContext) -> i32 {
    packet::seen(Skb::new(ctx.arg(0)), hook::XMIT);
    0
}

/// A packet is freed, usually as a drop. The place of the arguments differs between kernels; a verifier that sees
/// the frozen layout drops the branches that are not this kernel's.
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    let location = match frozen(&LAYOUT.kfree_location_arg) {
        1 => argument(&ctx, 1),
        2 => argument(&ctx, 2),
        _ => 0,
    };
    let reason = match frozen(&LAYOUT.kfree_reason_arg) {
        2 => Some(argument(&ctx, 2) as u32),
        3 => Some(argument(&ctx, 3) as u32),
        4 => Some(argument(&ctx, 4) as u32),
        _ => None,
    };
    free::freed(Skb::new(ctx.arg(0)), hook::DROP, location, reason);
    0
}

/// An argument that not every kernel has. Opaque, or LLVM merges the branches into one load at a computed place in the
/// context, which the verifier refuses.
#[inline(always)]
fn argument(ctx: &BtfTracePointContext, index: usize) -> u64 {
    core::hint::black_box(ctx.arg(index))
}

/// A packet is freed as done.
#[btf_tracepoint(function = "consume_skb")]
pub fn consume_skb(ctx: BtfTracePointContext) -> i32 {
    let location = match frozen(&LAYOUT.consume_location_arg) {
        1 => argument(&ctx, 1),
        _ => 0,
    };
    free::freed(Skb::new(ctx.arg(0)), hook::CONSUME, location, None);
    0
}

/// Conntrack's translation is about to be written into a packet.
#[kprobe]
pub fn nf_nat_manip_pkt(ctx: ProbeContext) -> u32 {
    netfilter::translates(register(&ctx, 0), register(&ctx, 1), register(&ctx, 2) as u32);
    0
}

/// The functions of a netfilter hook are about to see a packet.
#[kprobe]
pub fn nf_hook_slow(ctx: ProbeContext) -> u32 {
    netfilter::hook(register(&ctx, 0), register(&ctx, 1));
    0
}

/// A table of iptables or ip6tables is about to see a packet: `ipt_do_table` and `ip6t_do_table`.
#[kprobe]
pub fn ipt_do_table(ctx: ProbeContext) -> u32 {
    netfilter::iptables([register(&ctx, 0), register(&ctx, 1), register(&ctx, 2)]);
    0
}

/// A base chain of nftables is about to see a packet.
#[kprobe]
pub fn nft_do_chain(ctx: ProbeContext) -> u32 {
    netfilter::nftables(register(&ctx, 0), register(&ctx, 1));
    0
}

/// An argument of a function. Every function probed here takes so many, that 0 is never the answer for lack of a register.
#[inline(always)]
fn register(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

/// Does nothing: what `cargo xtask bench hooks` measures the others against. Never loaded by a session.
#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn empty(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// The kernel lets only GPL-compatible programs read kernel memory.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// On the host this crate is only checked; there is nothing to run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
