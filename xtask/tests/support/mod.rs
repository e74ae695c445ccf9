//! What the tests on standing labs share.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use xtask::lab::{self, LabInfo, inside, run};

/// A lab that goes away with the test, however it ends.
pub(crate) struct Lab(pub(crate) LabInfo);

impl Lab {
    pub(crate) fn up(name: &str, profile: &str) -> Lab {
        Lab(lab::up(name, profile).unwrap())
    }
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

/// Run a command line, words separated by blanks, in a network namespace.
pub(crate) fn exec(namespace: &str, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    inside(namespace, || run(words[0], &words[1..], "")).unwrap()
}

pub(crate) fn address(lab: &LabInfo, pod: &str) -> String {
    lab.pod(pod).unwrap().address.to_string()
}

/// The `time=` values of ping's lines.
pub(crate) fn times(output: &str) -> Vec<Duration> {
    let milliseconds = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok();
    let times = output.lines().filter_map(milliseconds);
    times.map(|ms| Duration::from_secs_f64(ms / 1e3)).collect()
}

/// The sources of echo requests that arrive in a network namespace while `work` runs.
pub(crate) fn requests_seen(namespace: &str, work: impl FnOnce()) -> BTreeSet<String> {
    let table = "table ip watch {\n set seen {\n type ipv4_addr\n flags dynamic\n }\n \
                 chain prerouting {\n type filter hook prerouting priority 0\n \
                 icmp type echo-request add @seen { ip saddr }\n }\n}\n";
    inside(namespace, || run("nft", &["-f", "-"], table)).unwrap();
    work();
    let text = exec(namespace, "nft -j list set ip watch seen");
    exec(namespace, "nft delete table ip watch");
    let json: Value = serde_json::from_str(&text).unwrap();
    let sets = json["nftables"].as_array().unwrap().iter();
    let elements = sets.filter_map(|item| item["set"]["elem"].as_array()).flatten();
    elements.map(|element| element.as_str().unwrap().to_owned()).collect()
}
