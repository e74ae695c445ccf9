//! `podpath watch`.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, IsTerminal},
    thread,
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval},
};

use super::{
    args::{TraceArgs, WatchArgs},
    error::Error,
    nodes::{self, Cluster},
    terminal::{Progress, write_stderr},
    trace::{Watching, plural, stopped, watching},
};
use crate::{
    path::Ends,
    recording::Live,
    render::Board,
    report::Report,
    session::{self, Plan},
};

/// How often the board is drawn anew.
const EVERY: Duration = Duration::from_secs(1);

/// Shows live traffic until the user quits.
///
/// # Errors
/// There is no terminal, or nothing can be traced.
pub(super) async fn run(args: &WatchArgs) -> Result<u8, Error> {
    if !io::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let args = TraceArgs::from(args.clone()).with_port_of_destination().unwrap_or_else(|error| error.exit());
    let (mut cluster, args) = nodes::find(&args).await?;
    if let Some(choice) = &cluster.choice {
        write_stderr(&format!("podpath: {choice}\n"));
    }
    let watched = watch(&args, &mut cluster).await;
    let left = cluster.clean_up().await;
    let warnings = [cluster.notes(), watched?].concat();
    warnings.into_iter().chain(left).for_each(|warning| write_stderr(&format!("warning: {warning}\n")));
    Ok(0)
}

/// What is shown, and what it comes from.
struct Shown {
    board: Board,
    live: Live,
    armed: usize,
    since: Option<Instant>,
    /// By node: records that it lost.
    lost: BTreeMap<String, u64>,
}

impl Shown {
    fn step(&mut self, step: &session::Progress<'_>) {
        match step {
            session::Progress::Armed { .. } => {
                self.armed += 1;
                self.since = Some(Instant::now());
                self.board.status = format!("{} armed", plural(self.armed, "node"));
            }
            session::Progress::Heard { node, frame } => {
                // What makes no sense ends that session: the driver says so.
                let _malformed = self.live.hear(*node, (*frame).clone());
            }
            session::Progress::AllRecord => self.live.all_record(),
            session::Progress::Lost { node, total } => {
                self.lost.insert((*node).to_owned(), *total);
            }
            session::Progress::Draining => "reading back".clone_into(&mut self.board.status),
            _ => {}
        }
    }

    fn second(&mut self, ends: &Ends, cluster: &Cluster) {
        let Some(since) = self.since else { return };
        self.board.since = since.elapsed();
        self.board.lost = self.lost.values().sum::<u64>() + self.live.forgotten;
        let window = self.live.window();
        let joined = window.join(ends, &cluster.directory);
        let mut report = Report::new(0);
        joined.exchanges.iter().filter(|exchange| window.has(exchange)).for_each(|exchange| report.add(exchange, 0));
        self.board.add(report);
    }
}

/// Runs the sessions and draws; the warnings that are left to say.
async fn watch(args: &TraceArgs, cluster: &mut Cluster) -> Result<Vec<String>, Error> {
    let progress = Progress::start(format!("reaching {}", plural(cluster.nodes.len(), "node")));
    let Watching { resolved, sessions, plan } = watching(args, cluster).await?;
    let flows: Vec<_> =
        cluster.nodes.iter().zip(&sessions).map(|(n, (_, r))| (n.name.clone(), r.flows.clone())).collect();
    let plan = Plan { record_for: None, ..plan };
    let ends = resolved.ends.clone();
    let traffic = resolved.traffic.watched(ends.source.address, args.one_of);
    let names = cluster.nodes.iter().map(|node| node.name.as_str());
    let board = Board::new(&ends.source, &ends.destination, &traffic, names);
    let shown = RefCell::new(Shown { board, live: Live::new(&flows), armed: 0, since: None, lost: BTreeMap::new() });
    let quit = Notify::new();
    let driving =
        session::drive(sessions, plan, stopped(&quit, progress.line()), |step| shown.borrow_mut().step(&step));
    let mut driving = std::pin::pin!(driving);
    // The board tells from now on.
    progress.line().clear();
    let mut screen = Screen::open()?;
    let mut keys = keys();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let driven = loop {
        tokio::select! {
            driven = &mut driving => break driven,
            _ = ticks.tick() => shown.borrow_mut().second(&ends, cluster),
            Some(key) = keys.recv() => match key {
                Key::Quit => {
                    quit.notify_one();
                    "ending".clone_into(&mut shown.borrow_mut().board.status);
                }
                Key::Freeze => {
                    let frozen = &mut shown.borrow_mut().board.frozen;
                    *frozen = !*frozen;
                }
                Key::Redraw => {}
            },
        }
        screen.draw(&shown.borrow().board)?;
    };
    drop(screen);
    Ok(driven?.warnings)
}

/// The terminal, as it is while the board is shown; restored when this goes, also by a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, Error> {
        ratatui::try_init().map(Self).map_err(Error::Output)
    }

    fn draw(&mut self, board: &Board) -> Result<(), Error> {
        self.0.draw(|frame| board.draw(frame)).map(drop).map_err(Error::Output)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What the user wants.
enum Key {
    Quit,
    Freeze,
    /// The terminal has another size.
    Redraw,
}

/// Keys as they come. The thread ends with the process: reading cannot be interrupted.
fn keys() -> mpsc::UnboundedReceiver<Key> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
                    KeyCode::Char(' ') => Key::Freeze,
                    _ => continue,
                },
                Event::Resize(..) => Key::Redraw,
                _ => continue,
            };
            if sender.send(key).is_err() {
                break;
            }
        }
    });
    receiver
}

#[cfg(all(test, unix))]
mod tests {
    use std::{
        fs::File,
        io::Read,
        process::{Command, Stdio},
    };

    use nix::{
        pty::openpty,
        sys::termios::{LocalFlags, tcgetattr},
    };

    use super::Screen;

    #[test]
    #[ignore = "the test below starts it, on a terminal"]
    fn panics_while_the_board_is_shown() {
        let _screen = Screen::open().expect("a terminal");
        panic!("as planned");
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let pty = openpty(None, None).expect("a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "cli::live::tests::panics_while_the_board_is_shown", "--ignored", "--nocapture"])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("this program again");
        let mut output = File::from(pty.master.try_clone().expect("a descriptor"));
        let reader = std::thread::spawn(move || {
            let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                all.extend_from_slice(&bytes[..count]);
                if all.windows(11).any(|text| text == b"test result") {
                    break;
                }
            }
            String::from_utf8_lossy(&all).into_owned()
        });
        let text = reader.join().expect("it reads");
        assert!(!child.wait().expect("it ends").success(), "{text:?}");
        let at = |what: &str| text.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        // Onto the other screen, and back from it before the message.
        assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l") && text.contains("as planned"), "{text:?}");
        let flags = tcgetattr(&pty.slave).expect("its settings").local_flags;
        assert!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "{flags:?}");
    }
}
