//! Carrying out a plan, and undoing one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::netns;
use super::plan::{Namespace, Plan, Sysctl, Tunnel};
use super::tool::run;

/// How long links may take to come up. They need some milliseconds.
const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// Make everything in the plan; what this kernel cannot make is returned, each with the reason.
pub(crate) fn build(plan: &Plan) -> Result<Vec<String>> {
    run("ip", &["-batch", "-"], &lines(&plan.links)).context("making namespaces and links")?;
    let mut absent = Vec::new();
    for namespace in &plan.namespaces {
        absent.extend(netns::inside(&namespace.name, || set_up(namespace))?);
    }
    for namespace in &plan.namespaces {
        netns::inside(&namespace.name, wait_for_links)?;
    }
    Ok(absent)
}

fn set_up(namespace: &Namespace) -> Result<Option<String>> {
    let Namespace { name: _, sysctls, ip, tunnel, sets, rules } = namespace;
    for sysctl in sysctls {
        write_sysctl(sysctl)?;
    }
    run("ip", &["-batch", "-"], &lines(ip))?;
    let absent = match tunnel {
        Some(tunnel) => make_tunnel(tunnel)?,
        None => None,
    };
    if !sets.is_empty() {
        run("ipset", &["restore"], sets)?;
    }
    if !rules.is_empty() {
        run("iptables-nft-restore", &[], rules)?;
    }
    Ok(absent.map(|what| format!("{}: {what}", namespace.name)))
}

fn lines(lines: &[String]) -> String {
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

/// Make the IP-in-IP device, or say why there is none.
///
/// Where `net.core.fb_tunnels_only_for_init_net` is 0, the kernel has put a fallback device of that name into the
/// namespace, before the NIC or (when the module is loaded by our request) after it. The order of devices decides
/// which address a node's ICMP errors carry, so that one steps aside and ours is always the younger.
fn make_tunnel(tunnel: &Tunnel) -> Result<Option<String>> {
    let Tunnel { name, address, local, mtu } = tunnel;
    step_aside(name)?;
    let add = format!("link add {name} mtu {mtu} type ipip local {local}");
    let add: Vec<&str> = add.split(' ').collect();
    let made = run("ip", &add, "").or_else(|error| match step_aside(name)? {
        true => run("ip", &add, ""),
        false => Err(error),
    });
    if let Err(error) = made {
        return match error.to_string().contains("Unknown device type") {
            true => Ok(Some(format!("no {name}: this kernel has no IP-in-IP device"))),
            false => Err(error),
        };
    }
    let batch = format!("addr add {address}/32 dev {name}\nlink set {name} up\n");
    run("ip", &["-batch", "-"], &batch)?;
    Ok(None)
}

/// Rename the fallback device that has taken `name`; whether there was one.
fn step_aside(name: &str) -> Result<bool> {
    if run("ip", &["link", "show", "dev", name], "").is_err() {
        return Ok(false);
    }
    let batch = format!("link set {name} down\nlink set {name} name {name}-fallback\n");
    run("ip", &["-batch", "-"], &batch)?;
    Ok(true)
}

/// Wait until no link that is up lacks its carrier: a link change reaches routes a moment after `ip` returns.
fn wait_for_links() -> Result<()> {
    let start = Instant::now();
    loop {
        let links = run("ip", &["-o", "link", "show", "up"], "")?;
        let waiting: Vec<&str> = links.lines().filter(|line| !is_settled(line)).collect();
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
