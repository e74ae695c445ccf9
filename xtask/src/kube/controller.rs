//! What controllers, scheduler and kubelets do: DaemonSets and Jobs get pods, pods start and end, namespaces empty.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    clock,
    fault::Faults,
    kinds::Kind,
    store::{self, Key, Store},
    world::World,
};
use crate::lab::LabInfo;

/// How often they look although nothing changed: time passes, too.
const LOOK: Duration = Duration::from_millis(25);
/// Of a DaemonSet's pods: what their template was.
const HASH: &str = "controller-revision-hash";

/// Works until the process ends.
pub(crate) async fn run(world: Arc<World>) {
    let mut controllers = Controllers::default();
    loop {
        let faults = world.faults().clone();
        let ended = world.change(|store| controllers.look(store, &faults, &world.lab));
        for uid in ended {
            world.kill(&uid);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[derive(Default)]
struct Controllers {
    /// When something was first seen in a state that does not last: a UID and the state.
    since: HashMap<(String, &'static str), Instant>,
}

impl Controllers {
    /// One look at everything; returns the UIDs of pods whose processes end.
    fn look(&mut self, store: &mut Store, faults: &Faults, lab: &LabInfo) -> Vec<String> {
        let mut ended = Vec::new();
        nodes(store, faults);
        self.namespaces(store, faults, &mut ended);
        for (key, set) in all(store, "apps", "daemonsets") {
            daemon_set(store, faults, lab, &key, &set);
        }
        for (key, set) in all(store, "batch", "jobs") {
            self.job(store, &key, &set);
        }
        orphans(store, lab);
        for (key, pod) in all(store, "", "pods") {
            if lab.node(text(&pod, "/spec/nodeName")).is_ok() || text(&pod, "/spec/nodeName").is_empty() {
                self.pod(store, faults, &key, &pod, &mut ended);
            }
        }
        ended
    }

    /// Whether an object has been in a state for that long.
    fn lasts(&mut self, object: &Value, state: &'static str, long: Duration) -> bool {
        let uid = text(object, "/metadata/uid").to_owned();
        self.since.entry((uid, state)).or_insert_with(Instant::now).elapsed() >= long
    }

    fn namespaces(&mut self, store: &mut Store, faults: &Faults, ended: &mut Vec<String>) {
        for (key, namespace) in all(store, "", "namespaces") {
            if namespace["metadata"].get("deletionTimestamp").is_none() {
                continue;
            }
            for inside in store.within(&key.name) {
                if let Some(object) = store.remove(&inside)
                    && inside.is("pods")
                {
                    ended.push(text(&object, "/metadata/uid").to_owned());
                }
            }
            if self.lasts(&namespace, "terminating", faults.delay) {
                store.remove(&key);
            }
        }
    }

    /// Gives a Job its one pod; ends it at its deadline, and removes it a while after that.
    fn job(&mut self, store: &mut Store, key: &Key, job: &Value) {
        let seconds = |field: &str| job["spec"][field].as_u64().map(Duration::from_secs);
        if job["status"]["failed"].is_u64() {
            if seconds("ttlSecondsAfterFinished").is_some_and(|kept| self.lasts(job, "ended", kept)) {
                store.remove(key);
            }
            return;
        }
        let late = seconds("activeDeadlineSeconds").is_some_and(|limit| self.lasts(job, "active", limit));
        let pods = owned(store, text(job, "/metadata/uid"));
        if late {
            pods.iter().for_each(|(key, pod)| terminate(store, key, pod));
            let mut new = job.clone();
            new["status"] = json!({ "failed": 1, "conditions": [ { "type": "Failed", "status": "True", "reason": "DeadlineExceeded" } ] });
            store.put(key.clone(), new);
        } else if pods.is_empty() {
            let node = text(job, "/spec/template/spec/nodeName");
            let mut pod = pod_of(job, node);
            pod["metadata"]["labels"]["job-name"] = json!(key.name);
            store.put(Key::pod(&key.namespace, &format!("{}-{}", key.name, store::suffix())), pod);
        }
    }

    fn pod(&mut self, store: &mut Store, faults: &Faults, key: &Key, pod: &Value, ended: &mut Vec<String>) {
        let mut new = pod.clone();
        let phase = text(pod, "/status/phase");
        if pod["metadata"].get("deletionTimestamp").is_some() {
            if self.lasts(pod, "terminating", faults.delay) {
                ended.push(text(pod, "/metadata/uid").to_owned());
                store.remove(key);
            }
            return;
        }
        let node = text(pod, "/spec/nodeName").to_owned();
        if node.is_empty() {
            let Some(node) = schedule(store, faults, pod) else { return };
            new["spec"]["nodeName"] = json!(node);
        } else if matches!(phase, "" | "Pending") {
            if faults.not_ready.contains(&node) || !self.lasts(pod, "starting", faults.delay) {
                return;
            }
            let address = address(store, &node);
            if faults.image_missing.contains(&node) {
                waiting(&mut new, &address);
            } else {
                running(&mut new, &address);
            }
        } else if phase == "Running" {
            let ready = if faults.not_ready.contains(&node) { "False" } else { "True" };
            for condition in new["status"]["conditions"].as_array_mut().into_iter().flatten() {
                if condition["type"] == "Ready" && condition["status"] != ready {
                    condition["status"] = json!(ready);
                    condition["lastTransitionTime"] = json!(clock::now());
                }
            }
            if let Some(seconds) = pod["spec"]["activeDeadlineSeconds"].as_u64()
                && self.lasts(pod, "running", Duration::from_secs(seconds))
            {
                new["status"]["phase"] = json!("Failed");
                new["status"]["reason"] = json!("DeadlineExceeded");
                new["status"]["message"] = json!("Pod was active on the node longer than the specified deadline");
                ended.push(text(pod, "/metadata/uid").to_owned());
            }
        }
        if new != *pod {
            store.put(key.clone(), new);
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn all(store: &Store, group: &str, plural: &str) -> Vec<(Key, Arc<Value>)> {
    let kind = Kind::of(group, plural).into_iter();
    kind.flat_map(|kind| store.list(kind, None)).map(|(key, object)| (key.clone(), object.clone())).collect()
}

fn nodes(store: &mut Store, faults: &Faults) {
    for (key, node) in all(store, "", "nodes") {
        let ready = if faults.not_ready.contains(&key.name) { "Unknown" } else { "True" };
        let mut new = (*node).clone();
        for condition in new["status"]["conditions"].as_array_mut().into_iter().flatten() {
            if condition["type"] == "Ready" && condition["status"] != ready {
                condition["status"] = json!(ready);
                condition["lastTransitionTime"] = json!(clock::now());
            }
        }
        if new != *node {
            store.put(key, new);
        }
    }
}

fn address(store: &Store, node: &str) -> String {
    let key = Key { group: "", plural: "nodes", namespace: String::new(), name: node.to_owned() };
    let node = store.get(&key);
    let addresses = node.and_then(|node| node["status"]["addresses"].as_array());
    let internal = addresses.into_iter().flatten().find(|address| address["type"] == "InternalIP");
    internal.map_or_else(String::new, |address| text(address, "/address").to_owned())
}

/// The first node that suits.
fn schedule(store: &Store, faults: &Faults, pod: &Value) -> Option<String> {
    let nodes = all(store, "", "nodes").into_iter();
    let mut nodes = nodes.filter(|(key, node)| !faults.not_ready.contains(&key.name) && suits(&pod["spec"], node));
    nodes.next().map(|(key, _)| key.name)
}

/// Whether a node has the labels that a pod's specification selects.
fn suits(spec: &Value, node: &Value) -> bool {
    let wanted = spec["nodeSelector"].as_object();
    wanted.into_iter().flatten().all(|(label, value)| node["metadata"]["labels"].get(label) == Some(value))
}

/// Names and images of a pod's containers.
fn containers(pod: &Value) -> Vec<(Value, Value)> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.map(|container| (container["name"].clone(), container["image"].clone())).collect()
}

fn conditions(ready: bool) -> Value {
    let now = clock::now();
    let condition = |kind: &str, on: bool| json!({ "type": kind, "status": if on { "True" } else { "False" }, "lastTransitionTime": now });
    json!([
        condition("PodScheduled", true),
        condition("Initialized", true),
        condition("ContainersReady", ready),
        condition("Ready", ready),
    ])
}

fn running(pod: &mut Value, host: &str) {
    let now = clock::now();
    let statuses: Value = containers(pod)
        .into_iter()
        .map(|(name, image)| {
            json!({
                "name": name, "image": image, "imageID": "", "ready": true, "started": true, "restartCount": 0,
                "state": { "running": { "startedAt": now } },
            })
        })
        .collect();
    // On a network of its own it has an address that nothing here answers to.
    let own = pod["spec"]["hostNetwork"] == true;
    let address = if own { host } else { "192.0.2.1" };
    pod["status"] = json!({
        "phase": "Running", "hostIP": host, "podIP": address, "podIPs": [ { "ip": address } ], "startTime": now,
        "conditions": conditions(true), "containerStatuses": statuses,
    });
}

fn waiting(pod: &mut Value, host: &str) {
    let statuses: Value = containers(pod)
        .into_iter()
        .map(|(name, image)| {
            let message = format!("Back-off pulling image {image}: ErrImagePull: {image}: not found");
            json!({
                "name": name, "image": image, "imageID": "", "ready": false, "started": false, "restartCount": 0,
                "state": { "waiting": { "reason": "ImagePullBackOff", "message": message } },
            })
        })
        .collect();
    if pod["status"]["containerStatuses"] != statuses {
        pod["status"] = json!({
            "phase": "Pending", "hostIP": host, "conditions": conditions(false), "containerStatuses": statuses,
        });
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    pod["status"]["phase"] == "Running"
        && pod["metadata"].get("deletionTimestamp").is_none()
        && conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Gives every node its pod, and counts them.
fn daemon_set(store: &mut Store, faults: &Faults, lab: &LabInfo, key: &Key, set: &Value) {
    let template = &set["spec"]["template"];
    let hash = crate::lab::digest(template).unwrap_or_default().chars().take(10).collect::<String>();
    let uid = text(set, "/metadata/uid");
    let wanted: Vec<String> = all(store, "", "nodes")
        .into_iter()
        .filter(|(key, node)| {
            lab.node(&key.name).is_ok() && !faults.no_agent.contains(&key.name) && suits(&template["spec"], node)
        })
        .map(|(key, _)| key.name)
        .collect();
    let mut pods: BTreeMap<String, Vec<(Key, Arc<Value>)>> = BTreeMap::new();
    for (key, pod) in owned(store, uid) {
        pods.entry(text(&pod, "/spec/nodeName").to_owned()).or_default().push((key, pod));
    }
    for (node, pods) in &pods {
        if !wanted.contains(node) {
            pods.iter().for_each(|(key, pod)| terminate(store, key, pod));
        }
    }
    let current = |pod: &Value| pod["metadata"]["labels"][HASH] == hash.as_str();
    // One old pod at a time; one that is not ready is no loss.
    let all_ready =
        wanted.iter().all(|node| pods.get(node).is_some_and(|pods| pods.iter().any(|(_, pod)| is_ready(pod))));
    let old = pods.values().flatten().filter(|(_, pod)| !current(pod));
    let mut replaceable = old.filter(|(_, pod)| all_ready || !is_ready(pod));
    if let Some((key, pod)) = replaceable.next() {
        terminate(store, key, pod);
    }
    for node in wanted.iter().filter(|node| !pods.contains_key(*node)) {
        let name = format!("{}-{}", key.name, store::suffix());
        let mut pod = pod_of(set, node);
        pod["metadata"]["labels"][HASH] = json!(hash);
        store.put(Key::pod(&key.namespace, &name), pod);
    }
    let on_wanted = |test: &dyn Fn(&Value) -> bool| {
        let holds = |node: &&String| pods.get(*node).is_some_and(|pods| pods.iter().any(|(_, pod)| test(pod)));
        wanted.iter().filter(holds).count()
    };
    let ready = on_wanted(&is_ready);
    let status = json!({
        "currentNumberScheduled": on_wanted(&|_| true),
        "desiredNumberScheduled": wanted.len(),
        "numberAvailable": ready,
        "numberMisscheduled": 0,
        "numberReady": ready,
        "numberUnavailable": wanted.len() - ready,
        "observedGeneration": set["metadata"]["generation"],
        "updatedNumberScheduled": on_wanted(&current),
    });
    if set["status"] != status {
        let mut new = set.clone();
        new["status"] = status;
        store.put(key.clone(), new);
    }
}

fn terminate(store: &mut Store, key: &Key, pod: &Value) {
    if pod["metadata"].get("deletionTimestamp").is_none() {
        let mut new = pod.clone();
        new["metadata"]["deletionTimestamp"] = json!(clock::now());
        new["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        store.put(key.clone(), new);
    }
}

/// The pods that an object made.
fn owned(store: &Store, uid: &str) -> Vec<(Key, Arc<Value>)> {
    let mut pods = all(store, "", "pods");
    pods.retain(|(_, pod)| text(pod, "/metadata/ownerReferences/0/uid") == uid);
    pods
}

/// The pod of an object's template.
fn pod_of(owner: &Value, node: &str) -> Value {
    let template = &owner["spec"]["template"];
    let mut metadata = json!({
        "labels": template["metadata"]["labels"],
        "generateName": format!("{}-", text(owner, "/metadata/name")),
        "ownerReferences": [ {
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
        } ],
    });
    if template["metadata"]["annotations"].is_object() {
        metadata["annotations"] = template["metadata"]["annotations"].clone();
    }
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!(node);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": { "phase": "Pending" } })
}

/// Pods whose DaemonSet or Job is gone go, too.
fn orphans(store: &mut Store, lab: &LabInfo) {
    let owners = [all(store, "apps", "daemonsets"), all(store, "batch", "jobs")].concat();
    let owners: HashSet<String> = owners.iter().map(|(_, owner)| text(owner, "/metadata/uid").to_owned()).collect();
    for (key, pod) in all(store, "", "pods") {
        let owned = matches!(text(&pod, "/metadata/ownerReferences/0/kind"), "DaemonSet" | "Job");
        let owner = text(&pod, "/metadata/ownerReferences/0/uid");
        if owned && !owners.contains(owner) && lab.node(text(&pod, "/spec/nodeName")).is_ok() {
            terminate(store, &key, &pod);
        }
    }
}
