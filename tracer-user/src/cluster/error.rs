//! What can go wrong between podpath and a cluster's API.

use std::{path::PathBuf, time::Duration};

use kube::client::UpgradeConnectionError;

use super::{
    installation::Rollout,
    names::{EPHEMERAL_ROLE, MANAGER, MANAGER_LABEL, NAMESPACE, USER_ROLE},
};

/// Why the cluster could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No kubeconfig, or one that cannot be used.
    #[error("kubeconfig {}: {}; name another with --kubeconfig FILE", shown(.path), first_line(.source))]
    Kubeconfig {
        /// The file, if one was named.
        path: Option<PathBuf>,
        /// The cause.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The context is not in the kubeconfig.
    #[error("context {}: not in the kubeconfig; {}", named(.wanted), choices(.known))]
    NoSuchContext {
        /// Its name; empty: none was named and none is current.
        wanted: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// No client can be made of what the kubeconfig says, or its user has no credential to show.
    #[error("context {context}: {cause}; log in again, or check its certificates and its user in the kubeconfig")]
    Client {
        /// The context.
        context: String,
        /// The cause.
        cause: String,
    },
    /// The API server cannot be reached.
    #[error("context {context}: {}", unreachable(.context, .cause))]
    Unreachable {
        /// The context.
        context: String,
        /// The cause.
        cause: String,
    },
    /// It did not answer in time.
    #[error("context {context}: {asked}: no answer within {} s; try again, or give it more time with --request-timeout", .after.as_secs_f64())]
    Slow {
        /// The context.
        context: String,
        /// What was asked.
        asked: String,
        /// The limit.
        after: Duration,
    },
    /// It refuses.
    #[error("context {context}: {asked}: {cause} ({code}); {way_out}")]
    Refused {
        /// The context.
        context: String,
        /// What was asked.
        asked: String,
        /// What the code means, and its words.
        cause: String,
        /// HTTP status.
        code: u16,
        /// What to do.
        way_out: String,
    },
    /// Its answer cannot be understood.
    #[error(
        "context {context}: {asked}: the answer cannot be read: {cause}; check that this is a Kubernetes API server, and that a proxy before it lets WebSockets through"
    )]
    Answer {
        /// The context.
        context: String,
        /// What was asked.
        asked: String,
        /// The cause.
        cause: String,
    },
    /// An object has no pods.
    #[error("{name}: no pod of it is running ({found}); see why: kubectl -n {namespace} get pods -l {selector}")]
    NoPodOf {
        /// `default/deploy/web`.
        name: String,
        /// How many pods there are, of which none runs.
        found: String,
        /// Its namespace.
        namespace: String,
        /// How its pods are found.
        selector: String,
    },
    /// No such object.
    #[error("{name}: no such {kind} in context {context}; see which there are: kubectl -n {namespace} get {kind}")]
    NoSuch {
        /// `default/web`.
        name: String,
        /// `deployment`.
        kind: String,
        /// The context.
        context: String,
        /// Its namespace.
        namespace: String,
    },
    /// The node has no agent that can be used.
    #[error("node {node}: {cause}; {way_out}")]
    NoAgent {
        /// The node.
        node: String,
        /// Why.
        cause: String,
        /// What to do.
        way_out: String,
    },
    /// The namespace is there and is not ours.
    #[error(
        "namespace {NAMESPACE}: exists in context {context} and was not made by podpath; if it is meant for podpath: kubectl label namespace {NAMESPACE} {MANAGER_LABEL}={MANAGER}"
    )]
    ForeignNamespace {
        /// Where.
        context: String,
    },
    /// The installed agents do not run.
    #[error("{}", not_ready(.after, .rollout))]
    NotReady {
        /// How long they had.
        after: Duration,
        /// How far they are.
        rollout: Box<Rollout>,
    },
    /// Something does not go away.
    #[error("{what}: still there {} s after its deletion; see what holds it (kubectl -n {NAMESPACE} get {what} -o yaml, its finalizers), and try again", .after.as_secs())]
    NotGone {
        /// What.
        what: String,
        /// How long it had.
        after: Duration,
    },
}

/// What a request is for: who may not make it is told who can allow that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Who is who.
    Look,
    /// A session in an agent.
    Exec,
    /// Agents for one trace.
    Ephemeral,
    /// To install, or to remove that.
    Install,
}

impl Error {
    /// What `kube` says, as a person understands it.
    pub(super) fn of(context: &str, purpose: Purpose, asked: &str, error: &kube::Error) -> Error {
        let (context, asked) = (context.to_owned(), asked.to_owned());
        let (code, message) = match error {
            kube::Error::Api(status) if status.message.is_empty() => (status.code, status.reason.clone()),
            kube::Error::Api(status) => (status.code, status.message.clone()),
            // The words that come with it are not kept.
            kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => {
                (code.as_u16(), "no stream was opened".to_owned())
            }
            kube::Error::UpgradeConnection(_) | kube::Error::SerdeError(_) => {
                return Error::Answer { context, asked, cause: chain(error) };
            }
            kube::Error::Auth(source) => return Error::Client { context, cause: chain(source) },
            other => return Error::Unreachable { context, cause: chain(other) },
        };
        let cause = match code {
            401 => format!("the API server does not accept who you are: {message}"),
            403 => format!("not allowed: {message}"),
            _ => message,
        };
        Error::Refused { context, asked, cause, code, way_out: way_out(code, purpose) }
    }

    /// Whether it is the server's word that this user may not.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Error::Refused { code: 403, .. })
    }

    /// Whether it is the server's word that there is no such object.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused { code: 404, .. })
    }
}

