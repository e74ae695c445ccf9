//! Faults for a standing lab: what a trace must find. Each is planted as a value and taken out when that is dropped.
//!
//! A process that is killed leaves its rules behind, in namespaces of the lab only: `down` removes them. A delay's
//! rules then pass packets on at once (`--queue-bypass`), for the queue dies with the process.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::build::write_sysctl;
use super::plan::Sysctl;
use super::profile::{GATEWAY, Profile};
use super::rules::END_OF_TIER;
use super::service::{Mode, Service};
use super::tool::run;
use super::{LabInfo, netns, state};

mod command;
mod delay;
mod fault;
mod identity;
mod policy;
mod program;
mod queue;
mod services;

use delay::Delayer;
use program::{Deed, Place};
pub(crate) use services::translate_bridged;

/// Comment of every rule that feeds a delay.
const MARK: &str = "podpath-delay";

/// A fault, as scenario files write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "plant", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Plant {
    /// Each packet that `node` forwards is held for `ms` milliseconds between routing and transmission, and goes on
    /// as the same `sk_buff`. Conntrack confirms a flow after that, so a second packet of a new flow that comes
    /// within those milliseconds is dropped as a clash: space probes out by more.
    NodeDelay {
        /// Short or Kubernetes name.
        node: String,
        /// Milliseconds.
        ms: u64,
        /// Only packets to this address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Ipv4Addr>,
    },
    /// Each IPv4 packet on the wire between two nodes is held there for `ms` milliseconds, outside of both.
    WireDelay {
        /// Two nodes, or a node and `gateway`.
        between: [String; 2],
        /// Milliseconds each way.
        ms: u64,
        /// Which way.
        #[serde(default)]
        direction: Direction,
    },
    /// The wire swallows pings on their way to or from `node`. Its link stays up.
    WireDrop {
        /// Short or Kubernetes name.
        node: String,
        /// Which way.
        way: Way,
        /// Which packets.
        icmp: Echo,
    },
    /// The wire swallows what it would bring to `node` and is longer than that.
    WireMtu {
        /// Short or Kubernetes name.
        node: String,
        /// Bytes, with the IP header.
        mtu: u32,
    },
    /// A network policy that lets nothing new reach the pod, or leave it.
    PolicyDrop {
        /// The pod's name.
        pod: String,
        /// Ingress or egress.
        #[serde(default = "Way::to")]
        way: Way,
    },
    /// A global policy of Calico that has one rule: it denies all that comes to the pod, or that the pod sends. Where Felix writes
    /// iptables.
    PolicyDeny {
        /// The pod's name.
        pod: String,
        /// Ingress or egress.
        #[serde(default = "Way::to")]
        way: Way,
    },
    /// An iptables rule.
    Rule {
        /// A node or pod.
        at: String,
        /// Which iptables.
        #[serde(default)]
        tool: Iptables,
        /// Its arguments, beginning with `-t TABLE`, if not `filter`, and `-I CHAIN [NUMBER]` or `-A CHAIN`; words in
        /// double quotes are one.
        rule: String,
    },
    /// The default policy of an iptables base chain of table `filter` is DROP.
    ChainPolicy {
        /// A node or pod.
        at: String,
        /// `FORWARD`, `INPUT` or `OUTPUT`.
        chain: String,
    },
    /// An nftables table of its own.
    NftTable {
        /// A node or pod.
        at: String,
        /// `ip podpath-x`.
        table: String,
        /// What stands between its braces.
        content: String,
    },
    /// A route more.
    Route {
        /// A node or pod.
        at: String,
        /// As `ip route add` takes it.
        route: String,
    },
    /// A route less.
    NoRoute {
        /// A node or pod.
        at: String,
        /// The prefix of a route of table main.
        route: String,
    },
    /// A setting of another value.
    Sysctl {
        /// A node or pod.
        at: String,
        /// Below `net`, as `sysctl` names it: `net.ipv4.ip_forward`.
        name: String,
        /// The value.
        value: String,
    },
    /// An interface that is administratively down.
    LinkDown {
        /// A node or pod.
        at: String,
        /// Its name.
        interface: String,
    },
    /// An interface with a smaller MTU.
    Mtu {
        /// A node or pod.
        at: String,
        /// Its name.
        interface: String,
        /// Bytes.
        mtu: u32,
    },
    /// A program on an interface, as a CNI of eBPF has them.
    Program {
        /// A node or pod.
        at: String,
        /// Its name.
        interface: String,
        /// Where it runs.
        place: Place,
        /// What it does with IPv4 packets to `to`; others pass.
        does: Deed,
        /// An address.
        to: Ipv4Addr,
    },
    /// What one command does, and another one takes back. Of `ip`, `tc`, `iptables-nft`, `ipset` and `conntrack`.
    Command {
        /// A node or pod.
        at: String,
        /// Program and arguments; words in double quotes are one.
        run: String,
        /// The same of what takes it back.
        undo: String,
    },
    /// Conntrack's table is full of connections that the kernel will not give up for new ones.
    ConntrackFull {
        /// A node.
        at: String,
    },
    /// A pod answers no ARP request for its address, and its node has forgotten the last answer.
    Unresolved {
        /// The pod's name.
        pod: String,
    },
    /// No fault: the cluster has these services. All that a lab has are planted at once, as kube-proxy writes all its rules at once.
    Services {
        /// How kube-proxy programs netfilter.
        mode: Mode,
        /// The services.
        services: Vec<Service>,
    },
}

