//! The tests that run in VMs: the kernel programs', the labs' and the scenarios, the same programs as on this machine.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    bench::{Bench, Vm},
    client::{Event, print},
    frame::Request,
};
use crate::totals::Totals;

/// How much slower than a real machine a VM may be, where a test asserts an upper bound of a time.
pub(super) const SLOWER: u32 = 20;

/// What sessions in VMs may take to get ready, seconds: each loads its programs past an emulated verifier.
pub(super) const READY_WITHIN: u32 = 180;

/// The test programs that run in VMs as a whole: on Debian's kernels, with all that is ignored elsewhere.
pub(super) const WHOLE: &[&str] = &["kernel", "profiles"];
/// The program with a test per scenario.
pub(super) const SCENARIOS: &str = "scenarios";

/// In place of a program: what runs in two VMs at once.
pub(super) const PAIR: &str = "pair";

/// Which tests.
#[derive(Debug, Clone, Default)]
pub(super) struct Suite {
    /// Some of [`WHOLE`].
    pub(super) programs: Vec<String>,
    /// Scenarios by name.
    pub(super) scenarios: Vec<String>,
    /// Tests with one of these in their name are left out of the [`WHOLE`] programs.
    pub(super) skip: Vec<String>,
    /// End a VM that runs longer.
    pub(super) limit: Duration,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// With the reason, where one is given.
    Ignored(String),
}

/// A test that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tested {
    /// The test program.
    pub(super) program: String,
    /// The test.
    pub(super) name: String,
    pub(super) outcome: Outcome,
    /// By the matrix: of which commit.
    #[serde(default)]
    pub(super) commit: String,
}

impl Tested {
    pub(super) fn new(program: &str, name: &str, outcome: Outcome) -> Tested {
        Tested { program: program.to_owned(), name: name.to_owned(), outcome, commit: String::new() }
    }
}

/// What came of it in one VM.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// In order.
    pub(super) results: Vec<Tested>,
    /// What the test programs said at their end.
    pub(super) said: Totals,
    /// Whether something went wrong beyond the tests: a broken kernel, a time limit.
    pub(super) broken: Option<String>,
}

impl Report {
    pub(super) fn ended_well(&self) -> bool {
        self.broken.is_none() && self.count(|outcome| *outcome == Outcome::Failed) == 0
    }

    /// Takes and prints one result of a pair, with more to say about it.
    pub(super) fn tell(&mut self, prefix: &str, name: &str, outcome: Outcome, more: &str) {
        let word = match &outcome {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Failed => "FAILED".to_owned(),
            Outcome::Ignored(reason) => format!("ignored, {reason}"),
        };
        println!("test {prefix}{name} ... {word}");
        if !more.is_empty() {
            println!("{more}");
        }
        self.results.push(Tested::new(PAIR, name, outcome));
    }

    /// Takes and prints how it all ended.
    pub(super) fn end(&mut self, result: Result<()>, prefix: &str, took: Duration) {
        if let Err(error) = result {
            println!("test {prefix}VM ... FAILED\n{error:#}");
            self.broken = Some(format!("{error:#}"));
        }
        println!("{}\n", self.summary(took));
    }

    /// For the sum over everything that was tested.
    pub(super) fn totals(&self, prefix: &str) -> Totals {
        let ignored_tests = self.results.iter().filter_map(|tested| match &tested.outcome {
            Outcome::Ignored(reason) => Some(format!("{prefix}{}, {reason}", tested.name)),
            _ => None,
        });
        let failed = self.results.iter().filter(|tested| tested.outcome == Outcome::Failed);
        let failed_tests = failed.map(|tested| tested.name.as_str()).chain(self.broken.as_ref().map(|_| "VM"));
        Totals {
            passed: self.count(|outcome| *outcome == Outcome::Passed),
            failed: self.count(|outcome| *outcome == Outcome::Failed) + u64::from(self.broken.is_some()),
            ignored: self.count(|outcome| matches!(outcome, Outcome::Ignored(_))),
            filtered: 0,
            ignored_tests: ignored_tests.collect(),
            failed_tests: failed_tests.map(|name| format!("{prefix}{name}")).collect(),
        }
    }

    fn count(&self, fits: impl Fn(&Outcome) -> bool) -> u64 {
        self.results.iter().map(|tested| u64::from(fits(&tested.outcome))).sum()
    }

