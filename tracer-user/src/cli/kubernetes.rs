//! A trace in a Kubernetes cluster: which nodes it concerns, and who is on its path.

use std::net::IpAddr;

use futures::future::join_all;

use super::{
    args::{Between, TraceArgs},
    ends,
    error::Error,
    nodes::{Cluster, Node, Reach},
    requests::longest,
    trace::{MOST_ROUNDS, asked_to_end},
};
use crate::{
    cluster::{self, Ephemeral, Lookup, Wish},
    identity::{Directory, Service, Target},
    path::{Joined, Names, model::Hop},
    session::Connection,
};

/// Addresses of one path that are looked up after it is known, at most.
const MOST_MET: usize = 16;

/// Nodes of a service's endpoints that are traced from the beginning, at most; others when the path leads there.
const MOST_BACKENDS: usize = 8;

/// Nodes at which something from outside may come in that are all traced, at most.
const MOST_ENTRANCES: usize = 16;

/// A cluster, and what has been asked of it.
#[derive(Debug)]
pub(super) struct Kubernetes {
    lookup: Lookup,
    /// Nodes on the path that cannot be traced, with the reason.
    missing: Vec<(String, cluster::Error)>,
    /// Agents are made for this trace alone.
    wish: Option<Wish>,
    made: Ephemeral,
}

/// The nodes of both ends, and the arguments with the ends called as the directory calls them.
///
/// # Errors
/// The cluster cannot be asked or refuses; no node of the path can be traced, or not the source's.
pub(super) async fn find(args: &TraceArgs) -> Result<(Cluster, TraceArgs), Error> {
    let cluster = args.between.access.cluster().await?;
    let context = Some(cluster.context.clone());
    let namespace = args.between.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
    let mut lookup = Lookup::new(cluster);
    let source = lookup.end(&args.between.source, &namespace).await?;
    let destination = lookup.end(&args.between.destination, &namespace).await?;
    let mut directory = lookup.directory()?;
    let asked = directory.resolve(&destination, &namespace).ok();
    let mut service = asked.as_ref().and_then(|target| target.service.clone());
    if let (Some(port), Some(target)) = (args.traffic().port(), asked.as_ref().filter(|target| target.is_node())) {
        lookup.node_port(port).await?;
        directory = lookup.directory()?;
        let protocol = args.traffic().probes(0).protocol(target.address);
        service = directory.node_port(protocol, port).map(|(service, _)| service.clone());
    }
    let home = directory.resolve(&source, &namespace).ok().and_then(|target| target.node);
    let mut concerned: Vec<String> = home.iter().cloned().collect();
    let far_is_node = asked.as_ref().is_some_and(Target::is_node);
    let far = asked.and_then(|target| target.node).into_iter().chain(service.iter().flat_map(nodes_behind));
    for node in far {
        if !concerned.contains(&node) {
            concerned.push(node);
        }
    }
    if let Some(service) = service.as_ref().filter(|service| !service.local_only) {
        let outside = directory.resolve(&source, &namespace).is_ok_and(|source| ends::is_outside(&source));
        if outside && service.fronts().next().is_some() && !far_is_node {
            entrances(&mut lookup, &mut concerned).await;
        }
    }
    let args = TraceArgs {
        between: Between { source, destination, namespace: Some(namespace), ..args.between.clone() },
        ..args.clone()
    };
    let wish = args.between.ephemeral.then(|| Wish {
        image: args.between.image.clone(),
        lifetime: MOST_ROUNDS as u32 * longest(&args),
        ready_within: args.between.ready_within,
    });
    let kubernetes = Kubernetes { lookup, missing: Vec::new(), wish, made: Ephemeral::default() };
    let mut found = Cluster { context, nodes: Vec::new(), directory, kubernetes: Some(kubernetes), choice: None };
    let ephemeral = args.between.ephemeral;
    let begun = tokio::select! {
        begun = found.begin(concerned, home.as_deref(), args.passive) => begun,
        // Pods that are being made would be left to their deadline.
        _code = asked_to_end(), if ephemeral => Err(Error::Interrupted),
    };
    if let Err(error) = begun {
        // What was made before it failed.
        found.clean_up().await;
        return Err(error);
    }
    Ok((found, args))
}

