//! `bench validate`: what the simulator foretells of ten volunteers, beside what the real programs do there.
//!
//! The same requests come at the same moments to both: on the testbed as curls over links with rates, in the simulator
//! as flows over uplinks of the payload that these links carry. Nothing is fitted but what a download and a release cost
//! where nothing is busy, which is measured first.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use freshet_api::{Bytes, BytesPerSec};
use freshet_testbed::Cancel;

use super::bounds::{payload_rate, quantile};
use super::selection::{CUSTOMER_RATE, DOWNLINK, ORIGIN_MBIT, OURS, Published, files, set_up, turn, uplinks};
use super::stage::{DONATED_PART, HEARTBEAT_SECS, Stage};
use super::workload::{Wish, poisson};
use crate::ground;
use crate::report::{Document, Table, cells};
use crate::sim::scenario::{
    ClientClass, FrontDoor, Heartbeat, NodeGroup, Origin, Release, Scenario, Sync, Workload,
};
use crate::sim::{Outcome, simulate};
use crate::tally::Tally;

/// Options of `bench validate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often every way is measured, each time with other customers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=50))]
    rounds: u64,
    /// For how long customers come in each turn, seconds.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(5..=600))]
    seconds: u64,
    /// Of the volunteers' uplinks, the part that is asked for.
    #[arg(long, default_value_t = 0.5)]
    load: f64,
    /// Only ways whose name contains one of these; all unless named.
    #[arg(long, value_delimiter = ',', value_name = "WAY")]
    ways: Vec<String>,
    /// What arrivals and contents are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where `dataplane`, `control` and `ctl` are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.html and report.jsonl go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/validate")]
    out: PathBuf,
}

