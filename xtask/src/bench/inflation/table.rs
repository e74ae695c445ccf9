//! What was measured, as a table: medians over the rounds, each compared with nothing attached in the same round.

use std::fmt::Write;

use super::{CASES, Measured, Sample, flow::Burst};

/// At most this much longer takes a ping with IPIP in a VM, us: a traced one, and one beside it.
const IN_A_VM: [f64; 2] = [50.0, 15.0];
/// At most this much longer a device takes on a machine, us: of a traced packet, and of one beside it.
const A_CROSSING: [f64; 2] = [0.2, 0.06];

/// The table, and under it the aims beside what was measured, and what is not in it.
pub(super) fn table(measured: &Measured) -> String {
    let Measured { kernel, processors, ipip, rounds, bursts, pings, tcp_s, crossings, .. } = measured;
    let wire = if *ipip { "IPIP between two nodes" } else { "two nodes, no tunnel" };
    let mut text = format!(
        "Linux {kernel}, {processors} processors, {wire}; a ping and its answer cross {crossings:.0} devices\n\
         {rounds} rounds of {bursts} x {pings} pings and {tcp_s} s of TCP for each; medians\n\n\
         {:<26}{:>9}  {:<28}{:>7}{:>10}{:>7}  {:<26}{:>9}\n",
        "", "us/ping", "more, us (least to most)", "times", "Gbit/s", "times", "events written", "said lost"
    );
    for (_, case) in CASES {
        row(&mut text, measured, case);
    }
    aims(&mut text, measured);
    for sample in &measured.samples {
        for words in sample.accounts.iter().filter_map(|account| account.ended_by_itself.as_ref()) {
            let _ = writeln!(
                text,
                "{}, round {}: ended by itself, before all was traced: {words}",
                sample.case, sample.round
            );
        }
    }
    for left in &measured.left_out {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: left out: {}", left.case, left.why);
    }
    let loads: Vec<f64> = measured.samples.iter().map(|sample| sample.load).collect();
    if let (Some(least), Some(median), Some(most)) = (least(&loads), median(&loads), most(&loads)) {
        let _ = writeln!(text, "load of the machine meanwhile: {median:.1} ({least:.1} to {most:.1})");
    }
    let _ = write!(text, "{}", measured.versions.join("; "));
    text
}

fn row(text: &mut String, measured: &Measured, case: &str) {
    let us = over(measured, case, us);
    let (Some(ping), Some(gbit)) = (median(&us), median(&over(measured, case, |sample| sample.tcp.gbit))) else {
        return;
    };
    let _ = write!(text, "{case:<26}{ping:>9.1}  ");
    if case == CASES[0].1 {
        let _ = writeln!(text, "{:<28}{:>7}{gbit:>10.2}", "", "");
        return;
    }
    let added = added(measured, case);
    let (middle, least, most) = (median(&added), least(&added), most(&added));
    let [middle, least, most] = [middle, least, most].map(Option::unwrap_or_default);
    let times =
        |of: fn(&Sample) -> f64| median(&compared(measured, case, of, |own, base| own / base)).unwrap_or_default();
    let _ = write!(text, "{:<28}", format!("{middle:+.1} ({least:+.1} to {most:+.1})"));
    let _ = write!(text, "{:>6.2}x{gbit:>10.2}{:>6.2}x", times(self::us), times(|sample| sample.tcp.gbit));
    let (written, said) = match Events::of(measured, case) {
        Some(events) => (events.told(), events.said_lost.map_or_else(|| "never".to_owned(), |lost| lost.to_string())),
        None => (String::new(), said_lost(measured, case).map(|lost| lost.to_string()).unwrap_or_default()),
    };
    let _ = writeln!(text, "  {written:<26}{said:>9}");
}

/// What a tool wrote of all pings of all rounds.
struct Events {
    written: u64,
    expected: f64,
    per_ping: f64,
    said_lost: Option<u64>,
}

impl Events {
    fn of(measured: &Measured, case: &str) -> Option<Events> {
        let per_ping = measured.per_ping.iter().find(|known| known.case == case)?.events;
        let samples = || measured.samples.iter().filter(|sample| sample.case == case);
        Some(Events {
            written: samples().filter_map(|sample| sample.events).sum(),
            expected: per_ping * samples().map(sent).sum::<u64>() as f64,
            per_ping,
            said_lost: said_lost(measured, case),
        })
    }

    fn told(&self) -> String {
        format!("{:.1}% of {:.1} a ping", 100.0 * self.written as f64 / self.expected, self.per_ping)
    }
}

/// What the case's tool said that it lost, of pings and TCP, in all rounds.
fn said_lost(measured: &Measured, case: &str) -> Option<u64> {
    let accounts = measured.samples.iter().filter(|sample| sample.case == case).flat_map(|sample| &sample.accounts);
    accounts.map(|account| account.said_lost).reduce(|a, b| Some(a? + b?))?
}

fn sent(sample: &Sample) -> u64 {
    sample.pings.iter().chain(&sample.alone).map(|burst| burst.sent).sum()
}

