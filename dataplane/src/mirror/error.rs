//! What keeps the mirror from keeping something, and whether it passes.

use std::io;
use std::path::PathBuf;

/// Why something could not be kept, published or recorded.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The kernel's word about a file or directory.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(source))]
    Disk {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// Hard links can't cross filesystems.
    #[error(
        "the mirror tree {} must be on the same filesystem as the state directory {}: files are hard links \
         between them; move one of the two",
        tree.display(),
        state.display()
    )]
    Apart {
        /// Where the tree is.
        tree: PathBuf,
        /// Where the state is.
        state: PathBuf,
    },
    /// Somebody else has the index open.
    #[error("{} is in use: another dataplane runs on this state directory; stop it first", path.display())]
    InUse {
        /// The index.
        path: PathBuf,
    },
    /// The index can't be read or written.
    #[error("cannot {doing} the index {}: {source}", path.display())]
    Index {
        /// What was tried.
        doing: &'static str,
        /// The index.
        path: PathBuf,
        /// redb's word.
        source: Box<redb::Error>,
    },
    /// Made by another version.
    #[error("the index {} has format {found}, expected {expected}; use the version that made it", path.display())]
    Format {
        /// The index.
        path: PathBuf,
        /// What this version writes.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// A difference to a state that is not ours.
    #[error("expected a snapshot or the difference to state {expected}, came the difference to {found}")]
    OtherBase {
        /// Our state.
        expected: u64,
        /// The manifest's base.
        found: u64,
    },
    /// A manifest that contradicts itself.
    #[error("the manifest contradicts itself: {what}")]
    Contradiction {
        /// How.
        what: String,
    },
    /// Something that is not ours stands where a file of the manifest must be.
    #[error(
        "{} is in the way of {wanted}: a {found} that is not this mirror's; move it away{}",
        path.display(),
        others(*more)
    )]
    InTheWay {
        /// What stands in the way.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What should be there.
        wanted: String,
        /// How many more files have the like trouble.
        more: usize,
    },
    /// The content is being received already.
    #[error("{content} is being received already")]
    Busy {
        /// Which.
        content: freshet_api::ContentHash,
    },
    /// A fetch would leave less room than is to be kept free.
    #[error(
        "the disk of {} is full: {needed_bytes} bytes are needed and {free_bytes} are free; make room, it goes on \
         by itself",
        path.display()
    )]
    Full {
        /// A directory on it.
        path: PathBuf,
        /// What the next file needs, the reserve included.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
}

impl MirrorError {
    /// Whether the disk, or somebody's quota, is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Disk { source, .. } => full(source),
            Self::Index { source, .. } => matches!(&**source, redb::Error::Io(error) if full(error)),
            _ => false,
        }
    }

    pub(super) fn disk(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Disk { doing, path, source: errno.into() }
    }
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; make room, it goes on by itself",
        io::ErrorKind::QuotaExceeded => "; raise the quota or make room, it goes on by itself",
        io::ErrorKind::PermissionDenied => "; the daemon's user must own the state directory and the tree",
        io::ErrorKind::ReadOnlyFilesystem => "; the filesystem is mounted read-only (look for disk errors)",
        _ => "",
    }
}

fn others(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" ({more} more like it)") }
}
