//! Recordings of real traffic in a standing lab, by the real binaries. Needs what `lab.rs` needs, `podpath` and `podpath-agent` in the
//! target folder, and the kernel object built in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use support::{Lab, address};
use tracer_common::chosen;
use tracer_user::event::{L4, Record};
use tracer_user::path::model::{Action, Exchange, Hop, Outcome};
use tracer_user::recording::Recording;
use tracer_user::report::{Finding, Kind, PARTS, Report, compare, segments};
use xtask::lab::plant::Plant;
use xtask::lab::{LabInfo, inside, run};

#[expect(dead_code, reason = "of what the tests on standing labs share, these need a lab and its addresses only")]
mod support;

/// One test at a time: they measure.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What runs in the background, and ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Pings of bb1 from bb2, one every so many seconds, for ever.
fn pings(lab: &LabInfo, every: &str) -> Running {
    ping(&lab.pod("bb2").unwrap().namespace, &["-i", every], &address(lab, "bb1"))
}

fn ping(namespace: &str, options: &[&str], to: &str) -> Running {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "ping", "-n", "-q"]).args(options).arg(to);
    Running(command.stdout(Stdio::null()).spawn().unwrap())
}

fn podpath(words: &[&str]) -> Command {
    // target/<profile>/deps/recordings-<hash>
    let own = std::env::current_exe().unwrap();
    let podpath = own.ancestors().nth(2).unwrap().join("podpath");
    assert!(
        podpath.is_file(),
        "no {}: run the tests by `cargo xtask test`, which builds all they need",
        podpath.display()
    );
    let mut command = Command::new(podpath);
    command.args(words);
    command
}

fn record(lab: &LabInfo, file: &Path, how_long: &str) -> Command {
    let mut command = podpath(&["record", "bb2", "bb1", "--for", how_long]);
    command.arg("--inventory").arg(&lab.inventory).arg("-w").arg(file);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn report(file: &Path) -> Output {
    podpath(&["report"]).arg(file).output().unwrap()
}

/// A folder that goes away with the test.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pings.ppr");
    (folder, file)
}

#[test]
fn of_ten_thousand_exchanges_each_adds_up() {
    let _turn = turn();
    let lab = Lab::up("t-record", "calico-bgp");
    let (_folder, file) = folder();
    let pings = pings(&lab, "0.001");
    let recorded = record(&lab, &file, "20s").output().unwrap();
    drop(pings);
    assert!(recorded.status.success(), "{}", text(&recorded));

    let mut recording = Recording::open(&file).unwrap();
    let contents = recording.contents.clone();
    assert!(contents.closed && contents.driven.warnings.is_empty(), "{:?}", contents.driven.warnings);
    assert_eq!(contents.lost_events(), 0);
    let (mut whole, mut summed) = (Report::new(0), 0);
    let add = |exchange: &Exchange, _| {
        whole.add(exchange, 0);
        let Some(rtt) = exchange.rtt_ns else { return };
        let segments = segments(exchange);
        let sum: u64 = segments.iter().map(|segment| segment.ns).sum();
        let bound: u64 = segments.iter().map(|segment| segment.error_ns).sum();
        assert!(rtt.abs_diff(sum) <= bound, "{rtt} is not {sum} +-{bound}: {exchange:#?}");
        let unknown = segments.iter().any(|segment| segment.key.kind == Kind::Unknown);
        assert!(!unknown, "{segments:#?} of {exchange:#?}");
        summed += 1;
    };
    recording.exchanges(1, add).unwrap();
    assert!(summed >= 10_000, "{summed} of {} exchanges", whole.exchanges());
    // The last one may have been under way at the end.
    assert!(whole.exchanges() - whole.ended(Outcome::Delivered) <= 1, "{:?}", whole.outcomes);
    let lines = podpath(&["convert", "--to", "jsonl"]).arg(&file).output().unwrap();
    let lines: Vec<Value> = text(&lines).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len() as u64, whole.exchanges());
    assert!(lines.iter().all(|line| line["request"]["hops"].is_array()));
    let capture = file.with_extension("pcapng");
    let converted = podpath(&["convert", "--to", "pcapng"]).arg(&file).arg("-w").arg(&capture).status().unwrap();
    assert!(converted.success());
    let fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "icmp.seq", "-e", "frame.comment", "-c", "9"];
    let shown = Command::new("tshark").arg("-r").arg(&capture).args(fields).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let first = shown.lines().next().unwrap_or_default();
    assert!(first.starts_with("pod default/bb2 eth0\t") && first.ends_with(", request: sent"), "{shown}");
    assert!(shown.contains("100.115.37.64/26 via 172.20.50.50 dev ens5"), "{shown}");

    let per_record = contents.bytes as f64 / contents.records as f64;
    println!("{} records of {per_record:.1} bytes", contents.records);
    assert!(per_record < 40.0, "{per_record}");
}

