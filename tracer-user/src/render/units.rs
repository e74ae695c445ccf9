//! Times for people: no more digits than the measurement carries.

/// A step's time in microseconds: one decimal below 10, whole numbers above.
pub(super) fn micros(ns: u64) -> String {
    if ns < 9_950 { format!("{}.{}", (ns + 50) / 1_000, (ns + 50) % 1_000 / 100) } else { whole(ns).to_string() }
}

/// Nanoseconds to whole microseconds, rounded.
pub(super) fn whole(ns: u64) -> u64 {
    ns.saturating_add(500) / 1_000
}

/// The unit in which a total and its parts are told together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    name: &'static str,
    /// ns per unit.
    scale: u64,
    decimals: usize,
}

impl Unit {
    /// Fitting for this total, ns.
    pub(super) fn of(total: u64) -> Unit {
        match total {
            0..100_000 => Unit { name: "us", scale: 1_000, decimals: 1 },
            100_000..1_000_000 => Unit { name: "us", scale: 1_000, decimals: 0 },
            1_000_000..100_000_000 => Unit { name: "ms", scale: 1_000_000, decimals: 2 },
            _ => Unit { name: "ms", scale: 1_000_000, decimals: 1 },
        }
    }

    /// ns per last digit shown.
    fn quantum(self) -> u64 {
        self.scale / 10_u64.pow(u32::try_from(self.decimals).unwrap_or(0))
    }

    /// The number alone.
    pub(super) fn number(self, ns: u64) -> String {
        self.digits(ns.saturating_add(self.quantum() / 2) / self.quantum())
    }

    /// With its unit.
    pub(super) fn with_name(self, ns: u64) -> String {
        format!("{} {}", self.number(ns), self.name)
    }

    fn digits(self, quanta: u64) -> String {
        let per = self.scale / self.quantum();
        if per == 1 {
            quanta.to_string()
        } else {
            format!("{}.{:0width$}", quanta / per, quanta % per, width = self.decimals)
        }
    }

    /// Numbers for parts of `total`, rounded so that what is shown adds up to what is shown for the total.
    pub(super) fn parts(self, total: u64, parts: &[u64]) -> Vec<String> {
        let quantum = self.quantum();
        let mut quanta: Vec<u64> = parts.iter().map(|part| part / quantum).collect();
        let shown = total.saturating_add(quantum / 2) / quantum;
        let missing = quanta.iter().fold(shown, |rest, part| rest.saturating_sub(*part));
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(parts[index] % quantum));
        // At most one digit each: what is missing beyond that is not rounding, and must stay visible.
        for &index in order.iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
            quanta[index] += 1;
        }
        quanta.into_iter().map(|quanta| self.digits(quanta)).collect()
    }
}

/// A time with its unit, on its own.
pub(super) fn time(ns: u64) -> String {
    Unit::of(ns).with_name(ns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Unit, micros, time};

    #[test]
    fn digits_follow_the_size() {
        let shown: Vec<String> = [0, 40, 3_240, 9_949, 9_951, 84_400, 1_234_567].map(micros).into();
        assert_eq!(shown, ["0.0", "0.0", "3.2", "9.9", "10", "84", "1235"]);
        let shown: Vec<String> = [12_340, 214_400, 8_300_000, 12_345_678, 412_345_678].map(time).into();
        assert_eq!(shown, ["12.3 us", "214 us", "8.30 ms", "12.35 ms", "412.3 ms"]);
    }

    proptest! {
        #[test]
        fn parts_add_up(parts in prop::collection::vec(0_u64..50_000_000, 1..6)) {
            let total = parts.iter().sum();
            let unit = Unit::of(total);
            let number = |text: &str| text.replace('.', "").parse::<u64>().expect("digits");
            let sum: u64 = unit.parts(total, &parts).iter().map(|part| number(part)).sum();
            prop_assert_eq!(sum, number(&unit.number(total)));
        }
    }
}
