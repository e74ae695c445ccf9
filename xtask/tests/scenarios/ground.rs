//! What a lab really is, asked of `ip`, `tc` and `nft`.

use std::collections::BTreeMap;

use anyhow::Result;
use xtask::lab::{LabInfo, inside, run};
use xtask::scenario::check::Ground;

/// Interfaces of all nodes and pods.
pub(crate) fn ground(lab: &LabInfo) -> Result<Ground> {
    let mut ground = Ground::default();
    let ask = |namespace: &str| inside(namespace, || run("ip", &["-json", "link"], ""));
    lab.nodes.iter().try_for_each(|node| ground.add(lab, node, ask))?;
    Ok(ground)
}

/// Everything of a lab that a trace must not change, by namespace: links, addresses, routes, qdiscs, rules.
pub(crate) fn settings(lab: &LabInfo) -> Result<BTreeMap<String, String>> {
    // One process for all that `ip` is asked: where a kernel is emulated, starting one takes longer than what it does.
    const OF_IP: &str = "address\nrule\nroute show table all\n";
    const COMMANDS: &[(&str, &str)] = &[
        ("ip -4 -brief -batch -", OF_IP),
        ("ip -6 -brief -batch -", OF_IP),
        ("tc qdisc show", ""),
        ("nft --stateless list ruleset", ""),
    ];
    let of = |namespace: &String| {
        let text = inside(namespace, || {
            let one = |(command, input): &(&str, &str)| {
                let words: Vec<&str> = command.split(' ').collect();
                Ok(format!("{command}\n{}", without_clients(&run(words[0], &words[1..], input)?)))
            };
            COMMANDS.iter().map(one).collect::<Result<String>>()
        })?;
        Ok((namespace.clone(), text))
    };
    lab.namespaces.iter().map(of).collect()
}

/// Without the sets in which kube-proxy's rules note clients: a connection writes there, whoever makes it.
fn without_clients(ruleset: &str) -> String {
    let mut inside = false;
    let lines = ruleset.lines().filter(|line| {
        inside = line.trim_start().starts_with("set affinity-") || inside && line.trim() != "}";
        !inside
    });
    lines.map(|line| format!("{line}\n")).collect()
}
