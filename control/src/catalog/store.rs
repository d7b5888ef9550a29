//! What the catalogue keeps across restarts: rows, links, history, and hashes not yet published.
//!
//! One redb file, written in transactions that are durable when they return. Nothing is read from it to answer
//! anybody; it is read once, at the start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use freshet_api::manifest::RepoPath;
use freshet_api::{Checksums, ContentHash, FileId};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::entry::{FileEntry, Stamp};
use super::history::{History, Step};
use super::metadata::Patterns;
use super::snapshot::Snapshot;

/// The open database.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
}

/// What was in it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) snapshot: Snapshot,
    pub(super) history: History,
    pub(super) next_file: u32,
    /// Mount points by path, with their devices; the root is the empty path.
    pub(super) mounts: BTreeMap<String, u64>,
    /// Whether hashes of an earlier run wait for their files to be seen again.
    pub(super) carried: bool,
}

/// A row as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) path: RepoPath,
    pub(super) stamp: Stamp,
    pub(super) sums: Sums,
    pub(super) changed_at: u32,
}

/// [`Checksums`] at their exact length, read back without an allocation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Sums {
    blake3: [u8; 32],
    sha256: [u8; 32],
    md4: [u8; 16],
}

/// What one publication writes.
#[derive(Debug, Default)]
pub(super) struct Write {
    pub(super) put: Vec<(FileId, Row)>,
    pub(super) gone: Vec<FileId>,
    pub(super) links_put: Vec<(RepoPath, String)>,
    pub(super) links_gone: Vec<RepoPath>,
    pub(super) next_file: u32,
    pub(super) sequence: u64,
    /// The step for the history, unless it is too large to be kept.
    pub(super) step: Option<Step>,
    pub(super) steps_gone: Vec<u64>,
    pub(super) mounts: Option<BTreeMap<String, u64>>,
    pub(super) settled: Settled,
}

/// Which hashes need no longer be kept apart, because their files are published.
#[derive(Debug, Default)]
pub(super) enum Settled {
    /// None.
    #[default]
    None,
    /// These.
    Some(Vec<RepoPath>),
    /// All.
    All,
}

