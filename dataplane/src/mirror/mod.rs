//! What a volunteer holds: verified blobs by their hash, and the mirror tree as hard links to them.
//!
//! Readers ask from memory and never wait. Files appear whole or not at all, indexes after everything else,
//! deletions after the new state is complete. Nothing here talks to the network, and nothing is ever written
//! in place. Identical contents share one inode and therefore one modification time: the oldest of their
//! files'; `Last-Modified` comes from [`Held::mtime`], which is the manifest's own.

mod assembled;
mod blobs;
mod check;
mod error;
mod incoming;
mod index;
mod lookup;
mod publish;
mod report;
mod row;
mod selection;
mod state;
mod stored;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
mod weigh;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use freshet_api::heartbeat::{HoldingsDelta, SyncProgress};
use freshet_api::manifest::{Manifest, RepoPath};
use freshet_api::{ContentHash, FileId};
use roaring::RoaringBitmap;

pub use check::Rechecked;
pub use error::MirrorError;
pub use incoming::{Arrived, Incoming, ReceiveError};
pub use publish::Finished;
pub use selection::{Selection, SelectionError};
pub use state::Want;
pub use weigh::{WeighError, Weight, weigh};

use blobs::BlobStore;
use index::{Index, Stored};
use lookup::Lookup;
use report::Report;
use state::State;
use tree::Tree;

/// Where the mirror is.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// Blobs, partial files and the index; on the same filesystem as `tree`. Nobody else may write there.
    pub state: PathBuf,
    /// The tree that departments use directly; files that are not the mirror's are left alone.
    pub tree: PathBuf,
    /// Bytes that stay free on that filesystem.
    pub reserve_bytes: u64,
    /// Which part of the repository is kept.
    pub selection: Selection,
}

impl MirrorOptions {
    /// All of the repository, with 256 MiB kept free.
    pub fn new(state: impl Into<PathBuf>, tree: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            tree: tree.into(),
            reserve_bytes: 256 << 20,
            selection: Selection::default(),
        }
    }
}

/// The store and the tree.
pub struct Mirror {
    store: Arc<BlobStore>,
    lookup: Lookup,
    report: Mutex<Report>,
    writer: Mutex<Writer>,
    /// Contents that a reader found wrong, or that a start could not trust.
    suspects: Mutex<Suspects>,
    suspected: tokio::sync::Notify,
    completed: tokio::sync::Notify,
    selection: RwLock<Selection>,
    /// What was accepted so far was selected otherwise.
    reselect: AtomicBool,
    selection_path: PathBuf,
}

/// What only one thread changes at a time.
struct Writer {
    state: State,
    tree: Tree,
    index: Index,
    /// Blobs on disk that the index does not know: a kill came between the two.
    strays: HashSet<ContentHash>,
}

#[derive(Default)]
struct Suspects {
    waiting: Vec<ContentHash>,
    known: HashSet<ContentHash>,
}

/// A file that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number in the catalogue.
    pub file: FileId,
    /// Its path in the tree (symbolic links resolved).
    pub path: RepoPath,
    /// Its identity.
    pub content: ContentHash,
    /// Bytes.
    pub size: u64,
    /// The manifest's modification time, for `Last-Modified`; seconds since the epoch.
    pub mtime: i64,
    /// Where it is, relative to [`Mirror::blobs_directory`]: `ab/cdef…`.
    pub blob: Bytes,
    /// The blob's own modification time, which it must have on disk; seconds since the epoch.
    pub blob_mtime: i64,
}

impl Mirror {
    /// Opens the mirror: reads the index and compares every blob with it.
    ///
    /// Blocks for the time of one `stat` per blob. What is not as recorded is not served until
    /// [`Mirror::recheck`] has hashed it again.
    ///
    /// # Errors
    /// [`MirrorError`], also when state and tree are on different filesystems or another process has it open.
    pub fn open(options: MirrorOptions) -> Result<Arc<Self>, MirrorError> {
        let store = Arc::new(BlobStore::open(&options.state, options.reserve_bytes)?);
        let tree = Tree::open(&options.tree)?;
        check_one_filesystem(&store, &tree, &options)?;
        let (index, mut stored) = Index::open(options.state.join("index.redb"))?;
        let state = std::mem::take(&mut stored.state);
        let target = state.target;
        let writer = Writer { state, tree, index, strays: HashSet::new() };
        let selection_path = options.state.join("selection");
        let selected = std::fs::read_to_string(&selection_path).unwrap_or_default();
        let reselect = AtomicBool::new(target > 0 && selected != options.selection.text());
        let mirror = Arc::new(Self {
            store,
            lookup: Lookup::new(),
            report: Mutex::default(),
            writer: Mutex::new(writer),
            suspects: Mutex::default(),
            suspected: tokio::sync::Notify::new(),
            completed: tokio::sync::Notify::new(),
            selection: RwLock::new(options.selection),
            reselect,
            selection_path,
        });
        mirror.restore(stored)?;
        Ok(mirror)
    }

