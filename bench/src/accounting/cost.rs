//! What counting costs: by the kernel's test run, by the kernel's clock under load, and in throughput.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use freshet_ebpf::{Class, RunTimes, test_run_cost};
use freshet_testbed::{Host, Link, Process, Program, Testbed};
use serde::Serialize;

use super::counter::{Counter, INTERFACE};
use crate::paired::Paired;
use crate::spread::Spread;

/// A packet in the kernel's test run (`BPF_PROG_TEST_RUN`).
#[derive(Debug, Serialize)]
pub(super) struct TestRun {
    pub(super) case: &'static str,
    /// Median of some rounds, less that of an empty program measured in turns with it.
    pub(super) net_ns: u32,
    pub(super) empty_ns: u32,
    /// Least and most of the rounds, the empty program's time included.
    pub(super) spread_ns: (u32, u32),
}

/// A classifier's run under load by the kernel's own clock, its two readings of the clock included.
#[derive(Debug, Serialize)]
pub(super) struct Timed {
    pub(super) outgoing: bool,
    pub(super) runs: u64,
    pub(super) ns_per_run: f64,
}

/// One load with and without counters, in turns.
#[derive(Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) load: &'static str,
    pub(super) unit: &'static str,
    pub(super) without: Spread,
    pub(super) with: Spread,
    /// With by without, turn by turn; without is the geometric mean of the turn's two runs.
    pub(super) ratio: Paired,
    /// With programs that do nothing by without: what the kernel takes for calling one.
    pub(super) empty: Paired,
    /// With counters by with programs that do nothing in their place: what the counting itself takes.
    pub(super) over_empty: Paired,
    /// Without by without, which shows what is noise.
    pub(super) noise: Paired,
}

/// Runs each kind of made-up packet some hundred thousand times.
pub(super) fn test_runs() -> Result<Vec<TestRun>> {
    let costs = test_run_cost(TEST_RUNS).context("the kernel does not run the classifiers for a test")?;
    let row = |cost: freshet_ebpf::RunCost| TestRun {
        case: cost.case,
        net_ns: cost.net_nanoseconds(),
        empty_ns: cost.empty_nanoseconds,
        spread_ns: cost.spread,
    };
    Ok(costs.into_iter().map(row).collect())
}

/// Two hosts, and what sends between them.
pub(super) struct Stage {
    server: Host,
    customer: Host,
    _iperf: Process,
}

impl Stage {
    pub(super) fn new(testbed: &Testbed) -> Result<Self> {
        let server = testbed.host("loaded", &Link::new())?;
        let customer = testbed.host("loader", &Link::new())?;
        let iperf = server
            .start("iperf3", &Program::new("iperf3").args(["--server", "--forceflush", "--port", PORT]))?;
        iperf.wait_for_line("Server listening", READY)?;
        Ok(Self { server, customer, _iperf: iperf })
    }

    /// What a run takes while a stream of full segments leaves, and one comes in.
    pub(super) fn timed(&self) -> Result<Vec<Timed>> {
        let times = RunTimes::enable().context("the kernel does not time programs")?;
        let others: Vec<u32> = times.read()?.iter().map(|program| program.id).collect();
        let _counter = self.count()?;
        for load in &LOADS[..2] {
            self.run(load)?;
        }
        let programs = times.read()?;
        let ours = programs.iter().filter(|program| !others.contains(&program.id) && program.runs > 0);
        let row = |program: &freshet_ebpf::ProgramRuns| Timed {
            outgoing: program.outgoing,
            runs: program.runs,
            ns_per_run: program.time.as_nanos() as f64 / program.runs as f64,
        };
        Ok(ours.map(row).collect())
    }

    /// Each load `rounds` times without counters, with programs that do nothing, with counters, and without again.
    pub(super) fn throughput(&self, loads: &[LoadName], rounds: u32) -> Result<Vec<Throughput>> {
        let wanted = LOADS.iter().filter(|load| loads.contains(&load.is));
        wanted.map(|load| self.pairs(load, rounds)).collect()
    }

