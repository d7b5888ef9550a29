//! The access log: an [`Observer`] that hands records to a thread of its own and never waits for it.
//!
//! When the queue is full a record is dropped and counted; serving goes on at full speed.

mod line;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::observe::{Observer, ResponseRecord};
use line::Entry;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// NCSA common log format.
    Common,
    /// Common, then `Referer` and `User-Agent`.
    Combined,
    /// One JSON object per line.
    Json,
}

/// What is logged, and how much may wait.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// How a line looks.
    pub format: LogFormat,
    /// One response in this many is logged; 1 logs all, 0 none.
    pub sample: u32,
    /// Records that wait for the writer at most; more are dropped and counted.
    pub queue_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { format: LogFormat::Combined, sample: 1, queue_max: 16_384 }
    }
}

/// An access log in operation; dropping it writes what waits and ends its thread.
#[derive(Debug)]
pub struct AccessLog {
    sample: u32,
    seen: AtomicU64,
    dropped: Arc<AtomicU64>,
    /// Taken on drop, so that the writer's queue ends.
    queue: Option<SyncSender<Entry>>,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Logs to a file that is appended to; when the path is moved away (as logrotate does), it is made anew.
    ///
    /// # Errors
    /// The kernel's, when the file can't be opened or no thread be started.
    pub fn to_file(path: impl Into<PathBuf>, options: LogOptions) -> io::Result<Self> {
        let path = path.into();
        let output = append(&path)?;
        Self::start(Output::File { path, output: BufWriter::new(output), checked: Instant::now() }, options)
    }

    /// Logs to anything that can be written, such as standard output.
    ///
    /// # Errors
    /// The kernel's, when no thread can be started.
    pub fn to_writer(output: impl Write + Send + 'static, options: LogOptions) -> io::Result<Self> {
        Self::start(Output::Writer(BufWriter::new(Box::new(output))), options)
    }

    /// Records that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn start(output: Output, options: LogOptions) -> io::Result<Self> {
        let (queue, entries) = sync_channel(options.queue_max.max(1));
        let writer = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(output, &entries, options.format))?;
        Ok(Self {
            sample: options.sample,
            seen: AtomicU64::new(0),
            dropped: Arc::default(),
            queue: Some(queue),
            writer: Some(writer),
        })
    }
}

impl Observer for AccessLog {
    fn responded(&self, record: &ResponseRecord<'_>) {
        let sampled = match self.sample {
            0 => false,
            1 => true,
            sample => self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(u64::from(sample)),
        };
        let Some(queue) = self.queue.as_ref().filter(|_| sampled) else { return };
        if queue.try_send(Entry::new(record, SystemTime::now())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the access log's thread panicked");
        }
    }
}

enum Output {
    File { path: PathBuf, output: BufWriter<File>, checked: Instant },
    Writer(BufWriter<Box<dyn Write + Send>>),
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::File { output, .. } => output.write_all(line),
            Self::Writer(output) => output.write_all(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File { output, .. } => output.flush(),
            Self::Writer(output) => output.flush(),
        }
    }

    /// Opens the path again when it no longer leads to the open file.
    fn follow_rotation(&mut self) -> io::Result<()> {
        let Self::File { path, output, checked } = self else { return Ok(()) };
        if checked.elapsed() < ROTATION_LOOK {
            return Ok(());
        }
        *checked = Instant::now();
        let open = output.get_ref().metadata()?;
        let same = std::fs::metadata(&*path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()));
        if !same {
            output.flush()?;
            *output = BufWriter::new(append(path)?);
        }
        Ok(())
    }
}

/// The writer's thread: writes while there is something, flushes when there is nothing.
fn write_all(mut output: Output, entries: &Receiver<Entry>, format: LogFormat) {
    let mut line = Vec::new();
    let mut failing = false;
    loop {
        let outcome = match entries.recv_timeout(ROTATION_LOOK) {
            Ok(entry) => {
                let mut next = Some(entry);
                let mut result = output.follow_rotation();
                while let Some(entry) = next {
                    line.clear();
                    entry.write(format, &mut line);
                    result = result.and(output.write(&line));
                    next = entries.try_recv().ok();
                }
                result.and(output.flush())
            }
            Err(RecvTimeoutError::Timeout) => output.follow_rotation(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Err(error) = &outcome
            && !failing
        {
            tracing::error!(%error, "cannot write the access log; records are lost until it can be written");
        }
        failing = outcome.is_err();
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// How often the path is compared with the open file.
const ROTATION_LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn record(line: &'static str) -> ResponseRecord<'static> {
        ResponseRecord {
            connection: 7,
            class: 1,
            peer: "[2001:db8::1]:1234".parse().unwrap(),
            request_line: line,
            path: b"/a b",
            referer: None,
            user_agent: Some("curl/8 \"x\""),
            status: StatusCode::OK,
            body_bytes: 10,
            body_bytes_told: None,
            body_bytes_promised: 10,
            elapsed: Duration::from_micros(1_500),
        }
    }

    #[test]
    fn writes_in_order_and_on_drop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::to_file(&path, LogOptions::default()).unwrap();
        for _ in 0..1_000 {
            log.responded(&record("GET /a%20b HTTP/1.1"));
        }
        assert_eq!(log.dropped(), 0);
        drop(log);
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1_000);
        let line = text.lines().next().unwrap();
        assert!(line.starts_with("2001:db8::1 - - ["), "{line}");
        assert!(
            line.ends_with(" +0000] \"GET /a%20b HTTP/1.1\" 200 10 \"-\" \"curl/8 \\x22x\\x22\""),
            "{line}"
        );
    }

    #[test]
    fn samples() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        for (sample, lines) in [(10, 5), (0, 5), (1, 55)] {
            let options = LogOptions { sample, format: LogFormat::Common, ..LogOptions::default() };
            let log = AccessLog::to_file(&path, options).unwrap();
            for _ in 0..50 {
                log.responded(&record("GET / HTTP/1.1"));
            }
            drop(log);
            assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), lines);
        }
    }

    #[test]
    fn a_stuck_output_drops_records_and_holds_up_nothing() {
        struct Stuck(Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = sync_channel::<()>(0);
        let options = LogOptions { queue_max: 4, ..LogOptions::default() };
        let log = AccessLog::to_writer(Stuck(stuck), options).unwrap();
        for _ in 0..100_000 {
            log.responded(&record("GET / HTTP/1.1"));
        }
        assert!(log.dropped() > 0);
        drop(release);
    }

    #[test]
    fn follows_a_rotated_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::to_file(&path, LogOptions::default()).unwrap();
        log.responded(&record("GET /before HTTP/1.1"));
        let lines = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let until = Instant::now() + Duration::from_secs(20);
        while lines(&path).is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        while !path.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        log.responded(&record("GET /after HTTP/1.1"));
        drop(log);
        assert!(lines(&path).contains("/after"));
        assert!(lines(&directory.path().join("old")).contains("/before"));
    }
}
