//! `cargo xtask image`: the agent's container image, without a container daemon.
//!
//! An [OCI image layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) in one tar archive, with the
//! `manifest.json` of `docker save` beside it: `ctr images import`, `kind load image-archive`, `docker load` and `podman load`
//! each find what they look for. One layer: the statically linked agent, and the licences.
//!
//! The same sources and compiler give the same bytes: no time, no user and no path of the machine goes in.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{build, proc, toolchain::Compiler, workspace_root};

/// Where the agent lies in the image, and the image's whole PATH. An exec asks for `podpath-agent`.
const FOLDER: &str = "usr/local/bin";
/// Beyond this, loading it on every node begins to be felt: bytes.
const LIMIT: usize = 20_000_000;
const LICENSES: [&str; 4] = ["LICENSE", "LICENSE-APACHE", "LICENSE-GPL2", "LICENSE-MIT"];

/// An image that was built.
#[derive(Debug)]
pub struct Image {
    /// What the manifests call it: `localhost/podpath-agent:0.1.0`.
    pub name: String,
    /// The archive.
    pub file: PathBuf,
    /// The digest of its manifest, by which runtimes know it: `sha256:...`.
    pub digest: String,
    /// The archive's size in bytes.
    pub size: usize,
}

/// Builds kernel object, agent and image, into `output` or `target/podpath-agent-VERSION-ARCHITECTURE.tar`.
///
/// # Errors
/// Something does not compile, the agent cannot be linked statically here, or the file cannot be written.
pub fn build(output: Option<&Path>) -> Result<Image> {
    build::kernel_object()?;
    let compiler = Compiler::in_use()?;
    let architecture = architecture(&compiler.host)?;
    let agent = agent(&compiler)?;
    let name = name()?;
    let (archive, digest) =
        pack(&fs::read(&agent).with_context(|| format!("read {}", agent.display()))?, &name, architecture)?;
    if archive.len() > LIMIT {
        bail!("the image has {} bytes, and should not have more than {LIMIT}", archive.len());
    }
    let file = match output {
        Some(file) => file.to_owned(),
        None => workspace_root().join(format!("target/podpath-agent-{}-{architecture}.tar", env!("CARGO_PKG_VERSION"))),
    };
    fs::write(&file, &archive).with_context(|| format!("write {}", file.display()))?;
    Ok(Image { name, file, digest, size: archive.len() })
}

/// What `manifests/` calls the image.
fn name() -> Result<String> {
    let file = workspace_root().join("manifests/base/daemonset.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let object: Value = serde_norway::from_str(&text).with_context(|| format!("read {}", file.display()))?;
    let image = object.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
    image.map(str::to_owned).with_context(|| format!("{} names no image", file.display()))
}

/// What Go, and so every registry and runtime, calls the processor of a target of Rust's.
fn architecture(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => bail!("no image can be built for {target}: podpath was tried on x86_64 and aarch64 only"),
    }
}

/// Compiles the agent, statically linked, stripped and without paths of this machine, in a target folder of its own.
fn agent(compiler: &Compiler) -> Result<PathBuf> {
    let target = workspace_root().join("target/image");
    let mut flags = build::without_paths(&compiler.sysroot)?;
    // glibc's own archive, as Debian's libc6-dev brings it. The agent resolves no names, which is what does not work so.
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    let mut command = Command::new(crate::cargo());
    command
        .args(["build", "--release", "--locked", "-p", "tracer-user", "--bin", "podpath-agent"])
        // Named, so that the flags are kept from build scripts and macros, which cannot be linked statically.
        .args(["--target", &compiler.host, "--config", "profile.release.strip=\"symbols\""])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(workspace_root())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    proc::step("image: compile the agent", || proc::quiet(&mut command)).context("build the agent for the image")?;
    Ok(target.join(&compiler.host).join("release/podpath-agent"))
}

