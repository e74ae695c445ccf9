//! The netfilter rules that a generated network plants, and where they take effect.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;

use super::fib;
use super::packet::{Packet, Protocol};
use crate::lab::plant::Way;
use crate::lab::profile::Rules;

/// Where a rule looks at packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A rule.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    pub(super) point: Point,
    pub(super) table: String,
    pub(super) chain: String,
    matches: Matches,
    pub(super) verdict: Verdict,
    /// In its table it comes before all others.
    early: bool,
    /// Its place in its chain, where that does not follow from the other filters.
    pub(super) position: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Matches {
    src: Option<Ipv4Net>,
    dst: Option<Ipv4Net>,
    protocol: Option<Protocol>,
    /// Of the destination.
    port: Option<u16>,
    out: Option<String>,
    /// Of a pod's chain: its link, and which way.
    link: Option<(Way, String)>,
    /// What conntrack knows nothing of, and does not begin with.
    invalid: bool,
    /// What conntrack begins with.
    new: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    /// It answers.
    Reject,
    /// It is the chain's default policy.
    Policy,
    Masquerade,
    Snat(Ipv4Addr),
    Dnat(Ipv4Addr),
    /// Calico's, for what is invalid.
    Invalid,
    /// A network policy: `ingress` or `egress`, and the pod.
    NetworkPolicy(&'static str, String),
}

/// What a packet is about to do.
pub(super) struct Passing<'a> {
    pub(super) packet: &'a Packet,
    pub(super) from: Option<&'a str>,
    pub(super) to: Option<&'a str>,
    /// Conntrack knows its flow, or an error's flow.
    pub(super) established: bool,
}

impl Passing<'_> {
    fn is_invalid(&self) -> bool {
        !self.established && !self.packet.begins()
    }
}

