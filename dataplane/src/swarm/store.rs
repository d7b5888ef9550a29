//! The pieces of one bundle on disk: objects of their full size that are filled in place, and which pieces are durable.
//!
//! A piece is written only after it was verified; its bit is set only after its bytes are durable. What a kill -9
//! left written and not recorded is found again by its hash. Nothing here knows of peers.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use freshet_api::ContentHash;
use freshet_api::bundle::{BundleId, Place};
use freshet_policy::swarm::PieceSet;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::layout::Layout;
use crate::mirror::{Mirror, MirrorError};

/// One bundle's directory. Its methods block.
pub(crate) struct PieceStore {
    layout: Arc<Layout>,
    mirror: Arc<Mirror>,
    path: PathBuf,
    directory: Arc<OwnedFd>,
    bitmap: File,
    durable: Mutex<PieceSet>,
}

impl PieceStore {
    /// Opens or makes the directory, and finds what is there already: recorded, or written and not recorded.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(mirror: Arc<Mirror>, layout: Arc<Layout>) -> Result<Self, MirrorError> {
        let path = mirror.swarm_directory().join(layout.id.to_string());
        std::fs::create_dir_all(&path).map_err(disk("make", &path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| disk("open", &path)(errno.into()))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let bitmap_path = path.join(BITMAP);
        let bitmap = rustix::fs::openat(&directory, BITMAP, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| disk("open", &bitmap_path)(errno.into()))?;
        let store = Self {
            durable: Mutex::new(PieceSet::new(layout.pieces())),
            layout,
            mirror,
            path,
            directory: Arc::new(directory),
            bitmap: bitmap.into(),
        };
        store.recover()?;
        Ok(store)
    }

