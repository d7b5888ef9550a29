//! The thread that keeps the catalogue: decides when to look, what to hash and when to publish.
//!
//! Changes wait until the tree is quiet and everything found is hashed; then they appear as one step. Only new files
//! that are no index may appear earlier. What is on disk is looked at in `looking`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use freshet_api::Checksums;
use freshet_api::manifest::RepoPath;

use super::entry::Stamp;
use super::hashing::{Desk, Outcome, Trouble};
use super::left_out::{LeftOut, Note};
use super::publishing::{self, Staged};
use super::store::{Loaded, Settled, Store, StoreError};
use super::tree::{Found, Tree};
use super::watching::Watching;
use super::{CatalogOptions, Shared, Snapshot};

/// Everything that the thread knows; nobody else sees it.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) options: CatalogOptions,
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<Desk>,
    pub(super) tree: Option<Arc<Tree>>,
    pub(super) watching: Option<Watching>,
    /// The published state.
    pub(super) now: Arc<Snapshot>,
    /// Mount points in the tree as last seen, with their devices; the root is the empty path.
    pub(super) mounts: BTreeMap<String, u64>,
    pub(super) mounts_changed: bool,
    /// Paths to look at, and when.
    pub(super) dirty: HashMap<String, Dirty>,
    /// Files that were not quiet when looked at.
    pub(super) restless: HashMap<String, Restless>,
    /// Files at the desk, with the stamp that is being hashed.
    pub(super) hashing: BTreeMap<RepoPath, Stamp>,
    /// Files with several names, so that each is read once.
    pub(super) twins: HashMap<(u64, Stamp), Twins>,
    pub(super) staged: BTreeMap<RepoPath, Staged>,
    staged_since: Option<Instant>,
    pub(super) left_out: LeftOut,
    pub(super) walk_at: Instant,
    /// When to look again at mounts that are missing.
    pub(super) mounts_at: Option<Instant>,
    /// Whether a walk over everything has ended well since the start.
    pub(super) walked: bool,
    /// The last walk asked for that was begun.
    pub(super) walks_seen: u64,
    /// The last of them that ended well.
    pub(super) walks_ended: u64,
    /// Whether the database holds hashes of an earlier run that were not published.
    pub(super) carried: bool,
    pub(super) store: Option<Store>,
    store_retry_at: Instant,
    unkept: Vec<(RepoPath, Stamp, Checksums)>,
    unkept_since: Option<Instant>,
    hashes_kept: bool,
    next_file: u32,
}

/// A path to be looked at.
#[derive(Debug)]
pub(super) struct Dirty {
    due: Instant,
    since: Instant,
    /// Whether a directory there is to be walked.
    pub(super) deep: bool,
}

/// A file that does not come to rest.
#[derive(Debug)]
pub(super) struct Restless {
    tries: u32,
    pub(super) seen: Stamp,
    pub(super) seen_at: Instant,
}

/// The names of one hard-linked file.
#[derive(Debug)]
pub(super) enum Twins {
    /// One name is being hashed, these wait for it.
    Waiting(Vec<(RepoPath, Found)>),
    /// It is known.
    Known(Checksums),
}

impl Keeper {
    pub(super) fn new(
        options: CatalogOptions,
        shared: Arc<Shared>,
        desk: Arc<Desk>,
        store: Store,
        loaded: Loaded,
    ) -> Self {
        let now = Instant::now();
        Self {
            options,
            desk,
            tree: None,
            watching: None,
            now: shared.snapshot.load_full(),
            shared,
            mounts: loaded.mounts,
            mounts_changed: false,
            dirty: HashMap::new(),
            restless: HashMap::new(),
            hashing: BTreeMap::new(),
            twins: HashMap::new(),
            staged: BTreeMap::new(),
            staged_since: None,
            left_out: LeftOut::default(),
            walk_at: now,
            mounts_at: None,
            walked: false,
            walks_seen: 0,
            walks_ended: 0,
            carried: loaded.carried,
            store: Some(store),
            store_retry_at: now,
            unkept: Vec::new(),
            unkept_since: None,
            hashes_kept: loaded.carried,
            next_file: loaded.next_file,
        }
    }

    /// Until the catalogue is stopped.
    pub(super) fn run(mut self) {
        while !self.stopping() {
            self.gather();
            let asked = self.shared.walks_asked.load(Ordering::Relaxed);
            if asked != self.walks_seen || Instant::now() >= self.walk_at {
                self.walks_seen = asked;
                self.walk_all();
            }
            if self.mounts_at.is_some_and(|at| Instant::now() >= at) {
                self.look_at_mounts();
            }
            self.pump();
            self.look_at_due();
            self.pump();
            self.settle();
            self.report();
            self.shared.bell.wait(self.idle_for());
        }
        self.keep_hashes(true);
    }

