//! The kernel programs: loaded, attached, drained, detached.
//!
//! Everything is held by file descriptors of this process: when it ends, however it ends, the kernel removes all of it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use tracer_common::{MAX_RULES, Rule, Wanted, address, hook, scope_slots};

use crate::{
    event::{self, Record, decode},
    session::{Counters, Flow},
};

pub mod btf;
pub mod doctor;
pub mod layout;
pub mod symbols;

use btf::KernelTypes;

/// The kernel object, built by `cargo xtask build`; empty if this binary was built without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podpath-ebpf.o"));

/// The tracepoints that a session attaches to; the programs have the same names.
pub const TRACEPOINTS: [&str; 5] =
    ["netif_receive_skb", "net_dev_queue", "net_dev_start_xmit", "kfree_skb", "consume_skb"];

/// Size of the ring buffer unless told otherwise, bytes: about 30,000 records, several hundred exchanges between two drains.
pub const RING_SIZE: u32 = 4 << 20;

/// Why this kernel or user cannot trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary holds no kernel programs.
    #[error("this podpath-agent was built without its kernel programs; build it with `cargo xtask build`")]
    NoObject,
    /// No BTF.
    #[error(
        "no kernel BTF, by which the kernel's structures are found: {path}: {source}; \
         boot a kernel with CONFIG_DEBUG_INFO_BTF=y (those of all big distributions have it since 2021)"
    )]
    NoBtf {
        /// The file.
        path: &'static str,
        /// What happened.
        source: btf_rs::Error,
    },
    /// aya could not read it.
    #[error("/sys/kernel/btf/vmlinux: {0}")]
    Btf(#[from] aya::BtfError),
    /// A field that every known kernel has.
    #[error("this kernel has no {structure}.{field}; please report it with the output of `uname -r`")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
    /// Not allowed.
    #[error(
        "the kernel refuses to {what}: operation not permitted; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (`podpath doctor` says what is missing)"
    )]
    NotPermitted {
        /// What was tried.
        what: &'static str,
    },
    /// The object or its maps.
    #[error("load the kernel object: {0}")]
    Object(#[from] EbpfError),
    /// A program.
    #[error("{step} {program}: {source}")]
    Program {
        /// `load` or `attach`.
        step: &'static str,
        /// Name of the program.
        program: String,
        /// What happened, with the verifier's words.
        source: ProgramError,
    },
    /// A map.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What happened.
        source: MapError,
    },
    /// Too many flows.
    #[error("{asked} flows asked for; a session can follow {most} at a time", most = MAX_RULES / 2)]
    TooManyFlows {
        /// How many.
        asked: usize,
    },
    /// The table of namespaces is full around one of them: thousands of namespaces, or an unlikely accident.
    #[error(
        "too many network namespaces on this node for one session; please report it with the output of `ip netns | wc -l`"
    )]
    TooManyNamespaces,
    /// A record that does not decode: kernel and userspace disagree.
    #[error(transparent)]
    Record(#[from] decode::Error),
}

/// Loaded and attached programs. Dropping it detaches and unloads them.
pub struct Probe {
    programs: Ebpf,
    events: RingBuf<MapData>,
    reasons: symbols::DropReasons,
    /// Frees wait here for their names: `/proc/kallsyms` takes the kernel tens of milliseconds to print, which must
    /// not fall between the packets that are measured.
    frees: Vec<Record>,
    /// Records taken out of the ring so far.
    recorded: u64,
    attached: bool,
}

/// So many frees wait at the most; then they are named even while the trace runs.
const MAX_FREES_WAITING: usize = 10_000;

/// How a probe is set up.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// Wanted flows.
    pub flows: &'a [Flow],
    /// Inodes of the network namespaces in scope.
    pub scope: &'a [u32],
    /// Size of the ring, bytes; a power of two of at least a page.
    pub ring_size: u32,
}

/// What a program has cost so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Its name: one of [`TRACEPOINTS`], or [`EMPTY`].
    pub program: String,
    /// How often it ran.
    pub runs: u64,
    /// How long in all.
    pub time: Duration,
}

/// The program that does nothing.
pub const EMPTY: &str = "empty";

impl Probe {
    /// Loads the programs for the running kernel and attaches them.
    pub fn start(setup: &Setup<'_>) -> Result<Self, Error> {
        let mut probe = Self::load(setup)?;
        for name in TRACEPOINTS {
            probe.attach(name)?;
        }
        Ok(probe)
    }

