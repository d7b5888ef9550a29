//! The directory of a bpffs where maps and links outlive the process, and the removal of all that is ours.
//! It never looks into a directory that it did not make.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::Link;
use aya::programs::tc::{SchedClassifierLink, TcError, TcHandle, qdisc_detach_program};
use aya::programs::{ProgramError, TcAttachType};
use freshet_ebpf_abi as abi;
use freshet_ebpf_abi::Direction;
use rustix::fs::{FlockOperation, flock, fstatfs};

use super::KernelError;

/// A directory that this process alone uses, for as long as this value lives; also after kill -9 it is free again.
#[derive(Debug)]
pub(super) struct PinDirectory {
    path: PathBuf,
    _lock: Lock,
}

/// An exclusive lock on a directory. The kernel also lets go of it when the process ends, however it ends.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do: a child that was forked a moment ago may still hold a copy of the descriptor.
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "a pin directory stays locked until this process ends");
        }
    }
}

impl PinDirectory {
    pub(super) fn open(path: PathBuf) -> Result<Self, KernelError> {
        let failed = |error: io::Error| KernelError::Pin { path: path.clone(), error };
        fs::create_dir_all(&path).map_err(failed)?;
        let lock = Self::lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    fn lock(path: &Path) -> Result<Lock, KernelError> {
        let failed = |error: io::Error| KernelError::Pin { path: path.to_owned(), error };
        let directory = File::open(path).map_err(failed)?;
        if fstatfs(&directory).map_err(|e| failed(e.into()))?.f_type as u64 != BPF_FS_MAGIC {
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, "not on a bpffs")));
        }
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(directory)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(KernelError::InUse { path: path.to_owned() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of one interface, made if need be.
    pub(super) fn interface(&self, name: &str) -> Result<PathBuf, KernelError> {
        let path = self.path.join(file_name(name));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(KernelError::Pin { path, error })
            }
            _ => Ok(path),
        }
    }

    /// Removes everything in it and itself, which detaches what is pinned here. The lock is held to the end.
    pub(super) fn remove(self) -> Result<Vec<PathBuf>, KernelError> {
        remove_all(&self.path)
    }

    /// Removes the links of interfaces that an earlier run counted and this one does not; their counters stay.
    pub(super) fn detach_others(&self, chosen: &[&str]) -> Result<(), KernelError> {
        let keep: Vec<OsString> = chosen.iter().map(|name| file_name(name).into()).collect();
        let failed = |error: io::Error| KernelError::Pin { path: self.path.clone(), error };
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !keep.contains(&entry.file_name()) {
                unlink_links(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes the links of one interface, which detaches its programs; the maps stay.
pub(super) fn unlink_links(directory: &Path) -> Result<(), KernelError> {
    for direction in [Direction::In, Direction::Out] {
        remove(&directory.join(link_name(direction)))?;
    }
    Ok(())
}

/// Removes maps and links of one interface.
pub(super) fn unlink_all(directory: &Path) -> Result<(), KernelError> {
    unlink_links(directory)?;
    for name in abi::map::ALL {
        remove(&directory.join(name))?;
    }
    Ok(())
}

/// The name under which a link is pinned.
pub(super) fn link_name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "link_in",
        Direction::Out => "link_out",
    }
}

fn remove(path: &Path) -> Result<bool, KernelError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(KernelError::Pin { path: path.to_owned(), error }),
    }
}

/// A bpffs refuses names with a dot, as VLAN interfaces have them.
fn file_name(interface: &str) -> String {
    let mut name = String::with_capacity(interface.len());
    for byte in interface.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            name.push(byte.into());
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
    name
}

/// What [`cleanup`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Pins and directories.
    pub pins: Vec<PathBuf>,
    /// Filters of the clsact qdisc, by interface.
    pub filters: Vec<(String, Direction)>,
}

/// Removes everything of ours: what is pinned below `pin`, and our filters on every interface of this network
/// namespace, also those of a running daemon that attached by [`crate::Attachment::Clsact`]. Pinned counters are lost. The clsact qdisc itself stays, for it may be someone else's; without
/// filters it does nothing.
///
/// # Errors
/// [`KernelError::InUse`] while a process counts with these pins; otherwise what the kernel refuses to remove.
pub fn cleanup(pin: Option<&Path>) -> Result<Cleaned, KernelError> {
    let mut cleaned = Cleaned::default();
    if let Some(pin) = pin
        && pin.is_dir()
    {
        let _lock = PinDirectory::lock(pin)?;
        cleaned.pins = remove_all(pin)?;
    }
    for link in crate::interfaces::names()? {
        for direction in [Direction::In, Direction::Out] {
            if detach_filter(&link, direction)? {
                cleaned.filters.push((link.clone(), direction));
            }
        }
    }
    Ok(cleaned)
}

