//! Probes under way.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use super::packet::Answer;
use crate::path::Probe;

/// When a probe was sent, by both clocks. The kernel stamps replies with the wall clock, which may be stepped in
/// between; the monotonic clock tells whether it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendTime {
    monotonic: Instant,
    wall: SystemTime,
}

impl SendTime {
    /// Now. The wall clock, from which the round trip is counted, is read last.
    pub(super) fn now() -> Self {
        let monotonic = Instant::now();
        Self { monotonic, wall: SystemTime::now() }
    }
}

/// When something was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveTime {
    /// When our thread read it.
    pub(super) monotonic: Instant,
    /// When the kernel got it from the device; None if it did not say.
    pub(super) kernel: Option<SystemTime>,
}

/// Round-trip time in ns: by the kernel's stamp, unless the wall clock was stepped meanwhile.
fn round_trip(sent: SendTime, received: ReceiveTime) -> u64 {
    let upper = received.monotonic.saturating_duration_since(sent.monotonic);
    let stamped = received.kernel.and_then(|at| at.duration_since(sent.wall).ok()).filter(|rtt| *rtt <= upper);
    stamped.unwrap_or(upper).as_nanos().try_into().unwrap_or(u64::MAX)
}

/// The probes whose fate is open, oldest first.
#[derive(Debug)]
pub(super) struct Pending {
    timeout: Duration,
    probes: VecDeque<(Probe, SendTime)>,
}

impl Pending {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, probes: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    pub(super) fn sent(&mut self, probe: Probe, at: SendTime) {
        self.probes.push_back((probe, at));
    }

    /// When the oldest probe expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.probes.front().map(|(_, at)| at.monotonic + self.timeout)
    }

    /// The probe that `answer` decides; None for duplicates, late replies and what was never sent.
    pub(super) fn answer(&mut self, answer: Answer, at: ReceiveTime) -> Option<Probe> {
        let index = self.probes.iter().position(|(probe, _)| match answer {
            Answer::Reply { seq, nonce } => probe.seq == seq && probe.nonce == nonce,
            Answer::Refused { seq, ip_id } => probe.seq == seq && probe.ip_id == ip_id,
        })?;
        let (probe, sent) = self.probes.remove(index)?;
        let rtt_ns = match answer {
            Answer::Reply { .. } => {
                Some(round_trip(sent, at)).filter(|rtt| u128::from(*rtt) <= self.timeout.as_nanos())
            }
            Answer::Refused { .. } => None,
        };
        Some(Probe { rtt_ns, ..probe })
    }

    /// The probes that got no reply in time.
    pub(super) fn expire(&mut self, now: Instant) -> impl Iterator<Item = Probe> + '_ {
        let expired = self.probes.iter().take_while(|(_, at)| at.monotonic + self.timeout <= now).count();
        self.probes.drain(..expired).map(|(probe, _)| probe)
    }

    /// Gives up on all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Probe> + '_ {
        self.probes.drain(..).map(|(probe, _)| probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn probe(seq: u16) -> Probe {
        Probe { seq, id: 1, ip_id: seq + 100, nonce: u64::from(seq) + 1000, rtt_ns: None }
    }

    fn reply(seq: u16) -> Answer {
        Answer::Reply { seq, nonce: u64::from(seq) + 1000 }
    }

    fn after(sent: SendTime, read: Duration, stamped: Duration) -> ReceiveTime {
        ReceiveTime { monotonic: sent.monotonic + read, kernel: Some(sent.wall + stamped) }
    }

    #[test]
    fn a_reply_counts_once_and_by_the_kernels_stamp() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), at);
        let got = pending.answer(reply(1), after(at, 9 * MS, 2 * MS));
        assert_eq!(got, Some(Probe { rtt_ns: Some(2_000_000), ..probe(1) }));
        assert_eq!(pending.answer(reply(1), after(at, 9 * MS, 3 * MS)), None, "a duplicate");
        assert!(pending.is_empty());
    }

    #[test]
    fn a_stepped_wall_clock_is_not_believed() {
        let at = SendTime::now();
        let hour = Duration::from_secs(3600);
        for kernel in [at.wall + hour, at.wall - hour] {
            let mut pending = Pending::new(100 * MS);
            pending.sent(probe(1), at);
            let got = pending.answer(reply(1), ReceiveTime { monotonic: at.monotonic + 5 * MS, kernel: Some(kernel) });
            assert_eq!(got.and_then(|p| p.rtt_ns), Some(5_000_000));
        }
    }

    #[test]
    fn wrong_nonce_or_sequence_number_decides_nothing() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), at);
        assert_eq!(pending.answer(Answer::Reply { seq: 1, nonce: 7 }, after(at, MS, MS)), None);
        assert_eq!(pending.answer(reply(2), after(at, MS, MS)), None);
        assert_eq!(pending.answer(Answer::Refused { seq: 1, ip_id: 7 }, after(at, MS, MS)), None);
        assert!(!pending.is_empty());
    }

    #[test]
    fn each_probe_has_its_own_time_limit_and_late_replies_do_not_count() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), at);
        let later = SendTime { monotonic: at.monotonic + 60 * MS, wall: at.wall + 60 * MS };
        pending.sent(probe(2), later);
        assert_eq!(pending.next_deadline(), Some(at.monotonic + 100 * MS));
        assert_eq!(pending.expire(at.monotonic + 110 * MS).collect::<Vec<_>>(), [probe(1)]);
        assert_eq!(pending.answer(reply(1), after(at, 120 * MS, 120 * MS)), None);
        assert!(pending.answer(reply(2), after(later, 50 * MS, 50 * MS)).is_some());
    }

    #[test]
    fn an_icmp_error_ends_the_probe_as_unanswered() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), at);
        let refused = Answer::Refused { seq: 1, ip_id: 101 };
        assert_eq!(pending.answer(refused, after(at, MS, MS)), Some(probe(1)));
    }
}
