//! Recordings that are whole, cut off, damaged, or no recordings.

use std::{collections::BTreeSet, fs, io::Write as _, path::PathBuf, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;

use super::capture::{Capture, Index};
use super::{Closing, Entry, Error, Header, KnownNames, RecordedNode, Recording, Writer};
use crate::{
    event::{L4, Record, Sighting},
    path::{
        Ends, Evidence, Names, join_all,
        model::{Exchange, Outcome},
        testing::pings,
    },
    render,
    report::{PARTS, Report, compare},
    session::{Flow, replay},
};

/// Names for everything.
struct AllNames;

impl Names for AllNames {
    fn pod(&self, address: std::net::IpAddr) -> Option<String> {
        Some(format!("default/pod-{address}"))
    }

    fn node(&self, _: std::net::IpAddr) -> Option<String> {
        None
    }
}

fn header(evidence: &Evidence, ends: &Ends) -> Header {
    let flow = Flow { a: ends.source.address, b: None, protocol: 1, a_port: None, b_port: None, one_of: 1 };
    let nodes = evidence.nodes.iter();
    Header {
        program: "podpath 0.1.0".to_owned(),
        started: "2026-11-25T14:00:02Z".to_owned(),
        context: Some("a test".to_owned()),
        ends: ends.clone(),
        service: None,
        traffic: "icmp echo, passive".to_owned(),
        nodes: nodes.map(|node| RecordedNode { name: node.name.clone(), flows: vec![flow.clone()] }).collect(),
    }
}

/// The bytes of a recording; what the nodes say comes a piece of each in turn, each piece in a block of its own.
fn recorded(evidence: &Evidence, ends: &Ends) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), header(evidence, ends)).expect("a vector");
    let frames: Vec<_> = evidence.nodes.iter().map(replay::frames).collect();
    let most = frames.iter().map(Vec::len).max().unwrap_or(0);
    for turn in 0..most {
        for (node, frames) in frames.iter().enumerate() {
            if let Some(frame) = frames.get(turn) {
                let after = Duration::from_millis(turn as u64 * 10);
                writer.add(Entry::Heard { node, after, frame: frame.clone() }).expect("a vector");
            }
        }
        if turn == 1 {
            writer.add(Entry::AllRecord { after: Duration::from_millis(10) }).expect("a vector");
        }
        writer.flush().expect("a vector");
    }
    let addresses: BTreeSet<_> = [ends.source.address, ends.destination.address].into();
    let names = KnownNames::of(&AllNames, &addresses, evidence.nodes.iter().map(|node| &node.facts));
    writer.finish(names, Closing::default()).expect("a vector")
}

/// A recording of that, in a file.
pub(super) fn file_of(evidence: &Evidence, ends: &Ends) -> (TempDir, PathBuf) {
    file(&recorded(evidence, ends))
}

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("slow.ppr");
    fs::File::create_new(&path).and_then(|mut file| file.write_all(bytes)).expect("a file");
    (folder, path)
}

/// What all windows have together, and how many exchanges there are in each quarter of the time.
fn joined(recording: &mut Recording) -> (Vec<Exchange>, [usize; 4]) {
    let (mut all, mut parts) = (Vec::new(), [0; 4]);
    let taken = recording.exchanges(4, |exchange, part| {
        all.push(exchange.clone());
        parts[part] += 1;
    });
    taken.expect("it was good a moment ago");
    (all, parts)
}

#[test]
fn a_recording_has_what_the_sessions_said() {
    let (evidence, ends) = pings(3, 5, 0);
    let (_folder, path) = file(&recorded(&evidence, &ends));
    let mut recording = Recording::open(&path).expect("a recording");
    let contents = recording.contents.clone();
    assert_eq!(contents.header, header(&evidence, &ends));
    assert!(contents.closed && contents.torn == 0 && contents.driven.warnings.is_empty());
    assert_eq!(contents.records, evidence.nodes.iter().map(|node| node.records.len() as u64).sum::<u64>());
    assert_eq!(contents.names.pod(ends.source.address), Some(format!("default/pod-{}", ends.source.address)));
    let mut known = contents.driven.evidence.nodes.clone();
    for (known, said) in known.iter_mut().zip(&evidence.nodes) {
        assert_eq!((&known.facts, known.complete, known.lost), (&said.facts, true, 0));
        known.records.clone_from(&said.records);
    }
    let whole = Evidence { nodes: known, ..evidence };
    assert_eq!(joined(&mut recording).0, join_all(&whole, &ends, &contents.names).exchanges);
}

