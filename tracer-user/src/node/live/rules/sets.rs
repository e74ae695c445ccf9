//! nftables' sets and maps, as far as rules cannot be read without them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    super::facts::Ranges,
    attributes::{Raw, attribute, attributes, number, string},
    expression::{Verdict, constant, verdict},
    model,
};

/// So many addresses or ranges of a set are told: a message of a session holds them.
pub(super) const MOST_RANGES: usize = 1_000;

/// Flags of a set.
const ANONYMOUS: u32 = 1;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
/// Flags of sets that rules or time change, and of keys of several parts.
const TIMEOUT: u32 = 16;
const EVALUATED: u32 = 32;
const CONCATENATED: u32 = 128;
/// Types of keys, which the kernel keeps for nft (its `datatype.h`): addresses of IPv4 and of IPv6.
const ADDRESSES: [u32; 2] = [7, 8];
/// Flags of an element.
const END: u32 = 1;
const REST: u32 = 2;
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
    /// Named, its keys are addresses, and only who administers it changes it.
    pub(super) addresses: bool,
    /// Its elements are all here.
    pub(super) read: bool,
    /// Bytes.
    pub(super) key_length: u32,
    /// Empty also where they were not read.
    pub(super) elements: Vec<Element>,
}

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// The first key behind an interval.
    pub(super) end: bool,
    /// All keys that no other element has.
    pub(super) rest: bool,
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
            addresses: flags & (ANONYMOUS | MAP | TIMEOUT | EVALUATED | CONCATENATED) == 0
                && number(body, 4).is_some_and(|key| ADDRESSES.contains(&key)),
            read: false,
            key_length: number(body, 5).unwrap_or_default(),
            elements: Vec::new(),
        };
        Some((string(body, 1)?, set))
    }

    /// Are its elements part of what a rule says? Named sets may be huge, and their name says more.
    pub(super) fn wanted(&self) -> bool {
        self.verdicts || self.anonymous
    }

    /// The addresses in it, if it holds addresses; None also where they are not all known, or are more than can be told.
    pub(super) fn ranges(&self) -> Option<Ranges> {
        let address = |element: &Element| model::address(&element.key);
        let (mut ranges, mut open) = (Vec::new(), None);
        for element in self.elements.iter().filter(|_| self.read) {
            match (self.interval, element.end, open) {
                _ if element.rest => return None,
                (false, ..) => ranges.push((address(element)?, address(element)?)),
                (true, true, Some(from)) => ranges.push((from, before(address(element)?)?)),
                // What no interval has until the first one begins.
                (true, true, None) => {}
                (true, false, Some(_)) => return None,
                (true, false, None) => {
                    open = Some(address(element)?);
                    continue;
                }
            }
            open = None;
        }
        // To the last address there is.
        ranges.extend(open.map(|from| (from, last(from))));
        (self.read && ranges.len() <= MOST_RANGES).then(|| Ranges(ranges.into()))
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).checked_sub(1)?).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).checked_sub(1)?).into(),
    })
}

fn last(of_family: IpAddr) -> IpAddr {
    match of_family {
        IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
        IpAddr::V6(_) => Ipv6Addr::from(u128::MAX).into(),
    }
}

/// How many elements of a set the message tells.
pub(super) fn told(message: &Raw) -> usize {
    attributes(attribute(&message.body, 3).unwrap_or_default()).count()
}

/// From `NFT_MSG_NEWSETELEM`: table, set and some of its elements.
pub(super) fn elements(message: &Raw) -> Option<(String, String, Vec<Element>)> {
    let body = &message.body;
    let list = attribute(body, 3).unwrap_or_default();
    let elements = attributes(list).map(|(_, element)| self::element(element)).collect();
    Some((string(body, 1)?, string(body, 2)?, elements))
}

fn element(element: &[u8]) -> Element {
    // NFTA_SET_ELEM_KEY, _DATA, _FLAGS.
    let key = attribute(element, 1).and_then(constant).unwrap_or_default().to_vec();
    let verdict = attribute(element, 2).and_then(|data| attribute(data, 2)).and_then(verdict);
    let flags = number(element, 3).unwrap_or_default();
    Element { key, end: flags & END != 0, rest: flags & REST != 0, verdict }
}
