//! The node's side.

use std::{future::pending, sync::Arc, time::Duration};

use futures::SinkExt;
use tokio::{task::JoinHandle, time::Instant};

use super::stand_in::{FakeNode, Log, Peer, facts, ping_request, request};
use crate::session::{
    Error, PROTOCOL, Request, Version,
    link::RECORDS_WAITING,
    serve::serve_with,
    wire::{Collected, Message},
};

/// A session on a fake node, with `buffer` bytes on the way each way and room for `capacity` records.
fn session(node: FakeNode, buffer: usize, capacity: usize) -> (Peer, JoinHandle<Result<(), Error>>, Log) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let (reader, writer) = tokio::io::split(theirs);
    let log = Arc::clone(&node.calls.0);
    (Peer::new(ours), tokio::spawn(serve_with(reader, writer, node, pending(), capacity)), log)
}

async fn arm(peer: &mut Peer, request: Request) {
    assert!(matches!(peer.hear().await, Message::Hello(_)));
    peer.say(Message::Request(PROTOCOL, request)).await;
    assert!(matches!(peer.hear().await, Message::Armed(_)));
}

/// The reason the session ended with; checks that the backend is gone.
async fn end(serving: JoinHandle<Result<(), Error>>, log: &Log) -> String {
    let error = serving.await.unwrap().unwrap_err().to_string();
    assert_eq!(log.lock().unwrap().last(), Some(&"dropped"));
    error
}

