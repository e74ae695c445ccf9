//! nftables' sets and maps, as far as rules cannot be read without them.

use std::collections::HashMap;

use super::{
    attributes::{Raw, attribute, attributes, number, string},
    expression::{Verdict, constant, verdict},
};

/// Flags of a set.
const ANONYMOUS: u32 = 1;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
/// Type of a map's data that stands for verdicts.
const VERDICT: u32 = 0xffff_ff00;

/// The sets of one table, by name.
pub(super) type Sets = HashMap<String, Set>;

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) anonymous: bool,
    pub(super) interval: bool,
    pub(super) verdicts: bool,
    /// Bytes.
    pub(super) key_length: u32,
    /// Empty also where they were not read.
    pub(super) elements: Vec<Element>,
}

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// The end of an interval, or the rest of all keys: no key of its own.
    pub(super) special: bool,
    pub(super) verdict: Option<Verdict>,
}

impl Set {
    /// From `NFT_MSG_NEWSET`; with its table.
    pub(super) fn decode(body: &[u8]) -> Option<(String, Self)> {
        let flags = number(body, 3).unwrap_or_default();
        let set = Self {
            name: string(body, 2)?,
            anonymous: flags & ANONYMOUS != 0,
            interval: flags & INTERVAL != 0,
            verdicts: flags & MAP != 0 && number(body, 6) == Some(VERDICT),
            key_length: number(body, 5).unwrap_or_default(),
            elements: Vec::new(),
        };
        Some((string(body, 1)?, set))
    }

    /// Are its elements part of what a rule says? Named sets may be huge, and their name says more.
    pub(super) fn wanted(&self) -> bool {
        self.verdicts || self.anonymous
    }
}

/// From `NFT_MSG_NEWSETELEM`: table, set and some of its elements.
pub(super) fn elements(message: &Raw) -> Option<(String, String, Vec<Element>)> {
    let body = &message.body;
    let list = attribute(body, 3).unwrap_or_default();
    let elements = attributes(list).map(|(_, element)| self::element(element)).collect();
    Some((string(body, 1)?, string(body, 2)?, elements))
}

fn element(element: &[u8]) -> Element {
    // NFTA_SET_ELEM_KEY, _DATA, _FLAGS: end of an interval 1, catch-all 2.
    let key = attribute(element, 1).and_then(constant).unwrap_or_default().to_vec();
    let verdict = attribute(element, 2).and_then(|data| attribute(data, 2)).and_then(verdict);
    Element { key, special: number(element, 3).is_some_and(|flags| flags & 3 != 0), verdict }
}
