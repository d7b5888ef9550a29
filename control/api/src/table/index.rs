//! A map from 64-bit hashes to row numbers, of which a changed copy shares all but the changed shards.
//!
//! It holds 8 bytes per row and no key: the caller compares the key in the row that the number leads to.

use super::leaves::Leaves;

/// Sharded, copy-on-write; several numbers under one hash are kept side by side.
#[derive(Clone, Debug)]
pub(super) struct Index {
    shards: Leaves<Vec<Slot>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    tag: u32,
    number: u32,
}

impl Index {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { shards: Leaves::empty(SHARDS) }
    }

    /// All numbers that were put under this hash, lowest first.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        let (shard, tag) = place(hash);
        let slots = self.shards.get(shard).map(Vec::as_slice).unwrap_or_default();
        let start = first_from(slots, tag);
        slots[start..].iter().take_while(move |slot| slot.tag == tag).map(|slot| slot.number)
    }

    /// Puts a number under a hash.
    pub(super) fn insert(&mut self, hash: u64, number: u32) {
        let (shard, tag) = place(hash);
        let Some(slots) = self.shards.get_mut(shard) else { return };
        let slot = Slot { tag, number };
        if let Err(position) = slots.binary_search(&slot) {
            if slots.len() == slots.capacity() {
                // Doubling would leave a quarter of the memory unused.
                slots.reserve_exact(slots.len() / 16 + 4);
            }
            slots.insert(position, slot);
        }
    }

    /// Puts many numbers under their hashes, in a fraction of the time that one by one takes. Returns those of them
    /// that share their hash with others, old or new, by all that is kept of it.
    pub(super) fn extend(&mut self, new: &[(u64, u32)]) -> Vec<u32> {
        let mut alike = Vec::new();
        let (new, ends) = by_shard(new);
        let mut start = 0;
        for (shard, end) in ends.into_iter().enumerate() {
            let run = &new[std::mem::replace(&mut start, end)..end];
            if run.is_empty() {
                continue;
            }
            let Some(slots) = self.shards.get_mut(shard) else { continue };
            *slots = merged(slots, run);
            let mut slots = slots.as_slice();
            for slot in run {
                slots = &slots[slots.iter().position(|found| found.tag == slot.tag).unwrap_or(0)..];
                if slots.get(1).is_some_and(|next| next.tag == slot.tag) {
                    alike.push(slot.number);
                }
            }
        }
        alike
    }

    /// Takes a number away from a hash.
    pub(super) fn remove(&mut self, hash: u64, number: u32) {
        let (shard, tag) = place(hash);
        let Some(slots) = self.shards.get_mut(shard) else { return };
        if let Ok(position) = slots.binary_search(&Slot { tag, number }) {
            slots.remove(position);
        }
    }
}

/// The first slot with this tag or a higher one. Tags are evenly spread, so that it stands near where its value says:
/// a line of the cache or two are read, a binary search reads four.
fn first_from(slots: &[Slot], tag: u32) -> usize {
    let guess = (slots.len() as u64 * u64::from(tag)) >> 32;
    let mut at = usize::try_from(guess).unwrap_or(0);
    let mut step = NEAR;
    // What stands much further off than chance explains (many numbers under one hash) is searched in leaps.
    while at > 0 && slots[at - 1].tag >= tag {
        at = at.saturating_sub(step);
        step *= 2;
    }
    let mut low = at;
    step = NEAR;
    while low + step < slots.len() && slots[low + step].tag < tag {
        low += step;
        step *= 2;
    }
    let high = (low + step + 1).min(slots.len());
    low + slots[low..high].partition_point(|slot| slot.tag < tag)
}

/// By shards, ascending within each; and where each shard's end. Counted and put in place, which many numbers take
/// better than sorting.
fn by_shard(new: &[(u64, u32)]) -> (Vec<Slot>, Vec<usize>) {
    let mut ends = vec![0; SHARDS];
    for &(hash, _) in new {
        ends[place(hash).0] += 1;
    }
    let mut before = 0;
    for end in &mut ends {
        // For now where the next one goes.
        before += std::mem::replace(end, before);
    }
    let mut slots = vec![Slot { tag: 0, number: 0 }; new.len()];
    for &(hash, number) in new {
        let (shard, tag) = place(hash);
        slots[ends[shard]] = Slot { tag, number };
        ends[shard] += 1;
    }
    let mut start = 0;
    for &end in &ends {
        slots[start..end].sort_unstable_by_key(|slot| u64::from(slot.tag) << 32 | u64::from(slot.number));
        start = end;
    }
    (slots, ends)
}

/// Two ascending runs as one, each slot once.
fn merged<'a>(mut one: &'a [Slot], mut other: &'a [Slot]) -> Vec<Slot> {
    let mut all = Vec::with_capacity(one.len() + other.len());
    while let (Some(first), Some(second)) = (one.first(), other.first()) {
        let from = if second < first { &mut other } else { &mut one };
        all.push(from[0]);
        *from = &from[1..];
    }
    all.extend_from_slice(one);
    all.extend_from_slice(other);
    all.dedup();
    all
}

fn place(hash: u64) -> (usize, u32) {
    ((hash >> (64 - SHARD_BITS)) as usize, hash as u32)
}

/// Slots that are looked at around the guess before it leaps: about as far off as chance brings it.
const NEAR: usize = 8;

/// 4,096 shards: about 540 slots (4 KiB) each at 2.2 million rows, so that one change copies little.
const SHARD_BITS: u32 = 12;
const SHARDS: usize = 1 << SHARD_BITS;

#[cfg(test)]
mod tests {
    use super::*;

    fn found(index: &Index, hash: u64) -> Vec<u32> {
        index.candidates(hash).collect()
    }

    #[test]
    fn numbers_under_one_hash_live_side_by_side_and_a_copy_is_untouched() {
        let mut index = Index::new();
        index.insert(7, 3);
        index.insert(7, 1);
        index.insert(7 | 1 << 60, 9);
        let before = index.clone();
        index.remove(7, 1);
        index.remove(7, 42);
        assert_eq!(found(&index, 7), [3]);
        assert_eq!(found(&before, 7), [1, 3]);
        assert_eq!(found(&before, 7 | 1 << 60), [9]);
        assert!(found(&before, 8).is_empty());
    }

    #[test]
    fn many_at_once_are_as_many_one_by_one() {
        let hashes: Vec<(u64, u32)> =
            (0..5_000u32).map(|n| (u64::from(n % 1_700).wrapping_mul(0x9e37_79b9_7f4a_7c15), n)).collect();
        let (mut one, mut other) = (Index::new(), Index::new());
        hashes.iter().for_each(|&(hash, number)| one.insert(hash, number));
        assert!(other.extend(&hashes[..900]).is_empty());
        let alike = other.extend(&hashes[800..]);
        assert_eq!(alike.len(), 4_200, "every hash has several numbers then");
        for (hash, _) in hashes {
            assert_eq!(found(&one, hash), found(&other, hash));
        }
    }
}
