//! The mirror tree on disk: hard links to blobs and the manifest's symbolic links, under the manifest's paths.
//!
//! Every step stays beneath the tree's root and follows no symbolic link (`openat2`, Linux 5.6): the tree may
//! contain stale or hostile ones. What is not named to it is never touched, apart from directories that its
//! own deletions left empty.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::MirrorError;
use super::blobs::{BlobStore, names};

pub(super) struct Tree {
    path: PathBuf,
    root: OwnedFd,
    /// The directory that was used last: paths come sorted.
    recent: Option<(String, OwnedFd)>,
}

/// Why a path could not be put in place.
pub(super) enum PlaceError {
    /// Something else stands at `at`, which is the path or a directory that it needs.
    Blocked {
        at: String,
        found: FileType,
    },
    Other(MirrorError),
}

impl From<MirrorError> for PlaceError {
    fn from(error: MirrorError) -> Self {
        Self::Other(error)
    }
}

impl Tree {
    pub(super) fn open(path: &Path) -> Result<Self, MirrorError> {
        std::fs::create_dir_all(path).map_err(|source| MirrorError::Disk {
            doing: "make",
            path: path.to_owned(),
            source,
        })?;
        let root =
            rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(MirrorError::disk("open", path))?;
        Ok(Self { path: path.to_owned(), root, recent: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Forgets the directory used last, which somebody may have moved since.
    pub(super) fn forget(&mut self) {
        self.recent = None;
    }

    /// Puts a hard link to a blob at `path`, in place of any non-directory that is there.
    pub(super) fn place_blob(&mut self, store: &BlobStore, blob: &str, path: &str) -> Result<(), PlaceError> {
        let error = self.failed("link", path);
        let expected =
            rustix::fs::statat(store.directory(), blob, AtFlags::SYMLINK_NOFOLLOW).map_err(&error)?;
        let (parent, name) = self.parent(path, true)?;
        let parent = parent.ok_or_else(|| error(Errno::NOENT))?;
        match rustix::fs::linkat(store.directory(), blob, parent, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(Errno::MLINK) => {}
            Err(errno) => return Err(error(errno).into()),
        }
        if let Some(found) = look(parent, name).map_err(&error)? {
            if (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino) {
                return Ok(());
            }
            let found = FileType::from_raw_mode(found.st_mode);
            if found == FileType::Directory {
                return Err(PlaceError::Blocked { at: path.to_owned(), found });
            }
        }
        let scratch = store.scratch_name();
        let placed =
            match rustix::fs::linkat(store.directory(), blob, store.scratch(), &*scratch, AtFlags::empty()) {
                // Some filesystems bound the links of an inode (ext4: 65,000); the tree gets a copy then.
                Err(Errno::MLINK) => copy(store, blob, &scratch, &expected),
                other => other,
            };
        let placed = placed.and_then(|()| rustix::fs::renameat(store.scratch(), &*scratch, parent, name));
        // Renaming onto a link to the same inode does nothing and leaves the old name.
        let _ = rustix::fs::unlinkat(store.scratch(), &*scratch, AtFlags::empty());
        placed.map_err(&error).map_err(Into::into)
    }

    /// Puts a symbolic link at `path`, in place of any non-directory that is there.
    pub(super) fn place_symlink(
        &mut self,
        store: &BlobStore,
        target: &str,
        path: &str,
    ) -> Result<(), PlaceError> {
        let error = self.failed("make the symbolic link", path);
        let (parent, name) = self.parent(path, true)?;
        let parent = parent.ok_or_else(|| error(Errno::NOENT))?;
        if let Some(found) = look(parent, name).map_err(&error)? {
            let found = FileType::from_raw_mode(found.st_mode);
            if found == FileType::Directory {
                return Err(PlaceError::Blocked { at: path.to_owned(), found });
            }
            let same = found == FileType::Symlink
                && rustix::fs::readlinkat(parent, name, Vec::new())
                    .is_ok_and(|is| is.as_bytes() == target.as_bytes());
            if same {
                return Ok(());
            }
        }
        let scratch = store.scratch_name();
        rustix::fs::symlinkat(target, store.scratch(), &*scratch)
            .and_then(|()| rustix::fs::renameat(store.scratch(), &*scratch, parent, name))
            .inspect_err(|_| {
                let _ = rustix::fs::unlinkat(store.scratch(), &*scratch, AtFlags::empty());
            })
            .map_err(&error)
            .map_err(Into::into)
    }

    /// Removes the non-directory at `path`, if there is one, and the directories that this leaves empty.
    pub(super) fn remove(&mut self, path: &str) -> Result<(), MirrorError> {
        let error = self.failed("delete", path);
        let (parent, name) = match self.parent(path, false) {
            Ok((Some(parent), name)) => (parent, name),
            // Without its directory it is not there either.
            Ok((None, _)) | Err(PlaceError::Blocked { .. }) => return Ok(()),
            Err(PlaceError::Other(error)) => return Err(error),
        };
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
            Err(errno) => return Err(error(errno)),
        }
        self.forget();
        let mut rest = path;
        while let Some((directory, _)) = rest.rsplit_once('/') {
            let Ok((Some(parent), name)) = self.parent(directory, false) else { break };
            if rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            self.forget();
            rest = directory;
        }
        Ok(())
    }

    /// Removes a directory that contains nothing but directories; `false` when something else is in it.
    pub(super) fn remove_empty(&mut self, path: &str) -> Result<bool, MirrorError> {
        self.forget();
        let error = self.failed("delete the directory", path);
        let (parent, name) = match self.parent(path, false) {
            Ok((Some(parent), name)) => (parent, name),
            Ok((None, _)) | Err(PlaceError::Blocked { .. }) => return Ok(true),
            Err(PlaceError::Other(error)) => return Err(error),
        };
        let removed = remove_empty_below(parent, name, DEPTH_MAX).map_err(&error);
        self.forget();
        removed
    }

    /// What stands at `path`, symbolic links not followed.
    pub(super) fn look(&mut self, path: &str) -> Result<Option<Stat>, MirrorError> {
        let error = self.failed("look at", path);
        match self.parent(path, false) {
            Ok((Some(parent), name)) => look(parent, name).map_err(&error),
            Ok((None, _)) | Err(PlaceError::Blocked { .. }) => Ok(None),
            Err(PlaceError::Other(error)) => Err(error),
        }
    }

    /// Opens a regular file for reading.
    pub(super) fn read(&mut self, path: &str) -> Result<Option<File>, MirrorError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match beneath(&self.root, path, flags) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Ok(None),
            Err(errno) => Err(MirrorError::disk("open", self.path.join(path))(errno)),
        }
    }

