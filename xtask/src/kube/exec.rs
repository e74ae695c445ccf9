//! `pods/exec` over WebSocket: the command runs as root in the network namespace of the pod's node.

use std::pin::{Pin, pin};
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use http_body_util::{BodyExt, Empty};
use hyper::{Response, StatusCode, body::Incoming, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use super::{
    http::{Asked, Body},
    place::Target,
    rbac,
    refusal::Refusal,
    verbs,
    world::World,
};

/// What [`World::kill`] takes to cut the connection of every exec.
pub(crate) const CUT: &str = "all execs";

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// Of v5: the next byte names a stream that ends.
const CLOSE: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What is to be run.
struct Job {
    command: Option<Command>,
    /// Its first word, as it was asked for.
    word: String,
    uid: String,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    /// Bytes of output until the connection is cut.
    cut: Option<u64>,
}

pub(crate) fn answer(
    world: &Arc<World>,
    asked: &Asked,
    target: &Target,
    verb: &str,
    mut request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    rbac::check(&world.store(), &asked.person, verb, target)?;
    // A WebSocket begins by GET; newer servers ask for this right of it, too.
    rbac::check(&world.store(), &asked.person, "create", target)?;
    let job = job(world, asked, target)?;
    let headers = request.headers();
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = text(header::SEC_WEBSOCKET_KEY).to_owned();
    if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") || key.is_empty() {
        return Err(Refusal::bad_request("unable to upgrade: only WebSockets are spoken here"));
    }
    let only_v4 = world.faults().only_v4;
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(',').map(str::trim))
        .collect();
    let spoken = |protocol: &&str| *protocol == V4 || *protocol == V5 && !only_v4;
    let Some(protocol) = offered.into_iter().find(spoken).map(|found| if found == V5 { V5 } else { V4 }) else {
        return Err(Refusal::new(403, "Forbidden", "no subprotocol that both sides speak"));
    };

    let upgrade = hyper::upgrade::on(&mut request);
    let world = world.clone();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let mut open = world.open.subscribe();
        let mut killed = world.killed.subscribe();
        let cut = async { while killed.recv().await.is_ok_and(|what| what != CUT) {} };
        // Whatever ends it, the process goes with its handle.
        tokio::select! {
            () = run(&world, job, socket, protocol == V5) => {}
            () = cut => {}
            _ = open.wait_for(|open| !*open) => {}
        }
    });

    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes());
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
        (header::SEC_WEBSOCKET_PROTOCOL, protocol),
    ] {
        let value = header::HeaderValue::from_str(value).map_err(|error| Refusal::internal(error.to_string()))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

fn job(world: &World, asked: &Asked, target: &Target) -> Result<Job, Refusal> {
    let pod = verbs::get(world, target)?;
    let name = &target.name;
    let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
        return Err(Refusal::bad_request(format!("pod {name} does not have a host assigned")));
    };
    let containers = pod["spec"]["containers"].as_array();
    let wanted = asked.text("container");
    let mut containers = containers.into_iter().flatten();
    let container = containers.find(|container| wanted.is_empty() || container["name"] == wanted);
    let container =
        container.ok_or_else(|| Refusal::bad_request(format!("container {wanted} is not valid for pod {name}")))?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        let message = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        return Err(Refusal::bad_request(message));
    }
    let faults = world.faults();
    if faults.not_ready.contains(node) {
        let host = pod["status"]["hostIP"].as_str().unwrap_or(node);
        let message = format!("error dialing backend: dial tcp {host}:10250: connect: connection refused");
        return Err(Refusal::internal(message));
    }
    if phase != "Running" || pod["metadata"].get("deletionTimestamp").is_some() {
        let container = container["name"].as_str().unwrap_or_default();
        let message = format!("unable to upgrade connection: container not found (\"{container}\")");
        return Err(Refusal::internal(message));
    }
    let words: Vec<&str> =
        asked.pairs.iter().filter(|(name, _)| name == "command").map(|(_, word)| word.as_str()).collect();
    let Some((word, arguments)) = words.split_first() else {
        return Err(Refusal::bad_request("you must specify at least one command for the container"));
    };
    let ours = container["image"].as_str().is_some_and(|image| image.contains("podpath-agent"));
    let known = matches!(*word, "podpath-agent" | "/podpath-agent");
    let namespace = world.lab.node(node).ok().map(|node| node.namespace.clone());
    let command = namespace.filter(|_| ours && known).map(|namespace| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace]).arg(&world.agent).args(arguments);
        for variable in container["env"].as_array().into_iter().flatten() {
            if let (Some(name), Some(value)) = (variable["name"].as_str(), value_of(variable, &pod)) {
                command.env(name, value);
            }
        }
        command
    });
    let cut = faults.cut_exec.get(node).copied();
    Ok(Job {
        command,
        word: (*word).to_owned(),
        uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        stdin: asked.is("stdin"),
        stdout: asked.is("stdout"),
        stderr: asked.is("stderr"),
        cut,
    })
}

