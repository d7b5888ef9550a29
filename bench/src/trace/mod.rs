//! `bench trace`: request and release traces, made, measured, or imported from a server's log.

mod format;
mod import;
mod stats;
mod synth;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use self::format::{Event, FileEntry, FileKind, Reader, Repository, What, Writer};
pub(crate) use self::synth::{Recipe, Synthesis, normal};

/// Options of `bench trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a trace with the statistics of the published workload; the same seed makes the same file.
    Synth {
        /// Where the trace goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Days.
        #[arg(long, default_value_t = 10)]
        days: u32,
        /// Requests per day on average.
        #[arg(long, default_value_t = 3_000_000.0)]
        requests_per_day: f64,
        /// Files of the repository at the start.
        #[arg(long, default_value_t = 2_200_000)]
        files: u32,
        /// Seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Measures a trace and prints its figures beside the published ones.
    Stats {
        /// The trace.
        trace: PathBuf,
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Makes a trace of access logs in the combined format of Apache and nginx (gzip too).
    Import {
        /// The logs, oldest first; `-` is standard input.
        #[arg(required = true)]
        logs: Vec<PathBuf>,
        /// Where the trace goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Runs `bench trace`.
///
/// # Errors
/// When a file cannot be read or written, or is no trace.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.verb {
        Verb::Synth { out, days, requests_per_day, files, seed } => {
            let recipe = Recipe {
                days: f64::from(*days),
                requests_per_day: *requests_per_day,
                files: *files,
                seed: *seed,
            };
            let mut synthesis = Synthesis::new(recipe);
            let mut events = Vec::new();
            while let Some(event) = synthesis.next() {
                events.push(event);
                if events.len() > EVENTS_MAX {
                    anyhow::bail!(
                        "expected at most {EVENTS_MAX} events, found more; ask for fewer days or requests"
                    );
                }
            }
            let mut writer = Writer::create(out, synthesis.repository())?;
            for event in &events {
                writer.write(event)?;
            }
            let written = writer.finish()?;
            println!("{}: {} files, {written} events", out.display(), synthesis.repository().files.len());
            Ok(())
        }
        Verb::Stats { trace, json } => {
            let stats = stats::measure(&mut Reader::open(trace)?)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&stats)?);
            } else {
                println!("{}", stats.table());
            }
            Ok(())
        }
        Verb::Import { logs, out } => {
            let summary = import::import(logs, out)?;
            println!("{}: {summary}", out.display());
            Ok(())
        }
    }
}

/// A trace is made in memory, since files appear while it is made: 24 bytes per event.
const EVENTS_MAX: usize = 400_000_000;