impl Plant {
    /// The namespace keeps tables that nothing can take out: those of legacy iptables.
    pub fn leaves_tables(&self) -> bool {
        matches!(self, Plant::Rule { tool: Iptables::Legacy, .. })
    }
}

/// Which iptables writes a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Iptables {
    /// For IPv4, in nftables.
    #[default]
    Nft,
    /// For IPv4, in the tables of its own.
    Legacy,
}

impl Iptables {
    fn tool(self) -> &'static str {
        match self {
            Iptables::Nft => "iptables-nft",
            Iptables::Legacy => "iptables-legacy",
        }
    }
}

/// Direction of a delay between the first node and the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Each way.
    #[default]
    Both,
    /// From the first to the second.
    There,
    /// From the second to the first.
    Back,
}

/// Which packets, seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Those that the wire would bring to the node.
    To,
    /// Those that the node sent.
    From,
}

impl Way {
    fn to() -> Way {
        Way::To
    }
}

/// Type of an ICMP message, named as nftables names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Echo {
    /// Type 8.
    EchoRequest,
    /// Type 0.
    EchoReply,
}

impl Plant {
    /// Plant the fault in `lab`; it holds from now until the returned value is dropped.
    ///
    /// # Errors
    /// A node or pod the lab does not have, or a rule the kernel refuses; then nothing of it remains.
    pub fn plant(&self, lab: &LabInfo) -> Result<Planted> {
        match self {
            Plant::Services { .. } => self.plant_in(lab, &Profile::named(&lab.profile)?),
            _ => self.planted(lab, None),
        }
    }

    /// The same in a lab that was built from that profile, which may have no name.
    pub(crate) fn plant_in(&self, lab: &LabInfo, profile: &Profile) -> Result<Planted> {
        self.planted(lab, Some(profile))
    }

