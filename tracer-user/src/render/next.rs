//! What to look at next: commands, each with the place to run it.

use super::{failure::unserved, names::Names};
use crate::path::model::{
    Action, AskedService, CulpritRule, Direction, DropCause, DropDetail, Exchange, HAS_XDP, Hop, NamedPolicy, Nat,
    NatSide, OLD_ENTRY, Rejection, Trace,
};

/// As `path/culprit/rules.rs` says it.
const INVALID: &str = "netfilter rule for packets that conntrack calls invalid";

/// Policies that are worth a command each.
const MOST_POLICIES: usize = 3;

/// Where a packet ended, as commands want it.
struct Site<'a> {
    /// `on ip-172-20-50-50`, `in pod default/bb1`.
    on: String,
    hop: &'a Hop,
    /// The interface it came in by or was to leave by.
    dev: &'a str,
    ip: &'static str,
}

/// Commands that tell more.
pub(super) fn commands(trace: &Trace, names: &Names, exchange: &Exchange) -> Vec<String> {
    if let Some(AskedService { namespace, name, not_let_in, .. }) = unserved(trace, exchange) {
        if !not_let_in.is_empty() {
            return vec![format!(
                "kubectl -n {namespace} get service {name} -o jsonpath={{.spec.loadBalancerSourceRanges}}"
            )];
        }
        return vec![
            format!("kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}"),
            format!(
                "kubectl -n {namespace} get service {name} -o wide   # its selector: which pods have these labels?"
            ),
        ];
    }
    if let Some((dnat, nat)) = trace.service.as_ref().and_then(|service| service.stranger(exchange)) {
        return stranger(trace, names, dnat, nat);
    }
    let Some(hop) = exchange.ended_at() else { return without_hop(trace, names, exchange) };
    let on = match &hop.pod {
        Some(pod) => format!("in pod {pod}"),
        None => format!("on {}", names.short(&hop.node)),
    };
    let dev = hop.interface.as_deref().unwrap_or("its interface");
    let site = Site { on, hop, dev, ip: if hop.dst.is_ipv4() { "ip" } else { "ip -6" } };
    match &hop.detail.drop {
        _ if hop.action == Action::Lost => lost(names, &site, exchange),
        Some(drop) => dropped(trace, names, exchange, &site, drop),
        None => counters(&site),
    }
}

/// It was sent to somebody who is no endpoint of the service.
fn stranger(trace: &Trace, names: &Names, dnat: &Hop, nat: &Nat) -> Vec<String> {
    let on = names.short(&dnat.node);
    let protocol = if trace.probe.starts_with("udp") { "udp" } else { "tcp" };
    let (NatSide { src, dst, .. }, to) = (&nat.before, nat.after.dst);
    let entries = format!("-p {protocol} --orig-src {src} --orig-dst {dst} --reply-src {to}");
    let mut commands = Vec::new();
    if dnat.detail.text.is_some() {
        commands.push(format!("on {on}: conntrack -L {entries}"));
        commands.push(format!("on {on}: conntrack -D {entries}   # what is sent next goes by the rules"));
    }
    if dnat.detail.text.as_deref() != Some(OLD_ENTRY) {
        let save = if dst.is_ipv6() { "ip6tables-legacy-save" } else { "iptables-legacy-save" };
        commands.push(format!("on {on}: {save} -t nat | grep -w {to}; nft list ruleset | grep -w {to}"));
        let pods = format!("kubectl -n kube-system get pods -o wide --field-selector spec.nodeName={}", dnat.node);
        commands.push(format!("{pods}   # kube-proxy? its log?"));
    }
    commands
}

/// Its TTL was used up.
fn expired(names: &Names, Site { hop, ip, .. }: &Site<'_>, exchange: &Exchange) -> Vec<String> {
    if let Some(hops) = exchange.routing_loop() {
        let routes = |routed: &&Hop| {
            let (on, dst) = (names.short(&routed.node), routed.dst);
            format!("on {on}: {ip} route show table all match {dst}; {ip} rule   # which is wrong, and whose is it?")
        };
        return hops.iter().map(routes).collect();
    }
    let sender = exchange.ended_on().and_then(|(path, _)| path.hops.first()).filter(|hop| hop.action == Action::Sent);
    let Some((sender, ttl)) = sender.and_then(|hop| Some((hop, hop.ttl?))) else { return Vec::new() };
    let on = match &sender.pod {
        Some(pod) => format!("in pod {pod}"),
        None => format!("on {}", names.short(&sender.node)),
    };
    let setting = if hop.dst.is_ipv4() { "net.ipv4.ip_default_ttl" } else { "net.ipv6.conf.all.hop_limit" };
    vec![format!("{on}: sysctl {setting}   # it was sent with a TTL of {ttl}, and no node here got it twice: too low?")]
}

