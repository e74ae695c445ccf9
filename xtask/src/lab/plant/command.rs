//! Faults that a command makes and another one takes back, and a table of conntrack that is full.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{Planted, borrow, netns, quoted, run, words};

/// What a plant may run: the tools of [`crate::lab::PACKAGES`] that change a namespace and nothing else.
const TOOLS: [&str; 5] = ["ip", "tc", "iptables-nft", "ipset", "conntrack"];

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

impl Planted {
    pub(super) fn command(&mut self, namespace: &str, line: &str, undo: &str) -> Result<()> {
        let (tool, arguments) = split(line)?;
        let (undo, undo_arguments) = split(undo)?;
        netns::inside(namespace, || run(tool, &borrow(&arguments), ""))?;
        self.undo_by(namespace, undo, undo_arguments);
        Ok(())
    }

    /// Before 6.19 the maximum is one for all namespaces of a machine, but each counts its own: so this one gets as many
    /// entries as it may have. Those that have seen both ways are never evicted (`early_drop`).
    pub(super) fn conntrack_full(&mut self, namespace: &str) -> Result<()> {
        let flush = || words("-F");
        netns::inside(namespace, || run("conntrack", &borrow(&flush()), ""))?;
        self.undo_by(namespace, "conntrack", flush());
        let number = |path: &str| -> Result<usize> {
            let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
            text.trim().parse().with_context(|| format!("{path} says `{text}`"))
        };
        let max = netns::inside(namespace, || number(MAX))?;
        let file = tempfile::NamedTempFile::new().context("making a file of connections")?;
        fs::write(file.path(), connections(max)).context("writing connections")?;
        let path = file.path().to_str().context("a path that is no text")?;
        netns::inside(namespace, || {
            // Refused where others came first: full is full.
            let filled = run("conntrack", &["-R", path], "");
            let count = number(COUNT)?;
            ensure!(count >= max, "{count} of {max} entries after filling the table: {filled:?}");
            Ok(())
        })
    }
}

/// So many UDP connections of nobody's, as `conntrack -R` reads them.
fn connections(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let (net, port) = (number / 60_000, 1_024 + number % 60_000);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "-I -p udp -s 198.18.0.{net} -d 198.19.0.1 --sport {port} --dport 53 -t 600 -u SEEN_REPLY,ASSURED"
        );
    }
    text
}

fn split(line: &str) -> Result<(&'static str, Vec<String>)> {
    let mut words = quoted(line);
    ensure!(!words.is_empty(), "an empty command");
    let program = words.remove(0);
    match TOOLS.iter().find(|tool| **tool == program) {
        Some(tool) => Ok((tool, words)),
        None => bail!("a plant may run {}, not {program}", TOOLS.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tools_of_a_lab_may_be_run() {
        assert_eq!(split("ipset del a \"b c\"").unwrap(), ("ipset", vec!["del".into(), "a".into(), "b c".into()]));
        assert!(split("rm -rf /").unwrap_err().to_string().contains("not rm"));
        split("").unwrap_err();
    }

    #[test]
    fn connections_differ() {
        let text = connections(130_000);
        let all: std::collections::HashSet<&str> = text.lines().collect();
        assert_eq!(all.len(), 130_000);
        assert!(all.iter().all(|line| !line.contains("--sport 0 ")));
    }
}
