//! Legacy iptables by `getsockopt` (`uapi/linux/netfilter_ipv4/ip_tables.h`, `.../netfilter_ipv6/ip6_tables.h`).
//!
//! Asking for a table that does not exist makes it, and may load its module. So only those are read that
//! `/proc/net/ip_tables_names` lists.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{
    super::facts::{RuleEngine, RuleVerdict},
    attributes::text,
    legacy_rule::{self, Shape},
    model::{Base, Chain, Ruleset, Table},
    xt::{SetNames, u32_at},
};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; the same numbers for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`, bytes.
const NAME: usize = 32;
/// `struct ipt_getinfo`, bytes.
const INFO: usize = 84;
/// `struct ipt_get_entries` before its entries, which are aligned to 8 bytes.
const ENTRIES: usize = 40;
/// The table may grow between asking for its size and for itself.
const ATTEMPTS: u32 = 4;

/// A table as the kernel told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) v6: bool,
    pub(super) name: String,
    /// Bits of the hooks it has.
    pub(super) hooks: u32,
    /// Offsets of each hook's first rule and of its policy.
    pub(super) entries: [u32; 5],
    pub(super) policies: [u32; 5],
    pub(super) rules: Vec<u8>,
}

/// The tables of the calling thread's namespace.
pub(super) fn tables() -> io::Result<Vec<Blob>> {
    let mut found = Vec::new();
    for (v6, list) in [(false, "ip_tables_names"), (true, "ip6_tables_names")] {
        // Not /proc/net: that is the first thread's.
        let names = match fs::read_to_string(format!("/proc/thread-self/net/{list}")) {
            Ok(names) => names,
            // No such iptables on this kernel, or not loaded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if names.is_empty() {
            continue;
        }
        let socket = socket(v6)?;
        for name in names.lines().filter(|name| name.len() < NAME) {
            found.push(table(&socket, v6, name)?);
        }
    }
    Ok(found)
}

fn socket(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no memory is passed; the descriptor is checked and then owned by nobody else.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn table(socket: &OwnedFd, v6: bool, name: &str) -> io::Result<Blob> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut info = vec![0; INFO];
        info[..name.len()].copy_from_slice(name.as_bytes());
        ask(socket, v6, GET_INFO, &mut info)?;
        let at = |offset: usize| u32_at(&info, offset).unwrap_or_default();
        let hooks = |offset: usize| std::array::from_fn(|hook| at(offset + 4 * hook));
        let size = at(80);
        let mut answer = vec![0; ENTRIES + size as usize];
        answer[..name.len()].copy_from_slice(name.as_bytes());
        answer[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match ask(socket, v6, GET_ENTRIES, &mut answer) {
            Ok(()) => {
                let rules = answer.split_off(ENTRIES);
                let (hooks, entries, policies) = (at(32), hooks(36), hooks(56));
                return Ok(Blob { v6, name: name.to_owned(), hooks, entries, policies, rules });
            }
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
}

/// `getsockopt` with a request in the buffer that the answer overwrites.
pub(super) fn ask(socket: &OwnedFd, v6: bool, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let level = if v6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, which is what `buffer` has.
    let answer =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Names of ipsets by index, asked for as they are needed (`net/netfilter/ipset/ip_set_core.c`, ip_set_sockfn_get).
pub(super) struct IpSets(Option<OwnedFd>);

impl IpSets {
    /// Of the calling thread's namespace.
    pub(super) fn open() -> Self {
        Self(socket(false).ok())
    }
}

impl SetNames for IpSets {
    fn of(&self, index: u16) -> Option<String> {
        const SO_IP_SET: libc::c_int = 83;
        const GET_BY_INDEX: u32 = 7;
        /// The only version the kernel's own protocol of names has ever had is that of its netlink protocol.
        const VERSIONS: [u32; 2] = [7, 6];
        VERSIONS.iter().find_map(|version| {
            let mut request = vec![0; 8 + NAME];
            request[..4].copy_from_slice(&GET_BY_INDEX.to_ne_bytes());
            request[4..8].copy_from_slice(&version.to_ne_bytes());
            request[8..10].copy_from_slice(&index.to_ne_bytes());
            ask(self.0.as_ref()?, false, SO_IP_SET, &mut request).ok()?;
            Some(text(&request[8..])).filter(|name| !name.is_empty())
        })
    }
}

/// Reads the tables.
pub(super) fn read(blobs: &[Blob], ipsets: &dyn SetNames) -> Ruleset {
    Ruleset { tables: blobs.iter().map(|blob| read_table(blob, Some(ipsets))).collect() }
}

/// Reads what comparing counters needs: of rules, nothing but what makes them the same rules and how often they were met.
pub(super) fn counters(blobs: &[Blob]) -> Ruleset {
    Ruleset { tables: blobs.iter().map(|blob| read_table(blob, None)).collect() }
}

fn read_table(blob: &Blob, ipsets: Option<&dyn SetNames>) -> Table {
    let shape = Shape::of(blob.v6);
    let (starts, errors) = chain_starts(blob, &shape);
    let mut chains: Vec<Chain> = Vec::new();
    for (offset, entry) in shape.entries(&blob.rules) {
        if let Some((name, base)) = starts.get(&offset) {
            chains.push(Chain { name: name.clone(), base: base.clone(), rules: Vec::new() });
        }
        let policy = blob.hook_ending_at(offset).is_some();
        let Some(chain) = chains.last_mut() else { continue };
        let packets = shape.packets(entry);
        match (&mut chain.base, errors.contains_key(&offset)) {
            (_, true) => {}
            (Some(base), false) if policy => {
                base.policy = match shape.verdict(entry) {
                    Some(-1) => RuleVerdict::Drop,
                    _ => RuleVerdict::Accept,
                };
                base.packets = Some(packets);
            }
            _ => {
                let jumps = |target: u32| starts.get(&target).map(|(name, _)| name.clone());
                chain.rules.push(match ipsets {
                    Some(ipsets) => legacy_rule::read(&shape, offset, entry, ipsets, &jumps),
                    None => legacy_rule::counted(&shape, entry),
                });
            }
        }
    }
    // The unconditional return that ends every user chain is not shown.
    for chain in chains.iter_mut().filter(|chain| chain.base.is_none()) {
        chain.rules.pop();
    }
    let family = if blob.v6 { "ip6" } else { "ip" };
    Table { engine: RuleEngine::Iptables, family, name: blob.name.clone(), chains }
}

impl Blob {
    fn hook_ending_at(&self, offset: u32) -> Option<usize> {
        (0..5).find(|hook| self.hooks & (1 << hook) != 0 && self.policies[*hook] == offset)
    }
}

type Starts = HashMap<u32, (String, Option<Base>)>;

/// Where chains begin: base chains by the table's own list, others after an entry that names them.
fn chain_starts(blob: &Blob, shape: &Shape) -> (Starts, HashMap<u32, ()>) {
    const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let (mut starts, mut errors) = (Starts::new(), HashMap::new());
    for (hook, name) in HOOKS.iter().enumerate() {
        if blob.hooks & (1 << hook) != 0 {
            let base = Base { hook: u8::try_from(hook).ok(), policy: RuleVerdict::Accept, packets: None };
            starts.insert(blob.entries[hook], ((*name).to_owned(), Some(base)));
        }
    }
    for (offset, entry) in shape.entries(&blob.rules) {
        if let Some(name) = shape.names_chain(entry) {
            errors.insert(offset, ());
            let next = offset + u32::try_from(entry.len()).unwrap_or(u32::MAX - offset);
            starts.entry(next).or_insert((name, None));
        }
    }
    (starts, errors)
}
