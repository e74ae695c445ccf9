//! Routes as `ip route` prints them (iproute2, `ip/iproute.c`, print_route).

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    fs,
    path::Path,
    sync::OnceLock,
};

use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RoutePreference,
        RouteProtocol, RouteScope, RouteType, RouteVia,
    },
    rule::{RuleAction, RuleMessage},
};

use super::fib::{TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, destination, ip, route_table, rule_priority};

/// Interface names of one namespace by index.
pub(super) type Names = HashMap<u32, String>;

/// What numbers are called on this machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    protocols: BTreeMap<u32, String>,
    tables: BTreeMap<u32, String>,
}

/// Numbers that iproute2 names when it is installed as released.
const PROTOCOLS: [(u32, &str); 22] = [
    (0, "unspec"),
    (1, "redirect"),
    (2, "kernel"),
    (3, "boot"),
    (4, "static"),
    (8, "gated"),
    (9, "ra"),
    (10, "mrt"),
    (11, "zebra"),
    (12, "bird"),
    (13, "dnrouted"),
    (14, "xorp"),
    (15, "ntk"),
    (16, "dhcp"),
    (18, "keepalived"),
    (42, "babel"),
    (186, "bgp"),
    (187, "isis"),
    (188, "ospf"),
    (189, "rip"),
    (99, "openr"),
    (192, "eigrp"),
];
const TABLES: [(u32, &str); 4] =
    [(0, "unspec"), (TABLE_DEFAULT, "default"), (TABLE_MAIN, "main"), (TABLE_LOCAL, "local")];
/// Where iproute2 looks names up, the last word wins.
const FOLDERS: [&str; 3] = ["/usr/share/iproute2", "/usr/lib/iproute2", "/etc/iproute2"];

impl Words {
    /// The names in use on this machine, read once.
    pub(super) fn of_this_machine() -> &'static Self {
        static WORDS: OnceLock<Words> = OnceLock::new();
        WORDS.get_or_init(|| {
            let mut words = Self::built_in();
            for folder in FOLDERS.map(Path::new) {
                overlay(&mut words.protocols, folder, "rt_protos");
                overlay(&mut words.tables, folder, "rt_tables");
            }
            words
        })
    }

    /// The names iproute2 is released with.
    pub(super) fn built_in() -> Self {
        let owned = |(number, name): (u32, &str)| (number, name.to_owned());
        Self { protocols: PROTOCOLS.map(owned).into(), tables: TABLES.map(owned).into() }
    }

    fn protocol(&self, protocol: RouteProtocol) -> String {
        let number = u8::from(protocol).into();
        self.protocols.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }

    fn table(&self, table: u32) -> String {
        self.tables.get(&table).cloned().unwrap_or_else(|| table.to_string())
    }
}

/// Takes over `folder/file` and `folder/file.d/*.conf`, as far as they can be read.
fn overlay(names: &mut BTreeMap<u32, String>, folder: &Path, file: &str) {
    names.extend(fs::read_to_string(folder.join(file)).iter().flat_map(|text| parse_names(text)));
    let Ok(entries) = fs::read_dir(folder.join(format!("{file}.d"))) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "conf"))
    {
        names.extend(fs::read_to_string(path).iter().flat_map(|text| parse_names(text)));
    }
}

