//! Hashing what is on disk already: suspected blobs, files of an older mirror, blobs the index missed.
//!
//! A file becomes a blob here only after all of it was read and hashed. It reads without holding up
//! anybody, and decides under the writer's lock.

use std::collections::HashSet;
use std::fs::File;
use std::io;

use freshet_api::ContentHash;

use super::blobs::{is_regular, stamp};
use super::incoming::{Arrived, ArrivedBytes, SMALL_BYTES_MAX, hash_range};
use super::stored::RowNumber;
use super::{Mirror, MirrorError, Want, Writer, now};

/// What a [`Mirror::recheck`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Contents that are as they should be and are served again.
    pub right: u64,
    /// Contents that are dropped and must be fetched again.
    pub lost: u64,
}

impl Mirror {
    /// Hashes suspected contents again. Blocks for as long as reading them takes; `go_on` is asked before each.
    ///
    /// # Errors
    /// The disk's; contents not yet checked stay suspected and are not served.
    pub fn recheck(&self, mut go_on: impl FnMut() -> bool) -> Result<Rechecked, MirrorError> {
        let mut rechecked = Rechecked::default();
        while go_on() {
            let Some(content) = self.next_suspect() else { break };
            let result = self.recheck_one(content);
            if result.is_err() {
                self.suspect(content);
            }
            if result? {
                rechecked.right += 1;
            } else {
                tracing::warn!(%content, "a blob was not what it should be; it is fetched again");
                rechecked.lost += 1;
            }
        }
        if rechecked.lost > 0 {
            let mut writer = self.writer();
            writer.state.recount();
            self.settle(&mut writer)?;
        }
        Ok(rechecked)
    }

    /// Which of these may be on disk already, by name or by path and size.
    ///
    /// # Errors
    /// The disk's.
    pub fn survey(&self, wants: &[Want]) -> Result<HashSet<ContentHash>, MirrorError> {
        let mut writer = self.writer();
        writer.tree.forget();
        let mut candidates = HashSet::new();
        for want in wants {
            if writer.strays.contains(&want.content) || self.candidate_path(&mut writer, want)?.is_some() {
                candidates.insert(want.content);
            }
        }
        Ok(candidates)
    }

    /// Takes a content from this disk instead of fetching it, if it is there: hashes the candidates that
    /// [`Mirror::survey`] saw. Blocks.
    ///
    /// A file of an older mirror is linked, so that it takes no second room; where the kernel forbids that
    /// (somebody else's file, `fs.protected_hardlinks`) it is copied.
    ///
    /// # Errors
    /// The disk's.
    pub fn take_local(&self, want: &Want) -> Result<Option<Arrived>, MirrorError> {
        if let Some(file) = self.store.read(&want.content)? {
            if is_content(&file, want).unwrap_or(false) {
                return Ok(Some(arrived(want, ArrivedBytes::InPlace)));
            }
            self.store.remove(&want.content)?;
        }
        let file = {
            let mut writer = self.writer();
            let Some(path) = self.candidate_path(&mut writer, want)? else { return Ok(None) };
            writer.tree.read(&path)?
        };
        let Some(file) = file else { return Ok(None) };
        if !is_content(&file, want).unwrap_or(false) {
            return Ok(None);
        }
        if let Err(error) = self.store.protect(&file) {
            tracing::debug!(path = %want.path, %error, "an adopted file stays writable for its owner");
        }
        match self.store.adopt(&want.content, &file) {
            Ok(()) => Ok(Some(arrived(want, ArrivedBytes::InPlace))),
            Err(error) => {
                tracing::debug!(path = %want.path, %error, "an older mirror's file can't be linked; it is copied");
                self.copy(file, want).map(Some)
            }
        }
    }

