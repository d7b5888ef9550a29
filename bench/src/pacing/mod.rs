//! `bench pacing`: how exactly a donated rate is kept on the wire, how fairly it is shared, and how soon a new
//! rate is in force.
//!
//! Server and customers are in network namespaces. The rate is read from the kernel's counters of the server's
//! interface, never from the server's own; segmentation is done in software there, so that every packet is
//! counted with its headers.

mod accuracy;
mod switching;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Backend, Cancel, Host, Options, Program, Testbed};
use serde::Serialize;

use crate::columns::table;

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
    /// Leaves the change of a running volunteer's rate out.
    #[arg(long)]
    no_switch: bool,
    /// Where `dataplane`, `control` and `ctl` are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.json goes.
    #[arg(long, value_name = "DIR", default_value = "target/bench/pacing-report")]
    out: PathBuf,
}

/// Runs the measurement and writes its report.
///
/// # Errors
/// Without root (no namespaces), or when a program fails.
pub(crate) fn run(arguments: &Arguments, cancel: Cancel) -> Result<()> {
    let programs = match &arguments.programs {
        Some(directory) => directory.clone(),
        None => std::env::current_exe()?.parent().context("this program is in a directory")?.to_owned(),
    };
    let testbed = Testbed::start(Options { cancel, ..Options::default() })?;
    if let Backend::Loopback { why } = testbed.backend() {
        bail!("the wire is measured in network namespaces, which can't be had here: {why}");
    }
    let mut report = Report { seconds: arguments.seconds, accuracy: Vec::new(), switching: Vec::new() };
    let seconds = Duration::from_secs(arguments.seconds);
    let stage = accuracy::Stage::new(&testbed, &programs)?;
    for &rate in &arguments.rates {
        for &flows in &arguments.flows {
            eprintln!("{rate} Mbit/s, {flows} downloads");
            report.accuracy.push(stage.measure(rate, flows, seconds)?);
        }
    }
    if !arguments.no_switch {
        eprintln!("a running volunteer's rate is changed");
        report.switching = switching::measure(&testbed, &programs)?;
    }
    std::fs::create_dir_all(&arguments.out)?;
    std::fs::write(arguments.out.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Report {
    seconds: u64,
    accuracy: Vec<accuracy::Result>,
    switching: Vec<switching::Result>,
}

impl Report {
    fn table(&self) -> String {
        let mut exact = table(&["donated", "downloads", "on the wire", "error", "worst second", "Jain"], 0);
        for row in &self.accuracy {
            exact.add_row([
                format!("{} Mbit/s", row.rate_mbit),
                row.flows.to_string(),
                format!("{:.3} Mbit/s", row.wire_mbit),
                format!("{:+.2} %", row.error_percent),
                format!("{:+.2} %", row.worst_second_percent),
                format!("{:.4}", row.jain),
            ]);
        }
        let mut text = format!("{}\n", exact.trim_fmt());
        if !self.switching.is_empty() {
            let mut switched = table(&["from", "to", "in force after"], 0);
            for row in &self.switching {
                switched.add_row([
                    format!("{} Mbit/s", row.from_mbit),
                    format!("{} Mbit/s", row.to_mbit),
                    format!("{:.0} ms", row.after_ms),
                ]);
            }
            text.push_str(&format!("\n{}\n", switched.trim_fmt()));
        }
        text
    }
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

/// Bytes that the host's interface has sent, by the kernel's count.
fn sent_bytes(host: &Host) -> Result<u64> {
    let interfaces = host.interfaces()?;
    let found = interfaces.iter().find(|interface| interface.name == INTERFACE);
    Ok(found.with_context(|| format!("{} has no {INTERFACE}", host.name()))?.tx_bytes)
}

/// Bytes sent at moments `step` apart, the first at once.
fn samples(host: &Host, step: Duration, count: u32) -> Result<Vec<(Instant, u64)>> {
    let start = Instant::now();
    (0..=count)
        .map(|number| {
            std::thread::sleep((start + step * number).saturating_duration_since(Instant::now()));
            let bytes = sent_bytes(host)?;
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
