//! Copies of indexes as they are now, to patch the next version against: the repository will not have them then.
//!
//! Bounded, and worth nothing but time: what is lost or damaged here only makes the next version travel whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use freshet_api::ContentHash;
use serde::{Deserialize, Serialize};

use super::super::content::Repository;
use super::super::plan::Source;
use crate::catalog::Snapshot;
use crate::private_file;

/// The copies on disk, by the paths that they are of.
#[derive(Debug)]
pub(super) struct Keepsakes {
    directory: PathBuf,
    bytes_max: u64,
    kept: BTreeMap<String, Keepsake>,
}

/// One copy; several paths may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keepsake {
    content: ContentHash,
    size: u64,
}

impl Keepsakes {
    pub(super) fn open(state: &Path, bytes_max: u64) -> io::Result<Self> {
        let directory = state.join(DIRECTORY);
        private_file::make_directory(&directory)?;
        let kept = match fs::read(directory.join(INDEX_FILE)) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "the list of kept indexes cannot be read; the next ones are copied whole");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { directory, bytes_max, kept })
    }

    /// The content that a path had, if it was kept and is still what it was.
    pub(super) fn read(&self, path: &str) -> Option<(ContentHash, Vec<u8>)> {
        let keepsake = self.kept.get(path)?;
        let bytes = fs::read(self.file(&keepsake.content)).ok()?;
        (ContentHash::from(blake3::hash(&bytes)) == keepsake.content).then_some((keepsake.content, bytes))
    }

    /// Keeps these too, and nothing of paths that are gone. The smallest are kept first where not all have room.
    pub(super) fn keep(
        &mut self,
        sources: &[Source],
        state: &Snapshot,
        repository: &Repository,
    ) -> io::Result<()> {
        let before = self.kept.clone();
        self.kept.retain(|path, _| state.find(path.as_bytes()).is_some());
        for source in sources {
            self.kept.insert(source.path.clone(), Keepsake { content: source.content, size: source.size });
        }
        self.bound();
        if self.kept == before {
            return Ok(());
        }
        for (path, keepsake) in &self.kept {
            let file = self.file(&keepsake.content);
            if file.exists() {
                continue;
            }
            // What cannot be read now has another content already.
            if let Ok(bytes) = repository.read(path, keepsake.size, &keepsake.content) {
                let temporary = file.with_extension("new");
                fs::write(&temporary, bytes)?;
                fs::rename(temporary, file)?;
            }
        }
        private_file::write(&self.directory.join(INDEX_FILE), &serde_json::to_vec(&self.kept)?)?;
        self.sweep()
    }

    fn bound(&mut self) {
        let mut sizes: Vec<(u64, String)> =
            self.kept.iter().map(|(path, keepsake)| (keepsake.size, path.clone())).collect();
        sizes.sort_unstable();
        let mut bytes = 0;
        for (count, (size, path)) in sizes.into_iter().enumerate() {
            bytes += size;
            if bytes > self.bytes_max || count >= KEPT_MAX {
                self.kept.remove(&path);
            }
        }
    }

    fn sweep(&self) -> io::Result<()> {
        let named: std::collections::HashSet<String> =
            self.kept.values().map(|keepsake| keepsake.content.to_string()).collect();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let stays = name.to_str().is_some_and(|name| name == INDEX_FILE || named.contains(name));
            if !stays {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn file(&self, content: &ContentHash) -> PathBuf {
        self.directory.join(content.to_string())
    }
}

const DIRECTORY: &str = "keepsakes";
const INDEX_FILE: &str = "index.json";
/// Paths of which a copy is kept at most.
const KEPT_MAX: usize = 65_536;
