//! `bench sim`: discrete events over the real policy code. No socket, no clock: the same seed gives
//! the same result, to the byte.

mod classes;
mod metrics;
mod mirrors;
mod node;
mod report;
pub(crate) mod scenario;
mod uplink;
mod verdict;
mod view;
mod workload;
mod world;

use std::path::PathBuf;

use anyhow::Result;

pub(crate) use self::metrics::Outcome;
use self::report::{Report, Variant};
use self::scenario::Scenario;
use self::verdict::Verdict;
pub(crate) use self::world::simulate;

/// Options of `bench sim`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Scenarios: names of those that come with the program, or TOML files.
    #[arg(required_unless_present = "list")]
    scenarios: Vec<String>,
    /// Names the scenarios that come with the program.
    #[arg(long)]
    list: bool,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs with so many seeds, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Selection algorithms to compare, instead of the scenario's.
    #[arg(long, value_delimiter = ',')]
    selectors: Vec<String>,
    /// Arbiters to compare, instead of the scenario's.
    #[arg(long, value_delimiter = ',')]
    arbiters: Vec<String>,
    /// Loads to compare, as parts of the volunteers' uplink, instead of the scenario's.
    #[arg(long, value_delimiter = ',')]
    loads: Vec<f64>,
    /// Ages of heartbeats when they arrive to compare, seconds, instead of the scenario's.
    #[arg(long, value_delimiter = ',')]
    delays: Vec<f64>,
    /// Whether requests beyond the admission limit are turned away, instead of the scenario's choice.
    #[arg(long)]
    admission: Option<bool>,
    /// Simulated time, seconds, instead of the scenario's.
    #[arg(long)]
    seconds: Option<f64>,
    /// Where report.json and the plots go, in a directory per scenario.
    #[arg(long, value_name = "DIR", default_value = "target/bench/sim-report")]
    out: PathBuf,
}

/// Runs `bench sim`.
///
/// # Errors
/// When a scenario does not make sense, or a report cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for (name, _) in scenario::BUILT_IN {
            println!("{name:<22}{}", Scenario::load(name)?.title);
        }
        return Ok(());
    }
    let mut verdict = Verdict::default();
    for name in &arguments.scenarios {
        let base = adjusted(Scenario::load(name)?, arguments)?;
        let mut report = Report::new(name, &base.title);
        for (label, scenario) in variants(&base) {
            let mut outcomes = Vec::new();
            let begun = std::time::Instant::now();
            for seed in arguments.seed..arguments.seed + arguments.seeds {
                outcomes.push(world::simulate(&scenario, seed)?);
            }
            let seconds = begun.elapsed().as_secs_f64();
            eprintln!("{name}: {label}: {} runs in {seconds:.1} s", outcomes.len());
            report.variants.push(Variant { label, outcomes });
        }
        println!("{}", report.text());
        verdict.add(
            name,
            report.variants.iter().map(|variant| {
                (variant.label.as_str(), variant.outcomes.iter().map(|run| run.total_lateness).collect())
            }),
        );
        let directory = arguments.out.join(report.file_stem());
        report.write(&directory)?;
        println!("{}", directory.display());
    }
    print!("{}", verdict.text());
    Ok(())
}

/// One run of a scenario that comes with the program, for other measurements: so many simulated seconds of it.
///
/// # Errors
/// When there is no such scenario.
pub(crate) fn built_in(name: &str, seconds: f64, seed: u64) -> Result<Outcome> {
    let mut scenario = Scenario::load(name)?;
    scenario.seconds = seconds;
    world::simulate(&scenario, seed)
}

/// The scenario with what the command line says differently.
fn adjusted(mut scenario: Scenario, arguments: &Arguments) -> Result<Scenario> {
    let replace = |ours: &mut Vec<String>, theirs: &[String]| {
        if !theirs.is_empty() {
            *ours = theirs.to_vec();
        }
    };
    replace(&mut scenario.compare.selectors, &arguments.selectors);
    replace(&mut scenario.compare.arbiters, &arguments.arbiters);
    if !arguments.loads.is_empty() {
        scenario.compare.loads.clone_from(&arguments.loads);
    }
    if !arguments.delays.is_empty() {
        scenario.compare.delays.clone_from(&arguments.delays);
    }
    if let Some(admission) = arguments.admission {
        scenario.front_door.admission = admission;
    }
    if let Some(seconds) = arguments.seconds {
        anyhow::ensure!(seconds.is_finite() && seconds > 0.0, "expected a positive time, found {seconds}");
        scenario.seconds = seconds;
    }
    Ok(scenario)
}

