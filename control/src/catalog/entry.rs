//! One file of the catalogue, and the stamp by which a changed file is recognised without reading it.
//!
//! Nothing here touches the disk.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use freshet_api::manifest::{ManifestFile, RepoPath};
use freshet_api::table::Entry;
use freshet_api::{Checksums, FileId};
use serde::{Deserialize, Serialize};

/// One version of one path, with what customers and volunteers are told about it: a copy of what the catalogue keeps
/// of it, made without an allocation where the path is the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry<'p> {
    /// Its number: another one as soon as the path has another content, never used again.
    pub file: FileId,
    /// Where it is in the tree.
    pub path: EntryPath<'p>,
    /// Bytes.
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds beyond `mtime`, below 1,000,000,000.
    pub mtime_nanos: u32,
    /// Of its content.
    pub checksums: Checksums,
    /// Whether it is an index that must appear only after what it lists.
    pub last: bool,
    changed_at: u32,
    stamp: u64,
}

impl FileEntry<'static> {
    /// An entry from what was read: `changed_at` in seconds since the epoch, 0 for never.
    pub(super) fn new(
        file: FileId,
        path: RepoPath,
        stamp: &Stamp,
        checksums: Checksums,
        last: bool,
        changed_at: u32,
    ) -> Self {
        Self {
            file,
            path: EntryPath::Kept(path),
            size: stamp.size,
            mtime: stamp.mtime,
            mtime_nanos: stamp.mtime_nanos,
            checksums,
            last,
            changed_at,
            stamp: stamp.digest(),
        }
    }
}

impl<'p> FileEntry<'p> {
    /// What stands in a row; `path` is its path, if that is known already.
    pub(super) fn of(entry: &Entry<'_, Row>, path: Option<&'p str>) -> Self {
        let row = entry.row();
        Self {
            file: FileId(entry.number()),
            path: path.map_or_else(|| EntryPath::Kept(entry.path()), EntryPath::Asked),
            size: row.size,
            mtime: row.mtime,
            mtime_nanos: row.mtime_nanos,
            checksums: Checksums { blake3: *entry.content(), sha256: row.sha256, md4: row.md4 },
            last: row.last,
            changed_at: row.changed_at,
            stamp: row.stamp,
        }
    }

    /// When this path last got another content in place of an older one, in seconds since the epoch.
    ///
    /// `None` for a path that has had only this content since the catalogue first saw it: nobody can hold an
    /// older version of it.
    pub fn changed_at(&self) -> Option<i64> {
        (self.changed_at != 0).then_some(i64::from(self.changed_at))
    }

    /// The row as it travels to volunteers.
    pub fn manifest_row(&self) -> ManifestFile {
        ManifestFile {
            file: self.file,
            path: self.path.to_repo_path(),
            size: self.size,
            mtime: self.mtime,
            content: self.checksums.blake3,
            last: self.last,
        }
    }

    /// Whether a file with this stamp was hashed for this entry.
    pub(super) fn matches(&self, stamp: &Stamp) -> bool {
        self.size == stamp.size && self.stamp == stamp.digest()
    }

    pub(super) fn changed_at_raw(&self) -> u32 {
        self.changed_at
    }

    pub(super) fn row(&self) -> Row {
        Row {
            size: self.size,
            mtime: self.mtime,
            stamp: self.stamp,
            mtime_nanos: self.mtime_nanos,
            changed_at: self.changed_at,
            sha256: self.checksums.sha256,
            md4: self.checksums.md4,
            last: self.last,
        }
    }
}

/// What the catalogue's table keeps of a file beside number, path and content. Packed: there are millions.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed)]
pub(super) struct Row {
    size: u64,
    mtime: i64,
    stamp: u64,
    mtime_nanos: u32,
    changed_at: u32,
    sha256: [u8; 32],
    md4: [u8; 16],
    last: bool,
}

/// The path of an entry: borrowed from who asked for it, or read from the catalogue.
#[derive(Clone)]
pub enum EntryPath<'p> {
    /// It was asked for by this path.
    Asked(&'p str),
    /// It was found otherwise, or by a symbolic link.
    Kept(RepoPath),
}

impl EntryPath<'_> {
    /// Without a leading `/`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Asked(path) => path,
            Self::Kept(path) => path.as_str(),
        }
    }

    /// The last segment.
    pub fn file_name(&self) -> &str {
        self.as_str().rsplit('/').next().unwrap_or_default()
    }

    /// A path of its own.
    pub fn to_repo_path(&self) -> RepoPath {
        match self {
            Self::Asked(path) => path.parse().expect("what the catalogue has at this path went in as one"),
            Self::Kept(path) => path.clone(),
        }
    }
}

impl PartialEq for EntryPath<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for EntryPath<'_> {}

impl fmt::Display for EntryPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for EntryPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What the kernel says about a file that changes whenever its content does.
///
/// The device is left out: its number may differ after a reboot, and that must not cost a rehash of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) mtime_nanos: u32,
    pub(super) ctime: i64,
    pub(super) ctime_nanos: u32,
}

impl Stamp {
    /// 64 bits of it; kept per file instead of the whole.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}
