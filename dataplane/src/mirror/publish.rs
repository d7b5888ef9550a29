//! Batches made durable, put into the tree and recorded; a target brought to its end; old contents swept.
//!
//! The order is what keeps the tree usable at every moment: packages as they come, then links, then
//! indexes, then deletions. Something that is not ours and stands in the way is never removed.

use std::time::Duration;

use freshet_api::ContentHash;
use freshet_api::manifest::RepoPath;
use rustix::fs::FileType;

use super::blobs::{Aside, blob_name};
use super::incoming::{Arrived, ArrivedBytes};
use super::state::Below;
use super::stored::RowNumber;
use super::tree::PlaceError;
use super::{Mirror, MirrorError, Writer, now};

/// How [`Mirror::finish`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// The tree is the target.
    Complete,
    /// Contents are still missing.
    Missing,
}

impl Mirror {
    /// Keeps a batch of verified contents: durable first, then under their names, then in the tree (but for
    /// indexes), then recorded. Blocks.
    ///
    /// # Errors
    /// The disk's. Contents of the batch that are not kept are still [missing](Mirror::missing) then.
    pub fn commit(&self, batch: Vec<Arrived>) -> Result<(), MirrorError> {
        let mut in_place = Vec::new();
        let mut asides: Vec<(ContentHash, Aside)> = Vec::with_capacity(batch.len());
        let result = batch.into_iter().try_for_each(|arrived| {
            let Arrived { content, mtime, size, bytes } = arrived;
            match bytes {
                ArrivedBytes::Memory(bytes) => asides.push((content, self.store.write_aside(&bytes, mtime)?)),
                ArrivedBytes::Partial(file) => {
                    asides.push((content, self.store.whole_partial(&content, file, mtime)?));
                }
                ArrivedBytes::Elsewhere(found) => {
                    asides.push((content, self.store.whole_elsewhere(found, mtime)?));
                }
                ArrivedBytes::InPlace => in_place.push((content, size)),
            }
            Ok(())
        });
        let result = result.and_then(|()| if asides.is_empty() { Ok(()) } else { self.store.sync(&asides) });
        if let Err(error) = result {
            asides.iter().for_each(|(_, aside)| self.store.discard(aside));
            return Err(error);
        }
        let mut writer = self.writer();
        let mut failed = None;
        let mut kept: Vec<ContentHash> = in_place.into_iter().map(|(content, _)| content).collect();
        for (content, aside) in &asides {
            if writer.state.is_held(content) {
                // It came another way meanwhile, and the tree shows that inode.
                self.store.discard(aside);
                continue;
            }
            match self.store.install(content, aside) {
                Ok(()) => kept.push(*content),
                Err(error) => {
                    self.store.discard(aside);
                    failed = Some(error);
                }
            }
        }
        for content in &kept {
            writer.strays.remove(content);
            if let Some((stamp, _)) = self.store.stamp(content)? {
                writer.state.arrived(*content, stamp);
            }
        }
        let mut rows: Vec<RowNumber> =
            kept.iter().flat_map(|content| writer.state.ready_of(content)).collect();
        sort_by_path(&writer, &mut rows);
        let placed = self.place(&mut writer, &rows, false);
        self.settle(&mut writer)?;
        placed.map(drop)?;
        failed.map_or(Ok(()), Err)
    }

