//! What a lab's configuration makes: hosts with links, addresses and routes. Read from the lines that the lab gives to `ip`,
//! and from the faults planted then; never from the kernel.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;

use super::fib::{self, Route};
use super::filter::Filter;
use super::service::Portals;
use crate::lab::plan::{Plan, Sysctl};
use crate::lab::plant::{Echo, Plant, Way};
use crate::lab::profile::{Cni, GATEWAY, INTERNET, Profile, TunnelKind, WIRE};

/// All hosts of a lab but its wire.
#[derive(Debug)]
pub(super) struct World {
    /// By short name.
    pub(super) hosts: BTreeMap<String, Host>,
    pub(super) cni: Cni,
    pub(super) pool: Ipv4Net,
    /// What the gateway makes of a source address; by the node's address.
    pub(super) translated: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// What the wire swallows: the node, which way, whether requests (else replies).
    pub(super) swallowed: Vec<(String, Way, Echo)>,
    pub(super) portals: Portals,
}

/// A network namespace.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Short name.
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) links: BTreeMap<String, Link>,
    pub(super) routes: Vec<Route>,
    pub(super) sysctls: BTreeMap<String, String>,
    /// Hosts beyond a tunnel: by the inner next hop, the outer destination.
    pub(super) beyond: BTreeMap<Ipv4Addr, Ipv4Addr>,
    pub(super) filters: Vec<Filter>,
    /// Answers no ARP.
    pub(super) silent: bool,
    /// What leaves is masqueraded, or translated to another address.
    pub(super) masquerades: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// With Kubernetes' name.
    Node { name: String, block: Ipv4Net },
    /// With its node's short name, and `namespace/name`.
    Pod { node: String, name: String },
    /// Not traced.
    #[default]
    Outside,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) addresses: Vec<Ipv4Net>,
    pub(super) kind: LinkKind,
    /// The bridge that it is a port of.
    pub(super) master: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum LinkKind {
    #[default]
    Loopback,
    /// The other end: host and link.
    Veth(String, String),
    Bridge,
    /// IPIP's next hop is the outer destination; VXLAN's is looked up.
    Ipip(Ipv4Addr),
    Vxlan(Ipv4Addr),
}

impl World {
    pub(super) fn new(profile: &Profile, plants: &[Plant]) -> Result<World> {
        let plan = Plan::new("x", profile);
        let mut world = World {
            hosts: BTreeMap::new(),
            cni: profile.cni.clone(),
            pool: profile.pool,
            translated: BTreeMap::new(),
            swallowed: Vec::new(),
            portals: Portals::default(),
        };
        for (name, role) in roles(profile) {
            world.hosts.insert(name.clone(), Host { name, role, ..Host::default() });
        }
        for line in &plan.links {
            world.veth(line).with_context(|| format!("the model cannot read `{line}`"))?;
        }
        for namespace in &plan.namespaces {
            let name = namespace.name.strip_prefix("x-").context("of this lab")?;
            if name == WIRE {
                continue;
            }
            let host = world.hosts.get_mut(name).with_context(|| format!("no host {name}"))?;
            host.sysctls
                .extend(namespace.sysctls.iter().map(|Sysctl { path, value, .. }| (path.clone(), (*value).to_owned())));
            let tunnel = namespace.tunnel.iter();
            if let Some(tunnel) = &namespace.tunnel {
                host.tunnel(profile, &tunnel.name, &tunnel.bridge, &tunnel.ip)?;
            }
            for line in namespace.ip.iter().chain(tunnel.flat_map(|tunnel| &tunnel.ip)) {
                host.ip(line).with_context(|| format!("the model cannot read `{line}`"))?;
            }
        }
        for node in &profile.nodes {
            world.translated.extend(node.external.map(|external| (node.address, external)));
        }
        world.host_mut(GATEWAY)?.masquerades = profile.outside.masquerade;
        if let Cni::Calico { rules, .. } = profile.cni {
            for node in &profile.nodes {
                let links = node.pods.iter().map(|pod| profile.host_interface(pod));
                let filters =
                    links.flat_map(|link| [Way::From, Way::To].map(|way| Filter::invalid(way, link.clone(), rules)));
                let filters: Vec<Filter> = filters.collect();
                world.host_mut(&node.host)?.filters.extend(filters);
            }
        }
        for plant in plants {
            world.plant(plant).with_context(|| format!("the model cannot plant {plant:?}"))?;
        }
        Ok(world)
    }

