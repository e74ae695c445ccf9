//! Who is who, from the API: the two ends of a trace, their nodes, and whom the path meets. Each question is about one name or
//! one address, so that their number grows with the path and never with the cluster.

mod policies;
mod services;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::{Node, Pod},
};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};

use super::{Cluster, Error, names::NAMESPACE};
use crate::identity::Directory;

/// Pods that a message may offer in place of one that is not there.
const SIMILAR_AMONG: u32 = 100;
/// Pods of a workload that are looked at for one that runs.
const OF_A_WORKLOAD: u32 = 50;
/// Pods that one address may have: one that runs, and those that had it before.
const OF_AN_ADDRESS: u32 = 10;
/// Pods of a node that are looked through; kubelets run some 110, large ones up to 500.
const OF_A_NODE: u32 = 500;
/// What has been learned so far.
#[derive(Debug)]
pub struct Lookup {
    /// Who is asked.
    pub cluster: Cluster,
    objects: Vec<Value>,
    asked: HashSet<IpAddr>,
    /// Nodes whose pods were looked through.
    searched: HashSet<String>,
    /// Namespaces whose network policies were asked for, and whether all that can matter were read.
    policies_of: BTreeMap<String, bool>,
    /// Calico's group and version in this cluster, once it was asked for; None: it has none.
    calico: Option<Option<(&'static str, &'static str)>>,
    /// Calico's global policies, once they were asked for: whether all were read.
    global: Option<bool>,
    /// What the reader should know about the ends, in sentences.
    pub notes: Vec<String>,
}

/// What an object is, as people type it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Node,
    Service,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
}

