//! Running other programs: quietly, with a time limit, never waiting for a terminal; and saying on stderr what goes on.

use std::{
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::interrupt;

/// How often a child under a time limit is looked at.
const POLL: Duration = Duration::from_millis(20);
/// What a child gets between SIGTERM and SIGKILL, to clean up after itself.
const GRACE: Duration = Duration::from_secs(10);
/// Lines of a failed program's output that are shown; the cause stands at the end.
const TAIL: usize = 60;

/// Runs `command` with no input and its output held back; returns what it wrote to stdout.
///
/// # Errors
/// The program could not be started, or failed (then the error carries the end of all it wrote), or we were interrupted.
pub fn quiet(command: &mut Command) -> Result<String> {
    quiet_within(command, Duration::MAX)
}

/// Like [`quiet`], but ends the program and everything it started after `limit`.
///
/// # Errors
/// As [`quiet`]; and the limit was reached.
pub fn quiet_within(command: &mut Command, limit: Duration) -> Result<String> {
    let output = collected(command, limit)?;
    if output.status.success() { Ok(output.stdout) } else { Err(failure(command, &output)) }
}

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout,
    pub stdout: String,
    /// and to stderr.
    pub stderr: String,
}

/// Runs `command` with no input and its output held back.
///
/// # Errors
/// The program could not be started, or did not end within `limit` (then the error carries the end of all it wrote), or we
/// were interrupted. That it failed is no error.
pub fn collected(command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait_within(&mut child, limit)?;
    let text =
        |pipe: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&pipe.join().unwrap_or_default()).into_owned();
    let (stdout, stderr) = (text(stdout), text(stderr));
    match status {
        Some(status) => Ok(Output { status, stdout, stderr }),
        None => {
            let end = tail(&(stdout + &stderr));
            bail!("{} had not ended after {} s\n{end}", describe(command), limit.as_secs())
        }
    }
}

/// Runs `command` with no input and its output shown.
///
/// # Errors
/// The program could not be started, or did not end within `limit`, or we were interrupted. That it failed is no error.
pub fn shown(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = spawn(command.stdin(Stdio::null()))?;
    match wait_within(&mut child, limit)? {
        Some(status) => Ok(status),
        None => bail!("{} had not ended after {} s", describe(command), limit.as_secs()),
    }
}

/// Starts `command` as the leader of its own process group, for [`wait_within`].
///
/// # Errors
/// The program could not be started.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.process_group(0).spawn().with_context(|| format!("start {}", describe(command)))
}

/// Waits until `child` of [`spawn`] ends. After `limit` its whole group gets SIGTERM, ten seconds later SIGKILL, and the
/// answer is `None`.
///
/// # Errors
/// We were interrupted (the group was ended), or the kernel refuses to wait for the child.
pub fn wait_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < limit && interrupt::received().is_none() {
        if let Some(status) = child.try_wait().context("wait for a program")? {
            return Ok(Some(status));
        }
        thread::sleep(POLL);
    }
    end(child)?;
    match interrupt::received() {
        Some(_) => bail!("interrupted"),
        None => Ok(None),
    }
}

fn end(child: &mut Child) -> Result<()> {
    let group = Pid::from_raw(child.id().cast_signed());
    let start = Instant::now();
    // A group that is gone by now is what we want.
    let _ = killpg(group, Signal::SIGTERM);
    while start.elapsed() < GRACE {
        if child.try_wait().context("wait for a program")?.is_some() {
            break;
        }
        thread::sleep(POLL);
    }
    // Its children too, so that no one holds our pipes open.
    let _ = killpg(group, Signal::SIGKILL);
    child.wait().context("wait for a killed program")?;
    Ok(())
}

/// Reads a pipe in its own thread, so that neither of two pipes can block the writer.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A broken pipe ends the output; what came before it is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn failure(command: &Command, output: &Output) -> anyhow::Error {
    let Output { status, stdout, stderr } = output;
    match tail(&format!("{stdout}{stderr}")).as_str() {
        "" => anyhow::anyhow!("{} {}", describe(command), ended(*status)),
        end => anyhow::anyhow!("{} {}:\n{end}", describe(command), ended(*status)),
    }
}

/// The last lines of `text`, indented.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(TAIL);
    lines[from..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// How a program ended, in words: `ended with exit code 2`.
pub fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// A command as a person would type it.
pub fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Whether a program of this name is on the PATH.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// One line on stderr about a finished step or a fact.
pub fn say(text: &str) {
    eprintln!("xtask: {text}");
}

/// One line on stderr around a step that takes a while: the text first, then how long it took.
///
/// # Errors
/// Those of `work`.
pub fn step<T>(text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("xtask: {text} ... ");
    let _ = std::io::stderr().flush();
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("{seconds:.1} s"),
        Err(_) => eprintln!("failed after {seconds:.1} s"),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn quiet_returns_stdout_only() {
        assert_eq!(quiet(&mut shell("echo out; echo err >&2")).unwrap(), "out\n");
    }

    #[test]
    fn failure_shows_the_end_of_all_output_and_the_code() {
        let error = quiet(&mut shell("seq 1 100; echo the cause >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("exit code 3"), "{error}");
        assert!(error.ends_with("    the cause"), "{error}");
        assert!(!error.contains("    12\n"), "the beginning is left out: {error}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = format!("{:#}", quiet(&mut Command::new("/no/such/program")).unwrap_err());
        assert!(error.contains("start /no/such/program"), "{error}");
    }

    #[test]
    fn time_limit_ends_the_program_and_its_children() {
        let start = Instant::now();
        let error = quiet_within(&mut shell("sleep 600 & sleep 600"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("had not ended"), "{error}");
        assert!(start.elapsed() < GRACE, "SIGTERM was enough, yet it took {:?}", start.elapsed());
    }

    #[test]
    fn within_the_limit_all_output_is_read() {
        let output = quiet_within(&mut shell("seq 1 100000"), Duration::from_secs(60)).unwrap();
        assert_eq!(output.lines().count(), 100_000);
    }
}