    /// What stands at a path, with or without a leading `/`; symbolic links of the manifest are followed.
    pub fn find(&self, path: &[u8]) -> Option<Held> {
        let path = std::str::from_utf8(path).ok()?;
        self.lookup.path(path.strip_prefix('/').unwrap_or(path))
    }

    /// A file with this content, also one that left the tree less than a grace period ago.
    pub fn find_content(&self, content: &ContentHash) -> Option<Held> {
        self.lookup.content(content)
    }

    /// The directory that [`Held::blob`] is relative to.
    pub fn blobs_directory(&self) -> &Path {
        self.store.path()
    }

    /// What changed in the holdings since what control acknowledged, bounded to
    /// [`DELTA_MAX`](freshet_api::heartbeat::DELTA_MAX) each way.
    pub fn delta(&self) -> HoldingsDelta {
        self.report().delta()
    }

    /// Control has taken this delta in.
    pub fn acknowledge(&self, delta: &HoldingsDelta) {
        self.report().acknowledge(delta);
    }

    /// Control knows exactly these holdings: after `PUT /v1/holdings`, or an empty bitmap when it knows nothing.
    pub fn acknowledge_holdings(&self, holdings: RoaringBitmap) {
        self.report().acknowledge_all(holdings);
    }

    /// All that is held and served, by [`FileId`].
    pub fn holdings(&self) -> RoaringBitmap {
        self.report().held().clone()
    }

    /// How far the mirror is.
    pub fn progress(&self) -> SyncProgress {
        self.report().progress.clone()
    }

    /// Something was wrong with a blob when it was served (a read error, another size or time): it is not
    /// served any more until it was hashed again, and fetched again if it is not what it should be.
    pub fn distrust(&self, content: &ContentHash) {
        self.lookup.doubt(*content);
        self.suspect(*content);
    }

