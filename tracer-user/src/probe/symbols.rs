//! Names for what the free hooks report as numbers.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead, BufReader},
    sync::Arc,
};

use super::btf::KernelTypes;
use crate::event::{Free, Hook, Record, Sighting};

/// Names for frees, learned as they are needed.
pub struct Symbols {
    /// Drop reasons of the core networking code, by number, without their prefix; empty before 5.17. Other subsystems number
    /// theirs from 1 << 16.
    reasons: HashMap<u32, Arc<str>>,
    /// Functions by return address; None: `/proc/kallsyms` does not tell.
    functions: HashMap<u64, Option<Arc<str>>>,
}

impl Symbols {
    /// Reads the drop reasons from BTF.
    pub fn read(types: &KernelTypes) -> Self {
        let short = |name: String| name.trim_start_matches("SKB_").trim_start_matches("DROP_REASON_").into();
        let reasons = types.enumeration("skb_drop_reason").into_iter().map(|(value, name)| (value, short(name)));
        Self { reasons: reasons.collect(), functions: HashMap::new() }
    }

    /// Is it a drop, and not one of which the kernel says another reason than netfilter?
    pub fn may_be_netfilters(&self, sighting: &Sighting) -> bool {
        let reason = sighting.free.as_ref().and_then(|free| free.reason);
        let name = reason.and_then(|reason| self.reasons.get(&reason));
        sighting.hook == Hook::Drop && name.is_none_or(|name| **name == *"NETFILTER_DROP" || **name == *"NOT_SPECIFIED")
    }

    /// Fills in the names in every free among the records. Reads `/proc/kallsyms` once for all places that are new, and not
    /// at all if none is; where kptr_restrict hides the addresses the names stay unknown.
    pub fn name_frees(&mut self, records: &mut [Record]) {
        let locations = records.iter().filter_map(|record| match record {
            Record::Sighting(sighting) => sighting.free.as_ref().map(|free| free.location),
            Record::Translation(_) | Record::Rewrite(_) => None,
        });
        let new: BTreeSet<u64> = locations.filter(|at| *at != 0 && !self.functions.contains_key(at)).collect();
        if !new.is_empty() {
            let mut found = functions_at(&new);
            self.functions.extend(new.into_iter().map(|at| (at, found.remove(&at).map(Into::into))));
        }
        for record in records {
            let Record::Sighting(sighting) = record else { continue };
            let Some(Free { location, function, reason, reason_name, netfilter: _ }) = &mut sighting.free else {
                continue;
            };
            *function = self.functions.get(location).cloned().flatten();
            *reason_name = reason.and_then(|r| self.reasons.get(&r).cloned());
        }
    }
}

/// The function that each return address lies in.
fn functions_at(addresses: &BTreeSet<u64>) -> HashMap<u64, String> {
    let Ok(file) = File::open("/proc/kallsyms") else { return HashMap::new() };
    // Best candidate so far per address; the file is not sorted across modules.
    let mut best: HashMap<u64, (u64, String)> = HashMap::new();
    for line in BufReader::with_capacity(1 << 16, file).lines().map_while(Result::ok) {
        let Some((start, name)) = text_symbol(&line) else { continue };
        // A call may be a function's last instruction: the return address is then that of the next function.
        for address in addresses.range(start + 1..) {
            if best.get(address).is_none_or(|(known, _)| start > *known) {
                best.insert(*address, (start, name.to_owned()));
            }
        }
    }
    best.into_iter().map(|(address, (_, name))| (address, name)).collect()
}

/// `ffffffff81000000 T _stext [module]` -> address and name, of functions only. None for hidden addresses.
fn text_symbol(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?;
    let name = words.next()?;
    (start != 0 && matches!(kind, "t" | "T" | "w" | "W")).then_some((start, name))
}

#[cfg(test)]
mod tests {
    use super::text_symbol;

    #[test]
    fn only_visible_functions_count() {
        assert_eq!(text_symbol("ffffffff81a2b3c0 t icmp_rcv"), Some((0xffff_ffff_81a2_b3c0, "icmp_rcv")));
        assert_eq!(
            text_symbol("ffffffffc0a2b3c0 T nf_nat_manip_pkt\t[nf_nat]"),
            Some((0xffff_ffff_c0a2_b3c0, "nf_nat_manip_pkt"))
        );
        assert_eq!(text_symbol("0000000000000000 T icmp_rcv"), None);
        assert_eq!(text_symbol("ffffffff82a2b3c0 D jiffies"), None);
        assert_eq!(text_symbol(""), None);
    }
}
