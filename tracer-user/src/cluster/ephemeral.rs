//! Agents for one trace: a Job on each node concerned, whose pod is an agent's. Its deadline and its time to live remove it even if
//! nobody does.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    batch::v1::Job,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Cluster, Error,
    agents::{is_running, unusable},
    error::Purpose,
    manifests::{self, Variant},
    names::{AGENT, MANAGER, MANAGER_LABEL, NAME_LABEL, NAMESPACE},
};

/// A Job that has ended is removed after so many seconds.
const KEPT: u32 = 30;
/// Between two looks at a pod that is not ready yet.
const LOOK: Duration = Duration::from_millis(300);
/// The name in [`NAME_LABEL`] of these pods: the DaemonSet must not take them for its own.
const NAME: &str = "podpath-ephemeral";

/// What was made for a trace, and is to be removed after it.
#[derive(Debug, Default)]
pub struct Ephemeral {
    jobs: Vec<String>,
    /// The namespace was not there before.
    namespace: bool,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The agent's image.
    pub image: String,
    /// How long a pod may live, also if it is forgotten.
    pub lifetime: Duration,
    /// How long one may take until it runs.
    pub ready_within: Duration,
}

impl Cluster {
    /// Makes the agent of a node; the name of its pod, once it runs.
    ///
    /// # Errors
    /// The server refuses or cannot be asked; the pod does not run in time, with the reason.
    pub async fn make_agent(&self, made: &mut Ephemeral, node: &str, wish: &Wish) -> Result<String, Error> {
        self.make_namespace(made).await?;
        let api: Api<Job> = Api::namespaced(self.client.clone(), NAMESPACE);
        let asked = format!("create a job in namespace {NAMESPACE}");
        // Remembered before it is asked for: who is interrupted in between removes it all the same.
        let name = format!("{AGENT}-{:08x}", rand::random::<u32>());
        let job: Job = self.typed(&asked, job(&name, node, wish))?;
        made.jobs.push(name.clone());
        self.once(Purpose::Ephemeral, &asked, api.create(&PostParams::default(), &job)).await?;
        self.running(node, &name, wish.ready_within).await
    }

