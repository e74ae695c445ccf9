//! The checks that load nothing into the kernel. Each reads one thing; what it means is decided by a pure function.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::resource::{Resource, getrlimit},
};

use super::{Check, State};

const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn checks() -> Vec<Check> {
    vec![
        kernel(fs::read_to_string("/proc/sys/kernel/osrelease")),
        capabilities(fs::read_to_string("/proc/self/status")),
        btf(fs::metadata(BTF).map(|file| file.len())),
        lockdown(fs::read_to_string("/sys/kernel/security/lockdown")),
        enter_namespace(try_setns()),
        processes(fs::read_link("/proc/1/ns/net").map(drop)),
        pods(fs::read_dir("/run/netns").map(Iterator::count)),
        kernel_symbols(fs::read_to_string("/proc/kallsyms")),
        conntrack(Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()),
        tracefs(
            ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"].iter().any(|at| Path::new(at).exists()),
        ),
        locked_memory(getrlimit(Resource::RLIMIT_MEMLOCK)),
        memory_limit(own_memory_limit()),
    ]
}

fn check(name: &str, state: State, detail: impl Into<String>, cost: &str) -> Check {
    Check { name: name.to_owned(), state, detail: detail.into(), cost: cost.to_owned() }
}

fn kernel(release: io::Result<String>) -> Check {
    // What it can do is tried out, not concluded from its version: vendors backport.
    match release {
        Ok(release) => check("kernel", State::Ok, release.trim(), ""),
        Err(error) => check("kernel", State::Unknown, format!("/proc/sys/kernel/osrelease: {error}"), "nothing"),
    }
}

/// Bits of `uapi/linux/capability.h`.
const CAPABILITIES: [(u32, &str); 5] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

fn capabilities(status: io::Result<String>) -> Check {
    const NAME: &str = "capabilities";
    const COST: &str = "nothing can be traced, because programs cannot be loaded or namespaces entered; run as root";
    let status = match status {
        Ok(status) => status,
        Err(error) => return check(NAME, State::Unknown, format!("/proc/self/status: {error}"), COST),
    };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return check(NAME, State::Unknown, "/proc/self/status has no CapEff", COST);
    };
    let has = |bit: u32| effective & (1 << bit) != 0;
    // CAP_SYS_ADMIN includes the two that were split from it in 5.8 (bpf_capable, perfmon_capable).
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| !(has(*bit) || *bit >= 38 && has(21))).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        check(NAME, State::Ok, "all that are needed", "")
    } else {
        check(NAME, State::Fatal, format!("this user lacks {}", missing.join(", ")), COST)
    }
}

fn btf(length: io::Result<u64>) -> Check {
    const COST: &str =
        "nothing can be traced, because the kernel's structures are unknown; use a kernel with CONFIG_DEBUG_INFO_BTF=y";
    match length {
        Ok(0) => check("kernel BTF", State::Fatal, format!("{BTF} is empty"), COST),
        Ok(length) => check("kernel BTF", State::Ok, format!("{BTF}, {} KiB", length / 1024), ""),
        Err(error) => check("kernel BTF", State::Fatal, format!("{BTF}: {error}"), COST),
    }
}

/// `security/lockdown/lockdown.c`: the state in force stands in brackets.
fn lockdown(state: io::Result<String>) -> Check {
    const COST: &str = "programs may not read kernel memory under `confidentiality`: then nothing can be traced; boot without lockdown=confidentiality";
    match state {
        Ok(state) if state.contains("[confidentiality]") => check("lockdown", State::Fatal, "confidentiality", COST),
        Ok(state) => {
            let mode = state.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
            check("lockdown", State::Ok, mode, "")
        }
        Err(error) => check("lockdown", State::Unknown, format!("/sys/kernel/security/lockdown: {error}"), COST),
    }
}

/// Enters the namespace it is in, on a thread of its own.
fn try_setns() -> Result<(), Errno> {
    let enter = || {
        let own = File::open("/proc/self/ns/net")
            .map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))?;
        setns(own, CloneFlags::CLONE_NEWNET)
    };
    thread::spawn(enter).join().unwrap_or(Err(Errno::UnknownErrno))
}

