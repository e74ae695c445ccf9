//! Names for what the free hooks report as numbers.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead, BufReader},
};

use super::btf::KernelTypes;
use crate::event::{Free, Record};

/// Drop reasons of the core networking code, by number, without their prefix. Other subsystems number theirs from 1 << 16.
pub struct DropReasons(HashMap<u32, String>);

impl DropReasons {
    /// Reads them from BTF; none before 5.17.
    pub fn read(types: &KernelTypes) -> Self {
        let short = |name: String| name.trim_start_matches("SKB_").trim_start_matches("DROP_REASON_").to_owned();
        Self(types.enumeration("skb_drop_reason").into_iter().map(|(value, name)| (value, short(name))).collect())
    }
}

/// Fills in the names in every free among the records. Reads `/proc/kallsyms` once, and only if there is a free;
/// where kptr_restrict hides the addresses the names stay unknown.
pub fn name_frees(records: &mut [Record], reasons: &DropReasons) {
    let frees = || {
        records.iter().filter_map(|r| match r {
            Record::Sighting(s) => s.free.as_ref(),
            Record::Translation(_) => None,
        })
    };
    let locations: BTreeSet<u64> = frees().map(|f| f.location).filter(|l| *l != 0).collect();
    let functions = functions_at(&locations);
    for record in records {
        let Record::Sighting(sighting) = record else { continue };
        let Some(Free { location, function, reason, reason_name }) = &mut sighting.free else { continue };
        *function = functions.get(location).cloned();
        *reason_name = reason.and_then(|r| reasons.0.get(&r).cloned());
    }
}

/// The function that each address lies in.
fn functions_at(addresses: &BTreeSet<u64>) -> HashMap<u64, String> {
    let Ok(file) = File::open("/proc/kallsyms") else { return HashMap::new() };
    if addresses.is_empty() {
        return HashMap::new();
    }
    // Best candidate so far per address; the file is not sorted across modules.
    let mut best: HashMap<u64, (u64, String)> = HashMap::new();
    for line in BufReader::with_capacity(1 << 16, file).lines().map_while(Result::ok) {
        let Some((start, name)) = text_symbol(&line) else { continue };
        for address in addresses.range(start..) {
            let better = best.get(address).is_none_or(|(known, _)| start > *known);
            if !better {
                continue;
            }
            best.insert(*address, (start, name.to_owned()));
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