    /// Loads everything, attaches nothing.
    pub fn load(setup: &Setup<'_>) -> Result<Self, Error> {
        let begin = Instant::now();
        if OBJECT.is_empty() {
            return Err(Error::NoObject);
        }
        let wanted = wanted(setup.flows)?;
        raise_memory_limit();
        let types = KernelTypes::open()?;
        let layout = layout::resolve(&types)?;
        let btf = Btf::from_sys_fs()?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("LAYOUT", &layout, true)
            .map_max_entries("EVENTS", setup.ring_size)
            .load(OBJECT)
            .map_err(not_permitted("create maps", Error::Object))?;
        for name in TRACEPOINTS {
            load_program(&mut programs, name, name, &btf)?;
        }
        for inode in setup.scope {
            add_to_scope(&mut programs, *inode)?;
        }
        let mut map: Array<_, Wanted> = map_mut(&mut programs, "WANTED")?;
        map.set(0, wanted, 0).map_err(|source| Error::Map { map: "WANTED", source })?;
        let ring = programs.take_map("EVENTS").ok_or(Error::NoObject)?;
        let events = RingBuf::try_from(ring).map_err(|source| Error::Map { map: "EVENTS", source })?;
        tracing::debug!(elapsed = ?begin.elapsed(), "kernel programs loaded");
        Ok(Self {
            programs,
            events,
            reasons: symbols::DropReasons::read(&types),
            frees: Vec::new(),
            recorded: 0,
            attached: true,
        })
    }

    /// Attaches one of [`TRACEPOINTS`].
    pub fn attach(&mut self, name: &str) -> Result<(), Error> {
        let program = tracepoint(&mut self.programs, name)?;
        program.attach().map_err(|source| Error::Program { step: "attach", program: name.to_owned(), source })?;
        Ok(())
    }

    /// Takes one more network namespace into scope.
    pub fn add_namespace(&mut self, inode: u32) -> Result<(), Error> {
        add_to_scope(&mut self.programs, inode)
    }

    /// Takes all records out of the ring. Those of the free hooks come, with their names, only after [`Self::detach`].
    pub fn drain(&mut self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        while let Some(bytes) = self.events.next() {
            self.recorded += 1;
            match decode::record(&bytes)? {
                Record::Sighting(free) if free.free.is_some() => self.frees.push(Record::Sighting(free)),
                record => records.push(record),
            }
        }
        if !self.attached || self.frees.len() > MAX_FREES_WAITING {
            symbols::name_frees(&mut self.frees, &self.reasons);
            records.append(&mut self.frees);
        }
        Ok(records)
    }

    /// Empties the ring without looking at it, for a benchmark.
    pub fn discard(&mut self) {
        while self.events.next().is_some() {}
    }

    /// What was drained and lost so far.
    pub fn counters(&self) -> Result<Counters, Error> {
        let lost = self.lost_per_hook()?;
        Ok(Counters {
            recorded: self.recorded,
            lost_receive: lost[usize::from(hook::RECEIVE)],
            lost_queue: lost[usize::from(hook::QUEUE)],
            lost_xmit: lost[usize::from(hook::XMIT)],
            lost_drop: lost[usize::from(hook::DROP)],
            lost_consume: lost[usize::from(hook::CONSUME)],
            unread: 0,
            skipped_frees: 0,
        })
    }

