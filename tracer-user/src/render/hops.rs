//! The model's fine hops -> the steps a person reads: a route and the transmission it caused are one step, arrival and
//! delivery are one step.

use super::units::time;
use crate::path::model::{
    Action, Basis, Detail, Direction, Hop, Nat, NatSide, Path, RuleRef, Segmentation, Segments, Tunnel,
};

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Step<'a> {
    /// Where and when it was complete.
    pub(crate) hop: &'a Hop,
    /// What happened.
    pub(crate) what: String,
    /// The packet ended here without having arrived.
    pub(super) failed: bool,
    /// Line of traceroute that this step's node or pod is.
    pub(super) number: Option<usize>,
}

/// The steps of a path. Only a request's are numbered: traceroute goes one way.
pub(crate) fn steps(path: &Path, direction: Direction) -> Vec<Step<'_>> {
    let mut merger = Merger { steps: Vec::new(), route: None, direction };
    for hop in &path.hops {
        merger.add(hop);
    }
    merger.flush();
    let mut steps = merger.steps;
    if direction == Direction::Request {
        number(path, &mut steps);
    }
    steps
}

struct Merger<'a> {
    steps: Vec<Step<'a>>,
    /// A route whose transmission is still to come.
    route: Option<&'a Hop>,
    direction: Direction,
}

impl<'a> Merger<'a> {
    fn add(&mut self, hop: &'a Hop) {
        match hop.action {
            Action::Routed => {
                self.flush();
                self.route = Some(hop);
            }
            // The route decided before the rewrite; the packet leaves after it.
            Action::Snat | Action::Unsnat | Action::Dnat | Action::Undnat => {
                self.push(hop, format!("{}{}", rewrite(hop), by_rule(hop)));
            }
            Action::Transmitted => {
                let what = hop.detail.text.clone().unwrap_or_else(|| "transmitted".to_owned());
                let what = match self.route.take_if(|route| at_same_place(route, hop)) {
                    Some(route) => routed(route),
                    None => what,
                };
                self.flush();
                self.push(hop, what);
            }
            Action::Delivered => {
                self.flush();
                self.delivered(hop);
            }
            Action::Dropped => {
                // A route that killed it is told with the drop.
                self.route.take_if(|_| hop.detail.route.is_some());
                self.flush();
                self.push(hop, format!("DROPPED: {}", drop_reason(hop)));
            }
            Action::Lost => {
                self.flush();
                self.push(hop, format!("LOST: {}", lost(hop)));
            }
            Action::Sent | Action::Received | Action::Bridged | Action::Encapsulated | Action::Decapsulated => {
                self.flush();
                self.push(hop, plain(hop));
            }
        }
    }

    fn push(&mut self, hop: &'a Hop, what: String) {
        let failed = matches!(hop.action, Action::Dropped | Action::Lost);
        let what = match &hop.detail.segments {
            Some(sizes) => format!("{what}; {}", segments(sizes, hop.action)),
            None => what,
        };
        self.steps.push(Step { hop, what, failed, number: None });
    }

    fn flush(&mut self) {
        if let Some(route) = self.route.take() {
            let what = routed(route);
            self.push(route, what);
        }
    }

    fn delivered(&mut self, hop: &'a Hop) {
        let how = match (self.direction, hop.detail.answered_after_ns) {
            (Direction::Request, Some(ns)) => format!("answered after {}", time(ns)),
            (Direction::Request, None) => "delivered".to_owned(),
            (Direction::Reply, _) => "the answer is here".to_owned(),
        };
        match self.steps.last_mut() {
            Some(last) if last.hop.action == Action::Received && at_same_place(last.hop, hop) => {
                last.what = format!("{}; {how}", last.what);
            }
            _ => self.push(hop, how),
        }
    }
}

pub(super) fn at_same_place(a: &Hop, b: &Hop) -> bool {
    (&a.node, &a.pod, &a.interface) == (&b.node, &b.pod, &b.interface)
}

fn in_same_namespace(a: &Hop, b: &Hop) -> bool {
    (&a.node, &a.pod) == (&b.node, &b.pod)
}

fn routed(hop: &Hop) -> String {
    match (&hop.detail.route, &hop.interface) {
        (Some(route), _) => brief(route).to_owned(),
        (None, Some(interface)) => format!("routed to {interface}"),
        (None, None) => "routed".to_owned(),
    }
}

/// A route without what does not move a packet: `proto bird`, `scope link`, metrics.
fn brief(route: &str) -> &str {
    let cut = [" proto ", " scope ", " metric ", " src ", " onlink", " pref "]
        .iter()
        .filter_map(|word| route.find(word))
        .min();
    &route[..cut.unwrap_or(route.len())]
}