/// What comes from outside by an address that is no node's may come in at any node: all of them, if they are few.
async fn entrances(lookup: &mut Lookup, concerned: &mut Vec<String>) {
    let why = match lookup.cluster.machines().await {
        Ok(machines) if machines.len() <= MOST_ENTRANCES => {
            let names = machines.into_iter().filter(|machine| machine.ready).map(|machine| machine.name);
            let new: Vec<String> = names.filter(|name| !concerned.contains(name)).collect();
            concerned.extend(new);
            return;
        }
        Ok(machines) => format!("there are {}", machines.len()),
        Err(error) => error.to_string(),
    };
    lookup.notes.push(format!(
        "at which node it comes in is not known, and not all nodes are traced ({why}): what comes in by another than these and goes on \
         to one of them is not seen; name the node's port instead, if it has one"
    ));
}

/// Nodes of those that may answer for a service, some of them: which it will be only the path shows.
fn nodes_behind(service: &Service) -> Vec<String> {
    let mut nodes: Vec<String> = service.ready().filter_map(|endpoint| endpoint.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    nodes.truncate(MOST_BACKENDS);
    nodes
}

impl Cluster {
    /// The first nodes.
    async fn begin(&mut self, concerned: Vec<String>, home: Option<&str>, passive: bool) -> Result<(), Error> {
        self.add(concerned).await?;
        let none = self.nodes.is_empty();
        if let Some(kubernetes) = &mut self.kubernetes {
            // The source's, or the only one: without it there is nothing to trace.
            let needed = |node: &str| none || !passive && Some(node) == home;
            if let Some(place) = kubernetes.missing.iter().position(|(node, _)| needed(node)) {
                return Err(kubernetes.missing.swap_remove(place).1.into());
            }
        }
        Ok(())
    }

    /// Removes the agents that were made for this trace; a sentence about what could not be removed.
    pub(super) async fn clean_up(&mut self) -> Option<String> {
        let Kubernetes { lookup, made, .. } = self.kubernetes.as_mut()?;
        let error = lookup.cluster.remove(std::mem::take(made)).await.err()?;
        Some(format!("the agents of this trace could not be removed, and go by their deadline: {error}"))
    }

    /// Adds these nodes, if they have agents; those that have none are remembered.
    async fn add(&mut self, names: Vec<String>) -> Result<(), Error> {
        let Some(kubernetes) = &mut self.kubernetes else { return Ok(()) };
        let Kubernetes { lookup, missing, wish, made } = kubernetes;
        let mut asked = Vec::new();
        match wish {
            Some(wish) => {
                for name in &names {
                    asked.push(lookup.cluster.make_agent(made, name, wish).await);
                }
            }
            None => asked = join_all(names.iter().map(|name| lookup.cluster.agent(name))).await,
        }
        for (name, agent) in names.into_iter().zip(asked) {
            match agent {
                Ok(pod) => self.nodes.push(Node { name, reach: Reach::Agent(pod) }),
                Err(error @ cluster::Error::NoAgent { .. }) => {
                    let error = lookup.explain(&name, error);
                    missing.push((name, error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes in whom the path met: names for its addresses, and nodes that were not traced. True: there are more nodes to trace
    /// than before. What cannot be learned any more is a note: the path is known already.
    pub(super) async fn meet(&mut self, joined: &Joined) -> bool {
        match self.learn(joined).await {
            Ok(more) => more,
            Err(error) => {
                if let Some(kubernetes) = &mut self.kubernetes {
                    kubernetes.lookup.notes.push(format!("not all addresses of the path could be looked up: {error}"));
                }
                false
            }
        }
    }

    async fn learn(&mut self, joined: &Joined) -> Result<bool, Error> {
        let Some(kubernetes) = &mut self.kubernetes else { return Ok(false) };
        let (met, next) = met(joined);
        let unknown = met.into_iter().filter(|address| !is_known(&self.directory, *address)).take(MOST_MET);
        let unknown: Vec<IpAddr> = unknown.collect();
        for address in &unknown {
            kubernetes.lookup.address(*address).await?;
        }
        for node in &self.nodes {
            kubernetes.lookup.second_addresses(&unknown, &node.name).await?;
        }
        self.directory = kubernetes.lookup.directory()?;
        let mut namespaces: Vec<String> = refused(joined, &self.directory);
        namespaces.sort();
        namespaces.dedup();
        if !namespaces.is_empty() {
            for namespace in &namespaces {
                kubernetes.lookup.policies(namespace).await;
            }
            self.directory = kubernetes.lookup.directory()?;
        }
        let mut names: Vec<String> = next.into_iter().filter_map(|address| self.directory.node_of(address)).collect();
        names.sort();
        names.dedup();
        names.retain(|name| {
            let traced = self.nodes.iter().any(|node| node.name == *name);
            !traced && kubernetes.missing.iter().all(|(missing, _)| missing != name)
        });
        let before = self.nodes.len();
        self.add(names).await?;
        Ok(self.nodes.len() > before)
    }

    /// What the reader should know about it, in sentences.
    pub(super) fn notes(&self) -> Vec<String> {
        let Some(Kubernetes { lookup, missing, .. }) = &self.kubernetes else { return Vec::new() };
        let missing = missing.iter().map(|(_, error)| format!("not traced: {error}"));
        lookup.notes.iter().cloned().chain(missing).collect()
    }
}

impl Kubernetes {
    /// Starts a session in a pod of ours.
    ///
    /// # Errors
    /// The cluster refuses, or cannot be asked.
    pub(super) async fn session(&self, node: &str, pod: &str) -> Result<Connection, Error> {
        let session = self.lookup.cluster.session(node, pod).await;
        session.map_err(|error| self.lookup.explain(node, error).into())
    }

    /// Remembers why a node is not traced.
    ///
    /// # Errors
    /// The reason, if it is not that node's.
    pub(super) fn leave_out(&mut self, node: String, error: Error) -> Result<(), Error> {
        match error {
            Error::Cluster(error @ cluster::Error::NoAgent { .. }) => {
                self.missing.push((node, error));
                Ok(())
            }
            other => Err(other),
        }
    }
}

fn is_known(directory: &Directory, address: IpAddr) -> bool {
    directory.pod(address).is_some() || directory.node(address).is_some()
}

/// The addresses of a path, and those of them that are on the next machine: gateways of routes, far ends of tunnels, and where it
/// ends.
fn met(joined: &Joined) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (mut met, mut next) = (Vec::new(), Vec::new());
    let hops = joined.exchanges.iter().flat_map(|exchange| exchange.request.hops.iter().chain(&exchange.reply.hops));
    for Hop { src, dst, detail, .. } in hops {
        next.extend(detail.route.as_deref().and_then(gateway));
        next.extend(detail.tunnel.as_ref().map(|tunnel| tunnel.dst));
        met.extend([*src, *dst]);
    }
    // Where a request is bound for in the end: an endpoint of the service that was asked.
    next.extend(joined.exchanges.iter().filter_map(|exchange| exchange.request.hops.last()).map(|hop| hop.dst));
    met.extend(&joined.routers);
    next.sort();
    next.dedup();
    met.extend(&next);
    met.sort();
    met.dedup();
    met.retain(|address| !address.is_loopback() && !address.is_multicast() && !address.is_unspecified());
    (met, next)
}

/// Namespaces of the pods at which a network policy dropped packets.
fn refused(joined: &Joined, directory: &Directory) -> Vec<String> {
    let hops = joined.exchanges.iter().flat_map(|exchange| exchange.request.hops.iter().chain(&exchange.reply.hops));
    let pods = hops.filter_map(|hop| Some(&hop.detail.drop.as_ref()?.policies.as_ref()?.pod));
    // Before its name was looked up it is an address.
    let named = pods.filter_map(|pod| pod.parse().map_or_else(|_| Some(pod.clone()), |address| directory.pod(address)));
    named.filter_map(|pod| Some(pod.split_once('/')?.0.to_owned())).collect()
}

/// `100.115.37.64/26 via 172.20.50.50 dev ens5` -> 172.20.50.50. A gateway that no node has, such as the 169.254.1.1 of Calico's
/// pods, is nobody's.
fn gateway(route: &str) -> Option<IpAddr> {
    let mut words = route.split(' ');
    words.find(|word| *word == "via")?;
    // `via inet6 fe80::1`
    words.find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routes_gateway_is_the_next_machine() {
        assert_eq!(gateway("100.115.37.64/26 via 172.20.50.50 dev ens5"), "172.20.50.50".parse().ok());
        assert_eq!(gateway("10.0.0.0/8 via inet6 fe80::1 dev ens5"), "fe80::1".parse().ok());
        assert_eq!(gateway("100.115.37.81 dev cali98fd8882b62 scope link"), None);
    }
}
