//! Calico's iptables mode: input for `iptables-restore`, `ip6tables-restore` and `ipset restore`.

use std::fmt::Display;

use super::super::profile::{Node, Profile, TunnelKind};
use super::{Rules, table, tunnel_masquerade};

/// The mark bit by which Calico remembers that a policy or profile accepted the packet.
pub(super) const ACCEPTED: &str = "0x10000";

/// One address family of a cluster: Calico programs the same for each.
struct Family<'a> {
    /// In the sets' names.
    digit: char,
    /// As ipset calls it.
    name: &'static str,
    pool: &'a dyn Display,
}

impl Family<'_> {
    /// Set of the pools whose addresses are translated on their way out.
    fn masqueraded(&self) -> String {
        format!("cali{}0masq-ipam-pools", self.digit)
    }

    /// Set of all pools: traffic between them stays as it is.
    fn pools(&self) -> String {
        format!("cali{}0all-ipam-pools", self.digit)
    }

    fn sets(&self) -> String {
        let Family { name, pool, .. } = self;
        let set = |set: String| format!("create {set} hash:net family {name} maxelem 1048576\nadd {set} {pool}\n");
        set(self.masqueraded()) + &set(self.pools())
    }
}

pub(super) fn node(profile: &Profile, node: &Node) -> Rules {
    let ipv4 = Family { digit: '4', name: "inet", pool: &profile.pool };
    let ipv6 = profile.ipv6.as_ref().map(|ipv6| Family { digit: '6', name: "inet6", pool: &ipv6.pool });
    let of = |family: &Family| {
        let tunnel = if family.digit == '4' { profile.tunnel.as_ref() } else { None };
        let untracked = tunnel.and_then(|tunnel| match tunnel.kind {
            TunnelKind::Vxlan { port, .. } => Some(port),
            TunnelKind::Ipip | TunnelKind::Wireguard { .. } => None,
        });
        let device = tunnel.and_then(|_| tunnel_masquerade(profile));
        let raw = table("raw", &["cali-PREROUTING", "cali-OUTPUT"], &raw_rules(untracked));
        let nat = table("nat", &["cali-POSTROUTING", "cali-nat-outgoing"], &nat_rules(family, device));
        raw + &nat + &filter(profile, node)
    };
    Rules {
        sets: ipv4.sets() + &ipv6.as_ref().map(Family::sets).unwrap_or_default(),
        iptables: of(&ipv4),
        ip6tables: ipv6.as_ref().map(of).unwrap_or_default(),
        nft: String::new(),
    }
}

/// Namespaces of a node's pods, each once.
pub(super) fn namespaces(node: &Node) -> Vec<&str> {
    let mut namespaces: Vec<&str> = node.pods.iter().map(|pod| pod.namespace.as_str()).collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    namespaces
}

fn filter(profile: &Profile, node: &Node) -> String {
    let interfaces: Vec<String> = node.pods.iter().map(|pod| profile.host_interface(pod)).collect();
    let mut chains: Vec<String> =
        ["cali-FORWARD", "cali-from-wl-dispatch", "cali-to-wl-dispatch"].map(str::to_owned).to_vec();
    let mut rules = forward_rules();
    for (direction, way, port) in [("from", "f", "-i"), ("to", "t", "-o")] {
        for interface in &interfaces {
            rules.push(format!("-A cali-{direction}-wl-dispatch {port} {interface} -g cali-{way}w-{interface}"));
        }
        rules.push(format!("-A cali-{direction}-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP"));
    }
    for namespace in namespaces(node) {
        for (chain, way) in [("cali-pri", "ingress"), ("cali-pro", "egress")] {
            let chain = format!("{chain}-kns.{namespace}");
            rules.push(format!(
                "-A {chain} -m comment --comment \"Profile kns.{namespace} {way}\" -j MARK --set-xmark {ACCEPTED}/{ACCEPTED}"
            ));
            rules.push(format!("-A {chain} -m mark --mark {ACCEPTED}/{ACCEPTED} -j RETURN"));
            chains.push(chain);
        }
    }
    for pod in &node.pods {
        let interface = profile.host_interface(pod);
        for (chain, profile) in [("cali-fw", "cali-pro"), ("cali-tw", "cali-pri")] {
            let chain = format!("{chain}-{interface}");
            let profile = format!("{profile}-kns.{}", pod.namespace);
            rules.extend(workload_rules(&chain, &profile));
            chains.push(chain);
        }
    }
    let chains: Vec<&str> = chains.iter().map(String::as_str).collect();
    table("filter", &chains, &rules)
}

/// Strict reverse path for pods: the answer to a packet must leave by the interface it came in by. VXLAN packets are
/// not tracked, on the UDP port given.
fn raw_rules(untracked: Option<u16>) -> Vec<String> {
    let mut rules: Vec<String> = [
        "-A PREROUTING -j cali-PREROUTING",
        "-A OUTPUT -j cali-OUTPUT",
        "-A cali-PREROUTING -i cali+ -j MARK --set-xmark 0x40000/0x40000",
        "-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --invert --validmark -j DROP",
        "-A cali-PREROUTING -j MARK --set-xmark 0x0/0x40000",
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(port) = untracked {
        for chain in ["cali-PREROUTING", "cali-OUTPUT"] {
            rules.push(format!("-A {chain} -p udp -m udp --dport {port} -j NOTRACK"));
        }
    }
    rules
}

/// `tunnel`: the node's own packets into it take the tunnel's address.
fn nat_rules(family: &Family, tunnel: Option<&str>) -> Vec<String> {
    let mut rules = vec![
        "-A POSTROUTING -j cali-POSTROUTING".to_owned(),
        "-A cali-POSTROUTING -j cali-nat-outgoing".to_owned(),
        format!(
            "-A cali-nat-outgoing -m set --match-set {} src -m set ! --match-set {} dst -j MASQUERADE --random-fully",
            family.masqueraded(),
            family.pools()
        ),
    ];
    rules.extend(tunnel.map(|tunnel| {
        format!(
            "-A cali-POSTROUTING -o {tunnel} -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j MASQUERADE --random-fully"
        )
    }));
    rules
}

fn forward_rules() -> Vec<String> {
    vec![
        "-A FORWARD -j cali-FORWARD".to_owned(),
        format!(
            "-A FORWARD -m comment --comment \"Policy explicitly accepted packet.\" -m mark --mark {ACCEPTED}/{ACCEPTED} -j ACCEPT"
        ),
        "-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000".to_owned(),
        "-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch".to_owned(),
        "-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch".to_owned(),
    ]
}

/// A pod without network policies: what its namespace's profile accepts passes.
fn workload_rules(chain: &str, profile: &str) -> Vec<String> {
    vec![
        format!("-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-A {chain} -m conntrack --ctstate INVALID -j DROP"),
        format!("-A {chain} -j MARK --set-xmark 0x0/{ACCEPTED}"),
        format!("-A {chain} -j {profile}"),
        format!(
            "-A {chain} -m comment --comment \"Return if profile accepted\" -m mark --mark {ACCEPTED}/{ACCEPTED} -j RETURN"
        ),
        format!("-A {chain} -m comment --comment \"Drop if no profiles matched\" -j DROP"),
    ]
}
