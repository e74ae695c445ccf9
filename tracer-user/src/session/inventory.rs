//! Which nodes there are and how to reach their sessions, from a file.

use std::{
    collections::HashSet,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Where running labs leave their inventories: `NAME/inventory.toml` below it.
const LABS: &str = "/run/podpath/lab";

/// The word of a command that stands for the agent beside the running executable.
const AGENT: &str = "podpath-agent";

/// Nodes and how to reach them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// What the first screen names: `lab calico-bgp`.
    #[serde(default)]
    pub context: Option<String>,
    /// The identity file; in the file relative to the inventory's folder, here joined with it.
    #[serde(default)]
    pub identity: Option<PathBuf>,
    /// The nodes.
    #[serde(rename = "node", default)]
    pub nodes: Vec<InventoryNode>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InventoryNode {
    /// Its name.
    pub name: String,
    /// The command that starts a session on it: `["ssh", "node2", "sudo", "podpath-agent", "session"]`.
    pub command: Vec<String>,
}

/// An inventory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// Not readable.
    #[error("inventory {}: read: {source}; name another with --inventory, or bring a lab up", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// Not TOML, or other fields than those of [`Inventory`].
    #[error("inventory {}: {}; see docs/PROTOCOL.md for the format", .path.display(), .source.to_string().trim_end())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// No nodes.
    #[error("inventory {}: no [[node]] in it; add one with its name and command", .path.display())]
    NoNodes {
        /// The file.
        path: PathBuf,
    },
    /// Two nodes of one name.
    #[error("inventory {}: two nodes are named {name}; give each its own name", .path.display())]
    SameName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A node without a command.
    #[error("inventory {}: node {name} has an empty command; write the words that start `podpath-agent session` there", .path.display())]
    NoCommand {
        /// The file.
        path: PathBuf,
        /// The node.
        name: String,
    },
}

impl Inventory {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Not readable, not an inventory, no nodes, two nodes of one name, a node without a command.
    pub fn load(path: &Path) -> Result<Self, InventoryError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| InventoryError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, InventoryError> {
        let mut inventory: Self = toml::from_str(text)
            .map_err(|source| InventoryError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        if inventory.nodes.is_empty() {
            return Err(InventoryError::NoNodes { path: path.to_owned() });
        }
        let mut names = HashSet::new();
        for InventoryNode { name, command } in &inventory.nodes {
            if !names.insert(name) {
                return Err(InventoryError::SameName { path: path.to_owned(), name: name.clone() });
            }
            if command.is_empty() {
                return Err(InventoryError::NoCommand { path: path.to_owned(), name: name.clone() });
            }
        }
        if let (Some(identity), Some(folder)) = (&mut inventory.identity, path.parent()) {
            *identity = folder.join(&*identity);
        }
        Ok(inventory)
    }

    /// The inventories of the labs that run on this machine, by name.
    ///
    /// # Errors
    /// The folder of labs exists and cannot be read.
    pub fn running_labs() -> Result<Vec<PathBuf>, InventoryError> {
        labs_in(Path::new(LABS))
    }
}

fn labs_in(folder: &Path) -> Result<Vec<PathBuf>, InventoryError> {
    let failed = |source| InventoryError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let inventory = entry.map_err(failed)?.path().join("inventory.toml");
        if inventory.is_file() {
            found.push(inventory);
        }
    }
    found.sort();
    Ok(found)
}

impl InventoryNode {
    /// The command's words, with the agent beside the running executable in place of `podpath-agent`, if there is one.
    pub fn words(&self) -> Vec<OsString> {
        let agent = std::env::current_exe().ok().map(|exe| exe.with_file_name(AGENT)).filter(|agent| agent.is_file());
        replaced(&self.command, agent.as_deref())
    }
}

fn replaced(command: &[String], agent: Option<&Path>) -> Vec<OsString> {
    command
        .iter()
        .map(|word| match agent {
            Some(agent) if word == AGENT => agent.into(),
            _ => word.into(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Inventory, InventoryError> {
        Inventory::parse(Path::new("lab/inventory.toml"), text)
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_inventory_names_nodes_and_its_identity_file() {
        let inventory = parse(
            r#"
            context = "lab calico-bgp"
            identity = "identity.yaml"
            [[node]]
            name = "ip-172-20-50-50.ec2.internal"
            command = ["ip", "netns", "exec", "calico-bgp-node1", "podpath-agent", "session"]
            "#,
        )
        .unwrap();
        assert_eq!(inventory.context.as_deref(), Some("lab calico-bgp"));
        assert_eq!(inventory.identity.as_deref(), Some(Path::new("lab/identity.yaml")));
        let node = &inventory.nodes[0];
        assert_eq!(node.name, "ip-172-20-50-50.ec2.internal");
        assert_eq!(replaced(&node.command, Some(Path::new("/opt/podpath-agent")))[4], "/opt/podpath-agent");
        assert_eq!(replaced(&node.command, None)[4], "podpath-agent");
    }

    #[test]
    fn what_is_wrong_is_said() {
        insta::assert_snapshot!(error("[[node]]\nname = \"n\"\ncommand = [\"a\"]\nuser = \"root\""), @r##"
inventory lab/inventory.toml: TOML parse error at line 4, column 1
  |
4 | user = "root"
  | ^^^^
unknown field `user`, expected `name` or `command`; see docs/PROTOCOL.md for the format
"##);
        insta::assert_snapshot!(error("node = ["), @r##"
inventory lab/inventory.toml: TOML parse error at line 1, column 9
  |
1 | node = [
  |         ^
unclosed array, expected `]`; see docs/PROTOCOL.md for the format
"##);
        insta::assert_snapshot!(error("context = \"empty\""), @"inventory lab/inventory.toml: no [[node]] in it; add one with its name and command");
        insta::assert_snapshot!(error("[[node]]\nname = \"n\"\ncommand = []"), @"inventory lab/inventory.toml: node n has an empty command; write the words that start `podpath-agent session` there");
        let node = "[[node]]\nname = \"n\"\ncommand = [\"a\"]\n";
        insta::assert_snapshot!(error(&node.repeat(2)), @"inventory lab/inventory.toml: two nodes are named n; give each its own name");
        let missing = Inventory::load(Path::new("no/such/inventory.toml")).unwrap_err().to_string();
        insta::assert_snapshot!(missing, @"inventory no/such/inventory.toml: read: No such file or directory (os error 2); name another with --inventory, or bring a lab up");
    }

    #[test]
    fn running_labs_are_those_with_an_inventory() {
        let labs = tempfile::tempdir().unwrap();
        assert_eq!(labs_in(&labs.path().join("none")).unwrap(), Vec::<PathBuf>::new());
        for name in ["b", "a", "half-built"] {
            std::fs::create_dir(labs.path().join(name)).unwrap();
        }
        for name in ["b", "a"] {
            std::fs::write(labs.path().join(name).join("inventory.toml"), "").unwrap();
        }
        let expected = ["a", "b"].map(|name| labs.path().join(name).join("inventory.toml"));
        assert_eq!(labs_in(labs.path()).unwrap(), expected);
    }
}
