//! What clients ask to learn what there is.

use std::collections::BTreeSet;

use hyper::Response;
use serde_json::{Value, json};

use super::{
    http::{self, Body},
    kinds::KINDS,
    place::REVIEWS,
    refusal::Refusal,
    world::World,
};

pub(crate) fn answer(world: &World, path: &str) -> Result<Response<Body>, Refusal> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let object = match words.as_slice() {
        ["healthz" | "readyz" | "livez", ..] => return Ok(http::text(200, "text/plain", "ok")),
        ["version"] => json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.0", "platform": "linux/amd64" }),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [
                { "clientCIDR": "0.0.0.0/0", "serverAddress": format!("127.0.0.1:{}", world.port) } ],
        }),
        ["apis"] => {
            let groups: Vec<Value> = groups().into_iter().map(group).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        ["api", "v1"] => resources(""),
        ["apis", name] if groups().contains(name) => {
            let mut object = group(name);
            object["kind"] = json!("APIGroup");
            object["apiVersion"] = json!("v1");
            object
        }
        ["apis", name, "v1"] if groups().contains(name) => resources(name),
        _ => return Err(Refusal::nowhere()),
    };
    Ok(http::json(200, &object))
}

fn groups() -> BTreeSet<&'static str> {
    let kinds = KINDS.iter().map(|kind| kind.group);
    kinds.chain(REVIEWS.iter().map(|(group, ..)| *group)).filter(|group| !group.is_empty()).collect()
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn resources(group: &str) -> Value {
    const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut list = Vec::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group) {
        list.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": VERBS, "shortNames": kind.short,
        }));
        let subresources: &[(&str, &str, &[&str])] = match kind.plural {
            "pods" => {
                &[("exec", "PodExecOptions", &["create", "get"]), ("log", "Pod", &["get"]), ("status", "Pod", &["get"])]
            }
            "daemonsets" | "deployments" => &[("status", kind.kind, &["get", "patch", "update"])],
            _ => &[],
        };
        for (name, of, verbs) in subresources {
            let name = format!("{}/{name}", kind.plural);
            list.push(
                json!({ "name": name, "singularName": "", "namespaced": kind.namespaced, "kind": of, "verbs": verbs }),
            );
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|(of, ..)| *of == group) {
        list.push(
            json!({ "name": plural, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["create"] }),
        );
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list })
}
