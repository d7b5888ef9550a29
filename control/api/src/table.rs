//! The table of files that control and volunteers keep in memory: found by number, by path and by content.
//!
//! A copy shares its parts with the original, and a change copies only the parts it touches: a writer changes its own
//! copy and shows it to readers as a whole, who neither lock nor wait. What a daemon knows of a file beside path and
//! content is its own row type. Per row it takes 48 bytes, the row itself and what the path does not share with the
//! path before: rows are best numbered in the order of their paths. No I/O, no clock.

mod index;
mod leaves;
mod paths;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use crate::id::ContentHash;
use crate::manifest::RepoPath;

use self::index::Index;
use self::leaves::Leaves;
use self::paths::Paths;

/// Rows under numbers, each with a path and a content; several may have the same path or content.
#[derive(Clone, Debug)]
pub struct Table<R> {
    chunks: Leaves<Chunk<R>>,
    by_path: Index,
    by_content: Index,
    rows: usize,
}

/// Rows that were pushed and can't be found by path and content yet; 32 bytes each.
#[derive(Debug, Default)]
pub struct Added {
    paths: Vec<(u64, u32)>,
    contents: Vec<(u64, u32)>,
}

impl Added {
    /// How many.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

/// One row, where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a, R> {
    number: u32,
    /// Its path, if it was found by that.
    asked: Option<&'a str>,
    keys: &'a Keys,
    position: usize,
    row: &'a R,
}

/// The rows of `1 << CHUNK_BITS` numbers, in the order of the numbers.
#[derive(Clone, Debug)]
struct Chunk<R> {
    /// Apart, because rows change more often than they come and go.
    keys: Arc<Keys>,
    rows: Vec<R>,
}

#[derive(Clone, Debug, Default)]
struct Keys {
    /// The low bits of each number, with [`GONE`] where the row was taken out. Not kept while they count from 0 and
    /// none is gone, as in most chunks.
    numbers: Option<Vec<u16>>,
    contents: Vec<ContentHash>,
    paths: Paths,
    gone: usize,
}

impl<R: Copy> Table<R> {
    /// An empty one.
    pub fn new() -> Self {
        Self { chunks: Leaves::new(), by_path: Index::new(), by_content: Index::new(), rows: 0 }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The row with this number.
    pub fn get(&self, number: u32) -> Option<Entry<'_, R>> {
        let chunk = self.chunks.get((number >> CHUNK_BITS) as usize)?;
        let position = chunk.keys.position(number)?;
        Some(Entry { number, asked: None, keys: &chunk.keys, position, row: &chunk.rows[position] })
    }

    /// All rows with exactly this path, lowest number first.
    pub fn at<'a>(&'a self, path: &'a str) -> impl Iterator<Item = Entry<'a, R>> {
        let candidates = self.by_path.candidates(path_hash(path));
        candidates.filter_map(move |number| {
            self.get(number)
                .filter(|entry| entry.is_at(path))
                .map(|entry| Entry { asked: Some(path), ..entry })
        })
    }

    /// All rows with this content, lowest number first.
    pub fn with_content<'a>(&'a self, content: &'a ContentHash) -> impl Iterator<Item = Entry<'a, R>> {
        let candidates = self.by_content.candidates(content_hash(content));
        candidates.filter_map(|number| self.get(number)).filter(move |entry| entry.content() == content)
    }

