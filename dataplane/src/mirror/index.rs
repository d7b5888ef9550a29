//! What of the mirror's state survives a stop or a kill -9: rows, links and blobs, in an embedded database.
//!
//! It only records; what it says about the disk is checked against the disk at the next start. A database
//! that is damaged is put aside and made anew from what is on disk.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use freshet_api::ContentHash;
use freshet_api::manifest::RepoPath;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition,
};

use super::MirrorError;
use super::state::State;
use super::stored::{Dirty, LinkState, RowNumber, Stamp, StoredRow};

pub(super) struct Index {
    path: PathBuf,
    /// `None` only when it could not be opened again after an error of the disk.
    database: Mutex<Option<Database>>,
}

/// What the index knew.
#[derive(Default)]
pub(super) struct Stored {
    /// The rows, and how far it was.
    pub(super) state: State,
    pub(super) links: Vec<(RepoPath, LinkState)>,
    pub(super) blobs: Vec<(ContentHash, Stamp)>,
}

impl Index {
    /// Opens or makes the index, and reads all of it.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Stored), MirrorError> {
        match open_and_read(&path) {
            Ok((database, stored)) => Ok((Self { path, database: Mutex::new(Some(database)) }, stored)),
            Err(MirrorError::Index { source, .. }) if damaged(&source) => {
                let aside = path.with_extension("damaged");
                tracing::warn!(path = %path.display(), aside = %aside.display(), %source,
                    "the index is damaged; it is put aside, and every blob is hashed again");
                std::fs::rename(&path, &aside).map_err(|source| MirrorError::Disk {
                    doing: "put aside",
                    path: path.clone(),
                    source,
                })?;
                let (database, stored) = open_and_read(&path)?;
                Ok((Self { path, database: Mutex::new(Some(database)) }, stored))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes what the index has not learnt yet; durable when it returns.
    ///
    /// On an error nothing of it was written, and the caller keeps it for the next time.
    pub(super) fn write(&self, state: &State, dirty: &Dirty) -> Result<(), MirrorError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(open_database(&self.path)?);
        }
        let Some(open) = database.as_ref() else { return Ok(()) };
        let written = write_to(open, state, dirty);
        if written.is_err() {
            // After an error of the disk redb refuses everything until it is opened anew.
            *database = None;
        }
        written.map_err(|error| failed("write", &self.path)(error))
    }
}

fn open_and_read(path: &Path) -> Result<(Database, Stored), MirrorError> {
    let database = open_database(path)?;
    let failed = failed("read", path);
    let found = format_of(&database).map_err(&failed)?;
    if found != FORMAT {
        return Err(MirrorError::Format { path: path.to_owned(), expected: FORMAT, found });
    }
    let stored = read_from(&database).map_err(&failed)?;
    Ok((database, stored))
}

fn open_database(path: &Path) -> Result<Database, MirrorError> {
    redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => MirrorError::InUse { path: path.to_owned() },
        error => failed("open", path)(error.into()),
    })
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(redb::Error) -> MirrorError {
    let path = path.to_owned();
    move |source| MirrorError::Index { doing, path: path.clone(), source: Box::new(source) }
}

fn damaged(error: &redb::Error) -> bool {
    let invalid = |error: &std::io::Error| error.kind() == std::io::ErrorKind::InvalidData;
    match error {
        redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } => true,
        redb::Error::Io(error) => invalid(error) || error.kind() == std::io::ErrorKind::UnexpectedEof,
        _ => false,
    }
}

fn format_of(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let found = {
        let mut numbers = transaction.open_table(NUMBERS)?;
        transaction.open_table(ROWS)?;
        transaction.open_table(LINKS)?;
        transaction.open_table(BLOBS)?;
        let found = numbers.get("format")?.map(|found| found.value());
        if found.is_none() {
            numbers.insert("format", FORMAT)?;
        }
        found.unwrap_or(FORMAT)
    };
    transaction.commit()?;
    Ok(found)
}

fn read_from(database: &Database) -> Result<Stored, redb::Error> {
    let transaction = database.begin_read()?;
    let mut stored = Stored::default();
    let numbers = transaction.open_table(NUMBERS)?;
    stored.state.target = numbers.get("target")?.map_or(0, |found| found.value());
    stored.state.complete = numbers.get("complete")?.map_or(0, |found| found.value());
    let mut rows: Vec<(RowNumber, StoredRow)> = Vec::new();
    for entry in transaction.open_table(ROWS)?.iter()? {
        let (number, row) = entry?;
        rows.push((RowNumber(number.value()), decode(row.value())?));
        if rows.len() == BATCH_ROWS {
            stored.state.restore_rows(std::mem::take(&mut rows));
        }
    }
    stored.state.restore_rows(rows);
    for entry in transaction.open_table(LINKS)?.iter()? {
        let (path, link) = entry?;
        let path = path.value().parse().map_err(|_| corrupted("a path"))?;
        stored.links.push((path, decode(link.value())?));
    }
    for entry in transaction.open_table(BLOBS)?.iter()? {
        let (content, stamp) = entry?;
        stored.blobs.push((ContentHash(content.value()), decode(stamp.value())?));
    }
    Ok(stored)
}

fn write_to(database: &Database, state: &State, dirty: &Dirty) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut rows = transaction.open_table(ROWS)?;
        for number in &dirty.rows {
            match state.stored(RowNumber(number)) {
                Some(row) => drop(rows.insert(number, encode(&row)?.as_slice())?),
                None => drop(rows.remove(number)?),
            }
        }
        let mut links = transaction.open_table(LINKS)?;
        for path in &dirty.links {
            match state.stored_link(path) {
                Some(link) => drop(links.insert(path.as_str(), encode(link)?.as_slice())?),
                None => drop(links.remove(path.as_str())?),
            }
        }
        let mut blobs = transaction.open_table(BLOBS)?;
        for (content, stamp) in &dirty.blobs {
            match stamp {
                Some(stamp) => drop(blobs.insert(content.0, encode(stamp)?.as_slice())?),
                None => drop(blobs.remove(content.0)?),
            }
        }
        if dirty.sequences {
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert("target", state.target)?;
            numbers.insert("complete", state.complete)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    postcard::to_stdvec(value).map_err(|_| corrupted("a value to be written"))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    postcard::from_bytes(bytes).map_err(|_| corrupted("a value"))
}

fn corrupted(what: &str) -> redb::Error {
    StorageError::Corrupted(format!("{what} of the mirror's index does not make sense")).into()
}

/// `format`, `target`, `complete`.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const ROWS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("rows");
const LINKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("links");
const BLOBS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("blobs");

const FORMAT: u64 = 2;

/// Rows that are put into the state at once.
const BATCH_ROWS: usize = 65_536;

/// Of pages that redb keeps in memory at most.
const CACHE_BYTES: usize = 64 << 20;