    pub(super) fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| format!("the model has no host {name}"))
    }

    fn host_mut(&mut self, name: &str) -> Result<&mut Host> {
        self.hosts.get_mut(name).with_context(|| format!("the model has no host {name}"))
    }

    /// The host that has an address.
    pub(super) fn owner(&self, address: Ipv4Addr) -> Option<&Host> {
        self.hosts.values().find(|host| host.is_local(address))
    }

    /// `link add name N mtu M ... netns x-HOST type veth peer name N mtu M ... netns x-HOST`.
    fn veth(&mut self, line: &str) -> Result<()> {
        let (here, there) = line.split_once(" type veth peer ").context("no veth pair")?;
        let end = |text: &str| -> Result<(String, Link)> {
            let value = |word: &str| {
                let mut words = text.split(' ').skip_while(|found| *found != word);
                words.nth(1).with_context(|| format!("no {word}"))
            };
            let host = value("netns")?.strip_prefix("x-").context("of this lab")?.to_owned();
            let link = Link { name: value("name")?.to_owned(), mtu: value("mtu")?.parse()?, ..Link::default() };
            Ok((host, link))
        };
        let (a, b) = (end(here)?, end(there)?);
        for ((host, link), (peer_host, peer)) in [(&a, &b), (&b, &a)] {
            if host == WIRE {
                continue;
            }
            let kind = LinkKind::Veth(peer_host.clone(), peer.name.clone());
            self.host_mut(host)?.links.insert(link.name.clone(), Link { kind, ..link.clone() });
        }
        Ok(())
    }

    fn plant(&mut self, plant: &Plant) -> Result<()> {
        match plant {
            Plant::Route { at, route } => self.host_mut(at)?.add_route(Route::parse(route)?),
            Plant::NoRoute { at, route } => {
                let (host, to) = (self.host_mut(at)?, fib::prefix(route)?);
                let place = host.routes.iter().position(|route| route.to == to).context("no such route")?;
                host.routes.remove(place);
            }
            Plant::Sysctl { at, name, value } => {
                let path = name.strip_prefix("net.").context("of a namespace")?.replace('.', "/");
                self.host_mut(at)?.sysctls.insert(path, value.clone());
            }
            Plant::LinkDown { at, interface } => {
                let host = self.host_mut(at)?;
                host.link_mut(interface)?.up = false;
                // Next hops of scope NOWHERE stay (`fib_sync_down_dev` in net/ipv4/fib_semantics.c): those of routes of scope host.
                host.routes.retain(|route| route.dev != *interface || route.is_of_host());
            }
            Plant::Mtu { at, interface, mtu } => self.host_mut(at)?.link_mut(interface)?.mtu = *mtu,
            Plant::Unresolved { pod } => self.host_mut(pod)?.silent = true,
            Plant::WireDrop { node, way, icmp } => self.swallowed.push((node.clone(), *way, *icmp)),
            Plant::Rule { at, rule, .. } => self.host_mut(at)?.filters.insert(0, Filter::parse(rule)?),
            Plant::PolicyDrop { pod, way } => {
                let Role::Pod { node, name } = self.host(pod)?.role.clone() else { bail!("{pod} is no pod") };
                let LinkKind::Veth(_, link) = self.host(pod)?.link("eth0")?.kind.clone() else { bail!("no veth") };
                let Cni::Calico { rules, .. } = self.cni else { bail!("policies are Calico's") };
                self.host_mut(&node)?.filters.push(Filter::policy(*way, link, name, rules));
            }
            Plant::Services { mode, services } => self.add_services(*mode, services)?,
            // Nobody accepts there before it; Calico and flannel do.
            Plant::ChainPolicy { at, chain } if matches!(self.cni, Cni::Kindnet) => {
                self.host_mut(at)?.filters.push(Filter::default(chain)?);
            }
            _ => bail!("unknown to it"),
        }
        Ok(())
    }
}

fn roles(profile: &Profile) -> Vec<(String, Role)> {
    let mut roles = vec![(GATEWAY.to_owned(), Role::Outside), (INTERNET.to_owned(), Role::Outside)];
    for node in &profile.nodes {
        roles.push((node.host.clone(), Role::Node { name: node.name.clone(), block: node.block() }));
        for pod in &node.pods {
            let name = format!("{}/{}", pod.namespace, pod.name);
            roles.push((pod.name.clone(), Role::Pod { node: node.host.clone(), name }));
        }
    }
    roles
}

impl Link {
    pub(super) fn is_on_wire(&self) -> bool {
        matches!(&self.kind, LinkKind::Veth(host, _) if host == WIRE)
    }
}

impl Host {
    pub(super) fn link(&self, name: &str) -> Result<&Link> {
        self.links.get(name).with_context(|| format!("the model has no link {name} at {}", self.name))
    }

    fn link_mut(&mut self, name: &str) -> Result<&mut Link> {
        self.links.get_mut(name).with_context(|| format!("no link {name}"))
    }

    pub(super) fn is_local(&self, address: Ipv4Addr) -> bool {
        // An address is the host's, whether its link is up or not.
        self.links.values().flat_map(|link| &link.addresses).any(|own| own.addr() == address)
    }

    pub(super) fn setting(&self, path: &str) -> &str {
        self.sysctls.get(path).map_or("0", String::as_str)
    }

    /// TTL of what it sends itself.
    pub(super) fn default_ttl(&self) -> Result<u8> {
        Ok(self.sysctls.get("ipv4/ip_default_ttl").map_or(Ok(64), |ttl| ttl.parse())?)
    }

    /// The larger of the setting of all links and that of this one, as the kernel takes `rp_filter`.
    pub(super) fn rp_filter(&self, link: &str) -> &str {
        let of = |which: &str| {
            let default = self.sysctls.get("ipv4/conf/default/rp_filter");
            self.sysctls.get(&format!("ipv4/conf/{which}/rp_filter")).or(default).map_or("0", String::as_str)
        };
        of("all").max(of(link))
    }

