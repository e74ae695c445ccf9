//! On a cluster as kubectl prints it (shortened), and on what no kubectl ever printed.

use std::{
    io::Write,
    net::IpAddr,
    time::{Duration, Instant},
};

use insta::assert_snapshot;
use proptest::prelude::*;

use super::{Directory, Error};
use crate::path::Names;

const CLUSTER: &str = include_str!("testdata/cluster.yaml");

fn directory() -> Directory {
    Directory::parse(CLUSTER, "cluster.yaml").expect("the sample parses").with_context("lab calico-bgp")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `name -> namespace/pod address on node`, or the message.
fn tell(directory: &Directory, name: &str) -> String {
    match directory.resolve(name, "default") {
        Ok(target) => {
            let name = target.name.as_deref().unwrap_or("-");
            let host = if target.host_network { " (host network)" } else { "" };
            let others = if target.other_addresses.is_empty() {
                String::new()
            } else {
                format!(" also {:?}", target.other_addresses)
            };
            format!("{name} {} on {}{host}{others}", target.address, target.node.as_deref().unwrap_or("-"))
        }
        Err(error) => format!("error: {error}"),
    }
}

fn told(names: &[&str]) -> String {
    let directory = directory();
    names.iter().map(|name| format!("{name:<28} {}\n", tell(&directory, name))).collect()
}

#[test]
fn resolves_every_form_of_name() {
    assert_snapshot!(told(&[
        "bb1",
        "default/bb1",
        "pod/bb1",
        "default/pod/bb1",
        "shop/web",
        "only-in-shop",
        "100.115.37.81",
        "fd00:1::51",
        "172.20.50.50",
        "svc/echo",
        "100.64.0.10",
        "ip-172-20-50-50",
        "ip-172-20-50-50.ec2.internal",
        "node/ip-172-20-50-50",
        "8.8.8.8",
        "kube-system/kube-proxy-a",
    ]));
}

#[test]
fn says_what_is_wrong_with_a_name() {
    assert_snapshot!(told(&[
        "bb9",
        "shop/bb1",
        "web",
        "twin",
        "www.google.com",
        "node/ip-172-20-50-51",
        "pending",
        "done",
        "svc/ecko",
        "svc/db",
        "default/svc/outside",
        "",
        "a//b",
        "a/b/c/d",
        "zzzzzzzz",
        "same-label",
    ]));
}

#[test]
fn names_addresses_only_by_pods_that_own_them() {
    let directory = directory();
    assert_eq!(directory.pod(address("100.115.37.81")).as_deref(), Some("default/bb1"));
    assert_eq!(directory.pod(address("fd00:1::51")).as_deref(), Some("default/bb1"));
    // Held by a finished pod only.
    assert_eq!(directory.pod(address("100.115.37.90")), None);
    // A host-network pod's address is its node's.
    assert_eq!(directory.pod(address("172.20.50.50")), None);
    assert_eq!(directory.node(address("172.20.50.50")).as_deref(), Some("ip-172-20-50-50.ec2.internal"));
    assert_eq!(directory.node(address("3.90.60.2")).as_deref(), Some("ip-172-20-50-50.ec2.internal"));
    // A terminating pod gives way to the one that has its address now.
    assert_eq!(directory.pod(address("100.115.37.95")).as_deref(), Some("default/heir"));
    assert_eq!(Directory::empty().pod(address("100.115.37.81")), None);
}

#[test]
fn json_and_a_stream_of_documents_mean_the_same() {
    let value: serde_json::Value = serde_norway::from_str(CLUSTER).expect("yaml");
    let json = serde_json::to_string_pretty(&value).expect("json");
    let stream: String = value["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| format!("---\n{}", serde_norway::to_string(item).expect("yaml")))
        .collect();
    let expected = format!("{:?}", directory().pods);
    for text in [json, stream] {
        let read = Directory::parse(&text, "x").expect("parses");
        assert_eq!(format!("{:?}", read.pods), expected);
        assert_eq!(format!("{:?}", read.services), format!("{:?}", directory().services));
    }
}

#[test]
fn a_list_of_one_kind_needs_no_kind_per_item() {
    let text =
        "kind: PodList\nitems:\n- metadata: {name: a, namespace: n}\n  status: {podIP: 10.0.0.1, phase: Running}\n";
    let read = Directory::parse(text, "x").expect("parses");
    assert_eq!(read.pod(address("10.0.0.1")).as_deref(), Some("n/a"));
}

fn message(text: &str) -> String {
    Directory::parse(text, "cluster.yaml").expect_err("must not parse").to_string()
}

#[test]
fn says_where_a_file_is_broken_and_how_to_make_one() {
    let broken = [
        "items:\n- kind: Pod\n  metadata: [",
        "kind: List\nitems:\n- kind: Pod\n  metadata:\n    name: [1]\n",
        "{\"kind\": \"List\",\n \"items\": [}",
        "",
        "just words",
        "kind: List\nitems: []\n",
        "kind: List\nitems:\n- kind: Node\n  metadata: {name: a}\n- kind: Secret\n- kind: Widget\n  spec: {nodeName: [1]}\n",
    ];
    assert_snapshot!(broken.map(message).join("\n\n"));
}

#[test]
fn says_which_file_cannot_be_read() {
    let missing = Directory::load("/nonexistent/cluster.yaml".as_ref()).expect_err("missing");
    assert_snapshot!(missing);
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(b"kind: \xff\xfe").expect("write");
    let binary = Directory::load(file.path()).expect_err("not text").to_string();
    assert!(binary.contains("not a text file") && binary.contains("kubectl get"), "{binary}");
}

/// Every level repeats the one before it ten times.
fn laughs(levels: usize) -> String {
    let mut text = "kind: List\nl0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..levels {
        let before = format!("*l{}", level - 1);
        text.push_str(&format!("l{level}: &l{level} [{}]\n", [before.as_str(); 10].join(", ")));
    }
    text
}

/// Few aliases, each of them large: what a limit on the number of aliases alone lets pass.
fn wide(size: usize) -> String {
    let pods = "- kind: Pod\n  metadata: {name: a}\n".repeat(size);
    let list = "- *all\n".repeat(size);
    format!("kind: List\nother: &all\n{pods}items:\n{list}")
}

#[test]
fn aliases_cannot_make_a_small_file_expensive() {
    for text in [laughs(9), laughs(40), wide(20_000)] {
        let begun = Instant::now();
        let error = Directory::parse(&text, "bomb.yaml").expect_err("a bomb");
        assert!(matches!(error, Error::Parse { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{} bytes took {:?}", text.len(), begun.elapsed());
    }
    let deep = format!("kind: List\nitems: {}{}", "[".repeat(2_000), "]".repeat(2_000));
    assert!(Directory::parse(&deep, "deep.yaml").is_err());
    let deep = format!("{{\"items\": {}", "[".repeat(2_000));
    assert!(Directory::parse(&deep, "deep.json").is_err());
}

#[test]
fn the_densest_text_without_aliases_is_within_the_limits() {
    let flow = format!("kind: List\nx: [{}]\ny: {{{}}}\n", "a,".repeat(5_000), "a: ");
    let escapes = format!("kind: List\nx: \"{}\"\n", "\\L".repeat(5_000));
    let block = format!("kind: List\nx:\n{}", "-\n".repeat(5_000));
    let json = format!("{{\"kind\":\"List\",\"x\":[{}0]}}", "0,[],{},\"\",".repeat(5_000));
    for text in [flow, escapes, block, json] {
        let error = Directory::parse(&text, "dense").expect_err("it has no pods");
        assert!(matches!(error, Error::NoPods { .. }), "{error}");
    }
}

#[test]
fn a_few_aliases_are_read_like_what_they_stand_for() {
    let text = "kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n  spec: {nodeName: &n node1}\n  status: {podIP: 10.0.0.1}\n- kind: Pod\n  metadata: {name: b}\n  spec: {nodeName: *n}\n  status: {podIP: 10.0.0.2}\n";
    let read = Directory::parse(text, "x").expect("parses");
    assert_eq!(tell(&read, "b"), "default/b 10.0.0.2 on node1");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}|[-:&*!\\[\\]{}a-z0-9 \n|>#'\"]{0,200}") {
        let _ = Directory::parse(&text, "hostile");
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(
        damage in prop::collection::vec((0..CLUSTER.len(), any::<u8>(), 0..4_usize), 1..8),
        name in "[ -~]{0,20}",
    ) {
        let mut bytes = CLUSTER.as_bytes().to_vec();
        for (place, byte, kind) in damage {
            let place = place % bytes.len();
            match kind {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                // The last byte stays: the next damage needs a place.
                2 if bytes.len() > 1 => { bytes.remove(place); }
                _ => bytes.truncate(place.max(1)),
            }
        }
        if let Ok(directory) = Directory::parse(&String::from_utf8_lossy(&bytes), "hostile") {
            let _ = directory.resolve(&name, "default");
            let _ = directory.resolve("bb1", "default");
        }
    }
}
