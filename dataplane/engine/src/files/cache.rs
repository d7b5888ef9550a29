//! Open files of one ring, bounded by descriptors and bytes, each compared with its path from time to time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::hash::BuildHasher as _;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use super::buffer::Buffer;
use super::ghost::Ghost;
use super::opened::{OpenFile, Version, read_resident, weight};
use crate::site::{FileAnswer, Root, Unavailable};
use crate::uring;

/// A root and a path beneath it. The root's address stands for it: the entry keeps it alive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    root: usize,
    path: Bytes,
}

impl Key {
    fn new(root: &Arc<Root>, path: &Bytes) -> Self {
        Self { root: Arc::as_ptr(root).addr(), path: path.clone() }
    }

    pub(crate) fn path_length(&self) -> usize {
        self.path.len()
    }
}

/// What a look into the cache gives.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// Ready to be sent.
    Found(Rc<OpenFile>),
    /// Can't be served.
    Failed(Unavailable),
    /// The disk has to be waited for: see [`FileCache::load`].
    Cold(Missing),
}

/// A file on its way into the cache.
#[derive(Debug)]
pub(crate) struct Missing {
    root: Arc<Root>,
    path: Bytes,
    /// Open already; only its bytes are not in memory.
    opened: Option<(OwnedFd, Version)>,
    /// Whether it has been asked for lately and deserves a place that others have.
    returns: bool,
}

/// The bounds of one ring's share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheLimits {
    pub(crate) memory_file_bytes_max: u64,
    pub(crate) memory_bytes_max: u64,
    pub(crate) descriptors_max: usize,
    pub(crate) revalidate_after_millis: u64,
}

impl CacheLimits {
    /// Whether a file's bytes are kept; never where they may change behind our back.
    fn fits_memory(&self, version: &Version, root: &Root) -> bool {
        version.size <= self.memory_file_bytes_max && !root.filling
    }
}

/// Open files of one ring.
#[derive(Debug)]
pub(crate) struct FileCache {
    limits: CacheLimits,
    entries: RefCell<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, usize>,
    slots: Vec<Option<Rc<OpenFile>>>,
    free: Vec<usize>,
    ghost: Ghost,
    hand: usize,
    descriptors: usize,
    bytes: u64,
}

impl FileCache {
    pub(crate) fn new(limits: CacheLimits) -> Self {
        Self { limits, entries: RefCell::new(Entries::new(&limits)) }
    }

    /// Finds a file, opening it when that needs no disk. `now` is in coarse milliseconds.
    pub(crate) fn lookup(&self, wanted: &FileAnswer, now: u64) -> Lookup {
        let key = Key::new(&wanted.root, &wanted.path);
        if let Some(file) = self.hit(&key, wanted, now) {
            return Lookup::Found(file);
        }
        match open_now(wanted) {
            Ok(Some(descriptor)) => match Version::of_descriptor(&descriptor, &wanted.root) {
                Ok(version) => self.admit(key, wanted, descriptor, version, now),
                Err(why) => Lookup::Failed(why),
            },
            Ok(None) => Lookup::Cold(Missing {
                root: Arc::clone(&wanted.root),
                path: wanted.path.clone(),
                opened: None,
                returns: self.entries.borrow_mut().returns(&key),
            }),
            Err(why) => Lookup::Failed(self.after(why)),
        }
    }

