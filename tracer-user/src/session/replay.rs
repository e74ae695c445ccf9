//! What sessions said, heard again from a recording.

use bytes::Bytes;

use super::{
    Driven, Error, Flow, Request,
    node::Node,
    wire::{self, Message},
};
use crate::{event::Record, path::NodeEvidence};

/// Sessions whose frames are at hand: what each says is taken in as [`super::drive`] takes it in, but that records are passed on
/// and not kept.
pub struct Replay {
    nodes: Vec<Node>,
}

impl Replay {
    /// Of nodes with these names, which were asked to record these flows.
    pub fn new(nodes: impl IntoIterator<Item = (String, Vec<Flow>)>) -> Self {
        let node = |(name, flows)| {
            let request =
                Request { flows, time_limit: super::MAX_TIME_LIMIT, ping: None, trace_rules: false, sparing: false };
            let mut node = Node::new(name, request, true);
            node.requested = true;
            node
        };
        Self { nodes: nodes.into_iter().map(node).collect() }
    }

    /// Takes in the content of one frame; the records in it. Where a session makes no sense it is over, and what follows of it is
    /// passed over, as it would have been then.
    ///
    /// # Errors
    /// The frame is malformed.
    pub fn hear(&mut self, node: usize, frame: Bytes) -> Result<Vec<Record>, Error> {
        let Some(node) = self.nodes.get_mut(node) else { return Ok(Vec::new()) };
        Ok(match wire::decode(frame)? {
            Message::End | Message::Keepalive | Message::Unknown => Vec::new(),
            message => node.hear(message, &mut |_| {}),
        })
    }

    /// Whatever follows was seen by all nodes.
    pub fn all_record(&mut self) {
        self.nodes.iter_mut().for_each(Node::all_record);
    }

    /// What they delivered so far, without the records.
    pub fn so_far(&self) -> impl Iterator<Item = NodeEvidence> {
        self.nodes.iter().map(Node::so_far)
    }

    /// What they delivered, without the records.
    pub fn finish(self) -> Driven {
        let mut driven = Driven::default();
        for node in self.nodes {
            node.conclude(&mut driven);
        }
        driven
    }
}

/// The records in the content of one frame; none if it has other things to say.
///
/// # Errors
/// The frame is malformed.
pub fn records(frame: Bytes) -> Result<Vec<Record>, Error> {
    match wire::decode(frame)? {
        Message::Records(records, _) => Ok(records),
        _ => Ok(Vec::new()),
    }
}

/// What a session would have said that saw this, as frames.
#[cfg(test)]
pub(crate) fn frames(node: &NodeEvidence) -> Vec<Bytes> {
    use super::{About, Counters, Hello, PROTOCOL};

    let about = About { node: node.name.clone(), kernel: "6.18.0".to_owned(), ..About::default() };
    let hello = Hello { protocol: PROTOCOL, program: "podpath-agent".to_owned(), about };
    let mut messages = vec![Message::Hello(hello), Message::Armed(1)];
    messages.extend(node.records.chunks(50).map(|records| Message::Records(records.to_vec(), 0)));
    messages.extend(wire::batches(wire::facts(&node.facts)));
    let counters = Counters { lost_receive: node.lost, ..Counters::default() };
    messages.extend([Message::Counters(counters, 0), Message::Drained(node.stopped_ns.unwrap_or(0))]);
    messages.into_iter().map(|message| wire::encode(message).expect("it fits")).collect()
}
