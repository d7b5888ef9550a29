//! Who holds which file: from the volunteers' holdings to a few lists per thousand files, so that drawing one holder
//! of a hundred thousand costs a look at two or three of them.
//!
//! Files are looked at in blocks of [`BLOCK_FILES`] numbers. Who holds a good part of a block stands in one list for
//! all of it, and is asked for the file itself; who holds little of it stands in a list for each of those files. So a
//! file that only some volatile volunteers hold is found as soon as one that every mirror has. An index is immutable;
//! its [`HolderBook`] makes the next one beside the traffic from the blocks that changed.

use std::sync::Arc;

use freshet_api::{FileId, NodeId};
use roaring::RoaringBitmap;

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
        FileHolders { most: block.most.list(), few: block.few.list((file.0 & BLOCK_MASK) as usize) }
    }
}

/// Who may hold one file.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileHolders<'a> {
    most: List<'a>,
    few: List<'a>,
}

impl FileHolders<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        self.most.nodes.len() + self.few.nodes.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them, below [`FileHolders::len`].
    pub fn node(&self, index: usize) -> NodeId {
        let most = self.most.nodes;
        NodeId(if index < most.len() { most[index] } else { self.few.nodes[index - most.len()] })
    }

    /// One of them, drawn by `unit` (0 .. 1) in proportion to what they can send; `None` when nobody can.
    pub fn draw(&self, unit: f64) -> Option<usize> {
        let (most, few) = (self.most.total(), self.few.total());
        let point = (unit * f64::from(most + few)) as f32;
        if point < most {
            Some(self.most.at(point))
        } else if few > 0.0 {
            Some(self.most.nodes.len() + self.few.at(point - most))
        } else if most > 0.0 {
            // Rounded up to the end.
            Some(self.most.at(most))
        } else {
            None
        }
    }
}

/// Volunteers with the running sums of what they can send.
#[derive(Clone, Copy, Debug, Default)]
struct List<'a> {
    nodes: &'a [u32],
    sums: &'a [f32],
}

impl List<'_> {
    fn total(&self) -> f32 {
        self.sums.last().copied().unwrap_or(0.0)
    }

    /// In whose part `point` falls; whoever can send nothing has no part.
    fn at(&self, point: f32) -> usize {
        let index = self.sums.partition_point(|&sum| sum <= point);
        if index < self.sums.len() { index } else { self.sums.partition_point(|&sum| sum < self.total()) }
    }
}

#[derive(Debug, Default)]
struct Block {
    most: Ranked,
    few: Few,
}

/// One list for all files of a block.
#[derive(Clone, Debug, Default)]
struct Ranked {
    nodes: Arc<[u32]>,
    sums: Box<[f32]>,
}

impl Ranked {
    fn list(&self) -> List<'_> {
        List { nodes: &self.nodes, sums: &self.sums }
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
        List { nodes: &self.nodes[part.clone()], sums: &self.sums[part] }
    }
}

/// What the next index is made from.
#[derive(Debug, Default)]
pub(super) struct HolderBook {
    /// What each node holds as far as it was entered.
    known: Vec<Option<Arc<RoaringBitmap>>>,
    /// What each node can send.
    weights: Vec<f32>,
    /// By block, who holds something of it, in the order of their numbers.
    members: Vec<Vec<u32>>,
    /// Blocks to be made anew, or with other sums.
    changed: Vec<Change>,
    index: Arc<HolderIndex>,
    /// From where on sums are renewed next.
    renew_from: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    #[default]
    None,
    Sums,
    Members,
}