/// One way of running the front door, on both sides.
#[derive(Clone, Copy, Debug)]
struct Way {
    selection: &'static str,
    /// The law's name for control, and for the simulator.
    arbiter: [&'static str; 2],
    /// Whether a release is copied meanwhile.
    releases: bool,
}

const fn choosing(selection: &'static str) -> Way {
    Way { selection, arbiter: ["equal-lateness"; 2], releases: false }
}

const fn sharing(arbiter: [&'static str; 2]) -> Way {
    Way { selection: OURS, arbiter, releases: true }
}

/// Three and more ways of choosing a volunteer without a release, then of sharing links with one.
const WAYS: [Way; 9] = [
    choosing(OURS),
    choosing("random"),
    choosing("round-robin"),
    choosing("two-choices"),
    sharing(["equal-lateness"; 2]),
    sharing(["delivery-first"; 2]),
    sharing(["sync-first"; 2]),
    sharing(["fixed-split", "fixed-split:0.5"]),
    sharing(["shortest-remaining"; 2]),
];

impl Way {
    fn name(&self) -> String {
        match self.releases {
            false => self.selection.to_owned(),
            true => format!("{}, with a release", self.arbiter[0]),
        }
    }
}

/// One turn on either side, seconds.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Times {
    mean: f64,
    median: f64,
    p90: f64,
    sync: f64,
}

/// Measures and foretells. Exit status: 0 when every mean is foretold within [`WITHIN`], 4 when one is not.
///
/// # Errors
/// When it is interrupted, something fails on the way, or the report cannot be written.
pub(crate) fn run(arguments: &Arguments, cancel: &Cancel) -> Result<ExitCode> {
    anyhow::ensure!(
        arguments.load.is_finite() && arguments.load > 0.0 && arguments.load < 1.0,
        "expected a load between 0 and 1, found {}",
        arguments.load
    );
    let ways = chosen(&arguments.ways)?;
    let programs = ground::programs(arguments.programs.as_deref())?;
    let mut document = Document::begin(TITLE, ABOUT);
    document.seed(arguments.seed);
    document.parameter("rounds", arguments.rounds).parameter("load", arguments.load);
    document.parameter("customers come for", format!("{} s", arguments.seconds));
    document.parameter("volunteers' uplinks", format!("{:?} Mbit/s", uplinks()));
    let mut stage = set_up(&programs, cancel)?;
    let mut idle = idle(&mut stage)?;
    if ways.iter().any(|way| way.releases) {
        idle.preparing = preparing(&mut stage, idle, arguments.seed)?;
        let preparing = format!("{:.1} s", idle.preparing);
        eprintln!("where nothing is busy, a release takes {preparing} until mirrors fetch it");
        document.parameter("a release takes until mirrors fetch it, where nothing is busy", preparing);
    }
    let alone = format!("{:.0} ms and its bytes at {}", idle.secs * 1e3, BytesPerSec(idle.rate as u64));
    eprintln!("where nothing is busy, a download takes {alone}");
    document.parameter("a download takes, where nothing is busy", alone);
    let tally = Tally::begin(&stage.cluster, cancel)?;
    let mut pairs: Vec<Vec<[Times; 2]>> = vec![Vec::new(); ways.len()];
    for round in 0..arguments.rounds {
        for (number, way) in ways.iter().enumerate() {
            let seed = arguments.seed * 1_000 + round;
            let secs = arguments.seconds as f64;
            let wishes = poisson(&files(), arguments.load * payload(), secs, seed);
            let release = way.releases.then_some(Published {
                at: secs / 3.0,
                bytes: RELEASE_BYTES,
                seed: seed * 100 + number as u64,
            });
            let foretold = foretold(way, &wishes, release, idle, seed)?;
            stage.set("selection", way.selection)?;
            stage.set("arbiter", way.arbiter[0])?;
            let turn = turn(&mut stage, wishes, release)?;
            let secs: Vec<f64> = turn.served.iter().map(|served| served.secs).collect();
            let measured = Times::of(&secs, turn.sync_secs);
            eprintln!(
                "round {}: {}: {} customers, {:.2} s in the mean, {:.2} s foretold",
                round + 1,
                way.name(),
                secs.len(),
                measured.mean,
                foretold.mean
            );
            let customers: Vec<_> =
                turn.served.iter().map(|one| (one.wish.at, one.wish.bytes, one.secs)).collect();
            document.record(
                "turn",
                &serde_json::json!({
                    "way": way.name(),
                    "round": round,
                    "measured": measured,
                    "foretold": foretold,
                    "customers": customers,
                }),
            )?;
            pairs[number].push([measured, foretold]);
        }
    }
    let counted = tally.end(&stage.cluster, cancel)?;
    let (table, close) = table(&ways, &pairs)?;
    print!("{}", table.plain());
    document.section("Foretold and measured").prose(READING).table(table).counters(&counted);
    println!("report: {}", document.write(&arguments.out)?.display());
    Ok(ExitCode::from(if close { 0 } else { 4 }))
}

/// The ways whose names contain one of `parts`, or all.
fn chosen(parts: &[String]) -> Result<Vec<Way>> {
    let named = |way: &&Way| parts.is_empty() || parts.iter().any(|part| way.name().contains(part));
    let ways: Vec<Way> = WAYS.iter().filter(named).copied().collect();
    let names = || WAYS.iter().map(|way| format!("{:?}", way.name())).collect::<Vec<_>>().join(", ");
    anyhow::ensure!(!ways.is_empty(), "expected parts of {}, found {parts:?}", names());
    Ok(ways)
}

/// Payload per second that all volunteers donate.
fn payload() -> f64 {
    uplinks().into_iter().map(donated).sum()
}

fn donated(mbit: u64) -> f64 {
    payload_rate(mbit as f64 * DONATED_PART)
}

/// What a download takes where nothing is busy.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Idle {
    /// Whatever its size, seconds.
    secs: f64,
    /// Bytes per second of the rest: what the customer's tool makes of the rate that it is told to keep to.
    rate: f64,
    /// From the publication of a release until mirrors fetch it, seconds: it is read and hashed, and they have to hear of it.
    preparing: f64,
}

