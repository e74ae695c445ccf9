//! What can go wrong with an installation.

use std::time::Duration;

use super::Rollout;
use crate::cluster::names::{MANAGER, MANAGER_LABEL, NAMESPACE};

/// Why podpath could not be installed or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server said no.
    #[error("{what}: context {context} answers: {message}; {way_out}")]
    Refused {
        /// What was asked.
        what: String,
        /// Of whom.
        context: String,
        /// Its answer.
        message: String,
        /// HTTP status.
        code: u16,
        /// What to do.
        way_out: &'static str,
    },
    /// The server cannot be talked to.
    #[error(
        "{what}: context {context} cannot be reached: {cause}; check the server's address in the kubeconfig and the way to it (kubectl version)"
    )]
    Unreachable {
        /// What was asked.
        what: String,
        /// Of whom.
        context: String,
        /// Why not.
        cause: String,
    },
    /// The server did not answer.
    #[error("{what}: context {context} did not answer within {} s; try again, or give it longer by --request-timeout", .after.as_secs())]
    Silent {
        /// What was asked.
        what: String,
        /// Of whom.
        context: String,
        /// How long it had.
        after: Duration,
    },
    /// The namespace is there and is not ours.
    #[error(
        "namespace {NAMESPACE}: exists in context {context} and was not made by podpath; if it is meant for podpath: kubectl label namespace {NAMESPACE} {MANAGER_LABEL}={MANAGER}"
    )]
    ForeignNamespace {
        /// Where.
        context: String,
    },
    /// The agents do not run.
    #[error("{}", not_ready(.after, .rollout))]
    NotReady {
        /// How long they had.
        after: Duration,
        /// How far they are.
        rollout: Box<Rollout>,
    },
    /// Something does not go away.
    #[error("{what}: still there {} s after its deletion; see what holds it (kubectl -n {NAMESPACE} get {what} -o yaml, its finalizers), or wait longer by --timeout", .after.as_secs())]
    NotGone {
        /// What.
        what: String,
        /// How long it had.
        after: Duration,
    },
}

impl Error {
    pub(super) fn refused(what: String, context: &str, source: kube::Error) -> Self {
        let context = context.to_owned();
        match source {
            kube::Error::Api(status) => {
                let way_out = match status.code {
                    401 => "log in to the cluster again: the kubeconfig's credentials are not valid (any more)",
                    403 => {
                        "have someone do it who may (installing takes a cluster's administrator), or name another --context"
                    }
                    404 => "install it first: podpath install",
                    409 => "something else changes it at the same time; try again",
                    429 | 500.. => "the server is busy or ill; try again later",
                    _ => {
                        "`podpath install --dry-run -o yaml` prints what is applied; compare it with what this server takes"
                    }
                };
                Self::Refused { what, context, message: status.message, code: status.code, way_out }
            }
            other => Self::Unreachable { what, context, cause: innermost(&other) },
        }
    }

    /// The server has no such object.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

/// The last cause: `Connection refused (os error 111)` says more than `ServiceError: client error (Connect)`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn not_ready(after: &Duration, rollout: &Rollout) -> String {
    let Rollout { ready, wanted, troubles, .. } = rollout;
    let mut text = format!("agents: {ready} of {wanted} ready after {} s", after.as_secs());
    for trouble in troubles {
        text.push_str(&format!("\n  {trouble}"));
    }
    if troubles.is_empty() {
        text.push_str("; look at them by: kubectl -n podpath get pods -o wide; wait longer by --timeout");
    }
    text
}
