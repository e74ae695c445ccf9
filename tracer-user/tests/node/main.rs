//! Reads real namespaces; one test loads the kernel programs too. Needs root, `ip`, `iptables` (both variants), `nft`, `ipset` and `ping`, and fails without them.
#![cfg(target_os = "linux")]

mod lab;
mod live;
mod routes;
mod rule_traces;
mod rules;
mod scope;
mod sets;
