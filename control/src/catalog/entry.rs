//! One file of the catalogue, and the stamp by which a changed file is recognised without reading it.
//!
//! Nothing here touches the disk.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use freshet_api::manifest::{ManifestFile, RepoPath};
use freshet_api::{Checksums, FileId};
use serde::{Deserialize, Serialize};

/// One version of one path, with what customers and volunteers are told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its number: another one as soon as the path has another content, never used again.
    pub file: FileId,
    /// Where it is in the tree.
    pub path: RepoPath,
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

impl FileEntry {
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
            path,
            size: stamp.size,
            mtime: stamp.mtime,
            mtime_nanos: stamp.mtime_nanos,
            checksums,
            last,
            changed_at,
            stamp: stamp.digest(),
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
            path: self.path.clone(),
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
