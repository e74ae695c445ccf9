//! A small Kubernetes API server for tests: a process of its own whose nodes are the network namespaces of a lab.
//!
//! It speaks HTTPS with certificates of its own, knows users by client certificate and by bearer token, decides by RBAC, runs DaemonSets,
//! and execs `podpath-agent` for real. Clients learn where it is from a kubeconfig, as of any cluster. [`Server`] is a test's handle;
//! [`Fault`]s make it misbehave.

pub(crate) mod clock;
mod control;
mod controller;
mod discovery;
mod exec;
mod fault;
mod handle;
mod http;
mod kinds;
mod kubeconfig;
mod merge;
mod place;
mod rbac;
mod refusal;
mod seed;
mod selector;
mod serve;
mod store;
mod synthetic;
mod tls;
mod verbs;
mod watch;
mod world;

pub use control::Request;
pub use fault::Fault;
pub use handle::{Options, Server};
pub use serve::{Arguments, run};
