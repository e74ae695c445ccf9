//! What this kernel lets the programs do: tried out, not concluded from its version.

use tracer_common::{ABSENT, Pages};

use super::{Error, Lack, Probe, Setup, Why, btf::KernelTypes, hooks, layout, pages};
use crate::doctor::{Check, State};

/// The smallest ring that the kernel accepts where pages are 64 KiB, bytes: enough to try.
const SMALL_RING: u32 = 1 << 16;

/// Loads the programs, attaches nothing, and says what this kernel has. Everything is unloaded again on return.
pub fn checks() -> Vec<Check> {
    let mut checks = match KernelTypes::open() {
        Ok(types) => of_types(&types),
        // Its own check says so already.
        Err(_) => Vec::new(),
    };
    let mut probe = Probe::load(&Setup { flows: &[], scope: &[], ring_size: SMALL_RING });
    if let Ok(probe) = &mut probe {
        checks.extend(kprobes(probe));
    }
    checks.push(programs(probe.map(drop)));
    checks
}

/// A kprobe is known to work only when it is attached, which is done for a moment; it has nothing to look for.
fn kprobes(probe: &mut Probe) -> Vec<Check> {
    let tried: Vec<_> = hooks::kprobes().map(|hook| (hook, probe.attach(hook))).collect();
    let mut checks = Vec::new();
    for (hook, attached) in tried {
        let lack = probe.without().iter().find(|lack| lack.hook == hook);
        let (state, detail) = match (attached, lack) {
            (Err(error), _) => (State::Missing, first_line(&error.to_string())),
            (Ok(()), None) => (State::Ok, "attached; detached again".to_owned()),
            (Ok(()), Some(Lack { why: why @ Why::NoModule(_), .. })) => (State::Ok, format!("{why}: nothing uses it")),
            (Ok(()), Some(Lack { why, .. })) => (State::Missing, why.to_string()),
        };
        checks.push(Check { name: hook.name.to_owned(), state, detail, cost: hook.cost.to_owned() });
    }
    checks
}

fn check(name: &str, ok: bool, otherwise: State, found: &str, cost: &str) -> Check {
    let state = if ok { State::Ok } else { otherwise };
    let detail = if ok { found.to_owned() } else { format!("not {found}") };
    Check { name: name.to_owned(), state, detail, cost: cost.to_owned() }
}

fn of_types(types: &KernelTypes) -> Vec<Check> {
    let missing = hooks::missing_tracepoints(types);
    let hooks = if missing.is_empty() { "all five in this kernel's BTF".to_owned() } else { missing.join(", ") };
    let mut checks = vec![Check {
        name: "tracepoints".to_owned(),
        state: if missing.is_empty() { State::Ok } else { State::Fatal },
        detail: hooks,
        cost: "packets cannot be seen there; a kernel of 5.8 or later has them".to_owned(),
    }];
    // Without a layout the programs cannot be loaded, which is checked by itself.
    if let Ok(layout) = layout::resolve(types) {
        checks.push(check(
            "NAT tuples",
            layout.skb_nfct != ABSENT,
            State::Missing,
            "readable from the packet's conntrack entry",
            "NAT is concluded from addresses that change, and replies to a translated address are not seen; this kernel has \
             no conntrack, or not its types in BTF",
        ));
        checks.push(check(
            "drop reasons",
            layout.kfree_reason_arg != ABSENT,
            State::Missing,
            "named by this kernel",
            "drops are explained by the function that freed the packet; kernels have reasons from 5.17",
        ));
        checks.push(check(
            "place of frees",
            layout.consume_location_arg != ABSENT,
            State::Missing,
            "known for packets freed as done",
            "only a dropped packet's free says where; kernels tell the other from about 6.3",
        ));
        checks.push(fragments(pages::read(types, &layout)));
    }
    checks
}

/// Many drivers leave a packet's headers in page fragments: virtio_net from 5.13, gve, ena.
fn fragments(pages: Result<Pages, pages::Why>) -> Check {
    let (state, detail) = match pages {
        Ok(_) => (State::Ok, "readable".to_owned()),
        Err(why) => (State::Missing, why.to_string()),
    };
    Check {
        name: "page fragments".to_owned(),
        state,
        detail,
        cost:
            "hops are missing, and counted, where a network card's driver leaves a packet's headers in page fragments \
               (virtio_net from 5.13, gve, ena); needs x86-64, CAP_SYS_RAWIO, and a /proc/kcore that no container masks"
                .to_owned(),
    }
}

fn programs(loaded: Result<(), Error>) -> Check {
    let (state, detail) = match loaded {
        Ok(()) => (State::Ok, "verified and loaded; unloaded again".to_owned()),
        Err(error) => (State::Fatal, first_line(&error.to_string())),
    };
    Check {
        name: "kernel programs".to_owned(),
        state,
        detail,
        cost: "nothing can be traced on this machine until this is repaired".to_owned(),
    }
}

/// The verifier's words run over many lines.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_that_cannot_be_read_are_missing_and_say_why() {
        let refused = fragments(Err(std::io::Error::from_raw_os_error(libc::EPERM).into()));
        let detail = "/proc/kcore, which tells where the kernel keeps pages: Operation not permitted (os error 1)";
        assert_eq!((refused.state, refused.detail.as_str()), (State::Missing, detail));
        assert_eq!(fragments(Ok(Pages::default())).state, State::Ok);
    }

    #[test]
    fn a_refusal_is_fatal_and_says_why() {
        let refused = programs(Err(Error::NotPermitted { what: "load eBPF programs" }));
        assert_eq!(refused.state, State::Fatal);
        assert!(refused.detail.contains("load eBPF programs: operation not permitted"), "{}", refused.detail);
        assert_eq!(programs(Ok(())).state, State::Ok);
    }
}