    /// Puts into the tree what is held already and was not there: after a start, or when a path comes to a
    /// content that another path has. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn publish_ready(&self) -> Result<(), MirrorError> {
        let mut writer = self.writer();
        let rows = writer.state.ready(false);
        for rows in rows.chunks(RECORD_ROWS) {
            self.place(&mut writer, rows, false)?;
            self.settle(&mut writer)?;
        }
        Ok(())
    }

    /// Brings the target to its end when all of it is here: links, indexes, deletions. Blocks.
    ///
    /// # Errors
    /// The disk's; [`MirrorError::InTheWay`] when something that is not ours keeps a file from its place. The
    /// tree is then as far as it could be without indexes that name what is not there.
    pub fn finish(&self) -> Result<Finished, MirrorError> {
        let mut writer = self.writer();
        writer.tree.forget();
        let blocked = self.place_all(&mut writer, false)?;
        if writer.state.any_missing() {
            return Ok(Finished::Missing);
        }
        if let Some(blocked) = blocked.or(self.place_links(&mut writer)?) {
            self.settle(&mut writer)?;
            return Err(blocked);
        }
        if writer.state.any_unplaced(false) {
            // Something is suspected; it is hashed again first.
            return Ok(Finished::Missing);
        }
        self.set_times(&mut writer)?;
        self.store.sync_all()?;
        self.settle(&mut writer)?;
        if let Some(blocked) = self.place_all(&mut writer, true)? {
            return Err(blocked);
        }
        if writer.state.any_unplaced(true) {
            return Ok(Finished::Missing);
        }
        self.remove_surplus(&mut writer)?;
        self.store.sync_all()?;
        let news = writer.state.complete != writer.state.target;
        writer.state.set_complete();
        writer.state.recount();
        self.settle(&mut writer)?;
        if news {
            self.completed.notify_one();
        }
        Ok(Finished::Complete)
    }

    /// Deletes contents that nothing has wanted or shown for `grace`, and partial files of such. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn sweep(&self, grace: Duration) -> Result<(), MirrorError> {
        let mut writer = self.writer();
        let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let strays: Vec<ContentHash> = writer.strays.drain().collect();
        for content in strays {
            if !writer.state.knows(&content) {
                self.store.remove(&content)?;
            }
        }
        let unused = writer.state.unused_since(now().saturating_sub(grace));
        unused.iter().for_each(|content| writer.state.suspected(content));
        // No reader may be sent to a blob that is about to go.
        self.lookup.set_table(writer.state.table());
        for content in &unused {
            self.store.remove(content)?;
            writer.state.swept(content);
        }
        let keep: std::collections::HashSet<ContentHash> =
            writer.state.missing().into_iter().map(|want| want.content).collect();
        self.store.sweep_partials(&keep)?;
        writer.state.recount();
        self.settle(&mut writer)
    }

    /// Places rows whose content is here; what is in the way and can't be removed is left out and returned.
    fn place_all(&self, writer: &mut Writer, last: bool) -> Result<Option<MirrorError>, MirrorError> {
        let mut rows = writer.state.ready(last);
        if last {
            // The index of indexes lies above the others: it comes after them.
            let depth = |number: &RowNumber| {
                let path = writer.state.file(*number).map(|file| file.path.as_str().matches('/').count());
                std::cmp::Reverse(path)
            };
            rows.sort_by_cached_key(depth);
        }
        let mut blocked = Vec::new();
        for rows in rows.chunks(RECORD_ROWS) {
            blocked.extend(self.place(writer, rows, true)?);
            self.settle(writer)?;
        }
        Ok(in_the_way(blocked))
    }

    /// Links rows into the tree. Without `force`, what is in the way stays for now, also if it is ours.
    pub(super) fn place(
        &self,
        writer: &mut Writer,
        rows: &[RowNumber],
        force: bool,
    ) -> Result<Vec<Blocked>, MirrorError> {
        let mut blocked = Vec::new();
        let mut touched = Vec::new();
        let mut failed = None;
        writer.tree.forget();
        for &number in rows {
            let Some(file) = writer.state.file(number) else { continue };
            let (path, content) = (&file.path, file.content);
            let blob = blob_name(&content);
            let mut tries = 0;
            let placed = loop {
                tries += 1;
                match writer.tree.place_blob(&self.store, &blob, path.as_str()) {
                    Err(PlaceError::Blocked { at, found }) => {
                        match self.make_way(writer, &at, found, force) {
                            Ok(true) if tries < TRIES_MAX => {}
                            Ok(_) => break Ok(Some(Blocked { at, found, wanted: path.clone() })),
                            Err(error) => break Err(error),
                        }
                    }
                    Err(PlaceError::Other(error)) => break Err(error),
                    Ok(()) => break Ok(None),
                }
            };
            match placed {
                Ok(None) => {
                    writer.state.published(number, now());
                    touched.push(content);
                }
                Ok(Some(way)) => blocked.push(way),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for content in &touched {
            self.restamp(writer, content)?;
        }
        if let Some(error) = failed {
            self.settle(writer)?;
            return Err(error);
        }
        Ok(blocked)
    }

    /// Clears a path for something new; `false` when what is there must stay.
    fn make_way(
        &self,
        writer: &mut Writer,
        at: &str,
        found: FileType,
        force: bool,
    ) -> Result<bool, MirrorError> {
        match found {
            FileType::Symlink => match writer.state.link(at) {
                Some(link) if link.wanted.is_some() => Ok(false),
                Some(link) if link.published.is_some() && !force => Ok(false),
                Some(_) => self.remove_link(writer, at).map(|()| true),
                None => {
                    tracing::warn!(
                        path = at,
                        "a symbolic link that is not the mirror's gives way to a directory"
                    );
                    writer.tree.remove(at)?;
                    Ok(true)
                }
            },
            FileType::Directory if force => {
                let Below { rows, links } = writer.state.published_below(at);
                if rows.iter().any(|&(_, wanted)| wanted) || links.iter().any(|&(_, wanted)| wanted) {
                    return Ok(false);
                }
                for (number, _) in rows {
                    self.remove_row(writer, number)?;
                }
                for (path, _) in links {
                    self.remove_link(writer, path.as_str())?;
                }
                writer.tree.remove_empty(at)
            }
            FileType::Directory => Ok(false),
            _ => match writer.state.published_at(at) {
                Some((number, false)) if force => self.remove_row(writer, number).map(|()| true),
                _ => Ok(false),
            },
        }
    }

    fn place_links(&self, writer: &mut Writer) -> Result<Option<MirrorError>, MirrorError> {
        let mut blocked = Vec::new();
        for (path, target) in writer.state.links_to_change() {
            // Links that are to go, go with the deletions.
            let Some(target) = target else { continue };
            for _ in 0..TRIES_MAX {
                match writer.tree.place_symlink(&self.store, &target, path.as_str()) {
                    Ok(()) => {
                        writer.state.link_published(&path, Some(target));
                        break;
                    }
                    Err(PlaceError::Blocked { at, found }) => {
                        if !self.make_way(writer, &at, found, true)? {
                            blocked.push(Blocked { at, found, wanted: path.clone() });
                            break;
                        }
                    }
                    Err(PlaceError::Other(error)) => return Err(error),
                }
            }
            if let Some((number, false)) = writer.state.published_at(path.as_str()) {
                // The link took the place of a file of ours.
                writer.state.unpublished(number, now());
            }
        }
        self.lookup.set_links(writer.state.published_links());
        Ok(in_the_way(blocked))
    }

    fn remove_surplus(&self, writer: &mut Writer) -> Result<(), MirrorError> {
        for rows in writer.state.surplus().chunks(RECORD_ROWS) {
            let result = rows.iter().try_for_each(|&number| self.remove_row(writer, number));
            self.settle(writer)?;
            result?;
        }
        for (path, target) in writer.state.links_to_change() {
            if target.is_none() {
                self.remove_link(writer, path.as_str())?;
            }
        }
        self.lookup.set_links(writer.state.published_links());
        self.settle(writer)
    }

    /// Takes a file of ours out of the tree; its blob stays for the grace period.
    fn remove_row(&self, writer: &mut Writer, number: RowNumber) -> Result<(), MirrorError> {
        let Some(file) = writer.state.file(number) else { return Ok(()) };
        writer.tree.remove(file.path.as_str())?;
        writer.state.unpublished(number, now());
        self.restamp(writer, &file.content)
    }

    fn remove_link(&self, writer: &mut Writer, path: &str) -> Result<(), MirrorError> {
        let link = writer.tree.look(path)?;
        if link.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink) {
            writer.tree.remove(path)?;
        }
        if let Ok(path) = path.parse::<RepoPath>() {
            writer.state.link_published(&path, None);
        }
        Ok(())
    }

    /// Gives blobs the oldest time of their files.
    fn set_times(&self, writer: &mut Writer) -> Result<(), MirrorError> {
        for (content, mtime) in writer.state.wrong_times() {
            match self.store.set_mtime(&content, mtime) {
                Ok(()) => {
                    if let Some((stamp, _)) = self.store.stamp(&content)? {
                        writer.state.restamped(content, stamp);
                    }
                }
                // An adopted file may belong to somebody else: it keeps the time it has.
                Err(error) => tracing::debug!(%content, %error, "the blob keeps its time"),
            }
        }
        Ok(())
    }

    /// Records what a blob is on disk after our own hand changed its inode.
    pub(super) fn restamp(&self, writer: &mut Writer, content: &ContentHash) -> Result<(), MirrorError> {
        if let Some((stamp, _)) = self.store.stamp(content)?
            && !writer.state.restamped(*content, stamp)
        {
            writer.state.suspected(content);
            self.lookup.doubt(*content);
            self.suspect(*content);
        }
        Ok(())
    }
}

/// A path that could not be placed.
pub(super) struct Blocked {
    at: String,
    found: FileType,
    wanted: RepoPath,
}

fn in_the_way(blocked: Vec<Blocked>) -> Option<MirrorError> {
    let more = blocked.len().saturating_sub(1);
    blocked.into_iter().next().map(|Blocked { at, found, wanted }| MirrorError::InTheWay {
        path: at.into(),
        found: match found {
            FileType::Directory => "directory with files",
            FileType::RegularFile => "file",
            FileType::Symlink => "symbolic link",
            _ => "special file",
        },
        wanted: wanted.to_string(),
        more,
    })
}

fn sort_by_path(writer: &Writer, rows: &mut [RowNumber]) {
    rows.sort_by_cached_key(|number| writer.state.file(*number).map(|file| file.path));
}

/// Rows that are recorded with one transaction.
const RECORD_ROWS: usize = 1024;

/// Obstacles that are cleared for one path at most.
const TRIES_MAX: usize = 64;
