//! How soon a volunteer that serves follows a new rate in its configuration.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use freshet_testbed::{Link, Testbed};
use serde::Serialize;

use super::volunteer::Stage;
use super::{mbit, samples, segment_in_software};

/// One change of the rate.
#[derive(Debug, Serialize)]
pub(super) struct Result {
    pub(super) from_mbit: u64,
    pub(super) to_mbit: u64,
    /// From the signal to the start of the first 100 ms in which the wire carries the new rate, within a tenth.
    pub(super) after_ms: f64,
    /// What the wire carries in the second after these 100 ms, less what was asked for.
    pub(super) then_error_percent: f64,
}

/// Runs an origin and one volunteer, and changes the volunteer's rate while eight downloads go on.
pub(super) fn measure(testbed: &Testbed, programs: &Path) -> anyhow::Result<Vec<Result>> {
    let stage = Stage::start(testbed, programs, &Link::new())?;
    segment_in_software(&stage.host)?;
    let set = |mbit: u64| stage.configure(&format!("donated_rate = \"{mbit} Mbit/s\""), "");
    set(RATES_MBIT[0])?;
    let customer = testbed.host("customer", &Link::new())?;
    let downloads = stage.downloads(&customer, DOWNLOADS)?;
    std::thread::sleep(SETTLE);
    let mut results = Vec::new();
    for pair in RATES_MBIT.windows(2) {
        let changed = set(pair[1])?;
        let seen = samples(&stage.host, STEP, SAMPLES)?;
        let error = |mbit: f64| mbit / pair[1] as f64 - 1.0;
        let first = seen
            .windows(WINDOW + 1)
            .position(|window| error(mbit(window[0], window[WINDOW])).abs() < 0.1)
            .filter(|first| first + WINDOW + SECOND < seen.len());
        let Some(first) = first else {
            let last = mbit(seen[0], seen[seen.len() - 1]);
            bail!("the wire carries {last:.1} Mbit/s after the rate was set to {} Mbit/s", pair[1]);
        };
        let after = seen[first].0.saturating_duration_since(changed);
        results.push(Result {
            from_mbit: pair[0],
            to_mbit: pair[1],
            after_ms: after.as_secs_f64() * 1e3,
            then_error_percent: error(mbit(seen[first + WINDOW], seen[first + WINDOW + SECOND])) * 100.0,
        });
    }
    if downloads.iter().any(|download| !download.is_running().unwrap_or(false)) {
        bail!("the downloads ended before the measurement did");
    }
    Ok(results)
}

const RATES_MBIT: [u64; 9] = [50, 20, 100, 10, 50, 200, 20, 50, 100];
const DOWNLOADS: usize = 8;
const SETTLE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(10);
/// Samples in 100 ms, and in a second.
const WINDOW: usize = 10;
const SECOND: usize = 100;
const SAMPLES: u32 = 250;
