//! A session on this process's stdin and stdout, which ends with either of them, or with a signal.

use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
};

use super::{Backend, Error, serve};

/// Runs one session on stdin and stdout. The process should exit right after this returns: a thread may still be blocked in a read
/// of stdin or a write to stdout, and a backend call that hangs holds kernel programs until then.
///
/// The kernel programs hang on file descriptors of this process alone, so the kernel detaches them however it dies, also by
/// SIGKILL. (`PR_SET_PDEATHSIG` would not do: `ip netns exec`, sudo or sshd stand between this process and the CLI.)
///
/// # Errors
/// Why the session did not end in order.
pub fn run_agent(backend: impl Backend) -> Result<(), Error> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|source| Error::Start { source })?;
    let result = runtime.block_on(async {
        let signals = Signals::new().map_err(|source| Error::Start { source })?;
        serve(tokio::io::stdin(), tokio::io::stdout(), backend, signals.next()).await
    });
    // Not an ordinary drop: that would wait for the thread that reads stdin.
    runtime.shutdown_background();
    result
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
