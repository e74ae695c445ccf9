//! The `podpath` command: its arguments, its commands, and the only code that prints.

use std::process::ExitCode;

use clap::Parser;

pub mod args;
mod doctor;
mod ends;
mod error;
mod kubernetes;
mod nodes;
mod terminal;
mod trace;
mod traffic;
mod watch;

use args::{Cli, Command};

/// It could not trace.
const FAILED: u8 = 1;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Prints help and version itself, and ends with 2 on wrong usage.
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Trace(args) => match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime.block_on(trace::run(args)),
            Err(cause) => Err(error::Error::Runtime(cause)),
        },
        Command::Doctor(args) => doctor::run(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            terminal::write_stderr(&error::lines(&error));
            ExitCode::from(FAILED)
        }
    }
}
