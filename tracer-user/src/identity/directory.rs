//! The directory itself: what a file told, indexed by address.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    net::IpAddr,
    path::Path,
};

use super::{
    error::{Error, ParseError},
    limits::MAX_FILE_BYTES,
    objects::{EndpointSliceObject, NodeObject, PodObject, SERVICE_LABEL, ServiceObject},
    policy::{self, Policy},
    read::{self, Objects},
    service::{Port, Service, ServiceEndpoint, protocol},
};
use crate::path::{
    Names, Selecting,
    model::{NamedPolicy, PolicyDirection},
};

/// Pods, nodes and services by name and by address.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// How messages call the place that was looked in: `lab calico-bgp`.
    pub(super) context: String,
    pub(super) pods: Vec<Pod>,
    pub(super) nodes: Vec<Node>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<Policy>,
    /// Namespaces for whose pods policies were asked for, and whether all could be read; of a file that is not known.
    pub(super) policies_asked: HashMap<String, bool>,
    /// Index into `pods`. Never of a host-network pod, never of one that has ended.
    pub(super) pod_by_address: HashMap<IpAddr, usize>,
    /// Index into `nodes`.
    pub(super) node_by_address: HashMap<IpAddr, usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: Option<String>,
    /// The primary address first.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) host_network: bool,
    pub(super) phase: String,
    pub(super) terminating: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) service_account: String,
}

impl Pod {
    /// `namespace/pod`.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its containers have ended for good; the address may be another pod's already.
    pub(super) fn ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Host names other than `name`.
    pub(super) aliases: Vec<String>,
    /// InternalIP first, then ExternalIP.
    pub(super) addresses: Vec<IpAddr>,
}

impl Directory {
    /// Knows nobody: addresses only.
    #[must_use]
    pub fn empty() -> Directory {
        Directory { context: "this trace, which knows no identity file".to_owned(), ..Directory::default() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is larger than [`MAX_FILE_BYTES`], does not parse, or holds no pods.
    pub fn load(path: &Path) -> Result<Directory, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        // One byte more than allowed: also what has no size (a pipe) cannot fill the memory.
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::TooLarge { path: path.to_owned(), bytes: bytes.len() as u64 });
        }
        let origin = path.display().to_string();
        match std::str::from_utf8(&bytes) {
            Ok(text) => Directory::parse(text, &origin),
            Err(source) => Err(Error::Parse { origin, source: ParseError::NotText(source) }),
        }
    }

    /// Reads text. `origin` is how messages call its source.
    ///
    /// # Errors
    /// It does not parse, or holds no pods.
    pub fn parse(text: &str, origin: &str) -> Result<Directory, Error> {
        let Objects { pods, nodes, services, slices, policies, others } = read::read(text, origin)?;
        if pods.is_empty() {
            let known = [
                (nodes.len(), "nodes"),
                (services.len(), "services"),
                (slices.len(), "endpointslices"),
                (policies.len(), "networkpolicies"),
            ];
            let mut found: Vec<String> =
                known.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what}: {count}")).collect();
            if others > 0 {
                found.push(format!("other kinds: {others}"));
            }
            let found = if found.is_empty() { "no Kubernetes objects at all".to_owned() } else { found.join(", ") };
            return Err(Error::NoPods { origin: origin.to_owned(), found });
        }
        Ok(Directory::of(Objects { pods, nodes, services, slices, policies, others }, origin))
    }

    /// Of single objects, as the API server answers them; `origin` is how messages call the cluster. They may be few or none.
    ///
    /// # Errors
    /// One is not what it says it is.
    pub fn of_answers(objects: &[serde_json::Value], origin: &str) -> Result<Directory, Error> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        Ok(Directory::of(read::read(&list.to_string(), origin)?, origin))
    }

    fn of(objects: Objects, origin: &str) -> Directory {
        let Objects { pods, nodes, services, slices, policies, others: _ } = objects;
        let mut directory = Directory {
            context: origin.to_owned(),
            pods: pods.into_iter().map(pod).collect(),
            nodes: nodes.into_iter().map(node).collect(),
            services: services.into_iter().map(service).collect(),
            policies: policies.into_iter().filter_map(|(object, global)| policy::policy(object, global)).collect(),
            ..Directory::default()
        };
        directory.add_endpoints(&slices);
        directory.index();
        directory
    }

    /// How messages call the place that was looked in: `lab calico-bgp`. Without this, the origin given to `parse`.
    #[must_use]
    pub fn with_context(mut self, context: &str) -> Directory {
        context.clone_into(&mut self.context);
        self
    }

    /// Name of the node that has this address, or whose pod has it.
    pub fn node_of(&self, address: IpAddr) -> Option<String> {
        let of_pod = || self.pods[*self.pod_by_address.get(&address)?].node.clone();
        self.node(address).or_else(of_pod)
    }

    /// The service that has this port on every node, by IP protocol number.
    pub fn node_port(&self, protocol: u8, port: u16) -> Option<(&Service, &Port)> {
        let ports = self.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
        ports.into_iter().find(|(_, known)| (known.protocol, known.node_port) == (protocol, Some(port)))
    }

    fn add_endpoints(&mut self, slices: &[EndpointSliceObject]) {
        let by_name: HashMap<(String, String), usize> = self
            .services
            .iter()
            .enumerate()
            .map(|(index, service)| ((service.namespace.clone(), service.name.clone()), index))
            .collect();
        for slice in slices {
            let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL).cloned())
            else {
                continue;
            };
            let key = (namespace_of(slice.metadata.namespace.clone()), service);
            if let Some(&index) = by_name.get(&key) {
                self.services[index].endpoints.extend(endpoints(slice));
            }
        }
    }

    fn index(&mut self) {
        for (index, pod) in self.pods.iter().enumerate() {
            if pod.host_network || pod.ended() {
                continue;
            }
            for &address in &pod.addresses {
                let kept = self.pod_by_address.entry(address).or_insert(index);
                // A pod that is going may still be listed with the address its successor has already got.
                if self.pods[*kept].terminating && !pod.terminating {
                    *kept = index;
                }
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for &address in &node.addresses {
                self.node_by_address.entry(address).or_insert(index);
            }
        }
    }
}

