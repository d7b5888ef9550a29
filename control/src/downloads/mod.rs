//! How often customers asked the front door for each file: counted as they ask, kept by days in one redb file.
//!
//! Counted is who asks for a file from its first byte on; who goes on with the rest of one, or comes back from a
//! volunteer, was counted before. Whether a download ended is not known here. A crash forgets [`KEEP_EVERY`] at most.
//! Nothing is decided by these numbers.

mod days;
mod ring;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use freshet_api::FileId;
use freshet_api::glob::Glob;
use freshet_api::operator::{DownloadLine, DownloadsBy, DownloadsView};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::catalog::Catalog;
use crate::clock::epoch_secs;
use days::Days;
use ring::Ring;

/// The counts.
pub struct Downloads {
    ring: Ring,
    catalog: Arc<Catalog>,
    database: Database,
    book: Mutex<Book>,
}

/// What is not yet on disk.
#[derive(Debug, Default)]
struct Book {
    /// How far the ring was read.
    read: u64,
    by_path: HashMap<String, u64>,
    /// Of files that were gone before they were looked up, and requests that came faster than they were counted.
    unknown: u64,
}

impl Downloads {
    /// Opens the counts in `file`, or begins to count.
    ///
    /// # Errors
    /// [`DownloadsError`], also when another process has it open.
    pub fn open(file: &Path, catalog: Arc<Catalog>) -> Result<Arc<Self>, DownloadsError> {
        let named = |reason: String| DownloadsError { file: file.display().to_string(), reason };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(file)
            .map_err(|error| named(error.to_string()))?;
        crate::private_file::restrict(file).map_err(|error| named(error.to_string()))?;
        let begun = || -> Result<(), redb::Error> {
            let write = database.begin_write()?;
            {
                write.open_table(FILES)?;
                let mut facts = write.open_table(FACTS)?;
                if facts.get(SINCE)?.is_none() {
                    facts.insert(SINCE, now_secs())?;
                }
            }
            write.commit()?;
            Ok(())
        };
        begun().map_err(|error| named(error.to_string()))?;
        Ok(Arc::new(Self { ring: Ring::default(), catalog, database, book: Mutex::default() }))
    }

    /// A customer asks for a file from its beginning.
    pub fn note(&self, file: FileId) {
        self.ring.note(file);
    }

    /// Counts until the task is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut every = tokio::time::interval(READ_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut kept = tokio::time::Instant::now();
        loop {
            every.tick().await;
            drop(self.read());
            if kept.elapsed() >= KEEP_EVERY {
                kept = tokio::time::Instant::now();
                let downloads = Arc::clone(&self);
                if let Err(error) = tokio::task::spawn_blocking(move || downloads.keep()).await {
                    tracing::error!(%error, "downloads were not kept");
                }
            }
        }
    }

    /// Writes what was counted to disk; what can't be written waits for the next time.
    pub fn keep(&self) {
        let mut book = self.read();
        if let Err(error) = self.write(&book, day_of(now_secs())) {
            tracing::warn!(%error, "the counts of downloads could not be written");
            // Where the disk stays full, what customers ask for fills no memory.
            if book.by_path.len() > WAITING_MAX {
                book.unknown += book.by_path.drain().map(|(_, times)| times).sum::<u64>();
            }
            return;
        }
        book.by_path.clear();
        book.unknown = 0;
    }

    /// The files that match and were asked for most.
    ///
    /// # Errors
    /// When the counts can't be read.
    pub fn view(
        &self,
        pattern: &Glob,
        by: DownloadsBy,
        limit: usize,
    ) -> Result<DownloadsView, DownloadsError> {
        self.keep();
        let read = || -> Result<DownloadsView, redb::Error> {
            let transaction = self.database.begin_read()?;
            let facts = transaction.open_table(FACTS)?;
            let fact =
                |name| -> Result<u64, redb::Error> { Ok(facts.get(name)?.map_or(0, |value| value.value())) };
            let mut view =
                DownloadsView { since: fact(SINCE)?, unknown: fact(UNKNOWN)?, ..DownloadsView::default() };
            let today = day_of(now_secs());
            for row in transaction.open_table(FILES)?.iter()? {
                let (path, days) = row?;
                if !pattern.matches(path.value()) {
                    continue;
                }
                let line = line(path.value(), &decoded(days.value())?, today);
                view.matching += 1;
                view.sum.today += line.today;
                view.sum.week += line.week;
                view.sum.month += line.month;
                view.sum.total += line.total;
                view.files.push(line);
                if view.files.len() >= limit.saturating_mul(2).max(SORT_AT) {
                    first(&mut view.files, by, limit);
                }
            }
            first(&mut view.files, by, limit);
            Ok(view)
        };
        read().map_err(|error| DownloadsError { file: FILE_SHOWN.to_owned(), reason: error.to_string() })
    }

    /// Takes in what was asked since the last time.
    fn read(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.ring.since(&mut book.read);
        if !found.by_file.is_empty() {
            let catalog = self.catalog.load();
            for (file, times) in found.by_file {
                match catalog.by_id(file) {
                    Some(entry) => *book.by_path.entry(entry.path.to_string()).or_default() += times,
                    None => book.unknown += times,
                }
            }
        }
        book.unknown += found.missed;
        book
    }

    fn write(&self, book: &Book, day: u32) -> Result<(), redb::Error> {
        if book.by_path.is_empty() && book.unknown == 0 {
            return Ok(());
        }
        let write = self.database.begin_write()?;
        {
            let mut files = write.open_table(FILES)?;
            for (path, times) in &book.by_path {
                let before = files.get(path.as_str())?.map(|days| decoded(days.value())).transpose()?;
                let mut days = before.unwrap_or_default();
                days.add(day, *times);
                let encoded =
                    postcard::to_stdvec(&days).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
                files.insert(path.as_str(), encoded.as_slice())?;
            }
            let mut facts = write.open_table(FACTS)?;
            let mut unknown = facts.get(UNKNOWN)?.map_or(0, |value| value.value()) + book.unknown;
            if facts.get(TIDIED)?.is_none_or(|tidied| tidied.value() < u64::from(day)) {
                unknown += self.tidy(&mut files, day)?;
                facts.insert(TIDIED, u64::from(day))?;
            }
            facts.insert(UNKNOWN, unknown)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Takes out what is neither in the repository nor was asked for lately; how often it was, once.
    fn tidy(&self, files: &mut redb::Table<'_, &str, &[u8]>, day: u32) -> Result<u64, redb::Error> {
        // Before the tree was read everything looks gone.
        if !self.catalog.first_scan_done() {
            return Ok(0);
        }
        let (catalog, mut taken) = (self.catalog.load(), 0);
        let gone = |path: &str, days: &Days| {
            days.within(day, days::DAYS_KEPT) == 0 && catalog.find(path.as_bytes()).is_none()
        };
        let mut failed = None;
        files.retain(|path, days| match decoded(days) {
            Ok(days) if gone(path, &days) => {
                taken += days.total;
                false
            }
            Ok(_) => true,
            Err(error) => {
                failed = Some(error);
                true
            }
        })?;
        failed.map_or(Ok(taken), Err)
    }
}

impl std::fmt::Debug for Downloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Downloads").field("book", &self.book).finish_non_exhaustive()
    }
}

