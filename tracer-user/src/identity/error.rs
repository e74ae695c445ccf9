//! What can go wrong between a name and an address.

use std::{fmt, io, path::PathBuf};

use super::{KUBECTL_COMMAND, MAX_FILE_BYTES};

/// Why an identity file could not be used, or a name not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: cannot read the identity file: {source}\n  name another in the inventory, or make one by: {KUBECTL_COMMAND} > FILE", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error(
        "the identity file {} has {bytes} bytes, more than the {} MiB that podpath reads; leave out what the trace does not meet: {KUBECTL_COMMAND} --field-selector ...",
        path.display(), MAX_FILE_BYTES >> 20
    )]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The text is neither YAML nor JSON, or an object in it is not what Kubernetes prints.
    #[error("{origin}: {source}\n  a file that podpath reads is made by: {KUBECTL_COMMAND} > FILE")]
    Parse {
        /// File or other source.
        origin: String,
        /// What and where (line and column).
        source: ParseError,
    },
    /// The text is well formed, but names no pod.
    #[error("{origin}: no pods in it ({found})\n  a file that podpath reads is made by: {KUBECTL_COMMAND} > FILE")]
    NoPods {
        /// File or other source.
        origin: String,
        /// What it holds instead.
        found: String,
    },
    /// No pod and no node has this name. A host name may still resolve by DNS.
    #[error("{name}: no such {what} in {context}{}", like(what, similar))]
    NotFound {
        /// As asked for, with its namespace where that is known.
        name: String,
        /// `pod`, `node`, `pod or node`, `service`.
        what: &'static str,
        /// Where was looked: the lab, the cluster, the file.
        context: String,
        /// Names that come close, nearest first.
        similar: Vec<String>,
    },
    /// Several objects have this name.
    #[error("{name}: this name is not unique in {context}; say which: {}", candidates.join(", "))]
    Ambiguous {
        /// As asked for.
        name: String,
        /// Where was looked.
        context: String,
        /// Unambiguous names, ready to be typed.
        candidates: Vec<String>,
    },
    /// It exists and cannot be traced to or from.
    #[error("{name}: {reason}")]
    Unusable {
        /// What.
        name: String,
        /// Why, and the way out.
        reason: Reason,
    },
    /// Not the form of a name.
    #[error(
        "{name:?} is not a name podpath knows: use POD, NAMESPACE/POD, pod/POD, svc/SERVICE, node/NODE, an IP address or a host name"
    )]
    BadName {
        /// As asked for.
        name: String,
    },
}

impl Error {
    /// Nobody has this name: it may still be a host name for DNS.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }
}

/// Why something that exists cannot be an end of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A pod without address.
    NoAddress {
        /// `Pending`, ...
        phase: String,
        /// `namespace/pod`.
        pod: String,
    },
    /// A pod that ran to its end; its address may be another's by now.
    Finished {
        /// `Succeeded` or `Failed`.
        phase: String,
    },
    /// A node without address.
    NodeWithoutAddress,
    /// A service without an address of its own.
    Headless {
        /// `namespace/pod` or address of its endpoints.
        endpoints: Vec<String>,
    },
    /// A service that is only another name.
    ExternalName {
        /// What DNS answers with.
        host: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoAddress { phase, pod } => {
                let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
                write!(
                    f,
                    "the pod has no address yet (phase {phase}); see why: kubectl -n {namespace} describe pod {name}"
                )
            }
            Reason::Finished { phase } => {
                write!(
                    f,
                    "the pod has ended (phase {phase}) and its address may be another pod's by now; name a running pod"
                )
            }
            Reason::NodeWithoutAddress => {
                write!(f, "the API knows no InternalIP or ExternalIP of this node; name its address instead")
            }
            Reason::Headless { endpoints } if endpoints.is_empty() => {
                write!(
                    f,
                    "a headless service is a name for its pods, and has none that is ready: its name does not resolve; look at the \
                     pods that its selector is for"
                )
            }
            Reason::Headless { endpoints } => {
                write!(
                    f,
                    "a headless service has no address, its name resolves to those of its pods; trace to one of them: {}",
                    endpoints.join(", ")
                )
            }
            Reason::ExternalName { host } => {
                write!(
                    f,
                    "an ExternalName service is only another name for {host} in the cluster's DNS; trace to {host}"
                )
            }
        }
    }
}

/// The parser's own words, which end in line and column.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Of YAML.
    #[error("not the YAML that kubectl prints: {0}")]
    Yaml(#[from] serde_norway::Error),
    /// Of JSON.
    #[error("not the JSON that kubectl prints: {0}")]
    Json(#[from] serde_json::Error),
    /// Not text at all.
    #[error("not a text file: {0}")]
    NotText(#[from] std::str::Utf8Error),
}

fn like(what: &str, similar: &[String]) -> String {
    match similar {
        [] => "; see which there are: kubectl get pods,nodes -A -o wide, or give an address".to_owned(),
        [one] => format!("; did you mean {one}?"),
        many => format!("; {}s like it: {}", what.split(' ').next().unwrap_or(what), many.join(", ")),
    }
}
