//! What a command can fail with, and how that is printed.

use std::io;
use std::path::PathBuf;

use crate::{cluster, identity, recording, session};

/// Why a command could not do its work. Messages have the form `thing: cause; way out`, as all of the library's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Error {
    /// No lab runs, and nothing else was named.
    #[error(
        "nodes: none known: no kubeconfig ($KUBECONFIG, ~/.kube/config) and no running lab; name a cluster with --kubeconfig FILE, nodes with --inventory FILE, trace on this machine only with --local, or start a lab with `cargo xtask lab up calico-bgp`"
    )]
    NoLab,
    /// Several labs run.
    #[error("nodes: several labs are running; choose one: {}", choices(.0))]
    SeveralLabs(Vec<String>),
    /// The named lab does not run.
    #[error("--lab {wanted}: no such lab is running; {}", running_labs(.running))]
    NoSuchLab {
        /// Its name.
        wanted: String,
        /// Those that run.
        running: Vec<String>,
    },
    /// No node is called so.
    #[error("node {wanted}: there is none of that name; there are: {}", some_of(.known))]
    NoSuchNode {
        /// As typed.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The inventory could not be used.
    #[error(transparent)]
    Inventory(#[from] session::InventoryError),
    /// The identity file could not be used, or a name not be resolved.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Nobody knows the name.
    #[error("{}", neither(.unknown, .name, .cause))]
    HostName {
        /// What identity said.
        unknown: String,
        /// The name.
        name: String,
        /// What the resolver said.
        cause: io::Error,
    },
    /// Source and destination have no address of one family, or not of the one that was asked for.
    #[error("{}", families(.source_name, .destination, .wanted))]
    NoCommonFamily {
        /// As typed, with its addresses.
        source_name: String,
        /// As typed, with its addresses.
        destination: String,
        /// The option that asked for a family.
        wanted: Option<char>,
    },
    /// The source lives on no node of the inventory.
    #[error(
        "{source_name}: {}, so no probes can be sent from there{}; {}",
        whereabouts(.node.as_deref(), *known), traced(.nodes), elsewhere(.node.as_deref(), *known)
    )]
    SourceOnNoNode {
        /// As typed.
        source_name: String,
        /// It is a pod or a node.
        known: bool,
        /// Where it lives.
        node: Option<String>,
        /// The inventory's nodes.
        nodes: Vec<String>,
    },
    /// A service has not that port, or several and none was named.
    #[error("{service}: {}; {}", no_port(.asked.as_deref()), ports(.known))]
    ServicePort {
        /// `namespace/svc/name`
        service: String,
        /// `--tcp 80`; None: no port.
        asked: Option<String>,
        /// `443/TCP (https)`
        known: Vec<String>,
    },
    /// Nothing is sent by it.
    #[error("{name}: a service sends nothing, its pods do; name a pod as source")]
    ServiceAsSource {
        /// As typed.
        name: String,
    },
    /// A session cannot be had in this process.
    #[error(transparent)]
    Local(#[from] session::Failure),
    /// A session failed.
    #[error(transparent)]
    Session(Box<session::DriveError>),
    /// Asked to end before there was anything to show.
    #[error("trace: interrupted before the first packet was seen; start it again")]
    Interrupted,
    /// There is no cluster that could be asked, it refuses, or what was to be done there did not come about.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// No threads or descriptors for the work.
    #[error("podpath could not start its threads: {0}; check the limits on threads and open files (ulimit -a)")]
    Runtime(#[source] io::Error),
    /// There is nothing to draw on.
    #[error("watch: standard output is no terminal; run it in one, or use `podpath record`")]
    NoTerminal,
    /// The result could not be written.
    #[error("standard output: {0}; nothing more was written")]
    Output(#[source] io::Error),
    /// A recording cannot be written or read.
    #[error(transparent)]
    Recording(#[from] recording::Error),
    /// The result could not be saved.
    #[error("save the trace to {}: {source}", .path.display())]
    Save {
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl From<session::DriveError> for Error {
    fn from(error: session::DriveError) -> Self {
        Self::Session(Box::new(error))
    }
}

fn no_port(asked: Option<&str>) -> String {
    match asked {
        Some(asked) => format!("{asked} asks for a port that it has not"),
        None => "a service answers no pings, and this one has not just one port to probe instead".to_owned(),
    }
}

fn ports(known: &[String]) -> String {
    match known {
        [] => "it has none that can be probed (TCP, UDP)".to_owned(),
        known => format!("choose by --tcp or --udp of {}", known.join(", ")),
    }
}

/// `unknown` may end in a way out, which is to stand last.
fn neither(unknown: &str, name: &str, cause: &io::Error) -> String {
    let (what, way_out) = unknown.split_once("; ").unwrap_or((unknown, "give an address"));
    format!("{what}, and this machine's resolver says of the host name {name}: {cause}; {way_out}")
}

fn choices(labs: &[String]) -> String {
    labs.iter().map(|lab| format!("--lab {lab}")).collect::<Vec<_>>().join(", ")
}

/// Enough to see what they look like.
fn some_of(names: &[String]) -> String {
    const SOME: usize = 10;
    match names.len().saturating_sub(SOME) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..SOME].join(", ")),
    }
}

fn running_labs(labs: &[String]) -> String {
    if labs.is_empty() {
        "start one with `cargo xtask lab up`".to_owned()
    } else {
        format!("running: {}", labs.join(", "))
    }
}

fn whereabouts(node: Option<&str>, known: bool) -> String {
    match node {
        Some(node) => format!("it lives on node {node}, which is not traced"),
        None if known => "nobody knows which node it lives on".to_owned(),
        None => "no pod and no node known here has this address".to_owned(),
    }
}

fn traced(nodes: &[String]) -> String {
    if nodes.is_empty() { String::new() } else { format!(" (traced: {})", nodes.join(", ")) }
}

fn elsewhere(node: Option<&str>, known: bool) -> &'static str {
    if node.is_none() && !known {
        "name a pod or a node as source (a machine outside the cluster, such as the one that runs kind's nodes as containers, \
         often has no way to pod addresses), or watch what comes from there with --passive"
    } else {
        "add its node to the inventory, name a pod of these nodes, or watch traffic that it sends itself with --passive"
    }
}

fn families(source: &str, destination: &str, wanted: &Option<char>) -> String {
    match wanted {
        Some(family) => format!(
            "{source} -> {destination}: -{family} asks for IPv{family} addresses, and not both ends have one; leave it out, \
             or name other ends"
        ),
        None => format!(
            "{source} -> {destination}: one end has only IPv4 and the other only IPv6 addresses; name two of one family"
        ),
    }
}

/// As it is printed: `podpath: thing: cause`, and the way out on a line of its own.
pub(super) fn lines(error: &Error) -> String {
    let text = error.to_string();
    let own_line = text.lines().skip(1).last().is_some_and(|last| last.starts_with("  "));
    match text.rsplit_once("; ") {
        Some((what, way_out)) if !own_line => format!("podpath: {what}\n  {way_out}\n"),
        _ => format!("podpath: {text}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_the_thing_the_cause_and_the_way_out() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let all = [
            Error::NoLab,
            Error::SeveralLabs(names(&["calico-bgp", "kind-calico"])),
            Error::NoSuchLab { wanted: "x".into(), running: names(&["calico-bgp"]) },
            Error::NoSuchLab { wanted: "x".into(), running: Vec::new() },
            Error::HostName {
                unknown:
                    "www.example.com: no such pod or node in lab calico-bgp; see which there are: kubectl get pods"
                        .into(),
                name: "www.example.com".into(),
                cause: io::Error::other("Name or service not known"),
            },
            Error::NoCommonFamily { source_name: "bb1 (10.0.0.1)".into(), destination: "fd00::1".into(), wanted: None },
            Error::NoCommonFamily {
                source_name: "bb1 (10.0.0.1)".into(),
                destination: "bb2 (10.0.0.2, fd00::2)".into(),
                wanted: Some('6'),
            },
            Error::SourceOnNoNode {
                source_name: "bb7".into(),
                known: true,
                node: Some("node-7".into()),
                nodes: names(&["node-1"]),
            },
            Error::SourceOnNoNode {
                source_name: "10.1.1.1".into(),
                known: false,
                node: None,
                nodes: names(&["node-1", "node-2"]),
            },
            Error::Interrupted,
            Error::Output(io::Error::other("No space left on device")),
            Error::Save { path: "/full/trace.json".into(), source: io::Error::other("No space left on device") },
        ];
        let text: String = all.iter().map(lines).collect();
        insta::assert_snapshot!(text);
    }
}
