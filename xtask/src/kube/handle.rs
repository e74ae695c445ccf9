//! A test's handle of the server's process.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    control::{Order, Request, SOCKET},
    fault::Fault,
    kubeconfig::ADMIN,
};

/// How long the process may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a server begins with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long starting and ending a pod takes; 100 ms if not said.
    pub delay: Option<Duration>,
    /// So many nodes more, made up.
    pub nodes: u32,
    /// So many pods more, on those, in namespace `load`.
    pub pods: u32,
    /// `podpath-agent`, if not the one beside `xtask`.
    pub agent: Option<PathBuf>,
}

/// A running server. It ends with its handle, and with the process that holds it, however that ends.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: PathBuf,
    admin: PathBuf,
}

impl Server {
    /// Starts one for a lab that is up. Its kubeconfigs go into `folder`.
    ///
    /// # Errors
    /// No `xtask` or `podpath-agent` beside the running program, or the process ended or did not answer.
    pub fn start(lab: &str, folder: &Path, options: &Options) -> Result<Server> {
        let agent = options.agent.clone().map_or_else(|| crate::beside("podpath-agent"), Ok)?;
        let mut command = Command::new(crate::beside("xtask")?);
        command.args(["kube", "serve", "--until-eof", "--lab", lab, "--folder"]).arg(folder).arg("--agent").arg(agent);
        for (name, number) in [("--nodes", options.nodes), ("--pods", options.pods)] {
            command.args([name, &number.to_string()]);
        }
        if let Some(delay) = options.delay {
            command.args(["--delay", &delay.as_millis().to_string()]);
        }
        // One of an earlier server, killed, would answer nobody.
        let _ = std::fs::remove_file(folder.join(SOCKET));
        // The pipe ends with us. (PDEATHSIG would come when the thread ends that starts it, which in tests is soon.)
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("start the API server")?;
        let mut server = Server { child, folder: folder.to_owned(), admin: PathBuf::new() };
        server.wait()?;
        server.admin = server.make_user(ADMIN, &["system:masters"], true)?;
        Ok(server)
    }

    fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.folder.join(SOCKET).exists() && self.order(&Order::Port).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("wait for the API server")? {
                bail!("the API server {}", crate::proc::ended(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the API server did not answer within {} s", PATIENCE.as_secs())
    }

    fn order(&self, order: &Order) -> Result<Value> {
        let path = self.folder.join(SOCKET);
        let mut stream = UnixStream::connect(&path).with_context(|| format!("connect to {}", path.display()))?;
        let line = serde_json::to_string(order).context("write down an order")?;
        stream.write_all(format!("{line}\n").as_bytes()).context("send an order")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).context("read the answer")?;
        let mut answer: Value = serde_json::from_str(&answer).context("read the answer")?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{error}");
        }
        Ok(answer["ok"].take())
    }

    /// For what a test cannot go on without.
    fn must(&self, order: &Order) -> Value {
        self.order(order).unwrap_or_else(|error| panic!("{order:?}: {error:#}"))
    }

    /// Kubeconfig of a user that may do everything, known by a client certificate.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.admin.clone()
    }

    /// Kubeconfig of a user with a new bearer token.
    pub fn user(&self, name: &str, groups: &[&str]) -> PathBuf {
        self.make_user(name, groups, false).unwrap_or_else(|error| panic!("user {name}: {error:#}"))
    }

    /// Kubeconfig of a user with a new client certificate.
    pub fn certified_user(&self, name: &str, groups: &[&str]) -> PathBuf {
        self.make_user(name, groups, true).unwrap_or_else(|error| panic!("user {name}: {error:#}"))
    }

    fn make_user(&self, name: &str, groups: &[&str], certificate: bool) -> Result<PathBuf> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let path = self.order(&Order::User { name: name.to_owned(), groups, certificate })?;
        Ok(PathBuf::from(path.as_str().unwrap_or_default()))
    }

    /// A user's credentials count no longer: 401.
    pub fn expire(&self, name: &str) {
        self.must(&Order::Expire { name: name.to_owned() });
    }

    /// From now on this goes wrong.
    pub fn fault(&self, fault: Fault) {
        self.must(&Order::Fault(fault));
    }

    /// Every request since the start, or since [`Server::forget_requests`].
    pub fn requests(&self) -> Vec<Request> {
        serde_json::from_value(self.must(&Order::Requests)).unwrap_or_else(|error| panic!("requests: {error}"))
    }

    /// Counts from nothing.
    pub fn forget_requests(&self) {
        self.must(&Order::Forget);
    }

    /// Keeps an object, as it says where, with no check; its namespace is made if need be.
    pub fn put(&self, object: Value) -> Value {
        self.must(&Order::Put(object))
    }

    /// The object at a path such as `/api/v1/namespaces/default/pods/bb1`.
    pub fn get(&self, path: &str) -> Option<Value> {
        Some(self.must(&Order::Get { path: path.to_owned() })).filter(|object| !object.is_null())
    }

    /// Removes an object at once; a pod's processes are killed.
    pub fn delete(&self, path: &str) {
        self.must(&Order::Delete { path: path.to_owned() });
    }

    /// The server cannot be reached any more: connections are cut, the port is closed. Its objects stay.
    pub fn stop(&self) {
        self.must(&Order::Open(false));
    }

    /// The server can be reached again, on the same port.
    pub fn resume(&self) {
        self.must(&Order::Open(true));
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        let port = self.must(&Order::Port);
        serde_json::from_value(port).unwrap_or_else(|error| panic!("port: {error}"))
    }

    /// The server's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pod of a DaemonSet on a node of the lab, by Kubernetes' name of the node.
    pub fn pod_on(&self, namespace: &str, prefix: &str, node: &str) -> Option<String> {
        let pods = self.must(&Order::Pods { namespace: namespace.to_owned() });
        let pods = pods.as_array().cloned().unwrap_or_default();
        let wanted = |pod: &&Value| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            name.starts_with(prefix) && pod["spec"]["nodeName"] == json!(node)
        };
        pods.iter().find(wanted).and_then(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
