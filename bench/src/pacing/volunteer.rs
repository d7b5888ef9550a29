//! An origin and one volunteer of whose budget something is to be measured, and downloads from it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use freshet_testbed::cluster::{Cluster, Programs};
use freshet_testbed::{Host, Link, Process, Program, Signal, Testbed};

use super::make_file;

/// A running volunteer whose configuration can be changed.
pub(super) struct Stage {
    cluster: Cluster,
    pub(super) host: Host,
    delivery: SocketAddr,
    configuration: PathBuf,
    /// As `join` wrote it.
    original: String,
    /// Holds the states until the cluster is gone.
    _directory: tempfile::TempDir,
}

impl Stage {
    /// Runs them until the volunteer has what is to be downloaded.
    pub(super) fn start(testbed: &Testbed, programs: &Path, link: &Link) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("freshet-pacing-").tempdir()?;
        let repository = directory.path().join("repository");
        std::fs::create_dir(&repository)?;
        make_file(&repository.join(FILE), FILE_BYTES)?;
        let programs = Programs::in_directory(programs)?;
        let mut cluster =
            Cluster::start(testbed, &programs, &repository, directory.path(), &Link::new(), &[])?;
        let volunteer = cluster.add_volunteer(testbed, "volunteer", link)?;
        let (host, delivery) = (volunteer.host().clone(), volunteer.delivery());
        let configuration = volunteer.state().join("dataplane.toml");
        cluster.wait_for_sync(testbed, FILE, READY, &mut |_| {})?;
        let original = std::fs::read_to_string(&configuration)?;
        Ok(Self { cluster, host, delivery, configuration, original, _directory: directory })
    }

    /// Puts keys and tables into the configuration and has it read; from the signal on it is to be followed.
    pub(super) fn configure(&self, keys: &str, tables: &str) -> Result<Instant> {
        // Top-level keys come before the first table. Everybody may download without a ticket.
        let text = format!("{keys}\nlocal_networks = [\"0.0.0.0/0\"]\n{}\n{tables}", self.original);
        std::fs::write(&self.configuration, text)?;
        let process = self.cluster.volunteers()[0].process().context("the volunteer runs")?;
        process.signal(Signal::HUP)?;
        Ok(Instant::now())
    }

    /// Begins downloads on `customer` that last longer than any measurement.
    pub(super) fn downloads(&self, customer: &Host, count: usize) -> Result<Vec<Process>> {
        let start = |number| {
            let curl = Program::new("curl")
                .args(["--silent", "--output", "/dev/null", "--max-time", "600", "--retry", "60"])
                .args(["--retry-all-errors", "--retry-delay", "1"])
                .arg(format!("http://{}/{FILE}", self.delivery));
            Ok(customer.start(&format!("curl-{number}"), &curl)?)
        };
        (0..count).map(start).collect()
    }
}

const FILE: &str = "file.iso";
const FILE_BYTES: usize = 400 << 20;
const READY: Duration = Duration::from_secs(240);