impl Idle {
    /// The line of least squares through bytes and seconds; at most at the rate that is asked for.
    fn of(downloads: &[(f64, f64)]) -> Option<Idle> {
        let count = downloads.len() as f64;
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| downloads.iter().map(of).sum::<f64>() / count;
        let (bytes, secs) = (mean(&|one| one.0), mean(&|one| one.1));
        let shared = mean(&|one| (one.0 - bytes) * (one.1 - secs));
        let spread = mean(&|one| (one.0 - bytes).powi(2));
        let slope = (shared / spread).max(1.0 / CUSTOMER_RATE as f64);
        let idle = Idle { secs: (secs - slope * bytes).max(0.0), rate: 1.0 / slope, preparing: 0.0 };
        (spread > 0.0 && idle.secs.is_finite()).then_some(idle)
    }
}

/// Downloads every file from the fastest volunteer alone, one after the other.
fn idle(stage: &mut Stage) -> Result<Idle> {
    let names: Vec<String> = stage.cluster.volunteers().iter().map(|one| one.name().to_owned()).collect();
    let (_, others) = names.split_last().context("there are volunteers")?;
    for name in others {
        stage.cluster.ctl(&["node", "drain", name])?;
    }
    let mut at = 1.0;
    let mut wishes = Vec::new();
    for (path, bytes) in files() {
        wishes.push(Wish { at, path, bytes });
        at += bytes as f64 / CUSTOMER_RATE as f64 * 1.2 + IDLE_APART;
    }
    let turn = turn(stage, wishes, None);
    for name in others {
        stage.cluster.ctl(&["node", "resume", name])?;
    }
    stage.until_current()?;
    let downloads: Vec<(f64, f64)> =
        turn?.served.iter().map(|served| (served.wish.bytes as f64, served.secs)).collect();
    Idle::of(&downloads).context("expected downloads of several sizes")
}

/// Publishes a release while there are no customers; how much longer than foretold it takes until all have it.
fn preparing(stage: &mut Stage, idle: Idle, seed: u64) -> Result<f64> {
    let (path, bytes) = files().into_iter().min_by_key(|(_, bytes)| *bytes).context("there are files")?;
    // A course has to have a customer.
    let last = Wish { at: QUIET_SECS, path, bytes };
    let release = Published { at: 1.0, bytes: RELEASE_BYTES, seed: seed * 100_000 + 99 };
    stage.set("arbiter", "equal-lateness")?;
    let turn = turn(stage, vec![last.clone()], Some(release))?;
    let way = sharing(["equal-lateness"; 2]);
    let foretold = foretold(&way, &[last], Some(release), idle, seed)?;
    Ok((turn.sync_secs - foretold.sync).max(0.0))
}

/// The mean of several runs of the simulator, because what is drawn there is not what is drawn here.
fn foretold(way: &Way, wishes: &[Wish], release: Option<Published>, idle: Idle, seed: u64) -> Result<Times> {
    let scenario = scenario(way, wishes, release, idle);
    let mut sum = Times { mean: 0.0, median: 0.0, p90: 0.0, sync: 0.0 };
    for run in 0..RUNS {
        let outcome = simulate(&scenario, seed * RUNS + run)?;
        anyhow::ensure!(
            outcome.completed == wishes.len() as u64,
            "the simulator served {} of {} customers",
            outcome.completed,
            wishes.len()
        );
        let p90 = cdf_at(&outcome, 0.9);
        sum.mean += outcome.wait_mean + idle.secs;
        sum.median += outcome.wait_p50 + idle.secs;
        sum.p90 += p90 + idle.secs;
        sum.sync += outcome.sync_max + if way.releases { idle.preparing } else { 0.0 };
    }
    let runs = RUNS as f64;
    Ok(Times { mean: sum.mean / runs, median: sum.median / runs, p90: sum.p90 / runs, sync: sum.sync / runs })
}

fn cdf_at(outcome: &Outcome, part: f64) -> f64 {
    outcome.wait_cdf.iter().find(|(_, up_to)| *up_to >= part).map_or(f64::NAN, |(secs, _)| *secs)
}

