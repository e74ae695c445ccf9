//! What podpath's own objects in a cluster are called. `manifests/` says the same.

/// Namespace of everything that is installed, but for what belongs to the whole cluster.
pub const NAMESPACE: &str = "podpath";
/// The DaemonSet, its ServiceAccount, and the value of [`NAME_LABEL`] on its pods.
pub const AGENT: &str = "podpath-agent";
/// The label by which agent pods are found.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// The label that everything has that `podpath install` applies, with the value [`MANAGER`].
pub const MANAGER_LABEL: &str = "app.kubernetes.io/managed-by";
/// Field manager of server-side apply.
pub const MANAGER: &str = "podpath";
/// The container of an agent pod.
pub const CONTAINER: &str = "agent";
/// What is run in it for a trace.
pub const SESSION: [&str; 2] = ["podpath-agent", "session"];
/// The ClusterRole (to look up the ends of a trace) and the Role (exec in [`NAMESPACE`]) of those who may trace.
pub const USER_ROLE: &str = "podpath-user";
/// The Role of those who may also make agents for one trace.
pub const EPHEMERAL_ROLE: &str = "podpath-ephemeral";
/// The agent's image, with this release as its tag. It is in no registry.
pub const IMAGE: &str = concat!("localhost/podpath-agent:", env!("CARGO_PKG_VERSION"));
