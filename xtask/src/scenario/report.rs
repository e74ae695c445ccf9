//! The parts of `podpath trace -o json` that scenarios are about. It only grows, so unknown fields are fine here.

use serde::Deserialize;

use crate::lab::LabInfo;

/// A trace.
#[derive(Debug, Clone, Deserialize)]
pub struct Trace {
    /// `podpath.trace/v1`.
    pub schema: String,
    /// Requests with their replies.
    pub exchanges: Vec<Exchange>,
    /// What traceroute would list.
    pub routers: Vec<String>,
    /// Events the kernel side could not record.
    pub lost_events: u64,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// The traced nodes.
    pub nodes: Vec<Node>,
}

/// A traced node.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Delivered everything it saw.
    pub complete: bool,
}

/// Request and reply.
#[derive(Debug, Clone, Deserialize)]
pub struct Exchange {
    /// ICMP sequence number.
    pub seq: u32,
    /// How it ended.
    pub outcome: String,
    /// Which of the two did not arrive.
    pub failed_direction: Option<String>,
    /// Round trip, ns.
    pub rtt_ns: Option<u64>,
    /// Where it was measured, if not at the source.
    pub rtt_at: Option<String>,
    /// The same by the sender's own clock, ns.
    pub injector_rtt_ns: Option<u64>,
    /// The way there.
    pub request: Path,
    /// The way back.
    pub reply: Path,
    /// Where the time went.
    pub shares: Vec<Share>,
    /// What the nodes' clocks showed at the first hop.
    #[serde(default)]
    pub clocks: Vec<ClockAtStart>,
    /// One sentence each.
    pub notes: Vec<String>,
}

/// A node's clock at the first hop.
#[derive(Debug, Clone, Deserialize)]
pub struct ClockAtStart {
    /// Whose.
    pub node: String,
    /// Its `CLOCK_MONOTONIC`, ns.
    pub monotonic_ns: i64,
    /// Bound of the error of that, ns.
    pub error_ns: u64,
}

/// Hops in order.
#[derive(Debug, Clone, Deserialize)]
pub struct Path {
    /// In order.
    pub hops: Vec<Hop>,
}

/// A step.
#[derive(Debug, Clone, Deserialize)]
pub struct Hop {
    /// Node.
    pub node: String,
    /// `namespace/pod`.
    pub pod: Option<String>,
    /// Interface.
    pub interface: Option<String>,
    /// Its index.
    pub ifindex: Option<u32>,
    /// What happened.
    pub action: String,
    /// TTL after it.
    pub ttl: Option<u8>,
    /// ns since the first hop.
    pub at_ns: Option<u64>,
    /// How we know.
    pub basis: String,
    /// More.
    pub detail: Detail,
}

/// More, by action.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Detail {
    /// The route.
    pub route: Option<String>,
    /// What was rewritten.
    pub nat: Option<Nat>,
    /// Why it was dropped.
    pub drop: Option<DropDetail>,
    /// The tunnel.
    pub tunnel: Option<Tunnel>,
    /// One sentence.
    pub text: Option<String>,
}

/// A rewrite.
#[derive(Debug, Clone, Deserialize)]
pub struct Nat {
    /// Before.
    pub before: NatSide,
    /// After.
    pub after: NatSide,
}

/// A side of it.
#[derive(Debug, Clone, Deserialize)]
pub struct NatSide {
    /// Source.
    pub src: String,
    /// Destination.
    pub dst: String,
    /// ICMP identifier.
    pub src_port: Option<u16>,
}

/// Why a packet was dropped. The kernel's own reason and function differ from kernel to kernel.
#[derive(Debug, Clone, Deserialize)]
pub struct DropDetail {
    /// In plain words.
    pub why: String,
    /// The netfilter rules that can have done it.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// It is known which: the only one of them.
    #[serde(default)]
    pub rule_known: bool,
}

/// A netfilter rule.
#[derive(Debug, Clone, Deserialize)]
pub struct Rule {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its place there, from 1; None: the chain's policy.
    pub position: Option<u32>,
}

/// An encapsulation.
#[derive(Debug, Clone, Deserialize)]
pub struct Tunnel {
    /// `ipip` or `vxlan`.
    pub kind: String,
    /// Outer source.
    pub src: String,
    /// Outer destination.
    pub dst: String,
}

/// A part of the round trip.
#[derive(Debug, Clone, Deserialize)]
pub struct Share {
    /// `node`, `wire`, `beyond`, `unattributed`.
    pub of: String,
    /// With `node` and `beyond`.
    pub node: Option<String>,
    /// ns.
    pub ns: u64,
}

impl Hop {
    /// The hop as scenario files write it: node (by its short name in the lab), pod unless it is the node itself,
    /// interface, action, TTL, and what else there is after a colon. `(inferred)` at the end where another basis would
    /// be usual.
    ///
    /// ```text
    /// node2 default/bb2 eth0 sent ttl 64
    /// node1 ens5 routed ttl 63: default via 172.20.32.1 dev ens5
    /// node1 ens5 snat ttl 63: src 100.115.37.81 -> 172.20.50.50, id changed
    /// node1 ens5 dropped ttl 63: no route, blackhole 100.115.37.64/26 proto bird
    /// ```
    pub fn line(&self, lab: &LabInfo) -> String {
        let host = lab.node(&self.node).map_or(self.node.as_str(), |node| node.host.as_str());
        let mut words = vec![host];
        words.extend(self.pod.as_deref());
        words.extend([self.interface.as_deref().unwrap_or("-"), &self.action]);
        let ttl = self.ttl.map(|ttl| format!(" ttl {ttl}")).unwrap_or_default();
        let detail = self.detail.text();
        let colon = if detail.is_empty() { "" } else { ": " };
        let basis = if self.basis == self.usual_basis() { String::new() } else { format!(" ({})", self.basis) };
        format!("{}{ttl}{colon}{detail}{basis}", words.join(" "))
    }

    fn usual_basis(&self) -> &'static str {
        match self.action.as_str() {
            "routed" => "configured",
            "lost" => "inferred",
            _ => "observed",
        }
    }
}

impl Detail {
    fn text(&self) -> String {
        let Detail { route, nat, drop, tunnel, text } = self;
        let mut parts = Vec::new();
        parts.extend(nat.as_ref().map(Nat::text));
        parts.extend(drop.as_ref().map(|drop| drop.why.clone()));
        parts.extend(tunnel.as_ref().map(|Tunnel { kind, src, dst }| format!("{kind} {src} -> {dst}")));
        parts.extend(route.clone());
        parts.extend(text.clone());
        parts.join(", ")
    }
}

impl Nat {
    fn text(&self) -> String {
        let Nat { before, after } = self;
        let mut parts = Vec::new();
        for (what, before, after) in [("src", &before.src, &after.src), ("dst", &before.dst, &after.dst)] {
            if before != after {
                parts.push(format!("{what} {before} -> {after}"));
            }
        }
        if before.src_port != after.src_port {
            parts.push("id changed".to_owned());
        }
        parts.join(", ")
    }
}
