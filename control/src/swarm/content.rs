//! Reads contents of the repository for the swarm, beneath its root and never through a symbolic link; every
//! content is checked against the catalogue's hash before anything that was made of it is used.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use freshet_api::ContentHash;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// The repository's root, held open.
#[derive(Debug)]
pub(super) struct Repository {
    root: OwnedFd,
}

impl Repository {
    /// Opens the root.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::openat(CWD, root, flags, Mode::empty())? })
    }

    /// Opens a regular file of `size` bytes.
    pub(super) fn file(&self, path: &str, size: u64) -> Result<File, ContentError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
        let file = File::from(file.map_err(io::Error::from)?);
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.len() == size { Ok(file) } else { Err(ContentError::Changed) }
    }

    /// A whole content, for small ones.
    pub(super) fn read(&self, path: &str, size: u64, content: &ContentHash) -> Result<Vec<u8>, ContentError> {
        let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| ContentError::Changed)?);
        self.file(path, size)?.take(size + 1).read_to_end(&mut bytes)?;
        if ContentHash::from(blake3::hash(&bytes)) == *content {
            Ok(bytes)
        } else {
            Err(ContentError::Changed)
        }
    }
}

/// The hashes of a content's pieces; `stop` is asked between two of them.
pub(super) fn piece_hashes(
    file: &mut File,
    size: u64,
    content: &ContentHash,
    piece_bytes: u32,
    stop: impl Fn() -> bool,
) -> Result<Vec<ContentHash>, ContentError> {
    let mut pieces = Vec::with_capacity(usize::try_from(size.div_ceil(u64::from(piece_bytes))).unwrap_or(0));
    let mut whole = blake3::Hasher::new();
    let mut buffer = vec![0; piece_bytes as usize];
    let mut left = size;
    while left > 0 {
        if stop() {
            return Err(ContentError::Stopped);
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let piece = &mut buffer[..length];
        file.read_exact(piece)?;
        whole.update(piece);
        pieces.push(ContentHash::from(blake3::hash(piece)));
        left -= length as u64;
    }
    if ContentHash::from(whole.finalize()) == *content { Ok(pieces) } else { Err(ContentError::Changed) }
}

/// The hashes of the pieces of bytes in memory.
pub(super) fn piece_hashes_of(bytes: &[u8], piece_bytes: u32) -> Vec<ContentHash> {
    bytes.chunks(piece_bytes as usize).map(|piece| ContentHash::from(blake3::hash(piece))).collect()
}

/// Why a content could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    /// It is not what the catalogue says; the catalogue will say something else soon.
    #[error("the file is being replaced")]
    Changed,
    /// Control is stopping.
    #[error("control is stopping")]
    Stopped,
    /// The kernel's word.
    #[error(transparent)]
    Io(#[from] io::Error),
}
