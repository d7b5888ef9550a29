//! The wire form of a manifest: a magic, lengths, the small columns in one zstd frame, the hashes as they are.
//!
//! Rows go in the order of their paths, so that neighbours share most of a path (front coding), its directory's
//! time, and a number next to their own. Hashes do not shrink, and are neither compressed nor copied twice. Every
//! number read is checked; a length that lies costs no memory.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::files::{Columns, Files};
use super::{BYTES_MAX, Manifest, ManifestError, ManifestFile, ManifestLink, RepoPath};
use crate::id::{ContentHash, FileId};

/// Everything but the hashes.
#[derive(Serialize, Deserialize)]
struct Plain<'a> {
    sequence: u64,
    base: Option<u64>,
    files: u64,
    path_lengths: &'a [u8],
    path_rests: &'a [u8],
    sizes: &'a [u8],
    mtimes: &'a [u8],
    numbers: &'a [u8],
    last: &'a [u8],
    links: Cow<'a, [ManifestLink]>,
    removed_files: Cow<'a, [FileId]>,
    removed_links: Cow<'a, [RepoPath]>,
}

pub(super) fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let mut files = Cow::Borrowed(&manifest.files);
    if !files.is_sorted() {
        let mut rows: Vec<ManifestFile> = files.iter().collect();
        rows.sort_by(|one, other| one.path.cmp(&other.path));
        files = Cow::Owned(rows.into());
    }
    let Columns { path_lengths, path_rests, sizes, mtimes, numbers, last } = &files.columns;
    let plain = Plain {
        sequence: manifest.sequence,
        base: manifest.base,
        files: files.len() as u64,
        path_lengths,
        path_rests,
        sizes,
        mtimes,
        numbers,
        last,
        links: Cow::Borrowed(&manifest.links),
        removed_files: Cow::Borrowed(&manifest.removed_files),
        removed_links: Cow::Borrowed(&manifest.removed_links),
    };
    let plain = postcard::to_stdvec(&plain).map_err(|_| ManifestError::Damaged)?;
    if plain.len().saturating_add(files.len() * HASH_BYTES) > BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let frame = zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|_| ManifestError::Damaged)?;
    let mut wire = Vec::with_capacity(HEAD_BYTES + frame.len() + files.len() * HASH_BYTES);
    wire.extend_from_slice(MAGIC);
    wire.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    wire.extend_from_slice(&(frame.len() as u64).to_le_bytes());
    wire.extend_from_slice(&frame);
    for content in &files.contents {
        wire.extend_from_slice(&content.0);
    }
    Ok(wire)
}

pub(super) fn decode(wire: &[u8]) -> Result<Manifest, ManifestError> {
    let rest = wire.strip_prefix(MAGIC).ok_or(ManifestError::Unknown)?;
    let (plain_bytes, rest) = length(rest)?;
    let (frame_bytes, rest) = length(rest)?;
    let (frame, hashes) = rest.split_at_checked(frame_bytes).ok_or(ManifestError::Damaged)?;
    if plain_bytes > BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let bytes = zstd::bulk::decompress(frame, plain_bytes).map_err(|_| ManifestError::Damaged)?;
    let plain: Plain<'_> = postcard::from_bytes(&bytes).map_err(|_| ManifestError::Damaged)?;
    let (hashes, none) = hashes.as_chunks::<HASH_BYTES>();
    if !none.is_empty() || hashes.len() as u64 != plain.files {
        return Err(ManifestError::Damaged);
    }
    let columns = Columns {
        path_lengths: plain.path_lengths.to_vec(),
        path_rests: plain.path_rests.to_vec(),
        sizes: plain.sizes.to_vec(),
        mtimes: plain.mtimes.to_vec(),
        numbers: plain.numbers.to_vec(),
        last: plain.last.to_vec(),
    };
    let contents = hashes.iter().map(|hash| ContentHash(*hash)).collect();
    Ok(Manifest {
        sequence: plain.sequence,
        base: plain.base,
        links: plain.links.into_owned(),
        removed_files: plain.removed_files.into_owned(),
        removed_links: plain.removed_links.into_owned(),
        files: Files::checked(columns, contents).ok_or(ManifestError::Damaged)?,
    })
}

fn length(bytes: &[u8]) -> Result<(usize, &[u8]), ManifestError> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(ManifestError::Damaged)?;
    Ok((usize::try_from(u64::from_le_bytes(*length)).map_err(|_| ManifestError::TooLarge)?, rest))
}

const MAGIC: &[u8] = b"FRMANIF2";
const HEAD_BYTES: usize = 8 + 8 + 8;
const HASH_BYTES: usize = 32;
const ZSTD_LEVEL: i32 = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(paths: &std::collections::BTreeSet<String>) -> Manifest {
        let row = |(number, path): (u32, &String)| ManifestFile {
            file: FileId(number.wrapping_mul(2_654_435_761)),
            path: path.parse().unwrap(),
            size: u64::MAX >> (number % 64),
            mtime: if number.is_multiple_of(3) { i64::MIN } else { i64::from(number) },
            content: ContentHash::of(path.as_bytes()),
            last: number.is_multiple_of(2),
        };
        Manifest { sequence: 3, files: (0..).zip(paths).map(row).collect(), ..Manifest::default() }
    }

    #[test]
    fn lying_lengths_are_refused() {
        let wire = manifest(&["a".to_owned(), "b".to_owned()].into()).encode().unwrap();
        for (at, lie, expected) in [
            (8, u64::MAX, ManifestError::TooLarge),
            (8, 1, ManifestError::Damaged),
            (16, u64::MAX, ManifestError::Damaged),
            (16, 3, ManifestError::Damaged),
        ] {
            let mut wire = wire.clone();
            wire[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            assert_eq!(Manifest::decode(&wire), Err(expected), "{at} {lie}");
        }
        assert_eq!(Manifest::decode(&wire[..wire.len() - 1]), Err(ManifestError::Damaged));
        assert_eq!(Manifest::decode(&wire[..wire.len() - 32]), Err(ManifestError::Damaged));
    }

    #[test]
    fn paths_may_differ_within_a_character() {
        let wire = manifest(&["x/\u{e4}".to_owned(), "x/\u{e5}".to_owned()].into()).encode().unwrap();
        assert_eq!(Manifest::decode(&wire).unwrap().files.iter().last().unwrap().path.as_str(), "x/\u{e5}");
    }

    proptest! {
        #[test]
        fn any_rows_are_read_back(paths in proptest::collection::btree_set("[a-c\u{e4}-\u{e6}]{1,4}(/[a-c]{1,3}){0,2}", 0..40)) {
            let manifest = manifest(&paths);
            prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in any::<bool>()) {
            let mut wire = if keep { MAGIC.to_vec() } else { Vec::new() };
            wire.extend(bytes);
            prop_assert!(Manifest::decode(&wire).is_err());
        }
    }
}
