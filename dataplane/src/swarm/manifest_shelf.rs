//! Manifests that came lately, in their wire form, for peers that lack them: files under their hashes.
//!
//! It lasts as long as the daemon runs. What is here was verified before it came here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use freshet_api::ContentHash;

/// The last few. Cheap to clone; the copies are the same shelf.
#[derive(Clone, Default)]
pub(crate) struct ManifestShelf(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Unset where no port serves peers.
    directory: OnceLock<PathBuf>,
    /// Newest first, with their bytes; what the rings read.
    held: ArcSwap<Vec<(ContentHash, u64)>>,
    changing: Mutex<()>,
}

impl ManifestShelf {
    /// Keeps them in `directory` from now on; what an earlier run left there is removed.
    pub(crate) fn open(&self, directory: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(directory)?,
        }
        // Who opened it first has it.
        let _ = self.0.directory.set(directory.to_owned());
        Ok(())
    }

    /// Keeps one that was verified, within the bounds; whether peers can have it now. Blocks.
    pub(crate) fn keep(&self, manifest: ContentHash, wire: &[u8]) -> io::Result<bool> {
        let size = wire.len() as u64;
        let Some(directory) = self.0.directory.get().filter(|_| size <= BYTES_MAX) else { return Ok(false) };
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.0.held.load_full();
        if before.iter().any(|(held, _)| *held == manifest) {
            return Ok(true);
        }
        let mut after = vec![(manifest, size)];
        let mut bytes = size;
        for &(held, size) in before.iter().take(KEPT_MAX - 1) {
            bytes += size;
            if bytes > BYTES_MAX {
                break;
            }
            after.push((held, size));
        }
        // Before there is more, so that the disk is never asked for more than the bounds.
        self.0.held.store(Arc::new(after[1..].to_vec()));
        for (gone, _) in before.iter().filter(|held| !after.contains(held)) {
            std::fs::remove_file(directory.join(gone.to_string()))?;
        }
        let (path, temporary) = (directory.join(manifest.to_string()), directory.join(TEMPORARY));
        let written = std::fs::write(&temporary, wire).and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(error);
        }
        self.0.held.store(Arc::new(after));
        Ok(true)
    }

    /// The bytes of one that is here.
    pub(crate) fn size(&self, manifest: &ContentHash) -> Option<u64> {
        self.0.held.load().iter().find(|(held, _)| held == manifest).map(|&(_, size)| size)
    }
}

const TEMPORARY: &str = "coming";
/// Manifests kept at most, and their bytes together.
const KEPT_MAX: usize = 4;
const BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_are_kept_and_nothing_of_an_earlier_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifests");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("old"), "old").unwrap();
        let shelf = ManifestShelf::default();
        let wires: Vec<Vec<u8>> = (1..=6u8).map(|n| vec![n; usize::from(n)]).collect();
        let hash = |n: usize| ContentHash::of(&wires[n]);
        assert!(!shelf.keep(hash(0), &wires[0]).unwrap(), "nobody serves it");
        shelf.open(&path).unwrap();
        for (n, wire) in wires.iter().enumerate() {
            assert!(shelf.keep(hash(n), wire).unwrap() && shelf.keep(hash(n), wire).unwrap());
        }
        let held: Vec<Option<u64>> = (0..6).map(|n| shelf.size(&hash(n))).collect();
        assert_eq!(held, [None, None, Some(3), Some(4), Some(5), Some(6)]);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), KEPT_MAX);
        assert_eq!(std::fs::read(path.join(hash(5).to_string())).unwrap(), wires[5]);
    }
}
