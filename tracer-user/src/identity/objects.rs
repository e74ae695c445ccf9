//! The few fields of Kubernetes' objects that podpath reads; all others are skipped.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

/// The label of an EndpointSlice that says which service it belongs to.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A Pod.
#[derive(Debug, Deserialize)]
pub(super) struct PodObject {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

/// What every object has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    #[serde(default)]
    pub(super) host_network: Option<bool>,
    #[serde(default)]
    pub(super) service_account_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs", default)]
    pub(super) pod_ips: Option<Vec<PodAddress>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PodAddress {
    pub(super) ip: Option<String>,
}

/// A Node.
#[derive(Debug, Deserialize)]
pub(super) struct NodeObject {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NodeStatus {
    #[serde(default)]
    pub(super) addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, ...
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) address: String,
}

/// A Service.
#[derive(Debug, Deserialize)]
pub(super) struct ServiceObject {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: ServiceSpec,
    #[serde(default)]
    pub(super) status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", default)]
    pub(super) cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalTrafficPolicy", default)]
    pub(super) external_traffic_policy: Option<String>,
    #[serde(rename = "externalName", default)]
    pub(super) external_name: Option<String>,
    #[serde(rename = "externalIPs", default)]
    pub(super) external_ips: Option<Vec<String>>,
    #[serde(rename = "loadBalancerSourceRanges", default)]
    pub(super) load_balancer_source_ranges: Option<Vec<String>>,
    #[serde(default)]
    pub(super) ports: Option<Vec<ServicePortObject>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceStatus {
    #[serde(default)]
    pub(super) load_balancer: Option<LoadBalancerObject>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct LoadBalancerObject {
    #[serde(default)]
    pub(super) ingress: Option<Vec<IngressObject>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct IngressObject {
    /// None where the balancer is known by a host name.
    #[serde(default)]
    pub(super) ip: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePortObject {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) protocol: Option<String>,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Debug, Deserialize)]
pub(super) struct EndpointSliceObject {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) endpoints: Option<Vec<EndpointObject>>,
    #[serde(default)]
    pub(super) ports: Option<Vec<EndpointPortObject>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointObject {
    #[serde(default)]
    pub(super) addresses: Option<Vec<String>>,
    #[serde(default)]
    pub(super) node_name: Option<String>,
    #[serde(default)]
    pub(super) conditions: Option<EndpointConditions>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointConditions {
    #[serde(default)]
    pub(super) ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointPortObject {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

/// A NetworkPolicy of Kubernetes or of Calico, or Calico's GlobalNetworkPolicy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyObject {
    #[serde(default)]
    pub(super) api_version: Option<String>,
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: PolicySpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicySpec {
    // Of Kubernetes'.
    #[serde(default)]
    pub(super) pod_selector: Option<LabelSelectorObject>,
    #[serde(default)]
    pub(super) policy_types: Option<Vec<String>>,
    // Of both; only whether there are any is of interest.
    #[serde(default)]
    pub(super) ingress: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    pub(super) egress: Option<Vec<IgnoredAny>>,
    // Of Calico's.
    #[serde(default)]
    pub(super) tier: Option<String>,
    #[serde(default)]
    pub(super) selector: Option<String>,
    #[serde(default)]
    pub(super) namespace_selector: Option<String>,
    #[serde(default)]
    pub(super) service_account_selector: Option<String>,
    #[serde(default)]
    pub(super) types: Option<Vec<String>>,
    #[serde(rename = "preDNAT", default)]
    pub(super) pre_dnat: Option<bool>,
    #[serde(default)]
    pub(super) do_not_track: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LabelSelectorObject {
    #[serde(default)]
    pub(super) match_labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) match_expressions: Option<Vec<LabelExpression>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LabelExpression {
    pub(super) key: String,
    pub(super) operator: String,
    #[serde(default)]
    pub(super) values: Option<Vec<String>>,
}
