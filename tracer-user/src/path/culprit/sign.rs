//! What a drop reason or the freeing function is a sign of.
//!
//! Reasons: `include/net/dropreason-core.h`, from Linux 5.17. Functions: where older kernels free; what they suggest is
//! inferred, for most free for more than one cause.

/// What the kernel's word points at; the facts then decide which cause it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// A netfilter verdict.
    Netfilter,
    /// The reverse path filter of the sysctl.
    RpFilter,
    /// The route look-up ended in an error.
    Routes,
    /// Not forwarded, for TTL or MTU.
    Forward,
    /// Reverse path filter, or a martian address.
    Source,
    /// TTL or hop limit, or a bad header.
    Header,
    /// Bigger than the MTU.
    TooBig,
    /// The next hop's link-layer address.
    Neighbour,
    /// Too many packets wait for it.
    NeighbourQueue,
    /// The interface's queue, or its state.
    Queue,
    /// The interface is not up.
    Device,
    /// No socket: a closed port.
    NoSocket,
    /// A program or filter, in words.
    Program(&'static str),
    /// A wrong checksum or the like, in words.
    Malformed(&'static str),
    /// Any other cause, in words.
    Other(&'static str),
}

/// What the kernel's reason means; None where it settles nothing.
pub(super) fn of_reason(reason: &str) -> Option<Sign> {
    Some(match reason {
        "NETFILTER_DROP" => Sign::Netfilter,
        "IP_RPFILTER" => Sign::RpFilter,
        "IP_INNOROUTES" | "IP_OUTNOROUTES" | "IP6_INNOROUTES" | "IP6_OUTNOROUTES" | "IP_INADDRERRORS"
        | "IP_INVALID_DEST" => Sign::Routes,
        "IP_INHDR" => Sign::Header,
        "PKT_TOO_BIG" => Sign::TooBig,
        "NEIGH_FAILED" => Sign::Neighbour,
        "NEIGH_CREATEFAIL" => Sign::Other(
            "the neighbour table is full (net.ipv4.neigh.default.gc_thresh3), or its entry could not be made",
        ),
        "NEIGH_DEAD" | "NEIGH_HH_FILLFAIL" => Sign::Other("the neighbour's entry could not be used"),
        "IP_LOCAL_SOURCE" => Sign::Other(
            "its source is an address of this node itself: it came back (a routing loop), or somebody else uses that address",
        ),
        "OTHERHOST" => Sign::Other("sent to a link-layer address that is not its receiver's: a wrong neighbour entry"),
        "NEIGH_QUEUEFULL" => Sign::NeighbourQueue,
        "QDISC_DROP" | "QDISC_OVERLIMIT" | "QDISC_CONGESTED" | "FULL_RING" => Sign::Queue,
        "QUEUE_PURGE" => Sign::Other(
            "the queue in which it waited was emptied: its interface went down, or the neighbour's entry was removed",
        ),
        "DEV_READY" => Sign::Device,
        "NO_SOCKET" => Sign::NoSocket,
        "TC_INGRESS" | "TC_EGRESS" => Sign::Program("traffic control filter or program"),
        "BPF_CGROUP_EGRESS" => Sign::Program("cgroup BPF program"),
        "XDP" => Sign::Program("XDP program"),
        "SOCKET_FILTER" => Sign::Program("the socket's filter"),
        "CPU_BACKLOG" => Sign::Other("the CPU's backlog is full"),
        "SOCKET_RCVBUFF" => Sign::Other("the socket's receive buffer is full"),
        "NOMEM" => Sign::Other("out of memory"),
        "IPV6DISABLED" => Sign::Other("IPv6 is disabled on the interface"),
        "IP_CSUM" | "ICMP_CSUM" | "TCP_CSUM" | "UDP_CSUM" => Sign::Malformed("wrong checksum"),
        "PKT_TOO_SMALL" => Sign::Malformed("shorter than its headers say"),
        _ => return None,
    })
}

/// What the freeing function suggests, where the kernel gives no reason.
pub(super) fn of_function(function: &str) -> Option<Sign> {
    // The compiler's clones are named `ip_forward.constprop.0` and the like.
    Some(match function.split('.').next().unwrap_or(function) {
        "nf_hook_slow" | "nf_hook_slow_list" | "nft_do_chain" | "ipt_do_table" | "ip6t_do_table" => Sign::Netfilter,
        "ip_error" | "dst_discard" | "dst_discard_out" | "ip6_pkt_drop" | "ip6_pkt_discard" | "ip6_pkt_prohibit" => {
            Sign::Routes
        }
        "ip_forward" | "ip6_forward" => Sign::Forward,
        "ip_rcv_finish" | "ip_rcv_finish_core" | "ip_list_rcv_finish" | "ip_sublist_rcv_finish" => Sign::Source,
        "arp_error_report" | "ndisc_error_report" | "neigh_invalidate" | "neigh_probe" => Sign::Neighbour,
        "__neigh_event_send" => Sign::NeighbourQueue,
        "__dev_queue_xmit" | "__dev_xmit_skb" | "noop_enqueue" | "pfifo_fast_enqueue" => Sign::Queue,
        "do_xdp_generic"
        | "bpf_prog_run_generic_xdp"
        | "netif_receive_generic_xdp"
        | "veth_xdp_rcv_skb"
        | "veth_xdp_rcv" => Sign::Program("XDP program"),
        // For IP this frees only what tc, inlined into it, does not let in.
        "__netif_receive_skb_core" | "sch_handle_ingress" | "sch_handle_egress" | "tc_run" => {
            Sign::Program("traffic control filter or program")
        }
        _ => return None,
    })
}
