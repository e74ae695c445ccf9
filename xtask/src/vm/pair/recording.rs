//! Live traffic recorded on two VMs, for so long that their clocks drift apart by more than a packet is on the wire.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{Pair, claims};
use crate::{lab::LabInfo, proc, scenario::report::Exchange, vm::suite::READY_WITHIN};

/// Clocks that differ by 300 millionths are 6 ms further apart at its end; a ping takes about two.
const SECONDS: u32 = 20;
/// Pings that are seen in it at the least: five a second are sent.
const FEWEST: usize = 50;

impl Pair<'_> {
    /// Records pings from the source's pod, in the second VM, to the destination: what each exchange says of the clocks, or what
    /// is wrong.
    pub(super) fn recorded(&self, ends: [&str; 2], labs: &[LabInfo; 2], inventory: &Path) -> Result<String> {
        let pod = |end: usize| labs[1].pod(ends[end]);
        let (from, to) = (&pod(0)?.namespace, pod(1)?.address);
        self.shell(1, &format!("ip netns exec {from} ping -n -q -i 0.2 -w 200 {to} > /dev/null 2>&1 &"))?;
        let file = inventory.with_file_name("pings.ppr");
        let before = self.clocks()?;
        let mut record = Command::new(self.bench.payload.program("podpath")?);
        record.arg("record").args(ends).arg("--inventory").arg(inventory).arg("-w").arg(&file);
        record.args(["--for", &format!("{SECONDS}s"), "--ready-within", &READY_WITHIN.to_string()]);
        let said = proc::collected(&mut record, self.left()?)?;
        let after = self.clocks()?;
        self.shell(1, "pkill ping")?;
        ensure!(said.status.success(), "podpath record: {}{}", proc::ended(said.status), said.stderr);
        let mut convert = Command::new(self.bench.payload.program("podpath")?);
        let lines = proc::collected(convert.args(["convert", "--to", "jsonl"]).arg(&file), self.left()?)?.stdout;
        let exchanges = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Exchange>, _>>();
        let exchanges = exchanges.with_context(|| format!("read what `podpath convert` printed: {lines}"))?;
        let whole: Vec<Exchange> = exchanges.into_iter().filter(|exchange| exchange.outcome == "delivered").collect();
        ensure!(whole.len() >= FEWEST, "{} exchanges were delivered\n{}", whole.len(), said.stderr);
        for Exchange { seq, rtt_ns, shares, .. } in &whole {
            let sum: u64 = shares.iter().map(|share| share.ns).sum();
            ensure!(*rtt_ns == Some(sum), "exchange {seq}: {rtt_ns:?} ns are not the sum of its shares, {sum} ns");
        }
        claims(&whole, labs, [before, after])
    }
}
