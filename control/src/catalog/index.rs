//! A map from 64-bit hashes to file numbers, of which a changed copy shares all but the changed shards.
//!
//! It holds 8 bytes per file and no key: the caller compares the key in the row that the number leads to.

use std::sync::Arc;

use freshet_api::FileId;

/// Sharded, copy-on-write; several numbers under one hash are kept side by side.
#[derive(Clone, Debug)]
pub(super) struct Index {
    shards: Vec<Arc<Vec<Slot>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    tag: u32,
    file: FileId,
}

impl Index {
    /// An empty one.
    pub(super) fn new() -> Self {
        let empty = Arc::default();
        Self { shards: vec![empty; SHARDS] }
    }

    /// All numbers that were put under this hash, lowest first.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = FileId> + '_ {
        let (shard, tag) = place(hash);
        let slots = &self.shards[shard];
        let start = slots.partition_point(|slot| slot.tag < tag);
        slots[start..].iter().take_while(move |slot| slot.tag == tag).map(|slot| slot.file)
    }

    /// Puts a number under a hash.
    pub(super) fn insert(&mut self, hash: u64, file: FileId) {
        let (shard, tag) = place(hash);
        let slots = Arc::make_mut(&mut self.shards[shard]);
        let slot = Slot { tag, file };
        if let Err(position) = slots.binary_search(&slot) {
            slots.insert(position, slot);
        }
    }

    /// Takes a number away from a hash.
    pub(super) fn remove(&mut self, hash: u64, file: FileId) {
        let (shard, tag) = place(hash);
        let slots = Arc::make_mut(&mut self.shards[shard]);
        if let Ok(position) = slots.binary_search(&Slot { tag, file }) {
            slots.remove(position);
        }
    }
}

fn place(hash: u64) -> (usize, u32) {
    ((hash >> (64 - SHARD_BITS)) as usize, hash as u32)
}

/// 4,096 shards: about 540 slots (4 KiB) each at 2.2 million files, so that one change copies little.
const SHARD_BITS: u32 = 12;
const SHARDS: usize = 1 << SHARD_BITS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_under_one_hash_live_side_by_side_and_a_copy_is_untouched() {
        let mut index = Index::new();
        index.insert(7, FileId(3));
        index.insert(7, FileId(1));
        index.insert(7 | 1 << 60, FileId(9));
        let before = index.clone();
        index.remove(7, FileId(1));
        index.remove(7, FileId(42));
        assert_eq!(index.candidates(7).collect::<Vec<_>>(), [FileId(3)]);
        assert_eq!(before.candidates(7).collect::<Vec<_>>(), [FileId(1), FileId(3)]);
        assert_eq!(before.candidates(7 | 1 << 60).collect::<Vec<_>>(), [FileId(9)]);
        assert_eq!(before.candidates(8).count(), 0);
    }
}
