//! Embeds the kernel object that `cargo xtask build` made. Without it the crate still builds (for `cargo check`, an IDE,
//! a laptop's CLI), and the agent says at run time what is missing.

use std::{env, fs, path::PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let folder = manifest.join("../target/ebpf");
    let object = folder.join("podpath-ebpf.o");
    if !object.exists() {
        // An empty one stands for none: cargo takes a missing file for a changed one, and would build this crate anew each
        // time. Where it cannot be written, that is all that happens.
        let _unwritable = fs::create_dir_all(&folder).and_then(|()| fs::write(&object, []));
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("podpath-ebpf.o");
    fs::write(&out, fs::read(&object).unwrap_or_default()).expect("OUT_DIR is writable");
}
