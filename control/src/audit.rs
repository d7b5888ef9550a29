//! What operators changed, or tried to: one JSON line each in `audit.jsonl` in the state directory, on disk before the
//! answer is given. When the file is full it becomes `audit.1.jsonl`, and the one before is dropped.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use freshet_api::operator::AuditEntry;

/// The log.
#[derive(Debug)]
pub struct AuditLog {
    directory: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl AuditLog {
    /// Opens the log in `state`, or begins it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(state: &Path) -> io::Result<Self> {
        Ok(Self { directory: state.to_owned(), open: Mutex::new(open(&state.join(FILE))?) })
    }

    /// Writes a line; it is on disk when this returns. Blocks.
    ///
    /// # Errors
    /// The kernel's; then the change it tells of must not be acknowledged as noted.
    pub fn note(&self, entry: &AuditEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let mut log = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if log.bytes > 0 && log.bytes + line.len() as u64 > BYTES_MAX {
            std::fs::rename(self.directory.join(FILE), self.directory.join(BEFORE))?;
            *log = open(&self.directory.join(FILE))?;
        }
        // In one write, so that a crash leaves no half of two.
        log.file.write_all(&line)?;
        log.file.sync_data()?;
        log.bytes += line.len() as u64;
        Ok(())
    }

    /// The last `limit` lines, newest first. Blocks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn last(&self, limit: usize) -> io::Result<Vec<AuditEntry>> {
        let mut entries = Vec::new();
        for name in [FILE, BEFORE] {
            let file = match File::open(self.directory.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let mut lines: Vec<AuditEntry> = BufReader::new(file)
                .lines()
                .map_while(Result::ok)
                // The last line of a crash may be half a line.
                .filter_map(|line| serde_json::from_str(&line).ok())
                .collect();
            lines.reverse();
            entries.extend(lines);
            if entries.len() >= limit {
                break;
            }
        }
        entries.truncate(limit);
        Ok(entries)
    }
}

fn open(path: &Path) -> io::Result<Open> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > 0 && !ends_with_newline(path)? {
        // Half a line of a crash must not swallow the next.
        file.write_all(b"\n")?;
    }
    Ok(Open { file, bytes })
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Bytes of one file at most; two are kept.
const BYTES_MAX: u64 = 16 << 20;
const FILE: &str = "audit.jsonl";
const BEFORE: &str = "audit.1.jsonl";

#[cfg(test)]
mod tests {
    use freshet_api::operator::Role;

    use super::*;

    fn entry(at: u64) -> AuditEntry {
        AuditEntry {
            at,
            who: "ann".into(),
            role: Role::Admin,
            from: None,
            request: "POST /v1/admin/nodes/south/drain".into(),
            body: None,
            status: 200,
        }
    }

    #[test]
    fn what_was_noted_is_read_back_newest_first_over_restarts_and_crashes() {
        let state = tempfile::tempdir().unwrap();
        let log = AuditLog::open(state.path()).unwrap();
        log.note(&entry(1)).unwrap();
        log.note(&entry(2)).unwrap();
        drop(log);
        let mut file = OpenOptions::new().append(true).open(state.path().join(FILE)).unwrap();
        file.write_all(b"{\"at\":3,\"wh").unwrap();
        let log = AuditLog::open(state.path()).unwrap();
        log.note(&entry(4)).unwrap();
        let at: Vec<u64> = log.last(10).unwrap().iter().map(|entry| entry.at).collect();
        assert_eq!(at, [4, 2, 1]);
        assert_eq!(log.last(1).unwrap().len(), 1);
    }

    #[test]
    fn a_full_file_makes_room() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join(FILE), "\n".repeat(BYTES_MAX as usize)).unwrap();
        let log = AuditLog::open(state.path()).unwrap();
        log.note(&entry(5)).unwrap();
        log.note(&entry(6)).unwrap();
        assert!(std::fs::metadata(state.path().join(FILE)).unwrap().len() < 1_000);
        assert!(state.path().join(BEFORE).exists());
        assert_eq!(log.last(10).unwrap().len(), 2);
    }
}
