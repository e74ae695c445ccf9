//! What the benches measure on: two network namespaces of their own, joined by a veth pair.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// The namespaces of A and of B; removed on drop.
pub(crate) struct Wire(pub(crate) [&'static str; 2]);

impl Wire {
    /// `more`: commands for the shell that set up what else the bench needs.
    pub(crate) fn new(names: [&'static str; 2], more: &str) -> Result<Self> {
        let wire = Self(names);
        // Of a bench that was killed.
        wire.remove();
        let [a, b] = names;
        sh(&format!(
            "ip netns add {a}; ip netns add {b}
             ip link add e0 netns {a} type veth peer name e1 netns {b}
             ip -n {a} addr add {A}/24 dev e0; ip -n {b} addr add {B}/24 dev e1
             ip -n {a} link set lo up; ip -n {a} link set e0 up; ip -n {b} link set lo up; ip -n {b} link set e1 up
             {more}
             ip netns exec {a} ping -n -q -c 1 -W 5 {B}"
        ))?;
        Ok(wire)
    }

    fn remove(&self) {
        for name in self.0 {
            let _absent = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.remove();
    }
}

pub(crate) fn sh(line: &str) -> Result<()> {
    let output = Command::new("sh").arg("-ec").arg(line).stdin(Stdio::null()).output().context("run sh")?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
