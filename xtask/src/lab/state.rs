//! What a lab keeps in `/run/podpath/lab/<name>`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::{LabInfo, netns, profile};

const DIRECTORY: &str = "/run/podpath/lab";
const LAB: &str = "lab.json";
pub(crate) const INVENTORY: &str = "inventory.toml";
pub(crate) const IDENTITY: &str = "identity.yaml";

/// The folder of one lab.
pub(crate) fn directory(lab: &str) -> PathBuf {
    Path::new(DIRECTORY).join(lab)
}

/// Digest of anything that can be written down.
pub(crate) fn digest(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_vec(value).context("writing down the lab's definition")?;
    Ok(Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The labs of this machine, locked: as long as it lives, no other process builds or removes one.
#[derive(Debug)]
pub(crate) struct State {
    _lock: File,
}

/// The part of `lab.json` that `down` needs, whatever version of this program wrote it.
#[derive(Deserialize)]
struct Namespaces {
    namespaces: Vec<String>,
}

impl State {
    pub(crate) fn lock() -> Result<State> {
        fs::create_dir_all(DIRECTORY).with_context(|| format!("creating {DIRECTORY}"))?;
        // flock(2) takes folders too, so that no lock file stays behind.
        let directory = File::open(DIRECTORY).with_context(|| format!("opening {DIRECTORY}"))?;
        directory.lock().with_context(|| format!("locking {DIRECTORY}"))?;
        Ok(State { _lock: directory })
    }

    /// Names of all labs that have a folder, sorted.
    pub(crate) fn names(&self) -> Result<BTreeSet<String>> {
        fs::read_dir(DIRECTORY)
            .with_context(|| format!("listing {DIRECTORY}"))?
            .map(|entry| {
                let entry = entry.with_context(|| format!("listing {DIRECTORY}"))?;
                Ok(entry.file_name().to_string_lossy().into_owned())
            })
            .collect()
    }

    /// The lab's state, `complete` only while all its namespaces are there.
    pub(crate) fn read(&self, lab: &str) -> Result<Option<LabInfo>> {
        let path = directory(lab).join(LAB);
        let Some(text) = read_if_there(&path)? else {
            return Ok(None);
        };
        let mut info: LabInfo = serde_json::from_str(&text).with_context(|| {
            format!("{}: not what this version writes; `cargo xtask lab down {lab}` removes that lab", path.display())
        })?;
        info.complete &= info.namespaces.iter().all(|name| netns::is_mounted(name));
        Ok(Some(info))
    }

    pub(crate) fn write(&self, info: &LabInfo) -> Result<()> {
        let text = serde_json::to_string_pretty(info).context("writing down the lab")?;
        write(&directory(&info.name).join(LAB), &text)
    }

    /// The files that `podpath` reads.
    pub(crate) fn write_files(&self, info: &LabInfo, identity: &str) -> Result<()> {
        write(&info.identity, identity)?;
        write(&info.inventory, &inventory(info))
    }

    /// The network namespaces that the lab owns: those that its state names, and those in `/run/netns` with its
    /// prefix and the name of a host that a profile has. (`calico-bgp-node1` is none of a lab named `calico`'s.)
    pub(crate) fn namespaces(&self, lab: &str) -> Result<Vec<String>> {
        let mut owned = BTreeSet::new();
        let hosts = profile::all_hosts()?;
        let prefix = format!("{lab}-");
        for name in netns::names()? {
            if name.strip_prefix(&prefix).is_some_and(|host| hosts.contains(host)) {
                owned.insert(name);
            }
        }
        let text = read_if_there(&directory(lab).join(LAB))?.unwrap_or_default();
        if let Ok(Namespaces { namespaces }) = serde_json::from_str(&text) {
            owned.extend(namespaces.into_iter().filter(|name| name.starts_with(&prefix)));
        }
        Ok(owned.into_iter().collect())
    }

    pub(crate) fn remove(&self, lab: &str) -> Result<()> {
        let directory = directory(lab);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", directory.display()))
            }
            _ => Ok(()),
        }
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Write and rename, so that a reader never sees half a file.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("renaming {} to {}", new.display(), path.display()))
}

/// How the CLI reaches an agent on each node. A bare `podpath-agent` is the one beside the CLI's own binary.
fn inventory(info: &LabInfo) -> String {
    let mut text = format!("context = \"lab {}\"\nidentity = \"{IDENTITY}\"\n", info.name);
    for node in &info.nodes {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[[node]]\nname = \"{}\"\ncommand = [\"ip\", \"netns\", \"exec\", \"{}\", \"podpath-agent\", \"session\"]\n",
            node.name, node.namespace
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::profile::Profile;

    #[test]
    fn the_inventory_is_toml_with_every_node() {
        let profile = Profile::named("kind-calico").unwrap();
        let info = LabInfo::describe("x", "kind-calico", &profile, String::new());
        let table: toml::Table = inventory(&info).parse().unwrap();
        assert_eq!(table["context"].as_str(), Some("lab x"));
        assert_eq!(table["identity"].as_str(), Some("identity.yaml"));
        let nodes = table["node"].as_array().unwrap();
        assert_eq!(nodes.len(), 3);
        assert_eq!(nodes[0]["name"].as_str(), Some("demo-worker"));
        let command: Vec<&str> =
            nodes[0]["command"].as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
        assert_eq!(command, ["ip", "netns", "exec", "x-worker", "podpath-agent", "session"]);
    }

    #[test]
    fn a_digest_changes_with_its_value() {
        assert_eq!(digest(&1).unwrap(), digest(&1).unwrap());
        assert_ne!(digest(&1).unwrap(), digest(&2).unwrap());
    }
}
