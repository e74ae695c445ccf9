//! The same bytes sent more than once: which sightings belong to which transmission.

use super::super::touch;
use crate::event::{Hook, Sighting};

/// The sightings of one node, split where one place is passed again: a packet passes a hook of a device once with one
/// TTL, so what passes it again was sent again.
pub(super) fn split<'a>(sightings: &[&'a Sighting]) -> Vec<Vec<&'a Sighting>> {
    if sightings.is_empty() {
        return Vec::new();
    }
    let mut begins = vec![0];
    begins.extend(again(sightings, |s| s));
    let ends = begins[1..].iter().copied().chain([sightings.len()]);
    begins.iter().zip(ends).map(|(begin, end)| sightings[*begin..end].to_vec()).collect()
}

/// Of each transmission the first sighting is kept. `items` have one each.
pub(super) fn keep_firsts<T>(items: &mut Vec<T>, sighting: impl Fn(&T) -> &Sighting) {
    let again = again(items, sighting);
    let mut place = 0;
    items.retain(|_| {
        place += 1;
        place == 1 || again.binary_search(&(place - 1)).is_ok()
    });
}

/// Where transmissions after the first begin.
fn again<T>(items: &[T], sighting: impl Fn(&T) -> &Sighting) -> Vec<usize> {
    let (mut begin, mut found) = (0, Vec::new());
    for (i, item) in items.iter().enumerate() {
        let s = sighting(item);
        if !touch::is_free(s) && items[begin..i].iter().any(|before| same_step(sighting(before), s)) {
            begin = i;
            found.push(i);
        }
    }
    found
}

fn same_step(a: &Sighting, b: &Sighting) -> bool {
    let outer = |s: &Sighting| s.outer.as_ref().map(|o| o.ttl);
    let step = |s: &Sighting| (touch::place(s), s.hook, s.packet.ttl, outer(s));
    matches!(a.hook, Hook::Receive | Hook::Queue | Hook::Xmit) && step(a) == step(b)
}

/// Keeps one transmission: the first, if every node saw all of them; else the last, as whoever sends again does so until
/// one arrives. A sentence, if that had to be chosen.
pub(super) fn keep_one(nodes: &mut [Vec<&Sighting>]) -> Option<String> {
    let bursts: Vec<_> = nodes.iter().map(|sightings| split(sightings)).collect();
    let seen = || bursts.iter().map(Vec::len).filter(|n| *n > 0);
    let (least, most) = (seen().min()?, seen().max()?);
    if most == 1 {
        return None;
    }
    for (sightings, mut bursts) in nodes.iter_mut().zip(bursts) {
        let kept = if least == most { bursts.drain(..).next() } else { bursts.pop() };
        *sightings = kept.unwrap_or_default();
    }
    Some(if least == most {
        format!("it was seen {most} times; the first is shown")
    } else {
        format!("it was seen {most} times, and {least} of them came through: taken for the last, which is shown")
    })
}

/// One transmission, by node; a sentence, if it is not certain that all of it is of one.
pub(super) type Aligned<'a> = (Vec<Vec<&'a Sighting>>, Option<&'static str>);

/// Why transmissions were not aligned.
const ALIKE: &str = "several packets that look the same passed, at some nodes more than at others: which of them became of this is not known";

/// Transmissions of equal content on several nodes belong together in their order, if every node saw all of them or none.
/// If some were lost on the way, nobody knows which: then what each node saw stands alone, and in doubt.
pub(super) fn align<'a>(nodes: Vec<Vec<Vec<&'a Sighting>>>) -> Vec<Aligned<'a>> {
    let count = nodes.len();
    let most = nodes.iter().map(Vec::len).max().unwrap_or(0);
    let certain = nodes.iter().all(|bursts| bursts.is_empty() || bursts.len() == most);
    let mut aligned: Vec<Aligned<'a>> = Vec::new();
    if certain {
        aligned.resize_with(most, || (vec![Vec::new(); count], None));
    }
    for (node, bursts) in nodes.into_iter().enumerate() {
        for (i, burst) in bursts.into_iter().enumerate() {
            if certain {
                aligned[i].0[node] = burst;
            } else {
                let mut alone = vec![Vec::new(); count];
                alone[node] = burst;
                aligned.push((alone, Some(ALIKE)));
            }
        }
    }
    aligned
}
