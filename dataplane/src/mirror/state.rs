//! What the mirror must hold, what it holds and what it shows: the writer's view, in memory.
//!
//! No I/O happens here. Each change marks what the index must learn; the index follows, and after a kill -9
//! the steps it missed are simply done again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use freshet_api::manifest::{Manifest, ManifestFile, RepoPath};
use freshet_api::{ContentHash, FileId};
use serde::{Deserialize, Serialize};

use super::MirrorError;
use super::lookup::{Change, link_target};

/// One version of one path, numbered by this mirror: control may number anew, paths and contents stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RowNumber(pub(super) u32);

/// What is served for a file; shared with the readers.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) file: ManifestFile,
    pub(super) blob: Arc<Blob>,
}

/// What readers must know of a blob.
#[derive(Debug)]
pub(super) struct Blob {
    /// Cleared when it is suspected; nothing of it is served until it was hashed again.
    pub(super) trusted: AtomicBool,
    /// Of the blob on disk, seconds since the epoch: identical contents share one.
    pub(super) mtime: AtomicI64,
}

/// What a blob looked like on disk when it was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
}

/// What stands in the tree below a directory, and whether each is wanted there.
pub(super) struct Below {
    pub(super) rows: Vec<(RowNumber, bool)>,
    pub(super) links: Vec<(RepoPath, bool)>,
}

/// A row as the index keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredRow {
    pub(super) file: ManifestFile,
    pub(super) wanted: bool,
    pub(super) published: bool,
    /// When it was neither any more, seconds since the epoch.
    pub(super) retired: Option<i64>,
}

/// A symbolic link as the index keeps it: the target that it should have, and the one that stands in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkState {
    pub(super) wanted: Option<String>,
    pub(super) published: Option<String>,
}

struct Slot {
    row: Arc<Row>,
    wanted: bool,
    published: bool,
    retired: Option<i64>,
}

#[derive(Default)]
struct PathState {
    wanted: Option<RowNumber>,
    published: Option<RowNumber>,
}

struct BlobState {
    blob: Arc<Blob>,
    size: u64,
    /// What it is on disk; `None` while it is missing.
    stamp: Option<Stamp>,
    /// Ascending, because numbers are given so.
    rows: Vec<RowNumber>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) target: u64,
    pub(super) complete: u64,
    next_row: u32,
    rows: HashMap<RowNumber, Slot>,
    paths: BTreeMap<RepoPath, PathState>,
    links: BTreeMap<RepoPath, LinkState>,
    blobs: HashMap<ContentHash, BlobState>,
    wanted_files: HashMap<FileId, RowNumber>,
    dirty: Dirty,
    changes: Vec<Change>,
    held_changes: Vec<(FileId, bool)>,
    pub(super) totals: Totals,
}

/// What the index has not learnt yet.
#[derive(Default)]
pub(super) struct Dirty {
    pub(super) rows: BTreeSet<RowNumber>,
    pub(super) links: BTreeSet<RepoPath>,
    pub(super) blobs: BTreeSet<ContentHash>,
    pub(super) sequences: bool,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.links.is_empty() && self.blobs.is_empty() && !self.sequences
    }
}

/// Sums over the state, kept up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) files_missing: u64,
    pub(super) bytes_missing: u64,
    pub(super) files_held: u64,
    pub(super) bytes_held: u64,
}

/// A content that is wanted and not held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its identity.
    pub content: ContentHash,
    /// Bytes.
    pub size: u64,
    /// The entity tag that a server of ours gives it.
    pub etag: String,
    /// One of the paths that it has, for sources that know paths only.
    pub path: RepoPath,
    /// Modification time of the blob: the oldest of its files', seconds since the epoch.
    pub mtime: i64,
    /// Whether it belongs to an index, which is fetched last.
    pub last: bool,
}

impl State {
    /// Puts a stored row back; the blob's stamp comes by [`State::restore_blob`].
    pub(super) fn restore_row(&mut self, number: RowNumber, stored: StoredRow) {
        self.next_row = self.next_row.max(number.0.saturating_add(1));
        let StoredRow { file, wanted, published, retired } = stored;
        let blob = self.attach(&file, number);
        let path = self.paths.entry(file.path.clone()).or_default();
        if wanted {
            path.wanted = Some(number);
            self.wanted_files.insert(file.file, number);
        }
        if published {
            path.published = Some(number);
        }
        self.rows.insert(number, Slot { row: Arc::new(Row { file, blob }), wanted, published, retired });
    }

