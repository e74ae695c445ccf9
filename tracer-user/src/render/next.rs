//! What to look at next: commands, each with the place to run it.

use super::{
    failure::{last_hop, unserved},
    names::Names,
};
use crate::path::model::{
    Action, AskedService, CulpritRule, Direction, DropCause, DropDetail, Exchange, Hop, NamedPolicy, Rejection, Trace,
};

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
    let Some(hop) = last_hop(exchange) else { return without_hop(trace, names, exchange) };
    let on = match &hop.pod {
        Some(pod) => format!("in pod {pod}"),
        None => format!("on {}", names.short(&hop.node)),
    };
    let dev = hop.interface.as_deref().unwrap_or("its interface");
    let site = Site { on, hop, dev, ip: if hop.dst.is_ipv4() { "ip" } else { "ip -6" } };
    match &hop.detail.drop {
        _ if hop.action == Action::Lost => lost(&site, exchange),
        Some(drop) => dropped(&site, drop, exchange.rejection.as_ref()),
        None => counters(&site),
    }
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

fn lost(site: &Site<'_>, exchange: &Exchange) -> Vec<String> {
    let Site { on, hop, dev, .. } = site;
    vec![
        format!("{on}: ip neigh show {} dev {dev}; ip -s link show dev {dev}", next_hop(exchange, hop)),
        format!("on the other side: tcpdump -ni {dev} host {}   # does it arrive there at all?", hop.dst),
        "between them: switch port, security group, source/destination check, MTU".to_owned(),
    ]
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

fn dropped(site: &Site<'_>, drop: &DropDetail, answer: Option<&Rejection>) -> Vec<String> {
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
        DropCause::Netfilter => {
            let mut commands = rule_commands(site, drop);
            commands.extend(policy_commands(drop).unwrap_or_else(|| vec!["kubectl get networkpolicy -A".to_owned()]));
            commands
        }
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
        DropCause::TtlExpired => vec![
            format!("{on}: {ip} route get {dst} from {src} iif {dev}   # does it lead back to where it came from?"),
            "a loop shows the same nodes again and again in this trace; else the sender's TTL is too low".to_owned(),
        ],
        DropCause::TooBig => too_big(site, out, answer),
        DropCause::InterfaceDown | DropCause::NoCarrier => {
            vec![format!("{on}: ip link show dev {out}   # UP? LOWER_UP? then its other end")]
        }
        DropCause::QueueFull => vec![format!("{on}: tc -s qdisc show dev {out}; ip -s -s link show dev {out}")],
        DropCause::PortClosed => vec![format!("{on}: ss -lntup   # does anything listen there?")],
        DropCause::Program => {
            let filters = format!("tc filter show dev {dev} ingress; tc filter show dev {out} egress");
            vec![format!("{on}: {filters}; bpftool net show")]
        }
        DropCause::Malformed | DropCause::Other | DropCause::Unknown => counters(site),
    }
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
