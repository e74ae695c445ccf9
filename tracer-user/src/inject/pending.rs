//! Probes under way.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use super::{answer::Answered, port::Port};
use crate::path::Probe;

/// An answer to what the own kernel refused comes by its loopback: at once.
const REFUSAL: Duration = Duration::from_millis(100);

/// When a probe was sent, by both clocks. The kernel stamps packets with the wall clock, which may be stepped in
/// between; the monotonic clock tells whether it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendTime {
    /// Before the system call that sent it.
    monotonic: Instant,
    wall: SystemTime,
    /// When its device's queue got it; None if the kernel has not said (yet).
    queued: Option<SystemTime>,
}

impl SendTime {
    /// Now, by our own reading. The wall clock, from which the round trip is counted if the kernel gives no stamp, is
    /// read last.
    pub(super) fn now() -> Self {
        let monotonic = Instant::now();
        Self { monotonic, wall: SystemTime::now(), queued: None }
    }

    /// From where the round trip counts: the kernel's stamp, unless the wall clock was stepped back before it.
    fn start(&self) -> SystemTime {
        self.queued.filter(|at| *at >= self.wall).unwrap_or(self.wall)
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

/// Round-trip time in ns: by the kernel's stamps, unless the wall clock was stepped meanwhile.
fn round_trip(sent: SendTime, received: ReceiveTime) -> u64 {
    let upper = received.monotonic.saturating_duration_since(sent.monotonic);
    let stamped = received.kernel.and_then(|at| at.duration_since(sent.start()).ok()).filter(|rtt| *rtt <= upper);
    stamped.unwrap_or(upper).as_nanos().try_into().unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct Sent {
    probe: Probe,
    /// Its source port, reserved until its fate is known.
    port: Option<Port>,
    /// Of the kernel's stamp on it; None: it was refused.
    key: Option<u32>,
    at: SendTime,
    /// Until when an answer counts.
    until: Instant,
}

/// The probes whose fate is open, oldest first.
#[derive(Debug)]
pub(super) struct Pending {
    timeout: Duration,
    probes: VecDeque<Sent>,
}

impl Pending {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, probes: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    pub(super) fn sent(&mut self, probe: Probe, port: Option<Port>, key: u32, at: SendTime) {
        let until = at.monotonic + self.timeout;
        self.probes.push_back(Sent { probe, port, key: Some(key), at, until });
    }

    /// A probe that the kernel did not let out; who refused it may say so to its sender.
    pub(super) fn refused(&mut self, probe: Probe, port: Option<Port>, at: SendTime) {
        let until = at.monotonic + self.timeout.min(REFUSAL);
        self.probes.push_back(Sent { probe, port, key: None, at, until });
    }

    /// The ports of the probes under way.
    pub(super) fn ports(&self) -> impl Iterator<Item = &Port> + '_ {
        self.probes.iter().filter_map(|sent| sent.port.as_ref())
    }

    /// A packet's device queue got it. Of several devices on its way the first counts.
    pub(super) fn queued(&mut self, key: u32, at: SystemTime) {
        if let Some(sent) = self.probes.iter_mut().find(|sent| sent.key == Some(key)) {
            sent.at.queued.get_or_insert(at);
        }
    }

    /// When the next probe expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.probes.iter().map(|sent| sent.until).min()
    }

    /// The probe that `answered` decides; None for duplicates, late answers and what was never sent.
    pub(super) fn answer(&mut self, answered: Answered, at: ReceiveTime) -> Option<Probe> {
        let index = self.probes.iter().position(|sent| answered.is_for(&sent.probe))?;
        let Sent { probe, port: _, key: _, at: sent, until: _ } = self.probes.remove(index)?;
        let rtt_ns = Some(round_trip(sent, at)).filter(|rtt| u128::from(*rtt) <= self.timeout.as_nanos());
        // Too late is not at all.
        Some(Probe { rtt_ns, answer: rtt_ns.map(|_| answered.answer), ..probe })
    }

    /// The probes that got no answer in time.
    pub(super) fn expire(&mut self, now: Instant) -> impl Iterator<Item = Probe> + '_ {
        let (expired, open) = self.probes.drain(..).partition(|sent| sent.until <= now);
        self.probes = open;
        let expired: VecDeque<Sent> = expired;
        expired.into_iter().map(|sent| sent.probe)
    }

