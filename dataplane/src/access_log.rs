//! One line per response, in the combined log format that log analysers know.
//!
//! A ring never waits for the disk: lines go through a bounded queue to one thread, and when the disk can't keep up
//! they are dropped and counted.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use freshet_engine::ResponseRecord;
use serde::{Deserialize, Serialize};

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    #[default]
    Off,
    /// To the standard output.
    Stdout,
    /// To the end of this file, opened again at [`AccessLog::reopen`].
    File(PathBuf),
}

impl FromStr for AccessLogTarget {
    type Err = std::convert::Infallible;

    /// `off`, `-`, or a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" | "" => Self::Off,
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

impl std::fmt::Display for AccessLogTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for AccessLogTarget {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| match text.parse() {
            Ok(target) => target,
            Err(never) => match never {},
        })
    }
}

impl Serialize for AccessLogTarget {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The log's end on the rings' side. Dropping it writes what is queued.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
    /// The second that was formatted last: one line in a thousand needs a new one.
    clock: Mutex<(u64, String)>,
}

impl AccessLog {
    /// Opens the target and starts the thread that writes; `None` when nothing is to be written.
    ///
    /// # Errors
    /// When the file can't be opened or no thread started.
    pub fn start(target: &AccessLogTarget) -> io::Result<Option<Self>> {
        if *target == AccessLogTarget::Off {
            return Ok(None);
        }
        let sink = open(target)?;
        let (queue, lines) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = std::thread::Builder::new().name("access-log".into()).spawn({
            let target = target.clone();
            let dropped = Arc::clone(&dropped);
            move || write_lines(&lines, sink, &target, &dropped)
        })?;
        Ok(Some(Self { queue: Some(queue), writer: Some(writer), dropped, clock: Mutex::default() }))
    }

    /// Queues the line for a response; never waits.
    pub fn record(&self, record: &ResponseRecord<'_>, now: SystemTime) {
        let line = line(record, &self.time(now));
        self.send(Message::Line(line));
    }

    /// Opens the file anew, after it was renamed by a log rotation.
    pub fn reopen(&self) {
        self.send(Message::Reopen);
    }

    fn send(&self, message: Message) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(message) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn time(&self, now: SystemTime) -> String {
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.0 != second || clock.1.is_empty() {
            let stamp =
                i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
            *clock = (second, stamp.unwrap_or_default().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string());
        }
        clock.1.clone()
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
    }
}

#[derive(Debug)]
enum Message {
    Line(String),
    Reopen,
}

type Sink = BufWriter<Box<dyn Write + Send>>;

fn open(target: &AccessLogTarget) -> io::Result<Sink> {
    let inner: Box<dyn Write + Send> = match target {
        AccessLogTarget::Off => Box::new(io::sink()),
        AccessLogTarget::Stdout => Box::new(io::stdout()),
        AccessLogTarget::File(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            Box::new(file.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot open the access log {}: {error}", path.display()),
                )
            })?)
        }
    };
    Ok(BufWriter::with_capacity(64 * 1024, inner))
}

fn write_lines(lines: &Receiver<Message>, mut sink: Sink, target: &AccessLogTarget, dropped: &AtomicU64) {
    let mut told = 0;
    loop {
        let outcome = match lines.recv_timeout(FLUSH_EVERY) {
            Ok(Message::Line(line)) => sink.write_all(line.as_bytes()),
            Ok(Message::Reopen) => sink.flush().and_then(|()| {
                sink = open(target)?;
                Ok(())
            }),
            Err(RecvTimeoutError::Timeout) => sink.flush(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "the access log can't be written; lines are lost");
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost >= told * 2 + 1 {
            tracing::warn!(lost, "access log lines were dropped because the log's disk can't keep up");
            told = lost;
        }
    }
    if let Err(error) = sink.flush() {
        tracing::warn!(%error, "the last lines of the access log can't be written");
    }
}

fn line(record: &ResponseRecord<'_>, time: &str) -> String {
    let mut line = String::with_capacity(200);
    // Writing to a String can't fail.
    let _ = write!(line, "{} - - [{time}] ", record.peer.ip().to_canonical());
    quote(&mut line, record.request_line);
    let _ = write!(line, " {} {} ", record.status.as_u16(), record.body_bytes);
    quote(&mut line, record.referer.unwrap_or("-"));
    line.push(' ');
    quote(&mut line, record.user_agent.unwrap_or("-"));
    line.push('\n');
    line
}

/// Quoted, with everything that could end the field or the line, or reach a terminal, as `\xHH`.
fn quote(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                line.push('\\');
                line.push(character);
            }
            ' '..='~' => line.push(character),
            other => {
                let mut bytes = [0; 4];
                for byte in other.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(line, "\\x{byte:02x}");
                }
            }
        }
    }
    line.push('"');
}

/// Lines that wait for the disk at most.
const LINES_MAX: usize = 8_192;
const FLUSH_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn record<'a>(request_line: &'a str, user_agent: &'a str) -> ResponseRecord<'a> {
        ResponseRecord {
            connection: 1,
            class: 1,
            peer: "[::ffff:192.0.2.1]:9".parse().unwrap(),
            request_line,
            path: b"/a",
            referer: None,
            user_agent: Some(user_agent),
            status: StatusCode::OK,
            body_bytes: 12,
            body_bytes_promised: 12,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn the_combined_format_comes_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::start(&AccessLogTarget::File(path.clone())).unwrap().unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        log.record(&record("GET /a HTTP/1.1", "curl/8"), at);
        drop(log);
        let expected =
            "192.0.2.1 - - [09/Sep/2001:01:46:40 +0000] \"GET /a HTTP/1.1\" 200 12 \"-\" \"curl/8\"\n";
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn nobody_forges_a_line() {
        let text = line(&record("GET /a\" 200\n1.2.3.4 - -", "\u{1b}[31mé\\"), "now");
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains(r#""GET /a\" 200\x0a1.2.3.4 - -""#), "{text}");
        assert!(text.contains(r#""\x1b[31m\xc3\xa9\\""#), "{text}");
    }

    #[test]
    fn a_renamed_file_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::start(&AccessLogTarget::File(path.clone())).unwrap().unwrap();
        log.record(&record("GET /1 HTTP/1.1", "-"), SystemTime::UNIX_EPOCH);
        std::fs::rename(&path, directory.path().join("access.log.1")).unwrap();
        log.reopen();
        log.record(&record("GET /2 HTTP/1.1", "-"), SystemTime::UNIX_EPOCH);
        drop(log);
        assert!(std::fs::read_to_string(directory.path().join("access.log.1")).unwrap().contains("/1"));
        assert!(std::fs::read_to_string(path).unwrap().contains("/2"));
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_told_at_once() {
        let target = AccessLogTarget::File("/nonexistent/directory/log".into());
        assert!(AccessLog::start(&target).unwrap_err().to_string().contains("/nonexistent/directory/log"));
        assert!(AccessLog::start(&AccessLogTarget::Off).unwrap().is_none());
    }
}
