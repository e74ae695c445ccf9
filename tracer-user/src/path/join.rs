//! The reducer: evidence in, exchanges out.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Ends, Evidence, Joined, Names,
    clock::Bounds,
    culprit::naming,
    exchange::{self, Story, Told},
    group::{self, Sorted},
    model::{Exchange, Outcome},
    world::World,
};

/// How many exchanges before and after are asked for the clocks' offsets, if all together exclude each other.
const NEIGHBOURS: usize = 16;

/// Joins what all nodes saw into exchanges.
///
/// The order of the records does not matter, duplicates neither. Missing records lead to missing hops, with a note in
/// the exchange; never to a hop that was not there.
pub fn join(evidence: &Evidence, ends: &Ends, names: &dyn Names) -> Joined {
    let world = World { evidence, ends, names };
    let sorted: Vec<Sorted<'_>> = evidence.nodes.iter().map(|n| Sorted::new(&n.records)).collect();
    let errors: Vec<_> = sorted
        .iter()
        .enumerate()
        .flat_map(|(node, n)| n.sightings.iter().filter(|s| exchange::is_error(s)).map(move |s| (node, *s)))
        .collect();
    let groups = group::groups(evidence, &sorted);
    let stories: Vec<_> = groups.iter().map(|g| Story::new(&world, g, &sorted, &errors)).collect();
    let all = stories.iter().fold(Bounds::new(sorted.len()), |all, s| all.and(&s.bounds));
    let mut told: Vec<_> = stories
        .iter()
        .enumerate()
        .map(|(i, story)| story.tell(&world, std::iter::once(&all).chain(neighbours(&stories, i))))
        // Under way when recording began, or another flow's: where the whole of it is not seen, nothing can be said of it.
        .filter(|told| !told.began_before)
        .collect();

    let cases = told.iter_mut().filter_map(|t| Some((&mut t.exchange, t.suspicion.as_ref()?))).collect();
    naming::name(&world, cases);

    let mut warnings = warnings(&world);
    let routers = routers(&world, &told, &mut warnings);
    let smallest_mtu = smallest_mtu(&world, &stories);
    Joined { exchanges: told.into_iter().map(|t| t.exchange).collect(), routers, warnings, smallest_mtu }
}

/// The bounds of the exchanges around the `i`-th, the nearest first.
fn neighbours<'b>(stories: &'b [Story<'_>], i: usize) -> impl Iterator<Item = &'b Bounds> {
    let around = (1..=NEIGHBOURS).flat_map(move |d| [i.checked_sub(d), i.checked_add(d)]);
    around.flatten().filter_map(|j| stories.get(j)).map(|s| &s.bounds)
}

fn smallest_mtu(world: &World<'_>, stories: &[Story<'_>]) -> Option<u32> {
    let places: BTreeSet<_> =
        stories.iter().flat_map(Story::places).map(|(node, at)| (node, at.netns, at.ifindex)).collect();
    let mtu = |(node, netns, ifindex)| {
        world.namespaces(node).link(crate::node::facts::LinkRef { netns, ifindex }).map(|l| l.mtu)
    };
    places.into_iter().filter_map(mtu).min()
}

/// What traceroute would list, by the request that came furthest.
fn routers(world: &World<'_>, told: &[Told<'_>], warnings: &mut Vec<String>) -> Vec<IpAddr> {
    let arrived = |e: &Exchange| e.outcome == Outcome::Delivered;
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
