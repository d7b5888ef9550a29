//! One version of one file: its identity, and its bytes by descriptor or in memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::HeaderValue;

use super::buffer::Buffer;
use super::cache::Key;
use crate::send::assembled::Assembled;
use crate::send::transfer::WINDOW_BYTES;
use crate::site::{FileAnswer, Root, Unavailable};

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Bytes.
    pub(crate) size: u64,
    /// Seconds since the epoch.
    pub(crate) mtime: i64,
    /// Its nanoseconds.
    pub(crate) mtime_nanos: u32,
    inode: u64,
    device: u64,
}

impl Version {
    /// Asks the kernel about an open file.
    ///
    /// # Errors
    /// [`Unavailable`], when it is no regular file.
    pub(crate) fn of_descriptor(file: impl AsFd, root: &Root) -> Result<Self, Unavailable> {
        let stat = rustix::fs::fstat(file).map_err(|error| Unavailable::Io(error.into()))?;
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::RegularFile => Ok(Self::from_stat(&stat).below(root)),
            rustix::fs::FileType::Directory => Err(Unavailable::Directory),
            _ => Err(Unavailable::NotFound),
        }
    }

    /// Asks the kernel what a path leads to now, if anything. The answer is only ever compared, never served.
    pub(crate) fn of_path(root: &Root, path: &[u8]) -> Option<Self> {
        let stat = rustix::fs::statat(root, path, rustix::fs::AtFlags::empty()).ok()?;
        Some(Self::from_stat(&stat).below(root))
    }

    /// Whether it is the version that a site means, as far as the site knows it.
    pub(crate) fn is_what(&self, wanted: &FileAnswer) -> bool {
        wanted.expected_size.is_none_or(|size| size == self.size)
            && wanted.expected_mtime.is_none_or(|mtime| mtime == self.mtime)
            && wanted.expected_mtime_nanos.is_none_or(|nanos| nanos == self.mtime_nanos)
    }

    /// The same, as versions below `root` are told apart.
    fn below(self, root: &Root) -> Self {
        if root.filling { Self { mtime: 0, mtime_nanos: 0, ..self } } else { self }
    }

    fn from_stat(stat: &rustix::fs::Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: stat.st_mtime,
            mtime_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            inode: stat.st_ino,
            device: stat.st_dev,
        }
    }

    /// A strong validator for files that are replaced, never written in place.
    pub(crate) fn etag(&self) -> HeaderValue {
        let text = format!("\"{:x}-{:x}-{:x}.{:x}\"", self.inode, self.size, self.mtime, self.mtime_nanos);
        HeaderValue::from_str(&text).expect("hexadecimal digits, dashes and quotes are a valid field value")
    }

    /// The modification time.
    pub(crate) fn modified(&self) -> SystemTime {
        match u64::try_from(self.mtime) {
            Ok(seconds) => UNIX_EPOCH + Duration::new(seconds, self.mtime_nanos.min(999_999_999)),
            Err(_) => UNIX_EPOCH,
        }
    }
}

/// A file as it was opened; what was opened is what is sent.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// Keeps the root's address, which is part of the key, from being used again.
    pub(crate) key: Key,
    pub(crate) root: Arc<Root>,
    pub(crate) version: Version,
    pub(crate) content: Content,
    /// What is in memory of it.
    pub(crate) kept: RefCell<Kept>,
    /// When the path was last known to lead here, in coarse milliseconds.
    pub(crate) checked: Cell<u64>,
    /// When the open file was last seen to be unchanged, in coarse milliseconds.
    pub(crate) looked_at: Cell<u64>,
    /// Set by every use, cleared by the cache's clock hand.
    pub(crate) used: Cell<bool>,
    /// What the page cache was last seen to hold.
    pub(crate) resident: Cell<Resident>,
    /// Whether the file system refused to send without copying.
    pub(crate) copies: Cell<bool>,
}

/// What is in memory of a file.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The head of a plain 200, and the body if that is in memory.
    pub(crate) buffer: Buffer,
    /// How the head was made, if it was.
    pub(crate) assembled: Option<Assembled>,
}

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Content {
    /// In the buffer; the descriptor is closed.
    Memory,
    /// Behind a descriptor.
    Descriptor(OwnedFd),
}

/// A span that was in the page cache at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    start: u64,
    end: u64,
    seen: u64,
}