fn enter_namespace(entered: Result<(), Errno>) -> Check {
    const NAME: &str = "enter namespaces";
    match entered {
        Ok(()) => check(NAME, State::Ok, "setns works", ""),
        Err(error) => check(
            NAME,
            State::Fatal,
            format!("setns: {error}"),
            "pods cannot be looked into, and probes not be sent from them; run as root (CAP_SYS_ADMIN)",
        ),
    }
}

fn processes(other: io::Result<()>) -> Check {
    const NAME: &str = "other processes";
    match other {
        Ok(()) => check(NAME, State::Ok, "their namespaces can be read", ""),
        Err(error) => check(
            NAME,
            State::Missing,
            format!("/proc/1/ns/net: {error}"),
            "pods whose namespace is not in /run/netns are not found; run as root with CAP_SYS_PTRACE, on the host's /proc (hostPID) mounted without hidepid",
        ),
    }
}

fn pods(named: io::Result<usize>) -> Check {
    const NAME: &str = "named namespaces";
    match named {
        Ok(count) => check(NAME, State::Ok, format!("{count} in /run/netns"), ""),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check(NAME, State::Ok, "no /run/netns; namespaces are found by their processes", "")
        }
        Err(error) => check(
            NAME,
            State::Missing,
            format!("/run/netns: {error}"),
            "namespaces without processes are not found; run as root",
        ),
    }
}

/// With `kernel.kptr_restrict` every address reads as zeros (`kallsyms_show_value` in kernel/kallsyms.c).
fn kernel_symbols(symbols: io::Result<String>) -> Check {
    const NAME: &str = "kernel symbols";
    const COST: &str = "a drop is shown without the kernel function that freed the packet; run as root with kernel.kptr_restrict=0 or 1";
    match symbols {
        Ok(symbols) if symbols.is_empty() => check(NAME, State::Missing, "/proc/kallsyms is empty", COST),
        Ok(symbols) => {
            let shown =
                symbols.lines().filter_map(|line| line.split(' ').next()).any(|at| at.bytes().any(|c| c != b'0'));
            if shown {
                check(NAME, State::Ok, format!("{} in /proc/kallsyms", symbols.lines().count()), "")
            } else {
                check(NAME, State::Missing, "/proc/kallsyms hides all addresses", COST)
            }
        }
        Err(error) => check(NAME, State::Missing, format!("/proc/kallsyms: {error}"), COST),
    }
}

fn conntrack(there: bool) -> Check {
    if there {
        check("conntrack", State::Ok, "in use in this namespace", "")
    } else {
        check(
            "conntrack",
            State::Ok,
            "not in use in this namespace (module nf_conntrack): nothing is translated by NAT here",
            "",
        )
    }
}

fn tracefs(mounted: bool) -> Check {
    if mounted {
        check("tracefs", State::Ok, "mounted", "")
    } else {
        check("tracefs", State::Ok, "not mounted; the hooks used do not need it", "")
    }
}

/// What the largest map takes and something over, bytes.
const ENOUGH: u64 = 64 << 20;

fn locked_memory(limit: Result<(u64, u64), Errno>) -> Check {
    const NAME: &str = "locked memory";
    const COST: &str = "kernels before 5.11 refuse maps above this limit; ulimit -l unlimited";
    match limit {
        Ok((soft, _)) if soft == libc::RLIM_INFINITY => check(NAME, State::Ok, "unlimited", ""),
        Ok((soft, _)) if soft >= ENOUGH => check(NAME, State::Ok, format!("{} MiB", soft >> 20), ""),
        // Later kernels count maps against the memory cgroup instead, and vendors backported that: not known from here.
        Ok((soft, _)) => check(NAME, State::Unknown, format!("{} KiB allowed", soft >> 10), COST),
        Err(error) => check(NAME, State::Unknown, format!("getrlimit: {error}"), COST),
    }
}

/// `memory.max` of the process's own cgroup (version 2); None where there is none.
fn own_memory_limit() -> Option<String> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    fs::read_to_string(Path::new("/sys/fs/cgroup").join(own).join("memory.max")).ok()
}

