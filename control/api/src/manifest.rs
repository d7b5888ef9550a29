//! What a mirror must hold: the rows of the catalogue as they travel to volunteers.
//!
//! A manifest is a snapshot, or the difference to an earlier one. A row names its content by BLAKE3 alone: the other
//! checksums are for customers, and those get them from the front door, never from a volunteer. The wire form (see
//! `wire`) is column by column; it is built and read whole, within [`BYTES_MAX`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{ContentHash, FileId};

mod files;
mod offer;
mod wire;

pub(crate) use files::shared_bytes;
pub use files::{Cursor, FileRef, Files, Iter};
pub use offer::{ManifestAsk, ManifestFailed, ManifestFrom, ManifestHeld, ManifestOffer};

/// The rows of the catalogue, or what changed in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The state of the catalogue this leads to; grows with every change.
    pub sequence: u64,
    /// The state it starts from; `None` for a snapshot, which replaces everything.
    pub base: Option<u64>,
    /// Files that are new since `base`. A path that is here and was there before replaces it.
    pub files: Files,
    /// Symbolic links that are new or changed since `base`.
    pub links: Vec<ManifestLink>,
    /// Files that are gone since `base` (also when their path came again with another content).
    pub removed_files: Vec<FileId>,
    /// Symbolic links that are gone since `base`.
    pub removed_links: Vec<RepoPath>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its number.
    pub file: FileId,
    /// Where it is in the tree.
    pub path: RepoPath,
    /// Bytes.
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Its content.
    pub content: ContentHash,
    /// Whether it must appear only after everything else (an index such as `Release` or `repomd.xml`).
    pub last: bool,
}

/// One symbolic link, kept as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestLink {
    /// Where it is in the tree.
    pub path: RepoPath,
    /// Its target, relative, within the tree.
    pub target: String,
}

impl Manifest {
    /// The wire form. Its files are in the order of their paths.
    ///
    /// # Errors
    /// [`ManifestError::TooLarge`], or the compressor's error.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        wire::encode(self)
    }

    /// Reads the wire form; paths are checked on the way in.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn decode(wire: &[u8]) -> Result<Self, ManifestError> {
        wire::decode(wire)
    }
}

/// A path within the repository: UTF-8, relative, `/` between segments, no empty, `.` or `..` segment, no
/// control character, at most [`PATH_BYTES_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(Arc<str>);

impl RepoPath {
    /// A path that was one before.
    pub(crate) fn known(text: &str) -> Self {
        Self(text.into())
    }

    /// `None` when the text is no path.
    pub(crate) fn check(text: &str) -> Option<()> {
        let fits = !text.is_empty() && text.len() <= PATH_BYTES_MAX && !text.contains(char::is_control);
        let segments =
            || text.split('/').all(|segment| !matches!(segment, "" | "." | "..") && segment.len() <= 255);
        (fits && segments()).then_some(())
    }

    /// `None` when `path` is none, what stands before `begins` having been checked: whole segments, or nothing.
    pub(crate) fn check_rest(path: &[u8], begins: usize) -> Option<()> {
        let rest = &path[begins..];
        let printable = |byte: &u8| (0x20..0x7f).contains(byte);
        if !rest.iter().all(printable) {
            // Controls stand among the others too.
            return Self::check(std::str::from_utf8(path).ok()?);
        }
        let mut segments = rest.split(|&byte| byte == b'/');
        let good = |segment: &[u8]| !matches!(segment, b"" | b"." | b"..") && segment.len() <= 255;
        (path.len() <= PATH_BYTES_MAX && segments.all(good)).then_some(())
    }

    /// The path without a leading `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl FromStr for RepoPath {
    type Err = RepoPathError;

    fn from_str(text: &str) -> Result<Self, RepoPathError> {
        let error = || RepoPathError { found: text.chars().take(120).collect() };
        Self::check(text).map(|()| Self(text.into())).ok_or_else(error)
    }
}

impl std::borrow::Borrow<str> for RepoPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for RepoPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for RepoPath {
    fn as_ref(&self) -> &std::path::Path {
        std::path::Path::new(&*self.0)
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl Serialize for RepoPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RepoPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Text that is no path within a repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a relative path without empty, `.` or `..` segments or control characters, found {found:?}"
)]
pub struct RepoPathError {
    /// The first 120 characters of what was found.
    pub found: String,
}

/// Why a manifest could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a manifest, or of another version.
    #[error("this is no manifest of version 2; bring volunteer and control to the same version")]
    Unknown,
    /// Cut off or altered on the way.
    #[error("the manifest is damaged; it will be fetched again")]
    Damaged,
    /// Beyond the bound.
    #[error("the manifest is larger than {BYTES_MAX} bytes")]
    TooLarge,
}

/// Bytes of a decompressed manifest at most (about 5 million files).
pub const BYTES_MAX: usize = 1 << 30;

/// Bytes of a path at most (PATH_MAX less the mirror's own part).
pub const PATH_BYTES_MAX: usize = 3_072;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            sequence: 7,
            base: Some(3),
            files: Files::from(vec![ManifestFile {
                file: FileId(4),
                path: "pool/a.deb".parse().unwrap(),
                size: 12,
                mtime: -5,
                content: ContentHash::of(b"a"),
                last: false,
            }]),
            links: vec![ManifestLink { path: "dists/stable".parse().unwrap(), target: "bookworm".into() }],
            removed_files: vec![FileId(1)],
            removed_links: vec!["old".parse().unwrap()],
        }
    }

    #[test]
    fn the_wire_form_is_read_back() {
        assert_eq!(Manifest::decode(&sample().encode().unwrap()), Ok(sample()));
    }

    #[test]
    fn hostile_paths_are_refused() {
        for text in ["", "/", "/etc/passwd", "a//b", "a/../b", "..", "a/.", "a\0b", "a\nb", &"x".repeat(256)]
        {
            assert!(text.parse::<RepoPath>().is_err(), "{text:?}");
        }
        let json = serde_json::to_string("../x").unwrap();
        assert!(serde_json::from_str::<RepoPath>(&json).is_err());
    }
}
