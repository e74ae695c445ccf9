//! Bounds of shares: `node1 >= 10 ms`, `wire < 3 ms`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::Deserialize;

use super::report::Share;
use crate::lab::LabInfo;

/// A bound of one share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Bound {
    /// A node's short name, `wire` (all wires together), `beyond` or `unattributed`.
    whose: String,
    at_least: bool,
    ms: u64,
}

impl Bound {
    /// Whether it holds; a share that is not there is 0. An upper bound is taken `slower` times.
    ///
    /// # Errors
    /// It does not hold, or names a node that the lab does not have.
    pub fn check(&self, shares: &[Share], lab: &LabInfo, slower: u32) -> Result<()> {
        let node = match self.whose.as_str() {
            "wire" | "beyond" | "unattributed" => None,
            host => Some(lab.node(host)?.name.as_str()),
        };
        let mine = |share: &&Share| match node {
            Some(name) => share.of == "node" && share.node.as_deref() == Some(name),
            None => share.of == self.whose,
        };
        let ns: u64 = shares.iter().filter(mine).map(|share| share.ns).sum();
        let factor = if self.at_least { 1 } else { u64::from(slower) };
        let holds = (ns >= self.ms * factor * 1_000_000) == self.at_least;
        ensure!(holds, "share of {}: {} us, expected {self}", self.whose, ns / 1000);
        Ok(())
    }
}

impl FromStr for Bound {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bound> {
        let words: Vec<&str> = text.split(' ').collect();
        let [whose, sign, number, "ms"] = words.as_slice() else {
            bail!("`{text}` is no bound of a share; write `node1 >= 10 ms` or `wire < 3 ms`")
        };
        let at_least = match *sign {
            ">=" => true,
            "<" => false,
            _ => bail!("`{text}`: `{sign}` should be >= or <"),
        };
        let ms = number.parse().with_context(|| format!("`{text}`: `{number}` is no number of milliseconds"))?;
        Ok(Bound { whose: (*whose).to_owned(), at_least, ms })
    }
}

impl TryFrom<String> for Bound {
    type Error = Error;

    fn try_from(text: String) -> Result<Bound> {
        text.parse()
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ms", if self.at_least { ">=" } else { "<" }, self.ms)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::lab;
    use super::*;

    fn share(of: &str, node: Option<&str>, ns: u64) -> Share {
        Share { of: of.to_owned(), node: node.map(str::to_owned), ns }
    }

    #[test]
    fn a_bound_is_of_one_nodes_share_or_of_all_wires() {
        let shares = [
            share("node", Some("ip-172-20-50-50.ec2.internal"), 10_000_000),
            share("beyond", Some("ip-172-20-50-50.ec2.internal"), 70_000_000),
            share("wire", None, 2_000_000),
            share("wire", None, 1_500_000),
        ];
        let told = |text: &str| match text.parse::<Bound>().unwrap().check(&shares, &lab(), 1) {
            Ok(()) => "holds".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(told("node1 >= 10 ms"), "holds");
        assert_eq!(told("node1 < 10 ms"), "share of node1: 10000 us, expected < 10 ms");
        assert_eq!(told("wire < 3 ms"), "share of wire: 3500 us, expected < 3 ms");
        assert_eq!(told("wire >= 3 ms"), "holds");
        assert_eq!(told("node2 < 1 ms"), "holds");
        assert_eq!(told("node2 >= 1 ms"), "share of node2: 0 us, expected >= 1 ms");
        assert!(told("node9 < 1 ms").contains("no node `node9`"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["node1", "node1 > 5 ms", "node1 >= 5 us", "node1 >= five ms", "node1 >= 5 ms "] {
            assert!(text.parse::<Bound>().is_err(), "{text}");
        }
    }
}
