//! podpath's workshop: builds the kernel object, brings up labs, runs tests and benches.

mod apt;
pub mod bench;
pub mod build;
pub mod demo;
pub mod gallery;
pub mod image;
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
pub mod truth;
pub mod vm;

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The root of the clone this `xtask` was compiled in. (Cargo recompiles it when the clone moves.)
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the workspace")
}

/// The cargo that runs us, so that a nested build uses the same toolchain; `cargo` from PATH when started by hand.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The program of that name which was built together with the one that runs, be that `xtask` or a test.
///
/// # Errors
/// It is not there: only a part of the workspace was built.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests lie a folder deeper.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}\nway out: cargo build", own.display()))
}