    /// What cargo's tests say at their end.
    fn summary(&self, took: Duration) -> String {
        let Totals { passed, failed, ignored, .. } = self.totals("");
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        let seconds = took.as_secs_f64();
        format!(
            "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in {seconds:.2}s"
        )
    }

    /// What the tests said one by one must be what they said in sum.
    fn check(&self) -> Result<()> {
        let counts = |totals: &Totals| (totals.passed, totals.failed, totals.ignored);
        let (told, said) = (counts(&self.totals("")), counts(&self.said));
        ensure!(told == said, "results told one by one: {told:?} (passed, failed, ignored); in sum: {said:?}");
        Ok(())
    }
}

impl Suite {
    /// Whether there is nothing to run.
    pub(super) fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.scenarios.is_empty()
    }

    /// Runs the tests in a VM and prints each as cargo's tests print theirs, with `prefix` before the name.
    pub(super) fn run(&self, bench: &Bench, vm: &Vm, prefix: &str) -> Report {
        let start = Instant::now();
        let mut report = Report::default();
        let result = self.requests(bench).and_then(|programs| {
            programs.iter().try_for_each(|(name, request)| {
                let left = self.limit.saturating_sub(start.elapsed());
                run_program(vm, name, request, left, prefix, &mut report)
            })
        });
        let result = result.and_then(|()| report.check()).and_then(|()| {
            // Only what is left out by name may leave nothing.
            ensure!(!report.results.is_empty() || !self.skip.is_empty(), "no test ran");
            vm.is_sound()
        });
        report.end(result, prefix, start.elapsed());
        report
    }

    fn requests(&self, bench: &Bench) -> Result<Vec<(&str, Request)>> {
        let request = |name: &str, more: &[&str]| -> Result<Request> {
            let path = bench.payload.program(name)?.to_string_lossy().into_owned();
            let mut words = vec![path, "--test-threads=1".to_owned()];
            words.extend(more.iter().map(|word| (*word).to_owned()));
            Ok(Request { words, ..bench.shell("")? })
        };
        let mut requests = Vec::new();
        for name in &self.programs {
            // Debian's kernels have all that these tests need.
            let mut words = vec!["--include-ignored"];
            words.extend(self.skip.iter().flat_map(|skip| ["--skip", skip]));
            requests.push((name.as_str(), request(name, &words)?));
        }
        if !self.scenarios.is_empty() {
            let mut scenarios = request(SCENARIOS, &[])?;
            scenarios.environment.push(("PODPATH_READY_WITHIN".to_owned(), READY_WITHIN.to_string()));
            scenarios.environment.push(("PODPATH_SLOWER".to_owned(), SLOWER.to_string()));
            scenarios.environment.push(("PODPATH_SCENARIOS".to_owned(), self.scenarios.join(",")));
            requests.push((SCENARIOS, scenarios));
        }
        Ok(requests)
    }
}

fn run_program(
    vm: &Vm,
    name: &str,
    request: &Request,
    limit: Duration,
    prefix: &str,
    report: &mut Report,
) -> Result<()> {
    let mut lines = Lines::default();
    let mut said = Vec::new();
    let mut progress = Progress::default();
    let code = vm.run(0, request, limit, |event| match event {
        Event::Started => Ok(()),
        Event::Error(bytes) => print(&mut std::io::stderr().lock(), bytes),
        Event::Output(bytes) => lines.add(bytes, |line| {
            if line.starts_with("test result: ") {
                said.push(line.to_owned());
                report.said.add(line);
                return Ok(());
            }
            progress.all = progress.all.or_else(|| line.strip_prefix("running ")?.split(' ').next()?.parse().ok());
            let Some((test, outcome)) = result(line) else { return say(line) };
            report.results.push(Tested::new(name, test, outcome));
            say(&format!("{}{}", line.replacen("test ", &format!("test {prefix}"), 1), progress.step()))
        }),
    })?;
    check_end(&said, code).with_context(|| format!("test program {name}"))
}

/// A test program ends with one summary, with exit code 0 if all is well, with 101 if a test failed; not with anything else,
/// such as a panic behind the summary, or a lab that stays.
fn check_end(summaries: &[String], code: i32) -> Result<()> {
    let [summary] = summaries else { bail!("ended with exit code {code} and {} summaries", summaries.len()) };
    let mut said = Totals::default();
    said.add(summary);
    let expected = if said.failed == 0 { 0 } else { 101 };
    ensure!(code == expected, "ended with exit code {code} after saying `{summary}`");
    Ok(())
}