    fn planted(&self, lab: &LabInfo, profile: Option<&Profile>) -> Result<Planted> {
        let mut planted = Planted { undo: Vec::new(), delayer: None };
        let done = match self {
            Plant::NodeDelay { node, ms, to } => planted.node_delay(lab, node, *ms, *to),
            Plant::WireDelay { between, ms, direction } => planted.wire_delay(lab, between, *ms, *direction),
            Plant::WireDrop { node, way, icmp } => planted.wire_drop(lab, node, *way, *icmp),
            Plant::WireMtu { node, mtu } => {
                planted.wire_rule(lab, &format!("oifname \"{}\" meta length > {mtu}", port(lab, node)?))
            }
            Plant::PolicyDrop { pod, way } => planted.policy_drop(lab, pod, *way),
            Plant::PolicyDeny { pod, way } => planted.policy_deny(lab, pod, *way),
            Plant::Rule { at, tool, rule } => planted.rule(place(lab, at)?, tool.tool(), quoted(rule)),
            Plant::ChainPolicy { at, chain } => planted.chain_policy(place(lab, at)?, chain),
            Plant::NftTable { at, table, content } => planted.nft_table(place(lab, at)?, table, content),
            Plant::Route { at, route } => planted.route(place(lab, at)?, route),
            Plant::NoRoute { at, route } => planted.no_route(place(lab, at)?, route),
            Plant::Sysctl { at, name, value } => planted.sysctl(place(lab, at)?, name, value),
            Plant::LinkDown { at, interface } => planted.link_down(place(lab, at)?, interface),
            Plant::Mtu { at, interface, mtu } => planted.mtu(place(lab, at)?, interface, *mtu),
            Plant::Program { at, interface, place: where_, does, to } => {
                planted.program(place(lab, at)?, interface, *where_, does, *to)
            }
            Plant::Command { at, run, undo } => planted.command(place(lab, at)?, run, undo),
            Plant::ConntrackFull { at } => planted.conntrack_full(place(lab, at)?),
            Plant::Unresolved { pod } => planted.unresolved(lab, pod),
            Plant::Services { mode, services } => {
                profile.context("its profile").and_then(|profile| planted.services(lab, profile, *mode, services))
            }
        };
        done.with_context(|| match self {
            Plant::Services { .. } => format!("planting services in lab {}", lab.name),
            fault => format!("planting {fault:?} in lab {}", lab.name),
        })?;
        Ok(planted)
    }
}

/// A fault that stands; dropping it takes it out.
#[derive(Debug)]
#[must_use = "dropping it takes the fault out"]
pub struct Planted {
    undo: Vec<Undo>,
    /// Ends after the rules are gone, so that no packet goes astray.
    delayer: Option<Delayer>,
}

/// How to take out one step.
#[derive(Debug)]
enum Undo {
    Run {
        namespace: String,
        tool: &'static str,
        arguments: Vec<String>,
    },
    /// The value that a setting had.
    Sysctl {
        namespace: String,
        path: String,
        value: String,
    },
    /// A table (`ip mangle`) or chain (`ip mangle FORWARD`) that iptables made for a rule, unless another plant's rule is in it
    /// by now.
    Made {
        namespace: String,
        what: String,
    },
    /// Input of `iptables-nft-restore --noflush`.
    Restore {
        namespace: String,
        text: String,
    },
    /// What a file of the lab said.
    File {
        path: PathBuf,
        text: String,
    },
    /// An object that the identity file got.
    Object {
        path: PathBuf,
        uid: Value,
    },
    /// Bridged packets pass iptables no more, unless another delay on this wire still needs it.
    BridgeNetfilter {
        namespace: String,
    },
}

impl Planted {
    fn node_delay(&mut self, lab: &LabInfo, node: &str, ms: u64, to: Option<Ipv4Addr>) -> Result<()> {
        let namespace = &lab.node(node)?.namespace;
        let matched = to.map(|address| ["-d".to_owned(), address.to_string()]);
        let matched = matched.into_iter().flatten().collect();
        self.delay(namespace, ms, vec![matched])
    }

    fn wire_delay(&mut self, lab: &LabInfo, between: &[String; 2], ms: u64, direction: Direction) -> Result<()> {
        let [a, b] = [port(lab, &between[0])?, port(lab, &between[1])?];
        ensure!(a != b, "both ends are {a}");
        let ways = match direction {
            Direction::Both => vec![(a, b), (b, a)],
            Direction::There => vec![(a, b)],
            Direction::Back => vec![(b, a)],
        };
        let matched = ways.into_iter().map(|(from, to)| {
            let text = format!("-m physdev --physdev-is-bridged --physdev-in {from} --physdev-out {to}");
            text.split(' ').map(str::to_owned).collect()
        });
        // Undone in reverse: when the rules are gone.
        self.undo.push(Undo::BridgeNetfilter { namespace: lab.wire.clone() });
        self.delay(&lab.wire, ms, matched.collect())?;
        // After the rules: they load br_netfilter where that is a module.
        bridge_netfilter(&lab.wire, "1", false)
    }

