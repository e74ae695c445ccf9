//! `podpath watch` on a terminal, by the real binaries: what a terminal emulator makes of what it writes. Needs what `recordings.rs`
//! needs.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use support::{Lab, address};
use xtask::lab::LabInfo;

#[expect(dead_code, reason = "of what the tests on standing labs share, these need a lab and its addresses only")]
mod support;

/// What is looked for must be there within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program on a terminal of its own.
struct OnTerminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl OnTerminal {
    fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave)).env("TERM", "xterm-256color");
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (mut output, shown) = (File::from(pty.master.try_clone().unwrap()), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { child, keyboard: File::from(pty.master), screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn wait_for(&self, what: &str) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if text.contains(what) {
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "no `{what}` on the screen:\n{text}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn press(&mut self, key: &[u8]) {
        self.keyboard.write_all(key).unwrap();
    }

    /// Waits for its end; the terminal must be as it was.
    fn ends(mut self) {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "it does not end:\n{}", self.text());
            thread::sleep(Duration::from_millis(50));
        }
        assert!(self.child.wait().unwrap().success(), "{}", self.text());
        // What was written last may still be on its way.
        thread::sleep(Duration::from_millis(300));
        let screen = self.screen.lock().unwrap();
        assert!(!screen.screen().alternate_screen() && !screen.screen().hide_cursor());
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

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
