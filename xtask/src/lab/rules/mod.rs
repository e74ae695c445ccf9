//! The netfilter rules and sets of a lab, in the shape in which each CNI programs them.

use std::fmt::{Display, Write};

use serde::Serialize;

use super::profile::{self, Cni, Node, Profile};

mod calico;
mod calico_nft;
mod flannel;
mod kindnet;

/// The words of Calico's rule that ends a tier; `podpath` quotes them.
pub(crate) const END_OF_TIER: &str = "End of tier default. Drop if no policies passed packet";

/// Input for the tools that program netfilter, each left out when empty.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rules {
    /// Of `ipset restore`.
    pub(crate) sets: String,
    /// Of `iptables-restore`.
    pub(crate) iptables: String,
    /// Of `ip6tables-restore`.
    pub(crate) ip6tables: String,
    /// Of `nft -f`.
    pub(crate) nft: String,
}

/// What a node's CNI programs.
pub(crate) fn node(profile: &Profile, node: &Node) -> Rules {
    match &profile.cni {
        Cni::Calico { rules: profile::Rules::Iptables, .. } => calico::node(profile, node),
        Cni::Calico { rules: profile::Rules::Nftables, .. } => calico_nft::node(profile, node),
        Cni::Kindnet => kindnet::node(profile),
        Cni::Flannel { .. } => flannel::node(profile, node),
    }
}

/// The gateway's: the translation that no node can see.
pub(crate) fn gateway(profile: &Profile, outside_interface: &str) -> Rules {
    let masquerade = |subnet: &dyn Display| format!("-A POSTROUTING -s {subnet} -o {outside_interface} -j MASQUERADE");
    let translated = profile.nodes.iter().filter_map(|node| Some((node.address, node.external?)));
    let mut rules: Vec<String> = translated
        .map(|(node, external)| {
            format!("-A POSTROUTING -s {node}/32 -o {outside_interface} -j SNAT --to-source {external}")
        })
        .collect();
    if profile.outside.masquerade {
        rules.extend(profile.subnets().map(|subnet| masquerade(&subnet.subnet)));
    }
    let attached = profile.attached.as_ref().and_then(profile::Attached::way_out);
    rules.extend(attached.map(|(_, net)| masquerade(&net)));
    let rules6 = profile.ipv6.iter().map(|ipv6| masquerade(&ipv6.subnet)).collect::<Vec<_>>();
    Rules { iptables: table("nat", &[], &rules), ip6tables: table("nat", &[], &rules6), ..Rules::default() }
}

/// A table as `iptables-save` writes it; nothing without rules.
fn table(name: &str, chains: &[&str], rules: &[String]) -> String {
    let mut text = String::new();
    if rules.is_empty() {
        return text;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "*{name}");
    for chain in chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for rule in rules {
        let _ = writeln!(text, "{rule}");
    }
    let _ = writeln!(text, "COMMIT");
    text
}

/// The device whose masquerade rule gives the node's own packets the tunnel's address.
fn tunnel_masquerade(profile: &Profile) -> Option<&str> {
    profile.tunnel.as_ref().map(|tunnel| tunnel.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str) -> Rules {
        let profile = Profile::named(name).unwrap();
        node(&profile, &profile.nodes[0])
    }

    fn assert_says(text: &str, line: &str) {
        assert!(text.lines().any(|have| have.trim() == line), "no `{line}` in\n{text}");
    }

    #[test]
    fn the_nodes_own_packets_into_a_tunnel_are_masqueraded() {
        for (profile, device) in [("calico-ipip", "tunl0"), ("calico-vxlan", "vxlan.calico")] {
            let rule = format!(
                "-A cali-POSTROUTING -o {device} -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j MASQUERADE --random-fully"
            );
            assert_says(&rules(profile).iptables, &rule);
        }
        assert!(!rules("kind-calico").iptables.contains("--limit-iface-out"));
    }

    #[test]
    fn vxlan_packets_are_not_tracked() {
        let rules = rules("calico-vxlan").iptables;
        assert_says(&rules, "-A cali-PREROUTING -p udp -m udp --dport 4789 -j NOTRACK");
        assert_says(&rules, "-A cali-OUTPUT -p udp -m udp --dport 4789 -j NOTRACK");
        assert!(!self::rules("calico-ipip").iptables.contains("NOTRACK"));
    }

    #[test]
    fn only_a_dual_stack_cluster_has_ipv6_rules() {
        assert_eq!(rules("kind-calico").ip6tables, "");
        let dual = rules("calico-dual");
        assert!(dual.sets.contains("create cali60masq-ipam-pools hash:net family inet6"));
        assert!(dual.ip6tables.contains("--match-set cali60masq-ipam-pools src"));
    }

    #[test]
    fn nftables_mode_has_no_iptables_rules() {
        let Rules { sets, iptables, ip6tables, nft } = rules("calico-nft");
        assert_eq!((sets.as_str(), iptables.as_str(), ip6tables.as_str()), ("", "", ""));
        assert!(nft.starts_with("table ip calico {"));
    }

    #[test]
    fn flannel_and_kindnet_have_their_chains() {
        let flannel = rules("flannel").iptables;
        assert_says(&flannel, "-A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT");
        let kindnet = rules("kindnet").iptables;
        assert_says(
            &kindnet,
            "-A KIND-MASQ-AGENT -d 10.244.0.0/16 -m comment --comment \"kind-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN",
        );
    }
}