fn memory_limit(limit: Option<String>) -> Check {
    const NAME: &str = "memory limit";
    match limit.as_deref().map(str::trim) {
        None => check(NAME, State::Ok, "none found for this cgroup", ""),
        Some("max") => check(NAME, State::Ok, "none for this cgroup", ""),
        Some(bytes) => match bytes.parse::<u64>() {
            Ok(bytes) if bytes >= ENOUGH => check(NAME, State::Ok, format!("{} MiB for this cgroup", bytes >> 20), ""),
            _ => check(
                NAME,
                State::Missing,
                format!("memory.max of this cgroup is {bytes}"),
                "maps count against it: a trace may be refused or killed; allow at least 64 MiB",
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T>() -> io::Result<T> {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }

    fn status(mask: u64) -> io::Result<String> {
        Ok(format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{mask:016x}\n"))
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let needed = (1 << 12) | (1 << 13) | (1 << 21);
        assert_eq!(capabilities(status(needed)).state, State::Ok, "CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON");
        let none = capabilities(status(0));
        assert_eq!(none.state, State::Fatal);
        assert_eq!(none.detail, "this user lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF");
        assert_eq!(capabilities(status(needed & !(1 << 13))).detail, "this user lacks CAP_NET_RAW");
        assert_eq!(capabilities(Ok("CapEff:\tzz".into())).state, State::Unknown);
        assert_eq!(capabilities(refused()).state, State::Unknown);
    }

    #[test]
    fn lockdown_in_force_stands_in_brackets() {
        assert_eq!(lockdown(Ok("[none] integrity confidentiality\n".into())).state, State::Ok);
        assert_eq!(lockdown(Ok("none [integrity] confidentiality\n".into())).detail, "integrity");
        assert_eq!(lockdown(Ok("none integrity [confidentiality]\n".into())).state, State::Fatal);
        assert_eq!(lockdown(refused()).state, State::Unknown);
    }

    #[test]
    fn hidden_kernel_symbols_are_recognised() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t x\n".to_owned();
        assert_eq!(kernel_symbols(Ok(hidden)).state, State::Missing);
        assert_eq!(kernel_symbols(Ok("ffffffff81000000 T _text\n".into())).state, State::Ok);
        assert_eq!(kernel_symbols(Ok(String::new())).state, State::Missing);
        assert_eq!(kernel_symbols(refused()).state, State::Missing);
    }

    #[test]
    fn missing_btf_is_fatal() {
        assert_eq!(btf(Ok(5 << 20)).state, State::Ok);
        assert_eq!(btf(Ok(0)).state, State::Fatal);
        assert_eq!(btf(Err(io::ErrorKind::NotFound.into())).state, State::Fatal);
    }

    #[test]
    fn namespaces_and_limits() {
        assert_eq!(enter_namespace(Err(Errno::EPERM)).state, State::Fatal);
        assert_eq!(processes(refused()).state, State::Missing);
        assert_eq!(pods(Err(io::ErrorKind::NotFound.into())).state, State::Ok);
        assert_eq!(pods(refused()).state, State::Missing);
        assert_eq!(locked_memory(Ok((libc::RLIM_INFINITY, 0))).state, State::Ok);
        assert_eq!(locked_memory(Ok((65_536, 65_536))).state, State::Unknown);
        assert_eq!(memory_limit(Some("max\n".into())).state, State::Ok);
        assert_eq!(memory_limit(Some("33554432\n".into())).state, State::Missing);
        assert_eq!(memory_limit(None).state, State::Ok);
    }

    #[test]
    fn every_problem_says_what_it_costs() {
        let all = [
            capabilities(status(0)),
            btf(Ok(0)),
            lockdown(refused()),
            enter_namespace(Err(Errno::EPERM)),
            processes(refused()),
            pods(refused()),
            kernel_symbols(refused()),
            locked_memory(Ok((0, 0))),
            memory_limit(Some("0".into())),
            kernel(refused()),
        ];
        for check in all {
            assert!(check.state != State::Ok && !check.cost.is_empty(), "{check:?}");
        }
    }
}
