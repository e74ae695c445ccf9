//! kube-proxy's iptables mode.

use std::fmt::Write;

use super::{AFFINITY_SECONDS, Backed, Cluster, Service, hash};
use crate::lab::{LabNode, LabPod};

/// The bit by which kube-proxy remembers that a packet is to be masqueraded.
const MASQUERADE: &str = "0x4000";

/// Letters of a hash in a chain's name.
const HASH: usize = 16;

/// Input of `iptables-nft-restore --noflush`.
#[derive(Debug)]
pub(crate) struct Restore {
    /// Makes the chains and rules.
    pub(crate) add: String,
    /// Takes them out.
    pub(crate) remove: String,
}

/// What is in one table.
struct Table {
    name: &'static str,
    chains: Vec<String>,
    /// Base chain, matches and target of the rules that lead into the chains, in the order in which they are inserted: the last is
    /// the first that a packet meets.
    jumps: Vec<(&'static str, String)>,
    rules: Vec<String>,
}

pub(super) fn node(cluster: &Cluster, node: &LabNode) -> Restore {
    let tables = [filter(cluster, node), nat(cluster, node)];
    Restore {
        add: tables.iter().map(|table| table.add(cluster.behind_calico)).collect(),
        remove: tables.iter().map(Table::remove).collect(),
    }
}

impl Table {
    fn new(name: &'static str, chains: &[&str], jumps: &[(&'static str, &str, &str, &str)]) -> Table {
        let jump = |(base, matched, comment, chain): &(&'static str, &str, &str, &str)| {
            (*base, format!("{matched}{} -j {chain}", self::comment(comment)))
        };
        Table {
            name,
            chains: chains.iter().map(|chain| (*chain).to_owned()).collect(),
            jumps: jumps.iter().map(jump).collect(),
            rules: Vec::new(),
        }
    }

    /// The name of a chain, which is made.
    fn chain(&mut self, name: String) -> String {
        self.chains.push(name.clone());
        name
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.rules.push(format!("-A {chain} {rule}"));
    }

    fn text(&self, lines: impl Iterator<Item = String>) -> String {
        let mut text = format!("*{}\n", self.name);
        // Of a chain that is there, this flushes its rules.
        let chains = self.chains.iter().map(|chain| format!(":{chain} - [0:0]"));
        for line in chains.chain(lines) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
        text.push_str("COMMIT\n");
        text
    }

    fn add(&self, behind_calico: bool) -> String {
        let jumps = self.jumps.iter().map(|(base, rule)| {
            let calicos = behind_calico && ["FORWARD", "POSTROUTING"].contains(base);
            format!("-I {base} {} {rule}", if calicos { 2 } else { 1 })
        });
        self.text(self.rules.iter().cloned().chain(jumps))
    }

    fn remove(&self) -> String {
        let jumps = self.jumps.iter().map(|(base, rule)| format!("-D {base} {rule}"));
        self.text(jumps.chain(self.chains.iter().map(|chain| format!("-X {chain}"))))
    }
}

fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

