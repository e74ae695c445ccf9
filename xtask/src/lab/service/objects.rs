//! A lab's services as the API shows them.

use serde_json::{Value, json};

use super::{AFFINITY_SECONDS, Backed, Cluster};
use crate::lab::identity::{CREATED, digest, uid};
use crate::lab::{LabInfo, LabPod};

/// Adds the services to the items of a lab's identity file; the pods behind them get the labels that select them.
pub(crate) fn add(items: &mut Vec<Value>, cluster: &Cluster, lab: &LabInfo) {
    for backed in &cluster.services {
        for pod in &backed.endpoints {
            let is_it = |item: &&mut Value| {
                let metadata = &item["metadata"];
                item["kind"] == "Pod"
                    && metadata["name"] == pod.name
                    && metadata["namespace"] == pod.kubernetes_namespace
            };
            if let Some(item) = items.iter_mut().find(is_it) {
                item["metadata"]["labels"][label(backed)] = json!("");
            }
        }
        items.extend([service(backed), endpoint_slice(backed, lab)]);
    }
}

/// The label of the pods behind a service: one pod may be behind several.
fn label(backed: &Backed) -> String {
    format!("service/{}", backed.service.name)
}

fn service_uid(backed: &Backed) -> String {
    uid(&format!("service {}/{}", backed.service.namespace, backed.service.name))
}

fn service(backed: &Backed) -> Value {
    let service = backed.service;
    let mut port = json!({ "port": service.port, "protocol": service.protocol, "targetPort": service.target_port() });
    if let Some(name) = &service.port_name {
        port["name"] = json!(name);
    }
    let mut spec = json!({
        "clusterIP": service.cluster_ip,
        "clusterIPs": [ service.cluster_ip ],
        "internalTrafficPolicy": "Cluster",
        "ipFamilies": [ "IPv4" ],
        "ipFamilyPolicy": "SingleStack",
        "selector": { label(backed): "" },
        "sessionAffinity": service.session_affinity,
        "type": "ClusterIP",
    });
    if let Some(node_port) = service.node_port {
        port["nodePort"] = json!(node_port);
        spec["type"] = json!("NodePort");
    }
    if service.is_external() {
        spec["externalTrafficPolicy"] = json!(service.external_traffic_policy);
    }
    if !service.external_ips.is_empty() {
        spec["externalIPs"] = json!(service.external_ips);
    }
    let mut balancer = json!({});
    if !service.load_balancer_ips.is_empty() {
        spec["type"] = json!("LoadBalancer");
        let ingress = service.load_balancer_ips.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" }));
        balancer["ingress"] = ingress.collect();
    }
    if !service.load_balancer_source_ranges.is_empty() {
        spec["loadBalancerSourceRanges"] = json!(service.load_balancer_source_ranges);
    }
    if service.is_sticky() {
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": AFFINITY_SECONDS } });
    }
    spec["ports"] = json!([port]);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "creationTimestamp": CREATED,
            "name": service.name,
            "namespace": service.namespace,
            "uid": service_uid(backed),
        },
        "spec": spec,
        "status": { "loadBalancer": balancer },
    })
}

/// Without endpoints its lists are null, as the controller leaves them.
fn endpoint_slice(backed: &Backed, lab: &LabInfo) -> Value {
    let service = backed.service;
    let name = format!("{}-{}", service.name, &digest(&service.full_name())[..5]);
    let (mut endpoints, mut ports) = (Value::Null, Value::Null);
    if !backed.endpoints.is_empty() {
        endpoints = backed.endpoints.iter().map(|pod| endpoint(pod, lab)).collect();
        let port_name = service.port_name.as_deref().unwrap_or_default();
        ports = json!([{ "name": port_name, "port": service.target_port(), "protocol": service.protocol }]);
    }
    json!({
        "addressType": "IPv4",
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": endpoints,
        "kind": "EndpointSlice",
        "metadata": {
            "creationTimestamp": CREATED,
            "generateName": format!("{}-", service.name),
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service.name,
            },
            "name": name,
            "namespace": service.namespace,
            "ownerReferences": [ {
                "apiVersion": "v1",
                "blockOwnerDeletion": true,
                "controller": true,
                "kind": "Service",
                "name": service.name,
                "uid": service_uid(backed),
            } ],
            "uid": uid(&format!("endpointslice {}/{name}", service.namespace)),
        },
        "ports": ports,
    })
}

fn endpoint(pod: &LabPod, lab: &LabInfo) -> Value {
    let node = lab.nodes.iter().find(|node| node.host == pod.node).map(|node| &node.name);
    json!({
        "addresses": [ pod.address ],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "nodeName": node,
        "targetRef": {
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.kubernetes_namespace,
            "uid": uid(&format!("{}/{}", pod.kubernetes_namespace, pod.name)),
        },
    })
}
