//! The `podpath-agent` command: one trace on one node, or nothing at all.
//!
//! It has these two verbs and no arguments, files or shell, because whoever may exec it in a pod may run what it can do.

use std::process::ExitCode;

use clap::Parser;

/// podpath's part on a node. Started by podpath, not by hand: it speaks the session protocol on stdin and stdout.
#[derive(Parser)]
#[command(name = "podpath-agent", version)]
enum Verb {
    /// Serve one trace on stdin and stdout.
    Session,
    /// Do nothing until a signal comes: what an agent pod runs between traces.
    Idle,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("PODPATH_LOG").unwrap_or_else(|_| "warn".into()))
        .init();
    match Verb::parse() {
        Verb::Session => run_session(),
        Verb::Idle => idle(),
    }
}

#[cfg(target_os = "linux")]
fn run_session() -> ExitCode {
    match tracer_user::session::run_agent(tracer_user::session::LiveNode::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podpath-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn run_session() -> ExitCode {
    eprintln!("podpath-agent: only Linux can be traced; run it on the node");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
fn idle() -> ExitCode {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Process 1 of a container ignores signals it does not handle, so they are waited for.
    let waited = signals.thread_block().and_then(|()| signals.wait());
    match waited {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podpath-agent: wait for a signal: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn idle() -> ExitCode {
    run_session()
}