    /// The directory, for moving a whole object out of it.
    pub(crate) fn directory(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.directory)
    }

    /// Pieces that are verified and durable.
    pub(crate) fn durable(&self) -> PieceSet {
        self.lock().clone()
    }

    /// Writes a piece, which the caller has verified. It is not durable yet.
    ///
    /// # Errors
    /// The disk's, [`MirrorError::Full`] before there is no room for the whole object.
    pub(crate) fn write(&self, piece: u32, place: &Place, bytes: &[u8]) -> Result<(), MirrorError> {
        if self.lock().contains(piece) {
            // Asked for twice; the object may be a blob by now.
            return Ok(());
        }
        let object = &self.layout.bundle.objects[place.object];
        let path = self.path.join(object.content.to_hex());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.open_object(&object.content, flags)?;
        if file.metadata().map_err(disk("look at", &path))?.len() != object.size {
            self.mirror.check_room(object.size)?;
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, object.size) {
                // A file system that can't promise room still keeps holes.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(object.size),
                other => other.map_err(Into::into),
            }
            .map_err(disk("make room for", &path))?;
        }
        file.write_all_at(bytes, place.range.start).map_err(disk("write", &path))
    }

    /// Makes written pieces durable, then records them.
    ///
    /// # Errors
    /// The disk's; none of them counts as durable then.
    pub(crate) fn sync(&self, pieces: &[u32]) -> Result<(), MirrorError> {
        let objects: BTreeSet<usize> =
            pieces.iter().filter_map(|&piece| self.layout.place(piece)).map(|place| place.object).collect();
        let synced = if objects.len() > SYNCED_ALONE_MAX {
            rustix::fs::syncfs(&*self.directory).map_err(io::Error::from)
        } else {
            objects.iter().try_for_each(|&object| {
                let content = &self.layout.bundle.objects[object].content;
                let name = content.to_hex();
                match rustix::fs::openat(&*self.directory, &*name, READ, Mode::empty()) {
                    Ok(file) => rustix::fs::fdatasync(&file).map_err(io::Error::from),
                    Err(errno) => Err(errno.into()),
                }
            })
        };
        synced.map_err(disk("sync", &self.path))?;
        let mut durable = self.lock();
        let mut next = durable.clone();
        for &piece in pieces {
            next.insert(piece);
        }
        self.record(&next)?;
        *durable = next;
        Ok(())
    }

    /// Pieces that turned out wrong on disk are not held any more.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn forget(&self, pieces: impl IntoIterator<Item = u32>) -> Result<(), MirrorError> {
        let mut durable = self.lock();
        for piece in pieces {
            durable.remove(piece);
        }
        let next = durable.clone();
        self.record(&next)
    }

    /// An object's file, for reading; `None` once it was moved among the blobs.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn object(&self, object: usize) -> Result<Option<File>, MirrorError> {
        let name = self.layout.bundle.objects[object].content.to_hex();
        match rustix::fs::openat(&*self.directory, &*name, READ, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(disk("open", &self.path.join(name))(errno.into())),
        }
    }

    /// Pieces of an object that are not what they should be on disk.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn wrong_pieces(&self, object: usize) -> Result<Vec<u32>, MirrorError> {
        let Some(file) = self.object(object)? else { return Ok(self.layout.spans[object].clone().collect()) };
        let mut buffer = Vec::new();
        Ok(self.layout.spans[object]
            .clone()
            .filter(|&piece| !self.is_right(&file, piece, &mut buffer))
            .collect())
    }

    fn open_object(&self, content: &ContentHash, flags: OFlags) -> Result<File, MirrorError> {
        let name = content.to_hex();
        rustix::fs::openat(&*self.directory, &*name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|errno| disk("open", &self.path.join(name))(errno.into()))
    }

    /// Reads the bits, drops those without bytes, and adds those that a kill kept from being recorded.
    fn recover(&self) -> Result<(), MirrorError> {
        let error = disk("read", &self.path.join(BITMAP));
        let recorded = read_bits(&self.bitmap, self.layout.pieces()).map_err(error)?;
        let mut held = PieceSet::new(self.layout.pieces());
        let mut found = Vec::new();
        let mut buffer = Vec::new();
        for (number, object) in self.layout.bundle.objects.iter().enumerate() {
            let span = self.layout.spans[number].clone();
            match self.object(number)? {
                Some(file) if file.metadata().is_ok_and(|metadata| metadata.len() == object.size) => {
                    for piece in span {
                        if recorded.contains(piece) {
                            held.insert(piece);
                        } else if self.has_bytes(&file, piece) && self.is_right(&file, piece, &mut buffer) {
                            found.push(piece);
                        }
                    }
                }
                _ if object.members.is_empty() && self.mirror.holds(&object.content) => {
                    for piece in span {
                        held.insert(piece);
                    }
                }
                _ => {}
            }
        }
        let changed = held != recorded;
        *self.lock() = held.clone();
        if !found.is_empty() {
            self.sync(&found)
        } else if changed {
            self.record(&held)
        } else {
            Ok(())
        }
    }

    /// Whether anything was ever written where a piece is; a file system that can't say may have.
    fn has_bytes(&self, file: &File, piece: u32) -> bool {
        let Some(place) = self.layout.place(piece) else { return false };
        match rustix::fs::seek(file, SeekFrom::Data(place.range.start)) {
            Ok(at) => at < place.range.end,
            Err(Errno::NXIO) => false,
            Err(_) => true,
        }
    }

    fn is_right(&self, file: &File, piece: u32, buffer: &mut Vec<u8>) -> bool {
        let Some(place) = self.layout.place(piece) else { return false };
        let length = usize::try_from(place.range.end - place.range.start).unwrap_or(usize::MAX);
        buffer.resize(length, 0);
        file.read_exact_at(buffer, place.range.start).is_ok()
            && ContentHash::from(blake3::hash(buffer)) == self.layout.bundle.pieces[piece as usize]
    }

    fn record(&self, set: &PieceSet) -> Result<(), MirrorError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(to_bits(set));
        // A torn write leaves old and new bits, and both are true: bits are only added before their bytes can go.
        let written = self.bitmap.write_all_at(&bytes, 0).and_then(|()| self.bitmap.sync_data());
        written.map_err(disk("write", &self.path.join(BITMAP)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PieceSet> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One bit per piece, the first in the lowest bit of the first byte.
pub(crate) fn to_bits(set: &PieceSet) -> Vec<u8> {
    let mut bits = vec![0u8; (set.len() as usize).div_ceil(8)];
    set.iter().for_each(|piece| bits[piece as usize / 8] |= 1 << (piece % 8));
    bits
}

/// The pieces that are set in `bits`; `None` when they are of another bundle.
pub(crate) fn from_bits(bits: &[u8], pieces: u32) -> Option<PieceSet> {
    if bits.len() != (pieces as usize).div_ceil(8) {
        return None;
    }
    let mut set = PieceSet::new(pieces);
    for piece in (0..pieces).filter(|&piece| bits[piece as usize / 8] >> (piece % 8) & 1 == 1) {
        set.insert(piece);
    }
    Some(set)
}

/// The bundles whose directories stay; whoever makes one says so first.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<HashSet<String>>>);

impl Kept {
    /// From now on the directory of this bundle stays. Blocks while another one is being deleted.
    pub(crate) fn keep(&self, bundle: BundleId) {
        self.lock().insert(bundle.to_string());
    }

    /// Only these stay, and those that are kept from now on.
    pub(crate) fn only(&self, bundles: impl IntoIterator<Item = BundleId>) {
        *self.lock() = bundles.into_iter().map(|bundle| bundle.to_string()).collect();
    }

    /// Deletes the directories of all others. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn sweep(&self, mirror: &Mirror) -> Result<(), MirrorError> {
        let directory = mirror.swarm_directory();
        for entry in std::fs::read_dir(directory).map_err(disk("list", directory))? {
            let entry = entry.map_err(disk("list", directory))?;
            // Held until it is gone, so that nobody makes it anew meanwhile.
            let kept = self.lock();
            if entry.file_name().to_str().is_none_or(|name| !kept.contains(name)) {
                let path = entry.path();
                std::fs::remove_dir_all(&path).map_err(disk("delete", &path))?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_bits(file: impl AsFd, pieces: u32) -> io::Result<PieceSet> {
    let mut bytes = vec![0u8; MAGIC.len() + (pieces as usize).div_ceil(8)];
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[read..], read as u64)? {
            0 => return Ok(PieceSet::new(pieces)),
            count => read += count,
        }
    }
    let bits = bytes.strip_prefix(MAGIC).and_then(|bits| from_bits(bits, pieces));
    Ok(bits.unwrap_or_else(|| PieceSet::new(pieces)))
}

fn disk(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MirrorError + use<> {
    let path = path.to_owned();
    move |source| MirrorError::Disk { doing, path, source }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
/// The bitmap's name within a bundle's directory.
pub(crate) const BITMAP: &str = "have";
const MAGIC: &[u8] = b"FRHAVE01";
/// Objects that are synced one by one at most; more are synced with their whole filesystem.
const SYNCED_ALONE_MAX: usize = 8;
