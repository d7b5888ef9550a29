//! The repository on disk, as the catalogue sees it: names, stamps, link targets, opened files.
//!
//! Everything is resolved beneath the root without following any symbolic link (`openat2`, Linux 5.6), so that a
//! directory exchanged for a link during a walk leads nowhere. Nothing here writes.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::entry::Stamp;

/// The repository's root, held open.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    device: u64,
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A directory.
    Directory,
    /// A regular file.
    File(Found),
    /// A symbolic link and its target.
    Link(Vec<u8>),
    /// A device, pipe or socket.
    Special,
}

/// A regular file as `stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) stamp: Stamp,
    /// The file system it is on.
    pub(super) device: u64,
    /// Whether it has other names too.
    pub(super) hard_linked: bool,
}

/// The names in one directory, sorted.
#[derive(Debug)]
pub(super) struct Listing {
    /// The file system the directory is on.
    pub(super) device: u64,
    pub(super) names: Vec<(CString, io::Result<Node>)>,
}

impl Tree {
    /// Opens the root.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let root =
            rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self { root, device })
    }

    /// The file system that the root is on.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// What stands at a path.
    pub(super) fn node(&self, path: &str) -> io::Result<Node> {
        let fd = self.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Node::Link(rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes()),
            _ => node_of(&stat),
        })
    }

    /// The file system that a directory is on.
    pub(super) fn device_of(&self, directory: &str) -> io::Result<u64> {
        let fd = self.open_beneath(directory, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(rustix::fs::fstat(&fd)?.st_dev)
    }

    /// The names in a directory and what they are.
    pub(super) fn list(&self, directory: &str) -> io::Result<Listing> {
        let fd = self.open_beneath(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let device = rustix::fs::fstat(&fd)?.st_dev;
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        let node = |name: &CString| -> io::Result<Node> {
            let stat = rustix::fs::statat(&fd, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                let target = rustix::fs::readlinkat(&fd, name.as_c_str(), Vec::new())?;
                return Ok(Node::Link(target.into_bytes()));
            }
            Ok(node_of(&stat))
        };
        let names = names
            .into_iter()
            .map(|name| {
                let node = node(&name);
                (name, node)
            })
            .collect();
        Ok(Listing { device, names })
    }

    /// Opens a regular file for reading; a pipe put in its place does not block.
    pub(super) fn open_file(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_beneath(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
    }

    fn open_beneath(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "." } else { path };
        Ok(rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }
}

/// The stamp of an open file, if it is a regular one.
pub(super) fn found(fd: &OwnedFd) -> io::Result<Option<Found>> {
    match node_of(&rustix::fs::fstat(fd)?) {
        Node::File(found) => Ok(Some(found)),
        _ => Ok(None),
    }
}

/// Whether an error says that nothing is there (any more), as opposed to that it cannot be seen.
pub(super) fn says_gone(error: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::NOTDIR, rustix::io::Errno::LOOP];
    rustix::io::Errno::from_io_error(error).is_some_and(|errno| gone.contains(&errno))
}

/// Whether a path is in a directory, directly or deeper; everything is in the root, the empty path.
pub(super) fn is_beneath(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Why a symbolic link cannot be kept, or its target as text.
///
/// `..` counts only at the target's front: behind a name it would depend on what that name is a link to, and
/// could lead out of the tree although it does not look so.
pub(super) fn checked_target(path: &str, target: Vec<u8>) -> Result<String, &'static str> {
    let target = String::from_utf8(target).map_err(|_| "a symbolic link whose target is not UTF-8")?;
    if target.starts_with('/') {
        return Err("a symbolic link with an absolute target; make it relative");
    }
    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(char::is_control) {
        return Err("a symbolic link whose target is empty, too long or has control characters");
    }
    let mut depth = path.matches('/').count();
    let mut named = false;
    for segment in target.split('/') {
        match segment {
            "" | "." => {}
            ".." if named => return Err("a symbolic link with `..` behind a name in its target"),
            ".." => depth = depth.checked_sub(1).ok_or("a symbolic link out of the repository")?,
            _ => named = true,
        }
    }
    Ok(target)
}

fn node_of(stat: &Stat) -> Node {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Node::Directory,
        FileType::RegularFile => Node::File(Found {
            stamp: Stamp {
                inode: stat.st_ino,
                size: stat.st_size.unsigned_abs(),
                mtime: stat.st_mtime,
                mtime_nanos: stat.st_mtime_nsec as u32,
                ctime: stat.st_ctime,
                ctime_nanos: stat.st_ctime_nsec as u32,
            },
            device: stat.st_dev,
            hard_linked: stat.st_nlink > 1,
        }),
        _ => Node::Special,
    }
}

/// Bytes of a link's target at most.
const TARGET_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_that_stay_inside_are_kept_and_others_refused() {
        for (path, target) in
            [("a", "b"), ("x/y", "../b"), ("x/y/z", "../../b/c"), ("x/a", "./b"), ("x/y", "..")]
        {
            assert_eq!(checked_target(path, target.into()).as_deref(), Ok(target), "{path}");
        }
        for (path, target) in [
            ("a", "../b"),
            ("x/y", "../../b"),
            ("a", "/etc/passwd"),
            ("x/y", "d/../../z"),
            ("a", ""),
            ("a", "b\n"),
        ] {
            assert!(checked_target(path, target.into()).is_err(), "{path} -> {target}");
        }
        assert!(checked_target("a", vec![0xff]).is_err());
    }

    #[test]
    fn no_link_on_disk_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        assert!(matches!(tree.node("out"), Ok(Node::Link(_))));
        assert!(says_gone(&tree.node("out/secret").unwrap_err()));
        assert!(tree.open_file("out/secret").is_err());
        assert!(tree.open_file("../x").is_err());
        assert!(tree.list("out").is_err());
    }
}
