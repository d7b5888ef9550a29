//! A set of pieces of one bundle.

use serde::{Deserialize, Serialize};

/// Pieces by number, as a bitmap of the bundle's length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceSet {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl PieceSet {
    /// An empty set for a bundle of `len` pieces.
    pub fn new(len: u32) -> PieceSet {
        PieceSet { words: vec![0; (len as usize).div_ceil(64)], len, count: 0 }
    }

    /// All pieces of a bundle of `len`.
    pub fn full(len: u32) -> PieceSet {
        let mut words = vec![u64::MAX; (len as usize).div_ceil(64)];
        if let Some(last) = words.last_mut()
            && !len.is_multiple_of(64)
        {
            *last = (1 << (len % 64)) - 1;
        }
        PieceSet { words, len, count: len }
    }

    /// How many pieces the bundle has.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// How many are in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether none is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether all are.
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether `piece` is; never for numbers beyond the bundle.
    pub fn contains(&self, piece: u32) -> bool {
        piece < self.len && self.words[piece as usize / 64] >> (piece % 64) & 1 == 1
    }

    /// Adds `piece`; whether it was missing. Numbers beyond the bundle are refused.
    pub fn insert(&mut self, piece: u32) -> bool {
        let new = piece < self.len && !self.contains(piece);
        if new {
            self.words[piece as usize / 64] |= 1 << (piece % 64);
            self.count += 1;
        }
        new
    }

    /// Takes `piece` out; whether it was in.
    pub fn remove(&mut self, piece: u32) -> bool {
        let was = self.contains(piece);
        if was {
            self.words[piece as usize / 64] &= !(1 << (piece % 64));
            self.count -= 1;
        }
        was
    }

    /// The pieces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words
            .iter()
            .enumerate()
            .flat_map(|(index, &word)| bits(word).map(move |bit| index as u32 * 64 + bit))
    }

    /// Those from `from` on, ascending.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = u32> + '_ {
        let first = (from / 64) as usize;
        self.words.iter().enumerate().skip(first).flat_map(move |(index, &word)| {
            let word = if index == first { word & (u64::MAX << (from % 64)) } else { word };
            bits(word).map(move |bit| index as u32 * 64 + bit)
        })
    }

    /// The first piece that is in both.
    pub fn first_common(&self, other: &PieceSet) -> Option<u32> {
        let both = |(index, (mine, theirs)): (usize, (&u64, &u64))| {
            let common = mine & theirs;
            (common != 0).then(|| index as u32 * 64 + common.trailing_zeros())
        };
        self.words.iter().zip(&other.words).enumerate().find_map(both)
    }

    /// Those of `other` that are missing here, ascending.
    pub fn missing_from<'a>(&'a self, other: &'a PieceSet) -> impl Iterator<Item = u32> + 'a {
        self.words
            .iter()
            .zip(&other.words)
            .enumerate()
            .flat_map(|(index, (mine, theirs))| bits(theirs & !mine).map(move |bit| index as u32 * 64 + bit))
    }

    /// Whether `other` has any that is missing here.
    pub fn wants_from(&self, other: &PieceSet) -> bool {
        self.words.iter().zip(&other.words).any(|(mine, theirs)| theirs & !mine != 0)
    }
}

fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(
            len in 0u32..300, steps in proptest::collection::vec((any::<bool>(), 0u32..320), 0..200)
        ) {
            let (mut set, mut plain) = (PieceSet::new(len), BTreeSet::new());
            for (add, piece) in steps {
                if add {
                    prop_assert_eq!(set.insert(piece), piece < len && plain.insert(piece));
                } else {
                    prop_assert_eq!(set.remove(piece), plain.remove(&piece));
                }
                prop_assert_eq!(set.count() as usize, plain.len());
            }
            prop_assert!(set.iter().eq(plain.iter().copied()));
            let whole = PieceSet::full(len);
            let mut one_by_one = PieceSet::new(len);
            (0..len).for_each(|piece| { one_by_one.insert(piece); });
            prop_assert_eq!(&whole, &one_by_one);
            prop_assert_eq!(set.first_common(&whole), plain.first().copied());
            prop_assert!(whole.iter_from(len / 2).eq(len / 2..len));
            prop_assert!(set.iter_from(len / 3).eq(plain.range(len / 3..).copied()));
            prop_assert!(whole.is_full());
            prop_assert!(set.missing_from(&whole).all(|piece| !plain.contains(&piece)));
            prop_assert_eq!(set.missing_from(&whole).count() as u32, len - set.count());
            prop_assert_eq!(set.wants_from(&whole), !set.is_full());
        }
    }
}
