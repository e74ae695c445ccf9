//! The kernel programs: loaded, attached, drained, detached.
//!
//! Everything is held by file descriptors of this process: when it ends, however it ends, the kernel removes all of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapData, MapError, PerCpuArray, RingBuf},
    programs::ProgramError,
};
use tracer_common::{ABSENT, Layout, MAX_FLOWS, Pages, Wanted, hook, scope_slots};

use crate::{
    event::{Record, decode},
    session::{Counters, Flow},
};

pub mod btf;
mod cast;
pub mod doctor;
pub mod hooks;
pub mod layout;
pub mod pages;
mod programs;
pub mod symbols;
mod wanted;

use btf::KernelTypes;
use hooks::HookPlace;
use programs::Skipped;
pub use programs::{Lack, Why};

/// The kernel object, built by `cargo xtask build`; empty if this binary was built without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podpath-ebpf.o"));

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
        "the kernel refuses to {what}: operation not permitted; run as root (`podpath doctor` says what is missing)"
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
    #[error("{asked} flows asked for; a session can follow {most} at a time", most = MAX_FLOWS)]
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
    without: Vec<Lack>,
    casts: bool,
    events: RingBuf<MapData>,
    symbols: symbols::Symbols,
    /// Frees wait here for their names: `/proc/kallsyms` takes the kernel tens of milliseconds to print, which must
    /// not fall between the packets that are measured.
    frees: Vec<Record>,
    /// Records taken out of the ring so far.
    recorded: u64,
    /// Known after [`Self::detach`].
    skipped: Skipped,
    /// The kprobes that only say more of drops are attached with the first drop that they may say more of.
    spared: bool,
    attached: bool,
}

/// What else than a lack of root may be the reason stands with it.
const MAPS: &str =
    "create maps (before Linux 5.11 they count as locked memory, whose limit takes CAP_SYS_RESOURCE to raise)";

/// So many records are taken out of the ring in one go while more may come: what the ring holds.
const MOST_AT_ONCE: usize = RING_SIZE as usize / tracer_common::RECORD_SIZE;

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
    /// Its name: [`HookPlace::program`], or [`EMPTY`].
    pub program: String,
    /// How often it ran.
    pub runs: u64,
    /// How long in all.
    pub time: Duration,
}

/// The program that does nothing.
pub const EMPTY: &str = hooks::EMPTY_PLACE.program;

impl Probe {
    /// Loads the programs for the running kernel and attaches them.
    pub fn start(setup: &Setup<'_>) -> Result<Self, Error> {
        let mut probe = Self::load(setup)?;
        probe.attach_all()?;
        Ok(probe)
    }

    /// Attaches the programs of all places. The kprobes first: of the first packet that a tracepoint sees they then see all.
    pub fn attach_all(&mut self) -> Result<(), Error> {
        hooks::kprobes().chain(hooks::tracepoints()).try_for_each(|hook| self.attach(hook))
    }

    /// As [`Self::attach_all`], but for the kprobes that run for every packet that meets netfilter, of anybody on the machine, only to say
    /// more of those that it drops: they follow with the first drop of a wanted packet for which netfilter may be the reason. Of it and of
    /// those in the next tens of milliseconds, what evaluated rules last is not known.
    pub fn attach_sparing(&mut self) -> Result<(), Error> {
        self.spared = true;
        let places = hooks::kprobes().chain(hooks::tracepoints());
        places.filter(|hook| !hook.is_of_drops()).try_for_each(|hook| self.attach(hook))
    }

