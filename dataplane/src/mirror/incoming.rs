//! A content on its way in: bounded, hashed while it arrives, kept when the way breaks.
//!
//! Small ones stay in memory until their batch is written. Large ones go to a partial file that a later
//! attempt continues, also after a kill -9; their hash says in the end whether all parts belonged together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use freshet_api::ContentHash;

use super::blobs::{BlobStore, Elsewhere, Partial};
use super::state::Want;
use super::{MirrorError, blocking};

/// Takes in the bytes of one content.
pub struct Incoming {
    want: Want,
    hasher: blake3::Hasher,
    received: u64,
    place: Place,
}

enum Place {
    Memory(Vec<u8>),
    File { partial: Arc<Partial>, written: u64, buffer: Vec<u8> },
}

/// A content that came in whole and was verified; [`Mirror::commit`](super::Mirror::commit) keeps it.
pub struct Arrived {
    pub(super) content: ContentHash,
    pub(super) mtime: i64,
    pub(super) size: u64,
    pub(super) bytes: ArrivedBytes,
}

pub(super) enum ArrivedBytes {
    Memory(Vec<u8>),
    Partial(File),
    Elsewhere(Elsewhere),
    /// It has its name already, or was linked to it.
    InPlace,
}

/// Why bytes were not taken, or did not make the content.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// More came than the content has.
    #[error("expected {size} bytes, more came")]
    Overlong {
        /// Bytes expected.
        size: u64,
    },
    /// Fewer came.
    #[error("expected {size} bytes, {received} came")]
    Short {
        /// Bytes expected.
        size: u64,
        /// Bytes that came.
        received: u64,
    },
    /// Something else came.
    #[error("expected {content}, something else came; it was dropped")]
    Wrong {
        /// What was expected.
        content: ContentHash,
    },
    /// This host can't keep it.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

impl Incoming {
    /// Opens the place for a content; what an earlier attempt left is read and hashed. Blocks.
    pub(super) fn open(store: &Arc<BlobStore>, want: &Want) -> Result<Self, MirrorError> {
        let mut hasher = blake3::Hasher::new();
        if want.size <= SMALL_BYTES_MAX {
            store.check_room(want.size)?;
            let place = Place::Memory(Vec::new());
            return Ok(Self { want: want.clone(), hasher, received: 0, place });
        }
        let partial = store.open_partial(&want.content)?;
        let error = |source| MirrorError::Disk { doing: "read", path: partial.path.clone(), source };
        let mut received = partial.file.metadata().map_err(error)?.len();
        if received > want.size {
            partial.file.set_len(0).map_err(error)?;
            received = 0;
        }
        store.check_room(want.size - received)?;
        hash_range(&mut hasher, &partial.file, received).map_err(error)?;
        let place = Place::File { partial: Arc::new(partial), written: received, buffer: Vec::new() };
        Ok(Self { want: want.clone(), hasher, received, place })
    }

    /// What is expected.
    pub fn want(&self) -> &Want {
        &self.want
    }

    /// Bytes that are here: a source continues at this offset, or calls [`Incoming::restart`].
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Drops what is here, for a source that starts from the beginning.
    ///
    /// # Errors
    /// The disk's.
    pub async fn restart(&mut self) -> Result<(), MirrorError> {
        self.hasher.reset();
        self.received = 0;
        match &mut self.place {
            Place::Memory(bytes) => bytes.clear(),
            Place::File { partial, written, buffer } => {
                buffer.clear();
                *written = 0;
                let partial = Arc::clone(partial);
                blocking(move || {
                    partial.file.set_len(0).map_err(|source| MirrorError::Disk {
                        doing: "empty",
                        path: partial.path.clone(),
                        source,
                    })
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`ReceiveError::Overlong`], or the disk's.
    pub async fn write(&mut self, part: &[u8]) -> Result<(), ReceiveError> {
        if part.len() as u64 > self.want.size - self.received {
            return Err(ReceiveError::Overlong { size: self.want.size });
        }
        self.hasher.update(part);
        self.received += part.len() as u64;
        match &mut self.place {
            Place::Memory(bytes) => bytes.extend_from_slice(part),
            Place::File { buffer, .. } => {
                buffer.extend_from_slice(part);
                if buffer.len() >= WRITE_BYTES {
                    self.flush().await?;
                }
            }
        }
        Ok(())
    }

    /// Keeps what is here for a later attempt, as far as it is kept at all.
    ///
    /// # Errors
    /// The disk's.
    pub async fn park(mut self) -> Result<(), MirrorError> {
        self.flush().await
    }

    /// Checks that the content is whole and right. What is wrong is dropped.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn finish(mut self) -> Result<Arrived, ReceiveError> {
        if self.received < self.want.size {
            let short = ReceiveError::Short { size: self.want.size, received: self.received };
            self.flush().await?;
            return Err(short);
        }
        if ContentHash::from(self.hasher.finalize()) != self.want.content {
            self.restart().await?;
            return Err(ReceiveError::Wrong { content: self.want.content });
        }
        self.flush().await?;
        let Want { content, mtime, size, .. } = self.want;
        let bytes = match self.place {
            Place::Memory(bytes) => ArrivedBytes::Memory(bytes),
            Place::File { partial, .. } => {
                let error = |source| MirrorError::Disk { doing: "sync", path: partial.path.clone(), source };
                let file = partial.file.try_clone().map_err(error)?;
                let path = partial.path.clone();
                // Most of it goes to the disk here, beside other fetches, and not in the batch's sync.
                blocking(move || {
                    let synced = partial.file.sync_data();
                    synced.map_err(|source| MirrorError::Disk { doing: "sync", path, source })
                })
                .await?;
                ArrivedBytes::Partial(file)
            }
        };
        Ok(Arrived { content, mtime, size, bytes })
    }

    async fn flush(&mut self) -> Result<(), MirrorError> {
        let Place::File { partial, written, buffer } = &mut self.place else { return Ok(()) };
        if buffer.is_empty() {
            return Ok(());
        }
        let (bytes, at, partial) = (std::mem::take(buffer), *written, Arc::clone(partial));
        *written += bytes.len() as u64;
        *buffer = blocking(move || {
            let write = || -> io::Result<()> { partial.file.write_all_at(&bytes, at) };
            write().map_err(|source| MirrorError::Disk {
                doing: "write",
                path: partial.path.clone(),
                source,
            })?;
            let mut buffer = bytes;
            buffer.clear();
            Ok(buffer)
        })
        .await?;
        Ok(())
    }
}

impl Arrived {
    /// Its identity.
    pub fn content(&self) -> ContentHash {
        self.content
    }

    /// Bytes of memory that it holds until it is committed.
    pub fn memory_bytes(&self) -> usize {
        match &self.bytes {
            ArrivedBytes::Memory(bytes) => bytes.len(),
            ArrivedBytes::Partial(_) | ArrivedBytes::Elsewhere(_) | ArrivedBytes::InPlace => 0,
        }
    }
}

/// Feeds the first `length` bytes of a file to a hasher.
pub(super) fn hash_range(hasher: &mut blake3::Hasher, file: &File, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < length {
        let most = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        let read = file.read_at(&mut buffer[..most], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(())
}

/// Contents up to this size stay in memory until their batch is written.
pub(super) const SMALL_BYTES_MAX: u64 = 256 << 10;

/// Bytes of a large content that are gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes that are read at once for hashing.
const READ_BYTES: usize = 256 << 10;
