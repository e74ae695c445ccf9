//! The one list of places that the programs attach to.

use std::path::Path;

use super::btf::KernelTypes;

/// A place in the kernel, and the program that runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookPlace {
    /// The tracepoint or function.
    pub name: &'static str,
    /// The program's name in the kernel object.
    pub program: &'static str,
    /// How it is attached.
    pub kind: Kind,
    /// What a trace lacks without it.
    pub cost: &'static str,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To a tracepoint, by BTF. All of these are needed.
    Tracepoint,
    /// To the beginning of a function. Wanted, not needed: a kernel may have no kprobes, or the function's module is not
    /// loaded, which means that nothing uses it.
    Kprobe {
        /// The module that the function may be in; some kernels have it built in.
        module: &'static str,
        /// Does it run for every packet that meets netfilter, only to say more of those that it drops?
        of_drops: bool,
    },
}

const NO_TRACEPOINT: &str = "packets cannot be seen there; a kernel of 5.8 or later has it";
const NO_EVALUATION: &str = "a packet dropped by a rule is shown without the table and chain that saw it last";

/// All of them.
pub static HOOKS: [HookPlace; 10] = [
    tracepoint("netif_receive_skb"),
    tracepoint("net_dev_queue"),
    tracepoint("net_dev_start_xmit"),
    tracepoint("kfree_skb"),
    tracepoint("consume_skb"),
    HookPlace {
        name: "nf_nat_manip_pkt",
        program: "nf_nat_manip_pkt",
        kind: Kind::Kprobe { module: "nf_nat", of_drops: false },
        cost: "NAT is shown by what it did, read from conntrack, without the moment between two devices at which it did so",
    },
    of_drops(
        "nf_hook_slow",
        "nf_hook_slow",
        "",
        "a packet dropped by netfilter without a rule is shown without the hook where it was",
    ),
    of_drops("ipt_do_table", "ipt_do_table", "ip_tables", NO_EVALUATION),
    of_drops("ip6t_do_table", "ipt_do_table", "ip6_tables", NO_EVALUATION),
    of_drops("nft_do_chain", "nft_do_chain", "nf_tables", NO_EVALUATION),
];

/// Where the program that does nothing is attached, for a benchmark.
pub(super) const EMPTY_PLACE: HookPlace = HookPlace { program: "empty", ..tracepoint("net_dev_start_xmit") };

const fn tracepoint(name: &'static str) -> HookPlace {
    HookPlace { name, program: name, kind: Kind::Tracepoint, cost: NO_TRACEPOINT }
}

const fn of_drops(name: &'static str, program: &'static str, module: &'static str, cost: &'static str) -> HookPlace {
    HookPlace { name, program, kind: Kind::Kprobe { module, of_drops: true }, cost }
}

/// Those without which there is no trace.
pub fn tracepoints() -> impl Iterator<Item = &'static HookPlace> {
    HOOKS.iter().filter(|hook| hook.kind == Kind::Tracepoint)
}

/// Those that a trace can do without, and their modules.
pub fn kprobes() -> impl Iterator<Item = &'static HookPlace> {
    HOOKS.iter().filter(|hook| matches!(hook.kind, Kind::Kprobe { .. }))
}

/// Does this kernel have kprobes?
pub fn has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
}

impl HookPlace {
    /// As a node says what it can: `tp_btf/net_dev_queue`, `kprobe/nft_do_chain`.
    pub fn capability(&self) -> String {
        match self.kind {
            Kind::Tracepoint => format!("tp_btf/{}", self.name),
            Kind::Kprobe { .. } => format!("kprobe/{}", self.name),
        }
    }

    /// Does it only say more of drops?
    pub fn is_of_drops(&self) -> bool {
        matches!(self.kind, Kind::Kprobe { of_drops: true, .. })
    }

    /// Is the module of its function loaded, or built in? Always so for a place that is in no module.
    pub fn has_module(&self) -> bool {
        match self.kind {
            Kind::Tracepoint | Kind::Kprobe { module: "", .. } => true,
            Kind::Kprobe { module, .. } => Path::new("/sys/module").join(module).exists(),
        }
    }
}

/// What this node offers, before anything is attached: all tracepoints, without which a session fails, and the kprobes whose
/// functions are there.
pub fn capabilities() -> Vec<String> {
    let kprobes = has_kprobes();
    let offered = HOOKS.iter().filter(|hook| hook.kind == Kind::Tracepoint || kprobes && hook.has_module());
    offered.map(HookPlace::capability).collect()
}

/// The tracepoints that this kernel's BTF does not have.
pub fn missing_tracepoints(types: &KernelTypes) -> Vec<&'static str> {
    tracepoints().map(|hook| hook.name).filter(|name| !types.has_tracepoint(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_names_what_it_offers_by_kind() {
        let names: Vec<_> = HOOKS.iter().map(HookPlace::capability).collect();
        assert!(names.contains(&"tp_btf/kfree_skb".to_owned()) && names.contains(&"kprobe/nf_hook_slow".to_owned()));
        assert!(capabilities().len() >= tracepoints().count());
    }
}
