//! The kinds of objects that the server knows.

/// A kind, and where it lies in the API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// API group; the core's is "".
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) namespaced: bool,
}

const CALICO: &str = "crd.projectcalico.org";
const RBAC: &str = "rbac.authorization.k8s.io";

/// Every kind that is stored.
pub(crate) const KINDS: &[Kind] = &[
    in_namespace("", "Pod", "pods", "pod", &["po"]),
    in_namespace("", "Service", "services", "service", &["svc"]),
    in_namespace("", "ServiceAccount", "serviceaccounts", "serviceaccount", &["sa"]),
    in_namespace("", "ConfigMap", "configmaps", "configmap", &["cm"]),
    in_namespace("", "ResourceQuota", "resourcequotas", "resourcequota", &["quota"]),
    in_namespace("", "Event", "events", "event", &["ev"]),
    of_cluster("", "Namespace", "namespaces", "namespace", &["ns"]),
    of_cluster("", "Node", "nodes", "node", &["no"]),
    in_namespace("apps", "DaemonSet", "daemonsets", "daemonset", &["ds"]),
    in_namespace("apps", "Deployment", "deployments", "deployment", &["deploy"]),
    in_namespace("apps", "ReplicaSet", "replicasets", "replicaset", &["rs"]),
    in_namespace("apps", "StatefulSet", "statefulsets", "statefulset", &["sts"]),
    in_namespace("apps", "ControllerRevision", "controllerrevisions", "controllerrevision", &[]),
    in_namespace("batch", "Job", "jobs", "job", &[]),
    in_namespace("discovery.k8s.io", "EndpointSlice", "endpointslices", "endpointslice", &[]),
    in_namespace("networking.k8s.io", "NetworkPolicy", "networkpolicies", "networkpolicy", &["netpol"]),
    in_namespace(RBAC, "Role", "roles", "role", &[]),
    in_namespace(RBAC, "RoleBinding", "rolebindings", "rolebinding", &[]),
    of_cluster(RBAC, "ClusterRole", "clusterroles", "clusterrole", &[]),
    of_cluster(RBAC, "ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding", &[]),
    in_namespace(CALICO, "NetworkPolicy", "networkpolicies", "networkpolicy", &[]),
    of_cluster(CALICO, "GlobalNetworkPolicy", "globalnetworkpolicies", "globalnetworkpolicy", &[]),
    of_cluster("scheduling.k8s.io", "PriorityClass", "priorityclasses", "priorityclass", &["pc"]),
];

const fn of_cluster(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
) -> Kind {
    Kind { group, version: "v1", kind, plural, singular, short, namespaced: false }
}

const fn in_namespace(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
) -> Kind {
    Kind { namespaced: true, ..of_cluster(group, kind, plural, singular, short) }
}

impl Kind {
    /// The kind of that group and plural name.
    pub(crate) fn of(group: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.group == group && kind.plural == plural)
    }

    /// The kind that an object says it is of.
    pub(crate) fn named(api_version: &str, name: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.api_version() == api_version && kind.kind == name)
    }

    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As messages name it: `pods`, `daemonsets.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}