fn aims(text: &mut String, measured: &Measured) {
    let more = |case: usize| median(&added(measured, CASES[case].1));
    let (Some(other), Some(this)) = (more(1), more(2)) else { return };
    let lines = [(this, "a traced ping", 0), (other, "a ping beside a traced flow", 1)].map(|(us, what, aim)| {
        let (in_a_vm, of_a_crossing) = (IN_A_VM[aim], A_CROSSING[aim]);
        let crossing = us / measured.crossings;
        match measured.ipip {
            true => format!("{what}: {us:+.1} us, aim: at most {in_a_vm} us; that is {crossing:+.2} us per device"),
            false => {
                format!("{what}: {crossing:+.3} us per device, aim: at most {of_a_crossing} us; in all {us:+.1} us")
            }
        }
    });
    let _ = writeln!(text, "\n{}\n{}", lines[0], lines[1]);
    if let Some(alone) = median(&compared(measured, CASES[2].1, alone, |own, base| own - base)) {
        let _ = writeln!(
            text,
            "of that its kernel programs alone, while podpath's processes stood still: {alone:+.1} us; the rest is reading, on the \
             processors that the pings need too"
        );
    }
    let _ = writeln!(
        text,
        "(both nodes are this one kernel, which runs both sessions' programs for each packet; a node of its own runs one's)"
    );
    let this: Vec<&Sample> = measured.samples.iter().filter(|sample| sample.case == CASES[2].1).collect();
    let sent: u64 = this.iter().map(|sample| sent(sample)).sum();
    let exchanges = this.iter().filter_map(|sample| sample.accounts.first()?.exchanges.as_ref());
    let (total, delivered) = exchanges.fold((0, 0), |sum, one| (sum.0 + one.total, sum.1 + one.delivered));
    let _ =
        writeln!(text, "podpath's recordings hold {total} exchanges of {sent} pings, {delivered} delivered; aim: all");
}

/// A round's us per ping: the median of its bursts' middle halves.
fn us(sample: &Sample) -> f64 {
    of_bursts(&sample.pings)
}

/// With podpath's kernel programs alone; of nothing attached the same.
fn alone(sample: &Sample) -> f64 {
    of_bursts(if sample.alone.is_empty() { &sample.pings } else { &sample.alone })
}

fn of_bursts(bursts: &[Burst]) -> f64 {
    median(&bursts.iter().map(|burst| burst.mid_ms * 1000.0).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

fn over(measured: &Measured, case: &str, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
    measured.samples.iter().filter(|sample| sample.case == case).map(of).collect()
}

/// Each round's value beside that of nothing attached.
fn compared(measured: &Measured, case: &str, of: fn(&Sample) -> f64, by: fn(f64, f64) -> f64) -> Vec<f64> {
    let own = measured.samples.iter().filter(|sample| sample.case == case);
    let base = |round| measured.samples.iter().find(|sample| sample.case == CASES[0].1 && sample.round == round);
    own.filter_map(|sample| Some(by(of(sample), of(base(sample.round)?)))).collect()
}

/// us that a ping takes longer than with nothing attached, in each round.
fn added(measured: &Measured, case: &str) -> Vec<f64> {
    compared(measured, case, us, |own, base| own - base)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn least(values: &[f64]) -> Option<f64> {
    values.iter().copied().min_by(f64::total_cmp)
}

fn most(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            LeftOut, PerPing,
            flow::Throughput,
            session::{Account, Exchanges},
        },
        *,
    };

    fn sample(case: usize, round: u32, times: [f64; 3], gbit: f64, events: Option<u64>) -> Sample {
        let burst =
            |mid_ms| Burst { sent: 100, received: 100, took_ms: 9.0, avg_ms: 9.0, mid_ms, quarters_ms: [mid_ms; 5] };
        let account = Account {
            events: 0,
            said_lost: (case != 3).then_some(7),
            exchanges: (case == 2).then_some(Exchanges { total: 600, delivered: 599 }),
            end_ms: 1.0,
            ended_by_itself: (case == 3 && round == 2).then(|| "out of memory".to_owned()),
        };
        Sample {
            case: CASES[case].1,
            round,
            pings: times.map(burst).to_vec(),
            alone: if case == 2 { times.map(|ms| burst(ms - 0.01)).to_vec() } else { Vec::new() },
            tcp: Throughput { gbit, retransmits: 0 },
            events,
            accounts: if case == 0 { Vec::new() } else { vec![account] },
            armed_ms: vec![5.0],
            load: 2.5,
        }
    }

    #[test]
    fn rounds_are_compared_with_nothing_attached_in_the_same_round() {
        let rounds = [(1, 0.1), (2, 0.2), (3, 0.1)].into_iter().flat_map(|(round, base)| {
            let at = |more: f64| [base + more, base + more, 9.0];
            [
                sample(0, round, at(0.0), 2.0, None),
                sample(1, round, at(0.01), 2.0, None),
                sample(2, round, at(0.04), 1.0, Some(5998)),
                sample(3, round, at(1.0), 0.5, Some(300)),
            ]
        });
        let measured = Measured {
            kernel: "6.12.1".to_owned(),
            processors: 2,
            ipip: true,
            versions: vec!["pwru: 1.0".to_owned(), "ping: 2".to_owned()],
            rounds: 3,
            bursts: 3,
            pings: 100,
            tcp_s: 2,
            crossings: 16.0,
            per_ping: vec![PerPing { case: CASES[2].1, events: 10.0 }, PerPing { case: CASES[3].1, events: 20.0 }],
            samples: rounds.collect(),
            left_out: vec![LeftOut { case: CASES[5].1, why: "no such program".to_owned() }],
        };
        insta::assert_snapshot!(table(&measured));
    }
}
