//! Which nodes to trace on: a running lab's, an inventory file's, or this machine.

use std::path::{Path, PathBuf};

use super::{args::TraceArgs, error::Error};
#[cfg(not(target_os = "linux"))]
use crate::session::Failure;
#[cfg(target_os = "linux")]
use crate::session::LiveNode;
use crate::{
    identity::Directory,
    session::{Connection, DriveError, Inventory, InventoryNode, as_typed},
};

/// Where to trace, and who is who there.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Its name.
    pub(super) context: Option<String>,
    /// Its nodes.
    pub(super) nodes: Vec<Node>,
    /// Who is who.
    pub(super) directory: Directory,
}

/// A node to trace on.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its name.
    pub(super) name: String,
    /// The command that starts a session there; None: this process.
    pub(super) command: Option<InventoryNode>,
}

impl Node {
    /// Starts a session there.
    ///
    /// # Errors
    /// The command cannot be started.
    pub(super) fn connect(&self) -> Result<Connection, Error> {
        let Some(command) = &self.command else { return local(&self.name) };
        Connection::spawn(self.name.as_str(), &command.words()).map_err(|source| {
            let (node, command) = (self.name.clone(), as_typed(&command.command));
            DriveError::Start { node, command, source }.into()
        })
    }
}

#[cfg(target_os = "linux")]
fn local(name: &str) -> Result<Connection, Error> {
    Ok(Connection::local(name, LiveNode::new()))
}

#[cfg(not(target_os = "linux"))]
fn local(name: &str) -> Result<Connection, Error> {
    let way_out = "name the nodes with --inventory FILE";
    Err(Failure::new(name, "only Linux can be traced", way_out).into())
}

/// Finds it as the arguments say.
///
/// # Errors
/// No nodes known, or a file that cannot be used.
pub(super) fn find(args: &TraceArgs) -> Result<Cluster, Error> {
    if args.local {
        let nodes = vec![Node { name: this_machine(), command: None }];
        return Ok(Cluster { context: None, nodes, directory: Directory::empty() });
    }
    let path = match &args.inventory {
        Some(path) => path.clone(),
        None => choose(Inventory::running_labs()?, args.lab.as_deref())?,
    };
    load(&path)
}

fn load(path: &Path) -> Result<Cluster, Error> {
    let Inventory { context, identity, nodes } = Inventory::load(path)?;
    let directory = match &identity {
        Some(file) => Directory::load(file)?,
        None => Directory::empty(),
    };
    let directory = match &context {
        Some(context) => directory.with_context(context),
        None => directory,
    };
    Ok(Cluster {
        context,
        nodes: nodes.into_iter().map(|node| Node { name: node.name.clone(), command: Some(node) }).collect(),
        directory,
    })
}

/// One lab of those that run. Each path is `.../NAME/inventory.toml`.
fn choose(mut labs: Vec<PathBuf>, wanted: Option<&str>) -> Result<PathBuf, Error> {
    labs.sort();
    let name = |path: &Path| {
        path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let names = || labs.iter().map(|path| name(path)).collect();
    if let Some(wanted) = wanted {
        let found = labs.iter().find(|path| name(path) == wanted);
        return found.cloned().ok_or_else(|| Error::NoSuchLab { wanted: wanted.to_owned(), running: names() });
    }
    match labs.as_slice() {
        [] => Err(Error::NoLab),
        [only] => Ok(only.clone()),
        _ => Err(Error::SeveralLabs(names())),
    }
}

fn this_machine() -> String {
    #[cfg(target_os = "linux")]
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    #[cfg(not(target_os = "linux"))]
    let name: Option<String> = None;
    name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "this machine".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(name: &str) -> PathBuf {
        PathBuf::from(format!("/run/podpath/lab/{name}/inventory.toml"))
    }

    #[test]
    fn the_only_lab_is_used() {
        assert_eq!(choose(vec![lab("a")], None).expect("one"), lab("a"));
        assert_eq!(choose(vec![lab("b"), lab("a")], Some("b")).expect("named"), lab("b"));
    }

    #[test]
    fn otherwise_the_user_is_asked() {
        assert!(matches!(choose(Vec::new(), None), Err(Error::NoLab)));
        let several = choose(vec![lab("b"), lab("a")], None);
        assert!(matches!(&several, Err(Error::SeveralLabs(names)) if names == &["a", "b"]), "{several:?}");
        let wrong = choose(vec![lab("b"), lab("a")], Some("c"));
        assert!(matches!(&wrong, Err(Error::NoSuchLab { running, .. }) if running == &["a", "b"]), "{wrong:?}");
        assert!(matches!(choose(Vec::new(), Some("c")), Err(Error::NoSuchLab { .. })));
    }
}
