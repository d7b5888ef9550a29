//! The trace file: a repository's files, then requests and releases in order of time.
//!
//! Little-endian and of fixed width, so that tens of millions of requests are read at the speed of the
//! disk: a line of magic, the number of files (u32), per file size (u64), content (u32), kind (u8) and
//! distribution (u8), then per event microseconds since the one before (u32), file (u32), and client
//! (u32) whose two upper bits tell what it is.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// The files of a repository, those that appear during the trace included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repository {
    /// By number.
    pub(crate) files: Vec<FileEntry>,
}

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileEntry {
    /// Size in bytes.
    pub(crate) size: u64,
    /// Files of the same number are identical.
    pub(crate) content: u32,
    /// What it is.
    pub(crate) kind: FileKind,
    /// Which distribution it belongs to.
    pub(crate) distribution: u8,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FileKind {
    /// A package, or anything else that is no image.
    Package,
    /// An installation image.
    Image,
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Event {
    /// Seconds since the trace began.
    pub(crate) at: f64,
    /// What.
    pub(crate) what: What,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A client asks for a file.
    Request {
        /// Which file.
        file: u32,
        /// Which client (below 2^30).
        client: u32,
    },
    /// Files are published.
    Release {
        /// The first of them.
        first: u32,
        /// How many (below 2^30).
        count: u32,
    },
}

/// Writes a trace.
#[derive(Debug)]
pub(crate) struct Writer {
    out: BufWriter<File>,
    at_micros: u64,
    written: u64,
}

impl Writer {
    /// Begins a trace at `path` over `repository`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn create(path: &Path, repository: &Repository) -> Result<Writer> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(MAGIC)?;
        out.write_all(&u32::try_from(repository.files.len())?.to_le_bytes())?;
        for file in &repository.files {
            out.write_all(&file.size.to_le_bytes())?;
            out.write_all(&file.content.to_le_bytes())?;
            out.write_all(&[u8::from(file.kind == FileKind::Image), file.distribution])?;
        }
        Ok(Writer { out, at_micros: 0, written: 0 })
    }

    /// Appends `event`, which must not be earlier than the one before.
    ///
    /// # Errors
    /// When it cannot be written, or lies more than an hour after the one before.
    pub(crate) fn write(&mut self, event: &Event) -> Result<()> {
        let micros = (event.at * 1e6).round() as u64;
        let delta = micros.saturating_sub(self.at_micros);
        let delta = u32::try_from(delta).context("expected events at most 71 minutes apart")?;
        self.at_micros += u64::from(delta);
        let (file, client) = match event.what {
            What::Request { file, client } => (file, client & CLIENT_MASK),
            What::Release { first, count } => (first, count & CLIENT_MASK | RELEASE),
        };
        self.out.write_all(&delta.to_le_bytes())?;
        self.out.write_all(&file.to_le_bytes())?;
        self.out.write_all(&client.to_le_bytes())?;
        self.written += 1;
        Ok(())
    }

    /// Ends the trace; how many events it has.
    ///
    /// # Errors
    /// When the last of it cannot be written.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.out.flush()?;
        Ok(self.written)
    }
}

/// Reads a trace, event by event.
#[derive(Debug)]
pub(crate) struct Reader {
    input: BufReader<File>,
    repository: Repository,
    at_micros: u64,
}

impl Reader {
    /// Opens the trace at `path` and reads its repository.
    ///
    /// # Errors
    /// When it cannot be read or is no trace.
    pub(crate) fn open(path: &Path) -> Result<Reader> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut input = BufReader::with_capacity(1 << 20, file);
        let mut magic = [0; MAGIC.len()];
        let read = input.read_exact(&mut magic);
        ensure!(
            read.is_ok() && &magic == MAGIC,
            "expected a trace written by `bench trace`: {}",
            path.display()
        );
        let mut count = [0; 4];
        input.read_exact(&mut count).context("the trace ends within its head")?;
        let mut repository = Repository::default();
        for _ in 0..u32::from_le_bytes(count) {
            let mut entry = [0; 14];
            input.read_exact(&mut entry).context("the trace ends within its files")?;
            let [a, b, c, d, e, f, g, h, i, j, k, l, kind, distribution] = entry;
            repository.files.push(FileEntry {
                size: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                content: u32::from_le_bytes([i, j, k, l]),
                kind: if kind == 1 { FileKind::Image } else { FileKind::Package },
                distribution,
            });
        }
        Ok(Reader { input, repository, at_micros: 0 })
    }

    /// The files.
    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The next event, or none at the end.
    ///
    /// # Errors
    /// When the trace ends within an event or names a file that it lacks.
    pub(crate) fn next(&mut self) -> Result<Option<Event>> {
        let mut record = [0; 12];
        match self.input.read_exact(&mut record[..1]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        self.input.read_exact(&mut record[1..]).context("the trace ends within an event")?;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = record;
        self.at_micros += u64::from(u32::from_le_bytes([a, b, c, d]));
        let file = u32::from_le_bytes([e, f, g, h]);
        let client = u32::from_le_bytes([i, j, k, l]);
        let files = self.repository.files.len() as u64;
        let what = if client & RELEASE == 0 {
            ensure!(u64::from(file) < files, "expected one of {files} files, found number {file}");
            What::Request { file, client: client & CLIENT_MASK }
        } else {
            let count = client & CLIENT_MASK;
            let end = u64::from(file) + u64::from(count);
            ensure!(end <= files, "expected a release within {files} files, found {file} to {end}");
            What::Release { first: file, count }
        };
        Ok(Some(Event { at: self.at_micros as f64 / 1e6, what }))
    }
}

const MAGIC: &[u8; 16] = b"freshet-trace 1\n";
const RELEASE: u32 = 1 << 31;
const CLIENT_MASK: u32 = (1 << 30) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.trace");
        let file = FileEntry { size: 1 << 40, content: 7, kind: FileKind::Image, distribution: 3 };
        let repository = Repository { files: vec![file; 3] };
        let events = [
            Event { at: 0.5, what: What::Request { file: 2, client: 9 } },
            Event { at: 0.5, what: What::Release { first: 1, count: 2 } },
            Event { at: 3600.25, what: What::Request { file: 0, client: CLIENT_MASK } },
        ];
        let mut writer = Writer::create(&path, &repository).unwrap();
        events.iter().for_each(|event| writer.write(event).unwrap());
        assert_eq!(writer.finish().unwrap(), 3);
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.repository().files, repository.files);
        for event in events {
            assert_eq!(reader.next().unwrap(), Some(event));
        }
        assert_eq!(reader.next().unwrap(), None);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        reader.next().unwrap();
        reader.next().unwrap();
        assert!(reader.next().is_err());
        std::fs::write(&path, &whole[..30]).unwrap();
        assert!(Reader::open(&path).is_err());
        std::fs::write(&path, b"something else entirely").unwrap();
        assert!(Reader::open(&path).is_err());
    }
}
