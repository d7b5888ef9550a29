//! Contents that come otherwise than as one stream: out of a swarm's pieces, out of a pack, out of a recipe.
//!
//! Whatever made them, nothing becomes a blob before all of it was hashed here.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use freshet_api::ContentHash;

use super::blobs::Elsewhere;
use super::incoming::{Arrived, ArrivedBytes, SMALL_BYTES_MAX, hash_range};
use super::{Mirror, MirrorError, Want};

impl Mirror {
    /// Where what is copied in pieces lies until it is whole: one directory per bundle, on the blobs' filesystem.
    pub fn swarm_directory(&self) -> &Path {
        self.store.swarm_path()
    }

    /// Whether a content is held and may be served.
    pub fn holds(&self, content: &ContentHash) -> bool {
        self.lookup.holds(content)
    }

    /// Opens a content that is held, for making another one from it.
    ///
    /// # Errors
    /// The disk's.
    pub fn open_held(&self, content: &ContentHash) -> Result<Option<File>, MirrorError> {
        if self.holds(content) { self.store.read(content) } else { Ok(None) }
    }

    /// Checks that `bytes` more fit and the reserve stays free.
    ///
    /// # Errors
    /// [`MirrorError::Full`].
    pub fn check_room(&self, bytes: u64) -> Result<(), MirrorError> {
        #[cfg(test)]
        self.store.faults.check("write", self.store.swarm_path())?;
        self.store.check_room(bytes)
    }

    /// A content that is in memory, if it is the one.
    pub fn take_bytes(&self, want: &Want, bytes: Vec<u8>) -> Option<Arrived> {
        let right =
            bytes.len() as u64 == want.size && ContentHash::from(blake3::hash(&bytes)) == want.content;
        right.then(|| arrived(want, ArrivedBytes::Memory(bytes)))
    }

    /// A content that lies whole in `directory` under `name`, if it is the one; committing moves it from there.
    /// Blocks for the time of reading it.
    ///
    /// # Errors
    /// The disk's.
    pub fn take_file(
        &self,
        want: &Want,
        directory: Arc<OwnedFd>,
        name: String,
        file: File,
    ) -> Result<Option<Arrived>, MirrorError> {
        let error = |source| MirrorError::Disk { doing: "read", path: want.path.as_str().into(), source };
        if file.metadata().map_err(error)?.len() != want.size {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        hash_range(&mut hasher, &file, want.size).map_err(error)?;
        if ContentHash::from(hasher.finalize()) != want.content {
            return Ok(None);
        }
        Ok(Some(arrived(want, ArrivedBytes::Elsewhere(Elsewhere { file, directory, name }))))
    }

    /// A content that `write` makes; `None` when that fails or makes something else. Blocks.
    ///
    /// What it writes beyond the content's size is refused, so that `write` can't fill the disk.
    ///
    /// # Errors
    /// The disk's, and [`MirrorError::Busy`] when the content is being received.
    pub fn make(
        &self,
        want: &Want,
        write: impl FnOnce(&mut dyn Write) -> Result<(), io::Error>,
    ) -> Result<Option<Arrived>, MirrorError> {
        self.check_room(want.size)?;
        if want.size <= SMALL_BYTES_MAX {
            let mut bytes = Vec::new();
            let made = write(&mut Bounded { to: &mut bytes, left: want.size });
            return Ok(made.ok().and_then(|()| self.take_bytes(want, bytes)));
        }
        let partial = self.store.open_partial(&want.content)?;
        let error = |source| MirrorError::Disk { doing: "write", path: partial.path.clone(), source };
        partial.file.set_len(0).map_err(error)?;
        let mut to = Hashing {
            to: io::BufWriter::with_capacity(WRITE_BYTES, &partial.file),
            hasher: blake3::Hasher::new(),
            failed: None,
        };
        let made = write(&mut Bounded { to: &mut to, left: want.size });
        let flushed = to.flush();
        let right = made.is_ok()
            && flushed.is_ok()
            && ContentHash::from(to.hasher.finalize()) == want.content
            && partial.file.metadata().map_err(error)?.len() == want.size;
        if right {
            partial.file.sync_data().map_err(error)?;
            let file = partial.file.try_clone().map_err(error)?;
            return Ok(Some(arrived(want, ArrivedBytes::Partial(file))));
        }
        let failed = to.failed.take();
        drop(to);
        partial.file.set_len(0).map_err(error)?;
        match failed {
            Some(source) => Err(error(source)),
            None => Ok(None),
        }
    }
}

/// Refuses what is more than expected.
struct Bounded<'a> {
    to: &'a mut dyn Write,
    left: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("more was made than the content has"));
        }
        let written = self.to.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Hashes what passes, and tells an error of the disk from one of the maker.
struct Hashing<W> {
    to: W,
    hasher: blake3::Hasher,
    failed: Option<io::Error>,
}

impl<W: Write> Hashing<W> {
    fn keep<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            self.failed.get_or_insert(error);
            kind.into()
        })
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes);
        let written = self.keep(written)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.to.flush();
        self.keep(flushed)
    }
}

fn arrived(want: &Want, bytes: ArrivedBytes) -> Arrived {
    Arrived { content: want.content, mtime: want.mtime, size: want.size, bytes }
}

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;