/// All combinations of what is compared, each with its label.
fn variants(base: &Scenario) -> Vec<(String, Scenario)> {
    let mut all = vec![(Vec::<String>::new(), base.clone())];
    let compare = base.compare.clone();
    let mut vary = |count: usize, change: &dyn Fn(usize, &mut Scenario) -> String| {
        if count == 0 {
            return;
        }
        let mut next = Vec::new();
        for (labels, scenario) in &all {
            for index in 0..count {
                let (mut labels, mut scenario) = (labels.clone(), scenario.clone());
                labels.push(change(index, &mut scenario));
                next.push((labels, scenario));
            }
        }
        all = next;
    };
    vary(compare.selectors.len(), &|index, scenario| {
        scenario.front_door.selector.clone_from(&compare.selectors[index]);
        compare.selectors[index].clone()
    });
    vary(compare.arbiters.len(), &|index, scenario| {
        scenario.front_door.arbiter.clone_from(&compare.arbiters[index]);
        compare.arbiters[index].clone()
    });
    vary(compare.loads.len(), &|index, scenario| {
        if let scenario::Workload::Poisson { load, .. } = &mut scenario.workload {
            *load = compare.loads[index];
        }
        format!("load {}", compare.loads[index])
    });
    vary(compare.delays.len(), &|index, scenario| {
        scenario.heartbeat.delay_seconds = compare.delays[index];
        format!("delay {} s", compare.delays[index])
    });
    all.into_iter()
        .map(|(labels, scenario)| {
            let label = if labels.is_empty() { "as it stands".to_owned() } else { labels.join(", ") };
            (label, scenario)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "
        title = 'small'
        seconds = 120.0
        warmup_seconds = 20.0
        front_door = { sync_target_seconds = 60.0 }
        origin = { uplink = '100 Mbit/s' }
        nodes = [{ count = 6, uplink = ['20 Mbit/s', '200 Mbit/s'], churn = { stay_seconds = 60.0, away_seconds = 20.0, crash_part = 0.5 } }]
        clients = [{ rate = '20 Mbit/s', part = 1.0 }, { rate = '100 Mbit/s', part = 1.0 }]
        releases = [{ at_seconds = 30.0, size = '50 MB', crowd = 40, crowd_ebb_seconds = 30.0 }]
        [workload]
        kind = 'poisson'
        load = 0.4
        sizes = { distribution = 'pareto', low = '100 kB', high = '50 MB', alpha = 1.1 }
        [sync]
        mode = 'swarm'
        pieces = 40
        peers = 4
    ";

    #[test]
    fn the_same_seed_gives_the_same_result_to_the_byte() {
        let scenario = Scenario::parse(SMALL).unwrap();
        let text = |seed| serde_json::to_string(&world::simulate(&scenario, seed).unwrap()).unwrap();
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
    }

    #[test]
    fn everybody_is_served_while_volunteers_come_and_go() {
        let scenario = Scenario::parse(SMALL).unwrap();
        for seed in 1..6 {
            let outcome = world::simulate(&scenario, seed).unwrap();
            assert_eq!(outcome.given_up, 0);
            let served = outcome.completed as f64 / outcome.requests as f64;
            assert!(served > 0.9, "seed {seed}: {served}");
            assert!(outcome.syncs >= 3, "{}", outcome.syncs);
        }
    }

    #[test]
    fn algorithms_that_there_are_not_are_refused() {
        let mut scenario = Scenario::parse(SMALL).unwrap();
        scenario.front_door.selector = "best".to_owned();
        assert!(world::simulate(&scenario, 1).is_err());
        let mut scenario = Scenario::parse(SMALL).unwrap();
        scenario.front_door.arbiter = "fixed-split:much".to_owned();
        assert!(world::simulate(&scenario, 1).is_err());
    }

    #[test]
    fn what_is_compared_is_combined() {
        let mut scenario = Scenario::parse(SMALL).unwrap();
        scenario.compare.selectors = vec!["random".to_owned(), "two-choices".to_owned()];
        scenario.compare.loads = vec![0.5, 0.7, 0.9];
        let all = variants(&scenario);
        assert_eq!(all.len(), 6);
        assert_eq!(all[4].0, "two-choices, load 0.7");
    }
}
