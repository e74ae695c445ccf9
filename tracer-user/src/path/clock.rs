//! How far apart the nodes' clocks are, from the wire crossings themselves.
//!
//! A packet cannot arrive before it left: each crossing from `a` to `b` bounds `clock(b) - clock(a)` from above. A
//! crossing there and one back bound it from both sides; the middle is the estimate, half the two-way time on the wire
//! its error, as in NTP (RFC 5905, 8). Bounds add up along chains of nodes.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

/// What is known about a clock, relative to the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    /// That clock minus the reference, ns.
    pub(super) ns: i128,
    /// Bound of its error, ns.
    pub(super) error_ns: u64,
}

/// Upper bounds of the differences between clocks: of one exchange those of the few nodes it passed.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    /// `(a, b)`: the greatest that `clock(b) - clock(a)` can be, ns.
    most: BTreeMap<(usize, usize), i128>,
}

impl Bounds {
    /// A packet left `a` at `left` by `a`'s clock and came to `b` at `came` by `b`'s.
    pub(super) fn crossing(&mut self, a: usize, left: u64, b: usize, came: u64) {
        self.at_most(a, b, i128::from(came) - i128::from(left));
    }

    fn at_most(&mut self, a: usize, b: usize, ns: i128) {
        let bound = self.most.entry((a, b)).or_insert(ns);
        *bound = ns.min(*bound);
    }

    /// Both together.
    pub(super) fn and(mut self, other: &Self) -> Self {
        other.most.iter().for_each(|(&(a, b), ns)| self.at_most(a, b, *ns));
        self
    }

    pub(super) fn solve(&self) -> Solved {
        let nodes: Vec<usize> =
            self.most.keys().flat_map(|&(a, b)| [a, b]).collect::<BTreeSet<_>>().into_iter().collect();
        let place = |node: usize| nodes.binary_search(&node).expect("it is one of them");
        let mut most = vec![vec![None; nodes.len()]; nodes.len()];
        self.most.iter().for_each(|(&(a, b), ns)| most[place(a)][place(b)] = Some(*ns));
        for via in 0..nodes.len() {
            let onwards = most[via].clone();
            for row in &mut most {
                let Some(there) = row[via] else { continue };
                for (bound, onwards) in row.iter_mut().zip(&onwards) {
                    let Some(ns) = onwards.map(|ns: i128| there.saturating_add(ns)) else { continue };
                    *bound = Some(bound.map_or(ns, |old| old.min(ns)));
                }
            }
        }
        Solved { nodes, most }
    }
}

/// Bounds, with what follows from them along all chains of nodes.
#[derive(Clone, Debug)]
pub(super) struct Solved {
    /// In order.
    nodes: Vec<usize>,
    /// By place in `nodes`.
    most: Vec<Vec<Option<i128>>>,
}

impl Solved {
    /// A node's clock relative to `reference`'s; None: not bounded from both sides, or the bounds exclude each other
    /// (clocks that drift apart over a long trace do that).
    pub(super) fn offset(&self, reference: usize, node: usize) -> Option<Offset> {
        if node == reference {
            return Some(Offset { ns: 0, error_ns: 0 });
        }
        let place = |node: usize| self.nodes.binary_search(&node).ok();
        let (reference, node) = (place(reference)?, place(node)?);
        let (high, low) = (self.most[reference][node]?, self.most[node][reference]?.saturating_neg());
        let width = u64::try_from(high.saturating_sub(low)).ok()?;
        Some(Offset { ns: low.saturating_add(i128::from(width / 2)), error_ns: width.div_ceil(2) })
    }
}

/// What all exchanges together say of the clocks; solved when it is first asked.
#[derive(Debug, Default)]
pub(super) struct Together {
    bounds: Bounds,
    solved: OnceCell<Solved>,
}

impl Together {
    pub(super) fn of<'b>(each: impl Iterator<Item = &'b Bounds>) -> Self {
        Self { bounds: each.fold(Bounds::default(), Bounds::and), solved: OnceCell::new() }
    }

    pub(super) fn solved(&self) -> &Solved {
        self.solved.get_or_init(|| self.bounds.solve())
    }
}