fn without_hop(trace: &Trace, names: &Names, exchange: &Exchange) -> Vec<String> {
    match &exchange.rejection {
        Some(Rejection { icmp_type: None, pod: Some(pod), .. }) => {
            vec![format!("in pod {pod}: ss -lnt   # does anything listen there?")]
        }
        Some(Rejection { node: Some(node), .. }) => {
            let (on, dst) = (names.short(node), trace.destination.address);
            vec![format!(
                "on {on}: ip route get {dst}; iptables-legacy-save -c | grep -E 'REJECT|DROP'; nft list ruleset"
            )]
        }
        Some(Rejection { from, .. }) => vec![format!("look at {from}: its routes and its firewall; it is not traced")],
        None if trace.lost_events > 0 => {
            vec!["trace again with fewer probes at a slower pace: events were lost".to_owned()]
        }
        None => vec!["podpath doctor   # can every node on the way see what is needed?".to_owned()],
    }
}

fn lost(names: &Names, site: &Site<'_>, exchange: &Exchange) -> Vec<String> {
    let Site { on, hop, dev, .. } = site;
    if hop.detail.text.as_ref().is_some_and(|text| text.contains("(no SNAT)")) {
        return untranslated(site, exchange);
    }
    if let Some(note) = exchange.notes.iter().find(|note| note.contains(HAS_XDP)) {
        let place = note.split(HAS_XDP).next().unwrap_or_default();
        let (node, interface) = place.rsplit_once(' ').unwrap_or((place, dev));
        let on = names.short(node);
        return vec![format!(
            "on {on}: ip -d link show dev {interface}; ethtool -S {interface} | grep -i xdp; bpftool prog show   # does it count drops?"
        )];
    }
    vec![
        format!("{on}: ip neigh show {} dev {dev}; ip -s link show dev {dev}", next_hop(exchange, hop)),
        format!("on the other side: tcpdump -ni {dev} host {}   # does it arrive there at all?", hop.dst),
        "between them: switch port, security group, source/destination check, MTU".to_owned(),
    ]
}

/// It left the cluster with a pod's address: why did no rule translate it?
fn untranslated(site: &Site<'_>, exchange: &Exchange) -> Vec<String> {
    let Site { on, hop, dev, .. } = site;
    let save = if hop.dst.is_ipv6() { "ip6tables-legacy-save" } else { "iptables-legacy-save" };
    let mut commands =
        vec![format!("{on}: {save} -t nat -c | grep -iE 'masq|snat'; nft list ruleset | grep -iE 'masq|snat'")];
    let calico = |hop: &Hop| hop.interface.as_ref().is_some_and(|interface| interface.starts_with("cali"));
    if exchange.request.hops.iter().any(calico) {
        let columns = "NAME:.metadata.name,CIDR:.spec.cidr,NAT:.spec.natOutgoing";
        commands.push(format!("kubectl get ippools.crd.projectcalico.org -o custom-columns={columns}"));
    }
    commands.push(format!("{on}: tcpdump -ni {dev} host {}   # does an answer come back at all?", hop.dst));
    commands
}

/// The neighbour that the lost packet was sent to.
fn next_hop(exchange: &Exchange, lost: &Hop) -> String {
    let route = |hop: &Hop| {
        let here = hop.node == lost.node && hop.interface == lost.interface && hop.action == Action::Routed;
        let route = hop.detail.route.as_deref().filter(|_| here)?;
        let mut words = route.split(' ').skip_while(|word| *word != "via");
        words.nth(1).map(str::to_owned)
    };
    let path = if exchange.failed_direction == Some(Direction::Reply) { &exchange.reply } else { &exchange.request };
    path.hops.iter().rev().find_map(route).unwrap_or_else(|| lost.dst.to_string())
}

