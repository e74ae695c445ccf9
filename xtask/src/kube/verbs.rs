//! get, list, create, update, patch, apply, delete, and the reviews.

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::Response;
use serde_json::{Value, json};

use super::{
    clock,
    http::{self, Asked, Body},
    merge,
    place::Target,
    rbac::{self, Act},
    refusal::Refusal,
    seed,
    selector::Selector,
    store::{self, Key, Store},
    synthetic,
    world::World,
};

/// Does what is asked: the code and the object of the answer.
pub(crate) fn done(
    world: &World,
    asked: &Asked,
    target: &Target,
    verb: &str,
    body: Value,
) -> Result<(u16, Value), Refusal> {
    match verb {
        "list" => list(world, asked, target).map(|list| (200, list)),
        "get" => get(world, target).map(|object| (200, (*object).clone())),
        "create" => create(world, asked, target, body),
        "update" | "patch" => change(world, asked, target, verb, body),
        "delete" => delete(world, asked, target, &body).map(|object| (200, object)),
        _ => delete_all(world, asked, target, &body).map(|object| (200, object)),
    }
}

fn key(target: &Target) -> Key {
    Key::new(target.kind, &target.namespace, &target.name)
}

/// One object.
pub(crate) fn get(world: &World, target: &Target) -> Result<Arc<Value>, Refusal> {
    let stored = world.store().get(&key(target)).cloned();
    let made_up = || {
        let here = !target.kind.namespaced || target.namespace == synthetic::NAMESPACE;
        world.synthetic.get(target.kind.plural, &target.name).filter(|_| here).map(Arc::new)
    };
    stored.or_else(made_up).ok_or_else(|| Refusal::not_found(target.kind, &target.name))
}

fn list(world: &World, asked: &Asked, target: &Target) -> Result<Value, Refusal> {
    let selector = Selector::parse(asked.text("labelSelector"), asked.text("fieldSelector"))?;
    let limit = asked.text("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let token = asked.text("continue");
    let (mut items, mut next) = (Vec::new(), None);
    let store = world.store();
    let mut from = 0;
    if let Some(number) = token.strip_prefix("made-up.") {
        from = number.parse().map_err(|_| Refusal::bad_request("continue key is not valid"))?;
    } else {
        let after = token.split_once('/').map(|(namespace, name)| Key::new(target.kind, namespace, name));
        for (key, object) in store.list(target.kind, target.namespace()) {
            if after.as_ref().is_some_and(|after| key <= after) || !selector.matches(object) {
                continue;
            }
            if items.len() == limit {
                break;
            }
            items.push((**object).clone());
            next = Some(format!("{}/{}", key.namespace, key.name));
        }
        if items.len() < limit {
            next = None;
        }
    }
    let everywhere = target.namespace.is_empty() || target.namespace == synthetic::NAMESPACE;
    if everywhere && items.len() < limit {
        for (number, object) in world.synthetic.list(target.kind.plural, &selector, from) {
            if items.len() == limit {
                next = Some(format!("made-up.{number}"));
                break;
            }
            items.push(object);
        }
    }
    let mut metadata = json!({ "resourceVersion": store.version().to_string() });
    if let Some(next) = next {
        metadata["continue"] = json!(next);
    }
    Ok(json!({
        "kind": format!("{}List", target.kind.kind), "apiVersion": target.kind.api_version(),
        "metadata": metadata, "items": items,
    }))
}

fn create(world: &World, asked: &Asked, target: &Target, mut object: Value) -> Result<(u16, Value), Refusal> {
    if !object.is_object() {
        return Err(Refusal::bad_request("the object provided is unrecognized: it is empty"));
    }
    if object["metadata"]["name"].as_str().is_none_or(str::is_empty)
        && let Some(prefix) = object["metadata"]["generateName"].as_str()
    {
        object["metadata"]["name"] = json!(format!("{prefix}{}", store::suffix()));
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let target = Target { name, ..target.clone() };
    world.change(|store| {
        admit(store, &target, &mut object)?;
        let key = key(&target);
        if store.get(&key).is_some() {
            return Err(Refusal::exists(target.kind, &target.name));
        }
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove(field);
            }
        }
        if asked.is_dry() {
            return Ok((201, object));
        }
        let made = store.put(key, object);
        if target.kind.plural == "namespaces" {
            seed::namespace(store, &target.name);
        }
        Ok((201, (*made).clone()))
    })
}

