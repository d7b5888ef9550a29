//! `bench`: every performance claim of Freshet as a command that anyone can repeat, against a named peer.
#![forbid(unsafe_code)]

mod accounting;
mod catalogue;
mod chunks;
mod claims;
mod columns;
mod ground;
mod interrupt;
mod meter;
mod pacing;
mod paired;
mod plot;
mod redirect;
mod report;
mod serve;
mod sim;
mod spread;
mod sync;
mod tally;
mod testbed;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Freshet against named peers in the same run, and writes a table, JSON and plots.
///
/// Exit status: 0 measured; 1 something failed; 2 wrong usage. Of `claims` also 3, something that it needs is missing, and
/// 4, a claim does not hold.
#[derive(Debug, Parser)]
#[command(name = "bench", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The engine against nginx, lighttpd and static-web-server: rate, CPU, latency, memory.
    Serve(serve::Arguments),
    /// The front door with millions of files and up to 100,000 volunteers, beside nginx's constant 302: redirects per
    /// second, CPU, latency while heartbeats arrive, memory. Needs nginx.
    Redirect(redirect::Arguments),
    /// A donated rate on the wire: how exactly it is kept, how fairly shared, how soon changed, and what the owner of
    /// a slow link notices. Needs root and iperf3.
    Pacing(pacing::Arguments),
    /// Counters by class against the interface's and what was sent; what they cost. Needs root and iperf3.
    Accounting(accounting::Arguments),
    /// How soon a release is on every mirror, and at what cost: the swarm against rsync and BitTorrent. Needs root.
    Sync(sync::Arguments),
    /// What a catalogue of 2.2 million files costs: bytes on the wire, time to load, memory of volunteer and control.
    Catalogue(catalogue::Arguments),
    /// The claims of the paper that Freshet goes back to, measured again on the real programs: claimed beside measured, as
    /// a table and one HTML file. A quarter of an hour; needs root, rsync, aria2, xorriso.
    Claims(claims::Arguments),
    /// What the simulator foretells of ten volunteers beside what the real programs do there: completion times under several
    /// ways of choosing a volunteer and of sharing its link. Ten minutes; needs root and curl.
    Validate(claims::ValidateArguments),
    /// Which chunk size keeps mirrors current, on consecutive versions of real packages: what is found, and how a swarm
    /// moves the rest.
    Chunks(chunks::Arguments),
    /// Simulates origin, volunteers and customers over the real policies; scenarios are TOML files.
    Sim(sim::Arguments),
    /// Runs experiments, which are TOML files: hosts with links, roles and phases. As root the links have rates.
    Testbed(testbed::Arguments),
    /// Makes, measures and imports request traces.
    Trace(trace::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Serve(arguments) => serve::run(&arguments),
        Verb::Redirect(arguments) => redirect::run(&arguments),
        Verb::Pacing(arguments) => {
            interrupt::cancel_on_signals().and_then(|cancel| pacing::run(&arguments, cancel))
        }
        Verb::Accounting(arguments) => {
            interrupt::cancel_on_signals().and_then(|cancel| accounting::run(&arguments, &cancel))
        }
        Verb::Sync(arguments) => {
            interrupt::cancel_on_signals().and_then(|cancel| sync::run(&arguments, &cancel))
        }
        Verb::Catalogue(arguments) => catalogue::run(&arguments),
        Verb::Claims(arguments) => {
            let run = interrupt::cancel_on_signals().and_then(|cancel| claims::run(&arguments, &cancel));
            match run {
                Ok(status) => return status,
                Err(error) => Err(error),
            }
        }
        Verb::Validate(arguments) => {
            let run = interrupt::cancel_on_signals().and_then(|cancel| claims::validate(&arguments, &cancel));
            match run {
                Ok(status) => return status,
                Err(error) => Err(error),
            }
        }
        Verb::Chunks(arguments) => chunks::run(&arguments),
        Verb::Sim(arguments) => sim::run(&arguments),
        Verb::Testbed(arguments) => {
            interrupt::cancel_on_signals().and_then(|cancel| testbed::run(&arguments, &cancel))
        }
        Verb::Trace(arguments) => trace::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
