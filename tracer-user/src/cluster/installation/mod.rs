//! podpath in a cluster: brought in, looked after until it works, and taken out again.

use std::time::Duration;

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Event, Pod},
        rbac::v1::ClusterRoleBinding,
    },
    apimachinery::pkg::version::Info,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Cluster, Error,
    error::Purpose,
    names::{AGENT, MANAGER, MANAGER_LABEL, NAME_LABEL, NAMESPACE, USER_ROLE},
};

mod rollout;

pub use rollout::{Rollout, Trouble};

/// How often the server is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Agents are looked at one by one only this often: there is one per node.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The controller's complaints that are looked at, at most.
const OF_INTEREST: u32 = 500;

/// An object of [`super::manifests::objects`], as the API addresses it.
#[derive(Clone, Debug)]
struct Target {
    kind: String,
    name: String,
    resource: ApiResource,
    namespace: Option<String>,
}

impl Target {
    fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, version) = (text(&object["kind"]), text(&object["apiVersion"]));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        Self {
            resource: ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind)),
            name: text(&object["metadata"]["name"]),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            kind,
        }
    }

    fn api(&self, cluster: &Cluster) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &self.resource),
            None => Api::all_with(cluster.client.clone(), &self.resource),
        }
    }

    /// As kubectl names it: `daemonset/podpath-agent`.
    fn shown(&self) -> String {
        format!("{}/{}", self.kind.to_lowercase(), self.name)
    }
}

/// Minor version of the server's Kubernetes 1; None if it says something else.
///
/// # Errors
/// The server does not answer.
pub async fn server_minor(cluster: &Cluster) -> Result<Option<u32>, Error> {
    let Info { major, minor, .. } =
        cluster.repeat(Purpose::Install, "ask for its version", || cluster.client.apiserver_version()).await?;
    // Providers add a plus sign.
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse().ok().filter(|_| major == "1"))
}

/// Applies the objects in their order, server-side; `done` is told the name of each. Objects that are there already are brought
/// to the same state.
///
/// # Errors
/// The server refuses one, or the namespace is somebody else's.
pub async fn apply(cluster: &Cluster, objects: &[Value], mut done: impl FnMut(&str)) -> Result<(), Error> {
    for object in objects {
        let target = Target::of(object);
        let api = target.api(cluster);
        if target.kind == "Namespace" {
            cluster.until_namespace_is_gone_or_stays(Purpose::Install).await?;
            let found = cluster
                .repeat(Purpose::Install, &format!("get {}", target.shown()), || api.get_opt(&target.name))
                .await?;
            if found.as_ref().is_some_and(|found| !is_ours(found)) {
                return Err(Error::ForeignNamespace { context: cluster.context.clone() });
            }
        }
        // These objects are nobody else's, so that what another manager once set in them gives way.
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        let asked = format!("apply {}", target.shown());
        cluster.repeat(Purpose::Install, &asked, || api.patch(&target.name, &params, &patch)).await?;
        done(&target.shown());
    }
    Ok(())
}

fn is_ours(object: &DynamicObject) -> bool {
    object.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGER_LABEL)).is_some_and(|value| value == MANAGER)
}

/// Waits until every node that should have an agent has one of this version that runs; `step` is told whenever that has
/// been looked at. Returns how many they are.
///
/// # Errors
/// [`Error::NotReady`] after `limit`; the server refuses to tell.
pub async fn wait_until_ready(
    cluster: &Cluster,
    limit: Duration,
    mut step: impl FnMut(&Rollout),
) -> Result<usize, Error> {
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let deadline = Instant::now() + limit;
    let mut looked: Option<Instant> = None;
    let mut rollout = Rollout::default();
    loop {
        let set = cluster.repeat(Purpose::Install, &format!("get daemonset/{AGENT}"), || sets.get(AGENT)).await?;
        rollout.of_set(&set);
        let last = Instant::now() >= deadline;
        if !rollout.is_complete() && (last || looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY)) {
            rollout.of_pods(&agents(cluster).await?);
            if rollout.lacks_pods() {
                rollout.of_events(&refusals(cluster).await);
            }
            looked = Some(Instant::now());
        }
        step(&rollout);
        if rollout.is_complete() {
            return Ok(rollout.wanted);
        }
        if last {
            return Err(Error::NotReady { after: limit, rollout: Box::new(rollout) });
        }
        sleep(ASK_EVERY.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

/// All agent pods.
///
/// # Errors
/// The server refuses to list them.
pub async fn agents(cluster: &Cluster) -> Result<Vec<Pod>, Error> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let params = ListParams::default().labels(&format!("{NAME_LABEL}={AGENT}"));
    cluster.list_all(Purpose::Install, &api, &format!("pods in namespace {NAMESPACE}"), params).await
}

/// Why no pods were made, in the controller's words. Whoever may not read events is told the rest.
async fn refusals(cluster: &Cluster) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let fields = format!("involvedObject.kind=DaemonSet,involvedObject.name={AGENT},type=Warning");
    let params = ListParams::default().fields(&fields).limit(OF_INTEREST);
    let events =
        cluster.repeat(Purpose::Install, &format!("list events in namespace {NAMESPACE}"), || api.list(&params)).await;
    events.map(|list| list.items).unwrap_or_default()
}

/// What came of taking it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// What was there and is gone.
    pub gone: Vec<String>,
    /// What has one of our names and was not made by podpath: it stays.
    pub foreign: Vec<String>,
    /// ClusterRoleBindings of others to our ClusterRole: they bind to nothing now.
    pub bindings: Vec<String>,
}

/// Removes the objects in reverse order and waits until they are gone; `step` is told what is waited for.
///
/// # Errors
/// The server refuses, or something is still there after `limit`.
pub async fn remove(
    cluster: &Cluster,
    objects: &[Value],
    limit: Duration,
    mut step: impl FnMut(&str),
) -> Result<Removed, Error> {
    let deadline = Instant::now() + limit;
    let mut removed = Removed::default();
    for object in objects.iter().rev() {
        let target = Target::of(object);
        let (api, shown) = (target.api(cluster), target.shown());
        let Some(found) =
            cluster.repeat(Purpose::Install, &format!("get {shown}"), || api.get_opt(&target.name)).await?
        else {
            continue;
        };
        if !is_ours(&found) {
            removed.foreign.push(shown);
            continue;
        }
        step(&shown);
        // Foreground: what depends on it goes first, so that its end is the end of its pods too.
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
        match cluster.repeat(Purpose::Install, &format!("delete {shown}"), || api.delete(&target.name, &params)).await {
            // Somebody else was faster.
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let uid = found.metadata.uid;
        while let Some(still) =
            cluster.repeat(Purpose::Install, &format!("get {shown}"), || api.get_opt(&target.name)).await?
        {
            if still.metadata.uid != uid {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::NotGone { what: shown, after: limit });
            }
            sleep(ASK_EVERY).await;
        }
        removed.gone.push(shown);
    }
    removed.bindings = bindings(cluster).await;
    Ok(removed)
}

/// Who was given our ClusterRole. Whoever may not list bindings is told nothing of them.
async fn bindings(cluster: &Cluster) -> Vec<String> {
    let api: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let params = ListParams::default();
    let all = cluster.repeat(Purpose::Install, "list clusterrolebindings", || api.list(&params)).await;
    let all = all.map(|list| list.items).unwrap_or_default();
    let ours =
        all.into_iter().filter(|binding| binding.role_ref.kind == "ClusterRole" && binding.role_ref.name == USER_ROLE);
    ours.filter_map(|binding| binding.metadata.name).collect()
}

#[cfg(test)]
mod tests;
