//! kube-proxy's nftables mode: one table `ip kube-proxy`.

use std::fmt::Write;

use super::{AFFINITY_SECONDS, Backed, Cluster, Service, hash};
use crate::lab::{LabNode, LabPod};

/// Letters of a hash in a chain's name.
const HASH: usize = 8;

/// The parts of the table that are written per service.
#[derive(Default)]
struct Parts {
    chains: String,
    affinity_sets: String,
    cluster_ips: Vec<String>,
    service_ips: Vec<String>,
    service_nodeports: Vec<String>,
    no_endpoint_services: Vec<String>,
    no_endpoint_nodeports: Vec<String>,
    firewall_ips: Vec<String>,
}

pub(super) fn node(cluster: &Cluster, node: &LabNode) -> String {
    let mut parts = Parts::default();
    for backed in &cluster.services {
        parts.service(cluster, backed, node);
    }
    let Parts {
        chains,
        affinity_sets,
        cluster_ips,
        service_ips,
        service_nodeports,
        no_endpoint_services,
        no_endpoint_nodeports,
        firewall_ips,
    } = parts;
    let mut text = "table ip kube-proxy {\n  comment \"rules for kube-proxy\"\n".to_owned();
    let by_address = "ipv4_addr . inet_proto . inet_service : verdict";
    let by_port = "inet_proto . inet_service : verdict";
    let collections = [
        ("set cluster-ips", "ipv4_addr", "Active ClusterIPs", cluster_ips),
        ("set nodeport-ips", "ipv4_addr", "IPs that accept NodePort traffic", vec![node.address.to_string()]),
        (
            "map no-endpoint-services",
            by_address,
            "vmap to drop or reject packets to services with no endpoints",
            no_endpoint_services,
        ),
        (
            "map no-endpoint-nodeports",
            by_port,
            "vmap to drop or reject packets to service nodeports with no endpoints",
            no_endpoint_nodeports,
        ),
        ("map firewall-ips", by_address, "destinations that are subject to LoadBalancerSourceRanges", firewall_ips),
        ("map service-ips", by_address, "ClusterIP, ExternalIP and LoadBalancer IP traffic", service_ips),
        ("map service-nodeports", by_port, "NodePort traffic", service_nodeports),
    ];
    for (what, of, comment, elements) in collections {
        let elements = match elements.is_empty() {
            true => String::new(),
            false => format!("    elements = {{ {} }}\n", elements.join(", ")),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {what} {{\n    type {of}\n    comment \"{comment}\"\n{elements}  }}");
    }
    text.push_str(&affinity_sets);
    text.push_str(FRAME);
    text.push_str(&chains);
    text.push_str("}\n");
    text
}

/// What does not depend on services. Addresses are judged before DNAT where the hook's priority is -110.
const FRAME: &str = r#"
  chain filter-prerouting-pre-dnat { type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-output-pre-dnat { type filter hook output priority -110; ct state new jump firewall-check; }
  chain filter-forward {
    type filter hook forward priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-input {
    type filter hook input priority 0
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-output {
    type filter hook output priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain nodeport-endpoints-check {
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }
  chain cluster-ips-check { ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain reject-chain {
    comment "helper for @no-endpoint-services / @no-endpoint-nodeports"
    reject
  }
  chain mark-for-masquerade { mark set mark or 0x4000; }
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
"#;

/// `HASH-default/web/tcp/http`, to which each kind of chain has its prefix.
fn service_name(service: &Service) -> String {
    hashed(&path(service))
}

fn endpoint_name(backed: &Backed, pod: &LabPod) -> String {
    hashed(&format!("{}__{}/{}", path(backed.service), pod.address, backed.service.target_port()))
}

fn path(service: &Service) -> String {
    let Service { namespace, name, protocol, port_name, .. } = service;
    format!("{namespace}/{name}/{protocol}/{}", port_name.as_deref().unwrap_or_default())
}

fn hashed(name: &str) -> String {
    format!("{}-{name}", hash(name, HASH))
}

impl Parts {
    fn chain(&mut self, name: &str, rules: &[String]) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.chains, "  chain {name} {{");
        for rule in rules {
            let _ = writeln!(self.chains, "    {rule}");
        }
        let _ = writeln!(self.chains, "  }}");
    }

    fn service(&mut self, cluster: &Cluster, backed: &Backed, node: &LabNode) {
        let Backed { service, endpoints, .. } = backed;
        let Service { cluster_ip, port, protocol, .. } = service;
        let (name, local) = (service_name(service), backed.local(node));
        let nobody = |verdict: &str| format!("comment \"{}\" : {verdict}", service.full_name());
        let portal = format!("{cluster_ip} . {protocol} . {port}");
        let node_port = service.node_port.map(|port| format!("{protocol} . {port}"));
        let front = |address| format!("{address} . {protocol} . {port}");
        let fronts = service.fronts().map(front);
        if service.has_firewall() {
            self.firewall(service, node);
        }
        // Two services of one address: the set takes it once.
        if !self.cluster_ips.contains(&cluster_ip.to_string()) {
            self.cluster_ips.push(cluster_ip.to_string());
        }
        if endpoints.is_empty() {
            let verdict = nobody("goto reject-chain");
            self.no_endpoint_services.push(format!("{portal} {verdict}"));
            self.no_endpoint_nodeports.extend(node_port.map(|key| format!("{key} {verdict}")));
            self.no_endpoint_services.extend(fronts.map(|key| format!("{key} {verdict}")));
            return;
        }
        self.service_ips.push(format!("{portal} : goto service-{name}"));
        let mut rules = vec![format!("ip daddr {cluster_ip} ip saddr != {} jump mark-for-masquerade", cluster.pool)];
        rules.extend(balance(backed, endpoints));
        self.chain(&format!("service-{name}"), &rules);
        if service.is_external() {
            let (drop, lead) = (nobody("drop"), format!(": goto external-{name}"));
            let fronts: Vec<String> = fronts.collect();
            self.service_ips.extend(fronts.iter().map(|key| format!("{key} {lead}")));
            self.service_nodeports.extend(node_port.iter().map(|key| format!("{key} {lead}")));
            if service.is_local() && local.is_empty() {
                self.no_endpoint_services.extend(fronts.iter().map(|key| format!("{key} {drop}")));
                self.no_endpoint_nodeports.extend(node_port.iter().map(|key| format!("{key} {drop}")));
            }
            self.external(cluster, backed, &local);
        }
        for pod in endpoints {
            self.endpoint(backed, pod);
        }
    }

    /// Who may come by the load balancer.
    fn firewall(&mut self, service: &Service, node: &LabNode) {
        let Service { port, protocol, load_balancer_ips, load_balancer_source_ranges: ranges, .. } = service;
        let chain = format!("firewall-{}", service_name(service));
        let (full_name, fronts) = (service.full_name(), load_balancer_ips.iter());
        let elements =
            fronts.map(|front| format!("{front} . {protocol} . {port} comment \"{full_name}\" : goto {chain}"));
        self.firewall_ips.extend(elements);
        let own = load_balancer_ips.iter().filter(|_| ranges.iter().any(|range| range.contains(&node.address)));
        let sources: Vec<String> = ranges.iter().map(ToString::to_string).chain(own.map(ToString::to_string)).collect();
        self.chain(&chain, &[format!("ip saddr != {{ {} }} drop", sources.join(", "))]);
    }

    /// What comes from outside.
    fn external(&mut self, cluster: &Cluster, backed: &Backed, local: &[&LabPod]) {
        let name = service_name(backed.service);
        let mut rules = Vec::new();
        if backed.service.is_local() {
            rules.extend([
                format!("ip saddr {} goto service-{name} comment \"short-circuit pod traffic\"", cluster.pool),
                "fib saddr type local jump mark-for-masquerade comment \"masquerade local traffic\"".to_owned(),
                format!("fib saddr type local goto service-{name} comment \"short-circuit local traffic\""),
            ]);
            if !local.is_empty() {
                rules.push(format!("goto local-{name}"));
                self.chain(&format!("local-{name}"), &balance(backed, local));
            }
        } else {
            rules.extend(["jump mark-for-masquerade".to_owned(), format!("goto service-{name}")]);
        }
        self.chain(&format!("external-{name}"), &rules);
    }

    fn endpoint(&mut self, backed: &Backed, pod: &LabPod) {
        let name = endpoint_name(backed, pod);
        let mut rules = vec![format!("ip saddr {} jump mark-for-masquerade", pod.address)];
        if backed.service.is_sticky() {
            rules.push(format!("update @affinity-{name} {{ ip saddr }}"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                self.affinity_sets,
                "  set affinity-{name} {{\n    type ipv4_addr\n    flags dynamic,timeout\n    timeout {AFFINITY_SECONDS}s\n  }}"
            );
        }
        rules.push(format!("meta l4proto {} dnat to {}", backed.service.protocol, backed.target(pod)));
        self.chain(&format!("endpoint-{name}"), &rules);
    }
}

/// Chooses one of the endpoints.
fn balance(backed: &Backed, endpoints: &[&LabPod]) -> Vec<String> {
    let names = || endpoints.iter().map(|pod| endpoint_name(backed, pod));
    let mut rules = Vec::new();
    if backed.service.is_sticky() {
        rules.extend(names().map(|name| format!("ip saddr @affinity-{name} goto endpoint-{name}")));
    }
    let choices: Vec<String> =
        names().enumerate().map(|(number, name)| format!("{number} : goto endpoint-{name}")).collect();
    rules.push(format!("numgen random mod {} vmap {{ {} }}", endpoints.len(), choices.join(", ")));
    rules
}
