//! podpath's workshop: builds the kernel object, brings up labs, runs tests and benches.

mod apt;
pub mod bench;
pub mod build;
pub mod demo;
pub mod interrupt;
pub mod kube;
pub mod lab;
pub mod packages;
pub mod proc;
pub mod scenario;
pub mod test;
pub mod toolchain;
mod totals;
pub mod traffic;
pub mod vm;

use std::path::{Path, PathBuf};

/// The root of the clone this `xtask` was compiled in. (Cargo recompiles it when the clone moves.)
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the workspace")
}

/// The cargo that runs us, so that a nested build uses the same toolchain; `cargo` from PATH when started by hand.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
