//! The `podpath-agent` command: one trace on one node.
fn main() {}
