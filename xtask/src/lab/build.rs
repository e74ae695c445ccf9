//! Carrying out a plan, and undoing one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::netns;
use super::plan::{Namespace, Plan, Required, Sysctl};
use super::rules::Rules;
use super::tool::run;
use super::tunnel::{self, Keys};

/// How long links may take to come up. They need some milliseconds.
const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// Make everything in the plan; what this kernel cannot make is returned, each with the reason.
pub(crate) fn build(plan: &Plan) -> Result<Vec<String>> {
    let lacking = lacking(&plan.required)?;
    if !lacking.is_empty() {
        return Ok(lacking);
    }
    run("ip", &["-batch", "-"], &lines(&plan.outside)).context("making namespaces")?;
    // iproute2 (6.15) makes one netkit pair per call: it takes the next one's `peer` for another of the first (static
    // variables in ip/iplink_netkit.c).
    let (alone, together): (Vec<&String>, Vec<&String>) =
        plan.links.iter().partition(|line| line.contains(" type netkit "));
    let batches = std::iter::once(together).chain(alone.into_iter().map(|line| vec![line]));
    let batches: Vec<String> =
        batches.map(|batch| batch.into_iter().map(|line| format!("{line}\n")).collect()).collect();
    netns::in_an_empty_one(|| batches.iter().try_for_each(|batch| run("ip", &["-batch", "-"], batch).map(drop)))
        .context("making links")?;
    let mut absent = Vec::new();
    let keys = Keys::default();
    for namespace in &plan.namespaces {
        absent.extend(netns::inside(&namespace.name, || set_up(namespace, &keys))?);
    }
    for namespace in &plan.namespaces {
        netns::inside(&namespace.name, || wait_for_links(&namespace.idle))?;
    }
    Ok(absent)
}

/// The required kinds of links that this kernel cannot make. One of them, and the lab stays empty.
fn lacking(required: &[Required]) -> Result<Vec<String>> {
    let mut lacking = Vec::new();
    for Required { kind, try_lines } in required {
        match netns::in_an_empty_one(|| run("ip", &["-batch", "-"], &lines(try_lines))) {
            Ok(_) => {}
            // iproute2 knows the kernel's EOPNOTSUPP by this name.
            Err(error) if format!("{error:#}").contains("Unknown device type") => {
                lacking.push(format!("no {kind}: this kernel has no such links, and the lab needs them: it is empty"));
            }
            Err(error) => return Err(error.context(format!("trying whether this kernel has {kind} links"))),
        }
    }
    Ok(lacking)
}

fn set_up(namespace: &Namespace, keys: &Keys) -> Result<Option<String>> {
    let Namespace { name, sysctls, ip, tunnel, rules, idle: _ } = namespace;
    for sysctl in sysctls {
        write_sysctl(sysctl)?;
    }
    run("ip", &["-batch", "-"], &lines(ip))?;
    let absent = match tunnel {
        Some(tunnel) => tunnel::make(tunnel, name, keys)?,
        None => None,
    };
    set_rules(rules)?;
    Ok(absent.map(|what| format!("{name}: {what}")))
}

fn set_rules(rules: &Rules) -> Result<()> {
    let Rules { sets, iptables, ip6tables, nft } = rules;
    let tools: [(&str, &[&str], &str); 4] = [
        ("ipset", &["restore"], sets),
        ("iptables-nft-restore", &[], iptables),
        ("ip6tables-nft-restore", &[], ip6tables),
        ("nft", &["-f", "-"], nft),
    ];
    for (tool, arguments, input) in tools.into_iter().filter(|(_, _, input)| !input.is_empty()) {
        run(tool, arguments, input)?;
    }
    Ok(())
}

/// Input of a batch tool.
pub(crate) fn lines(lines: &[String]) -> String {
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// `/proc/sys/net` shows the settings of the calling thread's network namespace.
pub(crate) fn write_sysctl(sysctl: &Sysctl) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(&sysctl.path);
    if sysctl.optional && !path.exists() {
        return Ok(());
    }
    fs::write(&path, sysctl.value).with_context(|| format!("writing `{}` to {}", sysctl.value, path.display()))
}

/// Wait until no link that is up lacks its carrier, but for `idle` ones: a link change reaches routes a moment after
/// `ip` returns.
fn wait_for_links(idle: &[String]) -> Result<()> {
    let start = Instant::now();
    let is_idle = |line: &str| idle.iter().any(|name| line.contains(&format!(": {name}: ")));
    loop {
        let links = run("ip", &["-o", "link", "show", "up"], "")?;
        let bridges = run("ip", &["-o", "link", "show", "up", "type", "bridge"], "")?;
        // A bridge is UNKNOWN only until it has looked at its ports.
        let unsettled = |line: &&str| !is_settled(line) || bridges.contains(*line) && line.contains("state UNKNOWN");
        let waiting: Vec<&str> = links.lines().filter(|line| unsettled(line) && !is_idle(line)).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        if start.elapsed() > LINK_PATIENCE {
            bail!("links without carrier: {}", waiting.join("; "));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Loopback and tunnels never leave state UNKNOWN.
fn is_settled(link: &str) -> bool {
    link.contains("LOWER_UP") && (link.contains("state UP") || link.contains("state UNKNOWN"))
}

/// Remove the network namespaces, and with them all that is in them.
pub(crate) fn remove(namespaces: &[String]) -> Result<()> {
    let batch: String = netns::names()?
        .iter()
        .filter(|name| namespaces.contains(name))
        .map(|name| format!("netns del {name}\n"))
        .collect();
    if !batch.is_empty() {
        run("ip", &["-batch", "-"], &batch)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_settled_once_it_has_carrier_and_its_state_says_so() {
        assert!(is_settled("1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN mode DEFAULT"));
        assert!(is_settled("2: ens5@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 9001 qdisc noqueue state UP"));
        assert!(!is_settled(
            "2: ens5@if2: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 9001 qdisc noqueue state LOWERLAYERDOWN"
        ));
        assert!(!is_settled("2: ens5@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 9001 qdisc noqueue state DOWN"));
    }
}