impl Names for Directory {
    fn pod(&self, address: IpAddr) -> Option<String> {
        self.pod_by_address.get(&address).map(|&index| self.pods[index].full_name())
    }

    fn node(&self, address: IpAddr) -> Option<String> {
        self.node_by_address.get(&address).map(|&index| self.nodes[index].name.clone())
    }

    fn policies(&self, pod: &str, direction: PolicyDirection) -> Option<Selecting> {
        self.selecting(pod, direction)
    }

    fn policy_of_chain(&self, chain: &str) -> Option<NamedPolicy> {
        self.owner_of_chain(chain)
    }
}

fn namespace_of(namespace: Option<String>) -> String {
    namespace.unwrap_or_else(|| "default".to_owned())
}

fn parsed<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in texts.into_iter().filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        // Two are usual (one per family). A bound keeps the search above cheap whatever a file says.
        if addresses.len() == 64 {
            break;
        }
    }
    addresses
}

fn pod(object: PodObject) -> Pod {
    let PodObject { metadata, spec, status } = object;
    let others = status.pod_ips.iter().flatten().filter_map(|address| address.ip.as_deref());
    Pod {
        namespace: namespace_of(metadata.namespace),
        name: metadata.name,
        node: spec.node_name.filter(|name| !name.is_empty()),
        addresses: parsed(status.pod_ip.as_deref().into_iter().chain(others)),
        host_network: spec.host_network.unwrap_or(false),
        phase: status.phase.unwrap_or_else(|| "Unknown".to_owned()),
        terminating: metadata.deletion_timestamp.is_some(),
        labels: metadata.labels.unwrap_or_default(),
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
    }
}

fn node(object: NodeObject) -> Node {
    let NodeObject { metadata, status } = object;
    let listed = status.addresses.unwrap_or_default();
    let of =
        |kind: &'static str| listed.iter().filter(move |entry| entry.kind == kind).map(|entry| entry.address.as_str());
    // A Hostname is sometimes an address (kubelet --hostname-override).
    let addresses = parsed(of("InternalIP").chain(of("ExternalIP")).chain(of("Hostname")));
    let aliases = of("Hostname").chain(of("InternalDNS")).chain(of("ExternalDNS"));
    let aliases = aliases.filter(|alias| *alias != metadata.name).map(str::to_owned).collect();
    Node { name: metadata.name, aliases, addresses }
}

fn service(object: ServiceObject) -> Service {
    let ServiceObject { metadata, spec, status } = object;
    let ingress = status.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let others = spec.cluster_ips.iter().flatten().map(String::as_str);
    let ports = spec.ports.unwrap_or_default().into_iter().map(|port| Port {
        name: port.name.unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref()),
        port: port.port,
        node_port: port.node_port.filter(|port| *port != 0),
    });
    Service {
        namespace: namespace_of(metadata.namespace),
        name: metadata.name,
        // A headless service has `None` here, which is no address.
        addresses: parsed(spec.cluster_ip.as_deref().into_iter().chain(others)),
        balancers: parsed(ingress.iter().filter_map(|entry| entry.ip.as_deref())),
        external_ips: parsed(spec.external_ips.iter().flatten().map(String::as_str)),
        // Some write blanks between them (kube-proxy takes them off).
        source_ranges: ranges.filter_map(|range| range.trim().parse().ok()).collect(),
        external_name: spec.external_name,
        ports: ports.collect(),
        local_only: spec.external_traffic_policy.as_deref() == Some("Local"),
        endpoints: Vec::new(),
    }
}

fn endpoints(slice: &EndpointSliceObject) -> impl Iterator<Item = ServiceEndpoint> + '_ {
    let named =
        slice.ports.iter().flatten().filter_map(|port| Some((port.name.clone().unwrap_or_default(), port.port?)));
    let ports: Vec<(String, u16)> = named.collect();
    slice.endpoints.iter().flatten().flat_map(move |endpoint| {
        // The API's documentation: unknown is to be taken for ready.
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        let addresses = endpoint.addresses.iter().flatten().filter_map(|address| address.parse().ok());
        let ports = ports.clone();
        addresses.map(move |address| ServiceEndpoint {
            address,
            node: endpoint.node_name.clone(),
            ready,
            ports: ports.clone(),
        })
    })
}