/// What is wrong with an object, and what a server fills in.
fn admit(store: &Store, target: &Target, object: &mut Value) -> Result<(), Refusal> {
    let kind = target.kind;
    let (version, named) = (object["apiVersion"].as_str(), object["kind"].as_str());
    if version.is_some_and(|version| version != kind.api_version()) || named.is_some_and(|named| named != kind.kind) {
        let message = format!(
            "{} in version \"{}\" cannot be handled as a {}",
            named.unwrap_or_default(),
            version.unwrap_or_default(),
            kind.kind
        );
        return Err(Refusal::bad_request(message));
    }
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    let name = target.name.as_str();
    if name.is_empty() {
        return Err(Refusal::invalid(kind, "", "metadata.name", "Required value: name or generateName is required"));
    }
    let rbac = kind.group.starts_with("rbac.");
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !rbac && (!name.chars().all(plain) || name.starts_with(['-', '.']) || name.ends_with(['-', '.'])) {
        let cause = format!(
            "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        );
        return Err(Refusal::invalid(kind, name, "metadata.name", &cause));
    }
    if let Some(namespace) = object["metadata"]["namespace"].as_str().filter(|namespace| !namespace.is_empty())
        && kind.namespaced
        && namespace != target.namespace
    {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Refusal::bad_request(message));
    }
    if kind.namespaced {
        let spaces = Key { group: "", plural: "namespaces", namespace: String::new(), name: target.namespace.clone() };
        let namespaces = super::kinds::Kind::of("", "namespaces").unwrap_or(kind);
        let namespace = store.get(&spaces).ok_or_else(|| Refusal::not_found(namespaces, &target.namespace))?;
        if namespace["metadata"].get("deletionTimestamp").is_some() && store.get(&key(target)).is_none() {
            let cause = format!(
                "unable to create new content in namespace {} because it is being terminated",
                target.namespace
            );
            return Err(Refusal::forbidden(kind, name, &cause));
        }
    }
    if kind.group == "apps" && kind.kind != "ControllerRevision" {
        let labels = &object["spec"]["template"]["metadata"]["labels"];
        let wanted = object["spec"]["selector"]["matchLabels"].as_object();
        if wanted
            .is_none_or(|wanted| wanted.is_empty() || wanted.iter().any(|(key, value)| labels.get(key) != Some(value)))
        {
            let cause = "Invalid value: `selector` does not match template `labels`";
            return Err(Refusal::invalid(kind, name, "spec.template.metadata.labels", cause));
        }
    }
    let containers = match kind.kind {
        "Pod" => Some(&object["spec"]["containers"]),
        "DaemonSet" | "Deployment" | "StatefulSet" => Some(&object["spec"]["template"]["spec"]["containers"]),
        _ => None,
    };
    if containers.is_some_and(|containers| containers.as_array().is_none_or(Vec::is_empty)) {
        return Err(Refusal::invalid(kind, name, "spec.containers", "Required value"));
    }
    if kind.kind == "Pod" && object["status"].is_null() {
        object["status"] = json!({ "phase": "Pending" });
    }
    Ok(())
}

