//! At a terminal: the line of progress, and Ctrl-C twice.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::Signal;

use super::held::wait_for;
use super::lab::Lab;
use super::trace::{Trace, send};
use super::{ENDLESS, NODE1, turn};

/// What a terminal was sent so far.
struct Terminal {
    incoming: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    /// The program's end, and ours.
    fn open() -> (File, Terminal) {
        let pty = openpty(None, None).unwrap();
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let (sender, incoming) = mpsc::channel();
        let mut master = File::from(pty.master);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // An error once no program has its end open.
            while let Ok(length @ 1..) = master.read(&mut chunk) {
                let _gone = sender.send(chunk[..length].to_vec());
            }
        });
        (File::from(pty.slave), Terminal { incoming, text: String::new() })
    }

    fn shows(&mut self, words: &str) {
        wait_for(words, Duration::from_secs(30), || {
            self.text.extend(self.incoming.try_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            if self.text.contains(words) { Ok(()) } else { Err(self.text.clone()) }
        });
    }

    /// All of it, once the program has closed its end.
    fn close(mut self) -> String {
        while let Ok(bytes) = self.incoming.recv_timeout(Duration::from_secs(10)) {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.text
    }
}

/// The cursor stands at the beginning of an empty line, and is shown.
fn assert_restored(text: &str) {
    let (_, rest) = text.rsplit_once("\x1b[2K").unwrap_or_else(|| panic!("the line is never cleared: {text:?}"));
    assert_eq!(rest.trim_start_matches('\r'), "", "written after the line was cleared: {text:?}");
    assert!(text.rfind("\x1b[?25l") <= text.rfind("\x1b[?25h"), "the cursor is hidden: {text:?}");
}

#[test]
fn progress_is_shown_and_cleared() {
    let _turn = turn();
    let lab = Lab::up("t-left-tty");
    let (slave, mut terminal) = Terminal::open();
    let trace = Trace::start(&lab, 100, [Stdio::piped(), slave.into()]);
    terminal.shows("/100 answered");
    assert_eq!(trace.end().code, Some(0));
    assert_restored(&terminal.close());
}

#[test]
fn the_second_interrupt_does_not_wait() {
    let _turn = turn();
    let lab = Lab::up("t-left-twice");
    let (slave, mut terminal) = Terminal::open();
    let trace = Trace::start(&lab, ENDLESS, [Stdio::piped(), slave.into()]);
    // A node that does not answer any more, so that the orderly end takes its time.
    let stuck = trace.agent(NODE1);
    send(stuck, Signal::SIGSTOP);
    send(trace.pid(), Signal::SIGINT);
    terminal.shows("reading back");
    send(trace.pid(), Signal::SIGINT);
    wait_for("podpath waits", Duration::from_secs(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", trace.pid())).unwrap();
        if stat.contains(") Z ") { Ok(()) } else { Err(stat) }
    });
    send(stuck, Signal::SIGCONT);
    let ended = trace.end();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(130), ""));
    assert_restored(&terminal.close());
}
