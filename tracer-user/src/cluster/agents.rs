//! The agents: which pod of ours is on a node, and a session in it.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, ListParams},
};
use serde_json::Value;

use super::{
    Cluster, Error,
    error::Purpose,
    names::{AGENT, CONTAINER, NAME_LABEL, NAMESPACE, SESSION},
};
use crate::session::Connection;

/// Room for what the network has brought and nobody has read yet, bytes: several frames.
const BUFFER: usize = 256 * 1024;

impl Cluster {
    /// The name of the agent pod on a node that can be used.
    ///
    /// # Errors
    /// There is none, or it does not run, with the reason; or the server refuses.
    pub async fn agent(&self, node: &str) -> Result<String, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let fields = format!("spec.nodeName={node}");
        let parameters = ListParams::default().labels(&format!("{NAME_LABEL}={AGENT}")).fields(&fields).limit(10);
        let pods = self.list(&api, &format!("pods in namespace {NAMESPACE}"), &parameters).await?;
        // One that is being replaced is still listed.
        let mut staying = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let ready = staying.clone().find(|pod| is_running(pod));
        match (ready, staying.next()) {
            (Some(pod), _) => Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()),
            (None, Some(pod)) => Err(unusable(node, pod)),
            (None, None) => Err(no_agent(node)),
        }
    }

    /// Starts a session in an agent pod.
    ///
    /// # Errors
    /// Exec is refused, or the server cannot be asked.
    pub async fn session(&self, node: &str, pod: &str) -> Result<Connection, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let asked = format!("exec in pod {NAMESPACE}/{pod} on node {node}");
        let parameters = AttachParams::default()
            .container(CONTAINER)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .tty(false)
            .max_stdin_buf_size(BUFFER)
            .max_stdout_buf_size(BUFFER);
        let process = self.once(Purpose::Exec, &asked, api.exec(pod, SESSION, &parameters)).await?;
        let typed = format!("kubectl -n {NAMESPACE} exec -i {pod} -c {CONTAINER} -- {}", SESSION.join(" "));
        Ok(Connection::exec(node, process, typed))
    }
}

/// There is no pod.
pub(super) fn no_agent(node: &str) -> Error {
    Error::NoAgent {
        node: node.to_owned(),
        cause: format!("no agent runs there (no pod of {AGENT} in namespace {NAMESPACE})"),
        way_out: "install the agents (podpath install), or trace without them (--ephemeral)".to_owned(),
    }
}

/// Its container runs.
pub(super) fn is_running(pod: &Value) -> bool {
    let mut statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    pod["status"]["phase"] == "Running" && statuses.all(|status| status["state"]["running"].is_object())
}

/// Why it cannot be used.
pub(super) fn unusable(node: &str, pod: &Value) -> Error {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let mut statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let waiting = statuses.find_map(|status| {
        let state = &status["state"];
        [&state["waiting"], &state["terminated"]].into_iter().find(|state| state.is_object()).cloned()
    });
    let reason = waiting.as_ref().and_then(|state| state["reason"].as_str()).map(str::to_owned);
    let said = waiting.as_ref().and_then(|state| state["message"].as_str()).unwrap_or_default();
    let phase = pod["status"]["phase"].as_str().unwrap_or("Unknown");
    let cause = match (&reason, said) {
        (Some(reason), "") => format!("its agent does not run ({reason})"),
        (Some(reason), said) => format!("its agent does not run ({reason}: {said})"),
        (None, _) => format!("its agent does not run yet (pod {phase})"),
    };
    let way_out = match reason.as_deref() {
        Some("ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName") => format!(
            "load the image on that node, or name one that it can pull (podpath install --image IMAGE), and see kubectl -n {NAMESPACE} describe pod {name}"
        ),
        _ => format!("see why: kubectl -n {NAMESPACE} describe pod {name}"),
    };
    Error::NoAgent { node: node.to_owned(), cause, way_out }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_keeps_an_agent_from_running_is_said() {
        let pod = |state: Value| {
            json!({
                "metadata": { "name": "podpath-agent-x7k2p" },
                "status": { "phase": "Pending", "containerStatuses": [{ "state": state }] },
            })
        };
        let missing = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "Back-off pulling image" } });
        let texts: Vec<String> = [missing, json!({ "terminated": { "reason": "OOMKilled" } }), json!({})]
            .into_iter()
            .map(|state| unusable("node-1", &pod(state)).to_string())
            .collect();
        insta::assert_snapshot!(texts.join("\n"));
        assert!(is_running(
            &json!({ "status": { "phase": "Running", "containerStatuses": [{ "state": { "running": {} } }] } })
        ));
    }
}
