//! [`NodeFacts`] on the wire: a sequence of facts, because a node's may be larger than a frame.
//!
//! A name or link belongs to the namespace told before it, an address to the link told before it: a namespace of thousands
//! of links, or a link of thousands of addresses (`kube-ipvs0`), then needs no message of its own size.

use super::{
    field::{Fields, Malformed, Net, bytes},
    rules::WireRuleHit,
};
use crate::node::facts::{
    ConntrackDrops, ConntrackEntry, Link, LinkRef, Namespace, Neighbour, NodeFacts, Role, Route, RouteAnswer,
    RouteKind, RouteQuestion, Setting, TunnelSettings,
};

/// One fact. A kind that this program does not know leaves `body` empty.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::session) struct Fact {
    #[prost(oneof = "FactBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    body: Option<FactBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum FactBody {
    #[prost(message, tag = "1")]
    Namespace(WireNamespace),
    #[prost(string, tag = "2")]
    Name(String),
    #[prost(message, tag = "3")]
    Link(WireLink),
    #[prost(message, tag = "4")]
    Address(Net),
    #[prost(message, tag = "5")]
    Route(Box<WireAnswer>),
    #[prost(message, tag = "6")]
    Neighbour(WireNeighbour),
    #[prost(message, tag = "7")]
    Conntrack(WireConntrack),
    #[prost(bool, tag = "8")]
    RoutesChanged(bool),
    #[prost(string, tag = "9")]
    Note(String),
    #[prost(message, tag = "10")]
    Setting(WireSetting),
    #[prost(message, tag = "11")]
    Rule(Box<WireRuleHit>),
    /// A namespace whose rules are complete.
    #[prost(uint32, tag = "12")]
    RulesComplete(u32),
    #[prost(message, tag = "13")]
    ConntrackDrops(WireConntrackDrops),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct WireNamespace {
    #[prost(uint32, tag = "1")]
    inode: u32,
    #[prost(uint32, tag = "2")]
    role: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireSetting {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireLink {
    #[prost(uint32, tag = "1")]
    ifindex: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, optional, tag = "3")]
    kind: Option<String>,
    #[prost(uint32, tag = "4")]
    mtu: u32,
    #[prost(string, tag = "5")]
    mac: String,
    #[prost(bool, tag = "6")]
    up: bool,
    #[prost(uint32, optional, tag = "7")]
    master: Option<u32>,
    #[prost(message, optional, tag = "8")]
    peer: Option<WireLinkRef>,
    #[prost(bool, tag = "9")]
    admin_up: bool,
    #[prost(message, optional, tag = "10")]
    tunnel: Option<WireTunnel>,
    #[prost(message, optional, tag = "11")]
    lower: Option<WireLinkRef>,
    #[prost(uint32, optional, tag = "12")]
    vlan: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    xdp: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireTunnel {
    #[prost(bytes = "vec", optional, tag = "1")]
    local: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    remote: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "3")]
    id: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    port: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct WireLinkRef {
    #[prost(uint32, tag = "1")]
    netns: u32,
    #[prost(uint32, tag = "2")]
    ifindex: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireAnswer {
    #[prost(uint32, tag = "1")]
    netns: u32,
    #[prost(bytes = "vec", tag = "2")]
    src: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    dst: Vec<u8>,
    #[prost(uint32, optional, tag = "4")]
    in_ifindex: Option<u32>,
    #[prost(uint32, tag = "5")]
    mark: u32,
    #[prost(message, optional, tag = "6")]
    route: Option<WireRoute>,
    #[prost(bytes = "vec", optional, tag = "7")]
    icmp_source: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireRoute {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, optional, tag = "2")]
    destination: Option<Net>,
    #[prost(bytes = "vec", optional, tag = "3")]
    gateway: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "4")]
    out_ifindex: Option<u32>,
    #[prost(uint32, tag = "5")]
    table: u32,
    #[prost(string, tag = "6")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireNeighbour {
    #[prost(uint32, tag = "1")]
    netns: u32,
    #[prost(uint32, tag = "2")]
    ifindex: u32,
    #[prost(bytes = "vec", tag = "3")]
    address: Vec<u8>,
    #[prost(string, optional, tag = "4")]
    mac: Option<String>,
    #[prost(string, tag = "5")]
    state: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireConntrack {
    #[prost(uint32, tag = "1")]
    netns: u32,
    #[prost(uint32, tag = "2")]
    protocol: u32,
    #[prost(message, optional, tag = "3")]
    original: Option<WireTuple>,
    #[prost(message, optional, tag = "4")]
    reply: Option<WireTuple>,
    #[prost(uint32, tag = "5")]
    status: u32,
    #[prost(uint32, tag = "6")]
    timeout_s: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct WireConntrackDrops {
    #[prost(uint32, tag = "1")]
    netns: u32,
    #[prost(uint64, tag = "2")]
    dropped: u64,
    #[prost(uint64, tag = "3")]
    insert_failed: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireTuple {
    #[prost(bytes = "vec", tag = "1")]
    src: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    dst: Vec<u8>,
    #[prost(uint32, tag = "3")]
    src_port: u32,
    #[prost(uint32, tag = "4")]
    dst_port: u32,
}

type Ends = (std::net::IpAddr, std::net::IpAddr, u16, u16);

/// All facts, in the order in which [`Collected`] wants them.
pub(in crate::session) fn facts(node: &NodeFacts) -> Vec<Fact> {
    let NodeFacts {
        namespaces,
        routes,
        neighbours,
        conntrack,
        rules,
        rules_complete,
        conntrack_drops,
        routes_changed,
        notes,
    } = node;
    let mut bodies = Vec::new();
    for Namespace { inode, role, names, links, settings } in namespaces {
        let role = match role {
            Role::Node => 1,
            Role::Pod => 2,
        };
        bodies.push(FactBody::Namespace(WireNamespace { inode: *inode, role }));
        bodies.extend(names.iter().cloned().map(FactBody::Name));
        bodies.extend(settings.iter().map(|setting| FactBody::Setting(setting.into())));
        for link in links {
            bodies.push(FactBody::Link(link.into()));
            bodies.extend(link.addresses.iter().map(|net| FactBody::Address((*net).into())));
        }
    }
    bodies.extend(routes.iter().map(|answer| FactBody::Route(Box::new(answer.into()))));
    bodies.extend(neighbours.iter().map(|neighbour| FactBody::Neighbour(neighbour.into())));
    bodies.extend(conntrack.iter().map(|entry| FactBody::Conntrack(entry.into())));
    bodies.extend(rules.iter().map(|hit| FactBody::Rule(Box::new(hit.into()))));
    bodies.extend(rules_complete.iter().copied().map(FactBody::RulesComplete));
    bodies.extend(conntrack_drops.iter().map(|ConntrackDrops { netns, dropped, insert_failed }| {
        let (netns, dropped, insert_failed) = (*netns, *dropped, *insert_failed);
        FactBody::ConntrackDrops(WireConntrackDrops { netns, dropped, insert_failed })
    }));
    bodies.push(FactBody::RoutesChanged(*routes_changed));
    bodies.extend(notes.iter().cloned().map(FactBody::Note));
    bodies.into_iter().map(|body| Fact { body: Some(body) }).collect()
}

/// Facts as they arrive.
#[derive(Debug, Default)]
pub(in crate::session) struct Collected {
    /// What was told so far.
    pub(in crate::session) facts: NodeFacts,
    /// Facts of a kind that this program does not know.
    pub(in crate::session) unknown: u64,
    /// Index of the namespace that names and links belong to.
    current: usize,
}

impl Collected {
    /// Adds the next one.
    ///
    /// # Errors
    /// A fact that does not decode, or that belongs to something not told before.
    pub(in crate::session) fn add(&mut self, fact: Fact) -> Result<(), Malformed> {
        let Some(body) = fact.body else {
            self.unknown += 1;
            return Ok(());
        };
        match body {
            FactBody::Namespace(WireNamespace { inode, role }) => {
                let role = match role {
                    1 => Role::Node,
                    2 => Role::Pod,
                    other => return Err(Fields("facts.namespace").unknown("role", other)),
                };
                let namespace = Namespace { inode, role, names: Vec::new(), links: Vec::new(), settings: Vec::new() };
                let namespaces = &mut self.facts.namespaces;
                self.current = namespaces.iter().position(|known| known.inode == inode).unwrap_or(namespaces.len());
                match namespaces.get_mut(self.current) {
                    Some(known) => *known = namespace,
                    None => namespaces.push(namespace),
                }
            }
            FactBody::Name(name) => self.namespace("name")?.names.push(name),
            FactBody::Setting(WireSetting { name, value }) => {
                self.namespace("setting")?.settings.push(Setting { name, value });
            }
            FactBody::Link(link) => self.namespace("link")?.links.push(link.try_into()?),
            FactBody::Address(net) => {
                let net = Fields("facts.address").net("address", Some(net))?;
                let link = self.namespace("address")?.links.last_mut();
                link.ok_or(Malformed::Order { part: "address", whole: "link" })?.addresses.push(net);
            }
            FactBody::Route(answer) => self.facts.routes.push((*answer).try_into()?),
            FactBody::Neighbour(neighbour) => self.facts.neighbours.push(neighbour.try_into()?),
            FactBody::Conntrack(entry) => self.facts.conntrack.push(entry.try_into()?),
            FactBody::Rule(hit) => self.facts.rules.push((*hit).try_into()?),
            FactBody::RulesComplete(netns) => self.facts.rules_complete.push(netns),
            FactBody::ConntrackDrops(WireConntrackDrops { netns, dropped, insert_failed }) => {
                self.facts.conntrack_drops.push(ConntrackDrops { netns, dropped, insert_failed });
            }
            FactBody::RoutesChanged(changed) => self.facts.routes_changed = changed,
            // Told early and in the end, but one note.
            FactBody::Note(note) if self.facts.notes.contains(&note) => {}
            FactBody::Note(note) => self.facts.notes.push(note),
        }
        Ok(())
    }

    fn namespace(&mut self, part: &'static str) -> Result<&mut Namespace, Malformed> {
        self.facts.namespaces.get_mut(self.current).ok_or(Malformed::Order { part, whole: "namespace" })
    }
}

impl From<&Link> for WireLink {
    fn from(link: &Link) -> Self {
        // The addresses follow as facts of their own.
        let Link { ifindex, name, kind, mtu, mac, up, admin_up, master, peer, lower, vlan, addresses: _, tunnel, xdp } =
            link.clone();
        let [peer, lower] =
            [peer, lower].map(|link| link.map(|LinkRef { netns, ifindex }| WireLinkRef { netns, ifindex }));
        let (tunnel, vlan) = (tunnel.map(Into::into), vlan.map(Into::into));
        Self { ifindex, name, kind, mtu, mac, up, master, peer, admin_up, tunnel, lower, vlan, xdp }
    }
}

impl TryFrom<WireLink> for Link {
    type Error = Malformed;

    fn try_from(link: WireLink) -> Result<Self, Malformed> {
        let WireLink { ifindex, name, kind, mtu, mac, up, master, peer, admin_up, tunnel, lower, vlan, xdp } = link;
        let [peer, lower] =
            [peer, lower].map(|link| link.map(|WireLinkRef { netns, ifindex }| LinkRef { netns, ifindex }));
        let tunnel = tunnel.map(TryInto::try_into).transpose()?;
        let vlan = vlan.map(|value| Fields("link").narrow("VLAN", value)).transpose()?;
        let addresses = Vec::new();
        Ok(Self { ifindex, name, kind, mtu, mac, up, admin_up, master, peer, lower, vlan, addresses, tunnel, xdp })
    }
}

impl From<TunnelSettings> for WireTunnel {
    fn from(tunnel: TunnelSettings) -> Self {
        let TunnelSettings { local, remote, id, port } = tunnel;
        Self { local: local.map(bytes), remote: remote.map(bytes), id, port: port.map(Into::into) }
    }
}

impl TryFrom<WireTunnel> for TunnelSettings {
    type Error = Malformed;

    fn try_from(tunnel: WireTunnel) -> Result<Self, Malformed> {
        let fields = Fields("facts.link.tunnel");
        let WireTunnel { local, remote, id, port } = tunnel;
        Ok(Self {
            local: fields.maybe_address("local", local.as_deref())?,
            remote: fields.maybe_address("remote", remote.as_deref())?,
            id,
            port: fields.maybe_narrow("port", port)?,
        })
    }
}

impl From<&Setting> for WireSetting {
    fn from(setting: &Setting) -> Self {
        let Setting { name, value } = setting.clone();
        Self { name, value }
    }
}

impl From<&RouteAnswer> for WireAnswer {
    fn from(answer: &RouteAnswer) -> Self {
        let RouteAnswer { question, route, icmp_source } = answer;
        let RouteQuestion { netns, src, dst, in_ifindex, mark } = *question;
        Self {
            netns,
            src: bytes(src),
            dst: bytes(dst),
            in_ifindex,
            mark,
            route: route.as_ref().map(Into::into),
            icmp_source: icmp_source.map(bytes),
        }
    }
}

impl TryFrom<WireAnswer> for RouteAnswer {
    type Error = Malformed;

    fn try_from(answer: WireAnswer) -> Result<Self, Malformed> {
        let fields = Fields("facts.route");
        let WireAnswer { netns, src, dst, in_ifindex, mark, route, icmp_source } = answer;
        Ok(Self {
            question: RouteQuestion {
                netns,
                src: fields.address("source", &src)?,
                dst: fields.address("destination", &dst)?,
                in_ifindex,
                mark,
            },
            route: route.map(TryInto::try_into).transpose()?,
            icmp_source: fields.maybe_address("ICMP source", icmp_source.as_deref())?,
        })
    }
}

impl From<&Route> for WireRoute {
    fn from(route: &Route) -> Self {
        let Route { kind, destination, gateway, out_ifindex, table, text } = route;
        let kind = match kind {
            RouteKind::Unicast => 1,
            RouteKind::Local => 2,
            RouteKind::Broadcast => 3,
            RouteKind::Blackhole => 4,
            RouteKind::Unreachable => 5,
            RouteKind::Prohibit => 6,
            RouteKind::Other => 7,
        };
        Self {
            kind,
            destination: Some((*destination).into()),
            gateway: gateway.map(bytes),
            out_ifindex: *out_ifindex,
            table: *table,
            text: text.clone(),
        }
    }
}

impl TryFrom<WireRoute> for Route {
    type Error = Malformed;

    fn try_from(route: WireRoute) -> Result<Self, Malformed> {
        let fields = Fields("facts.route");
        let kind = match route.kind {
            0 => return Err(fields.unknown("kind", 0)),
            1 => RouteKind::Unicast,
            2 => RouteKind::Local,
            3 => RouteKind::Broadcast,
            4 => RouteKind::Blackhole,
            5 => RouteKind::Unreachable,
            6 => RouteKind::Prohibit,
            // "Anything else" stays true of what a newer peer may say; `text` has the words.
            _ => RouteKind::Other,
        };
        Ok(Self {
            kind,
            destination: fields.net("prefix", route.destination)?,
            gateway: fields.maybe_address("gateway", route.gateway.as_deref())?,
            out_ifindex: route.out_ifindex,
            table: route.table,
            text: route.text,
        })
    }
}

impl From<&Neighbour> for WireNeighbour {
    fn from(neighbour: &Neighbour) -> Self {
        let Neighbour { netns, ifindex, address, mac, state } = neighbour.clone();
        Self { netns, ifindex, address: bytes(address), mac, state }
    }
}

impl TryFrom<WireNeighbour> for Neighbour {
    type Error = Malformed;

    fn try_from(neighbour: WireNeighbour) -> Result<Self, Malformed> {
        let WireNeighbour { netns, ifindex, address, mac, state } = neighbour;
        let address = Fields("facts.neighbour").address("address", &address)?;
        Ok(Self { netns, ifindex, address, mac, state })
    }
}

impl From<&ConntrackEntry> for WireConntrack {
    fn from(entry: &ConntrackEntry) -> Self {
        let ConntrackEntry { netns, protocol, original, reply, status, timeout_s } = *entry;
        let (original, reply) = (Some(original.into()), Some(reply.into()));
        Self { netns, protocol: protocol.into(), original, reply, status, timeout_s }
    }
}

impl TryFrom<WireConntrack> for ConntrackEntry {
    type Error = Malformed;

    fn try_from(entry: WireConntrack) -> Result<Self, Malformed> {
        let fields = Fields("facts.conntrack");
        let WireConntrack { netns, protocol, original, reply, status, timeout_s } = entry;
        Ok(Self {
            netns,
            protocol: fields.narrow("protocol", protocol)?,
            original: fields.required("original direction", original)?.try_into()?,
            reply: fields.required("reply direction", reply)?.try_into()?,
            status,
            timeout_s,
        })
    }
}

impl From<Ends> for WireTuple {
    fn from((src, dst, src_port, dst_port): Ends) -> Self {
        Self { src: bytes(src), dst: bytes(dst), src_port: src_port.into(), dst_port: dst_port.into() }
    }
}

impl TryFrom<WireTuple> for Ends {
    type Error = Malformed;

    fn try_from(tuple: WireTuple) -> Result<Self, Malformed> {
        let fields = Fields("facts.conntrack");
        Ok((
            fields.address("source", &tuple.src)?,
            fields.address("destination", &tuple.dst)?,
            fields.narrow("source port", tuple.src_port)?,
            fields.narrow("destination port", tuple.dst_port)?,
        ))
    }
}
