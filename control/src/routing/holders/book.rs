//! What the next index of holders is made from: who holds what of each block, and what everybody can send. No I/O.

use std::sync::Arc;

use freshet_api::NodeId;
use roaring::RoaringBitmap;

use super::{BLOCK_BITS, BLOCK_FILES, BLOCK_MASK, Block, COHORTS_MAX, Few, HolderIndex, Ranked};

/// What the next index is made from.
#[derive(Debug, Default)]
pub(in crate::routing) struct HolderBook {
    /// What each node holds as far as it was entered.
    known: Vec<Option<Arc<RoaringBitmap>>>,
    /// What each node can send.
    weights: Vec<f32>,
    /// By block, who holds something of it.
    members: Vec<Members>,
    /// Blocks to be made anew, or with other sums.
    changed: Vec<Change>,
    index: Arc<HolderIndex>,
    /// From where on sums are renewed next.
    renew_from: usize,
}

/// Which files of a block somebody holds, a bit each.
type Files = [u64; WORDS];

/// Who holds something of a block.
#[derive(Debug, Default)]
struct Members {
    /// In the order of their numbers, with which of `sets` they hold; [`UNNAMED`] for one that stands there not.
    nodes: Vec<(u32, u16)>,
    /// The different sets that are held, with how many hold each; up to [`SETS_MAX`].
    sets: Vec<(Files, u32)>,
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
    pub(in crate::routing) fn hold(&mut self, node: NodeId, holdings: &Arc<RoaringBitmap>) {
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
                self.members.resize_with(block + 1, Members::default);
                self.changed.resize(block + 1, Change::None);
            }
            self.members[block].set(node.0, &files_held(holdings, block));
            self.changed[block] = Change::Members;
        }
        self.known[place] = (!holdings.is_empty()).then(|| Arc::clone(holdings));
    }

    /// Enters what `node` can send. Where it begins or ends, its blocks are summed anew with the next index.
    pub(in crate::routing) fn weigh(&mut self, node: NodeId, weight: f32) {
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
    pub(in crate::routing) fn publish(&mut self, parts: usize) -> Arc<HolderIndex> {
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
        let Members { nodes, sets } = &self.members[number];
        let unnamed = |node: u32| self.known[node as usize].as_deref();
        let sizes: Vec<u64> = sets.iter().map(|(files, holders)| size_of_set(files, *holders)).collect();
        let count = |&(node, set): &(u32, u16)| match sizes.get(usize::from(set)) {
            Some(&size) => size,
            None => unnamed(node).map_or(0, |held| held.range_cardinality(files_of(number))),
        };
        // How many files there are in a block, and not numbers of files that are gone, its best holder tells.
        let enough = nodes.iter().map(count).max().unwrap_or(0).div_ceil(MOST_PARTS);
        let mut cohorts: Vec<u16> =
            (0u16..).zip(&sizes).filter(|(_, size)| **size > 0).map(|(set, _)| set).collect();
        // Those that spare the most entries in the other lists.
        let spares = |set: u16| sizes[usize::from(set)] * u64::from(sets[usize::from(set)].1);
        cohorts.sort_by_key(|&set| std::cmp::Reverse(spares(set)));
        cohorts.truncate(COHORTS_MAX);
        let mut lists = vec![Vec::new(); cohorts.len()];
        let (mut most, mut few) = (Vec::new(), Vec::new());
        for member in nodes {
            let &(node, set) = member;
            if let Some(cohort) = cohorts.iter().position(|&other| other == set) {
                lists[cohort].push(node);
            } else if count(member) >= enough {
                most.push(node);
            } else if let Some((files, _)) = sets.get(usize::from(set)) {
                few.extend(numbers_in(files).map(|file| (file, node)));
            } else if let Some(held) = unnamed(node) {
                few.extend(held.range(files_of(number)).map(|file| (file & BLOCK_MASK, node)));
            }
        }
        let mut holding = Vec::new();
        if !cohorts.is_empty() {
            holding.resize(BLOCK_FILES as usize, 0u16);
            for (cohort, &set) in cohorts.iter().enumerate() {
                numbers_in(&sets[usize::from(set)].0).for_each(|file| holding[file as usize] |= 1 << cohort);
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
        let list = |nodes: Vec<u32>| Ranked { nodes: nodes.into(), ..Ranked::default() };
        let cohorts = lists.into_iter().map(list).collect();
        Block { cohorts, holding: holding.into(), most: list(most), few }
    }
}

impl Members {
    /// `node` holds these files of the block now.
    fn set(&mut self, node: u32, files: &Files) {
        let position = self.nodes.binary_search_by_key(&node, |member| member.0);
        if let Ok(position) = position
            && let Some(set) = self.sets.get_mut(usize::from(self.nodes[position].1))
        {
            set.1 -= 1;
        }
        if files.iter().all(|word| *word == 0) {
            if let Ok(position) = position {
                self.nodes.remove(position);
            }
            return;
        }
        let set = self.name(files);
        match position {
            Ok(position) => self.nodes[position].1 = set,
            Err(position) => self.nodes.insert(position, (node, set)),
        }
    }

    /// The number of a set that one more holds.
    fn name(&mut self, files: &Files) -> u16 {
        let known = self.sets.iter().position(|(other, holders)| *holders > 0 && other == files);
        let free = || self.sets.iter().position(|(_, holders)| *holders == 0);
        let place = match known.or_else(free) {
            Some(place) => place,
            None if self.sets.len() < SETS_MAX => {
                self.sets.push((*files, 0));
                self.sets.len() - 1
            }
            None => return UNNAMED,
        };
        let (set, holders) = &mut self.sets[place];
        *set = *files;
        *holders += 1;
        u16::try_from(place).unwrap_or(UNNAMED)
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
        let ranked = |list: &Ranked| {
            let sums = sums(&list.nodes);
            let total = sums.last().copied().unwrap_or(0.0);
            Ranked { nodes: Arc::clone(&list.nodes), sums: sums.into(), total }
        };
        let few = self
            .few
            .starts
            .windows(2)
            .flat_map(|part| sums(&self.few.nodes[part[0] as usize..part[1] as usize]));
        Block {
            cohorts: self.cohorts.iter().map(ranked).collect(),
            holding: Arc::clone(&self.holding),
            most: ranked(&self.most),
            few: Few { sums: few.collect(), ..self.few.clone() },
        }
    }
}

/// Files in a set that somebody holds.
fn size_of_set(files: &Files, holders: u32) -> u64 {
    if holders == 0 { 0 } else { files.iter().map(|word| u64::from(word.count_ones())).sum() }
}

/// What of a block is held.
fn files_held(holdings: &RoaringBitmap, block: usize) -> Files {
    let mut files = [0; WORDS];
    let mut held = holdings.range(files_of(block));
    while let Some(run) = held.next_range() {
        let (first, last) = (run.start() & BLOCK_MASK, run.end() & BLOCK_MASK);
        for word in first / 64..=last / 64 {
            let from = first.saturating_sub(word * 64);
            let until = (last - word * 64).min(63);
            files[word as usize] |= (u64::MAX << from) & (u64::MAX >> (63 - until));
        }
    }
    files
}

/// The numbers within the block, in order.
fn numbers_in(files: &Files) -> impl Iterator<Item = u32> + '_ {
    (0u32..).step_by(64).zip(files).flat_map(|(first, &word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (bit < 64).then_some(first + bit)
        })
    })
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

