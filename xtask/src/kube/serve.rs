//! The server's process: connections, and who stands behind each.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UnixListener},
};
use tokio_rustls::TlsAcceptor;

use super::{control, controller, fault::Faults, http, seed, synthetic::Synthetic, tls::Authority, world::World};
use crate::lab;

/// What the process is told on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The lab whose nodes are the cluster's; it must be up
    #[arg(long)]
    lab: String,
    /// Where the kubeconfigs and the control socket go
    #[arg(long)]
    folder: PathBuf,
    /// What is run where a command is `podpath-agent`
    #[arg(long)]
    agent: PathBuf,
    /// 0: any that is free
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How long starting and ending a pod takes
    #[arg(long, value_name = "MS", default_value_t = 100)]
    delay: u64,
    /// So many nodes more, without a namespace
    #[arg(long, default_value_t = 0)]
    nodes: u32,
    /// So many pods more, on those
    #[arg(long, default_value_t = 0)]
    pods: u32,
    /// End with standard input: whoever started this process holds it
    #[arg(long)]
    until_eof: bool,
}

/// Serves until a signal, or the end of input, comes.
///
/// # Errors
/// The lab is not up, or the port or the folder cannot be had.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the server's threads")?;
    let result = runtime.block_on(serve(arguments));
    // What still blocks a thread (reading standard input does) shall not hold us up.
    runtime.shutdown_background();
    result
}

async fn serve(arguments: &Arguments) -> Result<()> {
    let Arguments { lab: name, folder, agent, port, delay, nodes, pods, until_eof } = arguments.clone();
    let lab = lab::status()?.into_iter().find(|lab| lab.name == name && lab.complete);
    let lab =
        lab.with_context(|| format!("lab {name} is not up; bring it up by: cargo xtask lab up PROFILE --name {name}"))?;
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| format!("take port {port}"))?;
    let address = listener.local_addr().context("look up the port")?;
    let authority = Authority::new()?;
    let acceptor = authority.acceptor(address)?;
    let store = seed::store(&lab)?;
    let faults = Faults { delay: Duration::from_millis(delay), ..Faults::default() };
    let world = World::new(lab, agent, folder, address.port(), authority, store, faults, Synthetic { nodes, pods });
    let world = Arc::new(world);
    tokio::spawn(controller::run(world.clone()));
    tokio::spawn(connections(world.clone(), acceptor, address, listener));

    let socket = world.folder.join(control::SOCKET);
    let new = socket.with_extension("new");
    // One of an earlier server, killed.
    let _ = std::fs::remove_file(&new);
    let orders = UnixListener::bind(&new).with_context(|| format!("listen on {}", new.display()))?;
    // Under its name only when it answers.
    std::fs::rename(&new, &socket).with_context(|| format!("name {}", socket.display()))?;
    tokio::select! {
        () = control::serve(world.clone(), orders) => {}
        () = end_of_input(), if until_eof => {}
        () = signalled() => {}
    }
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

async fn end_of_input() {
    let mut byte = [0; 64];
    while tokio::io::stdin().read(&mut byte).await.is_ok_and(|read| read > 0) {}
}

async fn signalled() {
    while crate::interrupt::received().is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Takes connections while the server is open. Closed, it does not even listen.
async fn connections(world: Arc<World>, acceptor: TlsAcceptor, address: SocketAddr, first: TcpListener) {
    let mut open = world.open.subscribe();
    let mut listener = Some(first);
    loop {
        let listening = match listener.take() {
            Some(listening) => listening,
            None => match listen_again(address).await {
                Ok(listening) => listening,
                Err(_) => continue,
            },
        };
        loop {
            tokio::select! {
                accepted = listening.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(connection(world.clone(), acceptor.clone(), stream));
                    }
                }
                _ = open.wait_for(|open| !*open) => break,
            }
        }
        drop(listening);
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
    }
}

async fn listen_again(address: SocketAddr) -> std::io::Result<TcpListener> {
    // With SO_REUSEADDR, so that connections of before, which the kernel still remembers, do not matter.
    let bound = TcpListener::bind(address).await;
    if bound.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bound
}

async fn connection(world: Arc<World>, acceptor: TlsAcceptor, stream: TcpStream) {
    let mut open = world.open.subscribe();
    let work = async {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let (_, tls) = stream.get_ref();
        let certificate = tls.peer_certificates().and_then(|chain| chain.first()).map(|first| first.to_vec());
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let (world, certificate) = (world.clone(), certificate.clone());
            async move { Ok::<_, Infallible>(http::answer(world, certificate, request).await) }
        });
        // How a connection ends is its client's affair.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    };
    tokio::select! {
        () = work => {}
        _ = open.wait_for(|open| !*open) => {}
    }
}