impl OpenFile {
    /// A file whose bytes are all in `buffer`. `now` is in coarse milliseconds.
    pub(crate) fn in_memory(key: Key, root: Arc<Root>, version: Version, buffer: Buffer, now: u64) -> Self {
        Self::new(key, root, version, Content::Memory, buffer, now)
    }

    /// A file whose bytes are behind a descriptor. `now` is in coarse milliseconds.
    pub(crate) fn behind(key: Key, root: Arc<Root>, version: Version, descriptor: OwnedFd, now: u64) -> Self {
        // Smaller files are fetched whole.
        if version.size > WINDOW_BYTES {
            crate::uring::leave_reading_ahead_to_us(&descriptor);
        }
        Self::new(key, root, version, Content::Descriptor(descriptor), Buffer::default(), now)
    }

    fn new(key: Key, root: Arc<Root>, version: Version, content: Content, buffer: Buffer, now: u64) -> Self {
        Self {
            key,
            root,
            version,
            content,
            kept: RefCell::new(Kept { buffer, assembled: None }),
            checked: Cell::new(now),
            looked_at: Cell::new(now),
            used: Cell::new(true),
            resident: Cell::new(Resident::default()),
            copies: Cell::new(false),
        }
    }

    /// The descriptor; `None` when the bytes are in memory.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.content {
            Content::Descriptor(descriptor) => Some(descriptor.as_fd()),
            Content::Memory => None,
        }
    }

    /// Whether the open file still is the version that its head promises; false after a write in place.
    ///
    /// A look counts for [`UNCHANGED_TRUSTED_MILLIS`], whoever took it.
    pub(crate) fn is_unchanged(&self, now_millis: u64) -> bool {
        if self.looked_at.get() + UNCHANGED_TRUSTED_MILLIS > now_millis {
            return true;
        }
        self.looked_at.set(now_millis);
        self.is_still()
    }

    /// The same, asked now.
    pub(crate) fn is_still(&self) -> bool {
        self.descriptor().is_none_or(|descriptor| {
            Version::of_descriptor(descriptor, &self.root).is_ok_and(|now| now == self.version)
        })
    }

    /// How far from `position` on the page cache held the file within the last second, if it did at all.
    pub(crate) fn resident_until(&self, position: u64, now_millis: u64) -> Option<u64> {
        let seen = self.resident.get();
        let fresh = seen.seen + RESIDENT_TRUSTED_MILLIS > now_millis;
        (fresh && seen.start <= position && position < seen.end).then_some(seen.end)
    }

    /// Remembers that a span is in the page cache.
    pub(crate) fn note_resident(&self, start: u64, end: u64, now_millis: u64) {
        let seen = self.resident.get();
        let fresh = seen.seen + RESIDENT_TRUSTED_MILLIS > now_millis;
        let touches = start <= seen.end && seen.start <= end;
        self.resident.set(if fresh && touches {
            Resident { start: seen.start.min(start), end: seen.end.max(end), seen: seen.seen }
        } else {
            Resident { start, end, seen: now_millis }
        });
    }

    /// Bytes of memory that keeping it costs, about.
    pub(crate) fn weight(&self) -> u64 {
        weight(&self.key, if matches!(self.content, Content::Memory) { self.version.size } else { 0 })
    }
}

/// A file's bytes or head, as a kernel operation owns it.
impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor().unwrap_or_else(|| self.root.as_fd())
    }
}

/// Bytes of memory that a file costs of which `body` bytes are kept, about.
pub(crate) fn weight(key: &Key, body: u64) -> u64 {
    body + key.path_length() as u64 + ENTRY_BYTES
}

/// Reads a file of `body.len()` bytes whole, if it is in the page cache; `false` when the disk is needed.
///
/// # Errors
/// The kernel's.
pub(crate) fn read_resident(file: impl AsFd, body: &mut [u8]) -> io::Result<bool> {
    if body.is_empty() {
        return Ok(true);
    }
    Ok(crate::uring::resident(file, 0, body)? == Some(body.len()))
}

/// How long a look at an open file's size and times counts.
const UNCHANGED_TRUSTED_MILLIS: u64 = 10;

/// How long a look at the page cache counts; pages that were just used are not the first to be evicted.
const RESIDENT_TRUSTED_MILLIS: u64 = 1_000;

/// Bookkeeping per kept file: the entry, its key, and a head or the room for it.
const ENTRY_BYTES: u64 = 1_024;
