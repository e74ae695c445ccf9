//! A trace to a service: which port, and what its packets look like beyond the NAT.

use std::net::IpAddr;

use super::{error::Error, traffic::Traffic};
use crate::{
    identity::{Port, Service, ServiceEndpoint},
    path::model::{AskedService, LocalEndpoints},
};

/// What follows from the destination being a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Front {
    /// What is sent.
    pub(super) traffic: Traffic,
    /// Where it ends.
    pub(super) behind: Behind,
    /// What was chosen for the reader.
    pub(super) note: Option<String>,
}

/// What stands behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// The port where connections end, if it is the same at all endpoints.
    pub(super) target_port: Option<u16>,
    /// A node is asked, by a node port.
    pub(super) on_node: bool,
    /// Any node may be where it comes in: from outside, by an address that is no node's.
    pub(super) anywhere: bool,
    /// The node where it comes in puts an address of its own in the source's place.
    pub(super) masquerades: bool,
    /// Such addresses, as far as they are known: not those of tunnels.
    pub(super) through: Vec<IpAddr>,
    /// Who may answer: address, port, node.
    pub(super) endpoints: Vec<(IpAddr, Option<u16>, Option<String>)>,
    /// Of a service that keeps to the node where it comes in: the nodes of its ready endpoints, one for each.
    pub(super) local_nodes: Option<Vec<String>>,
    /// The service.
    pub(super) asked: AskedService,
}

/// Chooses the port, where only one can be meant. `from_outside`: it is asked from outside of the cluster, by an address that it
/// has for that, and may come in at nodes with these addresses.
///
/// # Errors
/// The service has no such port, or several and none was named.
pub(super) fn front(service: &Service, asked: Traffic, from_outside: Option<&[IpAddr]>) -> Result<Front, Error> {
    let mut note = None;
    let probed = |port: &&Port| matches!(port.protocol, 6 | 17);
    let port = match asked {
        Traffic::Tcp(number) => service.ports.iter().find(|port| (port.protocol, port.port) == (6, number)),
        Traffic::Udp(number) => service.ports.iter().find(|port| (port.protocol, port.port) == (17, number)),
        Traffic::Echo => {
            let mut ports = service.ports.iter().filter(probed);
            let only = ports.next().filter(|_| ports.next().is_none());
            note = only.map(|port| {
                format!("a service answers no pings: {} is its only port, and is what is probed", port.shown())
            });
            only
        }
    };
    let Some(port) = port else {
        let known: Vec<String> = service.ports.iter().filter(probed).map(Port::shown).collect();
        return Err(Error::ServicePort { service: service.full_name(), asked: asked.option(), known });
    };
    let traffic = if port.protocol == 17 { Traffic::Udp(port.port) } else { Traffic::Tcp(port.port) };
    let mut behind = behind(service, port, None);
    if let Some(nodes) = from_outside {
        behind.anywhere = true;
        match service.local_only {
            true => behind.local_nodes = Some(service.ready().filter_map(|endpoint| endpoint.node.clone()).collect()),
            false => (behind.masquerades, behind.through) = (true, nodes.to_vec()),
        }
    }
    Ok(Front { traffic, behind, note })
}

impl Behind {
    /// The service, once it is known at which node it came in.
    pub(super) fn came_in(self, node: Option<&str>) -> AskedService {
        let Self { mut asked, local_nodes, .. } = self;
        if let (Some(nodes), Some(node)) = (local_nodes, node) {
            asked.local = Some(local(nodes.iter().map(String::as_str), node));
        }
        asked
    }
}

/// What stands behind a port of a service; `asked`: address and name of a node that is asked by its node port.
pub(super) fn behind(service: &Service, port: &Port, asked: Option<(IpAddr, &str)>) -> Behind {
    let target_ports = service.target_ports(port);
    let ready = || service.ready().filter_map(|endpoint| endpoint.node.as_deref());
    let local = asked.filter(|_| service.local_only).map(|(_, node)| local(ready(), node));
    let told = AskedService {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        endpoints: service.endpoints.len(),
        ready: service.ready().count(),
        addresses: service.endpoints.iter().map(|endpoint| endpoint.address).collect(),
        local,
        not_let_in: Vec::new(),
    };
    let port_of = |endpoint: &ServiceEndpoint| {
        endpoint.ports.iter().find(|(name, _)| *name == port.name).map(|(_, number)| *number)
    };
    let endpoints =
        service.ready().map(|endpoint| (endpoint.address, port_of(endpoint), endpoint.node.clone())).collect();
    let target_port = target_ports.first().copied().filter(|_| target_ports.len() == 1);
    // With the Local policy the client's address stays.
    let masquerades = asked.is_some() && !service.local_only;
    let through = asked.iter().filter(|_| masquerades).map(|(address, _)| *address).collect();
    Behind {
        target_port,
        on_node: asked.is_some(),
        anywhere: false,
        masquerades,
        through,
        endpoints,
        local_nodes: None,
        asked: told,
    }
}

/// `nodes`: those of its ready endpoints.
fn local<'a>(nodes: impl Iterator<Item = &'a str>, node: &str) -> LocalEndpoints {
    let (here, mut elsewhere): (Vec<&str>, Vec<&str>) = nodes.partition(|known| *known == node);
    elsewhere.sort_unstable();
    elsewhere.dedup();
    let elsewhere = elsewhere.into_iter().map(str::to_owned).collect();
    LocalEndpoints { node: node.to_owned(), ready: here.len(), elsewhere }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: &[(&str, u8, u16)], ready: &[bool]) -> Service {
        let port =
            |&(name, protocol, port): &(&str, u8, u16)| Port { name: name.to_owned(), protocol, port, node_port: None };
        let endpoint = |&ready: &bool| ServiceEndpoint {
            address: "10.0.0.1".parse().expect("address"),
            node: None,
            ready,
            ports: ports.iter().map(|(name, _, port)| ((*name).to_owned(), port + 8000)).collect(),
        };
        Service {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            addresses: vec!["10.96.0.7".parse().expect("address")],
            balancers: Vec::new(),
            external_ips: Vec::new(),
            source_ranges: Vec::new(),
            external_name: None,
            local_only: false,
            ports: ports.iter().map(port).collect(),
            endpoints: ready.iter().map(endpoint).collect(),
        }
    }

    fn told(service: &Service, asked: Traffic) -> String {
        match front(service, asked, None) {
            Ok(Front { traffic, behind: Behind { target_port, asked, .. }, note }) => {
                let AskedService { endpoints, ready, .. } = asked;
                format!("{traffic:?} {target_port:?} {ready} of {endpoints} {note:?}")
            }
            Err(error) => super::super::error::lines(&error),
        }
    }

    #[test]
    fn the_only_port_is_meant_and_of_several_one_is_to_be_named() {
        let web = service(&[("http", 6, 80)], &[true, false]);
        let dns = service(&[("dns", 17, 53), ("dns-tcp", 6, 53), ("metrics", 6, 9153)], &[false]);
        let empty = service(&[("", 6, 80)], &[]);
        let sctp = service(&[("", 132, 80)], &[]);
        let all = [
            told(&web, Traffic::Echo),
            told(&web, Traffic::Tcp(80)),
            told(&web, Traffic::Tcp(81)),
            told(&web, Traffic::Udp(80)),
            told(&dns, Traffic::Echo),
            told(&dns, Traffic::Udp(53)),
            told(&empty, Traffic::Tcp(80)),
            told(&sctp, Traffic::Echo),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }
}
