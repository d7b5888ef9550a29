//! The catalogue of the repository: every file with its checksums, kept current.
//!
//! It never writes into the repository, never serves a byte, and is read without a lock.
// No module of the catalogue follows a symbolic link on disk; links are followed in the catalogue alone.

mod bell;
mod entry;
mod hashing;
mod history;
mod keeper;
mod left_out;
mod looking;
pub mod metadata;
mod publishing;
mod snapshot;
mod store;
mod tree;
mod watching;
mod weigh;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use freshet_api::admin::CatalogView;
use freshet_api::manifest::Manifest;
use tokio::sync::watch;

use self::bell::Bell;
use self::hashing::Desk;
use self::history::History;
use self::keeper::Keeper;
use self::store::Store;
use crate::precedence::behind_the_rings;

pub use self::entry::{EntryPath, FileEntry};
pub use self::metadata::Patterns;
pub use self::snapshot::{ItemKind, LINK_HOPS_MAX, ListItem, Snapshot};
pub use self::store::StoreError;
pub use self::weigh::{Weight, weigh};
pub use freshet_api::glob::{Glob, GlobError};

/// The catalogue of one directory tree; shared by everything in control that asks about files.
#[derive(Debug)]
pub struct Catalog {
    shared: Arc<Shared>,
    desk: Arc<Desk>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// How a catalogue is kept.
#[derive(Clone, Debug)]
pub struct CatalogOptions {
    /// The root of the repository.
    pub repo: PathBuf,
    /// The catalogue's own database file; made where it is missing, never within `repo`.
    pub database: PathBuf,
    /// Between two walks over everything; changes are usually seen at once, by inotify.
    pub rescan_every: Duration,
    /// Threads that read and hash, at least 1.
    pub hash_threads: usize,
    /// How long a file, and the tree as a whole, must have been left alone before changes are published.
    pub quiet: Duration,
    /// New files that are no indexes are published after this long even when the tree is not quiet.
    pub hold_max: Duration,
    /// What counts as an index.
    pub patterns: Patterns,
}

impl CatalogOptions {
    /// The usual: a walk every 10 minutes, 2 s of quiet, at most 30 s of holding back, up to 4 hash threads.
    pub fn new(repo: impl Into<PathBuf>, database: impl Into<PathBuf>) -> Self {
        Self {
            repo: repo.into(),
            database: database.into(),
            rescan_every: Duration::from_secs(600),
            hash_threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
            quiet: Duration::from_secs(2),
            hold_max: Duration::from_secs(30),
            patterns: Patterns::default(),
        }
    }
}

impl Catalog {
    /// Loads what is known, so that it can be served at once, and starts to verify and follow the tree.
    ///
    /// # Errors
    /// [`CatalogError`]: the database cannot be used, or there is neither a repository nor anything known of it.
    pub fn open(options: CatalogOptions) -> Result<Arc<Self>, CatalogError> {
        check_places(&options)?;
        let store = Store::open(&options.database)?;
        let now_ms = u64::try_from(keeper::since_epoch().as_millis()).unwrap_or(u64::MAX);
        let mut loaded = store.load(&options.patterns, now_ms)?;
        if loaded.snapshot.is_empty()
            && let Err(error) = tree::Tree::open(&options.repo)
        {
            return Err(CatalogError::Repository { path: options.repo, error });
        }
        let bell = Arc::new(Bell::default());
        let snapshot = std::mem::replace(&mut loaded.snapshot, Snapshot::empty(0));
        let shared = Arc::new(Shared {
            sequence: watch::Sender::new(snapshot.sequence()),
            snapshot: ArcSwap::from_pointee(snapshot),
            history: Mutex::new(std::mem::take(&mut loaded.history)),
            scanned: watch::Sender::new(false),
            left_out: Mutex::default(),
            standstill: Mutex::default(),
            pending: AtomicU64::new(0),
            walks_asked: AtomicU64::new(0),
            walks_done: watch::Sender::new(0),
            stopping: AtomicBool::new(false),
            bell: Arc::clone(&bell),
        });
        let desk = Desk::new(bell);
        let mut threads = desk.hire(options.hash_threads).map_err(CatalogError::Thread)?;
        let keeper = Keeper::new(options, Arc::clone(&shared), Arc::clone(&desk), store, loaded);
        let keeper = std::thread::Builder::new().name("catalog".to_owned()).spawn(move || {
            behind_the_rings();
            keeper.run();
        });
        let catalog = Self { shared, desk, threads: Mutex::default() };
        // If the keeper could not be started, dropping the catalogue ends the hash threads.
        keeper.map(|keeper| threads.push(keeper)).map_err(CatalogError::Thread)?;
        *catalog.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(Arc::new(catalog))
    }

