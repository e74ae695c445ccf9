//! The board on screens of two sizes.

use std::{net::IpAddr, time::Duration};

use ratatui::{Terminal, backend::TestBackend};

use super::Board;
use crate::{
    path::{Names, join_all, model::Outcome, testing::pings},
    report::Report,
};

struct Pods;

impl Names for Pods {
    fn pod(&self, address: IpAddr) -> Option<String> {
        match address.to_string().as_str() {
            "100.64.0.11" => Some("shop/web".to_owned()),
            _ => Some("shop/db".to_owned()),
        }
    }

    fn node(&self, _: IpAddr) -> Option<String> {
        None
    }
}

/// As a terminal of so many columns and rows shows it.
fn screen(board: &Board, columns: u16, rows: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a screen");
    terminal.draw(|frame| board.draw(frame)).expect("it is drawn");
    let buffer = terminal.backend().buffer().clone();
    let line = |row| (0..columns).map(|column| buffer[(column, row)].symbol().to_owned()).collect::<String>();
    (0..rows).map(|row| line(row).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn board(seconds: u64) -> Board {
    let (evidence, mut ends) = pings(2, 60, 0);
    ends.source.name = Some("shop/web".to_owned());
    ends.destination.name = Some("shop/db".to_owned());
    let mut board = Board::new(&ends.source, &ends.destination, "icmp echo, passive", ["node0", "node1"].into_iter());
    "2 nodes armed".clone_into(&mut board.status);
    let joined = join_all(&evidence, &ends, &Pods);
    for second in 0..seconds {
        let mut report = Report::new(0);
        for (index, mut exchange) in joined.exchanges.iter().cloned().enumerate() {
            // The answer takes longer and longer, and now and then there is none.
            let more = 10_000 + second * 2_000 + index as u64 * 50;
            exchange.reply.hops.iter_mut().for_each(|hop| hop.at_ns = hop.at_ns.map(|at| at + more));
            exchange.rtt_ns = exchange.rtt_ns.map(|rtt| rtt + more);
            if index == 7 {
                exchange.outcome = Outcome::Lost;
                exchange.notes = vec!["reply: the request arrived, but no reply to it was seen leaving".to_owned()];
                exchange.rtt_ns = None;
            }
            report.add(&exchange, 0);
        }
        board.since = Duration::from_secs(second + 1);
        board.add(report);
    }
    board
}

#[test]
fn a_small_screen_has_the_whole_of_it() {
    insta::assert_snapshot!(screen(&board(70), 80, 24));
}

#[test]
fn a_large_one_has_room() {
    insta::assert_snapshot!(screen(&board(70), 200, 60));
}

#[test]
fn what_it_leaves_out_it_says() {
    let mut board = board(1);
    assert!(!screen(&board, 80, 24).contains("only counted"));
    let mut second = Report::new(0);
    second.left_out.ways = 7;
    board.add(second);
    let text = screen(&board, 100, 24);
    assert!(text.contains("7 ways were unlike all that is told"), "{text}");
    assert!(text.contains("q quits"), "{text}");
}

#[test]
fn until_something_is_seen_it_says_so() {
    let text = screen(&board(0), 80, 24);
    assert!(text.contains("2 nodes armed: nothing seen yet"), "{text}");
}

#[test]
fn on_a_tiny_one_the_largest_segments_are_left() {
    let text = screen(&board(3), 60, 10);
    assert!(text.contains("answer") && text.contains("q quits"), "{text}");
}

#[test]
fn what_is_frozen_does_not_change() {
    let mut board = board(3);
    board.frozen = true;
    let before = screen(&board, 80, 24);
    assert!(before.contains("FROZEN"));
    board.add(Report::new(0));
    assert_eq!(screen(&board, 80, 24), before);
}
