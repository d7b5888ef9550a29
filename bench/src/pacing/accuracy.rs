//! The rate on the wire against the rate that was asked for, and the shares of equal downloads.

use std::collections::BTreeMap;
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

    pub(super) fn measure(
        &self,
        rate_mbit: u64,
        flows: usize,
        ipv6: bool,
        time: Duration,
    ) -> anyhow::Result<Result> {
        let ip = if ipv6 { self.server.addr_v6()?.into() } else { self.server.addr()? };
        let address = SocketAddr::new(ip, self.server.free_port()?);
        let program = Program::new(&self.dataplane).args(["serve", "--root"]).arg(self.root.path()).args([
            "--listen",
            &address.to_string(),
            "--rate",
            &format!("{rate_mbit} Mbit/s"),
        ]);
        let server = self.server.start(&format!("dataplane-{rate_mbit}-{flows}"), &program)?;
        server.wait_for_port(&self.customer, address, READY)?;
        let whole = SETTLE + time + GRACE;
        let _downloads: Vec<Process> = (0..flows)
            .map(|number| {
                let curl = Program::new("curl")
                    .args(["--silent", "--output", "/dev/null"])
                    .args(["--max-time", &whole.as_secs().to_string()])
                    .arg(format!("http://{address}/{FILE}"));
                self.customer.start(&format!("curl-{rate_mbit}-{flows}-{number}"), &curl)
            })
            .collect::<std::result::Result<_, _>>()?;
        std::thread::sleep(SETTLE);
        let seconds = u32::try_from(time.as_secs()).context("a measurement is at most 600 s")?;
        // Shares are those of the measurement alone: while downloads begin, the first ones have the rate for them.
        let before = self.received(address)?;
        let samples = samples(&self.server, Duration::from_secs(1), seconds)?;
        let after = self.received(address)?;
        let gained = |(port, now): (&u16, &u64)| Some((now - before.get(port)?) as f64);
        let bytes: Vec<f64> = after.iter().filter_map(gained).collect();
        ensure!(bytes.len() == flows, "{} of {flows} downloads lasted for all of the time", bytes.len());
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

    /// What the kernel says that each download has received.
    fn received(&self, server: SocketAddr) -> anyhow::Result<BTreeMap<u16, u64>> {
        let program = Program::new("ss")
            .args(["--tcp", "--numeric", "--info", "--no-header", "--oneline", "state", "established", "dst"])
            .arg(server.to_string());
        Ok(received(&self.customer.run(&program, READY)?.text()))
    }
}

/// Bytes that each connection has received, by its local port, from the lines of `ss`.
fn received(text: &str) -> BTreeMap<u16, u64> {
    let connection = |line: &str| {
        let mut words = line.split_whitespace();
        let port = words.nth(2)?.rsplit(':').next()?.parse().ok()?;
        let bytes = words.find_map(|word| word.strip_prefix("bytes_received:"))?.parse().ok()?;
        Some((port, bytes))
    };
    text.lines().filter_map(connection).collect()
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
const SETTLE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_from_ss() {
        let text = "0 0 10.64.0.2:40000 10.64.0.1:80 cubic wscale:7,7 rto:204 bytes_acked:9 bytes_received:700 x\n\
            0      0     10.64.0.2:40002      10.64.0.1:80 cubic rtt:1/2 bytes_received:5\n\
            0 0 10.64.0.2:40004 10.64.0.1:80 cubic rtt:1/2\n";
        assert_eq!(received(text), BTreeMap::from([(40_000, 700), (40_002, 5)]));
    }

    #[test]
    fn the_index_is_jains() {
        assert!((jain(&[5.0, 5.0, 5.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
    }
}
