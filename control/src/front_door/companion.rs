//! Files that are not there but can be asked for: `FILE.md4`, `FILE.sha256`, `FILE.meta4`.
//!
//! A real file of such a name wins: the catalogue is asked first.

use bytes::Bytes;
use freshet_engine::Body;
use http::{HeaderValue, StatusCode, header};

use crate::catalog::{FileEntry, Snapshot};

/// What is told about a file beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Companion {
    /// As `md4sum`-like tools print it.
    Md4,
    /// As `sha256sum` prints and reads it.
    Sha256,
    /// A Metalink (RFC 5854).
    Metalink,
}

impl Companion {
    /// The companion that a path names, the path of the file it is about, and that file.
    pub(super) fn find<'p>(catalog: &Snapshot, path: &'p [u8]) -> Option<(Self, &'p [u8], FileEntry<'p>)> {
        SUFFIXES.iter().find_map(|&(suffix, companion)| {
            let file = path.strip_suffix(suffix.as_bytes())?;
            Some((companion, file, catalog.find(file)?))
        })
    }
}

/// The body of `FILE.md4` or `FILE.sha256`: digits, two spaces, the name it was asked for by.
pub(super) fn checksum_body(companion: Companion, entry: &FileEntry<'_>, name: &str) -> Body {
    let digits = match companion {
        Companion::Md4 => entry.checksums.md4_hex(),
        Companion::Sha256 | Companion::Metalink => entry.checksums.sha256_hex(),
    };
    let etag = format!("\"{}\"", &digits[..digits.len().min(32)]);
    Body {
        status: StatusCode::OK,
        bytes: Bytes::from(format!("{digits}  {name}\n")),
        content_type: HeaderValue::from_static("text/plain; charset=utf-8"),
        etag: HeaderValue::try_from(etag).ok(),
        last_modified: None,
        headers: vec![(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))],
    }
}

const SUFFIXES: &[(&str, Companion)] =
    &[(".md4", Companion::Md4), (".sha256", Companion::Sha256), (".meta4", Companion::Metalink)];
