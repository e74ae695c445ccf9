//! Calico's nftables mode: one table `ip calico`, with chains named after the table and chain they have in iptables.

use std::fmt::Write;

use super::super::profile::{Node, Pod, Profile};
use super::calico::{ACCEPTED, namespaces};
use super::{Rules, tunnel_masquerade};

pub(super) fn node(profile: &Profile, node: &Node) -> Rules {
    let mut text = "table ip calico {\n".to_owned();
    for set in ["cali40masq-ipam-pools", "cali40all-ipam-pools"] {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  set {set} {{\n    type ipv4_addr\n    flags interval\n    elements = {{ {} }}\n  }}",
            profile.pool
        );
    }
    workloads(&mut text, profile, node);
    hook(&mut text, "raw-PREROUTING", "filter hook prerouting priority raw", &["counter jump raw-cali-PREROUTING"]);
    chain(&mut text, "raw-cali-PREROUTING", &raw_rules());
    hook(&mut text, "nat-POSTROUTING", "nat hook postrouting priority srcnat", &["counter jump nat-cali-POSTROUTING"]);
    chain(&mut text, "nat-cali-POSTROUTING", &postrouting(profile));
    chain(
        &mut text,
        "nat-cali-nat-outgoing",
        &["ip saddr @cali40masq-ipam-pools ip daddr != @cali40all-ipam-pools counter masquerade fully-random"
            .to_owned()],
    );
    hook(
        &mut text,
        "filter-FORWARD",
        "filter hook forward priority filter",
        &[
            "counter jump filter-cali-FORWARD",
            &format!(
                "meta mark & {ACCEPTED} == {ACCEPTED} counter accept comment \"Policy explicitly accepted packet.\""
            ),
        ],
    );
    chain(
        &mut text,
        "filter-cali-FORWARD",
        &[
            "meta mark set mark & 0xfff1ffff".to_owned(),
            "iifname \"cali*\" counter jump filter-cali-from-wl-dispatch".to_owned(),
            "oifname \"cali*\" counter jump filter-cali-to-wl-dispatch".to_owned(),
        ],
    );
    text.push_str("}\n");
    Rules { nft: text, ..Rules::default() }
}

/// Chains per pod and namespace, and the maps that lead to them by interface.
fn workloads(text: &mut String, profile: &Profile, node: &Node) {
    for namespace in namespaces(node) {
        for (name, way) in [("pri", "ingress"), ("pro", "egress")] {
            let accept = format!("counter meta mark set mark | {ACCEPTED} comment \"Profile kns.{namespace} {way}\"");
            let done = format!("meta mark & {ACCEPTED} == {ACCEPTED} counter return");
            chain(text, &format!("filter-cali-{name}-kns.{namespace}"), &[accept, done]);
        }
    }
    for pod in &node.pods {
        let Pod { namespace, .. } = pod;
        let interface = profile.host_interface(pod);
        for (way, list) in [("fw", "pro"), ("tw", "pri")] {
            let name = format!("filter-cali-{way}-{interface}");
            chain(text, &name, &workload(&format!("filter-cali-{list}-kns.{namespace}")));
        }
    }
    for (direction, way, name) in [("from", "fw", "iifname"), ("to", "tw", "oifname")] {
        let dispatch = format!("filter-cali-{direction}-wl-dispatch");
        let element = |pod: &Pod| {
            let interface = profile.host_interface(pod);
            format!("\"{interface}\" : goto filter-cali-{way}-{interface}")
        };
        let elements: Vec<String> = node.pods.iter().map(element).collect();
        let elements = match elements.is_empty() {
            true => String::new(),
            false => format!("    elements = {{ {} }}\n", elements.join(", ")),
        };
        let _ = writeln!(text, "  map {dispatch} {{\n    type ifname : verdict\n{elements}  }}");
        let rules = [format!("{name} vmap @{dispatch}"), "counter drop comment \"Unknown interface\"".to_owned()];
        chain(text, &dispatch, &rules);
    }
}

/// A pod without network policies: what its namespace's profile accepts passes.
fn workload(profile: &str) -> [String; 6] {
    [
        "ct state established,related counter accept".to_owned(),
        "ct state invalid counter drop".to_owned(),
        "counter meta mark set mark & 0xfffeffff".to_owned(),
        format!("counter jump {profile}"),
        format!("meta mark & {ACCEPTED} == {ACCEPTED} counter return comment \"Return if profile accepted\""),
        "counter drop comment \"Drop if no profiles matched\"".to_owned(),
    ]
}

/// Strict reverse path for pods.
fn raw_rules() -> [String; 3] {
    [
        "iifname \"cali*\" counter meta mark set mark | 0x40000".to_owned(),
        "meta mark & 0x40000 == 0x40000 fib saddr . mark . iif oif missing counter drop".to_owned(),
        "counter meta mark set mark & 0xfffbffff".to_owned(),
    ]
}

fn postrouting(profile: &Profile) -> Vec<String> {
    let mut rules = vec!["counter jump nat-cali-nat-outgoing".to_owned()];
    rules.extend(tunnel_masquerade(profile).map(|tunnel| {
        format!(
            "oifname \"{tunnel}\" fib saddr . oif type != local fib saddr type local counter masquerade fully-random"
        )
    }));
    rules
}

fn hook(text: &mut String, name: &str, hook: &str, rules: &[&str]) {
    let mut lines = vec![format!("type {hook}; policy accept;")];
    lines.extend(rules.iter().map(|rule| (*rule).to_owned()));
    chain(text, name, &lines);
}

fn chain(text: &mut String, name: &str, lines: &[String]) {
    let _ = writeln!(text, "  chain {name} {{");
    for line in lines {
        let _ = writeln!(text, "    {line}");
    }
    let _ = writeln!(text, "  }}");
}
