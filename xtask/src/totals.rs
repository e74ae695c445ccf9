//! What test programs say at their end, added up.

/// Sums over cargo-test summary lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) filtered: u64,
    /// Names of the ignored ones, with the reason where one is given.
    pub(crate) ignored_tests: Vec<String>,
    /// Names of the failed ones.
    pub(crate) failed_tests: Vec<String>,
}

/// What failed tests said, without where in the code: in the output it stands far above what comes after.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// Line by line.
    pub(crate) lines: Vec<String>,
    part: Part,
}

/// Of what a test program prints.
#[derive(Debug, Default)]
enum Part {
    /// A line for each test, and all else.
    #[default]
    Tests,
    /// After the first `failures:`, until the second, which only lists names.
    Failures,
    /// Within the former: until an empty line, or a note.
    Backtrace,
}

impl Failures {
    /// Adds a line of the output of test programs.
    pub(crate) fn add(&mut self, line: &str) {
        match self.part {
            Part::Tests if line == "failures:" => self.part = Part::Failures,
            Part::Failures | Part::Backtrace if line == "failures:" || line.starts_with("test result: ") => {
                self.part = Part::Tests;
            }
            Part::Failures if line == "stack backtrace:" => self.part = Part::Backtrace,
            Part::Backtrace if line.is_empty() || line.starts_with("note: ") => self.part = Part::Failures,
            Part::Failures if !line.is_empty() => self.lines.push(line.to_owned()),
            _ => {}
        }
    }
}

impl Totals {
    /// Adds a line like `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s`.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            let Some(test) = line.strip_prefix("test ") else { return };
            if let Some((name, reason)) = test.split_once(" ... ignored") {
                self.ignored_tests.push(format!("{}{reason}", name.trim_end()));
            } else if let Some(name) = test.strip_suffix(" ... FAILED") {
                self.failed_tests.push(name.trim_end().to_owned());
            }
            return;
        };
        // What stands before the first count is the verdict: `ok. ` or `FAILED. `
        let counts = rest.split_once(". ").map_or(rest, |(_, counts)| counts);
        for part in counts.split(';') {
            let Some((number, word)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered += number,
                _ => {}
            }
        }
    }

    /// Adds another's.
    pub(crate) fn sum(&mut self, other: Totals) {
        let Totals { passed, failed, ignored, filtered, ignored_tests, failed_tests } = other;
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
        self.filtered += filtered;
        self.ignored_tests.extend(ignored_tests);
        self.failed_tests.extend(failed_tests);
    }

    /// Whether no test ran to its end.
    pub(crate) fn nothing_ran(&self) -> bool {
        self.passed + self.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_summed_and_nothing_else() {
        let mut totals = Totals::default();
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test slow::b ... ignored, takes an hour",
            "test with-columns   ... FAILED",
            "  test d ... FAILED is what a test may print",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 10 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "  test result: ok. 99 passed; a test may print this",
            "test result: nonsense; x passed",
        ] {
            totals.add(line);
        }
        let ignored_tests = vec!["slow::b, takes an hour".to_owned()];
        let failed_tests = vec!["with-columns".to_owned()];
        assert_eq!(totals, Totals { passed: 13, failed: 4, ignored: 1, filtered: 2, ignored_tests, failed_tests });
    }

    #[test]
    fn what_failed_tests_said_is_kept_without_where_in_the_code() {
        let mut failures = Failures::default();
        for line in [
            "test a ... FAILED",
            "",
            "failures:",
            "",
            "---- a stdout ----",
            "two lines",
            "of it",
            "stack backtrace:",
            "   0: rust_begin_unwind",
            "note: Some details are omitted",
            "",
            "---- b ----",
            "more",
            "",
            "failures:",
            "    a",
            "    b",
            "",
            "test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "warning: of another",
        ] {
            failures.add(line);
        }
        assert_eq!(failures.lines, ["---- a stdout ----", "two lines", "of it", "---- b ----", "more"]);
    }

    #[test]
    fn no_tests_is_no_success() {
        assert!(Totals { ignored: 5, filtered: 3, ..Totals::default() }.nothing_ran());
        assert!(!Totals { passed: 1, ..Totals::default() }.nothing_ran());
    }
}