    /// Detaches all programs. Records already in the ring can still be drained.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.attached = false;
        for name in TRACEPOINTS {
            let program = tracepoint(&mut self.programs, name)?;
            program.unload().map_err(|source| Error::Program { step: "unload", program: name.to_owned(), source })?;
        }
        Ok(())
    }

    /// Attaches a program that does nothing to `net_dev_start_xmit`, for a benchmark to measure the others against.
    pub fn attach_empty(&mut self) -> Result<(), Error> {
        let btf = Btf::from_sys_fs()?;
        load_program(&mut self.programs, EMPTY, "net_dev_start_xmit", &btf)?;
        self.attach(EMPTY)
    }

    /// What each attached program has cost, while the kernel's run statistics were on (`kernel.bpf_stats_enabled`).
    pub fn costs(&mut self) -> Result<Vec<Cost>, Error> {
        let programs = self.programs.programs().filter_map(|(name, program)| {
            let info = program.info().ok()?;
            Some(Cost { program: name.to_owned(), runs: info.run_count(), time: info.run_time() })
        });
        Ok(programs.collect())
    }

    fn lost_per_hook(&self) -> Result<[u64; hook::COUNT], Error> {
        let map = "LOST";
        let data = self.programs.map(map).ok_or(Error::NoObject)?;
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(data).map_err(|source| Error::Map { map, source })?;
        let mut sums = [0; hook::COUNT];
        for (index, sum) in sums.iter_mut().enumerate() {
            let values = counters.get(&(index as u32), 0).map_err(|source| Error::Map { map, source })?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK. Later kernels do not look at it, so that failing to raise it is no error.
fn raise_memory_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}

fn map_mut<'a, M>(programs: &'a mut Ebpf, map: &'static str) -> Result<M, Error>
where
    M: TryFrom<&'a mut aya::maps::Map, Error = MapError>,
{
    let data = programs.map_mut(map).ok_or(Error::NoObject)?;
    M::try_from(data).map_err(|source| Error::Map { map, source })
}

/// Puts a namespace into the first free one of its slots.
fn add_to_scope(programs: &mut Ebpf, inode: u32) -> Result<(), Error> {
    let failed = |source| Error::Map { map: "SCOPE", source };
    let mut scope: Array<_, u32> = map_mut(programs, "SCOPE")?;
    for slot in scope_slots(inode) {
        let found = scope.get(&slot, 0).map_err(failed)?;
        if found == inode {
            return Ok(());
        }
        if found == 0 {
            return scope.set(slot, inode, 0).map_err(failed);
        }
    }
    Err(Error::TooManyNamespaces)
}

fn tracepoint<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, Error> {
    let program = programs.program_mut(name).ok_or(Error::NoObject)?;
    program.try_into().map_err(|source| Error::Program { step: "find", program: name.to_owned(), source })
}

fn load_program(programs: &mut Ebpf, name: &str, at: &str, btf: &Btf) -> Result<(), Error> {
    let begin = Instant::now();
    let program = tracepoint(programs, name)?;
    program.load(at, btf).map_err(|source| match source {
        ProgramError::LoadError { ref io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            Error::NotPermitted { what: "load eBPF programs" }
        }
        source => Error::Program { step: "load", program: name.to_owned(), source },
    })?;
    let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(program = name, ?verified, elapsed = ?begin.elapsed(), "loaded");
    Ok(())
}

/// EPERM anywhere down the chain of causes becomes the error that says what to do about it.
fn not_permitted<E>(what: &'static str, otherwise: fn(E) -> Error) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + 'static,
{
    move |error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(io) = current.downcast_ref::<std::io::Error>()
                && io.raw_os_error() == Some(libc::EPERM)
            {
                return Error::NotPermitted { what };
            }
            cause = current.source();
        }
        otherwise(error)
    }
}

/// The two directions of each flow.
fn wanted(flows: &[Flow]) -> Result<Wanted, Error> {
    let mut wanted = Wanted::default();
    if flows.len() * 2 > MAX_RULES {
        return Err(Error::TooManyFlows { asked: flows.len() });
    }
    for flow in flows {
        let [.., a, b, c, d] = event::to_bytes(flow.a);
        wanted.ends[wanted.flows as usize] = u32::from_ne_bytes([a, b, c, d]);
        wanted.flows += 1;
        for rule in rules(flow) {
            wanted.rules[wanted.count as usize] = rule;
            wanted.count += 1;
        }
    }
    Ok(wanted)
}

fn rules(flow: &Flow) -> [Rule; 2] {
    let Flow { a, b, protocol, a_port, b_port } = *flow;
    let end = |end: Option<IpAddr>| match end {
        Some(end) => (address(event::to_bytes(end)), [u64::MAX; 2]),
        None => ([0; 2], [0; 2]),
    };
    let ((a, a_mask), (b, b_mask)) = (end(Some(a)), end(b));
    let (forward, backward) = if matches!(protocol, 1 | 58) {
        // An ICMP identifier is the same both ways.
        let id = l4_bytes(4, a_port);
        (id, id)
    } else {
        (either(l4_bytes(0, a_port), l4_bytes(2, b_port)), either(l4_bytes(0, b_port), l4_bytes(2, a_port)))
    };
    let protocol = u64::from(protocol);
    [
        Rule { src: a, src_mask: a_mask, dst: b, dst_mask: b_mask, l4: forward.0, l4_mask: forward.1, protocol },
        Rule { src: b, src_mask: b_mask, dst: a, dst_mask: a_mask, l4: backward.0, l4_mask: backward.1, protocol },
    ]
}

/// A port at this place in the first 8 bytes of the L4 header, and the mask of that place.
fn l4_bytes(at: usize, port: Option<u16>) -> (u64, u64) {
    let (mut bytes, mut mask) = ([0; 8], [0; 8]);
    if let Some(port) = port {
        bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
        mask[at..at + 2].fill(0xff);
    }
    (u64::from_ne_bytes(bytes), u64::from_ne_bytes(mask))
}

fn either(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0 | b.0, a.1 | b.1)
}
