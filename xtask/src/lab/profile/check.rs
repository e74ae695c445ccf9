//! What the types of a profile cannot say.

use std::collections::HashSet;

use anyhow::{Result, ensure};

use super::{GATEWAY, INTERNET, Node, Pod, Profile, Stack, Subnet, WIRE};

/// The longest interface name Linux takes (`IFNAMSIZ` less its NUL); a node's wire port is named after it.
const INTERFACE_NAME_MAX: usize = 15;

impl Profile {
    /// Unique hosts, addresses where they belong.
    pub(crate) fn check(&self) -> Result<()> {
        let mut hosts = HashSet::new();
        for host in self.hosts() {
            ensure!(hosts.insert(host), "host `{host}` appears twice");
        }
        for Subnet { subnet, gateway } in self.subnets() {
            ensure!(subnet.contains(&gateway), "gateway {gateway} is not in subnet {subnet}");
        }
        self.check_links()?;
        for node in &self.nodes {
            self.check_node(node)?;
            node.pods.iter().try_for_each(|pod| self.check_pod(node, pod))?;
        }
        Ok(())
    }

    fn check_links(&self) -> Result<()> {
        if let Some(Stack { ports, bond, vlan }) = &self.stack {
            let several = ports.len() > 1;
            ensure!(!ports.is_empty() && several == bond.is_some(), "stack: one port, or several and a bond of them");
            ensure!(vlan.is_some() || bond.is_some(), "stack: neither bond nor VLAN: leave it out");
            let top = vlan.is_none() && bond.as_ref().is_some_and(|bond| bond.name == self.nic);
            ensure!(top || vlan.is_some(), "stack: nic {} is neither the bond nor a VLAN on it", self.nic);
        }
        let pods = |name: &String| self.nodes.iter().any(|node| node.pods.iter().any(|pod| pod.name == *name));
        let stranger = self.attached.iter().flat_map(|attached| attached.addresses.keys()).find(|name| !pods(name));
        ensure!(stranger.is_none(), "attached: no pod {}", stranger.map_or("", String::as_str));
        Ok(())
    }

    fn check_node(&self, node: &Node) -> Result<()> {
        let Node { host, name, address, .. } = node;
        ensure!(
            host.len() <= INTERFACE_NAME_MAX && ![WIRE, GATEWAY, INTERNET].contains(&host.as_str()),
            "host `{host}`: the wire's port cannot be named after it: at most {INTERFACE_NAME_MAX} characters"
        );
        let subnet = self.subnet_of(node).subnet;
        ensure!(subnet.contains(address), "node {name}: address {address} is not in subnet {subnet}");
        let block = node.block();
        ensure!(self.pool.contains(&block), "node {name}: block {block} is not in pool {}", self.pool);
        ensure!(
            subnet == self.subnet || self.tunnel.is_some(),
            "node {name}: in a subnet of its own, and no tunnel leads there"
        );
        let Some(ipv6) = &self.ipv6 else {
            let any = node.address6.is_some() || node.block6.is_some() || node.pod_cidr6.is_some();
            ensure!(!any, "node {name}: it has IPv6 addresses, the cluster has no [ipv6]");
            return Ok(());
        };
        ensure!(
            node.address6.is_some_and(|address| ipv6.subnet.contains(&address)),
            "node {name}: address6 is not in subnet {}",
            ipv6.subnet
        );
        ensure!(
            node.block6.is_some_and(|block| ipv6.pool.contains(&block)) && node.pod_cidr6.is_some(),
            "node {name}: block6 is not in pool {}, or there is no pod_cidr6",
            ipv6.pool
        );
        Ok(())
    }

    fn check_pod(&self, node: &Node, pod: &Pod) -> Result<()> {
        let Pod { name, address, .. } = pod;
        let block = node.block();
        let lender = self.nodes.iter().any(|other| other.host != node.host && other.block().contains(address));
        match pod.borrowed {
            false => {
                ensure!(block.contains(address), "pod {name}: address {address} is not in its node's block {block}")
            }
            true => ensure!(lender, "pod {name}: address {address} is borrowed, but in no other node's block"),
        }
        let there = match (&self.ipv6, node.block6, pod.address6) {
            (None, _, address) => address.is_none(),
            (Some(_), Some(block), Some(address)) => block.contains(&address),
            (Some(_), ..) => false,
        };
        ensure!(there, "pod {name}: no address6 in its node's block6, or one without [ipv6]");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(name: &str, from: &str, to: &str) -> String {
        let text = super::super::text(name).unwrap();
        assert!(text.contains(from), "{name} does not say {from}");
        let table = text.replace(from, to).parse().unwrap();
        format!("{:#}", Profile::from_table(table).unwrap_err())
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        for field in ["nic_mtu", "route_protocol", "masquerade", "host_ifindex", "reach"] {
            let profile = if field == "masquerade" { "kind-calico" } else { "calico-bgp" };
            let error = changed(profile, field, "misspelt");
            assert!(error.contains("misspelt"), "{error}");
        }
    }

    #[test]
    fn an_address_outside_its_block_is_refused() {
        let error = changed("calico-bgp", "100.115.37.81", "100.115.37.181");
        assert_eq!(error, "pod bb1: address 100.115.37.181 is not in its node's block 100.115.37.64/26");
        let error = changed("calico-vms", "10.48.0.80", "10.48.9.80");
        assert!(error.contains("in no other node's block"), "{error}");
    }

    #[test]
    fn a_node_outside_its_subnet_is_refused() {
        let error = changed("calico-bgp", "172.20.58.60", "172.21.58.60");
        assert!(error.contains("address 172.21.58.60 is not in subnet 172.20.32.0/19"), "{error}");
    }
}
