//! What a run is made of, read from a TOML file; nothing here is simulated.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use freshet_api::{Bytes, BytesPerSec};
use serde::{Deserialize, Serialize};

/// A scenario.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// One line for the report.
    pub(crate) title: String,
    /// Simulated time, seconds.
    pub(crate) seconds: f64,
    /// Requests before this are not counted.
    #[serde(default)]
    pub(crate) warmup_seconds: f64,
    /// The front door and its policies.
    #[serde(default)]
    pub(crate) front_door: FrontDoor,
    /// The origin's own uplink.
    pub(crate) origin: Origin,
    /// Groups of volunteers.
    #[serde(default)]
    pub(crate) nodes: Vec<NodeGroup>,
    /// How heartbeats travel.
    #[serde(default)]
    pub(crate) heartbeat: Heartbeat,
    /// How fast customers receive.
    pub(crate) clients: Vec<ClientClass>,
    /// Steady requests.
    #[serde(default)]
    pub(crate) workload: Workload,
    /// Releases, each with its crowd.
    #[serde(default)]
    pub(crate) releases: Vec<Release>,
    /// How mirrors are kept current.
    #[serde(default)]
    pub(crate) sync: Sync,
    /// Things that go wrong.
    #[serde(default)]
    pub(crate) faults: Vec<Fault>,
    /// What is run and compared; without it, the scenario as it stands.
    #[serde(default)]
    pub(crate) compare: Compare,
}

/// The front door and its policies.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FrontDoor {
    /// Selection algorithm by name.
    pub(crate) selector: String,
    /// Arbiter by name, or `fixed-split:0.3`.
    pub(crate) arbiter: String,
    /// How long a customer may wait: the admission limit is this times a node's rate.
    pub(crate) customer_wait_seconds: f64,
    /// How long a mirror may take.
    pub(crate) sync_target_seconds: f64,
    /// Whether requests beyond the admission limit are turned away (else there is no limit).
    pub(crate) admission: bool,
    /// Whether capacity is estimated from what nodes do, or believed as claimed.
    pub(crate) measure_capacity: bool,
    /// Over which time rates told by heartbeats are smoothed, seconds; 0 for the last heartbeat's alone.
    pub(crate) rate_seconds: f64,
}

impl Default for FrontDoor {
    fn default() -> FrontDoor {
        FrontDoor {
            selector: "expected-finish-time".to_owned(),
            arbiter: "equal-lateness".to_owned(),
            customer_wait_seconds: 60.0,
            sync_target_seconds: 1800.0,
            admission: true,
            measure_capacity: true,
            rate_seconds: 3.0,
        }
    }
}

/// The origin's own uplink.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    /// What it carries.
    pub(crate) uplink: BytesPerSec,
    /// Whether customers are served by it only when nobody else can (`false`: by it alone).
    #[serde(default = "yes")]
    pub(crate) redirects: bool,
}

/// A group of volunteers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeGroup {
    /// How many.
    pub(crate) count: u32,
    /// What they donate: one rate, or lowest and highest, evenly on a logarithmic scale.
    pub(crate) uplink: Vec<BytesPerSec>,
    /// What they say they donate, as a multiple of what they do.
    #[serde(default = "one")]
    pub(crate) claims: f64,
    /// What they receive at.
    #[serde(default = "gigabit")]
    pub(crate) downlink: BytesPerSec,
    /// Whether they hold the whole repository, or only what is newly released.
    #[serde(default = "yes")]
    pub(crate) whole_mirror: bool,
    /// Part of the repository (of whole mirrors) that they keep current, lowest and highest.
    #[serde(default = "whole")]
    pub(crate) part: [f64; 2],
    /// Mean time they stay and stay away, seconds; none for always there.
    #[serde(default)]
    pub(crate) churn: Option<Churn>,
    /// Volume each may send during the run.
    #[serde(default)]
    pub(crate) quota: Option<Bytes>,
    /// Their owners' own traffic, as a part of the uplink: mean, changing every few minutes.
    #[serde(default)]
    pub(crate) owner_load: f64,
}

/// Coming and going.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Churn {
    /// Mean stay, seconds.
    pub(crate) stay_seconds: f64,
    /// Mean absence, seconds.
    pub(crate) away_seconds: f64,
    /// Part of the departures that are crashes, without a word.
    pub(crate) crash_part: f64,
}