    /// What is said to stop the sync, in words; `None` when nothing does.
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.report().progress.trouble = trouble;
    }

    /// Makes `manifest` the target, as far as this mirror keeps it, durably. Blocks.
    ///
    /// # Errors
    /// [`MirrorError::OtherBase`] when it is a difference to a state that is not ours; the disk's.
    pub fn accept(&self, manifest: &Manifest) -> Result<(), MirrorError> {
        let mut writer = self.writer();
        let selection = self.selection();
        if selection.is_whole() {
            writer.state.accept(manifest, now())?;
        } else {
            let mut selected = manifest.clone();
            let (held, held_bytes) = writer.state.wanted_besides(manifest);
            selection.apply(&mut selected, &held, held_bytes);
            writer.state.accept(&selected, now())?;
        }
        self.settle(&mut writer)?;
        if manifest.base.is_none() {
            // After the state that goes by it: killed between the two, it asks for the whole once more.
            self.remember_selection(&selection)?;
            // Another may have been chosen meanwhile.
            let changed = selection.text() != self.selection().text();
            self.reselect.store(changed, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Chooses another part of the repository; it is made once a whole manifest was accepted. Says whether it is another.
    pub fn select(&self, selection: Selection) -> bool {
        let mut chosen = self.selection.write().unwrap_or_else(PoisonError::into_inner);
        let changed = chosen.text() != selection.text();
        if changed {
            *chosen = selection;
            self.reselect.store(true, Ordering::Relaxed);
        }
        changed
    }

    fn selection(&self) -> Selection {
        self.selection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether all of the manifest is needed, because the owner selects another part than before.
    pub fn needs_whole_manifest(&self) -> bool {
        self.reselect.load(Ordering::Relaxed)
    }

    fn remember_selection(&self, selection: &Selection) -> Result<(), MirrorError> {
        let text = selection.text();
        if std::fs::read_to_string(&self.selection_path).unwrap_or_default() == text {
            return Ok(());
        }
        crate::durable::write(&self.selection_path, text.as_bytes(), 0o644)
            .map_err(|source| MirrorError::Disk { doing: "write", path: self.selection_path.clone(), source })
    }

    /// The state that is being made, if any manifest was accepted yet.
    pub fn target(&self) -> Option<u64> {
        Some(self.writer().state.target).filter(|&target| target > 0)
    }

    /// What must be fetched for the target: each content once, indexes last. Linear in the number of files.
    pub fn missing(&self) -> Vec<Want> {
        self.writer().state.missing()
    }

    /// Opens the place for a content that is to be fetched. Blocks, also for the hashing of what an
    /// earlier attempt left.
    ///
    /// # Errors
    /// The disk's; [`MirrorError::Busy`] when it is being received already.
    pub fn receive(&self, want: &Want) -> Result<Incoming, MirrorError> {
        Incoming::open(&self.store, want)
    }

    /// Waits until another state is complete than when this was asked last.
    pub async fn completed(&self) {
        self.completed.notified().await;
    }

    /// Waits until some content is suspected.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// What was copied lately, and how; for people.
    pub fn set_transfer(&self, transfer: freshet_api::heartbeat::Transfer) {
        self.report().progress.transfer = transfer;
    }

    fn suspect(&self, content: ContentHash) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.known.insert(content) {
            suspects.waiting.push(content);
            self.suspected.notify_one();
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what changed, then tells the readers and the report.
    fn settle(&self, writer: &mut Writer) -> Result<(), MirrorError> {
        let dirty = writer.state.take_dirty();
        let mut written = Ok(());
        if !dirty.is_empty() {
            written = writer.index.write(&writer.state, &dirty);
            if written.is_err() {
                writer.state.still_dirty(dirty);
            }
        }
        let held = writer.state.take_held_changes();
        self.lookup.set_table(writer.state.table());
        let totals = writer.state.totals;
        let mut report = self.report();
        for (file, is_held) in held {
            report.set_held(file, is_held);
        }
        let progress = &mut report.progress;
        progress.target = writer.state.target;
        progress.complete = writer.state.complete;
        progress.files_missing = totals.files_missing;
        progress.bytes_missing = totals.bytes_missing;
        progress.files_held = totals.files_held;
        progress.bytes_held = totals.bytes_held;
        written
    }

    /// Takes over what the index knew, as far as the disk agrees.
    fn restore(&self, stored: Stored) -> Result<(), MirrorError> {
        let mut writer = self.writer();
        let Writer { state, strays, .. } = &mut *writer;
        *strays = self.store.list()?;
        for (path, link) in stored.links {
            state.restore_link(path, link);
        }
        let mut blobs = stored.blobs;
        blobs.sort_unstable_by_key(|(content, _)| content.0);
        for (content, recorded) in blobs {
            let Some((found, links)) = self.store.stamp(&content)? else { continue };
            strays.remove(&content);
            let shown = state.published_of(&content).len() as u64;
            let trusted = found == recorded && links > shown;
            state.restore_blob(&content, &found, trusted);
            if !trusted {
                self.suspect(content);
            }
        }
        for content in state.published_without_blob() {
            tracing::warn!(%content, "a blob is gone from the disk; it will be fetched again");
            state.lost(content, now());
        }
        state.announce_all();
        self.lookup.set_links(state.published_links());
        self.settle(&mut writer)
    }
}

/// Runs a step of the mirror that waits for the disk where that disturbs nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, MirrorError> + Send + 'static,
) -> Result<T, MirrorError> {
    tokio::task::spawn_blocking(step).await.unwrap_or_else(|stopped| {
        Err(MirrorError::Disk {
            doing: "finish a step on",
            path: "the mirror".into(),
            source: std::io::Error::other(stopped),
        })
    })
}

fn check_one_filesystem(store: &BlobStore, tree: &Tree, options: &MirrorOptions) -> Result<(), MirrorError> {
    let scratch = store.scratch_name();
    let asked = |errno| MirrorError::disk("look at", &options.tree)(errno);
    // Bind mounts and subvolumes have one device number and still refuse links: only a try tells.
    let from = rustix::fs::fstat(store.directory()).map_err(asked)?;
    let to = rustix::fs::fstat(tree.directory()).map_err(asked)?;
    let apart = || MirrorError::Apart { tree: tree.path().to_owned(), state: options.state.clone() };
    if from.st_dev != to.st_dev {
        return Err(apart());
    }
    let aside = store.write_aside(b"", 0)?;
    let tried = store.try_link_into(&aside, tree.directory(), &format!(".freshet-link-test-{scratch}"));
    store.discard(&aside);
    match tried {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::XDEV) => Err(apart()),
        Err(errno) => Err(MirrorError::disk("link into", tree.path())(errno)),
    }
}

/// Seconds since the epoch.
fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
impl Mirror {
    /// Lets every write to the disk fail with this error number; 0 ends it.
    pub(crate) fn fail_writes(&self, errno: i32) {
        self.store.faults.errno.store(errno, Ordering::Relaxed);
    }
}
