//! flannel's chains: what leaves the cluster is masqueraded, and what it forwards is accepted.

use super::super::profile::{Node, Profile};
use super::{Rules, table};

const MASQUERADE: &str = "FLANNEL-POSTRTG";
const FORWARD: &str = "FLANNEL-FWD";

pub(super) fn node(profile: &Profile, node: &Node) -> Rules {
    let (pool, own) = (profile.pool, node.block());
    let masquerade =
        |rule: &str, action: &str| format!("-A {MASQUERADE} {rule} -m comment --comment \"flanneld masq\" -j {action}");
    let nat = [
        format!("-A POSTROUTING -m comment --comment \"flanneld masq\" -j {MASQUERADE}"),
        // kube-proxy's mark: it will masquerade the packet itself.
        masquerade("-m mark --mark 0x4000/0x4000", "RETURN"),
        masquerade(&format!("-s {own} -d {pool}"), "RETURN"),
        masquerade(&format!("-s {pool} -d {own}"), "RETURN"),
        masquerade(&format!("! -s {pool} -d {own}"), "RETURN"),
        masquerade(&format!("-s {pool} ! -d 224.0.0.0/4"), "MASQUERADE --random-fully"),
        masquerade(&format!("! -s {pool} -d {pool}"), "MASQUERADE --random-fully"),
    ];
    let comment = "-m comment --comment \"flanneld forward\"";
    let filter = [
        format!("-A FORWARD {comment} -j {FORWARD}"),
        format!("-A {FORWARD} -s {pool} {comment} -j ACCEPT"),
        format!("-A {FORWARD} -d {pool} {comment} -j ACCEPT"),
    ];
    let iptables = table("nat", &[MASQUERADE], &nat) + &table("filter", &[FORWARD], &filter);
    Rules { iptables, ..Rules::default() }
}
