//! Network policies: Kubernetes' own, and Calico's where the cluster has them.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
};

use super::Lookup;
use crate::cluster::{Error, error::Purpose, names::USER_ROLE};

/// Network policies of a namespace, or global ones, that are looked at.
const OF_A_NAMESPACE: u32 = 500;
/// How a note on them begins.
const UNREAD_POLICIES: &str = "not all network policies could be read";
/// Where Calico keeps its policies: as resources that Kubernetes stores, or by an API server of its own or both; the same objects.
const CALICO: [(&str, &str); 2] = [("crd.projectcalico.org", "v1"), ("projectcalico.org", "v3")];

impl Lookup {
    /// Learns the network policies that may be for pods of a namespace, once. What cannot be read is a note: the path is known
    /// without them.
    pub async fn policies(&mut self, namespace: &str) {
        if self.policies_of.contains_key(namespace) {
            return;
        }
        let client = self.cluster.client.clone();
        let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
        let mut all = self.learn_policies(&api, &format!("networkpolicies in namespace {namespace}")).await;
        match self.calico().await {
            Ok(Some((group, version))) => {
                let resource = |kind: &str, plural: &str| ApiResource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    api_version: format!("{group}/{version}"),
                    kind: kind.to_owned(),
                    plural: plural.to_owned(),
                };
                let of_namespace = resource("NetworkPolicy", "networkpolicies");
                let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &of_namespace);
                all &= self.learn_policies(&api, &format!("networkpolicies.{group} in namespace {namespace}")).await;
                let global = match self.global {
                    Some(all) => all,
                    None => {
                        let of_cluster = resource("GlobalNetworkPolicy", "globalnetworkpolicies");
                        let api: Api<DynamicObject> = Api::all_with(client, &of_cluster);
                        self.learn_policies(&api, &format!("globalnetworkpolicies.{group}")).await
                    }
                };
                self.global = Some(global);
                all &= global;
            }
            Ok(None) => {}
            Err(error) => {
                self.notes.push(format!("whether there are policies of Calico could not be asked: {error}"));
                all = false;
            }
        }
        self.policies_of.insert(namespace.to_owned(), all);
    }

    /// Which of Calico's groups the cluster has. That it is asked first spares clusters without it a refusal: who may not list
    /// what does not exist is told that he may not.
    async fn calico(&mut self) -> Result<Option<(&'static str, &'static str)>, Error> {
        if let Some(known) = self.calico {
            return Ok(known);
        }
        let client = self.cluster.client.clone();
        let groups = self.cluster.repeat(Purpose::Look, "list API groups", || client.list_api_groups()).await?;
        let known = CALICO.into_iter().find(|(group, _)| groups.groups.iter().any(|there| there.name == *group));
        self.calico = Some(known);
        Ok(known)
    }

    /// Learns policies of one kind; whether that are all.
    async fn learn_policies<K>(&mut self, api: &Api<K>, what: &str) -> bool
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    {
        match self.cluster.list(api, what, &ListParams::default().limit(OF_A_NAMESPACE)).await {
            Ok(policies) => {
                let all = policies.len() < OF_A_NAMESPACE as usize;
                for policy in policies {
                    let kind = if what.starts_with("global") { "GlobalNetworkPolicy" } else { "NetworkPolicy" };
                    self.learn(kind, policy);
                }
                all
            }
            // A resource that Calico's group does not have.
            Err(error) if error.is_not_found() => true,
            Err(error) => {
                let way_out = if error.is_forbidden() {
                    format!("; of an older version, {USER_ROLE} allows it after podpath install")
                } else {
                    String::new()
                };
                // What refuses one kind refuses the others: the first says it for all.
                if !self.notes.iter().any(|note| note.starts_with(UNREAD_POLICIES)) {
                    self.notes.push(format!("{UNREAD_POLICIES}: {error}{way_out}"));
                }
                false
            }
        }
    }
}
