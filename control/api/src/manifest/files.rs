//! The files of a manifest, column by column and each row as its difference to the one before: in memory as on the
//! wire, some 55 bytes a row.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ManifestFile, RepoPath};
use crate::id::{ContentHash, FileId};

/// Files in a row, read from the first to the last. In the order of their paths they take the least room.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Files {
    pub(super) columns: Columns,
    pub(super) contents: Vec<ContentHash>,
    end: End,
    unsorted: bool,
}

/// All but the contents.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// What each path shares with the one before and the length of the rest, as varints.
    pub(super) path_lengths: Vec<u8>,
    /// The rests, end to end.
    pub(super) path_rests: Vec<u8>,
    /// Varints.
    pub(super) sizes: Vec<u8>,
    /// Varints of the zigzagged difference to the row before.
    pub(super) mtimes: Vec<u8>,
    /// The same.
    pub(super) numbers: Vec<u8>,
    /// Ascending positions of the rows that come last, as differences.
    pub(super) last: Vec<u8>,
}

/// What the next row is a difference to.
#[derive(Clone, Default, PartialEq, Eq)]
struct End {
    path: Vec<u8>,
    mtime: i64,
    number: i64,
    last: u64,
}

impl Files {
    /// Files.
    pub fn len(&self) -> usize {
        self.contents.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    /// Adds one behind the others.
    pub fn push(&mut self, file: ManifestFile) {
        let (columns, end) = (&mut self.columns, &mut self.end);
        let path = file.path.as_str().as_bytes();
        self.unsorted |= !self.contents.is_empty() && path < end.path.as_slice();
        let shared = shared_bytes(&end.path, path);
        put(&mut columns.path_lengths, shared as u64);
        put(&mut columns.path_lengths, (path.len() - shared) as u64);
        columns.path_rests.extend_from_slice(&path[shared..]);
        put(&mut columns.sizes, file.size);
        put(&mut columns.mtimes, zigzag(file.mtime.wrapping_sub(end.mtime)));
        put(&mut columns.numbers, zigzag(i64::from(file.file.0) - end.number));
        if file.last {
            let position = self.contents.len() as u64;
            put(&mut columns.last, position - end.last);
            end.last = position;
        }
        end.path.truncate(shared);
        end.path.extend_from_slice(&path[shared..]);
        (end.mtime, end.number) = (file.mtime, i64::from(file.file.0));
        self.contents.push(file.content);
    }

    /// All of them, one after the other.
    pub fn iter(&self) -> Iter<'_> {
        Iter(Rows::new(&self.columns, &self.contents))
    }

    /// The same without a copy of each path: several times as fast.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor(Rows::new(&self.columns, &self.contents))
    }

    /// Leaves those that `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&ManifestFile) -> bool) {
        *self = self.iter().filter(|file| keep(file)).collect();
    }

    /// Whether they are in the order of their paths.
    pub(super) fn is_sorted(&self) -> bool {
        !self.unsorted
    }

    /// Columns from outside; `None` when they do not fit together or a path is none.
    pub(super) fn checked(columns: Columns, contents: Vec<ContentHash>) -> Option<Self> {
        let mut rows = Rows::new(&columns, &contents);
        if rows.next_last.is_none() && !columns.last.is_empty() {
            return None;
        }
        let mut unsorted = false;
        // What the row before has from where the two differ.
        let mut before = Vec::new();
        for _ in 0..contents.len() {
            let mut lengths = rows.path_lengths;
            let shared = usize::try_from(take(&mut lengths)?).ok()?;
            before.clear();
            before.extend_from_slice(rows.end.path.get(shared..)?);
            rows.advance()?;
            let path = &rows.end.path;
            // Segments that end before the two differ were checked in the row before.
            let begins = path[..shared].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            RepoPath::check_rest(path, begins)?;
            u32::try_from(rows.end.number).ok()?;
            unsorted |= path[shared..] < before[..];
        }
        let end = rows.finish()?;
        Some(Self { columns, contents, end, unsorted })
    }
}

impl FromIterator<ManifestFile> for Files {
    fn from_iter<I: IntoIterator<Item = ManifestFile>>(files: I) -> Self {
        let mut made = Self::default();
        made.extend(files);
        made
    }
}

impl Extend<ManifestFile> for Files {
    fn extend<I: IntoIterator<Item = ManifestFile>>(&mut self, files: I) {
        files.into_iter().for_each(|file| self.push(file));
    }
}

impl From<Vec<ManifestFile>> for Files {
    fn from(files: Vec<ManifestFile>) -> Self {
        files.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Files {
    type Item = ManifestFile;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Files {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<ManifestFile>::deserialize(deserializer).map(Self::from)
    }
}

/// The files of a [`Files`], in its order.
#[derive(Clone)]
pub struct Iter<'a>(Rows<'a>);

impl Iterator for Iter<'_> {
    type Item = ManifestFile;

