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
mod export;
mod figures;
mod inventory;
mod progress;
mod quantity;
mod schedule;
mod stand;
mod standing;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Backend, Cancel, DelayCost, Options, Testbed};

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
    /// Sets an experiment up, fills its mirrors and leaves it standing until `down`; says how to get in.
    Up(standing::Up),
    /// Removes what stands, and what was left by programs that were killed.
    Down(standing::Down),
    /// The experiments that come with this program, and those that stand.
    List,
    /// Writes an experiment for another testbed.
    Export(ExportArguments),
    /// Holds an experiment that stands; started by `up`.
    #[command(hide = true)]
    Keep(standing::Keep),
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
    /// Runs it on real hosts, which are reached by ssh as this TOML file says; their links stay as they are.
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
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

#[derive(Debug, clap::Args)]
struct ExportArguments {
    /// For Emulab and its relatives: a profile for geni-lib (NAME.py) and a request RSpec (NAME.rspec).
    #[arg(long, value_name = "FILE|NAME")]
    emulab: PathBuf,
    /// Where they go.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// Does what is asked for.
///
/// # Errors
/// When the experiment's file is wrong, a program is missing or fails, or a phase does not come to its end.
pub(crate) fn run(arguments: &Arguments, cancel: &Cancel) -> Result<()> {
    match &arguments.verb {
        Verb::Run(arguments) => experiment(arguments, cancel),
        Verb::Up(arguments) => standing::up(arguments, cancel),
        Verb::Down(arguments) => standing::down(arguments),
        Verb::List => list(),
        Verb::Export(arguments) => export(arguments),
        Verb::Keep(arguments) => standing::keep(arguments, cancel),
        Verb::Customer(arguments) => customer::run(arguments),
    }
}

fn experiment(arguments: &RunArguments, cancel: &Cancel) -> Result<()> {
    let experiment = Experiment::open(&arguments.experiment)?;
    let seed = arguments.seed.unwrap_or(experiment.seed);
    let experiment = Experiment { seed, ..experiment };
    let (programs, inventory) = (arguments.programs.as_deref(), arguments.inventory.as_deref());
    let ground = Ground::new(&experiment, programs, inventory, cancel)?;
    let out = arguments.out.clone().unwrap_or_else(|| Path::new(OUT).join(&experiment.name));
    let mut document = account::begin(&experiment, seed);
    let mut progress = Progress::new();
    let mut runs = Vec::new();
    for number in 1..=arguments.repeat {
        if arguments.repeat > 1 {
            progress.done(&format!("{}: run {number} of {}", experiment.name, arguments.repeat));
        }
        runs.push(once(&experiment, &ground, &mut progress)?);
    }
    progress.done("");
    let text = account::fill(&mut document, &experiment, &runs)?;
    let report = document.write(&out)?;
    print!("{text}");
    println!("report: {}", report.display());
    Ok(())
}

/// What an experiment is run on.
struct Ground {
    programs: PathBuf,
    inventory: Option<freshet_testbed::Inventory>,
    cancel: Cancel,
}

impl Ground {
    fn new(
        experiment: &Experiment,
        programs: Option<&Path>,
        inventory: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<Self> {
        Ok(Self {
            programs: ground::programs(programs)?,
            inventory: inventory.map(|path| inventory::open(path, experiment)).transpose()?,
            cancel: cancel.clone(),
        })
    }

    fn stand(&self, experiment: &Experiment, progress: &mut Progress) -> Result<Stand> {
        let testbed = Testbed::start(Options {
            cancel: self.cancel.clone(),
            inventory: self.inventory.clone(),
            ..Options::default()
        })?;
        if let Backend::Loopback { why } = testbed.backend() {
            bail!(
                "an experiment's hosts are network namespaces, which can't be had here: {why}; run it as root, or on real \
                 hosts with --inventory"
            );
        }
        let hosts = self.inventory.iter().flatten();
        let interfaces = hosts.map(|(name, reach)| (name.clone(), reach.interface.clone())).collect();
        Stand::set_up(testbed, experiment, &self.programs, &interfaces, &mut |what| progress.step(what))
    }
}

fn once(experiment: &Experiment, ground: &Ground, progress: &mut Progress) -> Result<Run> {
    let mut stand = ground.stand(experiment, progress)?;
    let bench = std::env::current_exe()?;
    let seen = course::run(&mut stand, experiment, experiment.seed, &bench, progress)?;
    let content = &stand.content;
    let megabytes = content.bytes() as f64 / 1e6;
    let hosts = stand.hosts();
    let version = &stand.cluster.ctl(&["status"])?["version"];
    Ok(Run {
        seen,
        hosts: hosts.iter().map(|host| host.name().to_owned()).collect(),
        interfaces: hosts.iter().map(freshet_testbed::Host::interface).collect::<Result<_, _>>()?,
        content: format!("{}: {} files, {megabytes:.1} MB at the end", content.what, content.files.len()),
        ground: made_of(&stand.testbed),
        version: version.as_str().unwrap_or("unknown").to_owned(),
        caveats: stand.caveats.clone(),
    })
}

/// What the links were made of, and what that cost.
fn made_of(testbed: &Testbed) -> String {
    let DelayCost { links, frames, lost, dropped, cpu } = testbed.delay_cost();
    let backend = testbed.backend();
    if links == 0 {
        return backend.to_string();
    }
    format!(
        "{backend}; {links} of them delayed by the harness: {frames} frames passed on, {lost} lost as asked for, {dropped} \
         dropped, {:.2} s of a processor ({:.1} µs a frame)",
        cpu.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / frames.max(1) as f64
    )
}

fn list() -> Result<()> {
    println!("come with this program:");
    for experiment in Experiment::supplied()? {
        println!("  {:16} {}", experiment.name, experiment.title);
    }
    let standing = standing::list()?;
    println!("\n{}", if standing.is_empty() { "nothing stands" } else { standing.trim_end() });
    Ok(())
}

fn export(arguments: &ExportArguments) -> Result<()> {
    let experiment = Experiment::open(&arguments.emulab)?;
    let out = &arguments.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for (ending, text) in [("py", export::profile(&experiment)?), ("rspec", export::rspec(&experiment)?)] {
        let path = out.join(format!("{}.{ending}", experiment.name));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

const OUT: &str = "target/bench/testbed";