fn dropped(trace: &Trace, names: &Names, exchange: &Exchange, site: &Site<'_>, drop: &DropDetail) -> Vec<String> {
    let Site { on, hop, dev, ip } = site;
    let (src, dst) = (hop.src, hop.dst);
    let out = drop.out_interface.as_deref().unwrap_or(dev);
    match drop.cause {
        DropCause::Policy => {
            let mut commands = rule_commands(site, drop);
            commands.extend(policy_commands(drop).unwrap_or_else(|| {
                let pod = drop.why.rsplit(" at ").next().unwrap_or_default();
                let namespace = pod.split_once('/').map_or("-A".to_owned(), |(namespace, _)| format!("-n {namespace}"));
                vec![format!("kubectl {namespace} get networkpolicy   # which of them selects {pod}?")]
            }));
            commands
        }
        DropCause::Netfilter if drop.why == INVALID => {
            let mut commands = rule_commands(site, drop);
            commands.push(format!("{on}: conntrack -L -s {dst}   # does it know the connection?"));
            commands.extend(way_back(names, exchange, hop));
            commands.extend(past_the_nat(names, exchange));
            commands
        }
        DropCause::Netfilter => {
            let mut commands = rule_commands(site, drop);
            let any = || {
                if hop.detail.tunnel.is_some() { Vec::new() } else { vec!["kubectl get networkpolicy -A".to_owned()] }
            };
            commands.extend(policy_commands(drop).unwrap_or_else(any));
            commands
        }
        DropCause::ConntrackFull => vec![
            format!("{on}: conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -rn | head   # who fills it?"),
            format!("{on}: sysctl -w net.netfilter.nf_conntrack_max=...   # of kube-proxy: --conntrack-max-per-core"),
        ],
        DropCause::NatPorts => {
            let protocol = if trace.probe.starts_with("udp") { "udp" } else { "tcp" };
            let mut commands = vec![format!(
                "{on}: conntrack -L -p {protocol} -d {dst} | wc -l   # each holds a port for this destination"
            )];
            commands.extend(rule_commands(site, drop));
            commands.push(
                "then: more ports (--to-ports, Calico's natPortRange) or addresses; if only now and then: --random-fully"
                    .to_owned(),
            );
            commands
        }
        DropCause::Conntrack => vec![format!("{on}: conntrack -S; conntrack -L -d {dst}; dmesg | grep -i conntrack")],
        DropCause::RpFilterRule => {
            let mut commands = rule_commands(site, drop);
            commands.push(format!("{on}: {ip} route get {src}   # is it by {dev}?"));
            commands
        }
        DropCause::RpFilter => {
            // sysctl wants the dot in the name of a VLAN device (`eth0.100`) as a slash.
            let settings =
                format!("sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.{}.rp_filter", dev.replace('.', "/"));
            vec![format!("{on}: {settings}; {ip} route get {src}   # is it by {dev}?")]
        }
        DropCause::NoRoute | DropCause::Blackhole | DropCause::Unreachable | DropCause::Prohibit => vec![
            format!("{on}: {ip} route show table all match {dst}; {ip} rule"),
            format!(
                "kubectl get pods -A -o wide --field-selector status.podIP={dst}   # does a pod have this address?"
            ),
        ],
        DropCause::NotForwarding => {
            let setting = drop.settings.first().map_or("net.ipv4.ip_forward", |s| s.name.as_str());
            vec![format!("{on}: sysctl {setting}; grep -rn forward /etc/sysctl.conf /etc/sysctl.d")]
        }
        DropCause::Neighbour => {
            let next = drop.neighbour.as_deref().and_then(|entry| entry.split(' ').next());
            let next = next.map_or(dst.to_string(), str::to_owned);
            vec![
                format!("{on}: {ip} neigh show {next}; ip -s link show dev {out}"),
                format!("{on}: tcpdump -eni {out} arp or icmp6   # is the question sent, and answered?"),
            ]
        }
        DropCause::TtlExpired => expired(names, site, exchange),
        DropCause::TooBig => too_big(site, out, exchange.rejection.as_ref()),
        DropCause::InterfaceDown | DropCause::NoCarrier => {
            vec![format!("{on}: ip link show dev {out}   # UP? LOWER_UP? then its other end")]
        }
        DropCause::QueueFull => vec![format!("{on}: tc -s qdisc show dev {out}; ip -s -s link show dev {out}")],
        DropCause::PortClosed => vec![format!("{on}: ss -lntup   # does anything listen there?")],
        DropCause::Program if drop.why.starts_with("XDP") => {
            vec![format!("{on}: ip -d link show dev {dev}; bpftool net show; bpftool prog show")]
        }
        DropCause::Program => {
            let filters = format!("tc filter show dev {dev} ingress; tc filter show dev {out} egress");
            vec![format!("{on}: {filters}; bpftool net show")]
        }
        DropCause::Malformed | DropCause::Other | DropCause::Unknown => counters(site),
    }
}

