//! What `kubectl get pods,nodes,services -A -o yaml` would print in the lab's cluster.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::profile::{Node, Pod, Profile};

/// When everything in the cluster was made: fixed, so that a lab's files never differ between two runs.
const CREATED: &str = "2026-11-01T08:00:00Z";

/// Pods that share the address of a control plane node.
const CONTROL_PLANE_PODS: &[&str] = &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// The file's text.
pub(crate) fn yaml(profile: &Profile) -> Result<String> {
    serde_norway::to_string(&list(profile)).context("writing identity.yaml")
}

fn list(profile: &Profile) -> Value {
    let mut items = Vec::new();
    for node in &profile.nodes {
        items.extend(node.pods.iter().map(|pod| workload(node, pod)));
    }
    for node in &profile.nodes {
        let suffix = &digest(&node.name)[..5];
        items.push(system_pod(node, &format!("calico-node-{suffix}"), "calico-node"));
        items.push(system_pod(node, &format!("kube-proxy-{suffix}"), "kube-proxy"));
        if node.control_plane {
            for name in CONTROL_PLANE_PODS {
                items.push(system_pod(node, &format!("{name}-{}", node.name), name));
            }
        }
    }
    items.extend(profile.nodes.iter().map(|node| self::node(profile, node)));
    items.push(kubernetes_service(profile));
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "metadata": { "resourceVersion": "" },
        "items": items,
    })
}

fn digest(text: &str) -> String {
    Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A UID that is the same in every run.
fn uid(text: &str) -> String {
    let hex = digest(text);
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

fn workload(node: &Node, pod: &Pod) -> Value {
    let mut object = pod_object(node, (&pod.namespace, &pod.name), &pod.image, pod.address);
    object["metadata"]["annotations"] = json!({
        "cni.projectcalico.org/podIP": format!("{}/32", pod.address),
        "cni.projectcalico.org/podIPs": format!("{}/32", pod.address),
    });
    object
}

fn system_pod(node: &Node, name: &str, image: &str) -> Value {
    let mut object = pod_object(node, ("kube-system", name), image, node.address);
    object["spec"]["hostNetwork"] = json!(true);
    object["metadata"]["labels"] = json!({ "k8s-app": image });
    object
}

fn pod_object(node: &Node, (namespace, name): (&str, &str), image: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "creationTimestamp": CREATED,
            "labels": { "run": name },
            "name": name,
            "namespace": namespace,
            "uid": uid(&format!("{namespace}/{name}")),
        },
        "spec": {
            "containers": [ { "image": image, "name": image } ],
            "nodeName": node.name,
            "restartPolicy": "Always",
            "serviceAccountName": "default",
        },
        "status": {
            "conditions": [ { "lastTransitionTime": CREATED, "status": "True", "type": "Ready" } ],
            "containerStatuses": [ {
                "image": image,
                "name": image,
                "ready": true,
                "restartCount": 0,
                "state": { "running": { "startedAt": CREATED } },
            } ],
            "hostIP": node.address,
            "phase": "Running",
            "podIP": address,
            "podIPs": [ { "ip": address } ],
            "startTime": CREATED,
        },
    })
}

fn node(profile: &Profile, node: &Node) -> Value {
    let mut addresses = vec![json!({ "address": node.address, "type": "InternalIP" })];
    if let Some(external) = node.external {
        addresses.push(json!({ "address": external, "type": "ExternalIP" }));
    }
    addresses.push(json!({ "address": node.name, "type": "Hostname" }));
    let mut labels = json!({ "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux" });
    if node.control_plane {
        labels["node-role.kubernetes.io/control-plane"] = json!("");
    }
    let mut annotations = json!({
        "projectcalico.org/IPv4Address": format!("{}/{}", node.address, profile.subnet.prefix_len()),
    });
    if let Some(tunnel) = node.tunnel_address {
        annotations["projectcalico.org/IPv4IPIPTunnelAddr"] = json!(tunnel);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "annotations": annotations,
            "creationTimestamp": CREATED,
            "labels": labels,
            "name": node.name,
            "uid": uid(&node.name),
        },
        "spec": { "podCIDR": node.pod_cidr, "podCIDRs": [ node.pod_cidr ] },
        "status": {
            "addresses": addresses,
            "conditions": [ { "lastTransitionTime": CREATED, "status": "True", "type": "Ready" } ],
            "nodeInfo": { "kubeletVersion": profile.kubernetes_version, "operatingSystem": "linux" },
        },
    })
}

