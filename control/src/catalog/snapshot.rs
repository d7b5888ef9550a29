//! One state of the catalogue, immutable once published: found by path, by number, by content, by directory.
//!
//! Copying one copies pointers; changing a copy clones only the shards it touches. Nothing here does I/O or locks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use freshet_api::manifest::{PATH_BYTES_MAX, RepoPath};
use freshet_api::table::Table;
use freshet_api::{ContentHash, FileId};

use super::entry::{FileEntry, Row};

/// One state of the catalogue.
#[derive(Clone, Debug)]
pub struct Snapshot {
    sequence: u64,
    /// By the files' numbers.
    rows: Table<Row>,
    folders: Vec<Arc<HashMap<Arc<str>, Arc<Folder>>>>,
    links: Arc<BTreeMap<RepoPath, Box<str>>>,
    bytes: u64,
    contents: u64,
}

/// What stands directly in one directory.
#[derive(Clone, Debug, Default)]
struct Folder {
    files: Vec<FileId>,
    folders: BTreeSet<Box<str>>,
    links: BTreeSet<Box<str>>,
}

impl Snapshot {
    pub(super) fn empty(sequence: u64) -> Self {
        let no_folders = Arc::default();
        Self {
            sequence,
            rows: Table::new(),
            folders: vec![no_folders; FOLDER_SHARDS],
            links: Arc::default(),
            bytes: 0,
            contents: 0,
        }
    }

    /// The number of this state; grows with every published change, also across restarts.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The file that a customer means by this path, with or without a leading `/`.
    ///
    /// Symbolic links of the tree are followed, at most [`LINK_HOPS_MAX`] of them, never out of the tree. The
    /// entry is then the target's, so its `path` may differ from the one asked for.
    pub fn find<'p>(&self, path: &'p [u8]) -> Option<FileEntry<'p>> {
        let path = plain(path)?;
        self.at(path).or_else(|| if self.links.is_empty() { None } else { self.target(&self.resolve(path)?) })
    }

    /// The file with this number, as long as it is current.
    pub fn by_id(&self, file: FileId) -> Option<FileEntry<'static>> {
        self.rows.get(file.0).map(|entry| FileEntry::of(&entry, None))
    }

    /// A file with this content: the one with the lowest number, if several have it.
    pub fn by_content(&self, content: &ContentHash) -> Option<FileEntry<'static>> {
        self.rows.with_content(content).next().map(|entry| FileEntry::of(&entry, None))
    }

    /// The number of that file.
    pub fn number_of_content(&self, content: &ContentHash) -> Option<FileId> {
        self.rows.with_content(content).next().map(|entry| FileId(entry.number()))
    }

    /// Whether this path, links followed, is a directory with something in it (the root always is).
    pub fn is_directory(&self, path: &[u8]) -> bool {
        self.directory(path).is_some()
    }

    /// What stands in this directory, links followed: directories first, then by name. `None` if it is none.
    pub fn list(&self, path: &[u8]) -> Option<Vec<ListItem>> {
        let (directory, folder) = self.directory(path)?;
        let Some(folder) = folder else { return Some(Vec::new()) };
        let mut items: Vec<ListItem> = folder
            .folders
            .iter()
            .map(|name| ListItem { name: name.to_string(), kind: ItemKind::Directory })
            .collect();
        items.extend(folder.files.iter().filter_map(|&file| self.by_id(file)).map(|row| ListItem {
            name: row.path.file_name().to_owned(),
            kind: ItemKind::File { file: row.file, size: row.size, mtime: row.mtime },
        }));
        items.extend(folder.links.iter().filter_map(|name| {
            let target = self.links.get(joined(&directory, name).as_str())?;
            Some(ListItem { name: name.to_string(), kind: ItemKind::Link { target: target.to_string() } })
        }));
        items.sort_by(|a, b| {
            let rank = |item: &ListItem| !matches!(item.kind, ItemKind::Directory);
            rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))
        });
        Some(items)
    }

    /// Files.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Different contents.
    pub fn contents(&self) -> u64 {
        self.contents
    }

    /// All files in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = FileEntry<'static>> + '_ {
        self.rows.iter().map(|entry| FileEntry::of(&entry, None))
    }

    /// All symbolic links by path, with their targets as they are on disk.
    pub fn links(&self) -> impl ExactSizeIterator<Item = (&RepoPath, &str)> + '_ {
        self.links.iter().map(|(path, target)| (path, &**target))
    }

    /// The file at exactly this path, with a path of its own.
    fn target(&self, path: &str) -> Option<FileEntry<'static>> {
        self.rows.at(path).next().map(|entry| FileEntry::of(&entry, None))
    }

    /// The path with the symbolic links in it followed; it need not exist.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut resolved = String::with_capacity(path.len());
        let mut rest: Vec<&str> = path.split('/').rev().collect();
        let mut hops = 0;
        while let Some(segment) = rest.pop() {
            match segment {
                "" | "." => continue,
                ".." if resolved.is_empty() => return None,
                ".." => resolved.truncate(resolved.rfind('/').unwrap_or(0)),
                name => {
                    let parent = resolved.len();
                    if parent > 0 {
                        resolved.push('/');
                    }
                    resolved.push_str(name);
                    if let Some(target) = self.links.get(resolved.as_str()) {
                        hops += 1;
                        resolved.truncate(parent);
                        rest.extend(target.split('/').rev());
                    }
                }
            }
            if hops > LINK_HOPS_MAX || resolved.len() > PATH_BYTES_MAX {
                return None;
            }
        }
        Some(resolved)
    }

    fn directory(&self, path: &[u8]) -> Option<(String, Option<&Folder>)> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if path.is_empty() {
            return Some((String::new(), self.folder("")));
        }
        let path = self.resolve(plain(path)?)?;
        let folder = self.folder(&path);
        (folder.is_some() || path.is_empty()).then_some((path, folder))
    }
}

