//! A vector whose copies share their leaves: a change copies one leaf and the branch above it, nothing else.

use std::sync::Arc;

/// Leaves in branches of [`WIDTH`].
#[derive(Clone, Debug)]
pub(super) struct Leaves<T> {
    branches: Vec<Arc<Vec<Arc<T>>>>,
}

impl<T: Clone + Default> Leaves<T> {
    /// None.
    pub(super) fn new() -> Self {
        Self { branches: Vec::new() }
    }

    /// This many empty ones.
    pub(super) fn empty(count: usize) -> Self {
        let mut leaves = Self::new();
        leaves.grow(count);
        leaves
    }

    pub(super) fn len(&self) -> usize {
        let last = self.branches.last().map_or(0, |branch| branch.len());
        self.branches.len().saturating_sub(1) * WIDTH + last
    }

    pub(super) fn get(&self, number: usize) -> Option<&T> {
        Some(self.branches.get(number / WIDTH)?.get(number % WIDTH)?)
    }

    /// The leaf to be changed; copied first if another copy has it too.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        let branch = Arc::make_mut(self.branches.get_mut(number / WIDTH)?);
        Some(Arc::make_mut(branch.get_mut(number % WIDTH)?))
    }

    /// Adds empty leaves until there are `count`.
    pub(super) fn grow(&mut self, count: usize) {
        let empty: Arc<T> = Arc::default();
        while self.len() < count {
            if self.len().is_multiple_of(WIDTH) {
                self.branches.push(Arc::new(Vec::with_capacity(WIDTH)));
            }
            let missing = (count - self.len()).min(WIDTH - self.len() % WIDTH);
            if let Some(branch) = self.branches.last_mut() {
                Arc::make_mut(branch).extend(std::iter::repeat_n(Arc::clone(&empty), missing));
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.branches.iter().flat_map(|branch| branch.iter()).map(|leaf| &**leaf)
    }
}

/// 64: a copy of 4,300 leaves copies 68 pointers.
const WIDTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_was() {
        let mut leaves: Leaves<Vec<u8>> = Leaves::empty(200);
        assert_eq!((leaves.len(), leaves.iter().count()), (200, 200));
        let before = leaves.clone();
        leaves.get_mut(130).unwrap().push(7);
        leaves.grow(201);
        assert_eq!((before.len(), leaves.len()), (200, 201));
        assert_eq!((before.get(130), leaves.get(130)), (Some(&vec![]), Some(&vec![7])));
        assert!(leaves.get(201).is_none() && leaves.get_mut(300).is_none() && before.get(200).is_none());
    }
}