fn kubernetes_service(profile: &Profile) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "creationTimestamp": CREATED,
            "labels": { "component": "apiserver", "provider": "kubernetes" },
            "name": "kubernetes",
            "namespace": "default",
            "uid": uid("service default/kubernetes"),
        },
        "spec": {
            "clusterIP": profile.kubernetes_service,
            "clusterIPs": [ profile.kubernetes_service ],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": [ "IPv4" ],
            "ipFamilyPolicy": "SingleStack",
            "ports": [ { "name": "https", "port": 443, "protocol": "TCP", "targetPort": 443 } ],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": { "loadBalancer": {} },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(profile: &str) -> Vec<Value> {
        let text = yaml(&Profile::named(profile).unwrap()).unwrap();
        let list: Value = serde_norway::from_str(&text).unwrap();
        assert_eq!(list["kind"], "List");
        list["items"].as_array().unwrap().clone()
    }

    fn find<'a>(items: &'a [Value], kind: &str, name: &str) -> &'a Value {
        items.iter().find(|item| item["kind"] == kind && item["metadata"]["name"] == name).unwrap()
    }

    #[test]
    fn a_pod_says_its_addresses_and_node() {
        let items = items("calico-bgp");
        let bb1 = find(&items, "Pod", "bb1");
        assert_eq!(bb1["status"]["podIP"], "100.115.37.81");
        assert_eq!(bb1["status"]["podIPs"][0]["ip"], "100.115.37.81");
        assert_eq!(bb1["status"]["hostIP"], "172.20.50.50");
        assert_eq!(bb1["spec"]["nodeName"], "ip-172-20-50-50.ec2.internal");
        assert_eq!(bb1["spec"]["hostNetwork"], Value::Null);
    }

    #[test]
    fn host_network_pods_share_their_nodes_address() {
        let items = items("calico-bgp");
        let sharing = |address: &str| {
            items
                .iter()
                .filter(|item| item["status"]["podIP"] == address)
                .inspect(|item| assert_eq!(item["spec"]["hostNetwork"], true))
                .count()
        };
        assert_eq!(sharing("172.20.50.50"), 2);
        assert_eq!(sharing("172.20.62.7"), 6);
    }

    #[test]
    fn a_nodes_pod_cidr_is_not_its_block() {
        let items = items("calico-bgp");
        let node = find(&items, "Node", "ip-172-20-50-50.ec2.internal");
        assert_eq!(node["spec"]["podCIDR"], "100.96.1.0/24");
        assert_eq!(node["status"]["addresses"][1]["address"], "3.90.60.2");
        let items = self::items("kind-calico");
        let node = find(&items, "Node", "demo-worker");
        assert_eq!(node["status"]["addresses"].as_array().unwrap().len(), 2);
        assert_eq!(find(&items, "Service", "kubernetes")["spec"]["clusterIP"], "10.96.0.1");
    }

    #[test]
    fn uids_differ_and_look_like_uuids() {
        let items = items("kind-calico");
        let mut uids: Vec<&str> = items.iter().map(|item| item["metadata"]["uid"].as_str().unwrap()).collect();
        assert!(uids.iter().all(|uid| uid.len() == 36), "{uids:?}");
        uids.sort_unstable();
        uids.dedup();
        assert_eq!(uids.len(), items.len());
    }
}
