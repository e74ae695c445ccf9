//! Whether the recording went on for long enough to say that a packet was lost, or not answered.

use super::{clock::Offset, world::World};

/// What is on its way for longer than this, and not seen again, counts as lost, ns. A passive trace goes on for a second after
/// the last request that it was asked for: a little less, for what is not known of the clocks.
const UNDER_WAY_NS: u64 = 900_000_000;

/// How long after `at` of `node`'s clock the first node stopped recording, ns, if that was too soon. `offsets`: the clocks
/// relative to `node`'s.
///
/// All nodes are told to stop at once: one whose clock cannot be related is taken to have stopped with the others.
pub(super) fn too_soon(world: &World<'_>, node: usize, at: u64, offsets: &[Option<Offset>]) -> Option<u64> {
    let evidence = world.evidence;
    // The injector waits for the fate of its probes before the nodes are stopped.
    if !evidence.probes.is_empty() && !evidence.interrupted {
        return None;
    }
    let stopped = |n: usize| {
        let offset = if n == node { Offset { ns: 0, error_ns: 0 } } else { offsets[n]? };
        Some(i128::from(world.node(n).stopped_ns?) - offset.ns - i128::from(offset.error_ns))
    };
    let first = (0..evidence.nodes.len()).filter_map(stopped).min()?;
    let after = u64::try_from(first - i128::from(at)).unwrap_or(0);
    (after < UNDER_WAY_NS).then_some(after)
}
