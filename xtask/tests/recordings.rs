//! Recordings of real traffic in a standing lab, by the real binaries. Needs what `lab.rs` needs, `podpath` and `podpath-agent` in the
//! target folder, and the kernel object built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use support::{Lab, address};
use tracer_user::path::join_all;
use tracer_user::path::model::Outcome;
use tracer_user::recording::Recording;
use tracer_user::report::{Kind, Report, segments};
use xtask::lab::LabInfo;

#[expect(dead_code, reason = "of what the tests on standing labs share, these need a lab and its addresses only")]
mod support;

/// What runs in the background, and ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// Pings of bb1 from bb2, one every so many ms, for ever.
fn pings(lab: &LabInfo, every_ms: &str) -> Running {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.pod("bb2").unwrap().namespace, "ping", "-n", "-q", "-i", every_ms]);
    Running(command.arg(address(lab, "bb1")).stdout(Stdio::null()).spawn().unwrap())
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
    for window in recording.windows() {
        let window = window.unwrap();
        let joined = join_all(&window.evidence, &contents.header.ends, &contents.names);
        for exchange in joined.exchanges.iter().filter(|exchange| window.has(exchange)) {
            whole.add(exchange, 0);
            let Some(rtt) = exchange.rtt_ns else { continue };
            let segments = segments(exchange);
            let sum: u64 = segments.iter().map(|segment| segment.ns).sum();
            let bound: u64 = segments.iter().map(|segment| segment.error_ns).sum();
            assert!(rtt.abs_diff(sum) <= bound, "{rtt} is not {sum} +-{bound}: {exchange:#?}");
            let unknown = segments.iter().any(|segment| segment.key.kind == Kind::Unknown);
            assert!(!unknown, "{segments:#?} of {exchange:#?}");
            summed += 1;
        }
    }
    assert!(summed >= 10_000, "{summed} of {} exchanges", whole.exchanges());
    // The last one may have been under way at the end.
    assert!(whole.exchanges() - whole.ended(Outcome::Delivered) <= 1, "{:?}", whole.outcomes);
    let per_record = contents.bytes as f64 / contents.records as f64;
    println!("{} records of {per_record:.1} bytes", contents.records);
    assert!(per_record < 40.0, "{per_record}");
}

#[test]
fn a_recorder_that_is_killed_leaves_what_it_had() {
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
    assert!(text(&report(&other)).starts_with("NOTHING SEEN"), "{}", text(&report(&other)));
}
