//! `cargo xtask test`: everything this machine can test, in phases, with one honest line at the end.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    build, packages, proc,
    totals::{Failures, Totals},
    vm, workspace_root,
};

/// All tests together; a hanging one is ended rather than waited for. On two processors, with what a fresh clone has to compile
/// (the image's programs among it), they take some 45 minutes, and the virtual machines after them 15.
const LIMIT: Duration = Duration::from_secs(65 * 60);

/// What is to be tested.
#[derive(Debug, Default)]
pub struct Options {
    /// Phases (`packages`, `fmt`, `clippy`, `vm`) or parts of test names to leave out.
    pub skip: Vec<String>,
    /// Handed to the test binaries as they are: name filters, `--nocapture`.
    pub arguments: Vec<String>,
}

/// Runs all phases; a failed one does not keep the next from running where it can. The total stands on stdout.
///
/// # Errors
/// Only for what keeps the tests from being run at all: packages or the kernel object cannot be had.
pub fn run(options: &Options) -> Result<ExitCode> {
    let phases = Phases { start: Instant::now(), skip: &options.skip };
    let mut failed = Vec::new();

    if phases.begin("packages", "programs that the tests call") {
        packages::ensure(packages::LAB)?;
        packages::ensure(packages::TESTS)?;
        packages::ensure(packages::HERE)?;
    }
    phases.header("kernel object");
    build::kernel_object()?;
    if phases.begin("fmt", "cargo fmt --all --check") && !cargo(&["fmt", "--all", "--check"])? {
        failed.push("fmt");
    }
    if phases.begin("clippy", "cargo clippy: host, laptop's CLI, BPF target") && !clippy()? {
        failed.push("clippy");
    }
    phases.header("cargo test --workspace");
    let (mut totals, said, ended) = cargo_test(options)?;
    match ended {
        Some(true) => {}
        Some(false) => failed.push("tests"),
        None => failed.push("tests (stopped: they took too long)"),
    }
    if totals.nothing_ran() && options.arguments.is_empty() {
        failed.push("tests (none ran)");
    }
    if !options.arguments.is_empty() {
        phases.header("vm: skipped, as only some tests were asked for");
    } else if phases.begin("vm", "the same on an old kernel and a new one, and across two") {
        let (in_vms, ended_well) = in_vms(options);
        totals.sum(in_vms);
        if !ended_well {
            failed.push("vm");
        }
    }
    phases.header("done");
    totals.ignored_tests.iter().for_each(|test| println!("ignored: {test}"));
    // Again, as it stands far above by now.
    said.iter().for_each(|line| println!("{line}"));
    totals.failed_tests.iter().for_each(|test| println!("failed: {test}"));
    println!("{}", last_line(&totals, &options.skip, &failed));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the tests in virtual machines; the total is to be told even when they could not be run.
fn in_vms(options: &Options) -> (Totals, bool) {
    vm::test(&names_of_tests(&options.skip)).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        (Totals::default(), false)
    })
}

const PHASES: &[&str] = &["packages", "fmt", "clippy", "vm"];

/// What of `--skip` is meant for tests.
fn names_of_tests(skip: &[String]) -> Vec<String> {
    skip.iter().filter(|name| !PHASES.contains(&name.as_str())).cloned().collect()
}

struct Phases<'a> {
    start: Instant,
    skip: &'a [String],
}

impl Phases<'_> {
    fn header(&self, text: &str) {
        eprintln!("=== [{}] {text}", clock(self.start.elapsed()));
    }

    /// Prints the phase's header; false when the caller wants it left out.
    fn begin(&self, name: &str, text: &str) -> bool {
        let skipped = self.skip.iter().any(|skip| skip == name);
        self.header(&if skipped { format!("{name}: skipped, as asked") } else { format!("{name}: {text}") });
        !skipped
    }
}

