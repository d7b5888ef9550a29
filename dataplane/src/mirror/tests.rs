//! Tests of the mirror as a whole, without a network.

use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use super::MirrorError;

/// Errors of the disk that a test wants to happen.
#[derive(Default)]
pub(super) struct Faults {
    /// The kernel's error number for the next writes; 0 for none.
    pub(super) errno: AtomicI32,
}

impl Faults {
    pub(super) fn check(&self, doing: &'static str, path: &Path) -> Result<(), MirrorError> {
        match self.errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(MirrorError::disk(doing, path)(rustix::io::Errno::from_raw_os_error(errno))),
        }
    }
}
