//! The `podpath` command.
fn main() {}
