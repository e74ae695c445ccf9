//! The CLI's side.

use std::{ffi::OsString, future::pending, net::IpAddr, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};

use super::stand_in::{FakeNode, Peer, STOPPED_NS, facts, ping_request, record, request};
use crate::path::Probe;
use crate::session::{
    Connection, Counters, DriveError, Driven, PROTOCOL, Ping, Plan, ProbeKind, Progress, Request, Version, drive,
    link::Outbox,
    node::{Event, talk},
    wire::Message,
};

const PLAN: Plan = Plan {
    armed_within: Duration::from_secs(30),
    record_for: Some(Duration::from_secs(3)),
    armed_last: None,
    all_needed: true,
    passes_on: false,
};

async fn driven(nodes: Vec<(Connection, Request)>) -> Result<Driven, DriveError> {
    drive(nodes, PLAN, pending(), |_| {}).await
}

fn words(script: &str) -> Vec<OsString> {
    ["sh", "-c", script].map(OsString::from).to_vec()
}

#[tokio::test(start_paused = true)]
async fn two_nodes_from_hello_to_evidence() {
    let (a, b) = (FakeNode { per_drain: 1, ..FakeNode::default() }, FakeNode::default());
    let logs = [Arc::clone(&a.calls.0), Arc::clone(&b.calls.0)];
    let nodes = vec![(Connection::local("a", a), ping_request(60)), (Connection::local("b", b), request(60))];
    let mut seen = Vec::new();
    let driven = drive(nodes, PLAN, pending(), |progress| {
        seen.push(match progress {
            Progress::Connecting { .. } => "connecting",
            Progress::Hello { .. } => "hello",
            Progress::Armed { .. } => "armed",
            Progress::Probe(_) => "probe",
            Progress::Records { .. } | Progress::Heard { .. } | Progress::Lost { .. } => return,
            Progress::Draining => "draining",
            Progress::AllRecord => "all record",
            Progress::Ended { .. } => "ended",
        });
    })
    .await
    .unwrap();
    let expected =
        ["connecting", "connecting", "hello", "hello", "armed", "armed", "probe", "probe", "probe", "draining"];
    assert_eq!(seen[..10], expected);
    assert_eq!(driven.warnings, Vec::<String>::new());
    assert_eq!(driven.evidence.probes.iter().map(|probe| probe.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let [a, b] = &driven.evidence.nodes[..] else { panic!("two nodes") };
    assert!(a.complete && b.complete && !a.records.is_empty() && b.records.is_empty());
    assert_eq!((&a.facts, a.lost, &*a.name), (&facts(), 2, "a"));
    assert_eq!((a.stopped_ns, driven.evidence.interrupted), (Some(STOPPED_NS), false));
    assert_eq!(driven.nodes[1].hello.as_ref().unwrap().about.kernel, "6.18.0");
    // Whoever drives has the last word: both sessions are gone when it returns.
    for log in logs {
        assert_eq!(log.lock().unwrap().last(), Some(&"dropped"));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fired_before_all_are_armed() {
    let ((a, mut source), (b, mut other)) = (Peer::connected("a"), Peer::connected("b"));
    let driving = tokio::spawn(driven(vec![(a, ping_request(60)), (b, request(60))]));
    source.hello(PROTOCOL).await;
    // Not even a request before all have said hello.
    assert!(timeout(Duration::from_secs(5), source.hear()).await.is_err());
    other.hello(PROTOCOL).await;
    assert!(matches!(source.hear().await, Message::Request(..)));
    source.say(Message::Armed(1)).await;
    assert!(matches!(other.hear().await, Message::Request(..)));
    other.say(Message::Keepalive).await;
    assert!(timeout(Duration::from_secs(5), source.hear()).await.is_err(), "fired before b was armed");
    other.say(Message::Armed(1)).await;
    assert_eq!(source.hear().await, Message::Fire);
    driving.abort();
}

#[tokio::test(start_paused = true)]
async fn the_node_where_others_send_is_armed_last() {
    let ((a, mut sender), (b, mut other)) = (Peer::connected("a"), Peer::connected("b"));
    let plan = Plan { armed_last: Some(0), ..PLAN };
    let driving = tokio::spawn(drive(vec![(a, request(60)), (b, request(60))], plan, pending(), |_| {}));
    sender.hello(PROTOCOL).await;
    other.hello(PROTOCOL).await;
    assert!(matches!(other.hear().await, Message::Request(..)));
    other.say(Message::Keepalive).await;
    assert!(timeout(Duration::from_secs(5), sender.hear()).await.is_err(), "armed before b");
    other.say(Message::Armed(1)).await;
    assert!(matches!(sender.hear().await, Message::Request(..)));
    driving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_before_it_is_armed_is_named() {
    let ((a, mut source), (b, mut other)) = (Peer::connected("a"), Peer::connected("b"));
    let driving = tokio::spawn(driven(vec![(a, ping_request(60)), (b, request(60))]));
    source.hello(PROTOCOL).await;
    other.hello(PROTOCOL).await;
    drop(other);
    assert!(matches!(source.hear().await, Message::Request(..)));
    // The others are stopped in order, and nothing was fired.
    assert_eq!(source.hear().await, Message::Stop);
    source.say(Message::End).await;
    insta::assert_snapshot!(driving.await.unwrap().unwrap_err(), @r"
    node b: session ended before it was armed: session: the input ended before the session was over
      the other side was stopped or its connection broke
    ");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_before_it_is_armed_is_left_out_where_the_trace_may_do_without() {
    let plan = Plan { all_needed: false, ..PLAN };
    for says_hello in [false, true] {
        let ((a, mut source), (b, mut other)) = (Peer::connected("a"), Peer::connected("b"));
        let driving = tokio::spawn(drive(vec![(a, ping_request(60)), (b, request(60))], plan, pending(), |_| {}));
        source.hello(PROTOCOL).await;
        if says_hello {
            other.hello(PROTOCOL).await;
        }
        drop(other);
        assert!(matches!(source.hear().await, Message::Request(..)));
        source.say(Message::Armed(1)).await;
        assert_eq!(source.hear().await, Message::Fire);
        source.say(Message::Fired).await;
        assert_eq!(source.hear().await, Message::Stop);
        source.say(Message::Drained(7)).await;
        source.say(Message::End).await;
        let driven = driving.await.unwrap().unwrap();
        let [a] = &driven.evidence.nodes[..] else { panic!("one node") };
        assert!(a.name == "a" && a.complete);
        let when = if says_hello { "before it was armed" } else { "before hello" };
        let expected = format!("not traced: node b: session ended {when}: session: the input ended");
        assert!(driven.warnings[0].starts_with(&expected), "{:?}", driven.warnings);
    }
    // Without the sender's, or without all, there is nothing to show.
    let passive = Plan { armed_last: Some(1), ..plan };
    for (of_b, plan, all_die) in
        [(ping_request(60), plan, false), (request(60), passive, false), (request(60), plan, true)]
    {
        let ((a, other), (b, dead)) = (Peer::connected("a"), Peer::connected("b"));
        let driving = tokio::spawn(drive(vec![(a, request(60)), (b, of_b)], plan, pending(), |_| {}));
        drop(dead);
        let _kept = (!all_die).then_some(other);
        let error = driving.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("session ended before hello"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_to_arm_is_shown_in_the_nodes_words() {
    let node = FakeNode { refuses_to_arm: true, ..FakeNode::default() };
    insta::assert_snapshot!(driven(vec![(Connection::local("a", node), request(60))]).await.unwrap_err(), @r"
    node a: session ended before it was armed: kernel object: the verifier refused podpath_receive
      run `podpath doctor`
    ");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_arms_is_named() {
    let (connection, mut peer) = Peer::connected("a");
    let driving = tokio::spawn(driven(vec![(connection, request(60))]));
    peer.hello(PROTOCOL).await;
    peer.only_live(60).await;
    insta::assert_snapshot!(driving.await.unwrap().unwrap_err(), @"nodes not ready within 30 s: a (not armed); check that they are reachable and not overloaded, or give them more time by --ready-within");
}

#[tokio::test(start_paused = true)]
async fn an_incompatible_agent_is_to_be_upgraded() {
    for (major, upgrade) in [(0, "upgrade podpath-agent"), (2, "upgrade podpath")] {
        let (connection, mut peer) = Peer::connected("a");
        let driving = tokio::spawn(driven(vec![(connection, request(60))]));
        peer.hello(Version { major, minor: 0 }).await;
        let error = driving.await.unwrap().unwrap_err().to_string();
        assert!(error.ends_with(upgrade), "{error}");
        if major == 0 {
            insta::assert_snapshot!(error, @r"
    node a: session ended before hello: protocol: podpath-agent speaks version 0.0 and podpath speaks version 1.6
      upgrade podpath-agent
    ");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_too_old_for_what_is_asked_is_to_be_upgraded() {
    let old = Version { major: 1, minor: 0 };
    let asked = async |change: &dyn Fn(&mut Ping, &mut bool)| {
        let (connection, mut peer) = Peer::connected("a");
        let Request { ping, mut trace_rules, .. } = ping_request(60);
        let mut ping = ping.expect("it has one");
        change(&mut ping, &mut trace_rules);
        let request = Request { ping: Some(ping), trace_rules, ..request(60) };
        let driving = tokio::spawn(driven(vec![(connection, request)]));
        peer.hello(old).await;
        driving.await.unwrap().unwrap_err().to_string()
    };
    let goes_on = asked(&|_, _| {}).await;
    assert!(goes_on.contains("before it was armed: session: nothing heard"), "{goes_on}");
    insta::assert_snapshot!(asked(&|ping, _| ping.kind = ProbeKind::Tcp { dst_port: 80 }).await, @r"
    node a: session ended before hello: protocol: podpath-agent speaks version 1.0, which has no TCP probes
      upgrade podpath-agent there
    ");
    for (error, lacks) in [
        (asked(&|ping, _| ping.kind = ProbeKind::Udp { dst_port: 80 }).await, "no UDP probes"),
        (asked(&|ping, _| ping.src = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])).await, "no IPv6 probes"),
        (asked(&|_, trace_rules| *trace_rules = true).await, "no tracing of rules"),
    ] {
        assert!(error.contains(lacks), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_after_firing_leaves_what_it_saw() {
    let ((a, mut source), (b, mut other)) = (Peer::connected("a"), Peer::connected("b"));
    let driving = tokio::spawn(driven(vec![(a, ping_request(60)), (b, request(60))]));
    source.hello(PROTOCOL).await;
    other.get_armed().await;
    assert!(matches!(source.hear().await, Message::Request(..)));
    source.say(Message::Armed(1)).await;
    assert_eq!(source.hear().await, Message::Fire);
    other.say(Message::Records(vec![record()], 0)).await;
    drop(other);
    source.say(Message::Probe(Probe { seq: 1, ..Probe::default() })).await;
    source.say(Message::Fired).await;
    assert_eq!(source.hear().await, Message::Stop);
    source.say(Message::Drained(7)).await;
    source.say(Message::End).await;
    let driven = driving.await.unwrap().unwrap();
    let [a, b] = &driven.evidence.nodes[..] else { panic!("two nodes") };
    assert!(a.complete && !b.complete);
    assert_eq!(b.records, [record()]);
    assert_eq!(driven.evidence.probes.len(), 1);
    insta::assert_snapshot!(driven.warnings.join("\n"), @"node b: its session ended half-way, hops are missing: session: the input ended before the session was over; the other side was stopped or its connection broke");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_send_is_an_error() {
    let node = FakeNode { fails_to_fire: true, ..FakeNode::default() };
    let error = driven(vec![(Connection::local("a", node), ping_request(60))]).await.unwrap_err();
    insta::assert_snapshot!(error, @r"
    node a: session could not send a probe: ping from 10.0.0.1: send: Network is unreachable
      check the pod's routes
    ");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_given_long_to_get_ready_is_given_half_of_that_to_end() {
    let (connection, mut peer) = Peer::connected("a");
    let plan = Plan { armed_within: Duration::from_secs(180), ..PLAN };
    let driving = tokio::spawn(async move { drive(vec![(connection, request(60))], plan, pending(), |_| {}).await });
    peer.get_armed().await;
    // Three seconds of recording and the first 80 of ending.
    peer.only_live(83).await;
    assert!(!driving.is_finished());
    peer.only_live(60).await;
    let driven = driving.now_or_never().expect("still waiting").unwrap().unwrap();
    assert!(driven.warnings[0].contains("not drained within 90 s of being told to stop"), "{:?}", driven.warnings);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_ends_is_given_up() {
    let (connection, mut peer) = Peer::connected("a");
    let driving = tokio::spawn(driven(vec![(connection, request(60))]));
    peer.get_armed().await;
    peer.only_live(60).await;
    let driven = driving.now_or_never().expect("still waiting").unwrap().unwrap();
    assert!(!driven.evidence.nodes[0].complete);
    insta::assert_snapshot!(driven.warnings.join("\n"), @"node a: its session ended half-way, hops are missing: session: not drained within 15 s of being told to stop; check the load of that node");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_or_was_discarded_is_told() {
    let (connection, mut peer) = Peer::connected("a");
    let driving = tokio::spawn(driven(vec![(connection, request(60))]));
    peer.get_armed().await;
    assert_eq!(peer.hear().await, Message::Stop);
    peer.say(Message::Unknown).await;
    peer.say(Message::Counters(Default::default(), 17)).await;
    peer.say(Message::Drained(7)).await;
    peer.say(Message::End).await;
    let driven = driving.await.unwrap().unwrap();
    assert_eq!((driven.evidence.nodes[0].lost, driven.evidence.nodes[0].complete), (17, false));
    insta::assert_snapshot!(driven.warnings.join("\n"), @"node a: 17 records were discarded because this side read too slowly; trace fewer probes at a time");
}

#[tokio::test(start_paused = true)]
async fn packets_that_could_not_be_read_are_told_and_leave_doubt() {
    let (connection, mut peer) = Peer::connected("a");
    let driving = tokio::spawn(driven(vec![(connection, request(60))]));
    peer.get_armed().await;
    assert_eq!(peer.hear().await, Message::Stop);
    let counters =
        Counters { recorded: 9, lost_drop: 2, lost_rewrite: 1, unread: 3, skipped_frees: 4, ..Counters::default() };
    peer.say(Message::Counters(counters, 0)).await;
    peer.say(Message::Drained(7)).await;
    peer.say(Message::End).await;
    let driven = driving.await.unwrap().unwrap();
    let [a] = &driven.evidence.nodes[..] else { panic!("one node") };
    // Doubt is about all of them; what is called lost are those that the ring had no room for.
    assert_eq!((a.lost, a.unread, a.complete), (6, 3, true));
    assert_eq!(driven.nodes[0].counters, Some(counters));
    assert_eq!(counters.lost(), 3);
    // Of frees that were skipped the driver says nothing: whether they matter depends on how the exchanges ended.
    insta::assert_snapshot!(driven.warnings.join("\n"), @"node a: at 3 sightings a packet could not be read, its headers lay in page fragments; a packet shown as lost on the way to this node may have arrived (`podpath doctor` there says what is missing)");
}

#[tokio::test(start_paused = true)]
async fn passive_recording_ends_by_time_or_by_stop() {
    let start = Instant::now();
    let node = FakeNode { per_drain: 1, ..FakeNode::default() };
    let driven = driven(vec![(Connection::local("a", node), request(60))]).await.unwrap();
    assert_eq!((start.elapsed().as_secs(), driven.interrupted), (3, false));

    let (start, plan) = (Instant::now(), Plan { record_for: None, ..PLAN });
    let node = FakeNode { per_drain: 1, ..FakeNode::default() };
    let stop = sleep(Duration::from_secs(5));
    let driven = drive(vec![(Connection::local("a", node), request(60))], plan, stop, |_| {}).await.unwrap();
    assert_eq!((start.elapsed().as_secs(), driven.interrupted), (5, true));
    assert!(driven.evidence.nodes[0].complete && !driven.evidence.nodes[0].records.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_before_anything_is_armed_is_no_error() {
    let (connection, mut peer) = Peer::connected("a");
    let stop = sleep(Duration::from_secs(1));
    let driving = tokio::spawn(drive(vec![(connection, request(60))], PLAN, stop, |_| {}));
    assert_eq!(peer.hear_all().await, []);
    drop(peer);
    let driven = driving.await.unwrap().unwrap();
    assert!(driven.interrupted && !driven.evidence.nodes[0].complete);
}

#[tokio::test]
async fn a_command_that_fails_is_shown_with_its_last_words() {
    let script = "echo 'podpath-agent: not root; use sudo' >&2; exit 3";
    let connection = Connection::spawn("node1", &words(script)).unwrap();
    insta::assert_snapshot!(driven(vec![(connection, request(60))]).await.unwrap_err(), @r"
    node node1: session ended before hello: its command ended (exit status: 3): podpath-agent: not root; use sudo
      run it by hand to see more: sh -c 'echo '\''podpath-agent: not root; use sudo'\'' >&2; exit 3'
    ");
}

/// Whoever writes and is killed has often written half a frame.
#[tokio::test]
async fn a_command_killed_while_it_writes_is_shown_with_its_signal() {
    let connection = Connection::spawn("node1", &words("printf '\\0\\0\\1\\0half'; kill -9 $$")).unwrap();
    insta::assert_snapshot!(driven(vec![(connection, request(60))]).await.unwrap_err(), @r"
    node node1: session ended before hello: its command ended (signal: 9 (SIGKILL)): it said nothing
      something on that node killed it; its kernel log (dmesg) says whether memory was short
    ");
}

#[tokio::test]
async fn a_command_that_speaks_another_language_is_refused() {
    let connection = Connection::spawn("node1", &words("echo Welcome to node1; cat >/dev/null")).unwrap();
    insta::assert_snapshot!(driven(vec![(connection, request(60))]).await.unwrap_err(), @r"
    node node1: session ended before hello: what its command prints is not podpath's protocol (a frame is longer than 65536 bytes)
      only podpath-agent may print there, no greeting and no shell; run it by hand to see: sh -c 'echo Welcome to node1; cat >/dev/null'
    ");
}

/// What a driver has not taken in yet is bounded: a node that says more has to wait, and its session then discards and counts.
#[tokio::test(start_paused = true)]
async fn what_waits_for_a_slow_driver_is_bounded() {
    let (connection, mut peer) = Peer::connected("node1");
    let (sender, mut events) = mpsc::unbounded_channel();
    let (outbox, room) = (Arc::new(Outbox::new(0)), Arc::new(Semaphore::new(3)));
    let talking = tokio::spawn(talk(0, connection, outbox, Arc::clone(&room), sender));
    // Some 12 kB each; between the two ends lie 64 KiB.
    let records = || Message::Records(vec![record(); 200], 0);
    let mut said = 0;
    while said < 100 && timeout(Duration::from_secs(1), peer.say(records())).await.is_ok() {
        said += 1;
    }
    assert!((3..20).contains(&said), "{said} of 100 went through");
    assert_eq!(events.len(), 3);
    // Taken in: there is room for as many more.
    for _ in 0..3 {
        assert!(matches!(events.try_recv(), Ok((0, Event::Message(Message::Records(..), ..)))));
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(events.len(), 3);
    // Nobody takes in anything more: nobody waits.
    room.close();
    drop(peer);
    timeout(Duration::from_secs(1), talking).await.expect("it ends").expect("in order");
}