    pub(super) fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    /// What must happen often, also in the middle of a walk.
    pub(super) fn pump(&mut self) {
        for outcome in self.desk.fetch() {
            self.accept(outcome);
        }
        self.keep_hashes(false);
        let held = self.staged_since.is_some_and(|since| since.elapsed() >= self.options.hold_max);
        if held || self.staged.len() >= STAGED_MAX {
            self.publish_early();
            self.staged_since = (!self.staged.is_empty()).then(Instant::now);
        }
        let pending = self.desk.outstanding() + self.dirty.len();
        self.shared.pending.store(pending as u64, Ordering::Relaxed);
    }

    /// Asks for a look at a path as soon as it was left alone for a while.
    pub(super) fn mark(&mut self, path: String, deep: bool) {
        let now = Instant::now();
        let quiet = self.options.quiet;
        if let Some(dirty) = self.dirty.get_mut(&path) {
            dirty.deep |= deep;
            // An endless writer is looked at all the same, and found to be one.
            if now < dirty.since + quiet * PATIENCE && !self.restless.contains_key(&path) {
                dirty.due = now + quiet;
            }
        } else if self.dirty.len() < DIRTY_MAX {
            self.dirty.insert(path, Dirty { due: now + quiet, since: now, deep });
        } else {
            self.walk_at = self.walk_at.min(now + quiet * 2);
        }
    }

    /// Asks for another look at a file that was not quiet, later and later.
    pub(super) fn retry(&mut self, path: &RepoPath, seen: Stamp) {
        let now = Instant::now();
        let path = path.as_str().to_owned();
        let restless = self.restless.entry(path.clone()).or_insert(Restless { tries: 0, seen, seen_at: now });
        if restless.seen != seen {
            (restless.seen, restless.seen_at) = (seen, now);
        }
        let wait = self.options.quiet.saturating_mul(1 << restless.tries.min(6)).min(RETRY_MAX);
        restless.tries += 1;
        if restless.tries == BUSY_TRIES {
            self.left_out.add(&path, "still being written to; it appears when it is left alone");
        }
        if self.dirty.len() < DIRTY_MAX || self.dirty.contains_key(&path) {
            self.dirty.insert(path, Dirty { due: now + wait, since: now, deep: false });
        } else {
            self.restless.remove(&path);
            self.walk_at = self.walk_at.min(now + wait);
        }
    }

    /// Holds a change for the next publication.
    pub(super) fn stage(&mut self, path: RepoPath, change: Staged) {
        let there = || self.now.at(path.as_str()).is_some();
        let already = match &change {
            Staged::Gone => !there() && self.now.link_at(path.as_str()).is_none(),
            Staged::Link(target) => self.now.link_at(path.as_str()) == Some(target) && !there(),
            Staged::File(..) => false,
        };
        if already {
            self.staged.remove(&path);
        } else {
            self.staged.insert(path, change);
            self.staged_since.get_or_insert_with(Instant::now);
        }
    }

    /// A file is at rest and known.
    pub(super) fn settle_file(&mut self, path: &RepoPath) {
        self.restless.remove(path.as_str());
        self.left_out.remove(path.as_str());
    }

    /// The hash that an earlier run kept for this file.
    pub(super) fn carried_hash(&mut self, path: &RepoPath, stamp: &Stamp) -> Option<Checksums> {
        if !self.carried {
            return None;
        }
        let kept = self.store.as_ref()?.kept_hash(path.as_str(), stamp);
        kept.unwrap_or_else(|error| {
            self.mistrust_store(&error);
            None
        })
    }

    /// Whether nothing is waited for but files that never come to rest.
    fn quiet(&self) -> bool {
        self.desk.outstanding() == 0 && self.dirty.keys().all(|path| self.is_busy(path))
    }

    fn is_busy(&self, path: &str) -> bool {
        self.restless.get(path).is_some_and(|restless| restless.tries >= BUSY_TRIES)
    }

    fn gather(&mut self) {
        let Some(watching) = &self.watching else { return };
        let gathered = watching.fetch();
        let root = watching.root().to_owned();
        if let Some(reason) = gathered.broken {
            self.left_out.note(Note::Watch, reason);
            self.watching = None;
        }
        if gathered.lost {
            self.walk_at = self.walk_at.min(Instant::now() + self.options.quiet.max(LOST_PAUSE));
        }
        for (path, deep) in gathered.paths {
            let Ok(path) = path.strip_prefix(&root) else { continue };
            match path.to_str() {
                Some("") if deep => self.walk_at = self.walk_at.min(Instant::now() + self.options.quiet),
                Some("") => {}
                Some(path) => self.mark(path.to_owned(), deep),
                None if root.join(path).symlink_metadata().is_ok() => {
                    self.left_out.add(&path.to_string_lossy(), NOT_UTF8);
                }
                None => self.left_out.remove(&path.to_string_lossy()),
            }
        }
    }

