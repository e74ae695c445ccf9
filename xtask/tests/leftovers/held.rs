//! What a process holds in the kernel, by identity: other traces on the same kernel come and go meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};

/// Objects of eBPF by their numbers, which the kernel gives out in a circle: none comes back during a test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) maps: BTreeSet<u32>,
    pub(crate) links: BTreeSet<u32>,
}

impl Held {
    /// What these processes hold by their file descriptors, and the maps of the programs among that.
    pub(crate) fn by(processes: &[u32]) -> Held {
        let mut held = Held::default();
        for process in processes {
            // One that has ended holds nothing.
            let entries = fs::read_dir(format!("/proc/{process}/fdinfo")).into_iter().flatten().flatten();
            for text in entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()) {
                let number =
                    |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
                // A link's also tells its program.
                held.programs.extend(number("prog_id:"));
                held.maps.extend(number("map_id:"));
                held.links.extend(number("link_id:"));
            }
        }
        let programs = loaded_programs().filter_map(Result::ok).filter(|program| held.programs.contains(&program.id()));
        let maps: Vec<u32> = programs.filter_map(|program| program.map_ids().ok().flatten()).flatten().collect();
        held.maps.extend(maps);
        held
    }

    /// Those of them that the kernel still has.
    pub(crate) fn alive(&self) -> Held {
        let keep = |mine: &BTreeSet<u32>, all: BTreeSet<u32>| mine.intersection(&all).copied().collect();
        Held {
            programs: keep(&self.programs, loaded_programs().flatten().map(|program| program.id()).collect()),
            maps: keep(&self.maps, loaded_maps().flatten().map(|map| map.id()).collect()),
            links: keep(&self.links, loaded_links().flatten().map(|link| link.id()).collect()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Held { programs, maps, links } = self;
        programs.is_empty() && maps.is_empty() && links.is_empty()
    }

    /// Fails unless the kernel lets go of all of it soon: it frees after a grace period.
    pub(crate) fn assert_gone(&self) {
        wait_for("the kernel still holds objects of the trace", Duration::from_secs(10), || {
            let alive = self.alive();
            if alive.is_empty() { Ok(()) } else { Err(format!("{alive:?}")) }
        });
    }
}

/// Asks until the answer is good; panics with the last one after `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(answer) if Instant::now() >= deadline => panic!("{what} after {limit:?}: {answer}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Fails unless all of them have ended by then.
pub(crate) fn assert_ended(processes: &[u32], limit: Duration) {
    wait_for("processes still run", limit, || {
        let running: Vec<u32> = processes.iter().copied().filter(|process| runs(*process)).collect();
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?}")) }
    });
}

/// One that has ended and that nobody has waited for yet holds nothing any more.
fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