    /// Makes errors about a path; owned, because opening directories changes what is remembered.
    fn failed(&self, doing: &'static str, path: &str) -> impl Fn(Errno) -> MirrorError + Clone + use<> {
        let root = self.path.clone();
        let path = path.to_owned();
        move |errno| MirrorError::disk(doing, root.join(&path))(errno)
    }

    /// The directory of a path and the path's last segment; with `make`, the directory is made if need be.
    fn parent<'a>(
        &mut self,
        path: &'a str,
        make: bool,
    ) -> Result<(Option<BorrowedFd<'_>>, &'a str), PlaceError> {
        let Some((directory, name)) = path.rsplit_once('/') else {
            return Ok((Some(self.root.as_fd()), path));
        };
        if self.recent.as_ref().is_none_or(|(recent, _)| recent != directory) {
            self.recent = None;
            let opened = match beneath(&self.root, directory, PARENT) {
                Ok(opened) => opened,
                Err(Errno::NOENT) if !make => return Ok((None, name)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                    match self.walk(directory, make)? {
                        Some(opened) => opened,
                        None => return Ok((None, name)),
                    }
                }
                Err(errno) => return Err(MirrorError::disk("open", self.path.join(directory))(errno).into()),
            };
            self.recent = Some((directory.to_owned(), opened));
        }
        Ok((self.recent.as_ref().map(|(_, opened)| opened.as_fd()), name))
    }

    /// Goes to a directory step by step, making what is missing; says what is in the way.
    fn walk(&self, directory: &str, make: bool) -> Result<Option<OwnedFd>, PlaceError> {
        let error = |errno| MirrorError::disk("make the directory", self.path.join(directory))(errno);
        let mut at: Option<OwnedFd> = None;
        let mut end = 0;
        for segment in directory.split('/') {
            end += segment.len() + usize::from(end > 0);
            let from = at.as_ref().unwrap_or(&self.root);
            let mut opened = rustix::fs::openat(from, segment, PARENT, Mode::empty());
            if make && matches!(opened, Err(Errno::NOENT)) {
                match rustix::fs::mkdirat(from, segment, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(error(errno).into()),
                }
                opened = rustix::fs::openat(from, segment, PARENT, Mode::empty());
            }
            at = Some(match opened {
                Ok(opened) => opened,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let found = look(from.as_fd(), segment).map_err(&error)?;
                    let found =
                        found.map_or(FileType::Unknown, |found| FileType::from_raw_mode(found.st_mode));
                    return Err(PlaceError::Blocked { at: directory[..end].to_owned(), found });
                }
                Err(errno) => return Err(error(errno).into()),
            });
        }
        Ok(at)
    }
}

/// Opens beneath a root, following no symbolic link.
fn beneath(root: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..AGAIN_MAX {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // Something was renamed while the kernel resolved the path.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

fn look(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn remove_empty_below(parent: BorrowedFd<'_>, name: &str, depth_left: usize) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) if depth_left > 0 => {}
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    let flags = DIRECTORY | OFlags::NOFOLLOW;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut empty = true;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") && entry.file_name().to_str().is_err() {
            empty = false;
        }
    }
    for below in names(&directory)? {
        empty &= remove_empty_below(directory.as_fd(), &below, depth_left - 1)?;
    }
    if !empty {
        return Ok(false);
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map(|()| true)
}

/// A copy of a blob under a scratch name, with its mode and time.
fn copy(store: &BlobStore, blob: &str, scratch: &str, expected: &Stat) -> rustix::io::Result<()> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut from = File::from(rustix::fs::openat(store.directory(), blob, flags, Mode::empty())?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut to = File::from(rustix::fs::openat(store.scratch(), scratch, flags, Mode::from_raw_mode(0o444))?);
    std::io::copy(&mut from, &mut to).map_err(errno)?;
    let time = rustix::fs::Timespec { tv_sec: expected.st_mtime, tv_nsec: 0 };
    rustix::fs::futimens(&to, &rustix::fs::Timestamps { last_access: time, last_modification: time })?;
    to.sync_all().map_err(errno)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PARENT: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How often a path is resolved again while others rename beneath it.
const AGAIN_MAX: usize = 8;

/// Levels of empty directories that are removed at most.
const DEPTH_MAX: usize = 64;