fn change(world: &World, asked: &Asked, target: &Target, verb: &str, body: Value) -> Result<(u16, Value), Refusal> {
    let apply = asked.content_type == "application/apply-patch+yaml";
    let manager = asked.text("fieldManager");
    if verb == "patch" && apply && manager.is_empty() {
        let message =
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(Refusal::new(422, "Invalid", message));
    }
    // An apply may make what it patches, which is another right.
    if apply && world.store().get(&key(target)).is_none() {
        rbac::check(&world.store(), &asked.person, "create", target)?;
    }
    world.change(|store| {
        let key = key(target);
        let before = store.get(&key).cloned();
        let old = match (&before, apply) {
            (Some(before), _) => (**before).clone(),
            (None, true) => json!({}),
            (None, false) => return Err(Refusal::not_found(target.kind, &target.name)),
        };
        let wanted = body["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty());
        if wanted.is_some_and(|wanted| old["metadata"]["resourceVersion"] != wanted) {
            return Err(Refusal::conflict(target.kind, &target.name));
        }
        let mut new = old.clone();
        match (verb, asked.content_type.as_str()) {
            ("update", _) => new = body.clone(),
            (_, "application/apply-patch+yaml") => {
                if let Some(applied) = store.applied(&key, manager) {
                    merge::prune(&mut new, applied, &body);
                }
                merge::apply(&mut new, &body);
            }
            (_, "application/merge-patch+json") => merge::patch(&mut new, &body),
            (_, "application/strategic-merge-patch+json") => merge::patch(&mut new, &body),
            (_, other) => {
                let message = format!("the body of the request was in an unknown format - accepted media types include: application/merge-patch+json, application/apply-patch+yaml (it was {other})");
                return Err(Refusal::new(415, "UnsupportedMediaType", message));
            }
        }
        if target.subresource == "status" {
            let status = new["status"].clone();
            new = old.clone();
            new["status"] = status;
        } else if before.is_some() && matches!(target.kind.group, "" | "apps") {
            new["status"] = old["status"].clone();
            if new["status"].is_null() && let Some(new) = new.as_object_mut() {
                new.remove("status");
            }
        }
        admit(store, target, &mut new)?;
        if before.is_some() && target.kind.group == "apps" && old["spec"]["selector"] != new["spec"]["selector"] {
            return Err(Refusal::invalid(target.kind, &target.name, "spec.selector", "Invalid value: field is immutable"));
        }
        if asked.is_dry() {
            return Ok((if before.is_some() { 200 } else { 201 }, new));
        }
        let kept = store.put(key.clone(), new);
        if apply {
            store.note_applied(&key, manager, &body);
        }
        if before.is_none() && target.kind.plural == "namespaces" {
            seed::namespace(store, &target.name);
        }
        Ok((if before.is_some() { 200 } else { 201 }, (*kept).clone()))
    })
}

fn policy<'a>(asked: &'a Asked, options: &'a Value) -> &'a str {
    options["propagationPolicy"].as_str().unwrap_or_else(|| asked.text("propagationPolicy"))
}

fn delete(world: &World, asked: &Asked, target: &Target, options: &Value) -> Result<Value, Refusal> {
    let object = get(world, target)?;
    let wanted = options["preconditions"]["uid"].as_str();
    if wanted.is_some_and(|wanted| object["metadata"]["uid"] != wanted) {
        return Err(Refusal::conflict(target.kind, &target.name));
    }
    if asked.is_dry() || options["dryRun"].as_array().is_some_and(|list| !list.is_empty()) {
        return Ok((*object).clone());
    }
    let now = options["gracePeriodSeconds"] == 0 || asked.text("gracePeriodSeconds") == "0";
    let object = world.change(|store| remove(store, &key(target), policy(asked, options), now));
    let object = object.ok_or_else(|| Refusal::not_found(target.kind, &target.name))?;
    end_processes(world, &object);
    if matches!(target.kind.plural, "pods" | "namespaces") {
        return Ok((*object).clone());
    }
    Ok(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": target.name, "group": target.kind.group, "kind": target.kind.plural, "uid": object["metadata"]["uid"] },
    }))
}

