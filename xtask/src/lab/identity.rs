//! What `kubectl get pods,nodes,services -A -o yaml` would print in the lab's cluster; services and network policies that are
//! planted are added ([`super::service`], [`super::plant`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::profile::{Cni, Node, Pod, Profile, TunnelKind};

/// When everything in the cluster was made: fixed, so that a lab's files never differ between two runs.
pub(super) const CREATED: &str = "2026-11-01T08:00:00Z";

/// Pods that share the address of a control plane node.
const CONTROL_PLANE_PODS: &[&str] = &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// The file's text.
pub(crate) fn yaml(profile: &Profile) -> Result<String> {
    serde_norway::to_string(&list(profile)).context("writing identity.yaml")
}

fn list(profile: &Profile) -> Value {
    let mut items = Vec::new();
    for node in &profile.nodes {
        items.extend(node.pods.iter().map(|pod| workload(profile, node, pod)));
    }
    for node in &profile.nodes {
        items.extend(system_pods(&profile.cni, node));
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

pub(super) fn digest(text: &str) -> String {
    Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A UID that is the same in every run.
pub(super) fn uid(text: &str) -> String {
    let hex = digest(text);
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

fn workload(profile: &Profile, node: &Node, pod: &Pod) -> Value {
    let addresses = both(pod.address, pod.address6);
    let mut object = pod_object(node, (&pod.namespace, &pod.name), &pod.image, &addresses);
    for (number, image) in (2..).zip(&pod.sidecars) {
        add_container(&mut object, &format!("{}-{number}", pod.name), image);
    }
    if let Cni::Calico { .. } = profile.cni {
        let all: Vec<String> = addresses.iter().map(|address| with_length(*address)).collect();
        object["metadata"]["annotations"] = json!({
            "cni.projectcalico.org/podIP": all[0],
            "cni.projectcalico.org/podIPs": all.join(","),
        });
    }
    object
}

/// The pods on the node's own network. k3s has none: it runs all of them in its own process.
fn system_pods(cni: &Cni, node: &Node) -> Vec<Value> {
    let agent = match cni {
        Cni::Calico { .. } => "calico-node",
        Cni::Kindnet => "kindnet",
        Cni::Flannel { .. } => return Vec::new(),
    };
    let suffix = &digest(&node.name)[..5];
    let mut pods: Vec<Value> =
        [agent, "kube-proxy"].map(|name| system_pod(node, &format!("{name}-{suffix}"), name)).to_vec();
    if node.control_plane {
        pods.extend(CONTROL_PLANE_PODS.iter().map(|name| system_pod(node, &format!("{name}-{}", node.name), name)));
    }
    pods
}

fn system_pod(node: &Node, name: &str, image: &str) -> Value {
    let mut object = pod_object(node, ("kube-system", name), image, &both(node.address, node.address6));
    object["spec"]["hostNetwork"] = json!(true);
    object["metadata"]["labels"] = json!({ "k8s-app": image });
    object
}

fn both(address: Ipv4Addr, address6: Option<Ipv6Addr>) -> Vec<IpAddr> {
    std::iter::once(IpAddr::from(address)).chain(address6.map(IpAddr::from)).collect()
}

/// As a network of one address.
fn with_length(address: IpAddr) -> String {
    ipnet::IpNet::from(address).to_string()
}

fn container_status(name: &str, image: &str) -> Value {
    json!({
        "image": image,
        "name": name,
        "ready": true,
        "restartCount": 0,
        "state": { "running": { "startedAt": CREATED } },
    })
}

fn add_container(pod: &mut Value, name: &str, image: &str) {
    let lists = [("/spec/containers", json!({ "image": image, "name": name }))];
    let lists = lists.into_iter().chain([("/status/containerStatuses", container_status(name, image))]);
    for (list, item) in lists {
        if let Some(Value::Array(list)) = pod.pointer_mut(list) {
            list.push(item);
        }
    }
}

/// A pod of one container.
fn pod_object(node: &Node, (namespace, name): (&str, &str), image: &str, addresses: &[IpAddr]) -> Value {
    let mut object = json!({
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
            "containers": [],
            "nodeName": node.name,
            "restartPolicy": "Always",
            "serviceAccountName": "default",
        },
        "status": {
            "conditions": [ { "lastTransitionTime": CREATED, "status": "True", "type": "Ready" } ],
            "containerStatuses": [],
            "hostIP": node.address,
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": addresses.iter().map(|address| json!({ "ip": address })).collect::<Value>(),
            "startTime": CREATED,
        },
    });
    add_container(&mut object, name, image);
    object
}

fn node(profile: &Profile, node: &Node) -> Value {
    let mut addresses: Vec<Value> = both(node.address, node.address6)
        .into_iter()
        .map(|address| json!({ "address": address, "type": "InternalIP" }))
        .collect();
    if let Some(external) = node.external {
        addresses.push(json!({ "address": external, "type": "ExternalIP" }));
    }
    addresses.push(json!({ "address": node.name, "type": "Hostname" }));
    let mut labels = json!({ "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux" });
    if node.control_plane {
        labels["node-role.kubernetes.io/control-plane"] = json!("");
    }
    let pod_cidrs: Value =
        std::iter::once(json!(node.pod_cidr)).chain(node.pod_cidr6.map(|cidr| json!(cidr))).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "annotations": annotations(profile, node),
            "creationTimestamp": CREATED,
            "labels": labels,
            "name": node.name,
            "uid": uid(&node.name),
        },
        "spec": { "podCIDR": node.pod_cidr, "podCIDRs": pod_cidrs },
        "status": {
            "addresses": addresses,
            "conditions": [ { "lastTransitionTime": CREATED, "status": "True", "type": "Ready" } ],
            "nodeInfo": { "kubeletVersion": profile.kubernetes_version, "operatingSystem": "linux" },
        },
    })
}