#[test]
fn a_recorder_that_is_killed_leaves_what_it_had() {
    let _turn = turn();
    let lab = Lab::up("t-record-killed", "calico-bgp");
    let (_folder, file) = folder();
    let _pings = pings(&lab, "0.01");
    let mut recorder = record(&lab, &file, "1m").stderr(Stdio::null()).spawn().unwrap();
    // A block is a second old when it is written.
    sleep(Duration::from_secs(6));
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    let said = report(&file);
    assert!(text(&said).contains("warning: the recording was cut off after"), "{}", text(&said));
    assert!(text(&said).contains("pod default/bb2"), "{}", text(&said));
    let mut recording = Recording::open(&file).unwrap();
    assert!(recording.contents.records > 1_000, "{}", recording.contents.records);
    assert!(recording.windows().next().unwrap().is_ok());
}

#[test]
fn a_full_disk_ends_a_recording_that_can_be_read() {
    let _turn = turn();
    let lab = Lab::up("t-record-full", "calico-bgp");
    let (folder, _) = folder();
    let _pings = pings(&lab, "0.005");
    // A mount of the test's own namespace of mounts: it goes away with the command.
    let small = folder.path().join("small");
    let kept = folder.path().join("kept.ppr");
    fs::create_dir(&small).unwrap();
    let file = small.join("pings.ppr");
    let podpath = record(&lab, &file, "40s");
    let mut words = vec![podpath.get_program().to_owned()];
    words.extend(podpath.get_args().map(std::ffi::OsStr::to_owned));
    let script = r#"small=$1 file=$2 kept=$3; shift 3
        mount -t tmpfs -o size=48k small "$small" && "$@"; code=$?; cp "$file" "$kept"; exit $code"#;
    let recorded = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([&small, &file, &kept])
        .args(words)
        .output()
        .unwrap();
    assert_eq!(recorded.status.code(), Some(3), "{}", text(&recorded));
    assert!(text(&recorded).contains("make room, or name a file on another disk"), "{}", text(&recorded));
    let said = report(&kept);
    assert!(text(&said).contains("warning: the recording was cut off after"), "{}", text(&said));
    assert!(Recording::open(&kept).unwrap().contents.records > 500, "{}", text(&said));
}

#[test]
fn a_recording_is_not_written_over_and_none_is_left_of_a_failure() {
    let _turn = turn();
    let lab = Lab::up("t-record-twice", "calico-bgp");
    let (_folder, file) = folder();
    fs::write(&file, "mine").unwrap();
    let twice = record(&lab, &file, "1s").output().unwrap();
    assert_eq!(twice.status.code(), Some(1), "{}", text(&twice));
    assert!(text(&twice).contains("the file exists already"), "{}", text(&twice));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");

    let other = file.with_file_name("other.ppr");
    let refused = record(&lab, &other, "1s").env("PODPATH_READY_WITHIN", "0.001").output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(!other.exists());

    let nothing = record(&lab, &other, "1s").output().unwrap();
    assert_eq!(nothing.status.code(), Some(3), "{}", text(&nothing));
    assert!(text(&nothing).contains("nothing was seen"), "{}", text(&nothing));
    assert!(text(&report(&other)).starts_with("NOTHING SEEN  1."), "{}", text(&report(&other)));
}

/// In the lab `calico-bgp`: bb1 on node1, the endpoint on node2.
const SHOP: &str = r#"
plant = "services"
mode = "iptables"
services = [{ name = "shop", cluster_ip = "100.64.0.10", port = 80, target_port = 8080, endpoints = ["bb2"] }]
"#;