fn plain(hop: &Hop) -> String {
    let Detail { tunnel, text, .. } = &hop.detail;
    let tunnel = |with: &str, without: &str| match (tunnel, text) {
        (Some(tunnel), _) => format!("{with} {}", wrapping(tunnel)),
        (None, Some(text)) => text.clone(),
        (None, None) => without.to_owned(),
    };
    match hop.action {
        Action::Sent => "sent".to_owned(),
        Action::Received => text.as_ref().map_or("received".to_owned(), |text| format!("received; {text}")),
        Action::Bridged => "bridged".to_owned(),
        Action::Encapsulated => tunnel("encapsulated in", "encapsulated"),
        Action::Decapsulated => tunnel("decapsulated from", "decapsulated"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// `vxlan vni 4096 172.20.58.60 -> 172.20.50.50`.
pub(super) fn wrapping(tunnel: &Tunnel) -> String {
    let Tunnel { kind, vni, src, dst } = tunnel;
    match vni {
        Some(vni) => format!("{kind} vni {vni} {src} -> {dst}"),
        None => format!("{kind} {src} -> {dst}"),
    }
}

/// The sentence of a loss without what its row says anyway.
fn lost(hop: &Hop) -> &str {
    let text = hop.detail.text.as_deref().unwrap_or("never seen again");
    let left = format!("left {} {}, ", hop.node, hop.interface.as_deref().unwrap_or_default());
    text.strip_prefix(&left).unwrap_or(text)
}

/// Why, in the words of the one who saw it.
pub(super) fn drop_reason(hop: &Hop) -> &str {
    hop.detail.drop.as_ref().map_or("reason unknown", |drop| drop.why.as_str())
}

/// `SNAT 100.115.37.81 -> 172.20.50.50 (icmp id 4711 -> 52011)`.
pub(super) fn rewrite(hop: &Hop) -> String {
    let (name, source) = match hop.action {
        Action::Snat => ("SNAT", true),
        Action::Unsnat => ("un-SNAT", false),
        Action::Undnat => ("un-DNAT", true),
        _ => ("DNAT", false),
    };
    let Some(Nat { moment: _, before, after }) = hop.detail.nat.as_deref() else {
        return format!("{name} to {}", if source { hop.src } else { hop.dst });
    };
    let icmp = before.dst_port.is_none();
    let address = |side: &NatSide| if source { side.src } else { side.dst };
    let port = |side: &NatSide| if source || icmp { side.src_port } else { side.dst_port };
    let ports = match (port(before), port(after)) {
        (Some(old), Some(new)) if old != new => {
            format!(" ({} {old} -> {new})", if icmp { "icmp id" } else { "port" })
        }
        _ => String::new(),
    };
    if address(before) == address(after) {
        return format!("{name} {}{ports}", address(before));
    }
    format!("{name} {} -> {}{ports}", address(before), address(after))
}

/// ` by nat/cali-nat-outgoing`; without a rule why it is not known, if there is more to say than that.
fn by_rule(hop: &Hop) -> String {
    let Some(RuleRef { table, chain, basis, .. }) = hop.detail.rule.as_deref() else {
        return hop.detail.text.as_ref().map_or(String::new(), |text| format!("; {text}"));
    };
    let doubt = match basis {
        Basis::Observed => "",
        Basis::Inferred => " (by its counter)",
        Basis::Configured => " (no other fits)",
    };
    format!(" by {table}/{chain}{doubt}")
}

/// What became of the size of TCP data.
pub(super) fn segments(segments: &Segments, action: Action) -> String {
    let Segments { how, bytes, before } = segments;
    match how {
        Segmentation::Super => format!("super-packet of {bytes} B"),
        // Cut by the hardware after it was last seen.
        Segmentation::Segmented if matches!(action, Action::Received | Action::Decapsulated) => {
            format!("super-packet of {before} B came in segments, the first {bytes} B")
        }
        Segmentation::Segmented => format!("super-packet of {before} B segmented here, the first {bytes} B"),
        Segmentation::Joined => format!("joined by GRO: {before} -> {bytes} B"),
    }
}

/// Numbers the first step of every router, and of the destination, as traceroute would list them.
fn number(path: &Path, steps: &mut [Step<'_>]) {
    let mut number = 0;
    let visits: Vec<&[Hop]> = path.hops.chunk_by(in_same_namespace).collect();
    for (i, visit) in visits.iter().enumerate() {
        let has = |action| visit.iter().any(|hop| hop.action == action);
        let end = has(Action::Delivered);
        let came_in = has(Action::Received) || has(Action::Decapsulated);
        let forwards = came_in && !has(Action::Sent) && visit[0].pod.is_none();
        let bridged_only = has(Action::Bridged) && !has(Action::Routed);
        // To a pod's macvlan, say: no router was passed.
        let next = visits.get(i + 1).map(|next| &next[0]);
        let concluded = |hop: &Hop| hop.action == Action::Received && hop.basis == Basis::Inferred;
        let handed_up = !has(Action::Routed) && next.is_some_and(|next| next.pod.is_some() && concluded(next));
        let marked = |hop: &Hop| hop.action == Action::Transmitted && hop.detail.text.is_some();
        let redirected = !has(Action::Routed) && visit.iter().any(marked);
        if !end && (!forwards || bridged_only || handed_up || redirected) {
            continue;
        }
        number += 1;
        let within = |step: &Step<'_>| visit.iter().any(|hop| std::ptr::eq(hop, step.hop));
        if let Some(step) = steps.iter_mut().find(|step| within(step)) {
            step.number = Some(number);
        }
    }
}
