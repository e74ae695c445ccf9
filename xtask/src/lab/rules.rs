//! The netfilter rules and sets of a lab, in the shape in which Calico programs them (its iptables mode),
//! as input for `iptables-restore` and `ipset restore`.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::profile::{Node, Profile};

/// Set of the pools whose addresses are translated on their way out.
const MASQUERADED: &str = "cali40masq-ipam-pools";
/// Set of all pools: traffic between them stays as it is.
const POOLS: &str = "cali40all-ipam-pools";

/// The mark bit by which Calico remembers that a policy or profile accepted the packet.
const ACCEPTED: &str = "0x10000";

/// The words of Calico's rule that ends a tier; `podpath` quotes them.
pub(crate) const END_OF_TIER: &str = "End of tier default. Drop if no policies passed packet";

/// Input for `ipset restore` on a node.
pub(crate) fn node_sets(profile: &Profile) -> String {
    let mut text = String::new();
    for set in [MASQUERADED, POOLS] {
        text.push_str(&format!("create {set} hash:net family inet maxelem 1048576\nadd {set} {}\n", profile.pool));
    }
    text
}

/// Input for `iptables-restore` on a node.
pub(crate) fn node_rules(profile: &Profile, node: &Node) -> String {
    let interfaces: Vec<String> = node.pods.iter().map(|pod| pod.host_interface()).collect();
    let mut namespaces: Vec<&str> = node.pods.iter().map(|pod| pod.namespace.as_str()).collect();
    namespaces.sort_unstable();
    namespaces.dedup();

    let mut text = String::new();
    table(&mut text, "raw", &["cali-PREROUTING"], &raw_rules());
    table(&mut text, "nat", &["cali-POSTROUTING", "cali-nat-outgoing"], &nat_rules(profile));

    let mut chains: Vec<String> =
        ["cali-FORWARD", "cali-from-wl-dispatch", "cali-to-wl-dispatch"].map(str::to_owned).to_vec();
    let mut rules = forward_rules();
    for (direction, way, port) in [("from", "f", "-i"), ("to", "t", "-o")] {
        for interface in &interfaces {
            rules.push(format!("-A cali-{direction}-wl-dispatch {port} {interface} -g cali-{way}w-{interface}"));
        }
        rules.push(format!("-A cali-{direction}-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP"));
    }
    for namespace in namespaces {
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
        let interface = pod.host_interface();
        for (chain, profile) in [("cali-fw", "cali-pro"), ("cali-tw", "cali-pri")] {
            let chain = format!("{chain}-{interface}");
            let profile = format!("{profile}-kns.{}", pod.namespace);
            rules.extend(workload_rules(&chain, &profile));
            chains.push(chain);
        }
    }
    let chains: Vec<&str> = chains.iter().map(String::as_str).collect();
    table(&mut text, "filter", &chains, &rules);
    text
}

/// Strict reverse path for pods: the answer to a packet must leave by the interface it came in by.
fn raw_rules() -> Vec<String> {
    vec![
        "-A PREROUTING -j cali-PREROUTING".to_owned(),
        "-A cali-PREROUTING -i cali+ -j MARK --set-xmark 0x40000/0x40000".to_owned(),
        "-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --invert --validmark -j DROP".to_owned(),
        "-A cali-PREROUTING -j MARK --set-xmark 0x0/0x40000".to_owned(),
    ]
}

fn nat_rules(profile: &Profile) -> Vec<String> {
    let mut rules = vec![
        "-A POSTROUTING -j cali-POSTROUTING".to_owned(),
        "-A cali-POSTROUTING -j cali-nat-outgoing".to_owned(),
        format!(
            "-A cali-nat-outgoing -m set --match-set {MASQUERADED} src -m set ! --match-set {POOLS} dst -j MASQUERADE --random-fully"
        ),
    ];
    if let Some(tunnel) = &profile.tunnel {
        rules.push(format!(
            "-A cali-POSTROUTING -o {tunnel} -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j MASQUERADE --random-fully"
        ));
    }
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

/// Input for `iptables-restore` on the gateway: the translation that no node can see.
pub(crate) fn gateway_rules(profile: &Profile, outside_interface: &str) -> String {
    let translate = |node: Ipv4Addr, external: Ipv4Addr| {
        format!("-A POSTROUTING -s {node}/32 -o {outside_interface} -j SNAT --to-source {external}")
    };
    let mut rules: Vec<String> =
        profile.nodes.iter().filter_map(|node| Some(translate(node.address, node.external?))).collect();
    if profile.outside.masquerade {
        rules.push(format!("-A POSTROUTING -s {} -o {outside_interface} -j MASQUERADE", profile.subnet));
    }
    let mut text = String::new();
    table(&mut text, "nat", &[], &rules);
    text
}

fn table(text: &mut String, name: &str, chains: &[&str], rules: &[String]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "*{name}");
    for chain in chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for rule in rules {
        let _ = writeln!(text, "{rule}");
    }
    let _ = writeln!(text, "COMMIT");
}
