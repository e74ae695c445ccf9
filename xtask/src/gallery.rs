//! `cargo xtask gallery`: `docs/GALLERY.md`, what podpath prints for each kind of path, from real runs of the scenarios.

use std::{collections::HashMap, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{build, proc, scenario, vm, workspace_root};

/// Set for the scenarios' tests: a folder to which each writes what a person reads, at [`WIDTH`] columns.
pub const FOLDER: &str = "PODPATH_GALLERY";
/// Columns.
pub const WIDTH: &str = "100";

/// All of it together.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Chapters, and the scenarios in them.
const CHAPTERS: &[(&str, &[&str])] = &[
    (
        "Ways between pods",
        &[
            "a-same-node",
            "a-cross-node",
            "a-ipip-cross-node",
            "b-vxlan-cross-node",
            "c-wireguard-cross-node",
            "d-cross-node",
            "e-vxlan-cross-node",
            "b-dual-v6-cross-node",
            "a-internet",
            "a-passive",
        ],
    ),
    (
        "NAT on the way",
        &[
            "b-nat-outgoing-address",
            "a-egress-gateway",
            "a-double-nat",
            "d-masq-agent",
            "a-snat-between-pods",
            "e-vxlan-front",
            "a-masq-policy",
            "a-no-nat-outgoing",
            "a-nat-ports",
            "a-conntrack-full",
            "a-asymmetric",
            "a-asymmetric-nat",
        ],
    ),
    (
        "Interfaces on interfaces, several networks, loopback",
        &[
            "c-vlan-cross-node",
            "c-bond-cross-node",
            "c-netkit-same-node",
            "m-macvlan-cross-node",
            "m-macvlan-same-node",
            "m-ipvlan-cross-node",
            "m-default-internet",
            "e-node-to-pod",
            "a-loopback",
        ],
    ),
    (
        "Past IP: eBPF, XDP, tc, copies",
        &[
            "d-program-peer",
            "d-program-neigh",
            "a-program-tc-neigh",
            "a-program-tc-drop",
            "b-program-xdp-drop",
            "b-program-xdp-pod-drop",
            "d-bandwidth",
            "d-mirror",
            "e-flood",
            "c-gso-off",
        ],
    ),
    (
        "Services and node ports",
        &[
            "a-svc-cross-node",
            "a-svc-iptables",
            "a-svc-self",
            "a-svc-from-node",
            "a-node-port",
            "a-node-port-local",
            "a-host-port",
            "a-svc-none-iptables",
            "a-svc-none",
            "a-svc-none-from-node",
            "a-svc-gone-from-node",
            "a-svc-not-ready",
            "a-svc-ports",
            "a-svc-refused",
            "a-svc-udp-closed",
            "a-svc-blackhole",
            "a-svc-unreachable",
            "a-stale-backend",
            "a-stale-rules",
            "a-svc-balancer",
        ],
    ),
    (
        "From outside of the cluster",
        &[
            "a-outside-node-port",
            "a-outside-node-port-local",
            "a-outside-node-port-nobody",
            "b-outside-node-port-vxlan",
            "a-outside-balancer",
            "a-outside-balancer-nft",
            "a-outside-balancer-ranges",
        ],
    ),
    (
        "Dropped or refused by a rule",
        &[
            "a-policy-drop",
            "a-policy-drop-traced",
            "a-policy-deny",
            "a-invalid-drop",
            "a-forward-drop",
            "a-forward-drop-twins",
            "a-forward-reject",
            "a-node-output-drop",
            "a-pod-output-drop",
            "d-tcp-reject",
            "b-vxlan-firewall",
            "b-vxlan-firewall-out",
        ],
    ),
    (
        "No way on",
        &[
            "a-blackhole",
            "a-no-route",
            "a-pod-no-route",
            "c-stray",
            "a-unreachable",
            "a-unresolved",
            "a-unresolved-soon",
            "a-gateway-silent",
            "a-rp-filter",
            "a-not-forwarding",
            "a-loop",
            "a-ttl",
            "a-pod-link-down",
        ],
    ),
    ("Too big", &["a-too-big", "a-too-big-filtered", "b-vxlan-black-hole"]),
    (
        "Lost, slow, closed",
        &[
            "a-request-lost",
            "a-reply-lost",
            "a-delay-wire",
            "a-delay-node1",
            "d-tcp-refused",
            "d-udp-closed",
            "d-udp-closed-node",
        ],
    ),
];

const HEAD: &str = "\
# What podpath prints

Written by `cargo xtask gallery`: each text below is of a real run, in a lab of network namespaces on one machine, at 100 columns. What the labs
are and what is planted in them stands in `scenarios/`, under the name beside each title; the same files are run as tests.
";

/// What the kernel of this machine cannot make is shown on this one, in a virtual machine.
const OTHER_KERNEL: &str = "6.12";

/// Runs the scenarios and writes the page.
///
/// # Errors
/// One of them fails, or a virtual machine cannot be had for what this kernel cannot make.
pub fn write() -> Result<()> {
    build::kernel_object()?;
    let folder = tempfile::tempdir().context("create a folder for the texts")?;
    let names: Vec<&str> = CHAPTERS.iter().flat_map(|(_, names)| *names).copied().collect();
    let mut build = Command::new(crate::cargo());
    build.args(["build", "--quiet"]).current_dir(workspace_root());
    proc::quiet(&mut build)?;
    let mut command = Command::new(crate::cargo());
    command
        .args(["test", "--quiet", "-p", "xtask", "--test", "scenarios"])
        .current_dir(workspace_root())
        .env("PODPATH_SCENARIOS", names.join(","))
        .env(FOLDER, folder.path());
    if !proc::shown(&mut command, LIMIT)?.success() {
        bail!("a scenario failed, and what it shows is not to be shown\nway out: cargo test -p xtask --test scenarios");
    }
    let page = workspace_root().join("docs/GALLERY.md");
    fs::write(&page, text(folder.path())?).with_context(|| format!("write {}", page.display()))?;
    println!("{}", page.display());
    Ok(())
}

fn text(folder: &Path) -> Result<String> {
    let scenarios = scenario::load(&workspace_root().join("scenarios"))?;
    let names = || CHAPTERS.iter().flat_map(|(_, names)| *names).copied();
    let here: HashMap<&str, String> =
        names().filter_map(|name| Some((name, fs::read_to_string(folder.join(name)).ok()?))).collect();
    // They need what this kernel has not, such as tunl0.
    let absent: Vec<&str> = names().filter(|name| !here.contains_key(name)).collect();
    let (there, release) = match absent.as_slice() {
        [] => Default::default(),
        absent => vm::gallery(OTHER_KERNEL, absent)?,
    };
    let mut page = HEAD.to_owned();
    for (title, names) in CHAPTERS {
        page.push_str(&format!("\n## {title}\n"));
        for name in *names {
            let (_, scenario) =
                scenarios.iter().find(|(known, _)| known == name).with_context(|| format!("no scenario {name}"))?;
            page.push_str(&format!("\n### {} (`{name}`)\n\n", scenario.about));
            let shown = match (here.get(name), there.get(*name)) {
                (Some(shown), _) => shown,
                (None, Some(shown)) => {
                    page.push_str(&format!("On Linux {release}, in an emulated machine, where all takes longer.\n\n"));
                    shown
                }
                (None, None) => bail!("scenario {name} runs neither here nor on Linux {release}"),
            };
            let lines = format!("$ podpath trace {}\n{shown}", scenario.trace);
            for line in lines.lines() {
                page.push_str(format!("    {line}").trim_end());
                page.push('\n');
            }
        }
    }
    Ok(page)
}
