//! Faults of a node's or pod's own: rules, routes, settings, links. Each step is undone by what it was before.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{END_OF_TIER, Planted, Undo, netns, quoted, run, words};
use crate::lab::LabInfo;

/// `ip filter`, `ip filter INPUT`, ...: tables before their chains, of what `nft list chains` prints.
pub(super) fn chains(listed: &str) -> Vec<String> {
    let mut table = String::new();
    let mut found = Vec::new();
    for words in listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        match words.as_slice() {
            ["table", family, name, "{"] => {
                table = format!("{family} {name}");
                found.push(table.clone());
            }
            ["chain", name, "{"] => found.push(format!("{table} {name}")),
            _ => {}
        }
    }
    found
}

/// Does a table or chain, as `nft list` prints it, have rules?
pub(super) fn has_rules(listed: &str) -> bool {
    let frame = |line: &str| ["table ", "chain ", "type ", "}", "#"].iter().any(|start| line.starts_with(start));
    listed.lines().map(str::trim).any(|line| !line.is_empty() && !frame(line))
}

impl Planted {
    pub(super) fn chain_policy(&mut self, namespace: &str, chain: &str) -> Result<()> {
        let rules = netns::inside(namespace, || run("iptables-nft", &["-S", chain], ""))?;
        let before = rules.lines().find_map(|line| line.strip_prefix(&format!("-P {chain} ")));
        let before = before.with_context(|| format!("{chain} has no policy: it is no base chain"))?.to_owned();
        self.iptables(namespace, "iptables-nft", &["-P", chain, "DROP"])?;
        self.undo_by(namespace, "iptables-nft", words(&format!("-P {chain} {before}")));
        Ok(())
    }

    pub(super) fn nft_table(&mut self, namespace: &str, table: &str, content: &str) -> Result<()> {
        netns::inside(namespace, || {
            let tables = run("nft", &["list", "tables"], "")?;
            ensure!(!tables.lines().any(|line| line == format!("table {table}")), "there is a table {table} already");
            run("nft", &["-f", "-"], &format!("table {table} {{\n{content}\n}}\n"))
        })?;
        self.undo_by(namespace, "nft", words(&format!("delete table {table}")));
        Ok(())
    }

    /// The rule that ends a tier, in Calico's nftables mode.
    pub(super) fn policy_drop_nft(&mut self, namespace: &str, chain: &str) -> Result<()> {
        // Behind the same rules as in iptables: the third one is the last before it.
        let rule = format!("insert rule ip calico {chain} index 3 meta mark & 0x20000 == 0 counter drop comment");
        let mut rule = words(&rule);
        rule.push(format!("\"{END_OF_TIER}\""));
        let arguments = ["--echo", "--handle"].into_iter().chain(rule.iter().map(String::as_str)).collect::<Vec<_>>();
        let said = netns::inside(namespace, || run("nft", &arguments, ""))?;
        let handle = said.rsplit_once("# handle ").map(|(_, handle)| handle.trim());
        let handle = handle.with_context(|| format!("nft told no handle of the new rule: `{said}`"))?;
        self.undo_by(namespace, "nft", words(&format!("delete rule ip calico {chain} handle {handle}")));
        Ok(())
    }

    pub(super) fn route(&mut self, namespace: &str, route: &str) -> Result<()> {
        self.ip(namespace, &format!("route add {route}"), Some(&format!("route del {route}")))
    }

    pub(super) fn no_route(&mut self, namespace: &str, prefix: &str) -> Result<()> {
        let found = netns::inside(namespace, || run("ip", &["route", "show", "exact", prefix], ""))?;
        let route = found.lines().next().with_context(|| format!("no route {prefix}"))?.trim();
        self.ip(namespace, &format!("route del {route}"), Some(&format!("route add {route}")))
    }

    pub(super) fn sysctl(&mut self, namespace: &str, name: &str, value: &str) -> Result<()> {
        ensure!(name.starts_with("net."), "{name} is not of a network namespace");
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let before = netns::inside(namespace, || {
            let before = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            fs::write(&path, value).with_context(|| format!("writing {path}"))?;
            Ok(before)
        })?;
        self.undo.push(Undo::Sysctl { namespace: namespace.to_owned(), path, value: before.trim().to_owned() });
        Ok(())
    }

    /// The kernel forgets the routes by an interface that goes down, and its IPv6 addresses but the link-local one, which it
    /// makes anew.
    pub(super) fn link_down(&mut self, namespace: &str, interface: &str) -> Result<()> {
        let list = |words: &str| {
            netns::inside(namespace, || {
                run("ip", &super::borrow(&super::words(&format!("{words} dev {interface}"))), "")
            })
        };
        for family in ["-4", "-6"] {
            let listed = list(&format!("{family} -o route show"))?;
            // Undone in reverse: those without a gateway, which lead to the gateways, come last.
            let mut routes: Vec<&str> =
                listed.lines().map(str::trim).filter(|route| !route.contains("proto kernel")).collect();
            routes.sort_by_key(|route| !route.contains(" via "));
            for route in routes {
                let route = route.replace(" linkdown", "");
                self.undo_by(namespace, "ip", words(&format!("{family} route replace {route} dev {interface}")));
            }
        }
        for address in list("-6 -o address show scope global permanent")?.lines() {
            let address = address.split_once(" inet6 ").and_then(|(_, rest)| rest.split(' ').next());
            let address = address.with_context(|| format!("no address in what ip lists of {interface}"))?;
            self.undo_by(namespace, "ip", words(&format!("address add {address} dev {interface} nodad")));
        }
        let up = format!("link set {interface} up");
        let is_port = list("-o link show")?.contains(" master ");
        self.ip(namespace, &format!("link set {interface} down"), Some(&up))?;
        if is_port {
            // A bridge hears up to a second later that it has no carrier (`net/core/link_watch.c`).
            thread::sleep(Duration::from_millis(1_200));
        }
        Ok(())
    }

    pub(super) fn mtu(&mut self, namespace: &str, interface: &str, mtu: u32) -> Result<()> {
        let show = ["-o", "link", "show", "dev", interface];
        let listed = netns::inside(namespace, || run("ip", &show, ""))?;
        let before = listed.split_once(" mtu ").and_then(|(_, rest)| rest.split(' ').next());
        let before = before.with_context(|| format!("no MTU of {interface} in `{listed}`"))?.to_owned();
        let back = format!("link set {interface} mtu {before}");
        self.ip(namespace, &format!("link set {interface} mtu {mtu}"), Some(&back))
    }

    pub(super) fn unresolved(&mut self, lab: &LabInfo, pod: &str) -> Result<()> {
        let pod = lab.pod(pod)?;
        // Neither answers nor asks: from a question of the pod's, the node would learn its address too.
        self.ip(&pod.namespace, "link set eth0 arp off", Some("link set eth0 arp on"))?;
        let node = &lab.node(&pod.node)?.namespace;
        let forget = format!("neigh flush dev {}", pod.host_interface);
        // When it is taken out too: else what comes next waits for the node to ask again, which is up to a second (retrans_time).
        self.ip(node, &forget, Some(&forget))
    }

    /// Run `ip` with `arguments`, and remember `undo`.
    fn ip(&mut self, namespace: &str, arguments: &str, undo: Option<&str>) -> Result<()> {
        netns::inside(namespace, || run("ip", &super::borrow(&quoted(arguments)), ""))?;
        if let Some(undo) = undo {
            self.undo_by(namespace, "ip", words(undo));
        }
        Ok(())
    }
}
