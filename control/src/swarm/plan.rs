//! Which contents of a new state the swarm copies, and in which packs and bundles. No I/O.

use std::collections::HashSet;
use std::sync::Arc;

use freshet_api::ContentHash;
use freshet_api::bundle::{OBJECT_BYTES_MAX, PACK_BYTES_MAX, PACKED_BELOW, PIECE_BYTES_MAX, PIECES_MAX};

use crate::catalog::Snapshot;

/// A content, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    /// A path that has it.
    pub(super) path: String,
    /// Its identity.
    pub(super) content: ContentHash,
    /// Bytes.
    pub(super) size: u64,
    /// The bytes themselves, if they were made here and are in no file of the repository: a recipe.
    pub(super) made: Option<Arc<[u8]>>,
}

/// An object to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A file's content as it is.
    Whole(Source),
    /// Small contents end to end.
    Pack(Vec<Source>),
}

impl Part {
    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Whole(source) => source.size,
            Self::Pack(members) => members.iter().map(|member| member.size).sum(),
        }
    }
}

/// The contents of `state` that no file up to number `known` has, by path; those in `again` too, whatever file has
/// them. Not those in `there`.
pub(super) fn new_contents(
    state: &Snapshot,
    known: u32,
    again: &HashSet<ContentHash>,
    there: &HashSet<ContentHash>,
) -> Vec<Source> {
    let mut seen = HashSet::new();
    let mut sources: Vec<Source> = state
        .iter()
        .filter(|entry| entry.size > 0 && !there.contains(&entry.checksums.blake3))
        .filter(|entry| {
            let content = &entry.checksums.blake3;
            // The file with the lowest number stands for the content.
            let first = || state.number_of_content(content).unwrap_or(entry.file);
            again.contains(content) || (entry.file.0 > known && first().0 > known)
        })
        .map(|entry| Source {
            path: entry.path.as_str().to_owned(),
            content: entry.checksums.blake3,
            size: entry.size,
            made: None,
        })
        .collect();
    // Of several paths the one that will be there again with the next version.
    sources.sort_unstable_by(|a, b| by_hash(&a.path).cmp(&by_hash(&b.path)).then_with(|| a.cmp(b)));
    sources.retain(|source| seen.insert(source.content));
    sources.sort_unstable();
    sources
}

/// Whether a file is named after its content, as apt's indexes are once more.
fn by_hash(path: &str) -> bool {
    path.contains("/by-hash/")
}

/// Puts small contents into packs, in the order of their paths and each of one collection only, as long as the packs
/// have no more than `packed_max` bytes in all; the others, and those beyond, are copied as they are. Contents too
/// large for any bundle are left out.
pub(super) fn parts(sources: Vec<Source>, packed_max: u64) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut pack: Vec<Source> = Vec::new();
    let (mut pack_bytes, mut packed) = (0u64, 0u64);
    let close = |pack: &mut Vec<Source>, parts: &mut Vec<Part>| {
        match pack.len() {
            0 => {}
            // Alone it needs no copy.
            1 => parts.extend(pack.pop().map(Part::Whole)),
            _ => parts.push(Part::Pack(std::mem::take(pack))),
        }
    };
    for source in sources {
        if source.size > OBJECT_BYTES_MAX {
            continue;
        }
        let other = pack.first().is_some_and(|first| collection(&first.path) != collection(&source.path));
        if other || pack_bytes + source.size > PACK_BYTES_MAX {
            close(&mut pack, &mut parts);
            pack_bytes = 0;
        }
        if source.size >= PACKED_BELOW || packed + source.size > packed_max {
            parts.push(Part::Whole(source));
            continue;
        }
        pack_bytes += source.size;
        packed += source.size;
        pack.push(source);
    }
    close(&mut pack, &mut parts);
    parts
}

