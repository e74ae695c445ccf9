//! The terminal: colour, width, progress, and writing that survives a closed pipe.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Text that goes into a file or another program is laid out for this many columns.
const PIPE_WIDTH: usize = 200;
/// Of a terminal that does not say how wide it is.
const TERMINAL_WIDTH: usize = 80;
/// Below this many columns no layout works.
const NARROWEST: usize = 40;

/// How output looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// With colour.
    pub(super) color: bool,
    /// Columns.
    pub(super) width: usize,
}

/// What decides the look.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// Standard output is a terminal.
    pub(super) terminal: bool,
    /// Columns it says it has.
    pub(super) columns: Option<u16>,
    /// Variable `COLUMNS`.
    pub(super) columns_variable: Option<String>,
    /// Variable `NO_COLOR` (no-color.org): set and not empty means no.
    pub(super) no_color: Option<String>,
    /// Variable `CLICOLOR`: 0 means no.
    pub(super) clicolor: Option<String>,
    /// Variable `CLICOLOR_FORCE`: set and not 0 means yes, in a pipe too.
    pub(super) clicolor_force: Option<String>,
    /// Variable `TERM`: `dumb` means no.
    pub(super) term: Option<String>,
}

impl Surroundings {
    /// Those of this process.
    pub(super) fn of_stdout() -> Self {
        let variable = |name| env::var(name).ok();
        Self {
            terminal: io::stdout().is_terminal(),
            columns: terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0),
            columns_variable: variable("COLUMNS"),
            no_color: variable("NO_COLOR"),
            clicolor: variable("CLICOLOR"),
            clicolor_force: variable("CLICOLOR_FORCE"),
            term: variable("TERM"),
        }
    }

    /// How output looks there.
    pub(super) fn look(&self) -> Look {
        let set = |value: &Option<String>| value.as_deref().is_some_and(|value| !value.is_empty());
        let color = if set(&self.no_color) {
            false
        } else if set(&self.clicolor_force) && self.clicolor_force.as_deref() != Some("0") {
            true
        } else {
            self.terminal && self.clicolor.as_deref() != Some("0") && self.term.as_deref() != Some("dumb")
        };
        let asked = self.columns_variable.as_deref().and_then(|value| value.parse().ok()).filter(|&width| width > 0);
        let own = if self.terminal { self.columns.map_or(TERMINAL_WIDTH, usize::from) } else { PIPE_WIDTH };
        Look { color, width: asked.unwrap_or(own).max(NARROWEST) }
    }
}

/// Tells a person at a terminal what is being done; silent everywhere else.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Starts with `text`.
    pub(super) fn start(text: String) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(text);
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// From now on it is this.
    pub(super) fn now(&self, text: String) {
        self.0.set_message(text);
    }

    /// For a program that waits for this moment: a line where progress is not shown.
    pub(super) fn reached(&self, text: &str) {
        if self.0.is_hidden() {
            write_stderr(text);
        }
    }

    /// To be cleared from elsewhere.
    pub(super) fn line(&self) -> Line {
        Line(self.0.clone())
    }
}

/// Shows a person at a terminal how much of something is done; elsewhere only what is said.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Starts with nothing done.
    pub(super) fn start(of: usize, text: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(of as u64).with_message(text);
        bar.set_style(style(of));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// So many are done.
    pub(super) fn at(&self, done: usize, of: usize, text: String) {
        self.0.set_style(style(of));
        self.0.set_length(of as u64);
        self.0.set_position(done as u64);
        self.0.set_message(text);
    }

    /// Writes to standard error, above the bar.
    pub(super) fn say(&self, text: &str) {
        self.0.suspend(|| write_stderr(text));
    }
}

/// Of an unknown number of things only the text is shown.
fn style(of: usize) -> ProgressStyle {
    let template = if of == 0 { "{spinner} {msg}" } else { "{spinner} [{bar:30}] {pos}/{len} {msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The line that progress is shown on.
#[derive(Clone, Debug)]
pub(super) struct Line(ProgressBar);

impl Line {
    /// Leaves it empty, for a process that is about to end.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Writes everything to standard output. A reader that has gone (`| head`) wants no more, and that is no error.
///
/// # Errors
/// Any other failure, such as a full disk.
pub(super) fn write_stdout(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes to standard error; there is nowhere to complain if that fails.
pub(super) fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn a_pipe_is_plain_and_wide() {
        assert_eq!(Surroundings::default().look(), Look { color: false, width: PIPE_WIDTH });
    }

    #[test]
    fn a_terminal_has_its_colour_and_width() {
        let terminal = Surroundings { terminal: true, columns: Some(132), ..Surroundings::default() };
        assert_eq!(terminal.look(), Look { color: true, width: 132 });
        let unknown = Surroundings { columns: None, ..terminal.clone() };
        assert_eq!(unknown.look().width, 80);
        let tiny = Surroundings { columns: Some(3), ..terminal };
        assert_eq!(tiny.look().width, NARROWEST);
    }

    #[test]
    fn variables_overrule() {
        let terminal = Surroundings { terminal: true, columns: Some(132), ..Surroundings::default() };
        let color = |surroundings: Surroundings| surroundings.look().color;
        assert!(!color(Surroundings { no_color: some("1"), clicolor_force: some("1"), ..terminal.clone() }));
        assert!(color(Surroundings { no_color: some(""), ..terminal.clone() }), "empty means unset");
        assert!(!color(Surroundings { clicolor: some("0"), ..terminal.clone() }));
        assert!(!color(Surroundings { term: some("dumb"), ..terminal.clone() }));
        assert!(color(Surroundings { clicolor_force: some("1"), ..Surroundings::default() }));
        assert!(!color(Surroundings { clicolor_force: some("0"), ..Surroundings::default() }));
        assert_eq!(Surroundings { columns_variable: some("60"), ..terminal.clone() }.look().width, 60);
        assert_eq!(Surroundings { columns_variable: some("x"), ..terminal }.look().width, 132);
    }
}
