//! Labs: the clusters of `scenarios/labs/*.toml` rebuilt from network namespaces on this machine, with
//! their names, addresses, interface indexes, MTUs, routes and netfilter rules.
//!
//! A lab NAME owns the namespaces `NAME-<host>` in `/run/netns` and the folder `/run/podpath/lab/NAME`,
//! and nothing else: no link, route or rule in the root namespace, and no process.
//! Labs of different names stand side by side.
//!
//! Hosts are the nodes, the pods, and three more outside of every node: the *wire* (a bridge between the
//! nodes), the *gateway* (default gateway; it translates a second time, as a cloud provider does) and the
//! *internet*.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

mod build;
mod identity;
mod netns;
mod part;
pub(crate) mod plan;
pub mod plant;
pub(crate) mod profile;
mod rules;
pub mod service;
mod state;
mod tool;
mod tunnel;

pub use netns::inside;
pub use part::up_part;
pub(crate) use state::digest;
pub use tool::{PACKAGES, run};

use plan::{Plan, namespace};
use profile::{GATEWAY, INTERNET, Profile, WIRE};
use state::State;

/// A lab, as `lab.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabInfo {
    /// Its name, which the namespaces' names begin with.
    pub name: String,
    /// The profile it was built from.
    pub profile: String,
    /// Digest over everything that `up` did: another digest is another lab.
    pub definition: String,
    /// Whether it was built to its end, and all its namespaces are still there.
    pub complete: bool,
    /// What `podpath --inventory` takes.
    pub inventory: PathBuf,
    /// The Kubernetes objects of the cluster, which the inventory refers to.
    pub identity: PathBuf,
    /// The nodes, control plane last.
    pub nodes: Vec<LabNode>,
    /// The pods that have a network namespace.
    pub pods: Vec<LabPod>,
    /// Network namespace of the bridge between the nodes; its ports are named after the nodes' `host`.
    pub wire: String,
    /// Network namespace of the nodes' default gateway.
    pub gateway: String,
    /// Network namespace that answers for the Internet.
    pub internet: String,
    /// Every network namespace of the lab.
    pub namespaces: Vec<String>,
    /// What the profile has and this kernel cannot make, each with its reason.
    pub absent: Vec<String>,
}

/// A node of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabNode {
    /// Kubernetes' name of the node.
    pub name: String,
    /// Its short name in the lab.
    pub host: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its InternalIP.
    pub address: Ipv4Addr,
    /// The second one, of a dual-stack cluster.
    pub address6: Option<Ipv6Addr>,
    /// Its interface to the wire.
    pub nic: String,
}

/// The short names of a profile's nodes.
pub(crate) fn hosts(profile: &str) -> Result<Vec<String>> {
    Ok(Profile::named(profile)?.nodes.into_iter().map(|node| node.host).collect())
}

/// A pod of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabPod {
    /// Kubernetes' name of the pod.
    pub name: String,
    /// Its Kubernetes namespace.
    pub kubernetes_namespace: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The second one, of a dual-stack cluster.
    pub address6: Option<Ipv6Addr>,
    /// The `host` of its node.
    pub node: String,
    /// The node's end of its veth pair.
    pub host_interface: String,
}

impl LabInfo {
    /// The node of that short or Kubernetes name.
    ///
    /// # Errors
    /// When there is none; the error lists the nodes.
    pub fn node(&self, name: &str) -> Result<&LabNode> {
        self.nodes.iter().find(|node| node.host == name || node.name == name).with_context(|| {
            let hosts: Vec<&str> = self.nodes.iter().map(|node| node.host.as_str()).collect();
            format!("lab {}: no node `{name}`; nodes: {}", self.name, hosts.join(", "))
        })
    }

    /// The pod of that name.
    ///
    /// # Errors
    /// When there is none; the error lists the pods.
    pub fn pod(&self, name: &str) -> Result<&LabPod> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| {
            let pods: Vec<&str> = self.pods.iter().map(|pod| pod.name.as_str()).collect();
            format!("lab {}: no pod `{name}`; pods: {}", self.name, pods.join(", "))
        })
    }

    /// The network namespace of that host: a node, a pod, `gateway`, `internet` or `wire`.
    ///
    /// # Errors
    /// When there is none; the error lists the hosts.
    pub fn host(&self, name: &str) -> Result<&str> {
        let wanted = namespace(&self.name, name);
        self.namespaces.iter().find(|known| **known == wanted).map(String::as_str).with_context(|| {
            let hosts: Vec<&str> =
                self.namespaces.iter().filter_map(|known| known.strip_prefix(&self.name)?.strip_prefix('-')).collect();
            format!("lab {}: no host `{name}`; hosts: {}", self.name, hosts.join(", "))
        })
    }

    fn describe(lab: &str, profile_name: &str, profile: &Profile, definition: String) -> LabInfo {
        let directory = state::directory(lab);
        let nodes = profile.nodes.iter().map(|node| LabNode {
            name: node.name.clone(),
            host: node.host.clone(),
            namespace: namespace(lab, &node.host),
            address: node.address,
            address6: node.address6,
            nic: profile.nic.clone(),
        });
        let pods = profile.nodes.iter().flat_map(|node| {
            node.pods.iter().map(|pod| LabPod {
                name: pod.name.clone(),
                kubernetes_namespace: pod.namespace.clone(),
                namespace: namespace(lab, &pod.name),
                address: pod.address,
                address6: pod.address6,
                node: node.host.clone(),
                host_interface: profile.host_interface(pod),
            })
        });
        LabInfo {
            name: lab.to_owned(),
            profile: profile_name.to_owned(),
            definition,
            complete: false,
            inventory: directory.join(state::INVENTORY),
            identity: directory.join(state::IDENTITY),
            nodes: nodes.collect(),
            pods: pods.collect(),
            wire: namespace(lab, WIRE),
            gateway: namespace(lab, GATEWAY),
            internet: namespace(lab, INTERNET),
            namespaces: profile.hosts().map(|host| namespace(lab, host)).collect(),
            absent: Vec::new(),
        }
    }
}

