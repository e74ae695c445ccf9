//! [`RuleHit`] on the wire.

use std::net::IpAddr;

use ipnet::IpNet;

use super::field::{Fields, Malformed, Net, bytes};
use crate::node::facts::{Condition, ConditionField, Ranges, Rule, RuleEngine, RuleHit, RuleVerdict};

const FIELDS: Fields = Fields("facts.rule");

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WireRuleHit {
    #[prost(uint32, tag = "1")]
    netns: u32,
    #[prost(uint32, tag = "2")]
    engine: u32,
    #[prost(string, tag = "3")]
    family: String,
    #[prost(string, tag = "4")]
    table: String,
    #[prost(string, tag = "5")]
    chain: String,
    #[prost(uint32, optional, tag = "6")]
    hook: Option<u32>,
    #[prost(string, repeated, tag = "7")]
    way: Vec<String>,
    #[prost(message, optional, tag = "8")]
    rule: Option<WireRule>,
    #[prost(message, optional, tag = "9")]
    verdict: Option<WireVerdict>,
    #[prost(message, repeated, tag = "10")]
    conditions: Vec<WireCondition>,
    #[prost(bool, tag = "11")]
    understood: bool,
    #[prost(uint64, tag = "12")]
    packets: u64,
    #[prost(uint64, tag = "13")]
    traced: u64,
    #[prost(bool, tag = "14")]
    counted: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireRule {
    #[prost(uint32, tag = "1")]
    position: u32,
    #[prost(uint64, optional, tag = "2")]
    handle: Option<u64>,
    #[prost(string, tag = "3")]
    text: String,
    #[prost(string, optional, tag = "4")]
    comment: Option<String>,
}

/// `with` is what a rejection answers, where NAT sends to, or the chain of a jump.
#[derive(Clone, PartialEq, prost::Message)]
struct WireVerdict {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    with: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireCondition {
    #[prost(bool, tag = "1")]
    not: bool,
    #[prost(oneof = "WireField", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    field: Option<WireField>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum WireField {
    #[prost(string, tag = "2")]
    InInterface(String),
    #[prost(string, tag = "3")]
    OutInterface(String),
    #[prost(message, tag = "4")]
    Source(Net),
    #[prost(message, tag = "5")]
    Destination(Net),
    #[prost(uint32, tag = "6")]
    Protocol(u32),
    #[prost(message, tag = "7")]
    SourcePort(WirePair),
    #[prost(message, tag = "8")]
    DestinationPort(WirePair),
    #[prost(message, tag = "9")]
    Mark(WirePair),
    #[prost(message, tag = "10")]
    ConntrackState(WireStates),
    #[prost(bool, tag = "11")]
    ReversePathFails(bool),
    #[prost(message, tag = "12")]
    SourceIn(WireRanges),
    #[prost(message, tag = "13")]
    DestinationIn(WireRanges),
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireRanges {
    #[prost(message, repeated, tag = "1")]
    ranges: Vec<WireRange>,
}

/// Without `to`: one address.
#[derive(Clone, PartialEq, prost::Message)]
struct WireRange {
    #[prost(bytes = "vec", tag = "1")]
    from: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    to: Option<Vec<u8>>,
}

impl From<Ranges> for WireRanges {
    fn from(Ranges(ranges): Ranges) -> Self {
        let range =
            |(from, to): &(IpAddr, IpAddr)| WireRange { from: bytes(*from), to: (from != to).then(|| bytes(*to)) };
        Self { ranges: ranges.iter().map(range).collect() }
    }
}

impl TryFrom<WireRanges> for Ranges {
    type Error = Malformed;

    fn try_from(WireRanges { ranges }: WireRanges) -> Result<Self, Malformed> {
        let range = |WireRange { from, to }: WireRange| {
            let from = FIELDS.address("address of a set", &from)?;
            Ok((from, FIELDS.maybe_address("address of a set", to.as_deref())?.unwrap_or(from)))
        };
        let mut ranges = ranges.into_iter().map(range).collect::<Result<Vec<_>, Malformed>>()?;
        // They are searched in order.
        ranges.sort();
        Ok(Self(ranges.into()))
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct WirePair {
    #[prost(uint32, tag = "1")]
    first: u32,
    #[prost(uint32, tag = "2")]
    second: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireStates {
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
}

impl From<&RuleHit> for WireRuleHit {
    fn from(hit: &RuleHit) -> Self {
        let RuleHit {
            netns,
            engine,
            family,
            table,
            chain,
            hook,
            way,
            rule,
            verdict,
            conditions,
            understood,
            counted,
            packets,
            traced,
        } = hit.clone();
        let engine = match engine {
            RuleEngine::Iptables => 1,
            RuleEngine::IptablesNft => 2,
            RuleEngine::Nftables => 3,
        };
        let rule = rule.map(|Rule { position, handle, text, comment }| WireRule { position, handle, text, comment });
        let conditions = conditions.into_iter().map(Into::into).collect();
        let (hook, verdict) = (hook.map(Into::into), Some(verdict.into()));
        Self {
            netns,
            engine,
            family,
            table,
            chain,
            hook,
            way,
            rule,
            verdict,
            conditions,
            understood,
            packets,
            traced,
            counted,
        }
    }
}

impl TryFrom<WireRuleHit> for RuleHit {
    type Error = Malformed;

    fn try_from(hit: WireRuleHit) -> Result<Self, Malformed> {
        let WireRuleHit {
            netns,
            engine,
            family,
            table,
            chain,
            hook,
            way,
            rule,
            verdict,
            conditions,
            mut understood,
            packets,
            traced,
            counted,
        } = hit;
        let engine = match engine {
            1 => RuleEngine::Iptables,
            2 => RuleEngine::IptablesNft,
            3 => RuleEngine::Nftables,
            other => return Err(FIELDS.unknown("engine", other)),
        };
        let mut known = Vec::new();
        for condition in conditions {
            match condition_from(condition)? {
                Some(condition) => known.push(condition),
                // A newer peer's: something more decides than this program can compare.
                None => understood = false,
            }
        }
        let rule = rule.map(|WireRule { position, handle, text, comment }| Rule { position, handle, text, comment });
        Ok(Self {
            netns,
            engine,
            family,
            table,
            chain,
            hook: FIELDS.maybe_narrow("hook", hook)?,
            way,
            rule,
            verdict: FIELDS.required("verdict", verdict)?.into(),
            conditions: known,
            understood,
            counted,
            packets,
            traced,
        })
    }
}

impl From<RuleVerdict> for WireVerdict {
    fn from(verdict: RuleVerdict) -> Self {
        let (kind, with) = match verdict {
            RuleVerdict::Accept => (1, String::new()),
            RuleVerdict::Drop => (2, String::new()),
            RuleVerdict::Reject(with) => (3, with),
            RuleVerdict::Masquerade => (4, String::new()),
            RuleVerdict::Snat(to) => (5, to),
            RuleVerdict::Dnat(to) => (6, to),
            RuleVerdict::Jump(chain) => (7, chain),
            RuleVerdict::Other => (8, String::new()),
        };
        Self { kind, with }
    }
}

impl From<WireVerdict> for RuleVerdict {
    fn from(WireVerdict { kind, with }: WireVerdict) -> Self {
        match kind {
            1 => Self::Accept,
            2 => Self::Drop,
            3 => Self::Reject(with),
            4 => Self::Masquerade,
            5 => Self::Snat(with),
            6 => Self::Dnat(with),
            7 => Self::Jump(with),
            // "Anything else" stays true of what a newer peer may say.
            _ => Self::Other,
        }
    }
}

impl From<Condition> for WireCondition {
    fn from(Condition { field, not }: Condition) -> Self {
        let pair = |first: u32, second: u32| WirePair { first, second };
        let field = match field {
            ConditionField::InInterface(name) => WireField::InInterface(name),
            ConditionField::OutInterface(name) => WireField::OutInterface(name),
            ConditionField::Source(net) => WireField::Source(net.into()),
            ConditionField::Destination(net) => WireField::Destination(net.into()),
            ConditionField::Protocol(number) => WireField::Protocol(number.into()),
            ConditionField::SourcePort(from, to) => WireField::SourcePort(pair(from.into(), to.into())),
            ConditionField::DestinationPort(from, to) => WireField::DestinationPort(pair(from.into(), to.into())),
            ConditionField::Mark(value, mask) => WireField::Mark(pair(value, mask)),
            ConditionField::ConntrackState(names) => WireField::ConntrackState(WireStates { names }),
            ConditionField::ReversePathFails => WireField::ReversePathFails(true),
            ConditionField::SourceIn(ranges) => WireField::SourceIn(ranges.into()),
            ConditionField::DestinationIn(ranges) => WireField::DestinationIn(ranges.into()),
        };
        Self { not, field: Some(field) }
    }
}

/// None: a condition that this program does not know.
fn condition_from(WireCondition { not, field }: WireCondition) -> Result<Option<Condition>, Malformed> {
    let net = |net| -> Result<IpNet, Malformed> { FIELDS.net("condition", Some(net)) };
    let ports = |WirePair { first, second }| -> Result<(u16, u16), Malformed> {
        Ok((FIELDS.narrow("port", first)?, FIELDS.narrow("port", second)?))
    };
    let Some(field) = field else { return Ok(None) };
    let field = match field {
        WireField::InInterface(name) => ConditionField::InInterface(name),
        WireField::OutInterface(name) => ConditionField::OutInterface(name),
        WireField::Source(source) => ConditionField::Source(net(source)?),
        WireField::Destination(destination) => ConditionField::Destination(net(destination)?),
        WireField::Protocol(number) => ConditionField::Protocol(FIELDS.narrow("protocol", number)?),
        WireField::SourcePort(pair) => ports(pair).map(|(from, to)| ConditionField::SourcePort(from, to))?,
        WireField::DestinationPort(pair) => ports(pair).map(|(from, to)| ConditionField::DestinationPort(from, to))?,
        WireField::Mark(WirePair { first, second }) => ConditionField::Mark(first, second),
        WireField::ConntrackState(WireStates { names }) => ConditionField::ConntrackState(names),
        WireField::ReversePathFails(_) => ConditionField::ReversePathFails,
        WireField::SourceIn(ranges) => ConditionField::SourceIn(ranges.try_into()?),
        WireField::DestinationIn(ranges) => ConditionField::DestinationIn(ranges.try_into()?),
    };
    Ok(Some(Condition { field, not }))
}
