//! The programs of the kernel object: into the kernel, to their places, and out again.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError, ProgramFd},
};

use super::{
    Error,
    hooks::{HOOKS, HookPlace, Kind, has_kprobes, tracepoints},
};

/// A kprobe that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The place.
    pub hook: &'static HookPlace,
    /// Why.
    pub why: Why,
}

/// Why a kprobe is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// `CONFIG_KPROBES` or `CONFIG_KPROBE_EVENTS` is off.
    #[error("this kernel has no kprobes")]
    NoKprobes,
    /// Nothing uses the function.
    #[error("its module {0} is not loaded")]
    NoModule(&'static str),
    /// The kernel refuses.
    #[error("{0}")]
    Refused(String),
}

impl Lack {
    fn refused(hook: &'static HookPlace, error: &ProgramError) -> Self {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        // The verifier's words run over many lines.
        let why = cause.to_string().lines().next().unwrap_or_default().to_owned();
        Self { hook, why: Why::Refused(why) }
    }
}

/// The kprobes that cannot be there, found without trying.
fn out_of_reach() -> Vec<Lack> {
    let kprobes = has_kprobes();
    let why = |hook: &HookPlace| match hook.kind {
        Kind::Tracepoint => None,
        Kind::Kprobe { .. } if !kprobes => Some(Why::NoKprobes),
        Kind::Kprobe { module, .. } => (!hook.has_module()).then_some(Why::NoModule(module)),
    };
    HOOKS.iter().filter_map(|hook| Some(Lack { hook, why: why(hook)? })).collect()
}

/// Loads the programs of all places within reach, several at a time: the verifier takes tens of milliseconds for each. Returns the
/// places that are not within reach, or whose programs the kernel refuses.
pub(super) fn load_all(ebpf: &mut Ebpf, btf: &Btf) -> Result<Vec<Lack>, Error> {
    let mut without = out_of_reach();
    let within = |program: &str| {
        let reachable = |hook: &&HookPlace| without.iter().all(|lack| lack.hook != *hook);
        HOOKS.iter().filter(reachable).find(|hook| hook.program == program)
    };
    let waiting: Vec<_> = ebpf.programs_mut().filter_map(|(name, program)| Some((within(name)?, program))).collect();
    let (waiting, done) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    let work = || {
        // Two statements, so that the lock is not held while the kernel verifies.
        while let Some((hook, program)) = { locked(&waiting).pop() } {
            let result = load(program, hook, btf);
            locked(&done).push((hook, result));
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(tracepoints().count());
    thread::scope(|threads| {
        for _ in 1..workers {
            threads.spawn(work);
        }
        work();
    });
    for (hook, result) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match (result, hook.kind) {
            (Ok(()), _) => {}
            (Err(Error::Program { source, .. }), Kind::Kprobe { .. }) => {
                let same = HOOKS.iter().filter(|other| other.program == hook.program);
                without.extend(same.map(|hook| Lack::refused(hook, &source)));
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(without)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads the program of one place by its name.
pub(super) fn load_one(ebpf: &mut Ebpf, hook: &HookPlace, btf: &Btf) -> Result<(), Error> {
    load(find(ebpf, hook.program)?, hook, btf)
}

fn load(program: &mut Program, hook: &HookPlace, btf: &Btf) -> Result<(), Error> {
    let begin = Instant::now();
    let loaded = match program {
        Program::BtfTracePoint(program) => program.load(hook.name, btf),
        Program::KProbe(program) => program.load(),
        _ => return Err(Error::NoObject),
    };
    loaded.map_err(|source| match source {
        ProgramError::LoadError { ref io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            Error::NotPermitted { what: "load eBPF programs" }
        }
        source => Error::Program { step: "load", program: hook.program.to_owned(), source },
    })?;
    let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(program = hook.program, ?verified, elapsed = ?begin.elapsed(), "loaded");
    Ok(())
}

/// Attaches a loaded program to a place. A kprobe that the kernel refuses is an answer, not an error.
pub(super) fn attach(ebpf: &mut Ebpf, hook: &'static HookPlace) -> Result<Option<Lack>, Error> {
    let attached = match find(ebpf, hook.program)? {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::KProbe(program) => program.attach(hook.name, 0).map(drop),
        _ => return Err(Error::NoObject),
    };
    match (attached, hook.kind) {
        (Ok(()), _) => Ok(None),
        (Err(source), Kind::Kprobe { .. }) => Ok(Some(Lack::refused(hook, &source))),
        (Err(source), Kind::Tracepoint) => {
            Err(Error::Program { step: "attach", program: hook.program.to_owned(), source })
        }
    }
}

/// How often the kernel passed programs over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    /// Tracepoints'. The device hooks run with softirqs off, so that only those of frees can be interrupted by themselves.
    pub(super) frees: u64,
    /// Kprobes', where the kernel tells that of them (`trace_call_bpf`, likewise).
    pub(super) kprobes: u64,
}

impl std::ops::AddAssign for Skipped {
    fn add_assign(&mut self, other: Self) {
        self.frees += other.frees;
        self.kprobes += other.kprobes;
    }
}

/// Detaches and unloads all programs. Returns how often the kernel passed them over.
pub(super) fn unload_all(ebpf: &mut Ebpf) -> Result<Skipped, Error> {
    let mut skipped = Skipped::default();
    for (name, program) in ebpf.programs_mut() {
        let misses = program.fd().map(misses).unwrap_or_default();
        match program {
            Program::KProbe(_) => skipped.kprobes += misses,
            _ => skipped.frees += misses,
        }
        let unloaded = match program {
            Program::BtfTracePoint(program) => program.unload(),
            Program::KProbe(program) => program.unload(),
            _ => Ok(()),
        };
        match unloaded {
            Ok(()) | Err(ProgramError::NotLoaded) => {}
            Err(source) => return Err(Error::Program { step: "unload", program: name.to_owned(), source }),
        }
    }
    Ok(skipped)
}

/// How often the kernel passed a program over because one was running on that CPU already (`bpf_prog_inc_misses_counter` in
/// kernel/trace/bpf_trace.c, from about 6.2); 0 where the kernel does not say.
fn misses(program: &ProgramFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok()).unwrap_or(0)
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, Error> {
    ebpf.program_mut(name).ok_or(Error::NoObject)
}