fn scenario(way: &Way, wishes: &[Wish], release: Option<Published>, idle: Idle) -> Scenario {
    let rate = |bytes: f64| BytesPerSec(bytes as u64);
    let node = |mbit: u64| NodeGroup {
        count: 1,
        uplink: vec![rate(donated(mbit))],
        claims: 1.0,
        downlink: rate(payload_rate(DOWNLINK as f64)),
        whole_mirror: true,
        part: [1.0, 1.0],
        churn: None,
        quota: None,
        owner_load: 0.0,
    };
    let nodes: Vec<NodeGroup> = uplinks().into_iter().map(node).collect();
    let last = wishes.iter().map(|wish| wish.at).fold(0.0, f64::max);
    let released = |release: Published| Release {
        at_seconds: release.at,
        size: Bytes(release.bytes as u64),
        ahead_seconds: -idle.preparing,
        crowd: 0,
        crowd_ebb_seconds: 1.0,
    };
    Scenario {
        title: way.name(),
        seconds: last + AFTERWARDS_SECS,
        warmup_seconds: 0.0,
        front_door: FrontDoor {
            selector: way.selection.to_owned(),
            arbiter: way.arbiter[1].to_owned(),
            customer_wait_seconds: 30.0,
            sync_target_seconds: 1_800.0,
            admission: true,
            ..FrontDoor::default()
        },
        origin: Origin { uplink: rate(payload_rate(ORIGIN_MBIT as f64)), redirects: true },
        sync: match release {
            Some(_) => Sync::Swarm {
                pieces: (RELEASE_BYTES / PIECE_BYTES) as u32,
                peers: nodes.len(),
                daily_bytes: Bytes(0),
                daily_sigma: 0.0,
            },
            None => Sync::None,
        },
        nodes,
        heartbeat: Heartbeat { interval_seconds: HEARTBEAT_SECS, delay_seconds: 0.0, loss: 0.0 },
        clients: vec![ClientClass { rate: rate(idle.rate), part: 1.0 }],
        workload: Workload::Listed { requests: wishes.iter().map(|wish| (wish.at, wish.bytes)).collect() },
        releases: release.map(released).into_iter().collect(),
        faults: Vec::new(),
        compare: crate::sim::scenario::Compare::default(),
    }
}

impl Times {
    fn of(secs: &[f64], sync: f64) -> Times {
        Times {
            mean: secs.iter().sum::<f64>() / secs.len().max(1) as f64,
            median: quantile(secs, 0.5),
            p90: quantile(secs, 0.9),
            sync,
        }
    }
}

/// A row for each way: means over the rounds, and whether all means are close.
fn table(ways: &[Way], pairs: &[Vec<[Times; 2]>]) -> Result<(Table, bool)> {
    let mut table = Table::new("Completion times by the testbed and by the simulator; means over the rounds")
        .text("way")
        .number("mean, measured", "s", 2)
        .number("mean, foretold", "s", 2)
        .number("foretold over measured", "", 2)
        .number("median: foretold over measured", "", 2)
        .number("90 %: foretold over measured", "", 2)
        .number("release everywhere, measured", "s", 1)
        .number("release everywhere, foretold", "s", 1);
    let mut close = true;
    for (way, turns) in ways.iter().zip(pairs) {
        anyhow::ensure!(!turns.is_empty(), "nothing was measured of {}", way.name());
        let mean = |side: usize, figure: &dyn Fn(&Times) -> f64| {
            turns.iter().map(|turn| figure(&turn[side])).sum::<f64>() / turns.len() as f64
        };
        let ratio = |figure: &dyn Fn(&Times) -> f64| mean(1, figure) / mean(0, figure);
        let means = ratio(&|times| times.mean);
        close &= (means - 1.0).abs() <= WITHIN;
        let sync = |side: usize| way.releases.then(|| mean(side, &|times| times.sync));
        table.row(cells![
            way.name(),
            mean(0, &|times| times.mean),
            mean(1, &|times| times.mean),
            means,
            ratio(&|times| times.median),
            ratio(&|times| times.p90),
            sync(0),
            sync(1),
        ]);
    }
    Ok((table, close))
}

