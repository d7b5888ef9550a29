//! Access logs in the combined format of Apache and nginx, gzip or not, as a trace.
//!
//! A file's size is the most bytes that one answer carried; its name, the client and all else of the
//! line are used to tell things apart and then forgotten. Lines that don't parse are counted.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use flate2::bufread::MultiGzDecoder;

use super::{Event, FileEntry, FileKind, Repository, What, Writer};

/// Reads `logs` and writes the trace `out`.
///
/// # Errors
/// When a log cannot be read, none of its lines is a request, or the trace cannot be written.
pub(crate) fn import(logs: &[PathBuf], out: &Path) -> Result<Summary> {
    let mut log = Log::default();
    for path in logs {
        log.read(open(path)?).with_context(|| format!("in {}", path.display()))?;
    }
    ensure!(
        !log.requests.is_empty(),
        "expected lines in the combined log format, found {} others",
        log.summary.refused
    );
    log.write(out)
}

/// What came of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Requests taken.
    pub(crate) taken: u64,
    /// Requests left out: not GET, or not answered with a file.
    pub(crate) left_out: u64,
    /// Lines that are no log lines.
    pub(crate) refused: u64,
    /// Files told apart.
    pub(crate) files: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests for {} files; {} left out, {} lines not understood",
            self.taken, self.files, self.left_out, self.refused
        )
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let raw: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    let mut raw = BufReader::with_capacity(1 << 16, raw);
    let is_gzip = raw.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip { Box::new(BufReader::new(MultiGzDecoder::new(raw))) } else { Box::new(raw) })
}

#[derive(Debug, Default)]
struct Log {
    files: HashMap<String, u32>,
    clients: HashMap<String, u32>,
    distributions: HashMap<String, u8>,
    entries: Vec<FileEntry>,
    /// Seconds of the epoch, file, client.
    requests: Vec<(i64, u32, u32)>,
    summary: Summary,
}

impl Log {
    fn read(&mut self, mut input: Box<dyn BufRead>) -> Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // A line without end is cut, not kept in memory.
            let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line);
            match parse(text.trim_end()) {
                Some(entry) => self.take(&entry),
                None => self.summary.refused += 1,
            }
        }
    }

    fn take(&mut self, entry: &Line<'_>) {
        if entry.method != "GET" || !matches!(entry.status, 200 | 206) || entry.bytes == 0 {
            self.summary.left_out += 1;
            return;
        }
        let path = entry.target.split(['?', '#']).next().unwrap_or("");
        let entries = &mut self.entries;
        let distributions = &mut self.distributions;
        let number = *self.files.entry(path.to_owned()).or_insert_with(|| {
            let top = path.trim_start_matches('/').split('/').next().unwrap_or("").to_owned();
            let next = distributions.len().min(255) as u8;
            let distribution = *distributions.entry(top).or_insert(next);
            let is_image = [".iso", ".img", ".qcow2"].iter().any(|suffix| path.ends_with(suffix));
            let kind = if is_image { FileKind::Image } else { FileKind::Package };
            entries.push(FileEntry { size: 0, content: entries.len() as u32, kind, distribution });
            entries.len() as u32 - 1
        });
        let file = &mut self.entries[number as usize];
        file.size = file.size.max(entry.bytes);
        let next = self.clients.len() as u32;
        let client = *self.clients.entry(entry.client.to_owned()).or_insert(next);
        self.requests.push((entry.second, number, client));
        self.summary.taken += 1;
    }

    fn write(mut self, out: &Path) -> Result<Summary> {
        // Logs are written when answers end, and several may be given: bring them in order.
        self.requests.sort_by_key(|&(second, ..)| second);
        let first = self.requests.first().map_or(0, |&(second, ..)| second);
        let mut writer = Writer::create(out, &Repository { files: self.entries.clone() })?;
        let mut at = 0.0;
        for (index, &(second, file, client)) in self.requests.iter().enumerate() {
            // Requests of one second are spread over it.
            let same = self.requests[index..].iter().take_while(|other| other.0 == second).count();
            let start = (second - first) as f64;
            at = f64::max(at, start);
            at += (start + 1.0 - at) / (same as f64 + 1.0);
            writer.write(&Event { at, what: What::Request { file, client } })?;
        }
        writer.finish()?;
        self.summary.files = self.entries.len() as u64;
        Ok(self.summary)
    }
}

/// What is used of a line.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    client: &'a str,
    second: i64,
    method: &'a str,
    target: &'a str,
    status: u16,
    bytes: u64,
}

/// `host ident user [time] "request" status bytes ...`
fn parse(line: &str) -> Option<Line<'_>> {
    let (client, rest) = line.split_once(' ')?;
    let (_, rest) = rest.split_once('[')?;
    let (time, rest) = rest.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut numbers = rest.split(' ');
    let status = numbers.next()?.parse().ok()?;
    let bytes = match numbers.next()? {
        "-" => 0,
        number => number.parse().ok()?,
    };
    let second =
        jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).ok()?.to_timestamp().ok()?.as_second();
    Some(Line { client, second, method, target, status, bytes })
}

const LINE_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::Reader;
    use super::*;

    const LINES: &str = r#"192.0.2.1 - - [10/Oct/2025:13:55:36 +0200] "GET /debian/pool/a.deb?x=1 HTTP/1.1" 200 2326 "-" "apt"
192.0.2.2 - u [10/Oct/2025:13:55:36 +0200] "GET /fedora/b.iso HTTP/1.1" 206 1000000 "-" "curl"
192.0.2.1 - - [10/Oct/2025:11:55:40 +0000] "GET /debian/pool/a.deb HTTP/1.1" 304 - "-" "apt"
192.0.2.1 - - [10/Oct/2025:11:55:41 +0000] "HEAD /debian/pool/a.deb HTTP/1.1" 200 0 "-" "apt"
nonsense
192.0.2.1 - - [40/Oct/2025:11:55:41 +0000] "GET / HTTP/1.1" 200 5
192.0.2.3 - - [10/Oct/2025:11:55:42 +0000] "GET /debian/pool/a.deb HTTP/1.1" 200 4000 "-" "apt"
"#;

    fn check(path: &Path) {
        let out = path.with_extension("trace");
        let summary = import(&[path.to_owned()], &out).unwrap();
        assert_eq!(summary, Summary { taken: 3, left_out: 2, refused: 2, files: 2 });
        let mut reader = Reader::open(&out).unwrap();
        let files = reader.repository().files.clone();
        assert_eq!((files[0].size, files[0].kind), (4000, FileKind::Package));
        assert_eq!((files[1].size, files[1].kind), (1_000_000, FileKind::Image));
        assert_ne!(files[0].distribution, files[1].distribution);
        let mut events = Vec::new();
        while let Some(event) = reader.next().unwrap() {
            events.push(event);
        }
        assert_eq!(events.len(), 3);
        assert!(events[0].at < events[1].at && events[1].at <= 1.0);
        assert!((6.0..7.0).contains(&events[2].at), "{}", events[2].at);
    }

    #[test]
    fn plain_and_compressed_logs_give_the_same_trace() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("access.log");
        std::fs::write(&plain, LINES).unwrap();
        check(&plain);
        let packed = directory.path().join("access.log.gz");
        let mut encoder =
            flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::default());
        encoder.write_all(LINES.as_bytes()).unwrap();
        encoder.finish().unwrap();
        check(&packed);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "hello\nworld\n").unwrap();
        assert!(import(std::slice::from_ref(&path), &directory.path().join("y")).is_err());
        assert!(import(&[directory.path().join("missing")], &path).is_err());
    }
}