#[tokio::test(start_paused = true)]
async fn a_ping_from_hello_to_end() {
    let (mut peer, serving, log) = session(FakeNode { per_drain: 1, ..FakeNode::default() }, 4096, RECORDS_WAITING);
    arm(&mut peer, ping_request(60)).await;
    peer.say(Message::Fire).await;
    let (mut probes, mut records) = (Vec::new(), 0);
    loop {
        match peer.hear().await {
            Message::Probe(probe) => probes.push(probe.seq),
            Message::Records(some, 0) => records += some.len(),
            Message::Fired => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(probes, [1, 2, 3]);
    peer.say(Message::Stop).await;
    let mut last = Vec::new();
    let mut collected = Collected::default();
    for message in peer.hear_all().await {
        last.push(message.name());
        match message {
            Message::Records(some, 0) => records += some.len(),
            Message::Facts(facts) => facts.into_iter().for_each(|fact| collected.add(fact).unwrap()),
            Message::Counters(counters, discarded) => assert_eq!((counters.lost(), discarded), (2, 0)),
            _ => {}
        }
    }
    assert!(records > 0);
    assert_eq!(collected.facts, facts());
    last.retain(|name| *name != "records");
    assert_eq!(last, ["facts", "counters", "drained", "end"]);
    serving.await.unwrap().unwrap();
    let mut log = log.lock().unwrap().clone();
    log.retain(|call| *call != "drain");
    assert_eq!(log, ["arm", "fire", "detach", "finish", "dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_after_ten_seconds() {
    let (mut peer, serving, log) = session(FakeNode::default(), 4096, RECORDS_WAITING);
    arm(&mut peer, request(60)).await;
    let start = Instant::now();
    insta::assert_snapshot!(end(serving, &log).await, @"session: nothing heard from the peer for 10 s; check that it still runs and that the way to it works");
    assert_eq!(start.elapsed().as_secs(), 10);
    // It has sent keepalives meanwhile: this side would have given up at the same time without them.
    let Message::Error(failure) = peer.hear().await else { panic!("error") };
    insta::assert_snapshot!(failure, @"session: nothing heard from the peer for 10 s; check that it still runs and that the way to it works");
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_holds_while_a_write_is_blocked() {
    let node = FakeNode { per_drain: 100, ..FakeNode::default() };
    let (mut peer, serving, log) = session(node, 256, RECORDS_WAITING);
    arm(&mut peer, request(5)).await;
    let start = Instant::now();
    peer.only_live(8).await;
    assert!(serving.is_finished(), "after {:?}", start.elapsed());
    insta::assert_snapshot!(end(serving, &log).await, @"session: time limit of 5s reached; trace fewer probes or a shorter time");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_reading_is_given_up() {
    let node = FakeNode { per_drain: 100, ..FakeNode::default() };
    let (mut peer, serving, log) = session(node, 256, RECORDS_WAITING);
    arm(&mut peer, request(600)).await;
    peer.only_live(12).await;
    assert!(serving.is_finished());
    insta::assert_snapshot!(end(serving, &log).await, @"session: the peer has read nothing for 10 s; check that it still runs");
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_costs_records_that_are_counted() {
    let node = FakeNode { per_drain: 100, ..FakeNode::default() };
    let made = Arc::clone(&node.made);
    let (mut peer, serving, _log) = session(node, 4096, 1000);
    arm(&mut peer, request(60)).await;
    peer.only_live(5).await;
    peer.say(Message::Stop).await;
    let (mut received, mut discarded) = (0, 0);
    for message in peer.hear_all().await {
        match message {
            Message::Records(records, 0) => received += records.len() as u64,
            Message::Counters(_, number) => discarded = number,
            _ => {}
        }
    }
    serving.await.unwrap().unwrap();
    let made = *made.lock().unwrap();
    assert!(received >= 1000 && discarded > 0, "{received} received, {discarded} discarded, {made} made");
    assert_eq!(received + discarded, made);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_input_ends_the_session() {
    let (mut peer, serving, log) = session(FakeNode::default(), 4096, RECORDS_WAITING);
    arm(&mut peer, ping_request(60)).await;
    peer.say(Message::Fire).await;
    drop(peer);
    end(serving, &log).await;

    // Only its input: the reason still gets through.
    let (mut peer, serving, log) = session(FakeNode::default(), 4096, RECORDS_WAITING);
    arm(&mut peer, ping_request(60)).await;
    SinkExt::<bytes::Bytes>::close(&mut peer.frames).await.unwrap();
    insta::assert_snapshot!(end(serving, &log).await, @"session: the input ended before the session was over; the other side was stopped or its connection broke");
    assert!(matches!(peer.hear().await, Message::Error(_)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_arm_reaches_the_peer() {
    let (mut peer, serving, log) =
        session(FakeNode { refuses_to_arm: true, ..FakeNode::default() }, 4096, RECORDS_WAITING);
    assert!(matches!(peer.hear().await, Message::Hello(_)));
    peer.say(Message::Request(PROTOCOL, request(60))).await;
    let Message::Error(failure) = peer.hear().await else { panic!("error") };
    insta::assert_snapshot!(failure, @"kernel object: the verifier refused podpath_receive; run `podpath doctor`");
    assert_eq!(end(serving, &log).await, failure.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_fire_reaches_the_peer() {
    let (mut peer, serving, log) =
        session(FakeNode { fails_to_fire: true, ..FakeNode::default() }, 4096, RECORDS_WAITING);
    arm(&mut peer, ping_request(60)).await;
    peer.say(Message::Fire).await;
    insta::assert_snapshot!(end(serving, &log).await, @"ping from 10.0.0.1: send: Network is unreachable; check the pod's routes");
}

#[tokio::test(start_paused = true)]
async fn a_panic_on_the_node_is_an_error() {
    let (mut peer, serving, _log) =
        session(FakeNode { panics_on_drain: true, ..FakeNode::default() }, 4096, RECORDS_WAITING);
    arm(&mut peer, request(60)).await;
    insta::assert_snapshot!(serving.await.unwrap().unwrap_err(), @"podpath-agent: panicked; its last lines say where; report this as a bug");
}

#[tokio::test(start_paused = true)]
async fn a_signal_ends_the_session() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (reader, writer) = tokio::io::split(theirs);
    let node = FakeNode::default();
    let log = Arc::clone(&node.calls.0);
    let signal = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        "SIGTERM"
    };
    let serving = tokio::spawn(serve_with(reader, writer, node, signal, 10));
    let mut peer = Peer::new(ours);
    arm(&mut peer, request(60)).await;
    insta::assert_snapshot!(end(serving, &log).await, @"session: ended by SIGTERM; start the trace again");
    assert!(matches!(peer.hear().await, Message::Error(_)));
}

#[tokio::test(start_paused = true)]
async fn peers_of_other_versions() {
    let newer = Version { minor: PROTOCOL.minor + 1, ..PROTOCOL };
    let (mut peer, serving, _log) = session(FakeNode::default(), 4096, RECORDS_WAITING);
    assert!(matches!(peer.hear().await, Message::Hello(_)));
    peer.say(Message::Unknown).await;
    peer.say(Message::Request(newer, request(60))).await;
    assert!(matches!(peer.hear().await, Message::Armed(_)));
    peer.say(Message::Unknown).await;
    peer.say(Message::Stop).await;
    assert_eq!(peer.hear_all().await.last(), Some(&Message::End));
    serving.await.unwrap().unwrap();

    let next = Version { major: PROTOCOL.major + 1, minor: 0 };
    let (mut peer, serving, log) = session(FakeNode::default(), 4096, RECORDS_WAITING);
    assert!(matches!(peer.hear().await, Message::Hello(_)));
    peer.say(Message::Request(next, request(60))).await;
    insta::assert_snapshot!(end(serving, &log).await, @"protocol: podpath speaks version 2.0 and podpath-agent speaks version 1.6; upgrade podpath-agent");
    // Refused before anything was attached.
    assert_eq!(*log.lock().unwrap(), ["dropped"]);
}

#[tokio::test(start_paused = true)]
async fn messages_out_of_order_are_refused() {
    for (messages, expected) in [
        (vec![Message::Fire], "message fire is out of order before the request"),
        (
            vec![Message::Request(PROTOCOL, request(60)), Message::Fired],
            "message fired is out of order after the request",
        ),
        (vec![Message::Request(PROTOCOL, request(60)), Message::Fire], "message fire without a ping in the request"),
        (vec![Message::Request(PROTOCOL, request(u64::MAX / 1_000_000_000))], "is over the 86400 s allowed"),
    ] {
        let (mut peer, serving, log) = session(FakeNode::default(), 4096, RECORDS_WAITING);
        for message in messages {
            peer.say(message).await;
        }
        let error = end(serving, &log).await;
        assert!(error.contains(expected), "{error}");
    }
}
