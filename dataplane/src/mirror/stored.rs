//! What the index keeps of the mirror's state, and what it has not learnt yet. No I/O happens here.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use freshet_api::ContentHash;
use freshet_api::manifest::{ManifestFile, RepoPath};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

/// One version of one path, numbered by this mirror: control may number anew, paths and contents stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RowNumber(pub(super) u32);

/// What a blob looked like on disk when it was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
}

impl Stamp {
    /// What tells that something else than a link was done to the blob; kept per row instead of the whole.
    pub(super) fn digest(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        (self.inode, self.size, self.mtime).hash(&mut hasher);
        hasher.finish() as u32
    }
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

/// What the index has not learnt yet.
#[derive(Default)]
pub(super) struct Dirty {
    /// [`RowNumber`]s.
    pub(super) rows: RoaringBitmap,
    pub(super) links: BTreeSet<RepoPath>,
    /// Blobs as they are on disk now; `None` for those that are gone.
    pub(super) blobs: BTreeMap<ContentHash, Option<Stamp>>,
    pub(super) sequences: bool,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.links.is_empty() && self.blobs.is_empty() && !self.sequences
    }
}