    /// Hold what a namespace forwards and one of `matches` describes.
    fn delay(&mut self, namespace: &str, ms: u64, matches: Vec<Vec<String>>) -> Result<()> {
        let number = next_number();
        self.delayer = Some(Delayer::start(namespace, number, Duration::from_millis(ms))?);
        for matched in matches {
            let target = format!("-m comment --comment {MARK} -j NFQUEUE --queue-num {number} --queue-bypass");
            let mut rule = words("-t mangle -I FORWARD");
            rule.extend(matched);
            rule.extend(words(&target));
            self.rule(namespace, "iptables-nft", rule)?;
        }
        Ok(())
    }

    fn wire_drop(&mut self, lab: &LabInfo, node: &str, way: Way, icmp: Echo) -> Result<()> {
        let port = port(lab, node)?;
        let interface = match way {
            Way::To => "oifname",
            Way::From => "iifname",
        };
        let icmp = match icmp {
            Echo::EchoRequest => "echo-request",
            Echo::EchoReply => "echo-reply",
        };
        self.wire_rule(lab, &format!("{interface} \"{port}\" icmp type {icmp}"))
    }

    /// The wire swallows what `matches` describes.
    fn wire_rule(&mut self, lab: &LabInfo, matches: &str) -> Result<()> {
        let table = format!("podpath-drop-{}", next_number());
        let text = format!(
            "table bridge {table} {{\n chain forward {{\n type filter hook forward priority 0\n \
             {matches} counter drop\n }}\n}}\n"
        );
        netns::inside(&lab.wire, || run("nft", &["-f", "-"], &text))?;
        self.undo.push(Undo::Run {
            namespace: lab.wire.clone(),
            tool: "nft",
            arguments: words(&format!("delete table bridge {table}")),
        });
        Ok(())
    }

    /// Insert an iptables rule (`-I CHAIN [NUMBER] ...`), and remember how to delete it.
    fn rule(&mut self, namespace: &str, tool: &'static str, insert: Vec<String>) -> Result<()> {
        self.iptables(namespace, tool, &borrow(&insert))?;
        self.undo_by(namespace, tool, deletion(&insert));
        Ok(())
    }

    /// Run an iptables, and remember to delete the tables and chains that its nft variant makes where there are none.
    fn iptables(&mut self, namespace: &str, tool: &str, arguments: &[&str]) -> Result<()> {
        let (before, after) = netns::inside(namespace, || {
            let before = run("nft", &["list", "chains"], "")?;
            run(tool, arguments, "")?;
            Ok((before, run("nft", &["list", "chains"], "")?))
        })?;
        let before = fault::chains(&before);
        for chain in fault::chains(&after).into_iter().filter(|chain| !before.contains(chain)) {
            self.undo.push(Undo::Made { namespace: namespace.to_owned(), what: chain });
        }
        Ok(())
    }

    fn undo_by(&mut self, namespace: &str, tool: &'static str, arguments: Vec<String>) {
        self.undo.push(Undo::Run { namespace: namespace.to_owned(), tool, arguments });
    }

    /// Take the fault out, and hear when that fails.
    ///
    /// # Errors
    /// When a rule cannot be removed; the others are removed nevertheless.
    pub fn remove(mut self) -> Result<()> {
        self.take_out()
    }

    /// Leave it standing, until the lab goes down. Not for delays, which need this process.
    pub fn keep(mut self) {
        self.undo.clear();
    }

    fn take_out(&mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(undo) = self.undo.pop() {
            result = result.and(undo.run());
        }
        self.delayer = None;
        result
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        if let Err(error) = self.take_out() {
            eprintln!("a planted fault stays: {error:#}");
        }
    }
}