    /// Loads everything, attaches nothing.
    pub fn load(setup: &Setup<'_>) -> Result<Self, Error> {
        let begin = Instant::now();
        if OBJECT.is_empty() {
            return Err(Error::NoObject);
        }
        let wanted = wanted::rules(setup.flows)?;
        raise_memory_limit();
        // Each takes tens of milliseconds, and none needs the others: a loader reads BTF of its own when it is made.
        let (types, btf, mut loader) = thread::scope(|threads| {
            let (btf, loader) = (threads.spawn(Btf::from_sys_fs), threads.spawn(EbpfLoader::new));
            let types = KernelTypes::open().and_then(|types| Ok((layout::resolve(&types)?, types)));
            (types, joined(btf), joined(loader))
        });
        let ((layout, types), btf) = (types?, btf?);
        let pages = pages::read(&types, &layout).unwrap_or_else(|why| {
            tracing::debug!(%why, "page fragments are not read");
            Pages::default()
        });
        let function = types.function(layout::CAST_FUNCTION).filter(|_| layout.bytes_type != ABSENT);
        let copying = Layout { bytes_type: ABSENT, ..layout };
        let mut load = |layout, function| {
            let mut programs = loader
                .override_global("LAYOUT", layout, true)
                .override_global("PAGES", &pages, true)
                .map_max_entries("EVENTS", setup.ring_size)
                .load(&cast::linked(OBJECT, function))
                .map_err(not_permitted(MAPS, Error::Object))?;
            let without = programs::load_all(&mut programs, &btf)?;
            Ok::<_, Error>((programs, without, function.is_some()))
        };
        let loaded = match function {
            // A kernel that compiles no programs refuses such calls.
            Some(function) => load(&layout, Some(function)).or_else(|why| {
                tracing::debug!(%why, "memory is read without bpf_rdonly_cast");
                load(&copying, None)
            }),
            None => load(&copying, None),
        };
        let (mut programs, without, casts) = loaded?;
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
            without,
            casts,
            events,
            symbols: symbols::Symbols::read(&types),
            frees: Vec::new(),
            recorded: 0,
            skipped: Skipped::default(),
            spared: false,
            attached: true,
        })
    }

    /// Attaches the program of one place. Without a kprobe the trace goes on: [`Self::without`] then says why.
    pub fn attach(&mut self, hook: &'static HookPlace) -> Result<(), Error> {
        if self.without.iter().all(|lack| lack.hook != hook) {
            self.without.extend(programs::attach(&mut self.programs, hook)?);
        }
        Ok(())
    }

    /// The kprobes that this session is without.
    pub fn without(&self) -> &[Lack] {
        &self.without
    }

    /// Do the programs load from packets directly (`bpf_rdonly_cast`, from 6.2)? Else they ask the kernel to copy.
    pub fn loads_directly(&self) -> bool {
        self.casts
    }

    /// Takes one more network namespace into scope.
    pub fn add_namespace(&mut self, inode: u32) -> Result<(), Error> {
        add_to_scope(&mut self.programs, inode)
    }

    /// Takes all records out of the ring. Those of the free hooks come, with their names, only after [`Self::detach`].
    pub fn drain(&mut self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        self.drain_into(&mut records)?;
        Ok(records)
    }

    /// [`Self::drain`], to the end of what the caller has room for.
    pub fn drain_into(&mut self, records: &mut Vec<Record>) -> Result<(), Error> {
        let before = records.len();
        let mut dropped = false;
        while let Some(bytes) = self.events.next() {
            self.recorded += 1;
            match decode::record(&bytes)? {
                Record::Sighting(sighting) if sighting.free.is_some() => {
                    dropped |= self.spared && self.symbols.may_be_netfilters(&sighting);
                    self.frees.push(Record::Sighting(sighting));
                }
                record => records.push(record),
            }
            // Else a flood that is faster than this loop would keep it here for ever.
            if self.attached && records.len() - before + self.frees.len() >= MOST_AT_ONCE {
                break;
            }
        }
        if dropped && self.attached {
            self.spared = false;
            hooks::kprobes().filter(|hook| hook.is_of_drops()).try_for_each(|hook| self.attach(hook))?;
        }
        if !self.attached || self.frees.len() > MAX_FREES_WAITING {
            self.symbols.name_frees(&mut self.frees);
            records.append(&mut self.frees);
        }
        Ok(())
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
            lost_rewrite: lost[usize::from(hook::REWRITE)],
            unread: lost[usize::from(hook::UNREAD)],
            skipped_frees: self.skipped.frees,
            skipped_kprobes: self.skipped.kprobes,
        })
    }

    /// Detaches all programs. Records already in the ring can still be drained.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.attached = false;
        self.skipped += programs::unload_all(&mut self.programs)?;
        Ok(())
    }

    /// Attaches a program that does nothing to `net_dev_start_xmit`, for a benchmark to measure the others against.
    pub fn attach_empty(&mut self) -> Result<(), Error> {
        let btf = Btf::from_sys_fs()?;
        programs::load_one(&mut self.programs, &hooks::EMPTY_PLACE, &btf)?;
        programs::attach(&mut self.programs, &hooks::EMPTY_PLACE).map(drop)
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

/// What a thread made.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
