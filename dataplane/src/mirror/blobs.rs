//! Blobs on disk: written aside, made durable, then renamed to the name that is their hash.
//!
//! It knows nothing of paths in the tree. Nothing gets a blob's name that was not verified before, and
//! nothing that has one is ever written to.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use freshet_api::ContentHash;
use rustix::fs::{AtFlags, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::MirrorError;
use super::stored::Stamp;

pub(super) struct BlobStore {
    blobs_path: PathBuf,
    blobs: OwnedFd,
    scratch_path: PathBuf,
    scratch: OwnedFd,
    partial_path: PathBuf,
    partial: OwnedFd,
    swarm_path: PathBuf,
    next_scratch: AtomicU64,
    /// Contents whose partial file somebody writes now.
    receiving: Mutex<HashSet<ContentHash>>,
    /// Bytes that are left free for others.
    reserve_bytes: u64,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl BlobStore {
    /// Opens the store below a state directory, and clears what a kill left half-written.
    pub(super) fn open(state: &Path, reserve_bytes: u64) -> Result<Self, MirrorError> {
        let [blobs_path, scratch_path, partial_path, swarm_path] =
            ["blobs", "scratch", "partial", "swarm"].map(|name| state.join(name));
        let blobs = directory(&blobs_path)?;
        for shard in 0..=255u8 {
            make_directory(&blobs, &hex::encode([shard])).map_err(MirrorError::disk("make", &blobs_path))?;
        }
        let scratch = directory(&scratch_path)?;
        for name in names(&scratch).map_err(MirrorError::disk("list", &scratch_path))? {
            rustix::fs::unlinkat(&scratch, name.as_str(), AtFlags::empty())
                .map_err(MirrorError::disk("clear", scratch_path.join(&name)))?;
        }
        let partial = directory(&partial_path)?;
        directory(&swarm_path)?;
        Ok(Self {
            blobs_path,
            blobs,
            scratch_path,
            scratch,
            partial_path,
            partial,
            swarm_path,
            next_scratch: AtomicU64::new(0),
            receiving: Mutex::default(),
            reserve_bytes,
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.blobs_path
    }

    /// Where what is copied in pieces lies until it is whole; on the blobs' filesystem.
    pub(super) fn swarm_path(&self) -> &Path {
        &self.swarm_path
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.blobs.as_fd()
    }

    pub(super) fn scratch(&self) -> BorrowedFd<'_> {
        self.scratch.as_fd()
    }

    pub(super) fn scratch_name(&self) -> String {
        self.next_scratch.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// What a blob is on disk, if it is there.
    pub(super) fn stamp(&self, content: &ContentHash) -> Result<Option<(Stamp, u64)>, MirrorError> {
        let name = blob_name(content);
        match rustix::fs::statat(&self.blobs, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_regular(&stat) => Ok(Some((stamp(&stat), u64::from(stat.st_nlink as u32)))),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(MirrorError::disk("look at", self.blobs_path.join(name))(errno)),
        }
    }

    /// Opens a blob for reading.
    pub(super) fn read(&self, content: &ContentHash) -> Result<Option<File>, MirrorError> {
        let name = blob_name(content);
        match rustix::fs::openat(&self.blobs, &*name, READ, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(MirrorError::disk("open", self.blobs_path.join(name))(errno)),
        }
    }

    /// Writes a small verified content aside; [`BlobStore::install`] gives it its name.
    pub(super) fn write_aside(&self, bytes: &[u8], mtime: i64) -> Result<Aside, MirrorError> {
        let name = self.scratch_name();
        let path = self.scratch_path.join(&name);
        #[cfg(test)]
        self.faults.check("write", &path)?;
        let file = rustix::fs::openat(&self.scratch, name.as_str(), CREATE, Mode::from_raw_mode(FILE_MODE))
            .map_err(MirrorError::disk("make", &path))?;
        let aside = Aside { place: Place::Scratch(name), file: File::from(file) };
        let written = write_all(&aside.file, bytes).and_then(|()| finish(&aside.file, mtime));
        if let Err(source) = written {
            self.discard(&aside);
            return Err(MirrorError::Disk { doing: "write", path, source });
        }
        Ok(aside)
    }

    /// A partial file that was received and verified whole, ready for [`BlobStore::install`].
    pub(super) fn whole_partial(
        &self,
        content: &ContentHash,
        file: File,
        mtime: i64,
    ) -> Result<Aside, MirrorError> {
        finish(&file, mtime).map_err(|source| MirrorError::Disk {
            doing: "finish",
            path: self.partial_path.join(content.to_hex()),
            source,
        })?;
        Ok(Aside { place: Place::Partial(content.to_hex()), file })
    }

    /// A file in another directory on this filesystem that was verified whole, ready for [`BlobStore::install`].
    pub(super) fn whole_elsewhere(&self, found: Elsewhere, mtime: i64) -> Result<Aside, MirrorError> {
        let Elsewhere { file, directory, name } = found;
        finish(&file, mtime).map_err(|source| MirrorError::Disk {
            doing: "finish",
            path: self.swarm_path.join(&name),
            source,
        })?;
        Ok(Aside { place: Place::Elsewhere(directory, name), file })
    }

    /// Makes a batch durable: one `syncfs` for many, `fsync` for few.
    pub(super) fn sync(&self, batch: &[(ContentHash, Aside)]) -> Result<(), MirrorError> {
        if batch.len() > FSYNC_MAX {
            return self.sync_all();
        }
        for (_, aside) in batch {
            aside.file.sync_all().map_err(|source| MirrorError::Disk {
                doing: "sync",
                path: self.scratch_path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Everything that was written to the filesystem so far is durable when it returns.
    pub(super) fn sync_all(&self) -> Result<(), MirrorError> {
        rustix::fs::syncfs(&self.blobs).map_err(MirrorError::disk("sync the filesystem of", &self.blobs_path))
    }

    /// Gives a durable file its name among the blobs.
    pub(super) fn install(&self, content: &ContentHash, aside: &Aside) -> Result<(), MirrorError> {
        let name = blob_name(content);
        let (directory, from) = match &aside.place {
            Place::Scratch(name) => (&self.scratch, name),
            Place::Partial(name) => (&self.partial, name),
            Place::Elsewhere(directory, name) => (&**directory, name),
        };
        rustix::fs::renameat(directory, from.as_str(), &self.blobs, &*name)
            .map_err(MirrorError::disk("install", self.blobs_path.join(&name)))
    }

    /// Links a scratch file into another directory and removes the link again: whether that works at all.
    pub(super) fn try_link_into(
        &self,
        aside: &Aside,
        to: BorrowedFd<'_>,
        name: &str,
    ) -> rustix::io::Result<()> {
        let Place::Scratch(from) = &aside.place else { return Ok(()) };
        rustix::fs::linkat(&self.scratch, from.as_str(), to, name, AtFlags::empty())?;
        rustix::fs::unlinkat(to, name, AtFlags::empty())
    }

    /// Links a verified file that lies elsewhere on this filesystem among the blobs.
    ///
    /// The very inode that `file` has open is linked, whatever stands at its path by now.
    pub(super) fn adopt(&self, content: &ContentHash, file: &File) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let name = blob_name(content);
        match rustix::fs::linkat(rustix::fs::CWD, &*from, &self.blobs, &*name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives a blob another modification time.
    pub(super) fn set_mtime(&self, content: &ContentHash, mtime: i64) -> io::Result<()> {
        Ok(rustix::fs::utimensat(
            &self.blobs,
            &*blob_name(content),
            &times(mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Takes the right to write from everybody, so that a tree's file is not changed in place.
    pub(super) fn protect(&self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(FILE_MODE))?)
    }

    pub(super) fn remove(&self, content: &ContentHash) -> Result<(), MirrorError> {
        let name = blob_name(content);
        match rustix::fs::unlinkat(&self.blobs, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(MirrorError::disk("delete", self.blobs_path.join(name))(errno)),
        }
    }

    /// Removes what was written aside and is not needed.
    pub(super) fn discard(&self, aside: &Aside) {
        if let Place::Scratch(name) = &aside.place {
            // What stays is cleared at the next start.
            let _ = rustix::fs::unlinkat(&self.scratch, name.as_str(), AtFlags::empty());
        }
    }

    /// All blobs by name; entries that are no blobs are left out.
    pub(super) fn list(&self) -> Result<HashSet<ContentHash>, MirrorError> {
        let mut found = HashSet::new();
        for shard in 0..=255u8 {
            let shard = hex::encode([shard]);
            let path = self.blobs_path.join(&shard);
            let directory = rustix::fs::openat(&self.blobs, shard.as_str(), DIRECTORY, Mode::empty())
                .map_err(MirrorError::disk("open", &path))?;
            let names = names(&directory).map_err(MirrorError::disk("list", &path))?;
            found
                .extend(names.iter().filter_map(|name| format!("{shard}{name}").parse::<ContentHash>().ok()));
        }
        Ok(found)
    }

    /// Opens (or makes) the partial file of a content, alone.
    pub(super) fn open_partial(
        self: &std::sync::Arc<Self>,
        content: &ContentHash,
    ) -> Result<Partial, MirrorError> {
        if !self.receiving().insert(*content) {
            return Err(MirrorError::Busy { content: *content });
        }
        let lease = Lease { store: std::sync::Arc::clone(self), content: *content };
        let path = self.partial_path.join(content.to_hex());
        #[cfg(test)]
        self.faults.check("open", &path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.partial, content.to_hex(), flags, Mode::from_raw_mode(0o600))
            .map_err(MirrorError::disk("open", &path))?;
        Ok(Partial { file: file.into(), path, lease })
    }

    /// Removes partial files that nothing waits for.
    pub(super) fn sweep_partials(&self, keep: &HashSet<ContentHash>) -> Result<(), MirrorError> {
        for name in names(&self.partial).map_err(MirrorError::disk("list", &self.partial_path))? {
            let content = name.parse::<ContentHash>().ok();
            let receiving = self.receiving();
            if content.is_none_or(|content| !keep.contains(&content) && !receiving.contains(&content)) {
                rustix::fs::unlinkat(&self.partial, name.as_str(), AtFlags::empty())
                    .map_err(MirrorError::disk("delete", self.partial_path.join(&name)))?;
            }
        }
        Ok(())
    }

    /// Checks that `bytes` more fit and the reserve stays free.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), MirrorError> {
        let room = rustix::fs::fstatvfs(&self.blobs)
            .map_err(MirrorError::disk("ask for free space on", &self.blobs_path))?;
        let free_bytes = room.f_bavail.saturating_mul(room.f_frsize);
        let needed_bytes = bytes.saturating_add(self.reserve_bytes);
        if free_bytes < needed_bytes {
            return Err(MirrorError::Full { path: self.blobs_path.clone(), needed_bytes, free_bytes });
        }
        Ok(())
    }

    fn receiving(&self) -> std::sync::MutexGuard<'_, HashSet<ContentHash>> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that waits for its name.
pub(super) struct Aside {
    place: Place,
    pub(super) file: File,
}

enum Place {
    Scratch(String),
    Partial(String),
    Elsewhere(std::sync::Arc<OwnedFd>, String),
}

/// A file that lies in another directory of this filesystem.
pub(super) struct Elsewhere {
    pub(super) file: File,
    pub(super) directory: std::sync::Arc<OwnedFd>,
    pub(super) name: String,
}

/// The partial file of a content, which nobody else writes while this lives.
pub(super) struct Partial {
    pub(super) file: File,
    pub(super) path: PathBuf,
    #[expect(dead_code, reason = "held for its drop")]
    lease: Lease,
}

struct Lease {
    store: std::sync::Arc<BlobStore>,
    content: ContentHash,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.receiving().remove(&self.content);
    }
}

/// Where a blob is, relative to the blobs' directory: `ab/cdef…`.
pub(super) fn blob_name(content: &ContentHash) -> String {
    let mut name = content.to_hex();
    name.insert(2, '/');
    name
}

/// The same in bytes and with one allocation, for readers.
pub(super) fn blob_bytes(content: &ContentHash) -> bytes::Bytes {
    let mut name = [b'/'; 65];
    let (shard, rest) = content.0.split_at(1);
    hex::encode_to_slice(shard, &mut name[..2]).expect("two digits for a byte");
    hex::encode_to_slice(rest, &mut name[3..]).expect("62 digits for 31 bytes");
    bytes::Bytes::copy_from_slice(&name)
}

pub(super) fn stamp(stat: &Stat) -> Stamp {
    Stamp {
        inode: stat.st_ino,
        // A regular file's size is never negative.
        size: stat.st_size.unsigned_abs(),
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        ctime: (stat.st_ctime, stat.st_ctime_nsec as u32),
    }
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
}

/// Names in a directory, without `.` and `..`; what is not UTF-8 is not ours.
pub(super) fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn directory(path: &Path) -> Result<OwnedFd, MirrorError> {
    std::fs::create_dir_all(path).map_err(|source| MirrorError::Disk {
        doing: "make",
        path: path.to_owned(),
        source,
    })?;
    rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(MirrorError::disk("open", path))
}

fn make_directory(parent: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn write_all(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut file, bytes)
}

/// Mode and time that a blob has for good.
fn finish(file: &File, mtime: i64) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(FILE_MODE))?;
    rustix::fs::futimens(file, &times(mtime))?;
    Ok(())
}

fn times(mtime: i64) -> Timestamps {
    let at = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const CREATE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Readable for everybody, writable for nobody: blobs and the tree's files are the same inodes.
const FILE_MODE: u32 = 0o444;

/// Files that are synced one by one at most; more are synced with their whole filesystem.
const FSYNC_MAX: usize = 3;
