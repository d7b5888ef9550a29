//! A filesystem small enough to be filled. Mounting it needs root.

/// A filesystem of a few MiB that is unmounted when this goes.
pub(crate) struct SmallDisk {
    pub(crate) path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` without the right to mount.
    pub(crate) fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("freshet-test", &path, "tmpfs", flags, size.as_c_str()).ok()?;
        Some(Self { path, _directory: directory })
    }
}

impl SmallDisk {
    /// Leaves `bytes` free, until [`SmallDisk::relieve`].
    pub(crate) fn fill(&self, bytes: u64) {
        let room = rustix::fs::statvfs(&self.path).unwrap();
        let ballast = usize::try_from((room.f_bavail * room.f_frsize).saturating_sub(bytes)).unwrap();
        std::fs::write(self.path.join("ballast"), vec![0; ballast]).unwrap();
    }

    pub(crate) fn relieve(&self) {
        std::fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}
