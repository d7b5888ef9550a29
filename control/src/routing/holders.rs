//! Who holds which file: from the volunteers' holdings to a few lists per thousand files, so that drawing one holder
//! of a hundred thousand costs a look at one line of one list.
//!
//! Files are looked at in blocks of [`BLOCK_FILES`] numbers. Volunteers hold whole directories, so that many hold the same
//! files of a block: each such cohort stands in one list, and which cohorts hold a file is read from a row of bits. Of
//! those that are left, who holds a good part of a block stands in one list for all of it, and is asked for the file
//! itself; who holds little of it stands in a list for each of those files. So a file that only some volatile volunteers
//! hold is found as soon as one that every mirror has. An index is immutable; its [`HolderBook`] makes the next one beside
//! the traffic from the blocks that changed.

mod book;

use std::sync::Arc;

use freshet_api::{FileId, NodeId};

pub(super) use self::book::HolderBook;

/// Who holds what, at one moment.
#[derive(Clone, Debug, Default)]
pub struct HolderIndex {
    blocks: Vec<Arc<Block>>,
}

impl HolderIndex {
    /// Those who may hold `file`: everybody who does, and perhaps others that hold much of its neighbourhood.
    pub fn of(&self, file: FileId) -> FileHolders<'_> {
        let Some(block) = self.blocks.get((file.0 >> BLOCK_BITS) as usize) else {
            return FileHolders::default();
        };
        let place = (file.0 & BLOCK_MASK) as usize;
        FileHolders {
            cohorts: &block.cohorts,
            holding: block.holding.get(place).copied().unwrap_or(0),
            few: block.few.list(place),
            most: block.most.list(),
        }
    }
}

/// Who may hold one file.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileHolders<'a> {
    cohorts: &'a [Ranked],
    /// By cohort, a bit: whether it holds the file.
    holding: u16,
    few: List<'a>,
    /// The only ones who may lack it.
    most: List<'a>,
}

impl<'a> FileHolders<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.lists().map(|list| list.nodes.len()).sum()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them, below [`FileHolders::len`].
    pub fn node(&self, index: usize) -> NodeId {
        let mut index = index;
        for list in self.lists() {
            match list.nodes.get(index) {
                Some(&node) => return NodeId(node),
                None => index -= list.nodes.len(),
            }
        }
        unreachable!("expected a place below the number of holders")
    }

    /// Whether the one at `index` surely holds the file; otherwise it must be asked.
    pub fn is_certain(&self, index: usize) -> bool {
        self.most.nodes.is_empty() || index < self.len() - self.most.nodes.len()
    }

    /// One of them, drawn by `unit` (0 .. 1) in proportion to what they can send; `None` when nobody can.
    pub fn draw(&self, unit: f64) -> Option<usize> {
        let total: f32 = self.lists().map(|list| list.total).sum();
        let mut point = (unit * f64::from(total)) as f32;
        let (mut begin, mut last) = (0, None);
        for list in self.lists() {
            if point < list.total {
                return Some(begin + list.at(point));
            }
            if list.total > 0.0 {
                last = Some((begin, list));
            }
            point -= list.total;
            begin += list.nodes.len();
        }
        // Rounded up to the end.
        last.map(|(begin, list)| begin + list.at(list.total))
    }

    fn lists(&self) -> impl Iterator<Item = List<'a>> + use<'a> {
        let (cohorts, mut left) = (self.cohorts, self.holding);
        let holding = std::iter::from_fn(move || {
            let number = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            cohorts.get(number).map(Ranked::list)
        });
        holding.chain([self.few, self.most])
    }
}

/// Volunteers with the running sums of what they can send.
#[derive(Clone, Copy, Debug, Default)]
struct List<'a> {
    nodes: &'a [u32],
    sums: &'a [f32],
    total: f32,
}

impl List<'_> {
    /// In whose part `point` falls; whoever can send nothing has no part.
    fn at(&self, point: f32) -> usize {
        let index = first_above(self.sums, point, self.total);
        if index < self.sums.len() { index } else { self.sums.partition_point(|&sum| sum < self.total) }
    }
}

/// The first of these running sums that is above `point`. It stands near where it would if all could send the same: a
/// line of the cache or two are read, a binary search reads one at each of its steps.
fn first_above(sums: &[f32], point: f32, total: f32) -> usize {
    let count = sums.len();
    let guess = ((point / total * count as f32) as usize).min(count.saturating_sub(1));
    let mut step = NEAR;
    let (mut low, mut high) = (guess, guess);
    if sums.get(guess).is_some_and(|&sum| sum > point) {
        low = low.saturating_sub(step);
        while low > 0 && sums[low - 1] > point {
            high = low - 1;
            step *= 2;
            low = high.saturating_sub(step);
        }
    } else {
        high = (high + step).min(count);
        while high < count && sums[high - 1] <= point {
            low = high;
            step *= 2;
            high = (high + step).min(count);
        }
    }
    low + sums[low..high].partition_point(|&sum| sum <= point)
}

#[derive(Debug, Default)]
struct Block {
    /// Those that hold the same of the block.
    cohorts: Box<[Ranked]>,
    /// By file, which cohorts hold it; empty when there are none.
    holding: Arc<[u16]>,
    most: Ranked,
    few: Few,
}

/// One list for all files of a block.
#[derive(Clone, Debug, Default)]
struct Ranked {
    nodes: Arc<[u32]>,
    sums: Box<[f32]>,
    total: f32,
}

impl Ranked {
    fn list(&self) -> List<'_> {
        List { nodes: &self.nodes, sums: &self.sums, total: self.total }
    }
}

/// A list for each file of a block.
#[derive(Clone, Debug, Default)]
struct Few {
    /// Where each file's list begins, and the last one ends; empty when there are none.
    starts: Arc<[u32]>,
    nodes: Arc<[u32]>,
    /// Running within each list.
    sums: Box<[f32]>,
}

impl Few {
    fn list(&self, file: usize) -> List<'_> {
        let Some(&[start, end]) = self.starts.get(file..file + 2) else { return List::default() };
        let part = start as usize..end as usize;
        let sums = &self.sums[part.clone()];
        List { nodes: &self.nodes[part], sums, total: sums.last().copied().unwrap_or(0.0) }
    }
}

const BLOCK_BITS: u32 = 10;
const BLOCK_MASK: u32 = BLOCK_FILES - 1;
/// Numbers of files that are looked at together.
const BLOCK_FILES: u32 = 1 << BLOCK_BITS;
/// Cohorts of a block, at most; a bit of [`FileHolders`] each.
const COHORTS_MAX: usize = 16;
/// Sums that are looked at around the guess before it leaps.
const NEAR: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The guess finds what a search would.
        #[test]
        fn a_point_falls_in_the_part_that_a_search_finds(
            rates in proptest::collection::vec(prop_oneof![Just(0.0f32), 1.0f32..10.0, Just(1e6)], 1..400),
            unit in 0.0f32..1.0,
        ) {
            let sums: Vec<f32> = rates
                .iter()
                .scan(0.0, |sum, rate| {
                    *sum += rate;
                    Some(*sum)
                })
                .collect();
            let total = sums[sums.len() - 1];
            for point in [0.0, total * unit, total, sums[sums.len() / 2]] {
                let wanted = sums.partition_point(|&sum| sum <= point);
                prop_assert_eq!(first_above(&sums, point, total), wanted);
            }
        }
    }
}