    /// Waits until the Job's pod runs.
    async fn running(&self, node: &str, job: &str, within: Duration) -> Result<String, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let parameters = ListParams::default().labels(&format!("job-name={job}")).limit(2);
        let deadline = Instant::now() + within;
        loop {
            let pods = self.list(&api, &format!("pods in namespace {NAMESPACE}"), &parameters).await?;
            match pods.first() {
                Some(pod) if is_running(pod) => {
                    return Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
                }
                Some(pod) if Instant::now() > deadline => return Err(unusable(node, pod)),
                None if Instant::now() > deadline => {
                    return Err(Error::NoAgent {
                        node: node.to_owned(),
                        cause: format!("no pod was made for job {job} within {} s", within.as_secs()),
                        way_out: format!("see why: kubectl -n {NAMESPACE} describe job {job}"),
                    });
                }
                _ => sleep(LOOK).await,
            }
        }
    }

    async fn make_namespace(&self, made: &mut Ephemeral) -> Result<(), Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        // Who may not ask may still create what is needed in it.
        match self.until_namespace_is_gone_or_stays(Purpose::Look).await {
            Err(error) if error.is_forbidden() => return Ok(()),
            asked => asked?,
        }
        if self.get(&api, "namespace", NAMESPACE).await?.is_some() {
            return Ok(());
        }
        let objects = manifests::objects(&Variant::default());
        let object = objects.into_iter().find(|object| object["kind"] == "Namespace").unwrap_or_default();
        let asked = format!("create namespace {NAMESPACE}");
        let namespace: Namespace = self.typed(&asked, object)?;
        self.once(Purpose::Ephemeral, &asked, api.create(&PostParams::default(), &namespace)).await?;
        made.namespace = true;
        Ok(())
    }

    /// Removes what was made; the namespace stays if somebody else has begun to use it. What cannot be removed now goes by its
    /// deadline.
    ///
    /// # Errors
    /// The first refusal; all else was tried.
    pub async fn remove(&self, made: Ephemeral) -> Result<(), Error> {
        let Ephemeral { jobs, namespace } = made;
        let api: Api<Job> = Api::namespaced(self.client.clone(), NAMESPACE);
        let mut result = Ok(());
        let alone = namespace && self.is_ours_alone(&jobs).await.unwrap_or(false);
        let background = DeleteParams::background();
        for job in jobs {
            let asked = format!("delete job {NAMESPACE}/{job}");
            let deleted = self.repeat(Purpose::Ephemeral, &asked, || api.delete(&job, &background)).await;
            match deleted {
                // It was never made, or its time to live was over.
                Err(error) if error.is_not_found() => {}
                deleted => result = result.and(deleted.map(drop)),
            }
        }
        if alone {
            let api: Api<Namespace> = Api::all(self.client.clone());
            let asked = format!("delete namespace {NAMESPACE}");
            let deleted = self.repeat(Purpose::Ephemeral, &asked, || api.delete(NAMESPACE, &background)).await;
            result = result.and(deleted.map(drop));
        }
        result
    }

    /// Whether nothing runs in our namespace but these jobs: no agents that were installed meanwhile, and nobody else's trace.
    async fn is_ours_alone(&self, jobs: &[String]) -> Result<bool, Error> {
        let few = ListParams::default().limit(jobs.len() as u32 + 1);
        let in_namespace = |what: &str| format!("{what} in namespace {NAMESPACE}");
        let all: Api<Job> = Api::namespaced(self.client.clone(), NAMESPACE);
        let there = self.list(&all, &in_namespace("jobs"), &few).await?;
        let ours = |job: &Value| jobs.iter().any(|name| job["metadata"]["name"] == name.as_str());
        if !there.iter().all(ours) {
            return Ok(false);
        }
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), NAMESPACE);
        Ok(self.list(&sets, &in_namespace("daemonsets"), &few).await?.is_empty())
    }

    /// An object of ours as the client wants it.
    fn typed<K: DeserializeOwned>(&self, asked: &str, object: Value) -> Result<K, Error> {
        let typed = serde_json::from_value(object);
        typed.map_err(|source| Error::of(&self.context, Purpose::Ephemeral, asked, &kube::Error::SerdeError(source)))
    }
}

/// The Job of one node.
fn job(name: &str, node: &str, wish: &Wish) -> Value {
    let Wish { image, lifetime, ready_within } = wish;
    let variant = Variant { image: Some(image.clone()), ..Variant::default() };
    let mut template = manifests::agent_template(&variant);
    let labels = json!({ NAME_LABEL: NAME, MANAGER_LABEL: MANAGER });
    template["metadata"]["labels"] = labels.clone();
    let spec = &mut template["spec"];
    spec["nodeName"] = json!(node);
    spec["restartPolicy"] = json!("Never");
    if let Some(spec) = spec.as_object_mut() {
        // The account is only there where the agents are installed, and the class only where a quota lets it in.
        for field in ["serviceAccountName", "priorityClassName", "nodeSelector"] {
            spec.remove(field);
        }
    }
    // It lives for a trace: nothing to probe.
    if let Some(container) = spec.pointer_mut("/containers/0").and_then(Value::as_object_mut) {
        container.remove("livenessProbe");
    }
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": labels },
        "spec": {
            "activeDeadlineSeconds": (*lifetime + *ready_within).as_secs().max(1),
            "ttlSecondsAfterFinished": KEPT,
            "backoffLimit": 0,
            "template": template,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_an_agent_on_that_node_for_a_while() {
        let wish = Wish {
            image: "localhost/podpath-agent:test".to_owned(),
            lifetime: Duration::from_secs(100),
            ready_within: Duration::from_secs(20),
        };
        let job = job("podpath-agent-1f3c5a7b", "node-1", &wish);
        insta::assert_snapshot!(serde_norway::to_string(&job).expect("is YAML"));
        // The server knows all its fields.
        let typed: Job = serde_json::from_value(job.clone()).expect("is a Job");
        assert_eq!(serde_json::to_value(typed).expect("is JSON"), job);
    }
}