    fn next(&mut self) -> Option<ManifestFile> {
        let (size, last, content) = self.0.advance()?;
        let end = &self.0.end;
        let path = std::str::from_utf8(&end.path).expect("a path went in as text, or was checked");
        Some(ManifestFile {
            file: FileId(end.number as u32),
            path: RepoPath::known(path),
            size,
            mtime: end.mtime,
            content,
            last,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.contents.len(), Some(self.0.contents.len()))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Iter").field(&self.0.contents.len()).finish()
    }
}

/// The files of a [`Files`], in its order, one at a time.
#[derive(Clone)]
pub struct Cursor<'a>(Rows<'a>);

/// One of them, until the next is asked for; see [`ManifestFile`].
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "they are those of a ManifestFile")]
pub struct FileRef<'a> {
    pub file: FileId,
    pub path: &'a str,
    pub size: u64,
    pub mtime: i64,
    pub content: ContentHash,
    pub last: bool,
}

impl Cursor<'_> {
    /// The next one.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend")]
    pub fn next(&mut self) -> Option<FileRef<'_>> {
        let (size, last, content) = self.0.advance()?;
        let end = &self.0.end;
        let path = std::str::from_utf8(&end.path).expect("a path went in as text, or was checked");
        Some(FileRef { file: FileId(end.number as u32), path, size, mtime: end.mtime, content, last })
    }
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cursor").field(&self.0.contents.len()).finish()
    }
}

impl ManifestFile {
    /// The same, lent.
    pub fn as_ref(&self) -> FileRef<'_> {
        let &ManifestFile { file, ref path, size, mtime, content, last } = self;
        FileRef { file, path: path.as_str(), size, mtime, content, last }
    }
}

impl FileRef<'_> {
    /// With a path of its own.
    pub fn to_file(&self) -> ManifestFile {
        let &FileRef { file, path, size, mtime, content, last } = self;
        ManifestFile { file, path: RepoPath::known(path), size, mtime, content, last }
    }
}

/// What is left of the columns while they are read.
#[derive(Clone)]
struct Rows<'a> {
    path_lengths: &'a [u8],
    path_rests: &'a [u8],
    sizes: &'a [u8],
    mtimes: &'a [u8],
    numbers: &'a [u8],
    last: &'a [u8],
    contents: &'a [ContentHash],
    position: u64,
    next_last: Option<u64>,
    /// The row read last.
    end: End,
}

impl<'a> Rows<'a> {
    fn new(columns: &'a Columns, contents: &'a [ContentHash]) -> Self {
        let mut last = columns.last.as_slice();
        let next_last = take(&mut last);
        Self {
            path_lengths: &columns.path_lengths,
            path_rests: &columns.path_rests,
            sizes: &columns.sizes,
            mtimes: &columns.mtimes,
            numbers: &columns.numbers,
            last,
            contents,
            position: 0,
            next_last,
            end: End::default(),
        }
    }

    /// Reads one row into `end`; what is not a difference is returned.
    fn advance(&mut self) -> Option<(u64, bool, ContentHash)> {
        let (content, contents) = self.contents.split_first()?;
        let shared = usize::try_from(take(&mut self.path_lengths)?).ok()?;
        let more = usize::try_from(take(&mut self.path_lengths)?).ok()?;
        let (rest, rests) = self.path_rests.split_at_checked(more)?;
        let end = &mut self.end;
        if shared > end.path.len() {
            return None;
        }
        end.path.truncate(shared);
        end.path.extend_from_slice(rest);
        end.mtime = end.mtime.wrapping_add(unzigzag(take(&mut self.mtimes)?));
        end.number = end.number.checked_add(unzigzag(take(&mut self.numbers)?))?;
        let size = take(&mut self.sizes)?;
        let last = self.next_last == Some(self.position);
        if last {
            end.last = self.position;
            self.next_last = if self.last.is_empty() {
                None
            } else {
                Some(self.position.checked_add(take(&mut self.last)?)?)
            };
        }
        (self.contents, self.path_rests) = (contents, rests);
        self.position += 1;
        Some((size, last, *content))
    }

    /// What the next row would be a difference to, if the columns end together.
    fn finish(self) -> Option<End> {
        let left = [self.path_lengths, self.path_rests, self.sizes, self.mtimes, self.numbers, self.last];
        let ended = left.iter().all(|column| column.is_empty()) && self.next_last.is_none();
        (ended && self.contents.is_empty()).then_some(self.end)
    }
}

/// How many bytes two texts begin with alike.
pub(crate) fn shared_bytes(one: &[u8], other: &[u8]) -> usize {
    let (chunks, _) = one.as_chunks::<8>();
    let (others, _) = other.as_chunks::<8>();
    let alike = chunks.iter().zip(others).take_while(|(one, other)| one == other).count() * 8;
    alike + one[alike..].iter().zip(&other[alike..]).take_while(|(one, other)| one == other).count()
}

/// Seven bits to a byte, the lowest first.
fn put(column: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        column.push(number as u8 | 0x80);
        number >>= 7;
    }
    column.push(number as u8);
}

