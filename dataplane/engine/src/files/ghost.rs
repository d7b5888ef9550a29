//! Who was asked for lately and is not kept: the history that tells a file that returns from one that came once.
//!
//! The ghost queue of 2Q (Johnson and Shasha, 1994), as a table of hashes that write over each other: a file is
//! remembered for about as many misses as the table has places.

/// Hashes of files that were missed.
#[derive(Debug, Default)]
pub(crate) struct Ghost {
    hashes: Box<[u64]>,
}

impl Ghost {
    /// A history about as long as a cache of that many bytes has files.
    pub(crate) fn new(cache_bytes: u64) -> Self {
        let files = usize::try_from(cache_bytes / FILE_BYTES_TYPICAL).unwrap_or(usize::MAX);
        let places = files.clamp(PLACES_MIN, PLACES_MAX).next_power_of_two();
        Self { hashes: vec![0; places].into() }
    }

    /// Notes a miss; `true` when it is not the first within the history.
    pub(crate) fn returns(&mut self, hash: u64) -> bool {
        if self.hashes.is_empty() {
            return false;
        }
        let place = (hash >> u32::BITS) as usize & (self.hashes.len() - 1);
        // Once it is kept its history begins anew.
        let known = self.hashes[place] == hash;
        self.hashes[place] = if known { 0 } else { hash };
        known
    }
}

/// What a cached file weighs in the mean: half of the largest that are kept, and the entry.
const FILE_BYTES_TYPICAL: u64 = 8 << 10;

const PLACES_MIN: usize = 1 << 10;

/// 8 MiB of hashes.
const PLACES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_miss_of_two_is_known() {
        let mut ghost = Ghost::new(0);
        let hash = |number: u64| number << u32::BITS | 1;
        assert!(!ghost.returns(hash(1)));
        assert!(!ghost.returns(hash(2)));
        assert!(ghost.returns(hash(1)));
        assert!(!ghost.returns(hash(1)), "its history begins anew");
    }

    #[test]
    fn what_came_long_ago_is_forgotten() {
        let mut ghost = Ghost::new(0);
        let hash = |number: u64| number << u32::BITS | 1;
        assert!(!ghost.returns(hash(1)));
        for number in 2..=PLACES_MIN as u64 + 1 {
            assert!(!ghost.returns(hash(number)));
        }
        assert!(!ghost.returns(hash(1)));
    }
}
