//! The files of the last requests, in a ring of fixed size that requests write and one reader empties.
//!
//! A request costs two atomic writes and waits for nobody. It knows no path and no time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use freshet_api::FileId;

/// The last requests.
#[derive(Debug)]
pub(super) struct Ring {
    /// The lower half of the request's number in the upper half, the file in the lower.
    slots: Box<[AtomicU64]>,
    /// Requests so far.
    count: AtomicU64,
}

/// What a reader found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) by_file: HashMap<FileId, u64>,
    /// Requests of which nobody knows any more what they were for.
    pub(super) missed: u64,
}

impl Default for Ring {
    fn default() -> Self {
        Self::with_slots(SLOTS)
    }
}

impl Ring {
    fn with_slots(slots: usize) -> Self {
        // No request before the four thousand millionth has this number.
        Self { slots: (0..slots).map(|_| AtomicU64::new(u64::MAX)).collect(), count: AtomicU64::new(0) }
    }

    /// Somebody asks for a file.
    pub(super) fn note(&self, file: FileId) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let slot = &self.slots[number as usize % self.slots.len()];
        slot.store(u64::from(number as u32) << 32 | u64::from(file.0), Ordering::Relaxed);
    }

    /// Everything since `read`, which is moved on. What is being written just now is left for the next time.
    pub(super) fn since(&self, read: &mut u64) -> Found {
        let (count, slots) = (self.count.load(Ordering::Relaxed), self.slots.len() as u64);
        let mut found = Found { missed: (count - *read).saturating_sub(slots), ..Found::default() };
        *read += found.missed;
        while *read < count {
            let entry = self.slots[*read as usize % self.slots.len()].load(Ordering::Relaxed);
            let ahead = ((entry >> 32) as u32).wrapping_sub(*read as u32);
            if ahead == 0 {
                *found.by_file.entry(FileId(entry as u32)).or_default() += 1;
            } else if u64::from(ahead).is_multiple_of(slots) && ahead < u32::MAX / 2 {
                // Overtaken while it was read.
                found.missed += 1;
            } else {
                // The number was taken, the file is not there yet.
                break;
            }
            *read += 1;
        }
        found
    }
}

/// Requests between two readings, which come every second, that are all counted (512 KiB).
const SLOTS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_found_once() {
        let (ring, mut read) = (Ring::with_slots(8), 0);
        for round in 0..1_000u32 {
            for file in [0, 7, 7, round + 10] {
                ring.note(FileId(file));
            }
            let found = ring.since(&mut read);
            assert_eq!((found.missed, found.by_file[&FileId(7)], found.by_file[&FileId(0)]), (0, 2, 1));
            assert_eq!(found.by_file.len(), 3);
        }
        assert_eq!(ring.since(&mut read), Found::default());
    }

    #[test]
    fn more_than_it_holds_is_counted_as_missed() {
        let (ring, mut read) = (Ring::with_slots(8), 0);
        (0..20).for_each(|file| ring.note(FileId(file)));
        let found = ring.since(&mut read);
        assert_eq!((found.missed, found.by_file.len(), read), (12, 8, 20));
        assert!(found.by_file.contains_key(&FileId(12)) && !found.by_file.contains_key(&FileId(11)));
    }

    #[test]
    fn what_is_not_written_yet_is_found_the_next_time() {
        let (ring, mut read) = (Ring::with_slots(4), 0);
        // A request that has its number and not yet its slot, and one after it.
        ring.count.store(2, Ordering::Relaxed);
        ring.slots[1].store(1 << 32 | 9, Ordering::Relaxed);
        assert_eq!((ring.since(&mut read), read), (Found::default(), 0));
        ring.slots[0].store(8, Ordering::Relaxed);
        assert_eq!((ring.since(&mut read).by_file.len(), read), (2, 2));
        // The same a lap later, where an older request's file still stands.
        ring.count.store(5, Ordering::Relaxed);
        assert_eq!((ring.since(&mut read), read), (Found::default(), 2));
    }

    #[test]
    fn many_who_ask_at_once_are_all_counted() {
        let ring = Ring::default();
        let (mut read, mut sum) = (0, 0);
        std::thread::scope(|scope| {
            for file in 0..4 {
                let ring = &ring;
                scope.spawn(move || (0..10_000).for_each(|_| ring.note(FileId(file))));
            }
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while sum < 40_000 {
                assert!(std::time::Instant::now() < deadline, "{sum} were counted");
                let found = ring.since(&mut read);
                assert_eq!(found.missed, 0);
                sum += found.by_file.values().sum::<u64>();
            }
        });
        assert_eq!(sum, 40_000);
    }
}
