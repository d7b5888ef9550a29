//! An origin, volunteers on links of their own, and customers' hosts: what the claims about delivery are measured on.
//!
//! Links carry single packets, so that the kernel's counters are those of a wire.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use freshet_testbed::cluster::{Cluster, Programs, TELLS_FIGURES};
use freshet_testbed::{Cancel, Host, Link, Process, Program, Rate, Testbed, wait_until};

use crate::ground;

/// The hosts; dropping it ends and removes everything.
pub(super) struct Stage {
    /// Before the testbed, so that it goes first.
    pub(super) cluster: Cluster,
    pub(super) customers: Vec<Host>,
    pub(super) repository: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) testbed: Testbed,
    pub(super) cancel: Cancel,
}

/// What a volunteer gives.
#[derive(Clone, Debug)]
pub(super) struct Donor {
    pub(super) name: String,
    /// Mbit/s that it sends.
    pub(super) up: u64,
    /// Mbit/s that it receives.
    pub(super) down: u64,
    /// Tables at the end of its configuration.
    pub(super) tables: String,
}

impl Stage {
    /// Starts control for a repository that `fill` makes, behind a link of `up` Mbit/s, and so many customers' hosts on
    /// links without limits.
    pub(super) fn start(
        programs: &Path,
        cancel: &Cancel,
        up: u64,
        customers: usize,
        control: &[&str],
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Stage> {
        let testbed = ground::namespaces(cancel, "links with rates need")?;
        let directory = testbed.scratch()?;
        let (repository, states) = (directory.join("repository"), directory.join("states"));
        for made in [&repository, &states] {
            fs::create_dir(made)?;
        }
        fill(&repository)?;
        let customers = (0..customers)
            .map(|number| Ok(testbed.host(&format!("c{number}"), &Link::new().single_packets())?))
            .collect::<Result<_>>()?;
        let programs = Programs::in_directory(programs)?;
        // Many customers share an address here: none of them is to be sent elsewhere for coming again.
        let heartbeat = format!("{:.0}", HEARTBEAT_SECS * 1e3);
        let mut arguments = vec!["--heartbeat-ms", &heartbeat, "--quiet-ms", "200", "--avoid-secs", "0"];
        arguments.extend(control);
        let link = Link::new().rate(Rate::mbit(up)).single_packets();
        let cluster = Cluster::start(&testbed, &programs, &repository, &states, &link, &arguments)?;
        Ok(Stage { cluster, customers, repository, directory, testbed, cancel: cancel.clone() })
    }

    /// Adds a volunteer that donates what its link carries.
    pub(super) fn add(&mut self, donor: &Donor) -> Result<()> {
        let link = Link::new().up(Rate::mbit(donor.up)).down(Rate::mbit(donor.down)).single_packets();
        let volunteer = self.cluster.add_volunteer_with(&self.testbed, &donor.name, &link, TELLS_FIGURES)?;
        let path = volunteer.state().join("dataplane.toml");
        let joined = fs::read_to_string(&path)?;
        // Below what the link passes, so that what waits does so in the daemon, where it is seen.
        let donated = (donor.up as f64 * DONATED_PART * 1e3).round();
        let Donor { down, tables, .. } = donor;
        fs::write(
            &path,
            format!(
                "donated_rate = \"{donated} kbit/s\"\nsync_rate = \"{down} Mbit/s\"\n{joined}\n{tables}\n"
            ),
        )?;
        volunteer.kill()?;
        let index = self.cluster.volunteers().len() - 1;
        Ok(self.cluster.start_volunteer(index)?)
    }

    /// Waits until every volunteer that runs has what it is to have, and takes customers.
    pub(super) fn until_current(&self) -> Result<()> {
        Ok(wait_until("every mirror to be current", CURRENT_WITHIN, &self.cancel, || {
            let mirrors = self.cluster.mirrors()?;
            let running = self.cluster.volunteers().iter().filter(|volunteer| volunteer.process().is_some());
            let ready = |name: &str| mirrors.iter().any(|mirror| mirror.name == name && mirror.is_ready());
            Ok(running.map(|volunteer| volunteer.name()).all(ready).then_some(()))
        })?)
    }

    /// Waits until so many volunteers hold a file.
    pub(super) fn until_held(&self, path: &str, holders: usize) -> Result<()> {
        Ok(wait_until(&format!("{holders} holders of {path}"), CURRENT_WITHIN, &self.cancel, || {
            let held = self.cluster.ctl(&["where", path]);
            // Control may not know it yet.
            let count = held.map_or(0, |held| held["holders"].as_array().map_or(0, Vec::len));
            Ok((count >= holders).then_some(()))
        })?)
    }

    /// Turns a knob.
    pub(super) fn set(&self, knob: &str, value: &str) -> Result<()> {
        self.cluster.ctl(&["balance", "set", knob, value])?;
        Ok(())
    }

    /// Begins to publish what was put into the repository, and does not wait for the end.
    pub(super) fn begin_publishing(&self) -> Result<Process> {
        let program = Program::new(self.cluster.program("ctl"))
            .arg("--credentials")
            .arg(self.cluster.credentials())
            .args(["--json", "publish"]);
        Ok(self.cluster.origin().start("publish", &program)?)
    }

    /// Puts a file of `bytes` that nothing else has into the repository.
    pub(super) fn put(&self, path: &str, bytes: usize, seed: u64) -> Result<()> {
        let made = self.directory.join("made");
        fs::write(&made, noise(bytes, seed))?;
        let to = self.repository.join(path);
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        fs::rename(&made, &to).with_context(|| format!("cannot put {path} into the repository"))
    }

    /// Bytes that each volunteer's link has sent, by the kernel's counters.
    pub(super) fn sent(&self) -> Result<Vec<u64>> {
        self.cluster.volunteers().iter().map(|volunteer| sent_by(volunteer.host())).collect()
    }

    /// Bytes that the origin's link has sent, by the kernel's counters.
    pub(super) fn origin_sent(&self) -> Result<u64> {
        sent_by(self.cluster.origin())
    }

    /// The URL of a file at the front door.
    pub(super) fn url(&self, path: &str) -> String {
        self.cluster.url(path)
    }
}

/// Bytes that a host's link has sent.
pub(super) fn sent_by(host: &Host) -> Result<u64> {
    let interfaces = host.interfaces()?;
    let wire = interfaces.iter().find(|interface| interface.name == "eth0");
    match wire {
        Some(wire) => Ok(wire.tx_bytes),
        None => bail!("{} has no eth0", host.name()),
    }
}

/// Bytes that nothing compresses and no other seed gives.
pub(super) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut draw = freshet_policy::draw::Draw::new(seed);
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend_from_slice(&draw.bits().to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// Between two heartbeats of a volunteer, seconds.
pub(super) const HEARTBEAT_SECS: f64 = 0.5;
/// Of its link, the part that a volunteer donates.
pub(super) const DONATED_PART: f64 = 0.97;
const CURRENT_WITHIN: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_of_its_seed_alone() {
        assert_eq!(noise(1_001, 7), noise(1_001, 7));
        assert_ne!(noise(1_001, 7), noise(1_001, 8));
        assert_eq!(noise(3, 1).len(), 3);
    }
}
