//! Disc images as copies of the files that they were made of.
//!
//! A file in an image begins at a sector. So every file of the repository is known by its first sector, the image is
//! read sector by sector, and where one is known the file itself is compared: what is equal is a copy, and the rest
//! is literal.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use freshet_api::ContentHash;
use freshet_api::recipe::{LITERAL_BYTES_MAX, Method, Recipe, STEPS_MAX, Step};

use super::super::content::{ContentError, Repository};
use super::super::plan::Source;
use crate::catalog::Snapshot;

/// Whether this is likely an image of a file system with whole files in it.
pub(super) fn is_image(path: &str, size: u64) -> bool {
    let lower = path.to_ascii_lowercase();
    size >= IMAGE_BYTES_MIN && [".iso", ".img", ".udf"].iter().any(|suffix| lower.ends_with(suffix))
}

/// The files of a repository by their first sectors.
#[derive(Debug)]
pub(super) struct SectorIndex {
    files: Vec<Source>,
    by_sector: HashMap<[u8; 16], Vec<u32>>,
}

impl SectorIndex {
    /// Reads the first sectors: of packages first, and of those in the collection of the image at `near`.
    pub(super) fn new(
        state: &Snapshot,
        near: &str,
        repository: &Repository,
        stop: impl Fn() -> bool,
    ) -> Self {
        let collection = |path: &str| path.split('/').next().unwrap_or("").to_owned();
        let near = collection(near);
        let mut files: Vec<(bool, bool, Source)> = state
            .iter()
            .filter(|entry| entry.size >= SECTOR as u64 && !is_image(entry.path.as_str(), entry.size))
            .map(|entry| {
                let path = entry.path.as_str().to_owned();
                let package = PACKAGES.iter().any(|suffix| path.ends_with(suffix));
                let content = entry.checksums.blake3;
                (!package, collection(&path) != near, Source { path, content, size: entry.size, made: None })
            })
            .collect();
        files.sort_unstable();
        files.dedup_by(|a, b| a.2.content == b.2.content);
        let mut index = Self { files: Vec::new(), by_sector: HashMap::new() };
        for (_, _, file) in files.into_iter().take(FILES_MAX) {
            if stop() {
                break;
            }
            let mut sector = [0; SECTOR];
            let read = repository
                .file(&file.path, file.size)
                .and_then(|open| Ok(open.read_exact_at(&mut sector, 0)?));
            if read.is_err() {
                continue;
            }
            let number = u32::try_from(index.files.len()).unwrap_or(u32::MAX);
            let known = index.by_sector.entry(short_hash(&sector)).or_default();
            if known.len() < ALIKE_MAX {
                known.push(number);
                index.files.push(file);
            }
        }
        index
    }

    /// The recipe of an image, whether it pays or not; `None` when it is beyond the bounds of any.
    pub(super) fn recipe(
        &self,
        image: &Source,
        repository: &Repository,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Recipe>, ContentError> {
        let mut window = Window::new(repository.file(&image.path, image.size)?, image.size);
        let mut draft = Draft::new(image)?;
        let mut whole = blake3::Hasher::new();
        let mut at = 0;
        while at < image.size {
            if stop() {
                return Ok(None);
            }
            let sector = window.at(at, SECTOR)?;
            let found = match <&[u8; SECTOR]>::try_from(sector) {
                Ok(sector) => self.by_sector.get(&short_hash(sector)),
                Err(_) => None,
            };
            let mut best: Option<(u32, u64)> = None;
            for &number in found.into_iter().flatten() {
                let equal = self.equal_bytes(number, image, at, &mut window, repository).unwrap_or(0);
                if equal >= SECTOR as u64 && best.is_none_or(|(_, before)| equal > before) {
                    best = Some((number, equal));
                }
            }
            if let Some((number, length)) = best {
                window.each(at, length, |bytes| {
                    whole.update(bytes);
                    Ok(())
                })?;
                draft.copy(number, self.files[number as usize].content, length);
                at += length;
            }
            // What follows a file up to the next sector, or a sector that is none of any file.
            let rest = if best.is_some() { at.next_multiple_of(SECTOR as u64) - at } else { SECTOR as u64 };
            let rest = rest.min(image.size - at);
            window.each(at, rest, |bytes| {
                whole.update(bytes);
                draft.literal(bytes)
            })?;
            at += rest;
            if draft.is_beyond(image.size) {
                return Ok(None);
            }
        }
        if ContentHash::from(whole.finalize()) != image.content {
            return Err(ContentError::Changed);
        }
        Ok(Some(draft.finish(image)?))
    }

    /// How many bytes of a file stand in the image from `at` on: all, or whole sectors.
    fn equal_bytes(
        &self,
        number: u32,
        image: &Source,
        at: u64,
        window: &mut Window,
        repository: &Repository,
    ) -> Result<u64, ContentError> {
        let file = &self.files[number as usize];
        let open = repository.file(&file.path, file.size)?;
        let most = file.size.min(image.size - at);
        let mut buffer = vec![0; COMPARED_BYTES];
        let mut equal = 0;
        while equal < most {
            let length = COMPARED_BYTES.min(usize::try_from(most - equal).unwrap_or(COMPARED_BYTES));
            open.read_exact_at(&mut buffer[..length], equal)?;
            let there = window.at(at + equal, length)?;
            let same = there.iter().zip(&buffer[..length]).take_while(|(a, b)| a == b).count();
            equal += same as u64;
            if same < length {
                break;
            }
        }
        Ok(if equal == file.size { equal } else { equal / SECTOR as u64 * SECTOR as u64 })
    }
}

/// A recipe on its way.
struct Draft {
    bases: Vec<ContentHash>,
    numbers: HashMap<u32, u32>,
    steps: Vec<Step>,
    literals: zstd::stream::write::Encoder<'static, Vec<u8>>,
    literal_bytes: u64,
}

impl Draft {
    fn new(image: &Source) -> io::Result<Self> {
        let mut literals = zstd::stream::write::Encoder::new(Vec::new(), LITERALS_LEVEL)?;
        if image.size > 1 << 22 {
            literals.long_distance_matching(true)?;
        }
        Ok(Self { bases: Vec::new(), numbers: HashMap::new(), steps: Vec::new(), literals, literal_bytes: 0 })
    }

