//! How far the agents are, and what keeps those that are not. Pure: from what the API says to what a person reads.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod},
};

use crate::cluster::names;

/// How far the agents are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Agents of the newest version that run.
    pub ready: usize,
    /// How many there are to be: one per node.
    pub wanted: usize,
    /// What keeps others, alike ones together.
    pub troubles: Vec<Trouble>,
    /// The controller has seen the newest version.
    seen: bool,
    /// Pods that exist.
    scheduled: usize,
}

/// What keeps agents from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// On these nodes; empty: not on a particular one.
    pub nodes: Vec<String>,
    /// `ImagePullBackOff: ...`
    pub cause: String,
    /// What to do.
    pub way_out: String,
}

/// So many nodes are named; of more there is a number.
const NAMED: usize = 3;

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, cause, way_out } = self;
        match nodes.as_slice() {
            [] => {}
            [one] => write!(f, "node {one}: ")?,
            some if some.len() <= NAMED => write!(f, "nodes {}: ", some.join(", "))?,
            many => write!(f, "nodes {} and {} more: ", many[..NAMED].join(", "), many.len() - NAMED)?,
        }
        write!(f, "{cause}; {way_out}")
    }
}

impl Rollout {
    /// Whether there is an agent of the newest version on every node.
    pub fn is_complete(&self) -> bool {
        self.seen && self.ready >= self.wanted
    }

    /// The controller could not make all pods.
    pub(super) fn lacks_pods(&self) -> bool {
        self.seen && self.scheduled < self.wanted
    }

    /// Takes in what the controller says.
    pub(super) fn of_set(&mut self, set: &DaemonSet) {
        let count = |number: i32| usize::try_from(number).unwrap_or(0);
        let Some(status) = &set.status else { return };
        self.seen = status.observed_generation.unwrap_or(0) >= set.metadata.generation.unwrap_or(0);
        self.wanted = count(status.desired_number_scheduled);
        self.scheduled = count(status.current_number_scheduled);
        // Ready ones may be of the former version, updated ones may not be ready.
        self.ready = count(status.number_ready).min(count(status.updated_number_scheduled.unwrap_or(0)));
        if self.is_complete() {
            self.troubles.clear();
        }
    }

    /// Takes in what the pods say.
    pub(super) fn of_pods(&mut self, pods: &[Pod]) {
        // By what it is, so that a thousand nodes without the image make one line.
        let mut alike: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for pod in pods {
            if let Some(key) = trouble(pod) {
                alike.entry(key).or_default().push(node(pod).unwrap_or_default());
            }
        }
        self.troubles = alike
            .into_iter()
            .map(|((cause, way_out), mut nodes)| {
                nodes.retain(|node| !node.is_empty());
                nodes.sort();
                Trouble { nodes, cause, way_out }
            })
            .collect();
    }

    /// Takes in why pods were not made.
    pub(super) fn of_events(&mut self, events: &[Event]) {
        // They come in the order of their names, and those of one cause say it again and again.
        let latest = events.iter().max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
        if let Some(message) = latest.and_then(|event| event.message.as_deref()) {
            self.troubles.push(Trouble {
                nodes: Vec::new(),
                cause: format!("pods are not made: {}", message.trim_end_matches('.')),
                way_out: "an admission rule or quota of this cluster refuses them; see kubectl -n podpath describe daemonset podpath-agent".to_owned(),
            });
        }
    }
}

/// The node that a pod is meant for, before it is scheduled too.
pub(super) fn node(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let meant_for = || {
        let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let fields = terms.iter().filter_map(|term| term.match_fields.as_ref()).flatten();
        fields.filter(|field| field.key == "metadata.name").find_map(|field| field.values.as_ref()?.first().cloned())
    };
    spec.node_name.clone().or_else(meant_for)
}

/// Cause and way out; None: it runs, or is on the way to.
fn trouble(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let image = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.as_deref()).unwrap_or(names::IMAGE);
    if let Some(found) = containers.iter().find_map(|container| of_container(container, image)) {
        return Some(found);
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    (scheduled.status == "False").then(|| {
        let message = scheduled.message.as_deref().unwrap_or("not scheduled");
        (
            format!("no place for the agent: {}", message.trim_end_matches('.')),
            "see kubectl -n podpath describe pods".to_owned(),
        )
    })
}

fn of_container(container: &ContainerStatus, image: &str) -> Option<(String, String)> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or("waiting");
    let message = waiting.message.as_deref().map(one_line).filter(|message| !message.is_empty());
    match reason {
        // On their way.
        "ContainerCreating" | "PodInitializing" => None,
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable" => Some((format!("{reason}: image {image} is not there"), image_way_out(image))),
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
            Some((
                format!("{reason}: {}", last.map_or_else(|| "the agent ends at once".to_owned(), ended)),
                "an `exec format error` means an image for another processor; else see kubectl -n podpath logs POD --previous"
                    .to_owned(),
            ))
        }
        _ => {
            let cause = message.map_or_else(|| reason.to_owned(), |message| format!("{reason}: {message}"));
            Some((cause, "see kubectl -n podpath describe pods".to_owned()))
        }
    }
}

fn ended(state: &ContainerStateTerminated) -> String {
    match state.message.as_deref().map(one_line).filter(|message| !message.is_empty()) {
        Some(message) => format!("the agent ended with {}: {message}", state.exit_code),
        None => format!("the agent ended with {}", state.exit_code),
    }
}

/// How an image comes to a node. One without a registry cannot be pulled.
fn image_way_out(image: &str) -> String {
    if image.starts_with("localhost/") {
        "build it by cargo xtask image and load it there (kind load image-archive FILE, or on the node: ctr -n k8s.io images import FILE), or push it to a registry of yours \
         and podpath install --image"
            .to_owned()
    } else {
        "check that its registry has it and that nodes may pull from there; or load it: ctr -n k8s.io images import FILE"
            .to_owned()
    }
}

/// The first line, without what could steer a terminal.
fn one_line(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_owned()
}