/// Lines of a number, decimal or `0x` hexadecimal, and a name; `#` starts a comment.
fn parse_names(text: &str) -> Vec<(u32, String)> {
    let parse = |line: &str| {
        let mut fields = line.split('#').next()?.split_whitespace();
        let number = fields.next()?;
        let number = match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => number.parse().ok()?,
        };
        Some((number, fields.next()?.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// The line that `ip route` prints for `route`. A route with several next hops is kept on one line.
pub(super) fn route_text(route: &RouteMessage, names: &Names, words: &Words) -> String {
    let mut text = Line::default();
    let kind = kind_text(route.header.kind);
    if !kind.is_empty() {
        text.word(kind);
    }
    text.word(prefix_text(route));
    let find = |pick: fn(&RouteAttribute) -> Option<String>| route.attributes.iter().find_map(pick);
    text.pair("from", source_text(route));
    text.pair("nhid", find(|a| if let RouteAttribute::NhId(id) = a { Some(id.to_string()) } else { None }));
    text.pair("via", via_text(&route.attributes));
    let out = route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
    text.pair("dev", out.map(|index| name(names, index)));
    let table = route_table(route);
    text.pair("table", (table != TABLE_MAIN).then(|| words.table(table)));
    let protocol = route.header.protocol;
    text.pair("proto", (protocol != RouteProtocol::Boot).then(|| words.protocol(protocol)));
    text.pair("scope", scope_text(route.header.scope));
    text.pair("src", find(|a| if let RouteAttribute::PrefSource(a) = a { ip(a).map(|a| a.to_string()) } else { None }));
    text.pair("metric", find(|a| if let RouteAttribute::Priority(m) = a { Some(m.to_string()) } else { None }));
    flags(&mut text, route.header.flags);
    cache_text(&mut text, route);
    for attribute in &route.attributes {
        if let RouteAttribute::Metrics(metrics) = attribute {
            metrics.iter().for_each(|metric| metric_text(&mut text, metric));
        }
    }
    text.pair("pref", find(|a| if let RouteAttribute::Preference(p) = a { Some(preference_text(*p)) } else { None }));
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            hops.iter().for_each(|hop| next_hop_text(&mut text, hop, names));
        }
    }
    text.0
}

/// A rule that ended a lookup by itself, the way `ip rule` numbers it.
pub(super) fn rule_text(rule: &RuleMessage) -> String {
    let action = match rule.header.action {
        RuleAction::Blackhole => "blackhole",
        RuleAction::Unreachable => "unreachable",
        RuleAction::Prohibit => "prohibit",
        _ => "rule",
    };
    format!("{action} by rule {}", rule_priority(rule))
}

/// Words with one blank between them.
#[derive(Default)]
struct Line(String);

impl Line {
    fn word(&mut self, word: impl AsRef<str>) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(word.as_ref());
    }

    fn pair(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.word(key);
            self.word(value);
        }
    }
}

fn name(names: &Names, index: u32) -> String {
    names.get(&index).cloned().unwrap_or_else(|| format!("if{index}"))
}

fn kind_text(kind: RouteType) -> String {
    match kind {
        RouteType::Unicast => String::new(),
        RouteType::Local => "local".into(),
        RouteType::Broadcast => "broadcast".into(),
        RouteType::Anycast => "anycast".into(),
        RouteType::Multicast => "multicast".into(),
        RouteType::BlackHole => "blackhole".into(),
        RouteType::Unreachable => "unreachable".into(),
        RouteType::Prohibit => "prohibit".into(),
        RouteType::Throw => "throw".into(),
        RouteType::Nat => "nat".into(),
        other => u8::from(other).to_string(),
    }
}

fn prefix_text(route: &RouteMessage) -> String {
    match destination(route) {
        Some(prefix) if prefix.prefix_len() == 0 => "default".into(),
        Some(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => prefix.addr().to_string(),
        Some(prefix) => prefix.to_string(),
        None => "default".into(),
    }
}

fn source_text(route: &RouteMessage) -> Option<String> {
    let length = route.header.source_prefix_length;
    let host = if route.header.address_family == AddressFamily::Inet { 32 } else { 128 };
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Source(address) if length == host => Some(ip(address)?.to_string()),
        RouteAttribute::Source(address) => Some(format!("{}/{length}", ip(address)?)),
        _ => None,
    })
}

fn via_text(attributes: &[RouteAttribute]) -> Option<String> {
    attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(address) => Some(ip(address)?.to_string()),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(format!("inet {address}")),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(format!("inet6 {address}")),
        _ => None,
    })
}