    /// All rows in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_, R>> {
        self.chunks.iter().zip(0u32..).flat_map(|(chunk, number)| {
            (0..chunk.rows.len()).filter_map(move |position| chunk.entry(number, position))
        })
    }

    /// Calls `each` for all rows in the order of their numbers, with their paths: several times as fast as
    /// [`Entry::path`] for each.
    pub fn for_each_path<'a>(&'a self, mut each: impl FnMut(Entry<'a, R>, &str)) {
        for (chunk, number) in self.chunks.iter().zip(0u32..) {
            chunk.keys.paths.for_each(|position, path| {
                if let Some(entry) = chunk.entry(number, position) {
                    each(entry, path);
                }
            });
        }
    }

    /// Adds a row; one that has this number already is replaced.
    pub fn insert(&mut self, number: u32, path: &RepoPath, content: ContentHash, row: R) {
        self.put(number, path.as_str(), content, row);
        self.by_path.insert(path_hash(path.as_str()), number);
        self.by_content.insert(content_hash(&content), number);
    }

    /// Adds many rows, in a fraction of the time that one by one takes; their numbers must not be there yet. Returns the
    /// numbers of those whose content another row has too, and of few others.
    pub fn extend<P: AsRef<str>>(
        &mut self,
        rows: impl Iterator<Item = (u32, P, ContentHash, R)>,
    ) -> Vec<u32> {
        let mut added = Added::default();
        for (number, path, content, row) in rows {
            self.push(&mut added, number, path.as_ref(), content, row);
        }
        self.settle(added)
    }

    /// Adds one of many rows: it is found by path and content after [`Table::settle`] only. Its number must not be there
    /// yet.
    pub fn push(&mut self, added: &mut Added, number: u32, path: &str, content: ContentHash, row: R) {
        self.put(number, path, content, row);
        added.paths.push((path_hash(path), number));
        added.contents.push((content_hash(&content), number));
    }

    /// Lets rows be found that were pushed; returns what [`Table::extend`] does.
    pub fn settle(&mut self, added: Added) -> Vec<u32> {
        self.by_path.extend(&added.paths);
        drop(added.paths);
        self.by_content.extend(&added.contents)
    }

    /// Changes a row, path and content staying as they are; `false` when there is none.
    pub fn change(&mut self, number: u32, change: impl FnOnce(&mut R)) -> bool {
        let Some(chunk) = self.chunks.get_mut((number >> CHUNK_BITS) as usize) else { return false };
        let Some(position) = chunk.keys.position(number) else { return false };
        change(&mut chunk.rows[position]);
        true
    }

    /// Takes a row out.
    pub fn remove(&mut self, number: u32) -> Option<R> {
        let entry = self.get(number)?;
        let (path, content, row) = (entry.path(), *entry.content(), *entry.row());
        self.by_path.remove(path_hash(path.as_str()), number);
        self.by_content.remove(content_hash(&content), number);
        self.chunks.get_mut((number >> CHUNK_BITS) as usize)?.remove(number);
        self.rows -= 1;
        Some(row)
    }

    fn put(&mut self, number: u32, path: &str, content: ContentHash, row: R) {
        if self.get(number).is_some() {
            self.remove(number);
        }
        let chunk = (number >> CHUNK_BITS) as usize;
        self.chunks.grow(chunk + 1);
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.insert(number, path, content, row);
            self.rows += 1;
        }
    }
}

impl<R: Copy> Default for Table<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a, R> Entry<'a, R> {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its content.
    pub fn content(&self) -> &'a ContentHash {
        &self.keys.contents[self.position]
    }

    /// What is known of it beside path and content.
    pub fn row(&self) -> &'a R {
        self.row
    }

    /// Whether its path is this one; copies nothing.
    pub fn is_at(&self, path: &str) -> bool {
        self.keys.paths.is(self.position, path)
    }

    /// Its path.
    pub fn path(&self) -> RepoPath {
        if let Some(path) = self.asked {
            return RepoPath::known(path);
        }
        let mut path = Vec::with_capacity(PATH_BYTES_USUAL);
        self.keys.paths.read(self.position, &mut path);
        RepoPath::known(&String::from_utf8(path).expect("a path went in as text"))
    }
}

impl<R> Chunk<R> {
    /// The row at a position, if it is not gone; `chunk` is this chunk's number.
    fn entry(&self, chunk: u32, position: usize) -> Option<Entry<'_, R>> {
        let low = self.keys.low(position);
        (low & GONE == 0).then(|| Entry {
            number: chunk << CHUNK_BITS | u32::from(low),
            asked: None,
            keys: &self.keys,
            position,
            row: &self.rows[position],
        })
    }
}

impl<R: Copy> Chunk<R> {
    /// Adds a row; cheap when its number is the highest.
    fn insert(&mut self, number: u32, path: &str, content: ContentHash, row: R) {
        let low = (number & LOW_MASK) as u16;
        let count = self.keys.contents.len();
        if count == 0 || self.keys.low(count - 1) & !GONE < low {
            let keys = Arc::make_mut(&mut self.keys);
            keys.push(low, path, content);
            self.rows.push(row);
            return;
        }
        let mut keys = Keys::default();
        let mut rows = Vec::with_capacity(self.rows.len() + 1);
        let mut new = Some(row);
        self.keys.paths.for_each(|position, old| {
            let found = self.keys.low(position);
            if found & !GONE > low
                && let Some(row) = new.take()
            {
                keys.push(low, path, content);
                rows.push(row);
            }
            if found & GONE == 0 {
                keys.push(found, old, self.keys.contents[position]);
                rows.push(self.rows[position]);
            }
        });
        if let Some(row) = new {
            keys.push(low, path, content);
            rows.push(row);
        }
        *self = Self { keys: Arc::new(keys), rows };
    }

    /// Marks a row as gone; what is half empty is made anew.
    fn remove(&mut self, number: u32) {
        let Some(position) = self.keys.position(number) else { return };
        let keys = Arc::make_mut(&mut self.keys);
        keys.told()[position] |= GONE;
        keys.gone += 1;
        if keys.gone * 2 <= keys.contents.len() {
            return;
        }
        let mut left = Keys::default();
        let mut rows = Vec::new();
        self.keys.paths.for_each(|position, path| {
            let low = self.keys.low(position);
            if low & GONE == 0 {
                left.push(low, path, self.keys.contents[position]);
                rows.push(self.rows[position]);
            }
        });
        left.paths.shrink();
        rows.shrink_to_fit();
        *self = Self { keys: Arc::new(left), rows };
    }
}

