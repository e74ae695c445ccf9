//! Who dropped a packet, and why: the kernel's word, held against what is known about the node.
//!
//! A wrong explanation is worse than none. Only what excludes its neighbours is said; the rest is left open, in words.

use super::{
    chain::Chain,
    model::{Basis, Detail, DropCause, DropDetail, SettingDetail},
    route,
    touch::{Header, Touch, Way},
    world::World,
};
use crate::{
    event::{Free, Hook, L4, Sighting},
    node::facts::{Link, LinkRef, Route, RouteAnswer, RouteKind, RuleHit},
};

pub(super) mod answer;
mod asymmetric;
mod conntrack;
pub(super) mod naming;
mod network;
mod policy;
pub(super) mod refused;
mod rules;
mod sign;
pub(super) mod unsent;
pub(super) mod xdp;

pub(super) use rules::OUTPUT;
use sign::Sign;

/// Kinds of devices that take packets over from the device below them.
const ON_TOP: [&str; 4] = ["vlan", "macvlan", "macvtap", "ipvlan"];

/// Why a packet was freed.
pub(super) struct Cause<'a> {
    pub(super) detail: DropDetail,
    /// The route that killed it, as `ip route` prints it.
    pub(super) route: Option<String>,
    /// Of a netfilter drop: the rules that it may have met.
    pub(super) suspects: Option<Vec<&'a RuleHit>>,
    /// It may have been a rule of ebtables.
    pub(super) unread: bool,
    /// Of a netfilter drop: what conntrack may have to do with it.
    doubt: Option<conntrack::Doubt<'a>>,
}

impl Cause<'_> {
    /// No rule has to do with it.
    pub(super) fn of(detail: DropDetail) -> Self {
        Self { detail, route: None, suspects: None, unread: false, doubt: None }
    }

    /// As the hop has it.
    pub(super) fn into_detail(self) -> Detail {
        Detail { route: self.route, drop: Some(Box::new(self.detail)), ..Detail::default() }
    }

    fn is(&mut self, cause: DropCause, why: impl Into<String>) {
        (self.detail.cause, self.detail.why) = (cause, why.into());
    }
}

/// A free, and what is known about where it happened.
#[derive(Clone, Copy)]
pub(super) struct Scene<'w, 'a> {
    pub(super) world: &'w World<'a>,
    pub(super) node: usize,
    /// Where the packet was last seen before.
    pub(super) last: &'w Touch<'a>,
    pub(super) free: &'a Sighting,
    /// The route that it asked for after it came in.
    pub(super) answer: Option<&'a RouteAnswer>,
}

impl<'w, 'a> Scene<'w, 'a> {
    pub(super) fn new(
        world: &'w World<'a>,
        chain: &Chain<'a>,
        node: usize,
        last: &'w Touch<'a>,
        free: &'a Sighting,
    ) -> Self {
        let question = match last.way {
            Way::In => Some(route::dying(last, Some(free), chain.translation(node, last.first))),
            Way::Out => route::wrapped_dying(last, free),
        };
        let answer = question.and_then(|q| world.answer(node, &q));
        Self { world, node, last, free, answer }
    }

    fn place(&self) -> LinkRef {
        self.last.at()
    }