fn take(column: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    // Most have one byte.
    if let Some((&byte, rest)) = column.split_first()
        && byte & 0x80 == 0
    {
        *column = rest;
        return Some(u64::from(byte));
    }
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = column.split_first()?;
        *column = rest;
        let bits = u64::from(byte & 0x7f);
        if (bits << shift) >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(number: u32, path: &str) -> ManifestFile {
        ManifestFile {
            file: FileId(number.wrapping_mul(2_654_435_761)),
            path: path.parse().unwrap(),
            size: u64::MAX >> (number % 64),
            mtime: if number.is_multiple_of(3) { i64::MIN } else { i64::from(number) },
            content: ContentHash::of(path.as_bytes()),
            last: number.is_multiple_of(2),
        }
    }

    #[test]
    fn columns_that_do_not_fit_together_are_refused() {
        let checked = |path_lengths: &[u8], path_rests: &[u8], last: &[u8]| {
            let columns = Columns {
                path_lengths: path_lengths.to_vec(),
                path_rests: path_rests.to_vec(),
                sizes: vec![1],
                mtimes: vec![0],
                numbers: vec![2],
                last: last.to_vec(),
            };
            Files::checked(columns, vec![ContentHash([0; 32])]).is_some()
        };
        assert!(checked(&[0, 1], b"a", &[]));
        assert!(checked(&[0, 1], b"a", &[0]));
        for path_lengths in [&[1, 1][..], &[0, 2], &[0, 0], &[0], &[0, 1, 0], &[0x80]] {
            assert!(!checked(path_lengths, b"a", &[]), "{path_lengths:?}");
        }
        for last in [&[1][..], &[0, 1], &[0x80]] {
            assert!(!checked(&[0, 1], b"a", last), "{last:?}");
        }
        for path in [&b"/"[..], b".", b"\n", b"\xff"] {
            assert!(!checked(&[0, 1], path, &[]), "{path:?}");
        }
    }

    #[test]
    fn what_a_path_shares_with_the_one_before_is_checked_with_it() {
        let second = |first: &str, shared: u8, rest: &[u8]| {
            let columns = Columns {
                path_lengths: vec![0, first.len() as u8, shared, rest.len() as u8],
                path_rests: [first.as_bytes(), rest].concat(),
                sizes: vec![1, 1],
                mtimes: vec![0, 0],
                numbers: vec![2, 2],
                last: Vec::new(),
            };
            Files::checked(columns, vec![ContentHash([0; 32]); 2]).map(|files| files.unsorted)
        };
        assert_eq!(second("a/b", 2, b"c"), Some(false));
        assert_eq!(second("a/b", 2, b"a"), Some(true));
        assert_eq!(second("a/b", 1, b""), Some(true));
        assert_eq!(second("a/.b", 4, b"c/d"), Some(false));
        assert_eq!(second("\u{e4}/b", 1, "\u{e5}".as_bytes().split_at(1).1), Some(false));
        let long = "x".repeat(100);
        for (first, shared, rest) in [
            ("a/b", 2, &b""[..]),
            ("a/b", 2, b"/c"),
            ("a/b", 0, b""),
            ("a/.b", 3, b""),
            ("a/.b", 3, b"."),
            ("a/.b", 3, b"./c"),
            ("a/b", 3, b"\x7f"),
            ("a/b", 3, "\u{85}".as_bytes()),
            ("a/\u{e4}", 3, b"c"),
            ("a/b", 3, b"\xff"),
            (&long, 100, &[b'x'; 156][..]),
        ] {
            assert_eq!(second(first, shared, rest), None, "{first:?} {shared} {rest:?}");
        }
        assert!(second(&long, 100, &[b'x'; 120]).is_some(), "a segment of 220 bytes");
    }

    proptest! {
        #[test]
        fn what_was_pushed_comes_back(
            paths in proptest::collection::vec("[a-c\u{e4}-\u{e6}]{1,4}(/[a-c]{1,3}){0,2}", 0..40),
        ) {
            let list: Vec<ManifestFile> = (0..).zip(&paths).map(|(number, path)| file(number, path)).collect();
            let files = Files::from(list.clone());
            prop_assert_eq!(files.len(), list.len());
            prop_assert_eq!(files.is_sorted(), paths.is_sorted());
            prop_assert_eq!(&files.iter().collect::<Vec<_>>(), &list);
            let (mut cursor, mut lent) = (files.cursor(), Vec::new());
            while let Some(file) = cursor.next() {
                lent.push(file.to_file());
            }
            prop_assert_eq!(&lent, &list);
            let checked = Files::checked(files.columns.clone(), files.contents.clone());
            prop_assert_eq!(checked, Some(files.clone()));
            let mut odd = files;
            odd.retain(|file| !file.last);
            prop_assert_eq!(odd, list.into_iter().filter(|file| !file.last).collect());
        }

        #[test]
        fn varints_are_read_back(number: u64, signed: i64) {
            let mut column = Vec::new();
            put(&mut column, number);
            prop_assert_eq!(take(&mut &column[..]), Some(number));
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }
}