    /// Waits for the disk and brings the file in.
    ///
    /// # Errors
    /// [`Unavailable`], as for a file that was there at once.
    pub(crate) async fn load(
        &self,
        missing: Missing,
        clock: &crate::clock::Clock,
    ) -> Result<Rc<OpenFile>, Unavailable> {
        let Missing { root, path, opened, returns } = missing;
        let key = Key::new(&root, &path);
        let (descriptor, mut version) = match opened {
            Some(opened) => opened,
            None => {
                let name = CString::new(path.to_vec()).map_err(|_| Unavailable::NotFound)?;
                let mut attempts = 0;
                let descriptor = loop {
                    match uring::open_beneath(Arc::clone(&root), name.clone()).await {
                        Ok(descriptor) => break descriptor,
                        // A rename somewhere in the tree raced with the walk.
                        Err(error)
                            if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error())
                                && attempts < OPEN_ATTEMPTS_MAX =>
                        {
                            attempts += 1;
                        }
                        Err(error) => return Err(self.after(unavailable(error))),
                    }
                };
                let version = Version::of_descriptor(&descriptor, &root)?;
                (descriptor, version)
            }
        };
        let place = self.place(&key, &version, &root, returns);
        let now = clock.millis();
        if place == Place::Memory {
            let descriptor = Rc::new(descriptor);
            let mut attempts = 0;
            loop {
                let length = usize::try_from(version.size).unwrap_or(usize::MAX);
                let read = uring::read_exact_at(Rc::clone(&descriptor), 0, Buffer::BODY_AT, length).await;
                let after = Version::of_descriptor(&*descriptor, &root)?;
                match read {
                    Ok(bytes) if after == version => {
                        let file = OpenFile::in_memory(key, root, version, Buffer::of_body(bytes), now);
                        return Ok(self.keep(file));
                    }
                    Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                        return Err(Unavailable::Io(error));
                    }
                    // Written in place while it was read: try the version that is there now.
                    _ if attempts < OPEN_ATTEMPTS_MAX && after.size <= self.limits.memory_file_bytes_max => {
                        attempts += 1;
                        version = after;
                    }
                    _ => return Err(Unavailable::Io(io::ErrorKind::ResourceBusy.into())),
                }
            }
        }
        let file = OpenFile::behind(key, root, version, descriptor, now);
        Ok(if place == Place::Table { self.keep(file) } else { Rc::new(file) })
    }

    /// Whether a file is of those whose bytes are kept when there is room.
    pub(crate) fn is_small(&self, file: &OpenFile) -> bool {
        self.limits.fits_memory(&file.version, &file.root)
    }

    /// Forgets everything, for want of descriptors.
    pub(crate) fn clear(&self) {
        *self.entries.borrow_mut() = Entries::new(&self.limits);
    }

    fn hit(&self, key: &Key, wanted: &FileAnswer, now: u64) -> Option<Rc<OpenFile>> {
        let file = {
            let entries = self.entries.borrow();
            Rc::clone(entries.slots[*entries.by_key.get(key)?].as_ref()?)
        };
        let matches = file.version.is_what(wanted);
        if matches && now.saturating_sub(file.checked.get()) < self.limits.revalidate_after_millis {
            file.used.set(true);
            return Some(file);
        }
        if Version::of_path(&file.root, &key.path) == Some(file.version) {
            file.checked.set(now);
            file.used.set(true);
            return Some(file);
        }
        self.entries.borrow_mut().remove(key);
        None
    }

    fn admit(
        &self,
        key: Key,
        wanted: &FileAnswer,
        descriptor: OwnedFd,
        version: Version,
        now: u64,
    ) -> Lookup {
        let root = Arc::clone(&wanted.root);
        let returns = self.entries.borrow_mut().returns(&key);
        match self.place(&key, &version, &root, returns) {
            Place::Memory => {}
            Place::Table => {
                return Lookup::Found(self.keep(OpenFile::behind(key, root, version, descriptor, now)));
            }
            Place::None => {
                return Lookup::Found(Rc::new(OpenFile::behind(key, root, version, descriptor, now)));
            }
        }
        let mut bytes = vec![0; Buffer::BODY_AT + usize::try_from(version.size).unwrap_or(usize::MAX)];
        match read_resident(&descriptor, &mut bytes[Buffer::BODY_AT..]) {
            Ok(true) if Version::of_descriptor(&descriptor, &root).is_ok_and(|after| after == version) => {
                let file = OpenFile::in_memory(key, root, version, Buffer::of_body(bytes), now);
                Lookup::Found(self.keep(file))
            }
            Ok(_) => Lookup::Cold(Missing {
                root,
                path: wanted.path.clone(),
                opened: Some((descriptor, version)),
                returns,
            }),
            Err(error) => Lookup::Failed(Unavailable::Io(error)),
        }
    }

    /// Where a file that was opened belongs: what comes once must not drive out what comes often.
    fn place(&self, key: &Key, version: &Version, root: &Root, returns: bool) -> Place {
        let in_memory = self.limits.fits_memory(version, root);
        let entries = self.entries.borrow();
        let body = if in_memory { version.size } else { 0 };
        let fits = entries.bytes + weight(key, body) <= self.limits.memory_bytes_max
            && (in_memory || entries.descriptors < self.limits.descriptors_max);
        match (fits || returns, in_memory) {
            (true, true) => Place::Memory,
            (true, false) => Place::Table,
            (false, _) => Place::None,
        }
    }

    fn keep(&self, file: OpenFile) -> Rc<OpenFile> {
        let file = Rc::new(file);
        self.entries.borrow_mut().insert(Rc::clone(&file), &self.limits);
        file
    }

    /// Out of descriptors: what is cached is given up, so that the next request finds some.
    fn after(&self, why: Unavailable) -> Unavailable {
        if let Unavailable::Io(error) = &why
            && [Errno::MFILE, Errno::NFILE]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
        {
            self.clear();
        }
        why
    }
}