impl HolderBook {
    /// Enters what `node` holds.
    pub(super) fn hold(&mut self, node: NodeId, holdings: &Arc<RoaringBitmap>) {
        let place = node.0 as usize;
        if self.known.len() <= place {
            if holdings.is_empty() {
                return;
            }
            self.known.resize(place + 1, None);
        }
        let before = self.known[place].take();
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, holdings)) {
            self.known[place] = before;
            return;
        }
        let difference = match &before {
            Some(before) => before.as_ref() ^ holdings.as_ref(),
            None => holdings.as_ref().clone(),
        };
        for block in blocks_of(&difference) {
            if self.members.len() <= block {
                self.members.resize_with(block + 1, Vec::new);
                self.changed.resize(block + 1, Change::None);
            }
            let holds = holdings.range_cardinality(files_of(block)) > 0;
            let members = &mut self.members[block];
            match (members.binary_search(&node.0), holds) {
                (Err(position), true) => members.insert(position, node.0),
                (Ok(position), false) => {
                    members.remove(position);
                }
                (Ok(_), true) | (Err(_), false) => {}
            }
            self.changed[block] = Change::Members;
        }
        self.known[place] = (!holdings.is_empty()).then(|| Arc::clone(holdings));
    }

    /// Enters what `node` can send. Where it begins or ends, its blocks are summed anew with the next index.
    pub(super) fn weigh(&mut self, node: NodeId, weight: f32) {
        let place = node.0 as usize;
        if self.weights.len() <= place {
            if weight <= 0.0 {
                return;
            }
            self.weights.resize(place + 1, 0.0);
        }
        let before = std::mem::replace(&mut self.weights[place], weight);
        let Some(Some(holdings)) = self.known.get(place) else { return };
        if (before > 0.0) != (weight > 0.0) {
            for block in blocks_of(holdings) {
                self.changed[block] = self.changed[block].max(Change::Sums);
            }
        }
    }

    /// The index of all that was entered. A part of all sums, `1 / parts`, is renewed each time.
    pub(super) fn publish(&mut self, parts: usize) -> Arc<HolderIndex> {
        let count = self.members.len();
        let renewed = count.div_ceil(parts.max(1)).min(count);
        for step in 0..renewed {
            let block = (self.renew_from + step) % count;
            self.changed[block] = self.changed[block].max(Change::Sums);
        }
        self.renew_from = if count > 0 { (self.renew_from + renewed) % count } else { 0 };
        if self.changed.iter().all(|change| *change == Change::None) {
            return Arc::clone(&self.index);
        }
        let mut blocks = self.index.blocks.clone();
        blocks.resize_with(count, Arc::default);
        for (number, block) in blocks.iter_mut().enumerate() {
            match std::mem::take(&mut self.changed[number]) {
                Change::None => {}
                Change::Sums => *block = Arc::new(block.summed(&self.weights)),
                Change::Members => *block = Arc::new(self.block(number).summed(&self.weights)),
            }
        }
        self.index = Arc::new(HolderIndex { blocks });
        Arc::clone(&self.index)
    }

    /// A block without sums.
    fn block(&self, number: usize) -> Block {
        let members = &self.members[number];
        let holdings = |node: u32| self.known[node as usize].as_deref();
        let counts: Vec<u64> = members
            .iter()
            .map(|&node| holdings(node).map_or(0, |held| held.range_cardinality(files_of(number))))
            .collect();
        // How many files there are in a block, and not numbers of files that are gone, its best holder tells.
        let enough = counts.iter().max().copied().unwrap_or(0).div_ceil(MOST_PARTS);
        let (mut most, mut few) = (Vec::with_capacity(members.len()), Vec::new());
        for (&node, count) in members.iter().zip(counts) {
            if count >= enough {
                most.push(node);
            } else if let Some(held) = holdings(node) {
                few.extend(held.range(files_of(number)).map(|file| (file & BLOCK_MASK, node)));
            }
        }
        few.sort_unstable();
        let mut starts = Vec::new();
        if !few.is_empty() {
            starts.extend((0..=BLOCK_FILES).map(|file| few.partition_point(|entry| entry.0 < file) as u32));
        }
        let few = Few {
            starts: starts.into(),
            nodes: few.into_iter().map(|(_, node)| node).collect(),
            sums: Box::default(),
        };
        Block { most: Ranked { nodes: most.into(), sums: Box::default() }, few }
    }
}

impl Block {
    fn summed(&self, weights: &[f32]) -> Block {
        let sums = |nodes: &[u32]| {
            nodes
                .iter()
                .scan(0.0f32, |sum, &node| {
                    *sum += weights.get(node as usize).copied().unwrap_or(0.0);
                    Some(*sum)
                })
                .collect::<Vec<_>>()
        };
        let few = self
            .few
            .starts
            .windows(2)
            .flat_map(|part| sums(&self.few.nodes[part[0] as usize..part[1] as usize]));
        Block {
            few: Few { sums: few.collect(), ..self.few.clone() },
            most: Ranked { sums: sums(&self.most.nodes).into(), ..self.most.clone() },
        }
    }
}

/// The blocks in which something is held.
fn blocks_of(holdings: &RoaringBitmap) -> impl Iterator<Item = usize> + '_ {
    let mut files = holdings.iter();
    std::iter::from_fn(move || {
        let block = files.next()? >> BLOCK_BITS;
        if let Some(next) = (block + 1).checked_shl(BLOCK_BITS).filter(|_| block < u32::MAX >> BLOCK_BITS) {
            files.advance_to(next);
        } else {
            files.by_ref().for_each(drop);
        }
        Some(block as usize)
    })
}