    fn link(&self) -> Option<&'a Link> {
        self.world.namespaces(self.node).link(self.place())
    }

    fn route(&self) -> Option<&'a Route> {
        self.answer?.route.as_ref()
    }

    /// The link that IP and netfilter take it to have come in by: that which it was handed up to ([`super::touch::uppers`]). None:
    /// not known, because a link stands somewhere unknown, or takes packets over by their link-layer address.
    fn inbound(&self) -> Option<&'a Link> {
        if self.last.way == Way::Out || self.unwrapped() {
            return None;
        }
        let link = self.link()?;
        let is_on_top = |link: &Link| link.kind.as_deref().is_some_and(|kind| ON_TOP.contains(&kind));
        let may_take = |l: &Link| is_on_top(l) && l.lower.is_none_or(|at| at == self.place() && l.vlan.is_none());
        let all = &self.world.namespaces(self.node).get(self.place().netns)?.links;
        // Hardly ever on the node's end of a pod's veth.
        let may_be_taken = link.peer.is_none() && !is_on_top(link) && all.iter().any(may_take);
        (!may_be_taken).then_some(link)
    }

    /// A tunnel device wrapped it after it was last seen: what was freed is the outer packet, one of the node's own.
    fn wrapped(&self) -> bool {
        self.free.outer.is_some() && !self.last.wrapped()
    }

    /// It was unwrapped after it was last seen: what was freed is the inner packet, come in by the tunnel's device.
    fn unwrapped(&self) -> bool {
        self.free.outer.is_none() && self.last.wrapped()
    }

    /// Where it would have gone out, by the route as it was read.
    fn out(&self) -> Option<&'a Link> {
        let ifindex = match self.last.way {
            Way::Out if !self.wrapped() => self.place().ifindex,
            Way::In | Way::Out => self.route()?.out_ifindex?,
        };
        self.world.namespaces(self.node).link(LinkRef { ifindex, ..self.place() })
    }

    /// It was being forwarded: the TTL went down (`ip_forward` lowers it before the FORWARD hook) since it came in.
    fn forwarded(&self) -> bool {
        let same = self.free.outer.is_some() == self.last.wrapped();
        self.last.way == Way::In && same && self.header().ttl < self.last.header().ttl
    }

    /// What the network sees of the packet when it is freed.
    fn header(&self) -> Header {
        Header::of(self.free)
    }

    /// Length of the packet that the network sees, bytes.
    fn length(&self) -> u16 {
        self.free.outer.as_ref().map_or(self.free.packet.ip_len, |outer| outer.ip_len)
    }

    /// Its destination is an address of the namespace, or its route is local for another reason (`ip route add local`).
    fn is_for_here(&self) -> bool {
        let local = self.route().is_some_and(|route| matches!(route.kind, RouteKind::Local | RouteKind::Broadcast));
        local || self.world.namespaces(self.node).owns(self.place().netns, self.header().dst)
    }

    fn setting(&self, name: &str) -> Option<&'a str> {
        let namespace = self.world.namespaces(self.node).get(self.place().netns)?;
        namespace.settings.iter().find(|s| s.name == name).map(|s| s.value.as_str())
    }

    fn is_v4(&self) -> bool {
        self.header().dst.is_ipv4()
    }
}

/// Why this packet was freed.
pub(super) fn cause<'a>(scene: &Scene<'_, 'a>) -> Cause<'a> {
    let unknown = Free::default();
    let Free { location: _, function, reason, reason_name, netfilter } = scene.free.free.as_ref().unwrap_or(&unknown);
    let specified = reason_name.as_deref().filter(|name| *name != "NOT_SPECIFIED");
    let by_reason = specified.and_then(sign::of_reason);
    let by_function = function.as_deref().and_then(sign::of_function);
    let mut cause = Cause::of(DropDetail {
        reason: reason_name.as_deref().map(str::to_owned).or(reason.map(|number| number.to_string())),
        function: function.as_deref().map(str::to_owned),
        basis: if by_reason.is_some() { Basis::Observed } else { Basis::Inferred },
        out_interface: scene.forwarded().then(|| scene.out()).flatten().map(|link| link.name.clone()),
        ..DropDetail::default()
    });
    let program = xdp::got_it(scene.world, scene.node, scene.last).filter(|_| specified.is_none());
    match (by_reason, specified, by_function) {
        // Without a reason its free says no more than that nothing came of it.
        _ if program.is_some() => {
            let (place, id) = program.unwrap_or_default();
            cause.is(DropCause::Program, format!("XDP program on {place}"));
            let why = format!(
                "handed to {place}, which has XDP program {id}, and not seen after that: dropped or redirected"
            );
            cause.detail.proof.push(why);
        }
        (Some(sign), ..) => network::by_sign(scene, sign, &mut cause),
        // The kernel names something else than what its function usually frees for.
        (None, Some(name), _) => {
            cause.is(DropCause::Other, name);
            cause.detail.basis = Basis::Observed;
        }
        (None, None, Some(sign)) => network::by_sign(scene, sign, &mut cause),
        (None, None, None) => match function {
            Some(function) => cause.is(DropCause::Unknown, format!("freed in {function}")),
            None => cause.is(DropCause::Unknown, "the kernel does not say"),
        },
    }
    if cause.detail.cause == DropCause::Netfilter {
        cause.detail.hook = rules::only_hook(scene, netfilter.as_deref());
        cause.suspects = Some(rules::suspects(scene, netfilter.as_deref()));
        cause.unread = rules::may_be_of_ebtables(scene, netfilter.as_deref());
        cause.doubt = Some(conntrack::doubt(scene, netfilter.as_deref()));
    }
    let freed = freed(scene.free, &cause.detail);
    cause.detail.proof.push(freed);
    cause
}

