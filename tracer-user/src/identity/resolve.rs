//! What a person types -> an address.

use std::net::IpAddr;

use super::{
    directory::{Directory, Node, Pod},
    error::{Error, Reason},
    service::Service,
};
use crate::path::Names;

/// An end of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `namespace/pod`, or a node's name; None where nobody knows it.
    pub name: Option<String>,
    /// The address to use.
    pub address: IpAddr,
    /// The other addresses it has (the other family, ExternalIP).
    pub other_addresses: Vec<IpAddr>,
    /// Name of the node it lives on.
    pub node: Option<String>,
    /// It is a pod that uses its node's network: `address` is the node's, and its packets never leave a pod's interface.
    pub host_network: bool,
    /// It is a service: `address` stands for others.
    pub service: Option<Service>,
}

/// How many similar names a message offers.
const SIMILAR: usize = 5;

impl Directory {
    /// Finds what `name` means: an IP address, `pod`, `namespace/pod`, `pod/name`, `namespace/pod/name`, `node/name`, a
    /// node's name or its first label. A bare pod name is looked for in `default_namespace`, then in all others.
    ///
    /// # Errors
    /// [`Error::NotFound`] where nobody has this name (the caller may go on to DNS: [`Error::is_not_found`]), else why
    /// the thing that has it cannot be an end of a trace.
    pub fn resolve(&self, name: &str, default_namespace: &str) -> Result<Target, Error> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return self.by_address(address);
        }
        let parts: Vec<&str> = name.split('/').collect();
        if parts.iter().any(|part| part.is_empty() || part.contains(|c: char| c.is_whitespace() || c.is_control())) {
            return Err(Error::BadName { name: name.to_owned() });
        }
        match parts.as_slice() {
            [bare] => self.bare(bare, default_namespace),
            ["node" | "nodes" | "no", node] => self.node_target(self.find_node(node)?),
            ["pod" | "pods" | "po", pod] => self.pod_named(pod, default_namespace),
            ["svc" | "service" | "services", service] => self.service(default_namespace, service),
            [namespace, "pod" | "pods" | "po", pod] | [namespace, pod] => self.pod_in(namespace, pod),
            [namespace, "svc" | "service" | "services", service] => self.service(namespace, service),
            _ => Err(Error::BadName { name: name.to_owned() }),
        }
    }

    fn by_address(&self, address: IpAddr) -> Result<Target, Error> {
        if let Some(service) = self
            .services
            .iter()
            .find(|service| service.addresses.iter().copied().chain(service.fronts()).any(|known| known == address))
        {
            let mut target = self.service_target(service)?;
            target.use_address(address);
            return Ok(target);
        }
        if let Some(&index) = self.pod_by_address.get(&address) {
            let mut target = self.pod_target(&self.pods[index])?;
            target.use_address(address);
            return Ok(target);
        }
        if let Some(&index) = self.node_by_address.get(&address) {
            let mut target = self.node_target(&self.nodes[index])?;
            target.use_address(address);
            return Ok(target);
        }
        Ok(Target { name: None, address, other_addresses: Vec::new(), node: None, host_network: false, service: None })
    }

    fn bare(&self, name: &str, default_namespace: &str) -> Result<Target, Error> {
        let pod = self.pod_named(name, default_namespace);
        let node = self.find_node(name);
        match (pod, node) {
            (Err(pod), Err(node)) if pod.is_not_found() && node.is_not_found() => {
                // A name with dots is a node's or a host's: pods like it help nobody.
                if let Error::NotFound { ref similar, .. } = pod
                    && !similar.is_empty()
                    && !name.contains('.')
                {
                    return Err(pod);
                }
                let Error::NotFound { similar, .. } = node else { return Err(node) };
                let what = "pod or node";
                Err(Error::NotFound { name: name.to_owned(), what, context: self.context.clone(), similar })
            }
            (pod, Err(node)) if node.is_not_found() => pod,
            (Err(pod), node) if pod.is_not_found() => self.node_target(node?),
            (Ok(_) | Err(Error::Unusable { .. }), Ok(_)) => {
                let candidates = vec![format!("pod/{name}"), format!("node/{name}")];
                Err(self.ambiguous(name, candidates))
            }
            (Err(ambiguous), _) => Err(ambiguous),
            (Ok(_), Err(ambiguous)) => Err(ambiguous),
        }
    }

    fn pod_named(&self, name: &str, default_namespace: &str) -> Result<Target, Error> {
        let mut found: Vec<&Pod> = self.pods.iter().filter(|pod| pod.name == name).collect();
        if let Some(pod) = found.iter().find(|pod| pod.namespace == default_namespace) {
            return self.pod_target(pod);
        }
        found.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        match found.as_slice() {
            [] => Err(self.no_such_pod(default_namespace, name)),
            [pod] => self.pod_target(pod),
            several => Err(self.ambiguous(name, several.iter().map(|pod| pod.full_name()).collect())),
        }
    }

    fn pod_in(&self, namespace: &str, name: &str) -> Result<Target, Error> {
        match self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name) {
            Some(pod) => self.pod_target(pod),
            None => Err(self.no_such_pod(namespace, name)),
        }
    }

    fn pod_target(&self, pod: &Pod) -> Result<Target, Error> {
        let unusable = |reason| Err(Error::Unusable { name: pod.full_name(), reason });
        if pod.ended() {
            return unusable(Reason::Finished { phase: pod.phase.clone() });
        }
        let Some((&address, others)) = pod.addresses.split_first() else {
            return unusable(Reason::NoAddress { phase: pod.phase.clone(), pod: pod.full_name() });
        };
        Ok(Target {
            name: Some(pod.full_name()),
            address,
            other_addresses: others.to_vec(),
            node: pod.node.clone(),
            host_network: pod.host_network,
            service: None,
        })
    }

    /// By full name, by another of its host names, or by the first label of its name.
    fn find_node(&self, name: &str) -> Result<&Node, Error> {
        if let Some(node) = self.nodes.iter().find(|node| node.name == name) {
            return Ok(node);
        }
        let matches =
            |node: &&Node| node.name.split('.').next() == Some(name) || node.aliases.iter().any(|alias| alias == name);
        let found: Vec<&Node> = self.nodes.iter().filter(matches).collect();
        match found.as_slice() {
            [node] => Ok(node),
            [] => Err(Error::NotFound {
                name: name.to_owned(),
                what: "node",
                context: self.context.clone(),
                similar: similar(
                    name,
                    self.nodes.iter().flat_map(|node| {
                        let label = node.name.split('.').next().unwrap_or(&node.name);
                        [(node.name.as_str(), node.name.clone()), (label, node.name.clone())]
                    }),
                ),
            }),
            several => Err(self.ambiguous(name, several.iter().map(|node| format!("node/{}", node.name)).collect())),
        }
    }

    fn node_target(&self, node: &Node) -> Result<Target, Error> {
        let Some((&address, others)) = node.addresses.split_first() else {
            return Err(Error::Unusable { name: node.name.clone(), reason: Reason::NodeWithoutAddress });
        };
        Ok(Target {
            name: Some(node.name.clone()),
            address,
            other_addresses: others.to_vec(),
            node: Some(node.name.clone()),
            host_network: false,
            service: None,
        })
    }

    fn service(&self, namespace: &str, name: &str) -> Result<Target, Error> {
        match self.services.iter().find(|service| service.namespace == namespace && service.name == name) {
            Some(service) => self.service_target(service),
            None => Err(Error::NotFound {
                name: format!("{namespace}/{name}"),
                what: "service",
                context: self.context.clone(),
                similar: similar(name, self.services.iter().map(|one| (one.name.as_str(), one.full_name()))),
            }),
        }
    }

    fn service_target(&self, service: &Service) -> Result<Target, Error> {
        let unusable = |reason| Err(Error::Unusable { name: service.full_name(), reason });
        if let Some(host) = &service.external_name {
            return unusable(Reason::ExternalName { host: host.clone() });
        }
        let Some((&address, others)) = service.addresses.split_first() else {
            return unusable(Reason::Headless { endpoints: self.endpoints(service) });
        };
        Ok(Target {
            name: Some(service.full_name()),
            address,
            other_addresses: others.iter().copied().chain(service.fronts()).collect(),
            node: None,
            host_network: false,
            service: Some(service.clone()),
        })
    }

    fn endpoints(&self, service: &Service) -> Vec<String> {
        let name = |address: IpAddr| self.pod(address).unwrap_or_else(|| address.to_string());
        let mut endpoints: Vec<String> = service.endpoints.iter().map(|endpoint| name(endpoint.address)).collect();
        endpoints.sort();
        endpoints.dedup();
        if endpoints.len() > SIMILAR {
            let more = endpoints.len() - SIMILAR;
            endpoints.truncate(SIMILAR);
            endpoints.push(format!("and {more} more"));
        }
        endpoints
    }

    fn ambiguous(&self, name: &str, candidates: Vec<String>) -> Error {
        Error::Ambiguous { name: name.to_owned(), context: self.context.clone(), candidates }
    }

    fn no_such_pod(&self, namespace: &str, name: &str) -> Error {
        let shown = |pod: &Pod| if pod.namespace == namespace { pod.name.clone() } else { pod.full_name() };
        // A namespace that was mistyped: the same pod elsewhere is the nearest of all.
        let candidates = self.pods.iter().map(|pod| (pod.name.as_str(), shown(pod)));
        Error::NotFound {
            name: format!("{namespace}/{name}"),
            what: "pod",
            context: self.context.clone(),
            similar: similar(name, candidates),
        }
    }
}

