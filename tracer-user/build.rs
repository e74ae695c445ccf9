//! Sets `cfg(live)` where this crate can trace the machine it runs on, and embeds the kernel object that `cargo xtask build`
//! made. Without that object the crate still builds (for `cargo check`, an IDE), and the agent says at run time what is missing.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(live)");
    println!("cargo::rerun-if-changed=build.rs");
    let for_linux = env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|system| system == "linux");
    if for_linux && env::var_os("CARGO_FEATURE_AGENT").is_some() {
        println!("cargo::rustc-cfg=live");
        embed_kernel_object();
    }
}

fn embed_kernel_object() {
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
