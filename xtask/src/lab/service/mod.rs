//! Kubernetes services of a lab, as kube-proxy and the API show them. Pure: [`super::plant`] carries it out. IPv4 only.
//!
//! Each entry is one port of a service: those that follow each other and have one name are ports of one service, as kube-proxy
//! has them in its rules, too. The rules are those of Kubernetes 1.33 (`pkg/proxy/iptables`, `pkg/proxy/nftables`),
//! without topology.

use std::fmt::{self, Display};
use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::profile::{self, Cni, Profile};
use super::{LabInfo, LabNode, LabPod};

mod iptables;
mod nftables;
mod objects;

pub(super) use iptables::Restore;
pub(super) use objects::add;

/// How long a client stays with its endpoint, seconds: Kubernetes' default.
const AFFINITY_SECONDS: u32 = 10_800;

/// One port of a service, as scenario files write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its Kubernetes namespace.
    #[serde(default = "profile::default_namespace")]
    pub namespace: String,
    /// Its cluster IP.
    pub cluster_ip: Ipv4Addr,
    /// Its port there.
    pub port: u16,
    /// The port's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// Over what.
    #[serde(default)]
    pub protocol: Protocol,
    /// The endpoints' port; `port`, unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Its port on every node: then the service is of type NodePort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    /// Addresses of a load balancer that leaves its clients' addresses alone: then the service is of type LoadBalancer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// Who may come by the load balancer; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_source_ranges: Vec<Ipv4Net>,
    /// Further addresses, that somebody leads to a node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<Ipv4Addr>,
    /// The node to which what comes from outside for the load balancer's and the further addresses is led, by its short name; the
    /// first, unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_by: Option<String>,
    /// Which endpoints what comes from outside is led to: by a node port, a load balancer or a further address.
    #[serde(default)]
    pub external_traffic_policy: TrafficPolicy,
    /// Whether a client stays with its endpoint.
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    /// Names of the pods behind it.
    pub endpoints: Vec<String>,
    /// Names of pods that it selects, too, and that are not ready: the API shows them, and rules do not lead to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ready: Vec<String>,
}

/// How kube-proxy programs netfilter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Chains `KUBE-*`.
    Iptables,
    /// The table `ip kube-proxy`.
    Nftables,
}

/// Transport protocol, spelt as Kubernetes spells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
}

impl Display for Protocol {
    /// As rules spell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Which endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All. The node takes the client's place.
    #[default]
    Cluster,
    /// Those on the same node, which see the client's address.
    Local,
}

/// Which connections go to one endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    /// Each by itself.
    #[default]
    None,
    /// Those of one address.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

impl Service {
    /// As kube-proxy's comments name it: `default/web`, `default/web:http`.
    fn full_name(&self) -> String {
        let port = self.port_name.as_ref().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}/{}{port}", self.namespace, self.name)
    }

    /// It is a port of the same service.
    pub(crate) fn is_of(&self, other: &Service) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }

    /// What its ports have in common.
    fn without_port(&self) -> Service {
        let (port_name, target_port, node_port) = (None, None, None);
        Service { port: 0, protocol: Protocol::Tcp, port_name, target_port, node_port, ..self.clone() }
    }

    fn target_port(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }

    fn is_local(&self) -> bool {
        self.is_external() && self.external_traffic_policy == TrafficPolicy::Local
    }

    /// It can be reached from outside of the cluster.
    fn is_external(&self) -> bool {
        self.node_port.is_some() || self.fronts().next().is_some()
    }

    /// The addresses by which it is reached from outside.
    pub(crate) fn fronts(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.external_ips.iter().chain(&self.load_balancer_ips).copied()
    }

    /// Not everybody may come by the load balancer.
    fn has_firewall(&self) -> bool {
        !self.load_balancer_ips.is_empty() && !self.load_balancer_source_ranges.is_empty()
    }

    fn is_sticky(&self) -> bool {
        self.session_affinity == SessionAffinity::ClientIp
    }
}

/// What kube-proxy knows.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    services: Vec<Backed<'a>>,
    /// All addresses of pods, as its `--cluster-cidr`.
    pool: Ipv4Net,
    /// Calico keeps its own rules before all others.
    behind_calico: bool,
}

/// A service, with the pods behind it.
#[derive(Debug)]
struct Backed<'a> {
    service: &'a Service,
    endpoints: Vec<&'a LabPod>,
    not_ready: Vec<&'a LabPod>,
}

impl<'a> Cluster<'a> {
    /// These services in `lab`, which was built from that profile.
    ///
    /// # Errors
    /// An endpoint that the lab does not have, or ports of one service that contradict each other.
    pub(super) fn new(lab: &'a LabInfo, profile: &Profile, services: &'a [Service]) -> Result<Cluster<'a>> {
        for ports in services.chunk_by(Service::is_of).filter(|ports| ports.len() > 1) {
            let named =
                ports.iter().all(|port| port.port_name.is_some() && port.without_port() == ports[0].without_port());
            ensure!(
                named,
                "the ports of service {} need a port_name each, and all else in common\nway out: another name for another service",
                ports[0].name
            );
        }
        let pods = |names: &[String]| names.iter().map(|pod| lab.pod(pod)).collect::<Result<Vec<_>>>();
        let backed = services.iter().map(|service| {
            let (mut endpoints, not_ready) = (pods(&service.endpoints)?, pods(&service.not_ready)?);
            // As kube-proxy sorts them: as text.
            endpoints.sort_by_key(|pod| pod.address.to_string());
            Ok(Backed { service, endpoints, not_ready })
        });
        Ok(Cluster {
            services: backed.collect::<Result<_>>()?,
            pool: profile.pool,
            behind_calico: matches!(profile.cni, Cni::Calico { rules: profile::Rules::Iptables, .. }),
        })
    }

    /// Input of `iptables-nft-restore --noflush` for a node.
    pub(super) fn iptables(&self, node: &LabNode) -> Restore {
        iptables::node(self, node)
    }

    /// Input of `nft -f` for a node.
    pub(super) fn nftables(&self, node: &LabNode) -> String {
        nftables::node(self, node)
    }
}

impl Backed<'_> {
    /// The endpoints on a node.
    fn local(&self, node: &LabNode) -> Vec<&LabPod> {
        self.endpoints.iter().copied().filter(|pod| pod.node == node.host).collect()
    }

    /// Where an endpoint is reached: `10.244.1.2:8080`.
    fn target(&self, pod: &LabPod) -> String {
        format!("{}:{}", pod.address, self.service.target_port())
    }
}

/// The first `length` (at most 51) letters of SHA-256 in base32, by which kube-proxy names chains.
fn hash(text: &str, length: usize) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const BITS: usize = 5;
    let digest = Sha256::digest(text);
    let bits: Vec<u8> = digest.iter().flat_map(|byte| (0..8).rev().map(move |bit| (byte >> bit) & 1)).collect();
    let letter = |bits: &[u8]| char::from(LETTERS[bits.iter().fold(0, |number, bit| number * 2 + usize::from(*bit))]);
    bits.chunks(BITS).take(length).map(letter).collect()
}

#[cfg(test)]
mod tests;
