//! Lines of text, with or without colour.

use std::fmt::Write as _;

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Paint {
    #[default]
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Doubtful,
}

impl Paint {
    /// The SGR parameters (ECMA-48).
    fn sgr(self) -> Option<&'static str> {
        match self {
            Paint::Plain => None,
            Paint::Bold => Some("1"),
            Paint::Dim => Some("2"),
            Paint::Good => Some("1;32"),
            Paint::Bad => Some("1;31"),
            Paint::Doubtful => Some("1;33"),
        }
    }
}

/// The text that is being written.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    color: bool,
    width: usize,
}

impl Page {
    pub(super) fn new(color: bool, width: usize) -> Page {
        Page { text: String::new(), color, width: width.max(60) }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    pub(super) fn blank(&mut self) {
        self.text.push('\n');
    }

    /// One line as it is, in pieces.
    pub(super) fn line(&mut self, pieces: &[(Paint, &str)]) {
        let last = pieces.iter().rposition(|(_, text)| !text.trim_end().is_empty());
        for (index, (paint, text)) in pieces.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
            self.piece(*paint, if Some(index) == last { text.trim_end() } else { text });
        }
        self.text.push('\n');
    }

    /// A paragraph: broken at blanks, the further lines indented. Its first word(s) `head` are painted.
    pub(super) fn wrapped(&mut self, paint: Paint, head: &str, rest: &str, indent: usize) {
        let mut lines = wrap(&format!("{head}{rest}"), self.width, self.width.saturating_sub(indent)).into_iter();
        let first = lines.next().unwrap_or_default();
        match first.strip_prefix(head) {
            Some(tail) => self.line(&[(paint, head), (Paint::Plain, tail)]),
            None => self.line(&[(paint, &first)]),
        }
        for line in lines {
            self.line(&[(Paint::Plain, &" ".repeat(indent)), (Paint::Plain, &line)]);
        }
    }

    fn piece(&mut self, paint: Paint, text: &str) {
        let text = clean(text);
        match paint.sgr().filter(|_| self.color && !text.trim().is_empty()) {
            Some(sgr) => {
                let _ = write!(self.text, "\u{1b}[{sgr}m{text}\u{1b}[0m");
            }
            None => self.text.push_str(&text),
        }
    }
}

/// Names come from files and other machines: none may steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Breaks at blanks; runs of blanks inside a line stay. A word longer than a line is left whole.
pub(super) fn wrap(text: &str, first: usize, further: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut gap = String::new();
    for word in text.split(' ') {
        let width = if lines.is_empty() { first } else { further };
        let length = line.chars().count() + gap.len() + word.chars().count();
        if !line.trim().is_empty() && !word.is_empty() && length > width {
            lines.push(std::mem::take(&mut line));
            gap.clear();
        }
        if !word.is_empty() {
            line.push_str(&gap);
            line.push_str(word);
            gap.clear();
        }
        gap.push(' ');
    }
    lines.push(line);
    lines
}
