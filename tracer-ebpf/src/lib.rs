//! podpath's kernel programs: the parts that are plain Rust, so that the host can unit-test them.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod flow;
pub mod parse;