/// Bring up the lab `name` from `profile`. A complete lab of that name and definition is returned as it is;
/// a half-built or different one is replaced.
///
/// # Errors
/// An unknown profile (the error lists the profiles), a name that cannot be part of a namespace's name,
/// no root, a missing tool, or a step that failed; then nothing of the lab remains.
pub fn up(name: &str, profile: &str) -> Result<LabInfo> {
    up_as(name, profile, &Profile::named(profile)?)
}

/// The same of any profile; `profile` is what it is called.
pub(crate) fn up_as(name: &str, profile: &str, cluster: &Profile) -> Result<LabInfo> {
    check_name(name)?;
    check_root()?;
    let plan = Plan::new(name, cluster);
    let identity = identity::yaml(cluster)?;
    let definition = digest(&(&plan, &identity))?;

    let state = State::lock()?;
    if let Ok(Some(standing)) = state.read(name)
        && standing.complete
        && standing.profile == profile
        && standing.definition == definition
    {
        return Ok(standing);
    }
    tear_down(&state, name)?;
    let mut info = LabInfo::describe(name, profile, cluster, definition);
    build_all(&state, &plan, &identity, &mut info)
        .inspect_err(|_| {
            // The first failure is the one to report; what remains now, `down` reports.
            let _ = tear_down(&state, name);
        })
        .with_context(|| format!("bringing up lab {name}"))?;
    Ok(info)
}

fn build_all(state: &State, plan: &Plan, identity: &str, info: &mut LabInfo) -> Result<()> {
    // Written first, so that whatever is made after it is known to `down`.
    state.write(info)?;
    info.absent = build::build(plan)?;
    info.complete = true;
    state.write_files(info, identity)?;
    state.write(info)
}

/// Remove the lab `name`, also a half-built one and one whose state file is gone, and end the processes in its
/// network namespaces. No such lab: nothing to do.
///
/// # Errors
/// No root, or a namespace, process or file that cannot be removed.
pub fn down(name: &str) -> Result<()> {
    check_name(name)?;
    check_root()?;
    let state = State::lock()?;
    tear_down(&state, name).with_context(|| format!("removing lab {name}"))
}

fn tear_down(state: &State, name: &str) -> Result<()> {
    let namespaces = state.namespaces(name)?;
    netns::kill_residents(&namespaces)?;
    build::remove(&namespaces)?;
    state.remove(name)
}

/// Every lab on this machine that has a state file, by name; `complete` says whether it can be used.
///
/// # Errors
/// A state file that cannot be read.
pub fn status() -> Result<Vec<LabInfo>> {
    let state = State::lock()?;
    let mut labs = Vec::new();
    for name in state.names()? {
        labs.extend(state.read(&name)?);
    }
    Ok(labs)
}

/// The turn of whoever runs scenarios or generated networks on this machine: their labs are called the same for all. It ends
/// when the file is closed.
///
/// # Errors
/// The folder of the labs cannot be made or locked.
pub fn turn() -> Result<fs::File> {
    const FOLDER: &str = "/run/podpath";
    fs::create_dir_all(FOLDER).with_context(|| format!("creating {FOLDER}"))?;
    let folder = fs::File::open(FOLDER).with_context(|| format!("opening {FOLDER}"))?;
    folder.lock().with_context(|| format!("locking {FOLDER}"))?;
    Ok(folder)
}

/// A name that is a file name and a beginning of a namespace's name, and looks the same in a shell.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !name.is_empty() && name.len() <= 40 && name.chars().all(plain) && !name.starts_with('-'),
        "`{name}` cannot name a lab: 1 to 40 of a-z, 0-9 and -, not beginning with -"
    );
    Ok(())
}

fn check_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "labs are network namespaces, which only root can make: run as root, e.g. `sudo -E cargo xtask ...`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["calico-bgp", "a", "lab2"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "A", "a/b", "a b", "..", &"a".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn info_reads_back_as_written() {
        let profile = Profile::named("calico-bgp").unwrap();
        let info = LabInfo::describe("x", "calico-bgp", &profile, "d".to_owned());
        let text = serde_json::to_string(&info).unwrap();
        assert_eq!(serde_json::from_str::<LabInfo>(&text).unwrap(), info);
    }

    #[test]
    fn a_wrong_node_or_pod_is_answered_with_the_right_ones() {
        let profile = Profile::named("calico-bgp").unwrap();
        let info = LabInfo::describe("x", "calico-bgp", &profile, String::new());
        assert_eq!(info.node("ip-172-20-58-60.ec2.internal").unwrap().host, "node2");
        assert_eq!(info.node("node9").unwrap_err().to_string(), "lab x: no node `node9`; nodes: node1, node2, node3");
        assert_eq!(info.host("internet").unwrap(), "x-internet");
        let error = info.host("moon").unwrap_err().to_string();
        assert_eq!(
            error,
            "lab x: no host `moon`; hosts: wire, gateway, internet, node1, bb1, web, bb3, node2, bb2, node3"
        );
        assert_eq!(info.pod("bb9").unwrap_err().to_string(), "lab x: no pod `bb9`; pods: bb1, web, bb3, bb2");
    }
}