    pub(super) fn restore_link(&mut self, path: RepoPath, link: LinkState) {
        self.links.insert(path, link);
    }

    /// Says what is on disk for a content; untrusted, it is held but not served.
    pub(super) fn restore_blob(&mut self, content: ContentHash, stamp: Stamp, trusted: bool) {
        if let Some(slot) = self.blobs.get_mut(&content) {
            slot.stamp = Some(stamp);
            slot.blob.mtime.store(stamp.mtime.0, Ordering::Relaxed);
            slot.blob.trusted.store(trusted, Ordering::Release);
        }
    }

    /// Tells the readers everything, after a start.
    pub(super) fn announce_all(&mut self) {
        let contents: Vec<ContentHash> = self.blobs.keys().copied().collect();
        for content in contents {
            self.announce(&content);
        }
        self.recount();
    }

    /// Makes `manifest` the target.
    pub(super) fn accept(&mut self, manifest: &Manifest, now: i64) -> Result<(), MirrorError> {
        if let Some(base) = manifest.base
            && base != self.target
        {
            return Err(MirrorError::OtherBase { expected: self.target, found: base });
        }
        self.check(manifest)?;
        if manifest.base.is_none() {
            let wanted: Vec<RowNumber> = self.wanted_files.drain().map(|(_, number)| number).collect();
            let listed: HashMap<&RepoPath, &ManifestFile> =
                manifest.files.iter().map(|file| (&file.path, file)).collect();
            for number in wanted {
                let file = &self.rows[&number].row.file;
                let stays = listed.get(&file.path).is_some_and(|new| same_version(new, file));
                if stays {
                    self.wanted_files.insert(file.file, number);
                } else {
                    self.unwant(number, now);
                }
            }
            let links: BTreeSet<&RepoPath> = manifest.links.iter().map(|link| &link.path).collect();
            let gone: Vec<RepoPath> =
                self.links.keys().filter(|path| !links.contains(path)).cloned().collect();
            gone.into_iter().for_each(|path| self.want_link(path, None));
        }
        for file in &manifest.removed_files {
            if let Some(number) = self.wanted_files.remove(file) {
                self.unwant(number, now);
            }
        }
        for path in &manifest.removed_links {
            self.want_link(path.clone(), None);
        }
        for file in &manifest.files {
            self.want(file, now);
        }
        for link in &manifest.links {
            let taken = self.paths.get(&link.path).is_some_and(|path| path.wanted.is_some());
            let inside = link_target(link.path.as_str(), &link.target).is_some();
            if taken || !inside {
                tracing::warn!(path = %link.path, target = link.target, taken, inside,
                    "a symbolic link is left out: a file has its path, or it leaves the tree");
            }
            self.want_link(link.path.clone(), (inside && !taken).then(|| link.target.clone()));
        }
        if manifest.base.is_none() {
            // Control may have numbered anew, and given one file's old number to another.
            for slot in self.rows.values().filter(|slot| slot.wanted) {
                let held = slot.published && self.trusted(&slot.row.file.content);
                self.held_changes.push((slot.row.file.file, held));
            }
        }
        self.target = manifest.sequence;
        self.dirty.sequences = true;
        self.recount();
        Ok(())
    }

    /// The contents that stay wanted beside the files of a difference, and their bytes.
    pub(super) fn wanted_besides(&self, manifest: &Manifest) -> (HashSet<ContentHash>, u64) {
        let mut held = HashSet::new();
        if manifest.base.is_none() {
            return (held, 0);
        }
        let removed: HashSet<FileId> = manifest.removed_files.iter().copied().collect();
        let replaced: HashSet<&RepoPath> = manifest.files.iter().map(|file| &file.path).collect();
        let mut bytes = 0;
        for slot in self.rows.values().filter(|slot| slot.wanted) {
            let file = &slot.row.file;
            let stays = !removed.contains(&file.file) && !replaced.contains(&file.path);
            if stays && held.insert(file.content) {
                bytes += file.size;
            }
        }
        (held, bytes)
    }