/// Asks the service over and over, each time from a port of its own; the ports.
fn ask(namespace: &str, done: &AtomicBool) -> BTreeSet<u16> {
    let asked = inside(namespace, || {
        let mut ports = BTreeSet::new();
        while !done.load(Relaxed) {
            let mut stream = TcpStream::connect("100.64.0.10:80")?;
            ports.insert(stream.local_addr()?.port());
            stream.write_all(b"question")?;
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(ports)
    });
    asked.unwrap()
}

/// Answers them.
fn answer(listener: &TcpListener) {
    for stream in listener.incoming() {
        // The client is gone when it has its answer, and the listener with the test.
        let Ok(mut stream) = stream else { return };
        let mut question = [0; 8];
        if stream.read_exact(&mut question).is_ok() {
            let _gone = stream.write_all(b"answer");
        }
    }
}

#[test]
fn of_connections_to_a_service_the_same_are_sampled_on_all_nodes() {
    const ONE_OF: u32 = 8;
    let _turn = turn();
    let lab = Lab::up("t-record-sample", "calico-bgp");
    let plant: Plant = toml::from_str(SHOP).unwrap();
    let _planted = plant.plant(&lab).unwrap();
    let names = ["bb1", "bb2"].map(|pod| lab.pod(pod).unwrap().namespace.clone());
    let listener = inside(&names[1], || Ok(TcpListener::bind("0.0.0.0:8080")?)).unwrap();
    std::thread::spawn(move || answer(&listener));
    let (_folder, file) = folder();
    let done = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&names[0], &done));
        let mut record = podpath(&["record", "bb1", "svc/shop", "--tcp", "80", "--for", "6s", "--sample"]);
        let record = record.arg(ONE_OF.to_string()).arg("--inventory").arg(&lab.inventory).arg("-w").arg(&file);
        let recorded = record.output();
        done.store(true, Relaxed);
        let recorded = recorded.unwrap();
        assert!(recorded.status.success(), "{}", text(&recorded));
        asking.join().unwrap()
    });

    let is_sampled = |port: &u16| chosen(u16::from_ne_bytes(port.to_be_bytes()).into(), ONE_OF) == 0;
    let sampled: BTreeSet<u16> = asked.iter().copied().filter(is_sampled).collect();
    let mut recording = Recording::open(&file).unwrap();
    assert_eq!(recording.contents.lost_events(), 0);
    // By node: the clients' ports, before and after DNAT.
    let mut seen: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for window in recording.windows() {
        for node in window.unwrap().evidence.nodes {
            let ports = node.records.iter().filter_map(|record| match record {
                Record::Sighting(sighting) => match sighting.packet.l4 {
                    L4::Tcp { src_port, dst_port: 80 | 8080, .. } => Some(src_port),
                    L4::Tcp { src_port: 80 | 8080, dst_port, .. } => Some(dst_port),
                    _ => panic!("nobody asked for {sighting:?}"),
                },
                Record::Translation(_) | Record::Rewrite(_) => None,
            });
            seen.entry(node.name.clone()).or_default().extend(ports);
        }
    }
    for node in ["node1", "node2"].map(|node| &lab.node(node).unwrap().name) {
        assert!(seen[node].is_subset(&sampled), "{node}: {:?}", seen[node].difference(&sampled));
    }

    let mut report = Report::new(0);
    let translated = |path: &[Hop], action| path.iter().any(|hop| hop.action == action);
    recording
        .exchanges(1, |exchange, _| {
            report.add(exchange, 0);
            if exchange.outcome == Outcome::Delivered {
                assert!(translated(&exchange.request.hops, Action::Dnat), "{exchange:#?}");
                assert!(translated(&exchange.reply.hops, Action::Undnat), "{exchange:#?}");
            }
        })
        .unwrap();
    let (all, delivered) = (report.exchanges(), report.ended(Outcome::Delivered));
    // Those of other connections on the other node would lack half their way. One may have been under way at an end.
    assert!(delivered > 40 && all - delivered <= 2, "{:?}", report.outcomes);
    let said = text(&self::report(&file));
    assert!(said.contains(&format!("tcp to port 80, passive, 1 flow of {ONE_OF}")), "{said}");
    println!("{said}");
}

/// Pings are recorded so long: some four thousand, so that 1% of loss is not chance.
const RECORDED: &str = "8s";

/// What a recording shows; pings go on.
fn reported(lab: &LabInfo, name: &str) -> Report {
    let (_folder, file) = folder();
    let recorded = record(lab, &file, RECORDED).output().unwrap();
    assert!(recorded.status.success(), "{name}: {}", text(&recorded));
    let mut recording = Recording::open(&file).unwrap();
    let mut report = Report::new(0);
    recording.exchanges(PARTS, |exchange, part| report.add(exchange, part)).unwrap();
    assert!(report.exchanges() > 300, "{name}: {:?}", report.outcomes);
    report
}

