//! All nodes, and their agents: the one question that grows with the cluster, asked only by `podpath nodes`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::{
    Cluster, Error,
    agents::{is_running, no_agent, unusable},
    error::Purpose,
    names::{AGENT, NAME_LABEL, NAMESPACE},
};

/// A node, by what the API says.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its kubelet says so.
    pub ready: bool,
    /// Its InternalIP.
    pub address: Option<String>,
    /// As `uname -r` prints it there.
    pub kernel: Option<String>,
    /// `Debian GNU/Linux 13 (trixie)`
    pub os: Option<String>,
    /// The agent pod that can be used, or why there is none.
    pub agent: Result<String, Error>,
}

impl Cluster {
    /// All nodes, by name.
    ///
    /// # Errors
    /// The server refuses, or cannot be asked.
    pub async fn machines(&self) -> Result<Vec<Machine>, Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let nodes = self.list_all(Purpose::Look, &nodes, "nodes", ListParams::default()).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let parameters = ListParams::default().labels(&format!("{NAME_LABEL}={AGENT}"));
        let what = format!("pods in namespace {NAMESPACE}");
        let pods = self.list_all(Purpose::Look, &pods, &what, parameters).await?;
        let mut agents = BTreeMap::new();
        for pod in pods.iter().map(|pod| json!(pod)) {
            // One that is being replaced is still listed.
            if let (Some(node), true) =
                (pod["spec"]["nodeName"].as_str(), pod["metadata"]["deletionTimestamp"].is_null())
            {
                agents.insert(node.to_owned(), pod);
            }
        }
        let mut machines: Vec<Machine> = nodes.iter().map(|node| machine(node, &agents)).collect();
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(machines)
    }
}

fn machine(node: &Node, agents: &BTreeMap<String, Value>) -> Machine {
    let name = node.name_any();
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    let address = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP");
    let address = address.map(|address| address.address.clone());
    let (kernel, os) = status.node_info.map(|info| (info.kernel_version, info.os_image)).unzip();
    let agent = match agents.get(&name) {
        Some(pod) if is_running(pod) => Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
        Some(pod) => Err(unusable(&name, pod)),
        None => Err(no_agent(&name)),
    };
    Machine { name, ready, address, kernel, os, agent }
}
