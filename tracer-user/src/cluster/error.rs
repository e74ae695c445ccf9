//! What can go wrong between podpath and a cluster's API.

use std::{path::PathBuf, time::Duration};

use super::names::{NAMESPACE, USER_ROLE};

/// Why the cluster could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No kubeconfig, or one that cannot be used.
    #[error("kubeconfig {}: {}; name another with --kubeconfig FILE", shown(.path), .source)]
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
    /// No client can be made of what the kubeconfig says.
    #[error("context {context}: {source}; check its certificates and its user in the kubeconfig")]
    Client {
        /// The context.
        context: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The API server cannot be reached.
    #[error(
        "context {context}: the API server does not answer ({cause}); check that it is up and that the kubeconfig's address is right: kubectl --context {context} version"
    )]
    Unreachable {
        /// The context.
        context: String,
        /// The cause.
        cause: String,
    },
    /// It did not answer in time.
    #[error("context {context}: {asked}: no answer within {} s; give it more time with --request-timeout", .after.as_secs_f64())]
    Slow {
        /// The context.
        context: String,
        /// What was asked.
        asked: String,
        /// The limit.
        after: Duration,
    },
    /// It does not accept the credential.
    #[error(
        "context {context}: the API server does not accept who you are (401: {message}); log in again, or renew the user's credential in the kubeconfig"
    )]
    Unauthorized {
        /// The context.
        context: String,
        /// Its words.
        message: String,
    },
    /// It knows the user, who may not do this.
    #[error("{asked}: not allowed: {message}; {}", allow(.message))]
    Forbidden {
        /// What was asked.
        asked: String,
        /// Its words.
        message: String,
    },
    /// It refuses for another reason.
    #[error("context {context}: {asked}: {message} ({code})")]
    Refused {
        /// The context.
        context: String,
        /// What was asked.
        asked: String,
        /// Its words.
        message: String,
        /// HTTP status.
        code: u16,
    },
    /// Its answer cannot be understood.
    #[error("context {context}: {asked}: the answer cannot be read: {cause}; is this a Kubernetes API server?")]
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
}

impl Error {
    /// What `kube` says, as a person understands it.
    pub(super) fn of(context: &str, asked: &str, error: &kube::Error) -> Error {
        let (context, asked) = (context.to_owned(), asked.to_owned());
        match error {
            kube::Error::Api(status) => {
                let message = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
                match status.code {
                    401 => Error::Unauthorized { context, message },
                    403 => Error::Forbidden { asked, message },
                    code => Error::Refused { context, asked, message, code },
                }
            }
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => {
                match code.as_u16() {
                    401 => Error::Unauthorized { context, message: "Unauthorized".to_owned() },
                    403 => Error::Forbidden { asked, message: "the server says only 403 Forbidden".to_owned() },
                    code => Error::Refused { context, asked, message: "no stream was opened".to_owned(), code },
                }
            }
            kube::Error::SerdeError(source) => Error::Answer { context, asked, cause: source.to_string() },
            kube::Error::Auth(source) => Error::Unauthorized { context, message: chain(source) },
            other => Error::Unreachable { context, cause: chain(other) },
        }
    }

    /// Whether it is the server's word that this user may not.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Error::Forbidden { .. })
    }
}

/// The innermost cause, which says most; the outer ones only say that there is one.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Who can allow it.
fn allow(message: &str) -> String {
    if message.contains("exec") {
        format!(
            "tracing runs the agents by exec in namespace {NAMESPACE}: an administrator allows it with kubectl -n {NAMESPACE} create \
             rolebinding podpath-YOU --role {USER_ROLE} --user YOU"
        )
    } else {
        format!(
            "an administrator allows it with kubectl create clusterrolebinding podpath-YOU --clusterrole {USER_ROLE} --user YOU"
        )
    }
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
