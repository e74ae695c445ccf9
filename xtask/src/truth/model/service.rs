//! Kubernetes services, as kube-proxy's rules on every node treat them.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

use super::filter::Filter;
use super::packet::{Packet, Protocol};
use super::world::{Host, Role, World};
use crate::lab::profile::{Cni, Rules};
use crate::lab::service::{self, Mode, Service, TrafficPolicy};

/// The services, and which of several endpoints is chosen.
#[derive(Debug, Default)]
pub(super) struct Portals {
    mode: Option<Mode>,
    all: Vec<Portal>,
    pub(super) choice: usize,
}

/// A service with endpoints.
#[derive(Debug)]
struct Portal {
    cluster_ip: Ipv4Addr,
    port: u16,
    protocol: Protocol,
    node_port: Option<u16>,
    /// From outside only endpoints of the same node are for it.
    local: bool,
    target_port: u16,
    /// Node and address.
    endpoints: Vec<(String, Ipv4Addr)>,
}

/// What becomes of a destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turned {
    pub(super) to: Ipv4Addr,
    /// None: it keeps its port.
    pub(super) to_port: Option<u16>,
    /// The node is to take the sender's place.
    pub(super) marked: bool,
}

impl Portals {
    /// How many choices there are at the most.
    pub(super) fn choices(&self) -> usize {
        self.all.iter().map(|portal| portal.endpoints.len()).max().unwrap_or(1)
    }

    /// DNAT at a node.
    pub(super) fn turn(&self, pool: ipnet::Ipv4Net, host: &Host, packet: &Packet) -> Option<Turned> {
        let node = matches!(host.role, Role::Node { .. }) && packet.begins();
        self.all.iter().filter(|_| node).find_map(|portal| portal.turn(pool, host, packet, self.choice))
    }

    /// Whether kube-proxy's own table translates sources before what iptables has: of chains with one priority the newest comes
    /// first (`nf_hook_entries_grow`).
    pub(super) fn before_iptables(&self, cni: &Cni) -> bool {
        self.mode == Some(Mode::Nftables) && !matches!(cni, Cni::Calico { rules: Rules::Nftables, .. })
    }
}

impl Portal {
    fn turn(&self, pool: ipnet::Ipv4Net, host: &Host, packet: &Packet, choice: usize) -> Option<Turned> {
        let of_pod = pool.contains(&packet.src);
        if packet.protocol != self.protocol {
            return None;
        }
        let (here, marked) = match (packet.dst, packet.port) == (self.cluster_ip, self.port) {
            true => (false, !of_pod),
            false if self.node_port != Some(packet.port) || !host.is_local(packet.dst) => return None,
            false if !self.local => (false, true),
            false if of_pod => (false, false),
            false if host.is_local(packet.src) => (false, true),
            false => (true, false),
        };
        let chosen: Vec<_> = self.endpoints.iter().filter(|(node, _)| !here || *node == host.name).collect();
        let (_, to) = *chosen.get(choice % chosen.len().max(1))?;
        Some(Turned { to: *to, to_port: Some(self.target_port), marked: marked || packet.src == *to })
    }
}

impl World {
    pub(super) fn add_services(&mut self, mode: Mode, services: &[Service]) -> Result<()> {
        self.portals.mode = Some(mode);
        for service in services {
            let endpoint = |pod: &String| -> Result<(String, Ipv4Addr)> {
                let host = self.host(pod)?;
                let Role::Pod { node, .. } = &host.role else { anyhow::bail!("{pod} is no pod") };
                Ok((node.clone(), host.link("eth0")?.addresses.first().context("an address")?.addr()))
            };
            let endpoints = service.endpoints.iter().map(endpoint).collect::<Result<Vec<_>>>()?;
            ensure!(service.fronts().next().is_none(), "it knows no load balancers");
            let local = service.external_traffic_policy == TrafficPolicy::Local;
            for host in self.hosts.values_mut().filter(|host| matches!(host.role, Role::Node { .. })) {
                let nobody = endpoints.is_empty() || local && endpoints.iter().all(|(node, _)| *node != host.name);
                let filters = refusals(mode, service, host, &self.cni, endpoints.is_empty(), nobody)?;
                host.filters.extend(filters);
            }
            if !endpoints.is_empty() {
                self.portals.all.push(Portal {
                    cluster_ip: service.cluster_ip,
                    protocol: match service.protocol {
                        service::Protocol::Tcp => Protocol::Tcp,
                        service::Protocol::Udp => Protocol::Udp,
                    },
                    port: service.port,
                    node_port: service.node_port,
                    local,
                    target_port: service.target_port.unwrap_or(service.port),
                    endpoints,
                });
            }
        }
        for host in self.hosts.values_mut().filter(|host| matches!(host.role, Role::Node { .. })) {
            host.filters.extend((mode == Mode::Iptables).then(Filter::kube_invalid).transpose()?);
        }
        Ok(())
    }
}

/// Of its base chains' priorities iptables has had chains before.
fn had_chains(cni: &Cni) -> bool {
    matches!(cni, Cni::Flannel { .. } | Cni::Calico { rules: Rules::Iptables, .. })
}

/// What becomes of packets to a service without endpoints: everywhere, or on this node.
fn refusals(mode: Mode, service: &Service, host: &Host, cni: &Cni, none: bool, nobody: bool) -> Result<Vec<Filter>> {
    let verdict = if none { "REJECT" } else { "DROP" };
    let filter = |point: &str, to: &Ipv4Addr, port: u16, chain: &str| -> Result<Filter> {
        let protocol = service.protocol;
        let filter = Filter::parse(&format!("-I {point} -d {to} -p {protocol} --dport {port} -j {verdict}"))?;
        Ok(match mode {
            Mode::Iptables => {
                let of_chain = host.filters.iter().filter(|filter| filter.chain == chain);
                let position = 1 + of_chain.filter_map(|filter| filter.position).max().unwrap_or(0);
                filter.of_kube_proxy("filter", chain, false, position)
            }
            Mode::Nftables => {
                let chain = if none { "reject-chain" } else { "nodeport-endpoints-check" };
                filter.of_kube_proxy("kube-proxy", chain, had_chains(cni), 1)
            }
        })
    };
    let mut filters = Vec::new();
    if none {
        for point in ["FORWARD", "OUTPUT"] {
            filters.push(filter(point, &service.cluster_ip, service.port, "KUBE-SERVICES")?);
        }
    }
    if let Some(port) = service.node_port.filter(|_| nobody) {
        let addresses = host.links.values().flat_map(|link| &link.addresses);
        for address in addresses {
            filters.push(filter("INPUT", &address.addr(), port, "KUBE-EXTERNAL-SERVICES")?);
        }
    }
    Ok(filters)
}
