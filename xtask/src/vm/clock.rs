//! Guests' clocks against this machine's: what a trace says of them must hold.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};

use super::{
    client::{Client, PATIENCE, within},
    frame::Request,
};
use crate::scenario::report::ClockAtStart;

/// How often a guest is asked; the quickest answer counts.
const QUESTIONS: u32 = 300;

/// `CLOCK_MONOTONIC`, ns.
fn monotonic() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// In a VM: answers every byte of its input with what `CLOCK_MONOTONIC` shows, eight bytes, little-endian.
///
/// # Errors
/// Input or output break.
pub fn answer() -> Result<()> {
    let mut input = io::stdin().lock();
    // Not buffered by lines: an answer may contain a line's end, and is to arrive in one piece.
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned().context("take the output")?);
    let mut question = [0; 1];
    while input.read(&mut question).context("read a question")? > 0 {
        let now = monotonic()?.to_le_bytes();
        output.write_all(&now).context("answer")?;
    }
    Ok(())
}

/// In a VM: makes the kernel's clocks run wrong by so many millionths, from now on; at most 500.
///
/// # Errors
/// The kernel refuses.
pub fn drift(millionths: i32) -> Result<()> {
    // SAFETY: all zero is a valid `timex`; it is a plain structure of numbers.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_FREQUENCY;
    // In units of 2^-16 ppm: adjtimex(2).
    request.freq = libc::c_long::from(millionths) << 16;
    // SAFETY: the kernel reads and writes that structure, which lives until the call returns.
    let state = unsafe { libc::adjtimex(&raw mut request) };
    ensure!(state >= 0, "adjtimex: {}", io::Error::last_os_error());
    Ok(())
}

/// How far a guest's clock was ahead of ours at a moment of ours, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    at: i64,
    low: i64,
    high: i64,
}

impl Sample {
    /// Asks a guest many times. `request` runs [`answer`] there.
    ///
    /// # Errors
    /// The VM ends.
    pub(super) fn take(channel: &Path, request: Request) -> Result<Sample> {
        let mut client = Client::start(channel, request)?;
        let mut best: Option<Sample> = None;
        for _ in 0..QUESTIONS {
            let before = monotonic()?;
            let answer = client.ask(b"?")?;
            let after = monotonic()?;
            let answer: [u8; 8] = answer.as_slice().try_into().context("a clock answers with eight bytes")?;
            let guest = i64::from_le_bytes(answer);
            // The guest read its clock after we asked and before we had the answer.
            let sample = Sample { at: before + (after - before) / 2, low: guest - after, high: guest - before };
            if best.is_none_or(|best| sample.high - sample.low < best.high - best.low) {
                best = Some(sample);
            }
        }
        client.end_input()?;
        client.finish(|_| Ok(()), within(PATIENCE))?;
        best.context("no sample")
    }
}

/// A guest's clock before and after a trace; in between it ran evenly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course(pub(super) [Sample; 2]);

impl Course {
    /// Bounds of how far it was ahead at a moment of ours, ns.
    fn ahead(&self, at: i64) -> (i64, i64) {
        let [first, last] = self.0;
        let between = |a: i64, b: i64| {
            let part = i128::from(b - a) * i128::from(at - first.at) / i128::from((last.at - first.at).max(1));
            a + part as i64
        };
        (between(first.low, last.low), between(first.high, last.high))
    }

    /// Our time when it showed `shown`.
    fn when(&self, shown: i64) -> i64 {
        let mut at = self.0[0].at;
        // Clocks differ by parts in a thousand at most: each round makes the error a thousandth.
        for _ in 0..4 {
            let (low, high) = self.ahead(at);
            at = shown - (low + (high - low) / 2);
        }
        at
    }

    /// By how many millionths it runs fast.
    pub(super) fn rate(&self) -> i64 {
        let [first, last] = self.0;
        let gained = (last.low + last.high) / 2 - (first.low + first.high) / 2;
        gained * 1_000_000 / (last.at - first.at).max(1)
    }
}

