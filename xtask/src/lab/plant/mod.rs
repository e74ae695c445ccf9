//! Faults for a standing lab: what a trace must find. Each is planted as a value and taken out when that is dropped.
//!
//! A process that is killed leaves its rules behind, in namespaces of the lab only: `down` removes them. A delay's
//! rules then pass packets on at once (`--queue-bypass`), for the queue dies with the process.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::build::write_sysctl;
use super::plan::Sysctl;
use super::profile::GATEWAY;
use super::rules::END_OF_TIER;
use super::tool::run;
use super::{LabInfo, netns};

mod delay;
mod queue;

use delay::Delayer;

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
    /// A network policy that lets nothing new reach the pod.
    PolicyDrop {
        /// The pod's name.
        pod: String,
    },
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
        let mut planted = Planted { undo: Vec::new(), delayer: None };
        let done = match self {
            Plant::NodeDelay { node, ms, to } => planted.node_delay(lab, node, *ms, *to),
            Plant::WireDelay { between, ms, direction } => planted.wire_delay(lab, between, *ms, *direction),
            Plant::WireDrop { node, way, icmp } => planted.wire_drop(lab, node, *way, *icmp),
            Plant::PolicyDrop { pod } => planted.policy_drop(lab, pod),
        };
        done.with_context(|| format!("planting {self:?} in lab {}", lab.name))?;
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
            self.rule(namespace, rule)?;
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
        let table = format!("podpath-drop-{}", next_number());
        let text = format!(
            "table bridge {table} {{\n chain forward {{\n type filter hook forward priority 0\n \
             {interface} \"{port}\" icmp type {icmp} counter drop\n }}\n}}\n"
        );
        netns::inside(&lab.wire, || run("nft", &["-f", "-"], &text))?;
        self.undo.push(Undo::Run {
            namespace: lab.wire.clone(),
            tool: "nft",
            arguments: words(&format!("delete table bridge {table}")),
        });
        Ok(())
    }

    fn policy_drop(&mut self, lab: &LabInfo, pod: &str) -> Result<()> {
        let pod = lab.pod(pod)?;
        // After established connections, invalid packets, and the reset of the mark; before the profiles.
        let mut rule = words(&format!("-I cali-tw-{} 4 -m comment --comment", pod.host_interface));
        rule.push(END_OF_TIER.to_owned());
        rule.extend(words("-m mark --mark 0x0/0x20000 -j DROP"));
        self.rule(&lab.node(&pod.node)?.namespace, rule)
    }

    /// Insert an iptables rule (`-I CHAIN [NUMBER] ...`), and remember how to delete it.
    fn rule(&mut self, namespace: &str, insert: Vec<String>) -> Result<()> {
        netns::inside(namespace, || run("iptables-nft", &borrow(&insert), ""))?;
        self.undo.push(Undo::Run {
            namespace: namespace.to_owned(),
            tool: "iptables-nft",
            arguments: deletion(&insert),
        });
        Ok(())
    }

    /// Take the fault out, and hear when that fails.
    ///
    /// # Errors
    /// When a rule cannot be removed; the others are removed nevertheless.
    pub fn remove(mut self) -> Result<()> {
        self.take_out()
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
        let (Undo::Run { namespace, .. } | Undo::BridgeNetfilter { namespace }) = self;
        if !netns::is_mounted(namespace) {
            // The lab went first, and took its rules along.
            return Ok(());
        }
        match self {
            Undo::Run { namespace, tool, arguments } => {
                netns::inside(namespace, || run(tool, &borrow(arguments), "")).map(drop)
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
    if let Some(verb) = delete.iter().position(|word| word == "-I") {
        delete[verb] = "-D".to_owned();
        if delete.get(verb + 2).is_some_and(|word| word.parse::<u32>().is_ok()) {
            delete.remove(verb + 2);
        }
    }
    delete
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn borrow(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        fault: Vec<Plant>,
    }

    #[test]
    fn plants_are_data() {
        let text = r#"
            fault = [
                { plant = "node-delay", node = "node1", ms = 5 },
                { plant = "node-delay", node = "node1", ms = 5, to = "100.115.37.81" },
                { plant = "wire-delay", between = ["node1", "node2"], ms = 5, direction = "there" },
                { plant = "wire-drop", node = "node1", way = "to", icmp = "echo-request" },
                { plant = "policy-drop", pod = "bb1" },
            ]
        "#;
        let file: File = toml::from_str(text).unwrap();
        assert_eq!(file.fault.len(), 5);
        assert_eq!(file.fault[0], Plant::NodeDelay { node: "node1".to_owned(), ms: 5, to: None });
        assert_eq!(file.fault[3], Plant::WireDrop { node: "node1".to_owned(), way: Way::To, icmp: Echo::EchoRequest });
    }

    #[test]
    fn a_plant_with_an_unknown_field_is_refused() {
        let text = r#"fault = [{ plant = "policy-drop", pod = "bb1", ms = 5 }]"#;
        let error = toml::from_str::<File>(text).err().unwrap().to_string();
        assert!(error.contains("ms"), "{error}");
    }

    #[test]
    fn a_rule_is_deleted_by_what_it_says() {
        assert_eq!(deletion(&words("-I chain 4 -j DROP")), words("-D chain -j DROP"));
        assert_eq!(deletion(&words("-t mangle -I FORWARD -j DROP")), words("-t mangle -D FORWARD -j DROP"));
    }

    #[test]
    fn numbers_differ() {
        assert_ne!(next_number(), next_number());
    }
}