    /// The manifest's own contradictions, before anything is changed.
    fn check(&self, manifest: &Manifest) -> Result<(), MirrorError> {
        let mut sizes: HashMap<ContentHash, u64> = HashMap::new();
        for file in &manifest.files {
            let known = self.blobs.get(&file.content).map(|slot| slot.size);
            let size = known.unwrap_or_else(|| *sizes.entry(file.content).or_insert(file.size));
            if size != file.size {
                let what = format!("{} is both {size} and {} bytes long", file.content, file.size);
                return Err(MirrorError::Contradiction { what });
            }
        }
        Ok(())
    }

    fn want(&mut self, file: &ManifestFile, now: i64) {
        let state = self.paths.entry(file.path.clone()).or_default();
        let candidates = [state.wanted, state.published];
        let known =
            candidates.into_iter().flatten().find(|number| same_version(&self.rows[number].row.file, file));
        if let Some(old) = state.wanted
            && known != Some(old)
        {
            let id = self.rows[&old].row.file.file;
            if self.wanted_files.get(&id) == Some(&old) {
                self.wanted_files.remove(&id);
            }
            self.unwant(old, now);
        }
        let number = match known {
            Some(number) => {
                self.renew(number, file);
                number
            }
            None => self.add(file),
        };
        self.paths.entry(file.path.clone()).or_default().wanted = Some(number);
        if self.links.get(&file.path).is_some_and(|link| link.wanted.is_some()) {
            self.want_link(file.path.clone(), None);
        }
        self.wanted_files.insert(file.file, number);
        let slot = self.rows.get_mut(&number).expect("a row that was just found or added");
        slot.wanted = true;
        slot.retired = None;
        self.dirty.rows.insert(number);
        self.announce_row(number);
        self.announce_content(&file.content);
    }

    /// Takes over what may change without the content: number, time, order.
    fn renew(&mut self, number: RowNumber, file: &ManifestFile) {
        let slot = self.rows.get_mut(&number).expect("the caller found it");
        if slot.row.file != *file {
            if slot.wanted && slot.row.file.file != file.file {
                if self.wanted_files.get(&slot.row.file.file) == Some(&number) {
                    self.wanted_files.remove(&slot.row.file.file);
                }
                self.held_changes.push((slot.row.file.file, false));
            }
            slot.row = Arc::new(Row { file: file.clone(), blob: Arc::clone(&slot.row.blob) });
        }
    }

    fn add(&mut self, file: &ManifestFile) -> RowNumber {
        let number = RowNumber(self.next_row);
        self.next_row += 1;
        let blob = self.attach(file, number);
        let row = Arc::new(Row { file: file.clone(), blob });
        self.rows.insert(number, Slot { row, wanted: true, published: false, retired: None });
        number
    }

    fn attach(&mut self, file: &ManifestFile, number: RowNumber) -> Arc<Blob> {
        let slot = self.blobs.entry(file.content).or_insert_with(|| BlobState {
            blob: Arc::new(Blob { trusted: AtomicBool::new(false), mtime: AtomicI64::new(file.mtime) }),
            size: file.size,
            stamp: None,
            rows: Vec::with_capacity(1),
        });
        slot.rows.push(number);
        Arc::clone(&slot.blob)
    }

    /// Takes a row out of the target; what stands in the tree stays until the new state is complete.
    fn unwant(&mut self, number: RowNumber, now: i64) {
        let Some(slot) = self.rows.get_mut(&number) else { return };
        slot.wanted = false;
        self.held_changes.push((slot.row.file.file, false));
        if let Some(path) = self.paths.get_mut(&slot.row.file.path)
            && path.wanted == Some(number)
        {
            path.wanted = None;
        }
        self.dirty.rows.insert(number);
        self.settle(number, now);
    }

    /// Forgets a row that is neither wanted nor published, or keeps it for the grace period.
    fn settle(&mut self, number: RowNumber, now: i64) {
        let Some(slot) = self.rows.get_mut(&number) else { return };
        if slot.wanted || slot.published {
            return;
        }
        let content = slot.row.file.content;
        let path = slot.row.file.path.clone();
        slot.retired = Some(now);
        self.dirty.rows.insert(number);
        if self.paths.get(&path).is_some_and(|state| state.wanted.is_none() && state.published.is_none()) {
            self.paths.remove(&path);
        }
        if self.blobs.get(&content).is_none_or(|blob| blob.stamp.is_none()) {
            self.drop_row(number);
        }
    }

