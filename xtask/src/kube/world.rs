//! All that the server's tasks share.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use super::{control::Request, fault::Faults, rbac::Person, store::Store, synthetic::Synthetic, tls::Authority};
use crate::lab::LabInfo;

/// All that the server's tasks share.
pub(crate) struct World {
    pub(crate) lab: LabInfo,
    /// The program that is run where a command is `podpath-agent`.
    pub(crate) agent: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
    pub(crate) authority: Authority,
    pub(crate) synthetic: Synthetic,
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    people: Mutex<People>,
    journal: Mutex<Vec<Request>>,
    /// Told of every change of the store.
    pub(crate) changed: watch::Sender<u64>,
    /// The UID of a pod whose processes have to end.
    pub(crate) killed: broadcast::Sender<String>,
    /// Whether the server can be reached. Turning false, every connection is cut.
    pub(crate) open: watch::Sender<bool>,
}

/// Who is known by which credential.
#[derive(Debug, Default)]
pub(crate) struct People {
    pub(crate) tokens: HashMap<String, Person>,
    /// By their certificates, as DER.
    pub(crate) certificates: HashMap<Vec<u8>, Person>,
    /// Whose credentials no longer count.
    pub(crate) expired: BTreeSet<String>,
}

impl World {
    #[expect(
        clippy::too_many_arguments,
        reason = "one place makes it, of what it has just put together by these names"
    )]
    pub(crate) fn new(
        lab: LabInfo,
        agent: PathBuf,
        folder: PathBuf,
        port: u16,
        authority: Authority,
        store: Store,
        faults: Faults,
        synthetic: Synthetic,
    ) -> World {
        World {
            lab,
            agent,
            folder,
            port,
            authority,
            synthetic,
            changed: watch::Sender::new(store.version()),
            store: Mutex::new(store),
            faults: Mutex::new(faults),
            people: Mutex::default(),
            journal: Mutex::default(),
            killed: broadcast::Sender::new(64),
            open: watch::Sender::new(true),
        }
    }

    /// The objects, to read them.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Changes objects, and tells those who wait for changes.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let result = work(&mut store);
        let version = store.version();
        drop(store);
        self.changed.send_if_modified(|seen| std::mem::replace(seen, version) != version);
        result
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub(crate) fn people(&self) -> MutexGuard<'_, People> {
        lock(&self.people)
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Vec<Request>> {
        lock(&self.journal)
    }

    /// Ends the processes of a pod.
    pub(crate) fn kill(&self, uid: &str) {
        // Nobody listens: nothing runs.
        let _ = self.killed.send(uid.to_owned());
    }
}

/// A panic of another task is that task's affair: a test sees it as a request that failed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
