//! CPU time of a server by the scheduler's own account, all its processes, threads and kernel workers.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Follows the CPU time of a process and its descendants.
pub(crate) struct CpuMeter {
    root: u32,
    /// Per thread, its last reading: a thread that ends keeps what it had used.
    threads: HashMap<u32, u64>,
    used: u64,
}

impl CpuMeter {
    pub(crate) fn new(root: u32) -> Self {
        Self { root, threads: HashMap::new(), used: 0 }
    }

    /// CPU time used since the meter was made or first read, user and system together.
    ///
    /// From `/proc/PID/task/TID/schedstat` (nanoseconds; Documentation/scheduler/sched-stats). io_uring's
    /// kernel workers are threads of the process and therefore included.
    ///
    /// # Errors
    /// When the process is gone.
    pub(crate) fn used(&mut self) -> Result<Duration> {
        for process in family(self.root)? {
            let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { continue };
            for thread in threads.flatten() {
                let Ok(id) = thread.file_name().to_string_lossy().parse::<u32>() else { continue };
                let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
                let now = text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
                let before = self.threads.insert(id, now).unwrap_or(0);
                self.used += now.saturating_sub(before);
            }
        }
        Ok(Duration::from_nanos(self.used))
    }
}

/// Anonymous memory of a process and its descendants, bytes (`Anonymous` of `smaps_rollup`).
///
/// # Errors
/// When the process is gone or may not be read.
pub(crate) fn anonymous_bytes(root: u32) -> Result<u64> {
    let mut bytes = 0;
    for process in family(root)? {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
        bytes += kibibytes.with_context(|| format!("{path} has no Anonymous line"))? << 10;
    }
    Ok(bytes)
}

/// How many threads a process and its descendants have.
///
/// # Errors
/// When the process is gone.
pub(crate) fn threads(root: u32) -> Result<usize> {
    Ok(family(root)?
        .into_iter()
        .filter_map(|process| std::fs::read_dir(format!("/proc/{process}/task")).ok())
        .map(Iterator::count)
        .sum())
}

/// How many descriptors a process and its descendants hold.
///
/// # Errors
/// When the process is gone.
pub(crate) fn descriptors(root: u32) -> Result<usize> {
    Ok(family(root)?
        .into_iter()
        .filter_map(|process| std::fs::read_dir(format!("/proc/{process}/fd")).ok())
        .map(Iterator::count)
        .sum())
}

fn family(root: u32) -> Result<Vec<u32>> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&process) = found.get(next) {
        let path = format!("/proc/{process}/task/{process}/children");
        match std::fs::read_to_string(&path) {
            Ok(text) => found.extend(text.split_whitespace().filter_map(|id| id.parse::<u32>().ok())),
            Err(error) if next == 0 => return Err(error).with_context(|| format!("server {root} is gone")),
            Err(_) => {}
        }
        next += 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spent_is_seen() {
        let mut meter = CpuMeter::new(std::process::id());
        let before = meter.used().unwrap();
        let mut sum = 0u64;
        while meter.used().unwrap() < before + Duration::from_millis(5) {
            sum = (0..100_000u64).fold(sum, |sum, x| std::hint::black_box(sum ^ x.wrapping_mul(31)));
        }
        assert!(anonymous_bytes(std::process::id()).unwrap() > 0);
        assert!(threads(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(CpuMeter::new(child.id()).used().is_err());
    }
}
