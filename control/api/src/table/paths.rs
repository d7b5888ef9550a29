//! Paths in the order in which they came, each without what it shares with the one before (front coding).
//!
//! Every [`GROUP`]th stands whole, so that a path is found by reading half a group on average: some hundred bytes
//! that lie side by side. Comparing needs no copy.

use crate::manifest::shared_bytes;

/// Paths, counted from 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    text: Vec<u8>,
    /// Where each group begins in `text`.
    groups: Vec<u32>,
    count: usize,
    /// The last one, which the next shares something with.
    last: String,
}

impl Paths {
    /// Adds a path behind the others.
    pub(super) fn push(&mut self, path: &str) {
        let mut shared = 0;
        if self.count.is_multiple_of(GROUP) {
            self.groups.push(u32::try_from(self.text.len()).expect("a chunk's paths have 1.6 MB at most"));
        } else {
            shared = shared_bytes(self.last.as_bytes(), path.as_bytes());
        }
        put(&mut self.text, shared);
        put(&mut self.text, path.len() - shared);
        self.text.extend_from_slice(&path.as_bytes()[shared..]);
        path.clone_into(&mut self.last);
        self.count += 1;
    }

    /// Whether `path` stands at a position.
    pub(super) fn is(&self, position: usize, path: &str) -> bool {
        let path = path.as_bytes();
        // How much of `path` the entry read last has, and how long that entry is.
        let (mut matched, mut length) = (0, 0);
        for (shared, rest) in self.group(position) {
            if shared <= matched {
                matched = shared + shared_bytes(&path[shared..], rest);
            }
            length = shared + rest.len();
        }
        matched == path.len() && length == path.len()
    }

    /// The path at a position, into an emptied buffer.
    pub(super) fn read(&self, position: usize, into: &mut Vec<u8>) {
        into.clear();
        for (shared, rest) in self.group(position) {
            into.truncate(shared);
            into.extend_from_slice(rest);
        }
    }

    /// Calls `each` for every position in order, with its path.
    pub(super) fn for_each(&self, mut each: impl FnMut(usize, &str)) {
        let mut path = Vec::new();
        let mut entries = Entries { text: &self.text };
        for position in 0..self.count {
            let Some((shared, rest)) = entries.next() else { return };
            path.truncate(shared);
            path.extend_from_slice(rest);
            each(position, std::str::from_utf8(&path).unwrap_or_default());
        }
    }

    /// Gives back what growing left over, when no more is expected.
    pub(super) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.groups.shrink_to_fit();
        self.last.shrink_to_fit();
    }

    /// From the beginning of a position's group to the position.
    fn group(&self, position: usize) -> impl Iterator<Item = (usize, &[u8])> {
        let start = self.groups[position / GROUP] as usize;
        Entries { text: &self.text[start..] }.take(position % GROUP + 1)
    }
}

/// What each path shares with the one before, and the rest of it.
struct Entries<'a> {
    text: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let shared = take(&mut self.text)?;
        let more = take(&mut self.text)?;
        let (rest, text) = self.text.split_at_checked(more)?;
        self.text = text;
        Some((shared, rest))
    }
}

/// Lengths below 2^14: a path has 3,072 bytes at most.
fn put(text: &mut Vec<u8>, length: usize) {
    if length < 0x80 {
        text.push(length as u8);
    } else {
        text.extend_from_slice(&[length as u8 | 0x80, (length >> 7) as u8]);
    }
}

fn take(text: &mut &[u8]) -> Option<usize> {
    let (&low, rest) = text.split_first()?;
    if low < 0x80 {
        *text = rest;
        return Some(usize::from(low));
    }
    let (&high, rest) = rest.split_first()?;
    *text = rest;
    Some(usize::from(low & 0x7f) | usize::from(high) << 7)
}

/// Paths in a group.
const GROUP: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn paths_come_back_and_no_other_is_taken_for_one(
            mut list in proptest::collection::vec("[ab/é]{0,12}(x{300})?[0-9]{0,3}", 1..60),
            sorted in any::<bool>(),
            stranger in "[ab/é]{0,12}",
        ) {
            if sorted {
                list.sort();
            }
            let mut paths = Paths::default();
            list.iter().for_each(|path| paths.push(path));
            paths.shrink();
            let mut read = Vec::new();
            for (position, path) in list.iter().enumerate() {
                paths.read(position, &mut read);
                prop_assert_eq!(std::str::from_utf8(&read).unwrap(), path);
                for other in list.iter().chain([&stranger]) {
                    prop_assert_eq!(paths.is(position, other), other == path, "{} at {}", other, path);
                }
            }
            let mut seen = Vec::new();
            paths.for_each(|position, path| seen.push((position, path.to_owned())));
            prop_assert_eq!(seen, list.into_iter().enumerate().collect::<Vec<_>>());
        }
    }
}
