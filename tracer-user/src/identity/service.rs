//! Services: an address that stands for others.

use std::net::IpAddr;

use ipnet::IpNet;

/// A Service, and its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ClusterIPs; none of a headless one.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub balancers: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Who may come by the load balancer; empty: all.
    pub source_ranges: Vec<IpNet>,
    /// Of an ExternalName: the host name that DNS answers with.
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// `externalTrafficPolicy: Local`: what comes from outside is sent to endpoints on the node that it came to, or to none.
    pub local_only: bool,
    /// Who may answer for it.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty where it is the only one.
    pub name: String,
    /// IP protocol number: 6, 17, 132.
    pub protocol: u8,
    /// The number.
    pub port: u16,
    /// The same on every node.
    pub node_port: Option<u16>,
}

/// Who may answer for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Name of the node it lives on.
    pub node: Option<String>,
    /// kube-proxy sends it new connections.
    pub ready: bool,
    /// Names of the service's ports, and the port where each ends.
    pub ports: Vec<(String, u16)>,
}

impl Service {
    /// As it can be typed: `namespace/svc/name`.
    pub fn full_name(&self) -> String {
        format!("{}/svc/{}", self.namespace, self.name)
    }

    /// The addresses by which it is shown to the outside.
    pub fn fronts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.balancers.iter().chain(&self.external_ips).copied()
    }

    /// What comes from `source` by the load balancer's address `front` is let in, as far as kube-proxy has to say.
    pub fn lets_in(&self, source: IpAddr, front: IpAddr) -> bool {
        let ranges = &self.source_ranges;
        ranges.is_empty() || !self.balancers.contains(&front) || ranges.iter().any(|range| range.contains(&source))
    }

    /// Those that get new connections. Where none is ready kube-proxy takes none, whatever else is listed.
    pub fn ready(&self) -> impl Iterator<Item = &ServiceEndpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.ready)
    }

    /// Where connections to a port end: numbers, each once.
    pub fn target_ports(&self, port: &Port) -> Vec<u16> {
        let named = self.endpoints.iter().flat_map(|endpoint| &endpoint.ports).filter(|(name, _)| *name == port.name);
        let mut ports: Vec<u16> = named.map(|(_, number)| *number).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

impl Port {
    /// `80/TCP (http)`, as kubectl writes it.
    pub fn shown(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" ({})", self.name) };
        format!("{}/{}{name}", self.port, self.protocol_name())
    }

    /// `TCP`
    pub fn protocol_name(&self) -> &'static str {
        match self.protocol {
            6 => "TCP",
            17 => "UDP",
            132 => "SCTP",
            _ => "?",
        }
    }
}

/// IP protocol number of Kubernetes' word for it; TCP is the default.
pub(super) fn protocol(word: Option<&str>) -> u8 {
    match word {
        None | Some("TCP") => 6,
        Some("UDP") => 17,
        Some("SCTP") => 132,
        Some(_) => 0,
    }
}