/// Ends what runs in a pod.
pub(crate) fn end_processes(world: &World, object: &Value) {
    if let (Some("Pod"), Some(uid)) = (object["kind"].as_str(), object["metadata"]["uid"].as_str()) {
        world.kill(uid);
    }
}

/// Removes an object, or marks it for the controllers where that takes a while: pods, namespaces.
fn remove(store: &mut Store, key: &Key, policy: &str, now: bool) -> Option<Arc<Value>> {
    let object = store.get(key)?.clone();
    if policy == "Orphan" {
        let uid = &object["metadata"]["uid"];
        let owned: BTreeSet<Key> = store
            .within(&key.namespace)
            .into_iter()
            .filter(|each| store.get(each).is_some_and(|each| each["metadata"]["ownerReferences"][0]["uid"] == *uid))
            .collect();
        for each in owned {
            if let Some(mut orphan) = store.get(&each).map(|each| (**each).clone()) {
                orphan["metadata"]["ownerReferences"] = json!([]);
                store.put(each, orphan);
            }
        }
    }
    let slow = key.is("namespaces") || key.is("pods") && !object["spec"]["nodeName"].is_null() && !now;
    if !slow {
        return store.remove(key);
    }
    let mut object = (*object).clone();
    if object["metadata"].get("deletionTimestamp").is_none() {
        object["metadata"]["deletionTimestamp"] = json!(clock::now());
        object["metadata"]["deletionGracePeriodSeconds"] = json!(if key.is("pods") { 30 } else { 0 });
        if key.is("namespaces") {
            object["status"]["phase"] = json!("Terminating");
        }
    }
    Some(store.put(key.clone(), object))
}

fn delete_all(world: &World, asked: &Asked, target: &Target, options: &Value) -> Result<Value, Refusal> {
    let selector = Selector::parse(asked.text("labelSelector"), asked.text("fieldSelector"))?;
    let all: Vec<Key> = {
        let store = world.store();
        let list = store.list(target.kind, target.namespace());
        list.filter(|(_, object)| selector.matches(object)).map(|(key, _)| key.clone()).collect()
    };
    let now = options["gracePeriodSeconds"] == 0;
    let mut items = Vec::new();
    for key in all {
        if let Some(object) = world.change(|store| remove(store, &key, policy(asked, options), now)) {
            end_processes(world, &object);
            items.push((*object).clone());
        }
    }
    let version = world.store().version().to_string();
    Ok(json!({
        "kind": format!("{}List", target.kind.kind), "apiVersion": target.kind.api_version(),
        "metadata": { "resourceVersion": version }, "items": items,
    }))
}

/// What a pod has written.
pub(crate) fn log(world: &World, target: &Target) -> Result<Response<Body>, Refusal> {
    let pod = get(world, target)?;
    let started = pod["status"]["phase"] == "Running";
    let text = if started { format!("{}: started\n", target.name) } else { String::new() };
    Ok(http::text(200, "text/plain", text))
}

/// Answers a question about the one who asks.
pub(crate) fn review(world: &World, asked: &Asked, plural: &str, mut object: Value) -> Value {
    let person = &asked.person;
    if plural == "selfsubjectreviews" {
        object["status"] = json!({ "userInfo": { "username": person.name, "groups": person.groups } });
        return object;
    }
    let attributes = object["spec"]["resourceAttributes"].clone();
    let text = |field: &str| attributes[field].as_str().unwrap_or_default().to_owned();
    let resource = match text("subresource").as_str() {
        "" => text("resource"),
        subresource => format!("{}/{subresource}", text("resource")),
    };
    let (verb, group, namespace, name) = (text("verb"), text("group"), text("namespace"), text("name"));
    let act = Act { verb: &verb, group: &group, resource: &resource, namespace: &namespace, name: &name };
    let allowed = if attributes.is_object() {
        rbac::allows(&world.store(), person, &act)
    } else {
        person.groups.iter().any(|group| group == "system:masters")
    };
    object["status"] = json!({ "allowed": allowed });
    object
}
