//! A lab with an API server, and podpath run against it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::{
    kube::{Options, Server},
    lab::plant::{Plant, Planted},
};

use crate::support::Lab;

/// A lab, the API server whose nodes are its, and who may ask it.
pub(crate) struct Cluster {
    pub(crate) server: Server,
    _folder: TempDir,
    _planted: Option<Planted>,
    pub(crate) lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

/// What podpath said, and how it ended.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Cluster {
    /// A lab of that profile, with nothing installed.
    pub(crate) fn up(name: &str, profile: &str, options: &Options) -> Cluster {
        Cluster::up_with(name, profile, options, None)
    }

    /// The server reads who is who when it starts: what is to be seen of a plant must stand by then.
    fn up_with(name: &str, profile: &str, options: &Options, plant: Option<&Plant>) -> Cluster {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lab = Lab::up(name, profile);
        let planted = plant.map(|plant| plant.plant(&lab).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(name, folder.path(), options).unwrap();
        Cluster { server, _folder: folder, _planted: planted, lab, _turn: turn }
    }

    /// With agents on all nodes, and what a scenario would plant, which the API then shows.
    pub(crate) fn planted(name: &str, profile: &str, plant: &Plant) -> Cluster {
        let cluster = Cluster::up_with(name, profile, &Options::default(), Some(plant));
        cluster.admin(&["install"]).succeeds();
        cluster
    }

    /// With agents on all nodes.
    pub(crate) fn installed(name: &str, profile: &str) -> Cluster {
        let cluster = Cluster::up(name, profile, &Options::default());
        cluster.admin(&["install"]).succeeds();
        cluster
    }

    pub(crate) fn admin(&self, words: &[&str]) -> Said {
        podpath(&self.server.admin_kubeconfig(), words)
    }

    /// Sessions of agents that still run.
    pub(crate) fn sessions(&self) -> usize {
        self.agents().len()
    }

    /// Their process ids: the server's children.
    pub(crate) fn agents(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.server.id())).unwrap().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        children.flat_map(|list| list.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>()).collect()
    }

    /// Kubeconfig of a user that may trace and nothing else.
    pub(crate) fn user(&self, name: &str) -> PathBuf {
        let subject = json!([{ "kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io" }]);
        let binding = |kind: &str, role: &str, namespace: Value| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": { "name": format!("podpath-{name}"), "namespace": namespace },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "podpath-user" },
                "subjects": subject,
            })
        };
        self.server.put(binding("ClusterRoleBinding", "ClusterRole", Value::Null));
        self.server.put(binding("RoleBinding", "Role", json!("podpath")));
        self.server.user(name, &[])
    }
}

impl Said {
    pub(crate) fn of(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Said {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Said {
        self.ends_with(0)
    }

    /// It said all of this on standard error.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Said {
        assert!(words.iter().all(|word| self.err.contains(word)), "no {words:?} in {}", self.err);
        self
    }

    /// It failed, said all of this, and what to do.
    #[track_caller]
    pub(crate) fn refuses(self, words: &[&str]) {
        let said = self.ends_with(1).says(words);
        assert!(said.err.lines().count() >= 2, "no way out: {}", said.err);
    }

    #[track_caller]
    pub(crate) fn trace(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}\n{}", self.out, self.err))
    }
}

pub(crate) fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join(name);
    assert!(path.is_file(), "no {}: run the tests by `cargo xtask test`", path.display());
    path
}

pub(crate) fn command(kubeconfig: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(beside("podpath"));
    command.args(words).env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    command
}

pub(crate) fn podpath(kubeconfig: &Path, words: &[&str]) -> Said {
    Said::of(command(kubeconfig, words).output().unwrap())
}

/// The same, with its output to be read when it has ended.
pub(crate) fn start(kubeconfig: &Path, words: &[&str]) -> Child {
    command(kubeconfig, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) fn nodes(trace: &Value) -> Vec<&str> {
    trace["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

pub(crate) fn outcomes(trace: &Value) -> Vec<&str> {
    trace["exchanges"].as_array().unwrap().iter().map(|exchange| exchange["outcome"].as_str().unwrap()).collect()
}

#[track_caller]
pub(crate) fn assert_warned(trace: &Value, words: &[&str]) {
    let warnings: Vec<&str> = trace["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    let said = warnings.iter().any(|warning| words.iter().all(|word| warning.contains(word)));
    assert!(said, "no {words:?} in {warnings:#?}");
}

#[track_caller]
pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