    /// The source address that the kernel takes for a route without one: the link's, else that of the first other.
    pub(super) fn source(&self, route: &Route) -> Option<Ipv4Addr> {
        let own = self.links.get(&route.dev).and_then(|link| link.addresses.first());
        let first = || self.links.values().find(|link| link.name == self.nic()).and_then(|link| link.addresses.first());
        route.src.or(own.or_else(first).map(Ipv4Net::addr))
    }

    /// The link to the wire, or a pod's only one.
    pub(super) fn nic(&self) -> &str {
        self.links.values().find(|link| link.is_on_wire()).map_or("eth0", |link| link.name.as_str())
    }

    /// Its tunnel's link.
    pub(super) fn tunnel_link(&self) -> Option<&Link> {
        self.links.values().find(|link| matches!(link.kind, LinkKind::Ipip(_) | LinkKind::Vxlan(_)))
    }

    fn add_route(&mut self, route: Route) {
        self.routes.push(route);
    }

    fn tunnel(&mut self, profile: &Profile, name: &str, bridge: &[String], ip: &[String]) -> Result<()> {
        let kind = profile.tunnel.as_ref().context("a tunnel")?.kind;
        let local = profile.nodes.iter().find(|node| node.host == self.name).context("a node")?.address;
        let kind = match kind {
            TunnelKind::Ipip => LinkKind::Ipip(local),
            TunnelKind::Vxlan { .. } => LinkKind::Vxlan(local),
            TunnelKind::Wireguard { .. } => bail!("the model knows no WireGuard"),
        };
        // `fdb add MAC dev D dst ADDRESS ...`, and `neigh add ADDRESS lladdr MAC ...`.
        let macs: BTreeMap<&str, &str> = bridge.iter().filter_map(|line| pair(line, 2, 6)).collect();
        for (address, mac) in
            ip.iter().filter(|line| line.starts_with("neigh add ")).filter_map(|line| pair(line, 2, 4))
        {
            self.beyond.insert(address.parse()?, macs.get(mac).context("no forwarding entry")?.parse()?);
        }
        let link = Link { name: name.to_owned(), mtu: profile.pod_mtu, kind, ..Link::default() };
        self.links.insert(name.to_owned(), link);
        Ok(())
    }

    /// A line of `ip -batch`.
    fn ip(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["link", "set", "lo", "up"] | ["neigh", ..] | ["link", "set", _, "type", ..] => {}
            ["addr", "add", address, rest @ ..] => {
                let dev = *rest
                    .last()
                    .filter(|word| **word != "noprefixroute")
                    .or(rest.get(rest.len() - 2))
                    .context("no dev")?;
                let address = fib::prefix(address)?;
                if dev == "lo" {
                    self.links.entry(dev.to_owned()).or_default().addresses.push(address);
                    return Ok(());
                }
                self.link_mut(dev)?.addresses.push(address);
                if !rest.contains(&"noprefixroute") && address.prefix_len() < 32 {
                    self.add_route(Route::connected(address, dev));
                }
            }
            ["link", "set", dev, "up"] => self.link_mut(dev)?.up = true,
            ["link", "set", dev, "master", bridge] => self.link_mut(dev)?.master = Some((*bridge).to_owned()),
            ["link", "add", name, rest @ ..] if rest.contains(&"bridge") => {
                let mtu = rest.iter().skip_while(|word| **word != "mtu").nth(1).map_or(Ok(1500), |mtu| mtu.parse())?;
                let link = Link { name: (*name).to_owned(), mtu, kind: LinkKind::Bridge, ..Link::default() };
                self.links.insert((*name).to_owned(), link);
            }
            ["route", "add", ..] => self.add_route(Route::parse(line.trim_start_matches("route add "))?),
            _ => bail!("no such line"),
        }
        Ok(())
    }

    /// Links whose other end is down have no carrier.
    pub(super) fn carrier(&self, world: &World, link: &Link) -> bool {
        match &link.kind {
            // A bridge has what one of its ports has.
            LinkKind::Bridge => {
                let mut ports = self.links.values().filter(|port| port.master.as_ref() == Some(&link.name));
                ports.any(|port| port.up && self.carrier(world, port))
            }
            LinkKind::Veth(host, peer) if host != WIRE => {
                world.hosts.get(host).and_then(|host| host.links.get(peer)).is_none_or(|peer| peer.up)
            }
            _ => true,
        }
    }

    /// Whether it is attached to that bridge of a node.
    pub(super) fn is_behind(&self, node: &Host, bridge: &str) -> bool {
        let Some(LinkKind::Veth(host, port)) = self.links.get("eth0").map(|link| &link.kind) else { return false };
        let port = node.links.get(port).filter(|_| *host == node.name);
        port.is_some_and(|port| port.up && port.master.as_deref() == Some(bridge))
    }
}

/// Two words of a line.
fn pair(line: &str, first: usize, second: usize) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split(' ').collect();
    Some((words.get(first)?, words.get(second)?))
}
