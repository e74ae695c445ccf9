//! UDP that others send: a datagram of the source, and the next one back on the same ports.

use std::collections::{BTreeMap, HashMap};

use super::{
    super::{model::What, touch, world::World},
    Group, Sorted,
    flow::{Aliases, Tuple},
    transmissions,
};
use crate::event::{L4, Sighting};

/// Of DNS: a query and its answer begin with the same two bytes.
const DNS: u16 = 53;

/// What stays equal in a datagram, whatever NAT does.
type Key = (u64, u16, u16);

/// Sightings of equal content, by node.
type Found<'a> = BTreeMap<Key, Vec<Vec<&'a Sighting>>>;

/// One datagram's sightings, by node.
struct Datagram<'a> {
    nodes: Vec<Vec<&'a Sighting>>,
    nonce: u64,
}

pub(super) fn passive<'a>(world: &World<'a>, sorted: &[Sorted<'a>], flows: &Aliases) -> Vec<Group<'a>> {
    let source = world.ends.source.address;
    let mut found: HashMap<Tuple, [Found<'a>; 2]> = HashMap::new();
    let mut order = Vec::new();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            let L4::Udp { nonce, .. } = s.packet.l4 else { continue };
            let Some(own) = Tuple::of(&s.packet).map(|t| flows.own(t)) else { continue };
            let there = own.src == source;
            let flow = if there { own } else { own.turned() };
            if flow.src != source {
                continue;
            }
            let of_flow = found.entry(flow).or_insert_with(|| {
                order.push(flow);
                Default::default()
            });
            let of_flow = &mut of_flow[usize::from(!there)];
            let key = (nonce, s.packet.ip_id, s.packet.ip_len);
            of_flow.entry(key).or_insert_with(|| vec![Vec::new(); sorted.len()])[node].push(s);
        }
    }
    let mut groups = Vec::new();
    for flow in order {
        let [there, back] = found.remove(&flow).unwrap_or_default();
        let (there, back) = (datagrams(there), datagrams(back));
        let back = Back::new(&back, sorted.len());
        for request in there {
            let mut group = Group::new(0, None, sorted.len());
            group.what = Some(What::Datagram);
            group.reply = back.reply(&request, flow.dst_port).map_or(group.reply, |d| d.nodes.clone());
            group.request = request.nodes;
            groups.push(group);
        }
    }
    groups
}

fn datagrams(found: Found<'_>) -> Vec<Datagram<'_>> {
    let mut datagrams = Vec::new();
    for ((nonce, ..), nodes) in found {
        let bursts = nodes.iter().map(|sightings| transmissions::split(sightings)).collect();
        datagrams.extend(transmissions::align(bursts).into_iter().map(|nodes| Datagram { nodes, nonce }));
    }
    datagrams
}

/// What came back, by node in the order of time.
struct Back<'d, 'a>(Vec<Vec<(u64, &'d Datagram<'a>)>>);

impl<'d, 'a> Back<'d, 'a> {
    fn new(datagrams: &'d [Datagram<'a>], nodes: usize) -> Self {
        let on = |node: usize| {
            let mut list: Vec<_> = datagrams.iter().filter_map(|d| Some((d.nodes[node].first()?.time_ns, d))).collect();
            list.sort_by_key(|(time, _)| *time);
            list
        };
        Self((0..nodes).map(on).collect())
    }

    /// The first one back after it, on a node that saw both.
    fn reply(&self, request: &Datagram<'a>, port: u16) -> Option<&'d Datagram<'a>> {
        let same_id = |d: &Datagram<'_>| port != DNS || d.nonce >> 48 == request.nonce >> 48;
        let after = |(node, list): (usize, &Vec<(u64, &'d Datagram<'a>)>)| {
            let came = request.nodes[node].iter().find(|s| !touch::is_free(s))?.time_ns;
            let from = list.partition_point(|(time, _)| *time < came);
            list[from..].iter().find(|(_, d)| same_id(d)).map(|(time, d)| (time - came, *d))
        };
        // The less time passes between the two, the nearer the node is to who answered.
        self.0.iter().enumerate().filter_map(after).min_by_key(|(ns, _)| *ns).map(|(_, d)| d)
    }
}
