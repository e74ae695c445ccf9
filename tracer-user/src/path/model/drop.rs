//! Why a packet was dropped, by whom, and how that is known.

use serde::Serialize;

use super::{Basis, Policies};

/// Why a packet was dropped. Fields that do not apply are left out of the JSON, but for the first four.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropDetail {
    /// In plain words: `no route`, `blackhole route`, `ingress policy at default/bb1`, ...
    pub why: String,
    /// The kernel's own reason, without prefix; None before Linux 5.17.
    pub reason: Option<String>,
    /// The kernel function that freed it.
    pub function: Option<String>,
    /// The same as `why`, for programs.
    pub cause: DropCause,
    /// How we know the cause: observed (the kernel names it) or inferred (from the freeing function, counters, settings).
    /// That the packet was freed is the hop's own basis.
    pub basis: Basis,
    /// What the cause rests on, one clause each, in the order of weight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proof: Vec<String>,
    /// The netfilter hook, if it was one: `prerouting`, `input`, `forward`, `output`, `postrouting`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<&'static str>,
    /// The interface that it would have left by, if it was routed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_interface: Option<String>,
    /// The netfilter rules that can have done it, or whose translation failed: one if it is known which, several if it is one of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<CulpritRule>,
    /// Which rule it was is known: the one in `rules`. False: one of those in `rules`, or one that could not be read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rule_known: bool,
    /// The network policies behind it, if it was a policy's rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<Policies>,
    /// The settings of the node that the cause rests on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<SettingDetail>,
    /// The MTU that the packet exceeds, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The next hop's neighbour entry, as `ip neigh` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<String>,
    /// Of a reverse path filter: the route back to the source, as `ip route` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverse_route: Option<String>,
}

impl Default for DropDetail {
    fn default() -> Self {
        Self {
            why: "the kernel does not say".to_owned(),
            reason: None,
            function: None,
            cause: DropCause::Unknown,
            basis: Basis::Inferred,
            proof: Vec::new(),
            hook: None,
            out_interface: None,
            rules: Vec::new(),
            rule_known: false,
            policies: None,
            settings: Vec::new(),
            mtu: None,
            neighbour: None,
            reverse_route: None,
        }
    }
}

/// Kinds of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropCause {
    /// A network policy.
    Policy,
    /// Another netfilter rule, or a chain's policy; or one that is not known.
    Netfilter,
    /// A netfilter rule that drops what fails the reverse path lookup.
    RpFilterRule,
    /// The sysctl `rp_filter`.
    RpFilter,
    /// Conntrack's table is full, so a new connection got no entry.
    ConntrackFull,
    /// Source NAT found no port that is free for the destination.
    NatPorts,
    /// Conntrack refused a new connection for another cause.
    Conntrack,
    /// No route matches.
    NoRoute,
    /// A route of type blackhole.
    Blackhole,
    /// A route of type unreachable.
    Unreachable,
    /// A route of type prohibit.
    Prohibit,
    /// `ip_forward` or `forwarding` is 0.
    NotForwarding,
    /// The next hop's link-layer address is not known.
    Neighbour,
    /// TTL or hop limit ran out.
    TtlExpired,
    /// Bigger than the MTU, and not to be fragmented.
    TooBig,
    /// The interface is administratively down.
    InterfaceDown,
    /// The interface is up but has no carrier.
    NoCarrier,
    /// A queue is full.
    QueueFull,
    /// Nothing listens on the port.
    PortClosed,
    /// Traffic control, XDP or cgroup programs.
    Program,
    /// Checksum or header.
    Malformed,
    /// Anything else the kernel names.
    Other,
    /// Not known.
    Unknown,
}

/// A netfilter rule, or a base chain's policy, that drops or rejects; or one that translates, where that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CulpritRule {
    /// `iptables`, `iptables-nft` or `nftables`.
    pub engine: &'static str,
    /// As nft names it: `ip`, `ip6`, `inet`, `bridge`.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Position in its chain, from 1; None: the chain's policy.
    pub position: Option<u32>,
    /// nftables' handle.
    pub handle: Option<u64>,
    /// As its tool prints it, without chain and counters; of a chain's policy `policy DROP`.
    pub text: String,
    /// Its comment.
    pub comment: Option<String>,
    /// What it answers, as iptables names it (`icmp-port-unreachable`, `tcp-reset`; `icmpx-...` by
    /// the packet's IP version); None: it drops silently.
    pub rejects_with: Option<String>,
    /// By how many packets its counter rose during the trace; None: it has no counter.
    pub packets: Option<u64>,
    /// How many packets of the trace met it by the kernel's own trace of rules.
    pub traced: u64,
    /// All its conditions are understood, and the packet fulfils those that can be checked.
    pub understood: bool,
}

/// A setting of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingDetail {
    /// As `sysctl` names it.
    pub name: String,
    /// Its value.
    pub value: String,
}
