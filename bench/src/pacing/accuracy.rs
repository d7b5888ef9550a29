//! The rate on the wire against the rate that was asked for, and the shares of equal downloads.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use freshet_testbed::{Host, Link, Process, Program, Testbed};
use serde::Serialize;

use super::{make_file, mbit, samples, segment_in_software};

/// One rate with one number of downloads.
#[derive(Debug, Serialize)]
pub(super) struct Result {
    pub(super) rate_mbit: u64,
    pub(super) flows: usize,
    /// In the mean over the measurement.
    pub(super) wire_mbit: f64,
    pub(super) error_percent: f64,
    /// The second that is farthest off.
    pub(super) worst_second_percent: f64,
    /// Jain's fairness index of the bytes that each download got (1 is equal).
    pub(super) jain: f64,
}

/// Where it is measured.
pub(super) struct Stage {
    server: Host,
    customer: Host,
    dataplane: PathBuf,
    root: tempfile::TempDir,
}

impl Stage {
    pub(super) fn new(testbed: &Testbed, programs: &Path) -> anyhow::Result<Self> {
        let server = testbed.host("server", &Link::new())?;
        let customer = testbed.host("customer", &Link::new())?;
        segment_in_software(&server)?;
        let root = tempfile::Builder::new().prefix("freshet-pacing-").tempdir()?;
        make_file(&root.path().join(FILE), FILE_BYTES)?;
        Ok(Self { server, customer, dataplane: programs.join("dataplane"), root })
    }

    pub(super) fn measure(&self, rate_mbit: u64, flows: usize, time: Duration) -> anyhow::Result<Result> {
        let address = SocketAddr::new(self.server.addr()?, self.server.free_port()?);
        let program = Program::new(&self.dataplane).args(["serve", "--root"]).arg(self.root.path()).args([
            "--listen",
            &address.to_string(),
            "--rate",
            &format!("{rate_mbit} Mbit/s"),
        ]);
        let server = self.server.start(&format!("dataplane-{rate_mbit}-{flows}"), &program)?;
        server.wait_for_port(&self.customer, address, READY)?;
        let whole = SETTLE + time + SETTLE;
        let downloads: Vec<Process> = (0..flows)
            .map(|number| {
                let curl = Program::new("curl")
                    .args(["--silent", "--output", "/dev/null", "--write-out", "%{size_download}\n"])
                    .args(["--max-time", &whole.as_secs().to_string()])
                    .arg(format!("http://{address}/{FILE}"));
                self.customer.start(&format!("curl-{rate_mbit}-{flows}-{number}"), &curl)
            })
            .collect::<std::result::Result<_, _>>()?;
        std::thread::sleep(SETTLE);
        let seconds = u32::try_from(time.as_secs()).context("a measurement is at most 600 s")?;
        let samples = samples(&self.server, Duration::from_secs(1), seconds)?;
        let mut bytes = Vec::with_capacity(flows);
        for download in &downloads {
            download.wait(whole + READY)?;
            let log = download.log()?;
            let got = log.lines().find_map(|line| line.trim().parse::<f64>().ok());
            bytes.push(got.with_context(|| format!("curl said {log:?}"))?);
        }
        server.stop(READY)?;
        ensure!(samples.len() > 1, "there is at least one second to measure");
        let error = |mbit: f64| (mbit / rate_mbit as f64 - 1.0) * 100.0;
        let wire_mbit = mbit(samples[0], samples[samples.len() - 1]);
        let worst = samples.windows(2).map(|pair| error(mbit(pair[0], pair[1])));
        let worst =
            worst.fold(0.0, |worst: f64, second| if second.abs() > worst.abs() { second } else { worst });
        Ok(Result {
            rate_mbit,
            flows,
            wire_mbit,
            error_percent: error(wire_mbit),
            worst_second_percent: worst,
            jain: jain(&bytes),
        })
    }
}

/// (Σx)² / (n·Σx²): 1 when all are equal, 1/n when one has everything (Jain, Chiu and Hawe 1984).
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

const FILE: &str = "file.bin";
/// More than any download gets at 200 Mbit/s in ten seconds and the time around them.
const FILE_BYTES: usize = 400 << 20;
const SETTLE: Duration = Duration::from_secs(2);
const READY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_jains() {
        assert!((jain(&[5.0, 5.0, 5.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
    }
}
