//! The BPF programs and maps of this machine. All of it: other traces may come and go while we look.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
/// The kernel frees programs and maps some time after their last reference went; other people's traces take this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ids are never given twice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Objects {
    pub(crate) fn now() -> Result<Objects> {
        Ok(Objects { programs: ids(BPF_PROG_GET_NEXT_ID)?, maps: ids(BPF_MAP_GET_NEXT_ID)? })
    }

    fn without(&self, others: &Objects) -> Objects {
        Objects { programs: &self.programs - &others.programs, maps: &self.maps - &others.maps }
    }

    fn and(&self, others: &Objects) -> Objects {
        Objects { programs: &self.programs & &others.programs, maps: &self.maps & &others.maps }
    }

    /// What is new since `self` must go away.
    pub(crate) fn nothing_stays(&self) -> Result<()> {
        let start = Instant::now();
        let mut left = Objects::now()?.without(self);
        while !(left.programs.is_empty() && left.maps.is_empty()) {
            if start.elapsed() > PATIENCE {
                bail!("left in the kernel {} s after the trace: {left:?}", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
            left = left.and(&Objects::now()?);
        }
        Ok(())
    }
}

fn ids(command: libc::c_int) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    let mut last = 0;
    while let Some(id) = next_id(command, last)? {
        ids.insert(id);
        last = id;
    }
    Ok(ids)
}

fn next_id(command: libc::c_int, after: u32) -> Result<Option<u32>> {
    // start_id, next_id, open_flags of `union bpf_attr`.
    let mut attr = [after, 0, 0];
    // SAFETY: the kernel reads and writes at most the given size of `attr`, which lives until the call returns.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(&attr)) };
    if answer == 0 {
        return Ok(Some(attr[1]));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(None),
        _ => bail!("listing BPF objects: {error}"),
    }
}
