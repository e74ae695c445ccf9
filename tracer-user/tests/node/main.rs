//! Reads real namespaces. Needs root, `ip`, `iptables` and `ping`, and fails without them.
#![cfg(target_os = "linux")]

mod lab;
mod routes;
mod scope;