/// What becomes of an open file beyond the response that it was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Its bytes are kept.
    Memory,
    /// Its descriptor is kept.
    Table,
    /// Nothing is kept.
    None,
}

impl Entries {
    fn new(limits: &CacheLimits) -> Self {
        Self { ghost: Ghost::new(limits.memory_bytes_max), ..Self::default() }
    }

    /// Whether a file that isn't kept was asked for before, not long ago.
    fn returns(&mut self, key: &Key) -> bool {
        self.ghost.returns(self.by_key.hasher().hash_one(key))
    }

    fn insert(&mut self, file: Rc<OpenFile>, limits: &CacheLimits) {
        self.remove(&file.key);
        self.descriptors += usize::from(file.descriptor().is_some());
        self.bytes += file.weight();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.by_key.insert(file.key.clone(), slot);
        self.slots[slot] = Some(file);
        while self.by_key.len() > 1
            && (self.descriptors > limits.descriptors_max || self.bytes > limits.memory_bytes_max)
        {
            self.evict(slot);
        }
    }

    /// One step of the clock: what was used since the hand last came by is spared once.
    fn evict(&mut self, newest: usize) {
        self.hand = (self.hand + 1) % self.slots.len();
        let Some(file) = &self.slots[self.hand] else { return };
        if self.hand == newest || file.used.replace(false) {
            return;
        }
        let key = file.key.clone();
        self.remove(&key);
    }

    fn remove(&mut self, key: &Key) {
        let Some(slot) = self.by_key.remove(key) else { return };
        if let Some(file) = self.slots[slot].take() {
            self.descriptors -= usize::from(file.descriptor().is_some());
            self.bytes -= file.weight();
        }
        self.free.push(slot);
    }
}

/// Opens without waiting for a disk; `None` when that is not possible.
fn open_now(wanted: &FileAnswer) -> Result<Option<OwnedFd>, Unavailable> {
    if wanted.path.len() >= PATH_BYTES_MAX || wanted.path.starts_with(b"/") {
        return Err(Unavailable::NotFound);
    }
    let mut name = [0_u8; PATH_BYTES_MAX];
    name[..wanted.path.len()].copy_from_slice(&wanted.path);
    let name = std::ffi::CStr::from_bytes_with_nul(&name[..=wanted.path.len()])
        .map_err(|_| Unavailable::NotFound)?;
    uring::open_beneath_cached(&*wanted.root, name).map_err(unavailable)
}

fn unavailable(error: io::Error) -> Unavailable {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO) => {
            Unavailable::NotFound
        }
        Some(Errno::XDEV) => Unavailable::Escapes,
        _ => Unavailable::Io(error),
    }
}

/// `PATH_MAX` of Linux, the NUL included.
const PATH_BYTES_MAX: usize = 4_096;

/// Attempts at a path or file that changes while it is opened.
const OPEN_ATTEMPTS_MAX: u32 = 3;
