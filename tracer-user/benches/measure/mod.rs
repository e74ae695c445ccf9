//! What the benches of userspace count: allocations, time on the CPU, memory.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// The system's allocator, which counts.
pub(crate) struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: it hands all on to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Relaxed);
    BYTES.fetch_add(bytes as u64, Relaxed);
}

/// What something took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// By the clock.
    pub(crate) wall: Duration,
    /// On all CPUs, by this process.
    pub(crate) cpu: Duration,
    /// Calls of the allocator.
    pub(crate) allocations: u64,
    /// Bytes asked of it.
    pub(crate) bytes: u64,
}

/// Measures one run of something.
pub(crate) fn cost<T>(run: impl FnOnce() -> T) -> (T, Cost) {
    let (begin, cpu) = (Instant::now(), cpu_time());
    let (allocations, bytes) = (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed));
    let result = run();
    let cost = Cost {
        wall: begin.elapsed(),
        cpu: cpu_time() - cpu,
        allocations: ALLOCATIONS.load(Relaxed) - allocations,
        bytes: BYTES.load(Relaxed) - bytes,
    };
    (result, cost)
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Memory of this process, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: u64,
    /// The most so far.
    pub(crate) peak: u64,
}

/// Reads it.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn memory() -> Result<Memory> {
    let text = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kilobytes = line.split_whitespace().next().context("a number")?;
        Ok(kilobytes.parse::<u64>()? * 1024)
    };
    Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The kernel's release.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn kernel() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?.trim().to_owned())
}

/// The machine, for the raw data.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn machine() -> Result<serde_json::Value> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    Ok(serde_json::json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cpus": std::thread::available_parallelism()?.get(),
        "load": read("/proc/loadavg")?.split_whitespace().next(),
    }))
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
        self.allocations += other.allocations;
        self.bytes += other.bytes;
    }
}
