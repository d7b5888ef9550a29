//! What the classifiers really cost where they run: the kernel's own count of runs and time. It attaches nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use freshet_ebpf_abi as abi;

/// For as long as it is held, the kernel times every run of every BPF program on the machine
/// (`BPF_ENABLE_STATS`, Linux 5.8), which makes each a little dearer.
#[derive(Debug)]
pub struct RunTimes {
    _enabled: OwnedFd,
}

/// What one loaded classifier has cost so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// The kernel's number of the program.
    pub id: u32,
    /// Whether it is the classifier of what is sent; else of what is received.
    pub outgoing: bool,
    /// How often it ran while it was timed.
    pub runs: u64,
    /// What these runs took together.
    pub time: Duration,
}

impl RunTimes {
    /// Begins to time.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or before Linux 5.8.
    pub fn enable() -> io::Result<Self> {
        let enabled = enable_stats(Stats::RunTime).map_err(io::Error::other)?;
        Ok(Self { _enabled: enabled })
    }

    /// All classifiers that are loaded on this machine, those of other processes too.
    ///
    /// # Errors
    /// When the kernel will not list programs.
    pub fn read(&self) -> io::Result<Vec<ProgramRuns>> {
        let mut found = Vec::new();
        for program in loaded_programs() {
            let program = program.map_err(io::Error::other)?;
            let outgoing = match program.name_as_str() {
                Some(abi::program::EGRESS) => true,
                Some(abi::program::INGRESS) => false,
                _ => continue,
            };
            let (id, runs, time) = (program.id(), program.run_count(), program.run_time());
            found.push(ProgramRuns { id, outgoing, runs, time });
        }
        Ok(found)
    }
}
