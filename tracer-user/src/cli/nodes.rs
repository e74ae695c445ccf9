//! Which nodes to trace on: a Kubernetes cluster's, a running lab's, an inventory file's, or this machine.

use std::path::{Path, PathBuf};

use super::{
    args::TraceArgs,
    error::Error,
    kubernetes::{self, Kubernetes},
};
use crate::{
    cluster::Access,
    identity::Directory,
    session::{Connection, DriveError, Failure, Inventory, InventoryNode, as_typed},
};

/// Where to trace, and who is who there.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Its name.
    pub(super) context: Option<String>,
    /// Its nodes, or those that the trace concerns.
    pub(super) nodes: Vec<Node>,
    /// Who is who.
    pub(super) directory: Directory,
    /// It is asked through the Kubernetes API.
    pub(super) kubernetes: Option<Kubernetes>,
    /// Which of several it was chosen before, and how to have the other.
    pub(super) choice: Option<String>,
}

/// A node to trace on.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its name.
    pub(super) name: String,
    /// How a session is started there.
    pub(super) reach: Reach,
}

/// How a session is started on a node.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    /// In this process.
    Here,
    /// By a command.
    Command(InventoryNode),
    /// In a pod of ours, of this name.
    Agent(String),
}

impl Cluster {
    /// Starts sessions on all nodes. A node of a Kubernetes cluster that refuses one is left out, with a note, if there is another to
    /// trace on and it is not the sender; the sender's place may change by that, and is answered.
    ///
    /// # Errors
    /// One cannot be started, and the trace cannot do without it.
    pub(super) async fn connect(&mut self, sender: Option<usize>) -> Result<(Vec<Connection>, Option<usize>), Error> {
        let tried = futures::future::join_all(self.nodes.iter().map(|node| self.connect_to(node))).await;
        let none = tried.iter().all(Result::is_err);
        let (mut connections, mut place) = (Vec::new(), None);
        for (index, (node, tried)) in std::mem::take(&mut self.nodes).into_iter().zip(tried).enumerate() {
            let is_sender = sender == Some(index);
            match (tried, &mut self.kubernetes) {
                (Ok(connection), _) => {
                    place = place.or(is_sender.then_some(connections.len()));
                    connections.push(connection);
                    self.nodes.push(node);
                }
                (Err(error), Some(kubernetes)) if !none && !is_sender => kubernetes.leave_out(node.name, error)?,
                (Err(error), _) => return Err(error),
            }
        }
        Ok((connections, place))
    }

    pub(super) async fn connect_to(&self, node: &Node) -> Result<Connection, Error> {
        match (&node.reach, &self.kubernetes) {
            (Reach::Agent(pod), Some(kubernetes)) => kubernetes.session(&node.name, pod).await,
            (Reach::Command(command), _) => Connection::spawn(node.name.as_str(), &command.words()).map_err(|source| {
                let (node, command) = (node.name.clone(), as_typed(&command.command));
                DriveError::Start { node, command, source }.into()
            }),
            (Reach::Here | Reach::Agent(_), _) => local(&node.name),
        }
    }
}

#[cfg(live)]
fn local(name: &str) -> Result<Connection, Error> {
    Ok(Connection::local(name, crate::session::LiveNode::new()))
}

#[cfg(not(live))]
fn local(_: &str) -> Result<Connection, Error> {
    Err(not_local().into())
}

/// What a podpath says that cannot trace the machine it runs on.
fn not_local() -> Failure {
    let (cause, way_out) = if cfg!(target_os = "linux") {
        (
            "this podpath was built without its cargo feature `agent`, so it traces other machines only",
            "build it with its default features, or name the nodes with --inventory FILE",
        )
    } else {
        ("only Linux can be traced", "name the nodes with --inventory FILE")
    };
    Failure::new("--local", cause, way_out)
}

/// Finds it as the arguments say; and the arguments, with the ends called as the directory calls them.
///
/// An option decides; then `$KUBECONFIG`; then a lab that runs here; then `~/.kube/config`.
///
/// # Errors
/// No nodes known, a file that cannot be used, or a cluster that cannot be asked.
pub(super) async fn find(args: &TraceArgs) -> Result<(Cluster, TraceArgs), Error> {
    if args.between.local {
        // Before names are looked up in vain.
        if !cfg!(live) {
            return Err(not_local().into());
        }
        let nodes = vec![Node { name: this_machine(), reach: Reach::Here }];
        let cluster = Cluster { context: None, nodes, directory: Directory::empty(), kubernetes: None, choice: None };
        return Ok((cluster, args.clone()));
    }
    let (place, choice) = place(
        args.between.inventory.as_deref(),
        args.between.lab.as_deref(),
        &args.between.access,
        args.between.ephemeral,
    )?;
    let (cluster, args) = match place {
        Place::Kubernetes => kubernetes::find(args).await?,
        Place::File(path) => (load(&path)?, args.clone()),
    };
    Ok((Cluster { choice, ..cluster }, args))
}

/// Where nodes are learned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A cluster's API.
    Kubernetes,
    /// An inventory, perhaps a running lab's.
    File(PathBuf),
}

/// Which of them the options and surroundings mean; and which other it was chosen before, with how to have that.
///
/// # Errors
/// There is none, or several labs run and none is named.
pub(super) fn place(
    inventory: Option<&Path>,
    lab: Option<&str>,
    access: &Access,
    ephemeral: bool,
) -> Result<(Place, Option<String>), Error> {
    if let Some(path) = inventory {
        return Ok((Place::File(path.to_owned()), None));
    }
    let labs = Inventory::running_labs()?;
    let named = access.is_named() || ephemeral;
    if lab.is_none() && (named || Access::is_in_environment() || labs.is_empty() && access.is_configured()) {
        let choice = (!named && !labs.is_empty()).then(|| {
            "the cluster of $KUBECONFIG was taken, not the lab that runs here; --lab NAME takes that".to_owned()
        });
        return Ok((Place::Kubernetes, choice));
    }
    let choice = (lab.is_none() && access.is_configured()).then(|| {
        "the lab that runs here was taken, not the cluster of your kubeconfig; --context NAME takes that".to_owned()
    });
    Ok((Place::File(choose(labs, lab)?), choice))
}

/// The nodes of an inventory.
///
/// # Errors
/// It, or the identity file that it names, cannot be used.
pub(super) fn load(path: &Path) -> Result<Cluster, Error> {
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
        nodes: nodes.into_iter().map(|node| Node { name: node.name.clone(), reach: Reach::Command(node) }).collect(),
        directory,
        kubernetes: None,
        choice: None,
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
    // Only Linux has it, and only Linux is traced.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
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
    fn who_cannot_trace_here_says_why() {
        insta::assert_snapshot!(not_local(), @"--local: this podpath was built without its cargo feature `agent`, so it traces other machines only; build it with its default features, or name the nodes with --inventory FILE");
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