impl Undo {
    fn run(&self) -> Result<()> {
        let stands = match self {
            Undo::Run { namespace, .. }
            | Undo::Sysctl { namespace, .. }
            | Undo::Made { namespace, .. }
            | Undo::Restore { namespace, .. }
            | Undo::BridgeNetfilter { namespace } => netns::is_mounted(namespace),
            Undo::File { path, .. } | Undo::Object { path, .. } => path.exists(),
        };
        if !stands {
            // The lab went first, and took its rules along.
            return Ok(());
        }
        match self {
            Undo::Run { namespace, tool, arguments } => {
                netns::inside(namespace, || run(tool, &borrow(arguments), "")).map(drop)
            }
            Undo::Sysctl { namespace, path, value } => {
                netns::inside(namespace, || fs::write(path, value).with_context(|| format!("writing {path}")))
            }
            Undo::Made { namespace, what } => netns::inside(namespace, || {
                let kind = if what.split(' ').count() == 3 { "chain" } else { "table" };
                let listed = run("nft", &borrow(&words(&format!("list {kind} {what}"))), "")?;
                match fault::has_rules(&listed) {
                    true => Ok(()),
                    false => run("nft", &borrow(&words(&format!("delete {kind} {what}"))), "").map(drop),
                }
            }),
            Undo::Restore { namespace, text } => {
                netns::inside(namespace, || run("iptables-nft-restore", &["--noflush"], text)).map(drop)
            }
            Undo::File { path, text } => state::write(path, text),
            Undo::Object { path, uid } => {
                identity::edit(path, |items| items.retain(|item| item["metadata"]["uid"] != *uid)).map(drop)
            }
            Undo::BridgeNetfilter { namespace } => {
                let rules = netns::inside(namespace, || run("iptables-nft", &["-t", "mangle", "-S", "FORWARD"], ""))?;
                match rules.contains(MARK) {
                    true => Ok(()),
                    false => bridge_netfilter(namespace, "0", true),
                }
            }
        }
    }
}

/// Whether bridged IPv4 packets pass iptables in that namespace. `optional`: a kernel without br_netfilter will do.
fn bridge_netfilter(namespace: &str, value: &'static str, optional: bool) -> Result<()> {
    let sysctl = Sysctl { path: "bridge/bridge-nf-call-iptables".to_owned(), value, optional };
    netns::inside(namespace, || write_sysctl(&sysctl))
        .context("a delay on the wire needs br_netfilter: `modprobe br_netfilter`")
}

/// The wire's port of a node, or of the gateway.
fn port<'a>(lab: &'a LabInfo, name: &str) -> Result<&'a str> {
    if name == GATEWAY {
        return Ok(GATEWAY);
    }
    Ok(&lab.node(name)?.host)
}

/// A number for a queue or table that no other plant of this process uses, and hardly one of another process.
fn next_number() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const PER_PROCESS: u16 = 256;
    let process = u16::try_from(std::process::id() % 255).unwrap_or(0);
    process * PER_PROCESS + NEXT.fetch_add(1, Ordering::Relaxed) % PER_PROCESS
}

/// The arguments that delete what `insert` inserted: the same without the rule number.
fn deletion(insert: &[String]) -> Vec<String> {
    let mut delete = insert.to_vec();
    if let Some(verb) = delete.iter().position(|word| word == "-I" || word == "-A") {
        delete[verb] = "-D".to_owned();
        if delete.get(verb + 2).is_some_and(|word| word.parse::<u32>().is_ok()) {
            delete.remove(verb + 2);
        }
    }
    delete
}

/// The namespace of a node or pod.
fn place<'a>(lab: &'a LabInfo, name: &str) -> Result<&'a str> {
    match lab.pod(name) {
        Ok(pod) => Ok(&pod.namespace),
        Err(_) => Ok(&lab.node(name)?.namespace),
    }
}

/// Words at blanks; a part in double quotes is one.
fn quoted(text: &str) -> Vec<String> {
    let parts = text.split('"').enumerate();
    let words = parts.flat_map(|(index, part)| match index % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn borrow(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests;
