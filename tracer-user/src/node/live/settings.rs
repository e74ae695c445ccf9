//! The sysctls of a namespace that decide what becomes of packets.

use std::fs;

use super::facts::Setting;

/// Of so many interfaces sysctls are read.
const MOST_LINKS: usize = 64;

const WHOLE: [&str; 3] = ["net.ipv4.ip_forward", "net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_count"];
const V4: [&str; 4] = ["rp_filter", "forwarding", "route_localnet", "accept_local"];
const V6: [&str; 2] = ["forwarding", "disable_ipv6"];

/// Reads those of the calling thread's namespace: `/proc/sys/net` shows each thread its own. What this kernel does not have
/// is left out.
pub(super) fn read<'a>(links: impl Iterator<Item = &'a str>) -> Vec<Setting> {
    let mut found: Vec<Setting> =
        WHOLE.iter().filter_map(|name| setting((*name).to_owned(), &name.replace('.', "/"))).collect();
    for link in ["all"].into_iter().chain(links.take(MOST_LINKS)) {
        for (family, names) in [("ipv4", V4.as_slice()), ("ipv6", V6.as_slice())] {
            found.extend(names.iter().filter_map(|name| {
                // A dot in an interface's name is a dot in its folder's.
                setting(format!("net.{family}.conf.{link}.{name}"), &format!("net/{family}/conf/{link}/{name}"))
            }));
        }
    }
    found
}

fn setting(name: String, path: &str) -> Option<Setting> {
    let value = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    Some(Setting { name, value: value.trim().to_owned() })
}
