//! `podpath watch` on a terminal, by the real binaries: what a terminal emulator makes of what it writes. Needs what `recordings.rs`
//! needs.

use std::process::{Command, Stdio};

use support::{Lab, address};
use terminal::OnTerminal;
use xtask::lab::LabInfo;

#[expect(dead_code, reason = "of what the tests on standing labs share, these need a lab and its addresses only")]
mod support;
#[path = "support/terminal.rs"]
mod terminal;

fn watch(lab: &LabInfo) -> Command {
    // target/<profile>/deps/watch-<hash>
    let own = std::env::current_exe().unwrap();
    let podpath = own.ancestors().nth(2).unwrap().join("podpath");
    assert!(podpath.is_file(), "no {}: run the tests by `cargo xtask test`", podpath.display());
    let mut command = Command::new(podpath);
    command.args(["watch", "bb2", "bb1", "--inventory"]).arg(&lab.inventory);
    command
}

#[test]
fn it_is_drawn_frozen_and_left_on_screens_of_two_sizes() {
    let lab = Lab::up("t-watch", "calico-bgp");
    let mut pings = Command::new("ip");
    pings.args(["netns", "exec", &lab.pod("bb2").unwrap().namespace, "ping", "-n", "-q", "-i", "0.01"]);
    let mut pings = pings.arg(address(&lab, "bb1")).stdout(Stdio::null()).spawn().unwrap();
    for (columns, rows, leave) in [(80, 24, &b"q"[..]), (200, 60, b"\x03")] {
        let mut shown = OnTerminal::start(watch(&lab), columns, rows);
        shown.wait_for("nothing seen yet");
        shown.wait_for("DELIVERED 100%");
        let text = shown.wait_for("pod default/bb1");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("default/bb2 -> default/bb1  icmp echo, passive"), "{text}");
        assert!(lines[2].starts_with("round trip  p50 "), "{text}");
        assert!(lines.iter().any(|line| line.contains("answer")), "{text}");
        assert_eq!(lines.last().map(|line| line.trim_end()), Some("q quits  space freezes"), "{text}");
        assert!(lines.len() == usize::from(rows), "{text}");
        shown.press(b" ");
        shown.wait_for("FROZEN");
        shown.press(leave);
        shown.ends();
    }
    pings.kill().unwrap();
    pings.wait().unwrap();
}