const WORDS: usize = BLOCK_FILES as usize / 64;
/// Different sets of one block that are told apart (8 KiB); whoever holds another one is asked.
const SETS_MAX: usize = 64;
const UNNAMED: u16 = u16::MAX;
/// Who holds this part of what the best holder of a block has, one in so many, stands in a list for all of it.
const MOST_PARTS: u64 = 4;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use freshet_api::FileId;
    use proptest::prelude::*;

    use super::*;

    fn held(files: impl IntoIterator<Item = u32>) -> Arc<RoaringBitmap> {
        Arc::new(files.into_iter().collect())
    }

    fn nodes(index: &HolderIndex, file: u32) -> Vec<u32> {
        let holders = index.of(FileId(file));
        let mut nodes: Vec<u32> = (0..holders.len()).map(|place| holders.node(place).0).collect();
        nodes.sort_unstable();
        nodes
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
        assert_eq!(nodes(&index, 1001), [200, 201]);
        assert_eq!(nodes(&index, 5000), [201]);
        assert!(nodes(&index, 1 << 30).is_empty());
        book.hold(NodeId(201), &held([]));
        let index = book.publish(1);
        assert!(nodes(&index, 5000).is_empty());
        assert_eq!(nodes(&index, 1001), [200]);
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
    fn those_that_hold_the_same_are_told_without_asking() {
        let mut book = HolderBook::default();
        for node in 0..300 {
            let directories = [0..500, 500..1024, 0..1024];
            book.hold(NodeId(node), &held(directories[node as usize % 3].clone()));
        }
        let index = book.publish(1);
        for (file, lacking) in [(3, 1), (700, 0)] {
            let holders = index.of(FileId(file));
            assert!((0..holders.len()).all(|place| holders.is_certain(place)));
            assert_eq!(nodes(&index, file), (0..300).filter(|node| node % 3 != lacking).collect::<Vec<_>>());
        }
    }

    #[test]
    fn more_different_sets_than_are_told_apart_are_asked_for() {
        let mut book = HolderBook::default();
        let lacks = |node: u32| 8 * node..8 * node + 8;
        for node in 0..128 {
            book.hold(NodeId(node), &held((0..1024).filter(|file| !lacks(node).contains(file))));
        }
        let index = book.publish(1);
        let holders = index.of(FileId(8));
        let certain = (0..holders.len()).filter(|&place| holders.is_certain(place)).count();
        assert!(certain >= COHORTS_MAX - 1 && certain < holders.len());
        assert!((0..128).filter(|node| *node != 1).all(|node| nodes(&index, 8).contains(&node)));
        // What was told apart and is gone makes room for another.
        for node in 0..127 {
            book.hold(NodeId(node), &held([]));
        }
        book.hold(NodeId(500), &held([1, 2, 3]));
        let index = book.publish(1);
        assert_eq!((nodes(&index, 1), nodes(&index, 9)), (vec![127, 500], vec![127]));
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
                    let holders = index.of(FileId(file));
                    for place in (0..holders.len()).filter(|&place| holders.is_certain(place)) {
                        prop_assert!(truth[holders.node(place).0 as usize].contains(&file));
                    }
                }
            }
        }
    }
}