impl<R> Default for Chunk<R> {
    fn default() -> Self {
        Self { keys: Arc::default(), rows: Vec::new() }
    }
}

impl Keys {
    fn push(&mut self, low: u16, path: &str, content: ContentHash) {
        if self.numbers.is_some() || usize::from(low) != self.contents.len() {
            self.told().push(low);
        }
        self.contents.push(content);
        self.paths.push(path);
        if u32::from(low) == LOW_MASK {
            self.paths.shrink();
        }
    }

    fn position(&self, number: u32) -> Option<usize> {
        let low = (number & LOW_MASK) as u16;
        let Some(numbers) = &self.numbers else {
            return Some(usize::from(low)).filter(|&position| position < self.contents.len());
        };
        let position = numbers.binary_search_by_key(&low, |found| found & !GONE).ok()?;
        (numbers[position] & GONE == 0).then_some(position)
    }

    /// The low bits of the number at a position, with [`GONE`] if it is.
    fn low(&self, position: usize) -> u16 {
        self.numbers.as_ref().map_or(position as u16, |numbers| numbers[position])
    }

    /// The numbers, from now on kept.
    fn told(&mut self) -> &mut Vec<u16> {
        let count = self.contents.len() as u16;
        self.numbers.get_or_insert_with(|| (0..count).collect())
    }
}

/// Not keyed: paths are the operator's own; a customer only looks them up.
fn path_hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

fn content_hash(content: &ContentHash) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&content.0[..8]);
    u64::from_le_bytes(first)
}

/// 512 rows to a chunk.
const CHUNK_BITS: u32 = 9;
const LOW_MASK: u32 = (1 << CHUNK_BITS) - 1;
const GONE: u16 = 1 << 15;

const PATH_BYTES_USUAL: usize = 128;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<u32, (String, u8, u64)>;

    fn content(number: u8) -> ContentHash {
        ContentHash::of(&[number])
    }

    fn check(table: &Table<u64>, model: &Model) {
        assert_eq!(table.len(), model.len());
        let all: Vec<_> = table.iter().map(|e| (e.number(), e.path().to_string(), *e.row())).collect();
        let wanted: Vec<_> = model.iter().map(|(n, (path, _, row))| (*n, path.clone(), *row)).collect();
        assert_eq!(all, wanted);
        let mut visited = Vec::new();
        table.for_each_path(|entry, path| visited.push((entry.number(), path.to_owned(), *entry.row())));
        assert_eq!(visited, wanted);
        for (number, (path, sum, row)) in model {
            let entry = table.get(*number).unwrap();
            assert!(entry.is_at(path) && *entry.content() == content(*sum) && entry.row() == row);
            let same: Vec<u32> = model.iter().filter(|(_, m)| m.0 == *path).map(|(n, _)| *n).collect();
            assert_eq!(table.at(path).map(|e| e.number()).collect::<Vec<_>>(), same);
            let alike: Vec<u32> = model.iter().filter(|(_, m)| m.1 == *sum).map(|(n, _)| *n).collect();
            let found: Vec<u32> = table.with_content(&content(*sum)).map(|e| e.number()).collect();
            assert_eq!(found, alike);
        }
    }

    proptest! {
        #[test]
        fn it_is_what_a_map_is_and_a_copy_stays_what_it_was(
            steps in proptest::collection::vec((0u8..5, 0u32..1_200, 0u8..40, any::<u64>()), 1..120),
        ) {
            let (mut table, mut model) = (Table::new(), Model::new());
            let mut kept = None;
            for (number, &(what, at, sum, row)) in steps.iter().enumerate() {
                let path = format!("pool/{}/p-{}", at % 7, sum);
                match what {
                    0 => {
                        let model_row = model.remove(&at).map(|(_, _, row)| row);
                        prop_assert_eq!(table.remove(at), model_row);
                    }
                    1 => {
                        let there = table.change(at, |found| *found = row);
                        prop_assert_eq!(there, model.contains_key(&at));
                        model.entry(at).and_modify(|found| found.2 = row);
                    }
                    2 => {
                        let new = (0..40).map(|more| 2_000 + number as u32 * 40 + more);
                        model.extend(new.clone().map(|n| (n, (path.clone(), sum, row))));
                        table.extend(new.map(|n| (n, &path, content(sum), row)));
                    }
                    _ => {
                        table.insert(at, &path.parse().unwrap(), content(sum), row);
                        model.insert(at, (path, sum, row));
                    }
                }
                if number == steps.len() / 2 {
                    kept = Some((table.clone(), model.clone()));
                }
            }
            check(&table, &model);
            if let Some((table, model)) = kept {
                check(&table, &model);
            }
        }
    }
}
