//! The board of `podpath watch`: live traffic, drawn into whatever terminal there is.

use std::{collections::VecDeque, time::Duration};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Sparkline},
};

use super::{
    names::Names,
    report::{failure, grouped, percent, segments, shares},
    units::time,
};
use crate::{
    path::model::{Endpoint, Outcome},
    report::Report,
};

/// So many seconds are told together.
const TOLD: usize = 10;

/// And of so many the round trips are drawn.
const DRAWN: usize = 300;

/// Rows of the round trips' line.
const LINE: u16 = 4;

/// More lines of failures nobody reads while they change.
const MOST_FAILURES: usize = 3;

/// What is shown.
pub struct Board {
    source: String,
    destination: String,
    traffic: String,
    names: Names,
    /// One for each second, the last one last; at most so many as are told.
    seconds: VecDeque<Report>,
    /// Medians of the round trips of each second, ns; 0 without any.
    trips: VecDeque<u64>,
    /// All since it began.
    exchanges: u64,
    failed: u64,
    /// Events that were not recorded.
    pub lost: u64,
    /// How it stands, until exchanges are seen: `arming 2 nodes`.
    pub status: String,
    /// How long it has been recording.
    pub since: Duration,
    /// What is new is not shown.
    pub frozen: bool,
}

impl Board {
    /// Between these two, over these nodes.
    pub fn new<'n>(
        source: &Endpoint,
        destination: &Endpoint,
        traffic: &str,
        nodes: impl Iterator<Item = &'n str>,
    ) -> Self {
        let name = |end: &Endpoint| end.name.clone().unwrap_or_else(|| end.address.to_string());
        Self {
            source: name(source),
            destination: name(destination),
            traffic: traffic.to_owned(),
            names: Names::of_nodes(nodes),
            seconds: VecDeque::new(),
            trips: VecDeque::new(),
            exchanges: 0,
            failed: 0,
            lost: 0,
            status: String::new(),
            since: Duration::ZERO,
            frozen: false,
        }
    }

    /// The exchanges of another second.
    pub fn add(&mut self, second: Report) {
        self.exchanges += second.exchanges();
        self.failed += second.exchanges() - second.ended(Outcome::Delivered);
        if self.frozen {
            return;
        }
        self.trips.push_back(second.round_trip().percentile(50.0));
        self.seconds.push_back(second);
        while self.trips.len() > DRAWN {
            self.trips.pop_front();
        }
        while self.seconds.len() > TOLD {
            self.seconds.pop_front();
        }
    }

    /// Draws it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let mut told = Report::new(0);
        self.seconds.iter().for_each(|second| told.merge(second));
        let failures = u16::try_from(told.failures.len().min(MOST_FAILURES)).unwrap_or(0);
        let line = if frame.area().height >= 20 { LINE + 1 } else { 1 };
        let rows = [Constraint::Length(2), Constraint::Length(line), Constraint::Min(3)];
        let left_out = told.left_out.sentence();
        let rows = rows.into_iter().chain([failures, u16::from(left_out.is_some()), 1].map(Constraint::Length));
        let areas = Layout::vertical(rows).split(frame.area());
        self.head(frame, areas[0], &told);
        self.round_trips(frame, areas[1], &told);
        self.table(frame, areas[2], &told);
        self.failures(frame, areas[3], &told);
        let keys = "q quits  space freezes";
        let frozen = if self.frozen { "  FROZEN: space goes on" } else { "" };
        let help = Line::from(vec![keys.into(), Span::styled(frozen, bold(Color::Yellow))]);
        frame.render_widget(Paragraph::new(left_out.unwrap_or_default()).style(Color::Yellow), areas[4]);
        frame.render_widget(Paragraph::new(help).style(dim()), areas[5]);
    }

    fn head(&self, frame: &mut Frame<'_>, area: Rect, told: &Report) {
        let Self { source, destination, traffic, since, .. } = self;
        let title = format!("{source} -> {destination}  {traffic}  {} s", since.as_secs());
        let seconds = self.seconds.len().max(1) as u64;
        let (all, delivered) = (told.exchanges(), told.ended(Outcome::Delivered));
        let counts = if self.exchanges == 0 {
            Line::styled(format!("{}: nothing seen yet", self.status), bold(Color::Yellow))
        } else {
            let color = if delivered == all { Color::Green } else { Color::Red };
            let (total, failed, lost) = (grouped(self.exchanges), grouped(self.failed), grouped(self.lost));
            let verdict = format!("DELIVERED {}", percent(delivered.into(), all.into()));
            let rest = format!("  {}/s  in all {total}, {failed} failed, {lost} events lost", grouped(all / seconds));
            Line::from(vec![Span::styled(verdict, bold(color)), rest.into()])
        };
        let title = Line::styled(title, Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Paragraph::new(vec![title, counts]), area);
    }

    fn round_trips(&self, frame: &mut Frame<'_>, area: Rect, told: &Report) {
        let trips = told.round_trip();
        let text = if trips.count() == 0 {
            "round trip".to_owned()
        } else {
            let at = |percent| time(trips.percentile(percent));
            let max = time(trips.histogram.max());
            format!("round trip  p50 {}  p90 {}  p99 {}  max {max}", at(50.0), at(90.0), at(99.0))
        };
        let areas = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).split(area);
        frame.render_widget(Paragraph::new(text), areas[0]);
        let width = usize::from(areas[1].width);
        let last: Vec<u64> = self.trips.iter().rev().take(width).rev().copied().collect();
        frame.render_widget(Sparkline::default().data(last).style(Style::new().fg(Color::Cyan)), areas[1]);
    }

    fn table(&self, frame: &mut Frame<'_>, area: Rect, told: &Report) {
        let rows = segments(told, &self.names);
        let shares = shares(told);
        let widest = |column: usize| rows.iter().map(|row| row.words[column].chars().count()).max().unwrap_or(0);
        let words: [usize; 3] = std::array::from_fn(widest);
        let numbers = 8;
        let used = words.iter().map(|width| width + 1).sum::<usize>() + 2 * (numbers + 1);
        let room = usize::from(area.width).saturating_sub(used + 1);
        let mut lines = vec![Line::styled(
            format!(
                "{:<a$} {:<b$} {:<c$} {:>numbers$} {:>numbers$} share",
                "where",
                "interface",
                "what",
                "p50 us",
                "p99 us",
                a = words[0],
                b = words[1],
                c = words[2]
            ),
            dim(),
        )];
        let mut of_segment = shares.into_iter();
        let mut told = Vec::new();
        for row in &rows {
            let is_head = row.numbers[0].is_empty();
            let share = if is_head { None } else { of_segment.next() };
            let mut text = String::new();
            for (word, width) in row.words.iter().zip(words) {
                text.push_str(&format!("{word:<width$} "));
            }
            text.push_str(&format!("{:>numbers$} {:>numbers$} ", row.numbers[0], row.numbers[2]));
            let bar = "#".repeat(share.map_or(0, |share| (share * room as f64).round() as usize).min(room));
            let style = if is_head { dim() } else { Style::new() };
            let line = Line::from(vec![Span::styled(text, style), Span::styled(bar, Style::new().fg(Color::Cyan))]);
            // On a tiny screen they tell less than a segment.
            told.push((share.unwrap_or(if area.height < 8 { 0.0 } else { 1.0 }), line));
        }
        // Where not all have room, the largest do.
        let room = usize::from(area.height).saturating_sub(1);
        let left_out = if told.len() > room { told.len() - room.saturating_sub(1) } else { 0 };
        let mut largest: Vec<usize> = (0..told.len()).collect();
        largest.sort_by(|a, b| told[*b].0.total_cmp(&told[*a].0));
        largest.truncate(told.len() - left_out);
        let shown = told.into_iter().enumerate().filter(|(index, _)| largest.contains(index));
        lines.extend(shown.map(|(_, (_, line))| line));
        if left_out > 0 {
            lines.push(Line::styled(format!("{left_out} more have no room"), dim()));
        }
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn failures(&self, frame: &mut Frame<'_>, area: Rect, told: &Report) {
        let mut failures: Vec<_> = told.failures.iter().collect();
        failures.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let line = |(of, count): &(&crate::report::Failure, &u64)| {
            let (what, place) = failure(of, &self.names);
            let head = Span::styled(format!("{} {what}", grouped(**count)), bold(Color::Red));
            Line::from(vec![head, format!("  {place}").into()])
        };
        let lines: Vec<Line<'_>> = failures.iter().take(MOST_FAILURES).map(line).collect();
        frame.render_widget(Paragraph::new(lines), area);
    }
}

fn bold(color: Color) -> Style {
    Style::new().fg(color).add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}