/// The archive, and the digest of the manifest in it.
fn pack(agent: &[u8], name: &str, architecture: &str) -> Result<(Vec<u8>, String)> {
    let layer = layer(agent)?;
    // Neither name nor time in its header.
    let mut zipped = GzBuilder::new().write(Vec::new(), Compression::best());
    zipped.write_all(&layer)?;
    let zipped = Blob::new(zipped.finish()?);
    let config = Blob::json(&json!({
        "architecture": architecture,
        "os": "linux",
        // The time would make every build another image.
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": [format!("PATH=/{FOLDER}")],
            "Cmd": ["podpath-agent", "idle"],
            "Labels": {
                "org.opencontainers.image.title": "podpath-agent",
                "org.opencontainers.image.description": "podpath's part on a node: traces packets by eBPF",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "(MIT OR Apache-2.0) AND GPL-2.0-only AND LGPL-2.1-or-later",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
    }))?;
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [zipped.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }))?;
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
    // The first is containerd's, which takes the whole name from it; the second everybody else's.
    entry["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let docker = json!([{ "Config": config.path(), "RepoTags": [name], "Layers": [zipped.path()] }]);

    let mut archive = Archive::new();
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
    archive.file("manifest.json", 0o644, &serde_json::to_vec(&docker)?)?;
    archive.folder("blobs")?;
    archive.folder("blobs/sha256")?;
    for blob in [&manifest, &config, &zipped] {
        archive.file(&blob.path(), 0o644, &blob.bytes)?;
    }
    Ok((archive.end()?, manifest.digest))
}

/// The file system: the agent, where a read-only root needs something to mount on, and the licences.
fn layer(agent: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "run", "run/netns", "sys", "usr", "usr/local", FOLDER] {
        archive.folder(folder)?;
    }
    archive.file(&format!("{FOLDER}/podpath-agent"), 0o755, agent)?;
    for folder in ["usr/share", "usr/share/doc", "usr/share/doc/podpath"] {
        archive.folder(folder)?;
    }
    for license in LICENSES {
        let text = fs::read(workspace_root().join(license)).with_context(|| format!("read {license}"))?;
        archive.file(&format!("usr/share/doc/podpath/{license}"), 0o644, &text)?;
    }
    archive.end()
}

/// Something that is found by its digest.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = digest(&bytes);
        Self { bytes, digest }
    }

    fn json(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar archive whose members belong to root and have no time.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.member(path, tar::EntryType::Regular, mode, bytes)
    }

    fn folder(&mut self, path: &str) -> io::Result<()> {
        self.member(&format!("{path}/"), tar::EntryType::Directory, 0o755, &[])
    }

    fn member(&mut self, path: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes)
    }

    fn end(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use flate2::read::GzDecoder;

    use super::*;

    fn members(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let header = entry.header();
            let owned = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
            assert_eq!(owned, (0, 0, 0), "somebody's, or of some time");
            let (mode, name) = (header.mode().unwrap(), entry.path().unwrap().to_str().unwrap().to_owned());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (name, (mode, bytes))
        });
        entries.collect()
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    /// Follows every digest and size from the index down, as a runtime does, and finds the agent.
    #[test]
    fn the_agent_is_found_by_the_digests() {
        let (archive, digest_told) = pack(b"an agent", "localhost/x:1", "amd64").unwrap();
        let members = members(&archive);
        let blob = |descriptor: &Value| {
            let bytes = &members[&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))].1;
            assert_eq!(descriptor["digest"], digest(bytes));
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let index = json(&members["index.json"].1);
        assert_eq!(index["manifests"][0]["digest"], digest_told);
        let manifest = json(blob(&index["manifests"][0]));
        let config = json(blob(&manifest["config"]));
        let mut layer = Vec::new();
        GzDecoder::new(blob(&manifest["layers"][0]).as_slice()).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        let files = self::members(&layer);
        assert_eq!(files["usr/local/bin/podpath-agent"], (0o755, b"an agent".to_vec()));
        assert_eq!(config["config"]["Env"], json!(["PATH=/usr/local/bin"]));

        let docker = json(&members["manifest.json"].1);
        assert_eq!(docker[0]["RepoTags"], json!(["localhost/x:1"]));
        assert!(members.contains_key(docker[0]["Config"].as_str().unwrap()));
        assert!(members.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        let pack = |agent: &[u8]| pack(agent, "localhost/x:1", "amd64").unwrap();
        assert_eq!(pack(b"one"), pack(b"one"));
        assert_ne!(pack(b"one").1, pack(b"two").1);
    }

    #[test]
    fn the_image_is_called_what_the_agents_are_started_from() {
        assert_eq!(name().unwrap(), tracer_user::cluster::names::IMAGE);
    }
}
