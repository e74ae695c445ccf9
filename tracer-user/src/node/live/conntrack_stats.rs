//! Conntrack's statistics of one namespace (`net/netfilter/nf_conntrack_netlink.c`, ctnetlink_ct_stat_cpu_dump).

use std::{fs, path::Path};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    facts::ConntrackDrops,
    netlink::Netlink,
    rules::attributes::{Raw, number},
};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET_STATS_CPU` (`uapi/linux/netfilter/nfnetlink_conntrack.h`).
const GET_STATS: u16 = 1 << 8 | 4;
/// `CTA_STATS_INSERT_FAILED`, `CTA_STATS_DROP`.
const INSERT_FAILED: u16 = 9;
const DROP: u16 = 10;
/// Is there when conntrack is.
const PRESENT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// As they are in the namespace that the calling thread is in; None: conntrack does not run there, or does not tell.
pub(super) fn read(netns: u32) -> Option<ConntrackDrops> {
    // Without modules there is nothing that could be loaded.
    let may_ask = fs::read_to_string("/proc/modules").map_or(true, |modules| answers(&modules));
    if !may_ask || !Path::new(PRESENT).exists() {
        return None;
    }
    let mut netlink = Netlink::open(NETLINK_NETFILTER).ok()?;
    let of_cpus = netlink.dump(&Raw::new(GET_STATS, 0), |message: Raw| Some(of_cpu(&message.body))).ok()?;
    let sum = |pick: fn(&(u32, u32)) -> u32| of_cpus.iter().map(|counts| u64::from(pick(counts))).sum();
    Some(ConntrackDrops { netns, dropped: sum(|(dropped, _)| *dropped), insert_failed: sum(|(_, failed)| *failed) })
}

/// Does who answers run already? Asking would load its module. Where conntrack is no module, that is none, as a rule.
fn answers(modules: &str) -> bool {
    let is = |name: &str| modules.lines().any(|line| line.split(' ').next() == Some(name));
    is("nf_conntrack_netlink") || !is("nf_conntrack")
}

/// Dropped, not entered.
fn of_cpu(attributes: &[u8]) -> (u32, u32) {
    let count = |kind| number(attributes, kind).unwrap_or(0);
    (count(DROP), count(INSERT_FAILED))
}

/// What came between two readings; None: nothing, or one of them could not be had.
pub(super) fn between(before: Option<ConntrackDrops>, after: Option<ConntrackDrops>) -> Option<ConntrackDrops> {
    let (before, after) = (before?, after?);
    let dropped = after.dropped.saturating_sub(before.dropped);
    let insert_failed = after.insert_failed.saturating_sub(before.insert_failed);
    (dropped > 0 || insert_failed > 0).then_some(ConntrackDrops { netns: after.netns, dropped, insert_failed })
}

#[cfg(test)]
mod tests {
    use super::{super::rules::attributes::put, *};

    #[test]
    fn a_cpus_counts_are_read_and_what_is_not_told_is_none() {
        let mut body = Vec::new();
        put(&mut body, 8, &7u32.to_be_bytes());
        put(&mut body, INSERT_FAILED, &3u32.to_be_bytes());
        put(&mut body, DROP, &5u32.to_be_bytes());
        assert_eq!(of_cpu(&body), (5, 3));
        assert_eq!(of_cpu(&[]), (0, 0));
    }

    #[test]
    fn nobody_is_asked_who_would_have_to_be_loaded() {
        assert!(answers(""), "built in");
        assert!(answers("nf_conntrack 172032 2 nf_nat - Live\nnf_conntrack_netlink 57344 0 - Live\n"));
        assert!(!answers("nf_conntrack 172032 2 nf_nat - Live\n"));
    }

    #[test]
    fn only_what_rose_is_told() {
        let counts = |dropped, insert_failed| Some(ConntrackDrops { netns: 7, dropped, insert_failed });
        assert_eq!(between(counts(5, 3), counts(8, 3)), counts(3, 0));
        assert_eq!(between(None, counts(2, 2)), None, "they may be years old");
        assert_eq!(between(counts(5, 3), counts(5, 3)), None);
        assert_eq!(between(counts(5, 3), None), None);
    }
}