/// What to do where a reply came back past the node that had translated its request.
fn past_the_nat(names: &Names, exchange: &Exchange) -> Option<String> {
    let passed = |node: &str| exchange.reply.hops.iter().any(|hop| *hop.node == *node);
    let nat = exchange.request.hops.iter().find(|hop| hop.action == Action::Dnat && !passed(&hop.node))?;
    let node = names.short(&nat.node);
    Some(format!(
        "on {node}: masquerade what it translates, too, or route the reply over it   # then it undoes its DNAT"
    ))
}

/// Asks the node that sent a reply another way than its request came; None: it took the same way.
fn way_back(names: &Names, exchange: &Exchange, dropped: &Hop) -> Option<String> {
    let passed = exchange.request.hops.iter().any(|hop| hop.node == dropped.node);
    let sender = exchange.reply.hops.first().filter(|_| !passed)?;
    let node = names.short(&sender.node);
    let ip = if dropped.dst.is_ipv4() { "ip" } else { "ip -6" };
    Some(format!("on {node}: {ip} route get {}   # why over {}?", dropped.dst, names.short(&dropped.node)))
}

/// Shows the policies that are known to matter; None: none is.
fn policy_commands(drop: &DropDetail) -> Option<Vec<String>> {
    let known = &drop.policies.as_ref()?.selecting;
    let shown = known.iter().take(MOST_POLICIES).map(NamedPolicy::describe).collect();
    (!known.is_empty()).then_some(shown)
}

fn too_big(site: &Site<'_>, out: &str, answer: Option<&Rejection>) -> Vec<String> {
    let Site { on, hop, ip, .. } = site;
    let (src, dst) = (hop.src, hop.dst);
    let mut commands = vec![format!("{on}: ip link show dev {out}; {ip} route get {dst}")];
    if answer.is_none_or(|answer| !answer.arrived) {
        commands.push(format!("the sender {src} is never told: let ICMP type 3 code 4 (ICMPv6 type 2) pass to it"));
    }
    commands
}

fn counters(site: &Site<'_>) -> Vec<String> {
    let Site { on, dev, .. } = site;
    vec![format!("{on}: ip -s -s link show dev {dev}; nstat -az | grep -iE 'drop|discard|err'")]
}

/// Shows the rules; without one known, all that drop.
fn rule_commands(site: &Site<'_>, drop: &DropDetail) -> Vec<String> {
    let on = &site.on;
    if drop.rules.is_empty() {
        // nft shows what iptables-nft made, too.
        let save = if site.hop.dst.is_ipv6() { "ip6tables-legacy-save" } else { "iptables-legacy-save" };
        return vec![format!("{on}: {save} -c | grep -iE 'drop|reject'; nft list ruleset | grep -iE 'drop|reject'")];
    }
    let mut commands: Vec<String> = Vec::new();
    for rule in &drop.rules {
        let CulpritRule { engine, family, table, chain, .. } = rule;
        let tool = if family == "ip6" { "ip6tables" } else { "iptables" };
        let command = match *engine {
            "nftables" => format!("{on}: nft -a list chain {family} {table} {chain}"),
            // Where both variants are installed, the plain name is either of them.
            "iptables" => format!("{on}: {tool}-legacy -t {table} -vnL {chain} --line-numbers"),
            _ => format!("{on}: {tool}-nft -t {table} -vnL {chain} --line-numbers"),
        };
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    commands
}