/// Cuts parts into bundles of at most `bytes_max` bytes and as many pieces as one may have.
pub(super) fn bundles(parts: Vec<Part>, bytes_max: u64) -> Vec<Vec<Part>> {
    let mut bundles: Vec<Vec<Part>> = Vec::new();
    let (mut bytes, mut pieces) = (0u64, 0u64);
    for part in parts {
        let size = part.size();
        let its_pieces = size.div_ceil(u64::from(PIECE_BYTES_MAX));
        let fits = bytes + size <= bytes_max && pieces + its_pieces <= PIECES_MAX as u64;
        match bundles.last_mut() {
            Some(last) if fits => last.push(part),
            _ => {
                bundles.push(vec![part]);
                (bytes, pieces) = (0, 0);
            }
        }
        bytes += size;
        pieces += its_pieces;
    }
    bundles
}

/// The size of a bundle's pieces: what suits `peers` volunteers, and larger where there would be too many.
pub(super) fn piece_bytes(sizes: &[u64], peers: usize) -> u32 {
    let total = freshet_api::Bytes(sizes.iter().sum());
    let ideal = freshet_policy::swarm::piece_size(total, peers.max(PEERS_EXPECTED)).0;
    let mut bytes = u32::try_from(ideal).unwrap_or(PIECE_BYTES_MAX);
    let count = |bytes: u32| sizes.iter().map(|size| size.div_ceil(u64::from(bytes))).sum::<u64>();
    while bytes < PIECE_BYTES_MAX && count(bytes) > PIECES_MAX as u64 {
        bytes *= 2;
    }
    bytes
}

/// The part of the repository that a path belongs to: its first directory.
pub(crate) fn collection(path: &str) -> &str {
    path.split_once('/').map_or("", |(first, _)| first)
}

/// A bundle is cut for this many volunteers at least: more may come while it is copied.
const PEERS_EXPECTED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, size: u64) -> Source {
        Source {
            path: path.to_owned(),
            content: ContentHash::from(blake3::hash(path.as_bytes())),
            size,
            made: None,
        }
    }

    #[test]
    fn packs_are_of_one_collection_and_bounded() {
        let small = |path: &str| source(path, 200 << 10);
        let sources = vec![
            small("a/1"),
            small("a/2"),
            source("a/3", 1 << 20),
            small("a/4"),
            small("b/1"),
            small("c/1"),
            small("c/2"),
        ];
        let found = parts(sources.clone(), u64::MAX);
        let shape: Vec<(usize, u64)> = found
            .iter()
            .map(|part| match part {
                Part::Whole(source) => (0, source.size),
                Part::Pack(members) => (members.len(), part.size()),
            })
            .collect();
        assert_eq!(shape, [(0, 1 << 20), (3, 600 << 10), (0, 200 << 10), (2, 400 << 10)]);
        let unpacked = parts(sources, 250 << 10);
        assert!(unpacked.iter().all(|part| matches!(part, Part::Whole(_))));
        let many: Vec<Source> = (0..400).map(|n| small(&format!("a/{n:04}"))).collect();
        let packs = parts(many, u64::MAX);
        assert!(packs.len() == 3 && packs.iter().all(|pack| pack.size() <= PACK_BYTES_MAX));
    }

    #[test]
    fn bundles_keep_within_bytes_and_pieces() {
        let large = |n: u64| Part::Whole(source(&format!("x/{n}"), 100 << 20));
        let cut = bundles((0..10).map(large).collect(), 250 << 20);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [2; 5]);
        let tiny = |n: usize| Part::Whole(source(&format!("x/{n}"), 10));
        let cut = bundles((0..PIECES_MAX + 1).map(tiny).collect(), u64::MAX);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [PIECES_MAX, 1]);
        assert!(bundles(vec![large(1)], 1).len() == 1, "one that is larger than the bound stands alone");
    }

    #[test]
    fn the_grid_is_made_coarser_rather_than_too_long() {
        assert_eq!(piece_bytes(&[128 << 20], 20), 128 << 10);
        // Three pieces each at the size that suits the volunteers, and two at the next.
        let many = vec![66u64 << 10; PIECES_MAX / 2];
        assert_eq!(piece_bytes(&many, 16), 1 << 20);
        let few_bytes = vec![1u64; PIECES_MAX];
        assert_eq!(piece_bytes(&few_bytes, 16), 32 << 10);
    }
}
