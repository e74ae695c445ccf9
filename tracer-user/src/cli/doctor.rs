//! `podpath doctor`.

use super::{
    args::{DoctorArgs, Format},
    error::Error,
    terminal::{Surroundings, write_stdout},
    yaml,
};
use crate::doctor;

/// Checks and prints; 0 if tracing works here, else 1.
///
/// # Errors
/// The result could not be written.
pub(super) fn run(args: &DoctorArgs) -> Result<u8, Error> {
    let checks = doctor::all();
    let text = match args.output {
        Format::Json => doctor::json(&checks),
        Format::Yaml => yaml(doctor::json(&checks).as_bytes()),
        Format::Text | Format::Wide => {
            let look = Surroundings::of_stdout().look();
            doctor::text(&checks, look.color, look.width)
        }
    };
    write_stdout(text.as_bytes()).map_err(Error::Output)?;
    Ok(u8::from(!doctor::can_trace(&checks)))
}
