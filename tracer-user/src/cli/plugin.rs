//! `kubectl podpath`: kubectl runs whatever is called `kubectl-podpath` on the PATH. A link of that name is enough.

use std::{ffi::OsString, path::Path};

use clap::Command;

/// What kubectl looks for.
const FILE: &str = "kubectl-podpath";

/// Whether this program was called by that name.
pub(super) fn called_by_kubectl(program: Option<OsString>) -> bool {
    program.is_some_and(|path| Path::new(&path).file_stem().is_some_and(|name| name == FILE))
}

/// The same command line with help that can be typed as it is shown.
pub(super) fn named(command: Command) -> Command {
    with_examples(command).bin_name("kubectl podpath")
}

fn with_examples(command: Command) -> Command {
    let examples = command.get_after_help().map(|text| text.to_string().replace("  podpath ", "  kubectl podpath "));
    let command = match examples {
        Some(examples) => command.after_help(examples),
        None => command,
    };
    command.mut_subcommands(with_examples)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn a_link_of_that_name_is_the_plugin() {
        let called = |path: &str| called_by_kubectl(Some(path.into()));
        assert!(called("/usr/local/bin/kubectl-podpath") && called("kubectl-podpath"));
        assert!(!called("podpath") && !called("/opt/kubectl-podpath/podpath") && !called_by_kubectl(None));
    }

    #[test]
    fn its_help_says_what_to_type() {
        let error = named(Cli::command()).try_get_matches_from([FILE, "uninstall", "--wrong"]).expect_err("wrong");
        assert!(error.to_string().contains("Usage: kubectl podpath uninstall"), "{error}");
        let help = named(Cli::command()).try_get_matches_from([FILE, "--help"]).expect_err("help").to_string();
        assert!(help.contains("Usage: kubectl podpath <COMMAND>"), "{help}");
        assert!(help.contains("  kubectl podpath trace bb2 bb1"), "{help}");
    }
}
