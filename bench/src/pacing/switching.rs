//! How soon a volunteer that serves follows a new rate in its configuration.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use freshet_testbed::cluster::{Cluster, Programs};
use freshet_testbed::{Link, Program, Signal, Testbed};
use serde::Serialize;

use super::{make_file, mbit, samples, segment_in_software, sent_bytes};

/// One change of the rate.
#[derive(Debug, Serialize)]
pub(super) struct Result {
    pub(super) from_mbit: u64,
    pub(super) to_mbit: u64,
    /// From the signal to the start of the first 100 ms in which the wire carries the new rate, within a tenth.
    pub(super) after_ms: f64,
}

/// Runs an origin and one volunteer, and changes the volunteer's rate while eight downloads go on.
pub(super) fn measure(testbed: &Testbed, programs: &Path) -> anyhow::Result<Vec<Result>> {
    let directory = tempfile::Builder::new().prefix("freshet-pacing-").tempdir()?;
    let repository = directory.path().join("repository");
    std::fs::create_dir(&repository)?;
    make_file(&repository.join(FILE), FILE_BYTES)?;
    let programs = Programs::in_directory(programs)?;
    let mut cluster = Cluster::start(testbed, &programs, &repository, directory.path(), &Link::new(), &[])?;
    let volunteer = cluster.add_volunteer(testbed, "switched", &Link::new())?;
    let (host, delivery) = (volunteer.host().clone(), volunteer.delivery());
    let configuration = volunteer.state().join("dataplane.toml");
    cluster.wait_for_sync(testbed, FILE, READY, &mut |_| {})?;
    segment_in_software(&host)?;
    let process = cluster.volunteers()[0].process().context("the volunteer runs")?;
    let original = std::fs::read_to_string(&configuration)?;
    let set = |mbit: u64| -> anyhow::Result<Instant> {
        // Top-level keys come before the first table.
        let text = format!("donated_rate = \"{mbit} Mbit/s\"\nlocal_networks = [\"0.0.0.0/0\"]\n{original}");
        std::fs::write(&configuration, text)?;
        process.signal(Signal::HUP)?;
        Ok(Instant::now())
    };
    set(RATES_MBIT[0])?;
    let customer = testbed.host("switch-customer", &Link::new())?;
    let mut downloads = Vec::new();
    for number in 0..DOWNLOADS {
        let curl = Program::new("curl")
            .args(["--silent", "--output", "/dev/null", "--max-time", "60", "--retry", "20"])
            .args(["--retry-all-errors", "--retry-delay", "1"])
            .arg(format!("http://{delivery}/{FILE}"));
        downloads.push(customer.start(&format!("switch-curl-{number}"), &curl)?);
    }
    std::thread::sleep(SETTLE);
    let mut results = Vec::new();
    for pair in RATES_MBIT.windows(2) {
        let changed = set(pair[1])?;
        let seen = samples(&host, STEP, SAMPLES)?;
        let near = |mbit: f64| (mbit / pair[1] as f64 - 1.0).abs() < 0.1;
        let first = seen.windows(WINDOW + 1).find(|window| near(mbit(window[0], window[WINDOW])));
        let Some(first) = first else {
            let last = mbit(seen[0], seen[seen.len() - 1]);
            bail!("the wire carries {last:.1} Mbit/s after the rate was set to {} Mbit/s", pair[1]);
        };
        let after = first[0].0.saturating_duration_since(changed);
        results.push(Result { from_mbit: pair[0], to_mbit: pair[1], after_ms: after.as_secs_f64() * 1e3 });
    }
    if sent_bytes(&host)? == 0 || downloads.iter().any(|download| !download.is_running().unwrap_or(false)) {
        bail!("the downloads ended before the measurement did");
    }
    Ok(results)
}

const FILE: &str = "file.iso";
const FILE_BYTES: usize = 200 << 20;
const RATES_MBIT: [u64; 5] = [50, 20, 100, 10, 50];
const DOWNLOADS: usize = 8;
const SETTLE: Duration = Duration::from_secs(3);
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(10);
const WINDOW: usize = 10;
const SAMPLES: u32 = 200;