    fn look_at_due(&mut self) {
        let now = Instant::now();
        let mut due: Vec<String> =
            self.dirty.iter().filter(|(_, dirty)| dirty.due <= now).map(|(path, _)| path.clone()).collect();
        if due.is_empty() || !self.reopen_tree() {
            return;
        }
        due.sort_unstable();
        for (count, path) in due.into_iter().enumerate() {
            if self.stopping() {
                return;
            }
            if let Some(dirty) = self.dirty.remove(&path) {
                self.look(&path, dirty.deep);
            }
            if count.is_multiple_of(PUMP_EVERY) {
                self.pump();
            }
        }
    }

    fn accept(&mut self, outcome: Outcome) {
        let Outcome { path, found, result } = outcome;
        let mut names = vec![(path, found)];
        if found.hard_linked {
            let twins = match &result {
                Ok(sums) => self.twins.insert((found.device, found.stamp), Twins::Known(*sums)),
                Err(_) => self.twins.remove(&(found.device, found.stamp)),
            };
            if let Some(Twins::Waiting(waiting)) = twins {
                names.extend(waiting);
            }
        }
        for (path, found) in names {
            // Overtaken by a later look at the path.
            if self.hashing.get(&path) != Some(&found.stamp) {
                continue;
            }
            self.hashing.remove(&path);
            match &result {
                Ok(sums) => {
                    self.settle_file(&path);
                    self.unkept.push((path.clone(), found.stamp, *sums));
                    self.unkept_since.get_or_insert_with(Instant::now);
                    self.stage(path, Staged::File(found.stamp, *sums));
                }
                Err(Trouble::Changed) => self.retry(&path, found.stamp),
                Err(Trouble::Unreadable(error)) if is_passing(error) => self.retry(&path, found.stamp),
                Err(Trouble::Unreadable(error)) => {
                    self.restless.remove(path.as_str());
                    self.left_out.add(path.as_str(), format!("cannot be read: {error}"));
                    self.stage(path, Staged::Gone);
                }
            }
        }
    }

    /// Writes hashes that are not published yet, so that no crash loses more than a second of work.
    fn keep_hashes(&mut self, all: bool) {
        let due = self.unkept.len() >= KEEP_MAX
            || self.unkept_since.is_some_and(|since| all || since.elapsed() >= KEEP_WITHIN);
        if !due || !self.store_usable() {
            return;
        }
        let unkept = std::mem::take(&mut self.unkept);
        match self.store.as_ref().map(|store| store.keep_hashes(&unkept)) {
            Some(Ok(())) => {
                self.unkept_since = None;
                self.hashes_kept = true;
            }
            Some(Err(error)) => {
                self.unkept = unkept;
                self.mistrust_store(&error);
            }
            None => self.unkept = unkept,
        }
    }

    /// Publishes everything, if nothing is waited for.
    fn settle(&mut self) {
        if !self.quiet() {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        let idle = staged.is_empty() && !self.mounts_changed && !(self.hashes_kept && self.walked);
        if !idle && !self.publish(&staged, Settled::All) {
            self.staged = staged;
            return;
        }
        self.staged_since = None;
        self.unkept.clear();
        self.unkept_since = None;
        self.twins.clear();
        if self.walked {
            self.carried = false;
            // Whoever waited for the scan is told what it left out.
            self.report();
            self.shared.scanned.send_if_modified(|done| !std::mem::replace(done, true));
            let ended = self.walks_ended;
            self.shared.walks_done.send_if_modified(|done| std::mem::replace(done, ended) != ended);
        }
    }

    /// Publishes the new files that are no index: nobody can see an inconsistency by them.
    fn publish_early(&mut self) {
        let free = |path: &str| self.now.at(path).is_none() && self.now.link_at(path).is_none();
        let ready = |path: &RepoPath, change: &Staged| {
            let path = path.as_str();
            matches!(change, Staged::File(..))
                && !self.options.patterns.is_metadata(path)
                && free(path)
                && path.match_indices('/').all(|(end, _)| free(&path[..end]))
        };
        let early: BTreeMap<RepoPath, Staged> = self
            .staged
            .iter()
            .filter(|(path, change)| ready(path, change))
            .map(|(path, change)| (path.clone(), change.clone()))
            .collect();
        if early.is_empty() || !self.publish(&early, Settled::Some(early.keys().cloned().collect())) {
            return;
        }
        self.staged.retain(|path, _| !early.contains_key(path));
        self.unkept.retain(|(path, ..)| !early.contains_key(path));
    }

    /// Writes and shows the next state; `false` when the database refuses.
    fn publish(&mut self, staged: &BTreeMap<RepoPath, Staged>, settled: Settled) -> bool {
        if !self.store_usable() {
            return false;
        }
        let mut next = publishing::next(
            &self.now,
            staged,
            self.next_file,
            &self.options.patterns,
            u32::try_from(since_epoch().as_secs()).unwrap_or(u32::MAX),
        );
        if next.unnumbered > 0 {
            self.left_out.note(Note::Numbers, "the numbers for files are used up; start with a new database");
        }
        let everything = matches!(settled, Settled::All);
        // Hashes that wait for a walk which has not ended yet stay.
        next.write.settled = match settled {
            Settled::All if self.carried && !self.walked => Settled::Some(staged.keys().cloned().collect()),
            _ if !self.hashes_kept => Settled::None,
            settled => settled,
        };
        let cleared = matches!(next.write.settled, Settled::All);
        next.write.mounts = (everything && self.mounts_changed).then(|| self.mounts.clone());
        let mut history = self.shared.lock_history().clone();
        if let Some(step) = next.step.clone() {
            let sequence = step.sequence;
            next.write.steps_gone = history.push(step);
            next.write.step = next.step.take_if(|_| !next.write.steps_gone.contains(&sequence));
        }
        let written = self.store.as_ref().map(|store| store.write(&next.write));
        match written {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.mistrust_store(&error);
                return false;
            }
            None => return false,
        }
        self.left_out.settle(&Note::Database);
        self.next_file = next.write.next_file;
        self.mounts_changed &= !everything;
        self.hashes_kept &= !cleared;
        let sequence = next.snapshot.sequence();
        self.now = Arc::new(next.snapshot);
        {
            let mut shown = self.shared.lock_history();
            *shown = history;
            self.shared.snapshot.store(Arc::clone(&self.now));
        }
        self.shared.sequence.send_if_modified(|shown| std::mem::replace(shown, sequence) != sequence);
        true
    }

