//! `bench pacing`: how exactly a donated rate is kept on the wire, how fairly it is shared, how soon a new rate is
//! in force, and what the owner of a slow link notices of what he donates.
//!
//! Server and customers are in network namespaces. The rate is read from the kernel's counters of the server's
//! interface, never from the server's own; segmentation is done in software there, so that every packet is
//! counted with its headers.

mod accuracy;
mod echo;
mod owner;
mod report;
mod switching;
mod volunteer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Cancel, Host, InterfaceCounters, Program};

use self::report::Report;
use crate::ground;

/// Options of `bench pacing`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Donated rates, Mbit/s.
    #[arg(long, value_delimiter = ',', default_value = "20,50,200")]
    rates: Vec<u64>,
    /// How many downloads at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    flows: Vec<usize>,
    /// Length of a measurement, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Downloads over IPv6 where rates on the wire are measured.
    #[arg(long)]
    ipv6: bool,
    /// Leaves the rates on the wire out.
    #[arg(long)]
    no_accuracy: bool,
    /// Leaves the change of a running volunteer's rate out.
    #[arg(long)]
    no_switch: bool,
    /// Leaves the owner's link out.
    #[arg(long)]
    no_owner: bool,
    /// How often each rate is measured with each number of downloads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where `dataplane`, `control` and `ctl` are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.json and the plots go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/pacing-report")]
    out: PathBuf,
}

/// Runs the measurement and writes its report.
///
/// # Errors
/// Without root (no namespaces), or when a program fails.
pub(crate) fn run(arguments: &Arguments, cancel: Cancel) -> Result<()> {
    let mut report = Report { seconds: arguments.seconds, ..Report::default() };
    let measured = measure(arguments, &cancel, &mut report);
    // What was measured before something failed is worth its time all the same.
    if measured.is_ok() || !report.is_empty() {
        report.write(&arguments.out)?;
        print!("{}", report.table());
        println!("report: {}", arguments.out.display());
    }
    measured
}

fn measure(arguments: &Arguments, cancel: &Cancel, report: &mut Report) -> Result<()> {
    let programs = ground::programs(arguments.programs.as_deref())?;
    let seconds = Duration::from_secs(arguments.seconds);
    if !arguments.no_accuracy {
        let testbed = ground::namespaces(cancel, NEEDED)?;
        let stage = accuracy::Stage::new(&testbed, &programs)?;
        for round in 1..=arguments.rounds {
            for &rate in &arguments.rates {
                for &flows in &arguments.flows {
                    eprintln!("round {round}: {rate} Mbit/s, {flows} downloads");
                    report.accuracy.push(stage.measure(rate, flows, arguments.ipv6, seconds)?);
                }
            }
        }
    }
    if !arguments.no_switch {
        eprintln!("a running volunteer's rate is changed");
        report.switching = switching::measure(&ground::namespaces(cancel, NEEDED)?, &programs)?;
    }
    if !arguments.no_owner {
        report.owner = Some(owner::measure(&ground::namespaces(cancel, NEEDED)?, &programs, seconds)?);
    }
    Ok(())
}

/// Sends every segment by itself, so that the interface's byte counter has all headers.
fn segment_in_software(host: &Host) -> Result<()> {
    let program = Program::new("ip").args(["link", "set", "dev", INTERFACE, "gso_max_segs", "1"]);
    let done = host.run(&program, Duration::from_secs(10))?;
    if !done.status.success() {
        bail!("cannot turn segmentation offload off on {}: {}", host.name(), done.stderr.trim());
    }
    Ok(())
}

/// What has passed the host's interface, by the kernel's count.
fn counters(host: &Host) -> Result<InterfaceCounters> {
    let interfaces = host.interfaces()?;
    let found = interfaces.into_iter().find(|interface| interface.name == INTERFACE);
    found.with_context(|| format!("{} has no {INTERFACE}", host.name()))
}

/// Bytes that the host has received, and when that was.
fn received_bytes(host: &Host) -> Result<(Instant, u64)> {
    let bytes = counters(host)?.rx_bytes;
    Ok((Instant::now(), bytes))
}

/// Bytes sent at moments `step` apart, the first at once.
fn samples(host: &Host, step: Duration, count: u32) -> Result<Vec<(Instant, u64)>> {
    let start = Instant::now();
    (0..=count)
        .map(|number| {
            std::thread::sleep((start + step * number).saturating_duration_since(Instant::now()));
            let bytes = counters(host)?.tx_bytes;
            Ok((Instant::now(), bytes))
        })
        .collect()
}

/// Megabits per second between two samples.
fn mbit(first: (Instant, u64), last: (Instant, u64)) -> f64 {
    (last.1 - first.1) as f64 * 8e-6 / (last.0 - first.0).as_secs_f64()
}

/// A file of `bytes` that is downloaded.
fn make_file(path: &Path, bytes: usize) -> Result<()> {
    std::fs::write(path, vec![0x5a; bytes]).with_context(|| format!("cannot make {}", path.display()))
}

const INTERFACE: &str = "eth0";

/// Why this can't be done on loopback.
const NEEDED: &str = "the wire is measured in";