/// How far a test program is.
#[derive(Default)]
struct Progress {
    all: Option<u32>,
    done: u32,
    last: Option<Instant>,
}

impl Progress {
    /// Behind a test's line: `  (3 of 84, 31 s)`. The first says no time, for that of the VM's start would be in it.
    fn step(&mut self) -> String {
        self.done += 1;
        let took = self.last.replace(Instant::now()).map(|last| format!(", {} s", last.elapsed().as_secs()));
        let all = self.all.map_or_else(|| "?".to_owned(), |all| all.to_string());
        format!("  ({} of {all}{})", self.done, took.unwrap_or_default())
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write a test's result")
}

/// The result in a line such as `test a::b ... ignored, because`.
fn result(line: &str) -> Option<(&str, Outcome)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let outcome = match outcome {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        other => {
            let reason = other.strip_prefix("ignored")?;
            Outcome::Ignored(reason.trim_start_matches(", ").to_owned())
        }
    };
    Some((name.trim_end(), outcome))
}

/// Bytes to lines.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], mut line: impl FnMut(&str) -> Result<()>) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let whole: Vec<u8> = self.rest.drain(..=end).collect();
            line(String::from_utf8_lossy(&whole).trim_end_matches(['\n', '\r']))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_lines() {
        assert_eq!(result("test a::b ... ok"), Some(("a::b", Outcome::Passed)));
        assert_eq!(result("test a-b   ... FAILED"), Some(("a-b", Outcome::Failed)));
        let ignored = Outcome::Ignored("this kernel cannot make tunl0".to_owned());
        assert_eq!(result("test c ... ignored, this kernel cannot make tunl0"), Some(("c", ignored)));
        assert_eq!(result("test d ... ignored"), Some(("d", Outcome::Ignored(String::new()))));
        for other in ["running 3 tests", "test result: ok. 3 passed", "a test ... ok", "test e ... perhaps"] {
            assert_eq!(result(other), None, "{other}");
        }
    }

    #[test]
    fn lines_come_in_pieces() {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        for piece in ["te", "st a ... ok\r\ntest", " b ... ok\n", "rest"] {
            let take = |line: &str| {
                got.push(line.to_owned());
                Ok(())
            };
            lines.add(piece.as_bytes(), take).unwrap();
        }
        assert_eq!(got, ["test a ... ok", "test b ... ok"]);
    }

    fn report(results: &[Outcome], said: &str) -> Report {
        let tested = |outcome: &Outcome| Tested::new("kernel", "x", outcome.clone());
        let results = results.iter().map(tested).collect();
        let mut report = Report { results, ..Report::default() };
        report.said.add(said);
        report
    }

    #[test]
    fn a_test_that_ended_unheard_is_noticed() {
        let said = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let three = [Outcome::Passed, Outcome::Passed, Outcome::Ignored(String::new())];
        report(&three, said).check().unwrap();
        assert!(report(&three[1..], said).check().is_err());
    }

    #[test]
    fn an_exit_code_must_fit_what_was_said() {
        let ok = ["test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out".to_owned()];
        let failed = ["test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out".to_owned()];
        check_end(&ok, 0).unwrap();
        check_end(&failed, 101).unwrap();
        for (said, code) in [(&ok[..], 101), (&ok, 1), (&failed, 0), (&failed, 134), (&[], 0), (&[], 101)] {
            assert!(check_end(said, code).is_err(), "{said:?} {code}");
        }
    }

    #[test]
    fn progress_counts() {
        let mut progress = Progress { all: Some(84), ..Progress::default() };
        assert_eq!(progress.step(), "  (1 of 84)");
        assert_eq!(progress.step(), "  (2 of 84, 0 s)");
    }

    #[test]
    fn a_broken_vm_counts_as_a_failure() {
        let mut report = report(&[Outcome::Passed], "");
        assert!(report.ended_well());
        assert!(report.summary(Duration::from_secs(2)).starts_with("test result: ok. 1 passed; 0 failed; 0 ignored;"));
        report.broken = Some("panic".to_owned());
        assert!(!report.ended_well());
        assert!(report.summary(Duration::from_secs(2)).starts_with("test result: FAILED. 1 passed; 1 failed;"));
    }
}
