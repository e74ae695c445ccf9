//! The `podpath` command: its arguments, its commands, and the only code that prints.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

pub mod args;
mod completion;
mod convert;
mod doctor;
mod ends;
mod error;
mod examples;
mod install;
mod kubernetes;
mod live;
mod nodes;
mod plugin;
mod record;
mod report;
mod requests;
mod service;
mod survey;
mod terminal;
mod trace;
mod traffic;
mod watch;

use args::{Cli, Command};

/// It could not trace.
const FAILED: u8 = 1;

/// Done, and not all that was asked for completed.
const NOT_ALL: u8 = 3;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let mut definition = Cli::command();
    if plugin::called_by_kubectl(std::env::args_os().next()) {
        definition = plugin::named(definition);
    }
    // Prints help and version itself, and ends with 2 on wrong usage.
    let cli = Cli::from_arg_matches(&definition.get_matches()).unwrap_or_else(|error| error.exit());
    let result = match &cli.command {
        Command::Trace(args) => {
            let args = args.clone().with_port_of_destination().unwrap_or_else(|error| error.exit());
            block_on(trace::run(&args))
        }
        Command::Watch(args) => block_on(live::run(args)),
        Command::Record(args) => block_on(record::run(args)),
        Command::Report(args) => report::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Nodes(args) => block_on(survey::run(args)),
        Command::Doctor(args) => doctor::run(args),
        Command::Install(args) => block_on(install::install(args)),
        Command::Uninstall(args) => block_on(install::uninstall(args)),
        Command::Completion(args) => completion::run(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            terminal::write_stderr(&error::lines(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// The same object, as YAML.
fn yaml(json: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(json).expect("what our own serializer wrote");
    serde_norway::to_string(&value).expect("JSON has no key that YAML has not")
}

fn block_on(work: impl Future<Output = Result<u8, error::Error>>) -> Result<u8, error::Error> {
    tokio::runtime::Runtime::new().map_err(error::Error::Runtime)?.block_on(work)
}
