//! Networks from seeds, each traced by the real binaries and held against a model of Linux' forwarding: a test per network.
//! `cargo xtask truth --seed N --count M` runs others, and more.
//!
//! Needs root, the tools of `xtask::lab::PACKAGES`, `podpath` and `podpath-agent` in the target folder, and the kernel object
//! built in; fails without them.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use xtask::{interrupt, truth};

/// How many; their seeds count from 1.
const NETWORKS: u64 = 25;

/// Others, in which podpath once said something else than the model: a node that was not asked for what NAT had made of a request,
/// behind a gateway and in a loop; NAT to another port of the same bridge, also where a rule then drops it; a service without
/// endpoints that a node asks itself; one whose endpoint the node itself has no route to; a datagram that dies before its first
/// device behind DNAT; an error that the rules of its receiver drop; a reply that mangle drops; a firewall that drops a tunnel's
/// packets; routers that cannot answer; a pod that asks itself by another node's port; live traffic to two
/// endpoints; a loop in which conntrack changes the source port at each round.
const FOUND: [u64; 14] = [3084, 3314, 3392, 5214, 6044, 9018, 9137, 9176, 9188, 9203, 9220, 9260, 9264, 9426];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: all are called the same, and times out of time are taken for losses.
    arguments.test_threads.get_or_insert(1);
    if let Err(error) = interrupt::watch() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let trial = |seed: u64| {
        Trial::test(format!("network-{seed}"), move || Ok(agrees(seed).map_err(|error| format!("{error:#}"))?))
    };
    libtest_mimic::run(&arguments, (1..=NETWORKS).chain(FOUND).map(trial).collect()).exit_code()
}

fn agrees(seed: u64) -> anyhow::Result<()> {
    if interrupt::received().is_some() {
        anyhow::bail!("interrupted");
    }
    let own = std::env::current_exe()?;
    // target/<profile>/deps/truth-<hash>
    let podpath = own.ancestors().nth(2).map(|folder| folder.join("podpath")).filter(|podpath| podpath.is_file());
    let podpath = podpath.ok_or_else(|| {
        anyhow::anyhow!(
            "no podpath beside {}: run the tests by `cargo xtask test`, which builds all they need",
            own.display()
        )
    })?;
    let (tally, told) = truth::one(seed, &truth::Place { podpath, ipip: false, slow: false }, false)?;
    anyhow::ensure!(tally.traces > 0, "nothing was traced");
    anyhow::ensure!(tally.wrong == 0, "{told}");
    Ok(())
}