fn filter(cluster: &Cluster, node: &LabNode) -> Table {
    const NEW: &str = "-m conntrack --ctstate NEW ";
    const EXTERNAL: &str = "kubernetes externally-visible service portals";
    const PORTALS: &str = "kubernetes service portals";
    const BALANCER: &str = "kubernetes load balancer firewall";
    let chains = ["KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL"];
    let jumps = [
        ("INPUT", NEW, EXTERNAL, "KUBE-EXTERNAL-SERVICES"),
        ("FORWARD", NEW, EXTERNAL, "KUBE-EXTERNAL-SERVICES"),
        ("INPUT", "", "kubernetes health check service ports", "KUBE-NODEPORTS"),
        ("FORWARD", NEW, PORTALS, "KUBE-SERVICES"),
        ("OUTPUT", NEW, PORTALS, "KUBE-SERVICES"),
        ("FORWARD", "", "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("INPUT", NEW, BALANCER, "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", NEW, BALANCER, "KUBE-PROXY-FIREWALL"),
        ("FORWARD", NEW, BALANCER, "KUBE-PROXY-FIREWALL"),
    ];
    let mut table = Table::new("filter", &chains, &jumps);
    for backed in &cluster.services {
        unreachable(&mut table, backed, node);
    }
    table.rule("KUBE-FORWARD", "-m conntrack --ctstate INVALID -j DROP");
    let marked = format!("-m mark --mark {MASQUERADE}/{MASQUERADE} -j ACCEPT");
    table.rule("KUBE-FORWARD", &format!("{} {marked}", comment("kubernetes forwarding rules")));
    let known = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    table.rule("KUBE-FORWARD", &format!("{} {known}", comment("kubernetes forwarding conntrack rule")));
    table
}

/// What becomes of packets to a service that has nobody for them.
fn unreachable(table: &mut Table, backed: &Backed, node: &LabNode) {
    let Backed { service, endpoints, .. } = backed;
    let (name, protocol) = (service.full_name(), service.protocol);
    let (lacks, target) = match endpoints.is_empty() {
        true => ("endpoints", "REJECT"),
        false => ("local endpoints", "DROP"),
    };
    let comment = comment(&format!("{name} has no {lacks}"));
    if endpoints.is_empty() {
        let matched = format!("-m {protocol} -p {protocol} -d {} --dport {}", service.cluster_ip, service.port);
        table.rule("KUBE-SERVICES", &format!("{comment} {matched} -j {target}"));
    }
    let nobody = endpoints.is_empty() || service.is_local() && backed.local(node).is_empty();
    for front in service.fronts().filter(|_| nobody) {
        let matched = format!("-m {protocol} -p {protocol} -d {front} --dport {}", service.port);
        table.rule("KUBE-EXTERNAL-SERVICES", &format!("{comment} {matched} -j {target}"));
    }
    for balancer in service.load_balancer_ips.iter().filter(|_| service.has_firewall() && !endpoints.is_empty()) {
        let comment = self::comment(&format!("{name} traffic not accepted by {}", firewall_chain(service)));
        let matched = format!("-m {protocol} -p {protocol} -d {balancer} --dport {}", service.port);
        table.rule("KUBE-PROXY-FIREWALL", &format!("{comment} {matched} -j DROP"));
    }
    if let (Some(port), true) = (service.node_port, nobody) {
        let matched = format!("-m addrtype --dst-type LOCAL -m {protocol} -p {protocol} --dport {port}");
        table.rule("KUBE-EXTERNAL-SERVICES", &format!("{comment} {matched} -j {target}"));
    }
}

fn nat(cluster: &Cluster, node: &LabNode) -> Table {
    const PORTALS: &str = "kubernetes service portals";
    let chains = ["KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];
    let jumps = [
        ("OUTPUT", "", PORTALS, "KUBE-SERVICES"),
        ("PREROUTING", "", PORTALS, "KUBE-SERVICES"),
        ("POSTROUTING", "", "kubernetes postrouting rules", "KUBE-POSTROUTING"),
    ];
    let mut table = Table::new("nat", &chains, &jumps);
    table.rule("KUBE-POSTROUTING", &format!("-m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN"));
    table.rule("KUBE-POSTROUTING", &format!("-j MARK --xor-mark {MASQUERADE}"));
    let snat = comment("kubernetes service traffic requiring SNAT");
    table.rule("KUBE-POSTROUTING", &format!("{snat} -j MASQUERADE --random-fully"));
    table.rule("KUBE-MARK-MASQ", &format!("-j MARK --or-mark {MASQUERADE}"));
    for backed in cluster.services.iter().filter(|backed| !backed.endpoints.is_empty()) {
        service(&mut table, cluster, backed, node);
    }
    let last = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
    table.rule("KUBE-SERVICES", &format!("{last} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"));
    table
}

/// A service with endpoints.
fn service(table: &mut Table, cluster: &Cluster, backed: &Backed, node: &LabNode) {
    let service = backed.service;
    let (name, protocol) = (service.full_name(), service.protocol);
    let hash = hash(&format!("{name}{protocol}"), HASH);
    let chain = table.chain(format!("KUBE-SVC-{hash}"));
    let portal = format!(
        "{} -m {protocol} -p {protocol} -d {} --dport {}",
        comment(&format!("{name} cluster IP")),
        service.cluster_ip,
        service.port
    );
    table.rule("KUBE-SERVICES", &format!("{portal} -j {chain}"));
    table.rule(&chain, &format!("{portal} ! -s {} -j KUBE-MARK-MASQ", cluster.pool));
    balance(table, backed, &chain, &backed.endpoints);
    if service.is_external() {
        let external = table.chain(format!("KUBE-EXT-{hash}"));
        fronts(table, service, node, &external);
        if let Some(port) = service.node_port {
            let matched = format!("-m {protocol} -p {protocol} --dport {port}");
            table.rule("KUBE-NODEPORTS", &format!("{} {matched} -j {external}", comment(&name)));
        }
        let local = backed.local(node);
        match service.is_local() {
            true => {
                let comment = |what: &str| comment(&format!("{what} traffic for {name} external destinations"));
                table.rule(&external, &format!("{} -s {} -j {chain}", comment("pod"), cluster.pool));
                let own = "-m addrtype --src-type LOCAL";
                table.rule(&external, &format!("{} {own} -j KUBE-MARK-MASQ", comment("masquerade LOCAL")));
                table.rule(&external, &format!("{} {own} -j {chain}", comment("route LOCAL")));
                if !local.is_empty() {
                    let chain = table.chain(format!("KUBE-SVL-{hash}"));
                    table.rule(&external, &format!("-j {chain}"));
                    balance(table, backed, &chain, &local);
                }
            }
            false => {
                let comment = comment(&format!("masquerade traffic for {name} external destinations"));
                table.rule(&external, &format!("{comment} -j KUBE-MARK-MASQ"));
                table.rule(&external, &format!("-j {chain}"));
            }
        }
    }
    for pod in &backed.endpoints {
        endpoint(table, backed, pod);
    }
}

fn firewall_chain(service: &Service) -> String {
    format!("KUBE-FW-{}", hash(&format!("{}{}", service.full_name(), service.protocol), HASH))
}

/// What comes by further addresses and by the load balancer; by that only who may.
fn fronts(table: &mut Table, service: &Service, node: &LabNode, external: &str) {
    let (name, protocol) = (service.full_name(), service.protocol);
    let firewall = service.has_firewall().then(|| table.chain(firewall_chain(service)));
    let balanced = firewall.as_deref().unwrap_or(external);
    let fronts = service.external_ips.iter().map(|front| (front, "external IP", external));
    for (front, what, chain) in
        fronts.chain(service.load_balancer_ips.iter().map(|ip| (ip, "loadbalancer IP", balanced)))
    {
        let matched = format!("-m {protocol} -p {protocol} -d {front} --dport {}", service.port);
        table.rule("KUBE-SERVICES", &format!("{} {matched} -j {chain}", comment(&format!("{name} {what}"))));
    }
    let Some(firewall) = firewall else { return };
    let balancer = comment(&format!("{name} loadbalancer IP"));
    let ranges = &service.load_balancer_source_ranges;
    // The node itself comes with the load balancer's address as its own.
    let own = service.load_balancer_ips.iter().filter(|_| ranges.iter().any(|range| range.contains(&node.address)));
    for source in ranges.iter().map(ToString::to_string).chain(own.map(ToString::to_string)) {
        table.rule(&firewall, &format!("{balancer} -s {source} -j {external}"));
    }
    let rest = comment(&format!("other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL"));
    table.rule(&firewall, &rest);
}

fn endpoint_chain(backed: &Backed, pod: &LabPod) -> String {
    let text = format!("{}{}{}", backed.service.full_name(), backed.service.protocol, backed.target(pod));
    format!("KUBE-SEP-{}", hash(&text, HASH))
}

/// Chooses one of the endpoints.
fn balance(table: &mut Table, backed: &Backed, chain: &str, endpoints: &[&LabPod]) {
    let comment = |pod| comment(&format!("{} -> {}", backed.service.full_name(), backed.target(pod)));
    if backed.service.is_sticky() {
        for pod in endpoints {
            let endpoint = endpoint_chain(backed, pod);
            let seen = format!("-m recent --name {endpoint} --rcheck --seconds {AFFINITY_SECONDS} --reap");
            table.rule(chain, &format!("{} {seen} -j {endpoint}", comment(pod)));
        }
    }
    for (pod, left) in endpoints.iter().zip((1..=endpoints.len()).rev()) {
        let chance = match left {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        table.rule(chain, &format!("{}{chance} -j {}", comment(pod), endpoint_chain(backed, pod)));
    }
}

fn endpoint(table: &mut Table, backed: &Backed, pod: &LabPod) {
    let (protocol, comment) = (backed.service.protocol, comment(&backed.service.full_name()));
    let chain = table.chain(endpoint_chain(backed, pod));
    table.rule(&chain, &format!("{comment} -s {} -j KUBE-MARK-MASQ", pod.address));
    let remember = match backed.service.is_sticky() {
        true => format!(" -m recent --name {chain} --set"),
        false => String::new(),
    };
    let target = backed.target(pod);
    table.rule(&chain, &format!("{comment}{remember} -m {protocol} -p {protocol} -j DNAT --to-destination {target}"));
}
