//! Running the system's own tools, and saying which one failed at what.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The Debian packages whose tools the lab and its tests run.
pub const PACKAGES: &[&str] =
    &["iproute2", "ipset", "iptables", "nftables", "conntrack", "iputils-ping", "wireguard-tools"];

/// The package that holds a tool, where its name differs.
fn package(tool: &str) -> &str {
    match tool {
        "ip" | "bridge" => "iproute2",
        "iptables-nft"
        | "iptables-nft-restore"
        | "iptables-nft-save"
        | "ip6tables-nft-restore"
        | "iptables-legacy"
        | "ip6tables-nft" => "iptables",
        "nft" => "nftables",
        "ping" => "iputils-ping",
        "wg" => "wireguard-tools",
        "modprobe" => "kmod",
        other => other,
    }
}

/// Run `tool` with `input` on its standard input, in the calling thread's network namespace; its standard output.
///
/// # Errors
/// When the tool is missing (with the package that has it) or fails (with what it printed).
pub fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| start_failure(tool))?;
    // A tool that fails early closes its input: its own message, read below, says more than EPIPE.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("waiting for `{tool}`"))?;
    if !output.status.success() {
        bail!(
            "`{tool} {}` failed ({}): {}",
            arguments.join(" "),
            output.status,
            explain(&String::from_utf8_lossy(&output.stderr), input)
        );
    }
    if let Some(Err(error)) = written {
        return Err(error).with_context(|| format!("writing the input of `{tool}`"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn start_failure(tool: &str) -> String {
    let package = package(tool);
    format!(
        "cannot start `{tool}` (Debian package {package}): `apt-get install {package}`, or let `cargo xtask test` install what it needs"
    )
}

/// A batch tool names the line that failed by number only: put that line beside it.
fn explain(stderr: &str, input: &str) -> String {
    let stderr = stderr.trim();
    let line = stderr
        .rsplit_once("Command failed -:")
        .map(|(_, number)| number.trim_end())
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| input.lines().nth(number.checked_sub(1)?));
    match line {
        Some(line) => format!("{stderr}: `{line}`"),
        None => stderr.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_its_package_and_the_way_out() {
        assert_eq!(
            start_failure("iptables-nft"),
            "cannot start `iptables-nft` (Debian package iptables): `apt-get install iptables`, \
             or let `cargo xtask test` install what it needs"
        );
        let error = run("podpath-no-such-tool", &[], "").unwrap_err().to_string();
        assert!(error.contains("podpath-no-such-tool"), "{error}");
    }

    #[test]
    fn a_failed_batch_shows_its_line() {
        assert_eq!(
            explain("Error: ?\nCommand failed -:2\n", "link set lo up\nroute add nonsense\n"),
            "Error: ?\nCommand failed -:2: `route add nonsense`"
        );
    }

    #[test]
    fn every_package_of_a_tool_is_installed() {
        for tool in ["ip", "bridge", "ipset", "iptables-nft", "ip6tables-nft-restore", "nft", "conntrack", "ping", "wg"]
        {
            assert!(PACKAGES.contains(&package(tool)), "{tool}");
        }
    }

    #[test]
    fn a_failure_carries_the_tools_words() {
        let error = run("ls", &["/podpath-no-such-path"], "").unwrap_err().to_string();
        assert!(error.contains("/podpath-no-such-path"), "{error}");
    }
}