fn scope_text(scope: RouteScope) -> Option<String> {
    match scope {
        RouteScope::Universe => None,
        RouteScope::Site => Some("site".into()),
        RouteScope::Link => Some("link".into()),
        RouteScope::Host => Some("host".into()),
        RouteScope::NoWhere => Some("nowhere".into()),
        other => Some(u8::from(other).to_string()),
    }
}

fn flags(text: &mut Line, flags: RouteFlags) {
    let words = [
        (RouteFlags::Dead, "dead"),
        (RouteFlags::Onlink, "onlink"),
        (RouteFlags::Pervasive, "pervasive"),
        (RouteFlags::Offload, "offload"),
        (RouteFlags::Trap, "trap"),
        (RouteFlags::Notify, "notify"),
        (RouteFlags::Linkdown, "linkdown"),
        (RouteFlags::Unresolved, "unresolved"),
        (RouteFlags::RtOffload, "rt_offload"),
        (RouteFlags::RtTrap, "rt_trap"),
        (RouteFlags::OffloadFailed, "rt_offload_failed"),
    ];
    for (flag, word) in words {
        if flags.contains(flag) {
            text.word(word);
        }
    }
}

/// IPv6 keeps the error of blackhole and its like beside the route.
fn cache_text(text: &mut Line, route: &RouteMessage) {
    if route.header.address_family != AddressFamily::Inet6 {
        return;
    }
    for attribute in &route.attributes {
        if let RouteAttribute::CacheInfo(cache) = attribute {
            // Both are signed in the kernel (struct rta_cacheinfo); expiry counts ticks of 1/100 s.
            let (expires, error) = (cache.expires.cast_signed(), cache.error.cast_signed());
            text.pair("expires", (expires != 0).then(|| format!("{}sec", expires / 100)));
            text.pair("error", (error != 0).then(|| error.to_string()));
        }
    }
}

fn metric_text(text: &mut Line, metric: &RouteMetric) {
    let (key, value) = match metric {
        RouteMetric::Mtu(value) => ("mtu", value),
        RouteMetric::Window(value) => ("window", value),
        RouteMetric::Advmss(value) => ("advmss", value),
        RouteMetric::Reordering(value) => ("reordering", value),
        RouteMetric::Hoplimit(value) => ("hoplimit", value),
        RouteMetric::InitCwnd(value) => ("initcwnd", value),
        RouteMetric::InitRwnd(value) => ("initrwnd", value),
        RouteMetric::QuickAck(value) => ("quickack", value),
        // TCP's own timers say nothing about the way a packet takes.
        _ => return,
    };
    text.pair(key, Some(value.to_string()));
}

fn preference_text(preference: RoutePreference) -> String {
    match preference {
        RoutePreference::Low => "low".into(),
        RoutePreference::Medium => "medium".into(),
        RoutePreference::High => "high".into(),
        other => u8::from(other).to_string(),
    }
}