/// How far a mean that is foretold may be from the one that is measured.
const WITHIN: f64 = 0.15;
const RELEASE_BYTES: usize = 8_000_000;
/// Of a bundle of this size, as control cuts it.
const PIECE_BYTES: usize = 32 << 10;
/// Runs of the simulator that are averaged.
const RUNS: u64 = 20;
/// Seconds between two downloads on idle links.
const IDLE_APART: f64 = 0.3;
/// In which a release is everywhere while nothing else is sent.
const QUIET_SECS: f64 = 15.0;
/// Simulated after the last customer came, so that all are served.
const AFTERWARDS_SECS: f64 = 600.0;
const TITLE: &str = "The simulator against the testbed";
const ABOUT: &str = "Ten volunteers with uneven uplinks, the same customers at the same moments: completion times of real \
                     programs over namespaces with rate-limited links, and those that the simulator foretells.";
const READING: &str = "The simulator runs the policies that control runs. It knows the links' rates, when customers come and \
                       for how many bytes, and what a download and a release take where nothing is busy; nothing else is told \
                       to it. What is drawn at random differs on the two sides, so the simulator's figures are means of \
                       several runs.";

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Idle = Idle { secs: 0.1, rate: CUSTOMER_RATE as f64, preparing: 2.0 };

    fn wishes() -> Vec<Wish> {
        poisson(&files(), 0.5 * payload(), 20.0, 3)
    }

    #[test]
    fn all_ways_can_be_foretold() {
        for way in &WAYS {
            let release = way.releases.then_some(Published { at: 5.0, bytes: RELEASE_BYTES, seed: 1 });
            let times = foretold(way, &wishes(), release, IDLE, 1).unwrap();

            assert!(times.mean > 0.2 && times.mean < 60.0 && times.p90 >= times.median, "{way:?}: {times:?}");
            assert_eq!(times.sync > 0.0, way.releases, "{way:?}: {times:?}");
        }
    }

    #[test]
    fn one_customer_alone_takes_its_bytes_at_its_own_rate_and_what_any_download_takes() {
        let wish = Wish { at: 0.5, path: "pool/0.bin".to_owned(), bytes: CUSTOMER_RATE };
        let times = foretold(&WAYS[0], &[wish], None, IDLE, 1).unwrap();
        // Unless a slow volunteer was drawn.
        assert!(times.median >= 1.1 && times.median < 3.0, "{times:?}");
    }

    #[test]
    fn what_a_download_takes_is_a_line() {
        let line: Vec<(f64, f64)> = [1e5, 1e6, 3e6].map(|bytes| (bytes, 0.02 + bytes / 2e6)).to_vec();
        let idle = Idle::of(&line).unwrap();
        assert!((idle.secs - 0.02).abs() < 1e-9 && (idle.rate - 2e6).abs() < 1.0, "{idle:?}");
        // Faster than asked for it can't be.
        let fast = [1e5, 3e6].map(|bytes| (bytes, bytes / 9e6));
        assert!((Idle::of(&fast).unwrap().rate - CUSTOMER_RATE as f64).abs() < 1.0);
        assert_eq!(Idle::of(&[]), None);
    }

    #[test]
    fn ways_are_chosen_by_parts_of_their_names() {
        let names = |parts: &[&str]| -> Vec<String> {
            let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            chosen(&parts).unwrap().iter().map(Way::name).collect()
        };
        assert_eq!(names(&[]).len(), WAYS.len());
        assert_eq!(
            names(&["first", "robin"]),
            ["round-robin", "delivery-first, with a release", "sync-first, with a release"]
        );
        assert!(chosen(&["astrology".to_owned()]).is_err());
    }

    #[test]
    fn a_mean_that_is_far_off_is_told() {
        let times = |mean| Times { mean, median: 1.0, p90: 1.0, sync: 1.0 };
        let rows = |foretold: f64| vec![vec![[times(1.0), times(foretold)]]; WAYS.len()];
        let is_close = |foretold| table(&WAYS, &rows(foretold)).unwrap().1;
        assert!(is_close(1.1) && is_close(0.9));
        assert!(!is_close(1.2) && !is_close(0.8));
    }
}
