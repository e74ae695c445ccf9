//! Trace -> text and JSON: pure functions that return what is to be printed.

mod board;
#[cfg(test)]
mod board_tests;
mod comparison;
mod failure;
#[cfg(test)]
mod failure_tests;
mod groups;
mod hops;
mod line;
mod names;
mod next;
mod reply;
mod report;
mod rounds;
#[cfg(test)]
mod samples;
mod screen;
mod summary;
mod table;
#[cfg(test)]
mod tests;
mod units;
mod verbose;

use crate::path::model::{Exchange, Outcome, Trace};

pub use board::Board;
pub use comparison::comparison;
pub(crate) use hops::steps;
pub use report::report;
pub use screen::text;

/// How the text should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// With ANSI colours.
    pub color: bool,
    /// Columns of the terminal; in a pipe, a large number. Below 60 the text is laid out for 60.
    pub width: usize,
    /// Every hop of both directions, and a line for every exchange.
    pub verbose: bool,
}

/// The whole trace as one JSON object (`podpath.trace/v1`), indented, with a newline at its end.
///
/// # Panics
/// Never: the model holds nothing that JSON cannot say.
#[must_use]
pub fn json(trace: &Trace) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(trace).expect("a trace has string keys and integers only");
    bytes.push(b'\n');
    bytes
}

/// One exchange as one line of JSON, with a newline at its end.
///
/// # Panics
/// Never: the model holds nothing that JSON cannot say.
#[must_use]
pub fn json_line(exchange: &Exchange) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(exchange).expect("an exchange has string keys and integers only");
    bytes.push(b'\n');
    bytes
}

/// The exit code of a run that traced: 0 if every exchange completed both ways; 3 if at least one did not, or there
/// was none.
#[must_use]
pub fn exit_code(trace: &Trace) -> u8 {
    let complete = |exchange: &Exchange| exchange.outcome == Outcome::Delivered;
    if !trace.exchanges.is_empty() && trace.exchanges.iter().all(complete) { 0 } else { 3 }
}