impl Target {
    /// It is a node, not a pod that uses its network.
    pub fn is_node(&self) -> bool {
        self.node.is_some() && self.name == self.node
    }

    /// Makes `address`, one of those it has, the one to use.
    fn use_address(&mut self, address: IpAddr) {
        if let Some(place) = self.other_addresses.iter().position(|other| *other == address) {
            self.other_addresses[place] = std::mem::replace(&mut self.address, address);
        }
    }
}

/// The names nearest to `wanted`: few letters differ, or one begins with the other (`web` for `web-7d4b9`).
fn similar<'a>(wanted: &str, names: impl Iterator<Item = (&'a str, String)>) -> Vec<String> {
    let allowed = (wanted.chars().count() / 3).clamp(1, 3);
    let mut near: Vec<(usize, String)> = names
        .filter_map(|(name, shown)| {
            if name == wanted {
                return Some((0, shown));
            }
            let prefix = wanted.len() >= 2 && (name.starts_with(wanted) || wanted.starts_with(name) && name.len() >= 2);
            let distance = strsim::damerau_levenshtein(wanted, name);
            (prefix || distance <= allowed).then_some((distance, shown))
        })
        .collect();
    near.sort();
    let mut names: Vec<String> = Vec::new();
    for (_, shown) in near {
        if names.len() < SIMILAR && !names.contains(&shown) {
            names.push(shown);
        }
    }
    names
}