fn files_of(block: usize) -> std::ops::RangeInclusive<u32> {
    let first = (block as u32) << BLOCK_BITS;
    first..=first + BLOCK_MASK
}

const BLOCK_BITS: u32 = 10;
const BLOCK_MASK: u32 = BLOCK_FILES - 1;
/// Numbers of files that are looked at together.
const BLOCK_FILES: u32 = 1 << BLOCK_BITS;
/// Who holds this part of what the best holder of a block has, one in so many, stands in the list for all of it.
const MOST_PARTS: u64 = 4;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn held(files: impl IntoIterator<Item = u32>) -> Arc<RoaringBitmap> {
        Arc::new(files.into_iter().collect())
    }

    fn nodes(index: &HolderIndex, file: u32) -> Vec<u32> {
        let holders = index.of(FileId(file));
        (0..holders.len()).map(|place| holders.node(place).0).collect()
    }

    #[test]
    fn a_file_of_few_is_found_among_many_that_lack_it() {
        let mut book = HolderBook::default();
        for node in 0..100 {
            book.hold(NodeId(node), &held(0..1000));
        }
        book.hold(NodeId(200), &held([1001]));
        book.hold(NodeId(201), &held([1001, 5000]));
        let index = book.publish(1);
        assert_eq!(nodes(&index, 5).len(), 100);
        assert_eq!(nodes(&index, 1001)[100..], [200, 201]);
        assert_eq!(nodes(&index, 5000), [201]);
        assert!(nodes(&index, 1 << 30).is_empty());
        book.hold(NodeId(201), &held([]));
        let index = book.publish(1);
        assert!(nodes(&index, 5000).is_empty());
        assert_eq!(nodes(&index, 1001)[100..], [200]);
    }

    #[test]
    fn holders_are_drawn_in_proportion_to_what_they_send() {
        let mut book = HolderBook::default();
        for node in 1..=3 {
            book.hold(NodeId(node), &held(0..2000));
        }
        book.hold(NodeId(4), &held([7]));
        for (node, weight) in [(1, 1.0), (2, 0.0), (3, 3.0), (4, 4.0)] {
            book.weigh(NodeId(node), weight);
        }
        let index = book.publish(1);
        let holders = index.of(FileId(7));
        let mut counts = [0; 5];
        for step in 0..8_000 {
            let place = holders.draw(f64::from(step) / 8_000.0).unwrap();
            counts[holders.node(place).0 as usize] += 1;
        }
        assert_eq!(counts, [0, 1_000, 0, 3_000, 4_000]);
        assert_eq!(
            index.of(FileId(8)).draw(0.999_999_999).map(|place| index.of(FileId(8)).node(place)),
            Some(NodeId(3))
        );
        for node in [1, 3, 4] {
            book.weigh(NodeId(node), 0.0);
        }
        let index = book.publish(1_000_000);
        assert_eq!(index.of(FileId(7)).draw(0.5), None);
    }

    #[test]
    fn the_last_block_of_all_has_an_end() {
        let mut book = HolderBook::default();
        book.hold(NodeId(1), &held([3, u32::MAX - 1, u32::MAX]));
        assert_eq!(blocks_of(&held([3, u32::MAX - 1, u32::MAX])).count(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever comes and goes, everybody who holds a file is named for it, once.
        #[test]
        fn every_holder_is_found(
            steps in proptest::collection::vec((0u32..6, proptest::collection::btree_set(0u32..4000, 0..60), any::<bool>()), 1..12)
        ) {
            let mut book = HolderBook::default();
            let mut truth: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); 6];
            for (node, files, much) in steps {
                let files: BTreeSet<u32> = if much { (0..2500).chain(files).collect() } else { files };
                book.hold(NodeId(node), &held(files.iter().copied()));
                truth[node as usize] = files;
                let index = book.publish(2);
                for file in (0..4000).step_by(37).chain(truth.iter().flatten().copied().take(200)) {
                    let found = nodes(&index, file);
                    let distinct: BTreeSet<u32> = found.iter().copied().collect();
                    prop_assert_eq!(found.len(), distinct.len());
                    for (node, files) in truth.iter().enumerate() {
                        prop_assert!(!files.contains(&file) || distinct.contains(&(node as u32)));
                    }
                }
            }
        }
    }
}