    fn pairs(&self, load: &'static Load, rounds: u32) -> Result<Throughput> {
        let (mut without, mut with) = (vec![], vec![]);
        let (mut ratio, mut called, mut over_empty, mut noise) = (vec![], vec![], vec![], vec![]);
        self.run(load)?;
        for round in 0..rounds as usize {
            eprintln!("{}: round {} of {rounds}", load.name, round + 1);
            let mut figures = [0.0; ARMS.len()];
            // What comes first takes turns, so that a drift of the machine favours none.
            for place in (0..ARMS.len()).map(|turn| (turn + round) % ARMS.len()) {
                figures[place] = self.run_with(load, ARMS[place])?;
            }
            let [bare, empty, own, again] = figures;
            let both = (bare * again).sqrt();
            without.push(both);
            with.push(own);
            ratio.push(own / both);
            called.push(empty / both);
            over_empty.push(own / empty);
            noise.push(again / bare);
        }
        let spread = |values: Vec<f64>| Spread::of(values).context("there is at least one round");
        let paired = |ratios: Vec<f64>| Paired::of(&ratios).context("there is at least one round");
        Ok(Throughput {
            load: load.name,
            unit: load.unit,
            without: spread(without)?,
            with: spread(with)?,
            ratio: paired(ratio)?,
            empty: paired(called)?,
            over_empty: paired(over_empty)?,
            noise: paired(noise)?,
        })
    }

    fn run_with(&self, load: &Load, arm: Arm) -> Result<f64> {
        match arm {
            Arm::Bare => self.run(load),
            Arm::Empty => {
                let attached = self.server.on_seat(|| freshet_ebpf::EmptyPrograms::attach(INTERFACE))??;
                let figure = self.run(load);
                self.server.on_seat(move || drop(attached))?;
                figure
            }
            Arm::Counted => {
                let _counter = self.count()?;
                self.run(load)
            }
        }
    }

    fn count(&self) -> Result<Counter> {
        let mut counter = Counter::open(&self.server)?;
        counter.claim(PORT.parse()?, Class::Delivery)?;
        Ok(counter)
    }

    fn run(&self, load: &Load) -> Result<f64> {
        let address: IpAddr = self.server.addr()?;
        let program = Program::new("iperf3")
            .args(["--client".to_owned(), address.to_string()])
            .args(["--port", PORT, "--json", "--time", "2", "--omit", "1"])
            .args(load.arguments.iter().copied());
        let done = self.customer.run(&program, RUN_MAX)?;
        let report: serde_json::Value =
            serde_json::from_str(&done.text()).with_context(|| format!("iperf3 said {:?}", done.text()))?;
        if let Some(error) = report["error"].as_str() {
            bail!("iperf3: {error}");
        }
        (load.figure)(&report["end"]).with_context(|| format!("iperf3 did not tell {}", load.unit))
    }
}

/// What is attached to the server's interface.
#[derive(Clone, Copy)]
enum Arm {
    Bare,
    Empty,
    Counted,
}

const ARMS: [Arm; 4] = [Arm::Bare, Arm::Empty, Arm::Counted, Arm::Bare];

/// What throughput is measured of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LoadName {
    /// One TCP stream that leaves.
    Sent,
    /// One that comes in.
    Received,
    /// Small datagrams that leave, as many as the host makes.
    Datagrams,
}

/// Something that makes packets.
struct Load {
    is: LoadName,
    name: &'static str,
    arguments: &'static [&'static str],
    unit: &'static str,
    figure: fn(&serde_json::Value) -> Option<f64>,
}

fn gigabits(end: &serde_json::Value) -> Option<f64> {
    Some(end["sum_received"]["bits_per_second"].as_f64()? * 1e-9)
}

/// Thousands of datagrams per second that were sent.
fn datagrams(end: &serde_json::Value) -> Option<f64> {
    Some(end["sum"]["packets"].as_f64()? / end["sum"]["seconds"].as_f64()? * 1e-3)
}

const LOADS: [Load; 3] = [
    Load {
        is: LoadName::Sent,
        name: "one TCP stream, sent",
        arguments: &["--reverse"],
        unit: "Gbit/s",
        figure: gigabits,
    },
    Load {
        is: LoadName::Received,
        name: "one TCP stream, received",
        arguments: &[],
        unit: "Gbit/s",
        figure: gigabits,
    },
    Load {
        is: LoadName::Datagrams,
        name: "small datagrams, sent",
        arguments: &["--reverse", "--udp", "--bitrate", "0", "--length", "64"],
        unit: "1000/s",
        figure: datagrams,
    },
];
const PORT: &str = "5201";
/// About 0.1 s a case and round.
const TEST_RUNS: u32 = 200_000;
const RUN_MAX: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_iperfs_report() {
        let end = serde_json::json!({
            "sum_received": { "bits_per_second": 25e9 },
            "sum": { "packets": 300_000, "seconds": 2.0 },
        });
        assert!((gigabits(&end).unwrap() - 25.0).abs() < 1e-9);
        assert!((datagrams(&end).unwrap() - 150.0).abs() < 1e-9);
        assert_eq!(datagrams(&serde_json::json!({})), None);
    }
}