    fn drop_row(&mut self, number: RowNumber) {
        let Some(slot) = self.rows.remove(&number) else { return };
        let content = slot.row.file.content;
        self.dirty.rows.insert(number);
        if let Some(blob) = self.blobs.get_mut(&content) {
            if let Ok(at) = blob.rows.binary_search(&number) {
                blob.rows.remove(at);
            }
            if blob.rows.is_empty() {
                self.blobs.remove(&content);
                self.dirty.blobs.insert(content);
            }
        }
        self.announce_content(&content);
    }

    fn want_link(&mut self, path: RepoPath, target: Option<String>) {
        let link = self.links.entry(path.clone()).or_default();
        link.wanted = target;
        if *link == LinkState::default() {
            self.links.remove(&path);
        }
        self.dirty.links.insert(path);
    }

    /// What must be fetched: each content once, indexes last, otherwise in the order of paths.
    pub(super) fn missing(&self) -> Vec<Want> {
        let mut wants: HashMap<ContentHash, Want> = HashMap::new();
        for (path, state) in &self.paths {
            let Some(number) = state.wanted else { continue };
            let file = &self.rows[&number].row.file;
            let content = file.content;
            if self.blobs[&content].stamp.is_some() {
                continue;
            }
            wants
                .entry(content)
                .and_modify(|want| {
                    want.mtime = want.mtime.min(file.mtime);
                    want.last &= file.last;
                })
                .or_insert_with(|| Want {
                    content,
                    size: file.size,
                    etag: file.content.etag(),
                    path: path.clone(),
                    mtime: file.mtime,
                    last: file.last,
                });
        }
        let mut wants: Vec<Want> = wants.into_values().collect();
        wants.sort_unstable_by(|a, b| (a.last, &a.path).cmp(&(b.last, &b.path)));
        wants
    }

    /// Whether any content is missing.
    pub(super) fn any_missing(&self) -> bool {
        let missing = |number: RowNumber| self.stamp(&self.rows[&number].row.file.content).is_none();
        self.paths.values().filter_map(|path| path.wanted).any(missing)
    }

    /// Whether any row of the target is not in the tree.
    pub(super) fn any_unplaced(&self, last: bool) -> bool {
        let mut wanted = self.paths.values().filter_map(|path| path.wanted).map(|number| &self.rows[&number]);
        wanted.any(|slot| !slot.published && slot.row.file.last == last)
    }

    /// Contents whose files are in the tree by the index, and which the disk does not have.
    pub(super) fn published_without_blob(&self) -> Vec<ContentHash> {
        let gone = |(content, slot): (&ContentHash, &BlobState)| {
            let shown = slot.rows.iter().any(|number| {
                let slot = &self.rows[number];
                slot.published || slot.retired.is_some()
            });
            (slot.stamp.is_none() && shown).then_some(*content)
        };
        self.blobs.iter().filter_map(gone).collect()
    }

    /// Paths at which a content is wanted, a few at most.
    pub(super) fn wanted_paths_of(&self, content: &ContentHash) -> Vec<RepoPath> {
        let rows = self.blobs.get(content).map(|slot| slot.rows.as_slice()).unwrap_or_default();
        let wanted = rows.iter().map(|number| &self.rows[number]).filter(|slot| slot.wanted);
        wanted.take(CANDIDATE_PATHS_MAX).map(|slot| slot.row.file.path.clone()).collect()
    }

    /// Rows whose content is there and which are not in the tree yet, in the order of paths.
    pub(super) fn ready(&self, last: bool) -> Vec<RowNumber> {
        let ready = |number: &RowNumber| {
            let slot = &self.rows[number];
            !slot.published && slot.row.file.last == last && self.trusted(&slot.row.file.content)
        };
        self.paths.values().filter_map(|path| path.wanted).filter(ready).collect()
    }

