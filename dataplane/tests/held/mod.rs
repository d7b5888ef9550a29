//! Manifests of given files, as control would make them.

use freshet_api::manifest::{Manifest, ManifestFile, ManifestLink};
use freshet_api::{ContentHash, FileId};

/// Modification time of every file, seconds since the epoch: Sun, 09 Sep 2001 01:46:40 GMT.
const MTIME: i64 = 1_000_000_000;

/// A manifest of these files and links.
pub(crate) fn manifest(sequence: u64, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Manifest {
    let files = files.iter().zip(1..).map(|(&(path, content), number)| ManifestFile {
        file: FileId(number),
        path: path.parse().unwrap(),
        size: content.len() as u64,
        mtime: MTIME,
        content: ContentHash::of(content),
        last: false,
    });
    let links = links
        .iter()
        .map(|&(path, target)| ManifestLink { path: path.parse().unwrap(), target: target.to_owned() });
    Manifest { sequence, files: files.collect(), links: links.collect(), ..Manifest::default() }
}
