//! `podpath doctor`.

use super::{
    error::Error,
    terminal::{Surroundings, write_stdout},
};
use crate::doctor;

/// Checks and prints; 0 if tracing works here, else 1.
///
/// # Errors
/// The result could not be written.
pub(super) fn run() -> Result<u8, Error> {
    #[cfg_attr(not(target_os = "linux"), expect(unused_mut, reason = "only Linux has more to check"))]
    let mut checks = doctor::checks();
    #[cfg(target_os = "linux")]
    checks.extend(crate::probe::doctor::checks());
    let look = Surroundings::of_stdout().look();
    write_stdout(doctor::text(&checks, look.color, look.width).as_bytes()).map_err(Error::Output)?;
    Ok(u8::from(!doctor::can_trace(&checks)))
}