/// Removes the pins of all interfaces below `pin`, then `pin`; returns what it removed. A directory that can't be
/// removed counts nothing and is no error: the one above may belong to root, as that of a service's runtime files does.
fn remove_all(pin: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let failed = |error: io::Error| KernelError::Pin { path: pin.to_owned(), error };
    let mut removed = Vec::new();
    for entry in fs::read_dir(pin).map_err(failed)? {
        let directory = entry.map_err(failed)?.path();
        let links = [Direction::In, Direction::Out].map(link_name);
        for name in links.into_iter().chain(abi::map::ALL) {
            if remove(&directory.join(name))? {
                removed.push(directory.join(name));
            }
        }
        remove_directory(directory, &mut removed);
    }
    remove_directory(pin.to_owned(), &mut removed);
    Ok(removed)
}

fn remove_directory(directory: PathBuf, removed: &mut Vec<PathBuf>) {
    match fs::remove_dir(&directory) {
        Ok(()) => removed.push(directory),
        Err(error) => tracing::debug!(%error, directory = %directory.display(), "a directory of pins stays"),
    }
}

/// Removes our filter of the clsact qdisc, whoever attached it; false when there is none.
///
/// It is recognised by the program's name, and by its place: a loader with few rights can't learn whether the kernel
/// knows names, and then leaves it out.
pub(super) fn detach_filter(interface: &str, direction: Direction) -> Result<bool, KernelError> {
    let (at, name) = (attach_type(direction), program_name(direction));
    let named =
        absent_is_fine(interface, qdisc_detach_program(interface, at, name).map_err(ProgramError::from))?;
    let placed = match our_filter(interface, direction) {
        Ok(filter) => absent_is_fine(interface, filter.detach())?,
        // No such interface, so no filter.
        Err(_) => false,
    };
    Ok(named || placed)
}

/// Our place among the filters of the clsact qdisc: one, so that a later run replaces what an earlier one left.
pub(super) fn our_filter(interface: &str, direction: Direction) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, attach_type(direction), FILTER_PRIORITY, FILTER_HANDLE, None)
}

fn absent_is_fine(interface: &str, result: Result<(), ProgramError>) -> Result<bool, KernelError> {
    let errno = match result {
        Ok(()) => return Ok(true),
        Err(ProgramError::TcError(TcError::IoError(ref error)))
            if error.kind() == io::ErrorKind::NotFound =>
        {
            return Ok(false);
        }
        Err(ProgramError::TcError(TcError::IoError(ref error))) => error.raw_os_error(),
        Err(
            ProgramError::TcError(TcError::NetlinkError(ref error)) | ProgramError::NetlinkError(ref error),
        ) => error.raw_os_error(),
        Err(_) => None,
    };
    match (errno, result) {
        // Without a clsact qdisc, or without the interface, the kernel has no such list.
        (Some(libc::EINVAL | libc::ENOENT | libc::ENODEV), _) => Ok(false),
        (_, Err(error)) => Err(KernelError::attach(interface, error)),
        (_, Ok(())) => Ok(true),
    }
}

/// Which list of the interface a direction is.
pub(super) fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::In => TcAttachType::Ingress,
        Direction::Out => TcAttachType::Egress,
    }
}

/// Which program a direction is for.
pub(super) fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => abi::program::INGRESS,
        Direction::Out => abi::program::EGRESS,
    }
}

pub(super) const FILTER_PRIORITY: u16 = 0xf5e0;

pub(super) const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

/// From `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_dot_and_stay_distinct() {
        assert_eq!(file_name("eth0"), "eth0");
        assert_eq!(file_name("eth0.5"), "eth0%2e5");
        assert_eq!(file_name("br-lan_1"), "br-lan_1");
        assert_ne!(file_name("a%b"), file_name("a.b"));
    }

    #[test]
    fn a_directory_that_is_no_bpffs_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = PinDirectory::open(directory.path().join("pins")).unwrap_err();
        assert!(error.to_string().contains("not on a bpffs"), "{error}");
        assert!(cleanup(Some(directory.path())).is_err());
    }
    #[test]
    fn pins_are_gone_although_a_directory_stays() {
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path();
        fs::create_dir_all(pin.join("eth0")).unwrap();
        let link = pin.join("eth0").join(link_name(Direction::In));
        fs::write(&link, "").unwrap();
        // What is not ours keeps the directory, as a parent of root's does.
        fs::write(pin.join("eth0/foreign"), "").unwrap();
        assert_eq!(remove_all(pin).unwrap(), std::slice::from_ref(&link));
        assert!(!link.exists() && pin.join("eth0/foreign").exists());
        fs::remove_file(pin.join("eth0/foreign")).unwrap();
        assert_eq!(remove_all(pin).unwrap(), [pin.join("eth0"), pin.to_owned()]);
        // A pin that stays is told of.
        fs::create_dir_all(pin.join("eth0").join(link_name(Direction::Out))).unwrap();
        assert!(remove_all(pin).is_err());
    }
}
