//! What a manifest costs a volunteer in time and memory, measured on the very structures that it works with. For
//! `bench catalogue`; no disk, no network.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use freshet_api::manifest::Manifest;
use freshet_api::{Bytes, ContentHash};
use serde::Serialize;

use super::MirrorError;
use super::lookup::Lookup;
use super::report::Report;
use super::state::State;
use super::stored::Stamp;

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Weight {
    /// Files of the manifest.
    pub files: u64,
    /// From the wire form to rows that were checked.
    pub decode_secs: f64,
    /// From those to the mirror's table, until readers see it.
    pub accept_secs: f64,
    /// What the process has resident more than before, when all is held and in the tree, and what is needed no more
    /// was given back.
    pub resident: Bytes,
    /// The most it had meanwhile.
    pub resident_max: Bytes,
    /// To find a file by its path, nanoseconds; all files in an order without order.
    pub find_nanos: f64,
    /// To find a content, likewise.
    pub find_content_nanos: f64,
    /// To record the arrival of 256 contents side by side and show them to readers, microseconds.
    pub batch_micros: f64,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum WeighError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] freshet_api::manifest::ManifestError),
    /// It contradicts itself.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// `/proc`, which tells the memory.
    #[error("expected to read this process's memory from /proc/self/status: {0}")]
    Memory(#[from] io::Error),
}

/// Takes a manifest in as a volunteer does, to the end that it holds everything.
///
/// # Errors
/// [`WeighError`].
pub fn weigh(read: impl FnOnce() -> io::Result<Vec<u8>>) -> Result<Weight, WeighError> {
    let before = memory("VmRSS")?;
    let (mut state, lookup, mut report) = (State::default(), Lookup::new(), Report::default());
    let mut batch_nanos = Duration::ZERO;
    let mut batches = 0u32;
    let (decode_secs, accept_secs);
    {
        let wire = read()?;
        let started = Instant::now();
        let manifest = Manifest::decode(&wire)?;
        drop(wire);
        decode_secs = started.elapsed().as_secs_f64();
        let started = Instant::now();
        state.accept(&manifest, 0)?;
        lookup.set_table(state.table());
        accept_secs = started.elapsed().as_secs_f64();
        drop(state.take_dirty());
        let mut files = manifest.files.iter();
        loop {
            let contents: Vec<(ContentHash, u64, i64)> =
                files.by_ref().take(BATCH).map(|file| (file.content, file.size, file.mtime)).collect();
            if contents.is_empty() {
                break;
            }
            let started = Instant::now();
            for &(content, size, mtime) in &contents {
                let stamp = Stamp { inode: u64::from(batches), size, mtime: (mtime, 0), ctime: (mtime, 0) };
                state.arrived(content, stamp);
                state.ready_of(&content).into_iter().for_each(|number| state.published(number, 0));
            }
            lookup.set_table(state.table());
            for (file, is_held) in state.take_held_changes() {
                report.set_held(file, is_held);
            }
            batch_nanos += started.elapsed();
            batches += 1;
            drop(state.take_dirty());
        }
        state.ready(true).into_iter().for_each(|number| state.published(number, 0));
        lookup.set_table(state.table());
        drop((state.take_held_changes(), state.take_dirty()));
    }
    let resident = memory("VmRSS")?.saturating_sub(before);
    let resident_max = memory("VmHWM")?.saturating_sub(before);
    let (files, find_nanos, find_content_nanos) = look_up(&state, &lookup);
    black_box((&state, &report));
    Ok(Weight {
        files,
        decode_secs,
        accept_secs,
        resident: Bytes(resident),
        resident_max: Bytes(resident_max),
        find_nanos,
        find_content_nanos,
        batch_micros: batch_nanos.as_secs_f64() * 1e6 / f64::from(batches.max(1)),
    })
}

/// Nanoseconds per question, by path and by content.
fn look_up(state: &State, lookup: &Lookup) -> (u64, f64, f64) {
    let table = state.table();
    let stride = (table.len() / QUESTIONS).max(1);
    let mut asked: Vec<(String, ContentHash)> =
        table.iter().step_by(stride).map(|entry| (entry.path().to_string(), *entry.content())).collect();
    // By their hashes they are in no order that the table has.
    asked.sort_unstable_by_key(|(_, content)| *content);
    let per = |elapsed: Duration| elapsed.as_secs_f64() * 1e9 / asked.len().max(1) as f64;
    let started = Instant::now();
    let found = asked.iter().filter(|(path, _)| lookup.path(path).is_some()).count();
    let by_path = per(started.elapsed());
    let started = Instant::now();
    let held = asked.iter().filter(|(_, content)| lookup.content(content).is_some()).count();
    let by_content = per(started.elapsed());
    debug_assert_eq!((found, held), (asked.len(), asked.len()));
    black_box((found, held));
    (table.len() as u64, by_path, by_content)
}

/// A figure of `/proc/self/status`, in bytes.
fn memory(name: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("it has no {name}")))
}

/// Contents in a batch, as small files come.
const BATCH: usize = 256;

/// Questions asked.
const QUESTIONS: usize = 500_000;

#[cfg(test)]
mod tests {
    use freshet_api::FileId;
    use freshet_api::manifest::ManifestFile;

    use super::*;

    #[test]
    fn what_is_weighed_is_held_in_the_end() {
        let file = |number: u32| ManifestFile {
            file: FileId(number),
            path: format!("pool/{}/{number}.deb", number % 7).parse().unwrap(),
            size: 5,
            mtime: 9,
            content: ContentHash::of(&(number / 2).to_le_bytes()),
            last: number.is_multiple_of(50),
        };
        let manifest = Manifest { sequence: 1, files: (0..2_000).map(file).collect(), ..Manifest::default() };
        let weight = weigh(|| Ok(manifest.encode().unwrap())).unwrap();
        assert_eq!(weight.files, 2_000);
        assert!(weight.find_nanos > 0.0 && weight.resident_max >= weight.resident);
        assert!(weigh(|| Ok(b"rubbish".to_vec())).is_err());
    }
}
