//! `podpath doctor`.

use super::{
    args::{DoctorArgs, Format},
    error::Error,
    terminal::{Surroundings, write_stdout},
};
use crate::doctor;

/// Checks and prints; 0 if tracing works here, else 1.
///
/// # Errors
/// The result could not be written.
pub(super) fn run(args: &DoctorArgs) -> Result<u8, Error> {
    #[cfg_attr(not(live), expect(unused_mut, reason = "only who can trace here has more to check"))]
    let mut checks = doctor::checks();
    #[cfg(live)]
    checks.extend(crate::probe::doctor::checks());
    let text = match args.output {
        Format::Json => doctor::json(&checks),
        Format::Text => {
            let look = Surroundings::of_stdout().look();
            doctor::text(&checks, look.color, look.width)
        }
    };
    write_stdout(text.as_bytes()).map_err(Error::Output)?;
    Ok(u8::from(!doctor::can_trace(&checks)))
}
