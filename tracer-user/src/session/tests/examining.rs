//! A session that only says what its node can do, both ends of it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::stand_in::{FakeNode, Peer};
use crate::session::{Connection, PROTOCOL, Version, examine, wire::Message};

const WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_node_says_what_it_can_do_and_is_left_as_it_was() {
    let node = FakeNode::default();
    let log = Arc::clone(&node.calls.0);
    let examined = examine(Connection::local("a", node), WITHIN).await;
    assert!(examined.death.is_none(), "{examined:?}");
    assert_eq!(examined.hello.unwrap().protocol, PROTOCOL);
    assert_eq!(examined.checks.unwrap()[0].name, "kprobes");
    assert_eq!(*log.lock().unwrap(), ["checks", "dropped"], "nothing was armed");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_too_old_is_known_by_name_at_least() {
    let (connection, mut peer) = Peer::connected("a");
    let examining = tokio::spawn(examine(connection, WITHIN));
    peer.hello(Version { major: 1, minor: 1 }).await;
    let examined = examining.await.unwrap();
    assert_eq!(examined.hello.unwrap().program, "podpath-agent 9");
    assert!(examined.checks.is_none());
    insta::assert_snapshot!(examined.death.unwrap(), @"protocol: podpath-agent speaks version 1.1, which has no examinations; upgrade podpath-agent there");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_only_lives_is_given_up() {
    let (connection, mut peer) = Peer::connected("a");
    let start = Instant::now();
    let examining = tokio::spawn(examine(connection, WITHIN));
    peer.hello(PROTOCOL).await;
    assert_eq!(peer.hear().await, Message::Examine(PROTOCOL));
    peer.only_live(35).await;
    let examined = examining.await.unwrap();
    assert!(start.elapsed() >= WITHIN);
    insta::assert_snapshot!(examined.death.unwrap(), @"examination: not done within 30 s; check the load of that node");
}