/// How heartbeats travel.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Heartbeat {
    /// Between two, seconds.
    pub(crate) interval_seconds: f64,
    /// How old they are when they arrive, seconds.
    pub(crate) delay_seconds: f64,
    /// Part that is lost.
    pub(crate) loss: f64,
}

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat { interval_seconds: 1.0, delay_seconds: 0.0, loss: 0.0 }
    }
}

/// Customers of one access rate.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientClass {
    /// What they receive at.
    pub(crate) rate: BytesPerSec,
    /// Their part of all customers.
    pub(crate) part: f64,
}

/// Steady requests.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// No requests but the releases' crowds.
    #[default]
    None,
    /// A Poisson stream.
    Poisson {
        /// Offered load as a part of all volunteers' donated uplink.
        #[serde(default)]
        load: f64,
        /// Requests per second, instead of a load.
        #[serde(default)]
        requests_per_second: f64,
        /// Sizes.
        sizes: Sizes,
    },
    /// The synthetic trace, generated as it is consumed, with its releases.
    Trace {
        /// Requests per day.
        requests_per_day: f64,
        /// Files of the repository.
        #[serde(default = "files")]
        files: u32,
    },
    /// These requests: seconds after the start and bytes of each, in the order of time.
    Listed {
        /// All of them.
        requests: Vec<(f64, u64)>,
    },
    /// A trace file written by `bench trace`.
    File {
        /// Where.
        path: std::path::PathBuf,
    },
}

/// How sizes are distributed.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, tag = "distribution", rename_all = "kebab-case")]
pub(crate) enum Sizes {
    /// All alike.
    Fixed {
        /// The size.
        size: Bytes,
    },
    /// Bounded Pareto.
    Pareto {
        /// Smallest.
        low: Bytes,
        /// Largest.
        high: Bytes,
        /// Exponent of the tail.
        alpha: f64,
    },
}

/// A new release.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    /// When it is published, seconds.
    pub(crate) at_seconds: f64,
    /// How much is new.
    pub(crate) size: Bytes,
    /// How long before publication mirrors may fetch it; less than 0 is after it, because it had to be prepared.
    #[serde(default)]
    pub(crate) ahead_seconds: f64,
    /// Customers who come for it in all.
    #[serde(default)]
    pub(crate) crowd: u32,
    /// They come at a rate that falls to 1/e in this time.
    #[serde(default = "hour")]
    pub(crate) crowd_ebb_seconds: f64,
}

/// How mirrors are kept current.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, tag = "mode", rename_all = "kebab-case")]
pub(crate) enum Sync {
    /// They are not.
    #[default]
    None,
    /// Each by itself from the origin, once a day at its own hour.
    Rsync {
        /// Files per second that the origin compares, shared by all who sync.
        files_per_second: f64,
        /// The same for one of them alone, at most.
        files_per_second_each: f64,
        /// Files of the whole repository.
        #[serde(default = "files")]
        files: u32,
        /// Bytes of metadata per file compared.
        bytes_per_file: f64,
        /// Median of what changes per day (whole repository).
        daily_bytes: Bytes,
        /// Standard deviation of the logarithm of that.
        daily_sigma: f64,
        /// All start within this time after midnight.
        start_spread_seconds: f64,
    },
    /// As a swarm, with leases from the origin.
    Swarm {
        /// Part of a bundle in one simulated piece, at least.
        pieces: u32,
        /// Peers that each pulls from.
        peers: usize,
        /// What changes per day beside the releases; 0 for nothing.
        #[serde(default)]
        daily_bytes: Bytes,
        /// Standard deviation of the logarithm of that.
        #[serde(default)]
        daily_sigma: f64,
    },
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// When, seconds.
    pub(crate) at_seconds: f64,
    /// What.
    pub(crate) what: FaultKind,
    /// Which node, by number from 1; the one with the largest uplink unless given.
    #[serde(default)]
    pub(crate) node: Option<u32>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultKind {
    /// The node vanishes without a word.
    Crash,
    /// It comes back.
    Return,
}

/// What is run and compared.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Compare {
    /// Selection algorithms.
    pub(crate) selectors: Vec<String>,
    /// Arbiters.
    pub(crate) arbiters: Vec<String>,
    /// Heartbeat delays, seconds.
    pub(crate) delays: Vec<f64>,
    /// Loads, as parts of all volunteers' uplink.
    pub(crate) loads: Vec<f64>,
}