impl Kind {
    /// kubectl's names and short names.
    fn parse(word: &str) -> Option<Kind> {
        Some(match word {
            "pod" | "pods" | "po" => Kind::Pod,
            "node" | "nodes" | "no" => Kind::Node,
            "svc" | "service" | "services" => Kind::Service,
            "deploy" | "deployment" | "deployments" | "deployment.apps" | "deployments.apps" => Kind::Deployment,
            "rs" | "replicaset" | "replicasets" | "replicaset.apps" | "replicasets.apps" => Kind::ReplicaSet,
            "sts" | "statefulset" | "statefulsets" | "statefulset.apps" | "statefulsets.apps" => Kind::StatefulSet,
            "ds" | "daemonset" | "daemonsets" | "daemonset.apps" | "daemonsets.apps" => Kind::DaemonSet,
            "job" | "jobs" | "job.batch" | "jobs.batch" => Kind::Job,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Pod => "pod",
            Kind::Node => "node",
            Kind::Service => "service",
            Kind::Deployment => "deployment",
            Kind::ReplicaSet => "replicaset",
            Kind::StatefulSet => "statefulset",
            Kind::DaemonSet => "daemonset",
            Kind::Job => "job",
        }
    }
}

impl Lookup {
    /// Nothing is known yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            objects: Vec::new(),
            asked: HashSet::new(),
            searched: HashSet::new(),
            policies_of: BTreeMap::new(),
            calico: None,
            global: None,
            notes: Vec::new(),
        }
    }

    /// What is known, for the joiner and for the resolution of names.
    ///
    /// # Errors
    /// The server's objects are not what they say they are.
    pub fn directory(&self) -> Result<Directory, crate::identity::Error> {
        let directory = Directory::of_answers(&self.objects, &format!("context {}", self.cluster.context))?;
        let asked = self.policies_of.iter();
        Ok(asked.fold(directory, |directory, (namespace, all)| directory.with_policies_of(namespace, *all)))
    }

    /// Learns what a person typed; `namespace` is that of names without one. Answers how the directory calls it: a workload is one
    /// of its pods.
    ///
    /// # Errors
    /// The server refuses or cannot be asked; a workload is not there, or none of its pods runs. A pod or node that is not there
    /// is the directory's to tell of, by names that are like it.
    pub async fn end(&mut self, typed: &str, namespace: &str) -> Result<String, Error> {
        if let Ok(address) = typed.parse() {
            self.address(address).await?;
            if !self.objects.iter().any(|object| addresses(object).contains(&address)) {
                let asked = self.services_with(&format!("spec.clusterIP={address}"), |_| true).await?
                    && self.balancer(address).await?;
                if !asked {
                    self.notes.push(format!(
                        "whether {address} is a service's was not asked: API servers before 1.31 do not take that question; name the service"
                    ));
                }
            }
            return Ok(typed.to_owned());
        }
        let parts: Vec<&str> = typed.split('/').collect();
        // What no object can be called is not asked for: it would change the meaning of the request's path.
        if !parts.iter().all(|part| is_name(part)) {
            return Ok(typed.to_owned());
        }
        match parts.as_slice() {
            [name] => self.bare(name, namespace).await,
            [first, name] => match Kind::parse(first) {
                Some(kind) => self.object(kind, namespace, name).await,
                None => self.object(Kind::Pod, first, name).await,
            },
            [namespace, kind, name] => match Kind::parse(kind) {
                Some(kind) => self.object(kind, namespace, name).await,
                None => Ok(typed.to_owned()),
            },
            _ => Ok(typed.to_owned()),
        }
    }

    async fn bare(&mut self, name: &str, namespace: &str) -> Result<String, Error> {
        if self.pod(namespace, name).await? {
            return Ok(name.to_owned());
        }
        // With a dot it is more likely a host's name than a mistyped pod's.
        if !self.node(name).await? && !name.contains('.') {
            self.similar(namespace).await?;
        }
        Ok(name.to_owned())
    }

    async fn object(&mut self, kind: Kind, namespace: &str, name: &str) -> Result<String, Error> {
        let client = self.cluster.client.clone();
        let selector = match kind {
            Kind::Pod => {
                if !self.pod(namespace, name).await? {
                    self.similar(namespace).await?;
                }
                return Ok(format!("{namespace}/{name}"));
            }
            Kind::Node => {
                self.node(name).await?;
                return Ok(format!("node/{name}"));
            }
            Kind::Service => {
                self.service(namespace, name).await?;
                return Ok(format!("{namespace}/svc/{name}"));
            }
            Kind::Deployment => self.selector::<Deployment>(Api::namespaced(client, namespace), kind, name).await?,
            Kind::ReplicaSet => self.selector::<ReplicaSet>(Api::namespaced(client, namespace), kind, name).await?,
            Kind::StatefulSet => self.selector::<StatefulSet>(Api::namespaced(client, namespace), kind, name).await?,
            Kind::DaemonSet => self.selector::<DaemonSet>(Api::namespaced(client, namespace), kind, name).await?,
            Kind::Job => self.selector::<Job>(Api::namespaced(client, namespace), kind, name).await?,
        };
        let full = format!("{namespace}/{name}");
        let Some(selector) = selector else {
            let (context, namespace) = (self.cluster.context.clone(), namespace.to_owned());
            return Err(Error::NoSuch { name: full, kind: kind.name().to_owned(), context, namespace });
        };
        let parameters = ListParams::default().labels(&selector).limit(OF_A_WORKLOAD);
        let mut pods = self.pods(Some(namespace), &format!("pods of {} {full}", kind.name()), &parameters).await?;
        let count = pods.len();
        // By name, so that two traces in a row take the same one.
        pods.sort_by_key(|pod| (!is_ready(pod), pod["metadata"]["name"].as_str().map(str::to_owned)));
        let Some(pod) = pods.into_iter().find(runs) else {
            let found = if count == 0 { "there is none".to_owned() } else { format!("of {count}") };
            let (name, namespace) = (format!("{} {full}", kind.name()), namespace.to_owned());
            return Err(Error::NoPodOf { name, found, namespace, selector });
        };
        let taken = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.notes.push(format!("{} {full}: of its pods ({count}), {taken} was taken", kind.name()));
        self.learn_pod(pod).await?;
        Ok(format!("{namespace}/{taken}"))
    }

    /// What selects a workload's pods, as `kubectl -l` takes it.
    async fn selector<K>(&self, api: Api<K>, kind: Kind, name: &str) -> Result<Option<String>, Error>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    {
        let Some(object) = self.cluster.get(&api, kind.name(), name).await? else { return Ok(None) };
        Ok(Some(selector(&object["spec"]["selector"])))
    }

    async fn pod(&mut self, namespace: &str, name: &str) -> Result<bool, Error> {
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
        let Some(pod) = self.cluster.get(&api, "pod", name).await? else { return Ok(false) };
        self.learn_pod(pod).await?;
        Ok(true)
    }

    /// A pod, and the node it lives on.
    async fn learn_pod(&mut self, pod: Value) -> Result<(), Error> {
        let node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
        self.asked.extend(addresses(&pod));
        self.learn("Pod", pod);
        match node {
            Some(node) => self.node(&node).await.map(drop),
            None => Ok(()),
        }
    }

    /// Learns a node; whether there is one of that name.
    ///
    /// # Errors
    /// The server refuses, or cannot be asked.
    pub async fn node(&mut self, name: &str) -> Result<bool, Error> {
        if self.objects.iter().any(|object| object["kind"] == "Node" && object["metadata"]["name"] == name) {
            return Ok(true);
        }
        let api: Api<Node> = Api::all(self.cluster.client.clone());
        let Some(node) = self.cluster.get(&api, "node", name).await? else { return Ok(false) };
        let of_node = node["status"]["addresses"].as_array().into_iter().flatten();
        self.asked.extend(of_node.filter_map(|entry| entry["address"].as_str()?.parse::<IpAddr>().ok()));
        self.learn("Node", node);
        Ok(true)
    }

    /// Why no session can be had on a node, by what is known of it: of a node that is not ready the rest only follows from that. What
    /// concerns the whole cluster stays as it is.
    pub fn explain(&self, node: &str, error: Error) -> Error {
        let (cause, way_out) = match error {
            Error::NoAgent { cause, way_out, .. } => (cause, way_out),
            Error::Refused { cause, code, .. } if !matches!(code, 401 | 403) => (
                format!("no session could be started there: {cause} ({code})"),
                format!("check the agent's pod: kubectl -n {NAMESPACE} get pods -o wide"),
            ),
            Error::Slow { after, .. } => (
                format!("no session could be started there within {} s", after.as_secs_f64()),
                "give it more time with --request-timeout".to_owned(),
            ),
            other => return other,
        };
        let known = self.objects.iter().find(|object| object["kind"] == "Node" && object["metadata"]["name"] == node);
        let node = node.to_owned();
        match known.and_then(not_ready) {
            Some(why) => Error::NoAgent {
                cause: format!("the node is not ready ({why}), and {cause}"),
                way_out: format!("see why: kubectl describe node {node}"),
                node,
            },
            None => Error::NoAgent { node, cause, way_out },
        }
    }

    /// For a message that offers names.
    async fn similar(&mut self, namespace: &str) -> Result<(), Error> {
        let parameters = ListParams::default().limit(SIMILAR_AMONG);
        match self.pods(Some(namespace), &format!("pods in namespace {namespace}"), &parameters).await {
            Ok(pods) => pods.into_iter().for_each(|pod| self.learn("Pod", pod)),
            // Then it offers none.
            Err(error) if error.is_forbidden() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Learns whose this address is, unless that was asked before. Nodes have no selector for theirs: a pod on the node's own
    /// network says which node it is.
    ///
    /// # Errors
    /// The server refuses, or cannot be asked.
    pub async fn address(&mut self, address: IpAddr) -> Result<(), Error> {
        if !self.asked.insert(address) {
            return Ok(());
        }
        let parameters = ListParams::default().fields(&format!("status.podIP={address}")).limit(OF_AN_ADDRESS);
        let mut pods = self.pods(None, &format!("pods with address {address}"), &parameters).await?;
        let of_node = |pod: &Value| pod["spec"]["hostNetwork"].as_bool().unwrap_or(false);
        if let Some(place) = pods.iter().position(of_node) {
            let pod = pods.swap_remove(place);
            if let Some(node) = pod["spec"]["nodeName"].as_str() {
                self.node(node).await?;
            }
            return Ok(());
        }
        for pod in pods {
            self.learn_pod(pod).await?;
        }
        Ok(())
    }

    /// Learns which pods of a node that the path passed have one of these addresses as a further one. The API finds pods only by
    /// their first address; the other family's are asked for among the pods of one node, and only in clusters that have both.
    ///
    /// # Errors
    /// The server refuses, or cannot be asked.
    pub async fn second_addresses(&mut self, wanted: &[IpAddr], node: &str) -> Result<(), Error> {
        let second: Vec<bool> = self.objects.iter().filter_map(|object| second_family(&addresses(object))).collect();
        let known: HashSet<IpAddr> = self.objects.iter().flat_map(addresses).collect();
        let nobodys = |address: &IpAddr| !known.contains(address) && second.contains(&address.is_ipv4());
        let wanted: Vec<IpAddr> = wanted.iter().copied().filter(nobodys).collect();
        if wanted.is_empty() || !self.searched.insert(node.to_owned()) {
            return Ok(());
        }
        let parameters = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(OF_A_NODE);
        let pods = self.pods(None, &format!("pods of node {node}"), &parameters).await?;
        let of_node = |pod: &Value| pod["spec"]["hostNetwork"].as_bool().unwrap_or(false);
        for pod in pods.into_iter().filter(|pod| !of_node(pod)) {
            if addresses(&pod).iter().any(|address| wanted.contains(address)) {
                self.learn_pod(pod).await?;
            }
        }
        Ok(())
    }

    async fn pods(&self, namespace: Option<&str>, what: &str, parameters: &ListParams) -> Result<Vec<Value>, Error> {
        let client = self.cluster.client.clone();
        let api: Api<Pod> =
            namespace.map_or_else(|| Api::all(client.clone()), |name| Api::namespaced(client.clone(), name));
        self.cluster.list(&api, what, parameters).await
    }

    fn learn(&mut self, kind: &str, mut object: Value) {
        // Items of a list do not say.
        object["kind"] = json!(kind);
        let known = |other: &Value| {
            other["kind"] == object["kind"]
                // Kubernetes and Calico both have a NetworkPolicy.
                && other["apiVersion"] == object["apiVersion"]
                && other["metadata"]["name"] == object["metadata"]["name"]
                && other["metadata"]["namespace"] == object["metadata"]["namespace"]
        };
        self.objects.retain(|other| !known(other));
        self.objects.push(object);
    }
}

/// Can an object have this name, in any letters (RFC 1123)?
fn is_name(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

fn addresses(pod: &Value) -> Vec<IpAddr> {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|entry| entry["ip"].as_str());
    all.chain(pod["status"]["podIP"].as_str()).filter_map(|text| text.parse().ok()).collect()
}

/// The family that comes second, if there are two: whether it is IPv4.
fn second_family(addresses: &[IpAddr]) -> Option<bool> {
    let (first, others) = addresses.split_first()?;
    others.iter().map(IpAddr::is_ipv4).find(|is_ipv4| *is_ipv4 != first.is_ipv4())
}

fn runs(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
}

/// What a node's condition says, if it is not that it is ready.
fn not_ready(node: &Value) -> Option<String> {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.find(|condition| condition["type"] == "Ready")?;
    let status = ready["status"].as_str().filter(|status| *status != "True")?;
    let message = ready["message"].as_str().filter(|message| !message.is_empty());
    Some(message.map_or_else(|| format!("Ready: {status}"), |message| format!("Ready: {status}, {message}")))
}

fn is_ready(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    runs(pod) && conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A `LabelSelector` in the words of a query (`metav1.LabelSelectorAsSelector`).
fn selector(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut terms: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let values = values.collect::<Vec<_>>().join(",");
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_queries() {
        let both = json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [
                { "key": "tier", "operator": "In", "values": ["a", "b"] },
                { "key": "env", "operator": "NotIn", "values": ["test"] },
                { "key": "x", "operator": "Exists" },
                { "key": "y", "operator": "DoesNotExist" },
            ],
        });
        assert_eq!(selector(&both), "app=web,tier in (a,b),env notin (test),x,!y");
        assert_eq!(selector(&Value::Null), "");
    }

    #[test]
    fn a_pod_that_is_going_does_not_run() {
        let pod = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
        assert!(runs(&pod) && is_ready(&pod));
        let mut going = pod.clone();
        going["metadata"]["deletionTimestamp"] = json!("2026-11-01T08:00:00Z");
        assert!(!runs(&going) && !is_ready(&going));
        let ended = json!({ "status": { "phase": "Succeeded" } });
        assert!(!runs(&ended));
    }

    #[test]
    fn a_node_that_is_not_ready_says_so() {
        let node = |ready: Value| json!({ "status": { "conditions": [{ "type": "DiskPressure", "status": "False" }, ready] } });
        assert_eq!(
            not_ready(&node(json!({ "type": "Ready", "status": "True", "message": "kubelet is posting" }))),
            None
        );
        assert_eq!(
            not_ready(&node(json!({ "type": "Ready", "status": "Unknown" }))).as_deref(),
            Some("Ready: Unknown")
        );
        let stopped =
            json!({ "type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status." });
        let said = not_ready(&node(stopped));
        assert_eq!(said.as_deref(), Some("Ready: Unknown, Kubelet stopped posting node status."));
        assert_eq!(not_ready(&json!({})), None, "nothing is known");
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        assert!(["bb1", "etcd-ip-172-20-62-7.ec2.internal", "BB1"].into_iter().all(is_name));
        assert!(["", "bb 1", "..", "bb1?x=y", "a%2fb", "-x"].into_iter().all(|part| !is_name(part)));
    }

    #[test]
    fn kinds_have_kubectls_names() {
        assert_eq!(Kind::parse("deploy"), Some(Kind::Deployment));
        assert_eq!(Kind::parse("deployments.apps"), Some(Kind::Deployment));
        assert_eq!(Kind::parse("sts"), Some(Kind::StatefulSet));
        assert_eq!(Kind::parse("shop"), None);
    }
}
