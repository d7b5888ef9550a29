//! How much of a file is found in an older version of it, block by block: rsync's algorithm (Tridgell and Mackerras,
//! "The rsync algorithm", 1996). Blocks of the old version lie on a grid, and are looked for at every byte of the new.

use std::collections::HashMap;

/// Bytes of `new` that blocks of `old` with `block` bytes each make up.
pub(super) fn found(old: &[u8], new: &[u8], block: usize) -> u64 {
    let block = block.max(1);
    let mut blocks: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut seen = vec![false; FILTER];
    for (number, content) in (0u32..).zip(old.chunks_exact(block)) {
        let sum = Sum::of(content).value();
        let alike = blocks.entry(sum).or_default();
        let known = |&known: &u32| slice(old, known, block) == content;
        if alike.len() < ALIKE_MAX && !alike.iter().any(known) {
            alike.push(number);
            seen[filtered(sum)] = true;
        }
    }
    let is_block = |sum: u32, content: &[u8]| {
        seen[filtered(sum)]
            && blocks.get(&sum).is_some_and(|alike| alike.iter().any(|&n| slice(old, n, block) == content))
    };
    // `matched` is where the last match ended.
    let (mut at, mut matched, mut total) = (0, 0, 0);
    let mut sum: Option<Sum> = None;
    while at + block <= new.len() {
        let window = &new[at..at + block];
        let here = sum.unwrap_or_else(|| Sum::of(window));
        if is_block(here.value(), window) {
            total += block as u64;
            at += block;
            matched = at;
            sum = None;
        } else {
            sum = new.get(at + block).map(|&next| here.rolled(window[0], next, block));
            at += 1;
        }
    }
    // The last block of the old version is shorter, and matches the end of the new or nothing.
    let tail = old.chunks_exact(block).remainder();
    if !tail.is_empty() && new[matched..].ends_with(tail) {
        total += tail.len() as u64;
    }
    total
}

/// The block size that rsync takes for a file: about the square root of its size.
pub(super) fn rsync_block(size: u64) -> usize {
    let root = (size as f64).sqrt() as usize;
    (root / 8 * 8).clamp(700, 131_072)
}

/// Two sums that follow a window as it moves by a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    bytes: u32,
    weighted: u32,
}

impl Sum {
    fn of(window: &[u8]) -> Self {
        let mut sum = Self { bytes: 0, weighted: 0 };
        for &byte in window {
            sum.bytes = sum.bytes.wrapping_add(u32::from(byte));
            sum.weighted = sum.weighted.wrapping_add(sum.bytes);
        }
        sum
    }

    fn rolled(self, out: u8, next: u8, block: usize) -> Self {
        let bytes = self.bytes.wrapping_sub(u32::from(out)).wrapping_add(u32::from(next));
        let left = self.weighted.wrapping_sub(u32::from(out).wrapping_mul(block as u32));
        Self { bytes, weighted: left.wrapping_add(bytes) }
    }

    fn value(self) -> u32 {
        self.bytes & 0xffff | self.weighted << 16
    }
}

fn slice(old: &[u8], number: u32, block: usize) -> &[u8] {
    let start = number as usize * block;
    &old[start..start + block]
}

fn filtered(sum: u32) -> usize {
    (sum ^ sum >> 13) as usize % FILTER
}

/// Most bytes of a new version are no block's beginning: this tells without a look into the map.
const FILTER: usize = 1 << 22;

/// Different blocks of the same sum that are compared.
const ALIKE_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use freshet_policy::draw::Draw;
    use proptest::prelude::*;

    use super::*;

    fn bytes(count: usize, seed: u64) -> Vec<u8> {
        let mut draw = Draw::new(seed);
        (0..count).map(|_| draw.below(256) as u8).collect()
    }

    #[test]
    fn what_moved_is_found_and_what_is_new_is_not() {
        let old = bytes(100_000, 1);
        for block in [700, 1_024, 4_096] {
            assert_eq!(found(&old, &old, block), 100_000, "{block}");
            assert_eq!(found(&old, &bytes(100_000, 2), block), 0);
            let mut shifted = bytes(333, 3);
            shifted.extend_from_slice(&old);
            assert_eq!(found(&old, &shifted, block), 100_000, "{block}");
            let mut changed = old.clone();
            changed[50_000] ^= 1;
            let left = 100_000 - found(&old, &changed, block);
            assert_eq!(left, block as u64, "one block is lost");
        }
    }

    #[test]
    fn the_block_is_rsyncs() {
        assert_eq!((rsync_block(100), rsync_block(1 << 20), rsync_block(1 << 40)), (700, 1_024, 131_072));
    }

    proptest! {
        #[test]
        fn a_rolled_sum_is_the_sum(data in proptest::collection::vec(any::<u8>(), 20..200), block in 1usize..19) {
            let mut sum = Sum::of(&data[..block]);
            for at in 1..data.len() - block {
                sum = sum.rolled(data[at - 1], data[at + block - 1], block);
                prop_assert_eq!(sum, Sum::of(&data[at..at + block]));
            }
        }

        #[test]
        fn never_more_is_found_than_there_is(old in proptest::collection::vec(0u8..3, 0..400), new in proptest::collection::vec(0u8..3, 0..400), block in 1usize..40) {
            prop_assert!(found(&old, &new, block) <= new.len() as u64);
        }
    }
}