impl Store {
    /// Opens the database, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| StoreError::Open { path: path.to_owned(), error })?;
        Ok(Self { database })
    }

    /// Reads everything; in a new database, writes the beginning.
    ///
    /// A new catalogue counts its states from the clock, so that a volunteer which knew an earlier database's
    /// states is never taken to be ahead or up to date.
    pub(super) fn load(&self, patterns: &Patterns, now_ms: u64) -> Result<Loaded, StoreError> {
        let transaction = self.database.begin_write().map_err(StoreError::of)?;
        {
            let mut meta = transaction.open_table(META).map_err(StoreError::of)?;
            let format = meta.get("format").map_err(StoreError::of)?.map(|value| value.value());
            match format {
                Some(FORMAT) => {}
                Some(found) => return Err(StoreError::Format { found }),
                None => {
                    for (name, value) in [("format", FORMAT), ("sequence", now_ms), ("next_file", 1)] {
                        meta.insert(name, value).map_err(StoreError::of)?;
                    }
                }
            }
            transaction.open_table(FILES).map_err(StoreError::of)?;
            transaction.open_table(LINKS).map_err(StoreError::of)?;
            transaction.open_table(STEPS).map_err(StoreError::of)?;
            transaction.open_table(MOUNTS).map_err(StoreError::of)?;
            transaction.open_table(HASHES).map_err(StoreError::of)?;
        }
        transaction.commit().map_err(StoreError::of)?;

        let transaction = self.database.begin_read().map_err(StoreError::of)?;
        let meta = transaction.open_table(META).map_err(StoreError::of)?;
        let number = |name: &'static str| -> Result<u64, StoreError> {
            let value = meta.get(name).map_err(StoreError::of)?;
            value.map(|value| value.value()).ok_or(StoreError::Damaged { table: "meta" })
        };
        let mut snapshot = Snapshot::empty(number("sequence")?);
        let next_file =
            u32::try_from(number("next_file")?).map_err(|_| StoreError::Damaged { table: "meta" })?;
        let files = transaction.open_table(FILES).map_err(StoreError::of)?;
        let mut batch = Vec::with_capacity(LOAD_BATCH);
        for item in files.iter().map_err(StoreError::of)? {
            let (file, row) = item.map_err(StoreError::of)?;
            let row: Row = decoded(row.value(), "files")?;
            let last = patterns.is_last(row.path.as_str());
            let file = FileId(file.value());
            batch.push(FileEntry::new(file, row.path, &row.stamp, row.sums.into(), last, row.changed_at));
            if batch.len() == LOAD_BATCH {
                snapshot.extend(&batch);
                batch.clear();
            }
        }
        snapshot.extend(&batch);
        let links = transaction.open_table(LINKS).map_err(StoreError::of)?;
        for item in links.iter().map_err(StoreError::of)? {
            let (path, target) = item.map_err(StoreError::of)?;
            let path = path.value().parse().map_err(|_| StoreError::Damaged { table: "links" })?;
            snapshot.set_link(path, target.value());
        }
        snapshot.shrink();
        let mut history = History::default();
        let steps = transaction.open_table(STEPS).map_err(StoreError::of)?;
        for item in steps.iter().map_err(StoreError::of)? {
            let (_, step) = item.map_err(StoreError::of)?;
            history.push(decoded(step.value(), "steps")?);
        }
        let mut mounts = BTreeMap::new();
        let stored = transaction.open_table(MOUNTS).map_err(StoreError::of)?;
        for item in stored.iter().map_err(StoreError::of)? {
            let (path, device) = item.map_err(StoreError::of)?;
            mounts.insert(path.value().to_owned(), device.value());
        }
        let hashes = transaction.open_table(HASHES).map_err(StoreError::of)?;
        let carried = !hashes.is_empty().map_err(StoreError::of)?;
        Ok(Loaded { snapshot, history, next_file, mounts, carried })
    }

    /// Keeps hashes whose files are not yet published.
    pub(super) fn keep_hashes(&self, hashes: &[(RepoPath, Stamp, Checksums)]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(StoreError::of)?;
        {
            let mut table = transaction.open_table(HASHES).map_err(StoreError::of)?;
            for (path, stamp, sums) in hashes {
                let value = encoded(&(*stamp, Sums::from(*sums)))?;
                table.insert(path.as_str(), value.as_slice()).map_err(StoreError::of)?;
            }
        }
        transaction.commit().map_err(StoreError::of)
    }

    /// The hash that was kept for a file with this stamp.
    pub(super) fn kept_hash(&self, path: &str, stamp: &Stamp) -> Result<Option<Checksums>, StoreError> {
        let transaction = self.database.begin_read().map_err(StoreError::of)?;
        let table = match transaction.open_table(HASHES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(StoreError::of(error)),
        };
        let Some(value) = table.get(path).map_err(StoreError::of)? else { return Ok(None) };
        let (kept, sums): (Stamp, Sums) = decoded(value.value(), "hashes")?;
        Ok((kept == *stamp).then(|| sums.into()))
    }

    /// Writes a publication, whole or not at all.
    pub(super) fn write(&self, write: &Write) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(StoreError::of)?;
        {
            let mut files = transaction.open_table(FILES).map_err(StoreError::of)?;
            for file in &write.gone {
                files.remove(file.0).map_err(StoreError::of)?;
            }
            for (file, row) in &write.put {
                files.insert(file.0, encoded(row)?.as_slice()).map_err(StoreError::of)?;
            }
            let mut links = transaction.open_table(LINKS).map_err(StoreError::of)?;
            for path in &write.links_gone {
                links.remove(path.as_str()).map_err(StoreError::of)?;
            }
            for (path, target) in &write.links_put {
                links.insert(path.as_str(), target.as_str()).map_err(StoreError::of)?;
            }
            let mut steps = transaction.open_table(STEPS).map_err(StoreError::of)?;
            for sequence in &write.steps_gone {
                steps.remove(sequence).map_err(StoreError::of)?;
            }
            if let Some(step) = &write.step {
                steps.insert(step.sequence, encoded(step)?.as_slice()).map_err(StoreError::of)?;
            }
            let mut meta = transaction.open_table(META).map_err(StoreError::of)?;
            meta.insert("sequence", write.sequence).map_err(StoreError::of)?;
            meta.insert("next_file", u64::from(write.next_file)).map_err(StoreError::of)?;
            if let Some(mounts) = &write.mounts {
                let mut table = transaction.open_table(MOUNTS).map_err(StoreError::of)?;
                table.retain(|_, _| false).map_err(StoreError::of)?;
                for (path, device) in mounts {
                    table.insert(path.as_str(), device).map_err(StoreError::of)?;
                }
            }
        }
        match &write.settled {
            Settled::None => {}
            Settled::All => {
                transaction.delete_table(HASHES).map_err(StoreError::of)?;
            }
            Settled::Some(paths) => {
                let mut hashes = transaction.open_table(HASHES).map_err(StoreError::of)?;
                for path in paths {
                    hashes.remove(path.as_str()).map_err(StoreError::of)?;
                }
            }
        }
        transaction.commit().map_err(StoreError::of)
    }
}

impl From<Checksums> for Sums {
    fn from(sums: Checksums) -> Self {
        Self { blake3: sums.blake3.0, sha256: sums.sha256, md4: sums.md4 }
    }
}

impl From<Sums> for Checksums {
    fn from(sums: Sums) -> Self {
        Self { blake3: ContentHash(sums.blake3), sha256: sums.sha256, md4: sums.md4 }
    }
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not to be opened.
    #[error("the catalogue's database {} cannot be opened: {error}; if another control uses it, stop that one", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb said.
        error: redb::DatabaseError,
    },
    /// From another version of this program.
    #[error(
        "the catalogue's database has format {found}, expected {FORMAT}; use the version that wrote it, or remove it and have everything hashed again"
    )]
    Format {
        /// The format found.
        found: u64,
    },
    /// Rows that cannot be read.
    #[error(
        "the catalogue's database is damaged in its table `{table}`; remove it and have everything hashed again"
    )]
    Damaged {
        /// Where.
        table: &'static str,
    },
    /// Reading or writing failed, for instance on a full disk.
    #[error("the catalogue's database cannot be read or written: {0}")]
    Storage(#[from] Box<redb::Error>),
}

impl StoreError {
    fn of(error: impl Into<redb::Error>) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(value).map_err(|_| StoreError::Damaged { table: "none: a value cannot be encoded" })
}

fn decoded<T: DeserializeOwned>(bytes: &[u8], table: &'static str) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| StoreError::Damaged { table })
}

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FILES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("files");
const LINKS: TableDefinition<'_, &str, &str> = TableDefinition::new("links");
const STEPS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("steps");
const MOUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("mounts");
const HASHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("hashes");
const FORMAT: u64 = 1;

/// Memory that redb may use; the catalogue itself is in memory anyway.
const CACHE_BYTES: usize = 64 << 20;

/// Rows that are put into the snapshot at once.
const LOAD_BATCH: usize = 65_536;
