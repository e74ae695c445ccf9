//! The reducer: evidence in, exchanges out.

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeSet,
    net::IpAddr,
};

use super::{
    Ends, Evidence, Joined, Names, NodeEvidence,
    clock::{Bounds, Together},
    culprit::naming,
    errors,
    exchange::{Story, Told, milliseconds},
    group::{self, Group, Sorted},
    model::{Action, Direction, DropCause, Exchange, Hop, Outcome},
    world::{Owners, World},
};
use crate::{
    event::Record,
    node::facts::{LinkRef, Role},
};

/// How many exchanges before and after are asked for the clocks' offsets, if all together exclude each other.
const NEIGHBOURS: usize = 16;

/// A bulk transfer makes an exchange of every segment: more than so many nobody reads.
const MOST_WATCHED: usize = 1_000;

/// Joins what all nodes saw into exchanges.
///
/// The order of the records does not matter, duplicates neither. Missing records lead to missing hops, with a note in
/// the exchange; never to a hop that was not there.
pub fn join(evidence: &Evidence, ends: &Ends, names: &dyn Names) -> Joined {
    join_up_to((MOST_WATCHED, usize::MAX), None, evidence, ends, names)
}

/// [`join`], of which the first exchanges are told, so many, and what they passed.
pub fn join_first(count: usize, evidence: &Evidence, ends: &Ends, names: &dyn Names) -> Joined {
    join_up_to((MOST_WATCHED, count), None, evidence, ends, names)
}

/// [`join`], of however many exchanges.
pub fn join_all(evidence: &Evidence, ends: &Ends, names: &dyn Names) -> Joined {
    join_up_to((usize::MAX, usize::MAX), None, evidence, ends, names)
}

/// [`join_all`], of the exchanges that were seen in a span of time on some node, and of those that these repeat. `spans`: by node, from
/// and until before, ns of its clock. What else was seen is looked at, and not told.
pub fn join_within(spans: &[(u64, u64)], evidence: &Evidence, ends: &Ends, names: &dyn Names) -> Joined {
    join_up_to((usize::MAX, usize::MAX), Some(spans), evidence, ends, names)
}

fn join_up_to(
    (most_watched, most_told): (usize, usize),
    spans: Option<&[(u64, u64)]>,
    evidence: &Evidence,
    ends: &Ends,
    names: &dyn Names,
) -> Joined {
    let owners = Owners::of(evidence);
    let connections: Vec<_> = evidence.nodes.iter().map(|_| OnceCell::new()).collect();
    let called = RefCell::default();
    let world = World { evidence, ends, names, owners: &owners, connections: &connections, called: &called };
    let sorted: Vec<Sorted<'_>> = evidence.nodes.iter().map(|n| Sorted::new(&n.records)).collect();
    let by_node = sorted.iter().enumerate().flat_map(|(node, n)| n.sightings.iter().map(move |s| (node, *s)));
    let errors: Vec<_> = by_node.filter(|(_, s)| errors::is_error(s)).collect();
    let mut groups = group::groups(&world, &sorted);
    let untold = if evidence.probes.is_empty() { groups.len().saturating_sub(most_watched) } else { 0 };
    groups.truncate(groups.len() - untold);
    let mut errors = errors::assign(&groups, &errors, ends.source.address);
    // Errors first: one about a request that is not told must not be taken for one about another.
    if let Some(spans) = spans {
        (groups, errors) = group::within(groups, errors, spans);
    }
    let stories: Vec<_> =
        groups.iter().zip(errors).map(|(group, errors)| Story::new(&world, group, &sorted, &errors)).collect();
    let all = Together::of(stories.iter().map(|story| &story.bounds));
    let told = stories.iter().enumerate().map(|(i, story)| story.tell(&world, &all, neighbours(&stories, i)));
    let mut told: Vec<_> = told.collect();
    sent_again(&groups, &mut told);
    let mut told: Vec<_> = told
        .into_iter()
        // Under way when recording began, or another flow's: where the whole of it is not seen, nothing can be said of it.
        .filter(|told| !told.began_before)
        .collect();

    let cases = told.iter_mut().filter_map(|t| Some((&mut t.exchange, t.suspicion.as_ref()?))).collect();
    naming::name(&world, cases);
    told.truncate(most_told);

    let mut warnings = warnings(&world);
    if told.iter().any(|told| told.exchange.outcome != Outcome::Delivered) {
        warnings.extend(nameless(evidence));
    }
    if untold > 0 {
        warnings.push(format!("{untold} more exchanges were seen: only the first {MOST_WATCHED} are told"));
    }
    let routers = routers(&world, &told, &mut warnings);
    let (smallest_mtu, smallest_mtu_at) = smallest_mtu(&world, &stories);
    let exchanges = told.into_iter().map(|t| t.exchange).collect();
    Joined { exchanges, routers, warnings, smallest_mtu, smallest_mtu_at }
}

/// The pod that has this address on some interface, and its node, as the sessions found them: an address of a second network is
/// in no `Pod`'s status.
pub fn pod_with(evidence: &Evidence, names: &dyn Names, address: IpAddr) -> Option<(String, String)> {
    let of_pods = |node: &NodeEvidence| {
        let pods = node.facts.namespaces.iter().filter(|namespace| namespace.role == Role::Pod);
        pods.map(|pod| pod.links.iter().flat_map(|link| link.addresses.iter().map(|a| a.addr())).collect::<Vec<_>>())
            .find(|addresses| addresses.contains(&address))
    };
    let (node, addresses) = evidence.nodes.iter().find_map(|node| Some((node, of_pods(node)?)))?;
    let name = addresses.into_iter().find_map(|a| names.pod(a)).filter(|_| !address.is_loopback())?;
    Some((name, node.name.clone()))
}

