//! nftables' expressions (`uapi/linux/netfilter/nf_tables.h`), as far as something is made of them.

use super::attributes::{attribute, attributes, be64, number, string};

/// `NFTA_LIST_ELEM`: what lists consist of.
const LIST_ELEMENT: u16 = 1;

/// One step of a rule's little program. Registers are numbers of 4-byte slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression<'a> {
    /// Loads `source` into a register.
    Load { to: u32, source: Source },
    /// Masks what is in `from`.
    Bitwise { from: u32, to: u32, mask: &'a [u8], xor: &'a [u8] },
    /// Goes on only if the comparison holds.
    Compare { from: u32, operator: Operator, value: &'a [u8] },
    /// Goes on only if the value is, or is not, between two others, both included.
    Range { from: u32, not: bool, low: &'a [u8], high: &'a [u8] },
    /// Goes on only if the value is, or is not, in a set; a map's data goes to `to`: 0 is the verdict.
    Lookup { from: u32, set: String, not: bool, to: Option<u32> },
    /// A constant into a register.
    Constant { to: u32, value: &'a [u8] },
    /// Ends the rule.
    Verdict(Verdict),
    /// Counts packets.
    Counter { packets: u64 },
    /// Refuses: type and code.
    Reject { kind: u32, code: u8 },
    /// Masquerades; registers of the lowest and the highest port, NF_NAT_RANGE_* flags.
    Masquerade { ports: [Option<u32>; 2], flags: u32 },
    /// Rewrites an end; registers of address and port.
    /// `ranged`: the registers are the lower ends of ranges.
    Nat { source: bool, address: Option<u32>, port: Option<u32>, ranged: bool, flags: u32 },
    /// Rewrites the destination to this machine; register of the port.
    Redirect { port: Option<u32> },
    /// An iptables match.
    Match { name: String, revision: u32, data: &'a [u8] },
    /// An iptables target.
    Target { name: String, revision: u32, data: &'a [u8] },
    /// Goes on or not by something that no address decides; or changes something.
    Other { name: String, decides: bool },
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// NFT_META_*.
    Meta(u32),
    /// Bytes of a header: NFT_PAYLOAD_*_HEADER, offset, length.
    Payload { base: u32, offset: u32, length: u32 },
    /// NFT_CT_*, and the direction asked for.
    Conntrack(u32, Option<u8>),
    /// The routing lookup: NFT_FIB_RESULT_*, NFTA_FIB_F_*.
    Fib { result: u32, flags: u32 },
    /// Anything else, or a value that was computed.
    Unknown,
}

/// NFT_CMP_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    Differs,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// What a rule ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Queue,
    Jump(String),
    Goto(String),
    Return,
    /// NFT_CONTINUE and what may come.
    Continue,
}

/// The expressions in a rule's list.
pub(super) fn expressions(list: &[u8]) -> impl Iterator<Item = Expression<'_>> {
    attributes(list).filter(|(kind, _)| *kind == LIST_ELEMENT).map(|(_, element)| expression(element))
}

fn expression(element: &[u8]) -> Expression<'_> {
    // NFTA_EXPR_NAME, NFTA_EXPR_DATA.
    let name = string(element, 1).unwrap_or_default();
    let data = attribute(element, 2).unwrap_or_default();
    known(&name, data).unwrap_or_else(|| {
        // These let every packet pass on (`meta`, `ct` and `payload` without a destination register write).
        let decides =
            !matches!(name.as_str(), "log" | "dup" | "notrack" | "ct" | "meta" | "payload" | "exthdr" | "last");
        Expression::Other { name, decides }
    })
}