    /// Gives up on all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Probe> + '_ {
        self.probes.drain(..).map(|sent| sent.probe)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::answer::{Answered, Proof},
        *,
    };
    use crate::path::Answer;

    const MS: Duration = Duration::from_millis(1);

    fn probe(seq: u16) -> Probe {
        Probe { seq, id: 1, ip_id: seq + 100, nonce: u64::from(seq) + 1000, protocol: 1, ..Probe::default() }
    }

    fn reply(seq: u16) -> Answered {
        Answered { key: seq, proof: Proof::Nonce(u64::from(seq) + 1000), answer: Answer::Reply }
    }

    fn error(seq: u16, ip_id: u16) -> Answered {
        let answer = Answer::IcmpError { from: [10, 0, 0, 9].into(), kind: 3, code: 1, mtu: 0 };
        Answered { key: seq, proof: Proof::IpId(ip_id), answer }
    }

    fn after(sent: SendTime, read: Duration, stamped: Duration) -> ReceiveTime {
        ReceiveTime { monotonic: sent.monotonic + read, kernel: Some(sent.wall + stamped) }
    }

    #[test]
    fn a_reply_counts_once_and_by_the_kernels_stamp() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), None, 1, at);
        let got = pending.answer(reply(1), after(at, 9 * MS, 2 * MS));
        assert_eq!(got, Some(Probe { rtt_ns: Some(2_000_000), answer: Some(Answer::Reply), ..probe(1) }));
        assert_eq!(pending.answer(reply(1), after(at, 9 * MS, 3 * MS)), None, "a duplicate");
        assert!(pending.is_empty());
    }

    #[test]
    fn the_round_trip_counts_from_the_first_devices_queue() {
        let at = SendTime::now();
        let rtt = |stamps: &[(u32, SystemTime)]| {
            let mut pending = Pending::new(100 * MS);
            pending.sent(probe(1), None, 0, at);
            pending.sent(probe(2), None, 1, at);
            stamps.iter().for_each(|&(key, stamp)| pending.queued(key, stamp));
            pending.answer(reply(2), after(at, 9 * MS, 8 * MS)).and_then(|probe| probe.rtt_ns)
        };
        assert_eq!(rtt(&[(1, at.wall + MS), (1, at.wall + 3 * MS)]), Some(7_000_000));
        assert_eq!(rtt(&[(0, at.wall + 5 * MS), (7, at.wall + 6 * MS)]), Some(8_000_000), "another probe's");
        assert_eq!(rtt(&[(1, at.wall - MS)]), Some(8_000_000), "the wall clock was stepped back");
    }

    #[test]
    fn a_stepped_wall_clock_is_not_believed() {
        let at = SendTime::now();
        let hour = Duration::from_secs(3600);
        for kernel in [at.wall + hour, at.wall - hour] {
            let mut pending = Pending::new(100 * MS);
            pending.sent(probe(1), None, 1, at);
            let got = pending.answer(reply(1), ReceiveTime { monotonic: at.monotonic + 5 * MS, kernel: Some(kernel) });
            assert_eq!(got.and_then(|p| p.rtt_ns), Some(5_000_000));
        }
    }

    #[test]
    fn wrong_nonce_or_sequence_number_decides_nothing() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), None, 1, at);
        assert_eq!(pending.answer(Answered { proof: Proof::Nonce(7), ..reply(1) }, after(at, MS, MS)), None);
        assert_eq!(pending.answer(reply(2), after(at, MS, MS)), None);
        assert_eq!(pending.answer(error(1, 7), after(at, MS, MS)), None);
        assert!(!pending.is_empty());
    }

    #[test]
    fn each_probe_has_its_own_time_limit_and_late_replies_do_not_count() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), None, 1, at);
        let later = SendTime { monotonic: at.monotonic + 60 * MS, wall: at.wall + 60 * MS, queued: None };
        pending.sent(probe(2), None, 2, later);
        assert_eq!(pending.next_deadline(), Some(at.monotonic + 100 * MS));
        assert_eq!(pending.expire(at.monotonic + 110 * MS).collect::<Vec<_>>(), [probe(1)]);
        assert_eq!(pending.answer(reply(1), after(at, 120 * MS, 120 * MS)), None);
        assert!(pending.answer(reply(2), after(later, 50 * MS, 50 * MS)).is_some());
    }

    #[test]
    fn an_icmp_error_is_an_answer_too() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), None, 1, at);
        let got = pending.answer(error(1, 101), after(at, 2 * MS, MS));
        let answer = Some(error(1, 101).answer);
        assert_eq!(got, Some(Probe { rtt_ns: Some(1_000_000), answer, ..probe(1) }));
    }

    #[test]
    fn what_was_received_after_the_time_limit_is_no_answer() {
        let at = SendTime::now();
        let mut pending = Pending::new(100 * MS);
        pending.sent(probe(1), None, 1, at);
        assert_eq!(pending.answer(reply(1), after(at, 120 * MS, 101 * MS)), Some(probe(1)));
    }
}
