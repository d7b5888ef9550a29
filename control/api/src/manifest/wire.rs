//! The wire form of a manifest: a magic, lengths, the small columns in one zstd frame, the hashes as they are.
//!
//! Rows go in the order of their paths, so that neighbours share most of a path (front coding), its directory's
//! time, and a number next to their own. Hashes do not shrink, and are neither compressed nor copied twice. Every
//! number read is checked; a length that lies costs no memory.

use serde::{Deserialize, Serialize};

use super::{BYTES_MAX, Manifest, ManifestError, ManifestFile, ManifestLink, RepoPath};
use crate::id::{ContentHash, FileId};

/// Everything but the hashes.
#[derive(Serialize, Deserialize)]
struct Columns<'a> {
    sequence: u64,
    base: Option<u64>,
    files: u64,
    /// What each path shares with the one before and the length of the rest, as varints.
    path_lengths: &'a [u8],
    /// The rests, end to end.
    path_rests: &'a [u8],
    /// Varints.
    sizes: &'a [u8],
    /// Varints of the zigzagged difference to the row before.
    mtimes: &'a [u8],
    /// The same.
    numbers: &'a [u8],
    /// Ascending positions of the rows that come last, as differences.
    last: &'a [u8],
    links: Vec<ManifestLink>,
    removed_files: Vec<FileId>,
    removed_links: Vec<RepoPath>,
}

pub(super) fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let mut rows: Vec<&ManifestFile> = manifest.files.iter().collect();
    if !rows.is_sorted_by_key(|row| &row.path) {
        rows.sort_unstable_by_key(|row| &row.path);
    }
    let (mut path_lengths, mut path_rests, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut mtimes, mut numbers, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let (mut before, mut mtime, mut number, mut last_at) = ("", 0i64, 0i64, 0u64);
    for (position, row) in (0u64..).zip(&rows) {
        let path = row.path.as_str();
        let shared = before.bytes().zip(path.bytes()).take_while(|(one, other)| one == other).count();
        put(&mut path_lengths, shared as u64);
        put(&mut path_lengths, (path.len() - shared) as u64);
        path_rests.extend_from_slice(&path.as_bytes()[shared..]);
        put(&mut sizes, row.size);
        put(&mut mtimes, zigzag(row.mtime.wrapping_sub(mtime)));
        put(&mut numbers, zigzag(i64::from(row.file.0) - number));
        if row.last {
            put(&mut last, position - last_at);
            last_at = position;
        }
        (before, mtime, number) = (path, row.mtime, i64::from(row.file.0));
    }
    let columns = Columns {
        sequence: manifest.sequence,
        base: manifest.base,
        files: rows.len() as u64,
        path_lengths: &path_lengths,
        path_rests: &path_rests,
        sizes: &sizes,
        mtimes: &mtimes,
        numbers: &numbers,
        last: &last,
        links: manifest.links.clone(),
        removed_files: manifest.removed_files.clone(),
        removed_links: manifest.removed_links.clone(),
    };
    let plain = postcard::to_stdvec(&columns).map_err(|_| ManifestError::Damaged)?;
    if plain.len().saturating_add(rows.len() * HASH_BYTES) > BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let frame = zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|_| ManifestError::Damaged)?;
    let mut wire = Vec::with_capacity(HEAD_BYTES + frame.len() + rows.len() * HASH_BYTES);
    wire.extend_from_slice(MAGIC);
    wire.extend_from_slice(&(plain.len() as u64).to_le_bytes());
    wire.extend_from_slice(&(frame.len() as u64).to_le_bytes());
    wire.extend_from_slice(&frame);
    for row in rows {
        wire.extend_from_slice(&row.content.0);
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
    let plain = zstd::bulk::decompress(frame, plain_bytes).map_err(|_| ManifestError::Damaged)?;
    let columns: Columns<'_> = postcard::from_bytes(&plain).map_err(|_| ManifestError::Damaged)?;
    let (hashes, none) = hashes.as_chunks::<HASH_BYTES>();
    if !none.is_empty() || hashes.len() as u64 != columns.files {
        return Err(ManifestError::Damaged);
    }
    let files = rows(&columns, hashes).ok_or(ManifestError::Damaged)?;
    Ok(Manifest {
        sequence: columns.sequence,
        base: columns.base,
        files,
        links: columns.links,
        removed_files: columns.removed_files,
        removed_links: columns.removed_links,
    })
}

