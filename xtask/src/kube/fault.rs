//! What can be wrong with the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that goes wrong from now on. Nodes are named as in the lab (`node1`) or as Kubernetes does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Every request is answered by 401.
    Unauthorized(bool),
    /// The next requests are answered by 429.
    TooMany {
        /// Seconds of the header `Retry-After`.
        retry_after: u32,
        /// How many requests.
        times: u32,
    },
    /// The next requests are answered by 500.
    Broken {
        /// How many requests.
        times: u32,
    },
    /// Every answer comes this much later, in milliseconds.
    Slow(u64),
    /// The connections of execs on a node are cut after so many bytes of output.
    CutExec {
        /// The node.
        node: String,
        /// Bytes, of both streams together; None: they are cut no more.
        after: Option<u64>,
    },
    /// Running execs are cut now.
    CutAllExecs,
    /// The client's end of input does not reach the process.
    NoHalfClose(bool),
    /// Exec speaks only `v4.channel.k8s.io`, as servers before 1.29 do, which has no end of input.
    OnlyV4(bool),
    /// A process whose client is gone runs on with its input open, as some container runtimes leave it.
    Orphans(bool),
    /// Images cannot be had on a node; pods that start there stay ImagePullBackOff.
    ImageMissing {
        /// The node.
        node: String,
        /// Whether.
        missing: bool,
    },
    /// The node is Ready or not; while it is not, pods do not start there and exec does not reach it.
    NodeReady {
        /// The node.
        node: String,
        /// Whether.
        ready: bool,
    },
    /// DaemonSets leave a node out, as if a taint kept them away; its pods of DaemonSets go.
    NoAgent {
        /// The node.
        node: String,
        /// Whether.
        without: bool,
    },
    /// How long starting and ending a pod takes from now on, in milliseconds.
    Delay(u64),
}

/// The faults that are in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) unauthorized: bool,
    pub(crate) too_many: (u32, u32),
    pub(crate) broken: u32,
    pub(crate) slow: Duration,
    pub(crate) cut_exec: BTreeMap<String, u64>,
    pub(crate) no_half_close: bool,
    pub(crate) only_v4: bool,
    pub(crate) orphans: bool,
    pub(crate) image_missing: BTreeSet<String>,
    pub(crate) not_ready: BTreeSet<String>,
    pub(crate) no_agent: BTreeSet<String>,
    pub(crate) delay: Duration,
}

impl Faults {
    /// `named` gives Kubernetes' name of a node.
    pub(crate) fn set(&mut self, fault: Fault, named: impl Fn(&str) -> String) {
        let put = |set: &mut BTreeSet<String>, node: &str, there: bool| {
            if there {
                set.insert(named(node))
            } else {
                set.remove(&named(node))
            };
        };
        match fault {
            Fault::Unauthorized(on) => self.unauthorized = on,
            Fault::TooMany { retry_after, times } => self.too_many = (retry_after, times),
            Fault::Broken { times } => self.broken = times,
            Fault::Slow(ms) => self.slow = Duration::from_millis(ms),
            Fault::CutExec { node, after: Some(after) } => drop(self.cut_exec.insert(named(&node), after)),
            Fault::CutExec { node, after: None } => drop(self.cut_exec.remove(&named(&node))),
            Fault::NoHalfClose(on) => self.no_half_close = on,
            Fault::OnlyV4(on) => self.only_v4 = on,
            Fault::Orphans(on) => self.orphans = on,
            Fault::ImageMissing { node, missing } => put(&mut self.image_missing, &node, missing),
            Fault::NodeReady { node, ready } => put(&mut self.not_ready, &node, !ready),
            Fault::NoAgent { node, without } => put(&mut self.no_agent, &node, without),
            Fault::Delay(ms) => self.delay = Duration::from_millis(ms),
            // Of the moment; nothing to remember.
            Fault::CutAllExecs => {}
        }
    }
}

/// Takes one of a number of times; whether there was one.
pub(crate) fn take(times: &mut u32) -> bool {
    let there = *times > 0;
    *times = times.saturating_sub(1);
    there
}