/// What the keeper of the catalogue asks, and how it changes its own copy.
impl Snapshot {
    pub(super) fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// The file at exactly this path, no link followed.
    pub(super) fn at<'p>(&self, path: &'p str) -> Option<FileEntry<'p>> {
        self.rows.at(path).next().map(|entry| FileEntry::of(&entry, Some(path)))
    }

    /// The target of the link at exactly this path.
    pub(super) fn link_at(&self, path: &str) -> Option<&str> {
        self.links.get(path).map(|target| &**target)
    }

    /// Every file and link beneath this directory (the root is the empty path).
    pub(super) fn beneath(&self, directory: &str) -> Vec<RepoPath> {
        let mut found = Vec::new();
        let mut open = vec![directory.to_owned()];
        while let Some(directory) = open.pop() {
            let Some(folder) = self.folder(&directory) else { continue };
            found.extend(
                folder.files.iter().filter_map(|&file| self.by_id(file)).map(|row| row.path.to_repo_path()),
            );
            found.extend(folder.links.iter().filter_map(|name| {
                self.links.get_key_value(joined(&directory, name).as_str()).map(|(path, _)| path.clone())
            }));
            open.extend(folder.folders.iter().map(|name| joined(&directory, name)));
        }
        found
    }

    /// The names that stand directly in this directory as files and links.
    pub(super) fn names_in(&self, directory: &str) -> Vec<RepoPath> {
        let Some(folder) = self.folder(directory) else { return Vec::new() };
        let files =
            folder.files.iter().filter_map(|&file| self.by_id(file)).map(|row| row.path.to_repo_path());
        let links = folder.links.iter().filter_map(|name| {
            self.links.get_key_value(joined(directory, name).as_str()).map(|(path, _)| path.clone())
        });
        files.chain(links).collect()
    }

    /// The names that stand directly in this directory as directories.
    pub(super) fn folders_in(&self, directory: &str) -> Vec<String> {
        self.folder(directory)
            .map(|folder| folder.folders.iter().map(|name| joined(directory, name)).collect())
            .unwrap_or_default()
    }

    /// Adds a file whose number and path are not yet there.
    pub(super) fn insert(&mut self, entry: &FileEntry<'_>) {
        let content = entry.checksums.blake3;
        self.contents += u64::from(self.rows.with_content(&content).next().is_none());
        self.note(entry);
        self.rows.insert(entry.file.0, &entry.path.to_repo_path(), content, entry.row());
    }

    /// Adds many of them, in a fraction of the time that one by one takes.
    pub(super) fn extend(&mut self, entries: &[FileEntry<'_>]) {
        entries.iter().for_each(|entry| self.note(entry));
        let alike = self.rows.extend(
            entries
                .iter()
                .map(|entry| (entry.file.0, entry.path.as_str(), entry.checksums.blake3, entry.row())),
        );
        let is_first = |&number: &u32| {
            let content = self.rows.get(number).map(|entry| *entry.content());
            content.and_then(|content| self.number_of_content(&content)) == Some(FileId(number))
        };
        let again = alike.len() - alike.iter().filter(|number| is_first(number)).count();
        self.contents += (entries.len() - again) as u64;
    }

    /// Counts a new file and lists it in its directory.
    fn note(&mut self, entry: &FileEntry<'_>) {
        self.bytes += entry.size;
        let (directory, _) = parent(entry.path.as_str());
        self.folder_for(directory).files.push(entry.file);
    }

    /// Changes a file in place, content and path staying as they are.
    pub(super) fn refresh(&mut self, entry: &FileEntry<'_>) {
        self.rows.change(entry.file.0, |row| *row = entry.row());
    }

    /// Takes a file out.
    pub(super) fn remove(&mut self, file: FileId) -> Option<FileEntry<'static>> {
        let entry = self.by_id(file)?;
        self.rows.remove(file.0);
        self.bytes -= entry.size;
        self.contents -= u64::from(self.number_of_content(&entry.checksums.blake3).is_none());
        let (directory, _) = parent(entry.path.as_str());
        self.folder_for(directory).files.retain(|&other| other != file);
        self.close_empty(directory);
        Some(entry)
    }

    /// Puts a link, in place of one that may be there.
    pub(super) fn set_link(&mut self, path: RepoPath, target: &str) {
        let (directory, name) = parent(path.as_str());
        self.folder_for(directory).links.insert(name.into());
        Arc::make_mut(&mut self.links).insert(path, target.into());
    }

    /// Takes a link out.
    pub(super) fn remove_link(&mut self, path: &str) -> bool {
        if !self.links.contains_key(path) {
            return false;
        }
        Arc::make_mut(&mut self.links).remove(path);
        let (directory, name) = parent(path);
        self.folder_for(directory).links.remove(name);
        self.close_empty(directory);
        true
    }

    /// Gives back what growing left over; worth it once, after loading.
    pub(super) fn shrink(&mut self) {
        for folder in self.folders.iter_mut().flat_map(|shard| Arc::make_mut(shard).values_mut()) {
            Arc::make_mut(folder).files.shrink_to_fit();
        }
    }

    /// Directories, the root among them.
    pub(super) fn directories(&self) -> usize {
        self.folders.iter().map(|shard| shard.len()).sum()
    }

    fn folder(&self, directory: &str) -> Option<&Folder> {
        self.folders[folder_shard(directory)].get(directory).map(|folder| &**folder)
    }

    /// The directory, made with its parents where it is missing.
    fn folder_for(&mut self, directory: &str) -> &mut Folder {
        let shard = folder_shard(directory);
        if !self.folders[shard].contains_key(directory) {
            if !directory.is_empty() {
                let (above, name) = parent(directory);
                self.folder_for(above).folders.insert(name.into());
            }
            Arc::make_mut(&mut self.folders[shard]).insert(directory.into(), Arc::default());
        }
        let folder = Arc::make_mut(&mut self.folders[shard]).get_mut(directory);
        Arc::make_mut(folder.expect("it was there or was just made"))
    }

    /// Removes the directory and its parents as far as nothing is left in them.
    fn close_empty(&mut self, directory: &str) {
        let mut directory = directory;
        while self
            .folder(directory)
            .is_some_and(|f| f.files.is_empty() && f.folders.is_empty() && f.links.is_empty())
        {
            Arc::make_mut(&mut self.folders[folder_shard(directory)]).remove(directory);
            if directory.is_empty() {
                return;
            }
            let (above, name) = parent(directory);
            self.folder_for(above).folders.remove(name);
            directory = above;
        }
    }
}

/// One line of a directory's index page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListItem {
    /// Its name in the directory.
    pub name: String,
    /// What it is.
    pub kind: ItemKind,
}

/// What a name in a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Its number.
        file: FileId,
        /// Bytes.
        size: u64,
        /// Seconds since the epoch.
        mtime: i64,
    },
    /// A symbolic link.
    Link {
        /// Where it points, as it is on disk.
        target: String,
    },
}

/// `directory/name`; the root is the empty directory.
pub(super) fn joined(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// The directory of a path and the name in it.
pub(super) fn parent(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A customer's path without its leading `/`, if its segments are names.
fn plain(path: &[u8]) -> Option<&str> {
    let path = std::str::from_utf8(path.strip_prefix(b"/").unwrap_or(path)).ok()?;
    path.split('/').all(|segment| !matches!(segment, "" | "." | "..")).then_some(path)
}

/// Not keyed: directories are the operator's own; a customer only looks them up.
fn folder_shard(directory: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    directory.hash(&mut hasher);
    (hasher.finish() >> 32) as usize % FOLDER_SHARDS
}

/// Symbolic links followed for one path at most, as many as Linux follows.
pub const LINK_HOPS_MAX: usize = 40;

const FOLDER_SHARDS: usize = 4096;
