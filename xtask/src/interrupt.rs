//! Ctrl-C and SIGTERM: remembered rather than deadly, so that what we set up can be taken down again.

use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static RECEIVED: AtomicI32 = AtomicI32::new(0);

extern "C" fn remember(signal: libc::c_int) {
    RECEIVED.store(signal, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP are only remembered. Children do not inherit this.
///
/// # Errors
/// The kernel refuses a handler.
pub fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(remember), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe, and it lives as long as the program.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("watch for {signal}"))?;
    }
    Ok(())
}

/// The number of the last signal, if one came.
pub fn received() -> Option<u8> {
    u8::try_from(RECEIVED.load(Ordering::Relaxed)).ok().filter(|signal| *signal != 0)
}