    /// Wanted rows of a content that can go into the tree now.
    pub(super) fn ready_of(&self, content: &ContentHash) -> Vec<RowNumber> {
        let Some(blob) = self.blobs.get(content) else { return Vec::new() };
        let ready = |number: &RowNumber| {
            let slot = &self.rows[number];
            slot.wanted && !slot.published && !slot.row.file.last
        };
        blob.rows.iter().copied().filter(ready).collect()
    }

    /// Whether anything wants this content, and with which time.
    pub(super) fn wanted_mtime(&self, content: &ContentHash) -> Option<i64> {
        let wanted = |number: &RowNumber| {
            let slot = &self.rows[number];
            slot.wanted.then_some(slot.row.file.mtime)
        };
        self.blobs.get(content)?.rows.iter().filter_map(wanted).min()
    }

    /// Every blob on disk whose time is not the oldest of its wanted files'.
    pub(super) fn wrong_times(&self) -> Vec<(ContentHash, i64)> {
        let wrong = |(content, slot): (&ContentHash, &BlobState)| {
            let stamp = slot.stamp?;
            let mtime = self.wanted_mtime(content)?;
            (stamp.mtime.0 != mtime).then_some((*content, mtime))
        };
        self.blobs.iter().filter_map(wrong).collect()
    }

    /// A verified content is on disk, or its inode changed by our own hand.
    pub(super) fn arrived(&mut self, content: ContentHash, stamp: Stamp) {
        let Some(slot) = self.blobs.get_mut(&content) else { return };
        let new = slot.stamp.is_none() || !slot.blob.trusted.load(Ordering::Acquire);
        if slot.stamp.replace(stamp).is_none() {
            self.totals.bytes_held += slot.size;
            self.totals.bytes_missing = self.totals.bytes_missing.saturating_sub(slot.size);
        }
        slot.blob.mtime.store(stamp.mtime.0, Ordering::Relaxed);
        slot.blob.trusted.store(true, Ordering::Release);
        self.dirty.blobs.insert(content);
        if new {
            self.announce(&content);
        }
    }

    /// The inode of a content was touched by our own hand. `false` when more than that happened to it.
    pub(super) fn restamped(&mut self, content: ContentHash, stamp: Stamp) -> bool {
        let Some(slot) = self.blobs.get_mut(&content) else { return true };
        let Some(before) = slot.stamp.replace(stamp) else {
            slot.stamp = None;
            return true;
        };
        slot.blob.mtime.store(stamp.mtime.0, Ordering::Relaxed);
        self.dirty.blobs.insert(content);
        (before.inode, before.size, before.mtime) == (stamp.inode, stamp.size, stamp.mtime)
    }

    /// A content is no longer on disk, or not what it was; its files are out of the tree already.
    pub(super) fn lost(&mut self, content: ContentHash, now: i64) {
        let Some(slot) = self.blobs.get_mut(&content) else { return };
        slot.stamp = None;
        slot.blob.trusted.store(false, Ordering::Release);
        self.dirty.blobs.insert(content);
        for number in slot.rows.clone() {
            self.unpublished(number, now);
            if self.rows.get(&number).is_some_and(|slot| !slot.wanted) {
                self.drop_row(number);
            }
        }
        self.announce(&content);
    }

    /// A content is suspected: readers must not see it until it was hashed again.
    pub(super) fn suspected(&mut self, content: &ContentHash) {
        if let Some(slot) = self.blobs.get(content) {
            slot.blob.trusted.store(false, Ordering::Release);
            self.announce(content);
        }
    }

    /// The tree has this row now, and no longer what was there before.
    pub(super) fn published(&mut self, number: RowNumber, now: i64) {
        let Some(slot) = self.rows.get_mut(&number) else { return };
        if slot.wanted && !slot.published {
            self.totals.files_missing = self.totals.files_missing.saturating_sub(1);
            self.totals.files_held += 1;
        }
        slot.published = true;
        slot.retired = None;
        let content = slot.row.file.content;
        self.dirty.rows.insert(number);
        if let Some(link) = self.links.get_mut(&slot.row.file.path) {
            link.published = None;
            self.dirty.links.insert(slot.row.file.path.clone());
        }
        let path = self.paths.entry(slot.row.file.path.clone()).or_default();
        let before = path.published.replace(number).filter(|&before| before != number);
        if let Some(before) = before
            && let Some(old) = self.rows.get_mut(&before)
        {
            old.published = false;
            self.dirty.rows.insert(before);
            self.settle(before, now);
        }
        self.announce_row(number);
        self.announce_content(&content);
    }

