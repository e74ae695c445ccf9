//! A lab, and its configuration as text.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use xtask::lab::{self, LabInfo, inside, run};

/// Everything configured that a tracer could have changed. No counters, no neighbours, no addresses that the kernel itself
/// still checks.
const CONFIGURED: &[&str] = &[
    "ip -br link",
    "ip -4 address",
    "ip -4 route show table all",
    "ip -4 rule",
    "ip -6 rule",
    "tc qdisc show",
    "nft -s list ruleset",
];

/// A lab that goes away with the test, however it ends.
pub(crate) struct Lab(LabInfo);

impl Lab {
    pub(crate) fn up(name: &str) -> Lab {
        Lab(lab::up(name, "calico-bgp").unwrap())
    }

    /// The configuration of each of its namespaces, and which namespaces of its name there are.
    pub(crate) fn configuration(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, String> =
            self.0.namespaces.iter().map(|name| (name.clone(), configured(name))).collect();
        let names = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut own: Vec<String> = names.filter(|name| name.starts_with(&format!("{}-", self.0.name))).collect();
        own.sort();
        all.insert("namespaces".to_owned(), own.join(" "));
        all
    }

    /// Packets that `pod` has sent by eth0.
    pub(crate) fn sent(&self, pod: &str) -> u64 {
        let text = exec(&self.0.pod(pod).unwrap().namespace, "cat /proc/net/dev");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
        line.split_whitespace().nth(9).unwrap().parse().unwrap()
    }

    /// Inode of a node's network namespace.
    pub(crate) fn inode(&self, node: &str) -> u64 {
        fs::metadata(format!("/run/netns/{}", self.node(node).unwrap().namespace)).unwrap().ino()
    }
}

fn configured(namespace: &str) -> String {
    CONFIGURED.iter().map(|line| format!("{line}\n{}\n", without_state(&exec(namespace, line)))).collect()
}

/// A new link's operational state settles by itself within a second or so: it is not configured.
fn without_state(text: &str) -> String {
    let state = |word: &&str| !["UNKNOWN", "UP"].contains(word);
    text.lines().map(|line| line.split_whitespace().filter(state).collect::<Vec<_>>().join(" ") + "\n").collect()
}

fn exec(namespace: &str, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    inside(namespace, || run(words[0], &words[1..], "")).unwrap()
}

impl Drop for Lab {
    fn drop(&mut self) {
        lab::down(&self.0.name).unwrap();
    }
}

impl std::ops::Deref for Lab {
    type Target = LabInfo;
    fn deref(&self) -> &LabInfo {
        &self.0
    }
}