/// More names than go into a block: they are written in parts, and none is lost.
#[test]
fn names_of_any_number_are_kept() {
    let (evidence, ends) = pings(2, 1, 0);
    let addresses: BTreeSet<_> =
        (0..30_000_u32).map(|last| std::net::Ipv4Addr::from(0x0a00_0000 + last).into()).collect();
    let names = KnownNames::of(&AllNames, &addresses, []);
    let writer = Writer::new(Vec::new(), header(&evidence, &ends)).expect("a vector");
    let closing = Closing { warnings: vec!["it closed".to_owned()], interrupted: false };
    let (_folder, path) = file(&writer.finish(names.clone(), closing).expect("a vector"));
    let contents = Recording::open(&path).expect("a recording").contents;
    assert!(contents.closed && contents.torn == 0, "{:?}", contents.driven.warnings);
    assert_eq!((contents.names, contents.driven.warnings), (names, vec!["it closed".to_owned()]));

    let mut writer = Writer::new(Vec::new(), header(&evidence, &ends)).expect("a vector");
    let frame = vec![0; 2 << 20].into();
    let refused = writer.add(Entry::Heard { node: 0, after: Duration::ZERO, frame }).expect_err("too long");
    assert!(refused.to_string().contains("does not go into a block"), "{refused}");
}

#[test]
fn windows_have_each_exchange_once() {
    // More than one window holds, over more time than the margins take.
    let (evidence, ends) = pings(2, 25_000, 2_000_000);
    let (_folder, path) = file(&recorded(&evidence, &ends));
    let mut recording = Recording::open(&path).expect("a recording");
    assert!(recording.windows().count() > 1);
    let (joined, parts) = joined(&mut recording);
    assert_eq!(joined.len(), 25_000);
    let numbers: BTreeSet<u32> = joined.iter().map(|exchange| exchange.seq).collect();
    assert_eq!(numbers.len(), 25_000);
    let whole = joined.iter().all(|exchange| exchange.rtt_ns.is_some() && exchange.notes.is_empty());
    assert!(whole, "an exchange was cut by a window");
    assert!(parts.iter().all(|part| (6_125..6_375).contains(part)), "{parts:?}");
}

/// What is said of a recording: by itself, and against one in which the last node is slower and loses some.
#[test]
fn reports_and_comparisons_read_well() {
    let reported = |evidence: Evidence, ends: &Ends, slower: u64| {
        let (_folder, file) = file(&recorded(&evidence, ends));
        let mut recording = Recording::open(&file).expect("a recording");
        let (joined, _) = joined(&mut recording);
        let mut report = Report::new(0);
        for (index, mut exchange) in joined.into_iter().enumerate() {
            let (request, reply) = (&mut exchange.request.hops, &mut exchange.reply.hops);
            let late = request.iter_mut().filter(|hop| *hop.node == *"node1").skip(1).chain(reply.iter_mut());
            late.for_each(|hop| hop.at_ns = hop.at_ns.map(|at| at + slower + index as u64 % 7));
            exchange.rtt_ns = exchange.rtt_ns.map(|rtt| rtt + slower + index as u64 % 7);
            report.add(&exchange, index % PARTS);
        }
        (report, recording.contents)
    };
    let (evidence, ends) = pings(2, 300, 0);
    let (before, older) = reported(evidence.clone(), &ends, 0);
    let mut lossy = evidence;
    let lost = |record: &Record| match record {
        Record::Sighting(Sighting { packet, .. }) => matches!(packet.l4, L4::Icmp { seq, .. } if seq % 20 == 0),
        _ => false,
    };
    lossy.nodes[1].records.retain(|record| !lost(record));
    let back = |record: &Record| matches!(record, Record::Sighting(s) if s.packet.src == ends.destination.address);
    lossy.nodes[0].records.retain(|record| !(lost(record) && back(record)));
    let (now, contents) = reported(lossy, &ends, 40_000);
    let style = render::Style { color: false, width: 100, verbose: false };
    insta::assert_snapshot!("report", render::report(&now, &contents, &style));
    let findings = compare(&now, &before);
    let text = render::comparison(&findings, (&now, &contents), (&before, &older), &style);
    insta::assert_snapshot!("comparison", text);
    assert_eq!(compare(&before, &before), []);
    let nothing = render::comparison(&[], (&before, &older), (&before, &older), &style);
    insta::assert_snapshot!("nothing_changed", nothing);
}