    /// The tree does not have this row any more.
    pub(super) fn unpublished(&mut self, number: RowNumber, now: i64) {
        let Some(slot) = self.rows.get_mut(&number) else { return };
        if !slot.published {
            return;
        }
        slot.published = false;
        let row = Arc::clone(&slot.row);
        self.dirty.rows.insert(number);
        if let Some(path) = self.paths.get_mut(&row.file.path)
            && path.published == Some(number)
        {
            path.published = None;
            self.changes.push(Change::Path(row.file.path.clone(), None));
        }
        self.held_changes.push((row.file.file, false));
        self.settle(number, now);
        self.announce_content(&row.file.content);
    }

    pub(super) fn link_published(&mut self, path: &RepoPath, target: Option<String>) {
        let link = self.links.entry(path.clone()).or_default();
        link.published = target;
        if *link == LinkState::default() {
            self.links.remove(path);
        }
        self.dirty.links.insert(path.clone());
    }

    /// Rows in the tree that the target does not have, deepest paths first.
    pub(super) fn surplus(&self) -> Vec<RowNumber> {
        let surplus = |path: &PathState| path.published.filter(|number| !self.rows[number].wanted);
        self.paths.values().rev().filter_map(surplus).collect()
    }

    /// Links whose place in the tree is not as it should be: path, target it should have.
    pub(super) fn links_to_change(&self) -> Vec<(RepoPath, Option<String>)> {
        let change = |(path, link): (&RepoPath, &LinkState)| {
            (link.wanted != link.published).then(|| (path.clone(), link.wanted.clone()))
        };
        self.links.iter().filter_map(change).collect()
    }

    pub(super) fn published_links(&self) -> BTreeMap<RepoPath, String> {
        let published = |(path, link): (&RepoPath, &LinkState)| Some((path.clone(), link.published.clone()?));
        self.links.iter().filter_map(published).collect()
    }

    pub(super) fn link(&self, path: &str) -> Option<&LinkState> {
        self.links.get(path)
    }

    /// The row in the tree at a path, and whether the target wants it there.
    pub(super) fn published_at(&self, path: &str) -> Option<(RowNumber, bool)> {
        let number = self.paths.get(path)?.published?;
        Some((number, self.rows[&number].wanted))
    }

    /// Paths below a directory that are in the tree: rows and links, and whether each is wanted there.
    pub(super) fn published_below(&self, directory: &str) -> Below {
        let below = format!("{directory}/");
        // `0` follows `/` in ASCII, so that the range is all that starts with `below`.
        let end = format!("{directory}0");
        let range = || (std::ops::Bound::Included(below.as_str()), std::ops::Bound::Excluded(end.as_str()));
        let rows = self.paths.range::<str, _>(range()).filter_map(|(_, path)| path.published);
        let rows = rows.map(|number| (number, self.rows[&number].wanted)).collect();
        let links = self.links.range::<str, _>(range()).filter(|(_, link)| link.published.is_some());
        Below { rows, links: links.map(|(path, link)| (path.clone(), link.wanted.is_some())).collect() }
    }

    pub(super) fn row(&self, number: RowNumber) -> Option<&Arc<Row>> {
        self.rows.get(&number).map(|slot| &slot.row)
    }

    pub(super) fn stored(&self, number: RowNumber) -> Option<StoredRow> {
        let Slot { row, wanted, published, retired } = self.rows.get(&number)?;
        Some(StoredRow { file: row.file.clone(), wanted: *wanted, published: *published, retired: *retired })
    }

    pub(super) fn stored_link(&self, path: &RepoPath) -> Option<&LinkState> {
        self.links.get(path)
    }

    pub(super) fn stamp(&self, content: &ContentHash) -> Option<Stamp> {
        self.blobs.get(content)?.stamp
    }

    /// Whether a content has this many bytes.
    pub(super) fn has_size(&self, content: &ContentHash, size: u64) -> bool {
        self.blobs.get(content).is_some_and(|slot| slot.size == size)
    }