    fn report(&mut self) {
        if let Some(lines) = self.left_out.news() {
            *self.shared.lock_standstill() = self.left_out.standstill().map(str::to_owned);
            *self.shared.lock_left_out() = lines;
        }
    }

    /// Whether the database is open, or was opened again after a failure.
    fn store_usable(&mut self) -> bool {
        if self.store.is_some() {
            return true;
        }
        if Instant::now() < self.store_retry_at {
            return false;
        }
        match Store::open(&self.options.database) {
            Ok(store) => self.store = Some(store),
            Err(error) => self.mistrust_store(&error),
        }
        self.store.is_some()
    }

    /// After an error redb wants to be opened anew; nothing is published until it can be written.
    fn mistrust_store(&mut self, error: &StoreError) {
        self.left_out.note(Note::Database, format!("{error}; changes wait until it can be written"));
        self.store = None;
        self.store_retry_at = Instant::now() + STORE_RETRY;
    }

    fn idle_for(&self) -> Duration {
        let now = Instant::now();
        let mut next = self.mounts_at.map_or(self.walk_at, |at| at.min(self.walk_at));
        if let Some(due) = self.dirty.values().map(|dirty| dirty.due).min() {
            next = next.min(due);
        }
        if self.desk.outstanding() > 0 || !self.unkept.is_empty() || !self.staged.is_empty() {
            next = next.min(now + BUSY_TICK);
        }
        next.saturating_duration_since(now).max(TICK_MIN)
    }
}

/// Wall-clock time since the epoch.
pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whether an error is about this process's means and not about the file.
fn is_passing(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::STALE, Errno::INTR];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

/// Why a name cannot be catalogued.
pub(super) const NOT_UTF8: &str = "its name is not UTF-8";

/// Looks after which a file that is never quiet holds up nobody else any more.
const BUSY_TRIES: u32 = 4;

/// Quiet periods for which events may put off a look.
const PATIENCE: u32 = 8;

/// Between two looks at a file that is never quiet, at most.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Paths to be looked at, at most; beyond that a walk finds the rest. Few in tests, so that they meet it.
const DIRTY_MAX: usize = if cfg!(test) { 256 } else { 65_536 };

/// Changes held at most, before those that may are published early.
const STAGED_MAX: usize = 100_000;

/// Hashes fetched from the desk that make a transaction due.
pub(super) const KEEP_MAX: usize = 1_024;

/// And for how long at most.
const KEEP_WITHIN: Duration = Duration::from_secs(1);

/// Between two attempts at a database that failed.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Before the walk that a lost event makes necessary, so that a flood causes one walk and not many.
const LOST_PAUSE: Duration = Duration::from_secs(5);

/// Paths looked at between two visits to the desk.
pub(super) const PUMP_EVERY: usize = 256;

/// The keeper's step while something is under way, and the shortest one.
pub(super) const BUSY_TICK: Duration = Duration::from_millis(100);
const TICK_MIN: Duration = Duration::from_millis(2);
