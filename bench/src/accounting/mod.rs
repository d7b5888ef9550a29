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

use anyhow::Result;
use freshet_testbed::Cancel;

use self::report::Report;
use crate::ground;

/// Options of `bench accounting`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often throughput is measured with and without counters.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Of which loads.
    #[arg(long, value_delimiter = ',', default_value = "sent,received,datagrams")]
    loads: Vec<cost::LoadName>,
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
    let programs = ground::programs(arguments.programs.as_deref())?;
    let mut report = Report::default();
    if !arguments.no_exact {
        let root = tempfile::Builder::new().prefix("freshet-accounting-").tempdir()?;
        exact::make_file(root.path())?;
        for offloads in [false, true] {
            let testbed = ground::namespaces(cancel, NEEDED)?;
            let (rows, left_out) = exact::measure(&testbed, &programs, offloads, root.path())?;
            report.exact.extend(rows);
            report.left_out = left_out;
        }
    }
    if !arguments.no_cost {
        report.test_runs = cost::test_runs()?;
        let testbed = ground::namespaces(cancel, NEEDED)?;
        let stage = cost::Stage::new(&testbed)?;
        report.timed = stage.timed()?;
        report.throughput = stage.throughput(&arguments.loads, arguments.rounds)?;
    }
    report.write(&arguments.out)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// Why this can't be done on loopback.
const NEEDED: &str = "traffic is counted in";
