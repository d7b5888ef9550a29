//! What volunteers count on their interfaces beside what the kernel counts there, over the same stretch of time.
//!
//! Ours comes from the heartbeats, through control, as an operator sees it; the harness's is read in the volunteer's
//! namespace. Both are read when traffic has calmed down, so that the last heartbeat is not far behind.

use std::time::Duration;

use anyhow::{Context as _, Result};
use freshet_testbed::cluster::{Cluster, Volunteer};
use freshet_testbed::{Cancel, Error, wait_until};
use serde_json::Value;

use crate::report::Counters;

/// Both counts of every volunteer at some moment.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: Vec<Count>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    name: String,
    interface: String,
    /// Another one when the daemon began anew.
    epoch: Value,
    /// Received and sent.
    ours: [u64; 2],
    harness: [u64; 2],
}

impl Tally {
    /// Reads all counters when they have calmed down.
    ///
    /// # Errors
    /// When they don't, or when a volunteer counts nothing.
    pub(crate) fn begin(cluster: &Cluster, cancel: &Cancel) -> Result<Tally> {
        let mut before: Option<Vec<Count>> = None;
        let mut looked = std::time::Instant::now();
        let counts = wait_until("the volunteers' counters to calm down", CALM_WITHIN, cancel, || {
            if before.is_some() && looked.elapsed() < CALM {
                return Ok(None);
            }
            looked = std::time::Instant::now();
            let now = read(cluster)?;
            let calm = before.as_ref().zip(now.as_ref()).is_some_and(|(before, now)| {
                before.iter().zip(now).all(|(before, now)| is_calm(before, now))
            });
            before = now;
            Ok(if calm { before.take() } else { None })
        });
        Ok(Tally { counts: counts.context("comparing the volunteers' counters with the kernel's")? })
    }

    /// Reads them again, and says what passed since the beginning. Who was not running at both moments, or was
    /// restarted between, is left out.
    ///
    /// # Errors
    /// As [`Tally::begin`].
    pub(crate) fn end(&self, cluster: &Cluster, cancel: &Cancel) -> Result<Counters> {
        let mut counters = Counters::default();
        for now in Tally::begin(cluster, cancel)?.counts {
            let same = |one: &&Count| one.name == now.name && one.epoch == now.epoch;
            if let Some(then) = self.counts.iter().find(same) {
                let since = |now: [u64; 2], then: [u64; 2]| [now[0] - then[0], now[1] - then[1]];
                counters.add(
                    &now.name,
                    &now.interface,
                    since(now.ours, then.ours),
                    since(now.harness, then.harness),
                );
            }
        }
        Ok(counters)
    }
}

/// Of the volunteers that run; `None` while one of them has not told anything.
fn read(cluster: &Cluster) -> Result<Option<Vec<Count>>, Error> {
    let nodes = cluster.ctl(&["node", "list"])?;
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
    let running = cluster.volunteers().iter().filter(|volunteer| volunteer.process().is_some());
    running
        .map(|volunteer| {
            let node = nodes.iter().find(|node| node["name"] == volunteer.name());
            node.map_or(Ok(None), |node| count(volunteer, node))
        })
        .collect()
}

fn count(volunteer: &Volunteer, node: &Value) -> Result<Option<Count>, Error> {
    let interface = &node["interfaces"][0];
    let bytes = |direction: &str| interface["total"][direction]["bytes"].as_u64();
    let (Some(name), Some(received), Some(sent)) = (interface["name"].as_str(), bytes("in"), bytes("out"))
    else {
        return Ok(None);
    };
    let kernel = volunteer.host().interfaces()?.into_iter().find(|interface| interface.name == name);
    Ok(kernel.map(|kernel| Count {
        name: volunteer.name().to_owned(),
        interface: name.to_owned(),
        epoch: interface["epoch"].clone(),
        ours: [received, sent],
        harness: [kernel.rx_bytes, kernel.tx_bytes],
    }))
}

fn is_calm(before: &Count, now: &Count) -> bool {
    let grown = |before: [u64; 2], now: [u64; 2]| now[0] + now[1] <= before[0] + before[1] + CALM_BYTES;
    before.epoch == now.epoch && grown(before.ours, now.ours) && grown(before.harness, now.harness)
}

/// Longer than between two heartbeats of every bench.
const CALM: Duration = Duration::from_millis(1_100);
const CALM_WITHIN: Duration = Duration::from_secs(60);
/// Heartbeats and polls of that time, and not much more.
const CALM_BYTES: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_still_flows_is_not_calm() {
        let at = |ours: u64, harness: u64, epoch: u64| Count {
            name: "v0".to_owned(),
            interface: "eth0".to_owned(),
            epoch: Value::from(epoch),
            ours: [ours, ours],
            harness: [harness, harness],
        };
        assert!(is_calm(&at(100, 100, 1), &at(1_000, 1_000, 1)));
        assert!(!is_calm(&at(100, 100, 1), &at(100, 1_000_000, 1)));
        assert!(!is_calm(&at(100, 100, 1), &at(1_000_000, 100, 1)));
        assert!(!is_calm(&at(100, 100, 1), &at(100, 100, 2)));
    }
}
