use serde_json::json;

use super::*;

fn set(status: Value) -> DaemonSet {
    serde_json::from_value(json!({ "metadata": { "generation": 2 }, "status": status })).unwrap()
}

fn status(observed: u32, desired: u32, current: u32, updated: u32, ready: u32) -> Value {
    json!({
        "observedGeneration": observed, "desiredNumberScheduled": desired, "currentNumberScheduled": current,
        "updatedNumberScheduled": updated, "numberReady": ready, "numberMisscheduled": 0
    })
}

fn pod(node: &str, container: Value) -> Pod {
    let image = "localhost/podpath-agent:0.1.0";
    serde_json::from_value(json!({
        "spec": { "nodeName": node, "containers": [{ "name": "agent", "image": image }] },
        "status": { "containerStatuses": [{
            "name": "agent", "image": image, "imageID": "", "ready": false, "restartCount": 0,
            "state": container["state"], "lastState": container["lastState"]
        }] }
    }))
    .unwrap()
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({ "state": { "waiting": { "reason": reason, "message": message } } })
}

#[test]
fn complete_means_all_of_the_newest_version() {
    let complete = |status| {
        let mut rollout = Rollout::default();
        rollout.of_set(&set(status));
        rollout.is_complete()
    };
    assert!(complete(status(2, 3, 3, 3, 3)));
    assert!(!complete(status(1, 3, 3, 3, 3)), "the controller has not seen the change yet");
    assert!(!complete(status(2, 3, 3, 1, 3)), "two are of the former version");
    assert!(!complete(status(2, 3, 3, 3, 2)));
    let mut fresh = Rollout::default();
    fresh.of_set(&serde_json::from_value(json!({ "metadata": { "generation": 1 } })).unwrap());
    assert!(!fresh.is_complete(), "a set without a status has just been made");
}

#[test]
fn what_keeps_agents_is_said_with_a_way_out() {
    let mut rollout = Rollout::default();
    rollout.of_set(&set(status(2, 9, 8, 8, 1)));
    let unscheduled: Pod = serde_json::from_value(json!({
        "spec": {
            "containers": [],
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["small"] }] }
            ] } } }
        },
        "status": { "conditions": [{
            "type": "PodScheduled", "status": "False", "message": "0/9 nodes are available: 1 Insufficient memory."
        }] }
    }))
    .unwrap();
    let mut crashed = waiting("CrashLoopBackOff", "back-off 10s restarting failed container");
    crashed["lastState"] =
        json!({ "terminated": { "exitCode": 255, "message": "exec /podpath-agent: exec format error\n" } });
    rollout.of_pods(&[
        pod("n5", waiting("ImagePullBackOff", "Back-off pulling image")),
        pod("n2", waiting("ImagePullBackOff", "Back-off pulling image")),
        pod("n3", waiting("ImagePullBackOff", "")),
        pod("n4", waiting("ImagePullBackOff", "")),
        pod("arm", crashed),
        pod("odd", waiting("CreateContainerError", "failed to apply apparmor profile\n\x1b[31m")),
        pod("soon", waiting("ContainerCreating", "")),
        pod("well", json!({ "state": { "running": {} } })),
        unscheduled,
    ]);
    assert!(rollout.lacks_pods());
    rollout.of_events(&[
        serde_json::from_value(json!({
            "metadata": {}, "involvedObject": {}, "lastTimestamp": "2026-11-25T05:00:00Z", "message": "an older one"
        }))
        .unwrap(),
        serde_json::from_value(json!({
            "metadata": {}, "involvedObject": {}, "lastTimestamp": "2026-11-25T05:00:09Z",
            "message": "Error creating: pods \"podpath-agent-\" is forbidden: insufficient quota."
        }))
        .unwrap(),
    ]);
    let error = Error::NotReady { after: Duration::from_secs(120), rollout: Box::new(rollout) };
    insta::assert_snapshot!(error);
}

#[test]
fn an_image_of_a_registry_has_another_way_out() {
    let mut pod = pod("n1", waiting("ErrImagePull", ""));
    pod.spec.as_mut().unwrap().containers[0].image = Some("registry.example/podpath-agent:1".into());
    let mut rollout = Rollout::default();
    rollout.of_pods(&[pod]);
    insta::assert_snapshot!(rollout.troubles[0]);
}

#[test]
fn objects_are_addressed_as_the_api_does() {
    let objects = crate::cluster::manifests::objects(&crate::cluster::manifests::Variant::default());
    let paths: Vec<String> = objects
        .iter()
        .map(|object| {
            let Target { resource, namespace, name, .. } = Target::of(object);
            format!("{} {} {} {name}", resource.api_version, namespace.unwrap_or_default(), resource.plural)
        })
        .collect();
    insta::assert_snapshot!(paths.join("\n"));
}