/// The same, where an answer says that no socket took it.
pub(super) fn port_closed<'a>(scene: &Scene<'_, 'a>) -> Cause<'a> {
    let mut cause = cause(scene);
    network::port_closed(scene, &mut cause);
    cause
}

fn freed(free: &Sighting, detail: &DropDetail) -> String {
    let verb = if free.hook == Hook::Consume { "consumed" } else { "freed" };
    match (detail.function.as_deref(), detail.reason.as_deref()) {
        (Some(function), Some(reason)) => format!("{verb} in {function}, reason by the kernel {reason}"),
        (Some(function), None) if free.hook == Hook::Consume => format!("{verb} in {function}"),
        (Some(function), None) => format!("{verb} in {function} (this kernel has no drop reasons)"),
        (None, _) if free.hook == Hook::Consume => format!("{verb} (this kernel does not say where)"),
        (None, Some(reason)) => format!("{verb} as a drop, reason by the kernel {reason}"),
        (None, None) if free.free.as_ref().is_some_and(|free| free.location != 0) => {
            format!("{verb} as a drop (where is hidden, and this kernel has no drop reasons)")
        }
        (None, None) => format!("{verb} as a drop (this kernel says neither where nor why)"),
    }
}

/// A free at the packet's destination that means it was not taken. Echo replies are freed as drops though ping got
/// them (no socket but ping's raw one; raw sockets' copies), so only a cause that speaks counts.
pub(super) fn refused_at_destination(free: &Sighting, is_request: bool) -> bool {
    let Some(Free { function, reason_name, .. }) = &free.free else { return false };
    if free.hook == Hook::Consume {
        return false;
    }
    let by_function = || function.as_deref().and_then(sign::of_function).is_some();
    let is_icmp = matches!(free.packet.l4, L4::Icmp { .. });
    match reason_name.as_deref().and_then(sign::of_reason) {
        Some(Sign::NoSocket) if is_icmp => matches!(function.as_deref(), Some("icmp_rcv" | "icmpv6_rcv")) && is_request,
        Some(Sign::NoSocket) => is_request,
        Some(Sign::Routes) => by_function(),
        Some(_) => true,
        None => match function.as_deref() {
            Some("icmp_rcv" | "icmpv6_rcv") => is_request,
            _ => by_function(),
        },
    }
}

fn setting(name: String, value: &str) -> SettingDetail {
    SettingDetail { name, value: value.to_owned() }
}

fn refuses(kind: RouteKind) -> Option<(DropCause, &'static str)> {
    match kind {
        RouteKind::Blackhole => Some((DropCause::Blackhole, "blackhole route")),
        RouteKind::Unreachable => Some((DropCause::Unreachable, "unreachable route")),
        RouteKind::Prohibit => Some((DropCause::Prohibit, "prohibit route")),
        RouteKind::Unicast | RouteKind::Local | RouteKind::Broadcast | RouteKind::Other => None,
    }
}
