//! A mirror on disk that holds given files, made the way sync makes it.

use std::sync::Arc;

use freshet_api::manifest::{Manifest, ManifestFile, ManifestLink};
use freshet_api::{Checksums, FileId};
use freshet_dataplane::mirror::{Mirror, MirrorOptions};

/// Modification time of every file, seconds since the epoch: Sun, 09 Sep 2001 01:46:40 GMT.
pub const MTIME: i64 = 1_000_000_000;

/// A manifest of these files and links.
pub fn manifest(sequence: u64, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Manifest {
    let files = files.iter().zip(1..).map(|(&(path, content), number)| ManifestFile {
        file: FileId(number),
        path: path.parse().unwrap(),
        size: content.len() as u64,
        mtime: MTIME,
        checksums: Checksums::of(content),
        last: false,
    });
    let links = links
        .iter()
        .map(|&(path, target)| ManifestLink { path: path.parse().unwrap(), target: target.to_owned() });
    Manifest { sequence, files: files.collect(), links: links.collect(), ..Manifest::default() }
}

/// A mirror below `directory` that holds these files.
pub async fn mirror(
    directory: &std::path::Path,
    files: &[(&str, &[u8])],
    links: &[(&str, &str)],
) -> Arc<Mirror> {
    let mirror = Mirror::open(MirrorOptions {
        reserve_bytes: 0,
        ..MirrorOptions::new(directory.join("store"), directory.join("tree"))
    })
    .unwrap();
    mirror.accept(&manifest(1, files, links)).unwrap();
    let mut arrived = Vec::new();
    for want in mirror.missing() {
        let (_, content) =
            files.iter().find(|(_, content)| Checksums::of(content).blake3 == want.content).unwrap();
        let mut incoming = mirror.receive(&want).unwrap();
        incoming.write(content).await.unwrap();
        arrived.push(incoming.finish().await.unwrap());
    }
    mirror.commit(arrived).unwrap();
    mirror.publish_ready().unwrap();
    mirror.finish().unwrap();
    mirror
}