    fn copy(&mut self, number: u32, content: ContentHash, length: u64) {
        let base = *self.numbers.entry(number).or_insert_with(|| {
            self.bases.push(content);
            u32::try_from(self.bases.len() - 1).unwrap_or(u32::MAX)
        });
        self.steps.push(Step::Copy { base, offset: 0, length });
    }

    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.literals.write_all(bytes)?;
        self.literal_bytes += bytes.len() as u64;
        match self.steps.last_mut() {
            Some(Step::Literal { length }) => *length += bytes.len() as u64,
            _ => self.steps.push(Step::Literal { length: bytes.len() as u64 }),
        }
        Ok(())
    }

    /// Whether nothing good can come of it any more.
    fn is_beyond(&self, size: u64) -> bool {
        self.literal_bytes > LITERAL_BYTES_MAX
            || self.steps.len() > STEPS_MAX
            || self.literals.get_ref().len() as u64 > size / 2
    }

    fn finish(self, image: &Source) -> io::Result<Recipe> {
        let literals = self.literals.finish()?;
        let method = Method::Extents { steps: self.steps, literals };
        Ok(Recipe { target: image.content, size: image.size, bases: self.bases, method })
    }
}

/// A file read in large steps.
struct Window {
    file: File,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(file: File, size: u64) -> Self {
        Self { file, size, start: 0, bytes: Vec::new() }
    }

    /// `length` bytes from `at` on, fewer at the end; at most [`COMPARED_BYTES`].
    fn at(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let length = length.min(usize::try_from(self.size - at).unwrap_or(usize::MAX));
        let end = self.start + self.bytes.len() as u64;
        if at < self.start || at + length as u64 > end {
            let filled = WINDOW_BYTES.min(usize::try_from(self.size - at).unwrap_or(WINDOW_BYTES));
            self.bytes.resize(filled, 0);
            self.file.read_exact_at(&mut self.bytes, at)?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).map_err(io::Error::other)?;
        Ok(&self.bytes[from..from + length])
    }

    fn each(
        &mut self,
        at: u64,
        length: u64,
        mut taken: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut at, end) = (at, at + length);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(COMPARED_BYTES).min(COMPARED_BYTES);
            taken(self.at(at, most)?)?;
            at += most as u64;
        }
        Ok(())
    }
}

fn short_hash(sector: &[u8; SECTOR]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(sector).as_bytes()[..16]);
    short
}

/// Bytes of a sector of ISO 9660.
const SECTOR: usize = 2048;
const IMAGE_BYTES_MIN: u64 = 256 << 10;
/// Files whose first sector is known at most: 30 MB of memory, and some minutes of reading on a slow disk.
const FILES_MAX: usize = 262_144;
/// Files with the same first sector that are compared.
const ALIKE_MAX: usize = 8;
const WINDOW_BYTES: usize = 1 << 20;
const COMPARED_BYTES: usize = 256 << 10;
const LITERALS_LEVEL: i32 = 9;
/// What images are made of.
const PACKAGES: &[&str] = &[".deb", ".udeb", ".rpm", ".apk", ".ipk", ".pkg.tar.zst", ".pkg.tar.xz"];