/// Without the excerpt of the file that a parser adds.
fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The innermost cause, which says most; the outer ones only say that there is one.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// What to do about a refusal.
fn way_out(code: u16, purpose: Purpose) -> String {
    match (code, purpose) {
        (401, _) => "log in again, or renew the user's credential in the kubeconfig".to_owned(),
        (403, Purpose::Look) => format!(
            "an administrator allows it with kubectl create clusterrolebinding podpath-YOU --clusterrole {USER_ROLE} --user YOU"
        ),
        (403, Purpose::Exec) => format!(
            "tracing runs the agents by exec in namespace {NAMESPACE}: an administrator allows it with kubectl -n {NAMESPACE} create \
             rolebinding podpath-YOU --role {USER_ROLE} --user YOU"
        ),
        (403, Purpose::Ephemeral) => format!(
            "an administrator allows it with podpath install and kubectl -n {NAMESPACE} create rolebinding podpath-YOU-ephemeral \
             --role {EPHEMERAL_ROLE} --user YOU"
        ),
        (403, Purpose::Install) => {
            "have someone do it who may (installing takes a cluster's administrator), or name another --context"
                .to_owned()
        }
        (404, _) => "it is not there, or not any more: try again, or bring podpath in by podpath install".to_owned(),
        (409 | 410, _) => "something else changes it at the same time: try again".to_owned(),
        (429 | 500.., _) => "the server is busy or ill: try again later".to_owned(),
        (_, Purpose::Install | Purpose::Ephemeral) => {
            "compare what is applied, which `podpath install --dry-run -o yaml` prints, with what this server takes"
                .to_owned()
        }
        (_, Purpose::Look | Purpose::Exec) => {
            "see whether kubectl is refused too (kubectl -v=8 shows what it asks), and report it if not".to_owned()
        }
    }
}

/// Cause and way out. A certificate that does not fit is no server that is down.
fn unreachable(context: &str, cause: &str) -> String {
    if cause.contains("certificate") {
        format!(
            "the API server and the kubeconfig do not trust each other ({cause}); get the cluster's kubeconfig anew, or check \
             its certificates and the server's address in it"
        )
    } else {
        format!(
            "the API server does not answer ({cause}); check that it is up and that the kubeconfig's address is right: \
             kubectl --context {context} version"
        )
    }
}

fn not_ready(after: &Duration, rollout: &Rollout) -> String {
    let Rollout { ready, wanted, troubles, .. } = rollout;
    let mut text = format!("agents: {ready} of {wanted} ready after {} s", after.as_secs());
    for trouble in troubles {
        text.push_str(&format!("\n  {trouble}"));
    }
    if troubles.is_empty() {
        text.push_str(&format!(
            "; look at them by kubectl -n {NAMESPACE} get pods -o wide, or wait longer by --timeout"
        ));
    }
    text
}

fn shown(path: &Option<PathBuf>) -> String {
    match path {
        Some(path) => path.display().to_string(),
        None => "($KUBECONFIG, ~/.kube/config)".to_owned(),
    }
}

fn named(context: &str) -> &str {
    if context.is_empty() { "(none is current)" } else { context }
}

fn choices(known: &[String]) -> String {
    if known.is_empty() { "it has none".to_owned() } else { format!("choose one with --context: {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let of = |purpose, error| Error::of("kind", purpose, "ask for something", &error);
        let api = |purpose, code: u16, message: &str| {
            of(purpose, kube::Error::Api(kube::core::Status::failure(message, "Reason").with_code(code).boxed()))
        };
        let no_stream = |code: u16| {
            let error = UpgradeConnectionError::ProtocolSwitch(code.try_into().expect("a status"));
            of(Purpose::Exec, kube::Error::UpgradeConnection(error))
        };
        let broken = |cause: &str| of(Purpose::Look, kube::Error::Service(cause.into()));
        let all = [
            api(Purpose::Look, 401, "Unauthorized"),
            api(Purpose::Look, 403, "pods \"exec\" is forbidden: User \"bob\" cannot get resource \"pods\""),
            api(Purpose::Exec, 403, "pods \"podpath-agent-1\" is forbidden"),
            api(Purpose::Ephemeral, 403, "jobs.batch is forbidden"),
            api(Purpose::Install, 403, "clusterroles.rbac.authorization.k8s.io \"podpath-user\" is forbidden"),
            api(Purpose::Install, 404, "daemonsets.apps \"podpath-agent\" not found"),
            api(Purpose::Install, 409, "the object has been modified"),
            api(Purpose::Install, 410, "the provided continue parameter is too old"),
            api(Purpose::Look, 429, ""),
            api(Purpose::Look, 500, "etcdserver: request timed out"),
            api(Purpose::Install, 400, "field not declared in schema"),
            api(Purpose::Look, 400, "field label not supported"),
            no_stream(403),
            no_stream(502),
            of(Purpose::Exec, kube::Error::UpgradeConnection(UpgradeConnectionError::MissingUpgradeWebSocketHeader)),
            broken("Connection refused (os error 111)"),
            broken("invalid peer certificate: UnknownIssuer"),
            Error::Slow { context: "kind".into(), asked: "get pod bb1".into(), after: Duration::from_secs(10) },
            Error::ForeignNamespace { context: "kind".into() },
            Error::NotGone { what: "namespace/podpath".into(), after: Duration::from_secs(120) },
            Error::NotReady { after: Duration::from_secs(5), rollout: Box::default() },
        ];
        insta::assert_snapshot!(all.map(|error| error.to_string()).join("\n"));
    }
}
