//! UDP that others send: a datagram of the source, and the next one back on the same ports.

use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

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
    doubt: Option<&'static str>,
}

pub(super) fn passive<'a>(world: &World<'a>, sorted: &[Sorted<'a>], flows: &Aliases) -> Vec<Group<'a>> {
    let source = world.ends.source.address;
    let mut found: HashMap<Tuple, [Found<'a>; 2]> = HashMap::new();
    let mut order = Vec::new();
    for (node, records) in sorted.iter().enumerate() {
        for &s in &records.sightings {
            let L4::Udp { nonce, .. } = s.packet.l4 else { continue };
            let Some(own) = flows.of(s) else { continue };
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
        let replies = Back::new(&back, sorted.len()).replies(&there, flow.dst_port);
        for (request, reply) in there.into_iter().zip(replies) {
            let mut group = Group::new(0, None, sorted.len());
            group.what = Some(What::Datagram);
            let doubts = [request.doubt, reply.and_then(|d| d.doubt)];
            group.doubts = doubts.into_iter().flatten().map(str::to_owned).collect();
            group.doubts.dedup();
            group.reply = reply.map_or(group.reply, |d| d.nodes.clone());
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
        let aligned = transmissions::align(bursts).into_iter();
        datagrams.extend(aligned.map(|(nodes, doubt)| Datagram { nodes, nonce, doubt }));
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

    /// The replies to all requests: to each the first one back after it that answers no earlier one, on a node that saw both.
    fn replies(&self, requests: &[Datagram<'a>], port: u16) -> Vec<Option<&'d Datagram<'a>>> {
        let mut replies = vec![None; requests.len()];
        let mut taken = HashSet::new();
        // The less time passes between the two, the nearer the node is to who answered: what came as far as there is asked first.
        let mut nodes: Vec<usize> = (0..self.0.len()).collect();
        nodes.sort_by_key(|&node| {
            requests
                .iter()
                .filter_map(|r| Some(self.after(r, node, port, &HashSet::new())?.0))
                .min()
                .unwrap_or(u64::MAX)
        });
        for node in nodes {
            let came = |i: usize| came(&requests[i], node);
            let mut waiting: Vec<usize> =
                (0..requests.len()).filter(|&i| replies[i].is_none() && came(i).is_some()).collect();
            waiting.sort_by_key(|&i| came(i));
            for i in waiting {
                if let Some((_, reply)) = self.after(&requests[i], node, port, &taken) {
                    taken.insert(std::ptr::from_ref(reply));
                    replies[i] = Some(reply);
                }
            }
        }
        replies
    }

    /// The first one back on that node after the request came there, and how much later, ns.
    fn after(
        &self,
        request: &Datagram<'a>,
        node: usize,
        port: u16,
        taken: &HashSet<*const Datagram<'a>>,
    ) -> Option<(u64, &'d Datagram<'a>)> {
        let came = came(request, node)?;
        let list = &self.0[node];
        let fits = |d: &'d Datagram<'a>| {
            (port != DNS || d.nonce >> 48 == request.nonce >> 48) && !taken.contains(&std::ptr::from_ref(d))
        };
        let from = list.partition_point(|(time, _)| *time < came);
        list[from..].iter().find(|(_, d)| fits(d)).map(|(time, d)| (time - came, *d))
    }
}

/// When the request came to that node, if it was more than freed there.
fn came(request: &Datagram<'_>, node: usize) -> Option<u64> {
    request.nodes[node].iter().find(|s| !touch::is_free(s)).map(|s| s.time_ns)
}