    /// The present state; lock-free, valid for as long as the guard is held.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.shared.snapshot.load()
    }

    /// What changed since the state `base`, or everything when `base` is `None`, unknown or too long ago.
    pub fn manifest_since(&self, base: Option<u64>) -> Manifest {
        let history = self.shared.lock_history();
        let now = self.shared.snapshot.load_full();
        let diff = base.and_then(|base| history.since(base, &now));
        drop(history);
        diff.unwrap_or_else(|| history::whole(&now))
    }

    /// What changed from the state `base` to `state`, which was shown by this catalogue; everything when `base` is
    /// `None`, unknown, too long ago or later.
    pub fn manifest_of(&self, state: &Snapshot, base: Option<u64>) -> Manifest {
        let base = base.filter(|&base| base <= state.sequence());
        let diff = base.and_then(|base| self.shared.lock_history().since(base, state));
        diff.unwrap_or_else(|| history::whole(state))
    }

    /// Tells the sequence of every newly published state.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.sequence.subscribe()
    }

    /// Whether the tree has been walked and everything in it published since the start.
    pub fn first_scan_done(&self) -> bool {
        *self.shared.scanned.borrow()
    }

    /// What stands in the way of everything new, in words: the repository or the database can't be used.
    pub fn standstill(&self) -> Option<String> {
        self.shared.lock_standstill().clone()
    }

    /// Turns true when the first scan is done.
    pub fn first_scan(&self) -> watch::Receiver<bool> {
        self.shared.scanned.subscribe()
    }

    /// The state in figures, with what was left out and why.
    pub fn view(&self) -> CatalogView {
        let now = self.load();
        CatalogView {
            sequence: now.sequence(),
            files: now.len() as u64,
            bytes: now.bytes(),
            contents: now.contents(),
            links: now.links().len() as u64,
            left_out: self.shared.lock_left_out().clone(),
            pending: self.shared.pending.load(Ordering::Relaxed),
        }
    }

    /// Files read and hashed since the start; stays 0 over a restart in which nothing changed.
    pub fn hashed_files(&self) -> u64 {
        self.desk.hashed_files()
    }

    /// Bytes read and hashed since the start.
    pub fn hashed_bytes(&self) -> u64 {
        self.desk.hashed_bytes()
    }

    /// Asks for a walk over everything now; returns its number for [`Catalog::walks`].
    pub fn rescan(&self) -> u64 {
        let walk = self.shared.walks_asked.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.bell.ring();
        walk
    }

    /// Tells the number of the last walk asked for that has ended, with everything that it found published.
    pub fn walks(&self) -> watch::Receiver<u64> {
        self.shared.walks_done.subscribe()
    }

    /// Ends the threads and closes the database; the last state stays readable. Dropping the catalogue does the same.
    ///
    /// Waits for what is being written, at most about a second.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.desk.stop();
        self.shared.bell.ring();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the catalogue had panicked");
            }
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the keeper shows to everybody.
#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Leads to the snapshot: both are exchanged under this lock.
    history: Mutex<History>,
    sequence: watch::Sender<u64>,
    scanned: watch::Sender<bool>,
    left_out: Mutex<Vec<String>>,
    standstill: Mutex<Option<String>>,
    pending: AtomicU64,
    /// How many walks were asked for; the last of them stands for all before it.
    walks_asked: AtomicU64,
    walks_done: watch::Sender<u64>,
    stopping: AtomicBool,
    bell: Arc<Bell>,
}

impl Shared {
    fn lock_history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_left_out(&self) -> MutexGuard<'_, Vec<String>> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_standstill(&self) -> MutexGuard<'_, Option<String>> {
        self.standstill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a catalogue cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The repository's root.
    #[error("expected a readable directory at {}: {error}; set the repository's root in the configuration", .path.display())]
    Repository {
        /// What was looked at.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// A database within the tree would be catalogued, and change with every change.
    #[error("the catalogue's database {} must not be within the repository; set another state directory", .path.display())]
    DatabaseInRepository {
        /// The database.
        path: PathBuf,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread can be started.
    #[error("the catalogue's threads cannot be started: {0}")]
    Thread(std::io::Error),
}

fn check_places(options: &CatalogOptions) -> Result<(), CatalogError> {
    let directory = options.database.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new(".")).canonicalize();
    match (directory, options.repo.canonicalize()) {
        (Ok(directory), Ok(repo)) if directory.starts_with(&repo) => {
            Err(CatalogError::DatabaseInRepository { path: options.database.clone() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