/// The value of an environment variable, which may be a field of the pod.
fn value_of(variable: &Value, pod: &Value) -> Option<String> {
    let path = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
    let field = path.map(|path| path.split('.').fold(pod, |value, step| &value[step]));
    field.unwrap_or(&variable["value"]).as_str().map(str::to_owned)
}

async fn run(world: &World, job: Job, socket: Socket, half_close: bool) {
    let (mut sink, stream) = socket.split();
    let Some(mut command) = job.command else {
        let message = format!(
            "Internal error occurred: error executing command in container: failed to exec in container: failed to start exec: \
             OCI runtime exec failed: exec failed: unable to start container process: exec: \"{}\": executable file not found in $PATH: unknown",
            job.word
        );
        return finish(sink, &Refusal::internal(message).status()).await;
    };
    let piped = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
    command.stdin(piped(job.stdin)).stdout(piped(job.stdout)).stderr(piped(job.stderr)).kill_on_drop(true);
    let mut killed = world.killed.subscribe();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return finish(sink, &Refusal::internal(error.to_string()).status()).await,
    };
    // As servers do, to say that it runs.
    if job.stdout && sink.send(frame(STDOUT, &[])).await.is_err() {
        return;
    }
    let mut input = child.stdin.take();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let mut killed = pin!(async { while killed.recv().await.is_ok_and(|uid| uid != job.uid) {} });
    let ended = tokio::select! {
        // The client is gone.
        () = feed(world, stream, &mut input, half_close) => None,
        ended = drain(&mut child, &mut sink, &mut out, &mut err, job.cut, killed.as_mut()) => ended,
    };
    if let Some(status) = ended {
        return finish(sink, &status).await;
    }
    if world.faults().orphans {
        drop(sink);
        // Its input stays open, and what it says goes nowhere.
        tokio::select! {
            () = killed => {}
            _ = async { tokio::join!(discard(out), discard(err), child.wait()) } => {}
        }
    }
}

async fn discard(from: Option<impl AsyncRead + Unpin>) {
    if let Some(mut stream) = from {
        // That it cannot be read is an end as good.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut framed = Vec::with_capacity(bytes.len() + 1);
    framed.push(channel);
    framed.extend_from_slice(bytes);
    Message::Binary(Bytes::from(framed))
}

async fn finish(mut sink: SplitSink<Socket, Message>, status: &Value) {
    // The client may be gone already.
    let _ = sink.send(frame(ERROR, status.to_string().as_bytes())).await;
    let _ = sink.close().await;
}

/// What the client sends, to the process; returns when there is no client any more.
async fn feed(world: &World, mut stream: SplitStream<Socket>, input: &mut Option<ChildStdin>, half_close: bool) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return,
            _ => continue,
        };
        match bytes.split_first() {
            Some((&STDIN, bytes)) => {
                if let Some(to) = input
                    && to.write_all(bytes).await.is_err()
                {
                    // It does not read any more; what it writes still counts.
                    *input = None;
                }
            }
            Some((&CLOSE, [STDIN])) if half_close && !world.faults().no_half_close => *input = None,
            _ => {}
        }
    }
}

/// What the process writes, to the client; then how it ended. `None`: the connection is to be cut.
async fn drain(
    child: &mut Child,
    sink: &mut SplitSink<Socket, Message>,
    out: &mut Option<impl AsyncRead + Unpin>,
    err: &mut Option<impl AsyncRead + Unpin>,
    mut cut: Option<u64>,
    mut killed: Pin<&mut impl Future<Output = ()>>,
) -> Option<Value> {
    let (mut from_out, mut from_err) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut dying = false;
    while out.is_some() || err.is_some() {
        let (channel, bytes) = tokio::select! {
            read = read(out, &mut from_out), if out.is_some() => (STDOUT, &from_out[..read]),
            read = read(err, &mut from_err), if err.is_some() => (STDERR, &from_err[..read]),
            () = &mut killed, if !dying => {
                dying = true;
                // Gone already is as good.
                let _ = child.start_kill();
                continue;
            }
        };
        if bytes.is_empty() {
            continue;
        }
        let size = cut.map_or(bytes.len(), |left| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        if sink.send(frame(channel, &bytes[..size])).await.is_err() {
            return None;
        }
        if let Some(left) = &mut cut {
            *left -= u64::try_from(size).unwrap_or(*left);
            if *left == 0 {
                return None;
            }
        }
    }
    let status = tokio::select! {
        status = child.wait() => status,
        () = &mut killed, if !dying => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    Some(status.map_or_else(|error| Refusal::internal(error.to_string()).status(), ended))
}

/// Reads; at the end the stream is none any more.
async fn read(from: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    let Some(stream) = from else { return 0 };
    let read = stream.read(buffer).await.unwrap_or_default();
    if read == 0 {
        *from = None;
    }
    read
}

fn ended(status: std::process::ExitStatus) -> Value {
    use std::os::unix::process::ExitStatusExt;

    // The shell's convention, and the container runtimes'.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [ { "reason": "ExitCode", "message": code.to_string() } ] },
    })
}
