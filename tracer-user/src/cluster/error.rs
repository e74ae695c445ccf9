//! What can go wrong between podpath and a cluster's API.

use std::path::PathBuf;

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