/// Why the counts can't be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the counts of downloads in {file}: {reason}; without the file control counts anew")]
pub struct DownloadsError {
    /// Which file.
    pub file: String,
    /// In words.
    pub reason: String,
}

fn line(path: &str, days: &Days, today: u32) -> DownloadLine {
    DownloadLine {
        path: path.to_owned(),
        today: days.within(today, 1),
        week: days.within(today, 7),
        month: days.within(today, 30),
        total: days.total,
    }
}

/// Leaves the first ones, in order.
fn first(lines: &mut Vec<DownloadLine>, by: DownloadsBy, limit: usize) {
    lines.sort_by(|one, other| {
        let key = |line: &DownloadLine| (line.by(by), line.total);
        key(other).cmp(&key(one)).then_with(|| one.path.cmp(&other.path))
    });
    lines.truncate(limit);
}

fn decoded(bytes: &[u8]) -> Result<Days, redb::Error> {
    postcard::from_bytes(bytes).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn now_secs() -> u64 {
    epoch_secs(std::time::SystemTime::now())
}

fn day_of(seconds: u64) -> u32 {
    u32::try_from(seconds / 86_400).unwrap_or(u32::MAX)
}

/// Days of each file, by its path.
const FILES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("files");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");
/// When counting began, seconds since the epoch.
const SINCE: &str = "since";
const UNKNOWN: &str = "unknown";
/// On which day it was last looked for what is gone.
const TIDIED: &str = "tidied";
const FILE_SHOWN: &str = "the state directory";
const READ_EVERY: Duration = Duration::from_secs(1);
/// Between two times at which counts are written.
pub const KEEP_EVERY: Duration = Duration::from_secs(10);
const CACHE_BYTES: usize = 8 << 20;
/// Paths that wait for a disk that can be written, at most.
const WAITING_MAX: usize = 100_000;
/// Lines that are gathered before the least of them are dropped, at least.
const SORT_AT: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str, month: u64, total: u64) -> DownloadLine {
        DownloadLine { path: path.to_owned(), today: 0, week: 0, month, total }
    }

    #[test]
    fn the_most_asked_for_come_first() {
        let mut lines = vec![named("b", 1, 9), named("a", 1, 9), named("c", 5, 5), named("d", 0, 99)];
        first(&mut lines, DownloadsBy::Month, 3);
        assert_eq!(lines.iter().map(|line| line.path.as_str()).collect::<String>(), "cab");
        let mut lines = vec![named("b", 1, 9), named("d", 0, 99)];
        first(&mut lines, DownloadsBy::Total, 1);
        assert_eq!(lines, [named("d", 0, 99)]);
    }
}