/// The rows; `None` when the columns do not fit together.
fn rows(columns: &Columns<'_>, hashes: &[[u8; HASH_BYTES]]) -> Option<Vec<ManifestFile>> {
    let Columns { mut path_lengths, mut path_rests, mut sizes, mut mtimes, mut numbers, mut last, .. } =
        *columns;
    let mut files = Vec::with_capacity(hashes.len());
    let (mut path, mut mtime, mut number) = (String::new(), 0i64, 0i64);
    let mut next_last = if last.is_empty() { None } else { Some(take(&mut last)?) };
    for (position, hash) in (0u64..).zip(hashes) {
        let shared = usize::try_from(take(&mut path_lengths)?).ok()?;
        let more = usize::try_from(take(&mut path_lengths)?).ok()?;
        let (rest, others) = path_rests.split_at_checked(more)?;
        path_rests = others;
        // Front coding may cut a character in two: the bytes are checked when they are together.
        let mut bytes = std::mem::take(&mut path).into_bytes();
        if shared > bytes.len() {
            return None;
        }
        bytes.truncate(shared);
        bytes.extend_from_slice(rest);
        path = String::from_utf8(bytes).ok()?;
        mtime = mtime.wrapping_add(unzigzag(take(&mut mtimes)?));
        number = number.checked_add(unzigzag(take(&mut numbers)?))?;
        let is_last = next_last == Some(position);
        if is_last {
            next_last = if last.is_empty() { None } else { Some(position.checked_add(take(&mut last)?)?) };
        }
        files.push(ManifestFile {
            file: FileId(u32::try_from(number).ok()?),
            path: path.parse().ok()?,
            size: take(&mut sizes)?,
            mtime,
            content: ContentHash(*hash),
            last: is_last,
        });
    }
    let used =
        [path_lengths, path_rests, sizes, mtimes, numbers, last].iter().all(|column| column.is_empty());
    (used && next_last.is_none()).then_some(files)
}

fn length(bytes: &[u8]) -> Result<(usize, &[u8]), ManifestError> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(ManifestError::Damaged)?;
    Ok((usize::try_from(u64::from_le_bytes(*length)).map_err(|_| ManifestError::TooLarge)?, rest))
}

/// Seven bits to a byte, the lowest first.
fn put(column: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        column.push(number as u8 | 0x80);
        number >>= 7;
    }
    column.push(number as u8);
}

fn take(column: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = column.split_first()?;
        *column = rest;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
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
        assert_eq!(Manifest::decode(&wire).unwrap().files[1].path.as_str(), "x/\u{e5}");
    }

    #[test]
    fn columns_that_do_not_fit_together_are_refused() {
        let columns = |path_lengths: &[u8], last: &[u8]| {
            let columns = Columns {
                sequence: 1,
                base: None,
                files: 1,
                path_lengths,
                path_rests: b"a",
                sizes: &[1],
                mtimes: &[0],
                numbers: &[2],
                last,
                links: Vec::new(),
                removed_files: Vec::new(),
                removed_links: Vec::new(),
            };
            rows(&columns, &[[0; 32]]).is_some()
        };
        assert!(columns(&[0, 1], &[]));
        assert!(columns(&[0, 1], &[0]));
        for path_lengths in [&[1, 1][..], &[0, 2], &[0, 0], &[0], &[0, 1, 0], &[0x80]] {
            assert!(!columns(path_lengths, &[]), "{path_lengths:?}");
        }
        for last in [&[1][..], &[0, 1], &[0x80]] {
            assert!(!columns(&[0, 1], last), "{last:?}");
        }
    }

    proptest! {
        #[test]
        fn any_rows_are_read_back(paths in proptest::collection::btree_set("[a-c\u{e4}-\u{e6}]{1,4}(/[a-c]{1,3}){0,2}", 0..40)) {
            let manifest = manifest(&paths);
            prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        }

        #[test]
        fn varints_are_read_back(number: u64, signed: i64) {
            let mut column = Vec::new();
            put(&mut column, number);
            prop_assert_eq!(take(&mut &column[..]), Some(number));
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in any::<bool>()) {
            let mut wire = if keep { MAGIC.to_vec() } else { Vec::new() };
            wire.extend(bytes);
            prop_assert!(Manifest::decode(&wire).is_err());
        }
    }
}
