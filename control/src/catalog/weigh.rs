//! What a catalogue costs control in time and memory, measured on the very snapshot that the front door reads. For
//! `bench catalogue`; no database, no tree.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use freshet_api::manifest::{Manifest, ManifestFile};
use freshet_api::{Bytes, Checksums, FileId};
use serde::Serialize;

use super::entry::{FileEntry, Stamp};
use super::snapshot::Snapshot;

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Weight {
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// To fill the snapshot, as after a start.
    pub fill_secs: f64,
    /// What the process has resident more than before.
    pub resident: Bytes,
    /// To find a file by its path, nanoseconds; all files in an order without order.
    pub find_nanos: f64,
    /// To take one file out of a state and put one in, until the new state can be shown, microseconds.
    pub change_micros: f64,
    /// To make a manifest of everything, in its wire form.
    pub manifest_secs: f64,
}

/// Fills a snapshot with a manifest's files. What a manifest does not say (checksums for customers, stamps) is made up.
///
/// # Errors
/// When the manifest cannot be read, is none, or this process's memory cannot be asked for.
pub fn weigh(read: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Weight> {
    let before = resident()?;
    let manifest = Manifest::decode(&read()?).map_err(io::Error::other)?;
    let mut snapshot = Snapshot::empty(1);
    let mut fill = Duration::ZERO;
    let mut files = manifest.files.iter().peekable();
    while files.peek().is_some() {
        let batch: Vec<FileEntry<'_>> = files.by_ref().take(BATCH).map(entry).collect();
        let started = Instant::now();
        snapshot.extend(&batch);
        fill += started.elapsed();
    }
    let started = Instant::now();
    snapshot.shrink();
    fill += started.elapsed();
    drop(manifest);
    let resident = resident()?.saturating_sub(before);
    let find_nanos = look_up(&snapshot);
    let change_micros = change(&mut snapshot);
    let started = Instant::now();
    black_box(super::history::whole(&snapshot).encode().map_err(io::Error::other)?);
    let manifest_secs = started.elapsed().as_secs_f64();
    Ok(Weight {
        files: snapshot.len() as u64,
        directories: snapshot.directories() as u64,
        fill_secs: fill.as_secs_f64(),
        resident: Bytes(resident),
        find_nanos,
        change_micros,
        manifest_secs,
    })
}

fn entry(file: ManifestFile) -> FileEntry<'static> {
    let mut sums = Checksums { blake3: file.content, sha256: file.content.0, md4: [0; 16] };
    sums.sha256.reverse();
    sums.md4.copy_from_slice(&file.content.0[8..24]);
    let stamp = Stamp {
        inode: u64::from(file.file.0),
        size: file.size,
        mtime: file.mtime,
        mtime_nanos: file.file.0 % 1_000_000_000,
        ctime: file.mtime,
        ctime_nanos: 0,
    };
    FileEntry::new(file.file, file.path, &stamp, sums, file.last, 0)
}

fn look_up(snapshot: &Snapshot) -> f64 {
    let stride = (snapshot.len() / QUESTIONS).max(1);
    let mut asked: Vec<([u8; 32], String)> = snapshot
        .iter()
        .step_by(stride)
        .map(|entry| (entry.checksums.blake3.0, format!("/{}", entry.path)))
        .collect();
    // By their hashes they are in no order that the snapshot has.
    asked.sort_unstable();
    let started = Instant::now();
    let found = asked.iter().filter_map(|(_, path)| snapshot.find(path.as_bytes())).map(|entry| entry.size);
    black_box(found.sum::<u64>());
    started.elapsed().as_secs_f64() * 1e9 / asked.len().max(1) as f64
}

fn change(snapshot: &mut Snapshot) -> f64 {
    let stride = (snapshot.len() / CHANGES).max(1);
    let some: Vec<FileEntry<'static>> = snapshot.iter().step_by(stride).take(CHANGES).collect();
    let mut next_file = snapshot.iter().map(|entry| entry.file.0).max().unwrap_or(0);
    let started = Instant::now();
    for entry in &some {
        let mut next = snapshot.clone();
        next.remove(entry.file);
        next_file += 1;
        let mut renewed = entry.clone();
        renewed.file = FileId(next_file);
        next.insert(&renewed);
        *snapshot = next;
    }
    started.elapsed().as_secs_f64() * 1e6 / some.len().max(1) as f64
}

/// Bytes of this process in memory.
fn resident() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
}

/// Rows put in at once, as from the database.
const BATCH: usize = 65_536;

/// Questions asked, and changes made.
const QUESTIONS: usize = 500_000;
const CHANGES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_filled_and_weighed() {
        let file = |number: u32| ManifestFile {
            file: FileId(number),
            path: format!("pool/{}/{number}.deb", number % 7).parse().unwrap(),
            size: 5,
            mtime: 9,
            content: freshet_api::ContentHash::of(&(number / 2).to_le_bytes()),
            last: false,
        };
        let manifest = Manifest { sequence: 1, files: (0..2_000).map(file).collect(), ..Manifest::default() };
        let weight = weigh(|| Ok(manifest.encode().unwrap())).unwrap();
        assert_eq!((weight.files, weight.directories), (2_000, 9));
        assert!(weight.find_nanos > 0.0 && weight.change_micros > 0.0);
        assert!(weigh(|| Ok(b"rubbish".to_vec())).is_err());
    }
}