/// Says of what was sent again what became of the first.
fn sent_again(groups: &[Group<'_>], told: &mut [Told<'_>]) {
    for (i, group) in groups.iter().enumerate() {
        let Some((first, ns)) = group.again else { continue };
        let Exchange { seq, outcome, failed_direction, .. } = &told[first].exchange;
        let became = match (outcome, failed_direction) {
            (Outcome::Delivered, _) => "which was answered",
            (Outcome::Dropped, Some(Direction::Request)) => "which was dropped",
            (Outcome::Lost, Some(Direction::Request)) => "which was lost",
            (_, Some(Direction::Reply)) => "which arrived, but its answer did not come back",
            (Outcome::Rejected, _) => "which was rejected",
            _ => "of which not enough was seen to say what became of it",
        };
        let ms = milliseconds(ns);
        let note = format!("a retransmission, {ms} after exchange {seq}, {became}");
        let exchange = &mut told[i].exchange;
        exchange.again_after_ns = Some(ns);
        exchange.notes.push(note);
    }
}

/// The bounds of the exchanges around the `i`-th, the nearest first.
fn neighbours<'b>(stories: &'b [Story<'_>], i: usize) -> impl Iterator<Item = &'b Bounds> + Clone {
    let around = (1..=NEIGHBOURS).flat_map(move |d| [i.checked_sub(d), i.checked_add(d)]);
    around.flatten().filter_map(|j| stories.get(j)).map(|s| &s.bounds)
}

/// The smallest MTU on the path, and the interfaces that have it, in the order in which they were passed first; none where it is
/// that of the first: then the sender's own kernel knows it.
fn smallest_mtu(world: &World<'_>, stories: &[Story<'_>]) -> (Option<u32>, Vec<String>) {
    let mut passed: Vec<(usize, LinkRef, u32)> = Vec::new();
    let mut known = BTreeSet::new();
    for (node, at) in stories.iter().flat_map(Story::places) {
        if known.insert((node, at.netns, at.ifindex)) {
            passed.extend(world.namespaces(node).link(at).map(|link| (node, at, link.mtu)));
        }
    }
    let smallest = passed.iter().map(|(.., mtu)| *mtu).min();
    let hidden = passed.first().is_some_and(|(.., mtu)| Some(*mtu) != smallest);
    let at = passed.iter().filter(|(.., mtu)| hidden && Some(*mtu) == smallest);
    (smallest, at.map(|(node, at, _)| world.place(*node, *at)).collect())
}

/// What traceroute would list, by the request that came furthest.
fn routers(world: &World<'_>, told: &[Told<'_>], warnings: &mut Vec<String>) -> Vec<IpAddr> {
    // A port that is closed is reached: traceroute ends there too. Who answers in its name may stand anywhere.
    let end = world.ends.destination.address;
    let reached = |e: &Exchange| {
        let closed = |h: &Hop| h.detail.drop.as_ref().is_some_and(|d| d.cause == DropCause::PortClosed);
        let came = e.request.hops.last().is_some_and(|h| h.action == Action::Delivered || closed(h));
        // Where it ended was seen, or else its answer tells.
        let open = e.request.hops.last().is_none_or(|h| h.detail.drop.is_none());
        // Behind DNAT it answers with an address of its own.
        e.rejection.as_ref().is_some_and(|r| came && r.arrived || open && r.from == end && world.owner(end).is_none())
    };
    let refused = |e: &Exchange| e.outcome == Outcome::Rejected && reached(e);
    let arrived = |e: &Exchange| e.outcome == Outcome::Delivered || refused(e);
    let best = told.iter().rev().max_by_key(|t| (arrived(&t.exchange), t.routers.len()));
    let Some(best) = best else { return Vec::new() };
    let mut routers = Vec::new();
    for (node, source) in &best.routers {
        match source {
            Some(address) => routers.push(*address),
            None => warnings.push(format!(
                "which address {} gives its ICMP errors is not known: the list of routers lacks it",
                world.node(*node).name
            )),
        }
    }
    if arrived(&best.exchange) {
        routers.push(world.ends.destination.address);
    }
    routers
}

/// The nodes whose kernel does not show who freed packets. Only an exchange that came to a bad end lacks that.
fn nameless(evidence: &Evidence) -> impl Iterator<Item = String> {
    let hidden = |node: &&NodeEvidence| {
        let frees = node.records.iter().filter_map(|record| match record {
            Record::Sighting(sighting) => sighting.free.as_ref().filter(|free| free.location != 0),
            Record::Translation(_) | Record::Rewrite(_) => None,
        });
        let mut frees = frees.peekable();
        frees.peek().is_some() && frees.all(|free| free.function.is_none())
    };
    evidence.nodes.iter().filter(hidden).map(|node| {
        format!(
            "{}: which functions of the kernel freed packets is not known: /proc/kallsyms hides their addresses, which CAP_SYSLOG \
             shows where kernel.kptr_restrict is 0 or 1",
            node.name
        )
    })
}

fn warnings(world: &World<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    for node in &world.evidence.nodes {
        let name = &node.name;
        let lost = node.lost.saturating_sub(node.unread);
        if lost > 0 {
            warnings.push(format!("{name}: {lost} events could not be recorded; hops may be missing"));
        }
        if !node.complete {
            warnings.push(format!("{name}: its session did not end in order; hops may be missing"));
        }
        if node.facts.routes_changed {
            warnings.push(format!(
                "{name}: routes or rules changed during the trace; those shown may not be those the packets took"
            ));
        }
        warnings.extend(node.facts.notes.iter().map(|note| format!("{name}: {note}")));
    }
    warnings
}
