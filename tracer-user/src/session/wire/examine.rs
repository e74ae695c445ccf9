//! What a node can do: the question and its answer.

use crate::{
    doctor::{self, State},
    session,
};

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Examine {
    #[prost(uint32, tag = "1")]
    major: u32,
    #[prost(uint32, tag = "2")]
    minor: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Checks {
    #[prost(message, repeated, tag = "1")]
    checks: Vec<Check>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Check {
    #[prost(string, tag = "1")]
    name: String,
    /// 1 ok, 2 unknown, 3 missing, 4 fatal
    #[prost(uint32, tag = "2")]
    state: u32,
    #[prost(string, tag = "3")]
    detail: String,
    #[prost(string, tag = "4")]
    cost: String,
}

impl From<session::Version> for Examine {
    fn from(version: session::Version) -> Self {
        let session::Version { major, minor } = version;
        Self { major, minor }
    }
}

impl From<Examine> for session::Version {
    fn from(examine: Examine) -> Self {
        let Examine { major, minor } = examine;
        Self { major, minor }
    }
}

impl From<Vec<doctor::Check>> for Checks {
    fn from(checks: Vec<doctor::Check>) -> Self {
        let wire = |check| {
            let doctor::Check { name, state, detail, cost } = check;
            let state = match state {
                State::Ok => 1,
                State::Unknown => 2,
                State::Missing => 3,
                State::Fatal => 4,
            };
            Check { name, state, detail, cost }
        };
        Self { checks: checks.into_iter().map(wire).collect() }
    }
}

impl From<Checks> for Vec<doctor::Check> {
    fn from(checks: Checks) -> Self {
        let check = |check| {
            let Check { name, state, detail, cost } = check;
            let state = match state {
                1 => State::Ok,
                3 => State::Missing,
                4 => State::Fatal,
                // A newer agent's word: what it costs stands beside it.
                _ => State::Unknown,
            };
            doctor::Check { name, state, detail, cost }
        };
        checks.checks.into_iter().map(check).collect()
    }
}