/// Causes of slowness and loss are told apart, each by the first finding; without one nothing is found.
#[test]
fn a_planted_cause_is_the_first_finding_and_nothing_is_found_without_one() {
    let _turn = turn();
    let lab = Lab::up("t-causes", "calico-bgp");
    let _pings = pings(&lab, "0.002");
    let good = reported(&lab, "good");
    let [node1, node2] = ["node1", "node2"].map(|host| lab.node(host).unwrap());
    let node3 = lab.node("node3").unwrap().address.to_string();
    let at = |namespace: &str, line: &str, input: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        inside(namespace, || run(words[0], &words[1..], input)).unwrap();
    };
    let found = |name: &str| {
        let findings = compare(&reported(&lab, name), &good);
        assert!(!findings.is_empty(), "{name}: nothing found");
        findings
    };

    // Others' packets in front of it, every 10 ms so many that sending them takes 8 ms.
    at(&node2.namespace, "tc qdisc add dev ens5 root tbf rate 20mbit burst 10000 limit 300000", "");
    let others = ping(&node2.namespace, &["-i", "0.01", "-s", "20000"], &node3);
    let queue = found("a queue");
    drop(others);
    at(&node2.namespace, "tc qdisc del dev ens5 root", "");
    let Finding::Time { key, .. } = &queue[0] else { panic!("{queue:#?}") };
    assert_eq!((key.kind, &*key.from.node, &*key.from.interface), (Kind::Queue, &*node2.name, "ens5"), "{queue:#?}");

    let rules = "ip saddr 203.0.113.77 drop\n".repeat(20_000);
    let table = format!("table ip slow {{\nchain forward {{\ntype filter hook forward priority -10;\n{rules}}}\n}}\n");
    at(&node1.namespace, "nft -f -", &table);
    let inside_node = found("inside a node");
    at(&node1.namespace, "nft delete table ip slow", "");
    let Finding::Time { key, .. } = &inside_node[0] else { panic!("{inside_node:#?}") };
    assert_eq!((key.kind, &*key.from.node, &key.from.pod), (Kind::Forwarding, &*node1.name, &None), "{inside_node:#?}");

    // Others send more than it can, and of two packets in it there is room for no third.
    at(&node2.namespace, "tc qdisc add dev ens5 root handle 1: tbf rate 1mbit burst 10000 limit 30000", "");
    at(&node2.namespace, "tc qdisc add dev ens5 parent 1:1 handle 10: pfifo limit 2", "");
    let others = ping(&node2.namespace, &["-i", "0.01", "-s", "3000"], &node3);
    let small = found("a small queue");
    drop(others);
    at(&node2.namespace, "tc qdisc del dev ens5 root", "");
    let Finding::Failures { failure, .. } = &small[0] else { panic!("{small:#?}") };
    let place = (failure.outcome, failure.node.as_deref(), failure.interface.as_deref());
    assert_eq!(place, (Outcome::Dropped, Some(&*node2.name), Some("ens5")), "{small:#?}");
    assert!(failure.why.contains("queue"), "{failure:?}");

    let lossy = "table bridge lossy {\nchain forward {\ntype filter hook forward priority 0;\n\
                 oifname \"node1\" ether type ip icmp type echo-request numgen random mod 100 == 0 drop\n}\n}\n";
    at(&lab.wire, "nft -f -", lossy);
    let wire = found("loss on the wire");
    at(&lab.wire, "nft delete table bridge lossy", "");
    let Finding::Failures { failure, .. } = &wire[0] else { panic!("{wire:#?}") };
    assert_eq!(failure.outcome, Outcome::Lost, "{wire:#?}");
    let lost = format!("left {} ens5, never arrived at {} ens5", node2.name, node1.name);
    assert!(failure.why.contains(&lost), "{failure:?}");

    at(&lab.gateway, "ip route add 100.115.37.64/26 via 172.20.50.50", "");
    let route = |via: &str| format!("ip route replace 100.115.37.64/26 via {via} dev ens5 proto bird");
    at(&node2.namespace, &route("172.20.32.1"), "");
    let detour = found("a detour");
    at(&node2.namespace, &route("172.20.50.50"), "");
    let Finding::Way { now: Some(step), .. } = &detour[0] else { panic!("{detour:#?}") };
    assert_eq!((&*step.place.node, &*step.place.interface), (&*node2.name, "ens5"), "{detour:#?}");
    assert!(step.route.as_deref().is_some_and(|route| route.contains("via 172.20.32.1")), "{detour:#?}");

    let mut before = good;
    for pair in 1..=10 {
        let now = reported(&lab, "clean");
        let findings = compare(&now, &before);
        assert!(findings.is_empty(), "clean pair {pair}: {findings:#?}");
        before = now;
    }
}
