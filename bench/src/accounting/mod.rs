//! `bench accounting`: how exactly traffic is counted by class, and what the counting costs.
//!
//! Between two network namespaces real tools send traffic of every kind. What our counters say is compared with the
//! kernel's statistics of the interface, and with what is known to have been sent: payload as the tools tell it, and
//! headers for every segment that the kernel's TCP says it sent.

mod cost;
mod counter;
mod exact;
mod report;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Backend, Cancel, Options, Testbed};

use self::report::Report;

/// Options of `bench accounting`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often throughput is measured with and without counters.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Leaves the comparison of counts out.
    #[arg(long)]
    no_exact: bool,
    /// Leaves costs and throughput out.
    #[arg(long)]
    no_cost: bool,
    /// Where `dataplane` is; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.json and the plots go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/accounting-report")]
    out: PathBuf,
}

/// Runs the measurement and writes its report.
///
/// # Errors
/// Without root (no namespaces, no classifiers), or when a program fails.
pub(crate) fn run(arguments: &Arguments, cancel: &Cancel) -> Result<()> {
    let programs = match &arguments.programs {
        Some(directory) => directory.clone(),
        None => std::env::current_exe()?.parent().context("this program is in a directory")?.to_owned(),
    };
    let mut report = Report::default();
    if !arguments.no_exact {
        let root = tempfile::Builder::new().prefix("freshet-accounting-").tempdir()?;
        exact::make_file(root.path())?;
        for offloads in [false, true] {
            let testbed = namespaces(cancel)?;
            let (rows, left_out) = exact::measure(&testbed, &programs, offloads, root.path())?;
            report.exact.extend(rows);
            report.left_out = left_out;
        }
    }
    if !arguments.no_cost {
        report.test_runs = cost::test_runs()?;
        let testbed = namespaces(cancel)?;
        let stage = cost::Stage::new(&testbed)?;
        report.timed = stage.timed()?;
        report.throughput = stage.throughput(arguments.rounds)?;
    }
    report.write(&arguments.out)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// A testbed whose hosts have wires.
fn namespaces(cancel: &Cancel) -> Result<Testbed> {
    let testbed = Testbed::start(Options { cancel: cancel.clone(), ..Options::default() })?;
    if let Backend::Loopback { why } = testbed.backend() {
        bail!("traffic is counted in network namespaces, which can't be had here: {why}");
    }
    Ok(testbed)
}
