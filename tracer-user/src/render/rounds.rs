//! What comes again and again in a list.

/// A stretch of a list that is the same items over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounds {
    /// Where it begins.
    pub(super) start: usize,
    /// Items of one round.
    pub(super) len: usize,
    /// Whole rounds.
    pub(super) count: usize,
}

/// Fewer are shown as they are.
const FEWEST: usize = 3;

/// The longest such stretch that begins at an item which may begin one, of the shortest rounds that make it.
pub(super) fn rounds<T: PartialEq>(items: &[T], may_begin: impl Fn(usize) -> bool) -> Option<Rounds> {
    let mut longest: Option<Rounds> = None;
    for start in (0..items.len()).filter(|start| may_begin(*start)) {
        let rest = &items[start..];
        for len in 1..=rest.len() / FEWEST {
            let count = rest.chunks_exact(len).take_while(|round| *round == &rest[..len]).count();
            if count >= FEWEST && longest.is_none_or(|longest| count * len > longest.count * longest.len) {
                longest = Some(Rounds { start, len, count });
            }
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_as_long_as_it_goes() {
        let found = |text: &str| {
            let all = rounds(text.as_bytes(), |_| true);
            all.map(|Rounds { start, len, count }| (start, len, count))
        };
        assert_eq!(found(""), None);
        assert_eq!(found("abcabc"), None, "twice is no loop yet");
        assert_eq!(found("abcabcabc"), Some((0, 3, 3)));
        assert_eq!(found("xyabababz"), Some((2, 2, 3)));
        assert_eq!(found("xyababab"), Some((2, 2, 3)));
        assert_eq!(found("sabababab"), Some((1, 2, 4)), "not two rounds of four");
        let b = rounds(b"abababab", |at| at % 2 == 1);
        assert_eq!(b, Some(Rounds { start: 1, len: 2, count: 3 }));
        assert_eq!(found("aaabcbcbcbc"), Some((3, 2, 4)));
    }
}
