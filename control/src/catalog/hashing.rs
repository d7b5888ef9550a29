//! The threads that read files and compute their checksums.
//!
//! A file that changes while it is read is reported as changed and never with a checksum. Nothing here knows what
//! the checksums are for.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use freshet_api::manifest::RepoPath;
use freshet_api::{ChecksumHasher, Checksums};

use super::bell::Bell;
use super::entry::Stamp;
use super::tree::{self, Found, Node, Tree};
use crate::precedence::behind_the_rings;

/// One file to hash.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) tree: Arc<Tree>,
    pub(super) path: RepoPath,
    pub(super) found: Found,
}

/// What became of a job.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) path: RepoPath,
    pub(super) found: Found,
    pub(super) result: Result<Checksums, Trouble>,
}

/// Why there is no checksum.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is another file now, or was written to meanwhile.
    Changed,
    /// It cannot be read.
    Unreadable(io::Error),
}

/// Where jobs are left and outcomes fetched.
#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    stopping: AtomicBool,
    hashed_files: AtomicU64,
    hashed_bytes: AtomicU64,
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    running: usize,
    outcomes: Vec<Outcome>,
}

impl Desk {
    pub(super) fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            stopping: AtomicBool::new(false),
            hashed_files: AtomicU64::new(0),
            hashed_bytes: AtomicU64::new(0),
            bell,
        })
    }

    /// Starts the threads.
    pub(super) fn hire(self: &Arc<Self>, threads: usize) -> io::Result<Vec<JoinHandle<()>>> {
        (0..threads.max(1))
            .map(|number| {
                let desk = Arc::clone(self);
                std::thread::Builder::new().name(format!("hash-{number}")).spawn(move || {
                    behind_the_rings();
                    desk.serve();
                })
            })
            .collect()
    }

    /// Leaves a job.
    pub(super) fn leave(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.work.notify_one();
    }

    /// Jobs left and not yet fetched.
    pub(super) fn outstanding(&self) -> usize {
        let state = self.lock();
        state.jobs.len() + state.running + state.outcomes.len()
    }

    /// What is done so far.
    pub(super) fn fetch(&self) -> Vec<Outcome> {
        let outcomes = std::mem::take(&mut self.lock().outcomes);
        self.room.notify_all();
        outcomes
    }

    /// Files hashed to their end.
    pub(super) fn hashed_files(&self) -> u64 {
        self.hashed_files.load(Ordering::Relaxed)
    }

    /// Bytes read for that.
    pub(super) fn hashed_bytes(&self) -> u64 {
        self.hashed_bytes.load(Ordering::Relaxed)
    }

    /// Makes the threads end soon, also in the middle of a file.
    pub(super) fn stop(&self) {
        let state = self.lock();
        self.stopping.store(true, Ordering::Relaxed);
        drop(state);
        self.work.notify_all();
        self.room.notify_all();
    }

    fn serve(&self) {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(job) = self.take() {
            let result = self.hash(&job, &mut buffer);
            let mut state = self.lock();
            while state.outcomes.len() >= OUTCOMES_MAX && !self.stopping.load(Ordering::Relaxed) {
                self.bell.ring();
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.running -= 1;
            state.outcomes.push(Outcome { path: job.path, found: job.found, result });
            let idle = state.running == 0 && state.jobs.is_empty();
            let ring = idle || state.outcomes.len() >= OUTCOMES_RING;
            drop(state);
            if ring {
                self.bell.ring();
            }
        }
    }

    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.running += 1;
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn hash(&self, job: &Job, buffer: &mut [u8]) -> Result<Checksums, Trouble> {
        let unreadable = |error: io::Error| {
            if tree::says_gone(&error) { Trouble::Changed } else { Trouble::Unreadable(error) }
        };
        let fd = job.tree.open_file(job.path.as_str()).map_err(unreadable)?;
        let expect = |stamp: &Stamp| match tree::found(&fd) {
            Ok(Some(found)) if found.stamp == *stamp => Ok(()),
            Ok(_) => Err(Trouble::Changed),
            Err(error) => Err(Trouble::Unreadable(error)),
        };
        let stamp = &job.found.stamp;
        expect(stamp)?;
        let mut hasher = ChecksumHasher::new();
        let mut checked = 0;
        loop {
            let length = match rustix::io::read(&fd, &mut *buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Trouble::Unreadable(error.into())),
            };
            hasher.update(&buffer[..length]);
            if self.stopping.load(Ordering::Relaxed) {
                return Err(Trouble::Changed);
            }
            // A writer at work is noticed long before the end of an image of many gigabytes.
            if hasher.length() - checked >= RECHECK_BYTES {
                expect(stamp)?;
                checked = hasher.length();
            }
        }
        expect(stamp)?;
        // The path may have been given to another file while this one was read.
        let still = job.tree.node(job.path.as_str()).map_err(unreadable)?;
        if hasher.length() != stamp.size || !matches!(still, Node::File(found) if found.stamp == *stamp) {
            return Err(Trouble::Changed);
        }
        self.hashed_files.fetch_add(1, Ordering::Relaxed);
        self.hashed_bytes.fetch_add(hasher.length(), Ordering::Relaxed);
        Ok(hasher.finish())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Read at once: large enough for BLAKE3's parallelism, small enough for the processor's second cache.
const BUFFER_BYTES: usize = 256 << 10;

/// Between two looks at whether a large file is being written to.
const RECHECK_BYTES: u64 = 64 << 20;

/// Outcomes not yet fetched at most; the threads wait then. A crash costs these at the worst, so they are few.
pub(super) const OUTCOMES_MAX: usize = 512;

/// The keeper is woken for this many; waking it for each would cost more than hashing a small file.
const OUTCOMES_RING: usize = 256;