fn next_hop_text(text: &mut Line, hop: &RouteNextHop, names: &Names) {
    text.word("nexthop");
    text.pair("via", via_text(&hop.attributes));
    text.pair("dev", Some(name(names, hop.interface_index)));
    let mut weight = String::new();
    // rtnh_hops holds the weight less one.
    let _ = write!(weight, "{}", u32::from(hop.hops) + 1);
    text.pair("weight", Some(weight));
    let words = [
        (RouteNextHopFlags::Dead, "dead"),
        (RouteNextHopFlags::Onlink, "onlink"),
        (RouteNextHopFlags::Pervasive, "pervasive"),
        (RouteNextHopFlags::Linkdown, "linkdown"),
    ];
    for (flag, word) in words {
        if hop.flags.contains(flag) {
            text.word(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use insta::assert_snapshot;

    use super::*;

    fn route(prefix: &str, kind: RouteType, protocol: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let net: ipnet::IpNet = prefix.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.address_family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        route.header.destination_prefix_length = net.prefix_len();
        route.header.kind = kind;
        route.header.protocol = protocol.into();
        route.header.table = 254;
        route.attributes = attributes;
        if net.prefix_len() != 0 {
            route.attributes.push(RouteAttribute::Destination(net.addr().into()));
        }
        route
    }

    fn text(route: &RouteMessage) -> String {
        let names = Names::from([(2, "ens5".to_owned()), (22, "cali98fd8882b62".to_owned())]);
        route_text(route, &names, &Words::built_in())
    }

    fn via(address: &str, out: u32) -> Vec<RouteAttribute> {
        let address: IpAddr = address.parse().unwrap();
        vec![RouteAttribute::Gateway(address.into()), RouteAttribute::Oif(out)]
    }

    #[test]
    fn routes_of_a_calico_node() {
        let block = route("100.115.37.64/26", RouteType::Unicast, 12, via("172.20.50.50", 2));
        assert_snapshot!(text(&block), @"100.115.37.64/26 via 172.20.50.50 dev ens5 proto bird");
        let blackhole = route("100.115.37.64/26", RouteType::BlackHole, 12, vec![]);
        assert_snapshot!(text(&blackhole), @"blackhole 100.115.37.64/26 proto bird");
        let mut pod = route("100.115.37.81/32", RouteType::Unicast, 3, vec![RouteAttribute::Oif(22)]);
        pod.header.scope = RouteScope::Link;
        assert_snapshot!(text(&pod), @"100.115.37.81 dev cali98fd8882b62 scope link");
        let default = route("0.0.0.0/0", RouteType::Unicast, 3, via("169.254.1.1", 2));
        assert_snapshot!(text(&default), @"default via 169.254.1.1 dev ens5");
        let mut kind = route("192.168.121.64/26", RouteType::Unicast, 80, via("172.18.0.2", 9));
        kind.header.flags = RouteFlags::Onlink;
        assert_snapshot!(text(&kind), @"192.168.121.64/26 via 172.18.0.2 dev if9 proto 80 onlink");
    }

    #[test]
    fn other_tables_sources_metrics_and_several_next_hops() {
        let source = "10.0.0.1".parse::<IpAddr>().unwrap();
        let mut local = route("10.0.0.1/32", RouteType::Local, 2, vec![RouteAttribute::Oif(2)]);
        local.header.scope = RouteScope::Host;
        local.attributes.extend([RouteAttribute::Table(255), RouteAttribute::PrefSource(source.into())]);
        assert_snapshot!(text(&local), @"local 10.0.0.1 dev ens5 table local proto kernel scope host src 10.0.0.1");

        let mut metric = route("10.0.0.0/8", RouteType::Unicast, 4, via("10.0.0.254", 2));
        metric.attributes.extend([
            RouteAttribute::Priority(7),
            RouteAttribute::Table(1000),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
        ]);
        assert_snapshot!(text(&metric), @"10.0.0.0/8 via 10.0.0.254 dev ens5 table 1000 proto static metric 7 mtu 1400");

        let hop = |address: &str| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = 2;
            hop.attributes = vec![RouteAttribute::Gateway(address.parse::<IpAddr>().unwrap().into())];
            hop
        };
        let several = vec![RouteAttribute::MultiPath(vec![hop("10.0.0.2"), hop("10.0.0.3")])];
        assert_snapshot!(
            text(&route("10.9.0.0/16", RouteType::Unicast, 12, several)),
            @"10.9.0.0/16 proto bird nexthop via 10.0.0.2 dev ens5 weight 1 nexthop via 10.0.0.3 dev ens5 weight 1"
        );
    }

    #[test]
    fn name_files_have_comments_and_hexadecimal_numbers() {
        let text = "#\n# reserved\n12\tbird # the daemon\n0x50 ours\n\nnonsense\n300 far\n";
        let names = parse_names(text);
        assert_eq!(names, [(12, "bird".to_owned()), (80, "ours".to_owned()), (300, "far".to_owned())]);
    }
}
