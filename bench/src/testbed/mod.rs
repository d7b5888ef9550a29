//! `bench testbed`: experiments as files in the spirit of Emulab: hosts with links, roles, and phases in which mirrors
//! are filled, customers come, releases appear and volunteers are lost.
//!
//! An experiment's file says everything; with one seed it is the same experiment again. What every link carried is
//! read from the kernel by the harness itself, never from the programs under test, and stands beside what these say.

mod account;
mod content;
mod course;
mod customer;
mod experiment;
mod figures;
mod meter;
mod progress;
mod quantity;
mod schedule;
mod stand;

use std::path::{Path, PathBuf};

use anyhow::Result;
use freshet_testbed::{Cancel, Options, Testbed};

use self::account::Run;
use self::experiment::Experiment;
use self::progress::Progress;
use self::stand::Stand;
use crate::ground;

/// Options of `bench testbed`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Runs an experiment from its setting up to its report, and leaves nothing behind.
    Run(RunArguments),
    /// The experiments that come with this program.
    List,
    /// A customer's host in an experiment; started by `run`.
    #[command(hide = true)]
    Customer(customer::Arguments),
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// A TOML file, or the name of an experiment that comes with this program (`list` tells them).
    #[arg(value_name = "FILE|NAME")]
    experiment: PathBuf,
    /// What contents and requests are drawn from, in place of the file's `seed`.
    #[arg(long)]
    seed: Option<u64>,
    /// How often it is run, each time from the beginning and with the same seed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Where control, ctl and dataplane are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.html and report.jsonl go; otherwise target/bench/testbed/NAME.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Does what is asked for.
///
/// # Errors
/// When the experiment's file is wrong, a program is missing or fails, or a phase does not come to its end.
pub(crate) fn run(arguments: &Arguments, cancel: &Cancel) -> Result<()> {
    match &arguments.verb {
        Verb::Run(arguments) => experiment(arguments, cancel),
        Verb::List => list(),
        Verb::Customer(arguments) => customer::run(arguments),
    }
}

fn experiment(arguments: &RunArguments, cancel: &Cancel) -> Result<()> {
    let experiment = Experiment::open(&arguments.experiment)?;
    let seed = arguments.seed.unwrap_or(experiment.seed);
    let experiment = Experiment { seed, ..experiment };
    let programs = ground::programs(arguments.programs.as_deref())?;
    let out = arguments.out.clone().unwrap_or_else(|| Path::new(OUT).join(&experiment.name));
    let mut document = account::begin(&experiment, seed);
    let mut progress = Progress::new();
    let mut runs = Vec::new();
    for number in 1..=arguments.repeat {
        if arguments.repeat > 1 {
            progress.done(&format!("{}: run {number} of {}", experiment.name, arguments.repeat));
        }
        runs.push(once(&experiment, &programs, cancel, &mut progress)?);
    }
    progress.done("");
    let text = account::fill(&mut document, &experiment, &runs)?;
    let report = document.write(&out)?;
    print!("{text}");
    println!("report: {}", report.display());
    Ok(())
}

fn once(experiment: &Experiment, programs: &Path, cancel: &Cancel, progress: &mut Progress) -> Result<Run> {
    let testbed = Testbed::start(Options { cancel: cancel.clone(), ..Options::default() })?;
    let ground = testbed.backend().to_string();
    let mut stand = Stand::set_up(testbed, experiment, programs, &mut |what| progress.step(what))?;
    let bench = std::env::current_exe()?;
    let seen = course::run(&mut stand, experiment, experiment.seed, &bench, progress)?;
    let content = &stand.content;
    let content = format!(
        "{}: {} files, {:.1} MB at the end",
        content.what,
        content.files.len(),
        content.bytes() as f64 / 1e6
    );
    Ok(Run { seen, hosts: account::host_names(experiment), content, ground, caveats: stand.caveats.clone() })
}

fn list() -> Result<()> {
    for experiment in Experiment::supplied()? {
        println!("{:16} {}", experiment.name, experiment.title);
    }
    Ok(())
}

const OUT: &str = "target/bench/testbed";