/// What a trace says of two clocks, and what was so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// The other node's clock minus the source's, ns, and the bound of its error.
    claimed: (i64, i64),
    /// The same by our own clock.
    measured: (i64, i64),
}

impl Claim {
    /// `clocks` are those of one exchange; courses are by the nodes' names. None: the exchange says nothing of one of them.
    pub(super) fn new(clocks: &[ClockAtStart], source: (&str, &Course), other: (&str, &Course)) -> Option<Claim> {
        let of = |name: &str| clocks.iter().find(|clock| clock.node == name);
        let (here, there) = (of(source.0)?, of(other.0)?);
        let at = source.1.when(here.monotonic_ns);
        let (ours, theirs) = (source.1.ahead(at), other.1.ahead(at));
        let (low, high) = (theirs.0 - ours.1, theirs.1 - ours.0);
        let error = i64::try_from(here.error_ns.saturating_add(there.error_ns)).ok()?;
        Some(Claim {
            claimed: (there.monotonic_ns - here.monotonic_ns, error),
            measured: (low + (high - low) / 2, (high - low) / 2 + 1),
        })
    }

    /// Whether the truth can be within the claimed bounds.
    pub(super) fn holds(&self) -> bool {
        (self.claimed.0 - self.measured.0).abs() <= self.claimed.1 + self.measured.1
    }

    /// Whether all that the truth can be is within the claimed bounds.
    pub(super) fn is_proven(&self) -> bool {
        (self.claimed.0 - self.measured.0).abs() + self.measured.1 <= self.claimed.1
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = |ns: i64| ns as f64 / 1e3;
        let ((claimed, error), (measured, uncertainty)) = (self.claimed, self.measured);
        write!(
            f,
            "claimed {:.1} us +-{:.1}; by the host's clock that {:+.1} +-{:.1}",
            us(claimed),
            us(error),
            us(measured - claimed),
            us(uncertainty)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn course(ahead: i64, gained: i64) -> Course {
        let sample = |at: i64, ahead: i64| Sample { at, low: ahead - 100_000, high: ahead + 100_000 };
        Course([sample(0, ahead), sample(1000 * MS, ahead + gained)])
    }

    fn clock(node: &str, monotonic_ns: i64, error_ns: u64) -> ClockAtStart {
        ClockAtStart { node: node.to_owned(), monotonic_ns, error_ns }
    }

    #[test]
    fn a_drifting_clock_is_followed() {
        let course = course(5000 * MS, MS);
        assert_eq!(course.rate(), 1000);
        let (low, high) = course.ahead(500 * MS);
        assert_eq!((low + high) / 2, 5000 * MS + MS / 2);
        let at = course.when(5500 * MS + MS / 2);
        assert!((at - 500 * MS).abs() < 10, "{at}");
    }

    #[test]
    fn bounds_hold_only_if_the_truth_can_be_in_them() {
        let (a, b) = (course(0, 0), course(-7000 * MS, MS));
        // At 500 ms `b` is behind by 6999.5 ms.
        let claim = |offset: i64, error: u64| {
            let clocks = [clock("a", 500 * MS, 0), clock("b", 500 * MS + offset, error)];
            Claim::new(&clocks, ("a", &a), ("b", &b)).unwrap()
        };
        let truth = -7000 * MS + MS / 2;
        assert!(claim(truth, 300_000).is_proven());
        let near = claim(truth + 400_000, 300_000);
        assert!(near.holds() && !near.is_proven());
        for wrong in
            [claim(truth + 600_000, 300_000), claim(truth - 600_000, 300_000), claim(truth + 90_000 * MS, 300_000)]
        {
            assert!(!wrong.holds(), "{wrong}");
        }
        assert!(Claim::new(&[clock("a", 0, 0)], ("a", &a), ("b", &b)).is_none());
    }
}