fn known<'a>(name: &str, data: &'a [u8]) -> Option<Expression<'a>> {
    let register = |kind| number(data, kind).map(slot);
    let loaded = |kind, source| register(kind).map(|to| Expression::Load { to, source });
    match name {
        "meta" => loaded(1, Source::Meta(number(data, 2)?)),
        "ct" => loaded(1, Source::Conntrack(number(data, 2)?, attribute(data, 3).and_then(|d| d.first().copied()))),
        "fib" => loaded(1, Source::Fib { result: number(data, 2)?, flags: number(data, 3)? }),
        "payload" => {
            let (base, offset, length) = (number(data, 2)?, number(data, 3)?, number(data, 4)?);
            loaded(1, Source::Payload { base, offset, length })
        }
        "rt" | "socket" | "osf" | "tunnel" | "xfrm" | "exthdr" => loaded(1, Source::Unknown),
        "numgen" => loaded(1, Source::Unknown),
        "hash" => loaded(2, Source::Unknown),
        "byteorder" => loaded(2, Source::Unknown),
        "bitwise" => Some(bitwise(data)?),
        "cmp" => Some(Expression::Compare {
            from: register(1)?,
            operator: operator(number(data, 2)?)?,
            value: constant(attribute(data, 3)?)?,
        }),
        "range" => Some(Expression::Range {
            from: register(1)?,
            not: number(data, 2)? == 1,
            low: constant(attribute(data, 3)?)?,
            high: constant(attribute(data, 4)?)?,
        }),
        "lookup" => Some(Expression::Lookup {
            from: register(2)?,
            set: string(data, 1)?,
            not: number(data, 5).is_some_and(|flags| flags & 1 != 0),
            to: register(3),
        }),
        "immediate" => {
            let value = attribute(data, 2)?;
            match attribute(value, 2) {
                Some(code) => Some(Expression::Verdict(verdict(code)?)),
                None => Some(Expression::Constant { to: register(1)?, value: constant(value)? }),
            }
        }
        "counter" => Some(Expression::Counter { packets: attribute(data, 2).and_then(be64)? }),
        "reject" => Some(Expression::Reject {
            kind: number(data, 1)?,
            code: attribute(data, 2).and_then(|code| code.first().copied()).unwrap_or_default(),
        }),
        "masq" => Some(Expression::Masquerade {
            ports: [register(2), register(3)],
            flags: number(data, 1).unwrap_or_default(),
        }),
        "nat" => Some(Expression::Nat {
            source: number(data, 1)? == 0,
            address: register(3),
            port: register(5),
            // Without upper ends the kernel tells the lower ones twice (`nft_nat_init`).
            ranged: register(4).is_some_and(|to| Some(to) != register(3))
                || register(6).is_some_and(|to| Some(to) != register(5)),
            flags: number(data, 7).unwrap_or_default(),
        }),
        "redir" => Some(Expression::Redirect { port: register(1) }),
        "match" | "target" => {
            let (of, revision) = (string(data, 1)?, number(data, 2).unwrap_or_default());
            let data = attribute(data, 3).unwrap_or_default();
            Some(if name == "match" {
                Expression::Match { name: of, revision, data }
            } else {
                Expression::Target { name: of, revision, data }
            })
        }
        _ => None,
    }
}

fn bitwise(data: &[u8]) -> Option<Expression<'_>> {
    let (from, to) = (slot(number(data, 1)?), slot(number(data, 2)?));
    let constants = attribute(data, 4).and_then(constant).zip(attribute(data, 5).and_then(constant));
    // Shifts and register operands have none.
    Some(match constants.filter(|_| number(data, 6).unwrap_or_default() == 0) {
        Some((mask, xor)) => Expression::Bitwise { from, to, mask, xor },
        None => Expression::Load { to, source: Source::Unknown },
    })
}

/// `NFTA_DATA_VALUE`.
pub(super) fn constant(data: &[u8]) -> Option<&[u8]> {
    attribute(data, 1)
}

fn operator(number: u32) -> Option<Operator> {
    use Operator as O;
    [O::Equal, O::Differs, O::Less, O::AtMost, O::More, O::AtLeast].get(number as usize).copied()
}

/// `NFTA_DATA_VERDICT`: code and chain (`include/uapi/linux/netfilter.h`, NF_*; `nf_tables.h`, NFT_*).
pub(super) fn verdict(data: &[u8]) -> Option<Verdict> {
    let chain = || string(data, 2);
    Some(match number(data, 1)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        3 => Verdict::Queue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        // A drop with an error number in the upper half, or a queue with its number.
        code if code > 0 && code & 0xff == 0 => Verdict::Drop,
        code if code > 0 && code & 0xff == 3 => Verdict::Queue,
        _ => Verdict::Continue,
    })
}

/// Registers 1 to 4 have 16 bytes, those from 8 on lie over them with 4 each. Slot 0 is the verdict's; others begin at 1.
fn slot(register: u32) -> u32 {
    match register {
        0 => 0,
        1..=4 => (register - 1) * 4 + 1,
        other => other.saturating_sub(8) + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::live::rules::attributes::{put, put_nested, put_text};

    #[test]
    fn old_and_new_registers_are_the_same_memory() {
        assert_eq!([0, 1, 2, 8, 12].map(slot), [0, 1, 5, 1, 5]);
    }

    #[test]
    fn an_expression_of_a_future_kernel_decides() {
        let mut list = Vec::new();
        put_nested(&mut list, LIST_ELEMENT, |element| {
            put_text(element, 1, "oracle");
            put_nested(element, 2, |data| put(data, 1, &[0; 4]));
        });
        let found: Vec<_> = expressions(&list).collect();
        assert_eq!(found, [Expression::Other { name: "oracle".into(), decides: true }]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, name in "[a-z]{2,9}") {
            let mut list = bytes.clone();
            list.resize(list.len().next_multiple_of(4), 0);
            put_nested(&mut list, LIST_ELEMENT, |element| {
                put_text(element, 1, &name);
                put(element, 2, &bytes);
            });
            expressions(&list).count();
            expressions(&list[..]).count();
        }
    }
}
