use std::{collections::BTreeMap, path::Path, process::Command};

use super::*;
use crate::cluster::names;

fn variants() -> Vec<(&'static str, Variant)> {
    vec![
        ("base", Variant::default()),
        ("overlays/hostpid", Variant { host_pid: true, ..Variant::default() }),
        ("overlays/privileged", Variant { privileged: true, ..Variant::default() }),
        ("overlays/no-inject", Variant { no_inject: true, ..Variant::default() }),
    ]
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn set(variant: &Variant) -> Value {
    objects(variant).into_iter().find(|object| object["kind"] == "DaemonSet").unwrap()
}

fn kinds(objects: &[Value]) -> Vec<String> {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    objects.iter().map(|object| format!("{} {}", object["kind"].as_str().unwrap(), name(object))).collect()
}

#[test]
fn the_namespace_comes_first_and_the_agents_last() {
    assert_eq!(
        kinds(&objects(&Variant::default())),
        [
            "Namespace podpath",
            "ResourceQuota podpath-agent",
            "ServiceAccount podpath-agent",
            "ClusterRole podpath-user",
            "Role podpath-user",
            "Role podpath-ephemeral",
            "DaemonSet podpath-agent"
        ]
    );
}

#[test]
fn the_files_are_those_of_the_kustomization() {
    #[derive(Deserialize)]
    struct Kustomization {
        resources: Vec<String>,
    }
    let base = folder().join("base");
    let text = std::fs::read_to_string(base.join("kustomization.yaml")).unwrap();
    let Kustomization { resources } = serde_norway::from_str(&text).unwrap();
    let files: Vec<String> = resources.iter().map(|file| std::fs::read_to_string(base.join(file)).unwrap()).collect();
    assert_eq!(files, BASE);
}

/// kubectl has kustomize in it; where it is not there is nothing to compare with.
#[test]
fn kustomize_makes_the_same_objects() {
    for (path, variant) in variants() {
        let Ok(output) = Command::new("kubectl").arg("kustomize").arg(folder().join(path)).output() else {
            eprintln!("not compared: no kubectl on this machine");
            return;
        };
        assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        let theirs: Vec<Value> = documents(&String::from_utf8(output.stdout).unwrap()).collect();
        let ours = objects(&variant);
        // Its order is its own.
        let by_name = |objects: Vec<Value>| kinds(&objects).into_iter().zip(objects).collect::<BTreeMap<_, _>>();
        assert_eq!(by_name(theirs), by_name(ours), "{path}");
    }
}

#[test]
fn names_and_version_are_those_that_the_program_looks_for() {
    for object in objects(&Variant::default()) {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"][names::MANAGER_LABEL], names::MANAGER, "{metadata}");
        let cluster_wide = ["Namespace", "ClusterRole"].contains(&object["kind"].as_str().unwrap());
        assert_eq!(metadata["namespace"].as_str(), (!cluster_wide).then_some(names::NAMESPACE), "{metadata}");
    }
    let set = set(&Variant::default());
    assert_eq!(set["metadata"]["name"], names::AGENT);
    assert_eq!(set["metadata"]["labels"]["app.kubernetes.io/version"], env!("CARGO_PKG_VERSION"));
    let template = &set["spec"]["template"];
    assert_eq!(template["metadata"]["labels"][names::NAME_LABEL], names::AGENT);
    assert_eq!(template["metadata"]["labels"]["app.kubernetes.io/version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(set["spec"]["selector"]["matchLabels"], json!({ names::NAME_LABEL: names::AGENT }));
    let container = &template["spec"]["containers"][0];
    assert_eq!((&container["name"], &container["image"]), (&json!(names::CONTAINER), &json!(names::IMAGE)));
    assert_eq!(container["command"][0], names::SESSION[0]);
}

#[test]
fn an_agent_has_no_way_into_the_api_and_nothing_to_write_to() {
    for (path, variant) in variants() {
        let spec = agent_template(&variant)["spec"].clone();
        assert_eq!(spec["automountServiceAccountToken"], false, "{path}");
        assert_eq!(spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true, "{path}");
        assert!(spec["volumes"].as_array().unwrap().iter().all(|volume| volume["hostPath"]["path"] == "/run/netns"));
        assert_eq!(spec["hostPID"].as_bool().unwrap_or(false), variant.host_pid, "{path}");
    }
}

#[test]
fn choices_add_up() {
    let all = Variant {
        image: Some("registry.example/podpath-agent:1".into()),
        host_pid: true,
        privileged: true,
        no_inject: true,
        server_minor: None,
    };
    let spec = &agent_template(&all)["spec"];
    assert_eq!(spec["hostPID"], true);
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "registry.example/podpath-agent:1");
    assert_eq!(container["securityContext"]["privileged"], true);
    assert_eq!(container["securityContext"].get("capabilities"), None);
    assert_eq!(container["env"], json!([{ "name": "PODPATH_NO_INJECT", "value": "1" }]));
}

#[test]
fn an_old_server_is_told_of_apparmor_by_annotation() {
    let old = agent_template(&Variant { server_minor: Some(29), ..Variant::default() });
    assert_eq!(old["spec"]["securityContext"].get("appArmorProfile"), None);
    assert_eq!(old["metadata"]["annotations"]["container.apparmor.security.beta.kubernetes.io/agent"], "unconfined");
    let new = agent_template(&Variant { server_minor: Some(30), ..Variant::default() });
    assert_eq!(new, agent_template(&Variant::default()));
}

#[test]
fn what_is_printed_is_what_is_applied() {
    let objects = objects(&Variant::default());
    assert_eq!(documents(&yaml(&objects)).collect::<Vec<_>>(), objects);
    let list: Value = serde_json::from_str(&json(&objects)).unwrap();
    assert_eq!(list["items"].as_array(), Some(&objects));
}