impl Scenario {
    /// Reads a scenario: the name of one that comes with the program, or a file.
    ///
    /// # Errors
    /// When it is neither, or does not make sense.
    pub(crate) fn load(name: &str) -> Result<Scenario> {
        let text = match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => (*text).to_owned(),
            None if Path::new(name).is_file() => {
                std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?
            }
            None => {
                let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                bail!("expected a file or one of {}, found {name:?}", names.join(", "));
            }
        };
        Scenario::parse(&text).with_context(|| format!("in scenario {name}"))
    }

    /// Parses a scenario.
    ///
    /// # Errors
    /// When it is not TOML of this shape, or does not make sense.
    pub(crate) fn parse(text: &str) -> Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        ensure!(
            scenario.seconds.is_finite() && scenario.seconds > 0.0,
            "expected a positive time to simulate, found {}",
            scenario.seconds
        );
        ensure!(
            !scenario.clients.is_empty() && scenario.clients.len() <= CLIENT_CLASSES_MAX,
            "expected 1 to {CLIENT_CLASSES_MAX} classes of clients, found {}",
            scenario.clients.len()
        );
        for class in &scenario.clients {
            ensure!(class.rate.0 > 0 && class.part > 0.0, "expected clients with a rate and a part above 0");
        }
        for group in &scenario.nodes {
            ensure!(
                matches!(group.uplink.len(), 1 | 2) && group.uplink.iter().all(|rate| rate.0 > 0),
                "expected one uplink rate or lowest and highest, found {}",
                group.uplink.len()
            );
        }
        if let Workload::Listed { requests } = &scenario.workload {
            ensure!(
                requests.iter().all(|(at, _)| at.is_finite() && *at >= 0.0)
                    && requests.is_sorted_by(|one, next| one.0 <= next.0),
                "expected requests in the order of time, from 0 on"
            );
        }
        Ok(scenario)
    }
}

/// The scenarios that come with the program.
pub(crate) const BUILT_IN: &[(&str, &str)] = &[
    ("existing-system", include_str!("scenarios/existing-system.toml")),
    ("swarm-volunteers", include_str!("scenarios/swarm-volunteers.toml")),
    ("selection", include_str!("scenarios/selection.toml")),
    ("flash-crowd", include_str!("scenarios/flash-crowd.toml")),
    ("node-lost", include_str!("scenarios/node-lost.toml")),
    ("liar", include_str!("scenarios/liar.toml")),
    ("arbiter-release-day", include_str!("scenarios/arbiter-release-day.toml")),
    ("arbiter-busy-day", include_str!("scenarios/arbiter-busy-day.toml")),
    ("arbiter-quiet-day", include_str!("scenarios/arbiter-quiet-day.toml")),
    ("full-trace", include_str!("scenarios/full-trace.toml")),
    ("hundred-thousand", include_str!("scenarios/hundred-thousand.toml")),
];

const CLIENT_CLASSES_MAX: usize = 8;

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn gigabit() -> BytesPerSec {
    BytesPerSec(125_000_000)
}

fn whole() -> [f64; 2] {
    [1.0, 1.0]
}

fn hour() -> f64 {
    3600.0
}

fn files() -> u32 {
    2_200_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_that_comes_with_the_program_is_valid() {
        for (name, text) in BUILT_IN {
            Scenario::parse(text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let base = "title = 'x'\nseconds = 5.0\norigin = { uplink = '1 Mbit/s' }\n";
        assert!(Scenario::parse(&format!("{base}clients = []")).is_err());
        let clients = "clients = [{ rate = '1 Mbit/s', part = 1.0 }]\n";
        assert!(Scenario::parse(&format!("{base}{clients}")).is_ok());
        assert!(Scenario::parse(&format!("{base}{clients}surprise = 1")).is_err());
        assert!(Scenario::parse(&format!("{base}{clients}nodes = [{{ count = 1, uplink = [] }}]")).is_err());
        assert!(Scenario::parse(&format!("{base}{clients}").replace("5.0", "-5.0")).is_err());
        assert!(Scenario::load("no-such-scenario").is_err());
    }
}