/// What the CNI notes about a node.
fn annotations(profile: &Profile, node: &Node) -> Value {
    let mut notes = json!({});
    match (&profile.cni, &profile.ipv6) {
        (Cni::Calico { .. }, ipv6) => {
            let length = profile.subnet_of(node).subnet.prefix_len();
            notes["projectcalico.org/IPv4Address"] = json!(format!("{}/{length}", node.address));
            for (address, ipv6) in node.address6.iter().zip(ipv6) {
                notes["projectcalico.org/IPv6Address"] = json!(format!("{address}/{}", ipv6.subnet.prefix_len()));
            }
            if let Some(tunnel) = &profile.tunnel {
                let name = match tunnel.kind {
                    TunnelKind::Ipip => "projectcalico.org/IPv4IPIPTunnelAddr",
                    TunnelKind::Vxlan { .. } => "projectcalico.org/IPv4VXLANTunnelAddr",
                    TunnelKind::Wireguard { .. } => "projectcalico.org/IPv4WireguardInterfaceAddr",
                };
                notes[name] = json!(node.tunnel_address());
            }
        }
        (Cni::Flannel { .. }, _) => {
            notes["flannel.alpha.coreos.com/backend-type"] = json!("vxlan");
            notes["flannel.alpha.coreos.com/public-ip"] = json!(node.address);
        }
        (Cni::Kindnet, _) => {}
    }
    notes
}

fn kubernetes_service(profile: &Profile) -> Value {
    let second = profile.ipv6.as_ref().map(|ipv6| ipv6.kubernetes_service);
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
            "clusterIPs": both(profile.kubernetes_service, second),
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": if second.is_some() { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) },
            "ipFamilyPolicy": if second.is_some() { "RequireDualStack" } else { "SingleStack" },
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
    fn a_dual_stack_cluster_has_two_of_each_address() {
        let items = items("calico-dual");
        let bb1 = find(&items, "Pod", "bb1");
        assert_eq!(bb1["status"]["podIPs"][1]["ip"], "fd00:10:244:9d80::6");
        let annotations = &bb1["metadata"]["annotations"];
        assert_eq!(annotations["cni.projectcalico.org/podIPs"], "192.168.157.134/32,fd00:10:244:9d80::6/128");
        let node = find(&items, "Node", "dual-worker");
        assert_eq!(node["status"]["addresses"][1]["address"], "fc00:f853:ccd:e793::4");
        assert_eq!(node["spec"]["podCIDRs"][1], "fd00:10:244:1::/64");
        assert_eq!(find(&items, "Service", "kubernetes")["spec"]["clusterIPs"][1], "fd00:10:96::1");
    }

    #[test]
    fn a_pod_may_have_two_containers_and_k3s_no_pods_of_its_own() {
        let items = items("flannel");
        assert_eq!(items.iter().filter(|item| item["kind"] == "Pod").count(), 2);
        let nginx = find(&items, "Pod", "nginx-on-master");
        assert_eq!(nginx["spec"]["containers"].as_array().unwrap().len(), 2);
        assert_eq!(nginx["status"]["containerStatuses"][1]["image"], "busybox");
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
