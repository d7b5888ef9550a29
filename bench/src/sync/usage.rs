//! Processor time that processes have used.

use anyhow::{Context as _, Result};
use freshet_testbed::Process;

/// User and system seconds of these processes and all their threads so far.
pub(crate) fn cpu_secs<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Result<f64> {
    let ticks_per_sec = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    for process in processes {
        let path = format!("/proc/{}/stat", process.pid());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        ticks += of_stat(&text).with_context(|| format!("unexpected text in {path}"))?;
    }
    Ok(ticks as f64 / ticks_per_sec)
}

/// `utime` and `stime` of proc_pid_stat(5), fields 14 and 15; the name in field 2 may hold anything but its end.
fn of_stat(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let text = "7 (a) b) R 1 7 7 0 -1 4194304 99 0 0 0 250 31 5 6 20 0 3 0";
        assert_eq!(of_stat(text), Some(281));
        assert_eq!(of_stat("7 (a"), None);
    }
}
