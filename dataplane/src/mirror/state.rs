//! What the mirror must hold, what it holds and what it shows: the writer's view, in memory.
//!
//! One table has it all; readers get copies of it that share what did not change. No I/O happens here. Each change
//! marks what the index must learn; the index follows, and after a kill -9 the steps it missed are simply done again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use freshet_api::manifest::{FileRef, Manifest, ManifestFile, RepoPath};
use freshet_api::table::{Added, Entry, Table};
use freshet_api::{ContentHash, FileId};

use super::MirrorError;
use super::lookup::link_target;
use super::row::Row;
use super::stored::{Dirty, LinkState, RowNumber, Stamp, StoredRow};

/// What stands in the tree below a directory, and whether each is wanted there.
pub(super) struct Below {
    pub(super) rows: Vec<(RowNumber, bool)>,
    pub(super) links: Vec<(RepoPath, bool)>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) target: u64,
    pub(super) complete: u64,
    next_row: u32,
    table: Table<Row>,
    /// When rows were neither wanted nor published any more, seconds since the epoch.
    retired: BTreeMap<RowNumber, i64>,
    links: BTreeMap<RepoPath, LinkState>,
    dirty: Dirty,
    held_changes: Vec<(FileId, bool)>,
    pub(super) totals: Totals,
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
    /// Puts stored rows back; their blobs' stamps come by [`State::restore_blob`].
    pub(super) fn restore_rows(&mut self, rows: Vec<(RowNumber, StoredRow)>) {
        let highest = rows.iter().map(|(number, _)| number.0.saturating_add(1)).max().unwrap_or(0);
        self.next_row = self.next_row.max(highest);
        for (number, stored) in &rows {
            if let Some(retired) = stored.retired {
                self.retired.insert(*number, retired);
            }
        }
        let alike = self.table.extend(rows.into_iter().map(|(number, stored)| {
            let mut row = Row::new(stored.file.as_ref());
            row.set(Row::WANTED, stored.wanted);
            row.set(Row::PUBLISHED, stored.published);
            (number.0, stored.file.path, stored.file.content, row)
        }));
        self.share(alike);
    }

    pub(super) fn restore_link(&mut self, path: RepoPath, link: LinkState) {
        self.links.insert(path, link);
    }

    /// Says what is on disk for a content; untrusted, it is held but not served.
    pub(super) fn restore_blob(&mut self, content: &ContentHash, stamp: &Stamp, trusted: bool) {
        self.change_content(content, |row| {
            row.set_blob(stamp.mtime.0, stamp.digest());
            row.set(Row::HELD, true);
            row.set(Row::TRUSTED, trusted);
        });
    }

    /// Tells the report everything, after a start.
    pub(super) fn announce_all(&mut self) {
        let wanted = self.table.iter().filter(|entry| entry.row().is(Row::WANTED));
        self.held_changes.extend(wanted.map(|entry| (entry.row().file(), entry.row().is_served())));
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
            self.unwant_what_is_not_in(manifest, now);
        }
        let removed: HashSet<FileId> = manifest.removed_files.iter().copied().collect();
        if !removed.is_empty() {
            for number in self.numbers(|row| row.is(Row::WANTED) && removed.contains(&row.file())) {
                self.unwant(number, now);
            }
        }
        for path in &manifest.removed_links {
            self.want_link(path.clone(), None);
        }
        self.want_all(manifest, now);
        for link in &manifest.links {
            let taken = self.table.at(link.path.as_str()).any(|entry| entry.row().is(Row::WANTED));
            let inside = link_target(link.path.as_str(), &link.target).is_some();
            if taken || !inside {
                tracing::warn!(path = %link.path, target = link.target, taken, inside,
                    "a symbolic link is left out: a file has its path, or it leaves the tree");
            }
            self.want_link(link.path.clone(), (inside && !taken).then(|| link.target.clone()));
        }
        if manifest.base.is_none() {
            // Control may have numbered anew, and given one file's old number to another.
            let wanted = self.table.iter().filter(|entry| entry.row().is(Row::WANTED));
            self.held_changes.extend(wanted.map(|entry| (entry.row().file(), entry.row().is_served())));
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
        let replaced: HashSet<RepoPath> = manifest.files.iter().map(|file| file.path).collect();
        let mut bytes = 0;
        self.table.for_each_path(|entry, path| {
            let row = entry.row();
            let stays = row.is(Row::WANTED) && !removed.contains(&row.file()) && !replaced.contains(path);
            if stays && held.insert(*entry.content()) {
                bytes += row.size();
            }
        });
        (held, bytes)
    }

    fn unwant_what_is_not_in(&mut self, manifest: &Manifest, now: i64) {
        if self.table.iter().any(|entry| entry.row().is(Row::WANTED)) {
            let listed: HashMap<RepoPath, (ContentHash, u64)> =
                manifest.files.iter().map(|file| (file.path, (file.content, file.size))).collect();
            let mut gone = Vec::new();
            self.table.for_each_path(|entry, path| {
                let version = (*entry.content(), entry.row().size());
                if entry.row().is(Row::WANTED) && listed.get(path) != Some(&version) {
                    gone.push(RowNumber(entry.number()));
                }
            });
            gone.into_iter().for_each(|number| self.unwant(number, now));
        }
        let links: BTreeSet<&RepoPath> = manifest.links.iter().map(|link| &link.path).collect();
        let gone: Vec<RepoPath> = self.links.keys().filter(|path| !links.contains(path)).cloned().collect();
        gone.into_iter().for_each(|path| self.want_link(path, None));
    }

    /// The manifest's own contradictions, before anything is changed.
    fn check(&self, manifest: &Manifest) -> Result<(), MirrorError> {
        let fail = |content: &ContentHash, one: u64, other: u64| {
            let what = format!("{content} is both {one} and {other} bytes long");
            Err(MirrorError::Contradiction { what })
        };
        let knows_some = !self.table.is_empty();
        let mut sizes: Vec<(u64, u64)> = Vec::with_capacity(manifest.files.len());
        let mut files = manifest.files.cursor();
        while let Some(file) = files.next() {
            let known = || self.table.with_content(&file.content).next().map(|known| known.row().size());
            match knows_some.then(known).flatten() {
                Some(known) if known != file.size => return fail(&file.content, known, file.size),
                Some(_) => {}
                None => sizes.push((beginning(&file.content), file.size)),
            }
        }
        // The beginnings of the hashes tell almost all of them apart.
        sizes.sort_unstable_by_key(|&(beginning, _)| beginning);
        let odd = sizes
            .chunk_by(|one, other| one.0 == other.0)
            .filter(|run| run.iter().any(|one| one.1 != run[0].1));
        let odd: HashSet<u64> = odd.map(|run| run[0].0).collect();
        if odd.is_empty() {
            return Ok(());
        }
        let mut exact: HashMap<ContentHash, u64> = HashMap::new();
        for file in manifest.files.iter().filter(|file| odd.contains(&beginning(&file.content))) {
            let size = *exact.entry(file.content).or_insert(file.size);
            if size != file.size {
                return fail(&file.content, size, file.size);
            }
        }
        Ok(())
    }

    /// Makes all files of a manifest wanted. Those of new paths go into the table together.
    fn want_all(&mut self, manifest: &Manifest, now: i64) {
        let mut added = Added::default();
        let mut before = String::new();
        // Into an empty table paths in their order go without a look whether they are there.
        let mut empty = self.table.is_empty();
        let mut files = manifest.files.cursor();
        while let Some(file) = files.next() {
            let follows = added.is_empty() || before.as_str() < file.path;
            if !follows || added.len() == ADDED_MAX {
                // What is not in the order of paths may be among the new ones.
                empty &= follows;
                self.settle_added(std::mem::take(&mut added));
            }
            if !self.links.is_empty() && self.links.get(file.path).is_some_and(|link| link.wanted.is_some()) {
                self.want_link(file.to_file().path, None);
            }
            if !empty && self.table.at(file.path).next().is_some() {
                self.want(&file.to_file(), now);
            } else {
                file.path.clone_into(&mut before);
                self.add(&mut added, file);
            }
        }
        self.settle_added(added);
    }

    fn want(&mut self, file: &ManifestFile, now: i64) {
        let (mut wanted, mut known) = (None, None);
        for entry in self.table.at(file.path.as_str()) {
            let number = RowNumber(entry.number());
            let row = entry.row();
            if row.is(Row::WANTED) {
                wanted = Some(number);
            }
            if (row.is(Row::WANTED) || (row.is(Row::PUBLISHED) && known.is_none()))
                && is_version(&entry, file)
            {
                known = Some(number);
            }
        }
        if let Some(old) = wanted
            && known != Some(old)
        {
            self.unwant(old, now);
        }
        let Some(number) = known else {
            let mut added = Added::default();
            self.add(&mut added, file.as_ref());
            return self.settle_added(added);
        };
        self.renew(number, file);
        self.table.change(number.0, |row| row.set(Row::WANTED, true));
        self.retired.remove(&number);
        self.dirty.rows.insert(number.0);
        self.announce_row(number);
    }

    /// Takes over what may change without the content: number, time, order.
    fn renew(&mut self, number: RowNumber, file: &ManifestFile) {
        let Some(before) = self.table.get(number.0).map(|entry| *entry.row()) else { return };
        if before.is(Row::WANTED) && before.file() != file.file {
            self.held_changes.push((before.file(), false));
        }
        self.table.change(number.0, |row| row.renew(file));
    }

    /// Adds a wanted row, which is found after [`State::settle_added`].
    fn add(&mut self, added: &mut Added, file: FileRef<'_>) {
        let number = self.next_row;
        self.next_row += 1;
        let mut row = Row::new(file);
        row.set(Row::WANTED, true);
        self.table.push(added, number, file.path, file.content, row);
        self.dirty.rows.insert(number);
    }

    fn settle_added(&mut self, added: Added) {
        let alike = self.table.settle(added);
        self.share(alike);
    }

    /// Tells rows that were just added what is known of their content, if it is another row's too.
    fn share(&mut self, alike: Vec<u32>) {
        for number in alike {
            let Some(entry) = self.table.get(number) else { continue };
            let Some(first) = self.table.with_content(entry.content()).next() else { continue };
            let (chief, known) = (first.number(), *first.row());
            if chief != number {
                self.table.change(chief, |row| row.set(Row::TWINS, true));
                self.table.change(number, |row| {
                    row.set(Row::CHIEF, false);
                    row.share_blob(&known);
                });
            }
        }
    }

    /// Takes a row out of the target; what stands in the tree stays until the new state is complete.
    fn unwant(&mut self, number: RowNumber, now: i64) {
        let Some(row) = self.table.get(number.0).map(|entry| *entry.row()) else { return };
        self.table.change(number.0, |row| row.set(Row::WANTED, false));
        self.held_changes.push((row.file(), false));
        self.dirty.rows.insert(number.0);
        self.settle(number, now);
    }

    /// Forgets a row that is neither wanted nor published, or keeps it for the grace period.
    fn settle(&mut self, number: RowNumber, now: i64) {
        let Some(row) = self.table.get(number.0).map(|entry| *entry.row()) else { return };
        if row.is(Row::WANTED) || row.is(Row::PUBLISHED) {
            return;
        }
        self.retired.insert(number, now);
        self.dirty.rows.insert(number.0);
        if !row.is(Row::HELD) {
            self.drop_row(number);
        }
    }

    fn drop_row(&mut self, number: RowNumber) {
        let Some((content, row)) = self.table.get(number.0).map(|entry| (*entry.content(), *entry.row()))
        else {
            return;
        };
        self.table.remove(number.0);
        self.retired.remove(&number);
        self.dirty.rows.insert(number.0);
        let next = self.table.with_content(&content).next().map(|next| next.number());
        match next {
            Some(next) if row.is(Row::CHIEF) => {
                self.table.change(next, |row| {
                    row.set(Row::CHIEF, true);
                    row.set(Row::TWINS, true);
                });
            }
            Some(_) => {}
            None => {
                self.dirty.blobs.insert(content, None);
            }
        }
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
        for entry in self.table.iter() {
            let row = entry.row();
            if !row.is(Row::WANTED) || row.is(Row::HELD) {
                continue;
            }
            let (content, path) = (*entry.content(), entry.path());
            let new = Want {
                content,
                size: row.size(),
                etag: content.etag(),
                path,
                mtime: row.mtime(),
                last: row.is(Row::LAST),
            };
            match wants.entry(content) {
                std::collections::hash_map::Entry::Occupied(mut want) => {
                    let want = want.get_mut();
                    want.mtime = want.mtime.min(new.mtime);
                    want.last &= new.last;
                    if new.path < want.path {
                        want.path = new.path;
                    }
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(new);
                }
            }
        }
        let mut wants: Vec<Want> = wants.into_values().collect();
        wants.sort_unstable_by(|a, b| (a.last, &a.path).cmp(&(b.last, &b.path)));
        wants
    }

    /// Whether any content is missing.
    pub(super) fn any_missing(&self) -> bool {
        self.table.iter().any(|entry| entry.row().is(Row::WANTED) && !entry.row().is(Row::HELD))
    }

    /// Whether any row of the target is not in the tree.
    pub(super) fn any_unplaced(&self, last: bool) -> bool {
        self.table.iter().any(|entry| {
            let row = entry.row();
            row.is(Row::WANTED) && !row.is(Row::PUBLISHED) && row.is(Row::LAST) == last
        })
    }

    /// Contents whose files are in the tree by the index, and which the disk does not have.
    pub(super) fn published_without_blob(&self) -> Vec<ContentHash> {
        let shown = |entry: &Entry<'_, Row>| {
            entry.row().is(Row::PUBLISHED) || self.retired.contains_key(&RowNumber(entry.number()))
        };
        let gone = self.table.iter().filter(|entry| !entry.row().is(Row::HELD) && shown(entry));
        gone.map(|entry| *entry.content()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Paths at which a content is wanted, a few at most.
    pub(super) fn wanted_paths_of(&self, content: &ContentHash) -> Vec<RepoPath> {
        let wanted = self.table.with_content(content).filter(|entry| entry.row().is(Row::WANTED));
        wanted.take(CANDIDATE_PATHS_MAX).map(|entry| entry.path()).collect()
    }

    /// Rows whose content is there and which are not in the tree yet, in the order of paths.
    pub(super) fn ready(&self, last: bool) -> Vec<RowNumber> {
        self.numbers_by_path(|row| {
            let waits = row.is(Row::WANTED) && !row.is(Row::PUBLISHED) && row.is(Row::LAST) == last;
            waits && row.is_trusted()
        })
    }

    /// Wanted rows of a content that can go into the tree now.
    pub(super) fn ready_of(&self, content: &ContentHash) -> Vec<RowNumber> {
        let ready = |row: &Row| row.is(Row::WANTED) && !row.is(Row::PUBLISHED) && !row.is(Row::LAST);
        self.numbers_of(content, ready)
    }

    /// Whether anything wants this content, and with which time.
    pub(super) fn wanted_mtime(&self, content: &ContentHash) -> Option<i64> {
        let wanted = self.table.with_content(content).filter(|entry| entry.row().is(Row::WANTED));
        wanted.map(|entry| entry.row().mtime()).min()
    }

    /// Every blob on disk whose time is not the oldest of its wanted files'.
    pub(super) fn wrong_times(&self) -> Vec<(ContentHash, i64)> {
        let chiefs =
            self.table.iter().filter(|entry| entry.row().is(Row::CHIEF) && entry.row().is(Row::HELD));
        let wrong = |entry: Entry<'_, Row>| {
            let row = entry.row();
            let mtime = if row.is(Row::TWINS) {
                self.wanted_mtime(entry.content())?
            } else {
                row.is(Row::WANTED).then(|| row.mtime())?
            };
            (row.blob_mtime() != mtime).then_some((*entry.content(), mtime))
        };
        chiefs.filter_map(wrong).collect()
    }

    /// A verified content is on disk, or its inode changed by our own hand.
    pub(super) fn arrived(&mut self, content: ContentHash, stamp: Stamp) {
        let Some(before) = self.blob(&content) else { return };
        if !before.is(Row::HELD) {
            self.totals.bytes_held += before.size();
            self.totals.bytes_missing = self.totals.bytes_missing.saturating_sub(before.size());
        }
        self.restore_blob(&content, &stamp, true);
        self.dirty.blobs.insert(content, Some(stamp));
        if !before.is_trusted() {
            self.announce(&content);
        }
    }

    /// The inode of a content was touched by our own hand. `false` when more than that happened to it.
    pub(super) fn restamped(&mut self, content: ContentHash, stamp: Stamp) -> bool {
        let Some(before) = self.blob(&content).filter(|blob| blob.is(Row::HELD)) else { return true };
        self.dirty.blobs.insert(content, Some(stamp));
        let digest = stamp.digest();
        if before.digest() == digest {
            return true;
        }
        self.change_content(&content, |row| row.set_blob(stamp.mtime.0, digest));
        false
    }

    /// A content is no longer on disk, or not what it was; its files are out of the tree already.
    pub(super) fn lost(&mut self, content: ContentHash, now: i64) {
        if self.blob(&content).is_none() {
            return;
        }
        self.change_content(&content, |row| {
            row.set(Row::HELD, false);
            row.set(Row::TRUSTED, false);
        });
        self.dirty.blobs.insert(content, None);
        for number in self.numbers_of(&content, |_| true) {
            self.unpublished(number, now);
            if self.table.get(number.0).is_some_and(|entry| !entry.row().is(Row::WANTED)) {
                self.drop_row(number);
            }
        }
        self.announce(&content);
    }

    /// A content is suspected: readers must not see it until it was hashed again.
    pub(super) fn suspected(&mut self, content: &ContentHash) {
        self.change_content(content, |row| row.set(Row::TRUSTED, false));
        self.announce(content);
    }

    /// The tree has this row now, and no longer what was there before.
    pub(super) fn published(&mut self, number: RowNumber, now: i64) {
        let Some(entry) = self.table.get(number.0) else { return };
        let (path, row) = (entry.path(), *entry.row());
        if row.is(Row::WANTED) && !row.is(Row::PUBLISHED) {
            self.totals.files_missing = self.totals.files_missing.saturating_sub(1);
            self.totals.files_held += 1;
        }
        let before = self.published_at(path.as_str()).map(|(before, _)| before);
        self.table.change(number.0, |row| row.set(Row::PUBLISHED, true));
        self.retired.remove(&number);
        self.dirty.rows.insert(number.0);
        if let Some(link) = self.links.get_mut(&path) {
            link.published = None;
            self.dirty.links.insert(path);
        }
        if let Some(before) = before.filter(|&before| before != number) {
            self.table.change(before.0, |row| row.set(Row::PUBLISHED, false));
            self.dirty.rows.insert(before.0);
            self.settle(before, now);
        }
        self.announce_row(number);
    }

    /// The tree does not have this row any more.
    pub(super) fn unpublished(&mut self, number: RowNumber, now: i64) {
        let Some(row) = self.table.get(number.0).map(|entry| *entry.row()) else { return };
        if !row.is(Row::PUBLISHED) {
            return;
        }
        self.table.change(number.0, |row| row.set(Row::PUBLISHED, false));
        self.dirty.rows.insert(number.0);
        self.held_changes.push((row.file(), false));
        self.settle(number, now);
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
        let mut surplus = self.numbers_by_path(|row| row.is(Row::PUBLISHED) && !row.is(Row::WANTED));
        surplus.reverse();
        surplus
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
        let published = self.table.at(path).find(|entry| entry.row().is(Row::PUBLISHED))?;
        Some((RowNumber(published.number()), published.row().is(Row::WANTED)))
    }

    /// Paths below a directory that are in the tree: rows and links, and whether each is wanted there. Linear in the
    /// number of files.
    pub(super) fn published_below(&self, directory: &str) -> Below {
        let below = format!("{directory}/");
        let mut rows = Vec::new();
        self.table.for_each_path(|entry, path| {
            if entry.row().is(Row::PUBLISHED) && path.starts_with(&below) {
                rows.push((RowNumber(entry.number()), entry.row().is(Row::WANTED)));
            }
        });
        // `0` follows `/` in ASCII, so that the range is all that starts with `below`.
        let end = format!("{directory}0");
        let range = (std::ops::Bound::Included(below.as_str()), std::ops::Bound::Excluded(end.as_str()));
        let links = self.links.range::<str, _>(range).filter(|(_, link)| link.published.is_some());
        Below { rows, links: links.map(|(path, link)| (path.clone(), link.wanted.is_some())).collect() }
    }

    /// A row as its manifest had it.
    pub(super) fn file(&self, number: RowNumber) -> Option<ManifestFile> {
        let entry = self.table.get(number.0)?;
        let row = entry.row();
        Some(ManifestFile {
            file: row.file(),
            path: entry.path(),
            size: row.size(),
            mtime: row.mtime(),
            content: *entry.content(),
            last: row.is(Row::LAST),
        })
    }

    pub(super) fn stored(&self, number: RowNumber) -> Option<StoredRow> {
        let row = *self.table.get(number.0)?.row();
        let retired = self.retired.get(&number).copied();
        let (wanted, published) = (row.is(Row::WANTED), row.is(Row::PUBLISHED));
        Some(StoredRow { file: self.file(number)?, wanted, published, retired })
    }

    pub(super) fn stored_link(&self, path: &RepoPath) -> Option<&LinkState> {
        self.links.get(path)
    }

    /// Whether a content is on disk, trusted or not.
    pub(super) fn is_held(&self, content: &ContentHash) -> bool {
        self.blob(content).is_some_and(|blob| blob.is(Row::HELD))
    }

    /// Whether a content has this many bytes.
    pub(super) fn has_size(&self, content: &ContentHash, size: u64) -> bool {
        self.blob(content).is_some_and(|blob| blob.size() == size)
    }

    /// Whether a content is named by any row.
    pub(super) fn knows(&self, content: &ContentHash) -> bool {
        self.blob(content).is_some()
    }

    /// All rows of a content that are in the tree.
    pub(super) fn published_of(&self, content: &ContentHash) -> Vec<RowNumber> {
        self.numbers_of(content, |row| row.is(Row::PUBLISHED))
    }

    /// Contents that nothing has wanted or shown since `before` (seconds since the epoch).
    pub(super) fn unused_since(&self, before: i64) -> Vec<ContentHash> {
        let is_old = |number: u32| self.retired.get(&RowNumber(number)).is_some_and(|&at| at <= before);
        let old = self.retired.keys().filter(|number| is_old(number.0));
        let contents: BTreeSet<ContentHash> =
            old.filter_map(|number| Some(*self.table.get(number.0)?.content())).collect();
        let unused =
            |content: &ContentHash| self.table.with_content(content).all(|entry| is_old(entry.number()));
        contents.into_iter().filter(unused).collect()
    }

    /// Forgets a content whose blob was deleted, with its retired rows.
    pub(super) fn swept(&mut self, content: &ContentHash) {
        self.numbers_of(content, |_| true).into_iter().for_each(|number| self.drop_row(number));
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
        self.dirty.rows |= dirty.rows;
        self.dirty.links.extend(dirty.links);
        for (content, stamp) in dirty.blobs {
            self.dirty.blobs.entry(content).or_insert(stamp);
        }
        self.dirty.sequences |= dirty.sequences;
    }

    /// What the report must learn: files that are held and served now, or no longer.
    pub(super) fn take_held_changes(&mut self) -> Vec<(FileId, bool)> {
        std::mem::take(&mut self.held_changes)
    }

    /// Everything as it is now, for readers.
    pub(super) fn table(&self) -> Table<Row> {
        self.table.clone()
    }

    /// What is known of a content's blob, as each of its rows has it.
    fn blob(&self, content: &ContentHash) -> Option<Row> {
        self.table.with_content(content).next().map(|entry| *entry.row())
    }

    fn numbers(&self, pick: impl Fn(&Row) -> bool) -> Vec<RowNumber> {
        self.table.iter().filter(|entry| pick(entry.row())).map(|entry| RowNumber(entry.number())).collect()
    }

    fn numbers_of(&self, content: &ContentHash, pick: impl Fn(&Row) -> bool) -> Vec<RowNumber> {
        let rows = self.table.with_content(content).filter(|entry| pick(entry.row()));
        rows.map(|entry| RowNumber(entry.number())).collect()
    }

    fn numbers_by_path(&self, pick: impl Fn(&Row) -> bool) -> Vec<RowNumber> {
        let picked = self.table.iter().filter(|entry| pick(entry.row()));
        let mut picked: Vec<(RepoPath, RowNumber)> =
            picked.map(|entry| (entry.path(), RowNumber(entry.number()))).collect();
        picked.sort();
        picked.into_iter().map(|(_, number)| number).collect()
    }

    fn change_content(&mut self, content: &ContentHash, change: impl Fn(&mut Row)) {
        for number in self.numbers_of(content, |_| true) {
            self.table.change(number.0, &change);
        }
    }

    /// Tells the report about every row of a content; linear in their number.
    fn announce(&mut self, content: &ContentHash) {
        self.numbers_of(content, |_| true).into_iter().for_each(|number| self.announce_row(number));
    }

    /// Tells the report about one row; a content may have thousands (the empty one, licences).
    fn announce_row(&mut self, number: RowNumber) {
        let Some(row) = self.table.get(number.0).map(|entry| *entry.row()) else { return };
        if row.is(Row::WANTED) {
            self.held_changes.push((row.file(), row.is_served()));
        }
    }

    /// Counts anew; linear in the number of files.
    pub(super) fn recount(&mut self) {
        let mut totals = Totals::default();
        for entry in self.table.iter() {
            let row = entry.row();
            totals.files_missing += u64::from(row.is(Row::WANTED) && !row.is(Row::PUBLISHED));
            totals.files_held += u64::from(row.is(Row::WANTED) && row.is(Row::PUBLISHED));
            if !row.is(Row::CHIEF) {
                continue;
            }
            let wanted = || {
                let mut rows = self.table.with_content(entry.content());
                row.is(Row::WANTED) || (row.is(Row::TWINS) && rows.any(|entry| entry.row().is(Row::WANTED)))
            };
            if row.is(Row::HELD) {
                totals.bytes_held += row.size();
            } else if wanted() {
                totals.bytes_missing += row.size();
            }
        }
        self.totals = totals;
    }
}

/// Whether a row is this content, its path being the file's.
fn is_version(entry: &Entry<'_, Row>, file: &ManifestFile) -> bool {
    *entry.content() == file.content && entry.row().size() == file.size
}

fn beginning(content: &ContentHash) -> u64 {
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&content.0[..8]);
    u64::from_le_bytes(beginning)
}

/// Rows that are put into the table at once: 2 MiB of notes. With a million of them the allocator kept 13 bytes a file
/// that nothing used any more.
const ADDED_MAX: usize = 65_536;

/// Paths of one content that are looked at for a copy that is there already.
const CANDIDATE_PATHS_MAX: usize = 8;