    /// Whether a content is named by any row.
    pub(super) fn knows(&self, content: &ContentHash) -> bool {
        self.blobs.contains_key(content)
    }

    pub(super) fn trusted(&self, content: &ContentHash) -> bool {
        self.blobs
            .get(content)
            .is_some_and(|slot| slot.stamp.is_some() && slot.blob.trusted.load(Ordering::Acquire))
    }

    /// All rows of a content that are in the tree.
    pub(super) fn published_of(&self, content: &ContentHash) -> Vec<RowNumber> {
        let rows = self.blobs.get(content).map(|slot| slot.rows.as_slice()).unwrap_or_default();
        rows.iter().copied().filter(|number| self.rows[number].published).collect()
    }

    /// Contents that nothing has wanted or shown since `before` (seconds since the epoch).
    pub(super) fn unused_since(&self, before: i64) -> Vec<ContentHash> {
        let unused = |number: &RowNumber| self.rows[number].retired.is_some_and(|retired| retired <= before);
        let all_unused =
            |(content, slot): (&ContentHash, &BlobState)| slot.rows.iter().all(unused).then_some(*content);
        self.blobs.iter().filter_map(all_unused).collect()
    }

    /// Forgets a content whose blob was deleted, with its retired rows.
    pub(super) fn swept(&mut self, content: &ContentHash) {
        let rows = self.blobs.get(content).map(|slot| slot.rows.clone()).unwrap_or_default();
        rows.into_iter().for_each(|number| self.drop_row(number));
    }

    pub(super) fn set_complete(&mut self) {
        self.complete = self.target;
        self.dirty.sequences = true;
    }

    pub(super) fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Puts back what could not be written.
    pub(super) fn still_dirty(&mut self, dirty: Dirty) {
        self.dirty.rows.extend(dirty.rows);
        self.dirty.links.extend(dirty.links);
        self.dirty.blobs.extend(dirty.blobs);
        self.dirty.sequences |= dirty.sequences;
    }

    pub(super) fn take_changes(&mut self) -> (Vec<Change>, Vec<(FileId, bool)>) {
        (std::mem::take(&mut self.changes), std::mem::take(&mut self.held_changes))
    }

    /// Tells the readers about every row of a content; linear in their number.
    fn announce(&mut self, content: &ContentHash) {
        let rows = self.blobs.get(content).map(|slot| slot.rows.clone()).unwrap_or_default();
        rows.into_iter().for_each(|number| self.announce_row(number));
        self.announce_content(content);
    }

    /// Tells the readers about one row; a content may have thousands (the empty one, licences).
    fn announce_row(&mut self, number: RowNumber) {
        let Some(slot) = self.rows.get(&number) else { return };
        let served = self.trusted(&slot.row.file.content);
        if slot.published {
            let row = served.then(|| Arc::clone(&slot.row));
            self.changes.push(Change::Path(slot.row.file.path.clone(), row));
        }
        if slot.wanted {
            self.held_changes.push((slot.row.file.file, served && slot.published));
        }
    }

    /// Tells the readers which row stands for a content: the newest.
    fn announce_content(&mut self, content: &ContentHash) {
        let newest = self.blobs.get(content).and_then(|slot| self.rows.get(slot.rows.last()?));
        let row = newest.filter(|_| self.trusted(content)).map(|slot| Arc::clone(&slot.row));
        self.changes.push(Change::Content(*content, row));
    }

    /// Counts anew; linear in the number of files.
    pub(super) fn recount(&mut self) {
        let mut totals = Totals::default();
        for slot in self.rows.values() {
            totals.files_missing += u64::from(slot.wanted && !slot.published);
            totals.files_held += u64::from(slot.wanted && slot.published);
        }
        for slot in self.blobs.values() {
            if slot.stamp.is_some() {
                totals.bytes_held += slot.size;
            } else if slot.rows.iter().any(|number| self.rows[number].wanted) {
                totals.bytes_missing += slot.size;
            }
        }
        self.totals = totals;
    }
}

/// Whether two entries are the same content under the same path.
fn same_version(one: &ManifestFile, two: &ManifestFile) -> bool {
    one.path == two.path && one.content == two.content && one.size == two.size
}

/// Paths of one content that are looked at for a copy that is there already.
const CANDIDATE_PATHS_MAX: usize = 8;