    /// Reads a file into a place of its own; what it reads is verified, not what was there before.
    pub(super) fn copy(&self, file: File, want: &Want) -> Result<Arrived, MirrorError> {
        self.store.check_room(want.size)?;
        let error = |source| MirrorError::Disk { doing: "copy", path: want.path.as_str().into(), source };
        if want.size <= SMALL_BYTES_MAX {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(&file, want.size + 1), &mut bytes).map_err(error)?;
            if ContentHash::from(blake3::hash(&bytes)) != want.content {
                return Err(error(io::Error::other("the file changes while it is copied")));
            }
            return Ok(arrived(want, ArrivedBytes::Memory(bytes)));
        }
        let partial = self.store.open_partial(&want.content)?;
        partial.file.set_len(0).map_err(error)?;
        let mut to = partial.file.try_clone().map_err(error)?;
        io::Seek::rewind(&mut to).map_err(error)?;
        io::Seek::rewind(&mut &file).map_err(error)?;
        io::copy(&mut io::Read::take(&file, want.size), &mut to).map_err(error)?;
        if !is_content(&to, want).map_err(error)? {
            partial.file.set_len(0).map_err(error)?;
            return Err(error(io::Error::other("the file changes while it is copied")));
        }
        Ok(arrived(want, ArrivedBytes::Partial(to)))
    }

    /// A path of the tree where a file of the right size stands that is not the version shown there now.
    fn candidate_path(&self, writer: &mut Writer, want: &Want) -> Result<Option<String>, MirrorError> {
        for path in writer.state.wanted_paths_of(&want.content) {
            let Some(found) = writer.tree.look(path.as_str())? else { continue };
            if !is_regular(&found) || found.st_size.unsigned_abs() != want.size {
                continue;
            }
            let shown = writer.state.published_at(path.as_str());
            let shown = shown.and_then(|(number, _)| Some(writer.state.file(number)?.content));
            let shown = match shown.filter(|content| writer.state.is_held(content)) {
                Some(content) => self.store.stamp(&content)?,
                None => None,
            };
            if shown.is_none_or(|(shown, _)| shown.inode != found.st_ino) {
                return Ok(Some(path.as_str().to_owned()));
            }
        }
        Ok(None)
    }

    fn next_suspect(&self) -> Option<ContentHash> {
        let mut suspects = self.suspects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let content = suspects.waiting.pop()?;
        suspects.known.remove(&content);
        Some(content)
    }

    /// Whether a suspected content is right after all; if not it is out of the tree and the store afterwards.
    fn recheck_one(&self, content: ContentHash) -> Result<bool, MirrorError> {
        let is_held = {
            let mut writer = self.writer();
            writer.state.suspected(&content);
            let settled = self.settle(&mut writer);
            self.lookup.settle_doubt(&content);
            settled?;
            writer.state.is_held(&content)
        };
        // Not held any more: nothing to check.
        if !is_held {
            return Ok(true);
        }
        let hashed = match self.store.read(&content)? {
            None => None,
            Some(file) => hash_steady(&file).ok().flatten(),
        };
        let mut writer = self.writer();
        writer.tree.forget();
        let right =
            hashed.is_some_and(|(hash, size, _)| hash == content && writer.state.has_size(&content, size));
        let now_on_disk = self.store.stamp(&content)?;
        if let (true, Some((found, _)), Some((_, _, hashed_as))) = (right, now_on_disk, hashed)
            && found == hashed_as
        {
            writer.state.arrived(content, found);
            let displaced = displaced(&mut writer, &content, found.inode)?;
            let placed = self.place(&mut writer, &displaced, false);
            self.settle(&mut writer)?;
            placed?;
            return Ok(true);
        }
        for number in writer.state.published_of(&content) {
            if let Some(file) = writer.state.file(number) {
                writer.tree.remove(file.path.as_str())?;
            }
        }
        self.store.remove(&content)?;
        writer.state.lost(content, now());
        self.settle(&mut writer)?;
        Ok(false)
    }
}

/// Files in the tree whose place is taken by something else, or empty.
fn displaced(writer: &mut Writer, content: &ContentHash, inode: u64) -> Result<Vec<RowNumber>, MirrorError> {
    let mut displaced = Vec::new();
    for number in writer.state.published_of(content) {
        let Some(file) = writer.state.file(number) else { continue };
        if writer.tree.look(file.path.as_str())?.is_none_or(|found| found.st_ino != inode) {
            displaced.push(number);
        }
    }
    Ok(displaced)
}

/// Hash, size and stamp of a file that did not change while it was read.
fn hash_steady(file: &File) -> io::Result<Option<(ContentHash, u64, super::stored::Stamp)>> {
    let before = rustix::fs::fstat(file)?;
    if !is_regular(&before) {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hash_range(&mut hasher, file, stamp(&before).size)?;
    let after = rustix::fs::fstat(file)?;
    let steady = stamp(&before) == stamp(&after);
    Ok(steady.then(|| (hasher.finalize().into(), stamp(&after).size, stamp(&after))))
}

fn is_content(file: &File, want: &Want) -> io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    if !is_regular(&stat) || stamp(&stat).size != want.size {
        return Ok(false);
    }
    let mut hasher = blake3::Hasher::new();
    hash_range(&mut hasher, file, want.size)?;
    Ok(ContentHash::from(hasher.finalize()) == want.content)
}

fn arrived(want: &Want, bytes: ArrivedBytes) -> Arrived {
    Arrived { content: want.content, mtime: want.mtime, size: want.size, bytes }
}
