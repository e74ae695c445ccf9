//! The one table of what the kernel programs read, by name.

#[cfg(doc)]
use tracer_common::Fragment;
use tracer_common::{ABSENT, Layout};

use super::{
    Error,
    btf::{Field, KernelTypes},
};

/// What casts any address to a type, from 6.2.
pub const CAST_FUNCTION: &str = "bpf_rdonly_cast";

/// Resolves every field for the running kernel.
///
/// # Errors
/// A field without which nothing can be traced does not exist: not a kernel that we know.
pub fn resolve(types: &KernelTypes) -> Result<Layout, Error> {
    let must = |structure: &'static str, path: &'static str| {
        types.field(structure, path).ok_or(Error::NoField { structure, field: path })
    };
    // Bits count from the least significant one on little-endian machines, from the most significant one on the others.
    let pkt_type = must("sk_buff", "pkt_type")?;
    let pkt_type_bit = pkt_type.bit_offset % 8;
    let tuplehash = types.field("nf_conn", "tuplehash").map(|f| f.offset());
    let tuple = types.field("nf_conntrack_tuple_hash", "tuple").map(|f| f.offset());
    let stride = types.size("nf_conntrack_tuple_hash");
    let status = types.field("nf_conn", "status").map(|f| f.offset());
    let nfct = types.field("sk_buff", "_nfct").map(|f| f.offset());
    // Without any one of these the conntrack entry cannot be read, and `_nfct` is not looked at.
    let conntrack = match (nfct, status, tuplehash, tuple, stride) {
        (Some(nfct), Some(status), Some(hash), Some(tuple), Some(stride)) => {
            [nfct, status, hash + tuple, hash + stride + tuple]
        }
        _ => [ABSENT; 4],
    };
    let [skb_nfct, ct_status, ct_original, ct_reply] = conntrack;
    let [skb_vlan_proto, skb_vlan_tci] = all(types, [("sk_buff", "vlan_proto"), ("sk_buff", "vlan_tci")]);
    let [state_hook, state_family] = all(types, [("nf_hook_state", "hook"), ("nf_hook_state", "pf")]);
    let (xtables, nftables) = (types.with_module("x_tables"), types.with_module("nf_tables"));
    let (xtables, nftables) = (xtables.as_ref().unwrap_or(types), nftables.as_ref().unwrap_or(types));
    let nft = [("nft_chain", "table"), ("nft_chain", "handle"), ("nft_table", "handle")];
    let [nft_chain_table, nft_chain_handle, nft_table_handle] = all(nftables, nft);
    Ok(Layout {
        skb_dev: must("sk_buff", "dev")?.offset(),
        skb_head: must("sk_buff", "head")?.offset(),
        skb_data: must("sk_buff", "data")?.offset(),
        skb_network_header: must("sk_buff", "network_header")?.offset(),
        skb_end: must("sk_buff", "end")?.offset(),
        shared_nr_frags: must("skb_shared_info", "nr_frags")?.offset(),
        shared_frags: fragments(types),
        skb_protocol: must("sk_buff", "protocol")?.offset(),
        skb_len: must("sk_buff", "len")?.offset(),
        skb_data_len: must("sk_buff", "data_len")?.offset(),
        skb_mark: must("sk_buff", "mark")?.offset(),
        skb_nfct,
        skb_sk: must("sk_buff", "sk")?.offset(),
        skb_vlan_proto,
        skb_vlan_tci,
        skb_pkt_type: pkt_type.offset(),
        skb_pkt_type_shift: if cfg!(target_endian = "little") { pkt_type_bit } else { 8 - 3 - pkt_type_bit },
        dev_ifindex: must("net_device", "ifindex")?.offset(),
        dev_rx_handler: must("net_device", "rx_handler")?.offset(),
        dev_net: must("net_device", "nd_net.net")?.offset(),
        net_inum: must("net", "ns.inum")?.offset(),
        ct_status,
        ct_original,
        ct_reply,
        kfree_location_arg: argument(types, "kfree_skb", "void *"),
        kfree_reason_arg: argument(types, "kfree_skb", "enum skb_drop_reason"),
        consume_location_arg: argument(types, "consume_skb", "void *"),
        ct_net: if skb_nfct == ABSENT { ABSENT } else { or_absent(types, "nf_conn", "ct_net.net") },
        state_hook,
        state_family,
        xt_table_name: or_absent(xtables, "xt_table", "name"),
        // It has been the first field since 3.13: known also where a kernel has no BTF of its modules (before 5.11).
        nft_packet_skb: nftables.field("nft_pktinfo", "skb").map_or(0, Field::offset),
        nft_packet_state: or_absent(nftables, "nft_pktinfo", "state"),
        nft_chain_table,
        nft_chain_handle,
        nft_table_handle,
        bytes_type: types.function(CAST_FUNCTION).and(types.structure_id("new_utsname")).unwrap_or(ABSENT),
    })
}

fn or_absent(types: &KernelTypes, structure: &str, path: &str) -> u32 {
    types.field(structure, path).map_or(ABSENT, Field::offset)
}

/// All of these fields, or none of them.
fn all<const N: usize>(types: &KernelTypes, fields: [(&str, &str); N]) -> [u32; N] {
    let found = fields.map(|(structure, path)| or_absent(types, structure, path));
    if found.contains(&ABSENT) { [ABSENT; N] } else { found }
}

/// Where the array of fragments is, if they are what [`Fragment`] is.
fn fragments(types: &KernelTypes) -> u32 {
    let are = |fields: [(&str, &str); 3]| all(types, fields) == [0, 8, 12];
    let known = are([("skb_frag", "netmem"), ("skb_frag", "len"), ("skb_frag", "offset")])
        || are([("bio_vec", "bv_page"), ("bio_vec", "bv_len"), ("bio_vec", "bv_offset")]);
    if known { or_absent(types, "skb_shared_info", "frags") } else { ABSENT }
}

/// Arguments moved between kernels and distributions, so they are found by type.
fn argument(types: &KernelTypes, tracepoint: &str, spelling: &str) -> u32 {
    types.tracepoint_argument(tracepoint, spelling).unwrap_or(ABSENT)
}