fn clock(elapsed: Duration) -> String {
    format!("{:02}:{:02}", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
}

/// Runs cargo with its output shown; true when it ended well.
fn cargo(arguments: &[&str]) -> Result<bool> {
    let mut command = Command::new(crate::cargo());
    command.args(arguments).current_dir(workspace_root());
    Ok(proc::shown(&mut command, LIMIT)?.success())
}

fn clippy() -> Result<bool> {
    let host = cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    let laptop =
        ["clippy", "--quiet", "-p", "tracer-user", "--no-default-features", "--lib", "--bin", "podpath", "--tests"];
    let laptop = cargo(&[&laptop[..], &["--", "-D", "warnings"]].concat())?;
    let kernel = build::kernel_clippy();
    if let Err(error) = &kernel {
        eprintln!("{error:#}");
    }
    Ok(host && laptop && kernel.is_ok())
}

/// Runs all tests, shows their output as it comes, and adds up the summary lines in it; what failed ones said; whether they ended well,
/// none if they were stopped.
fn cargo_test(options: &Options) -> Result<(Totals, Vec<String>, Option<bool>)> {
    let mut command = Command::new(crate::cargo());
    command.args(["test", "--workspace", "--no-fail-fast", "--"]).args(&options.arguments);
    for name in names_of_tests(&options.skip) {
        command.args(["--skip", &name]);
    }
    command.current_dir(workspace_root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = proc::spawn(&mut command)?;
    let stdout = child.stdout.take().context("cargo test has no stdout")?;
    let reader = std::thread::spawn(move || {
        let (mut totals, mut failures) = (Totals::default(), Failures::default());
        // Bytes, not lines of text: tests may print anything.
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line);
            totals.add(&text);
            failures.add(&text);
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
        }
        (totals, failures.lines)
    });
    let status = proc::wait_within(&mut child, LIMIT)?;
    let (totals, said) = reader.join().unwrap_or_default();
    if status.is_none() {
        proc::say(&format!("the tests had not ended after {} minutes and were stopped", LIMIT.as_secs() / 60));
    }
    Ok((totals, said, status.map(|status| status.success())))
}

fn last_line(totals: &Totals, skip: &[String], failed: &[&str]) -> String {
    let Totals { passed, failed: failures, ignored, filtered, .. } = totals;
    let verdict = if failed.is_empty() { "ok".to_owned() } else { format!("FAILED in {}", failed.join(", ")) };
    let mut text = format!("xtask test: {verdict}. {passed} passed, {failures} failed, {ignored} ignored");
    if *filtered > 0 {
        text.push_str(&format!(", {filtered} filtered out"));
    }
    match skip {
        [] => text.push_str("; nothing skipped"),
        names => text.push_str(&format!("; skipped as asked by --skip: {}", names.join(", "))),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_names_what_failed_and_what_was_skipped() {
        let totals = Totals { passed: 13, ignored: 1, ..Totals::default() };
        assert_eq!(last_line(&totals, &[], &[]), "xtask test: ok. 13 passed, 0 failed, 1 ignored; nothing skipped");
        let totals = Totals { failed: 1, filtered: 2, ..totals };
        assert_eq!(
            last_line(&totals, &["fmt".into(), "blackhole".into()], &["clippy", "tests"]),
            "xtask test: FAILED in clippy, tests. 13 passed, 1 failed, 1 ignored, 2 filtered out; \
             skipped as asked by --skip: fmt, blackhole"
        );
    }

    #[test]
    fn a_laptops_cli_needs_nothing_of_a_node() {
        let mut tree = Command::new(crate::cargo());
        tree.args(["tree", "--locked", "--offline", "-p", "tracer-user", "--no-default-features", "-e", "normal"]);
        let tree = proc::quiet(tree.args(["--prefix", "none"]).current_dir(workspace_root())).expect("cargo tree");
        assert!(tree.contains("\nkube v"), "{tree}");
        for of_a_node in ["\naya", "\nbtf-rs", "\nnetlink-"] {
            assert!(!tree.contains(of_a_node), "{of_a_node} in {tree}");
        }
    }

    #[test]
    fn elapsed_as_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(754)), "12:34");
    }
}
