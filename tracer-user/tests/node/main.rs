//! Reads real namespaces. Needs root, `ip`, `iptables` (both variants), `nft`, `ipset` and `ping`, and fails without them.
#![cfg(target_os = "linux")]

mod lab;
mod routes;
mod rules;
mod scope;
