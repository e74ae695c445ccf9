//! How far apart the nodes' clocks are, from the wire crossings themselves.
//!
//! A packet cannot arrive before it left: each crossing from `a` to `b` bounds `clock(b) - clock(a)` from above. A
//! crossing there and one back bound it from both sides; the middle is the estimate, half the two-way time on the wire
//! its error, as in NTP (RFC 5905, 8). Bounds add up along chains of nodes.

/// What is known about a clock, relative to the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    /// That clock minus the reference, ns.
    pub(super) ns: i128,
    /// Bound of its error, ns.
    pub(super) error_ns: u64,
}

/// Upper bounds of the differences between clocks.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// `[a][b]`: the greatest that `clock(b) - clock(a)` can be, ns.
    most: Vec<Vec<Option<i128>>>,
}

impl Bounds {
    pub(super) fn new(nodes: usize) -> Self {
        Self { most: vec![vec![None; nodes]; nodes] }
    }

    /// A packet left `a` at `left` by `a`'s clock and came to `b` at `came` by `b`'s.
    pub(super) fn crossing(&mut self, a: usize, left: u64, b: usize, came: u64) {
        self.at_most(a, b, i128::from(came) - i128::from(left));
    }

    fn at_most(&mut self, a: usize, b: usize, ns: i128) {
        let bound = &mut self.most[a][b];
        *bound = Some(bound.map_or(ns, |old| old.min(ns)));
    }

    /// Both together.
    pub(super) fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (a, row) in other.most.iter().enumerate() {
            for (b, bound) in row.iter().enumerate() {
                if let Some(ns) = bound {
                    both.at_most(a, b, *ns);
                }
            }
        }
        both
    }

    /// The clocks relative to `reference`'s; None: not bounded from both sides, or the bounds exclude each other
    /// (clocks that drift apart over a long trace do that).
    pub(super) fn solve(mut self, reference: usize) -> Vec<Option<Offset>> {
        let nodes = self.most.len();
        for via in 0..nodes {
            for a in 0..nodes {
                for b in 0..nodes {
                    if let (Some(x), Some(y)) = (self.most[a][via], self.most[via][b]) {
                        self.at_most(a, b, x + y);
                    }
                }
            }
        }
        let offset = |node: usize| {
            if node == reference {
                return Some(Offset { ns: 0, error_ns: 0 });
            }
            let (high, low) = (self.most[reference][node]?, -self.most[node][reference]?);
            let width = u64::try_from(high - low).ok()?;
            Some(Offset { ns: low + i128::from(width / 2), error_ns: width.div_ceil(2) })
        };
        (0..nodes).map(offset).collect()
    }
}
