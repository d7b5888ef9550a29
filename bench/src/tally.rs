//! What volunteers count on their interfaces beside what the kernel counts there, over the same stretch of time.
//!
//! Both are read at one moment (`meter`), in the volunteer's namespace, when traffic has calmed down. Control and its
//! heartbeats have no part in it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use freshet_testbed::cluster::{Cluster, Volunteer};
use freshet_testbed::{Cancel, Host};

use crate::meter::{self, Compared, Reading};
use crate::report::Counters;

/// Both counts of every volunteer that ran at some moment.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: Vec<Count>,
}

#[derive(Clone, Debug)]
struct Count {
    name: String,
    interface: String,
    /// Of the daemon: another one began to count anew.
    process: u32,
    reading: Reading,
}

impl Tally {
    /// Reads all counters when next to nothing passes any more, at the latest after [`CALM_WITHIN`].
    ///
    /// # Errors
    /// When a volunteer doesn't tell its figures.
    pub(crate) fn begin(cluster: &Cluster, cancel: &Cancel) -> Result<Tally> {
        let running = || cluster.volunteers().iter().filter(|volunteer| volunteer.process().is_some());
        let hosts: Vec<Host> = running().map(|volunteer| volunteer.host().clone()).collect();
        // What still passes is no hindrance: it is bounded by the kernel's figures before and after ours.
        meter::settle(&hosts, CALM_WITHIN, cancel)?;
        let counts = running().map(count).collect::<Result<_>>();
        Ok(Tally { counts: counts.context("comparing the volunteers' counters with the kernel's")? })
    }

    /// Reads them again, and says what passed since the beginning. Who was not running at both moments, or was
    /// restarted between, is left out.
    ///
    /// # Errors
    /// As [`Tally::begin`].
    pub(crate) fn end(&self, cluster: &Cluster, cancel: &Cancel) -> Result<Counters> {
        Ok(between(&self.counts, &Tally::begin(cluster, cancel)?.counts))
    }
}

fn count(volunteer: &Volunteer) -> Result<Count> {
    let process = volunteer.process().context("only those that run are counted")?;
    Ok(Count {
        name: volunteer.name().to_owned(),
        interface: volunteer.host().interface()?,
        process: process.pid(),
        reading: meter::read(volunteer.host(), &volunteer.metrics()?)?,
    })
}

fn between(first: &[Count], last: &[Count]) -> Counters {
    let mut counters = Counters::default();
    for now in last {
        let same = |then: &&Count| then.name == now.name && then.process == now.process;
        if let Some(then) = first.iter().find(same) {
            let mut compared = Compared::default();
            compared.add(&then.reading, &now.reading);
            counters.add(&now.name, &now.interface, compared.ours, compared.kernel);
        }
    }
    counters
}

/// For traffic to calm down.
const CALM_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, process: u32, kernel: u64, ours: u64) -> Count {
        let reading = Reading {
            kernel: [kernel; 2],
            kernel_after: [kernel; 2],
            ours: [ours; 2],
            classes: [[0; 2], [0; 2], [0; 2], [ours; 2]],
        };
        Count { name: name.to_owned(), interface: "eth0".to_owned(), process, reading }
    }

    #[test]
    fn only_what_one_daemon_counted_is_compared() {
        let first = [at("v0", 1, 1_000, 100), at("v1", 2, 1_000, 100)];
        let restarted = [at("v0", 1, 3_000, 2_100), at("v1", 9, 3_000, 50), at("v2", 3, 500, 500)];
        let counters = between(&first, &restarted);
        let plain = counters.table("c").plain();
        assert_eq!(plain.matches("v0").count(), 2, "{plain}");
        assert!(!plain.contains("v1") && !plain.contains("v2"), "{plain}");
        assert!(counters.agree(), "{plain}");
        let lost = between(&first, &[at("v0", 1, 3_000, 2_000)]);
        assert!(!lost.agree(), "{}", lost.worst());
    }
}
