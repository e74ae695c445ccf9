//! What is in the cluster from the start.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    kinds::Kind,
    store::{Key, Store},
};
use crate::lab::LabInfo;

/// The objects of a lab, and those that every cluster has.
pub(crate) fn store(lab: &LabInfo) -> Result<Store> {
    let path = &lab.identity;
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let list: Value = serde_norway::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let mut store = Store::default();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        namespace(&mut store, name);
    }
    for item in list["items"].as_array().into_iter().flatten() {
        put(&mut store, item.clone()).with_context(|| format!("{}: an object", path.display()))?;
    }
    for object in roles() {
        put(&mut store, object)?;
    }
    for (name, value) in [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)] {
        put(
            &mut store,
            json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name }, "value": value,
            }),
        )?;
    }
    Ok(store)
}

/// Makes a namespace, with what controllers put into each.
pub(crate) fn namespace(store: &mut Store, name: &str) {
    let key = |plural, namespace: &str, name: &str| Key {
        group: "",
        plural,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    if store.get(&key("namespaces", "", name)).is_none() {
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
            "spec": { "finalizers": ["kubernetes"] },
            "status": { "phase": "Active" },
        });
        store.put(key("namespaces", "", name), object);
    }
    if store.get(&key("serviceaccounts", name, "default")).is_none() {
        store.put(key("serviceaccounts", name, "default"), json!({ "apiVersion": "v1", "kind": "ServiceAccount" }));
    }
}

/// Keeps an object as it says where it belongs.
///
/// # Errors
/// A kind that the server does not know, or no name.
pub(crate) fn put(store: &mut Store, object: Value) -> Result<Value> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let known = Kind::named(&version, &kind);
    let kind = known.with_context(|| format!("{version} {kind}: no such kind here; add it to kube/kinds.rs"))?;
    anyhow::ensure!(!name.is_empty(), "a {} without a name", kind.kind);
    let namespace = match text("/metadata/namespace").as_str() {
        "" => "default".to_owned(),
        namespace => namespace.to_owned(),
    };
    if kind.namespaced {
        self::namespace(store, &namespace);
    }
    Ok((*store.put(Key::new(kind, &namespace, &name), object)).clone())
}

/// The roles that every cluster has, as far as somebody here could need them.
fn roles() -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io";
    let role = |name: &str, rules: Value| json!({ "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules });
    let bind = |name: &str, group: &str| {
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": name },
            "subjects": [ { "apiGroup": RBAC, "kind": "Group", "name": group } ],
        })
    };
    let view = json!([
        { "apiGroups": [""], "verbs": ["get", "list", "watch"], "resources": [
            "pods", "pods/log", "services", "serviceaccounts", "configmaps", "events", "namespaces" ] },
        { "apiGroups": ["apps", "batch", "networking.k8s.io"], "resources": ["*"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"] },
    ]);
    vec![
        role("cluster-admin", json!([ { "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] } ])),
        bind("cluster-admin", "system:masters"),
        role("view", view),
        role(
            "system:basic-user",
            json!([
                { "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"] },
                { "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"] },
            ]),
        ),
        bind("system:basic-user", "system:authenticated"),
    ]
}
