//! A lab's services as the API shows them.

use serde_json::{Value, json};

use super::{AFFINITY_SECONDS, Backed, Cluster, Service};
use crate::lab::identity::{CREATED, digest, uid};
use crate::lab::{LabInfo, LabPod};

/// Adds the services to the items of a lab's identity file; the pods behind them get the labels that select them.
pub(crate) fn add(items: &mut Vec<Value>, cluster: &Cluster, lab: &LabInfo) {
    for ports in cluster.services.chunk_by(|a, b| a.service.is_of(b.service)) {
        let backed = &ports[0];
        for pod in backed.endpoints.iter().chain(&backed.not_ready) {
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
        items.extend([service(ports), endpoint_slice(ports, lab)]);
    }
}

/// The label of the pods behind a service: one pod may be behind several.
fn label(backed: &Backed) -> String {
    format!("service/{}", backed.service.name)
}

fn service_uid(backed: &Backed) -> String {
    uid(&format!("service {}/{}", backed.service.namespace, backed.service.name))
}

fn port(service: &Service) -> Value {
    let mut port = json!({ "port": service.port, "protocol": service.protocol, "targetPort": service.target_port() });
    if let Some(name) = &service.port_name {
        port["name"] = json!(name);
    }
    if let Some(node_port) = service.node_port {
        port["nodePort"] = json!(node_port);
    }
    port
}

fn service(ports: &[Backed]) -> Value {
    let backed = &ports[0];
    let service = backed.service;
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
    let of = |of: fn(&Service) -> bool| ports.iter().any(|port| of(port.service));
    if of(|service| service.node_port.is_some()) {
        spec["type"] = json!("NodePort");
    }
    if of(Service::is_external) {
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
    spec["ports"] = ports.iter().map(|backed| port(backed.service)).collect();
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
fn endpoint_slice(ports: &[Backed], lab: &LabInfo) -> Value {
    let backed = &ports[0];
    let service = backed.service;
    let name = format!("{}-{}", service.name, &digest(&service.full_name())[..5]);
    let (mut endpoints, mut told) = (Value::Null, Value::Null);
    if !backed.endpoints.is_empty() || !backed.not_ready.is_empty() {
        let ready = backed.endpoints.iter().map(|pod| endpoint(pod, true, lab));
        endpoints = ready.chain(backed.not_ready.iter().map(|pod| endpoint(pod, false, lab))).collect();
        let port = |Backed { service, .. }: &Backed| {
            let port_name = service.port_name.as_deref().unwrap_or_default();
            json!({ "name": port_name, "port": service.target_port(), "protocol": service.protocol })
        };
        told = ports.iter().map(port).collect();
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
        "ports": told,
    })
}

fn endpoint(pod: &LabPod, ready: bool, lab: &LabInfo) -> Value {
    let node = lab.nodes.iter().find(|node| node.host == pod.node).map(|node| &node.name);
    json!({
        "addresses": [ pod.address ],
        "conditions": { "ready": ready, "serving": ready, "terminating": false },
        "nodeName": node,
        "targetRef": {
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.kubernetes_namespace,
            "uid": uid(&format!("{}/{}", pod.kubernetes_namespace, pod.name)),
        },
    })
}