#[test]
fn a_report_without_exchanges_says_for_how_long_and_what_was_lost() {
    let (mut evidence, ends) = pings(2, 3, 0);
    let seconds = Duration::from_secs;
    let mut reported = |lost| {
        evidence.nodes[0].lost = lost;
        let mut writer = Writer::new(Vec::new(), header(&evidence, &ends)).expect("a vector");
        let heard = |frame| Entry::Heard { node: 0, after: seconds(63), frame };
        // All of it is heard only after the end.
        let entries = [Entry::AllRecord { after: seconds(2) }, Entry::Stopping { after: seconds(62) }];
        let entries = entries.into_iter().chain(replay::frames(&evidence.nodes[0]).into_iter().map(heard));
        entries.for_each(|entry| writer.add(entry).expect("a vector"));
        let (_folder, path) = file(&writer.finish(KnownNames::default(), Closing::default()).expect("a vector"));
        let mut recording = Recording::open(&path).expect("a recording");
        assert_eq!(joined(&mut recording), (Vec::new(), [0; 4]));
        evidence.nodes[0].records.clear();
        let style = render::Style { color: false, width: 100, verbose: false };
        render::report(&Report::new(0), &recording.contents, &style).lines().next().unwrap_or_default().to_owned()
    };
    let told = [reported(4_321), reported(12), reported(0)];
    insta::assert_snapshot!(told.join("\n"), @r"
    NOTHING WHOLE: 27 records, of no request that began and ended in time  60.0 s  4,321 events lost
    NOTHING SEEN  60.0 s  12 events lost
    NOTHING SEEN  60.0 s  0 events lost
    ");
}

#[test]
fn a_report_of_nothing_that_arrived_has_no_empty_table() {
    let (evidence, ends) = pings(2, 1, 0);
    let (_folder, path) = file(&recorded(&evidence, &ends));
    let mut recording = Recording::open(&path).expect("a recording");
    let (all, _) = joined(&mut recording);
    let mut exchange = all[0].clone();
    let style = render::Style { color: false, width: 100, verbose: false };
    let text = |exchange: &Exchange| {
        let mut report = Report::new(0);
        report.add(exchange, 0);
        render::report(&report, &recording.contents, &style)
    };
    assert!(text(&exchange).contains("p50"));
    (exchange.outcome, exchange.rtt_ns) = (Outcome::Lost, None);
    (exchange.request.hops, exchange.reply.hops) = (Vec::new(), Vec::new());
    let told = text(&exchange);
    assert!(told.starts_with("DELIVERED 0/1, 1 lost") && !told.contains("p50"), "{told}");
}

#[test]
fn what_is_no_recording_is_said() {
    let (evidence, ends) = pings(2, 1, 0);
    let good = recorded(&evidence, &ends);
    let told = |bytes: &[u8]| {
        let (folder, path) = file(bytes);
        let error = Recording::open(&path).expect_err("not good").to_string();
        error.replace(&folder.path().display().to_string(), "")
    };
    let newer = [&good[..7], &[2], &good[8..]].concat();
    let cases = [told(b""), told(b"#!/bin/sh\n"), told(&good[..8]), told(&good[..100]), told(&newer)];
    insta::assert_snapshot!(cases.join("\n"), @r"
    /slow.ppr: no recording of podpath (its first bytes are others); `podpath record ... -w FILE` writes one
    /slow.ppr: no recording of podpath (its first bytes are others); `podpath record ... -w FILE` writes one
    recording /slow.ppr: it was cut off before its first block was whole: there is nothing in it; record again
    recording /slow.ppr: it was cut off before its first block was whole: there is nothing in it; record again
    recording /slow.ppr: its format is version 2, this podpath reads up to 1; read it with the podpath that wrote it, or a later one
    ");
    let error = Recording::open(std::path::Path::new("/nowhere/slow.ppr")).expect_err("there is none").to_string();
    insta::assert_snapshot!(error, @"recording /nowhere/slow.ppr: open: No such file or directory (os error 2)");
}

#[test]
fn a_capture_has_the_packets_and_tells_their_hops() {
    use pcap_file::pcapng::{
        Block, PcapNgReader,
        blocks::{enhanced_packet::EnhancedPacketOption, interface_description::InterfaceDescriptionOption},
    };

    let (evidence, ends) = pings(2, 2, 0);
    let (_folder, path) = file(&recorded(&evidence, &ends));
    let mut recording = Recording::open(&path).expect("a recording");
    let nodes = recording.contents.driven.nodes.clone();
    let (exchanges, _) = joined(&mut recording);
    let mut bytes = Vec::new();
    let mut capture = Capture::new(&mut bytes).expect("a vector");
    let index = Index::new(&evidence, &nodes);
    exchanges.iter().for_each(|exchange| capture.add(exchange, &index).expect("a vector"));
    capture.finish().expect("a vector");

    let mut reader = PcapNgReader::new(&bytes[..]).expect("a section");
    let (mut names, mut told, mut last) = (Vec::new(), Vec::new(), Duration::ZERO);
    while let Some(block) = reader.next_block() {
        match block.expect("a block") {
            Block::InterfaceDescription(of) => {
                let name = of.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                names.push(name.expect("a name"));
            }
            Block::EnhancedPacket(packet) => {
                assert!(packet.timestamp > last, "in order");
                last = packet.timestamp;
                let sum: u32 = packet.data[..20].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
                assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the header's checksum");
                assert_eq!((packet.original_len, packet.data.len()), (84, 36));
                let comments = packet.options.iter().filter_map(|option| match option {
                    EnhancedPacketOption::Comment(text) => Some(text.to_string()),
                    _ => None,
                });
                let comments: Vec<_> = comments.collect();
                told.push(format!("{}: {}", names[packet.interface_id as usize], comments.join(" | ")));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told.len(), 2 * 2 * 6);
    insta::assert_snapshot!("capture", told[..12].join("\n"));
}

#[test]
fn a_later_podpaths_entries_are_passed_over() {
    let (evidence, ends) = pings(2, 1, 0);
    let mut writer = Writer::new(Vec::new(), header(&evidence, &ends)).expect("a vector");
    writer.add(Entry::Unknown).expect("a vector");
    let bytes = writer.finish(KnownNames::default(), Closing::default()).expect("a vector");
    let (_folder, path) = file(&bytes);
    assert!(Recording::open(&path).expect("a recording").contents.closed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// However much of the end is missing: what is there is good, and that it is not all is said.
    #[test]
    fn a_recording_that_is_cut_off_is_good_up_to_there(cut in any::<prop::sample::Index>()) {
        let (evidence, ends) = pings(2, 40, 0);
        let bytes = recorded(&evidence, &ends);
        let (_folder, path) = file(&bytes[..cut.index(bytes.len())]);
        if let Ok(mut recording) = Recording::open(&path) {
            prop_assert!(!recording.contents.closed);
            prop_assert!(recording.contents.driven.warnings[0].contains("was cut off"));
            let (whole, _) = { let (_folder, path) = file(&bytes); joined(&mut Recording::open(&path).expect("whole")) };
            let (part, _) = joined(&mut recording);
            for exchange in part.iter().filter(|exchange| exchange.rtt_ns.is_some()) {
                let same = |other: &&Exchange| other.rtt_ns == exchange.rtt_ns;
                prop_assert!(whole.iter().any(|other| same(&other)));
            }
        }
    }

    /// A byte that changed is found, or is in nothing that matters; nothing panics.
    #[test]
    fn a_damaged_recording_is_not_misread(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let (evidence, ends) = pings(2, 3, 0);
        let mut bytes = recorded(&evidence, &ends);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (_folder, path) = file(&bytes);
        match Recording::open(&path) {
            Ok(recording) => prop_assert!(!recording.contents.closed, "byte {at} is in a block, but nothing was missed"),
            Err(Error::NotOne { .. } | Error::Newer { .. } | Error::Empty { .. }) => prop_assert!(at < 1_000),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