impl Filter {
    /// The arguments of iptables: `[-t TABLE] -I CHAIN [-s NET] [-d NET] [-p PROTOCOL] [--dport PORT] [-o LINK] -j TARGET [...]`.
    pub(super) fn parse(rule: &str) -> Result<Filter> {
        let mut words = rule.split_whitespace();
        let (mut table, mut chain) = ("filter".to_owned(), None);
        let (mut matches, mut verdict) = (Matches::default(), None);
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("`{word}` without a value"))?;
            match word {
                "-t" => value.clone_into(&mut table),
                "-I" => chain = Some(value.to_owned()),
                "-s" => matches.src = Some(fib::prefix(value)?),
                "-d" => matches.dst = Some(fib::prefix(value)?),
                "-o" => matches.out = Some(value.to_owned()),
                "--dport" => matches.port = Some(value.parse()?),
                "-p" => matches.protocol = Some(Protocol::named(value)?),
                "-j" => verdict = Some(value.to_owned()),
                "--to-source" => verdict = Some(format!("SNAT {value}")),
                "--to-destination" => verdict = Some(format!("DNAT {value}")),
                _ => bail!("the model knows no `{word}` of a rule"),
            }
        }
        let verdict = verdict.context("no target")?;
        let verdict = match verdict.split_once(' ').unwrap_or((&verdict, "")) {
            ("DROP", _) => Verdict::Drop,
            ("REJECT", _) => Verdict::Reject,
            ("MASQUERADE", _) => Verdict::Masquerade,
            ("SNAT", to) => Verdict::Snat(to.parse()?),
            ("DNAT", to) => Verdict::Dnat(to.parse()?),
            (other, _) => bail!("the model knows no target {other}"),
        };
        let chain = chain.context("no chain")?;
        let point = match chain.as_str() {
            "PREROUTING" => Point::Prerouting,
            "INPUT" => Point::Input,
            "FORWARD" => Point::Forward,
            "OUTPUT" => Point::Output,
            "POSTROUTING" => Point::Postrouting,
            other => bail!("the model knows no chain {other}"),
        };
        Ok(Filter { point, table, chain, matches, verdict, early: false, position: None })
    }

    /// The rule in a chain of kube-proxy's, for what is new. `early`: it comes before all others.
    pub(super) fn of_kube_proxy(self, table: &str, chain: &str, early: bool, position: usize) -> Filter {
        let matches = Matches { new: true, ..self.matches };
        Filter { table: table.to_owned(), chain: chain.to_owned(), matches, early, position: Some(position), ..self }
    }

    /// kube-proxy's, in its iptables mode, for what is invalid.
    pub(super) fn kube_invalid() -> Result<Filter> {
        let filter = Filter::parse("-I FORWARD -j DROP")?;
        let matches = Matches { invalid: true, ..filter.matches };
        Ok(Filter { chain: "KUBE-FORWARD".to_owned(), matches, verdict: Verdict::Invalid, ..filter })
    }

    /// A base chain's default policy, of table filter.
    pub(super) fn default(chain: &str) -> Result<Filter> {
        let filter = Filter::parse(&format!("-I {chain} -j DROP"))?;
        Ok(Filter { verdict: Verdict::Policy, ..filter })
    }

    /// What Calico makes of a policy: behind `ESTABLISHED`.
    pub(super) fn policy(way: Way, link: String, pod: String, rules: Rules) -> Filter {
        let direction = match way {
            Way::To => "ingress",
            Way::From => "egress",
        };
        Filter { verdict: Verdict::NetworkPolicy(direction, pod), ..Filter::of_pod(way, link, rules) }
    }

    /// Calico's second rule of each pod's chains.
    pub(super) fn invalid(way: Way, link: String, rules: Rules) -> Filter {
        let filter = Filter::of_pod(way, link, rules);
        Filter { matches: Matches { invalid: true, ..filter.matches }, verdict: Verdict::Invalid, ..filter }
    }

    fn of_pod(way: Way, link: String, rules: Rules) -> Filter {
        let letter = match way {
            Way::To => "t",
            Way::From => "f",
        };
        let (table, chain) = match rules {
            Rules::Iptables => ("filter", format!("cali-{letter}w-{link}")),
            Rules::Nftables => ("calico", format!("filter-cali-{letter}w-{link}")),
        };
        Filter {
            point: Point::Forward,
            table: table.to_owned(),
            chain,
            matches: Matches { link: Some((way, link)), ..Matches::default() },
            verdict: Verdict::Drop,
            early: false,
            position: None,
        }
    }

    /// Of what looks at a packet at one point, this decides who comes first.
    pub(super) fn order(&self) -> (u8, u8, u8) {
        let table = match self.table.as_str() {
            "raw" => 0,
            "mangle" => 1,
            _ => 2,
        };
        let chain = match &self.matches.link {
            _ if self.early => 0,
            None if self.verdict == Verdict::Policy => 6,
            // Calico keeps its own jumps first.
            None if self.chain.starts_with("KUBE-") => 5,
            None if self.table == "kube-proxy" => 2,
            None => 1,
            Some((Way::From, _)) => 3,
            Some((Way::To, _)) => 4,
        };
        (table, chain, u8::from(!self.matches.invalid))
    }

    pub(super) fn is_translation(&self) -> bool {
        matches!(self.verdict, Verdict::Masquerade | Verdict::Snat(_) | Verdict::Dnat(_))
    }

    pub(super) fn fits(&self, passing: &Passing<'_>) -> bool {
        let Matches { src, dst, protocol, port, out, link, invalid, new } = &self.matches;
        let Passing { packet, from, to, established } = passing;
        (!invalid || passing.is_invalid())
            && (!new || packet.begins() && !established)
            && src.is_none_or(|net| net.contains(&packet.src))
            && dst.is_none_or(|net| net.contains(&packet.dst))
            && protocol.is_none_or(|protocol| protocol == packet.protocol.iptables())
            && port.is_none_or(|port| port == packet.port)
            && out.as_deref().is_none_or(|out| *to == Some(out))
            && link.as_ref().is_none_or(|(way, link)| {
                let passes = match way {
                    Way::To => to,
                    Way::From => from,
                };
                !established && *passes == Some(link.as_str())
            })
    }
}
