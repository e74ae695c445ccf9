//! Embeds the kernel object that `cargo xtask build` made. Without it the crate still builds (for `cargo check`, an IDE,
//! a laptop's CLI), and the agent says at run time what is missing.

use std::{env, fs, path::PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let object = manifest.join("../target/ebpf/podpath-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("podpath-ebpf.o");
    match fs::read(&object) {
        Ok(bytes) => fs::write(&out, bytes).expect("OUT_DIR is writable"),
        Err(_) => fs::write(&out, []).expect("OUT_DIR is writable"),
    }
}
