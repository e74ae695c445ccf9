//! `podpath completion`.

use clap::CommandFactory;
use clap_complete::{generate, shells};

use super::{
    args::{Cli, CompletionArgs, Shell},
    error::Error,
    terminal::write_stdout,
};

/// Prints the script.
///
/// # Errors
/// It could not be written.
pub(super) fn run(args: &CompletionArgs) -> Result<u8, Error> {
    write_stdout(&script(args.shell)).map_err(Error::Output)?;
    Ok(0)
}

fn script(shell: Shell) -> Vec<u8> {
    let (mut definition, mut script) = (Cli::command(), Vec::new());
    match shell {
        Shell::Bash => generate(shells::Bash, &mut definition, "podpath", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut definition, "podpath", &mut script),
        Shell::Fish => generate(shells::Fish, &mut definition, "podpath", &mut script),
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_is_told_of_all_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).expect("text");
            for word in ["trace", "doctor", "install", "uninstall", "request-timeout"] {
                assert!(script.contains(word), "{shell:?} has no {word}");
            }
        }
    }
}
