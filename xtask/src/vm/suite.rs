//! The tests that run in VMs: the kernel programs' and the scenarios, the same programs as on this machine.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

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

/// Which tests.
#[derive(Debug, Clone, Default)]
pub(super) struct Suite {
    /// Those of the kernel programs, all of them.
    pub(super) kernel: bool,
    /// Scenarios by name; all, if none is named.
    pub(super) scenarios: Vec<String>,
    /// End a VM that runs longer.
    pub(super) limit: Duration,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// With the reason, where one is given.
    Ignored(String),
}

/// What came of it in one VM.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// By name, in order.
    pub(super) results: Vec<(String, Outcome)>,
    /// What the test programs said at their end.
    pub(super) said: Totals,
    /// Whether something went wrong beyond the tests: a broken kernel, a time limit.
    pub(super) broken: Option<String>,
}

impl Report {
    pub(super) fn ended_well(&self) -> bool {
        self.broken.is_none() && self.count(|outcome| *outcome == Outcome::Failed) == 0
    }

    /// Takes and prints one result, with more to say about it.
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
        self.results.push((name.to_owned(), outcome));
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
        let ignored_tests = self.results.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Ignored(reason) => Some(format!("{prefix}{name}, {reason}")),
            _ => None,
        });
        Totals {
            passed: self.count(|outcome| *outcome == Outcome::Passed),
            failed: self.count(|outcome| *outcome == Outcome::Failed) + u64::from(self.broken.is_some()),
            ignored: self.count(|outcome| matches!(outcome, Outcome::Ignored(_))),
            filtered: 0,
            ignored_tests: ignored_tests.collect(),
        }
    }

    fn count(&self, fits: impl Fn(&Outcome) -> bool) -> u64 {
        self.results.iter().map(|(_, outcome)| u64::from(fits(outcome))).sum()
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
        if told != said {
            bail!("results told one by one: {told:?} (passed, failed, ignored); in sum: {said:?}");
        }
        if told == (0, 0, 0) {
            bail!("no test ran");
        }
        Ok(())
    }
}

impl Suite {
    /// Runs the tests in a VM and prints each as cargo's tests print theirs, with `prefix` before the name.
    pub(super) fn run(&self, bench: &Bench, vm: &Vm, prefix: &str) -> Report {
        let start = Instant::now();
        let mut report = Report::default();
        let result = self.programs(bench).and_then(|programs| {
            programs.iter().try_for_each(|program| {
                let left = self.limit.saturating_sub(start.elapsed());
                run_program(vm, program, left, prefix, &mut report)
            })
        });
        let result = result.and_then(|()| report.check()).and_then(|()| vm.is_sound());
        report.end(result, prefix, start.elapsed());
        report
    }

    fn programs(&self, bench: &Bench) -> Result<Vec<Request>> {
        let mut programs = Vec::new();
        let one_by_one = |name: &str| -> Result<Request> {
            let path = bench.payload.program(name)?.to_string_lossy().into_owned();
            Ok(Request { words: vec![path, "--test-threads=1".to_owned()], ..bench.shell("")? })
        };
        if self.kernel {
            // Debian's kernels have all that these tests need.
            let mut kernel = one_by_one("kernel")?;
            kernel.words.push("--include-ignored".to_owned());
            programs.push(kernel);
        }
        let mut scenarios = one_by_one("scenarios")?;
        scenarios.environment.push(("PODPATH_READY_WITHIN".to_owned(), READY_WITHIN.to_string()));
        scenarios.environment.push(("PODPATH_SLOWER".to_owned(), SLOWER.to_string()));
        scenarios.environment.push(("PODPATH_SCENARIOS".to_owned(), self.scenarios.join(",")));
        programs.push(scenarios);
        Ok(programs)
    }
}

fn run_program(vm: &Vm, program: &Request, limit: Duration, prefix: &str, report: &mut Report) -> Result<()> {
    let mut lines = Lines::default();
    let mut summaries = 0;
    let code = vm.run(0, program, limit, |event| match event {
        Event::Started => Ok(()),
        Event::Error(bytes) => print(&mut std::io::stderr().lock(), bytes),
        Event::Output(bytes) => lines.add(bytes, |line| {
            if line.starts_with("test result: ") {
                summaries += 1;
                report.said.add(line);
                return Ok(());
            }
            if let Some((name, outcome)) = result(line) {
                report.results.push((name.to_owned(), outcome));
                return say(&line.replacen("test ", &format!("test {prefix}"), 1));
            }
            say(line)
        }),
    })?;
    let name = program.words.first().context("a program has a name")?;
    match (summaries, code) {
        (1, 0 | 101) => Ok(()),
        _ => bail!("{name} ended with exit code {code} and {summaries} summaries"),
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
        let results = results.iter().map(|outcome| ("x".to_owned(), outcome.clone())).collect();
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
        assert!(
            report(&[], "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out").check().is_err()
        );
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
