//! What is installed in a cluster: the objects of `manifests/`, embedded, in the order in which they are applied.
//!
//! There is one source. kustomize reads the files; this reads the same base, and the same patches of the overlays (JSON patches,
//! RFC 6902), so that `podpath install --hostpid` and `kubectl apply -k manifests/overlays/hostpid` apply the same.

use serde::Deserialize;
use serde_json::{Value, json};

/// The files of `manifests/base`, in the order of its `kustomization.yaml`.
const BASE: [&str; 5] = [
    include_str!("../../../manifests/base/namespace.yaml"),
    include_str!("../../../manifests/base/quota.yaml"),
    include_str!("../../../manifests/base/service-account.yaml"),
    include_str!("../../../manifests/base/roles.yaml"),
    include_str!("../../../manifests/base/daemonset.yaml"),
];
const HOST_PID: &str = include_str!("../../../manifests/overlays/hostpid/patch.yaml");
const PRIVILEGED: &str = include_str!("../../../manifests/overlays/privileged/patch.yaml");
const NO_INJECT: &str = include_str!("../../../manifests/overlays/no-inject/patch.yaml");

/// The first minor version of Kubernetes 1 whose pods have the field `appArmorProfile`.
const APP_ARMOR_FIELD: u32 = 30;

/// What of the agents a person may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Another image than [`super::names::IMAGE`].
    pub image: Option<String>,
    /// Overlay `hostpid`.
    pub host_pid: bool,
    /// Overlay `privileged`.
    pub privileged: bool,
    /// Overlay `no-inject`.
    pub no_inject: bool,
    /// Minor version of the server's Kubernetes 1, if it is known: older ones are told the same in other words.
    pub server_minor: Option<u32>,
}

/// All objects of this variant, in the order in which they are to be applied.
pub fn objects(variant: &Variant) -> Vec<Value> {
    let mut objects: Vec<Value> = BASE.iter().flat_map(|file| documents(file)).collect();
    for object in objects.iter_mut().filter(|object| object["kind"] == "DaemonSet") {
        adapt(object, variant);
    }
    objects
}

/// The template of an agent's pod (`metadata` and `spec`), also for one outside of the DaemonSet.
pub fn agent_template(variant: &Variant) -> Value {
    let set = objects(variant).into_iter().find(|object| object["kind"] == "DaemonSet").unwrap_or_default();
    set["spec"]["template"].clone()
}

fn adapt(set: &mut Value, variant: &Variant) {
    let Variant { image, host_pid, privileged, no_inject, server_minor } = variant;
    // Privileged last of the two: it replaces the capabilities that the other adds to.
    for (chosen, overlay) in [(host_pid, HOST_PID), (privileged, PRIVILEGED), (no_inject, NO_INJECT)] {
        if *chosen {
            patch(set, overlay);
        }
    }
    let template = &mut set["spec"]["template"];
    if let Some(image) = image {
        template["spec"]["containers"][0]["image"] = json!(image);
    }
    if server_minor.is_some_and(|minor| minor < APP_ARMOR_FIELD) {
        // Server-side apply refuses fields that the server does not know.
        if let Some(context) = template["spec"]["securityContext"].as_object_mut() {
            context.remove("appArmorProfile");
        }
        template["metadata"]["annotations"]["container.apparmor.security.beta.kubernetes.io/agent"] =
            json!("unconfined");
    }
}

/// One step of a JSON patch; of its operations those that the overlays use.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    op: Operation,
    path: String,
    value: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    Add,
    Replace,
}

fn patch(object: &mut Value, overlay: &str) {
    let steps: Vec<Step> = serde_norway::from_str(overlay).expect("the overlays' patches are tested");
    for Step { op, path, value } in steps {
        let (parent, name) = path.rsplit_once('/').expect("a JSON pointer begins with a slash");
        let parent = object.pointer_mut(parent).expect("the overlays' paths are tested");
        match (op, parent) {
            (Operation::Add, Value::Array(list)) if name == "-" => list.push(value),
            (Operation::Add | Operation::Replace, Value::Object(fields)) => drop(fields.insert(name.to_owned(), value)),
            (op, parent) => unreachable!("{op:?} {path} of {parent}: the overlays are tested"),
        }
    }
}

fn documents(file: &str) -> impl Iterator<Item = Value> {
    serde_norway::Deserializer::from_str(file)
        .map(|document| Value::deserialize(document).expect("the base's files are tested"))
}

/// Objects as one YAML stream.
pub fn yaml(objects: &[Value]) -> String {
    let texts = objects.iter().map(|object| serde_norway::to_string(object).unwrap_or_default());
    texts.collect::<Vec<_>>().join("---\n")
}

/// Objects as one JSON list, which `kubectl apply -f -` takes.
pub fn json(objects: &[Value]) -> String {
    format!("{:#}\n", json!({ "apiVersion": "v1", "kind": "List", "items": objects }))
}

#[cfg(test)]
mod tests;
