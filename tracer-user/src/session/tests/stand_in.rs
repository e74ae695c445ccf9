//! What the tests put in the place of a node and of a peer.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::SinkExt;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio_util::codec::{FramedWrite, LengthDelimitedCodec};

use crate::{
    doctor::{Check, State},
    event::{CtDirection, Record, Translation, Tuple},
    node::facts::{Namespace, NodeFacts, Role},
    path::Probe,
    session::{
        About, Backend, Connection, Counters, Failure, Flow, Hello, InjectorJob, PROTOCOL, Ping, ProbeKind, Request,
        Version,
        link::{Incoming, codec},
        wire::{self, Message},
    },
};

pub(super) type Log = Arc<Mutex<Vec<&'static str>>>;

/// Stands for a node's kernel programs, netlink and injector: records are made up, every probe is answered at once, and the log tells
/// which calls came.
#[derive(Default)]
pub(super) struct FakeNode {
    pub(super) calls: Calls,
    pub(super) refuses_to_arm: bool,
    pub(super) panics_on_drain: bool,
    pub(super) fails_to_fire: bool,
    /// Records of each drain, until so many were made.
    pub(super) per_drain: usize,
    pub(super) made: Arc<Mutex<u64>>,
}

/// Notes also when the node is dropped.
#[derive(Default)]
pub(super) struct Calls(pub(super) Log);

impl FakeNode {
    fn note(&self, call: &'static str) {
        let mut log = self.calls.0.lock().unwrap();
        // Drains come on a timer: how many is not the point.
        if call != "drain" || log.last() != Some(&"drain") {
            log.push(call);
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push("dropped");
    }
}

/// When it stops recording, by its clock.
pub(super) const STOPPED_NS: u64 = 1_234;

impl Backend for FakeNode {
    fn hello(&mut self) -> Result<About, Failure> {
        Ok(about())
    }

    fn checks(&mut self) -> Vec<Check> {
        self.note("checks");
        let text = |text: &str| text.to_owned();
        vec![Check { name: text("kprobes"), state: State::Missing, detail: text("none"), cost: text("rules") }]
    }

    fn arm(&mut self, _request: &Request) -> Result<(), Failure> {
        self.note("arm");
        if self.refuses_to_arm {
            return Err(Failure::new("kernel object", "the verifier refused podpath_receive", "run `podpath doctor`"));
        }
        Ok(())
    }

    fn drain(&mut self, into: &mut Vec<Record>) -> Result<(), Failure> {
        assert!(!self.panics_on_drain, "asked to");
        self.note("drain");
        *self.made.lock().unwrap() += self.per_drain as u64;
        into.extend(vec![record(); self.per_drain]);
        Ok(())
    }

    fn fire(&mut self, ping: &Ping) -> Result<InjectorJob, Failure> {
        self.note("fire");
        let (ping, fails) = (ping.clone(), self.fails_to_fire);
        Ok(Box::new(move |probes| {
            if fails {
                return Err(Failure::new(
                    "ping from 10.0.0.1",
                    "send: Network is unreachable",
                    "check the pod's routes",
                ));
            }
            let ProbeKind::Echo { id } = ping.kind else { return Ok(()) };
            for seq in 1..=ping.count {
                if probes.send(Probe { seq, id, rtt_ns: Some(100_000), ..Probe::default() }).is_err() {
                    break;
                }
            }
            Ok(())
        }))
    }

    fn detach(&mut self) -> Result<u64, Failure> {
        self.note("detach");
        self.per_drain = 0;
        Ok(STOPPED_NS)
    }

    fn counters(&mut self) -> Result<Counters, Failure> {
        Ok(Counters::default())
    }

    fn finish(&mut self) -> Result<(NodeFacts, Counters), Failure> {
        self.note("finish");
        Ok((facts(), Counters { recorded: 5, lost_queue: 2, ..Counters::default() }))
    }
}

pub(super) fn about() -> About {
    About { node: "node1".into(), kernel: "6.18.0".into(), capabilities: vec!["tp_btf".into()], realtime_offset_ns: 7 }
}

pub(super) fn facts() -> NodeFacts {
    let namespace =
        Namespace { inode: 1, role: Role::Node, names: vec!["node1".into()], links: vec![], settings: vec![] };
    NodeFacts {
        namespaces: vec![namespace],
        notes: vec!["a namespace could not be read".into()],
        ..NodeFacts::default()
    }
}

pub(super) fn record() -> Record {
    let (src, dst) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
    let tuple = Tuple { src, dst, l4_src: 7, l4_dst: 8 << 8 };
    Record::Translation(Translation {
        time_ns: 1,
        skb: 2,
        netns: 3,
        original: tuple,
        reply: tuple,
        status: 0,
        protocol: 1,
        direction: CtDirection::Original,
    })
}

pub(super) fn request(limit: u64) -> Request {
    let (a, b) = (IpAddr::from([10, 0, 0, 1]), Some(IpAddr::from([10, 0, 0, 2])));
    let flows = vec![Flow { a, b, protocol: 1, a_port: Some(7), b_port: None, one_of: 1 }];
    Request { flows, time_limit: Duration::from_secs(limit), ping: None, trace_rules: false, sparing: false }
}

pub(super) fn ping_request(limit: u64) -> Request {
    let ping = Ping {
        src: [10, 0, 0, 1].into(),
        home: None,
        any_source: false,
        dst: [10, 0, 0, 2].into(),
        kind: ProbeKind::Echo { id: 7 },
        count: 3,
        interval: Duration::from_millis(200),
        size: 56,
        timeout: Duration::from_secs(1),
        nonce_base: 1,
    };
    Request { ping: Some(ping), ..request(limit) }
}

/// Stands for the other side: says only what the test tells it to, and so sends no keepalives of its own.
pub(super) struct Peer {
    pub(super) incoming: Incoming<ReadHalf<DuplexStream>>,
    pub(super) frames: FramedWrite<WriteHalf<DuplexStream>, LengthDelimitedCodec>,
}

impl Peer {
    pub(super) fn new(stream: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { incoming: Incoming::new(reader), frames: FramedWrite::new(writer, codec()) }
    }

    /// A connection for the driver, and who answers it.
    pub(super) fn connected(name: &str) -> (Connection, Self) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(ours);
        (Connection::over(name, reader, writer), Self::new(theirs))
    }

    pub(super) async fn say(&mut self, message: Message) {
        self.frames.send(wire::encode(message).unwrap()).await.unwrap();
    }

    pub(super) async fn hear(&mut self) -> Message {
        self.incoming.next().await.unwrap().expect("the other side hung up")
    }

    /// Everything until the other side hangs up.
    pub(super) async fn hear_all(&mut self) -> Vec<Message> {
        let mut heard = Vec::new();
        while let Some(message) = self.incoming.next().await.unwrap() {
            heard.push(message);
        }
        heard
    }

    /// Keepalives for so many seconds, and nothing else: also nothing is read.
    pub(super) async fn only_live(&mut self, seconds: u64) {
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // Towards the end the other side may be gone.
            let _gone = self.frames.send(wire::encode(Message::Keepalive).unwrap()).await;
        }
    }

    /// As a node: says hello.
    pub(super) async fn hello(&mut self, protocol: Version) {
        self.say(Message::Hello(Hello { protocol, program: "podpath-agent 9".into(), about: about() })).await;
    }

    /// As a node: gets armed.
    pub(super) async fn get_armed(&mut self) {
        self.hello(PROTOCOL).await;
        assert!(matches!(self.hear().await, Message::Request(..)));
        self.say(Message::Armed(1)).await;
    }
}
