//! What a test says to the server: one JSON document a line, over a Unix socket in its folder.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{
    fault::Fault,
    kinds::Kind,
    kubeconfig,
    place::{Place, place},
    seed,
    store::Key,
    verbs,
    world::World,
};

/// Name of the socket in the server's folder.
pub(crate) const SOCKET: &str = "control.sock";

/// A request that the server got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Of HTTP.
    pub method: String,
    /// The path without names: `/api/v1/namespaces/{namespace}/pods/{name}`.
    pub template: String,
    /// The path.
    pub path: String,
    /// What follows the `?`.
    pub query: String,
    /// Who asked, after impersonation; "" without a credential.
    pub user: String,
    /// Of the answer.
    pub code: u16,
}

/// What the server is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Answers the port.
    Port,
    User {
        name: String,
        groups: Vec<String>,
        certificate: bool,
    },
    /// A user's credentials no longer count.
    Expire {
        name: String,
    },
    Fault(Fault),
    Requests,
    Forget,
    Put(Value),
    Get {
        path: String,
    },
    /// The pods of a namespace.
    Pods {
        namespace: String,
    },
    Delete {
        path: String,
    },
    /// Cuts all connections and takes no new ones, or takes them again.
    Open(bool),
}

/// Takes orders until the process ends.
pub(crate) async fn serve(world: Arc<World>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(talk(world.clone(), stream));
    }
}

async fn talk(world: Arc<World>, mut stream: UnixStream) {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match order(&world, &line) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        if writer.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

fn order(world: &World, line: &str) -> Result<Value> {
    Ok(match serde_json::from_str(line).context("an order")? {
        Order::Port => json!(world.port),
        Order::User { name, groups, certificate } => {
            let path: PathBuf = kubeconfig::write(world, &name, &groups, certificate)?;
            json!(path)
        }
        Order::Expire { name } => json!(world.people().expired.insert(name)),
        Order::Fault(fault) => {
            if fault == Fault::CutAllExecs {
                world.kill(super::exec::CUT);
            }
            let named = |node: &str| world.lab.node(node).map_or_else(|_| node.to_owned(), |node| node.name.clone());
            world.faults().set(fault, named);
            // The controllers look at once.
            world.changed.send_modify(|_| {});
            Value::Null
        }
        Order::Requests => json!(*world.journal()),
        Order::Forget => {
            world.journal().clear();
            Value::Null
        }
        Order::Put(object) => world.change(|store| seed::put(store, object))?,
        Order::Get { path } => {
            let key = key(&path)?;
            world.store().get(&key).map(|object| (**object).clone()).unwrap_or_default()
        }
        Order::Pods { namespace } => {
            let store = world.store();
            let kind = Kind::of("", "pods").context("pods are a kind")?;
            json!(store.list(kind, Some(&namespace)).map(|(_, pod)| (**pod).clone()).collect::<Vec<_>>())
        }
        Order::Delete { path } => {
            let key = key(&path)?;
            let gone = world.change(|store| store.remove(&key));
            let object = gone.with_context(|| format!("{path}: not there"))?;
            verbs::end_processes(world, &object);
            Value::Null
        }
        Order::Open(open) => {
            world.open.send_replace(open);
            Value::Null
        }
    })
}

fn key(path: &str) -> Result<Key> {
    match place(path) {
        Some(Place::Objects(target)) if !target.name.is_empty() => {
            Ok(Key::new(target.kind, &target.namespace, &target.name))
        }
        _ => anyhow::bail!("{path}: no path of an object, such as /api/v1/namespaces/default/pods/bb1"),
    }
}
